//! Snapshots: sealed while they stream to disk, read back before a row names them.

use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use super::blobs::{Fresh, Kind};
use super::columns::{parsed, parsed_opt};
use super::db::Failure;
use super::doomed::doom;
use super::seeds::commit;
use super::{Core, Embedded, OPERATION_LIMIT};
use crate::clock::from_millis;
use crate::local::unavailable;
use crate::sealed::{CHUNK, STREAM_HEADER, StreamOpener, StreamSealer, TAG_LEN};
use crate::seed_archive::hex;
use crate::{
    NewSnapshot, Result, SNAPSHOTS_KEPT, SessionId, SnapshotId, SnapshotRow, SnapshotWriter, Snapshots,
    StoreError,
};

/// The slowest disk that a commit waits for, in bytes a second: fsync and reading back take longer for a large
/// archive.
const SLOWEST: u64 = 16 << 20;

const COLUMNS: &str = "id, session, captured, end_state, thread_id, codec, seed, len, sha256, blob";

#[async_trait]
impl Snapshots for Embedded {
    async fn begin(&self) -> Result<Box<dyn SnapshotWriter>> {
        let core = self.core.clone();
        let sink =
            self.chunk_work("beginning a snapshot", OPERATION_LIMIT, move || Sink::begin(&core)).await?;
        let state = State::Idle(Box::new(sink), Vec::new());
        Ok(Box::new(Writer { store: self.clone(), buffer: Vec::with_capacity(CHUNK + TAG_LEN), state }))
    }

    async fn list(&self, session: &SessionId) -> Result<Vec<SnapshotRow>> {
        let session = session.clone();
        let read = move |c: &mut Connection| {
            let sql = format!("SELECT {COLUMNS} FROM snapshots WHERE session = ?1 ORDER BY captured DESC");
            let mut statement = c.prepare_cached(&sql)?;
            let rows = statement.query_map([session.as_str()], snapshot_row)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        };
        self.core.db.run("listing snapshots", read).await
    }

    async fn get(&self, id: &SnapshotId) -> Result<Option<SnapshotRow>> {
        Ok(self.find(id).await?.map(|(row, _)| row))
    }

    async fn open(&self, id: &SnapshotId) -> Result<BoxStream<'static, Result<Bytes>>> {
        let reader = self.reader(id).await?;
        let store = self.clone();
        let chunks = stream::try_unfold((store, reader), |(store, mut reader)| async move {
            let read = move || reader.next().map(|chunk| (chunk, reader));
            let (chunk, reader) = store.chunk_work("reading a snapshot", OPERATION_LIMIT, read).await?;
            Ok(chunk.map(|chunk| (Bytes::from(chunk), (store, reader))))
        });
        Ok(chunks.boxed())
    }

    async fn verify(&self, id: &SnapshotId) -> Result<()> {
        let mut chunks = self.open(id).await?;
        while let Some(chunk) = chunks.next().await {
            chunk?;
        }
        Ok(())
    }

    async fn delete_all(&self, session: &SessionId) -> Result<()> {
        let (session, now) = (session.clone(), self.now_ms());
        let delete = move |c: &mut Connection| {
            let tx = c.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let blobs: Vec<String> = {
                let mut statement = tx.prepare_cached("SELECT blob FROM snapshots WHERE session = ?1")?;
                let blobs = statement.query_map([session.as_str()], |row| row.get(0))?;
                blobs.collect::<rusqlite::Result<_>>()?
            };
            for blob in blobs {
                doom(&tx, &blob, session.as_str(), now)?;
            }
            tx.execute("DELETE FROM snapshots WHERE session = ?1", [session.as_str()])?;
            Ok(tx.commit()?)
        };
        self.core.db.run("deleting snapshots", delete).await
    }
}

impl Embedded {
    async fn find(&self, id: &SnapshotId) -> Result<Option<(SnapshotRow, String)>> {
        let id = id.clone();
        let read = move |c: &mut Connection| {
            let sql = format!("SELECT {COLUMNS} FROM snapshots WHERE id = ?1");
            let mut statement = c.prepare_cached(&sql)?;
            let row = statement.query_row([id.as_str()], |row| Ok((snapshot_row(row)?, row.get(9)?)));
            Ok(row.optional()?)
        };
        self.core.db.run("reading a snapshot", read).await
    }

    async fn reader(&self, id: &SnapshotId) -> Result<Reader> {
        let found = self.find(id).await?;
        let (row, blob) =
            found.ok_or_else(|| StoreError::NotFound { what: "snapshot", id: id.to_string() })?;
        let core = self.core.clone();
        let open = move || Reader::open(&core, &blob, Digested { len: row.len, sha256: row.sha256 });
        self.chunk_work("reading a snapshot", OPERATION_LIMIT, open).await
    }
}

fn snapshot_row(row: &Row<'_>) -> rusqlite::Result<SnapshotRow> {
    Ok(SnapshotRow {
        id: parsed(row, 0)?,
        session: parsed(row, 1)?,
        captured_at: from_millis(row.get(2)?),
        end_state: row.get(3)?,
        thread_id: row.get(4)?,
        codec: row.get(5)?,
        seed: parsed_opt(row, 6)?,
        len: row.get(7)?,
        sha256: row.get(8)?,
    })
}

/// Length and hash of an archive before it was sealed.
struct Digested {
    len: u64,
    sha256: String,
}

/// The blob as it is written. Dropping it removes the file.
struct Sink {
    name: String,
    file: File,
    fresh: Fresh,
    sealer: StreamSealer,
    hash: Sha256,
    len: u64,
}

impl Sink {
    fn begin(core: &Core) -> Result<Self> {
        let name = Kind::Snapshot.mint();
        let sealer = core.sealer.begin_stream(name.clone())?;
        let (mut file, fresh) = core.blobs.create(&name)?;
        file.write_all(&sealer.header()).map_err(|e| failed(&name, e))?;
        Ok(Self { name, file, fresh, sealer, hash: Sha256::new(), len: 0 })
    }

    /// Hashes, seals in place and writes a chunk.
    fn put(&mut self, chunk: &mut Vec<u8>, last: bool) -> Result<()> {
        self.hash.update(&chunk[..]);
        self.len += chunk.len() as u64;
        self.sealer.seal(chunk, last)?;
        self.file.write_all(chunk).map_err(|e| failed(&self.name, e))
    }

    /// Makes the blob durable and reads it back.
    fn finish(mut self, core: &Core, mut last: Vec<u8>) -> Result<Finished> {
        self.put(&mut last, true)?;
        core.blobs.publish(self.file, &mut self.fresh, &self.name)?;
        let sha256 = hex(&self.hash.finalize());
        let mut reader = Reader::open(core, &self.name, Digested { len: self.len, sha256: sha256.clone() })?;
        while reader.next()?.is_some() {}
        Ok(Finished { name: self.name, fresh: self.fresh, digested: Digested { len: self.len, sha256 } })
    }
}

/// A whole archive on disk that no row names yet.
struct Finished {
    name: String,
    fresh: Fresh,
    digested: Digested,
}

struct Writer {
    store: Embedded,
    /// The next chunk. It goes out when more comes, so that the last one is known as such.
    buffer: Vec<u8>,
    state: State,
}

/// One chunk is sealed and written while the next one is filled.
enum State {
    /// Nothing is on its way; the buffer is spare.
    Idle(Box<Sink>, Vec<u8>),
    Busy(JoinHandle<Result<(Box<Sink>, Vec<u8>)>>),
    /// A write failed; its blob is gone.
    Failed,
}

#[async_trait]
impl SnapshotWriter for Writer {
    async fn write(&mut self, mut chunk: Bytes) -> Result<()> {
        while !chunk.is_empty() {
            if self.buffer.len() == CHUNK {
                self.send().await?;
            }
            let piece = chunk.split_to(chunk.len().min(CHUNK - self.buffer.len()));
            self.buffer.extend_from_slice(&piece);
        }
        Ok(())
    }

    async fn commit(mut self: Box<Self>, about: NewSnapshot) -> Result<SnapshotRow> {
        let (sink, spare) = self.settle().await?;
        drop(spare);
        let last = std::mem::take(&mut self.buffer);
        let limit = OPERATION_LIMIT + Duration::from_secs((sink.len + last.len() as u64) / SLOWEST);
        let core = self.store.core.clone();
        let finish = move || sink.finish(&core, last);
        let finished = self.store.chunk_work("committing a snapshot", limit, finish).await?;
        let now = self.store.now_ms();
        self.store.core.db.run("committing a snapshot", move |c| insert(c, finished, about, now)).await
    }
}

impl Writer {
    /// Sends the full buffer on its way, once the one before has arrived.
    async fn send(&mut self) -> Result<()> {
        let (mut sink, mut spare) = self.settle().await?;
        spare.clear();
        spare.reserve(CHUNK + TAG_LEN);
        let mut chunk = std::mem::replace(&mut self.buffer, spare);
        let store = self.store.clone();
        // A task, so that the archive's next piece is made meanwhile. It ends by itself, with the limit's error at
        // the latest.
        self.state = State::Busy(tokio::spawn(async move {
            let put = move || sink.put(&mut chunk, false).map(|()| (sink, chunk));
            store.chunk_work("writing a snapshot", OPERATION_LIMIT, put).await
        }));
        Ok(())
    }

    /// Waits for the chunk on its way. A caller who gives up while waiting may ask again.
    async fn settle(&mut self) -> Result<(Box<Sink>, Vec<u8>)> {
        if let State::Busy(task) = &mut self.state {
            let result = task.await;
            self.state = State::Failed;
            return result.map_err(|e| unavailable("writing a snapshot", e))?;
        }
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Idle(sink, spare) => Ok((sink, spare)),
            State::Busy(_) | State::Failed => {
                Err(unavailable("writing a snapshot", "an earlier write failed"))
            }
        }
    }
}

/// Stores the row, then prunes the session (T-163, INV-39).
fn insert(
    c: &mut Connection,
    finished: Finished,
    about: NewSnapshot,
    now: i64,
) -> Result<SnapshotRow, Failure> {
    let id = SnapshotId::mint();
    let session = about.session.as_str();
    let tx = c.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let sql = "SELECT max(captured) FROM snapshots WHERE session = ?1";
    let newest: Option<i64> = tx.query_row(sql, [session], |row| row.get(0))?;
    let captured = newest.map_or(now, |newest| now.max(newest + 1));
    tx.execute(
        "INSERT INTO snapshots (id, session, captured, end_state, thread_id, codec, seed, blob, len, sha256)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            id.as_str(),
            session,
            captured,
            about.end_state,
            about.thread_id,
            about.codec,
            about.seed.as_ref().map(|seed| seed.as_str()),
            finished.name,
            finished.digested.len,
            finished.digested.sha256,
        ],
    )?;
    let stale: Vec<(String, String)> = {
        let sql =
            "SELECT id, blob FROM snapshots WHERE session = ?1 ORDER BY captured DESC LIMIT -1 OFFSET ?2";
        let mut statement = tx.prepare_cached(sql)?;
        let rows =
            statement.query_map(params![session, SNAPSHOTS_KEPT], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<rusqlite::Result<_>>()?
    };
    for (stale, blob) in stale {
        doom(&tx, &blob, session, now)?;
        tx.execute("DELETE FROM snapshots WHERE id = ?1", [stale])?;
    }
    commit(tx, finished.fresh)?;
    Ok(SnapshotRow {
        id,
        captured_at: from_millis(captured),
        session: about.session,
        end_state: about.end_state,
        thread_id: about.thread_id,
        codec: about.codec,
        seed: about.seed,
        len: finished.digested.len,
        sha256: finished.digested.sha256,
    })
}

/// Reads a blob and checks it on the way.
struct Reader {
    name: String,
    file: File,
    opener: StreamOpener,
    /// Sealed bytes still to come.
    left: u64,
    ended: bool,
    hash: Sha256,
    len: u64,
    expected: Digested,
}

impl Reader {
    fn open(core: &Core, name: &str, expected: Digested) -> Result<Self> {
        let mut file = core.blobs.read(name)?;
        let mut header = [0; STREAM_HEADER];
        file.read_exact(&mut header).map_err(|e| failed(name, e))?;
        let opener = core.sealer.open_stream(name.to_owned(), &header)?;
        let size = file.metadata().map_err(|e| failed(name, e))?.len();
        Ok(Self {
            name: name.to_owned(),
            file,
            opener,
            left: size - STREAM_HEADER as u64,
            ended: false,
            hash: Sha256::new(),
            len: 0,
            expected,
        })
    }

    /// The next chunk; `None` after the last one, which is only given when the whole was as it must be.
    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        if self.ended {
            return Ok(None);
        }
        let size = self.left.min((CHUNK + TAG_LEN) as u64);
        let mut chunk = vec![0; size as usize];
        self.file.read_exact(&mut chunk).map_err(|e| failed(&self.name, e))?;
        self.left -= size;
        self.ended = self.left == 0;
        self.opener.open(&mut chunk, self.ended)?;
        self.hash.update(&chunk);
        self.len += chunk.len() as u64;
        if self.ended {
            self.compare()?;
        }
        Ok(Some(chunk))
    }

    fn compare(&mut self) -> Result<()> {
        let sha256 = hex(&self.hash.finalize_reset());
        if self.len == self.expected.len && sha256 == self.expected.sha256 {
            return Ok(());
        }
        let why = "it has another length or hash than its row says".to_owned();
        Err(StoreError::Damaged { what: format!("blob {}", self.name), why })
    }
}

/// A file that ends too early is damage; anything else may pass.
fn failed(name: &str, error: std::io::Error) -> StoreError {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return StoreError::Damaged { what: format!("blob {name}"), why: "it is cut off".to_owned() };
    }
    unavailable("a snapshot's file", format_args!("{name}: {error}"))
}
