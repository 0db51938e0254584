//! A program that was started on the machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};

use super::connection::Connection;
use super::exec::{self, Leader, Streams};
use super::kills::Kill;
use super::link::Link;
use super::pump::{Awaited, Grip, Holds, PIPE_BOUND, Progress, Pumped, TERMINAL_BOUND, pump};
use super::shells::Shells as _;
use super::slots::Class;
use super::{mark, runtime};
use crate::error::{HostError, Result};
use crate::guard::Size;
use crate::terminal::VIEWER_TERM;
use crate::{AgentIdentity, Command, ExitStatus, Signal, SpawnedProcess};

/// Limit from the wish to the program's start: a turn among other programs, and a few round trips.
pub(super) const START_LIMIT: Duration = Duration::from_secs(30);
/// How long the machine's shell may take to say that it starts the program, or why not; its user's start files run before.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// How long the channel of a program that nobody has any more may stay open, for the rest of its output. It holds a session.
const CLOSE_AFTER: Duration = Duration::from_secs(10);

/// A running program and its streams.
pub(super) struct Started {
    pub(super) input: tokio::io::DuplexStream,
    pub(super) output: super::queue::QueueReader,
    pub(super) errors: super::queue::QueueReader,
    pub(super) process: FarProcess,
}

/// Starts a program. Must run in the runtime of connections, within [`START_LIMIT`].
pub(super) async fn start(
    link: &Arc<Link>,
    connection: &Arc<Connection>,
    class: Class,
    command: &Command,
    terminal: Option<Size>,
) -> Result<Started> {
    let streams = match (terminal, class) {
        (Some(_), _) => Streams::Terminal,
        (None, Class::Kill | Class::Run) if command.stdin.is_none() => Streams::Silent,
        (None, _) => Streams::Pipes,
    };
    let launch = exec::launch(command, streams)?;
    let lost = |why: &str| link.unreachable(why);
    let (channel, slot) = connection.session(class).await.map_err(|why| lost(&why))?;
    let (tell, told) = oneshot::channel();
    let awaited = Awaited { mark: launch.mark, on_errors: terminal.is_none(), tell };
    let holds = Holds { connection: connection.clone(), slot: Some(slot) };
    let bound = if terminal.is_some() { TERMINAL_BOUND } else { PIPE_BOUND };
    if let Some(size) = terminal {
        let (columns, rows) = (size.columns.into(), size.rows.into());
        let sent = channel.channel().request_pty(false, VIEWER_TERM, columns, rows, 0, 0, RAW).await;
        sent.map_err(|error| lost(&error.to_string()))?;
    }
    let sent = channel.channel().exec(true, exec::LINE).await;
    let Pumped { mut input, output, errors, progress, grip } =
        pump(channel.take(), holds, bound, Some(awaited));
    // Closes the channel on every way out of here but the good one.
    let closing = Closing(Some(grip));
    sent.map_err(|error| lost(&error.to_string()))?;

    let written = async {
        use tokio::io::AsyncWriteExt as _;
        // What a machine that stops reading is up to shows in its answer.
        let _ = input.write_all(&launch.text).await;
    };
    let answering = async {
        tokio::pin!(told);
        match tokio::time::timeout(ANSWER_LIMIT, &mut told).await {
            Ok(told) => told,
            Err(_) => {
                // Makes it tell what was said instead.
                closing.close();
                told.await
            }
        }
    };
    let begun = Instant::now();
    let ((), told) = tokio::join!(written, answering);
    let line = match told {
        Ok(Ok(line)) => line,
        Ok(Err(said)) => {
            let silent = said.is_empty() && begun.elapsed() >= ANSWER_LIMIT;
            return Err(match connection.why_ended() {
                Some(why) => lost(&why),
                None if silent => HostError::TimedOut {
                    what: format!("starting a shell on {}", link.name()),
                    limit: ANSWER_LIMIT,
                },
                None => unusable(link, &quoted(&said, &launch.text)),
            });
        }
        Err(_) => return Err(lost("the channel is gone")),
    };
    let leader = exec::answer(&line, command).unwrap_or_else(|| Err(unusable(link, &line)))?;
    let name = command.argv.first().cloned().unwrap_or_default();
    let grip = closing.keep();
    let process = FarProcess { link: link.clone(), leader, name, progress, grip, settled: false };
    Ok(Started { input, output, errors, process })
}

/// What a machine said, for people; but not what we said to it, which has secrets.
fn quoted(said: &[u8], ours: &[u8]) -> String {
    let ours = String::from_utf8_lossy(ours);
    let text = String::from_utf8_lossy(said);
    // Shorter lines are in many texts by chance, and a machine that plays back ours has longer ones.
    if ours.lines().any(|line| line.len() >= 8 && text.contains(line)) {
        return "(what we say to it)".to_owned();
    }
    mark::shown(said)
}

fn unusable(link: &Link, said: &str) -> HostError {
    let why = match said {
        "" => "it answers with nothing; the login must be a POSIX shell, and no forced command".to_owned(),
        said => format!("instead it says {said:?}"),
    };
    HostError::ShellUnusable { host: link.name().to_owned(), why }
}

/// Modes of a terminal until the program starts: nothing is echoed, edited or taken for a control character.
const RAW: &[(russh::Pty, u32)] = &[
    (russh::Pty::ICANON, 0),
    (russh::Pty::ECHO, 0),
    (russh::Pty::ISIG, 0),
    (russh::Pty::IEXTEN, 0),
    (russh::Pty::ICRNL, 0),
    (russh::Pty::INLCR, 0),
    (russh::Pty::IGNCR, 0),
    (russh::Pty::IXON, 0),
    (russh::Pty::ISTRIP, 0),
];

struct Closing(Option<Grip>);

impl Closing {
    fn close(&self) {
        self.0.iter().for_each(Grip::close);
    }

    fn keep(mut self) -> Grip {
        // Taken here and nowhere else, and this takes the whole.
        self.0.take().expect("a grip is kept once")
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.close();
    }
}

/// A program on the machine; dropping it kills its group.
pub(super) struct FarProcess {
    link: Arc<Link>,
    leader: Leader,
    name: String,
    progress: watch::Receiver<Progress>,
    grip: Grip,
    /// Its end was seen, and what it left behind was killed, or may stay.
    settled: bool,
}

impl FarProcess {
    /// Waits for its end; cancel safe. What it left in its group may stay.
    pub(super) async fn ended(&mut self) -> Result<ExitStatus> {
        let seen = self.progress.wait_for(|progress| *progress != Progress::Running).await;
        let status = match seen.as_deref() {
            Ok(Progress::Exited(status)) => Ok(*status),
            Ok(Progress::Lost(why)) => Err(self.link.unreachable(&format!("{} was lost: {why}", self.name))),
            Ok(Progress::Running) | Err(_) => Err(self.link.unreachable("the connection is gone")),
        };
        drop(seen);
        if status.is_ok() {
            self.settled = true;
        }
        status
    }

    /// Its channel, from outside.
    pub(super) fn grip(&self) -> Grip {
        self.grip.clone()
    }

    fn kill(&self, signal: Signal) -> Kill {
        Kill { leader: self.leader, signal, left_behind: false }
    }
}

#[async_trait]
impl SpawnedProcess for FarProcess {
    fn identity(&self) -> AgentIdentity {
        self.leader.identity
    }

    /// What the program left in its group ends with it, as on this machine; nobody waits for that.
    async fn wait(&mut self) -> Result<ExitStatus> {
        let first = !self.settled;
        let status = self.ended().await?;
        if first {
            self.link.kill_soon(Kill { left_behind: true, ..self.kill(Signal::Kill) });
        }
        Ok(status)
    }

    async fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.settled {
            return Ok(());
        }
        self.link.kill(vec![self.kill(signal)]).await
    }
}

impl Drop for FarProcess {
    fn drop(&mut self) {
        if !self.settled {
            let ended = matches!(*self.progress.borrow(), Progress::Exited(_));
            self.link.kill_soon(Kill { left_behind: ended, ..self.kill(Signal::Kill) });
        }
        let (grip, mut progress) = (self.grip.clone(), self.progress.clone());
        if progress.has_changed().is_err() {
            // The channel is closed already.
            return;
        }
        runtime::start(async move {
            // Whoever still reads gets what the program wrote before: the channel closes when that is all, unless something
            // else holds the program's pipes.
            let closed = async { while progress.changed().await.is_ok() {} };
            let _ = tokio::time::timeout(CLOSE_AFTER, closed).await;
            grip.close();
        });
    }
}
