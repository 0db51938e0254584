//! The conversation as a person reads it, folded from what happened (`GET …/messages`).
//!
//! [`Conversation::apply`] takes one journal event after another. Order is not to be trusted (LAB §2): a command's end
//! may come after its turn's, an interrupted answer has deltas and no end, an item may be announced again. So records
//! are found by turn and item id, the newest word about an item wins, and a turn's end settles what it left open.

pub(crate) mod item;

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::rpc::Text;

/// The most records kept; the oldest go first. At some hundred bytes each it bounds a view's memory, and a page shows
/// far fewer.
pub const MAX_MESSAGES: usize = 10_000;

/// The most text kept for one record, in bytes. The journal and the rollout have the rest.
pub const MAX_TEXT: usize = 1024 * 1024;

/// The largest item kept raw with its record, in bytes: a command's whole output need not stand in every page.
pub const MAX_RAW: usize = 256 * 1024;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// What the user said.
    User,
    /// What the agent said.
    Assistant,
    /// What the agent thought.
    Reasoning,
    /// The agent's plan.
    Plan,
    /// A command it ran.
    Command,
    /// Files it changed.
    FileChange,
    /// A tool it called.
    Tool,
    /// What it looked up.
    Search,
    /// A permission it asked for.
    Approval,
    /// Something that happened to the turn.
    Notice,
    /// An item of a kind this program does not know; `raw` has it.
    Other,
}

/// How far a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Still growing or running; for an approval, waiting.
    InProgress,
    /// Done; for an approval, accepted.
    Completed,
    /// Gone wrong.
    Failed,
    /// Not allowed.
    Declined,
    /// Cut short by an interrupt; for an approval, withdrawn.
    Interrupted,
}

impl Status {
    /// Reads the word of an item, a turn or an approval; an unknown one is none.
    pub(crate) fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "inProgress" | "in_progress" | "pending" => Self::InProgress,
            "completed" | "accepted" => Self::Completed,
            "failed" => Self::Failed,
            "declined" => Self::Declined,
            "interrupted" | "cancelled" | "expired" => Self::Interrupted,
            _ => return None,
        })
    }
}

/// One record of the conversation.
#[derive(Debug, Clone, Serialize)]
pub struct Message {
    /// The item's id, unique within its turn.
    pub id: String,
    /// The turn it belongs to.
    pub turn: Option<String>,
    /// What it is.
    pub kind: Kind,
    /// What to show: words, a command line, the changed files.
    pub text: String,
    /// How far it is.
    pub status: Status,
    /// The item as Codex described it, unless it is larger than [`MAX_RAW`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<Box<RawValue>>,
}

/// The records of one thread.
#[derive(Debug, Default)]
pub struct Conversation {
    thread: Option<String>,
    messages: VecDeque<Message>,
    /// How many records were dropped; the number in `places` counts them too.
    dropped: usize,
    places: HashMap<(String, String), usize>,
}

impl Conversation {
    /// Begins empty. With a thread, what other threads (sub-agents) say is left out.
    pub fn new(thread: Option<String>) -> Self {
        Self { thread, ..Self::default() }
    }

    /// Answers the records, oldest first.
    pub fn messages(&self) -> impl DoubleEndedIterator<Item = &Message> + ExactSizeIterator {
        self.messages.iter()
    }

    /// Folds one event: its journal name ([`crate::events::name`]) and its Codex payload. For `approval.requested` the
    /// payload is the approval (`id`, `command`, `reason`, `turn`, …), for `approval.resolved` its `id` and `state`.
    /// Events that are no part of a conversation, and payloads that are not understood, change nothing.
    pub fn apply(&mut self, event: &str, payload: &[u8]) {
        match event {
            "item.started" => self.item(payload, Status::InProgress),
            "item.completed" => self.item(payload, Status::Completed),
            "item.delta" => self.delta(payload),
            "turn.completed" => self.turn_completed(payload),
            "plan.updated" => self.plan(payload),
            "approval.requested" => self.approval(payload),
            "approval.resolved" => self.approval_resolved(payload),
            _ => {}
        }
    }

    fn item(&mut self, payload: &[u8], otherwise: Status) {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Payload<'a> {
            #[serde(borrow)]
            thread_id: Option<Text<'a>>,
            #[serde(borrow)]
            turn_id: Option<Text<'a>>,
            #[serde(borrow)]
            item: &'a RawValue,
        }
        let Ok(payload) = serde_json::from_slice::<Payload<'_>>(payload) else {
            return;
        };
        if self.is_foreign(payload.thread_id.as_deref()) {
            return;
        }
        let turn = payload.turn_id.map(|turn| turn.0.into_owned());
        if let Some(message) = item::read(turn, payload.item, otherwise) {
            self.put(message);
        }
    }

    fn delta(&mut self, payload: &[u8]) {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Payload<'a> {
            #[serde(borrow)]
            thread_id: Option<Text<'a>>,
            #[serde(borrow)]
            turn_id: Text<'a>,
            #[serde(borrow)]
            item_id: Text<'a>,
            #[serde(borrow)]
            delta: Text<'a>,
            content_index: Option<u64>,
            summary_index: Option<u64>,
        }
        let Ok(payload) = serde_json::from_slice::<Payload<'_>>(payload) else {
            return;
        };
        if self.is_foreign(payload.thread_id.as_deref()) {
            return;
        }
        let at = self.place(Some(&payload.turn_id), &payload.item_id).unwrap_or_else(|| {
            // Its beginning was not heard. Only reasoning counts its parts.
            let is_reasoning = payload.content_index.is_some() || payload.summary_index.is_some();
            self.put(Message {
                id: payload.item_id.to_string(),
                turn: Some(payload.turn_id.to_string()),
                kind: if is_reasoning { Kind::Reasoning } else { Kind::Assistant },
                text: String::new(),
                status: Status::InProgress,
                raw: None,
            })
        });
        let message = &mut self.messages[at];
        // A command's output is not its command line; it comes whole with the item's end.
        if matches!(message.kind, Kind::Assistant | Kind::Reasoning | Kind::Plan)
            && message.status == Status::InProgress
        {
            let room = MAX_TEXT - message.text.len();
            message.text.push_str(&payload.delta[..payload.delta.floor_char_boundary(room)]);
        }
    }

    fn turn_completed(&mut self, payload: &[u8]) {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Payload<'a> {
            #[serde(borrow)]
            thread_id: Option<Text<'a>>,
            #[serde(borrow)]
            turn: Turn<'a>,
        }
        #[derive(Deserialize)]
        struct Turn<'a> {
            #[serde(borrow)]
            id: Text<'a>,
            #[serde(borrow)]
            status: Option<Text<'a>>,
            error: Option<Reason>,
        }
        #[derive(Deserialize)]
        struct Reason {
            message: String,
        }
        let Ok(payload) = serde_json::from_slice::<Payload<'_>>(payload) else {
            return;
        };
        if self.is_foreign(payload.thread_id.as_deref()) {
            return;
        }
        let status = payload.turn.status.as_deref().and_then(Status::from_word).unwrap_or(Status::Completed);
        self.settle(&payload.turn.id, status, payload.turn.error.map(|error| error.message));
    }

    /// Ends a turn: nothing of it grows any more. Only a command may still be running after a good end.
    pub(crate) fn settle(&mut self, turn: &str, status: Status, error: Option<String>) {
        for message in self.messages.iter_mut().rev() {
            let is_open = message.turn.as_deref() == Some(turn) && message.status == Status::InProgress;
            let may_go_on = status == Status::Completed && matches!(message.kind, Kind::Command | Kind::Tool);
            if is_open && !may_go_on {
                message.status = status;
            }
        }
        if let Some(text) = error {
            self.put(Message {
                id: "error".to_owned(),
                turn: Some(turn.to_owned()),
                kind: Kind::Notice,
                text: cut(text),
                status: Status::Failed,
                raw: None,
            });
        }
    }

    /// `turn/plan/updated` has no item: one record per turn, replaced by each update.
    fn plan(&mut self, payload: &[u8]) {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Payload<'a> {
            #[serde(borrow)]
            thread_id: Option<Text<'a>>,
            #[serde(borrow)]
            turn_id: Text<'a>,
            plan: Vec<PlanStep>,
        }
        let Ok(payload) = serde_json::from_slice::<Payload<'_>>(payload) else {
            return;
        };
        if !self.is_foreign(payload.thread_id.as_deref()) {
            self.put(plan_message("plan", Some(payload.turn_id.to_string()), &payload.plan));
        }
    }

    fn approval(&mut self, payload: &[u8]) {
        #[derive(Deserialize)]
        struct Payload {
            id: String,
            turn: Option<String>,
            command: Option<String>,
            reason: Option<String>,
        }
        let Ok(found) = serde_json::from_slice::<Payload>(payload) else {
            return;
        };
        let text = found.command.or(found.reason).unwrap_or_default();
        // Ids begin anew with every app-server: only one that still waits is the same request asked again (LAB §9).
        let key = (APPROVALS.to_owned(), found.id.clone());
        if let Some(at) = self.index(&key)
            && self.messages[at].status != Status::InProgress
        {
            self.places.remove(&key);
        }
        self.put(Message {
            id: found.id,
            turn: found.turn,
            kind: Kind::Approval,
            text: cut(text),
            status: Status::InProgress,
            raw: serde_json::from_slice::<&RawValue>(payload).ok().and_then(item::keep),
        });
    }

    fn approval_resolved(&mut self, payload: &[u8]) {
        #[derive(Deserialize)]
        struct Payload {
            id: String,
            state: String,
        }
        let Ok(found) = serde_json::from_slice::<Payload>(payload) else {
            return;
        };
        if let Some(at) = self.index(&(APPROVALS.to_owned(), found.id)) {
            self.messages[at].status = Status::from_word(&found.state).unwrap_or(Status::Interrupted);
        }
    }

    fn is_foreign(&self, thread: Option<&str>) -> bool {
        matches!((&self.thread, thread), (Some(own), Some(thread)) if own != thread)
    }

    /// Adds a record, or replaces the one of the same turn and id, and answers its index. What an earlier word said and
    /// the new one does not is kept.
    pub(crate) fn put(&mut self, mut message: Message) -> usize {
        let key = key(&message);
        if let Some(at) = self.index(&key) {
            let known = &mut self.messages[at];
            if message.text.is_empty() {
                message.text = std::mem::take(&mut known.text);
            }
            // An end is final: an item announced again as running is a replay.
            if message.status == Status::InProgress {
                message.status = known.status;
            }
            message.raw = message.raw.or(known.raw.take());
            *known = message;
            return at;
        }
        if self.messages.len() == MAX_MESSAGES
            && let Some(oldest) = self.messages.pop_front()
        {
            let old = self::key(&oldest);
            if self.places.get(&old) == Some(&self.dropped) {
                self.places.remove(&old);
            }
            self.dropped += 1;
        }
        self.places.insert(key, self.dropped + self.messages.len());
        self.messages.push_back(message);
        self.messages.len() - 1
    }

    pub(crate) fn place(&self, turn: Option<&str>, id: &str) -> Option<usize> {
        self.index(&(turn.unwrap_or_default().to_owned(), id.to_owned()))
    }

    pub(crate) fn at(&mut self, at: usize) -> &mut Message {
        &mut self.messages[at]
    }

    fn index(&self, key: &(String, String)) -> Option<usize> {
        self.places.get(key)?.checked_sub(self.dropped)
    }
}

/// Stands in for the turn in the key of an approval: its id is the connection's, not a turn's.
const APPROVALS: &str = "\u{0}approval";

fn key(message: &Message) -> (String, String) {
    let scope = match message.kind {
        Kind::Approval => APPROVALS,
        _ => message.turn.as_deref().unwrap_or_default(),
    };
    (scope.to_owned(), message.id.clone())
}

/// One step of a plan.
#[derive(Deserialize)]
pub(crate) struct PlanStep {
    step: String,
    #[serde(default)]
    status: String,
}

/// Writes a plan as a list of boxes.
pub(crate) fn plan_message(id: &str, turn: Option<String>, steps: &[PlanStep]) -> Message {
    let mut text = String::new();
    for step in steps {
        let mark = match step.status.as_str() {
            "completed" => "[x]",
            "inProgress" | "in_progress" => "[>]",
            _ => "[ ]",
        };
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(mark);
        text.push(' ');
        text.push_str(&step.step);
    }
    Message {
        id: id.to_owned(),
        turn,
        kind: Kind::Plan,
        text: cut(text),
        status: Status::Completed,
        raw: None,
    }
}

/// Cuts a text to what is kept.
pub(crate) fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
