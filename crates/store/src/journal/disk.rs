//! The journal as a directory: who opens, deletes and closes what.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;

use super::boot::{self, Boot};
use super::stream::{DiskStream, lock};
use super::writer::{self, Core};
use super::{Journal, JournalStream, line};
use crate::{Result, StoreError};

/// How long dropping the journal waits for what is left to be written and synced. Longer than the writer itself
/// goes on trying.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Deleted streams, until their files are gone.
const TRASH: &str = ".trash-";

/// Bounds of a [`DiskJournal`].
#[derive(Clone)]
#[non_exhaustive]
pub struct DiskJournalOptions {
    /// Size at which a segment is ended; it may be exceeded by a batch, or while the one before is being synced.
    pub segment_bytes: u64,
    /// Bytes kept of one stream; whole segments beyond it are deleted, oldest first.
    pub keep_bytes: u64,
    /// Bytes of one stream's newest events held in memory while it is busy (DESIGN §14: at most 1 MiB).
    pub ring_bytes: usize,
    /// Bytes of one stream that may wait for the writer; an append beyond waits.
    pub pending_bytes: usize,
    /// The same for all streams together.
    pub pending_bytes_total: usize,
    /// Files held open for writing; the least recently written is closed.
    pub open_files: usize,
    /// A stream that was not written for so long gives back its file and its ring.
    pub idle_after: Duration,
    /// This start of the machine, if the kernel should not be asked.
    pub boot_id: Option<String>,
    /// Decides before each write how many of its bytes may be written, or the error it has instead.
    #[cfg(feature = "testsuite")]
    pub write_fault: Option<WriteFault>,
}

/// A fault to be had from a disk, see [`DiskJournalOptions::write_fault`].
#[cfg(feature = "testsuite")]
pub type WriteFault = Arc<dyn Fn(usize) -> io::Result<usize> + Send + Sync>;

impl Default for DiskJournalOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 8 << 20,
            keep_bytes: 64 << 20,
            // A quarter of the budget: a viewer 1,000 events behind is still fed from memory.
            ring_bytes: 256 << 10,
            pending_bytes: 8 << 20,
            pending_bytes_total: 64 << 20,
            // A quarter of the usual limit of 1,024 handles.
            open_files: 256,
            idle_after: Duration::from_secs(30),
            boot_id: None,
            #[cfg(feature = "testsuite")]
            write_fault: None,
        }
    }
}

impl std::fmt::Debug for DiskJournalOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskJournalOptions")
            .field("segment_bytes", &self.segment_bytes)
            .field("keep_bytes", &self.keep_bytes)
            .field("ring_bytes", &self.ring_bytes)
            .field("pending_bytes", &self.pending_bytes)
            .field("pending_bytes_total", &self.pending_bytes_total)
            .field("open_files", &self.open_files)
            .field("idle_after", &self.idle_after)
            .field("boot_id", &self.boot_id)
            .finish_non_exhaustive()
    }
}

impl DiskJournalOptions {
    /// How many of `bytes` may be written now.
    pub(super) fn allowed(&self, bytes: usize) -> io::Result<usize> {
        #[cfg(feature = "testsuite")]
        if let Some(fault) = &self.write_fault {
            return fault(bytes).map(|allowed| allowed.min(bytes));
        }
        Ok(bytes)
    }
}

/// All streams below one directory, `<directory>/<stream>/<first number>.log`, one JSON line an event.
///
/// What a viewer was shown had been written before, so it survives `kill -9` with its number. A power cut can take
/// about the last second; numbering then jumps by a million, more than can be lost of a stream, so that no number
/// ever means two events, and readers are told the gap.
pub struct DiskJournal {
    core: Arc<Core>,
    streams: Mutex<HashMap<String, Arc<Slot>>>,
    closed: Mutex<mpsc::Receiver<()>>,
}

/// One name's stream while anyone has it. The lock is held while the directory is opened or deleted.
type Slot = tokio::sync::Mutex<Weak<DiskStream>>;

impl DiskJournal {
    /// Opens the directory, or makes it. Blocks, for long after a power cut, when each stream's end is looked through.
    ///
    /// Another open journal on the same directory is [`StoreError::Conflict`].
    pub fn open(dir: impl Into<PathBuf>, options: DiskJournalOptions) -> Result<Arc<Self>> {
        let dir = dir.into();
        let failed = |error: io::Error| StoreError::Unavailable {
            what: "opening the journal",
            why: format!("{}: {error}", dir.display()),
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
        let guard = exclusive(&dir)?;
        let boot_id = options.boot_id.clone().or_else(boot::kernel_boot_id);
        prepare(&dir, boot_id.clone()).map_err(failed)?;

        let core = Arc::new(Core::new(dir.clone(), options));
        let (done, closed) = mpsc::channel();
        let shared = core.clone();
        let syncer = std::thread::Builder::new()
            .name("journal-sync".to_owned())
            .spawn(move || writer::sync(&shared))
            .map_err(failed)?;
        let shared = core.clone();
        let write = move || {
            if writer::run(&shared, syncer) {
                let note = Boot { boot_id, clean: true };
                if let Err(error) = note.write(&shared.dir) {
                    tracing::error!(%error, "journal could not be marked as closed");
                }
            }
            // Only now may another one open the directory.
            drop(guard);
            let _ = done.send(());
        };
        if let Err(error) = std::thread::Builder::new().name("journal-write".to_owned()).spawn(write) {
            core.stop_syncer();
            return Err(failed(error));
        }
        Ok(Arc::new(Self { core, streams: Mutex::default(), closed: Mutex::new(closed) }))
    }

    /// Closes the journal as dropping it does, without blocking the caller's thread: writes and syncs what is left
    /// (bounded in time) and notes that the end was clean. Appends are refused from then on; reading goes on.
    pub async fn close(self: Arc<Self>) {
        if let Err(error) = tokio::task::spawn_blocking(move || self.close_blocking()).await {
            tracing::error!(%error, "closing the journal failed");
        }
    }

    fn close_blocking(&self) {
        self.core.close();
        if let Err(mpsc::RecvTimeoutError::Timeout) = lock(&self.closed).recv_timeout(CLOSE_LIMIT) {
            tracing::error!(limit = ?CLOSE_LIMIT, "journal could not be closed in time");
        }
    }

    fn slot(&self, name: &str) -> Arc<Slot> {
        let mut streams = lock(&self.streams);
        if let Some(slot) = streams.get(name) {
            return slot.clone();
        }
        // Each doubling pays for one look at who is gone.
        if streams.len() == streams.capacity() {
            streams.retain(|_, slot| {
                Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|stream| stream.strong_count() > 0)
            });
        }
        streams.entry(name.to_owned()).or_default().clone()
    }
}

impl Drop for DiskJournal {
    fn drop(&mut self) {
        self.close_blocking();
    }
}

/// Locks the directory for this process, for as long as the file is held.
fn exclusive(dir: &Path) -> Result<File> {
    let path = dir.join(".lock");
    let unavailable = |error: io::Error| StoreError::Unavailable {
        what: "locking the journal",
        why: format!("{}: {error}", path.display()),
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(unavailable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::Conflict {
            what: "journal",
            id: dir.display().to_string(),
            why: "it is open already".to_owned(),
        }),
        Err(std::fs::TryLockError::Error(error)) => Err(unavailable(error)),
    }
}

/// Settles what the last writer left, and notes that there is a new one.
fn prepare(dir: &Path, boot_id: Option<String>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(TRASH)) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    // Without a readable note nothing is known, so the worst is taken for granted; a new directory has no streams.
    if !Boot::read(dir)?.is_some_and(|last| last.kept_everything(boot_id.as_deref())) {
        boot::jump_all(dir)?;
    }
    Boot { boot_id, clean: false }.write(dir)
}

#[async_trait]
impl Journal for DiskJournal {
    fn trouble(&self) -> Option<String> {
        self.core.trouble()
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn JournalStream>> {
        line::check_stream_name(name)?;
        let slot = self.slot(name);
        let mut present = slot.lock_owned().await;
        if let Some(stream) = present.upgrade() {
            return Ok(stream);
        }
        let (core, owned) = (self.core.clone(), name.to_owned());
        // The lock goes along, so a caller that stops waiting leaves no second opener beside this one.
        let opened = tokio::task::spawn_blocking(move || {
            let stream = DiskStream::open(core, &owned)?;
            *present = Arc::downgrade(&stream);
            Ok::<_, io::Error>(stream)
        });
        match opened.await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(unavailable("opening a journal", name, &error)),
            Err(error) => Err(unavailable("opening a journal", name, &error)),
        }
    }

    async fn delete(&self, name: &str) -> Result<()> {
        line::check_stream_name(name)?;
        let mut present = self.slot(name).lock_owned().await;
        let dir = self.core.dir.clone();
        let owned = name.to_owned();
        let deleted = tokio::task::spawn_blocking(move || {
            if let Some(stream) = std::mem::take(&mut *present).upgrade() {
                stream.forget_files();
            }
            // Renamed first: a half-deleted stream must not be taken for a whole one with other numbers.
            let trash = dir.join(format!("{TRASH}{}", uuid::Uuid::new_v4().simple()));
            match std::fs::rename(dir.join(&owned), &trash) {
                Ok(()) => std::fs::remove_dir_all(&trash),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            }
        });
        match deleted.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(unavailable("deleting a journal", name, &error)),
            Err(error) => Err(unavailable("deleting a journal", name, &error)),
        }
    }
}

fn unavailable(what: &'static str, name: &str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unavailable { what, why: format!("{name}: {error}") }
}
