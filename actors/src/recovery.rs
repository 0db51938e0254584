//! Bringing spooled logins home when a service starts (T-157): each under a lease of its own, and only where it is
//! certain that the spooled login is the newer one of the same account.

use std::time::Duration;

use optio_codex_protocol::auth::{self, Credential};
use optio_store::{
    Holder, SaveOutcome, SeedFiles, SeedId, SeedPatch, SeedStatus, SpoolEntry, SpoolId, StoreError,
};
use serde_json::json;
use tracing::{info, warn};

use crate::events::Events;
use crate::settings::Settings;

/// How long one entry may keep the start of the service waiting: several store operations.
const REPLAY_LIMIT: Duration = Duration::from_secs(30);

/// Replays every entry whose session is over; one whose session is being taken up is that session's to save. Answers
/// the seeds that have their newest login again.
pub async fn replay_spool(settings: &Settings) -> Vec<SeedId> {
    let mut home = Vec::new();
    let entries = match in_time(settings.store.spool.entries()).await {
        Ok(entries) => entries,
        Err(problem) => {
            warn!(%problem, "spool cannot be read");
            return home;
        }
    };
    for (id, entry) in entries {
        let at = settings.store.spool.describe(&id);
        match entry {
            Err(problem) => warn!(at, %problem, "spooled login cannot be read, it is left where it is"),
            Ok(entry) => match in_time(replay(settings, &id, &entry)).await {
                Ok(true) => home.push(entry.seed),
                Ok(false) => info!(seed = %entry.seed, at, "spooled login is left where it is"),
                Err(problem) => warn!(seed = %entry.seed, at, %problem, "spooled login is not home yet"),
            },
        }
    }
    home
}

async fn in_time<T>(doing: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let what = "replay of the spool";
    let ended = tokio::time::timeout(REPLAY_LIMIT, doing).await;
    ended.unwrap_or(Err(StoreError::TimedOut { what, limit: REPLAY_LIMIT }))
}

async fn replay(settings: &Settings, id: &SpoolId, entry: &SpoolEntry) -> Result<bool, StoreError> {
    let store = &settings.store;
    let record = store.records.get(&entry.session).await?;
    if record.is_some_and(|row| !row.finished) {
        return Ok(false);
    }
    let holder = Holder::mint_for("recovery");
    if store.leases.acquire_for_recovery(&entry.seed, &holder).await?.is_none() {
        return Ok(false);
    }
    let saved = save(settings, entry, &holder).await;
    if let Ok(true) = saved {
        // The entry goes before the lease, so that nobody rotates past an entry that is still there; and it goes after
        // everything else, so that what fails here is tried again at the next start.
        let patch = SeedPatch { status: Some((SeedStatus::Alive, None)), ..SeedPatch::default() };
        store.seeds.patch(&entry.seed, Some(&holder), patch).await?;
        if let Err(problem) = store.spool.confirm(id).await
            && store.spool.entries().await?.iter().any(|(left, _)| left == id)
        {
            return Err(problem);
        }
        info!(seed = %entry.seed, "spooled login is home");
        let service = settings.service_stream.clone();
        Events::new(entry.session.clone(), service.clone(), service)
            .tell("seed.saved", &json!({ "seed": entry.seed, "from": "spool" }));
        store.leases.release(&entry.seed, &holder).await?;
        return Ok(true);
    }
    // Released unsaved, the seed must not be handed out with the old login.
    let reason = format!("a newer login may lie in the spool at {}", store.spool.describe(id));
    let status = Some((SeedStatus::NeedsRecovery, Some(reason)));
    store.seeds.patch(&entry.seed, Some(&holder), SeedPatch { status, ..SeedPatch::default() }).await?;
    store.leases.release(&entry.seed, &holder).await?;
    saved
}

/// Saves an entry if it is the successor of what is stored, or newer by its own date; `false` when it is not.
async fn save(settings: &Settings, entry: &SpoolEntry, holder: &Holder) -> Result<bool, StoreError> {
    let (files, version) = settings.store.seeds.load(&entry.seed).await?;
    let stored = files.0.get(SeedFiles::AUTH).cloned().unwrap_or_default();
    if stored == entry.auth_json {
        return Ok(true);
    }
    let (old, new) = (auth::read(&stored), auth::read(&entry.auth_json));
    let same = auth::same_account(&old, &new) != Some(false);
    if !new.is_login() || !same || (version != entry.base && !is_newer(&new, &old)) {
        return Ok(false);
    }
    let saved =
        settings.store.seeds.save_credential(&entry.seed, holder, &version, entry.auth_json.clone()).await?;
    Ok(matches!(saved, SaveOutcome::Saved(_)))
}

fn is_newer(new: &Credential, old: &Credential) -> bool {
    match (new, old) {
        (Credential::ChatGpt(new), Credential::ChatGpt(old)) => new.last_refresh > old.last_refresh,
        _ => false,
    }
}
