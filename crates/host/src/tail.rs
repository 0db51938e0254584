//! What is kept of a stream that may be long: its end.

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::command::OUTPUT_LIMIT;

/// Bytes taken from a pipe at once; a Linux pipe holds this many.
const PIPE_CHUNK: usize = 64 * 1024;

/// The last [`OUTPUT_LIMIT`] bytes of a stream.
#[derive(Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    pub(crate) async fn fill(&mut self, pipe: Option<impl AsyncRead + Unpin>) {
        let Some(mut pipe) = pipe else { return };
        let mut chunk = vec![0; PIPE_CHUNK];
        // A pipe that fails to be read has ended, as far as anybody can tell.
        while let Ok(len @ 1..) = pipe.read(&mut chunk).await {
            self.push(&chunk[..len]);
        }
    }

    /// Lets the buffer grow to twice its limit before it moves the end to the front: each byte moves once.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        if self.0.len() > 2 * OUTPUT_LIMIT {
            self.trim();
        }
    }

    fn trim(&mut self) {
        let surplus = self.0.len().saturating_sub(OUTPUT_LIMIT);
        self.0.drain(..surplus);
    }

    pub(crate) fn into_bytes(mut self) -> Bytes {
        self.trim();
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_the_last_bytes_however_they_come() {
        let mut tail = Tail::default();
        for round in 0..50 {
            tail.push(&vec![round; PIPE_CHUNK]);
        }
        tail.push(b"the end");
        let bytes = tail.into_bytes();
        assert_eq!(bytes.len(), OUTPUT_LIMIT);
        assert!(bytes.ends_with(b"the end"));
    }
}
