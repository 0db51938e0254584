//! What the client asks of the app-server: every request as one JSON text without a newline, and the part of every
//! answer this program relies on.
//!
//! An answer is read by name, so members a later Codex adds are skipped; a member that must be there and is not is an
//! [`AnswerError`] that names method and member (S-340).

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

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

fn request(id: u64, method: &str, params: impl Serialize) -> String {
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
    let client_info = ClientInfo {
        name: "optio_codex",
        title: "Optio",
        version,
    };
    let capabilities = Capabilities {
        opt_out_notification_methods: OPTED_OUT,
    };
    request(
        id,
        method::INITIALIZE,
        Params {
            client_info,
            capabilities,
        },
    )
}

/// Encodes the notification that follows the answer to `initialize` (S-336).
pub fn initialized() -> String {
    #[derive(Serialize)]
    struct Notification {
        method: &'static str,
    }
    encode(&Notification {
        method: method::INITIALIZED,
    })
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
    request(
        id,
        method::TURN_START,
        Params {
            thread_id,
            input,
            options,
        },
    )
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
    request(
        id,
        method::TURN_STEER,
        Params {
            thread_id,
            expected_turn_id,
            input,
        },
    )
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

/// An answer that does not hold what its method promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// A member this program cannot do without is not there.
    #[error("the answer to {method} has no `{member}`")]
    Missing {
        /// The request's method.
        method: &'static str,
        /// The member's path.
        member: &'static str,
    },
    /// A member has another type than the protocol says.
    #[error("the answer to {method} is not understood: {detail}")]
    Malformed {
        /// The request's method.
        method: &'static str,
        /// What the parser stumbled over; positions only, never content.
        detail: String,
    },
}

fn parse<'a, T: Deserialize<'a>>(method: &'static str, result: &'a [u8]) -> Result<T, AnswerError> {
    serde_json::from_slice(result).map_err(|error| {
        let detail = format!("{:?} error at column {}", error.classify(), error.column());
        AnswerError::Malformed { method, detail }
    })
}

/// Who serves, from the answer to `initialize`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InitializeResult {
    /// `optio_codex/0.142.5 (Debian 12.0.0; x86_64) …`.
    pub user_agent: Option<String>,
    /// The server's home on its own machine.
    pub codex_home: Option<String>,
    /// `unix` or `windows`.
    pub platform_family: Option<String>,
    /// `linux`, `macos`, ….
    pub platform_os: Option<String>,
}

impl InitializeResult {
    /// Reads the answer; nothing in it is needed to go on.
    pub fn parse(result: &[u8]) -> Result<Self, AnswerError> {
        parse(method::INITIALIZE, result)
    }

    /// Answers Codex's version: what follows the client's name in the user agent.
    pub fn version(&self) -> Option<&str> {
        let (_, rest) = self.user_agent.as_deref()?.split_once('/')?;
        rest.split_ascii_whitespace().next()
    }
}

/// Who is logged in, from the answer to `account/read`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AccountRead {
    /// Nobody, an API key, or a ChatGPT account.
    pub account: Option<Account>,
    /// Says whether the model provider wants a login at all; a mock does not.
    pub requires_openai_auth: bool,
}

/// A login as the server shows it.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Account {
    /// `chatgpt` or `apiKey`.
    pub r#type: Option<String>,
    /// The address of a ChatGPT account.
    pub email: Option<String>,
    /// `plus`, `pro`, `team`, ….
    pub plan_type: Option<String>,
}

impl std::fmt::Debug for Account {
    /// Leaves the address out: it is a person's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("type", &self.r#type)
            .field("plan_type", &self.plan_type)
            .finish_non_exhaustive()
    }
}

impl AccountRead {
    /// Reads the answer.
    pub fn parse(result: &[u8]) -> Result<Self, AnswerError> {
        parse(method::ACCOUNT_READ, result)
    }
}

/// What a thread does, as `thread/resume` and `thread/status/changed` say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ThreadStatus {
    /// Nothing runs.
    #[default]
    Idle,
    /// A turn runs.
    Active {
        /// What it waits for: `waitingOnApproval`, `waitingOnUserInput`.
        flags: Vec<String>,
    },
    /// `notLoaded`, `systemError`, or a word of a later Codex.
    Other(String),
}

impl<'de> Deserialize<'de> for ThreadStatus {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire {
            r#type: String,
            #[serde(default)]
            active_flags: Vec<String>,
        }
        let wire = Wire::deserialize(from)?;
        Ok(match wire.r#type.as_str() {
            "idle" => Self::Idle,
            "active" => Self::Active {
                flags: wire.active_flags,
            },
            _ => Self::Other(wire.r#type),
        })
    }
}

/// A thread that was begun, resumed or joined.
#[derive(Debug, Clone, PartialEq)]
pub struct ThreadOpened {
    /// The thread's id, which names its rollout.
    pub id: String,
    /// The model it works with.
    pub model: Option<String>,
    /// Its rollout on the server's machine; the file exists only once a turn began (S-356).
    pub path: Option<String>,
    /// The directory it works in.
    pub cwd: Option<String>,
    /// What it does now.
    pub status: ThreadStatus,
    /// The turn in progress, when the answer lists it: what an interrupt after a reconnect needs.
    pub running_turn: Option<String>,
    /// Its turns with their items as raw JSON (an array), for the history backfill (L-06); a slice of the answer.
    pub turns: Option<Bytes>,
}

impl ThreadOpened {
    /// Reads the answer to `thread/start` or `thread/resume`; `method` is named in the error.
    pub fn parse(method: &'static str, result: &Bytes) -> Result<Self, AnswerError> {
        #[derive(Deserialize)]
        struct Wire<'a> {
            #[serde(borrow)]
            thread: Option<Thread<'a>>,
            model: Option<String>,
            cwd: Option<String>,
        }
        #[derive(Deserialize)]
        struct Thread<'a> {
            id: Option<String>,
            path: Option<String>,
            #[serde(default)]
            status: ThreadStatus,
            #[serde(borrow)]
            turns: Option<&'a RawValue>,
        }
        let wire: Wire<'_> = parse(method, result)?;
        let thread = wire.thread.ok_or(AnswerError::Missing {
            method,
            member: "thread",
        })?;
        let id = thread.id.ok_or(AnswerError::Missing {
            method,
            member: "thread.id",
        })?;
        Ok(Self {
            id,
            model: wire.model,
            path: thread.path,
            cwd: wire.cwd,
            status: thread.status,
            running_turn: thread.turns.and_then(|turns| running_turn(turns.get())),
            turns: thread.turns.map(|turns| result.slice_ref(turns.get().as_bytes())),
        })
    }
}

/// Answers the id of the newest turn that is in progress. Items are skipped, not read.
fn running_turn(turns: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Turn {
        id: String,
        status: String,
    }
    let turns: Vec<Turn> = serde_json::from_str(turns).ok()?;
    turns
        .into_iter()
        .rev()
        .find(|turn| turn.status == "inProgress")
        .map(|turn| turn.id)
}

/// The acknowledgement of `turn/start` or `turn/steer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnAck {
    /// What the server calls the turn. For a message that was folded into a running turn 0.142.5 answers an id that
    /// never starts (S-370): only [`crate::turns::Turns`] may judge it.
    pub turn_id: String,
}

impl TurnAck {
    /// Reads the answer; `method` is [`method::TURN_START`] or [`method::TURN_STEER`].
    pub fn parse(method: &'static str, result: &[u8]) -> Result<Self, AnswerError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire {
            turn: Option<Turn>,
            turn_id: Option<String>,
        }
        #[derive(Deserialize)]
        struct Turn {
            id: Option<String>,
        }
        let wire: Wire = parse(method, result)?;
        let turn_id = wire.turn.and_then(|turn| turn.id).or(wire.turn_id);
        let turn_id = turn_id.ok_or(AnswerError::Missing {
            method,
            member: "turn.id",
        })?;
        Ok(Self { turn_id })
    }
}

/// One page of `thread/loaded/list`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadedThreads {
    /// Thread ids.
    #[serde(rename = "data")]
    pub ids: Vec<String>,
    /// Where the next page begins, if there is one.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

impl LoadedThreads {
    /// Reads the answer.
    pub fn parse(result: &[u8]) -> Result<Self, AnswerError> {
        parse(method::THREAD_LOADED_LIST, result)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
