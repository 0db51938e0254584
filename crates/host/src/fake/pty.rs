//! A terminal of the fake: two pipes. A resize is written to the program as the line `\x1b[8;ROWS;COLUMNSt`, the sequence
//! by which terminals speak of it, so that a program of a test sees it in order with the keys.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use super::network::Wire;
use super::programs::KillOnDrop;
use crate::error::{HostError, Result};
use crate::guard::Size;
use crate::terminal::{Pty, PtyInput};

pub(super) fn of(process: KillOnDrop, stdin: Wire, stdout: Wire) -> Pty {
    Pty { output: Box::new(stdout), input: Box::new(Input { stdin, _process: process }) }
}

struct Input {
    stdin: Wire,
    /// Killed when this is dropped.
    _process: KillOnDrop,
}

impl AsyncWrite for Input {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdin).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_shutdown(cx)
    }
}

impl PtyInput for Input {
    fn resize(&mut self, size: Size) -> Result<()> {
        let told = format!("\x1b[8;{};{}t", size.rows, size.columns);
        let mut idle = Context::from_waker(std::task::Waker::noop());
        match Pin::new(&mut self.stdin).poll_write(&mut idle, told.as_bytes()) {
            Poll::Ready(Ok(written)) if written == told.len() => Ok(()),
            Poll::Ready(Err(error)) => Err(HostError::io("resize a terminal", error)),
            _ => Err(HostError::io("resize a terminal", io::ErrorKind::WouldBlock.into())),
        }
    }
}
