//! Where this machine keeps task directories and sockets.

use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::TaskDir;
use crate::error::{HostError, Result};

/// What every socket is called in its directory.
pub(super) const SOCKET_NAME: &str = "app.sock";
/// `sun_path` has 108 bytes with its NUL (LAB §9); staying below 100 leaves room for a sibling such as a lock file.
const SOCKET_PATH_LIMIT: usize = 100;
/// Hex digits of a task directory's hash: 64 bits, so two of a million directories collide once in 10⁷ machines.
const HASH_DIGITS: usize = 16;

/// The task root of a service that names none (S-055): `$OPTIO_CODEX_TASK_ROOT`, else
/// `$XDG_DATA_HOME/optio-codex`, else `<home>/.local/share/optio-codex`. An empty variable counts as unset; a
/// relative `XDG_DATA_HOME` too, as its specification says.
pub(super) fn default_task_root(var: impl Fn(&str) -> Option<OsString>, home: &Path) -> PathBuf {
    let set = |name| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(root) = set("OPTIO_CODEX_TASK_ROOT") {
        return root;
    }
    match set("XDG_DATA_HOME").filter(|root| root.is_absolute()) {
        Some(data) => data.join("optio-codex"),
        None => home.join(".local/share/optio-codex"),
    }
}

/// The socket root of a service that names none: `$XDG_RUNTIME_DIR/optio-codex`, else `/tmp/optio-codex-<uid>`.
pub(super) fn default_socket_root(var: impl Fn(&str) -> Option<OsString>, uid: u32) -> PathBuf {
    match var("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute()) {
        Some(runtime) => runtime.join("optio-codex"),
        None => PathBuf::from(format!("/tmp/optio-codex-{uid}")),
    }
}

/// Refuses a root that is relative or has no name of its own.
pub(crate) fn check_absolute(what: &'static str, root: &Path) -> Result<()> {
    if root.is_absolute() && root.file_name().is_some() {
        return Ok(());
    }
    refuse(what, root, "it must be an absolute path below '/'")
}

/// Refuses a socket root under which a socket's path would be too long for the system.
pub(crate) fn check_socket_length(root: &Path) -> Result<()> {
    let longest = root.as_os_str().len() + "/".len() + HASH_DIGITS + "/".len() + SOCKET_NAME.len();
    if longest < SOCKET_PATH_LIMIT {
        return Ok(());
    }
    refuse("socket root", root, "it is too long: a socket's whole path must stay below 100 bytes")
}

/// Makes the socket root (0700), or checks that what is there is a directory that only `uid` can enter. Whoever owns
/// it could put a socket of their own where we dial, which is why `/tmp` is not simply trusted.
pub(super) fn claim_socket_root(root: &Path, uid: u32) -> Result<()> {
    let failed = |source| HostError::io(format!("socket root {}", root.display()), source);
    match std::fs::DirBuilder::new().mode(0o700).create(root) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => super::beneath::make_root(root)?,
        Err(error) => return Err(failed(error)),
    }
    let found = std::fs::symlink_metadata(root).map_err(failed)?;
    if found.is_symlink() {
        return refuse("socket root", root, "it is a symbolic link; set another socket root, or remove it");
    }
    if !found.is_dir() {
        return refuse("socket root", root, "it is not a directory; set another socket root, or remove it");
    }
    if found.uid() != uid {
        return refuse("socket root", root, "another user owns it; set a socket root that this user owns");
    }
    if found.mode() & 0o777 != 0o700 {
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

/// The directory of a task's socket: stable over restarts, because it hangs on nothing but the task's path.
pub(super) fn socket_dir(root: &Path, dir: &TaskDir) -> PathBuf {
    let hash = Sha256::digest(dir.path().as_os_str().as_encoded_bytes());
    let digits: String = hash.iter().take(HASH_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
    root.join(digits)
}

fn refuse(what: &'static str, value: &Path, why: &'static str) -> Result<()> {
    Err(HostError::Refused { what, value: value.display().to_string(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(set: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        move |name| set.iter().find(|(other, _)| *other == name).map(|(_, value)| value.into())
    }

    #[test]
    fn the_task_root_comes_from_the_first_variable_that_says_something() {
        let root = |set| default_task_root(vars(set), Path::new("/home/u"));
        let both = &[("OPTIO_CODEX_TASK_ROOT", "/own"), ("XDG_DATA_HOME", "/data")];
        assert_eq!(root(both), Path::new("/own"));
        assert_eq!(
            root(&[("OPTIO_CODEX_TASK_ROOT", ""), ("XDG_DATA_HOME", "/data")]),
            Path::new("/data/optio-codex")
        );
        let default = Path::new("/home/u/.local/share/optio-codex");
        assert_eq!(root(&[("XDG_DATA_HOME", "")]), default);
        assert_eq!(root(&[("XDG_DATA_HOME", "relative")]), default);
        assert_eq!(root(&[]), default);
    }

    #[test]
    fn the_socket_root_is_in_the_runtime_directory_or_marked_with_the_user() {
        let runtime = &[("XDG_RUNTIME_DIR", "/run/user/7")];
        assert_eq!(default_socket_root(vars(runtime), 7), Path::new("/run/user/7/optio-codex"));
        assert_eq!(default_socket_root(vars(&[("XDG_RUNTIME_DIR", "")]), 7), Path::new("/tmp/optio-codex-7"));
        assert_eq!(default_socket_root(vars(&[]), 7), Path::new("/tmp/optio-codex-7"));
    }

    #[test]
    fn a_socket_directory_is_the_same_after_a_restart_and_with_every_version() {
        let id = crate::TaskId::new("a").expect("a letter is a safe name");
        let dir = socket_dir(Path::new("/s"), &TaskDir::new(Path::new("/tasks"), &id));
        // SHA-256 of "/tasks/a". An agent that outlives an update must be found again.
        assert_eq!(dir, Path::new("/s/b3266bd3383fe7eb"));
    }
}
