//! The walk over a live tree, and the stream that carries its archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use futures_util::stream;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use tar::EntryType;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::beneath::{join, open_dir, open_root, shown};
use super::member::Members;
use super::{CHUNK, Codec, Excludes};
use crate::{ByteStream, HostError, Result};

/// Size of the chunks we make; with [`CHUNKS_AHEAD`] it bounds what one capture holds.
const CHUNK_MADE: usize = 256 * 1024;
const _: () = assert!(CHUNK_MADE <= CHUNK);
/// Chunks that wait for a slow reader before the walk stands still.
const CHUNKS_AHEAD: usize = 4;
/// First names remembered of files with several. Beyond, further names become files of their own: whole, but apart.
const HARD_LINKS_KEPT: usize = 50_000;

/// Level 1 of both codecs: 363 MB/s and 102 MB/s where level 3 and 6 made 214 and 44 (stack.md §6).
const LEVEL: i32 = 1;

/// How many walks run at once; each takes a core.
pub(super) static WALKS: LazyLock<Arc<Semaphore>> =
    LazyLock::new(|| Arc::new(Semaphore::new(super::restore::cores())));

enum State {
    Idle { workdir: PathBuf, excludes: Excludes, codec: Codec },
    Running { chunks: mpsc::Receiver<Bytes>, walk: JoinHandle<Result<()>> },
}

pub(super) fn stream(workdir: PathBuf, excludes: Excludes, codec: Codec) -> ByteStream {
    let idle = State::Idle { workdir, excludes, codec };
    Box::pin(stream::unfold(Some(idle), |state| async {
        let (mut chunks, walk) = match state? {
            State::Idle { workdir, excludes, codec } => start(workdir, excludes, codec).await,
            State::Running { chunks, walk } => (chunks, walk),
        };
        if let Some(chunk) = chunks.recv().await {
            return Some((Ok(chunk), Some(State::Running { chunks, walk })));
        }
        // The channel is closed by a walk that is done, failed or panicked; only the first is the end of an archive.
        match walk.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some((Err(error), None)),
            Err(panic) => Some((Err(HostError::io("packing", io::Error::other(panic))), None)),
        }
    }))
}

async fn start(
    workdir: PathBuf,
    excludes: Excludes,
    codec: Codec,
) -> (mpsc::Receiver<Bytes>, JoinHandle<Result<()>>) {
    let turn = WALKS.clone().acquire_owned().await.expect("the semaphore is never closed");
    let (into, chunks) = Chunks::new();
    let walk = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        write(&workdir, &excludes, codec, into)
    });
    (chunks, walk)
}

/// Writes chunks into the stream; fails once nobody reads it any more.
pub(super) struct Chunks {
    tx: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

impl Chunks {
    pub(super) fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (tx, chunks) = mpsc::channel(CHUNKS_AHEAD);
        (Self { tx, buffer: Vec::new() }, chunks)
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(CHUNK_MADE);
        }
        let taken = bytes.len().min(CHUNK_MADE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK_MADE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        self.tx.blocking_send(chunk).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

fn write(workdir: &Path, excludes: &Excludes, codec: Codec, chunks: Chunks) -> Result<()> {
    let reader = chunks.tx.clone();
    let what = format!("packing {}", workdir.display());
    encode(&what, codec, chunks, |out| walk(workdir, excludes, &reader, out).map(drop))
}

/// Compresses what `fill` writes. Where that fails, the compressed stream is left without its end.
pub(super) fn encode(
    what: &str,
    codec: Codec,
    chunks: Chunks,
    fill: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let failed = |source| HostError::io(what, source);
    let mut chunks = match codec {
        Codec::Gzip => {
            let mut out =
                flate2::write::GzEncoder::new(chunks, flate2::Compression::new(LEVEL.unsigned_abs()));
            fill(&mut out)?;
            out.finish().map_err(failed)?
        }
        Codec::Zstd => {
            let mut out = zstd::stream::write::Encoder::new(chunks, LEVEL).map_err(failed)?;
            out.include_checksum(true).map_err(failed)?;
            fill(&mut out)?;
            out.finish().map_err(failed)?
        }
    };
    chunks.flush().map_err(failed)
}

/// A file as long as somebody reads the stream: a huge one that compresses well hardly ever reaches [`Chunks`].
struct WhileRead<'a> {
    file: File,
    reader: &'a mpsc::Sender<Bytes>,
}

impl Read for WhileRead<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.reader.is_closed() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.file.read(buffer)
    }
}

/// One walk: directories wait by their paths, so its memory and its descriptors do not grow with depth or width.
struct Walk<'a, W: Write> {
    excludes: &'a Excludes,
    reader: &'a mpsc::Sender<Bytes>,
    members: Members<W>,
    waiting: Vec<Vec<u8>>,
    first_names: HashMap<Inode, Vec<u8>>,
}

fn walk<W: Write>(workdir: &Path, excludes: &Excludes, reader: &mpsc::Sender<Bytes>, out: W) -> Result<W> {
    let failed = |path: &[u8], source| {
        let at = if path.is_empty() { String::new() } else { format!("/{}", shown(path)) };
        HostError::io(format!("packing {}{at}", workdir.display()), source)
    };
    let root = open_root(workdir).map_err(|errno| match errno {
        Errno::NOENT => HostError::NotFound { path: workdir.display().to_string() },
        other => failed(b"", other.into()),
    })?;
    let mut walk = Walk {
        excludes,
        reader,
        members: Members::new(out),
        waiting: vec![Vec::new()],
        first_names: HashMap::new(),
    };
    while let Some(path) = walk.waiting.pop() {
        walk.directory(root.as_fd(), &path).map_err(|(path, source)| failed(&path, source))?;
    }
    walk.members.finish().map_err(|source| failed(b"", source))
}

type Failure = (Vec<u8>, io::Error);

/// A file behind its names. Length and time are part of it because a number is given to the next file soon, and a
/// second name must not be stored as a link to content it does not have.
#[derive(PartialEq, Eq, Hash)]
struct Inode {
    device: u64,
    number: u64,
    size: i64,
    modified: (i64, u64),
}

impl Inode {
    /// The file, if it has several names.
    fn shared(stat: &Stat) -> Option<Self> {
        (stat.st_nlink > 1).then_some(Self {
            device: stat.st_dev,
            number: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
        })
    }
}

impl<W: Write> Walk<'_, W> {
    fn directory(&mut self, root: BorrowedFd<'_>, path: &[u8]) -> Result<(), Failure> {
        let failed = |source: io::Error| (path.to_vec(), source);
        let dir = match open_dir(root, path) {
            Ok(dir) => dir,
            Err(errno) if vanished(errno) && !path.is_empty() => {
                skipped(path, "it vanished");
                return Ok(());
            }
            Err(errno) => return Err(failed(errno.into())),
        };
        if !path.is_empty() {
            let stat = fstat(&dir).map_err(|errno| failed(errno.into()))?;
            self.members.empty(EntryType::Directory, path, b"", &stat).map_err(failed)?;
        }
        let names = Dir::read_from(&dir).map_err(|errno| failed(errno.into()))?;
        for entry in names {
            let entry = match entry {
                Ok(entry) => entry,
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(failed(errno.into())),
            };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            if self.reader.is_closed() {
                return Err(failed(io::ErrorKind::BrokenPipe.into()));
            }
            let member = join(path, name);
            if self.excludes.matches(&member) {
                continue;
            }
            match self.entry(dir.as_fd(), name, &member, entry.file_type()) {
                Ok(()) => {}
                Err(source) => return Err((member, source)),
            }
        }
        Ok(())
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8], kind: FileType) -> io::Result<()> {
        let kind = match kind {
            FileType::Unknown => match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(errno) if vanished(errno) => {
                    skipped(path, "it vanished");
                    return Ok(());
                }
                Err(errno) => return Err(errno.into()),
            },
            known => known,
        };
        match kind {
            FileType::RegularFile => self.file(dir, name, path),
            FileType::Symlink => self.symlink(dir, name, path),
            FileType::Directory => {
                self.waiting.push(path.to_vec());
                Ok(())
            }
            _ => {
                skipped(path, "it is a socket, FIFO or device");
                Ok(())
            }
        }
    }

    fn symlink(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> io::Result<()> {
        let facts = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .and_then(|stat| readlinkat(dir, name, Vec::new()).map(|target| (stat, target)));
        match facts {
            Ok((stat, target)) => self.members.empty(EntryType::Symlink, path, target.as_bytes(), &stat),
            // EINVAL: it is no link any more.
            Err(errno) if vanished(errno) || errno == Errno::INVAL => {
                skipped(path, "it vanished");
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> io::Result<()> {
        // NONBLOCK: a FIFO that took the file's place meanwhile must not stop us.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(dir, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(errno) if vanished(errno) || errno == Errno::NXIO => {
                skipped(path, "it vanished");
                return Ok(());
            }
            Err(errno) => return Err(errno.into()),
        };
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            skipped(path, "it is no file any more");
            return Ok(());
        }
        let shared = Inode::shared(&stat);
        if let Some(first) = shared.as_ref().and_then(|inode| self.first_names.get(inode)) {
            return self.members.empty(EntryType::Link, path, first, &stat);
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let short = self.members.file(path, &stat, size, WhileRead { file, reader: self.reader })?;
        if short {
            tracing::warn!(path = %shown(path), "a file shrank while it was packed; its end is zeros");
        }
        if let Some(inode) = shared
            && self.first_names.len() < HARD_LINKS_KEPT
        {
            self.first_names.insert(inode, path.to_vec());
        }
        Ok(())
    }
}

/// True for what an open says of a name that is gone, or that something else has taken.
fn vanished(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::LOOP | Errno::NOTDIR)
}

fn skipped(path: &[u8], why: &'static str) {
    tracing::warn!(path = %shown(path), why, "left out of the archive");
}
