//! A program to run on a host: words, environment, directory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use crate::ExitStatus;

/// A program to run. Words are passed as they are; no shell reads them. Values in `env` never appear in any
/// process's arguments on the host.
#[derive(Debug, Clone)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// What its environment is.
    pub env: EnvPlan,
    /// Its directory, absolute; without one, the host user's home.
    pub cwd: Option<PathBuf>,
    /// What it reads as standard input; without one, nothing.
    pub stdin: Option<Bytes>,
    /// How long [`crate::Host::run`] waits before it kills the program.
    pub limit: Duration,
}

/// The limit of a command that names none.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(30);

impl Command {
    /// A command with an unchanged environment and [`DEFAULT_LIMIT`].
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        let argv = argv.into_iter().map(Into::into).collect();
        Self { argv, env: EnvPlan::default(), cwd: None, stdin: None, limit: DEFAULT_LIMIT }
    }
}

/// How a program's environment differs from the host user's own: names that match a removal glob go first, then the
/// additions come, so an addition whose name matches survives (S-007, S-072, S-078). Then `path_prefix` is put in
/// front of whatever `PATH` is by then (S-251).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EnvPlan {
    /// Globs over variable names, of `[A-Za-z0-9_*?\[\]!-]` only (S-081).
    pub remove: Vec<String>,
    /// Variables to set; names must be identifiers.
    pub add: BTreeMap<String, String>,
    /// Directories to put in front of `PATH`, first one first.
    pub path_prefix: Vec<PathBuf>,
}

impl std::fmt::Debug for EnvPlan {
    /// Shows names only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnvPlan")
            .field("remove", &self.remove)
            .field("add", &self.add.keys().collect::<Vec<_>>())
            .field("path_prefix", &self.path_prefix)
            .finish()
    }
}

/// What a finished program left: at most [`OUTPUT_LIMIT`] bytes of each stream, the last ones.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Bytes,
    /// Its standard error.
    pub stderr: Bytes,
}

/// Bytes kept of each stream of [`crate::Host::run`]; helper programs of ours say far less.
pub const OUTPUT_LIMIT: usize = 1 << 20;

impl Output {
    /// True for exit status 0.
    pub fn success(&self) -> bool {
        self.status == ExitStatus::Code(0)
    }
}
