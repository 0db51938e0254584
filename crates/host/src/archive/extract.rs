//! What an archive may do to the directory it is extracted into.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, fchmod, futimens, linkat, mkdirat, openat,
    statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::beneath::{DIRECTORY, join, open_dir, open_root, segments, shown, split};
use super::{Codec, MAX_MEMBERS, MAX_TOTAL};
use crate::{HostError, Result};

/// Bytes of headers that one member may have: its own, long names, PAX records. They are read into memory.
const MAX_HEADERS: u64 = 1 << 20;
/// Bytes allowed behind the end of an archive; GNU tar fills its last record of 10 KiB, or as it is told.
const MAX_TRAILER: u64 = 1 << 20;
/// zstd's window: 8 MiB at most. Level 1 takes 512 KiB.
const MAX_WINDOW_LOG: u32 = 23;
/// What a file is written by.
const WRITE_BUFFER: usize = 128 * 1024;

/// Extracts everything `from` has into `into`, an empty directory of the caller's.
pub(super) fn extract(from: impl Read, codec: Codec, into: &std::path::Path) -> Result<()> {
    let root = open_root(into)
        .map_err(|errno| HostError::io(format!("opening {}", into.display()), errno.into()))?;
    match codec {
        Codec::Gzip => members(flate2::read::MultiGzDecoder::new(from), root),
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(from).map_err(unreadable)?;
            decoder.window_log_max(MAX_WINDOW_LOG).map_err(unreadable)?;
            members(decoder, root)
        }
    }
}

fn members(from: impl Read, root: OwnedFd) -> Result<()> {
    let meter = Rc::new(Meter::default());
    let mut archive = Archive::new(Metered { inner: from, meter: meter.clone() });
    let mut tree = Tree::new(root)?;
    let mut count = 0;
    meter.allow(MAX_HEADERS);
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        meter.allow(u64::MAX);
        count += 1;
        if count > MAX_MEMBERS {
            return Err(bad(format!("it has more than {MAX_MEMBERS} members")));
        }
        tree.member(&mut entry)?;
        // What was not asked for is read here, so that the next headers are all that is left to read.
        io::copy(&mut entry, &mut io::sink()).map_err(unreadable)?;
        meter.allow(MAX_HEADERS);
    }
    if meter.ended.get() {
        return Err(bad("it is cut short: its end mark is missing"));
    }
    end(archive.into_inner().inner)?;
    tree.finish()
}

/// Reads what follows the first of the two empty blocks at the end: the second one, and filling. Reading on to the
/// end is also what makes the decompressor check its own.
fn end(mut from: impl Read) -> Result<()> {
    let mut block = [0; 512];
    from.read_exact(&mut block).map_err(unreadable)?;
    if block.iter().any(|b| *b != 0) {
        return Err(bad("something follows its end mark"));
    }
    let trailing = io::copy(&mut from.by_ref().take(MAX_TRAILER), &mut io::sink()).map_err(unreadable)?;
    if trailing == MAX_TRAILER {
        return Err(bad("something follows its end mark"));
    }
    Ok(())
}

fn bad(why: impl Into<String>) -> HostError {
    HostError::BadArchive(why.into())
}

fn unreadable(error: io::Error) -> HostError {
    HostError::BadArchive(format!("it is damaged or cut short: {error}"))
}

/// How much may be read before the reader fails, and whether it came to its end.
#[derive(Default)]
struct Meter {
    left: Cell<u64>,
    ended: Cell<bool>,
}

impl Meter {
    fn allow(&self, bytes: u64) {
        self.left.set(bytes);
    }
}

struct Metered<R> {
    inner: R,
    meter: Rc<Meter>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        if got == 0 && !buffer.is_empty() {
            self.meter.ended.set(true);
        }
        match self.meter.left.get().checked_sub(got as u64) {
            Some(left) => self.meter.left.set(left),
            None => {
                return Err(io::Error::other(format!(
                    "a member has more than {MAX_HEADERS} bytes of headers"
                )));
            }
        }
        Ok(got)
    }
}

/// The tree that grows. The parent of the last member stays open, so members in the order of a walk cost one
/// creation each.
struct Tree {
    root: OwnedFd,
    parent: OwnedFd,
    parent_path: Vec<u8>,
    /// Modes and times that directories get at the end: a read-only one could not be filled, and filling changes the
    /// time.
    directories: Vec<(Vec<u8>, Mode, i64)>,
    total: u64,
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
            total: 0,
            buffer: vec![0; WRITE_BUFFER],
        })
    }

    fn member<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<()> {
        let raw = entry.path_bytes().into_owned();
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = safe(&raw)?;
        if path.is_empty() {
            // The workdir itself: its mode is ours to say.
            return Ok(());
        }
        let mode = Mode::from_raw_mode(entry.header().mode().map_err(unreadable)? & 0o777);
        let mtime = entry.header().mtime().map_err(unreadable)?.cast_signed();
        match kind {
            EntryType::Directory => self.directory(path, mode, mtime),
            // Before POSIX a directory was a file whose name ends so.
            EntryType::Regular if raw.ends_with(b"/") => self.directory(path, mode, mtime),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(&path, mode, mtime, entry)
            }
            EntryType::Symlink => self.symlink(&path, &target(entry, &raw)?, mtime),
            EntryType::Link => self.hard_link(&path, &target(entry, &raw)?),
            other => {
                tracing::warn!(path = %shown(&path), kind = ?other, "not extracted: neither file, directory nor link");
                Ok(())
            }
        }
    }

    fn directory(&mut self, path: Vec<u8>, mode: Mode, mtime: i64) -> Result<()> {
        let (parent, name) = split(&path);
        self.enter(parent)?;
        make_dir(self.parent.as_fd(), name, &path)?;
        self.directories.push((path, mode, mtime));
        Ok(())
    }

    fn file<R: Read>(&mut self, path: &[u8], mode: Mode, mtime: i64, entry: &mut Entry<'_, R>) -> Result<()> {
        let size = entry.size();
        self.total = self.total.saturating_add(size);
        if self.total > MAX_TOTAL {
            return Err(bad(format!("its files have more than {MAX_TOTAL} bytes")));
        }
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
            let got = match entry.read(&mut self.buffer) {
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
        futimens(&file, &times(mtime)).map_err(|errno| failed(errno.into()))
    }

    fn symlink(&mut self, path: &[u8], target: &[u8], mtime: i64) -> Result<()> {
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
        utimensat(&self.parent, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }

    /// Makes a second name for a file of this archive. The first name is looked up as a member's own path is, so it
    /// cannot lead out either.
    fn hard_link(&mut self, path: &[u8], first: &[u8]) -> Result<()> {
        let first = safe(first)?;
        let missing = || bad(format!("{} is a link to {}, which is not in it", shown(path), shown(&first)));
        if first == path {
            return Ok(());
        }
        let (first_parent, first_name) = split(&first);
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

    /// Gives the directories their modes and times, the deepest first: after its mode one may not be enterable.
    fn finish(mut self) -> Result<()> {
        for (path, mode, mtime) in self.directories.drain(..).rev() {
            let failed = |errno: Errno| HostError::io(format!("finishing {}", shown(&path)), errno.into());
            let (parent, name) = split(&path);
            if self.parent_path != parent {
                self.parent = open_dir(self.root.as_fd(), parent).map_err(failed)?;
                self.parent_path = parent.to_vec();
            }
            let dir = openat(&self.parent, name, DIRECTORY, Mode::empty()).map_err(failed)?;
            futimens(&dir, &times(mtime)).map_err(failed)?;
            fchmod(&dir, mode).map_err(failed)?;
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

/// A member's name as a path beneath the tree: `./a//b/` is `a/b`.
fn safe(name: &[u8]) -> Result<Vec<u8>> {
    if name.starts_with(b"/") {
        return Err(bad(format!("member {:?} has an absolute name", shown(name))));
    }
    let mut path = Vec::with_capacity(name.len());
    for segment in segments(name) {
        if segment == b".." || segment.contains(&0) {
            return Err(bad(format!("member {:?} would leave the directory", shown(name))));
        }
        if segment == b"." {
            continue;
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(segment);
    }
    Ok(path)
}

fn target<R: Read>(entry: &Entry<'_, R>, name: &[u8]) -> Result<Vec<u8>> {
    match entry.link_name_bytes() {
        Some(target) if !target.is_empty() && !target.contains(&0) => Ok(target.into_owned()),
        _ => Err(bad(format!("member {:?} is a link to nothing", shown(name)))),
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
