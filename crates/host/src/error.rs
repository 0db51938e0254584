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
    /// The host's address is a name that nobody knows.
    #[error("host {host} cannot be reached: the name {address:?} is not known: {why}")]
    NameUnknown {
        /// The host's name in the configuration.
        host: String,
        /// Its address, as configured.
        address: String,
        /// What the resolver said.
        why: String,
    },
    /// The host shows a key that nobody has vouched for.
    #[error(
        "host {host} shows a key that is not known: {algorithm} {fingerprint}; compare it with the host's own (`ssh-keygen -lf` of its /etc/ssh/ssh_host_*_key.pub), then accept it: {accept}"
    )]
    HostKeyUnknown {
        /// The host's name.
        host: String,
        /// The key's algorithm, e.g. `ssh-ed25519`.
        algorithm: String,
        /// The key's fingerprint, `SHA256:…`.
        fingerprint: String,
        /// How it is accepted.
        accept: String,
    },
    /// The host shows another key than the one that is known: it was set up anew, or somebody else answers.
    #[error(
        "host {host} shows another key than the one {known_in} has: {algorithm} {fingerprint}; unless the host was set up anew, somebody else answers; to accept it: {accept}"
    )]
    HostKeyChanged {
        /// The host's name.
        host: String,
        /// The shown key's algorithm.
        algorithm: String,
        /// The shown key's fingerprint, `SHA256:…`.
        fingerprint: String,
        /// Where the known key stands: a file and line, or the configuration.
        known_in: String,
        /// How it is accepted.
        accept: String,
    },
    /// The host does not let us in with the key that we have.
    #[error("host {host} does not let {user} in: {why}")]
    LoginRefused {
        /// The host's name.
        host: String,
        /// The user.
        user: String,
        /// Which keys were offered, and what the host said.
        why: String,
    },
    /// The host takes no keys, or our key cannot be used.
    #[error("host {host} cannot be logged in to as {user}: {why}")]
    LoginUnsupported {
        /// The host's name.
        host: String,
        /// The user.
        user: String,
        /// What the host takes, or what is wrong with the key, and what would be right.
        why: String,
    },
    /// The login works and is no POSIX shell that runs programs.
    #[error("host {host} runs no commands for us: {why}")]
    ShellUnusable {
        /// The host's name.
        host: String,
        /// What it did instead.
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
    /// The stable word for why a host cannot be worked with; `None` for what has nothing to do with the way to it.
    pub fn reach_code(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unreachable { .. } => "host_unreachable",
            Self::NameUnknown { .. } => "host_name_unknown",
            Self::HostKeyUnknown { .. } => "host_key_unknown",
            Self::HostKeyChanged { .. } => "host_key_changed",
            Self::LoginRefused { .. } => "host_login_refused",
            Self::LoginUnsupported { .. } => "host_login_unsupported",
            Self::ShellUnusable { .. } => "host_shell_unusable",
            _ => return None,
        })
    }

    /// Wraps a system error with what was tried.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }
}
