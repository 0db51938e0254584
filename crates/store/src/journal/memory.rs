//! A journal for tests: no threads, no files, so it works under virtual time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

use super::stream::lock;
use super::{Draft, Gap, Journal, JournalStream, READ_BACK_BYTES, Record, Slice, line};
use crate::Result;

/// Streams in memory. An event is readable as soon as it is appended.
#[derive(Default)]
pub struct MemoryJournal {
    keep: Option<usize>,
    streams: Mutex<HashMap<String, Arc<MemoryStream>>>,
}

struct MemoryStream {
    keep: usize,
    lines: Mutex<Lines>,
    newest: watch::Sender<u64>,
}

#[derive(Default)]
struct Lines {
    /// How many are trimmed, hence also the number before the first one kept.
    trimmed: u64,
    kept: std::collections::VecDeque<Bytes>,
}

impl Lines {
    fn newest(&self) -> u64 {
        self.trimmed + self.kept.len() as u64
    }

    /// The lines after `after`, which is not trimmed.
    fn after(&self, after: u64) -> impl DoubleEndedIterator<Item = Record> {
        let skip = (after - self.trimmed) as usize;
        let lines = self.kept.range(skip..).enumerate();
        lines.map(move |(i, line)| {
            line::record(after + 1 + i as u64, line.clone()).expect("it was rendered with this number")
        })
    }
}

impl MemoryJournal {
    /// One that keeps everything.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// One that trims each stream to its newest `events`.
    pub fn keeping(events: usize) -> Arc<Self> {
        Arc::new(Self { keep: Some(events), streams: Mutex::default() })
    }

    /// Every record that is kept of a stream, in order; none of a stream that was never opened.
    pub fn records(&self, name: &str) -> Vec<Record> {
        let Some(stream) = lock(&self.streams).get(name).cloned() else {
            return Vec::new();
        };
        let lines = lock(&stream.lines);
        lines.after(lines.trimmed).collect()
    }

    /// The same as parsed JSON.
    pub fn values(&self, name: &str) -> Vec<serde_json::Value> {
        let parse = |record: Record| {
            serde_json::from_slice(&record.data).unwrap_or_else(|error| {
                panic!("event {} of {name} is no JSON: {error}: {:?}", record.seq, record.data)
            })
        };
        self.records(name).into_iter().map(parse).collect()
    }

    /// The same as event names.
    pub fn names(&self, name: &str) -> Vec<String> {
        self.records(name).into_iter().map(|record| record.name).collect()
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn open(&self, name: &str) -> Result<Arc<dyn JournalStream>> {
        line::check_stream_name(name)?;
        let keep = self.keep.unwrap_or(usize::MAX);
        let new = || Arc::new(MemoryStream { keep, lines: Mutex::default(), newest: watch::Sender::new(0) });
        Ok(lock(&self.streams).entry(name.to_owned()).or_insert_with(new).clone())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        line::check_stream_name(name)?;
        lock(&self.streams).remove(name);
        Ok(())
    }
}

#[async_trait]
impl JournalStream for MemoryStream {
    async fn append(&self, draft: Draft) -> Result<u64> {
        line::check(&draft)?;
        let mut lines = lock(&self.lines);
        let seq = lines.newest() + 1;
        lines.kept.push_back(line::render(seq, Timestamp::now(), &draft));
        while lines.kept.len() > self.keep {
            lines.kept.pop_front();
            lines.trimmed += 1;
        }
        self.newest.send_replace(seq);
        Ok(seq)
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn read(&self, after: u64, max_records: usize, max_bytes: usize) -> Result<Slice> {
        let lines = lock(&self.lines);
        let newest = lines.newest();
        let after = after.min(newest);
        let gap = (after < lines.trimmed).then(|| Gap { from: after + 1, to: lines.trimmed });
        let mut records = Vec::new();
        let mut size = 0;
        for record in lines.after(after.max(lines.trimmed)).take(max_records.max(1)) {
            size += record.data.len();
            records.push(record);
            if size >= max_bytes {
                break;
            }
        }
        Ok(Slice { gap, records, newest })
    }

    async fn read_back(&self, before: u64, max_records: usize) -> Result<Slice> {
        let lines = lock(&self.lines);
        let newest = lines.newest();
        let before = before.clamp(1, newest + 1);
        if before <= lines.trimmed + 1 {
            let gap = (before > 1).then(|| Gap { from: 1, to: before - 1 });
            return Ok(Slice { gap, records: Vec::new(), newest });
        }
        let mut records = Vec::new();
        let mut size = 0;
        let newer = lines.after(lines.trimmed).rev().skip((newest + 1 - before) as usize);
        for record in newer.take(max_records.max(1)) {
            size += record.data.len();
            if size > READ_BACK_BYTES && !records.is_empty() {
                break;
            }
            records.push(record);
        }
        records.reverse();
        Ok(Slice { gap: None, records, newest })
    }

    fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}
