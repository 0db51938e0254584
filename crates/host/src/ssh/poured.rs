//! A stream that goes to the far side: a new file, or an archive that is extracted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::files::{FILE_LIMIT, TREE_LIMIT, done, said, temporary};
use super::hand::{self, Answer, Answers, Words, nonce};
use super::runtime;
use super::shells::{Lane, Shells};
use crate::{ByteStream, Command, HostError, Result, Spawned, archive};

/// Chunks that wait for the connection before the stream stands still.
const CHUNKS_AHEAD: usize = 2;
/// Limit of one chunk, 1 MiB at most: a far side that takes none for so long is not slow but stuck.
const CHUNK_LIMIT: Duration = Duration::from_secs(60);

/// See [`crate::Host::write_stream`].
pub(super) async fn pour(shells: Arc<dyn Shells>, path: &Path, stream: ByteStream, mode: u32) -> Result<u64> {
    let words = Words::new("do_pour").number(format_args!("{:o}", mode & 0o777)).word(temporary())?;
    let (Some(dir), Some(name)) = (path.parent().filter(|_| path.is_absolute()), path.file_name()) else {
        let why = "it must be an absolute path below '/'";
        return Err(HostError::Refused { what: "file", value: path.display().to_string(), why });
    };
    let words = words.word(name.as_encoded_bytes())?.word(dir.as_os_str().as_encoded_bytes())?;
    let deed = Deed {
        what: format!("write {}", path.display()),
        target: path.to_owned(),
        command: hand::command(),
        words,
        ending: |len| format!("end {len}\n"),
        limit: FILE_LIMIT,
    };
    send(shells, deed, stream).await
}

/// Something the far side does with a stream.
pub(super) struct Deed {
    /// What is tried, with the path, for errors.
    pub(super) what: String,
    /// What it is done to.
    pub(super) target: PathBuf,
    /// The shell.
    pub(super) command: Command,
    /// The question.
    pub(super) words: Words,
    /// What follows the last chunk, by the length of all.
    pub(super) ending: fn(u64) -> String,
    /// How long the answer may take after that.
    pub(super) limit: Duration,
}

/// Does it, and answers the stream's length. The far side's part goes on when the caller does not: it learns that nothing
/// more comes, and removes what it has.
pub(super) async fn send(shells: Arc<dyn Shells>, deed: Deed, mut stream: ByteStream) -> Result<u64> {
    let (feed, fed) = mpsc::channel(CHUNKS_AHEAD);
    let working = runtime::run(carry(shells, deed, fed));
    let feeding = async move {
        loop {
            let mut chunk = match stream.next().await {
                Some(Ok(chunk)) => chunk,
                Some(Err(problem)) => return Some(problem),
                None => {
                    // Nobody takes it any more, here and below: the other side says why.
                    let _ = feed.send(Fed::End).await;
                    return None;
                }
            };
            while !chunk.is_empty() {
                let part = chunk.split_to(chunk.len().min(archive::CHUNK));
                if feed.send(Fed::Chunk(part)).await.is_err() {
                    return None;
                }
            }
        }
    };
    let (broken, worked) = tokio::join!(feeding, working);
    match broken {
        Some(problem) => Err(problem),
        None => worked?,
    }
}

enum Fed {
    Chunk(Bytes),
    End,
}

async fn carry(shells: Arc<dyn Shells>, deed: Deed, mut fed: mpsc::Receiver<Fed>) -> Result<u64> {
    let Deed { what, target, command, words, ending, limit } = deed;
    let lost = |why| HostError::Unreachable { host: shells.name().to_owned(), why };
    let Spawned { mut stdin, stdout, stderr, process: _process } = shells.spawn(Lane::Bulk, command).await?;
    let (mark, mut answers, mut complaint) = (nonce(), Answers::new(stdout), Vec::new());
    let answering = async {
        let answer = tokio::select! {
            answer = answers.next(&mark, 0) => answer.map_err(lost)?,
            () = hand::listen(stderr, &mut complaint) => return Err(lost("its shell ended".into())),
        };
        missing_program(&answer, shells.name())?;
        done(answer, &what, &target)
    };
    tokio::pin!(answering);
    let mut len = 0;
    let mut line = words.only(&mark);
    let mut part = Bytes::new();
    let whole = loop {
        let writing = async {
            stdin.write_all(&line).await?;
            stdin.write_all(&part).await?;
            stdin.flush().await
        };
        tokio::select! {
            // It answers before it has everything only when it cannot go on.
            answer = &mut answering => {
                return Err(said(&what, &format!("unexpected answer {:?}", answer?.word)));
            }
            written = tokio::time::timeout(CHUNK_LIMIT, writing) => match written {
                Ok(Ok(())) => {}
                // Its answer says why it takes no more.
                Ok(Err(_)) => break true,
                Err(_) => return Err(HostError::TimedOut { what: what.clone(), limit: CHUNK_LIMIT }),
            },
        }
        line.clear();
        part = match fed.recv().await {
            Some(Fed::Chunk(chunk)) => chunk,
            Some(Fed::End) => {
                let ending = ending(len);
                let ending = async {
                    stdin.write_all(ending.as_bytes()).await?;
                    stdin.flush().await
                };
                // Where it fails, the answer says why.
                let _ = tokio::time::timeout(CHUNK_LIMIT, ending).await;
                break true;
            }
            None => break false,
        };
        len += part.len() as u64;
        line.extend_from_slice(format!("{}\n", part.len()).as_bytes());
    };
    if !whole {
        // The shell removes what it has. The caller has a better reason than its answer, or is gone.
        drop(stdin);
    }
    let limit = if whole { limit } else { TREE_LIMIT };
    match tokio::time::timeout(limit, answering).await {
        Ok(answer) => answer.map(|_| len),
        Err(_) => Err(HostError::TimedOut { what: what.clone(), limit }),
    }
}

/// What there must be, and what installs it.
pub(super) fn no_tar(host: &str) -> HostError {
    let why = format!("snapshots need the tar of GNU on {host}; its package is called `tar`");
    HostError::Program { program: "tar".into(), why }
}

fn missing_program(answer: &Answer, host: &str) -> Result<()> {
    match answer.word.as_str() {
        "tar" => Err(no_tar(host)),
        _ => Ok(()),
    }
}
