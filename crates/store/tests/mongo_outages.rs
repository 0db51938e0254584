//! What a store does while its database is frozen, gone, or does not confirm: never a wait without an end, never a lost
//! credential, never a secret in an error.

#![allow(clippy::unwrap_used, missing_docs)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use mongodb::Client;
use mongodb::bson::{Bson, Document, doc};
use optio_store::mongo::{Mongo, Options};
use optio_store::suite::{auth, holder, new_seed, no_journal, pool};
use optio_store::{NewSnapshot, Renewal, SaveOutcome, SeedFiles, SeedId, SessionId, Store, StoreError, Want};
use support::World;

mod support;

/// Limit of one operation in these tests.
const LIMIT: Duration = Duration::from_secs(2);

async fn open(world: &World) -> Mongo {
    world.open_with("store", Options { limit: LIMIT, ..Options::default() }).await
}

async fn leased(store: &Store) -> SeedId {
    let id = store.seeds.import(new_seed("t1", Some("p"))).await.unwrap().id;
    store.leases.acquire(&Want::Seed(id.clone()), &holder("a")).await.unwrap().unwrap();
    id
}

fn about(session: &SessionId) -> NewSnapshot {
    NewSnapshot {
        session: session.clone(),
        end_state: "done".into(),
        thread_id: None,
        codec: "gzip".into(),
        seed: None,
    }
}

/// Whether this is what a caller waits out.
fn is_outage(error: &StoreError) -> bool {
    matches!(error, StoreError::TimedOut { .. } | StoreError::Unavailable { .. })
}

/// Tries until the store works again.
async fn until_it_works(store: &Store, id: &SeedId) {
    let begun = Instant::now();
    while let Err(error) = store.leases.renew(id, &holder("a")).await {
        assert!(is_outage(&error), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(40), "it does not come back: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_a_timeout_within_the_limit_and_is_used_again_when_it_thaws() {
    let world = World::alone().await;
    let store = open(&world).await.store(no_journal());
    let id = leased(&store).await;
    assert!(store.health.state().works());
    world.mongod().freeze();
    let begun = Instant::now();
    let error = store.leases.renew(&id, &holder("a")).await.unwrap_err();
    assert!(matches!(error, StoreError::TimedOut { .. }), "{error}");
    let base = optio_store::SeedVersion("any".into());
    let error = store.seeds.save_credential(&id, &holder("a"), &base, auth("t2")).await.unwrap_err();
    assert!(is_outage(&error), "{error}");
    let error = store.seeds.load(&id).await.unwrap_err();
    assert!(is_outage(&error), "{error}");
    let health = store.health.check().await;
    assert!(begun.elapsed() < LIMIT * 8, "limits of 1, 3, 1 and 1 operations; took {:?}", begun.elapsed());
    assert!(health.problem.is_some() && !store.health.state().works());
    world.mongod().thaw();
    until_it_works(&store, &id).await;
    assert!(store.health.check().await.works());
    assert_eq!(store.seeds.load(&id).await.unwrap().0.0[SeedFiles::AUTH], auth("t1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_it_confirmed_and_is_used_again_when_it_is_back() {
    let world = World::alone().await;
    let mongo = open(&world).await;
    let store = mongo.store(no_journal());
    let id = leased(&store).await;
    let base = store.seeds.load(&id).await.unwrap().1;
    let saved = store.seeds.save_credential(&id, &holder("a"), &base, auth("t2")).await.unwrap();
    let SaveOutcome::Saved(version) = saved else { panic!("{saved:?}") };
    let session = SessionId::mint();
    let mut writer = store.snapshots.begin().await.unwrap();
    writer.write(Bytes::from(vec![1; 4 << 20])).await.unwrap();

    world.mongod().kill_9();
    let begun = Instant::now();
    let error = store.leases.renew(&id, &holder("a")).await.unwrap_err();
    assert!(is_outage(&error) && begun.elapsed() < LIMIT * 2, "{error} after {:?}", begun.elapsed());
    let error = store.leases.acquire(&pool("p"), &holder("b")).await.unwrap_err();
    assert!(is_outage(&error), "{error}");
    let mut torn = writer.write(Bytes::from(vec![1; 4 << 20])).await;
    if torn.is_ok() {
        torn = writer.commit(about(&session)).await.map(drop);
    }
    assert!(is_outage(&torn.unwrap_err()));

    world.mongod().restart().await;
    until_it_works(&store, &id).await;
    let (files, now) = store.seeds.load(&id).await.unwrap();
    assert_eq!((&files.0[SeedFiles::AUTH], now), (&auth("t2"), version));
    assert!(matches!(store.leases.renew(&id, &holder("a")).await.unwrap(), Renewal::Renewed { .. }));
    assert!(store.snapshots.list(&session).await.unwrap().is_empty(), "no torn archive is named");

    let hours_ago = mongodb::bson::DateTime::from_millis(0);
    let older = doc! { "$set": { "at": hours_ago } };
    world.collection("optio_codex_blob_journal").update_many(doc! {}, older).await.unwrap();
    mongo.sweep().await.unwrap();
    let files = world.collection("fs.files").find_one(doc! {}).await.unwrap().unwrap();
    world.only("fs.files").await;
    let torn = doc! { "files_id": { "$ne": files.get_object_id("_id").unwrap() } };
    assert_eq!(
        world.collection("fs.chunks").count_documents(torn).await.unwrap(),
        0,
        "the sweeper has the rest"
    );
}

/// Has the server do what such commands say to the seeds, but not confirm it.
async fn do_not_confirm(world: &World, command: &str, mode: impl Into<Bson>) {
    let unconfirmed =
        doc! { "code": 64, "codeName": "WriteConcernFailed", "errmsg": "waiting for replication" };
    let seeds = format!("{}.optio_codex_seeds", world.db.name());
    let fail = doc! {
        "configureFailPoint": "failCommand",
        "mode": mode.into(),
        "data": { "failCommands": [command], "namespace": seeds, "writeConcernError": unconfirmed },
    };
    let admin = Client::with_uri_str(&world.connection).await.unwrap().database("admin");
    admin.run_command(fail).await.unwrap();
}

#[tokio::test]
async fn an_acquire_that_was_not_confirmed_is_found_by_reading() {
    let world = World::alone().await;
    let store = open(&world).await.store(no_journal());
    let id = store.seeds.import(new_seed("t1", Some("p"))).await.unwrap().id;
    do_not_confirm(&world, "findAndModify", doc! { "times": 1 }).await;
    let lease = store.leases.acquire(&pool("p"), &holder("a")).await.unwrap().unwrap();
    assert_eq!(lease.seed, id);
    store.leases.release(&id, &holder("a")).await.unwrap();

    // The reading fails too, and the caller is told; it tries again, and has what it had, not a second one.
    store.seeds.import(new_seed("t2", Some("p"))).await.unwrap();
    do_not_confirm(&world, "findAndModify", "alwaysOn").await;
    store.leases.acquire(&pool("p"), &holder("b")).await.unwrap_err();
    do_not_confirm(&world, "findAndModify", "off").await;
    let lease = store.leases.acquire(&pool("p"), &holder("b")).await.unwrap().unwrap();
    let held = doc! { "lease.holder": "b" };
    assert_eq!(world.collection("optio_codex_seeds").count_documents(held).await.unwrap(), 1);
    assert_eq!(store.seeds.get(&lease.seed).await.unwrap().unwrap().lease.unwrap().holder, holder("b"));
}

#[tokio::test]
async fn a_save_that_was_not_confirmed_is_decided_by_reading() {
    let world = World::alone().await;
    let store = open(&world).await.store(no_journal());
    let id = leased(&store).await;
    let base = store.seeds.load(&id).await.unwrap().1;
    let seeds = world.collection("optio_codex_seeds");
    let before = seeds.find_one(doc! {}).await.unwrap().unwrap();
    do_not_confirm(&world, "update", "alwaysOn").await;
    let saved = store.seeds.save_credential(&id, &holder("a"), &base, auth("t2")).await.unwrap();
    assert!(matches!(saved, SaveOutcome::Saved(_)), "{saved:?}");
    assert_ne!(seeds.find_one(doc! {}).await.unwrap().unwrap().get("blobId"), before.get("blobId"));
    assert_eq!(store.seeds.load(&id).await.unwrap().0.0[SeedFiles::AUTH], auth("t2"));
}

/// What happens to the document while the save's last update is on its way (F6).
async fn saved_while(meddling: Document) -> (World, Document, SaveOutcome) {
    let world = World::alone().await;
    let store = open(&world).await.store(no_journal());
    let id = leased(&store).await;
    let base = store.seeds.load(&id).await.unwrap().1;
    let slow = doc! {
        "configureFailPoint": "failCommand",
        "mode": "alwaysOn",
        "data": {
            "failCommands": ["update"],
            "namespace": format!("{}.optio_codex_seeds", world.db.name()),
            "blockConnection": true,
            "blockTimeMS": 1000,
            "appName": "optio-codex",
        },
    };
    let admin = Client::with_uri_str(&world.connection).await.unwrap().database("admin");
    admin.run_command(slow).await.unwrap();
    let saving = tokio::spawn(async move {
        store.seeds.save_credential(&id, &holder("a"), &base, auth("t2")).await.unwrap()
    });
    // The new blob is there: the last update is the next that comes.
    let journal = world.collection("optio_codex_blob_journal");
    let begun = Instant::now();
    while journal.count_documents(doc! { "state": "superseded" }).await.unwrap() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "the save does not come to its end");
    }
    let seeds = world.collection("optio_codex_seeds");
    seeds.update_one(doc! {}, doc! { "$set": meddling }).await.unwrap();
    let meddled = seeds.find_one(doc! {}).await.unwrap().unwrap();
    let outcome = saving.await.unwrap();
    (world, meddled, outcome)
}

#[tokio::test]
async fn a_lease_that_is_taken_before_the_last_step_of_a_save_saves_nothing() {
    let (world, meddled, outcome) = saved_while(doc! { "lease.holder": "thief" }).await;
    assert_eq!(outcome, SaveOutcome::NotHolder);
    assert_eq!(world.only("optio_codex_seeds").await, meddled);
    world.only("fs.files").await;
}

#[tokio::test]
async fn a_blob_that_is_replaced_before_the_last_step_of_a_save_stays() {
    let other = mongodb::bson::oid::ObjectId::new();
    let (world, meddled, outcome) = saved_while(doc! { "blobId": other }).await;
    let current = optio_store::SeedVersion(other.to_hex());
    assert_eq!(outcome, SaveOutcome::Superseded { current });
    assert_eq!(world.only("optio_codex_seeds").await, meddled);
}

#[tokio::test]
async fn a_server_without_a_replica_set_does_too() {
    let world = World::without_a_set().await;
    let store = open(&world).await.store(no_journal());
    let id = leased(&store).await;
    let base = store.seeds.load(&id).await.unwrap().1;
    let saved = store.seeds.save_credential(&id, &holder("a"), &base, auth("t2")).await.unwrap();
    assert!(matches!(saved, SaveOutcome::Saved(_)), "{saved:?}");
    let mut writer = store.snapshots.begin().await.unwrap();
    writer.write(Bytes::from_static(b"archive")).await.unwrap();
    let row = writer.commit(about(&SessionId::mint())).await.unwrap();
    store.snapshots.verify(&row.id).await.unwrap();
    assert!(store.leases.release(&id, &holder("a")).await.unwrap());
}

#[tokio::test]
async fn no_error_quotes_the_connection_string() {
    let dir = tempfile::tempdir().unwrap();
    let bad = [
        "mongodb://user:hunter2@127.0.0.1:1/db",
        "mongodb://user:hunter2@127.0.0.1:1/db?what=hunter2",
        "mongodb://user:hunter2:@:/db",
        "mongodb://user:hunter2@127.0.0.1:1",
        "mongodb://user:hunter2%@127.0.0.1:1/db",
        // In the wrong place: to the driver it is a port, which it quotes.
        "mongodb://user@127.0.0.1:hunter2/db",
        "mongo://user:hunter2@127.0.0.1/db",
        "mongodb+srv://user:hunter2@127.0.0.1:27017/db",
    ];
    for connection in bad {
        let error =
            Mongo::open(connection, &dir.path().join("store"), Options::default()).await.err().unwrap();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let error = Mongo::open("mongodb://127.0.0.1:1", &dir.path().join("store"), Options::default()).await;
    assert!(error.err().unwrap().to_string().contains("name a database"));
    let odd = Options { prefix: "a$b".into(), ..Options::default() };
    let error = Mongo::open("mongodb://127.0.0.1:1/db", &dir.path().join("store"), odd).await.err().unwrap();
    assert!(matches!(error, StoreError::Invalid { field: "prefix", .. }), "{error}");
}
