//! Process: the agent's process, and the proof that it is gone.

mod piped;

use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use optio_host::{
    AgentIdentity, AgentState, EnvPlan, ExitStatus, GuardSpec, Host, HostError, RelPath, Signal, Stage,
    TaskDir, Watch,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

pub use piped::Pipes;
use piped::{Piped, Stderr};

use crate::session::RunContext;
use crate::supervision::{ChildKind, Observation, Observe, Pulse, beat};
use crate::teardown::{Finish, StepError, StepResult, StopAgent, StopStyle};
use crate::trace::Deed;

/// A look at the agent without being woken.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// Silence past this is loss. Short, because a hung one touches no heartbeat: found 5 s later at most, its successor has
/// to hear of the next renewal, 10 s later at most, before the guard ends the agent at 45 s.
pub(crate) const PULSE_LIMIT: Duration = Duration::from_secs(15);

/// How long an agent may take to flush and end by itself after SIGTERM or end-of-file (S-458, S-460); an idle one
/// takes 0.03 s (LAB §9).
const FLUSH_LIMIT: Duration = Duration::from_secs(10);

/// How long the kernel may take to end and reap what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Tries to stop an agent; what fails does so at once or, with the limits above, within 20 s.
const STOP_TRIES: u32 = 2;

/// The wait between two of them.
const STOP_PAUSE: Duration = Duration::from_secs(1);

/// A heartbeat for a renewal that was sent longer ago than this would promise more than the lease holds.
const HEARTBEAT_AGE: Duration = Duration::from_secs(4);

/// How long an agent that broke its conversation off may take to end: most often that was its end already, and its
/// status says more than a closed pipe.
const END_LIMIT: Duration = Duration::from_secs(2);

/// How the agent is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// An app-server on a Unix socket; it lives under the guard and outlives us.
    Unix,
    /// An app-server on the child's own pipes; it ends when we do. For codex versions without `--listen`.
    Stdio,
    /// Codex's own screen, on a terminal that lives under the guard and outlives us.
    Terminal,
}

impl Transport {
    /// True when the agent is the guard's, and so outlives the service.
    pub fn is_guarded(self) -> bool {
        match self {
            Self::Unix | Self::Terminal => true,
            Self::Stdio => false,
        }
    }
}

/// Owns the agent's process: starts or adopts it, tells when it ended, stops it and proves that nothing of it is left.
/// It reads nothing the agent says.
pub struct Process {
    run: RunContext,
    session: Recipient<AgentEnded>,
    agent: Agent,
    /// What an agent on our pipes said on standard error.
    stderr: Option<Stderr>,
    pulse: Pulse,
    last_error: Option<String>,
    told: bool,
    /// True once the session was told of the agent's end.
    over: watch::Sender<bool>,
}

enum Agent {
    /// None was started by this actor, and none is known.
    None,
    /// One runs under the guard.
    Guarded(AgentIdentity),
    /// One runs on our pipes.
    Piped(Piped),
    /// It is over.
    Ended,
}

impl Process {
    /// A process for this run. `known` is the agent that an earlier actor or process started under the guard.
    pub fn new(
        run: RunContext,
        pulse: Pulse,
        session: Recipient<AgentEnded>,
        known: Option<AgentIdentity>,
    ) -> Self {
        let agent = known.map_or(Agent::None, Agent::Guarded);
        let over = watch::Sender::new(false);
        Self { run, session, agent, stderr: None, pulse, last_error: None, told: false, over }
    }

    /// Watches the file that the guard writes when the agent has ended.
    fn watch_exit(&self, ctx: &mut Context<Self>) {
        let run = self.run.clone();
        let arming = async move {
            let path = RelPath::new("guard/exit").expect("a literal relative path");
            run.host.watch(&run.dir, &path).await
        };
        ctx.spawn(arming.into_actor(self).map(|armed, process, ctx| match armed {
            Ok(watch) => {
                let wakes = futures_util::stream::unfold(watch, |mut watch: Watch| async move {
                    watch.changed().await.map(|()| ((), watch))
                });
                ctx.spawn(wakes.into_actor(process).map(|(), process, ctx| process.check(ctx)).finish());
                process.check(ctx);
            }
            Err(problem) => debug!(%problem, "agent is only looked at, not watched"),
        }));
    }

    fn check(&mut self, ctx: &mut Context<Self>) {
        self.pulse.touch();
        let Agent::Guarded(known) = self.agent else { return };
        if self.run.host_is_away() {
            return;
        }
        let run = self.run.clone();
        let asking = async move { run.host.guard_state(&run.dir).await };
        ctx.spawn(asking.into_actor(self).map(move |state, process, ctx| match state {
            Ok(AgentState::Running(_)) => {}
            Ok(AgentState::Exited { status, by_guard, .. }) => {
                process.ended(Some(known), status, by_guard, ctx)
            }
            Ok(AgentState::Absent) => process.ended(Some(known), ExitStatus::Unknown, false, ctx),
            Err(problem) => {
                warn!(%problem, "agent's state is unknown");
                process.last_error = Some(problem.to_string());
            }
        }));
    }

    fn touch(&mut self, ctx: &mut Context<Self>) {
        if self.run.host_is_away() {
            return;
        }
        let run = self.run.clone();
        let touching = async move {
            match run.step(ChildKind::Process, "heartbeat").await {
                Ok(()) => run.host.guard_heartbeat(&run.dir).await,
                Err(_) => Ok(()),
            }
        };
        ctx.spawn(touching.into_actor(self).map(|touched, process, _| {
            if let Err(problem) = touched {
                warn!(%problem, "heartbeat was not touched");
                process.last_error = Some(problem.to_string());
            }
        }));
    }

    /// An agent without a lease has nobody else to touch its switch.
    fn touch_if_unleased(&mut self, ctx: &mut Context<Self>) {
        let leased = self.run.ledger.read(|r| r.run.as_ref().is_some_and(|run| run.seed.is_some()));
        if matches!(self.agent, Agent::Guarded(_)) && !leased {
            self.touch(ctx);
        }
    }

    fn ended(
        &mut self,
        who: Option<AgentIdentity>,
        status: ExitStatus,
        by_guard: bool,
        ctx: &mut Context<Self>,
    ) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        info!(?who, %status, by_guard, "agent ended");
        self.agent = Agent::Ended;
        let session = self.session.clone();
        let words = self.last_words(true);
        let over = self.over.clone();
        let telling = async move {
            let stderr = words.await;
            session.do_send(AgentEnded { status, by_guard, stderr });
            over.send_replace(true);
        };
        ctx.spawn(telling.into_actor(self));
    }

    fn last_words(&self, to_the_end: bool) -> impl Future<Output = Bytes> + use<> {
        let (run, stderr) = (self.run.clone(), self.stderr.clone());
        async move {
            match stderr {
                Some(stderr) => stderr.last_words(to_the_end).await,
                None => run.host.guard_stderr(&run.dir).await.unwrap_or_default(),
            }
        }
    }
}

impl Actor for Process {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if matches!(self.agent, Agent::Guarded(_)) {
            self.watch_exit(ctx);
        }
        ctx.run_interval(CHECK_EVERY, |process, ctx| {
            process.check(ctx);
            process.touch_if_unleased(ctx);
        });
        beat(ctx, ChildKind::Process, self.run.clone());
    }
}

/// Tells the session that the agent has ended, however it came about. Sent at most once.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct AgentEnded {
    /// How.
    pub status: ExitStatus,
    /// The guard ended it, because nobody touched its heartbeat.
    pub by_guard: bool,
    /// The last of what it said on standard error.
    pub stderr: Bytes,
}

/// Everything needed to start an agent.
#[derive(Debug, Clone)]
pub struct AgentLaunch {
    /// Program and arguments, without secrets.
    pub argv: Vec<String>,
    /// Its environment.
    pub env: EnvPlan,
    /// How it will be reached.
    pub transport: Transport,
    /// Where it runs; on our pipes there is no choice.
    pub stage: Stage,
    /// See [`GuardSpec::term_after`].
    pub term_after: Duration,
    /// See [`GuardSpec::kill_after`].
    pub kill_after: Duration,
}

/// Starts the agent.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Started, HostError>")]
pub struct StartAgent(pub AgentLaunch);

/// A started agent.
pub struct Started {
    /// Who it is.
    pub identity: AgentIdentity,
    /// Its pipes, when that is how we talk to it.
    pub pipes: Option<Pipes>,
}

impl Handler<StartAgent> for Process {
    type Result = ResponseActFuture<Self, Result<Started, HostError>>;

    fn handle(&mut self, StartAgent(launch): StartAgent, _: &mut Self::Context) -> Self::Result {
        let run = self.run.clone();
        let starting = async move {
            run.step(ChildKind::Process, "start").await.map_err(|injected| HostError::Program {
                program: "codex".to_owned(),
                why: injected.to_string(),
            })?;
            match launch.transport {
                Transport::Unix | Transport::Terminal => {
                    let spec = GuardSpec {
                        argv: launch.argv,
                        env: launch.env,
                        cwd: run.dir.workdir(),
                        run_mark: run.run.to_string(),
                        term_after: launch.term_after,
                        kill_after: launch.kill_after,
                        stage: launch.stage,
                    };
                    Ok((run.host.guard_start(&run.dir, spec).await?, None))
                }
                Transport::Stdio => {
                    let (piped, pipes, exit) = Piped::start(&run, launch).await?;
                    Ok((piped.identity(), Some((piped, pipes, exit))))
                }
            }
        };
        Box::pin(starting.into_actor(self).map(|started: Result<_, HostError>, process, ctx| {
            let (identity, piped) =
                started.inspect_err(|problem| process.last_error = Some(problem.to_string()))?;
            info!(pid = identity.pid, "agent started");
            process.run.did(Deed::AgentStarted);
            let pipes = match piped {
                None => {
                    process.agent = Agent::Guarded(identity);
                    process.watch_exit(ctx);
                    None
                }
                Some((piped, pipes, exit)) => {
                    process.stderr = Some(piped.stderr());
                    process.agent = Agent::Piped(piped);
                    ctx.spawn(exit.into_actor(process).map(move |status, process, ctx| {
                        process.ended(Some(identity), status, false, ctx);
                    }));
                    Some(pipes)
                }
            };
            Ok(Started { identity, pipes })
        }))
    }
}

/// Takes over an agent that an earlier process started under the guard.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct AdoptAgent(pub AgentIdentity);

impl Handler<AdoptAgent> for Process {
    type Result = ();

    fn handle(&mut self, AdoptAgent(identity): AdoptAgent, ctx: &mut Self::Context) {
        info!(pid = identity.pid, "agent of an earlier process is taken over");
        self.agent = Agent::Guarded(identity);
        self.watch_exit(ctx);
        // Its switch is running out since the earlier process went.
        self.touch(ctx);
    }
}

/// Puts the agent's dead-man's switch back.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct TouchHeartbeat {
    /// When the renewal that allows it was sent; an old one allows nothing.
    pub sent: Instant,
}

impl Handler<TouchHeartbeat> for Process {
    type Result = ();

    fn handle(&mut self, touch: TouchHeartbeat, ctx: &mut Self::Context) {
        if matches!(self.agent, Agent::Guarded(_)) && touch.sent.elapsed() <= HEARTBEAT_AGE {
            self.touch(ctx);
        }
    }
}

/// Asks the process to look whether the agent still runs: somebody has a reason to doubt it.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct CheckAgent;

impl Handler<CheckAgent> for Process {
    type Result = ();

    fn handle(&mut self, _: CheckAgent, ctx: &mut Self::Context) {
        self.check(ctx);
    }
}

/// Tells that the host is back after a loss: what was watched over the old connection is watched anew.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct LookAfterLoss;

impl Handler<LookAfterLoss> for Process {
    type Result = ();

    fn handle(&mut self, _: LookAfterLoss, ctx: &mut Self::Context) {
        if matches!(self.agent, Agent::Guarded(_)) {
            self.touch_if_unleased(ctx);
            self.watch_exit(ctx);
        }
    }
}

/// Asks what the agent last said on standard error, by somebody whose conversation with it broke.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Bytes")]
pub struct LastWords {
    /// It seems to have ended, and is given the time to do so: the session then hears of its end before this is answered.
    pub to_the_end: bool,
}

impl Handler<LastWords> for Process {
    type Result = ResponseActFuture<Self, Bytes>;

    fn handle(&mut self, LastWords { to_the_end }: LastWords, ctx: &mut Self::Context) -> Self::Result {
        self.check(ctx);
        let mut over = self.over.subscribe();
        let words = self.last_words(to_the_end);
        let asking = async move {
            if to_the_end {
                // An agent that lives on is as good an answer.
                let _ = tokio::time::timeout(END_LIMIT, over.wait_for(|over| *over)).await;
            }
            words.await
        };
        Box::pin(asking.into_actor(self))
    }
}

impl Handler<StopAgent> for Process {
    type Result = ResponseActFuture<Self, StepResult>;

    fn handle(&mut self, stop: StopAgent, _: &mut Self::Context) -> Self::Result {
        // The end that follows is wanted: it is no news.
        self.told = true;
        let run = self.run.clone();
        let style = stop.style;
        self.pulse.quiet_for(crate::teardown::Step::StopAgent.limit());
        let piped = match std::mem::replace(&mut self.agent, Agent::Ended) {
            Agent::Piped(piped) => Some(piped),
            Agent::None | Agent::Guarded(_) | Agent::Ended => None,
        };
        let never_there = run.never_reached_its_host();
        let stopping = async move {
            run.step(ChildKind::Process, "stop_agent").await.map_err(StepError::new)?;
            if never_there {
                return Ok(Finish::Skipped("the host was never reached, so no agent was started".to_owned()));
            }
            let was_piped = piped.is_some();
            if let Some(piped) = piped {
                piped.stop(style, FLUSH_LIMIT, KILL_LIMIT).await;
            }
            let how = match stop_guarded_surely(&run, style).await? {
                Finish::Skipped(_) if was_piped => {
                    Finish::Done("the agent on our pipes has ended".to_owned())
                }
                how => how,
            };
            run.did(Deed::AgentGone);
            Ok(how)
        };
        Box::pin(stopping.into_actor(self).map(|result: StepResult, process, _| {
            process.last_error = result.as_ref().err().map(ToString::to_string);
            result
        }))
    }
}

/// Tries again where the host fails: an agent without proof of its end costs its seed and its workdir.
async fn stop_guarded_surely(run: &RunContext, style: StopStyle) -> StepResult {
    for _ in 1..STOP_TRIES {
        match stop_guarded(&*run.host, &run.dir, style).await {
            Err(problem) => warn!(%problem, "agent is not stopped yet"),
            stopped => return stopped,
        }
        tokio::time::sleep(STOP_PAUSE).await;
    }
    stop_guarded(&*run.host, &run.dir, style).await
}

/// Ends the agent of this task directory, and proves that nothing of it is left: the one under its guard, and one that was on
/// pipes and carries its run's mark. An error is the absence of that proof. May be asked again, and by a later process.
pub(crate) async fn stop_guarded(host: &dyn Host, dir: &TaskDir, style: StopStyle) -> StepResult {
    let state = host.guard_state(dir).await.map_err(StepError::of_host)?;
    let graceful = style == StopStyle::Graceful;
    let mut how = "it had ended by itself";
    if state == AgentState::Absent {
        // No guard could signal it. One on pipes has lost them by now, and ends by that if it is given the time.
        let limit = if graceful { FLUSH_LIMIT } else { Duration::ZERO };
        if host.guard_gone(dir, limit).await.map_err(StepError::of_host)? {
            return Ok(Finish::Skipped("no agent was started".to_owned()));
        }
        how = "it had lost its pipes and lived on";
    } else {
        if matches!(state, AgentState::Running(_)) {
            how = "killed";
            if graceful {
                host.guard_signal(dir, Signal::Term).await.map_err(StepError::of_host)?;
                how = "it ended after SIGTERM";
                if !host.guard_gone(dir, FLUSH_LIMIT).await.map_err(StepError::of_host)? {
                    how = "killed, it did not end after SIGTERM";
                }
            }
        }
        host.guard_signal(dir, Signal::Kill).await.map_err(StepError::of_host)?;
        if host.guard_gone(dir, KILL_LIMIT).await.map_err(StepError::of_host)? {
            return Ok(Finish::Done(how.to_owned()));
        }
    }
    let leftovers = host.guard_kill_leftovers(dir).await.map_err(StepError::of_host)?;
    if host.guard_gone(dir, KILL_LIMIT).await.map_err(StepError::of_host)? {
        return Ok(Finish::Done(format!("{how}; {leftovers} processes it had left were killed")));
    }
    Err(StepError::new(format!("{how}, but something of it still runs on {}", host.name())))
}

impl Handler<Observe> for Process {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        let (phase, identity) = match &self.agent {
            Agent::None => ("no agent", None),
            Agent::Guarded(identity) => ("running under the guard", Some(*identity)),
            Agent::Piped(piped) => ("running on pipes", Some(piped.identity())),
            Agent::Ended => ("ended", None),
        };
        MessageResult(Observation {
            phase: phase.to_owned(),
            last_error: self.last_error.clone(),
            detail: json!({ "pid": identity.map(|i| i.pid) }),
        })
    }
}
