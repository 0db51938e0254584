//! The store in one directory of this machine: nothing to install, one service at a time.
//!
//! ```text
//! DIR/            0700
//!   lock          held (flock) by the service that has the directory open
//!   key           32 random bytes, 0600: everything secret below is sealed with it
//!   optio.db      SQLite, WAL, synchronous=FULL: every row, every lease
//!   blobs/        logins (sealed whole) and snapshots (sealed as streams), one file each
//!   spool/        rotated logins on their way into the store, one file each
//!   deliverables/ what agents handed over, one directory for each session
//! ```
//!
//! SQLite belongs to one thread of its own with a bounded queue, not to a mutex on the blocking pool: a lease renewal
//! then waits behind other rows (a fraction of a millisecond each), never behind an archive that is hashed there, and
//! a disk that hangs holds one thread, not one for each caller. Files are read, hashed and sealed on the blocking
//! pool, with a bound for logins and another for snapshots.
//!
//! A blob is complete and durable before a row names it, and outlives the row that named it by [`BLOB_GRACE`].

mod blobs;
mod columns;
mod db;
mod doomed;
mod health;
mod leases;
mod records;
mod schema;
mod seeds;
mod snapshots;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::clock::millis;
use crate::local::deliverables::DiskDeliverables;
use crate::local::spool::DiskSpool;
use crate::local::{FILES_AT_ONCE, key, lock, offload, private_dir};
use crate::sealed::Sealer;
use crate::{Clock, Journal, Result, Store, SystemClock};
use blobs::Blobs;
use db::Db;

/// Longest wait for one operation; what takes longer is [`StoreError::TimedOut`], and whether it happened is unknown.
/// A commit of a snapshot has a second more for each 16 MiB.
pub const OPERATION_LIMIT: Duration = Duration::from_secs(10);
/// How long a blob stays after the row that named it is gone, for whoever is reading it (T-056).
pub const BLOB_GRACE: Duration = Duration::from_secs(10 * 60);
/// Snapshot chunks that are hashed and sealed at once. Apart from the logins: saving one never waits for archives.
const CHUNKS_AT_ONCE: usize = 4;

/// What is not the same everywhere.
#[derive(Clone)]
pub struct Options {
    /// The key file; `DIR/key` if none is given. It is made when the store is.
    pub key_file: Option<PathBuf>,
    /// The clock that leases and retention go by.
    pub clock: Arc<dyn Clock>,
    /// How long to wait for a service that is just ending to let the directory go.
    pub lock_wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { key_file: None, clock: Arc::new(SystemClock), lock_wait: Duration::from_secs(2) }
    }
}

/// An open store directory. Clones share it; it is let go when the last one, and every [`Store`] made from it, is gone.
#[derive(Clone)]
pub struct Embedded {
    core: Arc<Core>,
}

struct Core {
    db: Db,
    blobs: Blobs,
    spool: Arc<DiskSpool>,
    deliverables: Arc<DiskDeliverables>,
    sealer: Sealer,
    clock: Arc<dyn Clock>,
    logins: Arc<Semaphore>,
    chunks: Arc<Semaphore>,
}

impl Embedded {
    /// Opens the directory, and makes it if there is none. Removes what an earlier service left half done. Blocks:
    /// for the start of a service, before its actors run, or for `spawn_blocking`.
    ///
    /// Errors: [`StoreError::Unavailable`] when another service has it open, [`StoreError::Invalid`] when others may
    /// read the key file or the database is of a newer version, [`StoreError::Damaged`] when the key is another one
    /// than the store was made with, or is missing.
    pub fn open(dir: &Path, options: Options) -> Result<Self> {
        private_dir(dir)?;
        let lock = lock(dir, options.lock_wait)?;
        let db_path = dir.join("optio.db");
        let key_path = options.key_file.unwrap_or_else(|| dir.join("key"));
        let sealer = Sealer::new(&key::load(&key_path, !db_path.exists())?);
        let connection = schema::open(&db_path, &sealer, &key_path)?;
        let blobs = Blobs::open(dir.join("blobs"))?;
        let spool = DiskSpool::open(dir, sealer.clone())?;
        let deliverables = DiskDeliverables::open(dir, sealer.clone())?;
        blobs.sweep_unknown(&doomed::blob_names(&connection)?)?;
        let core = Core {
            db: Db::start(connection, lock)?,
            blobs,
            spool: Arc::new(spool),
            deliverables: Arc::new(deliverables),
            sealer,
            clock: options.clock,
            logins: Arc::new(Semaphore::new(FILES_AT_ONCE)),
            chunks: Arc::new(Semaphore::new(CHUNKS_AT_ONCE)),
        };
        Ok(Self { core: Arc::new(core) })
    }

    /// This store with a journal beside it.
    pub fn store(&self, journal: Arc<dyn Journal>) -> Store {
        Store {
            seeds: Arc::new(self.clone()),
            leases: Arc::new(self.clone()),
            snapshots: Arc::new(self.clone()),
            records: Arc::new(self.clone()),
            spool: self.core.spool.clone(),
            deliverables: self.core.deliverables.clone(),
            journal,
            health: Arc::new(self.clone()),
        }
    }

    /// Deletes the blobs that no row has named for [`BLOB_GRACE`], and answers how many. To be called every few
    /// minutes, and once after the start.
    pub async fn sweep(&self) -> Result<usize> {
        let before = self.now_ms() - i64::try_from(BLOB_GRACE.as_millis()).unwrap_or(i64::MAX);
        let doomed = self.core.db.run("sweep", move |c| doomed::doomed_before(c, before)).await?;
        let mut deleted = 0;
        for name in doomed {
            let core = self.core.clone();
            let file = name.clone();
            self.login_work("sweep", move || core.blobs.remove(&file)).await?;
            self.core.db.run("sweep", move |c| doomed::forget_doomed(c, &name)).await?;
            deleted += 1;
        }
        Ok(deleted)
    }

    fn now_ms(&self) -> i64 {
        millis(self.core.clock.now())
    }

    /// Runs file work of a login, record or spool entry on the blocking pool.
    async fn login_work<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        offload(&self.core.logins, what, OPERATION_LIMIT, work).await
    }

    /// Runs file work of a snapshot on the blocking pool.
    async fn chunk_work<T: Send + 'static>(
        &self,
        what: &'static str,
        limit: Duration,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        offload(&self.core.chunks, what, limit, work).await
    }
}
