//! What the journal may take: memory, file handles, time. One test at a time, since they look at the whole process.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use optio_store::{DiskJournal, DiskJournalOptions, Draft, Journal, JournalStream};

static ALONE: Mutex<()> = Mutex::new(());

fn run<F: Future<Output = ()>>(test: F) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

fn sized(len: usize) -> Draft {
    let body = Bytes::from(format!(r#""codex":"{}""#, "x".repeat(len)));
    Draft { name: "item.delta".into(), body, session: "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV".into() }
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

fn files_open_below(dir: &Path) -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    fds.filter(|fd| {
        std::fs::read_link(fd.as_ref().unwrap().path())
            .is_ok_and(|to| to.extension().is_some_and(|e| e == "log") && to.starts_with(dir))
    })
    .count()
}

async fn many(journal: &DiskJournal, count: usize) -> Vec<Arc<dyn JournalStream>> {
    let mut streams = Vec::new();
    for i in 0..count {
        streams.push(journal.open(&format!("ses_{i}")).await.unwrap());
    }
    streams
}

#[test]
fn a_thousand_open_streams_hold_few_files_and_little_memory() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let mut options = DiskJournalOptions::default();
        options.open_files = 40;
        options.idle_after = Duration::from_millis(10);
        let journal = DiskJournal::open(dir.path(), options).unwrap();
        let before = resident_bytes();
        let streams = many(&journal, 1000).await;
        let each = resident_bytes().saturating_sub(before) / 1000;
        assert!(each <= 4 << 10, "{each} bytes a stream");
        for round in 1..=3 {
            for stream in &streams {
                assert_eq!(stream.append(sized(100)).await.unwrap(), round);
            }
            for stream in &streams {
                stream.flush().await.unwrap();
            }
            let open = files_open_below(dir.path());
            assert!(open <= 40, "{open} files");
        }
        let waited = Instant::now();
        while files_open_below(dir.path()) > 0 {
            assert!(waited.elapsed() < Duration::from_secs(20), "idle streams keep their files");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for stream in &streams {
            let slice = stream.read(0, 10, 1 << 20).await.unwrap();
            assert_eq!((slice.records.len(), slice.gap), (3, None), "a cold stream is read from its file");
        }
    });
}

#[test]
fn a_viewer_that_does_not_read_takes_no_memory() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let mut options = DiskJournalOptions::default();
        options.pending_bytes = 1 << 20;
        let journal = DiskJournal::open(dir.path(), options).unwrap();
        let stream = journal.open("s").await.unwrap();
        let slow = stream.newest();
        let before = resident_bytes();
        for _ in 0..3000 {
            stream.append(sized(20_000)).await.unwrap();
        }
        stream.flush().await.unwrap();
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 16 << 20, "{grown} bytes more after 60 MB");
        // It missed nothing but the time.
        let mut after = 0;
        while after < *slow.borrow() {
            let slice = stream.read(after, 100, 1 << 20).await.unwrap();
            assert_eq!(slice.gap, None);
            assert_eq!(slice.records[0].seq, after + 1);
            after = slice.records.last().unwrap().seq;
        }
        assert_eq!(after, 3000);
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 16 << 20, "{grown} bytes more after reading it");
    });
}

#[test]
fn a_lone_event_is_readable_at_once_and_a_flood_not_late() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let journal = DiskJournal::open(dir.path(), DiskJournalOptions::default()).unwrap();
        let stream = journal.open("s").await.unwrap();
        let mut newest = stream.newest();
        let mut fastest = Duration::MAX;
        for i in 1..=50 {
            tokio::time::sleep(Duration::from_millis(12)).await;
            let at = Instant::now();
            stream.append(sized(200)).await.unwrap();
            newest.wait_for(|newest| *newest >= i).await.unwrap();
            fastest = fastest.min(at.elapsed());
        }
        // The machine may be busy, but no wait of ours is on the way.
        assert!(fastest < Duration::from_millis(1), "{fastest:?}");
    });
}

fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    Duration::from_millis(10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()))
}

/// Milliseconds of CPU by thread name.
fn cpu_of_threads() -> BTreeMap<String, u64> {
    let mut threads = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(')').unwrap();
        let fields: Vec<u64> = rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
        *threads.entry(name.to_owned()).or_default() += 10 * (fields[11] + fields[12]);
    }
    threads
}

/// Prints figures; run by hand with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let journal = DiskJournal::open(dir.path(), DiskJournalOptions::default()).unwrap();
        let stream = journal.open("flood").await.unwrap();
        let (events, start, used) = (1_000_000u32, Instant::now(), cpu());
        let draft = sized(200);
        for _ in 0..events {
            stream.append(draft.clone()).await.unwrap();
        }
        stream.flush().await.unwrap();
        let (took, used) = (start.elapsed(), cpu() - used);
        let rate = f64::from(events) / took.as_secs_f64();
        println!(
            "flood: {rate:.0} events/s, {:.2} µs CPU an event",
            used.as_secs_f64() * 1e6 / f64::from(events)
        );

        for (streams, rate) in [(50u32, 8_000u32), (50, 1_000)] {
            let streams = many(&journal, streams as usize).await;
            let viewers: Vec<_> = streams
                .iter()
                .map(|stream| {
                    let stream = stream.clone();
                    tokio::spawn(async move {
                        let (mut newest, mut late) = (stream.newest(), Vec::new());
                        let mut after = *newest.borrow_and_update();
                        while newest.changed().await.is_ok() {
                            let slice = stream.read(after, 500, 256 << 10).await.unwrap();
                            for record in slice.records {
                                after = record.seq;
                                let text = std::str::from_utf8(&record.data).unwrap();
                                let at = text.split_once(r#""at":"#).unwrap().1.trim_end_matches('}');
                                late.push(
                                    jiff::Timestamp::now().as_microsecond() - at.parse::<i64>().unwrap(),
                                );
                            }
                            if late.len() as u32 >= 5 * rate / 50 {
                                break;
                            }
                        }
                        late
                    })
                })
                .collect();
            let (start, used, before) = (Instant::now(), cpu(), cpu_of_threads());
            let mut sent = 0;
            while sent < 5 * rate {
                let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u32;
                while sent < due.min(5 * rate) {
                    let at = jiff::Timestamp::now().as_microsecond();
                    let body = Bytes::from(format!(r#""pad":"{}","at":{at}"#, "x".repeat(200)));
                    let draft = Draft { name: "item.delta".into(), body, session: "ses_1".into() };
                    streams[sent as usize % streams.len()].append(draft).await.unwrap();
                    sent += 1;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let used = cpu() - used;
            for (thread, ms) in cpu_of_threads() {
                let ms = ms - before.get(&thread).unwrap_or(&0);
                println!("  {thread}: {:.2} µs an event", ms as f64 * 1e3 / f64::from(sent));
            }
            let mut late = Vec::new();
            for viewer in viewers {
                late.extend(viewer.await.unwrap());
            }
            late.sort_unstable();
            println!(
                "50 streams, {rate} events/s, a viewer each: {:.2} µs CPU an event; append to viewer p50 {} p99 {} max {} µs",
                used.as_secs_f64() * 1e6 / f64::from(sent),
                late[late.len() / 2],
                late[late.len() * 99 / 100],
                late[late.len() - 1]
            );
        }
    });
}
