//! What every journal promises, asked of each.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use optio_store::{
    DiskJournal, DiskJournalOptions, Draft, Gap, Journal, JournalStream, MemoryJournal, Slice, StoreError,
};

fn draft(body: String) -> Draft {
    Draft { name: "item.delta".into(), body: Bytes::from(body), session: "ses_1".into() }
}

fn numbered(i: u64) -> Draft {
    draft(format!(r#""i":{i}"#))
}

async fn append(stream: &dyn JournalStream, numbers: std::ops::RangeInclusive<u64>) {
    for i in numbers {
        assert_eq!(stream.append(numbered(i)).await.unwrap(), i);
    }
    stream.flush().await.unwrap();
}

fn seqs(slice: &Slice) -> Vec<u64> {
    slice.records.iter().map(|record| record.seq).collect()
}

async fn every_event_is_one_line_with_its_envelope(journal: Arc<dyn Journal>) {
    let stream = journal.open("ses_1").await.unwrap();
    assert_eq!(*stream.newest().borrow(), 0);
    stream.append(draft(r#""codex":{"text":"a\nb ü"}"#.to_owned())).await.unwrap();
    stream
        .append(Draft { name: "codex.item/x".into(), body: Bytes::new(), session: "ses_1".into() })
        .await
        .unwrap();
    stream.flush().await.unwrap();
    let slice = stream.read(0, 10, 1 << 20).await.unwrap();
    assert_eq!((seqs(&slice), slice.newest, slice.gap), (vec![1, 2], 2, None));
    let value: serde_json::Value = serde_json::from_slice(&slice.records[0].data).unwrap();
    assert_eq!(value["v"], 1);
    assert_eq!(value["seq"], 1);
    assert_eq!(value["session"], "ses_1");
    assert_eq!(value["type"], "item.delta");
    assert_eq!(value["codex"]["text"], "a\nb ü");
    value["ts"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert_eq!(slice.records[1].name, "codex.item/x");
    assert!(slice.records[1].data.ends_with(br#""type":"codex.item/x"}"#));
}

async fn a_read_is_bounded_by_count_and_by_bytes(journal: Arc<dyn Journal>) {
    let stream = journal.open("s").await.unwrap();
    append(&*stream, 1..=50).await;
    assert_eq!(seqs(&stream.read(10, 3, 1 << 20).await.unwrap()), [11, 12, 13]);
    assert_eq!(seqs(&stream.read(10, 100, 1).await.unwrap()), [11], "at least one");
    let line = stream.read(0, 1, 1).await.unwrap().records[0].data.len();
    assert_eq!(stream.read(0, 100, line * 5).await.unwrap().records.len(), 5);
    assert_eq!(seqs(&stream.read(50, 3, 1 << 20).await.unwrap()), [0; 0]);
    let beyond = stream.read(1000, 3, 1 << 20).await.unwrap();
    assert_eq!((seqs(&beyond), beyond.gap, beyond.newest), (vec![], None, 50));
}

async fn paging_back_meets_every_event_once(journal: Arc<dyn Journal>) {
    let stream = journal.open("s").await.unwrap();
    append(&*stream, 1..=50).await;
    let mut seen = Vec::new();
    let mut before = u64::MAX;
    loop {
        let page = stream.read_back(before, 7).await.unwrap();
        assert_eq!(page.gap, None);
        let Some(first) = page.records.first() else { break };
        before = first.seq;
        seen.splice(0..0, seqs(&page));
    }
    assert_eq!(seen, (1..=50).collect::<Vec<_>>());
}

async fn the_same_stream_is_answered_to_everybody(journal: Arc<dyn Journal>) {
    let (a, b) = (journal.open("s").await.unwrap(), journal.open("s").await.unwrap());
    let other = journal.open("t").await.unwrap();
    assert_eq!(a.append(numbered(1)).await.unwrap(), 1);
    assert_eq!(b.append(numbered(2)).await.unwrap(), 2);
    assert_eq!(other.append(numbered(1)).await.unwrap(), 1);
    a.flush().await.unwrap();
    assert_eq!(seqs(&b.read(0, 9, 1 << 20).await.unwrap()), [1, 2]);
    let many = (0..20).map(|_| journal.open("race"));
    let many = futures_util::future::join_all(many).await;
    for (i, stream) in (1..).zip(&many) {
        assert_eq!(stream.as_ref().unwrap().append(numbered(i)).await.unwrap(), i);
    }
}

async fn a_deleted_stream_begins_anew(journal: Arc<dyn Journal>) {
    let stream = journal.open("s").await.unwrap();
    append(&*stream, 1..=5).await;
    journal.delete("s").await.unwrap();
    journal.delete("s").await.unwrap();
    journal.delete("never-there").await.unwrap();
    let again = journal.open("s").await.unwrap();
    assert_eq!(again.read(0, 9, 1 << 20).await.unwrap().newest, 0);
    assert_eq!(again.append(numbered(1)).await.unwrap(), 1);
    // Whoever still has the old one is not stuck.
    stream.append(numbered(6)).await.unwrap();
    stream.flush().await.unwrap();
    again.flush().await.unwrap();
    assert_eq!(again.read(0, 9, 1 << 20).await.unwrap().newest, 1);
}

async fn a_name_that_is_no_safe_file_name_is_refused(journal: Arc<dyn Journal>) {
    for name in ["", ".", "..", ".boot", "a/b", "../../x", "a\0b", "a b"] {
        let refused = journal.open(name).await.err();
        assert!(
            matches!(refused, Some(StoreError::Invalid { field: "stream name", .. })),
            "{name:?}: {refused:?}"
        );
        assert!(journal.delete(name).await.is_err(), "{name:?}");
    }
    let stream = journal.open("s").await.unwrap();
    let bad = Draft { name: "a\"b".into(), body: Bytes::new(), session: "s".into() };
    assert!(matches!(stream.append(bad).await, Err(StoreError::Invalid { field: "event name", .. })));
    let huge = draft(format!(r#""x":"{}""#, "x".repeat(17 << 20)));
    assert!(matches!(stream.append(huge).await, Err(StoreError::Invalid { field: "event body", .. })));
    assert_eq!(stream.append(numbered(1)).await.unwrap(), 1, "a refused event has no number");
}

/// Readers that start at different places while the writer goes on: each sees every later event, once, in order.
async fn readers_beside_a_writer_see_every_event_once(journal: Arc<dyn Journal>) {
    const EVENTS: u64 = 3000;
    let stream = journal.open("s").await.unwrap();
    let readers = (0..6u64).map(|reader| {
        let stream = stream.clone();
        tokio::spawn(async move {
            let mut newest = stream.newest();
            let mut after = reader * 100;
            newest.wait_for(|newest| *newest >= after).await.unwrap();
            while after < EVENTS {
                let slice = stream.read(after, 1 + 97 * reader as usize, 20_000).await.unwrap();
                assert_eq!(slice.gap, None);
                for record in &slice.records {
                    assert_eq!(record.seq, after + 1, "reader {reader}");
                    let value: serde_json::Value = serde_json::from_slice(&record.data).unwrap();
                    assert_eq!(value["i"], after + 1);
                    after += 1;
                }
                if slice.records.is_empty() {
                    newest.wait_for(|newest| *newest > after).await.unwrap();
                }
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    for i in 1..=EVENTS {
        stream.append(numbered(i)).await.unwrap();
        if i % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for reader in readers {
        tokio::time::timeout(Duration::from_secs(30), reader).await.unwrap().unwrap();
    }
}

/// Given a journal that keeps far less than 2000 of these events.
async fn what_was_trimmed_is_told_as_one_gap(journal: Arc<dyn Journal>) {
    let stream = journal.open("s").await.unwrap();
    for i in 1..=2000 {
        stream.append(numbered(i)).await.unwrap();
        if i % 100 == 0 {
            stream.flush().await.unwrap();
        }
    }
    let slice = stream.read(17, 5, 1 << 20).await.unwrap();
    let Some(Gap { from: 18, to }) = slice.gap else { panic!("{:?}", slice.gap) };
    assert!(to > 500, "{to}");
    assert_eq!(seqs(&slice), (to + 1..to + 6).collect::<Vec<_>>());
    let next = stream.read(to + 5, 5000, 1 << 20).await.unwrap();
    assert_eq!(next.gap, None);
    assert_eq!(seqs(&next), (to + 6..=2000).collect::<Vec<_>>());
    assert_eq!(stream.read(to, 1, 1 << 20).await.unwrap().gap, None, "the edge is no gap");
    let oldest = stream.read_back(to + 3, 100).await.unwrap();
    assert_eq!((seqs(&oldest), oldest.gap), (vec![to + 1, to + 2], None));
    let none = stream.read_back(to + 1, 100).await.unwrap();
    assert_eq!((seqs(&none), none.gap), (vec![], Some(Gap { from: 1, to })));
}

macro_rules! journal_suite {
    ($make:expr, $keeping_little:expr; $($name:ident),+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let (journal, _dir) = $make;
            super::$name(journal).await;
        })+

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn what_was_trimmed_is_told_as_one_gap() {
            let (journal, _dir) = $keeping_little;
            super::what_was_trimmed_is_told_as_one_gap(journal).await;
        }
    };
    ($make:expr, $keeping_little:expr) => {
        use super::*;
        journal_suite!(
            $make, $keeping_little;
            every_event_is_one_line_with_its_envelope,
            a_read_is_bounded_by_count_and_by_bytes,
            paging_back_meets_every_event_once,
            the_same_stream_is_answered_to_everybody,
            a_deleted_stream_begins_anew,
            a_name_that_is_no_safe_file_name_is_refused,
            readers_beside_a_writer_see_every_event_once
        );
    };
}

fn on_disk(change: impl FnOnce(&mut DiskJournalOptions)) -> (Arc<dyn Journal>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut options = DiskJournalOptions::default();
    change(&mut options);
    (DiskJournal::open(dir.path(), options).unwrap(), dir)
}

mod memory {
    journal_suite!((MemoryJournal::new(), ()), (MemoryJournal::keeping(300), ()));
}

mod disk {
    journal_suite!(on_disk(|_| {}), on_disk(|o| (o.segment_bytes, o.keep_bytes) = (2_000, 20_000)));
}

/// Nothing fits the ring and each segment has a few lines: every read goes to files.
mod disk_without_memory {
    journal_suite!(
        on_disk(|o| (o.segment_bytes, o.ring_bytes, o.open_files) = (1_000, 0, 2)),
        on_disk(|o| (o.segment_bytes, o.keep_bytes, o.ring_bytes) = (1_000, 10_000, 0))
    );
}

#[tokio::test(start_paused = true)]
async fn the_memory_journal_shows_a_test_what_was_said() {
    let journal = MemoryJournal::new();
    let stream = journal.open("s").await.unwrap();
    append(&*stream, 1..=2).await;
    assert_eq!(journal.names("s"), ["item.delta", "item.delta"]);
    assert_eq!(journal.values("s")[1]["i"], 2);
    assert_eq!(journal.records("s")[0].seq, 1);
    assert!(journal.records("other").is_empty());
}
