//! The end of a run: the first cause, the walk through the teardown, and what is on record afterwards.

use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;
use serde_json::json;
use tracing::{Instrument, info, warn};

use super::approvals::ApprovalState;
use super::children::Front;
use super::phase::{EndState, Phase};
use super::status::StepView;
use super::{Session, SessionEnded};
use crate::supervision::ChildKind;
use crate::teardown::{self, AskHands, Hands, NoteStep, Noted, Report, Step, StopStyle};
use crate::trace::Deed;

/// How long a stop waits until the log of its agent was read to its end; a few milliseconds, unless the host hangs.
const STOP_READ_LIMIT: Duration = Duration::from_secs(2);

/// Why a run ends. The first one counts; what follows from it does not overwrite it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause {
    /// What the run will have been.
    pub outcome: EndState,
    /// One sentence that a person understands.
    pub reason: String,
    /// The stable word for it, where it has one.
    pub code: Option<String>,
    /// How gently the agent is stopped.
    pub style: StopStyle,
}

impl Cause {
    /// The run is over, one way or the other, and nothing is in a hurry.
    pub(super) fn over(outcome: EndState, reason: impl Into<String>) -> Self {
        Self { outcome, reason: reason.into(), code: None, style: StopStyle::Graceful }
    }

    /// The run could not go on.
    pub(super) fn failed(reason: impl Into<String>) -> Self {
        Self::over(EndState::Failed, reason)
    }

    /// The lease is lost: somebody else may use the login any moment.
    pub(super) fn lease_lost(why: &str) -> Self {
        let reason = format!("the lease of its seed is lost: {why}");
        Self { style: StopStyle::Fence, ..Self::failed(reason) }
    }
}

impl Session {
    /// Begins the end, unless it has begun.
    pub(super) fn end(&mut self, cause: Cause, ctx: &mut Context<Self>) {
        if self.detaching || matches!(self.phase(), Phase::Stopping | Phase::Ended) {
            return;
        }
        info!(parent: &self.span, outcome = ?cause.outcome, reason = cause.reason, "run ends");
        self.ledger.edit(|record| {
            record.outcome = Some(cause.outcome);
            record.reason = Some(cause.reason.clone());
            record.code.clone_from(&cause.code);
            record.begin_teardown(cause.style);
            // Nobody is needed for what is ending.
            if let Some(run) = &mut record.run {
                run.log.attention = None;
            }
        });
        self.stop.cancel();
        if cause.style == StopStyle::Fence {
            // Somebody else may use the login any moment: the agent goes before anything is written.
            self.walk_unless_beginning(ctx);
        }
        let ledger = self.ledger.clone();
        let saving = async move { ledger.save().await }.instrument(self.span.clone());
        // On record first: an end that was announced must not be forgotten by a process that dies now.
        ctx.spawn(saving.into_actor(self).map(move |saved, session, ctx| {
            if let Err(problem) = saved {
                warn!(parent: &session.span, %problem, "end of the run is not on record yet");
            }
            session.withdraw_approvals(ApprovalState::Cancelled, "the session is stopping");
            let told = json!({ "outcome": cause.outcome, "reason": cause.reason, "code": cause.code });
            session.events.tell("session.stopping", &told);
            session.publish();
            session.walk_unless_beginning(ctx);
        }));
    }

    /// A launch step under way ends first: its outcome must not come after the steps that undo it.
    fn walk_unless_beginning(&mut self, ctx: &mut Context<Self>) {
        if !self.beginning_under_way {
            self.walk(ctx);
        }
    }

    /// Walks the teardown from where the record says.
    pub(super) fn walk(&mut self, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.walking, true) {
            return;
        }
        let (style, progress) = self.ledger.read(|r| (r.style.unwrap_or(StopStyle::Graceful), r.progress()));
        let (hands, notes) = (ctx.address().recipient(), ctx.address().recipient());
        let way = self.way_for_the_end();
        let walking = teardown::run(hands, notes, way, style, progress).instrument(self.span.clone());
        ctx.spawn(walking.into_actor(self).map(|report, session, ctx| session.over(report, ctx)));
    }

    fn over(&mut self, report: Report, ctx: &mut Context<Self>) {
        self.withdraw_approvals(ApprovalState::Expired, "the agent is gone");
        let phase = if report.agent_is_gone { Phase::Ended } else { Phase::Lost };
        let kept = report.workdir_kept.then(|| self.run.dir.workdir().display().to_string());
        let unreached = self.run.never_reached_its_host();
        let stored =
            matches!(report.outcomes.get(&Step::CaptureSnapshot), Some(teardown::Outcome::Done { .. }));
        let outcome = self.ledger.edit(|record| {
            record.phase = phase;
            // What an earlier run left there is there still.
            if !unreached {
                record.workdir_kept = kept;
            }
            record.host_down = None;
            record.has_snapshot |= stored;
            if let Some(run) = &mut record.run {
                run.turn = None;
            }
            if let Some(why) = trouble(&report) {
                let reason = record.reason.take().unwrap_or_default();
                record.reason = Some(format!("{reason} ({why})"));
            }
            record.outcome.unwrap_or(EndState::Failed)
        });
        self.publish();
        let view =
            self.ledger.read(|record| (record.state(), record.reason.clone(), record.workdir_kept.clone()));
        self.events.tell(
            "session.ended",
            &json!({ "outcome": outcome, "state": view.0, "reason": view.1, "workdir_kept": view.2 }),
        );
        let (ledger, events, root) =
            (self.ledger.clone(), self.events.clone(), self.settings.root.get().cloned());
        let session = self.id().clone();
        let closing = async move {
            // The actor stays until then, so that nobody is told that the run is over by one and that it runs by the other.
            // A service that ends meanwhile takes it up again at its next start, where every step finds itself done.
            if let Err(problem) = ledger.save_for_certain().await {
                warn!(%problem, "end of the run is not on record");
            }
            if let Err(problem) = events.stream().flush().await {
                warn!(%problem, "journal is not flushed");
            }
            if let Some(root) = root {
                root.do_send(SessionEnded { session, outcome });
            }
        };
        ctx.spawn(closing.instrument(self.span.clone()).into_actor(self).map(|(), _, ctx| ctx.stop()));
    }

    /// Resolves what still waits; nobody is asked for what cannot matter any more.
    pub(super) fn withdraw_approvals(&self, state: ApprovalState, why: &str) {
        let withdrawn = self.ledger.edit(|record| {
            let pending = record.approvals.iter_mut().filter(|approval| approval.is_pending());
            pending
                .map(|approval| {
                    approval.state = state;
                    approval.answered_at = Some(Timestamp::now());
                    approval.answered_by = Some("service".to_owned());
                    approval.note = Some(why.to_owned());
                    approval.clone()
                })
                .collect::<Vec<_>>()
        });
        for approval in withdrawn {
            self.events.tell("approval.resolved", &json!({ "approval": approval }));
        }
    }
}

/// What a person must know of a teardown that did not go well.
fn trouble(report: &Report) -> Option<String> {
    let unwell = report.outcomes.iter().filter(|(_, outcome)| !outcome.is_settled_well());
    let told: Vec<_> = unwell.map(|(step, outcome)| format!("{step}: {}", outcome.detail())).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

impl Handler<AskHands> for Session {
    type Result = MessageResult<AskHands>;

    fn handle(&mut self, ask: AskHands, ctx: &mut Self::Context) -> Self::Result {
        // The steps know the front by its conversation's name.
        let front = Front::kind(self.ledger.read(|record| record.config.mode()));
        let replace =
            ask.replace.map(|kind| if kind == ChildKind::ConversationReader { front } else { kind });
        if let Some(kind) = replace {
            self.children.discard(kind);
            self.events.tell(
                "child.restarted",
                &json!({ "child": kind, "reason": "a teardown step needs a fresh one" }),
            );
        }
        let crew = self.crew(ctx);
        MessageResult(Hands {
            close: crew.front.close(),
            end_turn: crew.front.end_turn(),
            stop_agent: crew.process.recipient(),
            quiet: crew.watcher.clone().recipient(),
            save_back: crew.watcher.recipient(),
            release: crew.renewer.recipient(),
            capture_seed: crew.snapshotter.clone().recipient(),
            capture_snapshot: crew.snapshotter.recipient(),
            wipe: crew.host_link.clone().recipient(),
            disconnect: crew.host_link.recipient(),
        })
    }
}

impl Handler<NoteStep> for Session {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, NoteStep { step, noted }: NoteStep, ctx: &mut Self::Context) -> Self::Result {
        let now = Timestamp::now();
        let view = self.ledger.edit(|record| {
            let found = record.teardown.iter_mut().find(|s| s.step == step)?;
            match &noted {
                Noted::Began => found.started_at = Some(now),
                Noted::Again(why) => {
                    found.again += 1;
                    found.trouble = Some(why.clone());
                }
                Noted::Ended(outcome) => {
                    found.ended_at = Some(now);
                    found.outcome = Some(outcome.clone());
                }
            }
            Some(StepView::from(&*found))
        });
        let ended = matches!(noted, Noted::Ended(_));
        match noted {
            Noted::Began => self.run.did(Deed::StepBegan { step }),
            Noted::Again(_) => {}
            Noted::Ended(outcome) => self.run.did(Deed::StepEnded { step, outcome }),
        }
        // A store that does not answer takes its whole limit for each note: an agent whose lease is lost has to be gone
        // before (INV-08), and the next process looks whether it is.
        let in_a_hurry = self.ledger.read(|r| r.style == Some(StopStyle::Fence)) && step <= Step::StopAgent;
        if in_a_hurry {
            self.save(ctx);
        }
        let (ledger, run, seam) = (self.ledger.clone(), self.run.clone(), format!("note_{step}"));
        // All that the agent wrote is there now. Its failure counts although somebody stopped it (S-184).
        let agent_is_over = step == Step::StopAgent && ended;
        let stopped = self.ledger.read(|record| record.outcome == Some(EndState::Stopped));
        let last_lines = (agent_is_over && stopped).then(|| self.read_last_lines(STOP_READ_LIMIT, ctx));
        let noting = async move {
            futures_util::future::OptionFuture::from(last_lines).await;
            // Killed here, a process has begun (or done) a step that is not on record: the crash tests come here.
            if let Err(injected) = run.step(ChildKind::Session, &seam).await {
                warn!(%injected, "session fails between two steps");
            }
            if !in_a_hurry && let Err(problem) = ledger.save().await {
                warn!(%step, %problem, "step is not on record");
            }
        };
        Box::pin(noting.instrument(self.span.clone()).into_actor(self).map(move |(), session, ctx| {
            if agent_is_over {
                session.end_log(ctx);
            }
            if let Some(view) = view {
                session.events.tell("teardown.step", &json!({ "step": view }));
            }
            session.publish();
        }))
    }
}
