//! The homes of probes: a few, with names that the next start knows, each for one probe at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use optio_host::HostError;
use optio_store::SeedId;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::left::Left;
use super::{NOTE, Note};
use crate::settings::Settings;
use crate::throw_away::{PROBE, ThrowAway};

/// Probes at once, with those whose home had to be kept. Also the number of homes that are looked through at the next start;
/// a later version must not have fewer.
pub const PROBES: usize = 8;

/// The homes of a service's probes, shared by all who may ask codex: a check outlives the verifier that began it. Clones are
/// the same.
#[derive(Clone, Default)]
pub struct Probes(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    looked: OnceCell<()>,
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    /// Somebody is at work there.
    busy: BTreeSet<usize>,
    /// Somebody's login may lie there; nobody knows whose where there is no seed.
    kept: BTreeMap<usize, Option<SeedId>>,
}

impl Probes {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can panic half way.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a home in which nothing lies, if there is one.
    pub(super) fn take(&self, settings: &Settings) -> Result<Option<Taken>, HostError> {
        let mut state = self.lock();
        let free = |slot: &usize| !state.busy.contains(slot) && !state.kept.contains_key(slot);
        let Some(slot) = (0..PROBES).find(free) else { return Ok(None) };
        let home = home(settings, slot)?;
        state.busy.insert(slot);
        drop(state);
        Ok(Some(Taken { home, slot, probes: self.clone() }))
    }

    /// The home in which an earlier probe may have left the newest login of this seed.
    pub(in crate::verifier) async fn left_of(
        &self,
        settings: &Settings,
        seed: &SeedId,
    ) -> Result<Option<Left>, String> {
        let told =
            |problem: HostError| format!("the homes of earlier checks cannot be looked through: {problem}");
        self.look(settings).await.map_err(told)?;
        let place = {
            let mut state = self.lock();
            let mut kept = state.kept.iter();
            let Some(slot) = kept.find(|(_, of)| of.as_ref() == Some(seed)).map(|(slot, _)| *slot) else {
                return Ok(None);
            };
            let home = home(settings, slot).map_err(told)?;
            if !state.busy.insert(slot) {
                return Err("an earlier check of it is not over".to_owned());
            }
            Taken { home, slot, probes: self.clone() }
        };
        match place.home.note::<Note>(NOTE).await.map_err(told)? {
            Some(Ok(note)) => Ok(Some(Left::new(place, note))),
            Some(Err(problem)) => Err(format!("what an earlier check left cannot be told: {problem}")),
            // Somebody has removed it by hand.
            None => {
                place.is_empty();
                Ok(None)
            }
        }
    }

    /// The seeds whose newest logins may lie in homes of an earlier process.
    pub(in crate::verifier) async fn left(&self, settings: &Settings) -> Result<Vec<SeedId>, HostError> {
        self.look(settings).await?;
        Ok(self.lock().kept.values().flatten().cloned().collect())
    }

    /// Looks through every home once, before the first of them is used.
    async fn look(&self, settings: &Settings) -> Result<(), HostError> {
        if settings.hosts.is_empty() {
            return Ok(());
        }
        let looking = async || {
            let mut found = BTreeMap::new();
            for slot in 0..PROBES {
                let home = home(settings, slot)?;
                match home.note::<Note>(NOTE).await? {
                    // Nothing was ever started there, or all of it was wiped.
                    None => {}
                    Some(Ok(note)) => drop(found.insert(slot, Some(note.seed))),
                    Some(Err(problem)) => {
                        error!(at = home.place(), %problem, "note of a probe cannot be read, its home is left alone");
                        found.insert(slot, None);
                    }
                }
            }
            self.lock().kept.extend(found);
            Ok(())
        };
        self.0.looked.get_or_try_init(looking).await.copied()
    }

    /// Ends every probe under way; the service is leaving.
    pub(in crate::verifier) fn stop(&self) {
        self.0.stop.cancel();
    }

    pub(super) fn stopped(&self) -> &CancellationToken {
        &self.0.stop
    }
}

fn home(settings: &Settings, slot: usize) -> Result<ThrowAway, HostError> {
    ThrowAway::at(settings, PROBE, slot)
}

/// A home that is somebody's until this is dropped.
pub(super) struct Taken {
    pub(super) home: ThrowAway,
    slot: usize,
    probes: Probes,
}

impl Taken {
    /// Keeps what lies there for this seed's next check.
    pub(super) fn keep(&self, seed: &SeedId) {
        self.probes.lock().kept.insert(self.slot, Some(seed.clone()));
    }

    /// Nothing lies there any more.
    pub(super) fn is_empty(&self) {
        self.probes.lock().kept.remove(&self.slot);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.probes.lock().busy.remove(&self.slot);
    }
}
