//! A machine's files and programs.
//!
//! Everything a session does to the machine it runs on goes through [`Host`]: this machine ([`LocalHost`]), or one
//! behind SSH ([`SshHost`]). Code above this trait never asks which of them it has.
//!
//! Reading order: [`TaskDir`] (where one session's files live), [`Host`] (what can be done there), [`guard`] (how an
//! agent outlives the service and still never outlives its lease), [`tmux`] and [`terminal`] (an agent that people look
//! at), [`archive`] (snapshots of a workdir).

pub mod archive;
mod codex_binary;
mod command;
mod error;
mod find_codex;
pub mod guard;
mod local;
pub mod orphans;
pub mod provision;
mod reach;
mod shell_env;
pub mod ssh;
pub mod survey;
mod tail;
mod task_dir;
pub mod terminal;
pub mod tmux;
pub mod ttyd;
mod watch;

#[cfg(feature = "testsuite")]
pub mod fake;
#[cfg(feature = "testsuite")]
pub mod faulty;
#[cfg(feature = "testsuite")]
pub mod suite;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch::Receiver;

pub use archive::{Codec, Excludes};
pub use codex_binary::CodexBinary;
pub use command::{Command, DEFAULT_LIMIT, EnvPlan, OUTPUT_LIMIT, Output};
pub use error::{HostError, Result};
pub use guard::{AgentIdentity, AgentState, GuardSpec, Signal, Size, Stage, Terminal};
pub use local::{LocalHost, LocalHostConfig};
pub use reach::Reach;
pub use ssh::{SshHost, SshTarget};
pub use task_dir::{RelPath, TaskDir, TaskId};
pub use terminal::Pty;
pub use watch::Watch;

/// A chunked byte stream; chunks are at most [`archive::CHUNK`] bytes. Dropping it stops whatever produces it.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// One end of a connection to a program on the host.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// Where [`Host::dial`] connects to, seen from the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Dial {
    /// A Unix socket on the host.
    Unix(PathBuf),
    /// A TCP port on the host's own loopback interface.
    Loopback(u16),
}

/// A child started by [`Host::spawn`]: its pipes and the way to end it.
///
/// Dropping it kills the child's process group. `stderr` must be read by whoever takes it; a child that is not read
/// stalls (S-088).
pub struct Spawned {
    /// The child's standard input; dropping it is end-of-file for the child.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// The child's standard output.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// The child's standard error, separate from its output.
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
    /// Waiting and signalling.
    pub process: Box<dyn SpawnedProcess>,
}

/// The process side of a [`Spawned`] child.
#[async_trait]
pub trait SpawnedProcess: Send {
    /// Who the child is; survives in a record.
    fn identity(&self) -> AgentIdentity;
    /// Waits for the child's end; may be called again and then answers at once. Cancel safe.
    async fn wait(&mut self) -> Result<ExitStatus>;
    /// Signals the child's whole process group; a group that is gone is not an error.
    async fn signal(&mut self, signal: Signal) -> Result<()>;
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It is gone, and nobody saw how (its parent was killed first).
    Unknown,
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => write!(f, "unknown exit status"),
        }
    }
}

/// What a file is, as far as sessions ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileInfo {
    /// Its length in bytes.
    pub len: u64,
    /// Its permission bits, e.g. `0o600`.
    pub mode: u32,
}

/// A part of a file that grows, as [`Host::read_from`] found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePart {
    /// The bytes from the offset on; fewer than the limit only at the file's present end.
    pub bytes: Bytes,
    /// The file's whole length. Shorter than what was read before, it was cut.
    pub len: u64,
    /// Tells this file from one that took its place under the same name. Means nothing else.
    pub identity: String,
}

/// A machine on which sessions live.
///
/// Contracts that every implementation keeps, and that [`suite`] checks:
///
/// - Every relative path stays beneath the task directory; links are never followed out of it.
/// - A write is atomic: a reader sees the old bytes or the new ones, never a part (S-100, S-101).
/// - Removing what is absent succeeds.
/// - No call blocks the caller's thread, and no call waits for ever: each has a limit of its own, given here or by
///   the implementation, after which the answer is [`HostError::TimedOut`] and the outcome is unknown.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    /// The name under which the host is configured; `local` for this machine.
    fn name(&self) -> &str;

    /// Whether the host can be reached, as far as is known now; changes are told. This machine always can.
    fn reach(&self) -> Receiver<Reach>;

    /// Sees to it that the host can be reached: at once when it can, by one attempt to connect when it cannot. Several
    /// callers share one attempt. The answer also shows in [`Host::reach`].
    async fn connect(&self) -> Result<()>;

    /// The home directory of the host's user, absolute (S-109).
    async fn home(&self) -> Result<PathBuf>;

    /// Where the session `id` keeps its files. Computed, never looked up (S-056).
    fn task_dir(&self, id: &TaskId) -> TaskDir;

    /// A path short enough for a Unix socket (108 bytes) that belongs to `dir` alone, in a directory that only this
    /// user can enter. Stable: the same task directory has the same socket path after a restart.
    fn socket_path(&self, dir: &TaskDir) -> PathBuf;

    /// Makes the task directory with an empty workdir, both 0700, and the directory of its socket. Whatever an
    /// earlier run left in the workdir is gone afterwards, or the call fails (S-068, S-069). Side files survive.
    async fn create(&self, dir: &TaskDir) -> Result<()>;

    /// True when the task directory exists.
    async fn exists(&self, dir: &TaskDir) -> Result<bool>;

    /// Deletes the task directory and its socket directory. Idempotent.
    async fn cleanup(&self, dir: &TaskDir) -> Result<()>;

    /// Runs a program to its end with `/dev/null` as standard input unless the command brings one. A non-zero exit is
    /// a result, not an error (S-070). Dropping the future kills the program's process group (S-075).
    async fn run(&self, command: Command) -> Result<Output>;

    /// Starts a program with three pipes, in a process group of its own (S-087).
    async fn spawn(&self, command: Command) -> Result<Spawned>;

    /// Starts a program on a terminal of its own, of this size; the command's own standard input is not used. Dropping
    /// the answer's input kills the program.
    async fn open_pty(&self, command: Command, size: Size) -> Result<Pty>;

    /// Reads a whole regular file of at most `limit` bytes; a longer one is [`HostError::TooLarge`] before anything
    /// is read (S-107). A missing one is [`HostError::NotFound`].
    async fn read(&self, dir: &TaskDir, path: &RelPath, limit: u64) -> Result<Bytes>;

    /// Reads at most `limit` bytes of a regular file, from `offset` on; past its end there are none. For following a file
    /// that somebody else appends to, cuts or replaces: length and identity say so. A missing one is
    /// [`HostError::NotFound`].
    async fn read_from(&self, dir: &TaskDir, path: &RelPath, offset: u64, limit: usize) -> Result<FilePart>;

    /// Replaces (or makes) a file with these bytes and permission bits, by a unique temporary sibling and a rename.
    /// Missing parents are made 0700.
    async fn write(&self, dir: &TaskDir, path: &RelPath, bytes: Bytes, mode: u32) -> Result<()>;

    /// Appends to a file, making it (0600) when it is missing.
    async fn append(&self, dir: &TaskDir, path: &RelPath, bytes: Bytes) -> Result<()>;

    /// Renames within the task directory, replacing the target.
    async fn rename(&self, dir: &TaskDir, from: &RelPath, to: &RelPath) -> Result<()>;

    /// Removes a file or an empty directory; absent is fine.
    async fn remove(&self, dir: &TaskDir, path: &RelPath) -> Result<()>;

    /// Makes a directory and its parents, each 0700.
    async fn make_dir(&self, dir: &TaskDir, path: &RelPath) -> Result<()>;

    /// Makes (or re-points) a symbolic link with this target, which may lie anywhere (S-235).
    async fn link(&self, dir: &TaskDir, path: &RelPath, target: &Path) -> Result<()>;

    /// Facts of a regular file, or `None` when nothing is there. Does not follow a link at the end.
    async fn info(&self, dir: &TaskDir, path: &RelPath) -> Result<Option<FileInfo>>;

    /// Relative paths of the regular files below a directory, bytewise sorted, at most `limit`; empty when the
    /// directory is missing. Links are not followed.
    async fn list(&self, dir: &TaskDir, path: &RelPath, limit: usize) -> Result<Vec<RelPath>>;

    /// Writes a new file, outside of any task directory: an absolute path whose directory exists. Nobody gets to see it with
    /// these permission bits before it is whole and on disk, and it is removed again when the stream fails or the future is
    /// dropped. What is there already is refused and stays. Answers the length.
    async fn write_stream(&self, path: &Path, stream: ByteStream, mode: u32) -> Result<u64>;

    /// Streams the workdir as a compressed tar (T-181…T-194 "Better"). Nothing runs until the stream is read.
    async fn archive(&self, dir: &TaskDir, excludes: Excludes, codec: Codec) -> Result<ByteStream>;

    /// Replaces the workdir by the content of an archive: extracted beside it, swapped in only when the whole stream
    /// was read and valid (S-125, S-126, T-201). On error the workdir is as it was.
    async fn restore(&self, dir: &TaskDir, stream: ByteStream, codec: Codec) -> Result<()>;

    /// Connects to a program on the host. Nothing listening is [`HostError::NotListening`].
    async fn dial(&self, target: &Dial) -> Result<Box<dyn Duplex>>;

    /// Wakes whenever the file at `path` may have changed: written in place, replaced by rename, made or removed. May
    /// wake without cause, never sleeps through a change that happened after this call returned.
    async fn watch(&self, dir: &TaskDir, path: &RelPath) -> Result<Watch>;

    /// Finds the codex program a session should launch, asks it its version and whether it has `--listen` (S-225:
    /// a launcher script is resolved to the program behind it). `wanted` is an operator's choice; without it the
    /// host's login `PATH` decides, then the `PATH` the service itself has.
    async fn find_codex(&self, wanted: Option<&Path>) -> Result<CodexBinary>;

    /// Starts a program under the guard (see [`guard`]) in its own session and process group, detached from this
    /// process. Answers once the agent's identity is on disk. A guard that already parents a live agent of this task
    /// directory is [`HostError::AlreadyRunning`].
    async fn guard_start(&self, dir: &TaskDir, spec: GuardSpec) -> Result<AgentIdentity> {
        guard::start(self, dir, spec).await
    }

    /// Notes the mark of a run whose agent is started by [`Host::spawn`]: whatever has it as [`guard::RUN_MARK`] in its
    /// environment is what [`Host::guard_gone`] and [`Host::guard_kill_leftovers`] look for from now on. A child on pipes may
    /// outlive them: its end is seen over a connection, and connections break. To be called before the start.
    async fn guard_mark(&self, dir: &TaskDir, run_mark: &str) -> Result<()> {
        guard::mark(self, dir, run_mark).await
    }

    /// What the guard's files and the process table say of the agent now. Works for an agent started by an earlier
    /// process of ours; identity is pid and start time, so a reused pid is never taken for the agent.
    async fn guard_state(&self, dir: &TaskDir) -> Result<AgentState> {
        guard::state(self, dir).await
    }

    /// Puts the dead-man's switch back by its whole limit, and starts a new guard where the old one was killed.
    async fn guard_heartbeat(&self, dir: &TaskDir) -> Result<()> {
        guard::heartbeat(self, dir).await
    }

    /// Signals the agent's process group, if it still is the agent's. Answers whether there was anything to signal.
    async fn guard_signal(&self, dir: &TaskDir, signal: Signal) -> Result<bool> {
        guard::signal(self, dir, signal).await
    }

    /// Waits until the agent of this task directory and everything it started is gone, at most `limit`. `true` is
    /// proof: its process group is empty and no process carries its run mark (see [`GuardSpec::run_mark`]).
    async fn guard_gone(&self, dir: &TaskDir, limit: Duration) -> Result<bool> {
        guard::gone(self, dir, limit).await
    }

    /// Ends by SIGKILL whatever [`Host::guard_gone`] still sees. Answers how many processes it signalled.
    async fn guard_kill_leftovers(&self, dir: &TaskDir) -> Result<usize> {
        guard::kill_leftovers(self, dir).await
    }

    /// The last bytes (at most [`guard::STDERR_TAIL`]) of what the agent wrote to standard error.
    async fn guard_stderr(&self, dir: &TaskDir) -> Result<Bytes> {
        guard::stderr_tail(self, dir).await
    }
}
