//! One stream on disk: its intake, what is readable of it, and its end of the file.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

use super::boot::{self, UNSYNCED_LINES};
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

/// The writer's own.
struct Output {
    file: Option<File>,
    segment: Segment,
    /// Lines on their way to the file; after a failed write the same bytes go to the same place again.
    inflight: Vec<Bytes>,
    written_at: Instant,
    warm: bool,
    deleted: bool,
}

/// Lines of one segment that a power cut could take.
struct Unsynced {
    first: u64,
    lines: u64,
}

/// What the writer has to know after a write.
pub(super) struct Wrote {
    /// There is more to write.
    pub(super) more: bool,
    /// A file was opened for it.
    pub(super) opened: bool,
    /// The stream was cold before.
    pub(super) warmed: bool,
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
            output: Mutex::new(Output {
                file: None,
                segment,
                inflight: Vec::new(),
                written_at: Instant::now(),
                warm: false,
                deleted: false,
            }),
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

    /// Writes the next batch with one write, and shows it to readers. An error leaves all as it was, to be tried again.
    pub(super) fn write_batch(&self, buffer: &mut Vec<u8>) -> io::Result<Wrote> {
        let mut output = lock(&self.output);
        let output = &mut *output;
        if output.inflight.is_empty() {
            self.take_batch(&mut output.inflight);
        }
        let mut wrote = Wrote { more: false, opened: false, warmed: false };
        if !output.inflight.is_empty() {
            if !output.deleted {
                wrote.opened = self.write_inflight(output, buffer)?;
            }
            output.written_at = Instant::now();
            wrote.warmed = !std::mem::replace(&mut output.warm, true);
            self.publish(output);
        }
        let mut intake = lock(&self.intake);
        wrote.more = !intake.pending.is_empty();
        intake.queued = wrote.more;
        if !wrote.more && intake.pending.capacity() > 64 {
            intake.pending = VecDeque::new();
        }
        Ok(wrote)
    }

    fn take_batch(&self, batch: &mut Vec<Bytes>) {
        let mut intake = lock(&self.intake);
        let mut size = 0;
        while let Some(line) = intake.pending.front() {
            size += line.len() + 1;
            if size > BATCH_BYTES && !batch.is_empty() {
                return;
            }
            batch.extend(intake.pending.pop_front());
        }
    }

    /// Brings the lines in flight into the file; answers whether it had to be opened.
    fn write_inflight(&self, output: &mut Output, buffer: &mut Vec<u8>) -> io::Result<bool> {
        buffer.clear();
        for line in &output.inflight {
            buffer.extend_from_slice(line);
            buffer.push(b'\n');
        }
        let first = lock(&self.readable).ring.end();
        let full = output.segment.bytes + buffer.len() as u64 > self.core.options.segment_bytes;
        if output.segment.bytes > 0 && full && self.may_roll(output.segment.first) {
            output.file = None;
            output.segment = Segment { first, bytes: 0 };
            self.core.sync_soon();
        }
        let opened = output.file.is_none();
        let file = match output.file.take() {
            Some(file) => file,
            None => self.open_segment(&mut output.segment, first)?,
        };
        let file = output.file.insert(file);
        self.write_at(file, buffer, output.segment.bytes)?;
        output.segment.bytes += buffer.len() as u64;
        self.note_unsynced(output.segment.first, output.inflight.len() as u64);
        Ok(opened)
    }

    /// At most two segments may be unsynced: that is how many a power cut's recovery looks through.
    fn may_roll(&self, active: u64) -> bool {
        lock(&self.unsynced).iter().all(|unsynced| unsynced.first == active)
    }

    fn open_segment(&self, segment: &mut Segment, next: u64) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        if segment.bytes > 0 {
            match options.open(segment::path(&self.dir, segment.first)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    tracing::error!(
                        stream = self.name,
                        first = segment.first,
                        "journal segment was removed by others"
                    );
                    *segment = Segment { first: next, bytes: 0 };
                }
                other => return other,
            }
        }
        options.create(true).open(segment::path(&self.dir, segment.first))
    }

    /// Writes all of it at its place. A part that was written before an error is written again with the rest, at the
    /// same place, so no line is torn by it.
    fn write_at(&self, file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let allowed = self.core.options.allowed(bytes.len())?;
            match file.write_at(&bytes[..allowed], at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    bytes = &bytes[n..];
                    at += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes the written lines readable, trims, and wakes who waits for them.
    fn publish(&self, output: &mut Output) {
        let options = &self.core.options;
        let mut size = 0;
        let mut trimmed = Vec::new();
        let newest = {
            let mut readable = lock(&self.readable);
            for line in output.inflight.drain(..) {
                size += line.len();
                readable.ring.push(line, options.ring_bytes);
            }
            if !output.deleted {
                match readable.segments.last_mut() {
                    Some(last) if last.first == output.segment.first => *last = output.segment,
                    _ => readable.segments.push(output.segment),
                }
                let mut kept: u64 = readable.segments.iter().map(|segment| segment.bytes).sum();
                while kept > options.keep_bytes && readable.segments.len() > 1 {
                    let oldest = readable.segments.remove(0);
                    kept -= oldest.bytes;
                    trimmed.push(oldest.first);
                }
                let oldest = readable.segments[0].first;
                readable.ring.trim(oldest);
            }
            readable.newest()
        };
        output.inflight.shrink_to(64);
        lock(&self.intake).bytes -= size;
        self.core.pending.fetch_sub(size, Ordering::Relaxed);
        self.newest.send_replace(newest);
        for first in trimmed {
            if let Err(error) = std::fs::remove_file(segment::path(&self.dir, first)) {
                tracing::warn!(stream = self.name, first, %error, "trimmed journal segment stays on disk");
            }
        }
    }

    fn note_unsynced(&self, first: u64, lines: u64) {
        let mut unsynced = lock(&self.unsynced);
        if unsynced.is_empty() {
            self.core.mark_dirty(self.this.upgrade());
        }
        match unsynced.last_mut() {
            Some(last) if last.first == first => last.lines += lines,
            _ => unsynced.push(Unsynced { first, lines }),
        }
        let total: u64 = unsynced.iter().map(|unsynced| unsynced.lines).sum();
        drop(unsynced);
        if total > UNSYNCED_LINES
            && let Err(error) = self.sync()
        {
            self.core.sync_failed(&self.name, &error);
        }
    }

    /// Makes durable what is written; answers whether more was written meanwhile. Blocks.
    pub(super) fn sync(&self) -> io::Result<bool> {
        let _turn = lock(&self.sync_turn);
        let now: Vec<(u64, u64)> = lock(&self.unsynced).iter().map(|part| (part.first, part.lines)).collect();
        for (first, _) in &now {
            match File::open(segment::path(&self.dir, *first)).and_then(|file| file.sync_data()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                // Trimmed or deleted meanwhile: nothing of it can be missed.
                _ => {}
            }
        }
        match boot::sync_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut unsynced = lock(&self.unsynced);
        for (first, lines) in now {
            if let Some(part) = unsynced.iter_mut().find(|part| part.first == first) {
                part.lines -= lines;
            }
        }
        unsynced.retain(|part| part.lines > 0);
        Ok(!unsynced.is_empty())
    }

    pub(super) fn written_at(&self) -> Instant {
        lock(&self.output).written_at
    }

    /// Gives the file handle back; answers whether there was one.
    pub(super) fn close_file(&self) -> bool {
        lock(&self.output).file.take().is_some()
    }

    /// Lets go of what only a busy stream needs; answers whether a file was closed.
    pub(super) fn cool(&self) -> bool {
        let mut output = lock(&self.output);
        output.warm = false;
        lock(&self.readable).ring.clear();
        output.inflight = Vec::new();
        output.file.take().is_some()
    }

    /// Goes on without files; blocks while a write is under way.
    pub(super) fn forget_files(&self) {
        let mut output = lock(&self.output);
        output.deleted = true;
        output.file = None;
        lock(&self.readable).segments.clear();
    }

    /// Tells those who wait in [`JournalStream::flush`] to look whether it is still worth it.
    pub(super) fn nudge(&self) {
        self.newest.send_modify(|_| {});
    }

    /// What can be answered from memory, or the segments to look through and the newest number.
    fn from_ring(
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
        for (seq, line) in readable.ring.from(from).take(max_records) {
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
    async fn from_disk<F>(&self, read: F) -> Result<Slice>
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
        match self.from_ring(after, max_records, max_bytes) {
            Ok(slice) => Ok(slice),
            Err(_) => {
                self.from_disk(move |this| {
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
        if let Ok(mut slice) = self.from_ring(after, wanted, READ_BACK_BYTES)
            && slice.gap.is_none()
            && slice.records.last().is_none_or(|last: &Record| last.seq + 1 == before)
        {
            slice.records.retain(|record| record.seq < before);
            return Ok(slice);
        }
        self.from_disk(move |this| {
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
