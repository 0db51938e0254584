//! What the client asks of the app-server: every request as one JSON text without a newline, and the part of every
//! answer this program relies on.
//!
//! An answer is read by name, so members a later Codex adds are skipped; a member that must be there and is not is an
//! [`AnswerError`] that names method and member (S-340).

mod reply;

use serde::Serialize;
use serde_json::value::RawValue;

pub(crate) use reply::parse;
pub use reply::{
    Account, AccountRead, AnswerError, InitializeResult, LoadedThreads, ThreadOpened, ThreadStatus, TurnAck,
};

use crate::rpc::encode;

/// The names of the requests, as they go over the wire.
pub mod method {
    /// Opens the connection; anything before it is refused (S-336).
    pub const INITIALIZE: &str = "initialize";
    /// Tells that the answer to [`INITIALIZE`] was read.
    pub const INITIALIZED: &str = "initialized";
    /// Asks who is logged in (S-337).
    pub const ACCOUNT_READ: &str = "account/read";
    /// Asks for one page of models (S-338).
    pub const MODEL_LIST: &str = "model/list";
    /// Begins a thread (S-339).
    pub const THREAD_START: &str = "thread/start";
    /// Loads a thread from its rollout, or joins it when it is loaded already (LAB §9).
    pub const THREAD_RESUME: &str = "thread/resume";
    /// Asks which threads are in the server's memory (LAB §9).
    pub const THREAD_LOADED_LIST: &str = "thread/loaded/list";
    /// Begins a turn (S-344).
    pub const TURN_START: &str = "turn/start";
    /// Adds a message to the running turn (S-370).
    pub const TURN_STEER: &str = "turn/steer";
    /// Ends the running turn (S-346).
    pub const TURN_INTERRUPT: &str = "turn/interrupt";
}

/// The notification nobody needs: a command's output comes whole with its item (S-335).
const OPTED_OUT: [&str; 1] = ["item/commandExecution/outputDelta"];

/// Hands out request ids: 1, 2, 3, … per connection (S-334).
#[derive(Debug, Default)]
pub struct Ids {
    last: u64,
}

impl Ids {
    /// Answers the next id.
    pub fn mint(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

/// One part of a message to the agent.
#[derive(Debug, Clone)]
pub enum Input {
    /// Plain words.
    Text(String),
    /// Any other part in Codex's own form (an image, a skill, a mention); passed on as it is.
    Raw(Box<RawValue>),
}

impl Serialize for Input {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Text<'a> {
            r#type: &'static str,
            text: &'a str,
        }
        match self {
            Self::Text(text) => Text { r#type: "text", text }.serialize(to),
            Self::Raw(raw) => raw.serialize(to),
        }
    }
}

/// Where and how a thread works; every member but the model is always sent.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ThreadOptions<'a> {
    /// The workdir. Sent on resume too: without it the server keeps the directory of the rollout, which is wrong after
    /// a move (S-341).
    pub cwd: &'a str,
    /// `read-only`, `workspace-write` or `danger-full-access`.
    pub sandbox: &'a str,
    /// `never`, `on-request` or `untrusted` (S-342; 0.169 refuses `on-failure`).
    pub approval_policy: &'a str,
    /// A model id; the server's own choice when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<&'a str>,
}

/// What a turn may change for itself and the turns after it (S-345, L-02).
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct TurnOptions<'a> {
    /// A model id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<&'a str>,
    /// A reasoning effort.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effort: Option<&'a str>,
}

#[derive(Serialize)]
struct Request<'a, P> {
    id: u64,
    method: &'a str,
    params: P,
}

pub(crate) fn request(id: u64, method: &str, params: impl Serialize) -> String {
    encode(&Request { id, method, params })
}

/// Encodes `initialize`; `version` is this program's own (S-335).
pub fn initialize(id: u64, version: &str) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        client_info: ClientInfo<'a>,
        capabilities: Capabilities,
    }
    #[derive(Serialize)]
    struct ClientInfo<'a> {
        name: &'static str,
        title: &'static str,
        version: &'a str,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Capabilities {
        opt_out_notification_methods: [&'static str; 1],
    }
    let client_info = ClientInfo { name: "optio_codex", title: "Optio", version };
    let capabilities = Capabilities { opt_out_notification_methods: OPTED_OUT };
    request(id, method::INITIALIZE, Params { client_info, capabilities })
}

/// Encodes the notification that follows the answer to `initialize` (S-336).
pub fn initialized() -> String {
    #[derive(Serialize)]
    struct Notification {
        method: &'static str,
    }
    encode(&Notification { method: method::INITIALIZED })
}

/// Encodes `account/read` without a refresh. An error answer is a warning, not a failure (LAB §2).
pub fn account_read(id: u64) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        refresh_token: bool,
    }
    request(id, method::ACCOUNT_READ, Params { refresh_token: false })
}

#[derive(Serialize)]
struct PageParams<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<&'a str>,
}

/// Encodes `model/list` for the first page, or for the one a page's `nextCursor` names (S-338).
pub fn model_list(id: u64, cursor: Option<&str>) -> String {
    request(id, method::MODEL_LIST, PageParams { cursor })
}

/// Encodes `thread/loaded/list`.
pub fn thread_loaded_list(id: u64, cursor: Option<&str>) -> String {
    request(id, method::THREAD_LOADED_LIST, PageParams { cursor })
}

/// Encodes `thread/start`.
pub fn thread_start(id: u64, options: &ThreadOptions<'_>) -> String {
    request(id, method::THREAD_START, options)
}

/// Encodes `thread/resume`, with the workdir (S-341).
pub fn thread_resume(id: u64, thread_id: &str, options: &ThreadOptions<'_>) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        thread_id: &'a str,
        #[serde(flatten)]
        options: &'a ThreadOptions<'a>,
    }
    request(id, method::THREAD_RESUME, Params { thread_id, options })
}

/// Encodes `turn/start`. While a turn runs, [`turn_steer`] is the way: see [`crate::turns`].
pub fn turn_start(id: u64, thread_id: &str, input: &[Input], options: TurnOptions<'_>) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        thread_id: &'a str,
        input: &'a [Input],
        #[serde(flatten)]
        options: TurnOptions<'a>,
    }
    request(id, method::TURN_START, Params { thread_id, input, options })
}

/// Encodes `turn/steer`; the server refuses it when another turn runs, or none.
pub fn turn_steer(id: u64, thread_id: &str, expected_turn_id: &str, input: &[Input]) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        thread_id: &'a str,
        expected_turn_id: &'a str,
        input: &'a [Input],
    }
    request(id, method::TURN_STEER, Params { thread_id, expected_turn_id, input })
}

/// Encodes `turn/interrupt`; the turn ends with the later `turn/completed` (S-346).
pub fn turn_interrupt(id: u64, thread_id: &str, turn_id: &str) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        thread_id: &'a str,
        turn_id: &'a str,
    }
    request(id, method::TURN_INTERRUPT, Params { thread_id, turn_id })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
