//! Stored logins.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Holder, Page, PageRequest, Result, SeedId, StoreError};

/// Whether a seed may be handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeedStatus {
    /// It may.
    Alive,
    /// The provider said that the login is no longer good.
    Dead,
    /// A newer token than the stored one exists, or may exist, in the spool or a kept workdir.
    NeedsRecovery,
}

/// Whose login it is, as far as the login itself says; no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Account {
    /// The provider's account id; never changes within one seed (INV-24).
    pub id: Option<String>,
    /// The address it was registered with.
    pub email: Option<String>,
    /// The plan, e.g. `plus`.
    pub plan: Option<String>,
    /// `chatgpt`, `api_key` or another mode.
    pub kind: String,
}

/// The files of a login, as they are planted below `home/` (T-014): relative name to bytes, e.g.
/// `.codex/auth.json`. Names are safe: relative, without `..`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SeedFiles(pub BTreeMap<String, Bytes>);

impl SeedFiles {
    /// The credential's name.
    pub const AUTH: &'static str = ".codex/auth.json";
    /// The config file's name.
    pub const CONFIG: &'static str = ".codex/config.toml";
}

impl std::fmt::Debug for SeedFiles {
    /// Shows names only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Which stored content of a seed: changes with each write, and a write names the one it was derived from (INV-21).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SeedVersion(pub String);

/// A login to store.
#[derive(Debug, Clone)]
pub struct NewSeed {
    /// Its files; must hold [`SeedFiles::AUTH`].
    pub files: SeedFiles,
    /// Whose it is.
    pub account: Account,
    /// The pool to put it in.
    pub pool: Option<String>,
    /// The consumer's own notes.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

/// A lease as a row shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLease {
    /// Who holds, or held, it.
    pub holder: Holder,
    /// When it ends, or ended.
    pub expires_at: Timestamp,
    /// False when it has expired.
    pub live: bool,
}

/// What a list shows of a seed. No secret.
#[derive(Debug, Clone, PartialEq)]
pub struct SeedRow {
    /// Its id, for life.
    pub id: SeedId,
    /// Its pool.
    pub pool: Option<String>,
    /// Whether it may be handed out.
    pub status: SeedStatus,
    /// Why it has that status, for a person; with the spool's file where there is one.
    pub status_reason: Option<String>,
    /// Whose it is.
    pub account: Account,
    /// The lease that was not released yet, live or expired.
    pub lease: Option<StoredLease>,
    /// The lease expired unreleased (see [`crate::Leases::acquire`]).
    pub dirty: bool,
    /// The content now stored.
    pub version: SeedVersion,
    /// When it was stored first.
    pub created_at: Timestamp,
    /// When anything but its lease changed.
    pub updated_at: Timestamp,
    /// When its credential was replaced last (T-098); `None` while it is the one that was imported.
    pub last_refreshed_at: Option<Timestamp>,
    /// When a check of it last came to a verdict, whichever that was (T-232).
    pub last_verified_at: Option<Timestamp>,
    /// The consumer's own notes.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

/// How a save ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SaveOutcome {
    /// The store has these bytes, read back and compared, as this version.
    Saved(SeedVersion),
    /// Somebody else holds the lease: nothing was written, and this holder must not write again (INV-07, INV-20).
    NotHolder,
    /// The lease is ours but the content is another version than the one named: nothing was written.
    Superseded {
        /// What is stored now.
        current: SeedVersion,
    },
    /// The seed was deleted: nothing was written.
    Gone,
}

/// What an operator may change.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SeedPatch {
    /// Another status with its reason.
    pub status: Option<(SeedStatus, Option<String>)>,
    /// Another pool; `Some(None)` takes it out of its pool.
    pub pool: Option<Option<String>>,
    /// Each key given replaces that key whole (T-065), and `null` removes it; keys with `.` or a leading `$` are
    /// refused.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// A check came to a verdict: stamps [`SeedRow::last_verified_at`] by the store's clock.
    pub verified: bool,
}

/// Largest archive of one seed's files (T-020).
pub const SEED_LIMIT: usize = 16 << 20;

/// Stored logins.
#[async_trait]
pub trait Seeds: Send + Sync + 'static {
    /// Stores a new seed. A ChatGPT-mode login whose account and refresh token equal a stored one's is refused with
    /// [`crate::StoreError::Conflict`] naming it: two seeds of one single-use lineage strand each other (INV-36).
    async fn import(&self, seed: NewSeed) -> Result<SeedRow>;

    /// One row, or `None`.
    async fn get(&self, id: &SeedId) -> Result<Option<SeedRow>>;

    /// Rows in order of creation.
    async fn list(&self, pool: Option<&str>, page: &PageRequest) -> Result<Page<SeedRow>>;

    /// The files, and the version they are.
    async fn load(&self, id: &SeedId) -> Result<(SeedFiles, SeedVersion)>;

    /// Replaces the credential, if `holder` holds the seed's lease (expired or not, as long as nobody took it) and
    /// the stored version is `base`. The new content is complete and durable before the row points at it, and the old
    /// content is deleted later by the sweeper, never here (T-052…T-056, INV-25…INV-27). Other files are untouched.
    /// Saving what is stored already, while holding, is `Saved` whatever `base` is: a step that is tried again after
    /// an unknown outcome succeeds.
    async fn save_credential(
        &self,
        id: &SeedId,
        holder: &Holder,
        base: &SeedVersion,
        auth_json: Bytes,
    ) -> Result<SaveOutcome>;

    /// Changes status, pool or notes. Given a holder, only while that holder has the lease (`Conflict` otherwise).
    /// A live lease stays as it is (T-068). Without a holder, the status `Alive` also takes an expired lease away:
    /// that is how an operator says that a dirty seed is fine.
    async fn patch(&self, id: &SeedId, holder: Option<&Holder>, patch: SeedPatch) -> Result<SeedRow>;

    /// Deletes a seed; one with a live lease only by `force` (`Conflict` otherwise). An unknown one is `NotFound`
    /// (T-062).
    async fn delete(&self, id: &SeedId, force: bool) -> Result<()>;
}

/// Applies a patch's notes to those that are stored.
pub(crate) fn merge_metadata(
    stored: &mut serde_json::Map<String, serde_json::Value>,
    patch: serde_json::Map<String, serde_json::Value>,
) {
    for (key, value) in patch {
        match value {
            serde_json::Value::Null => drop(stored.remove(&key)),
            value => drop(stored.insert(key, value)),
        }
    }
}

/// Refuses the empty pool (T-087).
pub(crate) fn check_pool(pool: Option<&str>) -> Result<()> {
    match pool {
        Some("") => Err(StoreError::Invalid { field: "pool", why: "it must not be empty".to_owned() }),
        _ => Ok(()),
    }
}

/// The key of the notes that belongs to the stores: what a MongoDB keeps of a seed beside the documents that it shares
/// with Python (T-009).
pub(crate) const OWN_NOTES: &str = "optioCodex";

/// The key of the note that names the key a login is encrypted with (T-072).
pub(crate) const KEY_NOTE: &str = "enc";

/// Refuses keys that MongoDB would read as paths or operators (T-066), and the stores' own two, in every store alike. Every
/// import and patch checks it; whoever stores later what is asked for now checks it now.
pub fn check_metadata(metadata: &serde_json::Map<String, serde_json::Value>) -> Result<()> {
    let refused = |key: &&String| {
        key.is_empty()
            || key.contains(['.', '\0'])
            || key.starts_with('$')
            || [OWN_NOTES, KEY_NOTE].contains(&key.as_str())
    };
    match metadata.keys().find(refused) {
        None => Ok(()),
        Some(key) => {
            let why = format!(
                "the key {key:?} is {OWN_NOTES:?}, {KEY_NOTE:?} or empty, has a dot or zero byte, or begins with a \
                 dollar sign"
            );
            Err(StoreError::Invalid { field: "metadata", why })
        }
    }
}
