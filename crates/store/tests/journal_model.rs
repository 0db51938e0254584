//! Random histories of one stream on disk, against a list of numbers.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use optio_store::{DiskJournal, DiskJournalOptions, Draft, Journal, JournalStream};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    /// Appends so many events with so many bytes of body each.
    Append(usize, usize),
    Flush,
    /// Reads after a place (in thousandths of what there is, some beyond), with these bounds.
    Read(u64, usize, usize),
    ReadBack(u64, usize),
    /// Closes the journal and opens it again.
    Reopen,
    /// Opens a copy of the directory as it is now, as after `kill -9`, with bytes of a torn line at the end.
    Kill(usize),
    /// The same, as after a power cut.
    PowerCut,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1usize..40, 0usize..400).prop_map(|(n, len)| Step::Append(n, len)),
        2 => Just(Step::Flush),
        6 => (0u64..1100, 1usize..60, 1usize..20_000).prop_map(|(at, n, bytes)| Step::Read(at, n, bytes)),
        3 => (0u64..1100, 1usize..60).prop_map(|(at, n)| Step::ReadBack(at, n)),
        1 => Just(Step::Reopen),
        1 => (0usize..200).prop_map(Step::Kill),
        1 => Just(Step::PowerCut),
    ]
}

/// The journal under test and what it must hold: the numbers given out, with the length of their bodies.
struct World {
    dir: tempfile::TempDir,
    options: DiskJournalOptions,
    boots: u32,
    open: Option<(Arc<DiskJournal>, Arc<dyn JournalStream>)>,
    events: Vec<(u64, usize)>,
    newest: u64,
}

impl World {
    async fn open(&mut self) {
        self.options.boot_id = Some(format!("boot {}", self.boots));
        let journal = DiskJournal::open(self.dir.path(), self.options.clone()).unwrap();
        let stream = journal.open("s").await.unwrap();
        self.open = Some((journal, stream));
    }

    fn stream(&self) -> &dyn JournalStream {
        &*self.open.as_ref().unwrap().1
    }

    fn place(&self, thousandths: u64) -> u64 {
        // Numbers jump, so places are picked among events, with some beside them.
        let at = (self.events.len() as u64 * thousandths / 1000) as usize;
        self.events.get(at).map_or(self.newest + thousandths, |(seq, _)| *seq)
    }

    /// Moves on to a copy of the directory, as it would be found if the machine stopped now.
    async fn crash(&mut self, torn: usize) {
        let (_, stream) = self.open.as_ref().unwrap();
        stream.flush().await.unwrap();
        let copy = tempfile::tempdir().unwrap();
        std::fs::create_dir(copy.path().join("s")).unwrap();
        std::fs::copy(self.dir.path().join(".boot"), copy.path().join(".boot")).unwrap();
        let mut last = None;
        for entry in std::fs::read_dir(self.dir.path().join("s")).unwrap() {
            let name = entry.unwrap().file_name();
            std::fs::copy(self.dir.path().join("s").join(&name), copy.path().join("s").join(&name)).unwrap();
            last = last.max(Some(name));
        }
        if let Some(last) = last {
            use std::io::Write as _;
            let line = format!(
                r#"{{"v":1,"seq":{},"ts":"2026-01-01T00:00:00.000Z","session":"s","type":"x","#,
                self.newest + 1
            );
            let line: Vec<u8> = line.bytes().cycle().take(torn).collect();
            let path = copy.path().join("s").join(last);
            std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(&line).unwrap();
        }
        self.open = None;
        self.dir = copy;
    }

    async fn take(&mut self, step: &Step) {
        match *step {
            Step::Append(n, len) => {
                for _ in 0..n {
                    let body = Bytes::from(format!(r#""x":"{}""#, "y".repeat(len)));
                    let draft = Draft { name: "item.delta".into(), body, session: "s".into() };
                    let seq = self.stream().append(draft).await.unwrap();
                    assert_eq!(seq, self.newest + 1, "no hole and no second use");
                    self.newest = seq;
                    self.events.push((seq, len));
                }
            }
            Step::Flush => self.stream().flush().await.unwrap(),
            Step::Read(at, n, bytes) => self.read(self.place(at), n, bytes).await,
            Step::ReadBack(at, n) => self.read_back(self.place(at), n).await,
            Step::Reopen => {
                self.open = None;
                self.open().await;
                assert_eq!(*self.stream().newest().borrow(), self.newest);
            }
            Step::Kill(torn) => {
                self.crash(torn).await;
                self.open().await;
                assert_eq!(*self.stream().newest().borrow(), self.newest, "contiguous after kill -9");
            }
            Step::PowerCut => {
                self.crash(0).await;
                self.boots += 1;
                self.open().await;
                let newest = *self.stream().newest().borrow();
                assert!(newest >= self.newest + 1_000_000, "{newest} could have been seen");
                self.newest = newest;
            }
        }
    }

    fn kept(&self, seq: u64) -> bool {
        self.events.binary_search_by_key(&seq, |(seq, _)| *seq).is_ok()
    }

    fn check(&self, record: &optio_store::Record) {
        let at =
            self.events.binary_search_by_key(&record.seq, |(seq, _)| *seq).expect("only what was appended");
        let value: serde_json::Value = serde_json::from_slice(&record.data).unwrap();
        assert_eq!(value["seq"], record.seq);
        assert_eq!(value["x"].as_str().unwrap().len(), self.events[at].1);
        assert_eq!((record.name.as_str(), &value["type"]), ("item.delta", &serde_json::json!("item.delta")));
    }

    async fn read(&self, after: u64, n: usize, bytes: usize) {
        self.stream().flush().await.unwrap();
        let slice = self.stream().read(after, n, bytes).await.unwrap();
        assert_eq!(slice.newest, self.newest);
        assert!(slice.records.len() <= n);
        let mut next = after.min(self.newest) + 1;
        if let Some(gap) = &slice.gap {
            assert_eq!(gap.from, next);
            assert!(gap.to >= gap.from && gap.to <= self.newest);
            // A gap is what was trimmed (all below it too) or what a power cut took (nothing was ever there).
            let trimmed = gap.to < self.oldest().await;
            assert!(trimmed || !(gap.from..=gap.to.min(gap.from + 1000)).any(|seq| self.kept(seq)));
            next = gap.to + 1;
        }
        for record in &slice.records {
            assert_eq!(record.seq, next);
            self.check(record);
            next += 1;
        }
        assert!(
            next > self.newest || slice.gap.is_some() || !slice.records.is_empty(),
            "a reader must come on"
        );
        let total: usize = slice.records.iter().map(|record| record.data.len()).sum();
        let last = slice.records.last().map_or(0, |record| record.data.len());
        assert!(total - last < bytes);
    }

    /// The oldest event that can still be read.
    async fn oldest(&self) -> u64 {
        let slice = self.stream().read(0, 1, 1).await.unwrap();
        slice.records.first().map_or(self.newest + 1, |record| record.seq)
    }

    async fn read_back(&self, before: u64, n: usize) {
        self.stream().flush().await.unwrap();
        let slice = self.stream().read_back(before, n).await.unwrap();
        let before = before.min(self.newest + 1).max(1);
        let oldest = self.oldest().await;
        let wanted: Vec<u64> =
            self.events.iter().map(|(seq, _)| *seq).filter(|seq| *seq >= oldest && *seq < before).collect();
        let mut expected = Vec::new();
        for seq in wanted.iter().rev().take(n) {
            if expected.last().is_some_and(|newer| seq + 1 != *newer) {
                break;
            }
            expected.push(*seq);
        }
        expected.reverse();
        let found: Vec<u64> = slice.records.iter().map(|record| record.seq).collect();
        assert_eq!(found, expected, "before {before}, at most {n}, oldest {oldest}");
        slice.records.iter().for_each(|record| self.check(record));
        let top = found.last().copied().unwrap_or(0);
        let gap = slice.gap.map(|gap| (gap.from, gap.to));
        assert_eq!(gap, (top + 1 < before).then_some((top + 1, before - 1)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn any_history_reads_as_it_was_written(
        steps in prop::collection::vec(step(), 1..25),
        segment_bytes in prop_oneof![Just(1u64), 200u64..4_000, 100_000u64..200_000],
        keep_bytes in prop_oneof![2_000u64..30_000, Just(64 << 20)],
        ring_bytes in prop_oneof![Just(0usize), 300usize..8_000, Just(256 << 10)],
        pending_bytes in prop_oneof![Just(1usize), 100usize..5_000, Just(8 << 20)],
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut options = DiskJournalOptions::default();
            options.segment_bytes = segment_bytes;
            options.keep_bytes = keep_bytes;
            options.ring_bytes = ring_bytes;
            options.pending_bytes = pending_bytes;
            let dir = tempfile::tempdir().unwrap();
            let mut world = World { dir, options, boots: 0, open: None, events: Vec::new(), newest: 0 };
            world.open().await;
            for step in &steps {
                world.take(step).await;
            }
        });
    }
}
