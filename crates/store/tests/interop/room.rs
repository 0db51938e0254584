//! Living in one database without treading on each other: what is swept, and what is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Document, doc};
use optio_store::mongo::{Mongo, Options};
use optio_store::{
    Holder, ManualClock, NewSnapshot, RecordRow, SNAPSHOTS_KEPT, SaveOutcome, SeedFiles, SessionId,
};
use serde_json::json;

use crate::world::{World, log_in, login, options, with_one};

/// Later than any grace of the sweeper.
const MUCH_LATER: Duration = Duration::from_secs(24 * 3600);

/// Has a service of ours sweep when a day has passed.
async fn sweep_tomorrow(w: &World) -> usize {
    let clock = ManualClock::new();
    clock.advance(MUCH_LATER);
    let options = Options { clock: Some(Arc::new(clock)), ..options() };
    let tomorrow = Mongo::open(w.server.uri(), &w.directory("tomorrow"), options).await.unwrap();
    tomorrow.sweep().await.unwrap()
}

async fn ids(w: &World, collection: &str, field: &str) -> BTreeSet<ObjectId> {
    let found = w.database.collection::<Document>(collection).find(doc! {}).await.unwrap();
    let found: Vec<Document> = found.try_collect().await.unwrap();
    found.iter().filter_map(|document| document.get_object_id(field).ok()).collect()
}

async fn we_store(w: &World, session: &SessionId) {
    let mut writer = w.store.snapshots.begin().await.unwrap();
    writer.write(Bytes::from_static(b"an archive")).await.unwrap();
    let about = NewSnapshot {
        session: session.clone(),
        end_state: "done".into(),
        thread_id: None,
        codec: "gzip".into(),
        seed: None,
    };
    writer.commit(about).await.unwrap();
}

#[tokio::test]
async fn our_sweeper_takes_what_we_left_behind_and_nothing_that_anybody_names() {
    with_one(async |mut w| {
        let seed = w.captured(&login("a", "rt-1")).await;
        let by_python = SessionId::mint();
        let workdir = w.session(by_python.as_str()).await;
        log_in(&workdir, &login("c", "rt-1"));
        w.python("snapshot", json!({ "process_id": by_python, "thread": null, "cancelled": false })).await;
        // Somebody of whom we know nothing names the same blob, in a collection of another kind of agent (T-075).
        let foreign = w.document(&seed).await;
        w.database.collection::<Document>("other_grok_seeds").insert_one(&foreign).await.unwrap();

        // Ours replaces Python's blob, Python replaces ours, and ours again.
        for token in ["rt-2", "rt-4"] {
            let holder = Holder::mint_for("ours");
            w.we_acquire(&holder).await.unwrap();
            let version = w.row(&seed).await.version;
            let save = w.store.seeds.save_credential(&seed, &holder, &version, login("a", token).into());
            assert!(matches!(save.await.unwrap(), SaveOutcome::Saved(_)));
            w.store.leases.release(&seed, &holder).await.unwrap();
            let content = String::from_utf8(login("a", "rt-3")).unwrap();
            w.python("overwrite", json!({ "seed": seed, "member": SeedFiles::AUTH, "content": content }))
                .await;
        }
        let ours = SessionId::mint();
        we_store(&w, &ours).await;
        // One that was never finished.
        let mut abandoned = w.store.snapshots.begin().await.unwrap();
        abandoned.write(Bytes::from(vec![7; 3 << 20])).await.unwrap();
        std::mem::forget(abandoned);

        assert_ne!(sweep_tomorrow(&w).await, 0);
        let mut named = ids(&w, "optio_codex_seeds", "blobId").await;
        named.extend(ids(&w, "other_grok_seeds", "blobId").await);
        named.extend(ids(&w, "optio_codex_session_snapshots", "workdirBlobId").await);
        assert_eq!(named.len(), 4, "two logins and two workdirs");
        assert_eq!(ids(&w, "fs.files", "_id").await, named);
        assert_eq!(ids(&w, "fs.chunks", "files_id").await, named);

        assert_eq!(w.pythons_login(&seed).await, login("a", "rt-3"));
        w.session(by_python.as_str()).await;
        assert_eq!(w.python("restore", json!({ "process_id": by_python })).await, json!({ "thread": null }));
        assert_eq!(sweep_tomorrow(&w).await, 0, "there is nothing left to sweep");
    })
    .await;
}

#[tokio::test]
async fn what_we_noted_of_a_snapshot_goes_when_python_prunes_it() {
    with_one(async |mut w| {
        let session = SessionId::mint();
        w.session(session.as_str()).await;
        we_store(&w, &session).await;
        let snapshot = json!({ "process_id": session, "thread": null, "cancelled": false });
        w.python("snapshot", snapshot.clone()).await;
        // Read once, Python's has a note of ours as well.
        let rows = w.store.snapshots.list(&session).await.unwrap();
        w.store.snapshots.verify(&rows[0].id).await.unwrap();
        let notes = w.database.collection::<Document>("rust_codex_snapshot_notes");
        assert_eq!(notes.count_documents(doc! {}).await.unwrap(), 2);
        sweep_tomorrow(&w).await;
        assert_eq!(notes.count_documents(doc! {}).await.unwrap(), 2, "both are still there");

        for _ in 0..SNAPSHOTS_KEPT {
            w.python("snapshot", snapshot.clone()).await;
        }
        sweep_tomorrow(&w).await;
        assert_eq!(notes.count_documents(doc! {}).await.unwrap(), 0);
    })
    .await;
}

/// Migrations of a Python engine rewrite every document of every collection that is named like one of processes (T-254).
#[tokio::test]
async fn no_collection_of_ours_is_taken_for_one_of_processes() {
    with_one(async |w| {
        w.imported(&login("a", "rt-1")).await;
        let record = RecordRow {
            id: SessionId::mint(),
            rev: 0,
            finished: false,
            state: "starting".into(),
            host: "local".into(),
            seed: None,
            name: "a session".into(),
            labels: BTreeMap::new(),
            created_at: Timestamp::now(),
            body: Bytes::from_static(b"{}"),
        };
        w.store.records.insert(record, None).await.unwrap();
        let names = w.database.list_collection_names().await.unwrap();
        let processes: Vec<_> = names.iter().filter(|name| name.ends_with("_processes")).collect();
        assert!(processes.is_empty(), "{processes:?}");
        let ours: Vec<_> =
            names.iter().filter(|name| name.starts_with("optio") && !is_shared(name)).collect();
        assert!(ours.is_empty(), "what only we use has our prefix: {ours:?}");
    })
    .await;
}

fn is_shared(collection: &str) -> bool {
    // Claims keep two services of ours from importing one login at once, so they go with the logins.
    ["_codex_seeds", "_codex_session_snapshots", "_codex_lineage_claims"]
        .iter()
        .any(|suffix| collection == format!("optio{suffix}"))
}
