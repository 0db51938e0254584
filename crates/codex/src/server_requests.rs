//! What the app-server asks of us, and how each question is answered so that no turn waits for ever.
//!
//! 0.142.5 and 0.169.0 ask the same ten things (LAB §2). [`classify`] sorts them in three: an [`Approval`] a person
//! decides, a [`Question`] a person answers, and everything else, which comes with its refusal ready to be written
//! (S-352). Nothing is left without an answer: what is not understood is refused too.

mod answer;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

pub use answer::{Decision, Reply};

use crate::rpc::{self, METHOD_NOT_FOUND, RequestId};

/// A server's request, sorted by what it needs.
#[derive(Debug, Clone, PartialEq)]
pub enum ServerRequest {
    /// Needs a decision; see [`Approval::answer`].
    Approval(Approval),
    /// Needs words; see [`Question::answer`].
    Question(Question),
    /// Needs nobody: this text is the answer.
    Refused {
        /// The whole answer, one JSON text without a newline.
        answer: String,
        /// Why, for the log.
        why: &'static str,
    },
}

/// What an approval is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApprovalKind {
    /// Run a command outside the sandbox, or reach a host.
    Command,
    /// Write files outside the writable directories.
    FileChange,
    /// Widen the sandbox for the rest of the turn or session.
    Permissions,
}

impl ApprovalKind {
    /// Answers the word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::FileChange => "file_change",
            Self::Permissions => "permissions",
        }
    }
}

/// How the method wants to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// `accept`, `acceptForSession`, `decline`, `cancel`.
    Current,
    /// `approved`, `approved_for_session`, `denied`, `abort`: the first generation's names.
    Legacy,
    /// The permissions that are granted.
    Grant,
}

/// A request for permission.
#[derive(Debug, Clone, PartialEq)]
pub struct Approval {
    /// The id to answer under.
    pub id: RequestId,
    /// What it is about.
    pub kind: ApprovalKind,
    /// The thread that waits.
    pub thread: Option<String>,
    /// The turn that waits.
    pub turn: Option<String>,
    /// The item it belongs to; a file change's content stands there (`item/started`), not here.
    pub item: Option<String>,
    /// The command line.
    pub command: Option<String>,
    /// Where it would run.
    pub cwd: Option<String>,
    /// Why the agent wants it.
    pub reason: Option<String>,
    /// The directory a file change wants to write below for the rest of the session.
    pub grant_root: Option<String>,
    /// What would change, as raw JSON, when the request says it: the files of a legacy patch, the permissions asked for.
    pub changes: Option<Bytes>,
    /// The decisions the server names, by their first word. `decline` is honoured even when it is not among them
    /// (S-351).
    pub available: Vec<String>,
    /// The request's params, as they came.
    pub raw: Bytes,
    dialect: Dialect,
}

/// Who asks a [`Question`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuestionKind {
    /// The agent, with one or more prompts.
    UserInput,
    /// An MCP server, with a form or an address to open.
    Elicitation,
}

/// A request for words.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The id to answer under.
    pub id: RequestId,
    /// Who asks.
    pub kind: QuestionKind,
    /// The thread that waits.
    pub thread: Option<String>,
    /// The turn that waits.
    pub turn: Option<String>,
    /// The item it belongs to.
    pub item: Option<String>,
    /// What the agent asks; empty for an elicitation.
    pub prompts: Vec<Prompt>,
    /// What the MCP server says.
    pub message: Option<String>,
    /// The MCP server's name.
    pub server: Option<String>,
    /// The address an elicitation wants opened.
    pub url: Option<String>,
    /// The form an elicitation wants filled: a JSON schema.
    pub schema: Option<Bytes>,
    /// The request's params, as they came.
    pub raw: Bytes,
}

/// One thing the agent wants to know.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Prompt {
    /// Names the prompt in the answer.
    pub id: String,
    /// A few words.
    #[serde(default)]
    pub header: String,
    /// The question.
    #[serde(default)]
    pub question: String,
    /// Says whether other words than the options are welcome.
    #[serde(default)]
    pub is_other: bool,
    /// Says whether the answer must not be shown or kept.
    #[serde(default)]
    pub is_secret: bool,
    /// What can be chosen; free text when there is none.
    #[serde(default, deserialize_with = "or_default")]
    pub options: Vec<Choice>,
}

/// One choice of a [`Prompt`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Choice {
    /// The answer to give.
    pub label: String,
    /// What it means.
    #[serde(default)]
    pub description: String,
}

/// A request the server has settled, by an answer or because its turn ended (S-353).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// Which request.
    #[serde(rename = "requestId")]
    pub id: RequestId,
    /// Whose thread.
    #[serde(rename = "threadId", default)]
    pub thread: Option<String>,
}

impl Resolved {
    /// The notification's method.
    pub const METHOD: &'static str = "serverRequest/resolved";

    /// Reads the notification; `None` when it names no request.
    pub fn parse(params: &[u8]) -> Option<Self> {
        serde_json::from_slice(params).ok()
    }
}

/// Sorts a server's request.
pub fn classify(id: &RequestId, method: &str, params: &Bytes) -> ServerRequest {
    match method {
        "item/commandExecution/requestApproval" => {
            approval(id, params, ApprovalKind::Command, Dialect::Current)
        }
        "item/fileChange/requestApproval" => approval(id, params, ApprovalKind::FileChange, Dialect::Current),
        "item/permissions/requestApproval" => approval(id, params, ApprovalKind::Permissions, Dialect::Grant),
        "execCommandApproval" => approval(id, params, ApprovalKind::Command, Dialect::Legacy),
        "applyPatchApproval" => approval(id, params, ApprovalKind::FileChange, Dialect::Legacy),
        "item/tool/requestUserInput" => question(id, params, QuestionKind::UserInput),
        "mcpServer/elicitation/request" => question(id, params, QuestionKind::Elicitation),
        "item/tool/call" => {
            let why = "this client offers no tools of its own";
            ServerRequest::Refused { answer: answer::failed_tool_call(id, why), why }
        }
        "account/chatgptAuthTokens/refresh" => {
            refused(id, "this client does not hold the login: codex refreshes it")
        }
        "attestation/generate" => refused(id, "this client cannot attest"),
        _ => refused(id, "this client does not know this method"),
    }
}

fn refused(id: &RequestId, why: &'static str) -> ServerRequest {
    ServerRequest::Refused { answer: rpc::encode_error(id, METHOD_NOT_FOUND, why), why }
}

/// Reads what can be shown; whatever is missing, the request is still there to be decided.
fn approval(id: &RequestId, params: &Bytes, kind: ApprovalKind, dialect: Dialect) -> ServerRequest {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Params<'a> {
        #[serde(alias = "conversationId", deserialize_with = "or_default")]
        thread_id: Option<String>,
        #[serde(deserialize_with = "or_default")]
        turn_id: Option<String>,
        #[serde(alias = "callId", deserialize_with = "or_default")]
        item_id: Option<String>,
        #[serde(borrow)]
        command: Option<&'a RawValue>,
        #[serde(deserialize_with = "or_default")]
        cwd: Option<String>,
        #[serde(deserialize_with = "or_default")]
        reason: Option<String>,
        #[serde(deserialize_with = "or_default")]
        grant_root: Option<String>,
        #[serde(borrow, alias = "fileChanges")]
        permissions: Option<&'a RawValue>,
        #[serde(borrow)]
        available_decisions: Option<&'a RawValue>,
    }
    let found: Params<'_> = serde_json::from_slice(params).unwrap_or_default();
    ServerRequest::Approval(Approval {
        id: id.clone(),
        kind,
        thread: found.thread_id,
        turn: found.turn_id,
        item: found.item_id,
        command: found.command.and_then(|raw| command_line(raw.get())),
        cwd: found.cwd,
        reason: found.reason,
        grant_root: found.grant_root,
        changes: found.permissions.map(|raw| params.slice_ref(raw.get().as_bytes())),
        available: found.available_decisions.map(|raw| first_words(raw.get())).unwrap_or_default(),
        raw: params.clone(),
        dialect,
    })
}

fn question(id: &RequestId, params: &Bytes, kind: QuestionKind) -> ServerRequest {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Params<'a> {
        #[serde(deserialize_with = "or_default")]
        thread_id: Option<String>,
        #[serde(deserialize_with = "or_default")]
        turn_id: Option<String>,
        #[serde(deserialize_with = "or_default")]
        item_id: Option<String>,
        #[serde(deserialize_with = "or_default")]
        questions: Vec<Prompt>,
        #[serde(deserialize_with = "or_default")]
        message: Option<String>,
        #[serde(deserialize_with = "or_default")]
        server_name: Option<String>,
        #[serde(deserialize_with = "or_default")]
        url: Option<String>,
        #[serde(borrow)]
        requested_schema: Option<&'a RawValue>,
    }
    let found: Params<'_> = serde_json::from_slice(params).unwrap_or_default();
    ServerRequest::Question(Question {
        id: id.clone(),
        kind,
        thread: found.thread_id,
        turn: found.turn_id,
        item: found.item_id,
        prompts: found.questions,
        message: found.message,
        server: found.server_name,
        url: found.url,
        schema: found.requested_schema.map(|raw| params.slice_ref(raw.get().as_bytes())),
        raw: params.clone(),
    })
}

/// Reads a member and takes `null`, or a value of another type, for an absent one.
fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::de::DeserializeOwned + Default,
{
    let raw = <&RawValue>::deserialize(from)?;
    Ok(serde_json::from_str(raw.get()).unwrap_or_default())
}

/// Answers a command as one line: the current method sends a line, the legacy one its words.
fn command_line(raw: &str) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Command {
        Line(String),
        Words(Vec<String>),
    }
    match serde_json::from_str(raw).ok()? {
        Command::Line(line) => Some(line),
        Command::Words(words) => {
            let quoted: Vec<String> = words.iter().map(|word| quote(word)).collect();
            Some(quoted.join(" "))
        }
    }
}

/// Quotes a word for reading (and for a POSIX shell), if it needs it.
fn quote(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:@%+,".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Answers the names of decisions that are plain words or objects of one member.
fn first_words(raw: &str) -> Vec<String> {
    let decisions: Vec<serde_json::Value> = serde_json::from_str(raw).unwrap_or_default();
    let word = |decision: serde_json::Value| match decision {
        serde_json::Value::String(word) => Some(word),
        serde_json::Value::Object(members) => members.into_iter().next().map(|(name, _)| name),
        _ => None,
    };
    decisions.into_iter().filter_map(word).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
