//! Somebody before the terminal, as the one who serves their window holds them.

use std::time::Duration;

use actix::WeakAddr;
use actix::prelude::*;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use optio_host::terminal::{Line, LineInput, Seat};
use optio_host::{HostError, Size};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Terminal;

/// How long after its line broke the loss of the host may still be told.
const DOUBT: Duration = Duration::from_secs(1);

/// A seat before the terminal. Dropping it is leaving.
pub struct Viewer {
    seat: Seat,
    output: BoxStream<'static, Result<Bytes, HostError>>,
    input: Box<dyn LineInput>,
    sizes: watch::Sender<Size>,
    changed: watch::Receiver<Size>,
    over: CancellationToken,
    _leave: Leave,
}

/// What a viewer is to be told.
#[derive(Debug, PartialEq, Eq)]
pub enum Shown {
    /// Bytes for their terminal.
    Output(Bytes),
    /// The terminal has this size now.
    Size(Size),
    /// Their seat is taken away: they may come back, or the run ends.
    Over,
    /// The terminal has ended.
    Ended,
}

impl Viewer {
    pub(super) fn new(
        line: Line,
        seat: Seat,
        sizes: watch::Sender<Size>,
        over: CancellationToken,
        leave: Leave,
    ) -> Self {
        let changed = sizes.subscribe();
        Self { seat, output: line.output, input: line.input, sizes, changed, over, _leave: leave }
    }

    /// What they may do.
    pub fn seat(&self) -> Seat {
        self.seat
    }

    /// The size of the terminal, which is that of its owner's window.
    pub fn size(&self) -> Size {
        *self.sizes.borrow()
    }

    /// Cancelled when their seat is taken away, for whoever does not wait for [`Viewer::next`] now.
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    /// Waits for the next thing to show; cancel safe.
    pub async fn next(&mut self) -> Shown {
        loop {
            tokio::select! {
                biased;
                () = self.over.cancelled() => return Shown::Over,
                Ok(()) = self.changed.changed(), if self.seat != Seat::Owner => {
                    let size = *self.changed.borrow_and_update();
                    // What they see is drawn for the owner's window.
                    match self.input.resize(size).await {
                        Ok(()) => return Shown::Size(size),
                        Err(problem) => {
                            tracing::debug!(%problem, "viewer's line is broken");
                            return Shown::Ended;
                        }
                    }
                }
                read = self.output.next() => match read {
                    Some(Ok(bytes)) if bytes.is_empty() => {}
                    Some(Ok(bytes)) => return Shown::Output(bytes),
                    Some(Err(problem)) => {
                        tracing::debug!(%problem, "viewer's line is broken");
                        return self.broke_off().await;
                    }
                    None => return self.broke_off().await,
                },
            }
        }
    }

    /// A line that broke with the way to the host breaks before anybody says so.
    async fn broke_off(&self) -> Shown {
        match tokio::time::timeout(DOUBT, self.over.cancelled()).await {
            Ok(()) => Shown::Over,
            Err(_) => Shown::Ended,
        }
    }

    /// Types. What somebody types who may only look on, or after the door was closed, is dropped.
    pub async fn keys(&mut self, keys: Bytes) -> Result<(), HostError> {
        if self.seat == Seat::Viewer || self.over.is_cancelled() {
            return Ok(());
        }
        self.input.keys(keys).await
    }

    /// Says how large their window is now. Only the owner's size is the terminal's.
    pub async fn resize(&mut self, size: Size) -> Result<(), HostError> {
        if self.seat != Seat::Owner || self.over.is_cancelled() {
            return Ok(());
        }
        self.sizes.send_replace(size);
        self.input.resize(size).await
    }
}

/// Tells that a viewer has left; sent once, however they left.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub(super) struct Left(pub(super) u64);

/// Says [`Left`] when it is dropped.
pub(super) struct Leave {
    id: u64,
    terminal: WeakAddr<Terminal>,
}

impl Leave {
    pub(super) fn new(id: u64, terminal: WeakAddr<Terminal>) -> Self {
        Self { id, terminal }
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        // A terminal that is gone has forgotten them already.
        if let Some(terminal) = self.terminal.upgrade() {
            terminal.do_send(Left(self.id));
        }
    }
}
