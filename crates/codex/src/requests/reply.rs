//! What the app-server answers, reduced to what this program relies on.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::method;

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

pub(crate) fn parse<'a, T: Deserialize<'a>>(
    method: &'static str,
    result: &'a [u8],
) -> Result<T, AnswerError> {
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
            "active" => Self::Active { flags: wire.active_flags },
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
        let thread = wire.thread.ok_or(AnswerError::Missing { method, member: "thread" })?;
        let id = thread.id.ok_or(AnswerError::Missing { method, member: "thread.id" })?;
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
    turns.into_iter().rev().find(|turn| turn.status == "inProgress").map(|turn| turn.id)
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
        let turn_id = turn_id.ok_or(AnswerError::Missing { method, member: "turn.id" })?;
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
