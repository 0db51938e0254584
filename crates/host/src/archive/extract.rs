//! An archive's members as files of this machine.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, fchmod, futimens, linkat, mkdirat, openat,
    statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::Codec;
use super::beneath::{DIRECTORY, join, open_dir, open_root, segments, shown, split};
use super::rules::{Facts, Place, bad, members, unreadable};
use crate::{HostError, Result};

/// What a file is written by.
const WRITE_BUFFER: usize = 128 * 1024;

/// Extracts everything `from` has into `into`, an empty directory of the caller's.
pub(super) fn extract(from: impl Read, codec: Codec, into: &std::path::Path) -> Result<()> {
    let root = open_root(into)
        .map_err(|errno| HostError::io(format!("opening {}", into.display()), errno.into()))?;
    members(from, codec, &mut Tree::new(root)?)
}

/// The tree that grows. The parent of the last member stays open, so members in the order of a walk cost one
/// creation each.
struct Tree {
    root: OwnedFd,
    parent: OwnedFd,
    parent_path: Vec<u8>,
    /// Modes and times that directories get at the end: a read-only one could not be filled, and filling changes the
    /// time.
    directories: Vec<(Vec<u8>, Facts)>,
    buffer: Vec<u8>,
}

impl Tree {
    fn new(root: OwnedFd) -> Result<Self> {
        let parent = open_dir(root.as_fd(), b"")
            .map_err(|errno| HostError::io("opening a directory", errno.into()))?;
        Ok(Self {
            root,
            parent,
            parent_path: Vec::new(),
            directories: Vec::new(),
            buffer: vec![0; WRITE_BUFFER],
        })
    }

    /// Removes what an earlier member of the same name made, unless it is a directory.
    fn make_room(&self, name: &[u8], path: &[u8]) -> Result<()> {
        match unlinkat(&self.parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {
                Err(bad(format!("{} is both a directory and not one", shown(path))))
            }
            Err(errno) => Err(HostError::io(format!("extracting {}", shown(path)), errno.into())),
        }
    }

    /// Opens the directory a member goes into, and makes it where the archive did not name it.
    fn enter(&mut self, path: &[u8]) -> Result<()> {
        if self.parent_path == path {
            return Ok(());
        }
        let failed = |errno: Errno| HostError::io(format!("opening {}", shown(path)), errno.into());
        let below = path.strip_prefix(&self.parent_path[..]).filter(|rest| rest.first() == Some(&b'/'));
        let (mut dir, mut at, rest) = match below {
            Some(rest) => {
                (open_dir(self.parent.as_fd(), b"").map_err(failed)?, self.parent_path.clone(), rest)
            }
            None => (open_dir(self.root.as_fd(), b"").map_err(failed)?, Vec::new(), path),
        };
        for segment in segments(rest) {
            at = join(&at, segment);
            dir = match openat(&dir, segment, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) => {
                    make_dir(dir.as_fd(), segment, &at)?;
                    openat(&dir, segment, DIRECTORY, Mode::empty()).map_err(failed)?
                }
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    return Err(bad(format!("it writes through {}, which is no directory", shown(&at))));
                }
                other => other.map_err(failed)?,
            };
        }
        self.parent = dir;
        self.parent_path = at;
        Ok(())
    }
}

impl Place for Tree {
    fn directory(&mut self, path: &[u8], facts: Facts) -> Result<()> {
        let (parent, name) = split(path);
        self.enter(parent)?;
        make_dir(self.parent.as_fd(), name, path)?;
        self.directories.push((path.to_vec(), facts));
        Ok(())
    }

    fn file(&mut self, path: &[u8], facts: Facts, size: u64, content: &mut dyn Read) -> Result<()> {
        let mode = Mode::from_raw_mode(facts.mode);
        let (parent, name) = split(path);
        self.enter(parent)?;
        let failed = |source| HostError::io(format!("extracting {}", shown(path)), source);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let private = Mode::RUSR | Mode::WUSR;
        let file = match openat(&self.parent, name, flags, private) {
            Err(Errno::EXIST) => {
                self.make_room(name, path)?;
                openat(&self.parent, name, flags, private)
            }
            other => other,
        };
        let mut file = File::from(file.map_err(|errno| failed(errno.into()))?);
        let mut left = size;
        while left > 0 {
            let got = match content.read(&mut self.buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(unreadable)?,
            };
            if got == 0 {
                return Err(bad(format!("it is cut short within {}", shown(path))));
            }
            file.write_all(&self.buffer[..got]).map_err(failed)?;
            left = left.saturating_sub(got as u64);
        }
        if mode != private {
            fchmod(&file, mode).map_err(|errno| failed(errno.into()))?;
        }
        futimens(&file, &times(facts.mtime)).map_err(|errno| failed(errno.into()))
    }

    fn symlink(&mut self, path: &[u8], target: &[u8], facts: Facts) -> Result<()> {
        let (parent, name) = split(path);
        self.enter(parent)?;
        let failed = |errno: Errno| HostError::io(format!("extracting {}", shown(path)), errno.into());
        match symlinkat(target, &self.parent, name) {
            Err(Errno::EXIST) => {
                self.make_room(name, path)?;
                symlinkat(target, &self.parent, name).map_err(failed)?;
            }
            other => other.map_err(failed)?,
        }
        utimensat(&self.parent, name, &times(facts.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }

    /// Makes a second name for a file of this archive. The first name is looked up as a member's own path is, so it
    /// cannot lead out either.
    fn hard_link(&mut self, path: &[u8], first: &[u8]) -> Result<()> {
        let missing = || bad(format!("{} is a link to {}, which is not in it", shown(path), shown(first)));
        let (first_parent, first_name) = split(first);
        let from = open_dir(self.root.as_fd(), first_parent).map_err(|_| missing())?;
        let stat = statat(&from, first_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| missing())?;
        if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Symlink) {
            return Err(missing());
        }
        let (parent, name) = split(path);
        self.enter(parent)?;
        let failed = |errno: Errno| HostError::io(format!("extracting {}", shown(path)), errno.into());
        match linkat(&from, first_name, &self.parent, name, AtFlags::empty()) {
            Err(Errno::EXIST) => {
                self.make_room(name, path)?;
                linkat(&from, first_name, &self.parent, name, AtFlags::empty()).map_err(failed)
            }
            other => other.map_err(failed),
        }
    }

    /// Gives the directories their modes and times, the deepest first: after its mode one may not be enterable.
    fn finish(&mut self) -> Result<()> {
        for (path, facts) in self.directories.drain(..).rev() {
            let failed = |errno: Errno| HostError::io(format!("finishing {}", shown(&path)), errno.into());
            let (parent, name) = split(&path);
            if self.parent_path != parent {
                self.parent = open_dir(self.root.as_fd(), parent).map_err(failed)?;
                self.parent_path = parent.to_vec();
            }
            let dir = openat(&self.parent, name, DIRECTORY, Mode::empty()).map_err(failed)?;
            futimens(&dir, &times(facts.mtime)).map_err(failed)?;
            fchmod(&dir, Mode::from_raw_mode(facts.mode)).map_err(failed)?;
        }
        Ok(())
    }
}

fn make_dir(parent: std::os::fd::BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
    let failed = |errno: Errno| HostError::io(format!("extracting {}", shown(path)), errno.into());
    match mkdirat(parent, name, Mode::RWXU) {
        Err(Errno::EXIST) => {
            let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                return Ok(());
            }
            Err(bad(format!("{} is both a directory and not one", shown(path))))
        }
        other => other.map_err(failed),
    }
}

fn times(mtime: i64) -> Timestamps {
    let at = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: at, last_modification: at }
}

/// Gives every directory beneath `path` back to its owner, so that the tree can be removed.
pub(super) fn make_removable(path: &std::path::Path) -> Result<(), Errno> {
    let dir = openat(CWD, path, DIRECTORY, Mode::empty())?;
    fchmod(&dir, Mode::RWXU)?;
    let mut waiting = vec![Vec::new()];
    while let Some(at) = waiting.pop() {
        let here = open_dir(dir.as_fd(), &at)?;
        for entry in rustix::fs::Dir::read_from(&here)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let stat = statat(&here, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                rustix::fs::chmodat(&here, name, Mode::RWXU, AtFlags::empty())?;
                waiting.push(join(&at, name));
            }
        }
    }
    Ok(())
}
