//! What the agent asks a person, and what became of it. Nothing is answered twice, and nothing disappears.

use jiff::Timestamp;
use optio_codex_protocol::rpc::RequestId;
use optio_store::{ApprovalId, SessionId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Approvals kept on record of one run; older ones that are answered go first. The journal has them all.
const KEPT: usize = 200;

/// What became of an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalState {
    /// It waits.
    Pending,
    /// Somebody allowed it.
    Accepted,
    /// Somebody refused it.
    Declined,
    /// It was withdrawn: its turn was interrupted, or the session was stopped.
    Cancelled,
    /// The agent that asked is gone.
    Expired,
}

/// What a person decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Do it. A command then runs outside the sandbox (S-296).
    Accept,
    /// Do it, and the like of it for the rest of the session.
    AcceptForSession,
    /// Do not, and go on.
    Decline,
    /// Do not, and end the turn.
    Cancel,
}

impl Decision {
    /// What the approval becomes.
    pub fn state(self) -> ApprovalState {
        match self {
            Self::Accept | Self::AcceptForSession => ApprovalState::Accepted,
            Self::Decline => ApprovalState::Declined,
            Self::Cancel => ApprovalState::Cancelled,
        }
    }
}

/// One question of the agent (API "Objects").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Approval {
    /// Minted here; never the agent's own number, which begins at 0 with each of its processes.
    pub id: ApprovalId,
    /// Whose it is.
    pub session: SessionId,
    /// `command`, `file_change` or another word for what is asked.
    pub kind: String,
    /// What became of it.
    pub state: ApprovalState,
    /// The command, verbatim.
    pub command: Option<String>,
    /// Where it would run.
    pub cwd: Option<String>,
    /// Why the agent asks.
    pub reason: Option<String>,
    /// The changes of a file change.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub changes: Option<Value>,
    /// The whole question as the agent asked it.
    pub raw: Value,
    /// When it was asked.
    pub asked_at: Timestamp,
    /// When it was answered.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub answered_at: Option<Timestamp>,
    /// Who answered: a role, or the service itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub answered_by: Option<String>,
    /// What was decided.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub decision: Option<Decision>,
    /// What the person added.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
    /// The agent's number for it.
    pub request: RequestId,
    /// The method it was asked by, which says how an answer must look.
    pub method: String,
}

impl Approval {
    /// Somebody has to answer it.
    pub fn is_pending(&self) -> bool {
        self.state == ApprovalState::Pending
    }

    /// True when `other` is the same question asked again: after a reconnect the agent repeats what it waits for, with
    /// the same number (LAB §9). The number alone is not enough, a new process counts from 0 again.
    pub fn is_same_question(&self, request: &RequestId, method: &str, raw: &Value) -> bool {
        &self.request == request
            && self.method == method
            && self.raw.get("itemId") == raw.get("itemId")
            && self.raw.get("turnId") == raw.get("turnId")
    }
}

/// Puts one on record, within bounds.
pub(super) fn remember(approvals: &mut Vec<Approval>, approval: Approval) {
    if approvals.len() >= KEPT
        && let Some(oldest) = approvals.iter().position(|a| !a.is_pending())
    {
        approvals.remove(oldest);
    }
    approvals.push(approval);
}
