//! Reaching files beneath a task directory without ever walking through a symbolic link.
//!
//! The agent may write anything into its workdir, links included, at any moment. A path that was checked as text and
//! then opened as text would be a race it can win, so every step here is relative to an open directory.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{HostError, Result};
use crate::{RelPath, TaskDir};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The kernel asks for another try when a rename raced the walk; then the segment walk takes over.
const AGAIN_TRIES: usize = 4;

/// An open task directory.
pub(super) struct Beneath {
    root: OwnedFd,
    shown: PathBuf,
}

impl Beneath {
    /// Opens a task directory; links above it are the operator's own and are followed, itself it must be no link.
    pub(super) fn open(dir: &TaskDir) -> Result<Self> {
        let shown = dir.path().to_path_buf();
        let failed = |errno| sys_error("open", &shown.display().to_string(), errno);
        let (Some(above), Some(name)) = (shown.parent(), shown.file_name()) else {
            return Err(failed(Errno::INVAL));
        };
        let above =
            rustix::fs::open(above, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(failed)?;
        let root = open_segment(above.as_fd(), name.as_encoded_bytes()).map_err(failed)?;
        Ok(Self { root, shown })
    }

    /// Its absolute path with `rel` below it, for messages.
    pub(super) fn shown(&self, rel: &str) -> String {
        self.shown.join(rel).display().to_string()
    }

    /// Opens the directory `rel`; the empty string is the task directory itself.
    pub(super) fn dir(&self, rel: &str) -> Result<OwnedFd> {
        open_dir(self.root.as_fd(), rel).map_err(|errno| sys_error("open", &self.shown(rel), errno))
    }

    /// Opens the directory that holds `path`, and says the name therein.
    pub(super) fn parent_of<'p>(&self, path: &'p RelPath) -> Result<(OwnedFd, &'p str)> {
        let (above, name) = split(path.as_str());
        Ok((self.dir(above)?, name))
    }

    /// Like [`Beneath::parent_of`], and makes what is missing (0700).
    pub(super) fn made_parent_of<'p>(&self, path: &'p RelPath) -> Result<(OwnedFd, &'p str)> {
        let (above, name) = split(path.as_str());
        Ok((self.make_dirs(above)?, name))
    }

    /// Makes the directory `rel` and its parents, each 0700; those that exist stay as they are.
    pub(super) fn make_dirs(&self, rel: &str) -> Result<OwnedFd> {
        let failed = |errno| sys_error("make directory", &self.shown(rel), errno);
        let mut at = open_dir(self.root.as_fd(), "").map_err(failed)?;
        for segment in rel.split('/').filter(|segment| !segment.is_empty()) {
            match rustix::fs::mkdirat(&at, segment, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
            at = open_segment(at.as_fd(), segment.as_bytes()).map_err(failed)?;
        }
        Ok(at)
    }
}

/// Splits off the last segment.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Turns a system error into what a caller can act on.
pub(super) fn sys_error(deed: &str, path: &str, errno: Errno) -> HostError {
    match errno {
        // Something that is no directory lies on the way, so nothing can be behind it.
        Errno::NOENT | Errno::NOTDIR => HostError::NotFound { path: path.to_owned() },
        Errno::LOOP | Errno::XDEV => {
            HostError::Refused { what: "path", value: path.to_owned(), why: "a symbolic link lies on it" }
        }
        errno => HostError::io(format!("{deed} {path}"), io::Error::from(errno)),
    }
}

/// Set once the kernel, or a sandbox around us, has refused `openat2`.
static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

fn open_dir(root: impl AsFd, rel: &str) -> rustix::io::Result<OwnedFd> {
    let root = root.as_fd();
    if rel.is_empty() {
        return open_segment(root, b".");
    }
    if NO_OPENAT2.load(Ordering::Relaxed) {
        return open_dir_by_segments(root, rel);
    }
    for _ in 0..AGAIN_TRIES {
        match open_dir_at_once(root, rel) {
            Err(Errno::AGAIN) => {}
            // A seccomp filter answers EPERM for calls it does not know, which no directory of ours does.
            Err(Errno::NOSYS | Errno::PERM) => {
                NO_OPENAT2.store(true, Ordering::Relaxed);
                break;
            }
            done => return done,
        }
    }
    open_dir_by_segments(root, rel)
}

fn open_dir_at_once(root: impl AsFd, rel: &str) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    // NOFOLLOW would make a link at the end "not a directory" before the kernel asks whether links are allowed.
    rustix::fs::openat2(root, rel, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty(), resolve)
}

fn open_dir_by_segments(root: impl AsFd, rel: &str) -> rustix::io::Result<OwnedFd> {
    let mut at = open_segment(root.as_fd(), b".")?;
    for segment in rel.split('/') {
        at = open_segment(at.as_fd(), segment.as_bytes())?;
    }
    Ok(at)
}

/// Opens one directory; a link is ELOOP, as `openat2` has it, where plain `openat` says ENOTDIR for link and file.
pub(super) fn open_segment(at: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let at = at.as_fd();
    match rustix::fs::openat(at, name, DIRECTORY, Mode::empty()) {
        Err(Errno::NOTDIR) => match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::NOTDIR),
        },
        done => done,
    }
}

/// Makes an absolute directory and its parents, each 0700 where it was missing. Links are followed: this is for the
/// operator's own roots.
pub(super) fn make_root(path: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| HostError::io(format!("make directory {}", path.display()), source))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn both_ways_of_walking_give_the_same_answers() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("root/a/b")).unwrap();
        std::fs::create_dir(temp.path().join("outside")).unwrap();
        std::fs::write(temp.path().join("root/file"), "x").unwrap();
        symlink("../outside", temp.path().join("root/out")).unwrap();
        symlink("a", temp.path().join("root/inner")).unwrap();
        let root = rustix::fs::open(temp.path().join("root"), DIRECTORY, Mode::empty()).unwrap();

        for (rel, want) in [
            ("a/b", None),
            ("a", None),
            ("out", Some(Errno::LOOP)),
            ("inner", Some(Errno::LOOP)),
            ("inner/b", Some(Errno::LOOP)),
            ("file", Some(Errno::NOTDIR)),
            ("file/x", Some(Errno::NOTDIR)),
            ("none", Some(Errno::NOENT)),
        ] {
            assert_eq!(open_dir_by_segments(&root, rel).err(), want, "{rel} by segments");
            match open_dir_at_once(&root, rel) {
                Err(Errno::NOSYS | Errno::PERM) => {}
                answer => assert_eq!(answer.err(), want, "{rel} at once"),
            }
        }
    }
}
