//! One stream on disk: its intake, what is readable of it, and its end of the file.

mod output;

use std::collections::VecDeque;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

use self::output::{Output, Unsynced};
use super::ring::Ring;
use super::segment::{self, Segment};
use super::writer::{BATCH_BYTES, Core};
use super::{Draft, Gap, JournalStream, READ_BACK_BYTES, Record, Slice, line};
use crate::{Result, StoreError};

/// One stream. The locks are taken one at a time, but for `output`, under which the writer takes the others.
pub(super) struct DiskStream {
    name: String,
    dir: PathBuf,
    core: Arc<Core>,
    this: Weak<DiskStream>,
    intake: Mutex<Intake>,
    readable: Mutex<Readable>,
    output: Mutex<Output>,
    unsynced: Mutex<Vec<Unsynced>>,
    sync_turn: Mutex<()>,
    newest: watch::Sender<u64>,
}

/// Lines that have a number and wait for the writer.
struct Intake {
    next: u64,
    pending: VecDeque<Bytes>,
    /// Bytes not written yet, those the writer holds now included.
    bytes: usize,
    /// The writer has this stream on its list, so nobody else need tell it.
    queued: bool,
}

/// What readers may see: written, hence numbered for good.
struct Readable {
    segments: Vec<Segment>,
    ring: Ring,
}

impl Readable {
    fn newest(&self) -> u64 {
        self.ring.end() - 1
    }
}

/// A lock whose holders never leave a half-made state behind, so a panic of one of them changes nothing.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DiskStream {
    /// Opens the stream's directory, or makes it durably; blocks.
    pub(super) fn open(core: Arc<Core>, name: &str) -> io::Result<Arc<Self>> {
        let dir = core.dir.join(name);
        match DirBuilder::new().mode(0o700).create(&dir) {
            // Else a power cut could take the directory, and numbers would begin at 1 again.
            Ok(()) => core.sync_names()?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let mut segments = segment::list(&dir)?;
        let next = match segments.last_mut() {
            Some(last) => segment::mend_tail(&dir, last)?.map_or(last.first, |seq| seq + 1),
            None => 1,
        };
        let segment = segments.last().copied().unwrap_or(Segment { first: next, bytes: 0 });
        Ok(Arc::new_cyclic(|this| Self {
            name: name.to_owned(),
            dir,
            core,
            this: this.clone(),
            intake: Mutex::new(Intake { next, pending: VecDeque::new(), bytes: 0, queued: false }),
            readable: Mutex::new(Readable { segments, ring: Ring::before(next) }),
            output: Mutex::new(Output::at(segment)),
            unsynced: Mutex::new(Vec::new()),
            sync_turn: Mutex::new(()),
            newest: watch::Sender::new(next - 1),
        }))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Numbers the event, if there is room for it now.
    fn try_append(&self, draft: &Draft) -> Result<Option<u64>> {
        let mut intake = lock(&self.intake);
        if self.core.dead.load(Ordering::Acquire) {
            return Err(self.closed());
        }
        let size = draft.body.len();
        let options = &self.core.options;
        // An event beyond a bound is let in alone, else it never could be.
        let full = intake.bytes > 0
            && (intake.bytes + size > options.pending_bytes
                || self.core.pending.load(Ordering::Relaxed) + size > options.pending_bytes_total);
        if full {
            return Ok(None);
        }
        let wake = !std::mem::replace(&mut intake.queued, true);
        if wake {
            let this = self.this.upgrade().expect("a stream that is being used is alive");
            if !self.core.submit(this) {
                intake.queued = false;
                return Err(self.closed());
            }
        }
        let seq = intake.next;
        let line = line::render(seq, Timestamp::now(), draft);
        let before = intake.bytes;
        intake.next += 1;
        intake.bytes += line.len();
        self.core.pending.fetch_add(line.len(), Ordering::Relaxed);
        let batch_full = before < BATCH_BYTES && intake.bytes >= BATCH_BYTES;
        intake.pending.push_back(line);
        drop(intake);
        if batch_full {
            self.core.hurry();
        }
        Ok(Some(seq))
    }

    fn closed(&self) -> StoreError {
        StoreError::Unavailable {
            what: "journal stream",
            why: format!("{}: the journal is closed", self.name),
        }
    }

    /// Tells those who wait in [`JournalStream::flush`] to look whether it is still worth it.
    pub(super) fn nudge(&self) {
        self.newest.send_modify(|_| {});
    }

    /// What can be answered from memory, or the segments to look through and the newest number.
    fn read_ring(
        &self,
        after: u64,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Slice, (Vec<Segment>, u64)> {
        let readable = lock(&self.readable);
        let newest = readable.newest();
        let mut slice = Slice { newest, ..Slice::default() };
        let mut from = after.min(newest) + 1;
        if from > newest {
            return Ok(slice);
        }
        if from < readable.ring.first() {
            if !readable.segments.is_empty() {
                return Err((readable.segments.clone(), newest));
            }
            slice.gap = Some(Gap { from, to: readable.ring.first() - 1 });
            from = readable.ring.first();
        }
        let mut lines = Vec::new();
        let mut size = 0;
        for (seq, line) in readable.ring.since(from).take(max_records) {
            size += line.len();
            lines.push((seq, line.clone()));
            if size >= max_bytes {
                break;
            }
        }
        drop(readable);
        slice.records = lines.into_iter().filter_map(|(seq, line)| line::record(seq, line)).collect();
        Ok(slice)
    }

    /// Reads from the segments on the blocking pool, few at a time.
    async fn read_disk<F>(&self, read: F) -> Result<Slice>
    where
        F: FnOnce(&Self) -> io::Result<Slice> + Send + 'static,
    {
        let this = self.this.upgrade().expect("a stream that is being used is alive");
        let turn = self.core.reads.clone().acquire_owned().await.expect("the semaphore is never closed");
        let read = move || {
            let _turn = turn;
            read(&this).map_err(|error| StoreError::Unavailable {
                what: "reading a journal",
                why: format!("{}: {error}", this.name),
            })
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| StoreError::Unavailable { what: "reading a journal", why: error.to_string() })?
    }

    /// Runs `read` on the present segments, again when one of them was trimmed meanwhile.
    fn with_segments(&self, read: impl Fn(&[Segment], u64) -> io::Result<Slice>) -> io::Result<Slice> {
        let mut tries = 0;
        loop {
            let (segments, newest) = {
                let readable = lock(&self.readable);
                (readable.segments.clone(), readable.newest())
            };
            match read(&segments, newest) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIM_RACES => tries += 1,
                other => return other.map(|slice| Slice { newest, ..slice }),
            }
        }
    }
}

/// How often a read may lose against trimming before it is an error.
const TRIM_RACES: usize = 8;

#[async_trait]
impl JournalStream for DiskStream {
    async fn append(&self, draft: Draft) -> Result<u64> {
        line::check(&draft)?;
        if let Some(seq) = self.try_append(&draft)? {
            return Ok(seq);
        }
        let _waiting = self.core.waiting();
        loop {
            let mut room = pin!(self.core.room.notified());
            room.as_mut().enable();
            if let Some(seq) = self.try_append(&draft)? {
                return Ok(seq);
            }
            self.core.hurry();
            room.await;
        }
    }

    async fn flush(&self) -> Result<()> {
        let target = lock(&self.intake).next - 1;
        let mut newest = self.newest.subscribe();
        if *newest.borrow_and_update() < target {
            self.core.hurry();
        }
        let dead = || self.core.dead.load(Ordering::Acquire);
        let seen = newest.wait_for(|newest| *newest >= target || dead()).await.map(|newest| *newest);
        match seen {
            Ok(seen) if seen >= target => Ok(()),
            _ => Err(self.closed()),
        }
    }

    async fn read(&self, after: u64, max_records: usize, max_bytes: usize) -> Result<Slice> {
        let max_records = max_records.max(1);
        match self.read_ring(after, max_records, max_bytes) {
            Ok(slice) => Ok(slice),
            Err(_) => {
                self.read_disk(move |this| {
                    this.with_segments(|segments, newest| {
                        segment::forward(
                            &this.dir,
                            segments,
                            after.min(newest),
                            newest,
                            max_records,
                            max_bytes,
                        )
                    })
                })
                .await
            }
        }
    }

    async fn read_back(&self, before: u64, max_records: usize) -> Result<Slice> {
        let max_records = max_records.max(1);
        let newest = *self.newest.borrow();
        let before = before.min(newest + 1).max(1);
        let after = (before - 1).saturating_sub(max_records as u64);
        let wanted = ((before - 1 - after) as usize).max(1);
        if let Ok(mut slice) = self.read_ring(after, wanted, READ_BACK_BYTES)
            && slice.gap.is_none()
            && slice.records.last().is_none_or(|last: &Record| last.seq + 1 == before)
        {
            slice.records.retain(|record| record.seq < before);
            return Ok(slice);
        }
        self.read_disk(move |this| {
            this.with_segments(|segments, newest| {
                segment::backward(&this.dir, segments, before, newest, max_records, READ_BACK_BYTES)
            })
        })
        .await
    }

    fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}
