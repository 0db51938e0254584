//! The blob journal: which files of the shared bucket are on their way in or out, so that a crash loses no space and
//! the sweeper no file (T-032, T-053, T-075).
//!
//! A row is `{_id: the blob, state, owner, at}`. A new blob is `pending` from before its first chunk until a document
//! names it; a `superseded` one was about to lose its name when the row was made; a `doomed` one is being deleted.
//! Whoever commits a blob that may be an hour old first sets its row's time, and only a `pending` row can be set: so a
//! blob is either committed or swept.

use std::time::Duration;

use bytes::Bytes;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::{CollectionOptions, ReadConcern};

use futures_util::TryStreamExt;

use super::call::{Tried, again};
use super::gridfs::damaged;
use super::sealed_files::FileWriter;
use super::{BLOB_GRACE, Core, not_now};
use crate::Result;
use crate::seeds::SEED_LIMIT;

/// How old a blob that nobody came back for must be. A commit takes seconds, an upload renews its row.
pub(super) const PENDING_GRACE: Duration = Duration::from_secs(60 * 60);
/// Blobs that one sweep looks at; the rest has the next one.
const SWEPT_AT_ONCE: i64 = 1000;
/// Endings of the names of collections that name blobs, of every prefix and every kind of agent (T-075).
const NAMING: [&str; 3] = ["_seeds", "_session_snapshots", "_processes"];

impl Core {
    /// Notes a blob that is about to be written.
    pub(super) async fn begin_blob(&self, id: ObjectId, owner: &str) -> Tried<()> {
        self.note_blob(id, owner, "pending").await
    }

    /// Notes a blob that is about to lose its name. If it keeps it after all, the sweeper forgets the row.
    pub(super) async fn supersede_blob(&self, id: ObjectId, owner: &str) -> Tried<()> {
        self.note_blob(id, owner, "superseded").await
    }

    async fn note_blob(&self, id: ObjectId, owner: &str, state: &str) -> Tried<()> {
        let note =
            vec![doc! { "$set": { "state": state, "owner": { "$literal": owner }, "at": self.now() } }];
        again(|| async { self.journal.update_one(doc! { "_id": id }, note.clone()).upsert(true).await })
            .await?;
        Ok(())
    }

    /// Says that a blob on its way in is still wanted. An error when the sweeper has it.
    pub(super) async fn keep_blob(&self, id: ObjectId) -> Tried<()> {
        let pending = doc! { "_id": id, "state": "pending" };
        let touch = vec![doc! { "$set": { "at": self.now() } }];
        let kept = again(|| async { self.journal.update_one(pending.clone(), touch.clone()).await }).await?;
        if kept.matched_count == 1 {
            return Ok(());
        }
        Err(not_now("storing a blob", format_args!("blob {id} took too long and was swept")).into())
    }

    /// Forgets a blob that a document names now. If that fails, the sweeper does it.
    pub(super) async fn settle_blob(&self, id: ObjectId) {
        let pending = doc! { "_id": id, "state": "pending" };
        if let Err(error) = self.journal.delete_one(pending).await {
            tracing::debug!(blob = %id, error = %error.kind, "the sweeper will forget this blob");
        }
    }

    /// Deletes what there is of a blob that nobody will name. Its row stays: a write that is still under way may
    /// arrive later, and the sweeper comes back for it.
    pub(super) async fn abandon_blob(&self, id: ObjectId) {
        let what = "deleting an unused blob";
        if let Err(error) = self.limited(what, self.limit, self.delete_file(id)).await {
            tracing::debug!(blob = %id, %error, "the sweeper will delete this blob");
        }
    }

    /// Stores a login's archive as a blob, and reads it back: a document never names bytes that nobody has seen there.
    pub(super) async fn store_login(&self, id: ObjectId, owner: &str, archive: Bytes) -> Tried<()> {
        self.begin_blob(id, owner).await?;
        let file = FileWriter::begin(self, id)?.write(self, archive.clone()).await?;
        // Without metadata (but for the key), as Python's own host-free writes have it (T-011): no process of theirs
        // made it.
        file.finish(self, "seed", None).await?;
        if self.read_file(id, SEED_LIMIT).await? != archive {
            return Err(damaged(id, "it does not read back as it was written").into());
        }
        Ok(())
    }

    /// See [`super::Mongo::sweep`].
    pub(super) async fn sweep(&self) -> Result<usize> {
        let due = self.limited("sweeping", self.limit, self.due()).await?;
        let mut deleted = 0;
        for row in due {
            deleted += usize::from(self.limited("sweeping", self.limit * 3, self.sweep_one(row)).await?);
        }
        self.limited("sweeping", self.limit * 3, self.sweep_notes()).await?;
        Ok(deleted)
    }

    /// Forgets what we noted of archives that are gone: Python prunes rows and their archives (T-163), and knows nothing
    /// of our notes. A note is made when its archive is whole, so one without an archive is of no use any more.
    async fn sweep_notes(&self) -> Tried<()> {
        let gone = [
            doc! { "$lookup": { "from": "fs.files", "localField": "_id", "foreignField": "_id", "as": "file" } },
            doc! { "$match": { "file": [] } },
            doc! { "$limit": SWEPT_AT_ONCE },
            doc! { "$project": { "_id": 1 } },
        ];
        let gone: Vec<Document> = self.notes.aggregate(gone).await?.try_collect().await?;
        let ids: Vec<_> = gone.iter().filter_map(|note| note.get("_id").cloned()).collect();
        if !ids.is_empty() {
            self.notes.delete_many(doc! { "_id": { "$in": ids } }).await?;
        }
        Ok(())
    }

    async fn due(&self) -> Tried<Vec<Document>> {
        let old = |grace: Duration| {
            doc! { "$lte": ["$at", { "$subtract": [self.now(), grace.as_millis() as i64] }] }
        };
        let due = doc! { "$or": [
            { "state": "pending", "$expr": old(PENDING_GRACE) },
            { "state": "superseded", "$expr": old(BLOB_GRACE) },
            // A sweeper that died left it.
            { "state": "doomed" },
        ] };
        Ok(self.journal.find(due).sort(doc! { "at": 1 }).limit(SWEPT_AT_ONCE).await?.try_collect().await?)
    }

    /// Deletes a blob that nothing names (INV-54), and answers whether it did.
    async fn sweep_one(&self, row: Document) -> Tried<bool> {
        let Ok(id) = row.get_object_id("_id") else { return Ok(false) };
        // From here on nobody commits it. One that changed meanwhile is somebody's.
        let same: Document = ["_id", "state", "at"]
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), row.get(key)?.clone())))
            .collect();
        let doom = doc! { "$set": { "state": "doomed" } };
        if self.journal.update_one(same, doom).await?.matched_count == 0 {
            return Ok(false);
        }
        let named = self.is_named(id).await?;
        if !named {
            self.delete_file(id).await?;
            self.notes.delete_one(doc! { "_id": id }).await?;
        }
        self.journal.delete_one(doc! { "_id": id, "state": "doomed" }).await?;
        Ok(!named)
    }

    /// Whether any document names this blob: as the primary has it now, or as the majority has it, because either may
    /// be what is left after a failover.
    async fn is_named(&self, id: ObjectId) -> Tried<bool> {
        let by = |field: &str| doc! { field: id };
        let fields = ["blobId", "workdirBlobId", "sessionBlobId", "result.fileId"];
        let names = Bson::Array(fields.map(|field| by(field).into()).to_vec());
        let filter = doc! { "$or": names };
        for collection in self.db.list_collection_names().await? {
            if !NAMING.iter().any(|ending| collection.ends_with(ending)) {
                continue;
            }
            for concern in [ReadConcern::local(), ReadConcern::majority()] {
                let options = CollectionOptions::builder().read_concern(concern).build();
                let collection = self.db.collection_with_options::<Document>(&collection, options);
                let found = collection.find_one(filter.clone()).projection(doc! { "_id": 1 }).await?;
                if found.is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
