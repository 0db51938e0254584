//! An archive on its way out of the bucket, checked against what was noted of it.

use bytes::Bytes;
use mongodb::bson::doc;
use mongodb::bson::oid::ObjectId;
use sha2::{Digest, Sha256};

use super::CODEC;
use crate::mongo::Core;
use crate::mongo::call::{Tried, again};
use crate::mongo::gridfs::{damaged, number};
use crate::mongo::sealed_files::FileReader;
use crate::seed_archive::hex;
use crate::{SnapshotId, StoreError};

/// Largest piece that a reader is given, whatever the chunks of the file are.
const PIECE: usize = 1 << 20;
/// The largest chunk that is hashed where it was read: a quarter of a MiB takes no longer than handing it to another
/// thread.
const HASHED_HERE: usize = 256 << 10;

impl Core {
    /// Opens the archive of a snapshot.
    pub(super) async fn reader(&self, id: &SnapshotId) -> Tried<Reader> {
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
}

/// What an archive must be.
pub(super) struct Expected {
    pub(super) len: u64,
    /// `None` for one that nobody has read whole yet.
    pub(super) sha256: Option<String>,
}

/// Reads an archive and checks it on the way.
pub(super) struct Reader {
    blob: ObjectId,
    file: FileReader,
    hash: Sha256,
    /// What is left of a chunk that was larger than a piece.
    rest: Bytes,
    expected: Expected,
}

impl Reader {
    pub(super) async fn open(core: &Core, blob: ObjectId, expected: Expected) -> Tried<Self> {
        let file = FileReader::open(core, blob).await?;
        if file.len() != expected.len {
            return Err(other_than_noted(blob).into());
        }
        Ok(Self { blob, file, hash: Sha256::new(), rest: Bytes::new(), expected })
    }

    async fn first(core: &Core, blob: ObjectId) -> Tried<Self> {
        let file = FileReader::open(core, blob).await?;
        let expected = Expected { len: file.len(), sha256: None };
        Ok(Self { blob, file, hash: Sha256::new(), rest: Bytes::new(), expected })
    }

    /// The next piece; `None` after the last one, which is only answered when the whole was as it must be.
    pub(super) async fn next(&mut self, core: &Core) -> Tried<Option<Bytes>> {
        if self.rest.is_empty() {
            let Some(chunk) = self.file.next(core).await? else {
                return self.end(core).await.map(|()| None);
            };
            self.rest = chunk.clone();
            if chunk.len() <= HASHED_HERE {
                self.hash.update(&chunk);
            } else {
                let mut hash = std::mem::take(&mut self.hash);
                let hashing = move || {
                    hash.update(&chunk);
                    Ok(hash)
                };
                self.hash = core.aside("hashing a snapshot", hashing).await?;
            }
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
    damaged(blob, "it has another length or hash than was noted of it")
}
