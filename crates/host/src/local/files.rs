//! The file operations of [`super::LocalHost`], as plain blocking functions over an open task directory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::beneath::{Beneath, sys_error};
use crate::error::{HostError, Result};
use crate::{FileInfo, FilePart, RelPath};

/// Directory entries one listing looks at; a workdir with more (a million) is refused, so that a listing has a bound
/// even where the agent has filled the disk with names.
const LIST_ENTRIES: u64 = 1_000_000;

/// Without NONBLOCK the opening of a FIFO that the agent made would wait for a writer for ever.
const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

pub(super) fn read(task: &Beneath, path: &RelPath, limit: u64) -> Result<Bytes> {
    let shown = task.shown(path.as_str());
    let (parent, name) = task.parent_of(path)?;
    let (file, len) = open_regular(&parent, name, OFlags::RDONLY, &shown)?;
    if len > limit {
        return Err(HostError::TooLarge { path: shown, len, limit });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    // It may grow while we read it.
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| HostError::io(format!("read {shown}"), source))?;
    let len = bytes.len() as u64;
    if len > limit {
        return Err(HostError::TooLarge { path: shown, len, limit });
    }
    Ok(bytes.into())
}

pub(super) fn read_from(task: &Beneath, path: &RelPath, offset: u64, limit: usize) -> Result<FilePart> {
    let shown = task.shown(path.as_str());
    let (parent, name) = task.parent_of(path)?;
    let (mut file, len) = open_regular(&parent, name, OFlags::RDONLY, &shown)?;
    let failed = |source| HostError::io(format!("read {shown}"), source);
    let identity = identity(&file).map_err(|errno| sys_error("look at", &shown, errno))?;
    let mut bytes = Vec::new();
    if offset < len {
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        file.take(limit as u64).read_to_end(&mut bytes).map_err(failed)?;
    }
    // It may have grown since it was looked at.
    let len = if bytes.is_empty() { len } else { len.max(offset + bytes.len() as u64) };
    Ok(FilePart { bytes: bytes.into(), len, identity })
}

/// Device, inode and time of birth. An inode alone is given again to the next file, often at once.
fn identity(file: &File) -> rustix::io::Result<String> {
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::BTIME) {
        Ok(stat) => Ok(format!(
            "{}:{}:{}:{}.{}",
            stat.stx_dev_major,
            stat.stx_dev_minor,
            stat.stx_ino,
            stat.stx_btime.tv_sec,
            stat.stx_btime.tv_nsec
        )),
        // A seccomp filter answers so for calls it does not know.
        Err(Errno::NOSYS | Errno::PERM) => {
            let stat = rustix::fs::fstat(file)?;
            Ok(format!("{}:{}", stat.st_dev, stat.st_ino))
        }
        Err(errno) => Err(errno),
    }
}

pub(super) fn write(task: &Beneath, path: &RelPath, bytes: &[u8], mode: u32) -> Result<()> {
    let shown = task.shown(path.as_str());
    let (parent, name) = task.made_parent_of(path)?;
    let temp = Temporary::new(&parent);
    let flags = FILE | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let file = rustix::fs::openat(&parent, &temp.name, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| sys_error("write", &shown, errno))?;
    let mut file = File::from(file);
    file.write_all(bytes).map_err(|source| HostError::io(format!("write {shown}"), source))?;
    // After the bytes: a read-only mode must not be in the way, and the umask must not decide.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777))
        .map_err(|errno| sys_error("write", &shown, errno))?;
    temp.rename_to(name).map_err(|errno| sys_error("write", &shown, errno))
}

pub(super) fn append(task: &Beneath, path: &RelPath, bytes: &[u8]) -> Result<()> {
    let shown = task.shown(path.as_str());
    let (parent, name) = task.made_parent_of(path)?;
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
    let (mut file, _) = open_regular(&parent, name, flags, &shown)?;
    file.write_all(bytes).map_err(|source| HostError::io(format!("append to {shown}"), source))
}

pub(super) fn rename(task: &Beneath, from: &RelPath, to: &RelPath) -> Result<()> {
    let (old, old_name) = task.parent_of(from)?;
    let (new, new_name) = task.parent_of(to)?;
    rustix::fs::renameat(&old, old_name, &new, new_name)
        .map_err(|errno| sys_error("rename", &task.shown(from.as_str()), errno))
}

pub(super) fn remove(task: &Beneath, path: &RelPath) -> Result<()> {
    let parent = task.parent_of(path);
    let (parent, name) = match parent {
        Err(HostError::NotFound { .. }) => return Ok(()),
        parent => parent?,
    };
    let removed = match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        // POSIX has EPERM, Linux EISDIR.
        Err(Errno::ISDIR | Errno::PERM) => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR),
        removed => removed,
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(sys_error("remove", &task.shown(path.as_str()), errno)),
    }
}

pub(super) fn link(task: &Beneath, path: &RelPath, target: &Path) -> Result<()> {
    let shown = task.shown(path.as_str());
    let (parent, name) = task.made_parent_of(path)?;
    let temp = Temporary::new(&parent);
    rustix::fs::symlinkat(target, &parent, &temp.name)
        .and_then(|()| temp.rename_to(name))
        .map_err(|errno| sys_error("link", &shown, errno))
}

pub(super) fn info(task: &Beneath, path: &RelPath) -> Result<Option<FileInfo>> {
    let (parent, name) = match task.parent_of(path) {
        Err(HostError::NotFound { .. }) => return Ok(None),
        parent => parent?,
    };
    let shown = task.shown(path.as_str());
    let stat = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        stat => stat.map_err(|errno| sys_error("look at", &shown, errno))?,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            Ok(Some(FileInfo { len: u64::try_from(stat.st_size).unwrap_or(0), mode: stat.st_mode & 0o777 }))
        }
        _ => Err(not_regular(shown)),
    }
}

/// Lists in bytewise order of whole paths, and so can stop at the limit: a directory sorts as if its name ended in
/// `/`, which is how its files' paths go on.
pub(super) fn list(task: &Beneath, path: &RelPath, limit: usize) -> Result<Vec<RelPath>> {
    let top = match task.dir(path.as_str()) {
        Err(HostError::NotFound { .. }) => return Ok(Vec::new()),
        top => top?,
    };
    let mut found = Vec::new();
    let mut seen = 0;
    // Sorted in reverse, so that the next one is the last one.
    let mut due = entries(&top, path.as_str(), &mut seen, task)?;
    while let Some(Entry { path, is_dir }) = due.pop() {
        if found.len() >= limit {
            break;
        }
        if !is_dir {
            found.extend(RelPath::new(path));
            continue;
        }
        let rel = path.trim_end_matches('/');
        match task.dir(rel) {
            Ok(dir) => due.append(&mut entries(&dir, rel, &mut seen, task)?),
            // It went away, or became something else, since its parent was read.
            Err(HostError::NotFound { .. } | HostError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// One name of a directory; a directory's path ends in `/`.
struct Entry {
    path: String,
    is_dir: bool,
}

fn entries(dir: &OwnedFd, rel: &str, seen: &mut u64, task: &Beneath) -> Result<Vec<Entry>> {
    let shown = || task.shown(rel);
    let reading = Dir::read_from(dir).map_err(|errno| sys_error("list", &shown(), errno))?;
    let mut entries = Vec::new();
    for entry in reading {
        let entry = entry.map_err(|errno| sys_error("list", &shown(), errno))?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        *seen += 1;
        if *seen > LIST_ENTRIES {
            return Err(HostError::TooLarge { path: shown(), len: *seen, limit: LIST_ENTRIES });
        }
        let Ok(name) = std::str::from_utf8(name) else {
            // Such a name has no `RelPath`, so nobody could ask for it either.
            continue;
        };
        match type_of(dir, entry.file_type(), name) {
            FileType::RegularFile => entries.push(Entry { path: format!("{rel}/{name}"), is_dir: false }),
            FileType::Directory => entries.push(Entry { path: format!("{rel}/{name}/"), is_dir: true }),
            _ => {}
        }
    }
    entries.sort_unstable_by(|a, b| b.path.cmp(&a.path));
    Ok(entries)
}

/// The type a directory read gave, or a look where the file system gives none.
fn type_of(dir: &OwnedFd, given: FileType, name: impl rustix::path::Arg) -> FileType {
    if given != FileType::Unknown {
        return given;
    }
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
}

fn open_regular(parent: &OwnedFd, name: &str, flags: OFlags, shown: &str) -> Result<(File, u64)> {
    let file = match rustix::fs::openat(parent, name, FILE | flags, Mode::RUSR | Mode::WUSR) {
        // A socket, a FIFO without a reader, a directory.
        Err(Errno::NXIO | Errno::ISDIR) => return Err(not_regular(shown.to_owned())),
        file => file.map_err(|errno| sys_error("open", shown, errno))?,
    };
    let stat = rustix::fs::fstat(&file).map_err(|errno| sys_error("open", shown, errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(not_regular(shown.to_owned()));
    }
    Ok((File::from(file), u64::try_from(stat.st_size).unwrap_or(0)))
}

fn not_regular(path: String) -> HostError {
    HostError::Refused { what: "path", value: path, why: "it is not a regular file" }
}

/// A unique sibling that is renamed into place, or removed.
struct Temporary<'p> {
    parent: &'p OwnedFd,
    name: String,
    placed: bool,
}

impl<'p> Temporary<'p> {
    fn new(parent: &'p OwnedFd) -> Self {
        Self { parent, name: format!(".optio-{}.tmp", uuid::Uuid::new_v4().simple()), placed: false }
    }

    fn rename_to(mut self, name: &str) -> rustix::io::Result<()> {
        rustix::fs::renameat(self.parent, &self.name, self.parent, name)?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.placed {
            // It may never have been made; the error that brought us here is the one to report.
            let _ = rustix::fs::unlinkat(self.parent, &self.name, AtFlags::empty());
        }
    }
}
