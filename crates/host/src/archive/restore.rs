//! From a stream to a directory that stands where it should, or not at all.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use futures_util::StreamExt;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Codec;
use super::extract::{extract, make_removable};
use crate::{ByteStream, HostError, Result};

/// Chunks that wait for the disk before the stream stands still.
pub(super) const CHUNKS_AHEAD: usize = 4;

/// How many extractions run at once. Apart from the walks: one that reads from a walk must not wait for it in vain.
pub(super) static EXTRACTIONS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(cores())));

/// As many as there are cores, and two at least, so that one slow reader does not stop everybody.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().max(2))
}

pub(super) async fn unpack(stream: ByteStream, codec: Codec, into: PathBuf) -> Result<()> {
    feed(stream, move |feed| {
        let fresh = Fresh::make(into)?;
        extract(feed.reader(), codec, &fresh.path)?;
        feed.still_wanted()?;
        fresh.keep();
        Ok(())
    })
    .await
}

pub(super) async fn replace(stream: ByteStream, codec: Codec, workdir: PathBuf) -> Result<()> {
    feed(stream, move |feed| {
        remove_leftovers(&workdir)?;
        let fresh = Fresh::make(sibling(&workdir, NEW)?)?;
        extract(feed.reader(), codec, &fresh.path)?;
        feed.still_wanted()?;
        exchange(fresh, &workdir)
    })
    .await
}

/// What a thread gets of a stream. Where it gets no end, the stream broke off.
pub(super) enum Fed {
    Chunk(Bytes),
    End,
}

/// The blocking end of a stream.
struct Feed {
    chunks: mpsc::Receiver<Fed>,
    wanted: oneshot::Sender<()>,
}

/// Runs `work` on the blocking pool with the stream's bytes. When the caller goes away, `work` sees a broken stream.
async fn feed(
    mut stream: ByteStream,
    work: impl FnOnce(&mut Feed) -> Result<()> + Send + 'static,
) -> Result<()> {
    let turn = EXTRACTIONS.clone().acquire_owned().await.expect("the semaphore is never closed");
    let (tx, chunks) = mpsc::channel(CHUNKS_AHEAD);
    // Dropped with this future; how the thread learns that nobody waits for it any more.
    let (wanted, _waiting) = oneshot::channel();
    let work = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work(&mut Feed { chunks, wanted })
    });
    let mut broken = None;
    loop {
        let fed = match stream.next().await {
            Some(Ok(chunk)) => Fed::Chunk(chunk),
            Some(Err(error)) => {
                broken = Some(error);
                break;
            }
            None => Fed::End,
        };
        let last = matches!(fed, Fed::End);
        if tx.send(fed).await.is_err() || last {
            break;
        }
    }
    drop((tx, stream));
    let result = match work.await {
        Ok(result) => result,
        Err(panic) => Err(HostError::io("extracting", io::Error::other(panic))),
    };
    match broken {
        Some(error) => Err(error),
        None => result,
    }
}

impl Feed {
    fn reader(&mut self) -> impl Read + '_ {
        Reader::new(&mut self.chunks)
    }

    fn still_wanted(&self) -> Result<()> {
        if self.wanted.is_closed() {
            return Err(HostError::io("extracting", io::ErrorKind::Interrupted.into()));
        }
        Ok(())
    }
}

/// A stream as a thread reads it.
pub(super) struct Reader<'a> {
    chunks: &'a mut mpsc::Receiver<Fed>,
    current: Bytes,
    ended: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(chunks: &'a mut mpsc::Receiver<Fed>) -> Self {
        Self { chunks, current: Bytes::new(), ended: false }
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.chunks.blocking_recv() {
                Some(Fed::Chunk(chunk)) => self.current = chunk,
                Some(Fed::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the stream broke off"));
                }
            }
        }
        let taken = self.current.split_to(self.current.len().min(buffer.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

/// A directory of ours that goes away unless it is kept.
struct Fresh {
    path: PathBuf,
    kept: bool,
}

impl Fresh {
    fn make(path: PathBuf) -> Result<Self> {
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|source| HostError::io(format!("making {}", path.display()), source))?;
        Ok(Self { path, kept: false })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "an extracted directory stays behind");
        }
    }
}

/// Puts `fresh` where `workdir` is; what was there goes away with `fresh`'s name.
fn exchange(mut fresh: Fresh, workdir: &Path) -> Result<()> {
    let failed = |errno: Errno| {
        HostError::io(format!("putting the archive in place of {}", workdir.display()), errno.into())
    };
    match renameat_with(CWD, &fresh.path, CWD, workdir, RenameFlags::EXCHANGE) {
        Ok(()) => return Ok(()),
        Err(Errno::NOENT) => {
            renameat_with(CWD, &fresh.path, CWD, workdir, RenameFlags::NOREPLACE).map_err(failed)?;
            fresh.kept = true;
            return Ok(());
        }
        // A file system without it, e.g. some network ones.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let aside = sibling(workdir, OLD)?;
    let in_words =
        |source| HostError::io(format!("putting the archive in place of {}", workdir.display()), source);
    fs::rename(workdir, &aside).map_err(in_words)?;
    if let Err(error) = fs::rename(&fresh.path, workdir) {
        fs::rename(&aside, workdir).map_err(in_words)?;
        return Err(in_words(error));
    }
    fresh.path = aside;
    Ok(())
}

/// Siblings of ours are hidden and carry the workdir's own name: `.workdir.new-<uuid>`.
const NEW: &str = "new";
/// The workdir of before, where it could not be exchanged in one step.
const OLD: &str = "old";

fn around(workdir: &Path, kind: &str) -> Result<(PathBuf, OsString)> {
    let (Some(parent), Some(name)) = (workdir.parent(), workdir.file_name()) else {
        return Err(HostError::Refused {
            what: "workdir",
            value: workdir.display().to_string(),
            why: "it has no directory around it",
        });
    };
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(format!(".{kind}-"));
    Ok((parent.to_owned(), prefix))
}

fn sibling(workdir: &Path, kind: &str) -> Result<PathBuf> {
    let (parent, mut name) = around(workdir, kind)?;
    name.push(uuid::Uuid::new_v4().simple().to_string());
    Ok(parent.join(name))
}

/// Removes what a crash left. A workdir has one owner, so nobody else restores it now.
fn remove_leftovers(workdir: &Path) -> Result<()> {
    let (parent, new) = around(workdir, NEW)?;
    let (_, old) = around(workdir, OLD)?;
    let failed = |source| HostError::io(format!("clearing leftovers in {}", parent.display()), source);
    let mut leftovers = Vec::new();
    for entry in fs::read_dir(&parent).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if name.as_bytes().starts_with(old.as_bytes()) && is_missing(workdir) {
            // The crash came between the two renames of a file system that cannot exchange.
            fs::rename(parent.join(&name), workdir).map_err(failed)?;
        } else if [&new, &old].iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes())) {
            leftovers.push(parent.join(name));
        }
    }
    for leftover in leftovers {
        tracing::info!(path = %leftover.display(), "removing what an interrupted restore left");
        remove_tree(&leftover).map_err(failed)?;
    }
    Ok(())
}

fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

/// Removes a tree, read-only directories included.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            make_removable(path)?;
            fs::remove_dir_all(path)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
