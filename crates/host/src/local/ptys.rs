//! Programs on a terminal of their own, on this machine.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use pty_process::{OwnedReadPty, OwnedWritePty};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::process::Child;

use crate::Command;
use crate::error::{HostError, Result};
use crate::guard::Size;
use crate::terminal::{Pty, PtyInput};

/// Starts a program on a new terminal (see [`crate::Host::open_pty`]).
pub(super) fn open(command: Command, size: Size, home: &Path) -> Result<Pty> {
    let name = super::programs::program_name(&command)?;
    let cwd = command.cwd.as_deref().unwrap_or(home);
    let failed = |error| HostError::io("open a terminal", into_io(error));
    let (pty, pts) = pty_process::open().map_err(failed)?;
    pty.resize(pty_process::Size::new(size.rows, size.columns)).map_err(failed)?;
    let program = pty_process::Command::new(name)
        .args(&command.argv[1..])
        .env_clear()
        .envs(command.env.apply(std::env::vars_os())?)
        .current_dir(cwd)
        .kill_on_drop(true);
    let child =
        program.spawn(pts).map_err(|error| super::programs::start_error(name, cwd, into_io(error)))?;
    let (read, write) = pty.into_split();
    Ok(Pty { output: Box::new(Output(read)), input: Box::new(Input { write, _child: child }) })
}

fn into_io(error: pty_process::Error) -> io::Error {
    match error {
        pty_process::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

struct Output(OwnedReadPty);

impl AsyncRead for Output {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.0).poll_read(cx, buf) {
            // Linux says so when the last program has closed the other side: it is the end.
            Poll::Ready(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                Poll::Ready(Ok(()))
            }
            read => read,
        }
    }
}

struct Input {
    write: OwnedWritePty,
    /// Killed when this is dropped.
    _child: Child,
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
    fn resize(&mut self, size: Size) -> Result<()> {
        let size = pty_process::Size::new(size.rows, size.columns);
        self.write.resize(size).map_err(|error| HostError::io("resize a terminal", into_io(error)))
    }
}
