//! The key file.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::{invalid, unavailable};
use crate::sealed::{KEY_LEN, Sealer};
use crate::{Result, StoreError};

/// Reads the key, and makes one first if there is none and the store is new. A store that was made with a key never
/// gets another one: its logins could not be read.
pub(crate) fn load(path: &Path, store_is_new: bool) -> Result<[u8; KEY_LEN]> {
    match OpenOptions::new().read(true).open(path) {
        Ok(file) => read(path, file),
        Err(e) if e.kind() != ErrorKind::NotFound => Err(failed(path, e)),
        Err(_) if !store_is_new => Err(StoreError::Damaged {
            what: format!("key file {}", path.display()),
            why: "it is missing, and without it the stored logins cannot be read".to_owned(),
        }),
        Err(_) => make(path),
    }
}

fn read(path: &Path, file: File) -> Result<[u8; KEY_LEN]> {
    let mode = file.metadata().map_err(|e| failed(path, e))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let why = format!("{} has mode {mode:03o}, so others may read it; make it 600", path.display());
        return Err(invalid("key file", why));
    }
    let mut key = Vec::with_capacity(KEY_LEN + 1);
    file.take(KEY_LEN as u64 + 1).read_to_end(&mut key).map_err(|e| failed(path, e))?;
    key.try_into().map_err(|_| StoreError::Damaged {
        what: format!("key file {}", path.display()),
        why: format!("it must have exactly {KEY_LEN} bytes"),
    })
}

/// Writes the key beside its place and links it there: a crash leaves no half of a key, and of two services that make
/// one at once, one is refused (a hard link never replaces).
fn make(path: &Path) -> Result<[u8; KEY_LEN]> {
    let key = Sealer::new_key()?;
    let beside = path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4().simple()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&key)?;
        file.sync_all()?;
        std::fs::hard_link(&beside, path)
    })();
    let removed = std::fs::remove_file(&beside);
    written.and(removed).map_err(|e| failed(path, e))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| failed(path, e))?;
    Ok(key)
}

fn failed(path: &Path, error: std::io::Error) -> StoreError {
    unavailable("reading the key file", format_args!("{}: {error}", path.display()))
}
