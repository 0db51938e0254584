//! An archive on its way into the bucket.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use mongodb::bson::doc;
use mongodb::bson::oid::ObjectId;
use sha2::{Digest, Sha256};

use super::reader::{Expected, Reader};
use crate::clock::from_millis;
use crate::mongo::blobs::PENDING_GRACE;
use crate::mongo::call::{Tried, again, is_duplicate};
use crate::mongo::documents::date;
use crate::mongo::sealed_files::FileWriter;
use crate::mongo::{Core, Mongo, not_now};
use crate::seed_archive::{hex, sha256_hex};
use crate::{
    NewSnapshot, Result, SNAPSHOTS_KEPT, SessionId, SnapshotId, SnapshotRow, SnapshotWriter, StoreError,
};

/// The slowest way to the database that a commit waits for, in bytes a second: the archive is read back.
const SLOWEST: u64 = 16 << 20;

/// An archive on its way in. Dropping it deletes what has arrived.
pub(super) struct Writer {
    store: Mongo,
    id: ObjectId,
    /// `None` after a write that failed, or was given up, half way.
    upload: Option<FileWriter>,
    hash: Sha256,
    /// When the journal last heard that the archive is still coming.
    kept: Instant,
}

impl Writer {
    /// Begins an archive. The journal has it first.
    pub(super) async fn begin(store: &Mongo) -> Tried<Self> {
        let (core, id) = (&store.core, ObjectId::new());
        core.begin_blob(id, &core.service).await?;
        let upload = Some(FileWriter::begin(core, id)?);
        Ok(Self { store: store.clone(), id, upload, hash: Sha256::new(), kept: Instant::now() })
    }
}

#[async_trait]
impl SnapshotWriter for Writer {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        let core = &self.store.core;
        let upload = self.upload.take().ok_or_else(broken)?;
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
            Ok((upload.write(core, chunk).await?, hash))
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
    async fn commit(&self, upload: FileWriter, sha256: String, about: NewSnapshot) -> Tried<SnapshotRow> {
        let (blob, len) = (upload.id(), upload.len());
        let metadata = doc! {
            "processId": process_id(&about.session), "prefix": &self.snapshot_prefix, "name": "workdir",
        };
        upload.finish(self, "workdir", Some(metadata)).await?;
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

/// What stands for the process in a file's metadata (T-168). We have no process documents; Python only shows it.
fn process_id(session: &SessionId) -> String {
    sha256_hex(session.as_str().as_bytes())[..24].to_owned()
}
