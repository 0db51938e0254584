//! Snapshots: an archive in the bucket, a row that Python knows, and a note with what only we know (T-159…T-168).
//!
//! A row that Python wrote has no note: its archive is gzip, its length is the file's, and its hash is noted when the
//! archive has been read whole for the first time.

mod reader;
mod writer;

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, doc};

use super::call::{Tried, again};
use super::gridfs::{key_of, number};
use super::{Core, Mongo};
use crate::clock::from_millis;
use crate::sealed::plain_len;
use crate::{Result, SessionId, SnapshotId, SnapshotRow, SnapshotWriter, Snapshots};
use writer::Writer;

/// How archives are compressed that Python reads too.
const CODEC: &str = "gzip";

#[async_trait]
impl Snapshots for Mongo {
    fn codec(&self) -> &'static str {
        CODEC
    }

    async fn begin(&self) -> Result<Box<dyn SnapshotWriter>> {
        let core = &self.core;
        let writer = core.limited("beginning a snapshot", core.limit, Writer::begin(self)).await?;
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

impl Core {
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

    /// Notes what Python's row has no place for.
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
            let shown = doc! { "length": 1, "metadata": 1 };
            let files = self.files.find(these.clone()).projection(shown);
            files.await?.try_collect::<Vec<_>>().await
        });
        let files = files.await?;
        let (notes, files) = (by_id(notes), by_id(files));
        Ok(rows.iter().filter_map(|row| snapshot_row(row, &notes, &files)).collect())
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
        len: len.or_else(|| plain_length(files.get(&blob)?)).unwrap_or(0),
        sha256: noted("sha256").unwrap_or_default().to_owned(),
    })
}

/// The length of an archive of which nothing is noted.
fn plain_length(file: &Document) -> Option<u64> {
    let stored = number(file, "length")?;
    if key_of(file).is_some() { plain_len(stored) } else { Some(stored) }
}
