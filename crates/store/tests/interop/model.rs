//! Both implementations on the same seeds, in any order, against a model of what the specification says (INV-57).

mod op;

use std::collections::BTreeMap;

use mongodb::bson::{Bson, doc};
use optio_store::{
    Renewal, SaveOutcome, SeedFiles, SeedId, SeedPatch, SeedStatus, SeedVersion, StoreError, Want,
};
use optio_testkit::python_peer::installed;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::world::{World, login, new_seed};
use op::{By, Op, POOLS, SEEDS};

/// Cases for each release: each takes a second or less.
const CASES: u32 = 8;
const LONGEST: usize = 50;

struct Lease {
    by: By,
    live: bool,
}

/// What a seed must be.
struct Seed {
    id: SeedId,
    pool: usize,
    dead: bool,
    lease: Option<Lease>,
    token: String,
    notes: BTreeMap<String, i64>,
    /// How often the content was replaced, and at which count each of us looked last.
    saves: usize,
    seen: [(usize, SeedVersion); 2],
}

impl Seed {
    fn held_by(&self, by: By) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.by == by)
    }

    fn live(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.live)
    }
}

struct Story<'a> {
    w: &'a mut World,
    seeds: Vec<Seed>,
}

impl<'a> Story<'a> {
    async fn new(w: &'a mut World) -> Self {
        w.seeds().delete_many(doc! {}).await.unwrap();
        let mut seeds = Vec::new();
        for i in 0..SEEDS {
            let (pool, token) = (i % POOLS.len(), format!("{i}-first"));
            let bytes = login(&format!("acct-{i}"), &token);
            let id = if i < POOLS.len() {
                let id = w.captured(&bytes).await;
                w.python("assign", json!({ "seed": id, "pool": POOLS[pool] })).await;
                id
            } else {
                let mut new = new_seed(&bytes);
                new.pool = Some(POOLS[pool].into());
                w.store.seeds.import(new).await.unwrap().id
            };
            let seen = (0, w.row(&id).await.version);
            let notes = BTreeMap::new();
            let seen = [seen.clone(), seen];
            seeds.push(Seed { id, pool, dead: false, lease: None, token, notes, saves: 0, seen });
        }
        Self { w, seeds }
    }

    /// Whether this side's pool acquire may take this seed: Python takes an expired lease, for us it is dirty.
    fn takes(&self, seed: &Seed, by: By, pool: usize) -> bool {
        let free = match by {
            By::Python(_) => !seed.live(),
            By::Us(_) => seed.lease.is_none(),
        };
        seed.pool == pool && !seed.dead && free
    }

    async fn acquire(&mut self, by: By, pool: usize) {
        // Least recently leased first (T-083); those never leased, and those leased in one millisecond, in any order.
        let mut turns = Vec::new();
        for (i, seed) in self.seeds.iter().enumerate() {
            if self.takes(seed, by, pool) {
                let document = self.w.document(&seed.id).await;
                turns.push((document.get_datetime("lastLeasedAt").ok().map(|at| at.timestamp_millis()), i));
            }
        }
        let first = turns.iter().map(|(at, _)| *at).min();
        let may: Vec<_> = turns.iter().filter(|(at, _)| Some(*at) == first).map(|(_, i)| *i).collect();

        let taken = match by {
            By::Python(_) => {
                let arguments = json!({ "pool": POOLS[pool], "holder": by.holder() });
                let taken = self.w.python("acquire", arguments).await;
                taken.as_str().map(|id| id.parse::<SeedId>().unwrap())
            }
            By::Us(_) => {
                let want = Want::Pool(POOLS[pool].into());
                self.w.store.leases.acquire(&want, &by.holder()).await.unwrap().map(|lease| lease.seed)
            }
        };
        let taken = taken.map(|id| self.seeds.iter().position(|seed| seed.id == id).unwrap());
        match taken {
            None => assert!(may.is_empty(), "{by:?} got nothing of {}, but could {may:?}", POOLS[pool]),
            Some(i) => {
                assert!(may.contains(&i), "{by:?} got {i} of {}, but could {may:?}", POOLS[pool]);
                self.seeds[i].lease = Some(Lease { by, live: true });
            }
        }
    }

    async fn step(&mut self, op: Op) {
        let store = self.w.store.clone();
        match op {
            Op::Acquire { by, pool } => self.acquire(by, pool).await,
            Op::AcquireOne { by, seed } => {
                let (by, model) = (By::Us(by), &mut self.seeds[seed]);
                let expected = !model.dead && model.lease.is_none();
                let taken = store.leases.acquire(&Want::Seed(model.id.clone()), &by.holder()).await.unwrap();
                assert_eq!(taken.is_some(), expected);
                if expected {
                    model.lease = Some(Lease { by, live: true });
                }
            }
            Op::Recover { by, seed } => {
                let (by, model) = (By::Us(by), &mut self.seeds[seed]);
                let taken = store.leases.acquire_for_recovery(&model.id, &by.holder()).await.unwrap();
                assert_eq!(taken.is_some(), !model.live());
                if taken.is_some() {
                    model.lease = Some(Lease { by, live: true });
                }
            }
            Op::Renew { by, seed } => {
                let model = &mut self.seeds[seed];
                let renewed = match by {
                    By::Python(_) => {
                        let arguments = json!({ "seed": model.id, "holder": by.holder() });
                        self.w.python.ask("renew", arguments).await == true
                    }
                    By::Us(_) => {
                        let renewal = store.leases.renew(&model.id, &by.holder()).await.unwrap();
                        matches!(renewal, Renewal::Renewed { .. })
                    }
                };
                assert_eq!(renewed, model.held_by(by));
                if renewed {
                    model.lease = Some(Lease { by, live: true });
                }
            }
            Op::Release { by, seed } => {
                let model = &mut self.seeds[seed];
                match by {
                    By::Python(_) => {
                        let arguments = json!({ "seed": model.id, "holder": by.holder() });
                        self.w.python.ask("release", arguments).await;
                    }
                    By::Us(_) => {
                        let released = store.leases.release(&model.id, &by.holder()).await.unwrap();
                        assert_eq!(released, model.held_by(by));
                    }
                }
                if model.held_by(by) {
                    model.lease = None;
                }
            }
            Op::Look { by, seed } => {
                let (_, version) = store.seeds.load(&self.seeds[seed].id).await.unwrap();
                let model = &mut self.seeds[seed];
                model.seen[usize::from(by)] = (model.saves, version);
            }
            Op::Save { by, seed, token } => self.save(by, seed, format!("{seed}-{token}")).await,
            Op::Judge { by, seed, status } => self.judge(by, seed, status).await,
            Op::Assign { by, seed, pool } => {
                let model = &mut self.seeds[seed];
                match by {
                    By::Python(_) => {
                        let arguments = json!({ "seed": model.id, "pool": POOLS[pool] });
                        self.w.python.ask("assign", arguments).await;
                    }
                    By::Us(_) => {
                        let patch = SeedPatch { pool: Some(Some(POOLS[pool].into())), ..Default::default() };
                        store.seeds.patch(&model.id, None, patch).await.unwrap();
                    }
                }
                model.pool = pool;
            }
            Op::Note { by, seed, key, value } => {
                let (model, key) = (&mut self.seeds[seed], format!("key{key}"));
                match by {
                    By::Python(_) => {
                        let arguments = json!({ "seed": model.id, "metadata": { &key: value } });
                        self.w.python.ask("declare", arguments).await;
                    }
                    By::Us(_) => {
                        let metadata = [(key.clone(), json!(value))].into_iter().collect();
                        let patch = SeedPatch { metadata, ..Default::default() };
                        store.seeds.patch(&model.id, None, patch).await.unwrap();
                    }
                }
                model.notes.insert(key, value);
            }
            Op::Expire { seed } => {
                if let Some(lease) = &mut self.seeds[seed].lease {
                    lease.live = false;
                    self.w.expire(&self.seeds[seed].id).await;
                }
            }
            Op::Reap => {
                let expired = self.seeds.iter().filter(|seed| seed.lease.is_some() && !seed.live()).count();
                assert_eq!(self.w.python("reap", json!({})).await, expired);
                self.seeds.iter_mut().filter(|seed| !seed.live()).for_each(|seed| seed.lease = None);
            }
        }
    }

    async fn save(&mut self, by: By, seed: usize, token: String) {
        let model = &mut self.seeds[seed];
        let bytes = login(&format!("acct-{seed}"), &token);
        let i = match by {
            By::Python(_) => {
                let content = std::str::from_utf8(&bytes).unwrap();
                let write = json!({ "seed": model.id, "member": SeedFiles::AUTH, "content": content });
                self.w.python.ask("overwrite", write).await;
                (model.token, model.saves) = (token, model.saves + 1);
                return;
            }
            By::Us(i) => usize::from(i),
        };
        let (seen, base) = model.seen[i].clone();
        let current = self.w.store.seeds.get(&model.id).await.unwrap().unwrap().version;
        let save = self.w.store.seeds.save_credential(&model.id, &by.holder(), &base, bytes.into()).await;
        let outcome = save.unwrap();
        if !model.held_by(by) {
            assert_eq!(outcome, SaveOutcome::NotHolder);
        } else if token == model.token {
            assert_eq!(outcome, SaveOutcome::Saved(current));
        } else if seen != model.saves {
            assert_eq!(outcome, SaveOutcome::Superseded { current });
        } else {
            let SaveOutcome::Saved(version) = outcome else { panic!("{outcome:?}") };
            assert_ne!(version, current);
            (model.token, model.saves) = (token, model.saves + 1);
            model.seen[i] = (model.saves, version);
        }
    }

    async fn judge(&mut self, by: By, seed: usize, status: SeedStatus) {
        let model = &mut self.seeds[seed];
        let dead = status != SeedStatus::Alive;
        match by {
            By::Python(_) => {
                let word = if dead { "dead" } else { "alive" };
                self.w.python.ask("mark", json!({ "seed": model.id, "status": word })).await;
            }
            // One of us as the holder, the other as an operator.
            By::Us(i) => {
                let holder = (i == 0).then(|| by.holder());
                let patch = SeedPatch { status: Some((status, None)), ..Default::default() };
                let patched = self.w.store.seeds.patch(&model.id, holder.as_ref(), patch).await;
                if holder.is_some() && !model.held_by(by) {
                    assert!(matches!(patched, Err(StoreError::Conflict { .. })), "{patched:?}");
                    return;
                }
                assert_eq!(patched.unwrap().status, status);
                if holder.is_none() && !dead && !model.live() {
                    model.lease = None;
                }
            }
        }
        model.dead = dead;
    }

    /// Compares everything that either can see without reading a login.
    async fn compare(&mut self) {
        for i in 0..SEEDS {
            let model = &self.seeds[i];
            let row = self.w.row(&model.id).await;
            let seen = row.lease.as_ref().map(|lease| (lease.holder.clone(), lease.live));
            let expected = model.lease.as_ref().map(|lease| (lease.by.holder(), lease.live));
            assert_eq!(seen, expected, "seed {i}");
            assert_eq!(row.dirty, model.lease.is_some() && !model.live(), "seed {i}");
            assert_eq!(
                (row.pool.as_deref(), row.status != SeedStatus::Alive),
                (Some(POOLS[model.pool]), model.dead)
            );
            assert_eq!(json!(row.metadata), json!(model.notes), "seed {i}");
        }
        for (i, pool) in POOLS.into_iter().enumerate() {
            let rows = self.w.python("list_pool", json!({ "pool": pool })).await;
            let mut seen: Vec<_> = rows.as_array().unwrap().iter().map(pythons_view).collect();
            let members = self.seeds.iter().filter(|seed| seed.pool == i);
            let mut expected: Vec<_> = members
                .map(|seed| (seed.id.to_string(), seed.dead, seed.live(), json!(seed.notes)))
                .collect();
            seen.sort_by(|a, b| a.0.cmp(&b.0));
            expected.sort_by(|a, b| a.0.cmp(&b.0));
            assert_eq!(seen, expected, "Python's view of {pool}");
        }
    }

    /// Compares what both plant in the end.
    async fn plant(&mut self) {
        for i in 0..SEEDS {
            let id = self.seeds[i].id.clone();
            let document = self.w.document(&id).await;
            assert_eq!(document.get("manifestVersion"), Some(&Bson::Int32(1)));
            let expected = login(&format!("acct-{i}"), &self.seeds[i].token);
            assert_eq!(self.w.our_login(&id).await, expected, "seed {i}");
            assert_eq!(self.w.pythons_login(&id).await, expected, "seed {i}");
        }
    }
}

/// A row of Python's listing: id, dead, leased and the consumers' notes, which are numbers here.
fn pythons_view(row: &Value) -> (String, bool, bool, Value) {
    let notes = row["metadata"].as_object().into_iter().flatten().filter_map(|(key, value)| {
        let number = value.as_object()?.values().next()?.as_str()?.parse::<i64>().ok()?;
        key.starts_with("key").then(|| (key.clone(), json!(number)))
    });
    let id = row["seedId"].as_str().unwrap().to_owned();
    (id, row["status"] == "dead", row["leased"] == true, notes.collect())
}

#[test]
fn any_interleaving_of_both_is_what_the_model_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for release in installed() {
        let world = Mutex::new(runtime.block_on(World::new(release)));
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let ops = proptest::collection::vec(op::any(), 1..LONGEST);
        let told = TestRunner::new(config).run(&ops, |ops| {
            runtime.block_on(async {
                let mut world = world.lock().await;
                let mut story = Story::new(&mut world).await;
                for op in ops {
                    story.step(op).await;
                    story.compare().await;
                }
                story.plant().await;
            });
            Ok(())
        });
        told.unwrap_or_else(|failure| panic!("with Python's optio-codex {release}: {failure}"));
    }
}
