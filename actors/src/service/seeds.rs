//! Seeds as people see and bring them.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use optio_codex_protocol::{auth, config_toml};
use optio_oauth::Verdict;
use optio_store::{
    Holder, NewSeed, Page, PageRequest, SeedFiles, SeedId, SeedPatch, SeedRow, SeedStatus, SessionId,
    StoreError,
};
use serde::Serialize;
use serde_json::{Map, Value};

use super::Service;
use crate::error::SessionError;
use crate::login::account_of;
use crate::verifier::{INTENT, LastVerdict, VerifySeed};

/// The longest name of a pool, in characters.
const POOL_LIMIT: usize = 100;

/// A login to store.
#[derive(Clone)]
pub struct ImportSeed {
    /// The content of Codex's `auth.json`.
    pub auth_json: String,
    /// The content of a `config.toml` to go with it.
    pub config_toml: Option<String>,
    /// The pool to put it in.
    pub pool: Option<String>,
    /// Notes.
    pub metadata: Map<String, Value>,
}

/// A seed as the API shows it. No secret.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeedView {
    /// Its id.
    pub id: SeedId,
    /// Its pool.
    pub pool: Option<String>,
    /// Whether it may be handed out.
    pub status: SeedStatus,
    /// Why it has that status.
    pub status_reason: Option<String>,
    /// Whose login it is, in a few words.
    pub account: Option<String>,
    /// The lease that was not released yet.
    pub lease: Option<SeedLeaseView>,
    /// The lease ran out without a release: its last holder may have a newer login.
    pub dirty: bool,
    /// When it was stored first.
    pub created_at: Timestamp,
    /// When anything but its lease changed.
    pub updated_at: Timestamp,
    /// What the last check said, if one was made.
    pub verify: Option<LastVerdict>,
    /// Notes.
    pub metadata: Map<String, Value>,
}

/// What a check of a seed found, as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifyView {
    /// `alive`, `dead`, `suspect`, `inconclusive`, `undecodable` or `needs-recovery`.
    pub verdict: &'static str,
    /// Why, for a person.
    pub reason: String,
    /// When it was made.
    pub checked_at: Timestamp,
    /// The seed after it.
    #[serde(flatten)]
    pub seed: SeedView,
}

/// A seed's lease as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeedLeaseView {
    /// Who holds it.
    pub holder: Holder,
    /// The session that holds it, if one of ours does.
    pub session: Option<SessionId>,
    /// When it ends unless renewed.
    pub expires_at: Timestamp,
}

impl From<SeedRow> for SeedView {
    fn from(row: SeedRow) -> Self {
        let who = row.account.email.clone().or_else(|| row.account.id.clone());
        let account = match (who, &row.account.plan) {
            (Some(who), Some(plan)) => Some(format!("{who} ({plan})")),
            (Some(who), None) => Some(who),
            (None, _) if row.account.kind.is_empty() => None,
            (None, _) => Some(row.account.kind.clone()),
        };
        Self {
            id: row.id,
            pool: row.pool,
            status: row.status,
            status_reason: row.status_reason,
            account,
            lease: row.lease.map(|lease| SeedLeaseView {
                session: lease.holder.session(),
                holder: lease.holder,
                expires_at: lease.expires_at,
            }),
            dirty: row.dirty,
            created_at: row.created_at,
            updated_at: row.updated_at,
            verify: LastVerdict::of(&row.metadata, row.status),
            metadata: row.metadata,
        }
    }
}

impl Service {
    /// Stores a login as a seed.
    pub async fn import_seed(&self, import: ImportSeed) -> Result<SeedView, SessionError> {
        let invalid = |field, why: String| SessionError::Invalid { field, why };
        let credential = auth::parse(import.auth_json.as_bytes()).map_err(|problem| {
            invalid(
                "auth_json",
                format!("{problem}; it must be the content of an auth.json that is logged in"),
            )
        })?;
        if let Some(pool) = &import.pool {
            check_pool(pool)?;
        }
        let mut files = SeedFiles::default();
        files.0.insert(SeedFiles::AUTH.to_owned(), Bytes::from(import.auth_json));
        if let Some(config) = import.config_toml {
            config_toml::validate(config.as_bytes())
                .map_err(|problem| invalid("config_toml", problem.to_string()))?;
            files.0.insert(SeedFiles::CONFIG.to_owned(), Bytes::from(config));
        }
        let seed =
            NewSeed { files, account: account_of(&credential), pool: import.pool, metadata: import.metadata };
        Ok(self.settings.store.seeds.import(seed).await?.into())
    }

    /// Seeds, in order of creation.
    pub async fn seeds(
        &self,
        pool: Option<&str>,
        page: &PageRequest,
    ) -> Result<Page<SeedView>, SessionError> {
        let rows = self.settings.store.seeds.list(pool, page).await?;
        Ok(Page { data: rows.data.into_iter().map(SeedView::from).collect(), next_cursor: rows.next_cursor })
    }

    /// One seed.
    pub async fn seed(&self, id: &SeedId) -> Result<SeedView, SessionError> {
        let row = self.settings.store.seeds.get(id).await?;
        Ok(row.ok_or_else(|| SessionError::not_found("seed", id))?.into())
    }

    /// Deletes a seed that nobody uses.
    pub async fn delete_seed(&self, id: &SeedId) -> Result<(), SessionError> {
        Ok(self.settings.store.seeds.delete(id, false).await?)
    }

    /// Puts a seed into a pool, or takes it out of its pool.
    pub async fn assign_seed(&self, id: &SeedId, pool: Option<String>) -> Result<SeedView, SessionError> {
        if let Some(pool) = &pool {
            check_pool(pool)?;
        }
        let patch = SeedPatch { pool: Some(pool), ..SeedPatch::default() };
        Ok(self.settings.store.seeds.patch(id, None, patch).await?.into())
    }

    /// Sets a seed's status by hand. An expired lease is cleared with it: whoever says that the login is good has looked.
    pub async fn set_seed_status(
        &self,
        id: &SeedId,
        status: SeedStatus,
        reason: Option<String>,
    ) -> Result<SeedView, SessionError> {
        let row = self.settings.store.seeds.get(id).await?;
        let row = row.ok_or_else(|| SessionError::not_found("seed", id))?;
        if row.lease.is_some_and(|lease| lease.live) {
            let why = "it is in use; stop its session first".to_owned();
            return Err(StoreError::Conflict { what: "seed", id: id.to_string(), why }.into());
        }
        // Whoever says what the seed is has decided what came of a request that nobody knows the outcome of.
        let metadata = match status {
            SeedStatus::Alive | SeedStatus::Dead => Map::from_iter([(INTENT.to_owned(), Value::Null)]),
            SeedStatus::NeedsRecovery => Map::new(),
        };
        let patch = SeedPatch { status: Some((status, reason)), metadata, ..SeedPatch::default() };
        Ok(self.settings.store.seeds.patch(id, None, patch).await?.into())
    }
}

/// How long an answer is waited for. A check takes two requests of twenty seconds where the login server takes its time;
/// one that cannot save what it got, or that asks a codex which hangs, goes on for minutes, and its verdict is then read from
/// the seed.
const VERIFY_LIMIT: Duration = Duration::from_secs(60);

impl Service {
    /// Finds out whether a seed's login is good, by a refresh where nothing less will do. One in doubt (dirty, parked) is
    /// always asked about.
    pub async fn verify_seed(&self, id: &SeedId) -> Result<VerifyView, SessionError> {
        let asking = self.root.send(VerifySeed(id.clone()));
        let checked = match tokio::time::timeout(VERIFY_LIMIT, asking).await {
            Ok(Ok(checked)) => checked?,
            Ok(Err(_)) | Err(_) => return Err(SessionError::NoAnswer { what: "the check, which goes on" }),
        };
        if let Verdict::Busy(why) = checked.verdict {
            return Err(SessionError::SeedBusy { id: id.clone(), why });
        }
        Ok(VerifyView {
            verdict: checked.verdict.name(),
            reason: checked.verdict.reason().to_owned(),
            checked_at: checked.at,
            seed: self.seed(id).await?,
        })
    }
}

pub(super) fn check_pool(pool: &str) -> Result<(), SessionError> {
    let unfit = pool.is_empty() || pool.chars().count() > POOL_LIMIT || pool.chars().any(char::is_control);
    if unfit {
        let why = format!("it must have 1 to {POOL_LIMIT} characters, none of them a control character");
        return Err(SessionError::Invalid { field: "pool", why });
    }
    Ok(())
}
