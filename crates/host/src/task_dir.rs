//! Where one session's files live on its host, and paths that cannot leave it.

use std::path::{Path, PathBuf};

use crate::error::{HostError, Result};

/// The directory name of one session on its host (S-058, S-059).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct TaskId(String);

impl TaskId {
    /// Takes ASCII letters, digits, `.`, `_` and `-`, at most 128 of them; refuses `.`, `..` and everything else.
    pub fn new(id: impl Into<String>) -> Result<Self> {
        let id = id.into();
        let refuse = |why| Err(HostError::Refused { what: "task id", value: id.clone(), why });
        if id.is_empty() || id.len() > 128 {
            return refuse("it must have 1 to 128 characters");
        }
        if !id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return refuse("only ASCII letters, digits, '.', '_' and '-' are allowed");
        }
        if id == "." || id == ".." {
            return refuse("it names a directory that is not its own");
        }
        Ok(Self(id))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The task directory of one session: `<root>/<id>`, with the agent's working directory as its child `workdir`
/// (S-053). Side files of ours (the guard's) live beside the workdir, where a snapshot does not reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TaskDir {
    path: PathBuf,
}

impl TaskDir {
    /// The task directory of `id` below a host's task root, which must be absolute.
    pub fn new(root: &Path, id: &TaskId) -> Self {
        Self { path: root.join(id.as_str()) }
    }

    /// Its absolute path on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The agent's working directory, absolute.
    pub fn workdir(&self) -> PathBuf {
        self.path.join("workdir")
    }

    /// `path` as an absolute path on the host.
    pub fn join(&self, path: &RelPath) -> PathBuf {
        self.path.join(path.as_str())
    }
}

/// A path below a task directory, e.g. `workdir/home/.codex/auth.json`: relative, no `.`/`..`/empty segment, no NUL.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelPath(String);

impl RelPath {
    /// Checks and takes a path relative to the task directory (S-099).
    pub fn new(path: impl Into<String>) -> Result<Self> {
        let path = path.into();
        let refuse = |why| Err(HostError::Refused { what: "path", value: path.clone(), why });
        if path.is_empty() || path.starts_with('/') {
            return refuse("it must be relative and not empty");
        }
        if path.contains('\0') {
            return refuse("it has a NUL byte");
        }
        if path.split('/').any(|s| s.is_empty() || s == "." || s == "..") {
            return refuse("it has an empty, '.' or '..' segment");
        }
        Ok(Self(path))
    }

    /// A path below the workdir.
    pub fn in_workdir(path: &str) -> Result<Self> {
        Self::new(format!("workdir/{path}"))
    }

    /// The path as text, relative to the task directory.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
