//! What came from a channel and was not read yet.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};

/// The writing side: never waits, because a channel that waits stalls its whole connection.
pub(super) struct Queue(Arc<Mutex<Inner>>);

/// The reading side; what comes after it was dropped is thrown away.
pub(super) struct QueueReader(Arc<Mutex<Inner>>);

struct Inner {
    chunks: VecDeque<Bytes>,
    held: usize,
    bound: usize,
    end: Option<Result<(), Arc<str>>>,
    reader: Option<Waker>,
    unread: bool,
}

/// A queue that holds at most `bound` bytes.
pub(super) fn queue(bound: usize) -> (Queue, QueueReader) {
    let inner = Inner { chunks: VecDeque::new(), held: 0, bound, end: None, reader: None, unread: false };
    let inner = Arc::new(Mutex::new(inner));
    (Queue(inner.clone()), QueueReader(inner))
}

impl Queue {
    /// Adds a chunk; `false` when it does not fit, and then it is not added.
    pub(super) fn push(&self, chunk: Bytes) -> bool {
        let mut inner = lock(&self.0);
        if inner.unread || inner.end.is_some() || chunk.is_empty() {
            return true;
        }
        if inner.held + chunk.len() > inner.bound {
            return false;
        }
        inner.held += chunk.len();
        inner.chunks.push_back(chunk);
        wake(inner);
        true
    }

    /// Nothing more comes. Only the first end counts.
    pub(super) fn end(&self, how: Result<(), Arc<str>>) {
        let mut inner = lock(&self.0);
        inner.end.get_or_insert(how);
        wake(inner);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.end(Err("the connection is gone".into()));
    }
}

impl Drop for QueueReader {
    fn drop(&mut self) {
        let mut inner = lock(&self.0);
        inner.unread = true;
        inner.chunks = VecDeque::new();
    }
}

impl AsyncRead for QueueReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        let inner = &mut *inner;
        if let Some(chunk) = inner.chunks.front_mut() {
            let len = chunk.len().min(buf.remaining());
            buf.put_slice(&chunk[..len]);
            chunk.advance(len);
            inner.held -= len;
            if chunk.is_empty() {
                inner.chunks.pop_front();
            }
            return Poll::Ready(Ok(()));
        }
        match &inner.end {
            Some(Ok(())) => Poll::Ready(Ok(())),
            Some(Err(why)) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why.to_string())))
            }
            None => {
                inner.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn wake(mut inner: MutexGuard<'_, Inner>) {
    let reader = inner.reader.take();
    drop(inner);
    if let Some(reader) = reader {
        reader.wake();
    }
}

/// Every change to it is whole before anything can panic, so a poisoned lock means nothing.
fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}
