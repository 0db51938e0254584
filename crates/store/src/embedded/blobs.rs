//! The blob files: written beside, fsynced, renamed, never changed.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::local::{private_dir, sync_dir, unavailable};
use crate::{Result, StoreError};

/// What a blob holds; begins its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A login.
    Seed,
    /// A snapshot.
    Snapshot,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Seed => "seed-",
            Self::Snapshot => "snap-",
        }
    }

    /// A new name.
    pub(super) fn mint(self) -> String {
        format!("{}{}", self.prefix(), uuid::Uuid::new_v4().simple())
    }
}

/// Whether we would have given a blob this name. What else lies in the directory is left alone.
fn is_ours(name: &str) -> bool {
    let hex = [Kind::Seed, Kind::Snapshot].iter().find_map(|kind| name.strip_prefix(kind.prefix()));
    hex.is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// The directory of blobs.
pub(super) struct Blobs {
    dir: PathBuf,
}

impl Blobs {
    /// Opens or makes it.
    pub(super) fn open(dir: PathBuf) -> Result<Self> {
        private_dir(&dir)?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.blob"))
    }

    /// Begins a blob. It is removed again unless it is [`Fresh::keep`]t.
    pub(super) fn create(&self, name: &str) -> Result<(File, Fresh)> {
        let path = self.dir.join(format!("{name}.tmp"));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|e| failed(&path, e))?;
        Ok((file, Fresh { path, kept: false }))
    }

    /// Makes a written blob durable under its name.
    pub(super) fn publish(&self, file: File, fresh: &mut Fresh, name: &str) -> Result<()> {
        let path = self.path(name);
        file.sync_all().and_then(|()| std::fs::rename(&fresh.path, &path)).map_err(|e| failed(&path, e))?;
        fresh.path = path;
        sync_dir(&self.dir)
    }

    /// Writes a small blob whole.
    pub(super) fn put(&self, name: &str, bytes: &[u8]) -> Result<Fresh> {
        let (mut file, mut fresh) = self.create(name)?;
        file.write_all(bytes).map_err(|e| failed(&fresh.path, e))?;
        self.publish(file, &mut fresh, name)?;
        Ok(fresh)
    }

    /// Opens a blob. A missing one is damage: a row named it.
    pub(super) fn read(&self, name: &str) -> Result<File> {
        let path = self.path(name);
        File::open(&path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => StoreError::Damaged {
                what: format!("blob {name}"),
                why: format!("{} is missing", path.display()),
            },
            _ => failed(&path, e),
        })
    }

    /// Removes a blob; absent is fine.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        remove(&self.path(name)).map_err(|e| failed(&self.path(name), e))
    }

    /// Removes what a crash left: files that were being written, and blobs that no row names. Only while nothing else
    /// runs, because a blob is on disk before its row.
    pub(super) fn sweep_unknown(&self, known: &BTreeSet<String>) -> Result<()> {
        for entry in self.dir.read_dir().map_err(|e| failed(&self.dir, e))? {
            let entry = entry.map_err(|e| failed(&self.dir, e))?;
            let file_name = entry.file_name();
            let Some((name, ending)) = file_name.to_str().and_then(|name| name.rsplit_once('.')) else {
                continue;
            };
            let left = match ending {
                "tmp" => is_ours(name),
                "blob" => is_ours(name) && !known.contains(name),
                _ => false,
            };
            if left {
                tracing::info!(blob = name, "removing a blob that no row names");
                remove(&entry.path()).map_err(|e| failed(&entry.path(), e))?;
            }
        }
        Ok(())
    }
}

/// A blob that no row names yet. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct Fresh {
    path: PathBuf,
    kept: bool,
}

impl Fresh {
    /// A row names it now, or may name it.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let path = std::mem::take(&mut self.path);
        let unlink = move || {
            if let Err(error) = remove(&path) {
                tracing::warn!(path = %path.display(), %error, "could not remove an unused file, the next start will");
            }
        };
        // Unlinking a large file takes a while. Outside of a runtime this is a blocking thread anyway.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(unlink)),
            Err(_) => unlink(),
        }
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn failed(path: &Path, error: std::io::Error) -> StoreError {
    unavailable("a file of the store", format_args!("{}: {error}", path.display()))
}
