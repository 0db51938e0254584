//! What the service itself tells the agent: lines that begin with `System: `, never in the middle of its turn.

use actix::prelude::*;
use optio_codex_protocol::config::Mode;
use optio_codex_protocol::requests::Input;
use tracing::{Instrument, warn};

use super::{Phase, Session, TurnMode};
use crate::conversation::SendMessage;
use crate::log_tail::LookAtLog;

/// Begins each line that comes from the service and from no person (S-174).
const PREFIX: &str = "System: ";

impl Session {
    /// Tells the agent every answer that waits, all in one message, as soon as no turn runs. What could not be told stays,
    /// and is tried again when a turn ends and every few seconds: an answer twice is better than an agent that waits for
    /// one for ever.
    pub(super) fn tell_answers(&mut self, ctx: &mut Context<Self>) {
        let (answers, turn_runs) = self.ledger.read(|record| {
            let run = record.run.as_ref();
            let answers = run.map(|run| run.log.answers.clone()).unwrap_or_default();
            (answers, run.is_some_and(|run| run.turn.is_some()))
        });
        if self.telling || self.detaching || self.phase() != Phase::Live || answers.is_empty() {
            return;
        }
        match self.mode() {
            Mode::Conversation if turn_runs => {}
            Mode::Conversation => self.tell_in_conversation(answers, ctx),
            Mode::Terminal => {
                // There is no way into a terminal yet; it can be seen that there was an answer (S-178).
                for answer in &answers {
                    let told = serde_json::json!({ "percent": null, "message": answer });
                    self.events.tell("progress", &told);
                }
                self.told(answers.len(), ctx);
            }
        }
    }

    fn tell_in_conversation(&mut self, answers: Vec<String>, ctx: &mut Context<Self>) {
        self.telling = true;
        let text: Vec<_> = answers.iter().map(|answer| format!("{PREFIX}{answer}")).collect();
        let input = vec![Input::Text(text.join("\n"))];
        let sending = self.crew(ctx).reader.send(SendMessage { input, mode: TurnMode::Queue });
        ctx.spawn(sending.instrument(self.span.clone()).into_actor(self).map(move |sent, session, ctx| {
            session.telling = false;
            match sent {
                Ok(Ok(_)) => {
                    session.told(answers.len(), ctx);
                    // What came meanwhile; a turn that this began is waited for.
                    session.tell_answers(ctx);
                }
                Ok(Err(problem)) => warn!(%problem, "answer is not told yet"),
                Err(_) => warn!("answer is not told yet, the conversation is attached again"),
            }
        }));
    }

    /// The first answers are told: there is room for others.
    fn told(&mut self, count: usize, ctx: &mut Context<Self>) {
        self.ledger.edit(|record| {
            if let Some(run) = &mut record.run {
                run.log.answers.drain(..count.min(run.log.answers.len()));
            }
        });
        self.save(ctx);
        self.crew(ctx).log_tail.do_send(LookAtLog);
    }
}
