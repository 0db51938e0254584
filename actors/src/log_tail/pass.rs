//! Reading what the agent has appended, pass by pass: a part of the file at a time, made into what the session is told.

use std::time::Duration;

use actix::prelude::*;
use optio_codex_protocol::agents_md::KeywordFeatures;
use optio_codex_protocol::keywords::{self, Keyword};
use optio_host::HostError;

use super::lines::{Line, LogPosition, read_on};
use super::{LogLine, LogRead, OPTIO_LOG, QUEUE};
use crate::session::RunContext;
use crate::supervision::{ChildKind, Pulse};

/// Notes of progress that one pass tells; of more, the newest is told with the number of those left out (S-480). With the
/// pause between two passes that makes a hundred a second.
const NOTES: usize = 10;

/// What the tail pays heed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heed {
    /// The keywords in force.
    pub features: KeywordFeatures,
    /// The host protocol is on. Without it a browser request and a call for a person are read and nothing else (S-194).
    pub all: bool,
}

/// The pause after a pass that had more to tell than a person can read (S-480).
const CROWDED_PAUSE: Duration = Duration::from_millis(100);

/// What is read when nothing new is there any more.
pub(super) struct Read {
    /// How far that is.
    pub(super) position: LogPosition,
    /// See [`Pass::last`].
    pub(super) last: bool,
    /// See [`Pass::blocked`].
    pub(super) blocked: bool,
}

/// Why nothing was read.
pub(super) enum Unread {
    /// What lies there is no log.
    Odd(String),
    /// Its host is out of reach.
    Away(String),
    /// It cannot be read.
    Broken(String),
}

/// Reads and tells until nothing new is there. Each part is told before the next is read.
pub(super) async fn read_all(
    run: &RunContext,
    mut at: LogPosition,
    heed: Heed,
    session: Recipient<LogRead>,
    pulse: Pulse,
    hurry: bool,
) -> Result<Read, Unread> {
    loop {
        let stepped = run.step(ChildKind::LogTail, "read").await;
        stepped.map_err(|injected| Unread::Broken(injected.to_string()))?;
        let pending = run.ledger.read(|record| record.run.as_ref().map_or(0, |run| run.log.pending.len()));
        let room = QUEUE.saturating_sub(pending);
        let pass = pass(run, &at, heed, room).await.map_err(|problem| match problem {
            HostError::Refused { .. } => Unread::Odd(problem.to_string()),
            problem if problem.reach_code().is_some() => Unread::Away(problem.to_string()),
            problem => Unread::Broken(format!("the agent's log cannot be read: {problem}")),
        })?;
        pulse.touch();
        if pass.position == at {
            return Ok(Read { position: at, last: false, blocked: pass.blocked });
        }
        let (last, blocked, crowded) = (pass.last, pass.blocked, pass.crowded);
        at = pass.position;
        let read = LogRead { lines: pass.lines, position: at.clone() };
        session.send(read).await.map_err(|_| Unread::Broken("the session is gone".to_owned()))?;
        pulse.touch();
        if last || blocked {
            return Ok(Read { position: at, last, blocked });
        }
        if crowded && !hurry {
            tokio::time::sleep(CROWDED_PAUSE).await;
        }
    }
}

/// What a pass found.
struct Pass {
    lines: Vec<LogLine>,
    position: LogPosition,
    /// Nothing is read after this: the agent said that it is over.
    last: bool,
    /// A deliverable found no place in the queue: its line is read again later.
    blocked: bool,
    /// There was more to tell than is told.
    crowded: bool,
}

/// Reads one part of the log. `room` is how many deliverables the queue takes. A log that is not there is an empty one.
async fn pass(run: &RunContext, at: &LogPosition, heed: Heed, mut room: usize) -> Result<Pass, HostError> {
    let mut pass =
        Pass { lines: Vec::new(), position: at.clone(), last: false, blocked: false, crowded: false };
    let path = RunContext::in_workdir(OPTIO_LOG);
    let fresh = match read_on(&*run.host, &run.dir, &path, &mut pass.position).await {
        Err(HostError::NotFound { .. }) => return Ok(pass),
        fresh => fresh?,
    };
    let mut rest = &fresh[..];
    loop {
        let before = pass.position.clone();
        let Some((line, after)) = pass.position.take(rest) else { break };
        let said = match line {
            Line::Whole(bytes) => keywords::read(&bytes, heed.features),
            Line::Shortened(text) => Keyword::Note(text),
        };
        match &said {
            Keyword::Deliverable { .. } if heed.all && room == 0 => {
                pass.position = before;
                pass.blocked = true;
                break;
            }
            Keyword::Deliverable { .. } => room = room.saturating_sub(1),
            _ => {}
        }
        rest = after;
        if heeds(&said, heed) {
            pass.last = matches!(said, Keyword::Done { .. } | Keyword::Error { .. });
            pass.lines.push(LogLine { line: pass.position.line, left_out: 0, said });
        }
        if pass.last {
            break;
        }
    }
    pass.crowded = thin(&mut pass.lines);
    Ok(pass)
}

fn heeds(said: &Keyword, heed: Heed) -> bool {
    match said {
        Keyword::Blank => false,
        Keyword::Browser { .. } | Keyword::Attention { .. } => true,
        _ => heed.all,
    }
}

fn is_progress(line: &LogLine) -> bool {
    matches!(line.said, Keyword::Status { .. } | Keyword::Note(_))
}

/// Leaves out what comes too fast to be read: of the notes the first ones and the newest stay, all else stays anyway.
fn thin(lines: &mut Vec<LogLine>) -> bool {
    let notes = lines.iter().filter(|line| is_progress(line)).count();
    let surplus = notes.saturating_sub(NOTES);
    let mut nth = 0;
    lines.retain_mut(|line| {
        if !is_progress(line) {
            return true;
        }
        nth += 1;
        if nth == notes {
            line.left_out = surplus;
        }
        nth < NOTES || nth == notes
    });
    notes >= NOTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(line: u64) -> LogLine {
        LogLine { line, left_out: 0, said: Keyword::Note(line.to_string()) }
    }

    #[test]
    fn of_too_many_notes_the_newest_is_told_and_the_others_are_counted() {
        let mut lines: Vec<_> = (1..=30).map(note).collect();
        let asked = LogLine { said: Keyword::Attention { reason: "x".to_owned() }, ..note(15) };
        lines.insert(15, asked.clone());
        assert!(thin(&mut lines));
        let notes: Vec<_> = lines.iter().filter(|l| is_progress(l)).map(|l| (l.line, l.left_out)).collect();
        assert_eq!(notes, (1..=9).map(|line| (line, 0)).chain([(30, 20)]).collect::<Vec<_>>());
        assert_eq!(lines.len(), 11);
        assert_eq!(lines[9], asked, "what is no note stays, in its place");
    }

    #[test]
    fn a_few_notes_are_all_told() {
        let mut lines: Vec<_> = (1..=10).map(note).collect();
        thin(&mut lines);
        assert_eq!(lines, (1..=10).map(note).collect::<Vec<_>>());
    }
}
