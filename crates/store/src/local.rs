//! What a store keeps on this machine whatever its backend is: a private directory, its lock and key, the spool,
//! deliverables.

pub(crate) mod deliverables;
pub(crate) mod key;
pub(crate) mod spool;

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::{Result, StoreError};

/// Longest wait for the work on one small file.
pub(crate) const OPERATION_LIMIT: Duration = Duration::from_secs(10);
/// Small files that are read or written at once: more would only queue up at the same disk.
pub(crate) const FILES_AT_ONCE: usize = 8;
/// Pause between two looks at the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Runs file work on the blocking pool, once there is a place for it, and waits for it at most `limit`.
pub(crate) async fn offload<T: Send + 'static>(
    places: &Arc<Semaphore>,
    what: &'static str,
    limit: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let places = places.clone();
    let done = async move {
        let place = places.acquire_owned().await.map_err(|e| unavailable(what, e))?;
        let task = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        task.await.map_err(|e| unavailable(what, e))?
    };
    tokio::time::timeout(limit, done).await.map_err(|_| StoreError::TimedOut { what, limit })?
}

/// Makes a directory only its owner may enter, or makes an existing one so.
pub(crate) fn private_dir(dir: &Path) -> Result<()> {
    let at = |e| unavailable("opening the store", format_args!("{}: {e}", dir.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at)?;
    if dir.metadata().map_err(at)?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(dir = %dir.display(), "store directory was open to others, now it is 0700");
        std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(at)?;
    }
    Ok(())
}

/// Locks a directory for this process, or says who has it.
pub(crate) fn lock(dir: &Path, wait: Duration) -> Result<File> {
    let path = dir.join("lock");
    let at =
        |e: &dyn std::fmt::Display| unavailable("opening the store", format_args!("{}: {e}", path.display()));
    let mut options = OpenOptions::new();
    let mut file = options
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| at(&e))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(e)) => return Err(at(&e)),
            Err(TryLockError::WouldBlock) if begun.elapsed() >= wait => {
                let holder = std::fs::read_to_string(&path).unwrap_or_default();
                return Err(at(&format_args!(
                    "another service (pid {}) has this directory open",
                    holder.trim()
                )));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
        }
    }
    // For the message above only; the lock is the kernel's.
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(|e| at(&e))?;
    Ok(file)
}

/// The error for what may work later.
pub(crate) fn unavailable(what: &'static str, why: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable { what, why: why.to_string() }
}

/// The error for what must not be stored.
pub(crate) fn invalid(field: &'static str, why: impl Into<String>) -> StoreError {
    StoreError::Invalid { field, why: why.into() }
}

/// Makes renames and removals in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| unavailable("a directory of the store", format_args!("{}: {e}", dir.display())))
}
