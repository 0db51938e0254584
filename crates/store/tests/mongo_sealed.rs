//! Sealed archives in a MongoDB: what is in its chunks, what becomes of damaged ones, and which keys open what.
//! The contract itself is in `suite.rs`.

#![allow(clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, Document, doc};
use optio_store::mongo::{Mongo, Options};
use optio_store::suite::{auth, holder, new_seed, no_journal, pool};
use optio_store::{
    NewSnapshot, PageRequest, SaveOutcome, SeedFiles, SeedId, SeedPatch, SeedStatus, SessionId, SnapshotRow,
    Store, StoreError, Want,
};
use support::World;

mod support;

const SEEDS: &str = "optio_codex_seeds";
/// Does not compress: it would be found in a chunk that is not sealed.
const SECRET: &str = "sEcReT-7f3a9c";

fn sealing() -> Options {
    Options { encrypt: true, ..Options::default() }
}

async fn open(world: &World, service: &str, options: Options) -> Store {
    world.open_with(service, options).await.store(no_journal())
}

async fn sealed(world: &World) -> Store {
    open(world, "store", sealing()).await
}

/// What starting a service says that must not start.
async fn refused(world: &World, service: &str, options: Options) -> StoreError {
    Mongo::open(&world.connection, &world.dir.path().join(service), options).await.err().unwrap()
}

fn key_file(world: &World, service: &str) -> PathBuf {
    world.dir.path().join(service).join("store-key")
}

async fn leased(store: &Store, token: &str) -> SeedId {
    let id = store.seeds.import(new_seed(token, Some("p"))).await.unwrap().id;
    store.leases.acquire(&Want::Seed(id.clone()), &holder("a")).await.unwrap().unwrap();
    id
}

async fn save(store: &Store, id: &SeedId, token: &str) {
    let base = store.seeds.load(id).await.unwrap().1;
    let saved = store.seeds.save_credential(id, &holder("a"), &base, auth(token)).await.unwrap();
    assert!(matches!(saved, SaveOutcome::Saved(_)), "{saved:?}");
}

async fn token(store: &Store, id: &SeedId) -> Bytes {
    store.seeds.load(id).await.unwrap().0.0[SeedFiles::AUTH].clone()
}

async fn snapshot(store: &Store, bytes: Vec<u8>) -> SnapshotRow {
    let mut writer = store.snapshots.begin().await.unwrap();
    for piece in bytes.chunks(300_001) {
        writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    let about = NewSnapshot {
        session: SessionId::mint(),
        end_state: "done".into(),
        thread_id: None,
        codec: "gzip".into(),
        seed: None,
    };
    writer.commit(about).await.unwrap()
}

async fn read(store: &Store, row: &SnapshotRow) -> optio_store::Result<Vec<u8>> {
    let chunks = store.snapshots.open(&row.id).await?;
    chunks.try_fold(Vec::new(), |all, chunk| async move { Ok([&all[..], &chunk].concat()) }).await
}

async fn all(world: &World, collection: &str) -> Vec<Document> {
    let found = world.collection(collection).find(doc! {}).sort(doc! { "n": 1 }).await.unwrap();
    found.try_collect().await.unwrap()
}

/// The bytes of every chunk in the bucket, as they lie there, file after file.
async fn raw(world: &World) -> Vec<Vec<u8>> {
    let chunks = all(world, "fs.chunks").await;
    chunks.iter().map(|chunk| chunk.get_binary_generic("data").unwrap().clone()).collect()
}

/// Whether a login's archive, or a piece of an archive, can be recognised: gzip begins with these.
fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// The key that a seed's document names.
async fn named_key(world: &World, id: &SeedId) -> Option<String> {
    let this = doc! { "_id": ObjectId::parse_str(id.as_str()).unwrap() };
    let seed = world.collection(SEEDS).find_one(this).await.unwrap().unwrap();
    seed.get_document("metadata").unwrap().get_str("enc").ok().map(str::to_owned)
}

fn locked<T: std::fmt::Debug>(result: optio_store::Result<T>) -> String {
    match result {
        Err(StoreError::Locked { key, .. }) => key,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn no_chunk_of_the_database_holds_a_token_or_a_files_content() {
    let world = World::new().await;
    let store = sealed(&world).await;
    let id = leased(&store, SECRET).await;
    save(&store, &id, &format!("{SECRET}-2")).await;
    let content: Vec<u8> = SECRET.bytes().cycle().take(2_500_000).collect();
    let row = snapshot(&store, content.clone()).await;

    let chunks = raw(&world).await;
    assert!(chunks.len() >= 12, "two logins and ten chunks of an archive; saw {}", chunks.len());
    let needle = &SECRET.as_bytes()[..6];
    for chunk in &chunks {
        assert!(!chunk.windows(needle.len()).any(|window| window == needle));
        assert!(!is_gzip(chunk), "a login as it is packed");
    }
    let files = all(&world, "fs.files").await;
    let key = named_key(&world, &id).await.unwrap();
    for file in &files {
        assert_eq!(file.get_document("metadata").unwrap().get_str("enc").unwrap(), key);
    }
    for name in world.db.list_collection_names().await.unwrap() {
        for document in all(&world, &name).await {
            let bytes = mongodb::bson::serialize_to_vec(&document).unwrap();
            assert!(!bytes.windows(needle.len()).any(|window| window == needle), "{name}");
        }
    }
    assert_eq!(token(&store, &id).await, auth(&format!("{SECRET}-2")));
    assert!(read(&store, &row).await.unwrap() == content);
    assert_eq!((row.len, row.sha256.len()), (content.len() as u64, 64));

    // The same search finds what is not sealed, so it would have found this.
    let plain = open(&world, "plain", Options::default()).await;
    snapshot(&plain, content).await;
    assert!(raw(&world).await.iter().any(|c| c.windows(needle.len()).any(|window| window == needle)));
}

#[tokio::test]
async fn a_document_stays_pythons_but_for_the_key_in_its_notes() {
    let world = World::new().await;
    let store = sealed(&world).await;
    leased(&store, "t1").await;
    let seed = world.only(SEEDS).await;
    let keys: Vec<_> = seed.get_document("metadata").unwrap().keys().cloned().collect();
    assert_eq!(keys, ["optioCodex", "enc"]);
    let file = world.only("fs.files").await;
    assert_eq!((file.get_str("filename").unwrap(), file.get_i32("chunkSize").unwrap()), ("seed", 261_120));
    let row = store.seeds.list(None, &PageRequest::default()).await.unwrap().data.pop().unwrap();
    assert!(row.metadata.is_empty(), "not the consumer's: {:?}", row.metadata);
    let patch = SeedPatch {
        metadata: serde_json::json!({ "enc": null }).as_object().unwrap().clone(),
        ..SeedPatch::default()
    };
    let refused = store.seeds.patch(&row.id, None, patch).await;
    assert!(
        matches!(refused, Err(StoreError::Invalid { .. })),
        "it would hide what the login is sealed with"
    );
}

#[tokio::test]
async fn the_setting_counts_from_the_next_write_on_and_both_are_read_either_way() {
    let world = World::new().await;
    let plain = open(&world, "store", Options::default()).await;
    let id = leased(&plain, "t1").await;
    let first = snapshot(&plain, vec![1; 10]).await;
    assert!(!key_file(&world, "store").exists(), "who does not seal needs no key");
    drop(plain);

    let on = sealed(&world).await;
    assert_eq!(std::fs::metadata(key_file(&world, "store")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(token(&on, &id).await, auth("t1"));
    assert_eq!(read(&on, &first).await.unwrap(), [1; 10]);
    assert_eq!(named_key(&world, &id).await, None, "reading changes nothing");
    save(&on, &id, "t2").await;
    assert!(named_key(&world, &id).await.is_some());
    let second = snapshot(&on, vec![2; 10]).await;
    drop(on);

    let off = open(&world, "store", Options::default()).await;
    assert_eq!(token(&off, &id).await, auth("t2"));
    assert_eq!(read(&off, &second).await.unwrap(), [2; 10]);
    save(&off, &id, "t3").await;
    assert_eq!(named_key(&world, &id).await, None);
    assert_eq!(token(&off, &id).await, auth("t3"));
    assert!(raw(&world).await.iter().any(|chunk| is_gzip(chunk)), "as Python writes it");
}

#[tokio::test]
async fn a_blob_that_somebody_without_keys_put_there_is_read_as_it_is() {
    let world = World::new().await;
    let store = sealed(&world).await;
    let id = leased(&store, "t1").await;
    let plain = open(&world, "plain", Options::default()).await;
    let other = plain.seeds.import(new_seed("t2", None)).await.unwrap();
    let blob = ObjectId::parse_str(&other.version.0).unwrap();
    let this = doc! { "_id": ObjectId::parse_str(id.as_str()).unwrap() };
    world.collection(SEEDS).update_one(this, doc! { "$set": { "blobId": blob } }).await.unwrap();
    assert!(named_key(&world, &id).await.is_some(), "nobody told the document");
    assert_eq!(token(&store, &id).await, auth("t2"));
}

#[tokio::test]
async fn a_login_with_another_key_is_listed_with_that_and_neither_leased_nor_overwritten() {
    let world = World::new().await;
    let theirs = open(&world, "theirs", sealing()).await;
    let id = theirs.seeds.import(new_seed("t1", Some("p"))).await.unwrap().id;
    let key = named_key(&world, &id).await.unwrap();
    let before = world.only(SEEDS).await;
    let ours = open(&world, "ours", Options::default()).await;

    let rows = ours.seeds.list(None, &PageRequest::default()).await.unwrap().data;
    let reason = rows[0].status_reason.clone().unwrap();
    assert!(reason.contains("encrypted") && reason.contains(&key), "{reason}");
    assert_eq!(rows[0].status, SeedStatus::Alive, "which is as good as it was");
    assert_eq!(rows[0].account.id.as_deref(), Some("acct"), "known without reading it");
    assert_eq!(locked(ours.seeds.load(&id).await), key);
    assert_eq!(ours.leases.acquire(&pool("p"), &holder("b")).await.unwrap(), None);
    assert_eq!(locked(ours.leases.acquire(&Want::Seed(id.clone()), &holder("b")).await), key);
    assert_eq!(locked(ours.leases.acquire_for_recovery(&id, &holder("b")).await), key);
    let twin = ours.seeds.import(new_seed("t1", None)).await;
    assert!(matches!(twin, Err(StoreError::Conflict { .. })), "{twin:?}");
    assert_eq!(world.only(SEEDS).await, before, "and nothing has changed");

    // A pool goes on with what can be read.
    let readable = ours.seeds.import(new_seed("t2", Some("p"))).await.unwrap().id;
    let lease = ours.leases.acquire(&pool("p"), &holder("b")).await.unwrap().unwrap();
    assert_eq!(lease.seed, readable);
    assert_eq!(ours.leases.acquire(&pool("p"), &holder("c")).await.unwrap(), None);
    // Even as the holder nobody writes over it.
    let lease = theirs.leases.acquire(&Want::Seed(id.clone()), &holder("a")).await.unwrap().unwrap();
    let base = theirs.seeds.load(&id).await.unwrap().1;
    locked(ours.seeds.save_credential(&id, &lease.holder, &base, auth("t3")).await);
    assert_eq!(token(&theirs, &id).await, auth("t1"));
    // An operator may still do away with it.
    ours.seeds.delete(&id, true).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_with_another_key_is_listed_and_refused_by_that_name() {
    let world = World::new().await;
    let theirs = open(&world, "theirs", sealing()).await;
    let row = snapshot(&theirs, vec![3; 1000]).await;
    // Of another prefix, so without our notes.
    let options =
        Options { prefix: "rust".into(), snapshot_prefix: Some("optio".into()), ..Options::default() };
    let ours = open(&world, "ours", options).await;
    let listed = ours.snapshots.list(&row.session).await.unwrap();
    assert_eq!((listed[0].len, listed[0].codec.as_str()), (1000, "gzip"), "the length is not a secret");
    locked(ours.snapshots.verify(&row.id).await);
    assert_eq!(locked(read(&ours, &row).await).len(), 16);
}

#[tokio::test]
async fn a_fleet_has_one_key_and_a_second_one_is_not_made() {
    let world = World::new().await;
    let first = open(&world, "first", sealing()).await;
    // Before anything is sealed nobody can know of the other one's key; a snapshot is enough, without any login.
    let row = snapshot(&first, vec![1; 10]).await;
    let error = refused(&world, "second", sealing()).await;
    let text = error.to_string();
    assert!(matches!(error, StoreError::Damaged { .. }) && text.contains("copy"), "{text}");
    assert!(text.contains(key_file(&world, "second").to_str().unwrap()), "{text}");
    assert!(!key_file(&world, "second").exists());
    let id = leased(&first, "t1").await;
    let text = refused(&world, "second", sealing()).await.to_string();
    assert!(text.contains(&named_key(&world, &id).await.unwrap()), "{text}");

    std::fs::copy(key_file(&world, "first"), key_file(&world, "second")).unwrap();
    let second = open(&world, "second", sealing()).await;
    assert_eq!(token(&second, &id).await, auth("t1"));
    assert_eq!(read(&second, &row).await.unwrap(), [1; 10]);
    save(&second, &id, "t2").await;
    assert_eq!(token(&first, &id).await, auth("t2"));
    assert!(second.records.unfinished().await.unwrap().is_empty(), "sessions have another key");
}

#[tokio::test]
async fn a_key_that_was_replaced_still_opens_what_it_sealed() {
    let world = World::new().await;
    let before = sealed(&world).await;
    let id = leased(&before, "t1").await;
    let row = snapshot(&before, vec![4; 10]).await;
    let first = named_key(&world, &id).await.unwrap();
    drop(before);
    let old = world.dir.path().join("old-key");
    std::fs::rename(key_file(&world, "store"), &old).unwrap();
    let new = world.dir.path().join("new-key");
    std::fs::write(&new, [9; 32]).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
    let options = Options { store_key: Some(new.clone()), ..sealing() };
    let without = open(&world, "store", options.clone()).await;
    locked(without.seeds.load(&id).await);
    drop(without);

    let store = open(&world, "store", Options { old_store_keys: vec![old.clone()], ..options }).await;
    assert_eq!(token(&store, &id).await, auth("t1"));
    assert_eq!(read(&store, &row).await.unwrap(), [4; 10]);
    store.leases.release(&id, &holder("a")).await.unwrap();
    assert!(store.leases.acquire(&pool("p"), &holder("a")).await.unwrap().is_some(), "it can be read");
    save(&store, &id, "t2").await;
    let second = named_key(&world, &id).await.unwrap();
    assert_ne!(first, second);
    drop(store);
    let only_new = Options { store_key: Some(new), ..Options::default() };
    assert_eq!(token(&open(&world, "store", only_new).await, &id).await, auth("t2"));
}

#[tokio::test]
async fn key_files_that_are_missing_torn_or_open_to_others_are_refused() {
    let world = World::new().await;
    let nowhere = Some(world.dir.path().join("nowhere"));
    let missing = Options { store_key: nowhere.clone(), ..Options::default() };
    assert!(matches!(refused(&world, "store", missing).await, StoreError::Damaged { .. }));
    let old = Options { old_store_keys: nowhere.into_iter().collect(), ..sealing() };
    assert!(matches!(refused(&world, "store", old).await, StoreError::Damaged { .. }));
    let file = world.dir.path().join("mine");
    std::fs::write(&file, [7; 32]).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mine = Options { store_key: Some(file.clone()), ..sealing() };
    assert!(matches!(refused(&world, "store", mine.clone()).await, StoreError::Invalid { .. }));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&file, [7; 31]).unwrap();
    assert!(matches!(refused(&world, "store", mine).await, StoreError::Damaged { .. }));
}

/// Puts other bytes into a chunk, and makes the file's length fit if it is told so.
async fn tamper(world: &World, chunk: &Document, bytes: Vec<u8>, file_length: Option<i64>) {
    let this = doc! { "_id": chunk.get_object_id("_id").unwrap() };
    let data = Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes });
    world.collection("fs.chunks").update_one(this, doc! { "$set": { "data": data } }).await.unwrap();
    if let Some(length) = file_length {
        let file = doc! { "_id": chunk.get_object_id("files_id").unwrap() };
        world.collection("fs.files").update_one(file, doc! { "$set": { "length": length } }).await.unwrap();
    }
}

#[tokio::test]
async fn a_changed_byte_anywhere_in_a_login_is_damage_and_never_another_login() {
    let world = World::new().await;
    let store = sealed(&world).await;
    let id = leased(&store, "t1").await;
    let chunk = world.only("fs.chunks").await;
    let whole = chunk.get_binary_generic("data").unwrap().clone();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        tamper(&world, &chunk, flipped, None).await;
        let read = store.seeds.load(&id).await;
        assert!(matches!(read, Err(StoreError::Damaged { .. })), "byte {at}: {read:?}");
    }
    // Cut off, with a length that fits what is left.
    for len in [0, 10, 22, 23, 38, 39, whole.len() - 1] {
        tamper(&world, &chunk, whole[..len].to_vec(), Some(len as i64)).await;
        let read = store.seeds.load(&id).await;
        assert!(matches!(read, Err(StoreError::Damaged { .. })), "{len} bytes: {read:?}");
    }
    let longer = [&whole[..], b"x"].concat();
    let len = longer.len() as i64;
    tamper(&world, &chunk, longer, Some(len)).await;
    assert!(matches!(store.seeds.load(&id).await, Err(StoreError::Damaged { .. })));
    tamper(&world, &chunk, whole.clone(), Some(whole.len() as i64)).await;
    assert_eq!(token(&store, &id).await, auth("t1"));
}

#[tokio::test]
async fn a_torn_or_changed_archive_gives_no_wrong_byte() {
    let world = World::new().await;
    let store = sealed(&world).await;
    let content: Vec<u8> = (0..2_300_000_u32).map(|i| (i % 251) as u8).collect();
    let row = snapshot(&store, content.clone()).await;
    // Noted by nobody: the seal alone has to see it.
    world.collection("optio_codex_snapshot_notes").delete_many(doc! {}).await.unwrap();
    let chunks = all(&world, "fs.chunks").await;
    let length = world.only("fs.files").await.get_i64("length").unwrap();
    let damaged = async |what: &str| {
        let mut given = Vec::new();
        let mut pieces = store.snapshots.open(&row.id).await.unwrap();
        let end = loop {
            match pieces.next().await {
                Some(Ok(piece)) => given.extend_from_slice(&piece),
                end => break end,
            }
        };
        assert!(matches!(end, Some(Err(StoreError::Damaged { .. }))), "{what}: {end:?}");
        assert!(content.starts_with(&given), "{what}: no wrong byte before the error");
    };
    for (i, chunk) in chunks.iter().enumerate() {
        let bytes = chunk.get_binary_generic("data").unwrap().clone();
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 0x80;
        tamper(&world, chunk, flipped, None).await;
        damaged(&format!("chunk {i}")).await;
        tamper(&world, chunk, bytes, None).await;
    }
    // Cut where a sealed chunk ends, which reads as whole but for the mark of the last one.
    let sealed_chunk: i64 = 23 + 2 * ((1 << 20) + 16);
    let n = (sealed_chunk / 261_120) as usize;
    let rest = doc! { "n": { "$gt": n as i32 } };
    world.collection("fs.chunks").delete_many(rest).await.unwrap();
    let bytes = chunks[n].get_binary_generic("data").unwrap();
    let kept = (sealed_chunk - n as i64 * 261_120) as usize;
    tamper(&world, &chunks[n], bytes[..kept].to_vec(), Some(sealed_chunk)).await;
    damaged("cut between two sealed chunks").await;
    assert!(length > sealed_chunk);
}

#[tokio::test]
async fn archives_do_not_open_in_each_others_place() {
    let world = World::new().await;
    let store = sealed(&world).await;
    let (a, b) = (leased(&store, "t1").await, leased(&store, "t2").await);
    let chunks = all(&world, "fs.chunks").await;
    let bytes = |i: usize| chunks[i].get_binary_generic("data").unwrap().clone();
    tamper(&world, &chunks[0], bytes(1), Some(bytes(1).len() as i64)).await;
    tamper(&world, &chunks[1], bytes(0), Some(bytes(0).len() as i64)).await;
    for id in [a, b] {
        assert!(matches!(store.seeds.load(&id).await, Err(StoreError::Damaged { .. })));
    }
}
