//! What can go wrong with a request to a session. HTTP meaning is given at the edge, in optio-web.

use jiff::Timestamp;
use optio_codex_protocol::config::ConfigError;
use optio_host::HostError;
use optio_store::{ApprovalId, LoginId, SeedId, SessionId, StoreError};

use crate::conversation::ConversationError;
use crate::hosts::HostsError;
use crate::session::approvals::ApprovalState;
use crate::session::phase::Refusal;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// There is no such thing.
    #[error("{what} {id} does not exist")]
    NotFound {
        /// Kind of thing.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// The session's phase does not allow it.
    #[error("session {id}: {refusal}")]
    Refused {
        /// Which session.
        id: SessionId,
        /// Why.
        refusal: Refusal,
    },
    /// A new turn was wanted, and one runs.
    #[error("session {id} is busy: a turn is running")]
    Busy {
        /// Which session.
        id: SessionId,
    },
    /// A seed is in use, so that it cannot be looked at.
    #[error("seed {id} is busy: {why}")]
    SeedBusy {
        /// Which seed.
        id: SeedId,
        /// Who uses it.
        why: String,
    },
    /// A running turn was wanted, and none runs.
    #[error("session {id} is idle: no turn is running")]
    Idle {
        /// Which session.
        id: SessionId,
    },
    /// Somebody was faster.
    #[error("approval {id} was already answered: it is {state:?}")]
    AlreadyAnswered {
        /// Which approval.
        id: ApprovalId,
        /// What became of it.
        state: ApprovalState,
    },
    /// There is nothing to resume from.
    #[error("session {id} cannot be resumed: {why}")]
    NotResumable {
        /// Which session.
        id: SessionId,
        /// Why.
        why: String,
    },
    /// The request itself is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A value of the request is wrong.
    #[error("{field}: {why}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What would be right.
        why: String,
    },
    /// The key of this request was used for another one.
    #[error("the idempotency key was used before with another request")]
    KeyReused,
    /// It is a conversation.
    #[error("session {id} has no terminal: its mode is \"conversation\"")]
    NoTerminal {
        /// Which session.
        id: SessionId,
    },
    /// As many people are before its terminal as there may be.
    #[error("session {id}: too many people are before its terminal already")]
    TooManyViewers {
        /// Which session.
        id: SessionId,
    },
    /// The agent refused, or cannot be reached now.
    #[error("session {id}: the agent did not take it: {why}")]
    Agent {
        /// Which session.
        id: SessionId,
        /// Why.
        why: String,
        /// Trying again may help.
        retryable: bool,
    },
    /// The session's host did not do it.
    #[error("session {id}: its host did not answer: {why}")]
    Host {
        /// Which session.
        id: SessionId,
        /// Why.
        why: String,
    },
    /// A machine is not there, or not as it was wanted.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// A machine did not do what was asked of it.
    #[error(transparent)]
    Machine(Box<HostError>),
    /// The session's host is out of reach; nothing was done.
    #[error("session {id}: host {host} is down since {since}: {why}")]
    HostDown {
        /// Which session.
        id: SessionId,
        /// Its host's name.
        host: String,
        /// Since when.
        since: Timestamp,
        /// The stable word for it, see [`optio_host::HostError::reach_code`].
        code: String,
        /// What was tried last, in words.
        why: String,
    },
    /// A login by a code did not come about.
    #[error("login {id}: {why}")]
    Login {
        /// Which.
        id: LoginId,
        /// Why.
        why: String,
    },
    /// As many logins by a code are under way as there may be.
    #[error("{count} logins are under way already; finish or cancel one")]
    TooManyLogins {
        /// How many.
        count: usize,
    },
    /// The service is going down.
    #[error("the service is draining")]
    Draining,
    /// The durable state does not work, or refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An actor did not answer in time; whether it was done is unknown.
    #[error("no answer in time from {what}")]
    NoAnswer {
        /// Who.
        what: &'static str,
    },
}

impl From<HostError> for SessionError {
    fn from(problem: HostError) -> Self {
        Self::Machine(Box::new(problem))
    }
}

impl SessionError {
    pub(crate) fn not_found(what: &'static str, id: &impl ToString) -> Self {
        Self::NotFound { what, id: id.to_string() }
    }

    pub(crate) fn refused(id: &SessionId, refusal: Refusal) -> Self {
        Self::Refused { id: id.clone(), refusal }
    }

    pub(crate) fn agent_unreachable(id: &SessionId, why: &str) -> Self {
        Self::Agent { id: id.clone(), why: why.to_owned(), retryable: true }
    }

    pub(crate) fn from_conversation(id: &SessionId, problem: ConversationError) -> Self {
        let id = id.clone();
        match problem {
            ConversationError::Busy => Self::Busy { id },
            ConversationError::Idle => Self::Idle { id },
            ConversationError::Refused(refused) => {
                Self::Agent { id, why: refused.to_string(), retryable: false }
            }
            other => Self::Agent { id, why: other.to_string(), retryable: true },
        }
    }
}
