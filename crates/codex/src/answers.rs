//! The text with which a turn answered, put together from what the server streamed (S-371…S-374).
//!
//! A delta is appended where its item's text grows, so an answer of n bytes costs n bytes of copying however many
//! deltas it came in; the items are joined once, at the turn's end.

use serde::Deserialize;

use crate::rpc::Text;
use crate::turns::TurnStatus;

/// The most text kept for one turn, in bytes; what comes beyond is dropped and the answer says so. The journal still
/// has every delta.
pub const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// The most turns put together at once. One runs at a time; more means that ends were lost, and the oldest goes.
pub const MAX_OPEN_TURNS: usize = 8;

/// The most messages in one turn that are kept apart.
const MAX_ITEMS: usize = 4096;

/// What a turn said, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The turn.
    pub turn: String,
    /// Its agent messages, in order of first appearance; may be empty (S-373).
    pub text: String,
    /// How it ended.
    pub status: TurnStatus,
    /// Why it failed, as the server worded it.
    pub error: Option<String>,
    /// Set when the text was longer than [`MAX_ANSWER`].
    pub is_truncated: bool,
}

/// Answers of one thread's turns in the making.
#[derive(Debug)]
pub struct Answers {
    thread: String,
    /// In order of appearance; at most [`MAX_OPEN_TURNS`].
    open: Vec<Open>,
}

#[derive(Debug, Default)]
struct Open {
    turn: String,
    items: Vec<Item>,
    bytes: usize,
    is_truncated: bool,
    error: Option<String>,
}

#[derive(Debug)]
struct Item {
    id: String,
    text: String,
}

impl Answers {
    /// Begins with the thread whose turns count (S-364).
    pub fn new(thread: impl Into<String>) -> Self {
        Self { thread: thread.into(), open: Vec::new() }
    }

    /// Takes a notification; a `turn/completed` gives the answer. Other methods cost a comparison.
    pub fn notification(&mut self, method: &str, params: &[u8]) -> Option<Answer> {
        match method {
            "item/agentMessage/delta" => self.delta(params),
            "item/completed" => self.item_completed(params),
            "error" => self.error(params),
            "turn/completed" => return self.turn_completed(params),
            _ => {}
        }
        None
    }

    fn delta(&mut self, params: &[u8]) {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Delta<'a> {
            #[serde(borrow)]
            thread_id: Text<'a>,
            #[serde(borrow)]
            turn_id: Text<'a>,
            #[serde(borrow)]
            item_id: Text<'a>,
            #[serde(borrow)]
            delta: Text<'a>,
        }
        let Ok(params) = serde_json::from_slice::<Delta<'_>>(params) else {
            return;
        };
        if *params.thread_id == *self.thread {
            self.open(&params.turn_id).append(&params.item_id, &params.delta);
        }
    }

    fn item_completed(&mut self, params: &[u8]) {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Completed<'a> {
            #[serde(borrow)]
            thread_id: Text<'a>,
            #[serde(borrow)]
            turn_id: Text<'a>,
            #[serde(borrow)]
            item: Whole<'a>,
        }
        let Ok(params) = serde_json::from_slice::<Completed<'_>>(params) else {
            return;
        };
        if *params.thread_id != *self.thread || &*params.item.r#type != "agentMessage" {
            return;
        }
        if let Some(text) = params.item.text.filter(|text| !text.is_empty()) {
            self.open(&params.turn_id).replace(&params.item.id, &text);
        }
    }

    fn error(&mut self, params: &[u8]) {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Params<'a> {
            #[serde(borrow)]
            thread_id: Text<'a>,
            #[serde(borrow)]
            turn_id: Text<'a>,
            error: Reason,
            #[serde(default)]
            will_retry: bool,
        }
        let Ok(params) = serde_json::from_slice::<Params<'_>>(params) else {
            return;
        };
        if *params.thread_id == *self.thread && !params.will_retry {
            self.open(&params.turn_id).error = Some(params.error.message);
        }
    }

    fn turn_completed(&mut self, params: &[u8]) -> Option<Answer> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Params<'a> {
            #[serde(borrow)]
            thread_id: Text<'a>,
            #[serde(borrow)]
            turn: Turn<'a>,
        }
        #[derive(Deserialize)]
        struct Turn<'a> {
            #[serde(borrow)]
            id: Text<'a>,
            #[serde(borrow, default)]
            status: Option<Text<'a>>,
            #[serde(default)]
            error: Option<Reason>,
            #[serde(borrow, default)]
            items: Vec<Whole<'a>>,
        }
        let params: Params<'_> = serde_json::from_slice(params).ok()?;
        if *params.thread_id != *self.thread {
            return None;
        }
        let turn = params.turn;
        let at = self.open.iter().position(|open| open.turn == *turn.id);
        let mut open = at.map(|at| self.open.remove(at)).unwrap_or_default();
        // 0.169 repeats the last message in `items`. It heals an answer whose deltas nobody heard, and nothing else.
        if open.bytes == 0 {
            for item in turn.items.iter().filter(|item| &*item.r#type == "agentMessage") {
                open.replace(&item.id, item.text.as_deref().unwrap_or_default());
            }
        }
        Some(Answer {
            turn: turn.id.0.into_owned(),
            status: TurnStatus::from_wire(turn.status.as_deref().unwrap_or("completed")),
            error: turn.error.map(|error| error.message).or(open.error.take()),
            is_truncated: open.is_truncated,
            text: open.into_text(),
        })
    }

    /// Answers the turn in the making, begun with its first word.
    fn open(&mut self, turn: &str) -> &mut Open {
        let at = self.open.iter().rposition(|open| open.turn == turn).unwrap_or_else(|| {
            if self.open.len() == MAX_OPEN_TURNS {
                self.open.remove(0);
            }
            self.open.push(Open { turn: turn.to_owned(), ..Open::default() });
            self.open.len() - 1
        });
        &mut self.open[at]
    }
}

/// An item as `item/completed` and a turn's summary carry it.
#[derive(Deserialize)]
struct Whole<'a> {
    #[serde(borrow)]
    r#type: Text<'a>,
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Reason {
    message: String,
}

impl Open {
    fn append(&mut self, item: &str, delta: &str) {
        let room = MAX_ANSWER - self.bytes;
        let Some(item) = self.item(item) else { return };
        let kept = cut(delta, room);
        item.text.push_str(kept);
        self.bytes += kept.len();
        self.is_truncated |= kept.len() < delta.len();
    }

    fn replace(&mut self, item: &str, text: &str) {
        if let Some(item) = self.item(item) {
            let before = std::mem::take(&mut item.text).len();
            self.bytes -= before;
        }
        self.append(item, text);
    }

    /// Finds the item, newest first: deltas come for the item that was begun last.
    fn item(&mut self, id: &str) -> Option<&mut Item> {
        let at = match self.items.iter().rposition(|item| item.id == id) {
            Some(at) => at,
            None if self.items.len() == MAX_ITEMS => {
                self.is_truncated = true;
                return None;
            }
            None => {
                self.items.push(Item { id: id.to_owned(), text: String::new() });
                self.items.len() - 1
            }
        };
        Some(&mut self.items[at])
    }

    fn into_text(mut self) -> String {
        match self.items.len() {
            1 => self.items.remove(0).text,
            _ => self.items.iter().map(|item| item.text.as_str()).collect(),
        }
    }
}

/// Cuts at a character's end.
fn cut(text: &str, room: usize) -> &str {
    &text[..text.floor_char_boundary(room)]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn answers() -> Answers {
        Answers::new("own")
    }

    fn delta(answers: &mut Answers, item: &str, text: &str) {
        let params = serde_json::json!({ "threadId": "own", "turnId": "u", "itemId": item, "delta": text })
            .to_string();
        assert_eq!(answers.notification("item/agentMessage/delta", params.as_bytes()), None);
    }

    fn item(answers: &mut Answers, kind: &str, item: &str, text: &str) {
        let params = serde_json::json!({
            "threadId": "own", "turnId": "u", "item": { "type": kind, "id": item, "text": text }
        });
        assert_eq!(answers.notification("item/completed", params.to_string().as_bytes()), None);
    }

    fn end(answers: &mut Answers, turn: serde_json::Value) -> Answer {
        let params = serde_json::json!({ "threadId": "own", "turn": turn }).to_string();
        answers.notification("turn/completed", params.as_bytes()).unwrap()
    }

    #[test]
    fn items_stand_in_order_of_first_appearance_and_completion_replaces() {
        let mut answers = answers();
        delta(&mut answers, "a", "on");
        delta(&mut answers, "b", "two");
        delta(&mut answers, "a", "e?");
        item(&mut answers, "reasoning", "r", "thought");
        item(&mut answers, "agentMessage", "a", "one, ");
        item(&mut answers, "agentMessage", "b", "");
        let answer = end(&mut answers, serde_json::json!({ "id": "u", "status": "completed" }));
        assert_eq!((answer.text.as_str(), &answer.status), ("one, two", &TurnStatus::Completed));
        let again = end(&mut answers, serde_json::json!({ "id": "u", "status": "completed" }));
        assert_eq!(again.text, "", "an answer is handed over once");
    }

    #[test]
    fn a_summary_heals_an_unheard_answer_and_repeats_none() {
        let turn = serde_json::json!({
            "id": "u", "status": "completed", "items": [{ "type": "agentMessage", "id": "a", "text": "whole" }]
        });
        let mut answers = answers();
        assert_eq!(end(&mut answers, turn.clone()).text, "whole");
        delta(&mut answers, "a", "half");
        assert_eq!(end(&mut answers, turn).text, "half");
    }

    #[test]
    fn a_failed_turn_says_why_and_a_retry_is_no_failure() {
        let mut answers = answers();
        for (message, will_retry) in
            [("Reconnecting... 1/5", true), ("broken", false), ("Reconnecting... 2/5", true)]
        {
            let params = serde_json::json!({
                "threadId": "own", "turnId": "u", "error": { "message": message }, "willRetry": will_retry
            });
            answers.notification("error", params.to_string().as_bytes());
        }
        let answer = end(&mut answers, serde_json::json!({ "id": "u", "status": "failed" }));
        assert_eq!((answer.status, answer.error.as_deref()), (TurnStatus::Failed, Some("broken")));
        let turn = serde_json::json!({ "id": "u", "status": "failed", "error": { "message": "final" } });
        assert_eq!(end(&mut answers, turn).error.as_deref(), Some("final"));
    }

    #[test]
    fn other_threads_and_junk_are_not_in_the_answer() {
        let mut answers = answers();
        for params in
            [&br#"{"threadId":"sub","turnId":"u","itemId":"a","delta":"x"}"#[..], b"{}", b"\xff", b"[]"]
        {
            answers.notification("item/agentMessage/delta", params);
        }
        assert_eq!(answers.notification("turn/completed", br#"{"threadId":"sub","turn":{"id":"u"}}"#), None);
        assert_eq!(end(&mut answers, serde_json::json!({ "id": "u", "status": "interrupted" })).text, "");
    }

    #[test]
    fn an_endless_answer_is_cut_at_a_character_and_says_so() {
        let mut answers = answers();
        let piece = "é".repeat(64 * 1024);
        for _ in 0..=MAX_ANSWER / piece.len() {
            delta(&mut answers, "a", "x");
            delta(&mut answers, "a", &piece);
        }
        let answer = end(&mut answers, serde_json::json!({ "id": "u", "status": "completed" }));
        assert!(answer.is_truncated && answer.text.len() <= MAX_ANSWER && answer.text.len() > MAX_ANSWER - 2);
    }

    #[test]
    fn lost_ends_do_not_fill_the_memory() {
        let mut answers = answers();
        for turn in 0..100 {
            let params = format!(r#"{{"threadId":"own","turnId":"{turn}","itemId":"a","delta":"x"}}"#);
            answers.notification("item/agentMessage/delta", params.as_bytes());
        }
        assert_eq!(answers.open.len(), MAX_OPEN_TURNS);
        assert_eq!(end(&mut answers, serde_json::json!({ "id": "99", "status": "completed" })).text, "x");
    }

    #[test]
    fn two_hundred_thousand_deltas_are_linear() {
        // The original joined the answer anew at each delta: 0.9 events a second at this length (baseline.md).
        let mut answers = answers();
        let params = br#"{"threadId":"own","turnId":"u","itemId":"a","delta":"word "}"#;
        let begun = std::time::Instant::now();
        for _ in 0..200_000 {
            answers.notification("item/agentMessage/delta", params);
        }
        let answer = end(&mut answers, serde_json::json!({ "id": "u", "status": "completed" }));
        assert_eq!(answer.text.len(), 1_000_000);
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "took {:?}", begun.elapsed());
    }
}
