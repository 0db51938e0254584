//! Rotated logins on this machine's disk, until the store has them (T-157).

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Holder, Result, SeedId, SeedVersion, SessionId};

/// Names one entry. It begins with the seed's id, so that a damaged entry still says whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpoolId(pub String);

/// A credential that changed, and what is needed to bring it home.
#[derive(Clone, PartialEq, Eq)]
pub struct SpoolEntry {
    /// The seed it belongs to.
    pub seed: SeedId,
    /// The session it was rotated in; none when this service rotated it itself, to see whether it is good.
    pub session: Option<SessionId>,
    /// Who held the seed: a run, or that check.
    pub holder: Holder,
    /// The stored version it was rotated from.
    pub base: SeedVersion,
    /// SHA-256 of `auth_json` in hex.
    pub fingerprint: String,
    /// Whose account it says it is.
    pub account_id: Option<String>,
    /// When it was spooled.
    pub at: Timestamp,
    /// The credential.
    pub auth_json: Bytes,
}

impl std::fmt::Debug for SpoolEntry {
    /// Leaves the credential out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpoolEntry")
            .field("seed", &self.seed)
            .field("session", &self.session)
            .field("base", &self.base)
            .field("fingerprint", &self.fingerprint)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// The spool: always on this machine's disk, whatever the store is.
#[async_trait]
pub trait Spool: Send + Sync + 'static {
    /// Writes an entry, encrypted and fsynced (file and directory). Durable when it answers.
    async fn put(&self, entry: SpoolEntry) -> Result<SpoolId>;

    /// Removes an entry that the store now has, and every older one of the same seed and holder.
    async fn confirm(&self, id: &SpoolId) -> Result<()>;

    /// Every entry, oldest first. A damaged one is an error that names its file, not a silent skip of the others:
    /// the readable ones come as `Ok`.
    async fn entries(&self) -> Result<Vec<(SpoolId, Result<SpoolEntry>)>>;

    /// Where an entry lies, for a person.
    fn describe(&self, id: &SpoolId) -> String;
}
