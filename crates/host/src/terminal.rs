//! A viewer before the terminal of an agent: what it shows, keys that are typed, and the size of the window.
//!
//! The same line whether a ttyd holds the viewer's side of it ([`crate::ttyd`]) or a pty of our own ([`Pty`]).

use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use crate::guard::Size;
use crate::{Command, EnvPlan, Host, HostError, Result, tmux};

/// What a viewer may do to the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seat {
    /// Types, and its window is the terminal's size.
    Owner,
    /// Types; the terminal keeps its owner's size.
    Guest,
    /// Looks on.
    Viewer,
}

/// One viewer's connection; dropping it ends it and nothing else.
pub struct Line {
    /// What the terminal shows, as bytes for a terminal of the viewer's; ends when the terminal does.
    pub output: BoxStream<'static, Result<Bytes>>,
    /// The other direction.
    pub input: Box<dyn LineInput>,
}

/// What a viewer does.
#[async_trait]
pub trait LineInput: Send {
    /// Types bytes as a terminal sends them.
    async fn keys(&mut self, keys: Bytes) -> Result<()>;
    /// Says how large the viewer's window is now.
    async fn resize(&mut self, size: Size) -> Result<()>;
}

/// A program on a terminal of its own (see [`Host::open_pty`]).
pub struct Pty {
    /// What the program writes; ends when the program does.
    pub output: Box<dyn AsyncRead + Send + Unpin>,
    /// What it reads. Dropping it kills the program.
    pub input: Box<dyn PtyInput>,
}

/// The side of a [`Pty`] on which somebody sits.
pub trait PtyInput: AsyncWrite + Send + Unpin {
    /// Tells the program that its window changed.
    fn resize(&mut self, size: Size) -> Result<()>;
}

/// Bytes taken from a terminal at once: a full repaint of a large window.
const CHUNK: usize = 64 * 1024;

/// Puts a viewer before the terminal through a pty of the host's, without any ttyd.
pub async fn open(host: &dyn Host, tmux: &Path, socket: &Path, seat: Seat, size: Size) -> Result<Line> {
    let add = [("TERM".to_owned(), VIEWER_TERM.to_owned())].into();
    let env = EnvPlan { remove: vec!["TMUX".to_owned(), "TMUX_PANE".to_owned()], add, ..EnvPlan::default() };
    let command = Command { env, ..Command::new(tmux::attaching(tmux, socket, seat)) };
    let Pty { output, input } = host.open_pty(command, size).await?;
    let output = ReaderStream::with_capacity(output, CHUNK)
        .map(|read| read.map_err(|error| HostError::io("read from the terminal", error)));
    Ok(Line { output: output.boxed(), input: Box::new(Typing(input)) })
}

/// What the viewer's terminal is, to the tmux client before it: what every page draws with.
pub(crate) const VIEWER_TERM: &str = "xterm-256color";

struct Typing(Box<dyn PtyInput>);

#[async_trait]
impl LineInput for Typing {
    async fn keys(&mut self, keys: Bytes) -> Result<()> {
        let writing = async {
            self.0.write_all(&keys).await?;
            self.0.flush().await
        };
        writing.await.map_err(|error| HostError::io("write to the terminal", error))
    }

    async fn resize(&mut self, size: Size) -> Result<()> {
        self.0.resize(size)
    }
}
