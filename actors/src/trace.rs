//! The ordered trace of lifecycle deeds, and the one checker of what must hold over it.
//!
//! A deed is noted after it was done, by whoever did it. Unit tests, the fault matrix and the crash tests ask
//! [`violations`] the same question of whatever trace they have.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use optio_store::{RunId, SeedId, SessionId};
use serde::{Deserialize, Serialize};

use crate::teardown::{Outcome, Step};

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "deed", rename_all = "snake_case")]
pub enum Deed {
    /// The run has the lease of this seed.
    LeaseAcquired {
        /// Which seed.
        seed: SeedId,
    },
    /// The agent was started, or found running by a later process.
    AgentStarted,
    /// The conversation has a thread: from here on there is work to keep.
    WentLive,
    /// Nothing of the agent runs.
    AgentGone,
    /// The store has the newest login.
    SavedBack,
    /// The newest login is on this machine's disk.
    Spooled,
    /// The lease is free.
    LeaseReleased {
        /// Which seed.
        seed: SeedId,
    },
    /// The lease is somebody else's, or can no longer be kept.
    LeaseLost {
        /// Which seed.
        seed: SeedId,
    },
    /// The lease is kept no longer, and not released: it expires unless the run takes it up again.
    LeaseLeft {
        /// Which seed.
        seed: SeedId,
    },
    /// A snapshot is on record.
    SnapshotStored,
    /// A login made in this run is a seed.
    SeedCaptured,
    /// The task directory is gone.
    Wiped,
    /// A teardown step began.
    StepBegan {
        /// Which.
        step: Step,
    },
    /// A teardown step is over.
    StepEnded {
        /// Which.
        step: Step,
        /// How.
        outcome: Outcome,
    },
}

/// A deed with its run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    /// The session.
    pub session: SessionId,
    /// The run.
    pub run: RunId,
    /// What was done.
    #[serde(flatten)]
    pub deed: Deed,
}

/// Deeds kept in memory; a run has some thirty.
const KEPT: usize = 16 * 1024;

/// Where deeds are noted. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Trace(Arc<Mutex<VecDeque<Traced>>>);

impl Trace {
    /// Notes what was done.
    pub fn note(&self, session: &SessionId, run: &RunId, deed: Deed) {
        tracing::debug!(%session, %run, ?deed, "deed");
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Traced { session: session.clone(), run: run.clone(), deed });
    }

    /// Everything kept, oldest first.
    pub fn deeds(&self) -> Vec<Traced> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[derive(Default)]
struct RunState {
    live: bool,
    started: bool,
    gone: bool,
    lost: bool,
    saved: bool,
    spooled: bool,
    stored: bool,
    wiped: bool,
    held: Option<SeedId>,
    begun: BTreeSet<Step>,
    ended: BTreeMap<Step, Outcome>,
}

/// What must hold and does not, in words; empty is good. Names the invariants of `spec/state.md`.
pub fn violations(trace: &[Traced]) -> Vec<String> {
    let mut found = Vec::new();
    let mut runs: BTreeMap<RunId, RunState> = BTreeMap::new();
    let mut holders: BTreeMap<SeedId, RunId> = BTreeMap::new();
    for traced in trace {
        let run = &traced.run;
        let state = runs.entry(run.clone()).or_default();
        let mut broken = |rule: &str| found.push(format!("{run}: {rule} ({:?})", traced.deed));
        match &traced.deed {
            Deed::LeaseAcquired { seed } => {
                if holders.get(seed).is_some_and(|holder| holder != run) {
                    broken("INV-01: two runs hold one seed");
                }
                holders.insert(seed.clone(), run.clone());
                state.held = Some(seed.clone());
            }
            Deed::AgentStarted => {
                if state.lost {
                    broken("INV-07: an agent was started after the lease was lost");
                }
                state.started = true;
                state.gone = false;
            }
            Deed::WentLive => state.live = true,
            Deed::AgentGone => state.gone = true,
            Deed::SavedBack => {
                if state.lost {
                    broken("INV-07: the seed was written after the lease was lost");
                }
                let held = state.held.as_ref();
                if held.and_then(|seed| holders.get(seed)).is_some_and(|holder| holder != run) {
                    broken("INV-01: a seed was written that another run holds");
                }
                state.saved = true;
            }
            Deed::Spooled => state.spooled = true,
            Deed::LeaseReleased { seed } => {
                if state.started && !state.gone {
                    broken("INV-02: the lease was released before the agent was proven gone");
                }
                if !state.ended.get(&Step::SaveBack).is_some_and(Outcome::is_settled_well) {
                    broken("INV-17: the lease was released without a save-back that ended well");
                }
                if state.held.as_ref().is_some_and(|held| held != seed) {
                    broken("INV-04: another seed's lease was released");
                }
                if holders.get(seed) == Some(run) {
                    holders.remove(seed);
                }
                state.held = None;
            }
            // Another run may have it, from its expiry on; this one may still write what nobody else has touched.
            Deed::LeaseLeft { seed } => {
                if holders.get(seed) == Some(run) {
                    holders.remove(seed);
                }
            }
            Deed::LeaseLost { seed } => {
                state.lost = true;
                if holders.get(seed) == Some(run) {
                    holders.remove(seed);
                }
            }
            Deed::SnapshotStored => state.stored = true,
            Deed::SeedCaptured => {
                if state.held.is_some() || state.saved {
                    broken("INV-36: a seeded run captured a seed");
                }
            }
            Deed::Wiped => {
                if state.started && !state.gone {
                    broken("the workdir was wiped under a living agent");
                }
                if state.live && !state.stored && !skipped(state, Step::CaptureSnapshot) {
                    broken("INV-45: the workdir was wiped without a snapshot on record");
                }
                state.wiped = true;
            }
            Deed::StepBegan { step } => {
                if let Some(before) = Step::ALL.iter().find(|s| **s < *step && !state.ended.contains_key(s)) {
                    broken(&format!("{step} began before {before} had ended"));
                }
                state.begun.insert(*step);
            }
            Deed::StepEnded { step, outcome } => {
                if !state.begun.contains(step) {
                    broken(&format!("{step} ended without a beginning"));
                }
                state.ended.insert(*step, outcome.clone());
            }
        }
    }
    found
}

fn skipped(state: &RunState, step: Step) -> bool {
    matches!(state.ended.get(&step), Some(Outcome::Skipped { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(deeds: impl IntoIterator<Item = Deed>) -> Vec<Traced> {
        let (session, run) = (SessionId::mint(), RunId::mint());
        deeds.into_iter().map(|deed| Traced { session: session.clone(), run: run.clone(), deed }).collect()
    }

    fn ended(step: Step) -> [Deed; 2] {
        let outcome = Outcome::Done { detail: String::new() };
        [Deed::StepBegan { step }, Deed::StepEnded { step, outcome }]
    }

    #[test]
    fn a_whole_teardown_in_order_is_in_order() {
        let seed = SeedId::mint();
        let mut deeds = vec![Deed::LeaseAcquired { seed: seed.clone() }, Deed::AgentStarted, Deed::WentLive];
        for step in Step::ALL {
            if step == Step::StopAgent {
                deeds.push(Deed::AgentGone);
            }
            if step == Step::Wipe {
                deeds.extend([Deed::SnapshotStored, Deed::Wiped]);
            }
            deeds.extend(ended(step));
            if step == Step::SaveBack {
                deeds.push(Deed::LeaseReleased { seed: seed.clone() });
            }
        }
        // The wipe is noted between its step's neighbours above, which the checker does not mind.
        assert_eq!(violations(&trace(deeds)), Vec::<String>::new());
    }

    #[test]
    fn a_release_before_the_save_back_is_found() {
        let seed = SeedId::mint();
        let deeds = [Deed::LeaseAcquired { seed: seed.clone() }, Deed::LeaseReleased { seed }];
        assert!(violations(&trace(deeds))[0].contains("INV-17"));
    }

    #[test]
    fn a_wipe_of_unsaved_work_is_found() {
        let deeds = [Deed::AgentStarted, Deed::WentLive, Deed::AgentGone, Deed::Wiped];
        assert!(violations(&trace(deeds))[0].contains("INV-45"));
    }

    #[test]
    fn a_step_out_of_order_is_found() {
        let found = violations(&trace(ended(Step::SaveBack)));
        assert!(found[0].contains("save_back began before close had ended"), "{found:?}");
    }

    #[test]
    fn two_holders_of_one_seed_are_found() {
        let seed = SeedId::mint();
        let mut both = trace([Deed::LeaseAcquired { seed: seed.clone() }]);
        both.extend(trace([Deed::LeaseAcquired { seed }]));
        assert!(violations(&both)[0].contains("INV-01"));
    }
}
