//! One save: read, judge, spool, guarded write, read back.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use optio_codex_protocol::auth;
use optio_host::HostError;
use optio_store::{SaveOutcome, SeedFiles, SeedVersion, SpoolEntry, SpoolId};
use serde_json::json;
use tracing::{info, warn};

use super::{AUTH_JSON, Baseline, Watched};
use crate::session::RunContext;
use crate::supervision::ChildKind;
use crate::teardown::{Finish, StepError, StepResult};
use crate::trace::Deed;

/// Largest login that is read; a real one has 5 KiB.
const AUTH_LIMIT: u64 = 1 << 20;

/// Codex 0.142.5 truncates and rewrites the file in place: a reader may see half of it. Two equal reads this far
/// apart are a whole one (T-126).
const SETTLE: Duration = Duration::from_millis(50);

/// Reads before a file that never holds still is given up until the next look.
const SETTLE_TRIES: u32 = 20;

/// Tries of the final save against a store that does not answer, before the spool has to do.
const FINAL_TRIES: u32 = 3;

/// The wait between two of them.
const FINAL_PAUSE: Duration = Duration::from_secs(2);

/// How long one try of the final save may take.
const FINAL_TRY_LIMIT: Duration = Duration::from_secs(15);

/// How a save ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Saved {
    /// The store has this login already.
    Unchanged,
    /// The store has the new one.
    Stored {
        /// What it has.
        baseline: Baseline,
    },
    /// The file is no login that may be saved over this seed: it is missing, logged out, or somebody else's.
    NotALogin {
        /// Which of these.
        why: String,
    },
}

/// How a save did not end well. The change is not lost: it is looked at again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    /// The store says that somebody else holds the seed.
    #[error("the seed has another holder")]
    NotHolder,
    /// Anything else.
    #[error("{why}")]
    Failed {
        /// What went wrong.
        why: String,
        /// Where the login lies meanwhile.
        spooled: Option<String>,
        /// The host was out of reach.
        host_was_away: bool,
    },
}

impl Trouble {
    pub(super) fn failed(why: impl std::fmt::Display) -> Self {
        Self::Failed { why: why.to_string(), spooled: None, host_was_away: false }
    }

    fn of_host(problem: HostError) -> Self {
        let host_was_away = problem.reach_code().is_some();
        Self::Failed { why: problem.to_string(), spooled: None, host_was_away }
    }
}

/// What the final save means for the lease and the workdir.
pub(super) fn as_step(ended: &Result<Saved, Trouble>) -> StepResult {
    match ended {
        Ok(Saved::Unchanged) => Ok(Finish::Done("the store has the newest login".to_owned())),
        Ok(Saved::Stored { .. }) => Ok(Finish::Done("the rotated login is in the store".to_owned())),
        Ok(Saved::NotALogin { why }) => Ok(Finish::Done(format!("nothing to save: {why}"))),
        Err(Trouble::NotHolder) => {
            Ok(Finish::Withheld("the lease is lost, nothing may be written".to_owned()))
        }
        Err(Trouble::Failed { why, spooled, host_was_away }) => {
            Err(StepError { why: why.clone(), spooled: spooled.clone(), host_was_away: *host_was_away })
        }
    }
}

/// A login that changed.
struct Changed {
    bytes: Bytes,
    fingerprint: String,
    account_id: Option<String>,
}

/// What reading found.
enum Found {
    Unchanged,
    Changed(Changed),
    NotALogin(String),
}

/// One save of one run's login.
pub(super) struct Saving {
    run: RunContext,
    watched: Watched,
    what: &'static str,
}

impl Saving {
    pub(super) fn new(run: RunContext, watched: Watched, what: &'static str) -> Self {
        Self { run, watched, what }
    }

    /// Saves once, within `limit`. Past it the outcome is unknown; the spool has the login, and the next save finds
    /// out what the store has.
    pub(super) async fn run(self, limit: Duration) -> Result<Saved, Trouble> {
        match tokio::time::timeout(limit, self.once()).await {
            Ok(ended) => ended,
            Err(_) => Err(Trouble::failed(format!("no answer within {limit:?}"))),
        }
    }

    /// The final save: tries again while the store does not answer.
    pub(super) async fn run_to_the_end(self) -> Result<Saved, Trouble> {
        let mut trouble = Trouble::failed("not tried");
        for attempt in 0..FINAL_TRIES {
            if attempt > 0 {
                tokio::time::sleep(FINAL_PAUSE).await;
            }
            match tokio::time::timeout(FINAL_TRY_LIMIT, self.once()).await {
                Ok(Err(failed @ Trouble::Failed { .. })) => trouble = failed,
                Ok(ended) => return ended,
                Err(_) => trouble = self.timed_out().await,
            }
        }
        Err(trouble)
    }

    /// After a lease was lost: a changed login goes to the spool, for a person, and nowhere else (T-156).
    pub(super) async fn spool_only(self) -> Result<Saved, Trouble> {
        match self.read().await.map_err(Trouble::of_host)? {
            Found::Changed(changed) => {
                let entry = self.spool(&changed).await?;
                warn!(seed = %self.watched.seed, entry = self.run.store.spool.describe(&entry), "login is only spooled");
                Err(Trouble::NotHolder)
            }
            Found::Unchanged | Found::NotALogin(_) => Err(Trouble::NotHolder),
        }
    }

    /// A save without an answer may have spooled before it hung.
    async fn timed_out(&self) -> Trouble {
        let why = format!("the store gave no answer within {FINAL_TRY_LIMIT:?}");
        let spooled = match self.run.store.spool.entries().await {
            Ok(entries) => entries.into_iter().find_map(|(id, entry)| {
                entry
                    .is_ok_and(|e| e.holder == self.watched.holder)
                    .then(|| self.run.store.spool.describe(&id))
            }),
            Err(problem) => {
                warn!(%problem, "spool cannot be read");
                None
            }
        };
        Trouble::Failed { why, spooled, host_was_away: false }
    }

    async fn once(&self) -> Result<Saved, Trouble> {
        let changed = match self.read().await.map_err(Trouble::of_host)? {
            Found::Unchanged => return Ok(Saved::Unchanged),
            Found::NotALogin(why) => return Ok(Saved::NotALogin { why }),
            Found::Changed(changed) => changed,
        };
        info!(seed = %self.watched.seed, save = self.what, fingerprint = &changed.fingerprint[..12], "login was rotated");
        self.run.events.tell("seed.rotated", &json!({ "seed": self.watched.seed }));
        let entry = self.spool(&changed).await?;
        let version = self.write(&changed, &entry).await?;
        self.run.did(Deed::SavedBack);
        // The store has it, so a spool entry that stays behind is replayed and found to be there already.
        if let Err(problem) = self.run.store.spool.confirm(&entry).await {
            warn!(%problem, "spool entry was not removed");
        }
        self.run.events.tell("seed.saved", &json!({ "seed": self.watched.seed }));
        let account_id = changed.account_id.or_else(|| self.watched.baseline.account_id.clone());
        let baseline = Baseline { version, fingerprint: Some(changed.fingerprint), account_id };
        Ok(Saved::Stored { baseline })
    }

    /// Reads the file until it holds still, and judges it.
    async fn read(&self) -> Result<Found, HostError> {
        let mut before = self.read_once().await?;
        if self.is_known(before.as_deref()) {
            return Ok(Found::Unchanged);
        }
        for _ in 0..SETTLE_TRIES {
            tokio::time::sleep(SETTLE).await;
            let now = self.read_once().await?;
            if now == before && now.as_ref().is_some_and(|bytes| !bytes.is_empty()) {
                return Ok(self.judge(now.unwrap_or_default()));
            }
            if now.is_none() && before.is_none() {
                return Ok(Found::NotALogin("auth.json is not there (logged out?)".to_owned()));
            }
            before = now;
        }
        Ok(match before {
            Some(bytes) if bytes.is_empty() => Found::NotALogin("auth.json is empty".to_owned()),
            Some(bytes) => self.judge(bytes),
            None => Found::NotALogin("auth.json is not there (logged out?)".to_owned()),
        })
    }

    async fn read_once(&self) -> Result<Option<Bytes>, HostError> {
        let path = RunContext::in_workdir(AUTH_JSON);
        match self.run.host.read(&self.run.dir, &path, AUTH_LIMIT).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(HostError::NotFound { .. }) => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    fn is_known(&self, bytes: Option<&[u8]>) -> bool {
        let fingerprint = bytes.and_then(auth::fingerprint);
        fingerprint.is_some() && fingerprint == self.watched.baseline.fingerprint
    }

    fn judge(&self, bytes: Bytes) -> Found {
        let credential = auth::read(&bytes);
        let (Some(fingerprint), false) = (auth::fingerprint(&bytes), !credential.is_login()) else {
            return Found::NotALogin("auth.json holds no login (logged out?)".to_owned());
        };
        if Some(&fingerprint) == self.watched.baseline.fingerprint.as_ref() {
            return Found::Unchanged;
        }
        let account_id = credential.account_id().map(str::to_owned);
        match (&self.watched.baseline.account_id, &account_id) {
            (Some(planted), Some(found)) if planted != found => Found::NotALogin(
                "auth.json holds the login of another account; it is not saved over this seed".to_owned(),
            ),
            _ => Found::Changed(Changed { bytes, fingerprint, account_id }),
        }
    }

    /// Makes the login safe on this machine's disk before anything else may fail (T-157).
    async fn spool(&self, changed: &Changed) -> Result<SpoolId, Trouble> {
        let step = self.run.step(ChildKind::CredWatcher, "spool").await;
        step.map_err(Trouble::failed)?;
        let entry = SpoolEntry {
            seed: self.watched.seed.clone(),
            session: Some(self.run.session.clone()),
            holder: self.watched.holder.clone(),
            base: self.watched.baseline.version.clone(),
            fingerprint: changed.fingerprint.clone(),
            account_id: changed.account_id.clone(),
            at: Timestamp::now(),
            auth_json: changed.bytes.clone(),
        };
        let id = self.run.store.spool.put(entry).await.map_err(Trouble::failed)?;
        self.run.did(Deed::Spooled);
        Ok(id)
    }

    async fn write(&self, changed: &Changed, entry: &SpoolId) -> Result<SeedVersion, Trouble> {
        let spooled = || Some(self.run.store.spool.describe(entry));
        let failed = |why: String| Trouble::Failed { why, spooled: spooled(), host_was_away: false };
        let step = self.run.step(ChildKind::CredWatcher, "store").await;
        step.map_err(|injected| failed(injected.to_string()))?;
        let mut base = self.watched.baseline.version.clone();
        // A second round when the version moved: under our lease only an earlier save of ours can have moved it.
        for _ in 0..2 {
            let (seed, holder) = (&self.watched.seed, &self.watched.holder);
            let saved =
                self.run.store.seeds.save_credential(seed, holder, &base, changed.bytes.clone()).await;
            match saved.map_err(|problem| failed(problem.to_string()))? {
                SaveOutcome::Saved(version) => return Ok(version),
                SaveOutcome::NotHolder => return Err(Trouble::NotHolder),
                SaveOutcome::Gone => return Err(failed(format!("seed {seed} was deleted"))),
                SaveOutcome::Superseded { current } => {
                    let (files, version) =
                        self.run.store.seeds.load(seed).await.map_err(|p| failed(p.to_string()))?;
                    if files.0.get(SeedFiles::AUTH) == Some(&changed.bytes) {
                        return Ok(version);
                    }
                    base = current;
                }
            }
        }
        Err(failed("the seed changes under its own lease".to_owned()))
    }
}
