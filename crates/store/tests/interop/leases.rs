//! Whoever holds a seed, the other sees it and keeps off.

use std::collections::{BTreeSet, HashSet};

use mongodb::bson::{Bson, Document};
use optio_store::{Holder, Renewal, SaveOutcome, SeedId, SeedPatch, StoreError};
use serde_json::{Value, json};

use crate::world::{POOL, World, keys, log_in, login, with_one};

fn ours() -> Holder {
    Holder::mint_for("ours")
}

async fn we_renew(w: &World, seed: &SeedId, holder: &Holder) -> bool {
    matches!(w.store.leases.renew(seed, holder).await.unwrap(), Renewal::Renewed { .. })
}

async fn python_calls_it_leased(w: &mut World, seed: &SeedId) -> bool {
    w.pythons_row(seed).await.unwrap()["leased"].as_bool().unwrap()
}

#[tokio::test]
async fn python_keeps_off_what_we_hold() {
    with_one(async |mut w| {
        let seed = w.imported(&login("a", "rt-1")).await;
        let holder = ours();
        assert_eq!(w.we_acquire(&holder).await.as_ref(), Some(&seed));

        assert_eq!(w.python_acquires("codex-1").await, None);
        assert!(python_calls_it_leased(&mut w, &seed).await);
        assert!(!w.python_renews(&seed, "codex-1").await);
        w.python_releases(&seed, "codex-1").await;
        assert_eq!(w.python("reap", json!({})).await, 0);
        assert!(we_renew(&w, &seed, &holder).await);

        assert!(w.store.leases.release(&seed, &holder).await.unwrap());
        assert!(!python_calls_it_leased(&mut w, &seed).await);
        assert_eq!(w.python_acquires("codex-1").await, Some(seed));
    })
    .await;
}

#[tokio::test]
async fn we_keep_off_what_python_holds() {
    with_one(async |mut w| {
        let seed = w.captured(&login("a", "rt-1")).await;
        assert_eq!(w.python_acquires("codex-1").await.as_ref(), Some(&seed));

        let (leases, seeds, holder) = (&w.store.leases, &w.store.seeds, ours());
        assert_eq!(w.we_acquire(&holder).await, None);
        assert_eq!(leases.acquire_for_recovery(&seed, &holder).await.unwrap(), None);
        assert_eq!(leases.renew(&seed, &holder).await.unwrap(), Renewal::Lost);
        assert!(!leases.release(&seed, &holder).await.unwrap());
        let row = w.row(&seed).await;
        let lease = row.lease.expect("it is leased");
        assert_eq!((lease.holder.as_str(), lease.live, row.dirty), ("codex-1", true, false));

        let save = seeds.save_credential(&seed, &holder, &row.version, login("a", "rt-2").into()).await;
        assert_eq!(save.unwrap(), SaveOutcome::NotHolder);
        let patch =
            seeds.patch(&seed, Some(&holder), SeedPatch { pool: Some(None), ..Default::default() }).await;
        assert!(matches!(patch, Err(StoreError::Conflict { .. })), "{patch:?}");
        assert!(matches!(seeds.delete(&seed, false).await, Err(StoreError::Conflict { .. })));

        assert!(w.python_renews(&seed, "codex-1").await, "nothing of this touched the lease");
        w.python_releases(&seed, "codex-1").await;
        assert_eq!(w.we_acquire(&holder).await, Some(seed));
    })
    .await;
}

#[tokio::test]
async fn a_lease_of_ours_looks_as_python_writes_it() {
    with_one(async |mut w| {
        let seed = w.imported(&login("a", "rt-1")).await;
        let holder = ours();
        w.we_acquire(&holder).await.unwrap();
        let extent = |seed: &Document| {
            let lease = seed.get_document("lease").unwrap();
            assert_eq!(keys(lease).into_iter().collect::<BTreeSet<_>>(), ["expiresAt", "holder"].into());
            let acquired = seed.get_datetime("lastLeasedAt").unwrap().timestamp_millis();
            lease.get_datetime("expiresAt").unwrap().timestamp_millis() - acquired
        };
        assert_eq!(extent(&w.document(&seed).await), 60_000, "T-081");

        w.store.leases.release(&seed, &holder).await.unwrap();
        assert_eq!(w.document(&seed).await.get("lease"), Some(&Bson::Null), "T-093");
        w.python_acquires("codex-1").await.unwrap();
        assert_eq!(extent(&w.document(&seed).await), 60_000);
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_python_let_expire_is_ours_for_recovery_only() {
    with_one(async |mut w| {
        let seed = w.captured(&login("a", "rt-1")).await;
        w.python_acquires("codex-1").await.unwrap();
        w.expire(&seed).await;

        let holder = ours();
        assert!(w.row(&seed).await.dirty, "its session may have a newer token than the store");
        assert_eq!(w.we_acquire(&holder).await, None);
        let lease = w.store.leases.acquire_for_recovery(&seed, &holder).await.unwrap();
        assert_eq!(lease.map(|lease| lease.seed).as_ref(), Some(&seed));
        assert!(!w.python_renews(&seed, "codex-1").await, "the late session hears that it lost");

        w.store.leases.release(&seed, &holder).await.unwrap();
        assert_eq!(w.we_acquire(&holder).await, Some(seed), "released well, it is clean again");
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_python_revives_in_time_was_never_lost() {
    with_one(async |mut w| {
        let seed = w.captured(&login("a", "rt-1")).await;
        w.python_acquires("codex-1").await.unwrap();
        w.expire(&seed).await;
        assert!(w.python_renews(&seed, "codex-1").await, "T-092");
        let row = w.row(&seed).await;
        assert!(row.lease.unwrap().live && !row.dirty);
        assert_eq!(w.store.leases.acquire_for_recovery(&seed, &ours()).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_we_let_expire_is_pythons_and_we_hear_of_it() {
    with_one(async |mut w| {
        let seed = w.imported(&login("a", "rt-1")).await;
        let holder = ours();
        w.we_acquire(&holder).await.unwrap();
        let version = w.row(&seed).await.version;
        w.expire(&seed).await;
        assert_eq!(w.python_acquires("codex-1").await.as_ref(), Some(&seed));

        assert_eq!(w.store.leases.renew(&seed, &holder).await.unwrap(), Renewal::Lost);
        assert!(!w.store.leases.release(&seed, &holder).await.unwrap());
        let late = w.store.seeds.save_credential(&seed, &holder, &version, login("a", "rt-2").into()).await;
        assert_eq!(late.unwrap(), SaveOutcome::NotHolder);
        assert!(w.python_renews(&seed, "codex-1").await);
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_python_reaps_is_lost_and_the_seed_is_free() {
    with_one(async |mut w| {
        let seed = w.imported(&login("a", "rt-1")).await;
        let holder = ours();
        w.we_acquire(&holder).await.unwrap();
        w.expire(&seed).await;
        assert_eq!(w.python("reap", json!({})).await, 1);
        assert_eq!(w.store.leases.renew(&seed, &holder).await.unwrap(), Renewal::Lost);
        assert!(w.row(&seed).await.lease.is_none());
    })
    .await;
}

#[tokio::test]
async fn a_python_session_ends_itself_when_we_took_its_seed() {
    with_one(async |mut w| {
        let seed = w.captured(&login("a", "rt-1")).await;
        w.python_acquires("codex-1").await.unwrap();
        w.session("codex-1").await;
        let baseline = w.python("merge", json!({ "process_id": "codex-1", "seed": seed })).await;
        w.expire(&seed).await;
        w.store.leases.acquire_for_recovery(&seed, &ours()).await.unwrap().unwrap();

        let watch =
            json!({ "process_id": "codex-1", "seed": seed, "baseline": baseline, "holder": "codex-1" });
        w.python("watch", watch).await;
        let mut cancelled = Value::Null;
        while cancelled != true {
            cancelled = w.python("cancelled", json!({ "process_id": "codex-1" })).await;
        }
        w.python("unwatch", json!({ "process_id": "codex-1" })).await;
    })
    .await;
}

/// Python's save-back asks nobody who holds the seed (T-054). Ours does, and sees that the content is another one.
#[tokio::test]
async fn what_python_writes_while_we_hold_the_seed_is_not_written_over() {
    with_one(async |mut w| {
        let seed = w.captured(&login("a", "rt-1")).await;
        let workdir = w.session("codex-1").await;
        let baseline = w.python("merge", json!({ "process_id": "codex-1", "seed": seed })).await;
        let holder = ours();
        w.we_acquire(&holder).await.unwrap();
        let version = w.row(&seed).await.version;

        log_in(&workdir, &login("a", "rt-python"));
        let save = json!({ "process_id": "codex-1", "seed": seed, "baseline": baseline });
        assert_ne!(w.python("save_back", save).await, baseline, "it was written");

        let saved =
            w.store.seeds.save_credential(&seed, &holder, &version, login("a", "rt-ours").into()).await;
        let current = w.row(&seed).await.version;
        assert_eq!(saved.unwrap(), SaveOutcome::Superseded { current });
        assert_eq!(w.our_login(&seed).await, login("a", "rt-python"));
    })
    .await;
}

#[tokio::test]
async fn of_many_at_once_from_both_sides_as_many_win_as_there_are_seeds() {
    const SEEDS: usize = 6;
    with_one(async |mut w| {
        for i in 0..SEEDS {
            w.imported(&login(&format!("a{i}"), &format!("rt-{i}"))).await;
        }
        let theirs: Vec<_> = (0..2 * SEEDS).map(|i| format!("codex-{i}")).collect();
        let ours: Vec<_> = (0..2 * SEEDS).map(|_| ours()).collect();
        let we_try = futures_util::future::join_all(ours.iter().map(|holder| {
            let store = w.store.clone();
            async move { store.leases.acquire(&crate::world::pool(), holder).await.unwrap() }
        }));
        let python_tries = w.python.ask("acquire_at_once", json!({ "pool": POOL, "holders": theirs }));
        let (we, python) = tokio::join!(we_try, python_tries);
        let we: Vec<_> = we.into_iter().flatten().map(|lease| lease.seed.to_string()).collect();
        let python: Vec<_> =
            python.as_array().unwrap().iter().filter_map(Value::as_str).map(String::from).collect();
        let distinct: HashSet<_> = we.iter().chain(&python).collect();
        assert_eq!((we.len() + python.len(), distinct.len()), (SEEDS, SEEDS), "{we:?} {python:?}");
    })
    .await;
}

#[tokio::test]
async fn a_pool_is_used_in_turn_whoever_asks() {
    const SEEDS: usize = 4;
    with_one(async |mut w| {
        for i in 0..SEEDS {
            w.imported(&login(&format!("a{i}"), &format!("rt-{i}"))).await;
        }
        let mut turns = Vec::new();
        for turn in 0..3 * SEEDS {
            // Not in step with the number of seeds, so that each is had by both.
            if turn % 3 == 0 {
                let holder = ours();
                let seed = w.we_acquire(&holder).await.unwrap();
                w.store.leases.release(&seed, &holder).await.unwrap();
                turns.push(seed);
            } else {
                let seed = w.python_acquires("codex-1").await.unwrap();
                w.python_releases(&seed, "codex-1").await;
                turns.push(seed);
            }
        }
        let (first, rest) = turns.split_at(SEEDS);
        assert_eq!(first.iter().collect::<HashSet<_>>().len(), SEEDS, "each seed once: {turns:?}");
        assert_eq!([first, first].concat(), rest, "and again in the same order");
    })
    .await;
}
