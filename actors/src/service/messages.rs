//! The folded conversation of a session, newest first.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;
use optio_codex_protocol::events;
use optio_codex_protocol::messages::{Conversation, Kind, Message};
use optio_store::{Page, Record, SessionId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Service;
use crate::error::SessionError;

/// Events read in one go.
const CHUNK: usize = 2_000;

/// Events looked through for one page at the most; a turn of more deltas than this is shown from where they begin.
const LOOK_BACK: usize = 60_000;

/// A record of the conversation as the API shows it.
#[derive(Debug, Clone, Serialize)]
pub struct MessageView {
    /// The item's id, unique within its turn.
    pub id: String,
    /// The newest event that is folded into it.
    pub seq: u64,
    /// The turn it belongs to.
    pub turn: Option<String>,
    /// What it is.
    pub kind: Kind,
    /// What to show.
    pub text: String,
    /// How far it is.
    pub status: optio_codex_protocol::messages::Status,
    /// When it began.
    pub at: Option<Timestamp>,
    /// The item as Codex described it.
    pub detail: Option<Box<RawValue>>,
}

/// Where a record of the conversation stands in the journal.
#[derive(Debug, Clone, Copy)]
struct Place {
    first: u64,
    last: u64,
    at: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Line<'a> {
    ts: Option<Timestamp>,
    #[serde(borrow, default)]
    codex: Option<&'a RawValue>,
    #[serde(borrow, default)]
    approval: Option<&'a RawValue>,
}

type Places = HashMap<(String, String), Place>;

impl Service {
    /// A page of the conversation, newest first; `cursor` is an earlier page's.
    pub async fn messages(
        &self,
        id: &SessionId,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<MessageView>, SessionError> {
        let stream = self.events(id).await?;
        let mut before = match cursor {
            Some(cursor) => cursor.parse().map_err(|_| SessionError::Invalid {
                field: "cursor",
                why: "it must be a next_cursor of an earlier page".to_owned(),
            })?,
            None => u64::MAX,
        };
        let mut records = VecDeque::new();
        loop {
            let chunk = stream.read_back(before, CHUNK).await?.records;
            let begins = chunk.len() < CHUNK || chunk.first().is_some_and(|record| record.seq == 1);
            before = chunk.first().map_or(before, |record| record.seq);
            for record in chunk.into_iter().rev() {
                records.push_front(record);
            }
            // A record is whole only if its turn is: the fold begins where one does.
            let from = match begins {
                true => Some(0),
                false => records.iter().position(|record: &Record| record.name == "turn.started"),
            };
            let full = records.len() >= LOOK_BACK;
            let Some(from) = from.or(full.then_some(0)) else {
                continue;
            };
            let (mut views, places) = fold(records.range(from..));
            if views.len() < limit && !begins && !full {
                continue;
            }
            let older = !begins || views.len() > limit;
            let skip = views.len().saturating_sub(limit);
            views.drain(..skip);
            let next_cursor = views.first().filter(|_| older).and_then(|oldest| first_of(&places, oldest));
            views.reverse();
            return Ok(Page { data: views, next_cursor: next_cursor.map(|seq| seq.to_string()) });
        }
    }
}

fn first_of(places: &Places, view: &MessageView) -> Option<u64> {
    let key = (view.turn.clone().unwrap_or_default(), view.id.clone());
    places.get(&key).map(|place| place.first)
}

/// Folds events into records of the conversation, oldest first.
fn fold<'a>(records: impl Iterator<Item = &'a Record>) -> (Vec<MessageView>, Places) {
    let mut conversation = Conversation::new(None);
    let mut places = Places::new();
    for record in records {
        let Ok(line) = serde_json::from_slice::<Line<'_>>(&record.data) else {
            continue;
        };
        let Some(payload) = line.codex.or(line.approval).map(|raw| raw.get().as_bytes()) else {
            continue;
        };
        conversation.apply(&record.name, payload);
        let place = places.entry(key_of(&record.name, payload)).or_insert(Place {
            first: record.seq,
            last: record.seq,
            at: line.ts,
        });
        place.last = record.seq;
    }
    let views = conversation.messages().map(|message| view(message, &places)).collect();
    (views, places)
}

/// What an event is about: the turn and the item, under the names that the fold gives them.
fn key_of(name: &str, payload: &[u8]) -> (String, String) {
    #[derive(Deserialize)]
    struct Approval {
        id: String,
    }
    if name.starts_with("approval.") {
        let approval =
            serde_json::from_slice::<Approval>(payload).map(|approval| approval.id).unwrap_or_default();
        return (String::new(), approval);
    }
    let about = events::peek(payload);
    let turn = about.turn.map(|turn| turn.into_owned()).unwrap_or_default();
    let item = match name {
        "plan.updated" => "plan".to_owned(),
        "turn.completed" => "error".to_owned(),
        _ => about.item.map(|item| item.into_owned()).unwrap_or_default(),
    };
    (turn, item)
}

fn view(message: &Message, places: &Places) -> MessageView {
    let key = (message.turn.clone().unwrap_or_default(), message.id.clone());
    let place = places.get(&key);
    MessageView {
        id: message.id.clone(),
        seq: place.map_or(0, |place| place.last),
        turn: message.turn.clone(),
        kind: message.kind,
        text: message.text.clone(),
        status: message.status,
        at: place.and_then(|place| place.at),
        detail: message.raw.clone(),
    }
}
