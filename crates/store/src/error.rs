//! What can go wrong with durable state.

use std::time::Duration;

/// Result of a store operation.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What went wrong with durable state, as far as a caller can act on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no such thing.
    #[error("{what} {id} does not exist")]
    NotFound {
        /// Kind of thing, e.g. `seed`.
        what: &'static str,
        /// Its id, as given.
        id: String,
    },
    /// Somebody else changed it first, or has it.
    #[error("{what} {id} is in conflict: {why}")]
    Conflict {
        /// Kind of thing.
        what: &'static str,
        /// Its id.
        id: String,
        /// What was expected and what was there.
        why: String,
    },
    /// A value that must not be stored.
    #[error("{field} is not acceptable: {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What would be right.
        why: String,
    },
    /// Stored bytes do not have the hash or form they were stored with, or the key is another one.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// What was read.
        what: String,
        /// How it was found out.
        why: String,
    },
    /// It is encrypted with a key that this service does not have. Nothing can be said of it (T-072).
    #[error("{what} is encrypted with the key {key}, which this service does not have")]
    Locked {
        /// What was to be read.
        what: String,
        /// The key's id.
        key: String,
    },
    /// The limit ran out; whether it happened is unknown.
    #[error("store had no answer within {limit:?} for {what}")]
    TimedOut {
        /// What was tried.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The store does not work now; trying again may help.
    #[error("store is unavailable: {what}: {why}")]
    Unavailable {
        /// What was tried.
        what: &'static str,
        /// Why not.
        why: String,
    },
}
