//! Bringing the login home that the login server, or codex, just got: spool, then store, for as long as it takes.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use optio_codex_protocol::auth;
use optio_oauth::Tokens;
use optio_store::{SaveOutcome, SeedVersion, SpoolEntry, SpoolId, Store};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::held::{Held, STORE_LIMIT};

/// How long a new login is tried to be saved while its seed is held (T-225). Past it the spool has to do.
const SAVE_PATIENCE: Duration = Duration::from_secs(600);

/// The first wait after a save that failed; doubles to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);

/// The longest wait after a save that failed.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Why a new login is not in the store; what it says is for a person, with the place where the login lies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}; {place}")]
pub(super) struct Unsaved {
    why: String,
    place: String,
    spooled: bool,
}

impl Unsaved {
    /// True when it is on this machine's disk.
    pub(super) fn is_spooled(&self) -> bool {
        self.spooled
    }
}

/// A stored login, and the tokens that replace its own.
pub(super) struct Rotated<'a> {
    pub(super) old: &'a Bytes,
    pub(super) version: &'a SeedVersion,
    pub(super) tokens: &'a Tokens,
    /// When the request was begun.
    pub(super) at: Timestamp,
}

impl Rotated<'_> {
    /// Saves the login with its new tokens.
    pub(super) async fn save(&self, store: &Store, held: &Held) -> Result<(), Unsaved> {
        let nowhere = "its tokens are lost".to_owned();
        let new = self.login().map_err(|why| Unsaved { why, place: nowhere, spooled: false })?;
        Successor { old: self.old, version: self.version, new, at: self.at }.save(store, held).await
    }

    fn login(&self) -> Result<Bytes, String> {
        let reveal = |token: &Option<optio_oauth::Secret>| token.clone();
        let [access, refresh, id] =
            [&self.tokens.access_token, &self.tokens.refresh_token, &self.tokens.id_token].map(reveal);
        let new = auth::NewTokens {
            access_token: access.as_ref().map(|token| token.reveal()),
            refresh_token: refresh.as_ref().map(|token| token.reveal()),
            id_token: id.as_ref().map(|token| token.reveal()),
        };
        let written = auth::refreshed(self.old, &new, self.at);
        written
            .map(Bytes::from)
            .map_err(|problem| format!("the new tokens do not fit into the login: {problem}"))
    }
}

/// A stored login, and the one that takes its place.
pub(super) struct Successor<'a> {
    pub(super) old: &'a Bytes,
    pub(super) version: &'a SeedVersion,
    pub(super) new: Bytes,
    /// When it was begun to get it.
    pub(super) at: Timestamp,
}

impl Successor<'_> {
    /// Saves it. Until it is in the spool or the store it may exist in this process only, so nothing comes before that, and
    /// each try does whichever is not done yet.
    pub(super) async fn save(&self, store: &Store, held: &Held) -> Result<(), Unsaved> {
        let new = &self.new;
        let entry = self.entry(held, new);
        let misfit = auth::same_account(&auth::read(self.old), &auth::read(new)) == Some(false);
        let (begun, mut pause, mut spooled) = (Instant::now(), RETRY_MIN, None);
        loop {
            if spooled.is_none() {
                spooled = spool(store, entry.clone()).await;
            }
            let why = match misfit {
                true => Stop::For("what came back is the login of another account".to_owned()),
                false => write(store, held, self.version, new.clone()).await,
            };
            let why = match why {
                Stop::Saved => {
                    info!(seed = %held.seed, "refreshed login is in the store");
                    confirm(store, spooled.as_ref()).await;
                    return Ok(());
                }
                // Given up only once it is on a disk, or never will be.
                Stop::For(why) if spooled.is_some() => Err(why),
                Stop::For(why) | Stop::NotYet(why) => Ok(why),
            };
            match why {
                Ok(why) if begun.elapsed() < SAVE_PATIENCE => {
                    warn!(seed = %held.seed, why, "refreshed login is not saved yet");
                    sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Ok(why) | Err(why) => {
                    let (place, spooled) = (place(store, spooled.as_ref()), spooled.is_some());
                    return Err(Unsaved { why, place, spooled });
                }
            }
        }
    }

    fn entry(&self, held: &Held, new: &Bytes) -> SpoolEntry {
        SpoolEntry {
            seed: held.seed.clone(),
            session: None,
            holder: held.holder.clone(),
            base: self.version.clone(),
            fingerprint: auth::fingerprint(new).unwrap_or_default(),
            account_id: auth::read(new).account_id().map(str::to_owned),
            at: self.at,
            auth_json: new.clone(),
        }
    }
}

/// How one try ended.
enum Stop {
    Saved,
    /// Trying again cannot help.
    For(String),
    NotYet(String),
}

async fn spool(store: &Store, entry: SpoolEntry) -> Option<SpoolId> {
    let seed = entry.seed.clone();
    match timeout(STORE_LIMIT, store.spool.put(entry)).await {
        Ok(Ok(id)) => Some(id),
        Ok(Err(problem)) => {
            warn!(%seed, %problem, "refreshed login is not spooled");
            None
        }
        Err(_) => {
            warn!(%seed, "refreshed login was not spooled in time");
            None
        }
    }
}

async fn write(store: &Store, held: &Held, base: &SeedVersion, new: Bytes) -> Stop {
    let saving = store.seeds.save_credential(&held.seed, &held.holder, base, new);
    match timeout(STORE_LIMIT, saving).await {
        Ok(Ok(SaveOutcome::Saved(_))) => Stop::Saved,
        Ok(Ok(SaveOutcome::NotHolder)) => Stop::For("somebody else has taken the seed meanwhile".to_owned()),
        Ok(Ok(SaveOutcome::Gone)) => Stop::For("the seed was deleted meanwhile".to_owned()),
        Ok(Ok(SaveOutcome::Superseded { .. })) => {
            Stop::For("somebody who does not hold the seed has changed its login meanwhile".to_owned())
        }
        Ok(Err(problem)) => Stop::NotYet(problem.to_string()),
        Err(_) => Stop::NotYet(format!("the store gave no answer within {STORE_LIMIT:?}")),
    }
}

/// The store has it, so an entry that stays behind is replayed and found to be there already.
async fn confirm(store: &Store, spooled: Option<&SpoolId>) {
    let Some(id) = spooled else { return };
    if let Err(problem) = store.spool.confirm(id).await {
        warn!(%problem, "spool entry was not removed");
    }
}

fn place(store: &Store, spooled: Option<&SpoolId>) -> String {
    match spooled {
        Some(id) => format!(
            "its newest login lies in the spool at {}; verify it to bring it home",
            store.spool.describe(id)
        ),
        None => "its newest login could not be spooled either and is lost".to_owned(),
    }
}
