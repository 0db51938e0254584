//! The file of the bearer token.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Random bytes of a token: as many as no one will ever try.
const TOKEN_BYTES: usize = 32;

/// Characters of the shortest token that an operator may have chosen: 64 bits in hex.
const SHORTEST: usize = 16;

/// Bytes of a file that may still be a token.
const LONGEST: u64 = 4096;

/// Reads the token, and makes one first where there is no file. Several services may share a file; the first makes it.
pub(crate) fn load_or_make(path: &Path) -> Result<String> {
    match File::open(path) {
        Ok(file) => read(path, file),
        Err(missing) if missing.kind() == ErrorKind::NotFound => make(path),
        Err(problem) => Err(problem).with_context(|| format!("token file {} cannot be read", path.display())),
    }
}

fn read(path: &Path, file: File) -> Result<String> {
    let shown = path.display();
    let cannot = || format!("token file {shown} cannot be read");
    let mode = file.metadata().with_context(cannot)?.permissions().mode() & 0o777;
    ensure!(mode & 0o077 == 0, "token file {shown} has mode {mode:03o}, so others may use it; make it 600");
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).with_context(cannot)?;
    let token = text.trim();
    if token.len() < SHORTEST || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!(
            "token file {shown} holds no token of at least {SHORTEST} visible characters; delete it to have one made"
        );
    }
    Ok(token.to_owned())
}

fn make(path: &Path) -> Result<String> {
    let cannot = || format!("token file {} cannot be made", path.display());
    let mut random = [0; TOKEN_BYTES];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random)).with_context(cannot)?;
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = made.with_context(cannot)?;
    writeln!(file, "{token}").and_then(|()| file.sync_all()).with_context(cannot)?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_is_made_once_and_only_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let made = load_or_make(&path).unwrap();
        assert_eq!(made.len(), 2 * TOKEN_BYTES);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load_or_make(&path).unwrap(), made);
        assert_ne!(load_or_make(&dir.path().join("other")).unwrap(), made);
    }

    #[test]
    fn a_token_that_others_may_read_or_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        load_or_make(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(load_or_make(&path).unwrap_err().to_string().contains("mode 640"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        for bad in ["", "short", "with a space in the middle of it"] {
            std::fs::write(&path, bad).unwrap();
            assert!(load_or_make(&path).unwrap_err().to_string().contains("holds no token"), "{bad:?}");
        }
    }
}
