//! Snapshots: an archive in the bucket, a row that Python knows, and a note with what only we know (T-159…T-168).
//!
//! A row that Python wrote has no note: its archive is gzip, its length is the file's, and its hash is noted when the
//! archive has been read whole for the first time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, doc};
use sha2::{Digest, Sha256};

use super::blobs::PENDING_GRACE;
use super::call::{Tried, again, is_duplicate};
use super::documents::date;
use super::gridfs::{Download, Upload, number};
use super::{Core, Mongo, not_now};
use crate::clock::from_millis;
use crate::seed_archive::{hex, sha256_hex};
use crate::{
    NewSnapshot, Result, SNAPSHOTS_KEPT, SessionId, SnapshotId, SnapshotRow, SnapshotWriter, Snapshots,
    StoreError,
};

/// The slowest way to the database that a commit waits for, in bytes a second: the archive is read back.
const SLOWEST: u64 = 16 << 20;
/// Largest piece that a reader is given, whatever the chunks of the file are.
const PIECE: usize = 1 << 20;
/// How archives are compressed that Python reads too.
const CODEC: &str = "gzip";

#[async_trait]
impl Snapshots for Mongo {
    fn codec(&self) -> &'static str {
        CODEC
    }

    async fn begin(&self) -> Result<Box<dyn SnapshotWriter>> {
        let core = &self.core;
        let id = ObjectId::new();
        core.limited("beginning a snapshot", core.limit, core.begin_blob(id, &core.service)).await?;
        let upload = Some(Upload::begin(id));
        let writer = Writer { store: self.clone(), id, upload, hash: Sha256::new(), kept: Instant::now() };
        Ok(Box::new(writer))
    }

    async fn list(&self, session: &SessionId) -> Result<Vec<SnapshotRow>> {
        let core = &self.core;
        let of_session = doc! { "processId": session.as_str() };
        core.limited("listing snapshots", core.limit, core.snapshot_rows(of_session)).await
    }

    async fn get(&self, id: &SnapshotId) -> Result<Option<SnapshotRow>> {
        let Some(object) = id.object() else { return Ok(None) };
        let core = &self.core;
        let this = doc! { "_id": ObjectId::from_bytes(object) };
        Ok(core.limited("reading a snapshot", core.limit, core.snapshot_rows(this)).await?.pop())
    }

    async fn open(&self, id: &SnapshotId) -> Result<BoxStream<'static, Result<Bytes>>> {
        let core = &self.core;
        let reader = core.limited("reading a snapshot", core.limit, core.reader(id)).await?;
        let store = self.clone();
        let chunks = stream::try_unfold((store, reader), |(store, mut reader)| async move {
            let core = &store.core;
            let chunk = core.limited("reading a snapshot", core.limit, reader.next(core)).await?;
            Ok(chunk.map(|chunk| (chunk, (store, reader))))
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
        let core = &self.core;
        let delete = async {
            let of_session = doc! { "processId": session.as_str() };
            core.delete_rows(of_session, 0, session).await
        };
        core.limited("deleting snapshots", core.limit, delete).await
    }
}

/// An archive on its way in. Dropping it deletes what has arrived.
struct Writer {
    store: Mongo,
    id: ObjectId,
    /// `None` after a write that failed, or was given up, half way.
    upload: Option<Upload>,
    hash: Sha256,
    /// When the journal last heard that the archive is still coming.
    kept: Instant,
}

#[async_trait]
impl SnapshotWriter for Writer {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        let core = &self.store.core;
        let mut upload = self.upload.take().ok_or_else(broken)?;
        let mut hash = std::mem::take(&mut self.hash);
        let write = async {
            if self.kept.elapsed() > PENDING_GRACE / 4 {
                core.keep_blob(upload.id()).await?;
                self.kept = Instant::now();
            }
            let hashed = chunk.clone();
            let hash = core.aside("hashing a snapshot", move || {
                hash.update(&hashed);
                Ok(hash)
            });
            let hash = hash.await?;
            upload.write(core, &chunk).await?;
            Ok((upload, hash))
        };
        let (upload, hash) = core.limited("writing a snapshot", core.limit, write).await?;
        (self.upload, self.hash) = (Some(upload), hash);
        Ok(())
    }

    async fn commit(mut self: Box<Self>, about: NewSnapshot) -> Result<SnapshotRow> {
        let upload = self.upload.take().ok_or_else(broken)?;
        let sha256 = hex(&std::mem::take(&mut self.hash).finalize());
        let core = &self.store.core;
        let limit = core.limit * 3 + Duration::from_secs(upload.len() / SLOWEST);
        let row = core.limited("committing a snapshot", limit, core.commit(upload, sha256, about)).await;
        if row.is_ok() {
            // Named now: nothing to delete when this is dropped.
            self.id = ObjectId::from_bytes([0; 12]);
        }
        row
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let id = self.id;
        if id == ObjectId::from_bytes([0; 12]) {
            return;
        }
        let store = self.store.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move { store.core.abandon_unnamed(id).await })),
            Err(_) => tracing::debug!(blob = %id, "the sweeper will delete this blob"),
        }
    }
}

fn broken() -> StoreError {
    not_now("writing a snapshot", "an earlier write failed")
}

impl Core {
    async fn commit(&self, upload: Upload, sha256: String, about: NewSnapshot) -> Tried<SnapshotRow> {
        let blob = upload.id();
        let metadata = doc! {
            "processId": process_id(&about.session), "prefix": &self.snapshot_prefix, "name": "workdir",
        };
        let len = upload.finish(self, "workdir", Some(metadata)).await?;
        let mut whole = Reader::open(self, blob, Expected { len, sha256: Some(sha256.clone()) }).await?;
        while whole.next(self).await?.is_some() {}
        self.keep_blob(blob).await?;
        self.note(blob, &about.codec, about.seed.as_ref().map(|seed| seed.as_str()), len, &sha256).await?;

        let newest = doc! { "processId": about.session.as_str() };
        let newest =
            again(|| async { self.snapshots.find_one(newest.clone()).sort(doc! { "capturedAt": -1 }).await });
        let newest =
            newest.await?.and_then(|row| Some(row.get_datetime("capturedAt").ok()?.timestamp_millis()));
        let now = self.client_now();
        let captured = newest.map_or(now, |newest| now.max(newest + 1));
        let id = ObjectId::new();
        let row = doc! {
            "_id": id,
            "processId": about.session.as_str(),
            "capturedAt": date(captured),
            "endState": &about.end_state,
            "workdirBlobId": blob,
            "sessionId": about.thread_id.as_deref(),
        };
        again(|| async {
            match self.snapshots.insert_one(&row).await {
                // The id is ours: an earlier try arrived, and its answer did not.
                Err(error) if is_duplicate(&error) => Ok(()),
                done => done.map(drop),
            }
        })
        .await?;
        self.settle_blob(blob).await;
        // The snapshot is stored; what is left of older ones goes with the next.
        let of_session = doc! { "processId": about.session.as_str() };
        if let Err(failure) = self.delete_rows(of_session, SNAPSHOTS_KEPT as u64, &about.session).await {
            let error = failure.named("pruning snapshots");
            tracing::warn!(session = %about.session, %error, "older snapshots were not pruned");
        }
        Ok(SnapshotRow {
            id: SnapshotId::of_object(id.bytes()),
            session: about.session,
            captured_at: from_millis(captured),
            end_state: about.end_state,
            thread_id: about.thread_id,
            codec: about.codec,
            seed: about.seed,
            len,
            sha256,
        })
    }

    /// Deletes the rows that this filter finds, but for the newest `kept`. Their blobs are journalled before.
    async fn delete_rows(&self, filter: Document, kept: u64, owner: &SessionId) -> Tried<()> {
        let rows = again(|| async {
            let rows = self.snapshots.find(filter.clone()).sort(newest_first()).skip(kept);
            rows.projection(doc! { "workdirBlobId": 1 }).await?.try_collect::<Vec<_>>().await
        });
        let rows = rows.await?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in &rows {
            if let Ok(blob) = row.get_object_id("workdirBlobId") {
                self.supersede_blob(blob, owner.as_str()).await?;
            }
        }
        let ids: Vec<Bson> = rows.into_iter().filter_map(|mut row| row.remove("_id")).collect();
        let these = doc! { "_id": { "$in": ids } };
        again(|| async { self.snapshots.delete_many(these.clone()).await }).await?;
        Ok(())
    }

    async fn note(
        &self,
        blob: ObjectId,
        codec: &str,
        seed: Option<&str>,
        len: u64,
        sha256: &str,
    ) -> Tried<()> {
        let note = doc! { "$set": { "codec": codec, "seed": seed, "len": len as i64, "sha256": sha256 } };
        again(|| async { self.notes.update_one(doc! { "_id": blob }, note.clone()).upsert(true).await })
            .await?;
        Ok(())
    }

    /// Rows with their notes, newest first. One that belongs to no session of ours (Python's ids are other ones)
    /// cannot be shown.
    async fn snapshot_rows(&self, filter: Document) -> Tried<Vec<SnapshotRow>> {
        let rows = again(|| async {
            self.snapshots.find(filter.clone()).sort(newest_first()).await?.try_collect::<Vec<_>>().await
        });
        let rows = rows.await?;
        let blobs: Vec<_> = rows.iter().filter_map(|row| row.get_object_id("workdirBlobId").ok()).collect();
        if blobs.is_empty() {
            return Ok(Vec::new());
        }
        let these = doc! { "_id": { "$in": blobs } };
        let notes =
            again(|| async { self.notes.find(these.clone()).await?.try_collect::<Vec<_>>().await }).await?;
        let files = again(|| async {
            let files = self.files.find(these.clone()).projection(doc! { "length": 1 });
            files.await?.try_collect::<Vec<_>>().await
        });
        let files = files.await?;
        let (notes, files) = (by_id(notes), by_id(files));
        Ok(rows.iter().filter_map(|row| snapshot_row(row, &notes, &files)).collect())
    }

    async fn reader(&self, id: &SnapshotId) -> Tried<Reader> {
        let not_found = || StoreError::NotFound { what: "snapshot", id: id.to_string() };
        let object = id.object().map(ObjectId::from_bytes).ok_or_else(not_found)?;
        let row = again(|| async { self.snapshots.find_one(doc! { "_id": object }).await }).await?;
        let row = row.ok_or_else(not_found)?;
        let blob = row.get_object_id("workdirBlobId").map_err(|_| StoreError::Damaged {
            what: format!("snapshot {id}"),
            why: "it names no archive".to_owned(),
        })?;
        let note = again(|| async { self.notes.find_one(doc! { "_id": blob }).await }).await?;
        let expected = note.and_then(|note| {
            Some(Expected {
                len: number(&note, "len")?,
                sha256: note.get_str("sha256").ok().map(str::to_owned),
            })
        });
        match expected {
            Some(expected) => Reader::open(self, blob, expected).await,
            None => Reader::first(self, blob).await,
        }
    }

    /// Deletes a blob whose writer is gone, unless a row names it after all: a commit whose answer was lost.
    async fn abandon_unnamed(&self, blob: ObjectId) {
        let named = async {
            let row = doc! { "workdirBlobId": blob };
            Ok(again(|| async { self.snapshots.find_one(row.clone()).await }).await?.is_some())
        };
        match self.limited("looking for a snapshot", self.limit, named).await {
            Ok(false) => self.abandon_blob(blob).await,
            Ok(true) => self.settle_blob(blob).await,
            Err(error) => tracing::debug!(%blob, %error, "the sweeper will delete this blob"),
        }
    }
}

fn newest_first() -> Document {
    doc! { "capturedAt": -1, "_id": -1 }
}

fn by_id(documents: Vec<Document>) -> HashMap<ObjectId, Document> {
    documents
        .into_iter()
        .filter_map(|document| Some((document.get_object_id("_id").ok()?, document)))
        .collect()
}

fn snapshot_row(
    row: &Document,
    notes: &HashMap<ObjectId, Document>,
    files: &HashMap<ObjectId, Document>,
) -> Option<SnapshotRow> {
    let blob = row.get_object_id("workdirBlobId").ok()?;
    let note = notes.get(&blob);
    let noted = |key: &str| note.and_then(|note| note.get_str(key).ok());
    let len = note.and_then(|note| number(note, "len"));
    Some(SnapshotRow {
        id: SnapshotId::of_object(row.get_object_id("_id").ok()?.bytes()),
        session: row.get_str("processId").ok()?.parse().ok()?,
        captured_at: from_millis(row.get_datetime("capturedAt").map_or(0, |at| at.timestamp_millis())),
        end_state: row.get_str("endState").unwrap_or("done").to_owned(),
        thread_id: row.get_str("sessionId").ok().map(str::to_owned),
        codec: noted("codec").unwrap_or(CODEC).to_owned(),
        seed: noted("seed").and_then(|seed| seed.parse().ok()),
        len: len.or_else(|| number(files.get(&blob)?, "length")).unwrap_or(0),
        sha256: noted("sha256").unwrap_or_default().to_owned(),
    })
}

/// What stands for the process in a file's metadata (T-168). We have no process documents; Python only shows it.
fn process_id(session: &SessionId) -> String {
    sha256_hex(session.as_str().as_bytes())[..24].to_owned()
}

/// What an archive must be.
struct Expected {
    len: u64,
    /// `None` for one that nobody has read whole yet.
    sha256: Option<String>,
}

/// Reads an archive and checks it on the way.
struct Reader {
    blob: ObjectId,
    file: Download,
    hash: Sha256,
    /// What is left of a chunk that was larger than a piece.
    rest: Bytes,
    expected: Expected,
}

impl Reader {
    async fn open(core: &Core, blob: ObjectId, expected: Expected) -> Tried<Self> {
        let file = Download::open(core, blob).await?;
        if file.length() != expected.len {
            return Err(other_than_noted(blob).into());
        }
        Ok(Self { blob, file, hash: Sha256::new(), rest: Bytes::new(), expected })
    }

    async fn first(core: &Core, blob: ObjectId) -> Tried<Self> {
        let file = Download::open(core, blob).await?;
        let expected = Expected { len: file.length(), sha256: None };
        Ok(Self { blob, file, hash: Sha256::new(), rest: Bytes::new(), expected })
    }

    /// The next piece; `None` after the last one, which is only answered when the whole was as it must be.
    async fn next(&mut self, core: &Core) -> Tried<Option<Bytes>> {
        if self.rest.is_empty() {
            let Some(chunk) = self.file.next().await? else {
                return self.end(core).await.map(|()| None);
            };
            // Here: a quarter of a MiB takes no longer than handing it to another thread.
            self.hash.update(&chunk);
            self.rest = chunk;
        }
        Ok(Some(self.rest.split_to(self.rest.len().min(PIECE))))
    }

    async fn end(&mut self, core: &Core) -> Tried<()> {
        let sha256 = hex(&self.hash.finalize_reset());
        match &self.expected.sha256 {
            Some(expected) if *expected == sha256 => Ok(()),
            Some(_) => Err(other_than_noted(self.blob).into()),
            None => core.note(self.blob, CODEC, None, self.expected.len, &sha256).await,
        }
    }
}

fn other_than_noted(blob: ObjectId) -> StoreError {
    super::gridfs::damaged(blob, "it has another length or hash than was noted of it")
}
