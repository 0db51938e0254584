//! The envelope of the app-server's wire: which of four things a line is, decided without touching its payload.
//!
//! The wire is JSON-RPC 2.0 without the `jsonrpc` member, one object per line (stdio) or per WebSocket text frame
//! (S-333). [`route`] parses the outermost members only; `params` and `result` stay byte slices of the line they came
//! in, so a payload is never decoded into a tree and never encoded again (DESIGN §14).

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// The longest line or frame taken from an app-server, in bytes (DESIGN §14). Reading stops there with a named error;
/// [`route`] itself takes any length.
pub const MAX_LINE: usize = 16 * 1024 * 1024;

/// How often a request refused as overloaded is sent again before the refusal counts (S-354).
pub const OVERLOAD_RETRIES: u32 = 3;

/// The error code of a method that is not served (JSON-RPC 2.0, S-352).
pub const METHOD_NOT_FOUND: i64 = -32601;

/// The error code of a request that was understood and could not be done (JSON-RPC 2.0).
pub const INTERNAL_ERROR: i64 = -32603;

/// The `why` of a line of white space, which S-358 drops without a word.
pub const BLANK: &str = "blank line";

/// What one line of the app-server is. Every [`Bytes`] shares the line's memory.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// Answers a request of ours.
    Response {
        /// The number the request was sent with.
        id: u64,
        /// The `result`, or why there is none.
        outcome: Result<Bytes, RpcError>,
    },
    /// Asks something of us; it must be answered, or the server's turn waits for ever (S-350, S-352).
    ServerRequest {
        /// The server's own numbering, unrelated to ours: it starts at 0 (S-334).
        id: RequestId,
        /// What is asked.
        method: String,
        /// Always a JSON object; `{}` when the line had none.
        params: Bytes,
    },
    /// Tells something.
    Notification {
        /// What happened.
        method: String,
        /// Always a JSON object; `{}` when the line had none.
        params: Bytes,
    },
    /// Nothing this protocol knows: passed on as it is, never an error (S-358…S-360).
    Foreign {
        /// The line without surrounding white space.
        line: Bytes,
        /// Why it was not understood, for a log line.
        why: &'static str,
    },
}

/// The id of a server's request: its own space, integers and strings (S-334).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RequestId {
    /// What 0.142.5 and 0.169.0 send; the first one is 0.
    Int(i64),
    /// What the schema also allows.
    Text(String),
}

impl fmt::Display for RequestId {
    /// Writes the text form under which clients name a request (S-423): `0`, `abc`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(id) => id.fmt(f),
            Self::Text(id) => id.fmt(f),
        }
    }
}

/// A refusal, as the other side worded it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (code {code})")]
pub struct RpcError {
    /// JSON-RPC's number.
    pub code: i64,
    /// A sentence.
    pub message: String,
    /// More, as raw JSON.
    pub data: Option<Bytes>,
}

impl RpcError {
    /// Says whether the server was only too busy: the request may be sent again after a pause (S-354).
    pub fn is_overloaded(&self) -> bool {
        self.code == -32001
    }

    /// Says whether `thread/resume` found nothing to resume: the thread never had a turn, or its rollout is gone
    /// (S-356, S-472). The code alone (-32600) also stands for a malformed request.
    pub fn is_no_rollout(&self) -> bool {
        self.message.starts_with("no rollout found")
    }
}

/// Every envelope member this protocol gives a meaning to; others (`jsonrpc`, 0.169's `emittedAtMs`) are skipped.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    method: Option<&'a RawValue>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// Keeps `null` apart from absent: `"result": null` is an answer.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

/// Says what a line is. Total: any bytes have an answer, and it takes one pass without recursion, so neither junk nor
/// deep nesting can hurt.
pub fn route(line: Bytes) -> Incoming {
    let line = line.slice_ref(line.trim_ascii());
    let foreign = |why| Incoming::Foreign { line: line.clone(), why };
    // A derived struct would also be read from an array, member by member.
    match line.first() {
        None => return foreign(BLANK),
        Some(b'{') => {}
        Some(_) => return foreign("not a JSON object"),
    }
    let envelope: Envelope<'_> = match serde_json::from_slice(&line) {
        Ok(envelope) => envelope,
        Err(error) if error.is_data() => return foreign("an envelope member appears twice"),
        Err(_) => return foreign("not JSON"),
    };
    let share = |raw: &RawValue| line.slice_ref(raw.get().as_bytes());

    if let Some(method) = envelope.method {
        let Ok(method) = serde_json::from_str::<String>(method.get()) else {
            return foreign("method is not a string");
        };
        let params = match envelope.params {
            None => Bytes::from_static(b"{}"),
            Some(raw) if raw.get().starts_with('{') => share(raw),
            Some(_) => return foreign("params is not an object"),
        };
        return match envelope.id.map(|raw| serde_json::from_str(raw.get())) {
            None => Incoming::Notification { method, params },
            Some(Ok(id)) => Incoming::ServerRequest { id, method, params },
            Some(Err(_)) => foreign("id is neither an integer nor a string"),
        };
    }

    let Some(id) = envelope.id else {
        return foreign("neither method nor id");
    };
    let Ok(id) = serde_json::from_str::<u64>(id.get()) else {
        return foreign("an answer to no request of ours");
    };
    let outcome = match (envelope.error, envelope.result) {
        (Some(error), _) => Err(refusal(error, share)),
        (None, Some(result)) => Ok(share(result)),
        (None, None) => return foreign("an answer without result or error"),
    };
    Incoming::Response { id, outcome }
}

/// Reads the `error` member; one of another shape is still a refusal, for somebody waits for the answer.
fn refusal<'a>(raw: &'a RawValue, share: impl Fn(&'a RawValue) -> Bytes) -> RpcError {
    #[derive(Deserialize)]
    struct Wire<'a> {
        code: i64,
        message: String,
        #[serde(borrow, default)]
        data: Option<&'a RawValue>,
    }
    match serde_json::from_str::<Wire<'_>>(raw.get()) {
        Ok(wire) => RpcError { code: wire.code, message: wire.message, data: wire.data.map(share) },
        Err(_) => RpcError {
            code: INTERNAL_ERROR,
            message: "the server refused without a readable reason".to_owned(),
            data: Some(share(raw)),
        },
    }
}

/// Encodes the answer to a server's request, without a newline.
pub fn encode_result(id: &RequestId, result: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Answer<'a, R> {
        id: &'a RequestId,
        result: &'a R,
    }
    encode(&Answer { id, result })
}

/// Encodes the refusal of a server's request, without a newline.
pub fn encode_error(id: &RequestId, code: i64, message: &str) -> String {
    #[derive(Serialize)]
    struct Answer<'a> {
        id: &'a RequestId,
        error: Body<'a>,
    }
    #[derive(Serialize)]
    struct Body<'a> {
        code: i64,
        message: &'a str,
    }
    encode(&Answer { id, error: Body { code, message } })
}

/// Writes one JSON text on one line. Within strings line ends are escaped; raw JSON from elsewhere may still have them
/// between its tokens, where a blank means the same.
pub(crate) fn encode(value: &impl Serialize) -> String {
    let text =
        serde_json::to_string(value).expect("a value of strings, numbers and valid raw JSON always encodes");
    if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ") } else { text }
}

/// A string of a payload, borrowed from it unless it holds an escape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Cow<'de, str>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(text))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        from.deserialize_str(Visitor).map(Text)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
