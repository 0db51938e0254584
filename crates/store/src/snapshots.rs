//! Stored workdirs.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Result, SeedId, SessionId, SnapshotId};

/// Snapshots kept of one session (T-163).
pub const SNAPSHOTS_KEPT: usize = 5;

/// What is noted of a finished snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Whose it is.
    pub session: SessionId,
    /// How the run ended: `done`, `cancelled` or `failed` (T-172, T-173).
    pub end_state: String,
    /// The Codex thread to resume.
    pub thread_id: Option<String>,
    /// How the archive is compressed: `gzip` or `zstd`.
    pub codec: String,
    /// The seed the run used; a resume leases it again (T-207).
    pub seed: Option<SeedId>,
}

/// A stored workdir.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRow {
    /// Its id.
    pub id: SnapshotId,
    /// Whose it is.
    pub session: SessionId,
    /// When it was finished; later than every earlier one of the session (T-162).
    pub captured_at: Timestamp,
    /// How the run ended.
    pub end_state: String,
    /// The Codex thread to resume.
    pub thread_id: Option<String>,
    /// How the archive is compressed.
    pub codec: String,
    /// The seed the run used.
    pub seed: Option<SeedId>,
    /// The archive's length in bytes, before encryption.
    pub len: u64,
    /// The archive's SHA-256 in hex, before encryption. Empty for one that Python stored, until it was read whole once.
    pub sha256: String,
}

/// An archive on its way into the store. Dropping it without [`SnapshotWriter::commit`] leaves nothing.
#[async_trait]
pub trait SnapshotWriter: Send {
    /// Takes the next piece.
    async fn write(&mut self, chunk: Bytes) -> Result<()>;

    /// Makes the archive durable, reads it back against its hash, stores the row, and only then prunes the session to
    /// [`SNAPSHOTS_KEPT`] (T-167, INV-38, INV-39).
    async fn commit(self: Box<Self>, about: NewSnapshot) -> Result<SnapshotRow>;
}

/// Stored workdirs.
#[async_trait]
pub trait Snapshots: Send + Sync + 'static {
    /// How a new archive is to be compressed, so that everybody who shares the store can read it: `gzip` where Python
    /// does, `zstd` elsewhere. The store keeps whatever it is given.
    fn codec(&self) -> &'static str {
        "zstd"
    }

    /// Begins one.
    async fn begin(&self) -> Result<Box<dyn SnapshotWriter>>;

    /// The session's snapshots, newest first.
    async fn list(&self, session: &SessionId) -> Result<Vec<SnapshotRow>>;

    /// One row, or `None`.
    async fn get(&self, id: &SnapshotId) -> Result<Option<SnapshotRow>>;

    /// The archive's bytes, in chunks of at most 1 MiB. The last item is an error when the whole did not have its
    /// hash: a reader must not act on a stream it has not seen end well.
    async fn open(&self, id: &SnapshotId) -> Result<BoxStream<'static, Result<Bytes>>>;

    /// Reads it whole against its hash.
    async fn verify(&self, id: &SnapshotId) -> Result<()>;

    /// Deletes every snapshot of a session.
    async fn delete_all(&self, session: &SessionId) -> Result<()>;
}
