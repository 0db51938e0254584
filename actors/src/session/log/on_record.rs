//! What is on record of a run's log, so that a later child or process goes on where this one stopped.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::log_tail::LogPosition;
use crate::session::verdict::Verdict;

/// What is on record of a run's log.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LogRecord {
    /// It is prepared for this run, and followed.
    pub followed: bool,
    /// How far it was read.
    pub position: LogPosition,
    /// The newest event at the time of that: what was told of later lines came after it.
    pub told_before: u64,
    /// How far the agent is, as it said last.
    pub progress: Option<Progress>,
    /// What a person is needed for.
    pub attention: Option<Attention>,
    /// Deliverables that wait to be fetched, in their order.
    pub pending: Vec<Announced>,
    /// What the agent has still to be told, one line each.
    pub answers: Vec<String>,
    /// What the agent said about the whole of its work.
    pub verdict: Option<Verdict>,
}

/// How far the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// At most 100; nothing where the agent gave none.
    pub percent: Option<u8>,
    /// In its words.
    pub message: String,
}

/// A call for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attention {
    /// Its name among what a session waits for.
    pub id: String,
    /// What for.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// A deliverable that was announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// The line that did.
    pub line: u64,
    /// The path as the agent wrote it.
    pub path: String,
}
