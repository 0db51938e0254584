//! Making and wiping whole trees.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::beneath::{make_root, open_segment, sys_error};
use crate::TaskDir;
use crate::error::Result;

/// Makes a task directory with an empty workdir, both 0700 (S-068).
pub(super) fn create_task_dir(dir: &TaskDir) -> Result<()> {
    make_root(dir.path())?;
    let failed = |errno| sys_error("create", &dir.path().display().to_string(), errno);
    let (parent, name) = above(dir.path()).map_err(failed)?;
    let task = open_segment(&parent, name.as_bytes()).map_err(failed)?;
    rustix::fs::fchmod(&task, Mode::RWXU).map_err(failed)?;
    make_empty_dir(&dir.workdir())
}

/// Makes an absolute path an empty directory with mode 0700, whatever it was before.
pub(super) fn make_empty_dir(path: &Path) -> Result<()> {
    let failed = |errno| sys_error("make directory", &path.display().to_string(), errno);
    remove_tree(path)?;
    let (parent, name) = above(path).map_err(failed)?;
    // Fails when somebody else was quicker, so what we leave is empty and ours.
    rustix::fs::mkdirat(&parent, name, Mode::RWXU).map_err(failed)?;
    let made = open_segment(&parent, name.as_bytes()).map_err(failed)?;
    rustix::fs::fchmod(&made, Mode::RWXU).map_err(failed)
}

/// Opens the directory above an absolute path, and says the name therein.
fn above(path: &Path) -> rustix::io::Result<(OwnedFd, &OsStr)> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL);
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((rustix::fs::open(above, flags, Mode::empty())?, name))
}

/// Times a tree is gone through again when something still writes into it.
const BUSY_PASSES: usize = 4;
/// Times a tree is gone through at all: with [`REMOVE_DEPTH`] it is what half a million levels take.
const REMOVE_PASSES: usize = 10_000;
/// Directories held open while descending. A deeper one is first moved to the top, so an agent that nests thousands
/// of directories costs neither descriptors nor stack.
const REMOVE_DEPTH: usize = 48;

/// Removes whatever is at an absolute path, with all below it, following no link; absent is fine. Directories that
/// deny their owner are opened up first (S-069).
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    let failed = |errno| sys_error("remove", &path.display().to_string(), errno);
    let (parent, name) = match above(path) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        above => above.map_err(failed)?,
    };
    let mut busy = 0;
    for _ in 0..REMOVE_PASSES {
        let Some(top) = unlink_or_open(&parent, name.as_bytes()).map_err(failed)? else {
            return Ok(());
        };
        let raised = empty(&top, &top, REMOVE_DEPTH).map_err(failed)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) if raised => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) if busy < BUSY_PASSES => busy += 1,
            Err(errno) => return Err(failed(errno)),
        }
    }
    Err(failed(Errno::NOTEMPTY))
}

/// Removes all entries of `dir`. Directories beyond `depth` are raised to `top`, for the caller's next pass; answers
/// whether there were any.
fn empty(top: &OwnedFd, dir: &OwnedFd, depth: usize) -> rustix::io::Result<bool> {
    // Names are collected first: removing while reading a directory may skip entries.
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.push(name);
        }
    }
    let mut raised = false;
    for name in names {
        let Some(child) = unlink_or_open(dir, name.as_bytes())? else {
            continue;
        };
        if depth == 0 {
            let place = format!(".optio-{}.trash", uuid::Uuid::new_v4().simple());
            rustix::fs::renameat(dir, &name, top, place)?;
            raised = true;
            continue;
        }
        raised |= empty(top, &child, depth - 1)?;
        match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(raised)
}

/// Unlinks what is no directory; a directory comes back open, readable and writable.
fn unlink_or_open(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<Option<OwnedFd>> {
    let unlink = || rustix::fs::unlinkat(parent, name, AtFlags::empty());
    let unlinked = match unlink() {
        Err(Errno::ACCESS) => {
            rustix::fs::fchmod(parent, Mode::RWXU)?;
            unlink()
        }
        unlinked => unlinked,
    };
    match unlinked {
        Ok(()) | Err(Errno::NOENT) => return Ok(None),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    match open_segment(parent, name) {
        Ok(dir) => {
            rustix::fs::fchmod(&dir, Mode::RWXU)?;
            Ok(Some(dir))
        }
        Err(Errno::ACCESS) => {
            allow_owner(parent, name)?;
            open_segment(parent, name).map(Some)
        }
        Err(Errno::NOENT) => Ok(None),
        // PERM from the unlink was about a file after all (immutable, or a sticky directory).
        Err(Errno::NOTDIR | Errno::LOOP) => Err(Errno::PERM),
        Err(errno) => Err(errno),
    }
}

/// Gives a directory of ours that denies even its owner the mode 0700. A path-only descriptor pins it, so that no
/// link can take its place between the look and the change.
fn allow_owner(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let pinned = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    rustix::fs::chmod(format!("/proc/self/fd/{}", pinned.as_raw_fd()), Mode::RWXU)
}
