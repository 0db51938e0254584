//! An agent on our own pipes, for codex versions that cannot listen.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use optio_host::guard::{RUN_MARK, STDERR_TAIL};
use optio_host::{AgentIdentity, Command, ExitStatus, HostError, Signal, SpawnedProcess};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};

use super::AgentLaunch;
use crate::session::RunContext;
use crate::teardown::StopStyle;

/// What the conversation is held over. Dropping `stdin` is end-of-file for the agent, which ends it (S-355).
pub struct Pipes {
    /// To the agent.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// From the agent.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
}

/// How long the last words of an agent that has ended may be on their way through its pipe.
const WORDS_LIMIT: Duration = Duration::from_secs(1);

/// The last bytes of an agent's standard error. Readable also after its end.
#[derive(Clone)]
pub(super) struct Stderr {
    tail: Arc<Mutex<Vec<u8>>>,
    /// Ends when the stream has.
    drained: watch::Receiver<()>,
}

impl Stderr {
    fn read(mut from: Box<dyn AsyncRead + Send + Unpin>) -> Self {
        let (open, drained) = watch::channel(());
        let tail = Arc::<Mutex<Vec<u8>>>::default();
        let filled = tail.clone();
        actix_rt::spawn(async move {
            let _open = open;
            let mut chunk = vec![0; 8 * 1024];
            while let Ok(n @ 1..) = from.read(&mut chunk).await {
                let mut tail = filled.lock().unwrap_or_else(PoisonError::into_inner);
                tail.extend_from_slice(&chunk[..n]);
                let over = tail.len().saturating_sub(STDERR_TAIL);
                tail.drain(..over);
            }
        });
        Self { tail, drained }
    }

    /// What it last said. With `to_the_end`, an agent that seems to have ended may finish.
    pub(super) async fn last_words(mut self, to_the_end: bool) -> Bytes {
        if to_the_end {
            // The stream's end is an error of `changed`; one that lives has said what it has said.
            let _ = tokio::time::timeout(WORDS_LIMIT, self.drained.changed()).await;
        }
        Bytes::from(self.tail.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// A hold on the child. Dropping it kills the child's group.
pub(super) struct Piped {
    identity: AgentIdentity,
    signals: mpsc::Sender<Signal>,
    exited: watch::Receiver<Option<ExitStatus>>,
    stderr: Stderr,
}

impl Piped {
    /// Starts the child. The future is its exit.
    pub(super) async fn start(
        run: &RunContext,
        launch: AgentLaunch,
    ) -> Result<(Self, Pipes, impl Future<Output = ExitStatus> + use<>), HostError> {
        let mut command = Command::new(launch.argv);
        command.env = launch.env;
        command.cwd = Some(run.dir.workdir());
        // How it is found when nobody is connected to it any more.
        let mark = run.run.to_string();
        run.host.guard_mark(&run.dir, &mark).await?;
        command.env.add.insert(RUN_MARK.to_owned(), mark);
        let child = run.host.spawn(command).await?;
        let identity = child.process.identity();
        let stderr = Stderr::read(child.stderr);
        let (signals, orders) = mpsc::channel(4);
        let (tell, exited) = watch::channel(None);
        let (ended, exit) = oneshot::channel();
        actix_rt::spawn(hold(child.process, orders, tell, ended));
        let pipes = Pipes { stdin: child.stdin, stdout: child.stdout };
        let piped = Self { identity, signals, exited, stderr };
        Ok((piped, pipes, async { exit.await.unwrap_or(ExitStatus::Unknown) }))
    }

    pub(super) fn identity(&self) -> AgentIdentity {
        self.identity
    }

    pub(super) fn stderr(&self) -> Stderr {
        self.stderr.clone()
    }

    /// Ends the child: the conversation has closed its input by now, which is the gentle way; then SIGTERM, SIGKILL. Proves
    /// nothing: a pipe ends with its connection too.
    pub(super) async fn stop(self, style: StopStyle, flush: Duration, kill: Duration) {
        if style == StopStyle::Graceful {
            for (limit, then) in [(flush / 2, Signal::Term), (flush / 2, Signal::Kill)] {
                if self.gone(limit).await {
                    break;
                }
                // The holder is gone only when the child is.
                let _ = self.signals.send(then).await;
            }
        }
        // Also after its end: what it left in its group goes too (S-093).
        let _ = self.signals.send(Signal::Kill).await;
        if !self.gone(kill).await {
            tracing::warn!(pid = self.identity.pid, "agent did not end after SIGKILL");
        }
    }

    async fn gone(&self, limit: Duration) -> bool {
        let mut exited = self.exited.clone();
        tokio::time::timeout(limit, exited.wait_for(Option::is_some)).await.is_ok()
    }
}

/// Owns the process itself, because waiting and signalling need it at the same time.
async fn hold(
    mut process: Box<dyn SpawnedProcess>,
    mut orders: mpsc::Receiver<Signal>,
    tell: watch::Sender<Option<ExitStatus>>,
    ended: oneshot::Sender<ExitStatus>,
) {
    let mut ended = Some(ended);
    loop {
        tokio::select! {
            status = process.wait(), if ended.is_some() => {
                let status = status.unwrap_or(ExitStatus::Unknown);
                tell.send_replace(Some(status));
                if let Some(ended) = ended.take() {
                    // Nobody has to be interested any more.
                    let _ = ended.send(status);
                }
            }
            order = orders.recv() => match order {
                Some(signal) => {
                    if let Err(problem) = process.signal(signal).await {
                        tracing::warn!(%problem, "agent was not signalled");
                    }
                }
                None => return,
            },
        }
    }
}
