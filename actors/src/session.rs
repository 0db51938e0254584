//! Session: the supervisor of one session's run.
//!
//! ```text
//!            launch (session/launch.rs)          facts of the children
//!  Starting ───────────────────────▶ Live ◀──────────────────────────────┐
//!     │            adopt (session/recover.rs)                            │
//!     └────────────┬──────────────────┘ stop, agent gone, lease lost, …   │
//!                  ▼                                                     │
//!              Stopping ── teardown::run ──▶ Ended (or Lost)             children (session/children.rs)
//! ```
//!
//! It owns the table of children, the phase, and the first cause of the end; what happens in each phase is in the files
//! below it. From the moment the end has begun no child is started again but by the teardown that needs it.

pub mod approvals;
pub mod children;
mod context;
mod crew;
mod end;
mod facts;
mod host_way;
pub(crate) mod last_words;
mod launch;
pub mod log;
pub mod phase;
pub mod record;
mod recover;
mod requests;
pub mod status;
mod tell;
pub mod verdict;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use optio_store::SessionId;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, info, info_span, warn};

pub use context::RunContext;
pub use requests::{
    AnswerApproval, ChangeSession, InterruptTurn, ListApprovals, OpenTerminal, SendTurn, ShowActors,
    StopMode, StopSession, TurnMode,
};

use crate::conversation::SendMessage;
use crate::events::Events;
use crate::log_tail::LogPosition;
use crate::process::{CheckAgent, LastWords};
use crate::settings::Settings;
use crate::supervision::{ChildExit, ChildKind, ExitReason, beat};
use children::{AfterExit, Children, Crew, observe_all};
use end::Cause;
use host_way::HostLoss;
use launch::NotLaunched;
use phase::{EndState, Phase};
use record::Ledger;
use status::SessionView;

/// How often the supervisor compares its children's pulses with its own clock.
const HEALTH_EVERY: Duration = Duration::from_secs(5);

/// What a session begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// A new run, fresh or resumed, as the record says.
    Launch,
    /// A run that an earlier process left: to be adopted, or torn down from where it stood.
    Recover,
}

/// The supervisor of one session's run. Everything that must survive one of its children is here, and everything that
/// must survive itself is on record.
pub struct Session {
    settings: Arc<Settings>,
    ledger: Arc<Ledger>,
    events: Events,
    run: RunContext,
    beginning: Beginning,
    children: Children,
    status: watch::Sender<SessionView>,
    /// A launch or an adoption is under way; a teardown waits for its present step to end.
    beginning_under_way: bool,
    /// Tells that launch to go no further.
    stop: CancellationToken,
    /// A teardown walks.
    walking: bool,
    /// What is known of the way to the host.
    loss: HostLoss,
    /// The conversation has to be attached again: its reader exited.
    attach_is_due: bool,
    /// Messages that were taken for a later turn by a reader that is gone; its successor gets them.
    unsent: VecDeque<SendMessage>,
    /// When the last confirmed renewal was sent, for a renewer that takes over.
    lease_confirmed: Instant,
    /// How far the agent's log was read: where a fresh tail begins.
    log_at: LogPosition,
    /// The last line of that log that an earlier process told of, once it is known.
    told_lines: Option<u64>,
    /// The agent is being told something.
    telling: bool,
    /// The run ends when the announced deliverables are settled.
    draining_deliverables: bool,
    /// This process leaves, the agent stays.
    detaching: bool,
    span: Span,
}

/// What a session needs from its parent.
pub struct SessionParts {
    /// The service's settings.
    pub settings: Arc<Settings>,
    /// Its record.
    pub ledger: Arc<Ledger>,
    /// Its events.
    pub events: Events,
    /// The run to launch or to recover.
    pub run: RunContext,
    /// Which of the two.
    pub beginning: Beginning,
    /// Where its status is published.
    pub status: watch::Sender<SessionView>,
}

impl Session {
    /// A session that begins as soon as it is started.
    pub fn new(parts: SessionParts) -> Self {
        let SessionParts { settings, ledger, events, run, beginning, status } = parts;
        let span = info_span!("session", session = %run.session, run = %run.run);
        let log_at = ledger.read(log::position);
        Self {
            settings,
            ledger,
            events,
            run,
            beginning,
            children: Children::default(),
            status,
            beginning_under_way: false,
            stop: CancellationToken::new(),
            walking: false,
            loss: HostLoss::default(),
            attach_is_due: false,
            unsent: VecDeque::new(),
            lease_confirmed: Instant::now(),
            log_at,
            told_lines: None,
            telling: false,
            draining_deliverables: false,
            detaching: false,
            span,
        }
    }

    fn id(&self) -> &SessionId {
        &self.run.session
    }

    fn phase(&self) -> Phase {
        self.ledger.read(|record| record.phase)
    }

    /// Shows the outside what the record says now; tells an event when its state, reason or waiting list changed.
    fn publish(&self) {
        let newest = *self.events.stream().newest().borrow();
        let view = self.ledger.read(|record| SessionView::of(record, newest));
        let before = self.status.send_replace(view.clone());
        if before.state != view.state || before.reason != view.reason {
            self.events.tell(
                "session.state",
                &json!({ "state": view.state, "reason": view.reason, "waiting": view.waiting }),
            );
        }
        if before.waiting != view.waiting {
            self.events.tell("session.waiting", &json!({ "waiting": view.waiting }));
        }
    }

    /// Makes the record durable in the background; a step that must not go on before it is durable saves by itself.
    fn save(&self, ctx: &mut Context<Self>) {
        let ledger = Arc::clone(&self.ledger);
        let saving = async move { ledger.save().await }.instrument(self.span.clone());
        ctx.spawn(saving.into_actor(self).map(|saved, _, _| {
            if let Err(problem) = saved {
                warn!(%problem, "session record is not saved");
            }
        }));
    }

    /// Every child, started if it is not there.
    fn crew(&mut self, ctx: &mut Context<Self>) -> Crew {
        crew::complete(self, ctx)
    }

    fn began(&mut self, result: Result<(), NotLaunched>, ctx: &mut Context<Self>) {
        self.beginning_under_way = false;
        if let Err(NotLaunched { still_at_it: Some(child), .. }) = &result {
            self.children.discard(*child);
        }
        let pending = self.ledger.read(|record| record.phase == Phase::Stopping);
        match result {
            _ if self.detaching => {}
            // A stop that came meanwhile has waited for this.
            _ if pending => self.walk(ctx),
            Ok(()) => {
                self.ledger.edit(|record| record.phase = Phase::Live);
                self.save(ctx);
                self.publish();
                self.tell_answers(ctx);
            }
            Err(failed) => {
                let lost = self.ledger.read(|r| r.host_down.as_ref().map(|down| down.code.clone()));
                let code = failed.cause.code.or(lost);
                self.end(Cause { code, ..failed.cause }, ctx);
            }
        }
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let crew = self.crew(ctx);
        self.beginning_under_way = true;
        match self.beginning {
            Beginning::Launch => {
                info!(parent: &self.span, "run is launched");
                let launching =
                    launch::launch(self.settings.clone(), self.run.clone(), crew, self.stop.clone());
                let launching = launching.instrument(self.span.clone());
                ctx.spawn(launching.into_actor(self).map(|result, session, ctx| session.began(result, ctx)));
            }
            Beginning::Recover => {
                info!(parent: &self.span, "run of an earlier process is taken over");
                // What the earlier process knew of its host is looked at anew.
                self.ledger.edit(|record| record.host_down = None);
                self.take_over(crew, ctx);
            }
        }
        ctx.run_interval(HEALTH_EVERY, Self::look_after_children);
        beat(ctx, ChildKind::Session, self.run.clone());
        self.publish();
    }
}

impl Session {
    fn look_after_children(&mut self, ctx: &mut Context<Self>) {
        for kind in self.children.kill_the_silent() {
            warn!(parent: &self.span, child = %kind, "child gave no sign of life");
        }
        self.tell_answers(ctx);
        let observing = observe_all(self.children.observed());
        ctx.spawn(observing.into_actor(self).map(|seen, session, _| {
            for (kind, observation) in seen {
                session.children.remember(kind, observation);
            }
        }));
    }
}

impl Handler<ChildExit> for Session {
    type Result = ();

    fn handle(&mut self, exit: ChildExit, ctx: &mut Self::Context) {
        if exit.kind == ChildKind::ConversationReader {
            self.attach_is_due = true;
        }
        let irreplaceable = crew::is_irreplaceable(self, exit.kind);
        let excused = !irreplaceable && self.is_the_hosts_doing(&exit);
        let after = self.children.exited(&exit, excused);
        if after == AfterExit::Nothing || self.detaching {
            return;
        }
        warn!(parent: &self.span, child = %exit.kind, reason = %exit.reason, lived = ?exit.lived, "child exited");
        // From here on the teardown asks for a fresh one if it needs it.
        if self.phase() != Phase::Live && !self.beginning_under_way {
            return;
        }
        match after {
            AfterExit::Nothing => {}
            // Taken up again when the host is back.
            AfterExit::Parked => {}
            AfterExit::BudgetSpent => {
                let reason = format!("{} failed again and again: {}", exit.kind, exit.reason);
                self.end(Cause::failed(reason), ctx);
            }
            AfterExit::Restart(_) if irreplaceable => {
                let cause = Cause::failed(format!("{} failed: {}", exit.kind, exit.reason));
                match (exit.kind, exit.reason) {
                    (ChildKind::ConversationReader, ExitReason::Failed(_)) => {
                        self.end_unless_the_agent_has(cause, ctx);
                    }
                    _ => self.end(cause, ctx),
                }
            }
            AfterExit::Restart(wait) => {
                let kind = exit.kind;
                self.events
                    .tell("child.restarted", &json!({ "child": kind, "reason": exit.reason.to_string() }));
                ctx.run_later(wait, move |session, ctx| {
                    let wanted = session.phase() == Phase::Live || session.beginning_under_way;
                    if !wanted || session.detaching {
                        return;
                    }
                    // Somebody else may have needed it meanwhile.
                    if !session.children.has(kind) {
                        crew::start(session, kind, ctx);
                    }
                    session.after_restart(kind, ctx);
                });
            }
        }
    }
}

impl Session {
    /// Ends the run for a conversation that cannot be taken up again. What broke it may be the agent's end, which is the
    /// better reason and comes first if it comes at all.
    fn end_unless_the_agent_has(&mut self, cause: Cause, ctx: &mut Context<Self>) {
        let asking = self.crew(ctx).process.send(LastWords { to_the_end: true });
        ctx.spawn(
            asking.into_actor(self).map(|_, session, ctx| session.end_after_last_lines(None, cause, ctx)),
        );
    }

    /// A fresh reader is told to attach again; the others know from the record what to do.
    fn after_restart(&mut self, kind: ChildKind, ctx: &mut Context<Self>) {
        if kind != ChildKind::ConversationReader || !self.attach_is_due || self.phase() != Phase::Live {
            return;
        }
        // A host that is away would only be the end of this reader too.
        if self.host_is_away() {
            self.children.park(kind);
            return;
        }
        self.attach_is_due = false;
        let crew = self.crew(ctx);
        // What broke the conversation may be the agent's end.
        crew.process.do_send(CheckAgent);
        let attaching = launch::attach_again(self.run.clone(), crew);
        let attaching = attaching.instrument(self.span.clone());
        ctx.spawn(attaching.into_actor(self).map(|attached, session, ctx| match attached {
            Ok(()) => {
                session.publish();
                session.send_the_unsent(ctx);
            }
            // The reader exits with it, and its exit is counted.
            Err(problem) => {
                warn!(parent: &session.span, %problem, "conversation is not attached again")
            }
        }));
    }
}

/// Leaves the agent running for the next process: a drain that detaches. Answered when everything is on record.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Detach;

impl Handler<Detach> for Session {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Detach, ctx: &mut Self::Context) -> Self::Result {
        self.detaching = true;
        self.stop.cancel();
        let crew = self.crew(ctx);
        let (ledger, events, run) = (Arc::clone(&self.ledger), self.events.clone(), self.run.clone());
        let leased = ledger.read(|record| record.run.as_ref().is_some_and(|of_run| of_run.seed.is_some()));
        let leaving = async move {
            // A last renewal and heartbeat give the next process its whole 45 s.
            let renewed = crew.renewer.send(crate::lease_renewer::LeaveLease).await.unwrap_or(false);
            if (renewed || !leased)
                && let Err(problem) = run.host.guard_heartbeat(&run.dir).await
            {
                warn!(%problem, "heartbeat was not touched before leaving");
            }
            if let Err(problem) = ledger.save().await {
                warn!(%problem, "session record is not saved");
            }
            if let Err(problem) = events.stream().flush().await {
                warn!(%problem, "journal is not flushed");
            }
        };
        Box::pin(leaving.instrument(self.span.clone()).into_actor(self).map(|(), _, ctx| ctx.stop()))
    }
}

/// Asks whether the agent is on our own pipes, and so cannot outlive us.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "bool")]
pub struct IsPiped;

impl Handler<IsPiped> for Session {
    type Result = bool;

    fn handle(&mut self, _: IsPiped, _: &mut Self::Context) -> bool {
        crew::is_irreplaceable(self, ChildKind::Process)
    }
}

/// Says how the run ended; sent to the root when a session is over.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct SessionEnded {
    /// Which.
    pub session: SessionId,
    /// How.
    pub outcome: EndState,
}
