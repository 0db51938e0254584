//! The background refresher: walks all seeds at a slow pace, and has those checked that lie idle in a pool and are due.

use std::collections::VecDeque;
use std::time::Duration;

use optio_codex_protocol::auth::{self, Credential};
use optio_store::{PageRequest, SeedFiles, SeedId, SeedRow, SeedStatus};
use tracing::warn;
use uuid::Uuid;

use crate::settings::Settings;

/// The pace: one seed is looked at, and perhaps refreshed, in this time. A thousand seeds take an hour and a half, a
/// login is due after eight days.
const STEP: Duration = Duration::from_secs(5);

/// The rest between two walks.
const REST: Duration = Duration::from_secs(3600);

/// Seeds read in one go.
const PAGE: usize = 50;

/// Where the walk is.
#[derive(Debug, Default)]
pub(super) struct Walk {
    waiting: VecDeque<SeedId>,
    cursor: Option<String>,
    /// The last page was read.
    last: bool,
}

/// What a step found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stepped {
    /// A seed to be checked.
    Due(SeedId),
    /// Nothing at this step.
    Nothing,
    /// The walk is over.
    Round,
}

impl Walk {
    /// How long to wait after a step. Services that were started together do not stay together: up to half as much is
    /// added by chance.
    pub(super) fn pause(after: &Stepped) -> Duration {
        let pause = if *after == Stepped::Round { REST } else { STEP };
        let chance = Uuid::new_v4().as_u128() % 1_000;
        pause + pause / 2 * u32::try_from(chance).unwrap_or(0) / 1_000
    }

    /// Looks at the next seed. Reads only: nobody is kept from a seed that turns out to be fresh.
    pub(super) async fn step(mut self, settings: &Settings) -> (Self, Stepped) {
        if let Some(seed) = self.waiting.pop_front() {
            let found = if is_due(settings, &seed).await { Stepped::Due(seed) } else { Stepped::Nothing };
            return (self, found);
        }
        if self.last {
            return (Self::default(), Stepped::Round);
        }
        let page = PageRequest { cursor: self.cursor.take(), limit: PAGE };
        match settings.store.seeds.list(None, &page).await {
            Ok(found) => {
                self.last = found.next_cursor.is_none();
                self.cursor = found.next_cursor;
                self.waiting.extend(found.data.into_iter().filter(is_idle).map(|row| row.id));
                (self, Stepped::Nothing)
            }
            Err(problem) => {
                warn!(%problem, "seeds cannot be listed, the walk begins anew later");
                (Self::default(), Stepped::Round)
            }
        }
    }
}

/// In a pool, alive, and nobody's: never a leased, dead, dirty or parked one.
fn is_idle(row: &SeedRow) -> bool {
    row.pool.is_some() && row.status == SeedStatus::Alive && row.lease.is_none()
}

async fn is_due(settings: &Settings, seed: &SeedId) -> bool {
    match settings.store.seeds.load(seed).await {
        Ok((files, _)) => {
            let login = files.0.get(SeedFiles::AUTH).map(|auth_json| auth::read(auth_json));
            matches!(login, Some(Credential::ChatGpt(tokens)) if tokens.is_due(settings.clock.now()))
        }
        Err(problem) => {
            warn!(%seed, %problem, "seed cannot be looked at");
            false
        }
    }
}
