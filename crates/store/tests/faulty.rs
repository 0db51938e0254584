//! The test doubles do what tests rely on.

#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use optio_store::faulty::{Fault, FaultyStore, StoreOp};
use optio_store::memory::{MemoryStore, SeedEvent};
use optio_store::suite::{auth, holder, new_seed, no_journal, pool};
use optio_store::{LEASE_TTL, SaveOutcome, StoreError};

#[tokio::test]
async fn the_nth_call_fails_and_the_others_do_not() {
    let faulty = FaultyStore::new(MemoryStore::new().store(no_journal()));
    let store = faulty.store();
    let id = store.seeds.import(new_seed("t1", Some("p"))).await.unwrap().id;
    store.leases.acquire(&pool("p"), &holder("a")).await.unwrap().unwrap();
    faulty.fail(StoreOp::Renew, 2, Fault::Error);
    store.leases.renew(&id, &holder("a")).await.unwrap();
    let failed = store.leases.renew(&id, &holder("a")).await;
    assert!(matches!(failed, Err(StoreError::Unavailable { .. })), "{failed:?}");
    store.leases.renew(&id, &holder("a")).await.unwrap();
    assert_eq!(faulty.calls(StoreOp::Renew), 3);
    faulty.fail_always(StoreOp::Renew, Fault::Error);
    store.leases.renew(&id, &holder("a")).await.unwrap_err();
    store.leases.renew(&id, &holder("a")).await.unwrap_err();
    faulty.heal();
    store.leases.renew(&id, &holder("a")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_hanging_call_never_answers_and_is_not_done() {
    let memory = MemoryStore::new();
    let faulty = FaultyStore::new(memory.store(no_journal()));
    let store = faulty.store();
    store.seeds.import(new_seed("t1", Some("p"))).await.unwrap();
    faulty.fail(StoreOp::Acquire, 1, Fault::Hang);
    let (pool, holder) = (pool("p"), holder("a"));
    let hanging = tokio::time::timeout(Duration::from_secs(3600), store.leases.acquire(&pool, &holder)).await;
    assert!(hanging.is_err());
    assert_eq!(memory.log().len(), 1, "only the import");
}

#[tokio::test]
async fn an_unknown_outcome_happened_and_a_retry_finds_it() {
    let memory = MemoryStore::new();
    let faulty = FaultyStore::new(memory.store(no_journal()));
    let store = faulty.store();
    let row = store.seeds.import(new_seed("t1", Some("p"))).await.unwrap();
    store.leases.acquire(&pool("p"), &holder("a")).await.unwrap().unwrap();
    faulty.fail(StoreOp::SaveCredential, 1, Fault::DoneButError);
    let save =
        || async { store.seeds.save_credential(&row.id, &holder("a"), &row.version, auth("t2")).await };
    assert!(matches!(save().await, Err(StoreError::TimedOut { .. })));
    assert_eq!(memory.credential(&row.id), Some(auth("t2")));
    assert!(matches!(save().await.unwrap(), SaveOutcome::Saved(_)));
    let events: Vec<_> = memory.log().into_iter().map(|logged| logged.event).collect();
    assert_eq!(events, [SeedEvent::Imported, SeedEvent::Acquired, SeedEvent::Saved]);
}

#[tokio::test(start_paused = true)]
async fn leases_in_memory_expire_as_tokios_clock_goes() {
    let memory = MemoryStore::new();
    let store = memory.store(no_journal());
    let id = store.seeds.import(new_seed("t1", Some("p"))).await.unwrap().id;
    store.leases.acquire(&pool("p"), &holder("a")).await.unwrap().unwrap();
    tokio::time::advance(LEASE_TTL - Duration::from_millis(1)).await;
    assert!(!store.seeds.get(&id).await.unwrap().unwrap().dirty);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(store.seeds.get(&id).await.unwrap().unwrap().dirty);
    assert_eq!(memory.holder(&id), Some(holder("a")));
}
