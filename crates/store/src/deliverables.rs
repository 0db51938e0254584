//! What agents handed over, kept on this machine so that it can still be fetched when the workdir is gone.

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Result, SessionId, StoreError};

/// The longest file that is kept. It is sealed whole, in memory.
pub const KEPT_LIMIT: u64 = 64 << 20;

/// Files kept of one session. More is an agent that hands over its working files.
pub const KEPT_FILES: usize = 256;

/// Bytes kept of one session, all files together.
pub const KEPT_BYTES: u64 = 256 << 20;

/// The longest name: that of a path on Linux.
pub(crate) const KEPT_NAME: usize = 4096;

/// A file that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFile {
    /// Its path relative to the session's `deliverables/`.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its content, in hex.
    pub sha256: String,
    /// When it was kept.
    pub kept_at: Timestamp,
}

/// The deliverables of sessions. A concern of this machine whatever the store is, as the spool and the journal are: of
/// several services only the one that ran a session has its files.
#[async_trait]
pub trait Deliverables: Send + Sync + 'static {
    /// Keeps a file, in place of an earlier one of this path. Durable when answered.
    ///
    /// Errors: [`StoreError::Invalid`] beyond [`KEPT_LIMIT`], [`KEPT_FILES`], [`KEPT_BYTES`] or 4096 bytes of path, and for a
    /// path with an empty, `.` or `..` segment; its text is fit for the agent.
    async fn keep(&self, session: &SessionId, path: &str, content: Bytes) -> Result<KeptFile>;

    /// The files of a session, sorted by path.
    async fn list(&self, session: &SessionId) -> Result<Vec<KeptFile>>;

    /// One file with its content; none if it is not there.
    async fn read(&self, session: &SessionId, path: &str) -> Result<Option<(KeptFile, Bytes)>>;

    /// Forgets all files of a session; none is fine.
    async fn delete_all(&self, session: &SessionId) -> Result<()>;
}

/// Whether a session that has `kept` may keep a file of this path and length too.
pub(crate) fn check_room(kept: &[KeptFile], path: &str, len: u64) -> Result<()> {
    let refuse = |why: String| Err(StoreError::Invalid { field: "deliverable", why });
    if path.len() > KEPT_NAME || path.split('/').any(|s| matches!(s, "" | "." | "..")) {
        return refuse("its path is not acceptable".to_owned());
    }
    if len > KEPT_LIMIT {
        return refuse(format!("it has {len} bytes, and at most {KEPT_LIMIT} are kept"));
    }
    let others = || kept.iter().filter(|other| other.path != path);
    if others().count() >= KEPT_FILES {
        return refuse(format!("the session has handed over {KEPT_FILES} files, and no more are kept"));
    }
    if others().map(|other| other.bytes).sum::<u64>() + len > KEPT_BYTES {
        return refuse(format!("all deliverables together may have {KEPT_BYTES} bytes"));
    }
    Ok(())
}
