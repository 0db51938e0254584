//! What the rules answer: deeds to do and facts to tell.

use std::fmt;

use crate::rpc::RpcError;

/// One message of the user, numbered in the order of [`super::Turns::submit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub(super) u64);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What to do, and what has become a fact. Every message gets exactly one of [`Effect::Joined`],
/// [`Effect::GivenBack`] and [`Effect::Unconfirmed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Do: write `turn/start`, and bring its answer to [`super::Turns::start_answered`].
    Start {
        /// The message to send.
        message: MessageId,
    },
    /// Do: write `turn/steer`, and bring its answer to [`super::Turns::steer_answered`].
    Steer {
        /// The message to send.
        message: MessageId,
        /// The `expectedTurnId`.
        turn: String,
    },
    /// Do: write `turn/interrupt`, and bring a refusal to [`super::Turns::interrupt_refused`].
    Interrupt {
        /// The turn to end.
        turn: String,
    },
    /// Fact: a turn runs.
    TurnStarted {
        /// Its id.
        turn: String,
    },
    /// Fact: the server took the message, and this is the turn that answers it. That turn may have ended already.
    Joined {
        /// Which message.
        message: MessageId,
        /// Which turn.
        turn: String,
        /// How it got there.
        delivery: Delivery,
    },
    /// Fact: a turn is over.
    TurnEnded {
        /// Its id.
        turn: String,
        /// How; `None` when it ended out of sight (while the connection was down, or with the process).
        status: Option<TurnStatus>,
        /// The messages it answered, in order.
        messages: Vec<MessageId>,
    },
    /// Fact: the message did not reach the agent; its sender still has it.
    GivenBack {
        /// Which message.
        message: MessageId,
        /// Why.
        why: GivenBack,
    },
    /// Fact: the connection broke before the server said whether it took the message. It must not be sent again
    /// unasked: it may have arrived.
    Unconfirmed {
        /// Which message.
        message: MessageId,
    },
}

/// How a message reached its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It began the turn.
    Start,
    /// It was added to a running turn.
    Steer,
}

/// Why a message never reached the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GivenBack {
    /// The server said no.
    Refused(RpcError),
    /// It was still held when the user interrupted.
    Interrupted,
    /// [`super::MAX_HELD`] messages were waiting already.
    TooMany,
    /// The conversation is over.
    Closed,
}

/// How a turn ended (S-347).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnStatus {
    /// By itself.
    Completed,
    /// By `turn/interrupt`, or by an approval answered with cancel.
    Interrupted,
    /// By an error.
    Failed,
    /// By a word of a later Codex.
    Other(String),
}

impl TurnStatus {
    /// Reads the wire's word.
    pub fn from_wire(word: &str) -> Self {
        match word {
            "completed" => Self::Completed,
            "interrupted" => Self::Interrupted,
            "failed" => Self::Failed,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Answers the wire's word.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Completed => "completed",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
            Self::Other(word) => word,
        }
    }
}
