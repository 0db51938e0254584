//! HostLink: the connection to the session's machine.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use optio_host::{Host, HostError};
use serde_json::json;
use tracing::info;

use crate::session::RunContext;
use crate::supervision::{ChildKind, Observation, Observe, Pulse, beat};
use crate::teardown::{Disconnect, Finish, StepError, StepResult, Wipe};
use crate::trace::Deed;

/// How often the link shows that it lives.
const BEAT: Duration = Duration::from_secs(5);

/// Silence past this is loss.
pub(crate) const PULSE_LIMIT: Duration = Duration::from_secs(30);

/// Owns the way to the host: proves that it is there before a run, and is the last to let go after it. On this
/// machine there is nothing to reconnect; the actor exists so that a session never asks which kind of host it has.
pub struct HostLink {
    run: RunContext,
    pulse: Pulse,
    phase: &'static str,
    last_error: Option<String>,
}

impl HostLink {
    /// A link for this run.
    pub fn new(run: RunContext, pulse: Pulse) -> Self {
        Self { run, pulse, phase: "new", last_error: None }
    }
}

impl Actor for HostLink {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(BEAT, |link, _| link.pulse.touch());
        beat(ctx, ChildKind::HostLink, self.run.clone());
    }
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
            if let Some(why) = refusal {
                let at = run.dir.workdir();
                return Ok(Finish::Withheld(format!("{why}; the workdir is kept at {}", at.display())));
            }
            run.step(ChildKind::HostLink, "wipe").await.map_err(StepError::new)?;
            if let Err(problem) = run.host.cleanup(&run.dir).await {
                // A wipe that only lost its answer must not be told as a workdir that was kept.
                match run.host.exists(&run.dir).await {
                    Ok(false) => {}
                    Ok(true) | Err(_) => return Err(StepError::new(problem)),
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
        MessageResult(Observation {
            phase: self.phase.to_owned(),
            last_error: self.last_error.clone(),
            detail: json!({ "host": self.run.host.name() }),
        })
    }
}
