//! The guard: how an agent outlives the service and still never outlives its lease (DESIGN §7).
//!
//! One POSIX `sh` script (`guard.sh`, beside this file's tests) parents the agent in a session and process group of
//! its own, writes who the agent is, and later how it ended, to files in `<task dir>/guard/`, and is a dead-man's
//! switch: when nobody has touched the heartbeat for [`GuardSpec::term_after`] it sends SIGTERM to the agent's
//! group, and at [`GuardSpec::kill_after`] SIGKILL.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use crate::{EnvPlan, ExitStatus, Host, HostError, Result, TaskDir};

/// Bytes of the agent's standard error that are kept (S-088).
pub const STDERR_TAIL: usize = 64 * 1024;

/// What to run under the guard.
#[derive(Debug, Clone)]
pub struct GuardSpec {
    /// Program and arguments. Nothing secret: any user can read it.
    pub argv: Vec<String>,
    /// Its environment; reaches it through a 0600 file that is removed at once, never through arguments.
    pub env: EnvPlan,
    /// Its directory, absolute.
    pub cwd: PathBuf,
    /// Put into the environment as `OPTIO_CODEX_RUN`, and so inherited by everything the agent starts: how leftovers
    /// that changed their process group are found again. Unique per run.
    pub run_mark: String,
    /// Heartbeat age at which the guard sends SIGTERM; 45 s under a lease (TTL 60 s).
    pub term_after: Duration,
    /// Heartbeat age at which the guard sends SIGKILL; 55 s under a lease.
    pub kill_after: Duration,
}

/// Who a process is: its pid may be given to another process later, pid and start time may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AgentIdentity {
    /// Process id on the host; also its process group's.
    pub pid: u32,
    /// Clock ticks from the host's boot to the process' start (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
}

/// What is known of a guarded agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentState {
    /// No guard was ever started here, or its files are gone.
    Absent,
    /// It runs.
    Running(AgentIdentity),
    /// It ended.
    Exited {
        /// Who it was.
        identity: AgentIdentity,
        /// How it ended.
        status: ExitStatus,
        /// True when the guard ended it because the heartbeat was stale.
        by_guard: bool,
    },
}

/// Signals we send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT.
    Int,
    /// SIGTERM.
    Term,
    /// SIGKILL.
    Kill,
}

fn not_yet<T>(dir: &TaskDir) -> Result<T> {
    Err(HostError::Program {
        program: "guard".into(),
        why: format!("it is not there yet for {}", dir.path().display()),
    })
}

/// [`Host::guard_start`] on the other primitives of a host.
pub async fn start(_host: &dyn Host, dir: &TaskDir, _spec: GuardSpec) -> Result<AgentIdentity> {
    not_yet(dir)
}

/// [`Host::guard_state`] on the other primitives of a host.
pub async fn state(_host: &dyn Host, dir: &TaskDir) -> Result<AgentState> {
    not_yet(dir)
}

/// [`Host::guard_heartbeat`] on the other primitives of a host.
pub async fn heartbeat(_host: &dyn Host, dir: &TaskDir) -> Result<()> {
    not_yet(dir)
}

/// [`Host::guard_signal`] on the other primitives of a host.
pub async fn signal(_host: &dyn Host, dir: &TaskDir, _signal: Signal) -> Result<bool> {
    not_yet(dir)
}

/// [`Host::guard_gone`] on the other primitives of a host.
pub async fn gone(_host: &dyn Host, dir: &TaskDir, _limit: Duration) -> Result<bool> {
    not_yet(dir)
}

/// [`Host::guard_kill_leftovers`] on the other primitives of a host.
pub async fn kill_leftovers(_host: &dyn Host, dir: &TaskDir) -> Result<usize> {
    not_yet(dir)
}

/// [`Host::guard_stderr`] on the other primitives of a host.
pub async fn stderr_tail(_host: &dyn Host, dir: &TaskDir) -> Result<Bytes> {
    not_yet(dir)
}
