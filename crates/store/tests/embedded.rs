//! The directory: crashes, keys, damage, sweeping. The contract itself is in `suite.rs`.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use optio_store::embedded::{BLOB_GRACE, Embedded, Options};
use optio_store::suite::{auth, holder, new_seed, no_journal};
use optio_store::{
    LEASE_TTL, ManualClock, NewSnapshot, Result, SaveOutcome, SeedFiles, SeedId, SessionId, SnapshotRow,
    SpoolEntry, Store, StoreError, Want,
};

struct Dir {
    temp: tempfile::TempDir,
    clock: Arc<ManualClock>,
}

impl Dir {
    fn new() -> Self {
        Self { temp: tempfile::tempdir().unwrap(), clock: Arc::new(ManualClock::new()) }
    }

    fn path(&self) -> PathBuf {
        self.temp.path().join("store")
    }

    fn options(&self) -> Options {
        Options { clock: self.clock.clone(), ..Options::default() }
    }

    fn open(&self) -> Embedded {
        Embedded::open(&self.path(), self.options()).unwrap()
    }

    fn files(&self, sub: &str) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path().join(sub))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// Waits for what happens on another thread.
async fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(5), "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn store(embedded: &Embedded) -> Store {
    embedded.store(no_journal())
}

async fn leased(store: &Store, token: &str) -> SeedId {
    let id = store.seeds.import(new_seed(token, Some("p"))).await.unwrap().id;
    store.leases.acquire(&Want::Seed(id.clone()), &holder("a")).await.unwrap().unwrap();
    id
}

async fn snapshot(store: &Store, session: &SessionId, bytes: Vec<u8>) -> SnapshotRow {
    let mut writer = store.snapshots.begin().await.unwrap();
    writer.write(bytes.into()).await.unwrap();
    writer.commit(about(session)).await.unwrap()
}

fn about(session: &SessionId) -> NewSnapshot {
    NewSnapshot {
        session: session.clone(),
        end_state: "done".into(),
        thread_id: None,
        codec: "zstd".into(),
        seed: None,
    }
}

fn spool_entry(seed: &SeedId) -> SpoolEntry {
    SpoolEntry {
        seed: seed.clone(),
        session: Some(SessionId::mint()),
        holder: holder("a"),
        base: optio_store::SeedVersion("v".into()),
        fingerprint: "f".into(),
        account_id: None,
        at: jiff::Timestamp::now(),
        auth_json: auth("spooled"),
    }
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let dir = Dir::new();
    let session = SessionId::mint();
    let (id, version, row) = {
        let store = store(&dir.open());
        let id = leased(&store, "t1").await;
        let base = store.seeds.load(&id).await.unwrap().1;
        let saved = store.seeds.save_credential(&id, &holder("a"), &base, auth("t2")).await.unwrap();
        let SaveOutcome::Saved(version) = saved else { panic!("{saved:?}") };
        store.spool.put(spool_entry(&id)).await.unwrap();
        (id, version, snapshot(&store, &session, vec![7; 100]).await)
    };
    let store = store(&dir.open());
    let (files, now) = store.seeds.load(&id).await.unwrap();
    assert_eq!((&files.0[SeedFiles::AUTH], now), (&auth("t2"), version));
    assert_eq!(store.seeds.get(&id).await.unwrap().unwrap().lease.unwrap().holder, holder("a"));
    assert_eq!(store.snapshots.list(&session).await.unwrap(), std::slice::from_ref(&row));
    store.snapshots.verify(&row.id).await.unwrap();
    assert_eq!(store.spool.entries().await.unwrap()[0].1.as_ref().unwrap().auth_json, auth("spooled"));
}

#[tokio::test]
async fn nothing_secret_is_readable_on_disk_and_nothing_is_open_to_others() {
    let dir = Dir::new();
    let embedded = dir.open();
    let store = store(&embedded);
    let id = leased(&store, "sEcReT").await;
    store.spool.put(SpoolEntry { auth_json: auth("sEcReT"), ..spool_entry(&id) }).await.unwrap();
    snapshot(&store, &SessionId::mint(), b"sEcReT".repeat(10)).await;
    let record = optio_store::RecordRow {
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
    store.records.insert(record, None).await.unwrap();
    let mut seen = 0;
    let mut dirs = vec![dir.path()];
    while let Some(next) = dirs.pop() {
        assert_eq!(fs::metadata(&next).unwrap().permissions().mode() & 0o777, 0o700, "{next:?}");
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            assert!(!bytes.windows(6).any(|w| w == b"sEcReT"), "{path:?}");
            seen += 1;
        }
    }
    assert!(seen >= 6, "key, lock, database, login, snapshot, spool entry; saw {seen}");
    assert_eq!(fs::metadata(dir.path().join("key")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_second_service_is_refused_until_the_first_has_let_go() {
    let dir = Dir::new();
    let first = dir.open();
    let impatient = || Options { lock_wait: Duration::ZERO, ..dir.options() };
    let refused = Embedded::open(&dir.path(), impatient()).err().unwrap();
    let text = refused.to_string();
    assert!(text.contains("lock") && text.contains(&format!("pid {}", std::process::id())), "{text}");
    drop(first);
    dir.open();
}

#[test]
fn a_key_file_that_others_may_read_is_refused() {
    let dir = Dir::new();
    drop(dir.open());
    let key = dir.path().join("key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let text = Embedded::open(&dir.path(), dir.options()).err().unwrap().to_string();
    assert!(text.contains(key.to_str().unwrap()) && text.contains("640"), "{text}");
}

#[test]
fn another_key_or_none_is_refused_in_clear_words() {
    let dir = Dir::new();
    drop(dir.open());
    let key = dir.path().join("key");
    let own = fs::read(&key).unwrap();
    fs::write(&key, [7; 32]).unwrap();
    let error = Embedded::open(&dir.path(), dir.options()).err().unwrap();
    assert!(
        matches!(error, StoreError::Damaged { .. }) && error.to_string().contains("not the key"),
        "{error}"
    );
    fs::write(&key, [7; 31]).unwrap();
    assert!(matches!(Embedded::open(&dir.path(), dir.options()), Err(StoreError::Damaged { .. })));
    fs::remove_file(&key).unwrap();
    let error = Embedded::open(&dir.path(), dir.options()).err().unwrap();
    assert!(error.to_string().contains("missing"), "{error}");
    assert!(!key.exists(), "no other key is made");
    let elsewhere = dir.temp.path().join("my-key");
    fs::write(&elsewhere, own).unwrap();
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o600)).unwrap();
    Embedded::open(&dir.path(), Options { key_file: Some(elsewhere), ..dir.options() }).unwrap();
}

#[test]
fn a_newer_database_is_refused() {
    let dir = Dir::new();
    drop(dir.open());
    // The thread closes the database after the handle is gone; the lock tells when.
    drop(dir.open());
    wait_for_lock(&dir.path());
    let connection = rusqlite::Connection::open(dir.path().join("optio.db")).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Embedded::open(&dir.path(), dir.options()).err().unwrap();
    assert!(matches!(error, StoreError::Invalid { .. }) && error.to_string().contains("99"), "{error}");
}

#[tokio::test]
async fn a_database_of_the_first_version_is_brought_forward_with_its_seeds() {
    let dir = Dir::new();
    let id = leased(&store(&dir.open()), "t1").await;
    wait_for_lock(&dir.path());
    let connection = rusqlite::Connection::open(dir.path().join("optio.db")).unwrap();
    connection
        .execute_batch(
            "ALTER TABLE seeds DROP COLUMN refreshed; ALTER TABLE seeds DROP COLUMN verified;
             PRAGMA user_version = 1;",
        )
        .unwrap();
    drop(connection);
    let store = store(&dir.open());
    let row = store.seeds.get(&id).await.unwrap().unwrap();
    assert_eq!((row.last_refreshed_at, row.last_verified_at), (None, None));
    store.seeds.save_credential(&id, &holder("a"), &row.version, auth("t2")).await.unwrap();
    assert!(store.seeds.get(&id).await.unwrap().unwrap().last_refreshed_at.is_some());
}

fn wait_for_lock(dir: &Path) {
    fs::File::open(dir.join("lock")).unwrap().lock().unwrap();
}

#[tokio::test]
async fn a_pool_is_used_in_turn_also_within_one_millisecond() {
    let dir = Dir::new();
    let store = store(&dir.open());
    for token in ["t0", "t1", "t2"] {
        store.seeds.import(new_seed(token, Some("p"))).await.unwrap();
    }
    let mut order = Vec::new();
    for _ in 0..6 {
        let lease = store.leases.acquire(&Want::Pool("p".into()), &holder("a")).await.unwrap().unwrap();
        store.leases.release(&lease.seed, &holder("a")).await.unwrap();
        order.push(lease.seed);
    }
    assert_eq!(order[..3], order[3..]);
    assert!(order[0] != order[1] && order[1] != order[2] && order[0] != order[2]);
}

#[tokio::test]
async fn a_database_that_takes_no_rows_is_a_problem_until_it_does() {
    let dir = Dir::new();
    let store = store(&dir.open());
    assert!(store.health.check().await.works());
    // Not a full disk, but SQLite refuses the row all the same.
    let beside = rusqlite::Connection::open(dir.path().join("optio.db")).unwrap();
    beside.execute_batch("ALTER TABLE meta RENAME TO elsewhere").unwrap();
    let health = store.health.check().await;
    assert!(health.problem.as_deref().is_some_and(|why| why.contains("meta")), "{health:?}");
    assert_eq!(store.health.state(), health);
    beside.execute_batch("ALTER TABLE elsewhere RENAME TO meta").unwrap();
    assert!(store.health.check().await.works());
}

#[tokio::test]
async fn a_replaced_login_stays_for_its_readers_and_is_swept_later() {
    let dir = Dir::new();
    let embedded = dir.open();
    let store = store(&embedded);
    let id = leased(&store, "t1").await;
    let base = store.seeds.load(&id).await.unwrap().1;
    store.seeds.save_credential(&id, &holder("a"), &base, auth("t2")).await.unwrap();
    assert_eq!(dir.files("blobs").len(), 2);
    dir.clock.advance(BLOB_GRACE - Duration::from_secs(1));
    assert_eq!(embedded.sweep().await.unwrap(), 0);
    dir.clock.advance(Duration::from_secs(1));
    assert_eq!(embedded.sweep().await.unwrap(), 1);
    assert_eq!(dir.files("blobs").len(), 1);
    assert_eq!(store.seeds.load(&id).await.unwrap().0.0[SeedFiles::AUTH], auth("t2"));
    store.seeds.delete(&id, true).await.unwrap();
    dir.clock.advance(BLOB_GRACE);
    assert_eq!(embedded.sweep().await.unwrap(), 1);
    assert!(dir.files("blobs").is_empty());
    assert_eq!(embedded.sweep().await.unwrap(), 0, "and forgotten");
}

#[tokio::test]
async fn a_refused_save_or_import_leaves_no_blob() {
    let dir = Dir::new();
    let store = store(&dir.open());
    let id = leased(&store, "t1").await;
    let base = store.seeds.load(&id).await.unwrap().1;
    let refused = store.seeds.save_credential(&id, &holder("b"), &base, auth("t2")).await.unwrap();
    assert_eq!(refused, SaveOutcome::NotHolder);
    store.seeds.import(new_seed("t1", None)).await.unwrap_err();
    wait_until("the unused blob's removal", || dir.files("blobs").len() == 1).await;
}

#[tokio::test]
async fn a_writer_that_is_dropped_leaves_nothing() {
    let dir = Dir::new();
    let store = store(&dir.open());
    let mut writer = store.snapshots.begin().await.unwrap();
    writer.write(Bytes::from(vec![0; (1 << 20) + 1])).await.unwrap();
    assert_eq!(dir.files("blobs").len(), 1);
    drop(writer);
    wait_until("the half archive's removal", || dir.files("blobs").is_empty()).await;
}

#[tokio::test]
async fn pruned_snapshots_are_swept_and_readers_finish() {
    let dir = Dir::new();
    let embedded = dir.open();
    let store = store(&embedded);
    let session = SessionId::mint();
    let oldest = snapshot(&store, &session, vec![1; 10]).await;
    let mut reader = store.snapshots.open(&oldest.id).await.unwrap();
    for i in 0..5 {
        snapshot(&store, &session, vec![i; 10]).await;
    }
    assert_eq!(dir.files("blobs").len(), 6);
    dir.clock.advance(BLOB_GRACE);
    assert_eq!(embedded.sweep().await.unwrap(), 1);
    assert_eq!(reader.next().await.unwrap().unwrap(), vec![1; 10]);
    assert!(reader.next().await.is_none());
}

#[tokio::test]
async fn a_start_removes_what_a_crash_left_and_nothing_else() {
    let dir = Dir::new();
    let id = leased(&store(&dir.open()), "t1").await;
    let hex = "0123456789abcdef0123456789abcdef";
    let kept = dir.files("blobs");
    for name in
        [format!("seed-{hex}.tmp"), format!("snap-{hex}.tmp"), format!("seed-{hex}.blob"), "notes.tmp".into()]
    {
        fs::write(dir.path().join("blobs").join(name), b"x").unwrap();
    }
    fs::write(dir.path().join("spool").join(format!("{id}-{hex}.tmp")), b"x").unwrap();
    let store = store(&dir.open());
    let mut expected = kept;
    expected.push("notes.tmp".into());
    expected.sort();
    assert_eq!(dir.files("blobs"), expected);
    assert!(dir.files("spool").is_empty());
    store.seeds.load(&id).await.unwrap();
}

#[tokio::test]
async fn torn_blobs_are_damaged_never_wrong() {
    let dir = Dir::new();
    let store = store(&dir.open());
    let id = leased(&store, "t1").await;
    let login = dir.path().join("blobs").join(dir.files("blobs").remove(0));
    let row = snapshot(&store, &SessionId::mint(), vec![5; (1 << 20) + 100]).await;
    let name = dir.files("blobs").into_iter().find(|name| name.starts_with("snap-")).unwrap();
    let archive = dir.path().join("blobs").join(name);
    let damaged =
        |result: Result<()>| assert!(matches!(result, Err(StoreError::Damaged { .. })), "{result:?}");

    let whole = fs::read(&archive).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    // Cut in the last chunk, exactly before it, in the header, and to nothing.
    let first_chunk = 23 + (1 << 20) + 16;
    for bytes in [&flipped[..], &whole[..whole.len() - 1], &whole[..first_chunk], &whole[..10], &[]] {
        fs::write(&archive, bytes).unwrap();
        damaged(store.snapshots.verify(&row.id).await);
    }
    fs::remove_file(&archive).unwrap();
    damaged(store.snapshots.verify(&row.id).await);

    let whole = fs::read(&login).unwrap();
    fs::write(&login, &whole[..whole.len() - 1]).unwrap();
    damaged(store.seeds.load(&id).await.map(drop));
    fs::write(&login, whole).unwrap();
    store.seeds.load(&id).await.unwrap();
}

#[tokio::test]
async fn swapped_blobs_are_noticed() {
    let dir = Dir::new();
    let store = store(&dir.open());
    let (a, _b) = (leased(&store, "t1").await, leased(&store, "t2").await);
    let names = dir.files("blobs");
    let path = |i: usize| dir.path().join("blobs").join(&names[i]);
    let (first, second) = (fs::read(path(0)).unwrap(), fs::read(path(1)).unwrap());
    fs::write(path(0), second).unwrap();
    fs::write(path(1), first).unwrap();
    assert!(matches!(store.seeds.load(&a).await, Err(StoreError::Damaged { .. })));
}

#[tokio::test]
async fn a_damaged_spool_entry_hides_no_other_and_is_named() {
    let dir = Dir::new();
    let store = store(&dir.open());
    let seed = SeedId::mint();
    let bad = store.spool.put(spool_entry(&seed)).await.unwrap();
    let good = store.spool.put(spool_entry(&seed)).await.unwrap();
    let path = store.spool.describe(&bad);
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    let entries = store.spool.entries().await.unwrap();
    assert_eq!(entries.iter().map(|(id, _)| id).collect::<Vec<_>>(), [&good, &bad]);
    assert!(entries[0].1.is_ok());
    let text = entries[1].1.as_ref().unwrap_err().to_string();
    assert!(text.contains(&path), "{text}");
    let outside = optio_store::SpoolId("../key".into());
    assert!(matches!(store.spool.confirm(&outside).await, Err(StoreError::Invalid { .. })));
    assert!(dir.path().join("key").exists());
}

/// Not a test by itself: the child of the next one, which kills it.
#[test]
fn child_that_saves_until_it_is_killed() {
    let Some(dir) = std::env::var_os("OPTIO_STORE_TEST_CHILD") else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = store(&Embedded::open(Path::new(&dir), Options::default()).unwrap());
        let id = leased(&store, "t0").await;
        let mut version = store.seeds.load(&id).await.unwrap().1;
        println!("seed {id}");
        for i in 1.. {
            let saved = store
                .seeds
                .save_credential(&id, &holder("a"), &version, auth(&format!("t{i}")))
                .await
                .unwrap();
            let SaveOutcome::Saved(next) = saved else { panic!("{saved:?}") };
            version = next;
            println!("saved {i}");
            std::io::stdout().flush().unwrap();
        }
    });
}

#[tokio::test]
async fn a_kill_in_the_middle_loses_no_saved_credential() {
    for saves in [1, 7, 20] {
        let dir = Dir::new();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_that_saves_until_it_is_killed", "--exact", "--nocapture", "--test-threads=1"])
            .env("OPTIO_STORE_TEST_CHILD", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
        let seed =
            lines.find_map(|line| Some(line.split_once("seed ")?.1.parse::<SeedId>().unwrap())).unwrap();
        let wanted = format!("saved {saves}");
        lines.find(|line| *line == wanted).unwrap();
        child.kill().unwrap();
        let last = lines.filter_map(|line| line.strip_prefix("saved ")?.parse().ok()).last().unwrap_or(saves);
        child.wait().unwrap();

        let clock = dir.clock.clone();
        let embedded = dir.open();
        let store = store(&embedded);
        let (files, version) = store.seeds.load(&seed).await.unwrap();
        let stored = &files.0[SeedFiles::AUTH];
        // The one that was under way may have arrived; nothing older may be there.
        assert!(
            [auth(&format!("t{last}")), auth(&format!("t{}", last + 1))].contains(stored),
            "{last} {stored:?}"
        );
        clock.advance(LEASE_TTL * 2);
        let row = store.seeds.get(&seed).await.unwrap().unwrap();
        assert!(row.dirty, "the killed holder's lease makes the seed dirty");
        assert_eq!(store.leases.acquire(&Want::Pool("p".into()), &holder("b")).await.unwrap(), None);
        let saved = store.seeds.save_credential(&seed, &holder("a"), &version, auth("after")).await.unwrap();
        assert!(matches!(saved, SaveOutcome::Saved(_)), "the old holder may still bring its token home");
        clock.advance(BLOB_GRACE);
        embedded.sweep().await.unwrap();
        assert_eq!(dir.files("blobs").len(), 1, "no orphan is left");
    }
}

#[tokio::test]
async fn a_deliverable_is_sealed_and_what_a_crash_left_of_one_is_swept() {
    let dir = Dir::new();
    let session = SessionId::mint();
    {
        let store = store(&dir.open());
        for text in ["the first report", "the whole report"] {
            store
                .deliverables
                .keep(&session, "report.md", Bytes::from_static(text.as_bytes()))
                .await
                .unwrap();
        }
    }
    let at = format!("deliverables/{session}");
    assert_eq!(dir.files(&at).len(), 2, "a head and one content");
    for name in dir.files(&at) {
        let file = dir.path().join(&at).join(name);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let bytes = fs::read(&file).unwrap();
        assert!(!bytes.windows(6).any(|part| part == b"report"), "{} is not sealed", file.display());
    }
    // Killed between the content and the head, and while the head was written.
    fs::write(dir.path().join(&at).join(format!("{}.content", "0".repeat(32))), "x").unwrap();
    fs::write(dir.path().join(&at).join("1.tmp"), "x").unwrap();
    let store = store(&dir.open());
    assert_eq!(dir.files(&at).len(), 2);
    let (_, content) = store.deliverables.read(&session, "report.md").await.unwrap().unwrap();
    assert_eq!(content, "the whole report");
}
