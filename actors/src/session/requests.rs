//! What may be asked of a session: check with the phase, do or pass on, answer.

use std::collections::BTreeMap;

use actix::prelude::*;
use jiff::Timestamp;
use optio_codex_protocol::config::Mode;
use optio_codex_protocol::requests::Input;
use optio_store::{ApprovalId, SessionId};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::Instrument;

use super::Session;
use super::approvals::{Approval, ApprovalState, Decision};
use super::children::{ChildView, Front, observe_all};
use super::end::Cause;
use super::phase::{EndState, Phase, Request};
use super::record::SessionRecord;
use super::status::SessionView;
use crate::conversation::{self, Delivered, DeliveredAs, ReplyToAgent, SendMessage};
use crate::error::SessionError;
use crate::teardown::StopStyle;
use crate::terminal::{PressEscape, TakeSeat, Terminal, TerminalError, TypeText, TypingError, Viewer};

/// How a message may travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnMode {
    /// Into the running turn if there is one, else as a new one.
    #[default]
    Auto,
    /// Only as a new turn.
    New,
    /// Only into the running turn.
    Steer,
    /// As a new turn once the running one is over.
    Queue,
}

/// A message to the agent.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Delivered, SessionError>")]
pub struct SendTurn {
    /// Its parts.
    pub input: Vec<Input>,
    /// How it may travel.
    pub mode: TurnMode,
}

impl Handler<SendTurn> for Session {
    type Result = ResponseFuture<Result<Delivered, SessionError>>;

    fn handle(&mut self, turn: SendTurn, ctx: &mut Self::Context) -> Self::Result {
        if let Err(refusal) = self.phase().accepts(Request::Turn) {
            let refused = SessionError::refused(self.id(), refusal);
            return Box::pin(async { Err(refused) });
        }
        if let Err(away) = self.host_is_reached() {
            return Box::pin(async { Err(away) });
        }
        self.attention_is_paid(ctx);
        let session = self.id().clone();
        let reader = match self.crew(ctx).front {
            Front::Conversation(reader) => reader,
            Front::Terminal(terminal) => return Box::pin(typed(session, terminal, turn)),
        };
        let message = SendMessage { input: turn.input, mode: turn.mode };
        // Nothing of ours depends on this future: the reader does the work, and its death answers `Closed`.
        Box::pin(async move {
            match reader.send(message).await {
                Ok(sent) => sent.map_err(|problem| SessionError::from_conversation(&session, problem)),
                Err(_) => {
                    Err(SessionError::agent_unreachable(&session, "the conversation is being attached again"))
                }
            }
        })
    }
}

/// Types a message into the terminal. What only a conversation can do is refused by name.
async fn typed(
    session: SessionId,
    terminal: Addr<Terminal>,
    turn: SendTurn,
) -> Result<Delivered, SessionError> {
    let invalid = |field, why: &str| Err(SessionError::Invalid { field, why: why.to_owned() });
    if turn.mode != TurnMode::Auto {
        return invalid("mode", "a terminal takes messages as \"auto\" only");
    }
    let mut text = String::new();
    for part in &turn.input {
        let Input::Text(part) = part else {
            return invalid("input", "a terminal takes text only");
        };
        text.push_str(part);
    }
    let typed = terminal.send(TypeText(text)).await;
    of_terminal(&session, typed)?;
    Ok(Delivered { turn_id: None, delivered_as: DeliveredAs::Typed })
}

fn of_terminal(
    id: &SessionId,
    typed: Result<Result<(), TypingError>, MailboxError>,
) -> Result<(), SessionError> {
    match typed {
        Ok(Ok(())) => Ok(()),
        Ok(Err(problem)) => {
            Err(SessionError::Agent { id: id.clone(), why: problem.to_string(), retryable: true })
        }
        Err(_) => Err(SessionError::agent_unreachable(id, "the terminal is being opened again")),
    }
}

/// Ends the running turn.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<(), SessionError>")]
pub struct InterruptTurn;

impl Handler<InterruptTurn> for Session {
    type Result = ResponseFuture<Result<(), SessionError>>;

    fn handle(&mut self, _: InterruptTurn, ctx: &mut Self::Context) -> Self::Result {
        if let Err(refusal) = self.phase().accepts(Request::Interrupt) {
            let refused = SessionError::refused(self.id(), refusal);
            return Box::pin(async { Err(refused) });
        }
        if let Err(away) = self.host_is_reached() {
            return Box::pin(async { Err(away) });
        }
        let session = self.id().clone();
        let reader = match self.crew(ctx).front {
            Front::Conversation(reader) => reader,
            Front::Terminal(terminal) => {
                return Box::pin(async move {
                    let pressed = terminal.send(PressEscape).await;
                    of_terminal(&session, pressed)
                });
            }
        };
        Box::pin(async move {
            match reader.send(conversation::Interrupt).await {
                Ok(sent) => sent.map_err(|problem| SessionError::from_conversation(&session, problem)),
                Err(_) => {
                    Err(SessionError::agent_unreachable(&session, "the conversation is being attached again"))
                }
            }
        })
    }
}

/// Seats somebody before the session's terminal.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<Viewer, SessionError>")]
pub struct OpenTerminal(pub TakeSeat);

impl Handler<OpenTerminal> for Session {
    type Result = ResponseFuture<Result<Viewer, SessionError>>;

    fn handle(&mut self, OpenTerminal(seat): OpenTerminal, ctx: &mut Self::Context) -> Self::Result {
        let session = self.id().clone();
        let terminal = match self.phase().accepts(Request::Terminal) {
            Err(refusal) => Err(SessionError::refused(&session, refusal)),
            Ok(()) => self.host_is_reached().and_then(|()| match self.crew(ctx).front {
                Front::Terminal(terminal) => Ok(terminal),
                Front::Conversation(_) => Err(SessionError::NoTerminal { id: session.clone() }),
            }),
        };
        Box::pin(async move {
            match terminal?.send(seat).await {
                Ok(Ok(viewer)) => Ok(viewer),
                Ok(Err(TerminalError::Full)) => Err(SessionError::TooManyViewers { id: session }),
                Ok(Err(problem)) => {
                    Err(SessionError::Agent { id: session, why: problem.to_string(), retryable: true })
                }
                Err(_) => {
                    Err(SessionError::agent_unreachable(&session, "the terminal is being opened again"))
                }
            }
        })
    }
}

/// The questions of the agent, newest first.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Vec<Approval>")]
pub struct ListApprovals;

impl Handler<ListApprovals> for Session {
    type Result = MessageResult<ListApprovals>;

    fn handle(&mut self, _: ListApprovals, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.ledger.read(|record| record.approvals.iter().rev().cloned().collect()))
    }
}

/// Answers a question of the agent. One answer counts.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Approval, SessionError>")]
pub struct AnswerApproval {
    /// Which question.
    pub approval: ApprovalId,
    /// What to do.
    pub decision: Decision,
    /// Who decides: a role.
    pub by: String,
    /// What that person adds.
    pub note: Option<String>,
}

impl Handler<AnswerApproval> for Session {
    type Result = ResponseActFuture<Self, Result<Approval, SessionError>>;

    fn handle(&mut self, answer: AnswerApproval, ctx: &mut Self::Context) -> Self::Result {
        let approval = match self.decide(&answer) {
            Ok(approval) => approval,
            Err(refused) => return Box::pin(async { Err(refused) }.into_actor(self)),
        };
        let (ledger, front) = (self.ledger.clone(), self.crew(ctx).front);
        // On record first: a service that dies now must not ask a second time and take another answer.
        let saving = async move { ledger.save().await };
        Box::pin(saving.instrument(self.span.clone()).into_actor(self).map(move |saved, session, _| {
            if let Err(problem) = saved {
                // The agent has not heard of it, so that whoever answers must be able to do so again.
                session.reopen(&approval.id);
                return Err(problem.into());
            }
            if let Front::Conversation(reader) = front {
                reader.do_send(ReplyToAgent { request: approval.request.clone(), decision: answer.decision });
            }
            session.events.tell("approval.resolved", &json!({ "approval": approval }));
            session.publish();
            Ok(approval)
        }))
    }
}

impl Session {
    fn decide(&self, answer: &AnswerApproval) -> Result<Approval, SessionError> {
        self.ledger.edit(|record| {
            let found = record.approvals.iter_mut().find(|a| a.id == answer.approval);
            let approval = found.ok_or_else(|| SessionError::not_found("approval", &answer.approval))?;
            if !approval.is_pending() {
                return Err(SessionError::AlreadyAnswered { id: approval.id.clone(), state: approval.state });
            }
            if let Err(refusal) = record.phase.accepts(Request::Answer) {
                return Err(SessionError::refused(&record.id, refusal));
            }
            approval.state = answer.decision.state();
            approval.decision = Some(answer.decision);
            approval.answered_at = Some(Timestamp::now());
            approval.answered_by = Some(answer.by.clone());
            approval.note = answer.note.clone();
            Ok(approval.clone())
        })
    }
}

impl Session {
    fn reopen(&self, id: &ApprovalId) {
        self.ledger.edit(|record| {
            let Some(approval) = record.approvals.iter_mut().find(|a| a.id == *id) else { return };
            approval.state = ApprovalState::Pending;
            approval.decision = None;
            approval.answered_at = None;
            approval.answered_by = None;
            approval.note = None;
        });
        self.publish();
    }
}

/// Changes what may be changed of a session. Model and effort apply to the next turn.
#[derive(Debug, Clone, Default, Message)]
#[rtype(result = "Result<SessionView, SessionError>")]
pub struct ChangeSession {
    /// Another name.
    pub name: Option<String>,
    /// Other labels, all of them.
    pub labels: Option<BTreeMap<String, String>>,
    /// Another model.
    pub model: Option<String>,
    /// Another reasoning effort.
    pub effort: Option<String>,
}

impl Handler<ChangeSession> for Session {
    type Result = ResponseActFuture<Self, Result<SessionView, SessionError>>;

    fn handle(&mut self, change: ChangeSession, _: &mut Self::Context) -> Self::Result {
        if let Err(refused) = self.ledger.read(|record| change.check(record)) {
            return Box::pin(async { Err(refused) }.into_actor(self));
        }
        self.ledger.edit(|record| change.apply(record));
        self.publish();
        let ledger = self.ledger.clone();
        let saving = async move { ledger.save().await };
        Box::pin(saving.instrument(self.span.clone()).into_actor(self).map(|saved, session, _| {
            saved?;
            Ok(session.status.borrow().clone())
        }))
    }
}

impl ChangeSession {
    /// Says why a record does not take the change now, if it does not.
    pub fn check(&self, record: &SessionRecord) -> Result<(), SessionError> {
        let field = match (&self.model, &self.effort) {
            (Some(_), _) => "model",
            (None, Some(_)) => "effort",
            (None, None) => return Ok(()),
        };
        let accepted = record.phase.accepts(Request::ChangeModel);
        accepted.map_err(|refusal| SessionError::refused(&record.id, refusal))?;
        match record.config.mode() {
            Mode::Conversation => Ok(()),
            // Codex's own screen hears nobody but who types into it.
            Mode::Terminal => {
                let why = "that of a terminal is changed in the terminal, with /model".to_owned();
                Err(SessionError::Invalid { field, why })
            }
        }
    }

    /// Applies the change to a record, of a live session or of an ended one.
    pub fn apply(self, record: &mut SessionRecord) {
        record.name = self.name.unwrap_or_else(|| std::mem::take(&mut record.name));
        record.labels = self.labels.unwrap_or_else(|| std::mem::take(&mut record.labels));
        record.model = self.model.or_else(|| record.model.take());
        record.effort = self.effort.or_else(|| record.effort.take());
    }
}

/// How a run is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// The agent may flush and end by itself.
    #[default]
    Graceful,
    /// At once, unless a seed is in use: then a login may be on its way to the disk (S-454, S-455). Asked for while an end
    /// waits for a host that is out of reach, it gives the host up: the session is lost, its workdir stays where it is, and
    /// its seed needs recovery.
    Cancel,
}

/// Stops the run. Answered when that is on record; the teardown is observable.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<SessionView, SessionError>")]
pub struct StopSession {
    /// How.
    pub mode: StopMode,
    /// Why, for the record.
    pub reason: String,
}

impl Handler<StopSession> for Session {
    type Result = ResponseActFuture<Self, Result<SessionView, SessionError>>;

    fn handle(&mut self, stop: StopSession, ctx: &mut Self::Context) -> Self::Result {
        if let Err(refusal) = self.phase().accepts(Request::Stop) {
            let refused = SessionError::refused(self.id(), refusal);
            return Box::pin(async { Err(refused) }.into_actor(self));
        }
        if self.phase() != Phase::Stopping {
            let seeded = self.ledger.read(|r| r.run.as_ref().is_some_and(|run| run.seed.is_some()));
            let style = match stop.mode {
                StopMode::Cancel if !seeded => StopStyle::Aggressive,
                StopMode::Cancel | StopMode::Graceful => StopStyle::Graceful,
            };
            self.end(Cause { style, ..Cause::over(EndState::Stopped, stop.reason) }, ctx);
        } else if stop.mode == StopMode::Cancel {
            self.give_the_host_up();
        }
        // Whoever is told that it stops may rely on it, whatever becomes of this process.
        let ledger = self.ledger.clone();
        let saving = async move { ledger.save().await };
        Box::pin(saving.instrument(self.span.clone()).into_actor(self).map(|saved, session, _| {
            saved?;
            session.publish();
            Ok(session.status.borrow().clone())
        }))
    }
}

/// Shows the live supervision tree.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Vec<ChildView>")]
pub struct ShowActors;

impl Handler<ShowActors> for Session {
    type Result = ResponseActFuture<Self, Vec<ChildView>>;

    fn handle(&mut self, _: ShowActors, _: &mut Self::Context) -> Self::Result {
        let observing = observe_all(self.children.observed());
        Box::pin(observing.into_actor(self).map(|seen, session, _| {
            for (kind, observation) in seen {
                session.children.remember(kind, observation);
            }
            session.children.view()
        }))
    }
}
