//! Seeds and leases against a model: whatever several holders do, in whatever order, however time passes, whoever dies
//! and comes back too late, and whenever the store is closed and opened again.

#![allow(clippy::unwrap_used, missing_docs)]

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use optio_store::embedded::{Embedded, Options};
use optio_store::memory::MemoryStore;
use optio_store::mongo;
use optio_store::suite::{DamageRecord, Harness, auth, credential, holder, new_seed, no_journal, pool};
use optio_store::{
    Clock, Holder, LEASE_TTL, ManualClock, Renewal, SaveOutcome, SeedId, SeedPatch, SeedStatus, SeedVersion,
    Store, StoreError, Want,
};
use proptest::prelude::*;

mod support;

/// Seeds 0 and 1 are in pool `p`, seed 2 is in `q`.
const SEEDS: usize = 3;
const RUNS: usize = 3;

/// Who does something: the run that is alive in this place, or the one that died there last and comes too late.
#[derive(Debug, Clone, Copy)]
struct By {
    place: usize,
    dead: bool,
}

#[derive(Debug, Clone)]
enum Op {
    AcquirePool {
        by: By,
    },
    Acquire {
        seed: usize,
        by: By,
    },
    Recover {
        seed: usize,
        by: By,
    },
    Renew {
        seed: usize,
        by: By,
    },
    Release {
        seed: usize,
        by: By,
    },
    /// `behind` names the version before the present one as its base.
    Save {
        seed: usize,
        by: By,
        behind: bool,
        token: u8,
    },
    Patch {
        seed: usize,
        by: Option<By>,
        status: SeedStatus,
    },
    Delete {
        seed: usize,
        force: bool,
    },
    Pass {
        seconds: u64,
    },
    /// The run in this place dies, and another one begins there; it never has the name of an earlier one (INV-10).
    Crash {
        place: usize,
    },
    /// The service ends and starts again.
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let seed = 0..SEEDS;
    let by = (0..RUNS, proptest::bool::weighted(0.2)).prop_map(|(place, dead)| By { place, dead }).boxed();
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
        2 => (0..RUNS).prop_map(|place| Op::Crash { place }),
        1 => Just(Op::Reopen),
    ]
}

/// What a seed must be.
struct Seed {
    id: SeedId,
    pool: &'static str,
    status: SeedStatus,
    lease: Option<(Holder, Timestamp)>,
    turn: usize,
    token: String,
    versions: Vec<SeedVersion>,
    deleted: bool,
}

impl Seed {
    fn held_by(&self, by: &Holder) -> bool {
        !self.deleted && self.lease.as_ref().is_some_and(|(holder, _)| holder == by)
    }

    fn live(&self, now: Timestamp) -> bool {
        self.lease.as_ref().is_some_and(|(_, expires)| *expires > now)
    }

    fn free(&self) -> bool {
        !self.deleted && self.status == SeedStatus::Alive && self.lease.is_none()
    }
}

type Opening = Pin<Box<dyn Future<Output = Store>>>;

/// A backend that can be closed and opened again.
struct Backend {
    h: Harness,
    open_again: Box<dyn Fn() -> Opening>,
}

struct World {
    h: Harness,
    open_again: Box<dyn Fn() -> Opening>,
    seeds: Vec<Seed>,
    turns: usize,
    /// How many runs there were in each place.
    runs: [usize; RUNS],
}

impl World {
    async fn new(Backend { h, open_again }: Backend) -> Self {
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
        Self { h, open_again, seeds, turns: 0, runs: [1; RUNS] }
    }

    /// Closes the store before it is opened again, as one service follows another.
    async fn reopen(&mut self) {
        let elsewhere = MemoryStore::with_clock(self.h.clock.clone()).store(no_journal());
        drop(std::mem::replace(&mut self.h.store, elsewhere));
        self.h.store = (self.open_again)().await;
    }

    fn name(&self, by: By) -> Holder {
        let run = if by.dead { self.runs[by.place].saturating_sub(1).max(1) } else { self.runs[by.place] };
        holder(&format!("place-{}#{run}", by.place))
    }

    fn take(&mut self, seed: usize, by: By) {
        self.turns += 1;
        let expires = self.h.clock.now() + LEASE_TTL;
        self.seeds[seed].lease = Some((self.name(by), expires));
        self.seeds[seed].turn = self.turns;
    }

    async fn acquire(&mut self, want: Want, expected: Option<usize>, by: By) {
        let lease = self.h.store.leases.acquire(&want, &self.name(by)).await.unwrap();
        assert_eq!(
            lease.map(|lease| lease.seed),
            expected.map(|i| self.seeds[i].id.clone()),
            "{want:?} by {by:?}"
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
            Op::Crash { place } => self.runs[place] += 1,
            Op::Reopen => {
                drop(store);
                self.reopen().await;
            }
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
                let lease =
                    store.leases.acquire_for_recovery(&self.seeds[seed].id, &self.name(by)).await.unwrap();
                assert_eq!(lease.is_some(), expected);
                if expected {
                    self.take(seed, by);
                }
            }
            Op::Renew { seed, by } => {
                let held = self.seeds[seed].held_by(&self.name(by));
                let expires_at = now + LEASE_TTL;
                let expected = if held { Renewal::Renewed { expires_at } } else { Renewal::Lost };
                assert_eq!(store.leases.renew(&self.seeds[seed].id, &self.name(by)).await.unwrap(), expected);
                if held {
                    self.seeds[seed].lease = Some((self.name(by), expires_at));
                }
            }
            Op::Release { seed, by } => {
                let held = self.seeds[seed].held_by(&self.name(by));
                assert_eq!(store.leases.release(&self.seeds[seed].id, &self.name(by)).await.unwrap(), held);
                if held {
                    self.seeds[seed].lease = None;
                }
            }
            Op::Save { seed, by, behind, token } => self.save(seed, by, behind, token).await,
            Op::Patch { seed, by, status } => {
                let by = by.map(|by| self.name(by));
                let model = &mut self.seeds[seed];
                let patch = SeedPatch { status: Some((status, None)), ..Default::default() };
                let result = store.seeds.patch(&model.id, by.as_ref(), patch).await;
                if model.deleted {
                    assert!(matches!(result, Err(StoreError::NotFound { .. })), "{result:?}");
                } else if by.as_ref().is_some_and(|by| !model.held_by(by)) {
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

    async fn save(&mut self, seed: usize, by: By, behind: bool, token: u8) {
        let by = self.name(by);
        let model = &mut self.seeds[seed];
        let current = model.versions.last().unwrap().clone();
        let base = match model.versions.iter().rev().nth(1) {
            Some(before) if behind => before.clone(),
            _ => current.clone(),
        };
        // Few different tokens, so that the present one is saved again now and then; each seed has its own.
        let token = format!("{seed}-{token}");
        let saving = self.h.store.seeds.save_credential(&model.id, &by, &base, auth(&token));
        let outcome = saving.await.unwrap();
        let expected = if model.deleted {
            SaveOutcome::Gone
        } else if !model.held_by(&by) {
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
            let expected = model.lease.clone().map(|(by, expires)| (by, expires, expires > now));
            assert_eq!(lease, expected);
            assert_eq!((row.status, row.dirty), (model.status, model.lease.is_some() && !model.live(now)));
            assert_eq!(Some(&row.version), model.versions.last());
            assert_eq!(credential(&self.h, &model.id).await, auth(&model.token));
        }
    }
}

fn run<F: Future<Output = Backend>>(make: impl FnOnce(Arc<ManualClock>) -> F, ops: Vec<Op>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(make(Arc::new(ManualClock::new())).await).await;
        for op in ops {
            world.step(op).await;
            world.compare().await;
        }
    });
}

/// The model has no records.
fn no_records() -> DamageRecord {
    Box::new(|_| Box::pin(std::future::ready(())))
}

/// It has nothing to close: the second handle is the first.
async fn memory(clock: Arc<ManualClock>) -> Backend {
    let memory = MemoryStore::with_clock(clock.clone());
    let h =
        Harness { store: memory.store(no_journal()), clock, damage_record: no_records(), keep: Box::new(()) };
    let open_again = move || -> Opening { Box::pin(std::future::ready(memory.store(no_journal()))) };
    Backend { h, open_again: Box::new(open_again) }
}

async fn embedded(clock: Arc<ManualClock>) -> Backend {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let options = Options { clock: clock.clone(), ..Options::default() };
    let open = move || Embedded::open(&path, options.clone()).unwrap().store(no_journal());
    let h = Harness { store: open(), clock, damage_record: no_records(), keep: Box::new(dir) };
    Backend { h, open_again: Box::new(move || Box::pin(std::future::ready(open()))) }
}

async fn mongodb(clock: Arc<ManualClock>, encrypt: bool) -> Backend {
    let world = Arc::new(support::World::new().await);
    let options = mongo::Options { clock: Some(clock.clone()), encrypt, ..mongo::Options::default() };
    let (opened, options_again) = (world.clone(), options.clone());
    let open_again = move || -> Opening {
        let (world, options) = (opened.clone(), options_again.clone());
        Box::pin(async move { world.open_with("store", options).await.store(no_journal()) })
    };
    let store = world.open_with("store", options).await.store(no_journal());
    let h = Harness { store, clock, damage_record: no_records(), keep: Box::new(world) };
    Backend { h, open_again: Box::new(open_again) }
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_mongodb_store_does_what_the_model_says(ops in proptest::collection::vec(op(), 1..40)) {
        run(|clock| mongodb(clock, false), ops);
    }

    #[test]
    fn the_sealed_mongodb_store_does_what_the_model_says(ops in proptest::collection::vec(op(), 1..40)) {
        run(|clock| mongodb(clock, true), ops);
    }
}
