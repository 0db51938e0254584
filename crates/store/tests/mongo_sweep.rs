//! The blob journal and its sweeper: what is deleted, what is not, and when.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{DateTime, doc};
use optio_store::mongo::{BLOB_GRACE, Options};
use optio_store::suite::{auth, holder, new_seed, no_journal};
use optio_store::{ManualClock, NewSnapshot, SeedFiles, SeedId, SessionId, Store, Want};
use support::World;

mod support;

const SNAPSHOTS: &str = "optio_codex_session_snapshots";
const JOURNAL: &str = "optio_codex_blob_journal";

async fn leased(store: &Store, token: &str) -> SeedId {
    let id = store.seeds.import(new_seed(token, Some("p"))).await.unwrap().id;
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

/// Sets the time of every row of the journal back.
async fn age_the_journal(world: &World) {
    let hours_ago = DateTime::from_millis(DateTime::now().timestamp_millis() - 2 * 3_600_000);
    let older = doc! { "$set": { "at": hours_ago } };
    world.collection(JOURNAL).update_many(doc! {}, older).await.unwrap();
}

#[tokio::test]
async fn a_replaced_login_stays_for_its_readers_and_is_swept_later() {
    let world = World::new().await;
    let clock = Arc::new(ManualClock::new());
    let mongo = world.open_with("store", Options { clock: Some(clock.clone()), ..Options::default() }).await;
    let store = mongo.store(no_journal());
    let id = leased(&store, "t1").await;
    let base = store.seeds.load(&id).await.unwrap().1;
    store.seeds.save_credential(&id, &holder("a"), &base, auth("t2")).await.unwrap();
    clock.advance(BLOB_GRACE - Duration::from_secs(1));
    assert_eq!((mongo.sweep().await.unwrap(), world.count("fs.files").await), (0, 2));
    clock.advance(Duration::from_secs(1));
    assert_eq!((mongo.sweep().await.unwrap(), world.count("fs.files").await), (1, 1));
    assert_eq!(store.seeds.load(&id).await.unwrap().0.0[SeedFiles::AUTH], auth("t2"));
    store.seeds.delete(&id, true).await.unwrap();
    clock.advance(BLOB_GRACE);
    assert_eq!((mongo.sweep().await.unwrap(), world.count("fs.chunks").await), (1, 0));
    assert_eq!((mongo.sweep().await.unwrap(), world.count(JOURNAL).await), (0, 0), "and forgotten");
}

#[tokio::test]
async fn the_sweeper_deletes_nothing_that_anybody_names_and_nothing_it_was_not_told_of() {
    let world = World::new().await;
    let mongo = world.open().await;
    let names = [
        ("optio_codex_seeds", "blobId"),
        ("other_claudecode_seeds", "blobId"),
        ("x_codex_session_snapshots", "workdirBlobId"),
        ("x_claudecode_session_snapshots", "sessionBlobId"),
        ("x_processes", "result.fileId"),
    ];
    let note =
        |id: ObjectId, state: &str| doc! { "_id": id, "state": state, "owner": "x", "at": DateTime::now() };
    for (i, (collection, field)) in names.into_iter().enumerate() {
        let blob = world.upload("seed", b"named").await;
        world.collection(collection).insert_one(doc! {}).await.unwrap();
        world.collection(collection).update_one(doc! {}, doc! { "$set": { field: blob } }).await.unwrap();
        let state = ["pending", "superseded", "doomed"][i % 3];
        world.collection(JOURNAL).insert_one(note(blob, state)).await.unwrap();
    }
    world.upload("seed", b"nobody names it, but it is not in our journal").await;
    let orphan = world.upload("seed", b"ours").await;
    world.collection(JOURNAL).insert_one(note(orphan, "pending")).await.unwrap();
    age_the_journal(&world).await;
    assert_eq!(mongo.sweep().await.unwrap(), 1);
    assert_eq!(world.count("fs.files").await, names.len() as u64 + 1);
    let left = world.collection("fs.files").count_documents(doc! { "_id": orphan }).await.unwrap();
    assert_eq!((left, world.count(JOURNAL).await), (0, 0));
}

#[tokio::test]
async fn what_the_sweeper_has_is_not_committed() {
    let world = World::new().await;
    let mongo = world.open().await;
    let store = mongo.store(no_journal());
    let session = SessionId::mint();
    // The large one has chunks there already, the small one sends its first with the commit.
    for bytes in [vec![1; 3 << 20], vec![1; 10]] {
        let mut writer = store.snapshots.begin().await.unwrap();
        writer.write(bytes.into()).await.unwrap();
        age_the_journal(&world).await;
        assert_eq!(mongo.sweep().await.unwrap(), 1);
        writer.commit(about(&session)).await.unwrap_err();
        assert!(store.snapshots.list(&session).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_nothing_that_the_sweeper_does_not_find() {
    let world = World::new().await;
    let mongo = world.open().await;
    let store = mongo.store(no_journal());
    let mut writer = store.snapshots.begin().await.unwrap();
    writer.write(Bytes::from(vec![1; 3 << 20])).await.unwrap();
    drop(writer);
    let begun = std::time::Instant::now();
    while world.count("fs.chunks").await > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "the chunks were not deleted");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((world.count(SNAPSHOTS).await, world.count("fs.files").await), (0, 0));
    age_the_journal(&world).await;
    mongo.sweep().await.unwrap();
    assert_eq!(world.count(JOURNAL).await, 0);
}
