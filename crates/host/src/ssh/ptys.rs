//! Programs on a terminal of their own, on the machine.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncWrite, DuplexStream};

use super::process::{FarProcess, Started};
use super::pump::Grip;
use crate::Result;
use crate::guard::Size;
use crate::terminal::{Pty, PtyInput};

/// A started program as [`crate::Host::open_pty`] answers it.
pub(super) fn pty(started: Started) -> Pty {
    let grip = started.process.grip();
    let input = Input { write: started.input, grip, _process: started.process };
    Pty { output: Box::new(started.output), input: Box::new(input) }
}

/// Dropping it closes the terminal, which hangs up whatever is on it, and kills the program if that was not enough.
struct Input {
    write: DuplexStream,
    grip: Grip,
    _process: FarProcess,
}

impl Drop for Input {
    fn drop(&mut self) {
        self.grip.close();
    }
}

impl AsyncWrite for Input {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }
}

impl PtyInput for Input {
    /// On its way when this returns; a terminal that is gone has no size.
    fn resize(&mut self, size: Size) -> Result<()> {
        self.grip.resize(size);
        Ok(())
    }
}
