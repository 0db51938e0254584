//! Who may have a newer login of a seed than the store, and when a seed may be checked unasked.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use optio_store::{Holder, PageRequest, SeedId, SeedRow, SeedStatus, SessionId, StoreError, Want};
use tracing::warn;

use super::notes::Intent;
use crate::session::record::SessionRecord;
use crate::settings::Settings;
use crate::teardown::{Outcome, Step};

/// How long after its lease ran out a seed is left to its last holder, before it is checked unasked: a refresh with a
/// token that was spent by it would make the provider revoke the newer one too. An agent is dead 55 s after its last
/// heartbeat by its guard, so no token is rotated later than that; a service that is back within this time brings home
/// what it has on its own disk. A wall clock is compared with the store's here, which decides nothing about who holds
/// what (INV-06): ten minutes are more than two machines' clocks differ.
pub(super) const DIRTY_GRACE: Duration = Duration::from_secs(600);

/// Seeds that are looked at for one wish; a pool of more has clean ones in all likelihood.
const PAGES: usize = 4;

/// Says why nobody may touch the seed now, if so; nobody but `earlier`, whose lease is ours to go on with.
pub(super) async fn in_use(
    settings: &Settings,
    row: &SeedRow,
    earlier: Option<&Holder>,
) -> Result<Option<String>, StoreError> {
    if let Some(lease) = row.lease.as_ref().filter(|lease| lease.live && Some(&lease.holder) != earlier) {
        return Ok(Some(match lease.holder.session() {
            Some(session) => format!("it is leased by session {session}"),
            None => "it is leased by somebody else".to_owned(),
        }));
    }
    if row.status == SeedStatus::Alive && !row.dirty {
        return Ok(None);
    }
    let unfinished = settings.store.records.unfinished().await?;
    for stored in unfinished {
        // A record that cannot be read says nothing about a seed but what its row says.
        let run = SessionRecord::read(&stored).ok().and_then(|record| record.run);
        let (seed, holder, lost) = match &run {
            Some(run) => (run.seed.as_ref(), Some(&run.holder), run.lease_lost),
            None => (stored.seed.as_ref(), None, false),
        };
        let held = row.lease.as_ref().is_some_and(|lease| Some(&lease.holder) == holder);
        if held || (seed == Some(&row.id) && !lost) {
            let id = &stored.id;
            return Ok(Some(format!("session {id} is not over and may have a newer login; stop it first")));
        }
    }
    Ok(None)
}

/// The seeds that are wanted, not free, and may be made free by a check that nobody asked for; and those that are being
/// checked right now. Oldest doubt first.
pub(super) async fn candidates(
    settings: &Settings,
    want: &Want,
    under_way: impl Fn(&SeedId) -> bool,
) -> Result<Vec<SeedId>, StoreError> {
    let now = settings.clock.now();
    let mut found = Vec::new();
    for row in wanted(settings, want).await? {
        if under_way(&row.id) {
            found.push((Timestamp::MIN, row.id));
            continue;
        }
        let Some(since) = in_doubt_since(&row) else { continue };
        let over =
            now.duration_since(since) >= SignedDuration::try_from(DIRTY_GRACE).unwrap_or(SignedDuration::MAX);
        let home = match &row.lease {
            Some(lease) if !over => brought_home(settings, &lease.holder).await?,
            _ => false,
        };
        if over || home {
            found.push((since, row.id));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, id)| id).collect())
}

/// Since when it is not known whether the stored login is the newest, where a check can tell. A seed that was parked for
/// another reason waits for a person: somebody knows of a newer login, or of an agent that may still run.
fn in_doubt_since(row: &SeedRow) -> Option<Timestamp> {
    let lapsed = row.lease.as_ref().filter(|lease| !lease.live).map(|lease| lease.expires_at);
    match row.status {
        SeedStatus::Alive => lapsed,
        SeedStatus::NeedsRecovery if row.lease.as_ref().is_none_or(|lease| !lease.live) => {
            let intent = Intent::of(&row.metadata)?;
            lapsed.or(intent.at)
        }
        SeedStatus::NeedsRecovery | SeedStatus::Dead => None,
    }
}

/// True when our own records prove that the run of `holder` is over and its newest login is in the store.
async fn brought_home(settings: &Settings, holder: &Holder) -> Result<bool, StoreError> {
    let Some(session) = holder.session() else { return Ok(false) };
    Ok(ended_run(settings, &session).await?.is_some_and(|record| {
        let progress = record.progress();
        let well = |step| progress.get(&step).is_some_and(Outcome::is_settled_well);
        let same = record.run.as_ref().is_some_and(|run| run.holder == *holder);
        same && record.is_finished() && well(Step::StopAgent) && well(Step::SaveBack)
    }))
}

async fn ended_run(settings: &Settings, session: &SessionId) -> Result<Option<SessionRecord>, StoreError> {
    let Some(row) = settings.store.records.get(session).await? else { return Ok(None) };
    match SessionRecord::read(&row) {
        Ok(record) => Ok(Some(record)),
        Err(problem) => {
            warn!(%session, %problem, "record cannot be read, it proves nothing");
            Ok(None)
        }
    }
}

async fn wanted(settings: &Settings, want: &Want) -> Result<Vec<SeedRow>, StoreError> {
    let pool = match want {
        Want::Seed(id) => return Ok(settings.store.seeds.get(id).await?.into_iter().collect()),
        Want::Pool(pool) => pool,
    };
    let mut rows = Vec::new();
    let mut page = PageRequest { cursor: None, limit: PageRequest::MAX };
    for _ in 0..PAGES {
        let found = settings.store.seeds.list(Some(pool), &page).await?;
        rows.extend(found.data);
        page.cursor = found.next_cursor;
        if page.cursor.is_none() {
            break;
        }
    }
    Ok(rows)
}
