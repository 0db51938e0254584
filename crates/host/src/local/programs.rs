//! Running programs on this machine, each as the leader of a process group of its own.

use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::process::{Pid, kill_process, kill_process_group};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin};

use crate::error::{HostError, Result};
use crate::tail::Tail;
use crate::{AgentIdentity, Command, ExitStatus, Output, Signal, Spawned, SpawnedProcess};

/// How long output is still read after a program has ended while something it left behind holds its pipes. What the
/// program itself wrote is in the pipe by then.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);
/// How long a killed program is waited for. SIGKILL needs no cooperation; longer means it hangs inside the kernel.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// Tries to start a program that is being written, and the pause between them: a fork takes a millisecond to its exec.
const BUSY_TRIES: u32 = 40;
const BUSY_PAUSE: Duration = Duration::from_millis(25);

/// Runs a program to its end (see [`crate::Host::run`]).
pub(super) async fn run(command: Command, home: &Path) -> Result<Output> {
    let name = program_name(&command)?.to_owned();
    let mut leader = Leader::start_soon(&command, home).await?;
    let feeding = feed(leader.child.stdin.take(), command.stdin);
    let (out, err) = (leader.child.stdout.take(), leader.child.stderr.take());
    let (mut stdout, mut stderr) = (Tail::default(), Tail::default());

    let whole = async {
        let drained = async { tokio::join!(feeding, stdout.fill(out), stderr.fill(err)) };
        tokio::pin!(drained);
        let status = tokio::select! {
            status = leader.wait() => status?,
            _ = &mut drained => return leader.wait().await,
        };
        // Not an error when it runs out: a daemon that the program started may keep the pipes for its whole life.
        let _ = tokio::time::timeout(OUTPUT_GRACE, drained).await;
        Ok(status)
    };
    match tokio::time::timeout(command.limit, whole).await {
        Ok(status) => {
            Ok(Output { status: status?, stdout: stdout.into_bytes(), stderr: stderr.into_bytes() })
        }
        Err(_) => {
            leader.kill_unreaped();
            let _ = tokio::time::timeout(KILL_GRACE, leader.wait()).await;
            Err(HostError::TimedOut { what: name, limit: command.limit })
        }
    }
}

/// Starts a program with three pipes (see [`crate::Host::spawn`]).
pub(super) async fn spawn(command: Command, home: &Path) -> Result<Spawned> {
    let name = program_name(&command)?.to_owned();
    if command.stdin.is_some() {
        let why = "a spawned program reads its pipe; write to that";
        return Err(HostError::Refused { what: "standard input of", value: name, why });
    }
    let mut leader = Leader::start(&command, Stdio::piped(), home)?;
    let pid = leader.pid;
    let identity = super::blocking(move || identity_of(pid)).await?;
    let missing =
        || HostError::Program { program: name.clone(), why: "it was started without its pipes".into() };
    Ok(Spawned {
        stdin: Box::new(leader.child.stdin.take().ok_or_else(missing)?),
        stdout: Box::new(leader.child.stdout.take().ok_or_else(missing)?),
        stderr: Box::new(leader.child.stderr.take().ok_or_else(missing)?),
        process: Box::new(LocalProcess { leader, identity }),
    })
}

struct LocalProcess {
    leader: Leader,
    identity: AgentIdentity,
}

#[async_trait]
impl SpawnedProcess for LocalProcess {
    fn identity(&self) -> AgentIdentity {
        self.identity
    }

    /// What the child left in its group ends with it: nobody could tell later whether the group is still the same.
    async fn wait(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.leader.ended {
            return Ok(status);
        }
        let status = self.leader.wait().await?;
        // At once, while a new process cannot have come by the number.
        signal_group(self.leader.pid, Signal::Kill)?;
        Ok(status)
    }

    async fn signal(&mut self, signal: Signal) -> Result<()> {
        match self.leader.ended {
            Some(_) => Ok(()),
            None => signal_group(self.leader.pid, signal),
        }
    }
}

/// A child that leads its process group. Its number stays its own for as long as nobody has waited for it, so its
/// group is signalled until then and never later.
struct Leader {
    child: Child,
    pid: Pid,
    ended: Option<ExitStatus>,
}

impl Leader {
    /// Starts a program, which may have been written a moment ago: a child that was forked meanwhile holds the file open for
    /// writing until it executes its own program, and so long the system refuses to execute this one.
    async fn start_soon(command: &Command, home: &Path) -> Result<Self> {
        for _ in 0..BUSY_TRIES {
            match Self::start(command, stdin_of(command), home) {
                Err(HostError::Io { source, .. }) if source.kind() == ErrorKind::ExecutableFileBusy => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                started => return started,
            }
        }
        Self::start(command, stdin_of(command), home)
    }

    fn start(command: &Command, stdin: Stdio, home: &Path) -> Result<Self> {
        let name = program_name(command)?;
        let cwd = command.cwd.as_deref().unwrap_or(home);
        let child = tokio::process::Command::new(name)
            .args(&command.argv[1..])
            .env_clear()
            .envs(command.env.apply(std::env::vars_os())?)
            .current_dir(cwd)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| start_error(name, cwd, error))?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).ok_or_else(|| {
            HostError::Program { program: name.to_owned(), why: "it ended before it had a process id".into() }
        })?;
        Ok(Self { child, pid, ended: None })
    }

    /// Waits for the leader; cancel safe.
    async fn wait(&mut self) -> Result<ExitStatus> {
        if let Some(ended) = self.ended {
            return Ok(ended);
        }
        let status = self.child.wait().await.map_err(|source| HostError::io("wait for a program", source))?;
        let ended = match (status.code(), status.signal()) {
            (Some(code), _) => ExitStatus::Code(code),
            (None, Some(signal)) => ExitStatus::Signal(signal),
            (None, None) => ExitStatus::Unknown,
        };
        self.ended = Some(ended);
        Ok(ended)
    }

    fn kill_unreaped(&self) {
        if self.ended.is_some() {
            return;
        }
        if let Err(error) = signal_group(self.pid, Signal::Kill) {
            tracing::warn!(pid = self.pid.as_raw_nonzero().get(), %error, "program could not be killed");
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.kill_unreaped();
    }
}

/// Signals a process group; one that is gone is fine. Where the group may not be signalled (it changed its user), its
/// leader is tried alone (S-092).
fn signal_group(group: Pid, signal: Signal) -> Result<()> {
    use rustix::io::Errno;
    let sent = match signal {
        Signal::Int => rustix::process::Signal::INT,
        Signal::Term => rustix::process::Signal::TERM,
        Signal::Kill => rustix::process::Signal::KILL,
    };
    let result = match kill_process_group(group, sent) {
        Err(Errno::PERM) => {
            tracing::warn!(
                pid = group.as_raw_nonzero().get(),
                "group may not be signalled, its leader is tried"
            );
            kill_process(group, sent)
        }
        result => result,
    };
    match result {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(HostError::io(format!("signal {}", group.as_raw_nonzero()), errno.into())),
    }
}

/// Pid and start time of a process that nobody has waited for yet.
fn identity_of(pid: Pid) -> Result<AgentIdentity> {
    let pid = pid.as_raw_nonzero().get().cast_unsigned();
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read(&path).map_err(|source| HostError::io(format!("read {path}"), source))?;
    let start_time = start_time(&stat).ok_or_else(|| {
        HostError::io(format!("read {path}"), std::io::Error::other("it has no start time as its 22nd field"))
    })?;
    Ok(AgentIdentity { pid, start_time })
}

/// Field 22 of a `/proc/PID/stat`. The second field, the name, may itself hold spaces and parentheses.
fn start_time(stat: &[u8]) -> Option<u64> {
    let end_of_name = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[end_of_name + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

fn stdin_of(command: &Command) -> Stdio {
    if command.stdin.is_some() { Stdio::piped() } else { Stdio::null() }
}

pub(super) fn program_name(command: &Command) -> Result<&str> {
    match command.argv.first() {
        Some(name) if !name.is_empty() => Ok(name),
        _ => Err(HostError::Refused { what: "command", value: String::new(), why: "it names no program" }),
    }
}

pub(super) fn start_error(name: &str, cwd: &Path, error: std::io::Error) -> HostError {
    let why = match error.kind() {
        // The system says the same of a missing program and a missing directory.
        ErrorKind::NotFound if !cwd.is_dir() => {
            return HostError::NotFound { path: cwd.display().to_string() };
        }
        ErrorKind::NotFound => "there is no such program".to_owned(),
        ErrorKind::ExecutableFileBusy => return HostError::io(format!("start {name}"), error),
        _ => error.to_string(),
    };
    HostError::Program { program: name.to_owned(), why }
}

async fn feed(pipe: Option<ChildStdin>, bytes: Option<Bytes>) {
    if let (Some(mut pipe), Some(bytes)) = (pipe, bytes) {
        // A program may end, or close its input, without reading all of it: its exit status tells, not the pipe.
        let _ = pipe.write_all(&bytes).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_time_is_found_behind_a_hostile_program_name() {
        let stat = b"7 (a) b (c 9) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 2";
        assert_eq!(start_time(stat), Some(4711));
        assert_eq!(start_time(b"7 (cut short) S 1 7"), None);
    }
}
