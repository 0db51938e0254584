//! Seeds and leases against a model: whatever several holders do, in whatever order, and however time passes.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use optio_store::embedded::{Embedded, Options};
use optio_store::memory::MemoryStore;
use optio_store::suite::{Harness, auth, credential, holder, new_seed, no_journal, pool};
use optio_store::{
    Clock, Holder, LEASE_TTL, ManualClock, Renewal, SaveOutcome, SeedId, SeedPatch, SeedStatus, SeedVersion,
    StoreError, Want,
};
use proptest::prelude::*;

/// Seeds 0 and 1 are in pool `p`, seed 2 is in `q`.
const SEEDS: usize = 3;
const HOLDERS: usize = 3;

#[derive(Debug, Clone)]
enum Op {
    AcquirePool {
        by: usize,
    },
    Acquire {
        seed: usize,
        by: usize,
    },
    Recover {
        seed: usize,
        by: usize,
    },
    Renew {
        seed: usize,
        by: usize,
    },
    Release {
        seed: usize,
        by: usize,
    },
    /// `behind` names the version before the present one as its base.
    Save {
        seed: usize,
        by: usize,
        behind: bool,
        token: u8,
    },
    Patch {
        seed: usize,
        by: Option<usize>,
        status: SeedStatus,
    },
    Delete {
        seed: usize,
        force: bool,
    },
    Pass {
        seconds: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let (seed, by) = (0..SEEDS, 0..HOLDERS);
    let pair = (seed.clone(), by.clone());
    let status =
        prop_oneof![Just(SeedStatus::Alive), Just(SeedStatus::Dead), Just(SeedStatus::NeedsRecovery)];
    prop_oneof![
        4 => by.clone().prop_map(|by| Op::AcquirePool { by }),
        3 => pair.clone().prop_map(|(seed, by)| Op::Acquire { seed, by }),
        3 => pair.clone().prop_map(|(seed, by)| Op::Recover { seed, by }),
        4 => pair.clone().prop_map(|(seed, by)| Op::Renew { seed, by }),
        3 => pair.clone().prop_map(|(seed, by)| Op::Release { seed, by }),
        6 => (pair, any::<bool>(), 0..4_u8)
            .prop_map(|((seed, by), behind, token)| Op::Save { seed, by, behind, token }),
        2 => (seed.clone(), proptest::option::of(by), status)
            .prop_map(|(seed, by, status)| Op::Patch { seed, by, status }),
        1 => (seed, any::<bool>()).prop_map(|(seed, force)| Op::Delete { seed, force }),
        4 => prop_oneof![Just(1), Just(59), Just(60), Just(61)].prop_map(|seconds| Op::Pass { seconds }),
    ]
}

/// What a seed must be.
struct Seed {
    id: SeedId,
    pool: &'static str,
    status: SeedStatus,
    lease: Option<(usize, Timestamp)>,
    turn: usize,
    token: String,
    versions: Vec<SeedVersion>,
    deleted: bool,
}

impl Seed {
    fn held_by(&self, by: usize) -> bool {
        !self.deleted && self.lease.is_some_and(|(holder, _)| holder == by)
    }

    fn live(&self, now: Timestamp) -> bool {
        self.lease.is_some_and(|(_, expires)| expires > now)
    }

    fn free(&self) -> bool {
        !self.deleted && self.status == SeedStatus::Alive && self.lease.is_none()
    }
}

struct World {
    h: Harness,
    seeds: Vec<Seed>,
    turns: usize,
}

fn name(by: usize) -> Holder {
    holder(&format!("h{by}"))
}

impl World {
    async fn new(h: Harness) -> Self {
        let mut seeds = Vec::new();
        for (i, pool) in ["p", "p", "q"].into_iter().enumerate() {
            let token = format!("first-{i}");
            let row = h.store.seeds.import(new_seed(&token, Some(pool))).await.unwrap();
            h.clock.advance(Duration::from_millis(1));
            seeds.push(Seed {
                id: row.id,
                pool,
                status: SeedStatus::Alive,
                lease: None,
                turn: 0,
                token,
                versions: vec![row.version],
                deleted: false,
            });
        }
        Self { h, seeds, turns: 0 }
    }

    fn take(&mut self, seed: usize, by: usize) {
        self.turns += 1;
        let expires = self.h.clock.now() + LEASE_TTL;
        self.seeds[seed].lease = Some((by, expires));
        self.seeds[seed].turn = self.turns;
    }

    async fn acquire(&mut self, want: Want, expected: Option<usize>, by: usize) {
        let lease = self.h.store.leases.acquire(&want, &name(by)).await.unwrap();
        assert_eq!(
            lease.map(|lease| lease.seed),
            expected.map(|i| self.seeds[i].id.clone()),
            "{want:?} by {by}"
        );
        if let Some(seed) = expected {
            self.take(seed, by);
        }
    }

    async fn step(&mut self, op: Op) {
        // Two leases within one millisecond have no order (T-083).
        self.h.clock.advance(Duration::from_millis(1));
        let store = self.h.store.clone();
        let now = self.h.clock.now();
        match op {
            Op::Pass { seconds } => self.h.clock.advance(Duration::from_secs(seconds)),
            Op::AcquirePool { by } => {
                let free = (0..SEEDS).filter(|i| self.seeds[*i].pool == "p" && self.seeds[*i].free());
                let next = free.min_by_key(|i| (self.seeds[*i].turn, *i));
                self.acquire(pool("p"), next, by).await;
            }
            Op::Acquire { seed, by } => {
                let expected = self.seeds[seed].free().then_some(seed);
                self.acquire(Want::Seed(self.seeds[seed].id.clone()), expected, by).await;
            }
            Op::Recover { seed, by } => {
                let expected = !self.seeds[seed].deleted && !self.seeds[seed].live(now);
                let lease = store.leases.acquire_for_recovery(&self.seeds[seed].id, &name(by)).await.unwrap();
                assert_eq!(lease.is_some(), expected);
                if expected {
                    self.take(seed, by);
                }
            }
            Op::Renew { seed, by } => {
                let held = self.seeds[seed].held_by(by);
                let expires_at = now + LEASE_TTL;
                let expected = if held { Renewal::Renewed { expires_at } } else { Renewal::Lost };
                assert_eq!(store.leases.renew(&self.seeds[seed].id, &name(by)).await.unwrap(), expected);
                if held {
                    self.seeds[seed].lease = Some((by, expires_at));
                }
            }
            Op::Release { seed, by } => {
                let held = self.seeds[seed].held_by(by);
                assert_eq!(store.leases.release(&self.seeds[seed].id, &name(by)).await.unwrap(), held);
                if held {
                    self.seeds[seed].lease = None;
                }
            }
            Op::Save { seed, by, behind, token } => self.save(seed, by, behind, token).await,
            Op::Patch { seed, by, status } => {
                let model = &mut self.seeds[seed];
                let patch = SeedPatch { status: Some((status, None)), ..Default::default() };
                let result = store.seeds.patch(&model.id, by.map(name).as_ref(), patch).await;
                if model.deleted {
                    assert!(matches!(result, Err(StoreError::NotFound { .. })), "{result:?}");
                } else if by.is_some_and(|by| !model.held_by(by)) {
                    assert!(matches!(result, Err(StoreError::Conflict { .. })), "{result:?}");
                } else {
                    assert_eq!(result.unwrap().status, status);
                    model.status = status;
                    if by.is_none() && status == SeedStatus::Alive && !model.live(now) {
                        model.lease = None;
                    }
                }
            }
            Op::Delete { seed, force } => {
                let model = &mut self.seeds[seed];
                let result = store.seeds.delete(&model.id, force).await;
                if model.deleted {
                    assert!(matches!(result, Err(StoreError::NotFound { .. })), "{result:?}");
                } else if model.live(now) && !force {
                    assert!(matches!(result, Err(StoreError::Conflict { .. })), "{result:?}");
                } else {
                    result.unwrap();
                    (model.deleted, model.lease) = (true, None);
                }
            }
        }
    }

    async fn save(&mut self, seed: usize, by: usize, behind: bool, token: u8) {
        let model = &mut self.seeds[seed];
        let current = model.versions.last().unwrap().clone();
        let base = match model.versions.iter().rev().nth(1) {
            Some(before) if behind => before.clone(),
            _ => current.clone(),
        };
        // Few different tokens, so that the present one is saved again now and then; each seed has its own.
        let token = format!("{seed}-{token}");
        let by_name = name(by);
        let saving = self.h.store.seeds.save_credential(&model.id, &by_name, &base, auth(&token));
        let outcome = saving.await.unwrap();
        let expected = if model.deleted {
            SaveOutcome::Gone
        } else if !model.held_by(by) {
            SaveOutcome::NotHolder
        } else if token == model.token {
            SaveOutcome::Saved(current)
        } else if base != current {
            SaveOutcome::Superseded { current }
        } else {
            let SaveOutcome::Saved(version) = &outcome else { panic!("{outcome:?}") };
            assert!(!model.versions.contains(version), "a version is never used twice");
            model.versions.push(version.clone());
            model.token = token;
            return;
        };
        assert_eq!(outcome, expected);
    }

    /// Compares everything that can be seen.
    async fn compare(&self) {
        let now = self.h.clock.now();
        for model in &self.seeds {
            let row = self.h.store.seeds.get(&model.id).await.unwrap();
            assert_eq!(row.is_none(), model.deleted);
            let Some(row) = row else { continue };
            let lease = row.lease.map(|lease| (lease.holder, lease.expires_at, lease.live));
            let expected = model.lease.map(|(by, expires)| (name(by), expires, expires > now));
            assert_eq!(lease, expected);
            assert_eq!((row.status, row.dirty), (model.status, model.lease.is_some() && !model.live(now)));
            assert_eq!(Some(&row.version), model.versions.last());
            assert_eq!(credential(&self.h, &model.id).await, auth(&model.token));
        }
    }
}

fn run(make: impl FnOnce(Arc<ManualClock>) -> Harness, ops: Vec<Op>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(make(Arc::new(ManualClock::new()))).await;
        for op in ops {
            world.step(op).await;
            world.compare().await;
        }
    });
}

fn memory(clock: Arc<ManualClock>) -> Harness {
    let store = MemoryStore::with_clock(clock.clone()).store(no_journal());
    Harness { store, clock, keep: Box::new(()) }
}

fn embedded(clock: Arc<ManualClock>) -> Harness {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { clock: clock.clone(), ..Options::default() };
    let store = Embedded::open(dir.path(), options).unwrap().store(no_journal());
    Harness { store, clock, keep: Box::new(dir) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_store_does_what_the_model_says(ops in proptest::collection::vec(op(), 1..60)) {
        run(memory, ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_embedded_store_does_what_the_model_says(ops in proptest::collection::vec(op(), 1..40)) {
        run(embedded, ops);
    }
}
