//! The documents: what Python and we both know, byte for byte; and what a shared database makes of several writers.
//! The contract itself is in `suite.rs`, outages are in `mongo_outages.rs`.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::StreamExt;
use futures_util::io::AsyncReadExt;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, DateTime, Document, doc};
use optio_store::mongo::Options;
use optio_store::suite::{auth, holder, new_seed, no_journal, pool};
use optio_store::{
    NewSnapshot, PageRequest, RecordRow, SaveOutcome, SeedFiles, SeedId, SeedPatch, SeedStatus, SessionId,
    SnapshotRow, Store, StoreError, Want,
};
use support::World;

mod support;

const SEEDS: &str = "optio_codex_seeds";
const SNAPSHOTS: &str = "optio_codex_session_snapshots";

async fn open(world: &World) -> Store {
    world.open().await.store(no_journal())
}

fn keys(document: &Document) -> BTreeSet<&str> {
    document.keys().map(String::as_str).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<&str> {
    names.into()
}

async fn leased(store: &Store, token: &str) -> SeedId {
    let id = store.seeds.import(new_seed(token, Some("p"))).await.unwrap().id;
    store.leases.acquire(&Want::Seed(id.clone()), &holder("a")).await.unwrap().unwrap();
    id
}

/// A login as Python captures it: an archive in the bucket, a document with nothing but what capture writes (T-002).
async fn captured_by_python(world: &World, member: &str, auth: Bytes) -> SeedId {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    let mut header = tar::Header::new_gnu();
    header.set_size(auth.len() as u64);
    header.set_mode(0o600);
    tar.append_data(&mut header, member, &auth[..]).unwrap();
    let blob = world.upload("seed", &tar.into_inner().unwrap().finish().unwrap()).await;
    let id = ObjectId::new();
    let seed = doc! { "_id": id, "createdAt": DateTime::now(), "blobId": blob, "manifestVersion": 1 };
    world.collection(SEEDS).insert_one(seed).await.unwrap();
    id.to_hex().parse().unwrap()
}

/// Reads a file as the driver does.
async fn download(world: &World, id: ObjectId) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut stream = world.db.gridfs_bucket(None).open_download_stream(id.into()).await.unwrap();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

fn about(session: &SessionId) -> NewSnapshot {
    NewSnapshot {
        session: session.clone(),
        end_state: "cancelled".into(),
        thread_id: None,
        codec: "gzip".into(),
        seed: Some(SeedId::mint()),
    }
}

async fn snapshot(store: &Store, session: &SessionId, bytes: Vec<u8>) -> SnapshotRow {
    let mut writer = store.snapshots.begin().await.unwrap();
    writer.write(bytes.into()).await.unwrap();
    writer.commit(about(session)).await.unwrap()
}

async fn read(store: &Store, row: &SnapshotRow) -> Vec<u8> {
    let chunks = store.snapshots.open(&row.id).await.unwrap();
    chunks.map(|chunk| chunk.unwrap().to_vec()).concat().await
}

#[tokio::test]
async fn a_seeds_document_is_pythons_through_its_whole_life() {
    let world = World::new().await;
    let store = open(&world).await;
    let id = store.seeds.import(new_seed("t1", None)).await.unwrap().id;
    let fresh = world.only(SEEDS).await;
    assert_eq!(keys(&fresh), set(["_id", "createdAt", "blobId", "manifestVersion", "metadata"]));
    assert_eq!(fresh.get_object_id("_id").unwrap().to_hex(), id.as_str());
    assert_eq!(fresh.get("manifestVersion"), Some(&Bson::Int32(1)));
    assert!(fresh.get_datetime("createdAt").is_ok() && fresh.get_object_id("blobId").is_ok());
    assert_eq!(keys(fresh.get_document("metadata").unwrap()), set(["optioCodex"]));
    let file = world.only("fs.files").await;
    assert_eq!(
        keys(&file),
        set(["_id", "filename", "chunkSize", "length", "uploadDate"]),
        "host-free (T-011)"
    );
    assert_eq!((file.get_str("filename").unwrap(), file.get_i32("chunkSize").unwrap()), ("seed", 261_120));
    assert_eq!(file.get("_id"), fresh.get("blobId"));

    let assign = SeedPatch { pool: Some(Some("k".into())), ..Default::default() };
    store.seeds.patch(&id, None, assign).await.unwrap();
    let before = world.only(SEEDS).await;
    store.leases.acquire(&pool("k"), &holder("codex-1")).await.unwrap().unwrap();
    let leased = world.only(SEEDS).await;
    let lease = leased.get_document("lease").unwrap();
    assert_eq!((keys(lease), lease.get_str("holder").unwrap()), (set(["holder", "expiresAt"]), "codex-1"));
    let begin = leased.get_datetime("lastLeasedAt").unwrap().timestamp_millis();
    let end = lease.get_datetime("expiresAt").unwrap().timestamp_millis();
    assert_eq!(end - begin, 60_000, "one $$NOW (T-081)");
    let mut same = leased.clone();
    same.remove("lease");
    same.remove("lastLeasedAt");
    assert_eq!(same, before, "an acquire changes nothing else (T-074)");

    let version = store.seeds.load(&id).await.unwrap().1;
    store.seeds.save_credential(&id, &holder("codex-1"), &version, auth("t2")).await.unwrap();
    assert!(store.leases.release(&id, &holder("codex-1")).await.unwrap());
    let released = world.only(SEEDS).await;
    assert_eq!(released.get("lease"), Some(&Bson::Null), "null, not removed (T-093)");
    assert_eq!(released.get("lastLeasedAt"), leased.get("lastLeasedAt"));
    assert!(released.get_datetime("lastRefreshedAt").is_ok(), "a date by the server's clock (T-098)");
    assert_ne!(released.get("blobId"), leased.get("blobId"));
    let all =
        ["_id", "createdAt", "blobId", "manifestVersion", "metadata", "poolKey", "updatedAt", "lastLeasedAt"];
    let mut expected = set(all);
    expected.extend(["lease", "lastRefreshedAt"]);
    assert_eq!(keys(&released), expected);
}

#[tokio::test]
async fn fifty_at_once_get_five_seeds() {
    let world = World::new().await;
    let store = open(&world).await;
    for i in 0..5 {
        store.seeds.import(new_seed(&format!("t{i}"), Some("p"))).await.unwrap();
    }
    let tries = (0..50).map(|i| {
        let leases = store.leases.clone();
        tokio::spawn(async move { leases.acquire(&pool("p"), &holder(&format!("h{i}"))).await.unwrap() })
    });
    let mut won = Vec::new();
    for task in tries.collect::<Vec<_>>() {
        won.extend(task.await.unwrap());
    }
    assert_eq!(won.len(), 5);
    assert_eq!(won.iter().map(|lease| lease.seed.as_str()).collect::<BTreeSet<_>>().len(), 5);
}

#[tokio::test]
async fn what_others_keep_in_a_document_survives_every_operation() {
    let world = World::new().await;
    let store = open(&world).await;
    let id = store.seeds.import(new_seed("t1", Some("p"))).await.unwrap().id;
    let theirs = doc! { "theirs": { "deep": [1, 2] }, "metadata.verify": { "alive": true }, "status": null };
    world.collection(SEEDS).update_one(doc! {}, doc! { "$set": theirs }).await.unwrap();
    let check = || async {
        let seed = world.only(SEEDS).await;
        assert_eq!(seed.get_document("theirs").unwrap(), &doc! { "deep": [1, 2] });
        let verify = seed.get_document("metadata").unwrap().get_document("verify").unwrap();
        assert_eq!(verify, &doc! { "alive": true });
    };
    store
        .leases
        .acquire(&pool("p"), &holder("a"))
        .await
        .unwrap()
        .expect("any status but dead is alive (T-004)");
    check().await;
    store.leases.renew(&id, &holder("a")).await.unwrap();
    check().await;
    let version = store.seeds.load(&id).await.unwrap().1;
    store.seeds.save_credential(&id, &holder("a"), &version, auth("t2")).await.unwrap();
    check().await;
    let note = serde_json::json!({ "note": 1 }).as_object().unwrap().clone();
    let patch = SeedPatch {
        status: Some((SeedStatus::NeedsRecovery, Some("lost".into()))),
        metadata: note,
        verified: true,
        pool: Some(Some("q".into())),
    };
    let row = store.seeds.patch(&id, Some(&holder("a")), patch).await.unwrap();
    assert_eq!(row.metadata["verify"]["alive"], true);
    check().await;
    store.leases.release(&id, &holder("a")).await.unwrap();
    check().await;
}

#[tokio::test]
async fn a_seed_that_python_captured_is_listed_loaded_and_never_imported_again() {
    let world = World::new().await;
    let store = open(&world).await;
    for member in [".codex/auth.json", "./.codex/auth.json"] {
        let id = captured_by_python(&world, member, auth(member)).await;
        let (files, _) = store.seeds.load(&id).await.unwrap();
        assert_eq!(files.0[SeedFiles::AUTH], auth(member));
        let refused = store.seeds.import(new_seed(member, None)).await.unwrap_err();
        assert!(
            matches!(&refused, StoreError::Conflict { id: twin, .. } if *twin == id.as_str()),
            "{refused}"
        );
    }
    let rows = store.seeds.list(None, &PageRequest::default()).await.unwrap().data;
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!((row.account.id.as_deref(), row.account.kind.as_str()), (Some("acct"), "chatgpt"));
        assert_eq!((row.status, row.lease, row.dirty), (SeedStatus::Alive, None, false));
        assert!(row.metadata.is_empty());
        // Python saves another login back into it: what was noted of the old one counts no more.
        let blob = world.collection(SEEDS).find_one(doc! {}).await.unwrap().unwrap();
        assert!(blob.get_document("metadata").unwrap().contains_key("optioCodex"), "noted for the next time");
    }
}

#[tokio::test]
async fn a_save_back_by_python_makes_our_notes_stale() {
    let world = World::new().await;
    let store = open(&world).await;
    let id = store.seeds.import(new_seed("old", None)).await.unwrap().id;
    let rotated = Bytes::from_static(br#"{"tokens":{"account_id":"other","refresh_token":"rotated"}}"#);
    let python = captured_by_python(&world, ".codex/auth.json", rotated.clone()).await;
    let seeds = world.collection(SEEDS);
    let theirs = doc! { "_id": ObjectId::parse_str(python.as_str()).unwrap() };
    let blob = seeds.find_one_and_delete(theirs).await.unwrap().unwrap().get_object_id("blobId").unwrap();
    let this = doc! { "_id": ObjectId::parse_str(id.as_str()).unwrap() };
    seeds.update_one(this, doc! { "$set": { "blobId": blob, "updatedAt": DateTime::now() } }).await.unwrap();
    let account = store.seeds.get(&id).await.unwrap().unwrap().account;
    assert_eq!(account.id.as_deref(), Some("other"), "whose it was before counts no more");
    let mut again = new_seed("rotated", None);
    again.files.0.insert(SeedFiles::AUTH.into(), rotated);
    assert!(matches!(store.seeds.import(again).await, Err(StoreError::Conflict { .. })));
    store.seeds.import(new_seed("old", None)).await.expect("nobody has that one any more");
}

#[tokio::test]
async fn one_login_that_is_imported_by_many_at_once_is_stored_once() {
    let world = World::new().await;
    let store = open(&world).await;
    let imports = (0..8).map(|_| {
        let seeds = store.seeds.clone();
        tokio::spawn(async move { seeds.import(new_seed("same", None)).await })
    });
    let mut stored = 0;
    for task in imports.collect::<Vec<_>>() {
        match task.await.unwrap() {
            Ok(_) => stored += 1,
            Err(error) => assert!(matches!(error, StoreError::Conflict { .. }), "{error}"),
        }
    }
    assert_eq!((stored, world.count(SEEDS).await), (1, 1));
    assert_eq!(world.count("optio_codex_lineage_claims").await, 0);
    // One whose service died while it imported runs out.
    let old = doc! { "_id": "some lineage", "seed": "some seed", "at": DateTime::from_millis(0) };
    world.collection("optio_codex_lineage_claims").insert_one(old).await.unwrap();
    store.seeds.import(new_seed("other", None)).await.unwrap();
}

/// Python's own words (T-079, T-091).
async fn python_acquires(world: &World, key: &str, by: &str) -> bool {
    let free = doc! { "$or": [
        { "$eq": [{ "$ifNull": ["$lease", null] }, null] },
        { "$not": { "$gt": ["$lease.expiresAt", "$$NOW"] } },
    ] };
    let filter = doc! { "poolKey": key, "status": { "$ne": "dead" }, "$expr": free };
    let lease = doc! { "holder": by, "expiresAt": { "$add": ["$$NOW", 60_000] } };
    let take = vec![doc! { "$set": { "lease": lease, "lastLeasedAt": "$$NOW" } }];
    let seeds = world.collection(SEEDS);
    let taken = seeds.find_one_and_update(filter, take).sort(doc! { "lastLeasedAt": 1 });
    taken.await.unwrap().is_some()
}

#[tokio::test]
async fn python_and_we_respect_each_others_leases() {
    let world = World::new().await;
    let store = open(&world).await;
    let id = leased(&store, "t1").await;
    assert!(!python_acquires(&world, "p", "task-7").await);
    store.leases.release(&id, &holder("a")).await.unwrap();
    assert!(python_acquires(&world, "p", "task-7").await);
    assert_eq!(store.leases.acquire(&pool("p"), &holder("b")).await.unwrap(), None);
    let row = store.seeds.get(&id).await.unwrap().unwrap();
    assert_eq!((row.lease.unwrap().holder, row.dirty), (holder("task-7"), false));
    // It dies, and a minute passes.
    let ended = doc! { "$set": { "lease.expiresAt": DateTime::from_millis(0) } };
    world.collection(SEEDS).update_one(doc! {}, ended).await.unwrap();
    assert!(store.seeds.get(&id).await.unwrap().unwrap().dirty);
    assert_eq!(store.leases.acquire(&pool("p"), &holder("b")).await.unwrap(), None);
    assert!(store.leases.acquire_for_recovery(&id, &holder("b")).await.unwrap().is_some());
}

#[tokio::test]
async fn python_never_gets_a_seed_that_needs_recovery_and_may_say_that_it_is_fine() {
    let world = World::new().await;
    let store = open(&world).await;
    let id = store.seeds.import(new_seed("t1", Some("p"))).await.unwrap().id;
    let patch =
        |status, why: &str| SeedPatch { status: Some((status, Some(why.into()))), ..Default::default() };
    store.seeds.patch(&id, None, patch(SeedStatus::NeedsRecovery, "unsaved-rotation")).await.unwrap();
    assert!(!python_acquires(&world, "p", "task").await);
    let alive = doc! { "$set": { "status": "alive" } };
    world.collection(SEEDS).update_one(doc! {}, alive).await.unwrap();
    let row = store.seeds.get(&id).await.unwrap().unwrap();
    assert_eq!((row.status, row.status_reason), (SeedStatus::Alive, None));
    assert!(python_acquires(&world, "p", "task").await);
}

#[tokio::test]
async fn an_encrypted_login_is_refused_by_name_and_nothing_is_said_of_it() {
    let world = World::new().await;
    let store = open(&world).await;
    let id = leased(&store, "t1").await;
    let version = store.seeds.load(&id).await.unwrap().1;
    world.collection(SEEDS).update_one(doc! {}, doc! { "$set": { "metadata.enc": "key-7" } }).await.unwrap();
    assert!(matches!(store.seeds.load(&id).await, Err(StoreError::Locked { .. })));
    let saved = store.seeds.save_credential(&id, &holder("a"), &version, auth("t2")).await;
    assert!(matches!(saved, Err(StoreError::Locked { .. })), "{saved:?}");
    assert_eq!(store.seeds.get(&id).await.unwrap().unwrap().status, SeedStatus::Alive);
}

#[tokio::test]
async fn a_snapshots_row_and_archive_are_pythons() {
    let world = World::new().await;
    let store = open(&world).await;
    let session = SessionId::mint();
    let bytes: Vec<u8> = (0..700_000_u32).map(|i| (i % 251) as u8).collect();
    let row = snapshot(&store, &session, bytes.clone()).await;
    let stored = world.only(SNAPSHOTS).await;
    let expected = ["_id", "processId", "capturedAt", "endState", "workdirBlobId", "sessionId"];
    assert_eq!(keys(&stored), set(expected), "and nothing else (T-159)");
    assert_eq!(stored.get_str("processId").unwrap(), session.as_str());
    assert_eq!(
        (stored.get_str("endState").unwrap(), stored.get("sessionId")),
        ("cancelled", Some(&Bson::Null))
    );
    assert!(stored.get_datetime("capturedAt").is_ok());
    let file = world.only("fs.files").await;
    assert_eq!((file.get_str("filename").unwrap(), file.get_i32("chunkSize").unwrap()), ("workdir", 261_120));
    let metadata = file.get_document("metadata").unwrap();
    assert_eq!(keys(metadata), set(["processId", "prefix", "name"]));
    assert_eq!(
        (metadata.get_str("prefix").unwrap(), metadata.get_str("name").unwrap()),
        ("optio", "workdir")
    );
    assert!(ObjectId::parse_str(metadata.get_str("processId").unwrap()).is_ok());
    assert!(download(&world, stored.get_object_id("workdirBlobId").unwrap()).await == bytes);
    assert!(read(&store, &row).await == bytes);
    let indexes = world.collection(SNAPSHOTS).list_index_names().await.unwrap();
    assert!(indexes.contains(&"by_processId_capturedAt_desc".to_owned()), "{indexes:?}");
    assert_eq!(store.snapshots.codec(), "gzip");
}

#[tokio::test]
async fn a_snapshot_that_python_stored_is_listed_opened_and_then_known_by_its_hash() {
    let world = World::new().await;
    let store = open(&world).await;
    let session = SessionId::mint();
    let bytes = b"as good as an archive".repeat(100_000);
    let blob = world.upload("workdir", &bytes).await;
    let row = doc! {
        "_id": ObjectId::new(), "processId": session.as_str(), "capturedAt": DateTime::now(),
        "endState": "rescued", "workdirBlobId": blob, "sessionId": null,
    };
    world.collection(SNAPSHOTS).insert_one(&row).await.unwrap();
    let foreign = doc! { "processId": "codex-1", "capturedAt": DateTime::now(), "workdirBlobId": blob };
    world.collection(SNAPSHOTS).insert_one(&foreign).await.unwrap();
    let listed = store.snapshots.list(&session).await.unwrap();
    assert_eq!(listed.len(), 1);
    let known = &listed[0];
    assert_eq!((known.codec.as_str(), known.len, known.sha256.as_str()), ("gzip", bytes.len() as u64, ""));
    assert_eq!((&known.seed, known.end_state.as_str(), &known.thread_id), (&None, "rescued", &None));
    assert!(read(&store, known).await == bytes);
    let known = store.snapshots.get(&known.id).await.unwrap().unwrap();
    assert_eq!(known.sha256.len(), 64);
    store.snapshots.verify(&known.id).await.unwrap();
    assert_eq!(
        world.collection(SNAPSHOTS).find_one(doc! { "endState": "rescued" }).await.unwrap(),
        Some(row)
    );
}

#[tokio::test]
async fn a_torn_or_changed_archive_is_damaged_never_wrong() {
    let world = World::new().await;
    let store = open(&world).await;
    let row = snapshot(&store, &SessionId::mint(), vec![7; 600_000]).await;
    let chunks = world.collection("fs.chunks");
    let whole = chunks.find_one(doc! { "n": 1 }).await.unwrap().unwrap();
    let damaged = |result: optio_store::Result<()>| {
        assert!(matches!(result, Err(StoreError::Damaged { .. })), "{result:?}");
    };
    chunks.delete_one(doc! { "n": 1 }).await.unwrap();
    damaged(store.snapshots.verify(&row.id).await);
    let mut flipped = whole.clone();
    let mut bytes = flipped.get_binary_generic("data").unwrap().clone();
    bytes[1000] ^= 1;
    flipped.insert(
        "data",
        mongodb::bson::Binary { subtype: mongodb::bson::spec::BinarySubtype::Generic, bytes },
    );
    chunks.insert_one(flipped).await.unwrap();
    damaged(store.snapshots.verify(&row.id).await);
    chunks.replace_one(doc! { "n": 1 }, whole).await.unwrap();
    store.snapshots.verify(&row.id).await.unwrap();
    chunks.delete_one(doc! { "n": 2 }).await.unwrap();
    damaged(store.snapshots.verify(&row.id).await);
    world.collection("fs.files").delete_many(doc! {}).await.unwrap();
    damaged(store.snapshots.verify(&row.id).await);
}

#[tokio::test]
async fn two_services_share_the_seeds_and_not_the_sessions() {
    let world = World::new().await;
    let (a, b) = (open(&world).await, world.open_with("other", Options::default()).await.store(no_journal()));
    let id = leased(&a, "t1").await;
    assert_eq!(b.leases.acquire(&pool("p"), &holder("b")).await.unwrap(), None);
    assert_eq!(b.seeds.get(&id).await.unwrap().unwrap().lease.unwrap().holder, holder("a"));
    let record = RecordRow {
        id: SessionId::mint(),
        rev: 1,
        finished: false,
        state: "working".into(),
        host: "local".into(),
        seed: None,
        name: "n".into(),
        labels: Default::default(),
        created_at: jiff::Timestamp::now(),
        body: Bytes::from_static(b"sEcReT"),
    };
    a.records.insert(record.clone(), Some(("key".into(), "digest".into()))).await.unwrap();
    assert!(b.records.unfinished().await.unwrap().is_empty(), "it would adopt an agent it cannot reach");
    assert_eq!(b.records.get(&record.id).await.unwrap(), None);
    let other = RecordRow { id: SessionId::mint(), ..record.clone() };
    let inserted = b.records.insert(other, Some(("key".into(), "digest".into()))).await.unwrap();
    assert_eq!(inserted, optio_store::Inserted::New, "a key is its service's");
    assert_eq!(a.records.unfinished().await.unwrap(), [record]);
    let stored = world.collection("optio_codex_sessions").find_one(doc! {}).await.unwrap().unwrap();
    let body = stored.get_binary_generic("body").unwrap();
    assert!(!body.windows(6).any(|w| w == b"sEcReT"), "a record's body is sealed");
}

#[tokio::test]
async fn a_seed_prefix_of_its_own_is_where_the_seeds_are() {
    let world = World::new().await;
    let options = Options { prefix: "rust".into(), seed_prefix: Some("py".into()), ..Options::default() };
    let store = world.open_with("store", options).await.store(no_journal());
    store.seeds.import(new_seed("t1", None)).await.unwrap();
    snapshot(&store, &SessionId::mint(), vec![1]).await;
    world.only("py_codex_seeds").await;
    world.only("rust_codex_session_snapshots").await;
}

#[tokio::test]
async fn a_refused_save_leaves_the_document_and_its_blob_as_they_were() {
    let world = World::new().await;
    let store = open(&world).await;
    let id = leased(&store, "t1").await;
    let before = world.only(SEEDS).await;
    let base = store.seeds.load(&id).await.unwrap().1;
    let refused = store.seeds.save_credential(&id, &holder("b"), &base, auth("t2")).await.unwrap();
    assert_eq!(refused, SaveOutcome::NotHolder);
    assert_eq!(world.only(SEEDS).await, before);
    assert_eq!(world.count("fs.files").await, 1);
}
