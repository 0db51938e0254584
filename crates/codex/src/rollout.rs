//! Rollouts: the files in which Codex itself keeps a thread, one JSON object per line.
//!
//! Two generations are read. 0.142.5 writes `event_msg` lines for what was said beside the `response_item` lines of the
//! model; 0.169 writes `event_msg` `item_completed` with items in PascalCase, beside the same `response_item` lines
//! (LAB §2). A [`Rollout`] folds both to the records of [`crate::messages`], under the ids the live wire used, line by
//! line, so a file of any size needs no more memory than its conversation.

mod line;
mod name;

use serde::Deserialize;
use serde_json::value::RawValue;

pub use name::{RolloutName, candidates};

use crate::messages::{Conversation, Message, Status};

/// What the first line says about the thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The thread.
    pub id: String,
    /// Where it worked when it began.
    pub cwd: Option<String>,
    /// The Codex that began it.
    pub cli_version: Option<String>,
    /// Who asked: `cli` (the terminal), `vscode` (the app-server), `exec`; `None` for a sub-agent, whose source is no
    /// plain word.
    pub source: Option<String>,
    /// The thread it belongs to, if it is a sub-agent's or a fork's.
    pub parent: Option<String>,
}

impl Header {
    /// Reads the first line; `None` when it is not a rollout's.
    pub fn parse(line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line<'a> {
            r#type: String,
            #[serde(borrow)]
            payload: &'a RawValue,
        }
        #[derive(Deserialize)]
        struct Meta {
            id: String,
            cwd: Option<String>,
            cli_version: Option<String>,
            source: Option<serde_json::Value>,
            parent_thread_id: Option<String>,
        }
        let line: Line<'_> =
            serde_json::from_slice(line).ok().filter(|line: &Line<'_>| line.r#type == "session_meta")?;
        let meta: Meta = serde_json::from_str(line.payload.get()).ok()?;
        Some(Self {
            id: meta.id,
            cwd: meta.cwd,
            cli_version: meta.cli_version,
            source: meta.source.and_then(|source| source.as_str().map(str::to_owned)),
            parent: meta.parent_thread_id,
        })
    }

    /// Says whether this may be a session's own thread: interactive and not below another (S-498).
    pub fn is_top_level(&self) -> bool {
        self.parent.is_none() && matches!(self.source.as_deref(), Some("cli" | "vscode"))
    }
}

/// What became of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folded {
    /// It said something about the conversation.
    Yes,
    /// It is a rollout's line and no part of the conversation.
    Ignored,
    /// It is no whole line: the file's last one after a crash, or one a disk error tore. The rest can still be read.
    Torn,
}

/// A rollout being read.
#[derive(Debug, Default)]
pub struct Rollout {
    conversation: Conversation,
    turn: Option<String>,
    header: Option<Header>,
    said: u64,
}

impl Rollout {
    /// Takes the next line, with or without its newline.
    pub fn line(&mut self, line: &[u8]) -> Folded {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Folded::Ignored;
        }
        let Ok(parsed) = serde_json::from_slice::<line::Line<'_>>(line) else {
            return Folded::Torn;
        };
        if parsed.r#type == "session_meta" {
            // A fork repeats its parent's header; the first one is the file's own.
            self.header = self.header.take().or_else(|| Header::parse(line));
            return Folded::Ignored;
        }
        match line::read(&parsed, self.turn.as_deref()) {
            line::Says::Nothing => return Folded::Ignored,
            line::Says::TurnBegan(turn) => self.turn = Some(turn),
            line::Says::TurnEnded(turn, status) => {
                if let Some(turn) = turn.or(self.turn.take()) {
                    self.conversation.settle(&turn, status, None);
                }
                self.turn = None;
            }
            line::Says::Failed(reason) => {
                if let Some(turn) = &self.turn {
                    self.conversation.settle(turn, Status::Failed, Some(reason));
                }
            }
            line::Says::Item(message) => {
                self.conversation.put(message);
            }
            line::Says::Unnamed(mut message) => {
                // 0.142.5 gives the user's words no id; their place in the file is as good.
                self.said += 1;
                message.id = format!("user-{}", self.said);
                self.conversation.put(message);
            }
            line::Says::CallEnded { id, turn, failed } => {
                let turn = turn.or(self.turn.clone());
                if let Some(at) = self.conversation.place(turn.as_deref(), &id) {
                    let call: &mut Message = self.conversation.at(at);
                    if call.status == Status::InProgress {
                        call.status = if failed { Status::Failed } else { Status::Completed };
                    }
                }
            }
        }
        Folded::Yes
    }

    /// Answers the first line's header, once it was read.
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// Answers the records so far.
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// Gives the records away, for live events to be folded after them.
    pub fn into_conversation(self) -> Conversation {
        self.conversation
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
