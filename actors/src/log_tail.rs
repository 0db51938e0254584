//! LogTail: the agent's own log, line by line; and what it hands over, one at a time.

mod deliver;
mod lines;
mod pass;

use std::time::Duration;

use actix::prelude::*;
use optio_codex_protocol::keywords::Keyword;
use optio_codex_protocol::workdir;
use optio_host::Watch;
use serde_json::json;
use tokio::sync::oneshot;
use tracing::{debug, warn};

pub use lines::LogPosition;
pub use pass::Heed;
use pass::{Unread, read_all};

use crate::session::RunContext;
use crate::supervision::{ChildKind, ExitSlot, Observation, Observe, Pulse, beat};

const OPTIO_LOG: &str = workdir::OPTIO_LOG;
const DELIVERABLES: &str = workdir::DELIVERABLES;

/// A look without being woken, in case a wake-up was missed.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The wait before a watch that could not be set up, or has ended, is set up again.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// Deliverables that may wait for their turn, and answers that may wait for the agent; the log is not read on meanwhile
/// (S-172).
pub(crate) const QUEUE: usize = 64;

/// How long the operator's hook may take over a deliverable.
pub const REVIEW_LIMIT: Duration = Duration::from_secs(60);

/// Silence past this is loss: a review, the reading and the keeping of its file, and a disk that holds the journal back.
pub(crate) const PULSE_LIMIT: Duration = Duration::from_secs(150);

/// Follows `optio.log` from the byte where the record says it stood, and tells the session what it finds: each line once,
/// whichever child or process reads it. The next part is read when the session has put the last one on record.
pub struct LogTail {
    run: RunContext,
    session: Ears,
    exit: ExitSlot,
    pulse: Pulse,
    heed: Heed,
    position: LogPosition,
    stage: Stage,
    reading: bool,
    delivering: bool,
    /// Something may have been appended while a read was under way.
    look_again: bool,
    /// Who waits until what is there now was read.
    to_the_end: Vec<oneshot::Sender<()>>,
    settled: u64,
    last_error: Option<String>,
}

/// Whom the tail tells.
pub struct Ears {
    /// Of lines.
    pub lines: Recipient<LogRead>,
    /// Of deliverables.
    pub deliverables: Recipient<DeliverableSettled>,
}

/// Whether there is anything to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The log of this run is not prepared yet: what is in it is an earlier run's.
    Waiting,
    /// It is followed.
    Following,
    /// The agent said that it is over, or the run ends: nothing more is read, what was announced is still delivered.
    Over,
}

/// With what a tail begins.
pub struct TailStart {
    /// What it pays heed to.
    pub heed: Heed,
    /// How far the log was read.
    pub position: LogPosition,
    /// Where the run stands.
    pub stage: Stage,
}

impl LogTail {
    /// A tail for this run.
    pub fn new(run: RunContext, pulse: Pulse, exit: ExitSlot, session: Ears, start: TailStart) -> Self {
        let TailStart { heed, position, stage } = start;
        Self {
            run,
            session,
            exit,
            pulse,
            heed,
            position,
            stage,
            reading: false,
            delivering: false,
            look_again: false,
            to_the_end: Vec::new(),
            settled: 0,
            last_error: None,
        }
    }

    fn arm(&mut self, ctx: &mut Context<Self>) {
        if self.run.host_is_away() {
            return self.arm_later(ctx);
        }
        let run = self.run.clone();
        let arming = async move { run.host.watch(&run.dir, &RunContext::in_workdir(OPTIO_LOG)).await };
        ctx.spawn(arming.into_actor(self).map(|armed, tail, ctx| match armed {
            Ok(watch) => {
                let wakes = futures_util::stream::unfold(watch, |mut watch: Watch| async move {
                    watch.changed().await.map(|()| ((), watch))
                });
                let looking = wakes.into_actor(tail).map(|(), tail, ctx| tail.look(ctx));
                ctx.spawn(looking.finish().map(|(), tail, ctx| tail.arm_later(ctx)));
                // What was appended before the watch was there.
                tail.look(ctx);
            }
            Err(problem) => {
                debug!(%problem, "log is only looked at, not watched");
                tail.arm_later(ctx);
            }
        }));
    }

    fn arm_later(&self, ctx: &mut Context<Self>) {
        if self.stage == Stage::Following {
            ctx.run_later(WATCH_PAUSE, Self::arm);
        }
    }

    /// Reads what is there, unless that is being done; what comes meanwhile is read afterwards.
    fn look(&mut self, ctx: &mut Context<Self>) {
        self.pulse.touch();
        self.deliver(ctx);
        // Nothing can be read of a host that is away; whoever waits for the end has to do without.
        if self.stage != Stage::Following || self.run.host_is_away() {
            self.to_the_end.clear();
            return;
        }
        if self.reading {
            self.look_again = true;
            return;
        }
        self.reading = true;
        self.look_again = false;
        let waiting = std::mem::take(&mut self.to_the_end);
        let (run, at, heed) = (self.run.clone(), self.position.clone(), self.heed);
        let (session, pulse) = (self.session.lines.clone(), self.pulse.clone());
        let hurry = !waiting.is_empty();
        let reading = async move { read_all(&run, at, heed, session, pulse, hurry).await };
        ctx.spawn(reading.into_actor(self).map(|read, tail, ctx| {
            tail.reading = false;
            tail.pulse.touch();
            // Whoever waits hears of the end by the drop of their sender.
            match read {
                Ok(read) => {
                    tail.last_error = None;
                    tail.position = read.position;
                    if read.last && tail.stage == Stage::Following {
                        tail.stage = Stage::Over;
                    }
                    let again = tail.look_again || !tail.to_the_end.is_empty();
                    if read.blocked {
                        // The end is behind a deliverable that has to wait; the one that makes room looks again.
                        tail.to_the_end.extend(waiting);
                        tail.deliver(ctx);
                    } else if again {
                        tail.look(ctx);
                    } else {
                        tail.deliver(ctx);
                    }
                }
                // A log that is a link, or a directory: the agent's doing, and perhaps not its last.
                Err(Unread::Odd(why)) => {
                    if tail.last_error.as_ref() != Some(&why) {
                        warn!(why, "log cannot be read");
                    }
                    tail.last_error = Some(why);
                    tail.to_the_end.clear();
                }
                // It goes on at this byte when the host is back.
                Err(Unread::Away(why)) => {
                    tail.last_error = Some(why);
                    tail.to_the_end.clear();
                }
                Err(Unread::Broken(why)) => tail.fail(why, ctx),
            }
        }));
    }

    /// Settles the first announced deliverable, and then the next.
    fn deliver(&mut self, ctx: &mut Context<Self>) {
        if self.delivering || self.stage == Stage::Waiting || self.run.host_is_away() {
            return;
        }
        let next = self.run.ledger.read(|record| {
            let log = &record.run.as_ref()?.log;
            log.pending.first().filter(|_| log.answers.len() < QUEUE).cloned()
        });
        let Some(announced) = next else { return };
        self.delivering = true;
        let (run, session) = (self.run.clone(), self.session.deliverables.clone());
        let settling = async move {
            run.step(ChildKind::LogTail, "deliver").await.map_err(|injected| injected.to_string())?;
            let Some(settled) = deliver::settle(&run, announced).await else { return Ok(false) };
            // Put on record before the next one is begun.
            session.send(settled).await.map_err(|_| "the session is gone".to_owned())?;
            Ok(true)
        };
        ctx.spawn(settling.into_actor(self).map(|settled: Result<bool, String>, tail, ctx| {
            tail.delivering = false;
            tail.pulse.touch();
            match settled {
                Ok(true) => {
                    tail.settled += 1;
                    // There may be room again for what was read last.
                    tail.look(ctx);
                }
                // The host was away. It stays the first, and is fetched when somebody looks again.
                Ok(false) => {}
                Err(why) => tail.fail(why, ctx),
            }
        }));
    }

    fn fail(&mut self, why: String, ctx: &mut Context<Self>) {
        self.exit.fail(why);
        ctx.stop();
    }
}

impl Actor for LogTail {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        match self.stage {
            Stage::Waiting => {}
            Stage::Following => self.arm(ctx),
            Stage::Over => self.deliver(ctx),
        }
        ctx.run_interval(LOOK_EVERY, |tail, ctx| tail.look(ctx));
        beat(ctx, ChildKind::LogTail, self.run.clone());
    }
}

/// A line of the agent.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// Its number in this run's log, from 1.
    pub line: u64,
    /// How many notes before it were left out.
    pub left_out: usize,
    /// What it says.
    pub said: Keyword,
}

/// Tells the session what was read; answered when that is on record.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct LogRead {
    /// The lines, in their order.
    pub lines: Vec<LogLine>,
    /// How far that is.
    pub position: LogPosition,
}

/// Tells the session what became of a deliverable; answered when that is on record.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct DeliverableSettled {
    /// The line that announced it.
    pub line: u64,
    /// The path as the agent wrote it.
    pub path: String,
    /// Its path relative to `deliverables/`, or the path as it was written where that is none.
    pub name: String,
    /// Its length, if it was fetched.
    pub bytes: Option<u64>,
    /// SHA-256 of its content in hex, if it was taken.
    pub sha256: Option<String>,
    /// It was taken.
    pub accepted: bool,
    /// What the agent is told.
    pub reply: String,
}

/// Begins to follow the log: it is this run's now, and empty.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct FollowLog;

impl Handler<FollowLog> for LogTail {
    type Result = ();

    fn handle(&mut self, _: FollowLog, ctx: &mut Self::Context) {
        if self.stage == Stage::Waiting {
            self.stage = Stage::Following;
            self.arm(ctx);
        }
    }
}

/// Asks for a look: there is room again, or a reason to think that something was appended.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct LookAtLog;

impl Handler<LookAtLog> for LogTail {
    type Result = ();

    fn handle(&mut self, _: LookAtLog, ctx: &mut Self::Context) {
        self.look(ctx);
    }
}

/// Reads what is there now to its end; answered when the session was told of all of it. Whoever asks has a limit: the
/// agent may write faster than anybody reads.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct ReadToTheEnd;

impl Handler<ReadToTheEnd> for LogTail {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: ReadToTheEnd, ctx: &mut Self::Context) -> Self::Result {
        let (read, waiting) = oneshot::channel::<()>();
        self.to_the_end.push(read);
        self.look(ctx);
        Box::pin(async move {
            // Never sent, only dropped.
            let _ = waiting.await;
        })
    }
}

/// Reads no more: the run ends.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct StopReading;

impl Handler<StopReading> for LogTail {
    type Result = ();

    fn handle(&mut self, _: StopReading, _: &mut Self::Context) {
        self.stage = Stage::Over;
    }
}

impl Handler<Observe> for LogTail {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        let phase = match (self.stage, self.reading, self.delivering) {
            (Stage::Waiting, ..) => "waiting for the log",
            (Stage::Following, ..) if self.run.host_is_away() => "waiting for the host",
            (_, _, true) => "delivering",
            (Stage::Over, ..) => "over",
            (_, true, _) => "reading",
            (Stage::Following, ..) => "following",
        };
        MessageResult(Observation {
            phase: phase.to_owned(),
            last_error: self.last_error.clone(),
            detail: json!({
                "offset": self.position.offset, "line": self.position.line, "deliverables": self.settled,
            }),
        })
    }
}
