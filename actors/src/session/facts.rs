//! What the children tell their session, and what follows from it.

use actix::prelude::*;
use jiff::Timestamp;
use optio_store::ApprovalId;
use serde_json::json;
use tracing::{info, warn};

use super::approvals::{self, Approval, ApprovalState, Decision};
use super::children::Front;
use super::end::Cause;
use super::last_words::last_words;
use super::recover::ended_meanwhile;
use super::{Beginning, Phase, Session, crew};
use crate::conversation::{Asked, ConversationFact, ReplyToAgent};
use crate::cred_watcher::{CredFact, StopSaving};
use crate::lease_renewer::LeaseFact;
use crate::process::{AgentEnded, TouchHeartbeat};
use crate::supervision::ChildKind;

impl Handler<LeaseFact> for Session {
    type Result = ();

    fn handle(&mut self, fact: LeaseFact, ctx: &mut Self::Context) {
        match fact {
            LeaseFact::Renewed { expires_at, sent } => {
                self.lease_confirmed = sent;
                // Not saved: the next process renews before it believes anything.
                self.ledger.edit(|record| {
                    if let Some(run) = &mut record.run {
                        run.lease_expires_at = Some(expires_at);
                    }
                });
                self.crew(ctx).process.do_send(TouchHeartbeat { sent });
                self.publish();
            }
            LeaseFact::Lost { why } => self.lease_is_lost(&why, ctx),
        }
    }
}

impl Session {
    pub(super) fn lease_is_lost(&mut self, why: &str, ctx: &mut Context<Self>) {
        let (seed, known) = self.ledger.edit(|record| {
            let run = record.run.as_mut().expect("a session actor exists only for a run on record");
            (run.seed.clone(), std::mem::replace(&mut run.lease_lost, true))
        });
        self.crew(ctx).watcher.do_send(StopSaving);
        // The renewer and a save may both hear of it.
        if !known {
            self.events.tell("seed.lost", &json!({ "seed": seed, "reason": why }));
        }
        self.save(ctx);
        self.end(Cause::lease_lost(why), ctx);
    }
}

impl Handler<CredFact> for Session {
    type Result = ();

    fn handle(&mut self, fact: CredFact, ctx: &mut Self::Context) {
        match fact {
            CredFact::Saved { baseline } => {
                self.ledger.edit(|record| {
                    if let Some(run) = &mut record.run {
                        run.baseline = Some(baseline);
                    }
                });
                self.save(ctx);
            }
            CredFact::NotHolder => {
                self.lease_is_lost("the store says that somebody else holds the seed", ctx)
            }
            CredFact::Attention { why } => {
                warn!(parent: &self.span, why, "login needs a person");
                self.events.tell("attention", &json!({ "reason": why }));
            }
        }
    }
}

impl Handler<AgentEnded> for Session {
    type Result = ();

    fn handle(&mut self, ended: AgentEnded, ctx: &mut Self::Context) {
        let leased = self.ledger.read(|r| r.run.as_ref().is_some_and(|run| run.seed.is_some()));
        let by = match (ended.by_guard, leased) {
            (false, _) => "",
            (true, true) => ", ended by its guard because no renewal of its lease was confirmed in time",
            (true, false) => ", ended by its guard because the service was gone",
        };
        let said = last_words(&ended.stderr).map(|words| format!("; it last said: {words}"));
        let said = said.unwrap_or_default();
        let reason = format!("the agent exited unexpectedly with {}{by}{said}", ended.status);
        // Whoever takes a run over looks for its agent too; either may be first to see that it has ended.
        let cause = match self.beginning {
            Beginning::Recover if self.beginning_under_way => {
                ended_meanwhile(self.phase(), Some(ended.status), ended.by_guard)
            }
            Beginning::Recover | Beginning::Launch => Cause::failed(reason),
        };
        // One that its guard ended did not end by itself, whatever its status says.
        let by_itself = (!ended.by_guard).then_some((ended.status, said));
        self.end_after_last_lines(by_itself, cause, ctx);
    }
}

impl Handler<ConversationFact> for Session {
    type Result = ();

    fn handle(&mut self, fact: ConversationFact, ctx: &mut Self::Context) {
        match fact {
            ConversationFact::TurnStarted { turn } => {
                self.ledger.edit(|record| {
                    if let Some(run) = &mut record.run {
                        run.turn = Some(turn);
                        run.had_turn = true;
                    }
                });
            }
            ConversationFact::TurnEnded { turn } => {
                self.ledger.edit(|record| {
                    if let Some(run) = record.run.as_mut().filter(|run| run.turn.as_ref() == Some(&turn)) {
                        run.turn = None;
                    }
                });
                self.tell_answers(ctx);
            }
            ConversationFact::Asked(asked) => self.asked(asked, ctx),
            ConversationFact::Withdrawn { request } => {
                let withdrawn = self.ledger.edit(|record| {
                    let mut pending = record.approvals.iter_mut();
                    let approval = pending.find(|a| a.is_pending() && a.request == request)?;
                    approval.state = ApprovalState::Cancelled;
                    approval.answered_at = Some(Timestamp::now());
                    approval.answered_by = Some("agent".to_owned());
                    Some(approval.clone())
                });
                let Some(approval) = withdrawn else { return };
                self.events.tell("approval.resolved", &json!({ "approval": approval }));
            }
            ConversationFact::NotSent { messages } => {
                self.unsent.extend(messages);
                return;
            }
            // Where another reader can take its place, its exit has it started.
            ConversationFact::GaveUp { why } => {
                if crew::is_irreplaceable(self, ChildKind::ConversationReader) {
                    self.end(Cause::failed(format!("the conversation cannot go on: {why}")), ctx);
                }
                return;
            }
        }
        self.save(ctx);
        self.publish();
    }
}

impl Session {
    fn asked(&mut self, asked: Asked, ctx: &mut Context<Self>) {
        let known = self.ledger.read(|record| {
            let mut known = record.approvals.iter().rev();
            known.find(|a| a.is_same_question(&asked.request, &asked.method, &asked.raw)).cloned()
        });
        match known {
            // Asked again after a reconnect, it still waits.
            Some(approval) if approval.is_pending() => {
                info!(parent: &self.span, approval = %approval.id, "agent asks again");
                return;
            }
            // The answer was decided, and did not arrive.
            Some(Approval { decision: Some(decision), .. }) => {
                self.reply(&asked, decision, ctx);
                return;
            }
            Some(_) | None => {}
        }
        let gate =
            self.ledger.read(|record| record.config.permission_gate() && record.phase != Phase::Stopping);
        let mut approval = Approval {
            id: self.approval_id(&asked),
            session: self.id().clone(),
            kind: asked.kind.clone(),
            state: ApprovalState::Pending,
            command: asked.command.clone(),
            cwd: asked.cwd.clone(),
            reason: asked.reason.clone(),
            changes: asked.changes.clone(),
            raw: asked.raw.clone(),
            asked_at: Timestamp::now(),
            answered_at: None,
            answered_by: None,
            decision: None,
            note: None,
            request: asked.request.clone(),
            method: asked.method.clone(),
        };
        if !gate {
            // Nobody was promised to be asked (S-377).
            approval.state = ApprovalState::Declined;
            approval.decision = Some(Decision::Decline);
            approval.answered_at = Some(Timestamp::now());
            approval.answered_by = Some("service".to_owned());
            self.reply(&asked, Decision::Decline, ctx);
        }
        self.ledger.edit(|record| approvals::remember(&mut record.approvals, approval.clone()));
        let name = if gate { "approval.requested" } else { "approval.resolved" };
        self.events.tell(name, &json!({ "approval": approval }));
    }

    /// The same for the same question, however often it is asked: a service that was killed between telling of it and its
    /// record must not make another one of it. One that was withdrawn and is asked anew is another question.
    fn approval_id(&self, asked: &Asked) -> ApprovalId {
        let earlier = self.ledger.read(|record| {
            let same = |a: &&Approval| a.is_same_question(&asked.request, &asked.method, &asked.raw);
            record.approvals.iter().filter(same).count()
        });
        let of = |field| asked.raw.get(field).map(ToString::to_string).unwrap_or_default();
        let words = [
            json!(asked.request).to_string(),
            asked.method.clone(),
            of("itemId"),
            of("turnId"),
            earlier.to_string(),
        ];
        let run = self.run.run.to_string();
        let words: Vec<_> = std::iter::once(&run).chain(&words).map(String::as_str).collect();
        ApprovalId::of(&words)
    }

    fn reply(&mut self, asked: &Asked, decision: Decision, ctx: &mut Context<Self>) {
        let reply = ReplyToAgent { request: asked.request.clone(), decision };
        if let Front::Conversation(reader) = self.crew(ctx).front {
            reader.do_send(reply);
        }
    }
}
