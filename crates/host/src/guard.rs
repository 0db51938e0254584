//! The guard: how an agent outlives the service and still never outlives its lease (DESIGN §7).
//!
//! One POSIX `sh` script (`guard/guard.sh`, the same on every host) starts the agent in a session and process group of
//! its own, writes who the agent is, and later how it ended, to files in `<task dir>/guard/`, and is a dead-man's
//! switch: when nobody has touched the heartbeat for [`GuardSpec::term_after`] it sends SIGTERM to the agent's
//! group, and at [`GuardSpec::kill_after`] SIGKILL.
//!
//! The functions here are what [`Host`]'s `guard_*` methods do unless a host has something else: they are made of its other
//! primitives only. The script's head says which processes and files there are.

mod launch;

pub(crate) use launch::quote;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use crate::{Command, EnvPlan, ExitStatus, Host, HostError, Output, RelPath, Result, TaskDir, tmux};

/// The script; written into each task directory at each start, so a host never runs one of another version.
const SCRIPT: &str = concat!(include_str!("shell_env/forget.sh"), include_str!("guard/guard.sh"));

/// How long a verb of the script may take that has nothing to wait for. It takes milliseconds on an idle host.
const VERB_LIMIT: Duration = Duration::from_secs(20);

/// Longest file of the guard's that we read; they hold one line.
const FILE_LIMIT: u64 = 4096;

/// Bytes of the agent's standard error that are kept (S-088).
pub const STDERR_TAIL: usize = 64 * 1024;

/// The variable that carries a run's mark.
pub const RUN_MARK: &str = "OPTIO_CODEX_RUN";

/// What to run under the guard.
#[derive(Debug, Clone)]
pub struct GuardSpec {
    /// Program and arguments. Nothing secret: any user can read it.
    pub argv: Vec<String>,
    /// Its environment; reaches it through a 0600 file that is removed at once, never through arguments.
    pub env: EnvPlan,
    /// Its directory, absolute.
    pub cwd: PathBuf,
    /// Put into the environment as [`RUN_MARK`], and so inherited by everything the agent starts: how leftovers
    /// that changed their process group are found again. Unique per run.
    pub run_mark: String,
    /// Heartbeat age at which the guard sends SIGTERM; 45 s under a lease (TTL 60 s).
    pub term_after: Duration,
    /// Heartbeat age at which the guard sends SIGKILL; 55 s under a lease.
    pub kill_after: Duration,
    /// Where it runs.
    pub stage: Stage,
}

/// Where a guarded agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Without a terminal: it reads nothing, and what it writes is kept as its last words.
    Headless,
    /// On a terminal that is there whether or not anybody looks at it (see [`crate::tmux`]).
    Terminal(Terminal),
}

/// A terminal for an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    /// The tmux program.
    pub tmux: PathBuf,
    /// The socket of a server that has this agent and nobody else (S-260, S-261).
    pub socket: PathBuf,
    /// Its size until somebody looks at it.
    pub size: Size,
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Size {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
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

/// [`Host::guard_start`] on the other primitives of a host.
pub async fn start(host: &(impl Host + ?Sized), dir: &TaskDir, spec: GuardSpec) -> Result<AgentIdentity> {
    let launch = launch::file(&spec, &dir.path().join("guard"))?;
    let run = format!("{} {} {}\n", spec.run_mark, hundredths(spec.term_after), hundredths(spec.kill_after));
    // Before anything is overwritten: these files belong to an agent that may be alive.
    if let AgentState::Running(agent) = state(host, dir).await? {
        return Err(already_running(dir, agent.pid));
    }
    host.write(dir, &file("guard.sh")?, Bytes::from_static(SCRIPT.as_bytes()), 0o600).await?;
    host.write(dir, &file("run")?, run.into(), 0o600).await?;
    match launch::pane_file(&spec)? {
        Some(pane) => {
            host.write(dir, &file("pane")?, pane, 0o600).await?;
            host.write(dir, &file("tmux.conf")?, Bytes::from_static(tmux::SETTINGS.as_bytes()), 0o600)
                .await?;
        }
        None => host.remove(dir, &file("pane")?).await?,
    }
    beat(host, dir).await?;
    host.write(dir, &file("launch")?, launch, 0o600).await?;
    let answer = verb(host, dir, "start", &[], VERB_LIMIT).await;
    let removed = host.remove(dir, &file("launch")?).await;
    let answer = answer?;
    removed?;
    match words(&answer)[..] {
        ["started", pid, start_time] => identity(pid, start_time),
        ["running", pid] => Err(already_running(dir, number(pid)?)),
        ["failed", ..] => Err(HostError::Program {
            program: spec.argv.first().cloned().unwrap_or_default(),
            why: answer.trim().trim_start_matches("failed ").to_owned(),
        }),
        _ => Err(unexpected(&answer)),
    }
}

/// [`Host::guard_mark`] on the other primitives of a host.
pub async fn mark(host: &(impl Host + ?Sized), dir: &TaskDir, run_mark: &str) -> Result<()> {
    // As in a start: these files belong to an agent that may be alive.
    if let AgentState::Running(agent) = state(host, dir).await? {
        return Err(already_running(dir, agent.pid));
    }
    host.write(dir, &file("guard.sh")?, Bytes::from_static(SCRIPT.as_bytes()), 0o600).await?;
    for of_the_last in ["agent", "exit", "stale"] {
        host.remove(dir, &file(of_the_last)?).await?;
    }
    // No watcher reads the ages.
    host.write(dir, &file("run")?, format!("{run_mark} 0 0\n").into(), 0o600).await
}

/// [`Host::guard_state`] on the other primitives of a host.
pub async fn state(host: &(impl Host + ?Sized), dir: &TaskDir) -> Result<AgentState> {
    if !started(host, dir).await? {
        return Ok(AgentState::Absent);
    }
    let answer = verb(host, dir, "state", &[], VERB_LIMIT).await?;
    match words(&answer)[..] {
        ["absent"] => Ok(AgentState::Absent),
        ["running", pid, start_time] => Ok(AgentState::Running(identity(pid, start_time)?)),
        ["exited", pid, start_time, status, stale] => Ok(AgentState::Exited {
            identity: identity(pid, start_time)?,
            status: exit_status(status)?,
            by_guard: stale == "1",
        }),
        _ => Err(unexpected(&answer)),
    }
}

/// [`Host::guard_heartbeat`] on the other primitives of a host.
///
/// Costs no process as long as the watcher shows that it saw the heartbeat before. A watcher killed after that is
/// therefore replaced by the second heartbeat from then, not by the first.
pub async fn heartbeat(host: &(impl Host + ?Sized), dir: &TaskDir) -> Result<()> {
    let before = read(host, dir, "heartbeat").await?;
    let seen = read(host, dir, "seen").await?;
    beat(host, dir).await?;
    if before.is_some() && before == seen {
        return Ok(());
    }
    if started(host, dir).await? {
        verb(host, dir, "rewatch", &[], VERB_LIMIT).await?;
    }
    Ok(())
}

/// [`Host::guard_signal`] on the other primitives of a host.
pub async fn signal(host: &(impl Host + ?Sized), dir: &TaskDir, signal: Signal) -> Result<bool> {
    if !started(host, dir).await? {
        return Ok(false);
    }
    let name = match signal {
        Signal::Int => "INT",
        Signal::Term => "TERM",
        Signal::Kill => "KILL",
    };
    Ok(verb(host, dir, "signal", &[name], VERB_LIMIT).await?.trim() == "sent")
}

/// [`Host::guard_gone`] on the other primitives of a host.
pub async fn gone(host: &(impl Host + ?Sized), dir: &TaskDir, limit: Duration) -> Result<bool> {
    if !started(host, dir).await? {
        return Ok(true);
    }
    let wait = hundredths(limit).to_string();
    let answer = verb(host, dir, "gone", &[&wait], limit.saturating_add(VERB_LIMIT)).await?;
    match words(&answer)[..] {
        ["gone"] => Ok(true),
        ["left", ref left @ ..] => {
            tracing::debug!(dir = %dir.path().display(), ?left, "processes of the agent are left");
            Ok(false)
        }
        _ => Err(unexpected(&answer)),
    }
}

/// [`Host::guard_kill_leftovers`] on the other primitives of a host.
pub async fn kill_leftovers(host: &(impl Host + ?Sized), dir: &TaskDir) -> Result<usize> {
    if !started(host, dir).await? {
        return Ok(0);
    }
    let answer = verb(host, dir, "kill", &[], VERB_LIMIT).await?;
    answer.trim().parse().map_err(|_| unexpected(&answer))
}

/// [`Host::guard_stderr`] on the other primitives of a host.
pub async fn stderr_tail(host: &(impl Host + ?Sized), dir: &TaskDir) -> Result<Bytes> {
    let path = file("stderr")?;
    if host.info(dir, &path).await?.is_none() {
        return Ok(Bytes::new());
    }
    let path = text(dir.join(&path))?;
    let output = host.run(command(vec!["tail".into(), "-c".into(), STDERR_TAIL.to_string(), path])).await?;
    Ok(succeeded("reading the agent's standard error", output)?.stdout)
}

/// True if an agent was ever started here: the script and what it needs to know are on disk.
async fn started(host: &(impl Host + ?Sized), dir: &TaskDir) -> Result<bool> {
    Ok(host.info(dir, &file("run")?).await?.is_some())
}

async fn beat(host: &(impl Host + ?Sized), dir: &TaskDir) -> Result<()> {
    let beat = format!("{}\n", uuid::Uuid::new_v4().simple());
    host.write(dir, &file("heartbeat")?, beat.into(), 0o600).await
}

async fn read(host: &(impl Host + ?Sized), dir: &TaskDir, name: &str) -> Result<Option<Bytes>> {
    match host.read(dir, &file(name)?, FILE_LIMIT).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(HostError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Runs a verb of the script and answers what it printed.
async fn verb(
    host: &(impl Host + ?Sized),
    dir: &TaskDir,
    verb: &str,
    args: &[&str],
    limit: Duration,
) -> Result<String> {
    let script = text(dir.join(&file("guard.sh")?))?;
    let files = text(dir.path().join("guard"))?;
    let mut argv = vec!["sh".to_owned(), script, verb.to_owned(), files];
    argv.extend(args.iter().map(|arg| (*arg).to_owned()));
    let output = host.run(Command { limit, ..command(argv) }).await?;
    let output = succeeded(&format!("the guard's {verb}"), output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command that does not depend on the user's home being there.
fn command(argv: Vec<String>) -> Command {
    Command { cwd: Some(PathBuf::from("/")), ..Command::new(argv) }
}

fn succeeded(what: &str, output: Output) -> Result<Output> {
    if output.success() {
        return Ok(output);
    }
    Err(HostError::Failed {
        what: what.to_owned(),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn file(name: &str) -> Result<RelPath> {
    RelPath::new(format!("guard/{name}"))
}

fn text(path: PathBuf) -> Result<String> {
    path.into_os_string().into_string().map_err(|path| HostError::Refused {
        what: "task directory",
        value: path.to_string_lossy().into_owned(),
        why: "it is not UTF-8",
    })
}

fn already_running(dir: &TaskDir, pid: u32) -> HostError {
    HostError::AlreadyRunning { dir: dir.path().display().to_string(), pid }
}

fn unexpected(answer: &str) -> HostError {
    HostError::Failed {
        what: "the guard".into(),
        status: "an answer that is none".into(),
        stderr: answer.trim().to_owned(),
    }
}

fn words(answer: &str) -> Vec<&str> {
    answer.split_whitespace().collect()
}

fn number<N: std::str::FromStr>(word: &str) -> Result<N> {
    word.parse().map_err(|_| unexpected(word))
}

fn identity(pid: &str, start_time: &str) -> Result<AgentIdentity> {
    Ok(AgentIdentity { pid: number(pid)?, start_time: number(start_time)? })
}

/// Reads a status as a shell gives it: 128 and more is a signal. A program that returns such a number by itself is not
/// told apart; those that do mean the same by it.
fn exit_status(word: &str) -> Result<ExitStatus> {
    if word == "unknown" {
        return Ok(ExitStatus::Unknown);
    }
    let status: i32 = number(word)?;
    Ok(match status {
        129..=192 => ExitStatus::Signal(status - 128),
        code => ExitStatus::Code(code),
    })
}

/// Whole hundredths of a second, rounded down: a limit is never stretched.
fn hundredths(time: Duration) -> u64 {
    u64::try_from(time.as_millis() / 10).unwrap_or(u64::MAX).min(MAX_HUNDREDTHS)
}

/// Some three years; keeps the script's sums far from overflow.
const MAX_HUNDREDTHS: u64 = 10_000_000_000;
