//! Taking over a run that an earlier process left (DESIGN §7): adopt an agent that lives, tear down what does not.

use std::time::Duration;

use actix::prelude::*;
use optio_codex_protocol::config::Mode;
use optio_host::{AgentState, ExitStatus};
use optio_store::{Renewal, StoreError};
use serde_json::json;
use tracing::{Instrument, info, warn};

use super::RunContext;
use super::Session;
use super::children::{Crew, Front};
use super::crew::watched;
use super::end::Cause;
use super::launch::{attach_again, went_live};
use super::phase::Phase;
use super::record::AgentRecord;
use super::verdict::of_agents_end;
use crate::cred_watcher::WatchLogin;
use crate::host_link::Connect;
use crate::lease_renewer::unnoted_lease;
use crate::process::{AdoptAgent, Transport};
use crate::teardown::Way;

/// What was found of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Its agent lives and is attached.
    Adopted,
    /// Its teardown had begun.
    Ending,
    /// It cannot go on.
    Over(Cause),
    /// It could not be taken over, unless it was its host that went away under it.
    Broken(Cause),
    /// Somebody else has its lease, so its agent must go at once.
    LeaseLost(String),
    /// Its host is out of reach: nothing is known of it, and nothing decided.
    HostAway,
}

/// How long taking a run over may take: a connection, a look at the machine, and an attach with every patience it has.
/// Past it the run is torn down from where it stands; a host that hangs must not keep its session from being stopped.
const RECOVER_LIMIT: Duration = Duration::from_secs(180);

/// Looks at what is left of the run, and takes it over if its agent lives.
pub(super) async fn recover(run: RunContext, crew: Crew) -> Found {
    let found = tokio::time::timeout(RECOVER_LIMIT, look(run, crew)).await;
    found.unwrap_or_else(|_| {
        Found::Broken(Cause::failed(format!("the run could not be taken over within {RECOVER_LIMIT:?}")))
    })
}

/// In the order that keeps the login safe: the lease first.
async fn look(run: RunContext, crew: Crew) -> Found {
    if let Err(problem) = find_lost_lease(&run).await {
        warn!(%problem, "seeds cannot be looked through for a lease of this run");
    }
    match crew.host_link.send(Connect).await {
        Ok(Ok(_)) => {}
        Ok(Err(problem)) if problem.reach_code().is_some() => {
            let ending = run.ledger.read(|record| record.phase == Phase::Stopping);
            return if ending { Found::Ending } else { Found::HostAway };
        }
        Ok(Err(problem)) => return Found::Over(Cause::failed(problem.to_string())),
        Err(_) => return Found::Over(Cause::failed("the host link died")),
    }
    let (phase, transport) =
        run.ledger.read(|record| (record.phase, record.run.as_ref().and_then(|of_run| of_run.transport)));
    if phase == Phase::Stopping {
        return Found::Ending;
    }
    // An agent on our pipes read end-of-file when the earlier process went.
    let state = match transport {
        Some(Transport::Stdio) => Ok(AgentState::Absent),
        Some(Transport::Unix | Transport::Terminal) | None => run.host.guard_state(&run.dir).await,
    };
    match state {
        Ok(AgentState::Running(identity)) => {
            if let Some(why) = lease_is_lost(&run).await {
                return Found::LeaseLost(why);
            }
            adopt(&run, &crew, identity).await
        }
        Ok(AgentState::Exited { status, by_guard, .. }) => {
            let mode = run.ledger.read(|record| record.config.mode());
            let by_itself =
                (phase == Phase::Live && !by_guard).then(|| of_agents_end(mode, status, None)).flatten();
            Found::Over(match by_itself {
                Some((outcome, reason)) => Cause::over(outcome, reason),
                None => ended_meanwhile(phase, Some(status), by_guard),
            })
        }
        Ok(AgentState::Absent) => Found::Over(ended_meanwhile(phase, None, false)),
        Err(problem) if problem.reach_code().is_some() => Found::HostAway,
        Err(problem) => Found::Broken(Cause::failed(format!("the agent's state cannot be read: {problem}"))),
    }
}

pub(super) fn ended_meanwhile(phase: Phase, status: Option<ExitStatus>, by_guard: bool) -> Cause {
    let how = match (status, by_guard) {
        (Some(status), true) => {
            format!(" ({status}; its guard ended it, because no service renewed its lease)")
        }
        (Some(status), false) => format!(" ({status})"),
        (None, _) => String::new(),
    };
    Cause::failed(match phase {
        Phase::Starting => format!("the service stopped while the session was starting{how}"),
        _ => format!("the agent ended while the service was away{how}"),
    })
}

/// Whether the run's lease is gone. A store that does not answer says nothing: the renewer's own clock decides then.
async fn lease_is_lost(run: &RunContext) -> Option<String> {
    let (seed, holder) = run.ledger.read(|record| {
        let of_run = record.run.as_ref()?;
        Some((of_run.seed.clone()?, of_run.holder.clone()))
    })?;
    match run.store.leases.renew(&seed, &holder).await {
        Ok(Renewal::Lost) => Some("it went to somebody else while the service was away".to_owned()),
        Ok(Renewal::Renewed { .. }) => None,
        Err(problem) => {
            warn!(%seed, %problem, "lease is not confirmed yet");
            None
        }
    }
}

/// A process that died between the answer of an acquire and its own note of it left a seed leased to a holder that is
/// on record, and no seed: it is looked for by its holder (T-103).
async fn find_lost_lease(run: &RunContext) -> Result<(), StoreError> {
    let Some(seed) = unnoted_lease(run).await? else {
        return Ok(());
    };
    info!(%seed, "lease of this run is found by its holder");
    run.ledger.edit(|record| {
        if let Some(of_run) = &mut record.run {
            of_run.seed = Some(seed);
        }
    });
    run.ledger.save().await
}

async fn adopt(run: &RunContext, crew: &Crew, identity: optio_host::AgentIdentity) -> Found {
    run.ledger.edit(|record| {
        let mode = record.config.mode();
        if let Some(of_run) = &mut record.run {
            of_run.transport.get_or_insert(match mode {
                Mode::Conversation => Transport::Unix,
                Mode::Terminal => Transport::Terminal,
            });
            of_run.agent.get_or_insert(AgentRecord { identity, version: String::new() });
        }
    });
    let known = crew.process.send(AdoptAgent(identity)).await;
    // What rotated while nobody watched is saved first of all.
    if let Some(watched) = run.ledger.read(watched) {
        crew.watcher.do_send(WatchLogin(watched));
    }
    if known.is_err() {
        return Found::Over(Cause::failed("the process actor died"));
    }
    let met = match &crew.front {
        Front::Conversation(_) => attach_again(run.clone(), crew.clone()).await,
        Front::Terminal(_) => went_live(run, |_| {}).await.map_err(|problem| problem.to_string()),
    };
    match met {
        Ok(()) => Found::Adopted,
        Err(problem) => {
            Found::Broken(Cause::failed(format!("the agent lives, but cannot be attached: {problem}")))
        }
    }
}

/// How long after a look that failed the loss of its host may still be told.
const DOUBT: Duration = Duration::from_secs(1);

impl Session {
    /// Takes the run over, as soon as its host can be reached.
    pub(super) fn take_over(&mut self, crew: Crew, ctx: &mut Context<Self>) {
        let losses = self.loss.losses();
        let (recovering, mut way) = (recover(self.run.clone(), crew), self.loss.way());
        let looking = async move {
            let found = recovering.await;
            // What failed may have failed for a host that went away under it.
            let Found::Broken(cause) = found else { return found };
            let lost = way.wait_for(|way| way.losses != losses);
            match tokio::time::timeout(DOUBT, lost).await {
                Ok(Ok(_)) => Found::HostAway,
                Ok(Err(_)) | Err(_) => Found::Over(cause),
            }
        };
        let looking = looking.instrument(self.span.clone());
        ctx.spawn(looking.into_actor(self).map(|found, session, ctx| session.recovered(found, ctx)));
    }

    /// Takes it over again when the host is back. A stop that comes meanwhile, or the end of the agent by its guard, has the
    /// teardown wait instead.
    fn take_over_later(&mut self, ctx: &mut Context<Self>) {
        let (mut way, stop) = (self.loss.way(), self.stop.clone());
        let waiting = async move {
            // A link that has not told of the loss yet is given the time to do so.
            let lost = way.wait_for(|way| way.way != Way::Open);
            drop(tokio::time::timeout(DOUBT, lost).await);
            tokio::select! {
                _ = way.wait_for(|way| way.way == Way::Open) => {}
                () = stop.cancelled() => {}
            }
        };
        ctx.spawn(waiting.into_actor(self).map(|(), session, ctx| {
            if session.detaching {
                return;
            }
            if session.phase() == Phase::Stopping {
                session.beginning_under_way = false;
                session.walk(ctx);
                return;
            }
            // The last look may have left a reader that is half attached.
            let front = Front::kind(session.ledger.read(|record| record.config.mode()));
            session.children.discard(front);
            let crew = session.crew(ctx);
            session.take_over(crew, ctx);
        }));
    }

    pub(super) fn recovered(&mut self, found: Found, ctx: &mut Context<Self>) {
        if found == Found::HostAway && !self.detaching && self.phase() != Phase::Stopping {
            return self.take_over_later(ctx);
        }
        self.beginning_under_way = false;
        if self.detaching {
            return;
        }
        match found {
            Found::Adopted => {
                // A stop may have come meanwhile.
                if self.phase() == Phase::Stopping {
                    self.walk(ctx);
                    return;
                }
                self.ledger.edit(|record| record.phase = Phase::Live);
                self.attach_is_due = false;
                let pid = self
                    .ledger
                    .read(|r| r.run.as_ref().and_then(|run| run.agent.as_ref().map(|a| a.identity.pid)));
                self.events.tell("session.adopted", &json!({ "pid": pid }));
                self.run.did(crate::trace::Deed::AgentStarted);
                self.save(ctx);
                self.publish();
                self.finish_what_was_said(ctx);
                self.tell_answers(ctx);
            }
            Found::Ending | Found::HostAway => self.walk(ctx),
            Found::Over(cause) | Found::Broken(cause) if self.phase() == Phase::Stopping => {
                info!(parent: &self.span, reason = cause.reason, "run is being stopped already");
                self.walk(ctx);
            }
            Found::Over(cause) | Found::Broken(cause) => self.end_after_last_lines(None, cause, ctx),
            Found::LeaseLost(why) => {
                self.lease_is_lost(&why, ctx);
                self.walk(ctx);
            }
        }
    }
}
