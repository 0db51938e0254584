//! Streams that a thread works on: what the far side packs is compressed here, and what it is to extract is looked at here.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::Codec;
use super::beneath::shown;
use super::member::{Head, Members};
use super::pack::{Chunks, WALKS, encode};
use super::restore::{CHUNKS_AHEAD, EXTRACTIONS, Fed, Reader};
use super::rules::{Facts, Place, bad, members};
use crate::{ByteStream, HostError, Result};
use tar::EntryType;

/// Symbolic links that are remembered of one archive, by a number each. A workdir with `node_modules` has some thousands.
const LINKS_KEPT: usize = 500_000;
/// What ends a tar: two blocks of zeros.
const END: usize = 2 * 512;

/// Compresses a plain tar. One without its end is an error, and has no end compressed either (T-192).
pub(super) fn compressed(tar: ByteStream, codec: Codec) -> ByteStream {
    through(tar, &WALKS, move |from, chunks| {
        encode("packing", codec, chunks, |out| {
            let mut tail = Tail { from, last: Vec::new() };
            io::copy(&mut tail, out).map_err(|source| HostError::io("packing", source))?;
            if tail.last.len() == END && tail.last.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            Err(bad("the far side sent one that is cut short: its end mark is missing"))
        })
    })
}

/// Decompresses an archive and lets nothing through but what may be extracted, as a plain tar.
pub(super) fn cleaned(archive: ByteStream, codec: Codec) -> ByteStream {
    through(archive, &EXTRACTIONS, move |from, mut chunks| {
        members(from, codec, &mut Cleaned::new(&mut chunks))?;
        chunks.flush().map_err(|source| HostError::io("unpacking", source))
    })
}

/// Gives a stream to a thread, and what the thread makes of it on. Nothing runs until it is polled; dropping it ends the work.
fn through(
    source: ByteStream,
    turns: &'static std::sync::LazyLock<Arc<Semaphore>>,
    work: impl FnOnce(&mut Reader<'_>, Chunks) -> Result<()> + Send + 'static,
) -> ByteStream {
    let starting = async move {
        let turn = Arc::clone(turns).acquire_owned().await.expect("the semaphore is never closed");
        let (feed, mut fed) = mpsc::channel(CHUNKS_AHEAD);
        let (into, chunks) = Chunks::new();
        let work = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&mut Reader::new(&mut fed), into)
        });
        Running { source: Some((source, feed)), chunks, work, broken: None }
    };
    let running = stream::once(starting).flat_map(|running| {
        stream::unfold(Some(running), |running| async {
            let mut running = running?;
            match running.next().await {
                Some(Ok(chunk)) => Some((Ok(chunk), Some(running))),
                Some(Err(error)) => Some((Err(error), None)),
                None => None,
            }
        })
    });
    running.boxed()
}

struct Running {
    source: Option<(ByteStream, mpsc::Sender<Fed>)>,
    chunks: mpsc::Receiver<Bytes>,
    work: JoinHandle<Result<()>>,
    /// Why the source broke; what the thread then says follows from it.
    broken: Option<HostError>,
}

impl Running {
    async fn next(&mut self) -> Option<Result<Bytes>> {
        loop {
            let feeding = async {
                match &mut self.source {
                    Some((source, feed)) => feed_one(source, feed).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                chunk = self.chunks.recv() => return match chunk {
                    Some(chunk) => Some(Ok(chunk)),
                    None => self.end().await,
                },
                fed = feeding => match fed {
                    Ok(true) => {}
                    Ok(false) => self.source = None,
                    Err(error) => {
                        self.source = None;
                        self.broken = Some(error);
                    }
                },
            }
        }
    }

    /// The channel is closed by a thread that is done, failed or panicked; only the first is the end of a stream.
    async fn end(&mut self) -> Option<Result<Bytes>> {
        self.source = None;
        let ended = match (&mut self.work).await {
            Ok(ended) => ended,
            Err(panic) => Err(HostError::io("work on an archive", io::Error::other(panic))),
        };
        match self.broken.take() {
            Some(broken) => Some(Err(broken)),
            None => ended.err().map(Err),
        }
    }
}

/// Takes one chunk further; `false` is the end. Cancel safe: a chunk is taken only when there is room for it.
async fn feed_one(source: &mut ByteStream, feed: &mpsc::Sender<Fed>) -> Result<bool> {
    let Ok(room) = feed.reserve().await else {
        return Ok(false);
    };
    match source.next().await.transpose()? {
        Some(chunk) => {
            room.send(Fed::Chunk(chunk));
            Ok(true)
        }
        None => {
            room.send(Fed::End);
            Ok(false)
        }
    }
}

/// Remembers the last bytes that were read.
struct Tail<R> {
    from: R,
    last: Vec<u8>,
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.from.read(buffer)?;
        let new = &buffer[got.saturating_sub(END)..got];
        self.last.drain(..(self.last.len() + new.len()).saturating_sub(END));
        self.last.extend_from_slice(new);
        Ok(got)
    }
}

/// Writes members as a tar that holds nothing else. The far side refuses what its disk refuses; what must be refused whatever
/// is there is refused here.
struct Cleaned<'w> {
    members: Members<&'w mut Chunks>,
    /// Paths that are symbolic links by now, as numbers.
    links: HashSet<u64>,
    numbers: RandomState,
}

impl<'w> Cleaned<'w> {
    fn new(out: &'w mut Chunks) -> Self {
        Self { members: Members::new(out), links: HashSet::new(), numbers: RandomState::new() }
    }

    fn is_link(&self, path: &[u8]) -> bool {
        !self.links.is_empty() && self.links.contains(&self.numbers.hash_one(path))
    }

    fn not_through_a_link(&self, path: &[u8]) -> Result<()> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        match slashes.map(|(at, _)| &path[..at]).find(|above| self.is_link(above)) {
            Some(link) => Err(bad(format!("it writes through {}, which is no directory", shown(link)))),
            None => Ok(()),
        }
    }

    fn empty(&mut self, kind: EntryType, path: &[u8], target: &[u8], facts: Facts) -> Result<()> {
        self.members.empty(kind, path, target, head(facts)).map_err(failed)
    }
}

fn head(facts: Facts) -> Head {
    Head { mode: facts.mode, uid: 0, gid: 0, mtime: facts.mtime }
}

fn failed(source: io::Error) -> HostError {
    HostError::io("unpacking", source)
}

impl Place for Cleaned<'_> {
    fn directory(&mut self, path: &[u8], facts: Facts) -> Result<()> {
        self.not_through_a_link(path)?;
        if self.is_link(path) {
            return Err(bad(format!("{} is both a directory and not one", shown(path))));
        }
        self.empty(EntryType::Directory, path, b"", facts)
    }

    fn file(&mut self, path: &[u8], facts: Facts, size: u64, content: &mut dyn Read) -> Result<()> {
        self.not_through_a_link(path)?;
        self.links.remove(&self.numbers.hash_one(path));
        match self.members.file(path, head(facts), size, content).map_err(failed)? {
            false => Ok(()),
            true => Err(bad(format!("it is cut short within {}", shown(path)))),
        }
    }

    fn symlink(&mut self, path: &[u8], target: &[u8], facts: Facts) -> Result<()> {
        self.not_through_a_link(path)?;
        if self.links.len() >= LINKS_KEPT {
            return Err(bad(format!("it has more than {LINKS_KEPT} symbolic links")));
        }
        self.links.insert(self.numbers.hash_one(path));
        self.empty(EntryType::Symlink, path, target, facts)
    }

    fn hard_link(&mut self, path: &[u8], first: &[u8]) -> Result<()> {
        self.not_through_a_link(path)?;
        self.not_through_a_link(first)?;
        let second = self.numbers.hash_one(path);
        if self.is_link(first) {
            self.links.insert(second)
        } else {
            self.links.remove(&second)
        };
        self.empty(EntryType::Link, path, first, Facts { mode: 0o600, mtime: 0 })
    }

    fn finish(&mut self) -> Result<()> {
        self.members.end().map_err(failed)
    }
}
