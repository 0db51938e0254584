//! The journal on disk when the world fails it: full disks, `kill -9`, power cuts, a second opener.

#![allow(clippy::unwrap_used)]

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use optio_store::{DiskJournal, DiskJournalOptions, Draft, Gap, Journal, JournalStream, StoreError};

fn numbered(i: u64) -> Draft {
    Draft { name: "item.delta".into(), body: Bytes::from(format!(r#""i":{i}"#)), session: "ses_1".into() }
}

fn booted(boot: &str) -> DiskJournalOptions {
    let mut options = DiskJournalOptions::default();
    options.boot_id = Some(boot.to_owned());
    options
}

/// Everything from `after` on, as a viewer reads it; each event's body must fit its number unless numbers jumped.
async fn all(stream: &dyn JournalStream) -> (Vec<u64>, Vec<Gap>) {
    let (mut seqs, mut gaps, mut after) = (Vec::new(), Vec::new(), 0);
    loop {
        let slice = stream.read(after, 1000, 1 << 20).await.unwrap();
        if let Some(gap) = slice.gap {
            after = gap.to;
            gaps.push(gap);
        }
        for record in slice.records {
            assert_eq!(record.seq, after + 1);
            serde_json::from_slice::<serde_json::Value>(&record.data).unwrap();
            after = record.seq;
            seqs.push(after);
        }
        if after == slice.newest {
            return (seqs, gaps);
        }
    }
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A disk with so much room; every other write is short.
fn disk_with_room(room: usize) -> (Arc<AtomicUsize>, DiskJournalOptions) {
    let left = Arc::new(AtomicUsize::new(room));
    let (disk, calls) = (left.clone(), AtomicUsize::new(0));
    let mut options = DiskJournalOptions::default();
    options.write_fault = Some(Arc::new(move |bytes| {
        let odd = calls.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        let wanted = if odd { bytes.div_ceil(3) } else { bytes };
        let before = disk.load(Ordering::Relaxed);
        let allowed = wanted.min(before);
        disk.store(before - allowed, Ordering::Relaxed);
        if allowed == 0 { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(allowed) }
    }));
    (left, options)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_holds_appends_back_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (room, mut options) = disk_with_room(5_000);
    options.pending_bytes = 20_000;
    options.segment_bytes = 3_000;
    options.ring_bytes = 0;
    let journal = DiskJournal::open(dir.path(), options).unwrap();
    let stream = journal.open("s").await.unwrap();
    let appended = Arc::new(AtomicUsize::new(0));
    let writer = tokio::spawn({
        let (stream, appended) = (stream.clone(), appended.clone());
        async move {
            for i in 1..=2000 {
                assert_eq!(stream.append(numbered(i)).await.unwrap(), i);
                appended.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    wait_until("trouble", || journal.trouble().is_some()).await;
    let trouble = journal.trouble().unwrap();
    assert!(trouble.contains("journal s cannot be written"), "{trouble}");
    // The writer goes on until the bound and stops there: 25 kB are far from 2,000 lines.
    let mut last = usize::MAX;
    while last != appended.load(Ordering::Relaxed) {
        last = appended.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(last > 150 && last < 400, "{last} appended");
    assert!(!writer.is_finished());
    let (seqs, gaps) = all(&*stream).await;
    assert!(gaps.is_empty() && seqs.len() < last, "only what was written is readable");

    room.store(usize::MAX / 2, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(20), writer).await.unwrap().unwrap();
    stream.flush().await.unwrap();
    assert_eq!(journal.trouble(), None);
    assert_eq!(all(&*stream).await, ((1..=2000).collect(), vec![]));
    drop((stream, journal));
    let journal = DiskJournal::open(dir.path(), DiskJournalOptions::default()).unwrap();
    let stream = journal.open("s").await.unwrap();
    assert_eq!(all(&*stream).await, ((1..=2000).collect(), vec![]), "nor is a line torn on disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_on_a_full_disk_ends_and_says_that_it_was_not_clean() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut options) = disk_with_room(1_000);
    options.boot_id = Some("a".to_owned());
    let journal = DiskJournal::open(dir.path(), options).unwrap();
    let stream = journal.open("s").await.unwrap();
    for i in 1..=100 {
        stream.append(numbered(i)).await.unwrap();
    }
    let flushing = tokio::spawn({
        let stream = stream.clone();
        async move { stream.flush().await }
    });
    journal.close().await;
    assert!(matches!(flushing.await.unwrap(), Err(StoreError::Unavailable { .. })));
    assert!(matches!(stream.append(numbered(101)).await, Err(StoreError::Unavailable { .. })));
    let boot = std::fs::read_to_string(dir.path().join(".boot")).unwrap();
    assert!(boot.contains(r#""clean":false"#), "{boot}");
    // What did reach the disk is there, whole lines only; the numbers of the rest nobody saw, and they are given again.
    let seen = *stream.newest().borrow();
    let journal = DiskJournal::open(dir.path(), booted("a")).unwrap();
    let stream = journal.open("s").await.unwrap();
    let left = *stream.newest().borrow();
    assert!(left >= seen && left < 100, "{seen} seen, {left} left");
    assert_eq!(all(&*stream).await, ((1..=left).collect(), vec![]));
    assert_eq!(stream.append(numbered(left + 1)).await.unwrap(), left + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_has_one_journal_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let journal = DiskJournal::open(dir.path(), DiskJournalOptions::default()).unwrap();
    let second = DiskJournal::open(dir.path(), DiskJournalOptions::default()).err();
    assert!(matches!(second, Some(StoreError::Conflict { what: "journal", .. })), "{second:?}");
    drop(journal);
    DiskJournal::open(dir.path(), DiskJournalOptions::default()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_journal_brings_everything_to_disk() {
    let dir = tempfile::tempdir().unwrap();
    let journal = DiskJournal::open(dir.path(), booted("a")).unwrap();
    let stream = journal.open("s").await.unwrap();
    for i in 1..=5000 {
        stream.append(numbered(i)).await.unwrap();
    }
    drop(journal);
    assert!(matches!(stream.append(numbered(5001)).await, Err(StoreError::Unavailable { .. })));
    assert_eq!(all(&*stream).await.0.len(), 5000, "reading goes on");
    // A clean end before the machine started anew: nothing can be missing, so numbers go on.
    let journal = DiskJournal::open(dir.path(), booted("b")).unwrap();
    let stream = journal.open("s").await.unwrap();
    assert_eq!(all(&*stream).await, ((1..=5000).collect(), vec![]));
    assert_eq!(stream.append(numbered(5001)).await.unwrap(), 5001);
}

/// Copies a journal as it is found when the machine stops now.
fn frozen(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    std::fs::copy(from.join(".boot"), to.path().join(".boot")).unwrap();
    for stream in std::fs::read_dir(from).unwrap().map(Result::unwrap).filter(|e| e.path().is_dir()) {
        let copy = to.path().join(stream.file_name());
        std::fs::create_dir(&copy).unwrap();
        for segment in std::fs::read_dir(stream.path()).unwrap().map(Result::unwrap) {
            std::fs::copy(segment.path(), copy.join(segment.file_name())).unwrap();
        }
    }
    to
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_power_cut_no_number_is_given_twice() {
    let dir = tempfile::tempdir().unwrap();
    let journal = DiskJournal::open(dir.path(), booted("a")).unwrap();
    for name in ["damaged", "unopened", "lost"] {
        let stream = journal.open(name).await.unwrap();
        for i in 1..=1000 {
            stream.append(numbered(i)).await.unwrap();
        }
        stream.flush().await.unwrap();
    }
    let disk = frozen(dir.path());
    let segment = |name: &str| disk.path().join(name).join("00000000000000000001.log");
    // A page that never reached the disk, with good ones after it; and a file that never did.
    let file = std::fs::OpenOptions::new().write(true).open(segment("damaged")).unwrap();
    file.write_all_at(&[0; 4096], 40_960).unwrap();
    std::fs::remove_file(segment("lost")).unwrap();

    // One start of the service after the cut does not touch "unopened" and ends well; the next must still know.
    let journal = DiskJournal::open(disk.path(), booted("b")).unwrap();
    let stream = journal.open("damaged").await.unwrap();
    let next = stream.append(numbered(0)).await.unwrap();
    assert!(next > 1_000_000);
    stream.flush().await.unwrap();
    let (seqs, gaps) = all(&*stream).await;
    let good = seqs.len() as u64 - 1;
    assert!((300..1000).contains(&good), "{good}");
    assert_eq!(gaps, [Gap { from: good + 1, to: next - 1 }]);
    let back = stream.read_back(u64::MAX, 10).await.unwrap();
    assert_eq!((back.records.len(), back.records[0].seq), (1, next));
    let back = stream.read_back(next, 10).await.unwrap();
    assert_eq!(back.records.last().unwrap().seq, good);
    assert_eq!(back.gap, Some(Gap { from: good + 1, to: next - 1 }));
    drop((stream, journal));

    let journal = DiskJournal::open(disk.path(), booted("c")).unwrap();
    for name in ["unopened", "lost"] {
        let stream = journal.open(name).await.unwrap();
        assert!(*stream.newest().borrow() >= 1_000_000, "{name}");
        assert!(stream.append(numbered(0)).await.unwrap() > 1_001_000 - 1000, "{name}");
    }
    assert_eq!(
        all(&*journal.open("unopened").await.unwrap()).await.0[..1000],
        (1..=1000).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_note_of_the_last_writer_the_worst_is_taken_for_granted() {
    let dir = tempfile::tempdir().unwrap();
    let journal = DiskJournal::open(dir.path(), booted("a")).unwrap();
    journal.open("s").await.unwrap().append(numbered(1)).await.unwrap();
    drop(journal);
    for note in ["", "{"] {
        std::fs::write(dir.path().join(".boot"), note).unwrap();
        let journal = DiskJournal::open(dir.path(), booted("a")).unwrap();
        assert!(journal.open("s").await.unwrap().append(numbered(2)).await.unwrap() > 1_000_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_line_costs_its_segment_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = booted("a");
    (options.segment_bytes, options.ring_bytes) = (10_000, 0);
    let journal = DiskJournal::open(dir.path(), options).unwrap();
    let stream = journal.open("s").await.unwrap();
    for i in 1..=1000 {
        stream.append(numbered(i)).await.unwrap();
        stream.flush().await.unwrap();
    }
    let first = dir.path().join("s").join("00000000000000000001.log");
    let line = 1 + std::fs::read(&first).unwrap()[..5000].iter().rposition(|b| *b == b'\n').unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(first).unwrap();
    file.write_all_at(b"XXXX", line as u64).unwrap();
    let (seqs, gaps) = all(&*stream).await;
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!(seqs.len() as u64 + gaps[0].to - gaps[0].from + 1, 1000);
    assert!(gaps[0].from > 20 && gaps[0].to < 900, "{gaps:?}");
}

const CHILD: &str = "OPTIO_JOURNAL_TEST_CHILD";

/// Not a test by itself: the process that [`what_a_viewer_saw_survives_kill_9`] kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_floods_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let mut options = booted("a");
    options.segment_bytes = 100_000;
    let journal = DiskJournal::open(PathBuf::from(dir), options).unwrap();
    let stream = journal.open("s").await.unwrap();
    let viewer = stream.clone();
    tokio::spawn(async move {
        let mut newest = viewer.newest();
        loop {
            let seen = *newest.borrow_and_update();
            writeln!(io::stderr(), "seen {seen}").unwrap();
            newest.changed().await.unwrap();
        }
    });
    // Ends by itself if nobody kills it.
    let newest = *stream.newest().borrow();
    for i in newest + 1..20_000_000 {
        stream.append(numbered(i)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_viewer_saw_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut survived = 0;
    for _ in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_floods_until_it_is_killed", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines {
            let line = line.unwrap();
            let Some(number) = line.strip_prefix("seen ") else {
                continue;
            };
            seen = seen.max(number.parse().unwrap_or(seen));
            if seen > survived + 5_000 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let journal = DiskJournal::open(dir.path(), booted("a")).unwrap();
        let stream = journal.open("s").await.unwrap();
        survived = *stream.newest().borrow();
        assert!(survived >= seen, "{seen} was seen, {survived} is left");
        let (seqs, gaps) = all(&*stream).await;
        assert!(gaps.iter().all(|gap| gap.from == 1), "only trimming takes events: {gaps:?}");
        assert_eq!(seqs.last(), Some(&survived));
        assert_eq!(stream.append(numbered(survived + 1)).await.unwrap(), survived + 1);
        survived += 1;
        stream.flush().await.unwrap();
    }
}
