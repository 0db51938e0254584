//! A viewer's WebSocket to a ttyd, in its own protocol (LAB §6): `0` keys or output, `1` a size or a title, `2` settings.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use futures_util::stream::{SplitSink, StreamExt};
use serde_json::json;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::guard::Size;
use crate::terminal::{Line, LineInput, Seat};
use crate::{Dial, Duplex, Host, HostError, Result, tmux};

/// How long a ttyd may take to greet a viewer; measured 2 ms.
const GREET_LIMIT: Duration = Duration::from_secs(10);

/// The largest message taken from it: a repaint is some 100 KB.
const MESSAGE_LIMIT: usize = 4 << 20;

/// Puts a viewer before the terminal through the ttyd that listens there.
pub async fn open(host: &dyn Host, at: &Dial, seat: Seat, size: Size) -> Result<Line> {
    let stream = host.dial(at).await?;
    let arguments: Vec<String> = tmux::seat_flags(seat).map(|flag| format!("arg={flag}")).collect();
    let address = format!("ws://localhost/ws?{}", arguments.join("&"));
    let mut request = address.into_client_request().map_err(broken)?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("tty"));
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_LIMIT)).max_frame_size(Some(MESSAGE_LIMIT));
    let greeting = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
    let (mut socket, _) = tokio::time::timeout(GREET_LIMIT, greeting)
        .await
        .map_err(|_| HostError::TimedOut { what: "ttyd's greeting".to_owned(), limit: GREET_LIMIT })?
        .map_err(broken)?;
    let first = json!({ "AuthToken": "", "columns": size.columns, "rows": size.rows });
    socket.send(Message::binary(first.to_string())).await.map_err(broken)?;
    let (sink, stream) = socket.split();
    let output = stream.filter_map(|message| async {
        match message {
            Ok(message) if message.is_close() => None,
            Ok(message) => output(message.into_data()).map(Ok),
            Err(Error::ConnectionClosed) => None,
            Err(problem) => Some(Err(broken(problem))),
        }
    });
    Ok(Line { output: output.boxed(), input: Box::new(Typing(sink)) })
}

/// What a message shows; titles and settings are the page's own affair.
fn output(message: Bytes) -> Option<Bytes> {
    (message.first() == Some(&b'0')).then(|| message.slice(1..))
}

fn broken(problem: Error) -> HostError {
    HostError::io("talk to ttyd", std::io::Error::other(problem))
}

struct Typing(SplitSink<WebSocketStream<Box<dyn Duplex>>, Message>);

impl Typing {
    async fn send(&mut self, kind: u8, payload: &[u8]) -> Result<()> {
        let mut message = BytesMut::with_capacity(payload.len() + 1);
        message.put_u8(kind);
        message.put_slice(payload);
        self.0.send(Message::binary(message.freeze())).await.map_err(broken)
    }
}

#[async_trait]
impl LineInput for Typing {
    async fn keys(&mut self, keys: Bytes) -> Result<()> {
        self.send(b'0', &keys).await
    }

    async fn resize(&mut self, size: Size) -> Result<()> {
        let size = json!({ "columns": size.columns, "rows": size.rows });
        self.send(b'1', size.to_string().as_bytes()).await
    }
}
