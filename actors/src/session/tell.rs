//! What the service itself tells the agent: lines that begin with `System: `, never in the middle of its turn.

use actix::prelude::*;
use futures_util::FutureExt;
use optio_codex_protocol::requests::Input;
use tracing::{Instrument, warn};

use super::children::Front;
use super::{Phase, Session, TurnMode};
use crate::conversation::{ConversationError, SendMessage};
use crate::log_tail::LookAtLog;
use crate::terminal::TypeText;

/// Begins each line that comes from the service and from no person (S-174).
const PREFIX: &str = "System: ";

impl Session {
    /// Tells the agent every answer that waits, all in one message, as soon as no turn runs.
    /// What could not be told stays,
    /// and is tried again when a turn ends and every few seconds: an answer twice is better than an agent that waits for
    /// one for ever.
    pub(super) fn tell_answers(&mut self, ctx: &mut Context<Self>) {
        let (answers, turn_runs) = self.ledger.read(|record| {
            let run = record.run.as_ref();
            let answers = run.map(|run| run.log.answers.clone()).unwrap_or_default();
            (answers, run.is_some_and(|run| run.turn.is_some()))
        });
        if self.telling
            || self.detaching
            || self.host_is_away()
            || self.phase() != Phase::Live
            || answers.is_empty()
        {
            return;
        }
        let text: Vec<_> = answers.iter().map(|answer| format!("{PREFIX}{answer}")).collect();
        let text = text.join("\n");
        let telling = match self.crew(ctx).front {
            Front::Conversation(_) if turn_runs => return,
            Front::Conversation(reader) => {
                let input = vec![Input::Text(text)];
                let sending = reader.send(SendMessage { input, mode: TurnMode::Queue });
                async move { sending.await.map(|sent| sent.map(drop).map_err(|e| e.to_string())) }
                    .boxed_local()
            }
            // Codex itself keeps what is typed while it works.
            Front::Terminal(terminal) => {
                let typing = terminal.send(TypeText(text));
                async move { typing.await.map(|typed| typed.map_err(|e| e.to_string())) }.boxed_local()
            }
        };
        self.telling = true;
        let telling = telling.instrument(self.span.clone()).into_actor(self);
        ctx.spawn(telling.map(move |told, session, ctx| {
            session.telling = false;
            match told {
                Ok(Ok(())) => {
                    session.told(answers.len(), ctx);
                    // What came meanwhile; a turn that this began is waited for.
                    session.tell_answers(ctx);
                }
                Ok(Err(problem)) => warn!(problem, "answer is not told yet"),
                Err(_) => warn!("answer is not told yet, the way to the agent is made anew"),
            }
        }));
    }

    /// Hands a fresh reader what the one before it had taken for a later turn. What is not taken now stays for the next.
    pub(super) fn send_the_unsent(&mut self, ctx: &mut Context<Self>) {
        let Front::Conversation(reader) = self.crew(ctx).front else { return };
        let Some(message) = self.unsent.pop_front() else { return };
        let kept = message.clone();
        let sending = reader.send(SendMessage { mode: TurnMode::Queue, ..message });
        ctx.spawn(sending.instrument(self.span.clone()).into_actor(self).map(
            |sent, session, ctx| match sent {
                Ok(Ok(_)) => session.send_the_unsent(ctx),
                // Whether it arrived is said elsewhere; a second one would be one too many.
                Ok(Err(ConversationError::Unconfirmed)) => {}
                Ok(Err(problem)) => {
                    warn!(%problem, "message is not sent yet");
                    session.unsent.push_front(kept);
                }
                Err(_) => warn!("reader is gone with a message"),
            },
        ));
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
