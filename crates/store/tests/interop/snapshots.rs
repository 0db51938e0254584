//! A workdir that one stored is restored by the other, and both agree on which one is the newest.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use futures_util::TryStreamExt;
use mongodb::bson::{Bson, doc};
use optio_store::{NewSnapshot, SNAPSHOTS_KEPT, SessionId, SnapshotRow};
use serde_json::{Value, json};

use crate::world::{World, keys, log_in, login, with_each, with_one};

/// More than one chunk of GridFS, and not a multiple of one.
const LARGE: usize = 3 * 261_120 + 17;

/// Bytes that do not compress, the same each time.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// What stands in a workdir of these tests, name to bytes.
fn files() -> BTreeMap<String, Vec<u8>> {
    let rollout = "home/.codex/sessions/2026/07/02/rollout-2026-07-02T00-11-54-0198a1b2-0000-7000-8000-0000000000aa.jsonl";
    [
        ("haiku.txt", b"one\n".to_vec()),
        ("deep/er/noise.bin", noise(LARGE)),
        ("ünïcode name.txt", "ü".into()),
        ("empty", Vec::new()),
        (rollout, b"{}\n".to_vec()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}

fn fill(workdir: &Path) {
    for (name, bytes) in files() {
        let path = workdir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

fn about(session: &SessionId, thread: Option<&str>) -> NewSnapshot {
    NewSnapshot {
        session: session.clone(),
        end_state: "cancelled".into(),
        thread_id: thread.map(str::to_owned),
        codec: "gzip".into(),
        seed: None,
    }
}

/// Stores an archive of ours: what the host makes of a workdir, as gzip.
async fn we_store(w: &World, about: NewSnapshot, name_as: fn(&str) -> String) -> SnapshotRow {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, bytes) in files() {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o640);
        tar.append_data(&mut header, name_as(&name), &*bytes).unwrap();
    }
    let archive = Bytes::from(tar.into_inner().unwrap().finish().unwrap());
    let mut writer = w.store.snapshots.begin().await.unwrap();
    for at in (0..archive.len()).step_by(100_000) {
        writer.write(archive.slice(at..archive.len().min(at + 100_000))).await.unwrap();
    }
    writer.commit(about).await.unwrap()
}

/// Reads an archive as our host would before it unpacks it.
async fn we_read(w: &World, row: &SnapshotRow) -> BTreeMap<String, Vec<u8>> {
    assert_eq!(row.codec, "gzip");
    let chunks: Vec<Bytes> = w.store.snapshots.open(&row.id).await.unwrap().try_collect().await.unwrap();
    let mut tar = tar::Archive::new(GzDecoder::new(std::io::Cursor::new(chunks.concat())));
    let mut found = BTreeMap::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let name = entry.path().unwrap().to_str().unwrap().trim_start_matches("./").to_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            found.insert(name, bytes);
        }
    }
    found
}

async fn python_stores(w: &mut World, session: &SessionId, thread: Option<&str>) {
    let snapshot = json!({ "process_id": session, "thread": thread, "cancelled": false });
    w.python("snapshot", snapshot).await;
}

#[tokio::test]
async fn what_python_stored_we_restore() {
    with_each(async |mut w| {
        let session = SessionId::mint();
        let workdir = w.session(session.as_str()).await;
        fill(&workdir);
        log_in(&workdir, &login("acct-a", "rt-1"));
        python_stores(&mut w, &session, Some("thread-1")).await;

        let rows = w.store.snapshots.list(&session).await.unwrap();
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!(
            (row.end_state.as_str(), row.thread_id.as_deref(), &row.seed),
            ("done", Some("thread-1"), &None)
        );
        assert_eq!(w.store.snapshots.get(&row.id).await.unwrap().as_ref(), Some(row));
        w.store.snapshots.verify(&row.id).await.unwrap();
        let mut found = we_read(&w, row).await;
        assert_eq!(
            found.remove("home/.codex/auth.json"),
            Some(login("acct-a", "rt-1")),
            "Python keeps it (T-193)"
        );
        found.remove("home/.codex/config.toml");
        assert_eq!(found, files());
    })
    .await;
}

#[tokio::test]
async fn what_we_stored_python_restores() {
    let plain: fn(&str) -> String = str::to_owned;
    let dotted: fn(&str) -> String = |name| format!("./{name}");
    with_each(async |mut w| {
        for name_as in [plain, dotted] {
            let session = SessionId::mint();
            let row = we_store(&w, about(&session, Some("thread-1")), name_as).await;

            let latest = w.python("latest_snapshot", json!({ "process_id": session })).await;
            let fields: Vec<_> = latest.as_object().unwrap().keys().map(String::as_str).collect();
            let expected = ["_id", "capturedAt", "endState", "processId", "sessionId", "workdirBlobId"];
            assert_eq!(fields, expected, "no other field (T-159), here in the order of the alphabet");
            assert_eq!((&latest["endState"], &latest["processId"]), (&json!("cancelled"), &json!(session)));
            let captured = row.captured_at.as_millisecond().to_string();
            assert_eq!(latest["capturedAt"]["$date"]["$numberLong"], json!(captured));

            let workdir = w.session(session.as_str()).await;
            std::fs::write(workdir.join("left over"), "x").unwrap();
            let restored = w.python("restore", json!({ "process_id": session })).await;
            assert_eq!(restored, json!({ "thread": "thread-1" }));
            for (name, bytes) in files() {
                assert_eq!(std::fs::read(workdir.join(&name)).ok(), Some(bytes), "{name}");
            }
            assert!(!workdir.join("left over").exists());
        }
    })
    .await;
}

#[tokio::test]
async fn a_stored_archive_is_the_file_that_python_would_have_written() {
    with_one(async |mut w| {
        let session = SessionId::mint();
        we_store(&w, about(&session, None), str::to_owned).await;
        let theirs = SessionId::mint();
        let workdir = w.session(theirs.as_str()).await;
        fill(&workdir);
        python_stores(&mut w, &theirs, None).await;

        let files = w.database.collection::<mongodb::bson::Document>("fs.files");
        let mut shapes = Vec::new();
        for session in [&session, &theirs] {
            let row = w.snapshots().find_one(doc! { "processId": session.as_str() }).await.unwrap().unwrap();
            let blob = row.get_object_id("workdirBlobId").unwrap();
            let file = files.find_one(doc! { "_id": blob }).await.unwrap().unwrap();
            assert_eq!(file.get_str("filename").unwrap(), "workdir", "T-168");
            let metadata = file.get_document("metadata").unwrap();
            assert_eq!(metadata.get_str("prefix").unwrap(), "optio");
            assert_eq!(metadata.get_str("name").unwrap(), "workdir");
            let kinds = |fields: &[&str]| {
                fields
                    .iter()
                    .map(|field| (field.to_string(), file.get(field).map(Bson::element_type)))
                    .collect::<Vec<_>>()
            };
            let kinds = kinds(&["_id", "filename", "chunkSize", "uploadDate", "metadata"]);
            let mut named: Vec<_> = keys(metadata).into_iter().map(str::to_owned).collect();
            named.sort();
            shapes.push((kinds, file.get("chunkSize").cloned(), named));
        }
        assert_eq!(shapes[0], shapes[1]);
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_without_a_thread_has_none_for_either() {
    with_one(async |mut w| {
        let ours = SessionId::mint();
        we_store(&w, about(&ours, None), str::to_owned).await;
        w.session(ours.as_str()).await;
        assert_eq!(w.python("restore", json!({ "process_id": ours })).await, json!({ "thread": null }));
        let row = w.python("latest_snapshot", json!({ "process_id": ours })).await;
        assert_eq!(row.get("sessionId"), Some(&Value::Null), "always present (T-159)");

        let theirs = SessionId::mint();
        w.session(theirs.as_str()).await;
        python_stores(&mut w, &theirs, None).await;
        assert_eq!(w.store.snapshots.list(&theirs).await.unwrap()[0].thread_id, None);
    })
    .await;
}

#[tokio::test]
async fn both_keep_the_newest_five_and_agree_on_the_newest() {
    with_each(async |mut w| {
        let session = SessionId::mint();
        w.session(session.as_str()).await;
        let mut threads = Vec::new();
        for i in 0..SNAPSHOTS_KEPT + 3 {
            let thread = format!("thread-{i}");
            if i % 2 == 0 {
                we_store(&w, about(&session, Some(&thread)), str::to_owned).await;
            } else {
                python_stores(&mut w, &session, Some(&thread)).await;
            }
            threads.insert(0, thread.clone());
            let latest = w.python("latest_snapshot", json!({ "process_id": session })).await;
            assert_eq!(latest["sessionId"], json!(thread));
            let listed = w.store.snapshots.list(&session).await.unwrap();
            let listed: Vec<_> = listed.into_iter().map(|row| row.thread_id.unwrap()).collect();
            assert_eq!(listed, threads[..threads.len().min(SNAPSHOTS_KEPT)]);
        }
        // Whichever of the two pruned: what is listed can be read, and Python's restore finds its file.
        for row in w.store.snapshots.list(&session).await.unwrap() {
            w.store.snapshots.verify(&row.id).await.unwrap();
        }
        let restored = w.python("restore", json!({ "process_id": session })).await;
        assert_eq!(restored["thread"], json!(threads[0]));
    })
    .await;
}

#[tokio::test]
async fn deleting_a_sessions_snapshots_leaves_those_of_others_to_python() {
    with_one(async |mut w| {
        let (mine, other) = (SessionId::mint(), SessionId::mint());
        for session in [&mine, &other] {
            let workdir = w.session(session.as_str()).await;
            fill(&workdir);
            python_stores(&mut w, session, Some("thread-1")).await;
        }
        w.store.snapshots.delete_all(&mine).await.unwrap();
        assert_eq!(w.python("latest_snapshot", json!({ "process_id": mine })).await, Value::Null);
        assert_eq!(
            w.python("restore", json!({ "process_id": other })).await,
            json!({ "thread": "thread-1" })
        );
    })
    .await;
}

/// Both make the same index before each write; had it another name or order, the second one would fail.
#[tokio::test]
async fn the_index_of_one_is_the_index_of_the_other() {
    with_one(async |mut w| {
        let session = SessionId::mint();
        we_store(&w, about(&session, None), str::to_owned).await;
        w.session(session.as_str()).await;
        python_stores(&mut w, &session, None).await;
        let mut names = w.snapshots().list_index_names().await.unwrap();
        names.sort();
        assert_eq!(names, ["_id_", "by_processId_capturedAt_desc"], "T-160");
    })
    .await;
}
