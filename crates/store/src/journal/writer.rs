//! The one thread that writes every stream, and the one that syncs them.
//!
//! A stream whose intake gets its first line puts itself on the list. The writer goes round the list, one write a
//! stream, and shows what it wrote. When nothing was going on it does so at once; under load it rests between rounds
//! ([`REST_FACTOR`]), so that one wake-up and one write carry many events. Syncing has a thread of its own,
//! because a disk may take longer for it than a viewer may wait.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};

use super::boot;
use super::disk::DiskJournalOptions;
use super::stream::{DiskStream, lock};

/// Most bytes of one write (DESIGN §14); a longer line is written alone.
pub(super) const BATCH_BYTES: usize = 256 << 10;

/// After a round the writer rests so many times as long as the round took, unless a whole batch is waiting. Few events
/// then wait about a millisecond; many share wake-ups and writes, and a slow disk gets larger ones. With 50 streams and
/// 8,000 events a second this took the writer from 9 to 5 µs of CPU an event.
const REST_FACTOR: u32 = 30;

/// Shortest and longest rest; with the write itself an event stays below the 20 ms of DESIGN §14.
const REST: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));

/// How long written lines may stay unsynced: what a power cut takes.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// How often idle streams are looked for.
const COOL_EVERY: Duration = Duration::from_secs(1);

/// Back-off after a failed write: first and longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How long a closing journal tries to bring out what it could not write yet.
const CLOSING_LIMIT: Duration = Duration::from_secs(3);

/// Reads from disk at the same time; more would only queue up at the disk.
const READS: usize = 4;

/// What the streams, the writer and the journal share.
pub(super) struct Core {
    pub(super) dir: PathBuf,
    pub(super) options: DiskJournalOptions,
    /// Bytes of all streams that are not written yet.
    pub(super) pending: AtomicUsize,
    /// Wakes appends that wait for room.
    pub(super) room: Notify,
    pub(super) reads: Arc<Semaphore>,
    /// The writer is gone; what is not written never will be.
    pub(super) dead: AtomicBool,
    waiters: AtomicUsize,
    queue: Mutex<Queue>,
    wake_writer: Condvar,
    dirty: Mutex<Dirty>,
    wake_syncer: Condvar,
    names: Mutex<u64>,
    names_made: std::sync::atomic::AtomicU64,
    write_trouble: Mutex<Option<String>>,
    sync_trouble: Mutex<Option<String>>,
    /// A sync failed at some time: the kernel may have dropped what it could not write, so this run never was clean.
    unsound: AtomicBool,
}

#[derive(Default)]
struct Queue {
    ready: Vec<Arc<DiskStream>>,
    asleep: bool,
    urgent: bool,
    closing: bool,
    closed: bool,
}

#[derive(Default)]
struct Dirty {
    streams: Vec<Arc<DiskStream>>,
    soon: bool,
    closing: bool,
}

/// Counts an append that waits.
pub(super) struct Waiting<'a>(&'a Core);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Core {
    pub(super) fn new(dir: PathBuf, options: DiskJournalOptions) -> Self {
        Self {
            dir,
            options,
            pending: AtomicUsize::new(0),
            room: Notify::new(),
            reads: Arc::new(Semaphore::new(READS)),
            dead: AtomicBool::new(false),
            waiters: AtomicUsize::new(0),
            queue: Mutex::default(),
            wake_writer: Condvar::new(),
            dirty: Mutex::default(),
            wake_syncer: Condvar::new(),
            names: Mutex::new(0),
            names_made: 0.into(),
            write_trouble: Mutex::new(None),
            sync_trouble: Mutex::new(None),
            unsound: AtomicBool::new(false),
        }
    }

    /// Puts a stream on the writer's list; false when the writer takes nothing any more.
    pub(super) fn submit(&self, stream: Arc<DiskStream>) -> bool {
        let mut queue = lock(&self.queue);
        if queue.closed {
            return false;
        }
        queue.ready.push(stream);
        if queue.asleep {
            queue.asleep = false;
            self.wake_writer.notify_one();
        }
        true
    }

    /// Has the next round begin now.
    pub(super) fn hurry(&self) {
        lock(&self.queue).urgent = true;
        self.wake_writer.notify_one();
    }

    /// Has the writer end when it has written what is there.
    pub(super) fn close(&self) {
        lock(&self.queue).closing = true;
        self.wake_writer.notify_one();
    }

    pub(super) fn stop_syncer(&self) {
        lock(&self.dirty).closing = true;
        self.wake_syncer.notify_one();
    }

    /// Counts the caller among those to be woken when there is room.
    pub(super) fn waiting(&self) -> Waiting<'_> {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    pub(super) fn mark_dirty(&self, stream: Option<Arc<DiskStream>>) {
        let mut dirty = lock(&self.dirty);
        dirty.streams.extend(stream);
        self.wake_syncer.notify_one();
    }

    /// Has the syncer begin now: a segment was ended.
    pub(super) fn sync_soon(&self) {
        lock(&self.dirty).soon = true;
        self.wake_syncer.notify_one();
    }

    pub(super) fn sync_failed(&self, stream: &str, error: &io::Error) {
        tracing::error!(stream, %error, "journal cannot be synced");
        self.unsound.store(true, Ordering::Relaxed);
        *lock(&self.sync_trouble) = Some(format!("journal {stream} cannot be synced: {error}"));
    }

    pub(super) fn trouble(&self) -> Option<String> {
        lock(&self.write_trouble).clone().or_else(|| lock(&self.sync_trouble).clone())
    }

    /// Makes the names of stream directories durable. Who comes while another syncs shares the next sync.
    pub(super) fn sync_names(&self) -> io::Result<()> {
        let mine = self.names_made.fetch_add(1, Ordering::SeqCst) + 1;
        let mut synced = lock(&self.names);
        if *synced < mine {
            let made = self.names_made.load(Ordering::SeqCst);
            boot::sync_dir(&self.dir)?;
            *synced = made;
        }
        Ok(())
    }
}

/// The writer's own state.
struct Writer {
    core: Arc<Core>,
    buffer: Vec<u8>,
    /// Streams that hold a ring, and perhaps an open file.
    warm: Vec<Arc<DiskStream>>,
    open_files: usize,
    /// What was written in this round and nobody was told yet.
    news: Vec<(Arc<DiskStream>, u64)>,
    failing: Vec<Arc<DiskStream>>,
    retry_at: Instant,
    retry_delay: Duration,
}

/// Writes until the journal is closed, then makes everything durable; answers whether that succeeded.
pub(super) fn run(core: &Arc<Core>, syncer: std::thread::JoinHandle<()>) -> bool {
    // Even if this thread panics nobody may wait for it for ever.
    let end = End(core);
    let mut writer = Writer {
        core: core.clone(),
        buffer: Vec::new(),
        warm: Vec::new(),
        open_files: 0,
        news: Vec::new(),
        failing: Vec::new(),
        retry_at: Instant::now(),
        retry_delay: RETRY.0,
    };
    writer.serve();
    let unwritten = writer.failing.len();
    drop(end);
    for stream in &writer.failing {
        tracing::error!(stream = stream.name(), "journal was closed with events it could not write");
        stream.nudge();
    }
    let synced = syncer.join().is_ok();
    for stream in &writer.warm {
        stream.close_file();
    }
    unwritten == 0 && synced && !core.unsound.load(Ordering::Relaxed)
}

/// Tells everybody that nothing will be written any more.
struct End<'a>(&'a Core);

impl Drop for End<'_> {
    fn drop(&mut self) {
        lock(&self.0.queue).closed = true;
        self.0.dead.store(true, Ordering::Release);
        self.0.room.notify_waiters();
        self.0.stop_syncer();
    }
}

impl Writer {
    fn serve(&mut self) {
        let mut next_round = Instant::now();
        let mut cool_at = Instant::now() + COOL_EVERY;
        let mut more: Vec<Arc<DiskStream>> = Vec::new();
        let mut give_up_at = None;
        loop {
            let ready = self.wait(next_round, cool_at, !more.is_empty());
            let now = Instant::now();
            let Some(ready) = ready else {
                // Closing: everything that was appended is in `failing`, or written.
                let limit = *give_up_at.get_or_insert(now + CLOSING_LIMIT);
                if self.failing.is_empty() || now > limit {
                    return;
                }
                std::thread::sleep(RETRY.0);
                let failing = std::mem::take(&mut self.failing);
                more = self.round(failing);
                self.settle();
                continue;
            };
            if now >= cool_at {
                self.cool(now);
                cool_at = now + COOL_EVERY;
            }
            let retry = !self.failing.is_empty() && now >= self.retry_at;
            let retried = if retry { std::mem::take(&mut self.failing) } else { Vec::new() };
            if ready.is_empty() && more.is_empty() && retried.is_empty() {
                continue;
            }
            let streams = std::mem::take(&mut more).into_iter().chain(ready).chain(retried).collect();
            more = self.round(streams);
            let done = Instant::now();
            next_round = done + ((done - now) * REST_FACTOR).clamp(REST.0, REST.1);
            if retry {
                self.settle();
            }
        }
    }

    /// Waits for something to do; `None` when the journal is closing and the list is empty.
    fn wait(&self, next_round: Instant, cool_at: Instant, more: bool) -> Option<Vec<Arc<DiskStream>>> {
        let core = &self.core;
        let mut queue = lock(&core.queue);
        loop {
            let now = Instant::now();
            let due = more || now >= next_round || queue.urgent || queue.closing;
            if more || (due && !queue.ready.is_empty()) {
                queue.urgent = false;
                return Some(std::mem::take(&mut queue.ready));
            }
            if queue.closing {
                queue.closed = true;
                return None;
            }
            let retry_at = (!self.failing.is_empty()).then_some(self.retry_at);
            let cool_at = (!self.warm.is_empty()).then_some(cool_at);
            if retry_at.is_some_and(|at| now >= at) || cool_at.is_some_and(|at| now >= at) {
                return Some(std::mem::take(&mut queue.ready));
            }
            // A stream that comes while a round is pending need not wake us; one that comes to an idle writer must.
            let round_at = (!queue.ready.is_empty()).then_some(next_round);
            queue.asleep = round_at.is_none();
            let until = [round_at, retry_at, cool_at].into_iter().flatten().min();
            queue = match until {
                Some(at) => {
                    let timeout = at.saturating_duration_since(now);
                    let waited = core.wake_writer.wait_timeout(queue, timeout);
                    waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
                }
                None => core.wake_writer.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner),
            };
            queue.asleep = false;
        }
    }

    /// Writes one batch of each stream; answers those that have more.
    fn round(&mut self, streams: Vec<Arc<DiskStream>>) -> Vec<Arc<DiskStream>> {
        let mut more = Vec::new();
        for stream in streams {
            match stream.write_batch(&mut self.buffer) {
                Ok(wrote) => {
                    self.open_files += usize::from(wrote.opened);
                    if wrote.warmed {
                        self.warm.push(stream.clone());
                    }
                    if self.open_files > self.core.options.open_files {
                        self.close_oldest();
                    }
                    if let Some(newest) = wrote.newest {
                        self.news.push((stream.clone(), newest));
                    }
                    if wrote.more {
                        more.push(stream);
                    }
                }
                Err(error) => self.failed(stream, &error),
            }
            if self.buffer.capacity() > 2 * BATCH_BYTES {
                self.buffer = Vec::new();
            }
        }
        // All at once: a viewer woken between two writes would take the processor from the second.
        for (stream, newest) in self.news.drain(..) {
            stream.announce(newest);
        }
        if self.core.waiters.load(Ordering::Relaxed) > 0 {
            self.core.room.notify_waiters();
        }
        more
    }

    fn failed(&mut self, stream: Arc<DiskStream>, error: &io::Error) {
        let mut trouble = lock(&self.core.write_trouble);
        if trouble.is_none() {
            tracing::error!(stream = stream.name(), %error, "journal cannot be written; events wait in memory");
            self.retry_delay = RETRY.0;
            self.retry_at = Instant::now() + RETRY.0;
        }
        *trouble = Some(format!("journal {} cannot be written: {error}", stream.name()));
        self.failing.push(stream);
    }

    /// After those that failed were tried again: the next try, or the end of the trouble.
    fn settle(&mut self) {
        if self.failing.is_empty() {
            *lock(&self.core.write_trouble) = None;
            tracing::info!("journal can be written again");
            return;
        }
        self.retry_delay = (self.retry_delay * 2).min(RETRY.1);
        self.retry_at = Instant::now() + self.retry_delay;
    }

    fn cool(&mut self, now: Instant) {
        let idle = self.core.options.idle_after;
        let (cold, warm) =
            std::mem::take(&mut self.warm).into_iter().partition(|stream| now - stream.written_at() > idle);
        self.warm = warm;
        let cold: Vec<Arc<DiskStream>> = cold;
        self.open_files -= cold.iter().filter(|stream| stream.cool()).count();
    }

    /// Closes the files that were written least recently; a quarter at once, so that sorting is paid for rarely.
    fn close_oldest(&mut self) {
        self.warm.sort_by_cached_key(|stream| stream.written_at());
        let keep = self.core.options.open_files * 3 / 4;
        for stream in &self.warm {
            if self.open_files <= keep {
                return;
            }
            self.open_files -= usize::from(stream.close_file());
        }
    }
}

/// Syncs what was written, about once per second, until the journal is closed and all is synced.
pub(super) fn sync(core: &Core) {
    let mut last = Instant::now();
    loop {
        let (streams, closing) = {
            let mut dirty = lock(&core.dirty);
            loop {
                let left = SYNC_EVERY.saturating_sub(last.elapsed());
                if dirty.closing || (!dirty.streams.is_empty() && (dirty.soon || left.is_zero())) {
                    break;
                }
                dirty = if dirty.streams.is_empty() {
                    core.wake_syncer.wait(dirty).unwrap_or_else(std::sync::PoisonError::into_inner)
                } else {
                    let waited = core.wake_syncer.wait_timeout(dirty, left);
                    waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
                };
            }
            dirty.soon = false;
            (std::mem::take(&mut dirty.streams), dirty.closing)
        };
        last = Instant::now();
        let mut again = Vec::new();
        let mut failed = false;
        for stream in streams {
            match stream.sync() {
                Ok(false) => {}
                Ok(true) => again.push(stream),
                Err(error) => {
                    core.sync_failed(stream.name(), &error);
                    failed = true;
                    again.push(stream);
                }
            }
        }
        if !failed {
            *lock(&core.sync_trouble) = None;
        }
        if closing && (again.is_empty() || failed) {
            return;
        }
        lock(&core.dirty).streams.append(&mut again);
    }
}
