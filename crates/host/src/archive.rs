//! Snapshots of a workdir: one matcher for what stays out, one walk, safe extraction.
//!
//! Reading order: [`Excludes`] (what stays out), [`pack`] (the walk over a tree that others are writing to),
//! [`unpack`] (what an archive may do to a directory), [`restore_beside`] (how it becomes the workdir).
//!
//! All of it works relative to open directories and never follows a link, so nobody who writes into the tree at the
//! same time can turn a read or a write to a place outside of it.

mod beneath;
mod excludes;
mod extract;
mod member;
mod pack;
mod restore;
mod rules;
mod through;

use std::path::PathBuf;

use crate::{ByteStream, Result};

pub use excludes::Excludes;

/// Largest chunk of a [`crate::ByteStream`].
pub const CHUNK: usize = 1 << 20;

/// How an archive is compressed; stands on the snapshot's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// `tar.gz`, which the Python deployment reads too.
    Gzip,
    /// `tar.zst`, for the embedded store.
    Zstd,
}

/// Streams a directory as a compressed tar with members named `a/b` (T-188). Nothing runs until the stream is polled,
/// and dropping it ends the work.
///
/// The tree may change meanwhile: a file is stored with the length it had when it was opened (cut or padded with
/// zeros to it), what vanishes is left out with a log line, sockets, FIFOs and devices are skipped (T-189, S-121).
/// Any other failure is an error item and the end of the stream: an archive is whole or it is not one.
pub fn pack(workdir: PathBuf, excludes: Excludes, codec: Codec) -> ByteStream {
    pack::stream(workdir, excludes, codec)
}

/// Extracts an archive into a fresh directory, which it makes (0700). On error the directory is removed.
///
/// Refused with [`crate::HostError::BadArchive`]: absolute names, `..`, writing through a link, hard links to what is
/// not in the archive, more than [`MAX_MEMBERS`] or [`MAX_TOTAL`], and a stream that does not end as it should.
/// Device nodes are left out, setuid, setgid and sticky bits dropped, link targets taken as they are (S-126, T-201).
pub async fn unpack(stream: ByteStream, codec: Codec, into: PathBuf) -> Result<()> {
    restore::unpack(stream, codec, into).await
}

/// Replaces `workdir` by the content of an archive: extracted beside it, then exchanged in one step, so there is
/// always a workdir (S-125). On error it is as it was, and nothing is left beside it. What a crash left beside it is
/// removed by the next call.
pub async fn restore_beside(stream: ByteStream, codec: Codec, workdir: PathBuf) -> Result<()> {
    restore::replace(stream, codec, workdir).await
}

/// Compresses the plain tar that a far side sends. One that does not end as a tar does is an error item.
pub(crate) fn compressed(tar: ByteStream, codec: Codec) -> ByteStream {
    through::compressed(tar, codec)
}

/// What of an archive may be extracted, as a plain tar for a far side; refused is what [`unpack`] refuses.
pub(crate) fn cleaned(archive: ByteStream, codec: Codec) -> ByteStream {
    through::cleaned(archive, codec)
}

/// Members an archive may have. A workdir with `node_modules` has some 100,000.
pub const MAX_MEMBERS: u64 = 5_000_000;

/// Bytes of all files of an archive together, unpacked.
pub const MAX_TOTAL: u64 = 256 << 30;
