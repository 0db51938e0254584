//! Files of the bucket `fs`, written and read as the GridFS specification has it.
//!
//! Not by the driver's streams: their reader fetches 16 MiB at a time, their writer fixes a file's metadata before the
//! first byte, and what they clean up when dropped nobody hears of.

use bytes::{Bytes, BytesMut};
use mongodb::Cursor;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Document, doc};
use serde::Serialize;

use super::Core;
use super::call::{Tried, again};
use crate::StoreError;
use crate::seeds::KEY_NOTE;

/// Length of a chunk but the last (T-010).
const CHUNK: usize = 261_120;
/// Chunks that are sent, or asked for, at once: enough that the round trip costs little, little enough to hold in
/// memory for each of several archives.
const BATCH: usize = 8;

#[derive(Serialize)]
struct Chunk {
    _id: ObjectId,
    files_id: ObjectId,
    n: i32,
    data: Binary,
}

/// A file as it is written. There is no file before [`Upload::finish`], only chunks.
pub(super) struct Upload {
    id: ObjectId,
    sent: i32,
    buffer: BytesMut,
}

impl Upload {
    /// Begins the file with this id and these bytes. The caller has it in the journal.
    pub(super) fn begin(id: ObjectId, header: &[u8]) -> Self {
        Self { id, sent: 0, buffer: header.into() }
    }

    pub(super) fn id(&self) -> ObjectId {
        self.id
    }

    /// Bytes given so far.
    pub(super) fn len(&self) -> u64 {
        self.sent as u64 * CHUNK as u64 + self.buffer.len() as u64
    }

    /// Takes bytes, and sends what makes whole batches.
    pub(super) async fn write(&mut self, core: &Core, bytes: &[u8]) -> Tried<()> {
        self.buffer.extend_from_slice(bytes);
        while self.buffer.len() >= CHUNK * BATCH {
            let batch = self.buffer.split_to(CHUNK * BATCH);
            self.send(core, &batch).await?;
        }
        Ok(())
    }

    async fn send(&mut self, core: &Core, bytes: &[u8]) -> Tried<()> {
        let chunks: Vec<_> = (self.sent..)
            .zip(bytes.chunks(CHUNK))
            .map(|(n, piece)| Chunk {
                _id: ObjectId::new(),
                files_id: self.id,
                n,
                data: Binary { subtype: BinarySubtype::Generic, bytes: piece.to_vec() },
            })
            .collect();
        core.chunks.clone_with_type::<Chunk>().insert_many(&chunks).await?;
        self.sent += chunks.len() as i32;
        Ok(())
    }

    /// Writes what is left, then the file's document.
    pub(super) async fn finish(mut self, core: &Core, name: &str, metadata: Option<Document>) -> Tried<()> {
        let len = self.len();
        let rest = std::mem::take(&mut self.buffer);
        if !rest.is_empty() {
            self.send(core, &rest).await?;
        }
        let mut file = doc! {
            "_id": self.id,
            "filename": name,
            "chunkSize": CHUNK as i32,
            "length": len as i64,
            "uploadDate": DateTime::from_millis(core.client_now()),
        };
        if let Some(metadata) = metadata {
            file.insert("metadata", metadata);
        }
        core.files.insert_one(file).await?;
        Ok(())
    }
}

/// A file as it is read.
pub(super) struct Download {
    id: ObjectId,
    cursor: Cursor<Document>,
    key: Option<String>,
    length: u64,
    chunk: u64,
    next: i64,
    read: u64,
}

impl Download {
    /// Opens a file. A missing one is damage: a document named it.
    pub(super) async fn open(core: &Core, id: ObjectId) -> Tried<Self> {
        let file = again(|| async { core.files.find_one(doc! { "_id": id }).await }).await?;
        let file = file.ok_or_else(|| damaged(id, "it is missing"))?;
        let sizes = number(&file, "length").zip(number(&file, "chunkSize").filter(|size| *size > 0));
        let (length, chunk) = sizes.ok_or_else(|| damaged(id, "its length is not readable"))?;
        let key = key_of(&file).map(str::to_owned);
        let cursor = again(|| async {
            let chunks = core.chunks.find(doc! { "files_id": id }).projection(doc! { "n": 1, "data": 1 });
            chunks.sort(doc! { "n": 1 }).batch_size(BATCH as u32).await
        });
        Ok(Self { id, cursor: cursor.await?, key, length, chunk, next: 0, read: 0 })
    }

    pub(super) fn id(&self) -> ObjectId {
        self.id
    }

    /// The key that the file is sealed with, if it is sealed.
    pub(super) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The file's length in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The next chunk; `None` after the last one of a whole file.
    pub(super) async fn next(&mut self) -> Tried<Option<Bytes>> {
        if !self.cursor.advance().await? {
            if self.read == self.length {
                return Ok(None);
            }
            return Err(damaged(self.id, &format!("chunk {} is missing", self.next)).into());
        }
        let mut chunk = self.cursor.deserialize_current()?;
        let due = (self.length - self.read).min(self.chunk);
        let (n, data) = (number(&chunk, "n"), chunk.remove("data"));
        let Some(Bson::Binary(Binary { bytes, .. })) = data else {
            return Err(damaged(self.id, "a chunk holds no bytes").into());
        };
        if n != Some(self.next as u64) || bytes.len() as u64 != due || due == 0 {
            return Err(damaged(self.id, &format!("chunk {} is missing or not whole", self.next)).into());
        }
        self.next += 1;
        self.read += due;
        Ok(Some(bytes.into()))
    }
}

impl Core {
    /// Deletes a file, or what there is of it; absent is fine. The document first: a reader that comes later finds no
    /// file rather than half of one.
    pub(super) async fn delete_file(&self, id: ObjectId) -> Tried<()> {
        again(|| async { self.files.delete_one(doc! { "_id": id }).await }).await?;
        again(|| async { self.chunks.delete_many(doc! { "files_id": id }).await }).await?;
        Ok(())
    }
}

/// The key that stands in a document's, or a file's, `metadata` (T-072).
pub(super) fn key_of(document: &Document) -> Option<&str> {
    match document.get_document("metadata").ok()?.get(KEY_NOTE)? {
        Bson::Null => None,
        key => Some(key.as_str().unwrap_or("unknown")),
    }
}

/// A whole number, of whichever BSON type a peer wrote it in.
pub(super) fn number(document: &Document, field: &str) -> Option<u64> {
    match document.get(field)? {
        Bson::Int32(n) => u64::try_from(*n).ok(),
        Bson::Int64(n) => u64::try_from(*n).ok(),
        Bson::Double(n) if n.fract() == 0.0 && *n >= 0.0 => Some(*n as u64),
        _ => None,
    }
}

/// The error for a blob that is not what it must be.
pub(super) fn damaged(id: ObjectId, why: &str) -> StoreError {
    StoreError::Damaged { what: format!("blob {id}"), why: why.to_owned() }
}
