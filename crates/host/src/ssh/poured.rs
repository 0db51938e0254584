//! A new file on the far side from a stream.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::files::{FILE_LIMIT, done, said, temporary};
use super::hand::{self, Answers, Words, nonce};
use super::runtime;
use super::shells::{Lane, Shells};
use crate::{ByteStream, HostError, Result, Spawned, archive};

/// How long a shell may take to remove what it has begun, once nothing more comes.
const UNDO_LIMIT: Duration = Duration::from_secs(10);
/// Chunks that wait for the connection before the stream stands still.
const CHUNKS_AHEAD: usize = 2;

enum Fed {
    Chunk(Bytes),
    End,
}

/// See [`crate::Host::write_stream`]. The far side's part goes on when the caller does not: it learns that nothing more
/// comes, and removes what it has.
pub(super) async fn pour(
    shells: Arc<dyn Shells>,
    path: &Path,
    mut stream: ByteStream,
    mode: u32,
) -> Result<u64> {
    let words = Words::new("do_pour").number(format_args!("{:o}", mode & 0o777)).word(temporary())?;
    let (Some(dir), Some(name)) = (path.parent().filter(|_| path.is_absolute()), path.file_name()) else {
        let why = "it must be an absolute path below '/'";
        return Err(HostError::Refused { what: "file", value: path.display().to_string(), why });
    };
    let words = words.word(name.as_encoded_bytes())?.word(dir.as_os_str().as_encoded_bytes())?;
    let (feed, fed) = mpsc::channel(CHUNKS_AHEAD);
    let target = path.to_owned();
    let working = runtime::run(async move { carry(shells, &target, words, fed).await });
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

async fn carry(
    shells: Arc<dyn Shells>,
    path: &Path,
    words: Words,
    mut fed: mpsc::Receiver<Fed>,
) -> Result<u64> {
    let what = format!("write {}", path.display());
    let lost = |why| HostError::Unreachable { host: shells.name().to_owned(), why };
    let Spawned { mut stdin, stdout, stderr, process: _process } =
        shells.spawn(Lane::Bulk, hand::command()).await?;
    let (mark, mut answers, mut complaint) = (nonce(), Answers::new(stdout), Vec::new());
    let answering = async {
        tokio::select! {
            answer = answers.next(&mark, 0) => answer.map_err(lost),
            () = hand::listen(stderr, &mut complaint) => Err(lost("its shell ended".into())),
        }
    };
    tokio::pin!(answering);
    let mut len = 0;
    let mut line = words.lines(&mark);
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
                let answer = done(answer?, &what, path)?;
                return Err(said(&what, &format!("unexpected answer {:?}", answer.word)));
            }
            written = tokio::time::timeout(FILE_LIMIT, writing) => match written {
                Ok(Ok(())) => {}
                // Its answer says why it takes no more.
                Ok(Err(_)) => break true,
                Err(_) => return Err(HostError::TimedOut { what, limit: FILE_LIMIT }),
            },
        }
        line.clear();
        part = match fed.recv().await {
            Some(Fed::Chunk(chunk)) => chunk,
            Some(Fed::End) => {
                line.extend_from_slice(format!("end {len}\n").as_bytes());
                let ending = async {
                    stdin.write_all(&line).await?;
                    stdin.flush().await
                };
                // Where it fails, the answer says why.
                let _ = tokio::time::timeout(FILE_LIMIT, ending).await;
                break true;
            }
            None => break false,
        };
        len += part.len() as u64;
        line.extend_from_slice(format!("{}\n", part.len()).as_bytes());
    };
    if !whole {
        drop(stdin);
        // The caller has a better reason than this, or is gone.
        return match tokio::time::timeout(UNDO_LIMIT, answering).await {
            Ok(answer) => Err(done(answer?, &what, path).err().unwrap_or_else(|| said(&what, "it was cut"))),
            Err(_) => Err(HostError::TimedOut { what, limit: UNDO_LIMIT }),
        };
    }
    let answer = tokio::time::timeout(FILE_LIMIT, answering).await;
    let answer = answer.map_err(|_| HostError::TimedOut { what: what.clone(), limit: FILE_LIMIT })??;
    done(answer, &what, path).map(|_| len)
}
