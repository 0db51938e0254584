//! The wire to an app-server: whole messages both ways, whichever transport carries them.

use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::LocalBoxStream;
use futures_util::{SinkExt, StreamExt};
use optio_codex_protocol::rpc::MAX_LINE;
use optio_host::{Dial, Duplex, Host, HostError};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message, error::CapacityError};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use tokio_util::codec::{Decoder, FramedRead};

use crate::process::Pipes;

/// Messages to the agent that may wait to be written; more means that it does not read.
const OUTGOING: usize = 256;

/// A message that the agent does not take within this is a broken connection.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// The wait between two tries to reach an agent that is still starting.
const DIAL_PAUSE: Duration = Duration::from_millis(25);

/// Why the wire broke.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The agent said more in one message than anybody could want.
    #[error("the agent sent a line of more than {} MiB", MAX_LINE >> 20)]
    TooLong,
    /// The other end closed.
    #[error("the agent closed the connection")]
    Closed,
    /// The transport failed.
    #[error("the connection to the agent broke: {0}")]
    Broken(String),
}

/// Messages from the agent. Ends after its first error.
pub(crate) type Incoming = LocalBoxStream<'static, Result<Bytes, WireError>>;

/// Messages to the agent, in order. Dropping the last one closes our side, which a piped agent takes for its end.
#[derive(Clone)]
pub(crate) struct Outgoing(mpsc::Sender<String>);

impl Outgoing {
    /// Hands a message to the writer; `false` when the agent does not read, or is gone.
    pub(crate) fn send(&self, message: String) -> bool {
        self.0.try_send(message).is_ok()
    }
}

/// Connects to an app-server that listens, waiting until it does.
pub(crate) async fn dial(
    host: &dyn Host,
    path: PathBuf,
    limit: Duration,
) -> Result<(Incoming, Outgoing), WireError> {
    let target = Dial::Unix(path);
    let dialling = async {
        loop {
            match host.dial(&target).await {
                Ok(stream) => return Ok(stream),
                Err(HostError::NotListening { .. }) => tokio::time::sleep(DIAL_PAUSE).await,
                Err(problem) => return Err(WireError::Broken(problem.to_string())),
            }
        }
    };
    let nobody = || WireError::Broken(format!("nothing listened within {limit:?}"));
    let stream = tokio::time::timeout(limit, dialling).await.map_err(|_| nobody())??;
    let upgraded = tokio::time::timeout(limit, upgrade(stream)).await.map_err(|_| nobody())?;
    Ok(over_websocket(upgraded?))
}

/// The upgrade carries neither extensions nor an origin: the app-server closes on both (LAB §9).
async fn upgrade(stream: Box<dyn Duplex>) -> Result<WebSocketStream<Box<dyn Duplex>>, WireError> {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_LINE)).max_frame_size(Some(MAX_LINE));
    let connected = client_async_with_config("ws://localhost/", stream, Some(config)).await;
    connected.map(|(socket, _)| socket).map_err(|problem| WireError::Broken(problem.to_string()))
}

fn over_websocket(socket: WebSocketStream<Box<dyn Duplex>>) -> (Incoming, Outgoing) {
    let (mut sink, stream) = socket.split();
    let (send, mut queue) = mpsc::channel::<String>(OUTGOING);
    actix_rt::spawn(async move {
        while let Some(message) = queue.recv().await {
            match tokio::time::timeout(WRITE_LIMIT, sink.send(Message::text(message))).await {
                Ok(Ok(())) => {}
                // The reading side finds out by itself and says so.
                Ok(Err(_)) | Err(_) => return,
            }
        }
        // Politeness only: the agent lives on without it.
        let _ = tokio::time::timeout(WRITE_LIMIT, sink.close()).await;
    });
    let incoming = stream.filter_map(|message| async {
        match message {
            Ok(Message::Text(text)) => Some(Ok(Bytes::from(text))),
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            Ok(Message::Close(_)) => Some(Err(WireError::Closed)),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => None,
            Err(WsError::Capacity(CapacityError::MessageTooLong { .. })) => Some(Err(WireError::TooLong)),
            Err(WsError::ConnectionClosed | WsError::AlreadyClosed) => Some(Err(WireError::Closed)),
            Err(problem) => Some(Err(WireError::Broken(problem.to_string()))),
        }
    });
    (until_error(incoming.boxed_local()), Outgoing(send))
}

/// Talks over an agent's own pipes.
pub(crate) fn over_pipes(pipes: Pipes) -> (Incoming, Outgoing) {
    let Pipes { mut stdin, stdout } = pipes;
    let (send, mut queue) = mpsc::channel::<String>(OUTGOING);
    actix_rt::spawn(async move {
        while let Some(mut message) = queue.recv().await {
            message.push('\n');
            let writing = async {
                stdin.write_all(message.as_bytes()).await?;
                stdin.flush().await
            };
            match tokio::time::timeout(WRITE_LIMIT, writing).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    });
    let lines =
        FramedRead::new(stdout, Lines::default()).chain(futures_util::stream::iter([Err(WireError::Closed)]));
    (until_error(lines.boxed_local()), Outgoing(send))
}

fn until_error(stream: Incoming) -> Incoming {
    let mut over = false;
    stream
        .take_while(move |item| {
            let go_on = !over;
            over |= item.is_err();
            std::future::ready(go_on)
        })
        .boxed_local()
}

/// Cuts a byte stream into lines without copying them; a line beyond [`MAX_LINE`] is an error before it is kept.
#[derive(Default)]
struct Lines {
    /// Bytes of the present line that are known to hold no newline: a long line is looked through once.
    scanned: usize,
}

impl Decoder for Lines {
    type Item = Bytes;
    type Error = WireError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, WireError> {
        let found = buffer[self.scanned..].iter().position(|byte| *byte == b'\n').map(|at| self.scanned + at);
        match found {
            Some(end) if end <= MAX_LINE => {
                self.scanned = 0;
                Ok(Some(buffer.split_to(end + 1).freeze().slice(..end)))
            }
            None if buffer.len() <= MAX_LINE => {
                self.scanned = buffer.len();
                Ok(None)
            }
            Some(_) | None => Err(WireError::TooLong),
        }
    }
}

impl From<std::io::Error> for WireError {
    fn from(problem: std::io::Error) -> Self {
        Self::Broken(problem.to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_newlines_and_a_part_is_held_back() {
        let mut lines = Lines::default();
        let mut buffer = BytesMut::from(&b"one\ntwo\r\nthr"[..]);
        assert_eq!(lines.decode(&mut buffer).unwrap().unwrap(), "one");
        assert_eq!(lines.decode(&mut buffer).unwrap().unwrap(), "two\r");
        assert!(lines.decode(&mut buffer).unwrap().is_none());
        buffer.extend_from_slice(b"ee\n");
        assert_eq!(lines.decode(&mut buffer).unwrap().unwrap(), "three");
    }

    #[test]
    fn a_line_beyond_the_limit_is_a_named_error() {
        let mut buffer = BytesMut::zeroed(MAX_LINE + 1);
        assert!(matches!(Lines::default().decode(&mut buffer), Err(WireError::TooLong)));
    }
}
