//! The files of downloads.

use std::io::{Error, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokio::fs;

use crate::provision::ProvisionError;
use crate::provision::release::Sha256Sum;

/// Bytes hashed at once.
const CHUNK: usize = 1 << 20;

/// The file that says which answer a part is of.
pub(super) fn validator(part: &Path) -> PathBuf {
    part.with_extension("part-etag")
}

pub(super) async fn length(path: &Path) -> u64 {
    fs::metadata(path).await.map_or(0, |found| found.len())
}

pub(super) async fn make_private(dir: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir).await
}

pub(super) async fn remove(path: &Path) -> Result<(), ProvisionError> {
    match fs::remove_file(path).await {
        Err(problem) if problem.kind() != std::io::ErrorKind::NotFound => Err(disk("remove", path, problem)),
        _ => Ok(()),
    }
}

pub(super) async fn remove_part(part: &Path) -> Result<(), ProvisionError> {
    remove(&validator(part)).await?;
    remove(part).await
}

pub(super) async fn hash(path: &Path) -> std::io::Result<Sha256Sum> {
    let path = path.to_owned();
    let hashing = tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::open(path)?;
        let (mut hash, mut chunk) = (Sha256::new(), vec![0; CHUNK]);
        loop {
            match file.read(&mut chunk)? {
                0 => return Ok(Sha256Sum(hash.finalize().into())),
                len => hash.update(&chunk[..len]),
            }
        }
    });
    hashing.await.unwrap_or_else(|died| Err(Error::other(died)))
}

pub(super) fn disk(deed: &str, path: &Path, source: Error) -> ProvisionError {
    ProvisionError::Disk { what: format!("{deed} {}", path.display()), source }
}
