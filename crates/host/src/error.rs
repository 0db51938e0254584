//! What can go wrong on a host.

use std::time::Duration;

/// Result of a host operation.
pub type Result<T, E = HostError> = std::result::Result<T, E>;

/// What went wrong on a host, as far as a caller can act on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// There is no such file.
    #[error("{path} does not exist")]
    NotFound {
        /// The path as the host names it.
        path: String,
    },
    /// A path that would leave the task directory, or an id that is no safe name.
    #[error("{what} {value:?} is refused: {why}")]
    Refused {
        /// What was refused, e.g. `path`.
        what: &'static str,
        /// The value, as given.
        value: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The file is longer than the caller accepts.
    #[error("{path} has {len} bytes, more than the {limit} accepted")]
    TooLarge {
        /// The path as the host names it.
        path: String,
        /// Its length.
        len: u64,
        /// What the caller accepts.
        limit: u64,
    },
    /// An archive that must not be extracted, or is cut short.
    #[error("archive is not acceptable: {0}")]
    BadArchive(String),
    /// Nothing answers where a program should listen.
    #[error("nothing listens at {target}")]
    NotListening {
        /// Where it was dialled.
        target: String,
    },
    /// The guard of this task directory already has a live agent.
    #[error("an agent is already running in {dir} (pid {pid})")]
    AlreadyRunning {
        /// The task directory.
        dir: String,
        /// The live agent's pid.
        pid: u32,
    },
    /// A program the host must have is missing or does not work.
    #[error("{program} cannot be used: {why}")]
    Program {
        /// Its name.
        program: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// A helper program of ours failed.
    #[error("{what} failed with {status}: {stderr}")]
    Failed {
        /// What was tried.
        what: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        stderr: String,
    },
    /// The limit ran out; whether it happened is unknown.
    #[error("{what} had no answer within {limit:?}")]
    TimedOut {
        /// What was tried.
        what: String,
        /// The limit.
        limit: Duration,
    },
    /// The host cannot be reached.
    #[error("host {host} cannot be reached: {why}")]
    Unreachable {
        /// The host's name.
        host: String,
        /// Why.
        why: String,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl HostError {
    /// Wraps a system error with what was tried.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }
}
