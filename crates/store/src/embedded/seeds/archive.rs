//! The archive of a login as a sealed blob.

use std::io::Read;

use crate::embedded::Core;
use crate::embedded::blobs::{Fresh, Kind};
use crate::local::unavailable;
use crate::seeds::SEED_LIMIT;
use crate::{Result, StoreError, seed_archive};

/// An archive on disk that no row names yet.
pub(super) struct StoredBlob {
    pub(super) name: String,
    pub(super) sha256: String,
    pub(super) fresh: Fresh,
}

impl StoredBlob {
    /// Seals an archive into a new blob, and reads it back: a row never names bytes that nobody has seen on disk.
    pub(super) fn write(core: &Core, archive: &[u8]) -> Result<Self> {
        let name = Kind::Seed.mint();
        let sha256 = seed_archive::sha256_hex(archive);
        let fresh = core.blobs.put(&name, &core.sealer.seal(&name, archive)?)?;
        read_archive(core, &name, &sha256)?;
        Ok(Self { name, sha256, fresh })
    }
}

/// The archive in a blob, which must have this hash.
pub(super) fn read_archive(core: &Core, name: &str, sha256: &str) -> Result<Vec<u8>> {
    let mut sealed = Vec::new();
    let room = SEED_LIMIT as u64 + 1024;
    core.blobs
        .read(name)?
        .take(room)
        .read_to_end(&mut sealed)
        .map_err(|e| unavailable("reading a login", format_args!("{name}: {e}")))?;
    let archive = core.sealer.open(name, &sealed)?;
    if seed_archive::sha256_hex(&archive) != sha256 {
        let why = "it has another hash than its row says".to_owned();
        return Err(StoreError::Damaged { what: format!("blob {name}"), why });
    }
    Ok(archive)
}
