//! Bringing spooled logins home (T-157): under a lease, and only where it is certain that the spooled login is the newer
//! one of the same account. A service does it when it starts; whoever checks a seed does it first.

use std::collections::BTreeSet;
use std::time::Duration;

use optio_codex_protocol::auth::{self, Credential};
use optio_store::{
    Holder, SaveOutcome, SeedFiles, SeedId, SeedPatch, SeedStatus, SessionId, SpoolEntry, SpoolId, StoreError,
};
use serde_json::json;
use tracing::{info, warn};

use crate::events::Events;
use crate::settings::Settings;
use crate::verifier::Intent;

/// How long one entry may keep the start of the service waiting: several store operations.
const REPLAY_LIMIT: Duration = Duration::from_secs(30);

/// Who replays the spool, as a holder.
const RECOVERY: &str = "recovery";

/// What to do about a spooled login that cannot be told to belong to its seed.
const LOOK_AT_IT: &str = "look at it, then say by hand what the seed is";

/// Replays the entries of every seed whose sessions are over; one whose session is being taken up is that session's to
/// save. Answers the seeds that have their newest login again.
pub async fn replay_spool(settings: &Settings) -> Vec<SeedId> {
    replay_entries(settings, |_| true).await
}

/// Replays what one session has left, when it is over: a run that lost its lease to an outage of the store had to leave
/// its newest login in the spool, and nobody else may want the seed before it is home.
pub async fn replay_spool_of(settings: &Settings, session: &SessionId) -> Vec<SeedId> {
    replay_entries(settings, |entry| entry.session.as_ref() == Some(session)).await
}

async fn replay_entries(settings: &Settings, wanted: impl Fn(&SpoolEntry) -> bool) -> Vec<SeedId> {
    let mut seeds = BTreeSet::new();
    match in_time(settings.store.spool.entries()).await {
        Err(problem) => warn!(%problem, "spool cannot be read"),
        Ok(entries) => {
            for (id, entry) in entries {
                match entry {
                    Ok(entry) if wanted(&entry) => drop(seeds.insert(entry.seed)),
                    Ok(_) => {}
                    Err(problem) => {
                        let at = settings.store.spool.describe(&id);
                        warn!(at, %problem, "spooled login cannot be read, it is left where it is");
                    }
                }
            }
        }
    }
    let mut home = Vec::new();
    for seed in seeds {
        match in_time(replay(settings, &seed)).await {
            Ok(true) => home.push(seed),
            Ok(false) => info!(%seed, "spooled login is left where it is"),
            Err(problem) => warn!(%seed, %problem, "spooled login is not home yet"),
        }
    }
    home
}

async fn in_time<T>(doing: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let what = "replay of the spool";
    let ended = tokio::time::timeout(REPLAY_LIMIT, doing).await;
    ended.unwrap_or(Err(StoreError::TimedOut { what, limit: REPLAY_LIMIT }))
}

async fn replay(settings: &Settings, seed: &SeedId) -> Result<bool, StoreError> {
    let store = &settings.store;
    for (_, entry) in entries_of(settings, seed).await? {
        if let Ok(SpoolEntry { session: Some(session), .. }) = &entry
            && store.records.get(session).await?.is_some_and(|row| !row.finished)
        {
            return Ok(false);
        }
    }
    let row = store.seeds.get(seed).await?;
    let status = row.as_ref().map(|row| row.status);
    let last = row.and_then(|row| row.lease).map(|lease| lease.holder);
    let was_dirty = last.is_some();
    let holder = Holder::mint_for(RECOVERY);
    if store.leases.acquire_for_recovery(seed, &holder).await?.is_none() {
        return Ok(false);
    }
    let brought = bring_home(settings, seed, &holder, last.as_ref()).await;
    match brought.map(|brought| (brought.home, brought.spent)) {
        Ok((Home::Saved { settled }, spent)) => {
            // A dead one comes back to life by its provider's word or a person's only (INV-31).
            if status == Some(SeedStatus::NeedsRecovery) && !is_in_doubt(settings, seed).await? {
                patch(settings, seed, &holder, SeedStatus::Alive, None).await?;
            }
            // The entries go before the lease, so that nobody rotates past one that is still there; and after everything
            // else, so that what fails here is tried again at the next start.
            confirm(settings, &spent).await;
            if settled {
                store.leases.release(seed, &holder).await?;
            }
            Ok(true)
        }
        // Nothing was learnt: a seed that was dirty stays so, because the lease is left to run out.
        Ok((Home::Nothing, spent)) => {
            confirm(settings, &spent).await;
            if !was_dirty {
                store.leases.release(seed, &holder).await?;
            }
            Ok(false)
        }
        // Released unsaved, the seed must not be handed out with the old login.
        Ok((Home::Stuck(why), _)) => {
            patch(settings, seed, &holder, SeedStatus::NeedsRecovery, Some(why)).await?;
            store.leases.release(seed, &holder).await?;
            Ok(false)
        }
        Err(problem) => {
            let why = format!(
                "a newer login may lie in the spool and could not be saved ({problem}); verify it to try again"
            );
            patch(settings, seed, &holder, SeedStatus::NeedsRecovery, Some(why)).await?;
            store.leases.release(seed, &holder).await?;
            Err(problem)
        }
    }
}

async fn patch(
    settings: &Settings,
    seed: &SeedId,
    holder: &Holder,
    status: SeedStatus,
    why: Option<String>,
) -> Result<(), StoreError> {
    let patch = SeedPatch { status: Some((status, why)), ..SeedPatch::default() };
    settings.store.seeds.patch(seed, Some(holder), patch).await.map(drop)
}

/// A login whose own token was sent by a check that left no outcome is not known to be good, newest or not (INV-29).
async fn is_in_doubt(settings: &Settings, seed: &SeedId) -> Result<bool, StoreError> {
    let (files, _) = settings.store.seeds.load(seed).await?;
    let stored = files.0.get(SeedFiles::AUTH).cloned().unwrap_or_default();
    let row = settings.store.seeds.get(seed).await?;
    Ok(row
        .and_then(|row| Intent::of(&row.metadata))
        .is_some_and(|intent| intent.is_about(&auth::read(&stored))))
}

/// What the spool had for a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Home {
    /// Nothing that the store does not have.
    Nothing,
    /// The newest of it is in the store now.
    Saved {
        /// It came from whoever had the seed last, or nobody left it unreleased: nothing newer can be missing.
        settled: bool,
    },
    /// It may have something newer that cannot be saved. Where it lies, and what to do.
    Stuck(String),
}

/// What was done about a seed's entries.
pub(crate) struct Brought {
    /// What it means for the seed.
    pub(crate) home: Home,
    /// Entries that the store has now, to be [confirmed](confirm) when what follows from it is on record.
    pub(crate) spent: Vec<SpoolId>,
}

/// Brings home what the spool has for a seed that `holder` holds, and that `last` held before and did not release. No
/// session of an entry may still be at work.
///
/// That an entry is in the store already says only of its own holder that nothing is missing. An entry may have stayed
/// behind, and somebody else have had the seed since, spent the token, and died.
pub(crate) async fn bring_home(
    settings: &Settings,
    seed: &SeedId,
    holder: &Holder,
    last: Option<&Holder>,
) -> Result<Brought, StoreError> {
    let spool = &settings.store.spool;
    let (mut found, mut spent) = (Home::Nothing, Vec::new());
    let mut settled = last.is_none();
    for (id, entry) in entries_of(settings, seed).await? {
        let at = spool.describe(&id);
        let entry = match entry {
            Ok(entry) => entry,
            Err(problem) => {
                let why = format!(
                    "a newer login may lie in the spool at {at}, unreadable ({problem}); {LOOK_AT_IT}"
                );
                return Ok(Brought { home: Home::Stuck(why), spent });
            }
        };
        match save(settings, &entry, holder).await? {
            Saved::Older => {
                info!(%seed, at, "spooled login is older than the stored one, it is left where it is")
            }
            Saved::Unclear => {
                let why = format!("a newer login may lie in the spool at {at}; {LOOK_AT_IT}");
                return Ok(Brought { home: Home::Stuck(why), spent });
            }
            home @ (Saved::Now | Saved::Before) => {
                spent.push(id);
                let of_the_last = last == Some(&entry.holder);
                settled |= of_the_last;
                // A recovery that was cut off has used no token, but nobody knows any more who came before it.
                let cut_off = last.is_some_and(|last| last.as_str().starts_with(RECOVERY));
                if of_the_last || cut_off || matches!(home, Saved::Now) {
                    tell(settings, seed, entry.session);
                    found = Home::Saved { settled };
                }
            }
        }
    }
    Ok(Brought { home: found, spent })
}

type Found = (SpoolId, Result<SpoolEntry, StoreError>);

async fn entries_of(settings: &Settings, seed: &SeedId) -> Result<Vec<Found>, StoreError> {
    let mut entries = settings.store.spool.entries().await?;
    entries.retain(|(id, entry)| match entry {
        Ok(entry) => entry.seed == *seed,
        Err(_) => id.0.starts_with(seed.as_str()),
    });
    Ok(entries)
}

/// Removes entries that the store has. One that stays behind is replayed and found to be there already.
pub(crate) async fn confirm(settings: &Settings, spent: &[SpoolId]) {
    for id in spent {
        if let Err(problem) = settings.store.spool.confirm(id).await {
            warn!(%problem, "spool entry was not removed");
        }
    }
}

fn tell(settings: &Settings, seed: &SeedId, session: Option<SessionId>) {
    info!(%seed, "spooled login is home");
    if let Some(session) = session {
        let service = settings.service_stream.clone();
        Events::new(session, service.clone(), service)
            .tell("seed.saved", &json!({ "seed": seed, "from": "spool" }));
    }
}

enum Saved {
    /// The store has it now.
    Now,
    /// The store had it already.
    Before,
    /// The store has a newer one of the same account.
    Older,
    /// Neither is certain.
    Unclear,
}

/// Saves an entry if it is the successor of what is stored, or newer by its own date.
async fn save(settings: &Settings, entry: &SpoolEntry, holder: &Holder) -> Result<Saved, StoreError> {
    let (files, version) = settings.store.seeds.load(&entry.seed).await?;
    let stored = files.0.get(SeedFiles::AUTH).cloned().unwrap_or_default();
    if stored == entry.auth_json {
        return Ok(Saved::Before);
    }
    let (old, new) = (auth::read(&stored), auth::read(&entry.auth_json));
    if !new.is_login() || auth::same_account(&old, &new) == Some(false) {
        return Ok(Saved::Unclear);
    }
    if version != entry.base {
        match by_date(&new, &old) {
            Some(std::cmp::Ordering::Greater) => {}
            Some(std::cmp::Ordering::Less) => return Ok(Saved::Older),
            _ => return Ok(Saved::Unclear),
        }
    }
    let saved =
        settings.store.seeds.save_credential(&entry.seed, holder, &version, entry.auth_json.clone()).await?;
    Ok(if matches!(saved, SaveOutcome::Saved(_)) { Saved::Now } else { Saved::Unclear })
}

fn by_date(new: &Credential, old: &Credential) -> Option<std::cmp::Ordering> {
    match (new, old) {
        (Credential::ChatGpt(new), Credential::ChatGpt(old)) => {
            Some(new.last_refresh?.cmp(&old.last_refresh?))
        }
        _ => None,
    }
}
