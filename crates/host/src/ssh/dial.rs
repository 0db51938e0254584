//! Connections to programs on the machine, through its SSH server.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::connection::{Connection, NoDial};
use super::pump::{Grip, Holds, PIPE_BOUND, pump};
use super::queue::QueueReader;
use crate::Duplex;

/// To a TCP port, as seen from the machine.
pub(super) async fn tcp(
    connection: &Arc<Connection>,
    address: &str,
    port: u16,
) -> Result<Box<dyn Duplex>, NoDial> {
    let channel = connection.to_tcp(address, port).await?;
    Ok(stream(connection, channel))
}

/// To a Unix socket of the machine.
pub(super) async fn unix(connection: &Arc<Connection>, path: &Path) -> Result<Box<dyn Duplex>, NoDial> {
    let Some(path) = path.to_str() else {
        return Err(NoDial::Refused("its path is no UTF-8".into()));
    };
    let channel = connection.to_socket(path).await?;
    Ok(stream(connection, channel))
}

fn stream(connection: &Arc<Connection>, channel: russh::Channel<russh::client::Msg>) -> Box<dyn Duplex> {
    let holds = Holds { connection: connection.clone(), slot: None };
    let pumped = pump(channel, holds, PIPE_BOUND, None);
    Box::new(Stream { input: pumped.input, output: pumped.output, grip: pumped.grip })
}

/// Closed when it is dropped.
struct Stream {
    input: DuplexStream,
    output: QueueReader,
    grip: Grip,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.grip.close();
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.input).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_shutdown(cx)
    }
}
