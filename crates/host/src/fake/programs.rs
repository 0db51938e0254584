//! Programs of a [`super::FakeHost`]: futures of the test that are started, signalled and watched like processes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{FakeHost, Program};
use crate::error::Result;
use crate::guard::RUN_MARK;
use crate::{AgentIdentity, Dial, ExitStatus, Signal, Size, SpawnedProcess, TaskDir};

/// Bytes a pipe or a connection of the fake holds; a Linux pipe holds as many.
pub(super) const PIPE: usize = 64 * 1024;
/// Connections that wait to be accepted, and signals that wait to be looked at.
const BACKLOG: usize = 16;

/// How a program was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FakeStart {
    /// By [`crate::Host::run`].
    Run,
    /// By [`crate::Host::spawn`].
    Spawn,
    /// By [`crate::Host::open_pty`], on a terminal of this size.
    Pty(Size),
    /// By [`crate::Host::guard_start`], for this task directory.
    Guard(TaskDir),
}

/// A program that was just started, as the test's own code gets to play it. The program ends when its future does,
/// with the status that the future answers; SIGKILL drops the future, and so do SIGTERM and SIGINT unless
/// [`FakeLaunch::catch_signals`] was called.
pub struct FakeLaunch {
    /// How it was started.
    pub start: FakeStart,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// Its directory.
    pub cwd: PathBuf,
    /// Its standard input.
    pub stdin: DuplexStream,
    /// Its standard output; under the guard nobody reads it.
    pub stdout: DuplexStream,
    /// Its standard error.
    pub stderr: DuplexStream,
    /// Who it is.
    pub identity: AgentIdentity,
    /// The machine it runs on, for its files.
    pub host: FakeHost,
    pub(super) caught: mpsc::Receiver<Signal>,
    pub(super) catches: Arc<AtomicBool>,
}

impl FakeLaunch {
    /// Listens where [`crate::Host::dial`] will find it, until the listener is dropped.
    pub fn listen(&self, at: Dial) -> FakeListener {
        let (incoming, connections) = mpsc::channel(BACKLOG);
        self.host.state().listeners.insert(at.clone(), incoming);
        FakeListener { at, connections, host: self.host.clone() }
    }

    /// Takes SIGTERM and SIGINT as messages from now on, instead of dying of them. May be called once.
    pub fn catch_signals(&mut self) -> FakeSignals {
        self.catches.store(true, Ordering::SeqCst);
        let (_, none) = mpsc::channel(1);
        FakeSignals { caught: std::mem::replace(&mut self.caught, none) }
    }

    /// Leaves processes behind that outlive this program and carry its run mark, until
    /// [`crate::Host::guard_kill_leftovers`] ends them. Only for a program under the guard.
    pub fn leave_behind(&self, processes: usize) {
        if let FakeStart::Guard(dir) = &self.start {
            self.host.leave_behind(dir, processes);
        }
    }
}

/// The signals a program takes for itself.
pub struct FakeSignals {
    caught: mpsc::Receiver<Signal>,
}

impl FakeSignals {
    /// Waits for the next signal. Cancel safe.
    pub async fn next(&mut self) -> Signal {
        match self.caught.recv().await {
            Some(signal) => signal,
            // The process is over, and this future about to be dropped.
            None => std::future::pending().await,
        }
    }
}

/// The listening end of a socket on the fake.
pub struct FakeListener {
    at: Dial,
    connections: mpsc::Receiver<DuplexStream>,
    host: FakeHost,
}

impl FakeListener {
    /// Waits for the next connection and answers the program's end of it. Cancel safe.
    pub async fn accept(&mut self) -> DuplexStream {
        match self.connections.recv().await {
            Some(connection) => connection,
            // Somebody else listens at the same place now.
            None => std::future::pending().await,
        }
    }
}

impl Drop for FakeListener {
    fn drop(&mut self) {
        self.connections.close();
        let mut state = self.host.state();
        // A later listener may have taken the place.
        if state.listeners.get(&self.at).is_some_and(mpsc::Sender::is_closed) {
            state.listeners.remove(&self.at);
        }
    }
}

/// A program that was started.
pub(super) struct Process {
    pub(super) identity: AgentIdentity,
    signals: mpsc::Sender<Signal>,
    killed: CancellationToken,
    ended: watch::Receiver<Option<ExitStatus>>,
    /// The mark of its run, if it has one.
    pub(super) mark: Option<String>,
}

impl Process {
    /// How it ended, if it has.
    pub(super) fn ended(&self) -> Option<ExitStatus> {
        *self.ended.borrow()
    }

    pub(super) async fn wait(&self) -> ExitStatus {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.unwrap_or(ExitStatus::Unknown),
            // The runtime that ran it is gone.
            Err(_) => ExitStatus::Unknown,
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        match signal {
            Signal::Kill => self.killed.cancel(),
            // A program that does not look at its signals does not get more of them either.
            signal => drop(self.signals.try_send(signal)),
        }
    }
}

/// The ends of a started program that its starter holds.
pub(super) struct Pipes {
    pub(super) stdin: DuplexStream,
    pub(super) stdout: DuplexStream,
    pub(super) stderr: DuplexStream,
}

/// What a program is started with.
pub(super) struct Start {
    pub(super) start: FakeStart,
    pub(super) argv: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) cwd: PathBuf,
}

/// Starts a program on the current runtime.
pub(super) fn start(host: &FakeHost, program: &Program, with: Start, pid: u32) -> (Arc<Process>, Pipes) {
    let (signals, mut received) = mpsc::channel(BACKLOG);
    let (catch, caught) = mpsc::channel(BACKLOG);
    let (end, ended) = watch::channel(None);
    let killed = CancellationToken::new();
    let catches = Arc::new(AtomicBool::new(false));
    let ((stdin, its_stdin), (stdout, its_stdout), (stderr, its_stderr)) =
        (tokio::io::duplex(PIPE), tokio::io::duplex(PIPE), tokio::io::duplex(PIPE));
    // Pids are never reused here, so any start time would do; one that differs from the pid shows mix-ups.
    let identity = AgentIdentity { pid, start_time: u64::from(pid) * 100 };
    let mark = with.env.get(RUN_MARK).cloned();
    let launch = FakeLaunch {
        start: with.start,
        argv: with.argv,
        env: with.env,
        cwd: with.cwd,
        stdin: its_stdin,
        stdout: its_stdout,
        stderr: its_stderr,
        identity,
        host: host.clone(),
        caught,
        catches: Arc::clone(&catches),
    };
    let program = Arc::clone(program);
    // Called within the task: the test's code takes the machine's lock, and our caller may hold it.
    let mut body = tokio::spawn(async move { program(launch).await });
    let (kill, host) = (killed.clone(), host.clone());
    tokio::spawn(async move {
        let status = loop {
            let died_of = tokio::select! {
                biased;
                () = kill.cancelled() => Signal::Kill,
                Some(signal) = received.recv() => {
                    host.note(format!("pid {pid} got {signal:?}"));
                    if catches.load(Ordering::SeqCst) {
                        let _ = catch.try_send(signal);
                        continue;
                    }
                    signal
                }
                done = &mut body => break done.unwrap_or_else(|error| {
                    // A panic of the test's own program must be seen, and is a crash to everybody else.
                    tracing::error!(pid, %error, "fake program panicked");
                    host.note(format!("pid {pid} panicked: {error}"));
                    ExitStatus::Signal(SIGABRT)
                }),
            };
            body.abort();
            // Its sockets and pipes are closed before its end is known.
            let _ = (&mut body).await;
            break ExitStatus::Signal(number(died_of));
        };
        host.note(format!("pid {pid} ended with {status}"));
        end.send_replace(Some(status));
    });
    let process = Arc::new(Process { identity, signals, killed, ended, mark });
    (process, Pipes { stdin, stdout, stderr })
}

const SIGABRT: i32 = 6;

/// The signal's number on Linux.
fn number(signal: Signal) -> i32 {
    match signal {
        Signal::Int => 2,
        Signal::Kill => 9,
        Signal::Term => 15,
    }
}

/// Kills its process when it is dropped.
pub(super) struct KillOnDrop(pub(super) Arc<Process>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.signal(Signal::Kill);
    }
}

/// A spawned program as it is had over the network: when that breaks, nobody hears of its end, and nobody ends it.
pub(super) struct Child {
    pub(super) process: Arc<Process>,
    pub(super) host: FakeHost,
    pub(super) connection: u64,
}

#[async_trait]
impl SpawnedProcess for Child {
    fn identity(&self) -> AgentIdentity {
        self.process.identity
    }

    async fn wait(&mut self) -> Result<ExitStatus> {
        self.host.carry(self.connection, async { Ok(self.process.wait().await) }).await
    }

    async fn signal(&mut self, signal: Signal) -> Result<()> {
        let signalling = async {
            self.process.signal(signal);
            Ok(())
        };
        self.host.carry(self.connection, signalling).await
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.host.has_lost(self.connection) {
            self.process.signal(Signal::Kill);
        }
    }
}
