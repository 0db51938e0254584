//! HostLink: the connection to the session's machine.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::stream;
use jiff::Timestamp;
use optio_host::{Host, HostError, Reach};
use serde_json::json;
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use crate::session::RunContext;
use crate::supervision::{ChildKind, Observation, Observe, Pulse, beat};
use crate::teardown::{Disconnect, Finish, StepError, StepResult, Wipe};
use crate::trace::Deed;

/// How often the link shows that it lives.
const BEAT: Duration = Duration::from_secs(5);

/// Silence past this is loss.
pub(crate) const PULSE_LIMIT: Duration = Duration::from_secs(30);

/// The wait before the first attempt to reach a host again; doubles with each one that fails.
const FIRST_TRY: Duration = Duration::from_millis(500);

/// The longest wait while the loss is young: a guarded agent has 45 s, and a host that is back must be found in time.
const TRY_EVERY: Duration = Duration::from_secs(5);

/// How long a loss is young. Past it no agent under a lease lives, and nothing is in a hurry.
const YOUNG: Duration = Duration::from_secs(120);

/// The longest wait afterwards.
const TRY_OLD_EVERY: Duration = Duration::from_secs(30);

/// Owns the way to the host: proves that it is there before a run, follows whether it is, makes it anew when it is not, and is
/// the last to let go after a run. On this machine nothing is ever lost; a session never asks which kind of host it has.
pub struct HostLink {
    run: RunContext,
    session: Recipient<HostFact>,
    pulse: Pulse,
    phase: &'static str,
    /// Set while the host cannot be reached.
    loss: Option<Loss>,
    /// How often the host was found to be away: a chain of attempts belongs to one of these.
    losses: u64,
    attempts: u64,
    last_error: Option<String>,
}

struct Loss {
    since: Instant,
    wait: Duration,
}

impl Loss {
    /// The wait before the next attempt. Somewhere in the second half of what it could be, so that the sessions of a host do
    /// not all come at once.
    fn next_wait(&mut self) -> Duration {
        let longest = if self.since.elapsed() < YOUNG { TRY_EVERY } else { TRY_OLD_EVERY };
        let wait = self.wait.min(longest);
        self.wait = (wait * 2).min(TRY_OLD_EVERY);
        let share = f64::from(Uuid::new_v4().as_bytes()[0]) / 255.0;
        wait.mul_f64(0.5 + share / 2.0)
    }
}

impl HostLink {
    /// A link for this run.
    pub fn new(run: RunContext, pulse: Pulse, session: Recipient<HostFact>) -> Self {
        Self { run, session, pulse, phase: "new", loss: None, losses: 0, attempts: 0, last_error: None }
    }

    fn sees(&mut self, reach: Reach, ctx: &mut Context<Self>) {
        match reach {
            Reach::Untried => {}
            Reach::Up => {
                self.loss = None;
                self.session.do_send(HostFact::CameBack);
            }
            Reach::Down { since, code, why } => {
                // A clock before 1970 is the only thing that has no timestamp. Whole seconds: it took many to find out.
                let since = Timestamp::try_from(since).unwrap_or_else(|_| Timestamp::now());
                let since = Timestamp::from_second(since.as_second()).unwrap_or(since);
                self.last_error = Some(why.clone());
                self.session.do_send(HostFact::WentDown { since, code, why });
                if self.loss.is_none() {
                    warn!(host = self.run.host.name(), code, "host is out of reach");
                    self.losses += 1;
                    self.loss = Some(Loss { since: Instant::now(), wait: FIRST_TRY });
                    self.try_later(self.losses, ctx);
                }
            }
        }
    }

    fn try_later(&mut self, of: u64, ctx: &mut Context<Self>) {
        let Some(loss) = self.loss.as_mut().filter(|_| of == self.losses) else { return };
        ctx.run_later(loss.next_wait(), move |link, ctx| {
            if link.loss.is_none() || of != link.losses {
                return;
            }
            link.attempts += 1;
            let host = link.run.host.clone();
            let connecting = async move { host.connect().await };
            ctx.spawn(connecting.into_actor(link).map(move |connected, link, ctx| {
                link.last_error = connected.err().map(|problem| problem.to_string());
                // A success shows in the reach, and ends this chain.
                link.try_later(of, ctx);
            }));
        });
    }
}

impl Actor for HostLink {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // What it is now, and then each change.
        let seen = stream::unfold((self.run.host.reach(), true), |(mut reach, first)| async move {
            if !first {
                reach.changed().await.ok()?;
            }
            let now = reach.borrow_and_update().clone();
            Some((now, (reach, false)))
        });
        ctx.spawn(seen.into_actor(self).map(|reach, link, ctx| link.sees(reach, ctx)).finish());
        ctx.run_interval(BEAT, |link, _| link.pulse.touch());
        beat(ctx, ChildKind::HostLink, self.run.clone());
    }
}

/// What the link tells its session. Told again by a fresh link, and when the reason changes.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub enum HostFact {
    /// The host cannot be reached. What lives on it may live on.
    WentDown {
        /// When that was found out.
        since: Timestamp,
        /// The stable word for it, see [`HostError::reach_code`].
        code: &'static str,
        /// What was tried last, in words.
        why: String,
    },
    /// The host can be reached.
    CameBack,
}

/// Reaches the host and lends it. Answered with the host, or with why it cannot be reached.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Lent, HostError>")]
pub struct Connect;

/// The lent host.
#[derive(Clone)]
pub struct Lent(pub Arc<dyn Host>);

impl Handler<Connect> for HostLink {
    type Result = ResponseActFuture<Self, Result<Lent, HostError>>;

    fn handle(&mut self, _: Connect, _: &mut Self::Context) -> Self::Result {
        let run = self.run.clone();
        let connecting = async move {
            run.step(ChildKind::HostLink, "connect").await.map_err(|injected| HostError::Unreachable {
                host: run.host.name().to_owned(),
                why: injected.to_string(),
            })?;
            run.host.connect().await?;
            run.host.home().await?;
            Ok(Lent(run.host))
        };
        Box::pin(connecting.into_actor(self).map(|result: Result<Lent, HostError>, link, _| {
            match &result {
                Ok(_) => link.phase = "connected",
                Err(problem) => link.last_error = Some(problem.to_string()),
            }
            result
        }))
    }
}

impl Handler<Wipe> for HostLink {
    type Result = ResponseActFuture<Self, StepResult>;

    fn handle(&mut self, wipe: Wipe, _: &mut Self::Context) -> Self::Result {
        let never_there = self.run.never_reached_its_host();
        let refusal = if !wipe.stopped.agent_is_gone() {
            Some("the agent is not proven gone")
        } else if !wipe.saved.login_is_safe() {
            Some("the login in it is in neither the store nor the spool")
        } else if !wipe.captured.work_is_safe() {
            Some("no snapshot of it is on record")
        } else {
            None
        };
        let run = self.run.clone();
        let wiping = async move {
            if never_there {
                return Ok(Finish::Skipped(
                    "the host was never reached, so nothing of this run is there".to_owned(),
                ));
            }
            if let Some(why) = refusal {
                let at = run.dir.workdir();
                return Ok(Finish::Withheld(format!("{why}; the workdir is kept at {}", at.display())));
            }
            run.step(ChildKind::HostLink, "wipe").await.map_err(StepError::new)?;
            if let Err(problem) = run.host.cleanup(&run.dir).await {
                // A wipe that only lost its answer must not be told as a workdir that was kept.
                match run.host.exists(&run.dir).await {
                    Ok(false) => {}
                    Ok(true) | Err(_) => return Err(StepError::of_host(problem)),
                }
            }
            run.did(Deed::Wiped);
            Ok(Finish::Done("the task directory is gone".to_owned()))
        };
        Box::pin(wiping.into_actor(self).map(|result: StepResult, link, _| {
            link.phase = "wiped";
            link.last_error = result.as_ref().err().map(ToString::to_string);
            result
        }))
    }
}

impl Handler<Disconnect> for HostLink {
    type Result = ResponseActFuture<Self, StepResult>;

    fn handle(&mut self, _: Disconnect, _: &mut Self::Context) -> Self::Result {
        let run = self.run.clone();
        let leaving = async move {
            run.step(ChildKind::HostLink, "disconnect").await.map_err(StepError::new)?;
            info!(host = run.host.name(), "host let go");
            Ok(Finish::Done(format!("host {} let go", run.host.name())))
        };
        Box::pin(leaving.into_actor(self).map(|result, link, _| {
            link.phase = "disconnected";
            result
        }))
    }
}

impl Handler<Observe> for HostLink {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        let phase = if self.loss.is_some() { "reconnecting" } else { self.phase };
        MessageResult(Observation {
            phase: phase.to_owned(),
            last_error: self.last_error.clone(),
            detail: json!({
                "host": self.run.host.name(), "losses": self.losses, "attempts": self.attempts,
            }),
        })
    }
}
