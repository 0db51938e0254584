//! Somebody before a session's terminal, over its WebSocket, as a page is.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::LIMIT;
use crate::client::Session;

/// A connection to a terminal. Dropping it is leaving.
pub struct TerminalClient {
    socket: WebSocketStream<TcpStream>,
    shown: Vec<u8>,
    /// The last settings that the service told: where one sits, and how large the terminal is.
    pub seat: Value,
    /// How the service closed the connection, once it has.
    pub closed: Option<(u16, String)>,
}

impl TerminalClient {
    /// Takes a seat as `operator` or `viewer`, with a window of this size.
    ///
    /// # Panics
    /// When the service does not let one sit down.
    pub async fn sit(session: &Session, role: &str, columns: u16, rows: u16) -> Self {
        let ticket = session.client().post(&session.path("/terminal/ticket"), json!({ "role": role })).await;
        let ticket = ticket["ticket"].as_str().expect("a ticket").to_owned();
        let path = format!("{}?ticket={ticket}", session.path("/terminal/ws"));
        let mut client = Self::open(session.client().base(), &path, &[]).await.expect("the upgrade is taken");
        client.say(&json!({ "AuthToken": "", "columns": columns, "rows": rows }).to_string()).await;
        client.until("a seat", |client| !client.seat.is_null()).await;
        client
    }

    /// Opens the socket and says nothing; answers the status of a refusal.
    pub async fn open(base: &str, path: &str, headers: &[(&str, &str)]) -> Result<Self, u16> {
        let authority = base.strip_prefix("http://").expect("the service speaks plain HTTP in tests");
        let stream = TcpStream::connect(authority).await.expect("the service listens");
        let mut request = format!("ws://{authority}{path}").into_client_request().expect("an address");
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("tty"));
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a header's name");
            request.headers_mut().insert(name, HeaderValue::from_str(value).expect("a header's value"));
        }
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(Self { socket, shown: Vec::new(), seat: Value::Null, closed: None }),
            Err(tungstenite::Error::Http(refused)) => Err(refused.status().as_u16()),
            Err(problem) => panic!("the upgrade broke off: {problem}"),
        }
    }

    /// Sends a message as it is.
    pub async fn say(&mut self, message: &str) {
        // A service that closed meanwhile has said so.
        let _ = self.socket.send(Message::binary(message.to_owned())).await;
    }

    /// Types.
    pub async fn types(&mut self, keys: &str) {
        self.say(&format!("0{keys}")).await;
    }

    /// Has another size from now on.
    pub async fn resize(&mut self, columns: u16, rows: u16) {
        self.say(&format!("1{}", json!({ "columns": columns, "rows": rows }))).await;
    }

    /// Everything that was shown so far, as text.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    /// Waits until this text was shown.
    ///
    /// # Panics
    /// When it never is.
    pub async fn sees(&mut self, text: &str) {
        self.until(text, |client| client.shown().contains(text)).await;
    }

    /// Waits until the service has closed the connection; answers its code and reason.
    pub async fn is_closed(&mut self) -> (u16, String) {
        self.until("the end", |client| client.closed.is_some()).await;
        self.closed.clone().expect("it was waited for")
    }

    /// Waits until something is so, taking in what comes.
    ///
    /// # Panics
    /// With `what` and what was seen when it never is.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        self.within(LIMIT, what, wanted).await;
    }

    async fn within(&mut self, limit: Duration, what: &str, wanted: impl Fn(&Self) -> bool) {
        let looking = async {
            while !wanted(self) {
                if self.closed.is_some() || !self.take().await {
                    return wanted(self);
                }
            }
            true
        };
        if !tokio::time::timeout(limit, looking).await.unwrap_or(false) {
            panic!("never came: {what}; closed: {:?}; shown: {:?}", self.closed, self.shown());
        }
    }

    /// Takes in one message; false at the end.
    async fn take(&mut self) -> bool {
        match self.socket.next().await {
            Some(Ok(Message::Close(frame))) => {
                let code = frame.as_ref().map_or(1005, |frame| frame.code.into());
                self.closed = Some((code, frame.map(|frame| frame.reason.to_string()).unwrap_or_default()));
                true
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => true,
            Some(Ok(message)) => {
                let bytes = message.into_data();
                match bytes.split_first() {
                    Some((b'0', output)) => self.shown.extend_from_slice(output),
                    Some((b'2', settings)) => {
                        let settings: Value = serde_json::from_slice(settings).expect("settings are JSON");
                        self.seat = settings["optio"].clone();
                    }
                    _ => {}
                }
                true
            }
            Some(Err(_)) | None => {
                self.closed.get_or_insert((1006, String::new()));
                true
            }
        }
    }
}
