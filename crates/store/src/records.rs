//! What each session is and how far it came: the record that a later process continues from.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;

use crate::{Page, PageRequest, Result, SeedId, SessionId, StoreError};

/// A record: what lists filter by, in the clear, and a body that only its writer understands, encrypted at rest (it
/// holds the session's environment).
#[derive(Debug, Clone, PartialEq)]
pub struct RecordRow {
    /// Whose it is.
    pub id: SessionId,
    /// Counts the writes; an update names the one it follows.
    pub rev: u64,
    /// False until a run's teardown is over: a service that starts looks at these first.
    pub finished: bool,
    /// The state a list shows, e.g. `working`.
    pub state: String,
    /// The host's name.
    pub host: String,
    /// The seed of the present or last run.
    pub seed: Option<SeedId>,
    /// The session's name.
    pub name: String,
    /// The session's labels.
    pub labels: BTreeMap<String, String>,
    /// When the session was made.
    pub created_at: Timestamp,
    /// The rest.
    pub body: Bytes,
}

/// Which records a list shows; each part that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordFilter {
    /// One of these states; none given means any.
    pub states: Vec<String>,
    /// This host.
    pub host: Option<String>,
    /// This seed.
    pub seed: Option<SeedId>,
    /// This label, with this value if one is given.
    pub label: Option<(String, Option<String>)>,
    /// The name contains this, in any case.
    pub q: Option<String>,
}

/// What an insert with an idempotency key found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inserted {
    /// The record is new.
    New,
    /// The same request made this session before.
    Same(SessionId),
    /// The key was used before with another request.
    KeyReused,
}

/// Session records.
#[async_trait]
pub trait Records: Send + Sync + 'static {
    /// Stores a new record with `rev` 1. `idempotency` is the caller's key and a digest of its request; a key is
    /// remembered for at least 24 h.
    async fn insert(&self, row: RecordRow, idempotency: Option<(String, String)>) -> Result<Inserted>;

    /// Replaces a record whose stored `rev` is `row.rev`; the stored one is then one higher and is answered. Durable
    /// when it answers. Another stored `rev` is [`crate::StoreError::Conflict`].
    async fn update(&self, row: RecordRow) -> Result<u64>;

    /// One record, or `None`.
    async fn get(&self, id: &SessionId) -> Result<Option<RecordRow>>;

    /// Records, newest first. One that cannot be read is left out and named in the log, and the page it is on is
    /// shorter by it, perhaps empty: a list that failed would hide every session because of one.
    async fn list(&self, filter: &RecordFilter, page: &PageRequest) -> Result<Page<RecordRow>>;

    /// Every record that is not finished, oldest first.
    async fn unfinished(&self) -> Result<Vec<RecordRow>>;

    /// Deletes a record; absent is fine.
    async fn delete(&self, id: &SessionId) -> Result<()>;
}

/// Largest body of a record: a state machine's, not a transcript's.
pub const RECORD_LIMIT: usize = 4 << 20;

/// Refuses a body that is too large.
pub(crate) fn check_body(body: &Bytes) -> Result<()> {
    if body.len() > RECORD_LIMIT {
        let why = format!("it has {} bytes, at most {RECORD_LIMIT} are allowed", body.len());
        return Err(StoreError::Invalid { field: "record body", why });
    }
    Ok(())
}

/// Leaves out of a list what cannot be read, and says which it was.
pub(crate) fn readable(rows: impl IntoIterator<Item = Result<RecordRow>>) -> Vec<RecordRow> {
    let told = |error: &StoreError| tracing::warn!(%error, "a session is missing in a list");
    rows.into_iter().filter_map(|row| row.inspect_err(told).ok()).collect()
}
