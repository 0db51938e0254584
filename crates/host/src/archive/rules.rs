//! What an archive may have in it, wherever it is extracted.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use tar::{Archive, Entry, EntryType};

use super::beneath::{segments, shown};
use super::{Codec, MAX_MEMBERS, MAX_TOTAL};
use crate::{HostError, Result};

/// Bytes of headers that one member may have: its own, long names, PAX records. They are read into memory.
const MAX_HEADERS: u64 = 1 << 20;
/// Bytes allowed behind the end of an archive; GNU tar fills its last record of 10 KiB, or as it is told.
const MAX_TRAILER: u64 = 1 << 20;
/// zstd's window: 8 MiB at most. Level 1 takes 512 KiB.
const MAX_WINDOW_LOG: u32 = 23;
/// Where the members of an archive go. Paths are relative, not empty, and without `.` and `..`.
pub(super) trait Place {
    /// A directory, which may be there already.
    fn directory(&mut self, path: &[u8], facts: Facts) -> Result<()>;
    /// A file, and `size` bytes of content.
    fn file(&mut self, path: &[u8], facts: Facts, size: u64, content: &mut dyn Read) -> Result<()>;
    /// A symbolic link to anywhere.
    fn symlink(&mut self, path: &[u8], target: &[u8], facts: Facts) -> Result<()>;
    /// A further name of `first`, which must be a file or link of the same archive.
    fn hard_link(&mut self, path: &[u8], first: &[u8]) -> Result<()>;
    /// The archive was whole.
    fn finish(&mut self) -> Result<()>;
}

/// What a member says of itself and we take over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// Permission bits, without setuid, setgid and sticky.
    pub(super) mode: u32,
    /// Seconds since 1970.
    pub(super) mtime: i64,
}

/// Gives everything that a compressed archive has to `place`, and checks it to its end.
pub(super) fn members(from: impl Read, codec: Codec, place: &mut impl Place) -> Result<()> {
    match codec {
        Codec::Gzip => plain(flate2::read::MultiGzDecoder::new(from), place),
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(from).map_err(unreadable)?;
            decoder.window_log_max(MAX_WINDOW_LOG).map_err(unreadable)?;
            plain(decoder, place)
        }
    }
}

fn plain(from: impl Read, place: &mut impl Place) -> Result<()> {
    let meter = Rc::new(Meter::default());
    let mut archive = Archive::new(Metered { inner: from, meter: meter.clone() });
    let (mut count, mut total) = (0, 0);
    meter.allow(MAX_HEADERS);
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        meter.allow(u64::MAX);
        count += 1;
        if count > MAX_MEMBERS {
            return Err(bad(format!("it has more than {MAX_MEMBERS} members")));
        }
        member(&mut entry, &mut total, place)?;
        // What was not asked for is read here, so that the next headers are all that is left to read.
        io::copy(&mut entry, &mut io::sink()).map_err(unreadable)?;
        meter.allow(MAX_HEADERS);
    }
    if meter.ended.get() {
        return Err(bad("it is cut short: its end mark is missing"));
    }
    end(archive.into_inner().inner)?;
    place.finish()
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

pub(super) fn bad(why: impl Into<String>) -> HostError {
    HostError::BadArchive(why.into())
}

pub(super) fn unreadable(error: io::Error) -> HostError {
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

fn member<R: Read>(entry: &mut Entry<'_, R>, total: &mut u64, place: &mut impl Place) -> Result<()> {
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
    let mode = entry.header().mode().map_err(unreadable)? & 0o777;
    let mtime = entry.header().mtime().map_err(unreadable)?.cast_signed();
    let facts = Facts { mode, mtime };
    match kind {
        EntryType::Directory => place.directory(&path, facts),
        // Before POSIX a directory was a file whose name ends so.
        EntryType::Regular if raw.ends_with(b"/") => place.directory(&path, facts),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let size = entry.size();
            *total = total.saturating_add(size);
            if *total > MAX_TOTAL {
                return Err(bad(format!("its files have more than {MAX_TOTAL} bytes")));
            }
            place.file(&path, facts, size, entry)
        }
        EntryType::Symlink => place.symlink(&path, &target(entry, &raw)?, facts),
        EntryType::Link => {
            let first = safe(&target(entry, &raw)?)?;
            if first == path {
                return Ok(());
            }
            place.hard_link(&path, &first)
        }
        other => {
            tracing::warn!(path = %shown(&path), kind = ?other, "not extracted: neither file, directory nor link");
            Ok(())
        }
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
