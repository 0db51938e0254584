//! Files of the bucket as the rest of the store sees them: plain bytes in and out, sealed in between or not.
//!
//! Whether a file is sealed, and with which key, stands in its own `metadata.enc`: a document may be pointed to another
//! file by somebody who knows nothing of keys.

use bytes::{Bytes, BytesMut};
use mongodb::bson::Document;
use mongodb::bson::oid::ObjectId;

use super::Core;
use super::call::Tried;
use super::gridfs::{Download, Upload, damaged};
use crate::sealed::{CHUNK, STREAM_HEADER, StreamOpener, StreamSealer, TAG_LEN, plain_len};
use crate::seeds::KEY_NOTE;
use crate::{Result, StoreError};

/// A file as it is written. Each step takes it and gives it back, so that after a failure nobody goes on with half of
/// it.
pub(super) struct FileWriter {
    upload: Upload,
    seal: Option<Sealing>,
    len: u64,
}

struct Sealing {
    key: String,
    sealer: StreamSealer,
    /// What waits for its chunk; at most one chunk between two writes.
    buffer: Vec<u8>,
}

impl FileWriter {
    /// Begins the file with this id, sealed if the store says so. The caller has it in the journal.
    pub(super) fn begin(core: &Core, id: ObjectId) -> Result<Self> {
        let Some((key, sealer)) = core.archive_keys.writing() else {
            return Ok(Self { upload: Upload::begin(id, &[]), seal: None, len: 0 });
        };
        let sealer = sealer.begin_stream(bound_to(id))?;
        let upload = Upload::begin(id, &sealer.header());
        Ok(Self { upload, seal: Some(Sealing { key: key.to_owned(), sealer, buffer: Vec::new() }), len: 0 })
    }

    pub(super) fn id(&self) -> ObjectId {
        self.upload.id()
    }

    /// Plain bytes given so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Takes bytes, and sends what makes whole batches.
    pub(super) async fn write(mut self, core: &Core, bytes: Bytes) -> Tried<Self> {
        self.len += bytes.len() as u64;
        let Some(mut sealing) = self.seal.take() else {
            self.upload.write(core, &bytes).await?;
            return Ok(self);
        };
        let (sealing, sealed) = core
            .aside("sealing an archive", move || {
                let sealed = sealing.push(&bytes)?;
                Ok((sealing, sealed))
            })
            .await?;
        self.upload.write(core, &sealed).await?;
        Ok(Self { seal: Some(sealing), ..self })
    }

    /// Writes what is left, then the file's document.
    pub(super) async fn finish(
        mut self,
        core: &Core,
        name: &str,
        mut metadata: Option<Document>,
    ) -> Tried<()> {
        if let Some(Sealing { key, mut sealer, mut buffer }) = self.seal {
            let seal = move || sealer.seal(&mut buffer, true).map(|()| buffer);
            let last = core.aside("sealing an archive", seal).await?;
            self.upload.write(core, &last).await?;
            metadata.get_or_insert_default().insert(KEY_NOTE, key);
        }
        self.upload.finish(core, name, metadata).await
    }
}

impl Sealing {
    fn push(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut sealed = Vec::with_capacity(bytes.len() + CHUNK + TAG_LEN);
        for piece in bytes.chunks(CHUNK) {
            self.buffer.extend_from_slice(piece);
            // The last chunk has a mark, so a whole one waits until it is known whether anything follows.
            if self.buffer.len() > CHUNK {
                let rest = self.buffer.split_off(CHUNK);
                self.sealer.seal(&mut self.buffer, false)?;
                sealed.extend_from_slice(&self.buffer);
                self.buffer = rest;
            }
        }
        Ok(sealed)
    }
}

/// A file as it is read.
pub(super) struct FileReader {
    file: Download,
    opening: Option<Opening>,
    len: u64,
}

struct Opening {
    /// `None` after a chunk that did not open.
    opener: Option<StreamOpener>,
    buffer: BytesMut,
    /// Sealed bytes that no chunk was made of yet.
    left: u64,
}

impl FileReader {
    /// Opens a file. A missing one is damage, since a document named it; one whose key is not at hand is
    /// [`StoreError::Locked`].
    pub(super) async fn open(core: &Core, id: ObjectId) -> Tried<Self> {
        let mut file = Download::open(core, id).await?;
        let Some(key) = file.key() else {
            let len = file.length();
            return Ok(Self { file, opening: None, len });
        };
        let locked = || StoreError::Locked { what: format!("blob {id}"), key: key.to_owned() };
        let sealer = core.archive_keys.sealer(key).ok_or_else(locked)?;
        let len = plain_len(file.length()).ok_or_else(|| cut_off(id))?;
        let mut buffer = BytesMut::new();
        fill(&mut file, &mut buffer, STREAM_HEADER).await?;
        let header = buffer.split_to(STREAM_HEADER);
        let header = header[..].try_into().map_err(|_| cut_off(id))?;
        let opener = Some(sealer.open_stream(bound_to(id), header)?);
        let left = file.length() - STREAM_HEADER as u64;
        Ok(Self { file, opening: Some(Opening { opener, buffer, left }), len })
    }

    /// The length of the plain bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The next piece; `None` after the last one of a whole file.
    pub(super) async fn next(&mut self, core: &Core) -> Tried<Option<Bytes>> {
        let Some(Opening { opener, buffer, left }) = &mut self.opening else {
            return self.file.next().await;
        };
        let size = (*left).min((CHUNK + TAG_LEN) as u64);
        if size == 0 {
            // It also knows of chunks that nobody asked for.
            return self.file.next().await;
        }
        fill(&mut self.file, buffer, size as usize).await?;
        *left -= size;
        let last = *left == 0;
        let mut chunk = buffer.split_to(size as usize).to_vec();
        let mut taken = opener.take().ok_or_else(|| damaged(self.file.id(), "a chunk of it did not open"))?;
        let open = move || taken.open(&mut chunk, last).map(|()| (taken, chunk));
        let (taken, chunk) = core.aside("opening an archive", open).await?;
        *opener = Some(taken);
        Ok(Some(chunk.into()))
    }
}

impl Core {
    /// Reads a small file whole. One over `limit` bytes is refused.
    pub(super) async fn read_file(&self, id: ObjectId, limit: usize) -> Tried<Vec<u8>> {
        let mut file = FileReader::open(self, id).await?;
        if file.len() > limit as u64 {
            return Err(damaged(id, &format!("it is larger than {limit} bytes")).into());
        }
        let mut bytes = Vec::with_capacity(file.len() as usize);
        while let Some(piece) = file.next(self).await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

async fn fill(file: &mut Download, buffer: &mut BytesMut, size: usize) -> Tried<()> {
    while buffer.len() < size {
        let chunk = file.next().await?.ok_or_else(|| cut_off(file.id()))?;
        buffer.extend_from_slice(&chunk);
    }
    Ok(())
}

/// What a file is sealed under.
fn bound_to(id: ObjectId) -> String {
    format!("blob {id}")
}

fn cut_off(id: ObjectId) -> StoreError {
    damaged(id, "it is cut off")
}
