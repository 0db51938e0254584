//! What the agent's log says, and what follows from it.
//!
//! Told first, then on record: an event carries the number of its line, so that a process that dies between the two finds
//! in the journal what was told already, and tells the rest. The agent's own word about its work ends the run.

mod on_record;
mod told;

use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;
use optio_codex_protocol::keywords::{Data, Keyword, deliverable};
use optio_host::ExitStatus;
use serde_json::json;
use tracing::{Instrument, info, warn};

pub use on_record::{Announced, Attention, LogRecord, Progress};
use told::told_lines;

use super::end::Cause;
use super::phase::{EndState, Phase};
use super::record::SessionRecord;
use super::verdict::{Verdict, of_agents_end, short};
use super::{Beginning, Session};
use crate::log_tail::{
    DeliverableSettled, Heed, LogLine, LogPosition, LogRead, ReadToTheEnd, Stage, StopReading, TailStart,
};
use crate::teardown::Step;

/// How long the deliverables that were announced before DONE may take (S-188).
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How long the reading of what an agent wrote last may take.
const LAST_LINES_LIMIT: Duration = Duration::from_secs(5);

/// With what the tail of a session begins, fresh or in place of another.
pub(super) fn tail_start(session: &Session) -> TailStart {
    let (heed, stage) = session.ledger.read(|record| {
        let log = record.run.as_ref().map(|run| &run.log);
        let agent_is_over = record.progress().contains_key(&Step::StopAgent);
        let over = agent_is_over || log.is_some_and(|log| log.verdict.is_some());
        let stage = match log {
            _ if over => Stage::Over,
            Some(log) if log.followed => Stage::Following,
            _ => Stage::Waiting,
        };
        let heed = Heed { features: record.config.keyword_features(), all: record.config.host_protocol() };
        (heed, stage)
    });
    TailStart { heed, stage, position: session.log_at.clone() }
}

/// How far the log of the run on record was read.
pub(super) fn position(record: &SessionRecord) -> LogPosition {
    record.run.as_ref().map(|run| run.log.position.clone()).unwrap_or_default()
}

impl Handler<LogRead> for Session {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, read: LogRead, _: &mut Self::Context) -> Self::Result {
        // From now on a fresh tail goes on behind these lines, whatever becomes of the one that read them.
        self.log_at = read.position.clone();
        let stream = self.events.stream().clone();
        let told_before = self.ledger.read(|record| record.run.as_ref().map_or(0, |run| run.log.told_before));
        let known = self.told_lines.or((self.beginning == Beginning::Launch).then_some(0));
        let finding = async move {
            match known {
                Some(told) => told,
                None => told_lines(&*stream, told_before).await,
            }
        };
        let telling = finding.instrument(self.span.clone()).into_actor(self).then(move |told, session, _| {
            session.told_lines = Some(told);
            for line in read.lines.iter().filter(|line| line.line > told) {
                session.tell_line(line);
            }
            let stream = session.events.stream().clone();
            let flushing = async move {
                if let Err(problem) = stream.flush().await {
                    warn!(%problem, "journal is not flushed");
                }
                (read, *stream.newest().borrow())
            };
            flushing.into_actor(session)
        });
        Box::pin(telling.then(|(read, newest), session, ctx| {
            session.heed(read, newest, ctx);
            let ledger = session.ledger.clone();
            let saving = async move {
                if let Err(problem) = ledger.save().await {
                    warn!(%problem, "session record is not saved");
                }
            };
            saving.into_actor(session)
        }))
    }
}

impl Session {
    fn tell_line(&self, LogLine { line, left_out, said }: &LogLine) {
        let progress = |percent: Option<u8>, message: &str| {
            let mut body = json!({ "percent": percent, "message": message, "line": line });
            if *left_out > 0 {
                body["left_out"] = json!(left_out);
            }
            self.events.tell("progress", &body);
        };
        let data = |name, Data { keyword, data }: &Data| {
            self.events.tell(name, &json!({ "keyword": keyword, "data": data, "line": line }));
        };
        match said {
            Keyword::Status { percent, message } => progress(*percent, message),
            Keyword::Note(text) => progress(None, text),
            Keyword::Done { summary: Some(words) } => progress(None, words),
            Keyword::Attention { reason } => {
                self.events.tell("attention", &json!({ "reason": reason, "line": line }));
            }
            Keyword::Browser { url } => {
                self.events.tell("browser.requested", &json!({ "url": url, "line": line }));
            }
            Keyword::ClientMessage(message) => data("client.message", message),
            Keyword::CallerMessage(message) => data("caller.message", message),
            // A deliverable is told of when it is settled, the end with its reason.
            Keyword::Deliverable { .. } | Keyword::Done { .. } | Keyword::Error { .. } | Keyword::Blank => {}
        }
    }

    /// Does what the lines ask for. What is announced, said or called for is on record with the position behind it.
    fn heed(&mut self, LogRead { lines, position }: LogRead, newest: u64, ctx: &mut Context<Self>) {
        let verdict = self.ledger.edit(|record| {
            let run = record.run.as_mut().expect("a session actor exists only for a run on record");
            let log = &mut run.log;
            log.position = position;
            log.told_before = newest;
            for LogLine { line, said, .. } in lines {
                match said {
                    Keyword::Status { percent, message } => {
                        // It goes on, so nobody is needed any more.
                        log.attention = None;
                        log.progress = Some(Progress { percent, message: short(&message) });
                    }
                    Keyword::Note(message) => {
                        log.progress = Some(Progress { percent: None, message: short(&message) });
                    }
                    Keyword::Attention { .. } if record.phase == Phase::Stopping => {}
                    Keyword::Attention { reason } => {
                        let since = Timestamp::now();
                        let id = format!("att_{line}");
                        log.attention = Some(Attention { id, reason: short(&reason), since });
                    }
                    Keyword::Deliverable { path } => {
                        let path = deliverable::bounded(path);
                        log.pending.push(Announced { line, path });
                    }
                    Keyword::Done { summary } => {
                        log.verdict = Some(Verdict::Done { summary: summary.as_deref().map(short) });
                    }
                    Keyword::Error { message } => {
                        log.verdict = Some(Verdict::Error { message: message.as_deref().map(short) });
                    }
                    Keyword::Browser { .. } | Keyword::ClientMessage(_) => {}
                    Keyword::CallerMessage(_) | Keyword::Blank => {}
                }
            }
            log.verdict.clone()
        });
        if let Some(verdict) = verdict {
            self.finish(&verdict, ctx);
        }
        self.publish();
    }

    /// Ends the run with the agent's own word. What it has handed over before DONE comes first, within a limit.
    pub(super) fn finish(&mut self, verdict: &Verdict, ctx: &mut Context<Self>) {
        let (outcome, reason) = verdict.outcome();
        info!(parent: &self.span, ?outcome, reason, "agent says that it is over");
        if outcome == EndState::Failed && self.phase() == Phase::Stopping {
            // What it failed of is not forgotten because somebody stopped it meanwhile (S-184).
            self.ledger.edit(|record| {
                if record.outcome == Some(EndState::Stopped) {
                    (record.outcome, record.reason) = (Some(outcome), Some(reason));
                }
            });
            return;
        }
        if outcome == EndState::Done && self.has_pending_deliverables() {
            if !std::mem::replace(&mut self.draining_deliverables, true) {
                let verdict = verdict.clone();
                ctx.run_later(DRAIN_LIMIT, move |session, ctx| {
                    let (outcome, reason) = verdict.outcome();
                    session.end(Cause::over(outcome, reason), ctx);
                });
            }
            return;
        }
        self.end(Cause::over(outcome, reason), ctx);
    }

    fn has_pending_deliverables(&self) -> bool {
        self.ledger.read(|record| record.run.as_ref().is_some_and(|run| !run.log.pending.is_empty()))
    }

    fn verdict(&self) -> Option<Verdict> {
        self.ledger.read(|record| record.run.as_ref().and_then(|run| run.log.verdict.clone()))
    }

    /// Takes up a verdict that an earlier process had put on record, but not acted on yet.
    pub(super) fn finish_what_was_said(&mut self, ctx: &mut Context<Self>) {
        if let Some(verdict) = self.verdict() {
            self.finish(&verdict, ctx);
        }
    }

    /// Ends the run for an agent that is gone, or out of reach: what it wrote last is read first, and counts first.
    /// `by_itself` is how it ended if it did so by itself, and what it said last; else, and where its log and its status say
    /// nothing, `otherwise` is the cause.
    pub(super) fn end_after_last_lines(
        &mut self,
        by_itself: Option<(ExitStatus, String)>,
        otherwise: Cause,
        ctx: &mut Context<Self>,
    ) {
        let reading = self.read_last_lines(LAST_LINES_LIMIT, ctx);
        ctx.spawn(reading.into_actor(self).map(move |(), session, ctx| {
            let (mode, verdict) = (session.ledger.read(|record| record.config.mode()), session.verdict());
            match (verdict, by_itself) {
                (Some(verdict), _) => session.finish(&verdict, ctx),
                (None, Some((status, said))) => {
                    let cause = of_agents_end(mode, status, None).map_or(otherwise, |(outcome, reason)| {
                        // One that was left has nothing to explain.
                        let said = if outcome == EndState::Failed { said.as_str() } else { "" };
                        Cause::over(outcome, format!("{reason}{said}"))
                    });
                    session.end(cause, ctx);
                }
                (None, None) => session.end(otherwise, ctx),
            }
        }));
    }

    /// Has the log read to its present end; no longer than `limit`.
    pub(super) fn read_last_lines(
        &mut self,
        limit: Duration,
        ctx: &mut Context<Self>,
    ) -> impl Future<Output = ()> + use<> {
        let reading = self.crew(ctx).log_tail.send(ReadToTheEnd);
        async move {
            if tokio::time::timeout(limit, reading).await.is_err() {
                warn!(?limit, "log is not read to its end");
            }
        }
    }

    /// Ends what belongs to the log with the run.
    pub(super) fn end_log(&mut self, ctx: &mut Context<Self>) {
        self.crew(ctx).log_tail.do_send(StopReading);
        let dropped = self.ledger.edit(|record| {
            let log = &mut record.run.as_mut()?.log;
            log.attention = None;
            log.answers.clear();
            Some(std::mem::take(&mut log.pending))
        });
        for Announced { line, path } in dropped.unwrap_or_default() {
            self.events.tell(
                "deliverable",
                &json!({
                    "path": path, "bytes": null, "sha256": null, "accepted": false,
                    "reply": "not fetched: the session ended", "line": line,
                }),
            );
        }
    }

    /// A person is there: what they say is the answer to whatever was called for.
    pub(super) fn attention_is_paid(&mut self, ctx: &mut Context<Self>) {
        let paid = self.ledger.edit(|record| record.run.as_mut()?.log.attention.take());
        if paid.is_some() {
            self.save(ctx);
            self.publish();
        }
    }
}

impl Handler<DeliverableSettled> for Session {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, settled: DeliverableSettled, ctx: &mut Self::Context) -> Self::Result {
        let known = self.ledger.edit(|record| {
            let stopping = record.phase == Phase::Stopping;
            let log = &mut record.run.as_mut()?.log;
            let at = log.pending.iter().position(|announced| announced.line == settled.line)?;
            log.pending.remove(at);
            if !stopping {
                log.answers.push(deliverable::answer(&settled.path, &settled.reply));
            }
            Some(())
        });
        // One that was given up when the run ended has been told of.
        if known.is_some() {
            let DeliverableSettled { line, name, bytes, sha256, accepted, reply, .. } = settled;
            info!(parent: &self.span, name, accepted, reply, "deliverable is settled");
            self.events.tell(
                "deliverable",
                &json!({
                    "path": name, "bytes": bytes, "sha256": sha256, "accepted": accepted, "reply": reply,
                    "line": line,
                }),
            );
            self.tell_answers(ctx);
            if !self.has_pending_deliverables() {
                self.finish_what_was_said(ctx);
            }
        }
        let ledger = self.ledger.clone();
        let saving = async move {
            if let Err(problem) = ledger.save().await {
                warn!(%problem, "session record is not saved");
            }
        };
        Box::pin(saving.instrument(self.span.clone()).into_actor(self))
    }
}
