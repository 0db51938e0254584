//! Archives of workdirs on the far side: its tar, our matcher and our rules.
//!
//! Packing asks twice. First the far side says which paths there are, a MiB at a time, and is told which of them are wanted;
//! then its tar packs these. What comes back is compressed here. Extracting is the other way round: what arrives there has been
//! decompressed, looked at and written anew here.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

use super::files::{TREE_LIMIT, enter, said, temporary};
use super::hand::{self, Words, nonce};
use super::listing::VANISHED;
use super::poured::{self, Deed, no_tar};
use super::runtime;
use super::shells::{Lane, Shells};
use super::wanted::Wanted;
use crate::{ByteStream, Codec, Excludes, ExitStatus, HostError, Result, Spawned, TaskDir, archive};

/// What one line asks for.
const ASKED: usize = 1 << 20;
/// Lines ahead of what has come: with a round trip of 80 ms these are 100 MB/s. All of it may wait in memory.
const AHEAD: usize = 8;
/// Bytes taken from the stream at once, and chunks of them that wait for the compression.
const READ: usize = 128 * 1024;
const CHUNKS_AHEAD: usize = 2;
/// Length of what is kept of one line that a program complains with.
const COMPLAINT_LIMIT: u64 = 4096;

/// See [`crate::Host::archive`]. Nothing runs until the stream is read.
pub(super) async fn pack(
    shells: Arc<dyn Shells>,
    dir: &TaskDir,
    excludes: Excludes,
    codec: Codec,
) -> Result<ByteStream> {
    let words = enter(Words::new("do_pack").word(temporary())?, dir, "workdir")?;
    let packing = Packing { shells, words, excludes, workdir: dir.workdir().display().to_string() };
    Ok(archive::compressed(packing.stream(), codec))
}

/// See [`crate::Host::restore`].
pub(super) async fn restore(
    shells: Arc<dyn Shells>,
    dir: &TaskDir,
    stream: ByteStream,
    codec: Codec,
) -> Result<()> {
    let deed = Deed {
        what: format!("restore {}", dir.workdir().display()),
        target: dir.workdir(),
        command: hand::archive_command(),
        words: enter(Words::new("do_restore").word(nonce())?, dir, "")?,
        ending: |_| "e\ncommit\n".to_owned(),
        limit: TREE_LIMIT,
    };
    poured::send(shells, deed, archive::cleaned(stream, codec)).await.map(drop)
}

/// The far side's part of an archive.
struct Packing {
    shells: Arc<dyn Shells>,
    words: Words,
    excludes: Excludes,
    workdir: String,
}

enum Packed {
    Chunk(Bytes),
    Whole,
}

impl Packing {
    /// A plain tar. It is read where connections live; when nobody takes it any more, the far side's tar is ended.
    fn stream(self) -> ByteStream {
        let starting = async move {
            let (out, packed) = mpsc::channel(CHUNKS_AHEAD);
            runtime::start(async move {
                let last = match self.run(&out).await {
                    Ok(()) => Ok(Packed::Whole),
                    Err(problem) => Err(problem),
                };
                // Nobody may be left to hear it.
                let _ = out.send(last).await;
            });
            packed
        };
        let chunks = |packed| {
            stream::unfold(Some(packed), |packed: Option<mpsc::Receiver<Result<Packed>>>| async {
                let mut packed = packed?;
                match packed.recv().await {
                    Some(Ok(Packed::Chunk(chunk))) => Some((Ok(chunk), Some(packed))),
                    Some(Ok(Packed::Whole)) => None,
                    Some(Err(problem)) => Some((Err(problem), None)),
                    None => Some((Err(said("pack", "the work was given up")), None)),
                }
            })
        };
        stream::once(starting).flat_map(chunks).boxed()
    }

    async fn run(self, out: &mpsc::Sender<Result<Packed>>) -> Result<()> {
        let Spawned { stdin, stdout, stderr, mut process } =
            self.shells.spawn(Lane::Bulk, hand::archive_command()).await?;
        let complaints = Arc::new(Mutex::new(Complaints::default()));
        let (heard, all_heard) = tokio::sync::oneshot::channel();
        let listener = complaints.clone();
        runtime::start(async move {
            listen(stderr, &listener).await;
            // Who waits for it may be gone.
            let _ = heard.send(());
        });
        let mut far = Far { stdin, stdout };
        let what = format!("pack {}", self.workdir);
        let lost = |source: std::io::Error| HostError::io(what.as_str(), source);
        let moved = async {
            far.write(&self.words.only(&nonce())).await?;
            let listed = far.list(Wanted::new(self.excludes)).await?;
            match listed {
                Some(status) => far.pour(out).await.map(|()| Some(status)),
                None => Ok(None),
            }
        };
        let moved = moved.await;
        drop(far);
        // Where it was cut, its status and its words say why; where we broke off, it is ended.
        let ended = match &moved {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe && out.is_closed() => return Ok(()),
            _ => tokio::time::timeout(TREE_LIMIT, async {
                let status = process.wait().await;
                // Its streams end with it.
                let _ = all_heard.await;
                status
            })
            .await
            .map_err(|_| HostError::TimedOut { what: what.clone(), limit: TREE_LIMIT })??,
        };
        let complaint = complaints.lock().unwrap_or_else(PoisonError::into_inner).0.take();
        let failed = |words: &str| Err(said(&what, words));
        match (ended, moved, complaint) {
            (ExitStatus::Code(71), ..) => Err(HostError::NotFound { path: self.workdir }),
            (ExitStatus::Code(72), ..) => {
                let why = "a symbolic link lies on it";
                Err(HostError::Refused { what: "path", value: self.workdir, why })
            }
            (ExitStatus::Code(74), ..) => Err(no_tar(self.shells.name())),
            (_, _, Some(complaint)) => failed(&complaint),
            // 1: a file changed while it was read. 2: one was gone, and nothing else, or there would be a complaint.
            (ExitStatus::Code(0..=2), Ok(Some(0 | 1)), None) => Ok(()),
            (_, Err(error), None) => Err(lost(error)),
            (ended, _, None) => failed(&format!("the far side's tar ended with {ended}")),
        }
    }
}

struct Far {
    stdin: Box<dyn AsyncWrite + Send + Unpin>,
    stdout: Box<dyn AsyncRead + Send + Unpin>,
}

impl Far {
    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stdin.write_all(bytes).await?;
        self.stdin.flush().await
    }

    /// Goes through the list, one MiB after the other: what is asked for has come before anything is written, so neither
    /// side waits for the other. Answers the status of `find`, or nothing where the far side ended.
    async fn list(&mut self, mut wanted: Wanted) -> std::io::Result<Option<u8>> {
        let mut chunk = vec![0; READ];
        loop {
            self.write(b"t\n").await?;
            let mut left = ASKED;
            while left > 0 && wanted.status().is_none() {
                let len = chunk.len().min(left);
                let got = self.stdout.read(&mut chunk[..len]).await?;
                if got == 0 {
                    return Ok(None);
                }
                left -= got;
                wanted.take(&chunk[..got]);
            }
            let names = wanted.names();
            for names in names.chunks(ASKED) {
                self.write(format!("{}\n", names.len()).as_bytes()).await?;
                self.write(names).await?;
            }
            if let Some(status) = wanted.status() {
                self.write(b"e\n").await?;
                return Ok(Some(status));
            }
        }
    }

    /// Takes the tar, and asks for more as it is taken from us.
    async fn pour(&mut self, out: &mpsc::Sender<Result<Packed>>) -> std::io::Result<()> {
        self.write("t\n".repeat(AHEAD).as_bytes()).await?;
        let mut since = 0;
        loop {
            let mut chunk = vec![0; READ];
            let got = tokio::select! {
                got = self.stdout.read(&mut chunk) => got?,
                () = out.closed() => return Err(std::io::ErrorKind::BrokenPipe.into()),
            };
            if got == 0 {
                return Ok(());
            }
            chunk.truncate(got);
            if out.send(Ok(Packed::Chunk(chunk.into()))).await.is_err() {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            since += got;
            while since >= ASKED {
                since -= ASKED;
                // It may be done and gone: what it still has to say comes all the same.
                let _ = self.write(b"t\n").await;
            }
        }
    }
}

/// The first complaint that is more than a word about a tree that others work in.
#[derive(Default)]
struct Complaints(Option<String>);

async fn listen(stderr: Box<dyn AsyncRead + Send + Unpin>, complaints: &Mutex<Complaints>) {
    let mut stderr = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        match (&mut stderr).take(COMPLAINT_LIMIT).read_until(b'\n', &mut line).await {
            Ok(1..) => {}
            // Its output ends as well, and says more.
            _ => return,
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim();
        if line.is_empty() || line.ends_with("Exiting with failure status due to previous errors") {
            continue;
        }
        if is_harmless(line) {
            tracing::warn!(complaint = line, "packing a tree that changes");
            continue;
        }
        complaints.lock().unwrap_or_else(PoisonError::into_inner).0.get_or_insert_with(|| line.to_owned());
    }
}

/// What GNU tar and find say of files that vanish, grow or shrink (T-189).
fn is_harmless(line: &str) -> bool {
    let ends = [
        VANISHED,
        "file changed as we read it",
        "File removed before we read it",
        "socket ignored",
        "door ignored",
        "implausibly old time stamp",
    ];
    ends.iter().any(|end| line.ends_with(end))
        || (line.contains("File shrank by") && line.ends_with("padding with zeros"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use async_trait::async_trait;

    use super::super::on_this_machine::Here;
    use super::*;
    use crate::{Command, TaskId};

    #[test]
    fn only_words_about_a_changing_tree_are_harmless() {
        assert!(is_harmless("tar: a: Cannot stat: No such file or directory"));
        assert!(is_harmless("tar: a: File shrank by 3 bytes; padding with zeros"));
        assert!(!is_harmless("tar: a: Cannot open: Permission denied"));
        assert!(!is_harmless("tar: a: Read error at byte 0, while reading 512 bytes: Input/output error"));
    }

    /// A connection takes what a program says as it comes, and keeps it until somebody reads it.
    struct Connection {
        here: Arc<Here>,
        unread: Arc<AtomicUsize>,
        most: Arc<AtomicUsize>,
    }

    #[async_trait]
    impl Shells for Connection {
        fn name(&self) -> &str {
            "connection"
        }
        async fn spawn(&self, lane: Lane, command: Command) -> Result<Spawned> {
            let mut spawned = self.here.spawn(lane, command).await?;
            let (keep, kept) = mpsc::unbounded_channel();
            let mut from = std::mem::replace(&mut spawned.stdout, Box::new(tokio::io::empty()));
            let (unread, most) = (self.unread.clone(), self.most.clone());
            tokio::spawn(async move {
                let mut chunk = vec![0; 32 * 1024];
                while let Ok(got @ 1..) = from.read(&mut chunk).await {
                    most.fetch_max(unread.fetch_add(got, Ordering::SeqCst) + got, Ordering::SeqCst);
                    if keep.send(Bytes::copy_from_slice(&chunk[..got])).is_err() {
                        return;
                    }
                }
            });
            let unread = self.unread.clone();
            let kept = stream::unfold(kept, move |mut kept| {
                let unread = unread.clone();
                async move {
                    let chunk: Bytes = kept.recv().await?;
                    unread.fetch_sub(chunk.len(), Ordering::SeqCst);
                    Some((Ok::<_, std::io::Error>(chunk), kept))
                }
            });
            spawned.stdout = Box::new(tokio_util::io::StreamReader::new(kept.boxed()));
            Ok(spawned)
        }
    }

    #[tokio::test]
    async fn who_reads_slowly_stops_the_far_tar_and_not_our_memory() {
        const LEN: u64 = 200 << 20;
        let temp = tempfile::tempdir().unwrap();
        let (unread, most) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let here = Here::new(temp.path());
        let shells = Arc::new(Connection { here, unread: unread.clone(), most: most.clone() });
        let dir = TaskDir::new(&temp.path().join("tasks"), &TaskId::new("task").unwrap());
        std::fs::create_dir_all(dir.workdir()).unwrap();
        std::fs::File::create(dir.workdir().join("large")).unwrap().set_len(LEN).unwrap();
        let words = enter(Words::new("do_pack").word(temporary()).unwrap(), &dir, "workdir").unwrap();
        let excludes = Excludes::default();
        let workdir = dir.workdir().display().to_string();
        let mut tar = Packing { shells, words, excludes, workdir }.stream();
        let mut len = tar.next().await.unwrap().unwrap().len() as u64;
        // Until nothing more comes by itself.
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = unread.load(Ordering::SeqCst);
            if now == before && now > 0 {
                break;
            }
            before = now;
        }
        assert!(before > (AHEAD / 2) * ASKED, "little is asked for in advance: {before}");
        while let Some(chunk) = tar.next().await {
            len += chunk.unwrap().len() as u64;
        }
        assert!(len > LEN);
        let most = most.load(Ordering::SeqCst);
        assert!(most <= AHEAD * ASKED, "{most} bytes waited in memory");
    }
}
