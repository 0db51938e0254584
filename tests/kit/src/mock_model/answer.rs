//! Streams one answer as the Responses API does.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use super::script::Step;
use super::{ModelRequest, State};

/// Frames on their way to codex; small, so that a slow reader slows the model and not its memory.
const FRAMES: usize = 16;
/// How often a held answer writes a comment: a web server notices that a listener hung up only when it writes.
const STILL_THERE: Duration = Duration::from_millis(50);

/// Starts streaming the answer. `releases` is the count of releases when the request arrived.
pub(super) fn stream(step: Step, request: ModelRequest, state: Arc<State>, releases: u64) -> HttpResponse {
    let (frames, body) = mpsc::channel(FRAMES);
    let mut answer = Answer { frames, sequence: 0, state, releases };
    actix_web::rt::spawn(async move {
        // Codex hung up: nobody is left to tell.
        let _: Result<(), HungUp> = answer.give(step, &request.body["model"]).await;
    });
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/event-stream"))
        .streaming(ReceiverStream::new(body))
}

/// The listener is gone.
struct HungUp;

struct Answer {
    frames: mpsc::Sender<io::Result<Bytes>>,
    sequence: u64,
    state: Arc<State>,
    releases: u64,
}

impl Answer {
    async fn give(&mut self, step: Step, model: &Value) -> Result<(), HungUp> {
        let response = json!({ "id": id("resp"), "object": "response", "model": model });
        let started = with(&response, json!({ "status": "in_progress", "output": [] }));
        self.send("response.created", json!({ "response": started })).await?;
        let item = match step {
            Step::Say { text, pause } => self.speak(&text, Manner::Pausing(pause)).await?,
            Step::Hold { text } => self.speak(&text, Manner::Held).await?,
            Step::Drop { text } => {
                self.speak(&text, Manner::Dropping).await?;
                let cut = io::Error::other("the mock drops this answer");
                return self.frames.send(Err(cut)).await.map_err(|_| HungUp);
            }
            Step::Call { name, arguments } => {
                let item =
                    json!({ "type": "function_call", "id": id("fc"), "call_id": id("call"), "name": name });
                self.call(item, "arguments", arguments).await?
            }
            Step::Raw { name, input } => {
                let item = json!({ "type": "custom_tool_call", "id": id("ctc"), "call_id": id("call"), "name": name });
                self.call(item, "input", input).await?
            }
            Step::Http(status) => unreachable!("status {status} was answered without a stream"),
        };
        self.send("response.output_item.done", json!({ "output_index": 0, "item": item })).await?;
        let usage = json!({
            "input_tokens": 11, "input_tokens_details": { "cached_tokens": 0 },
            "output_tokens": 7, "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": 18,
        });
        let completed = with(&response, json!({ "status": "completed", "output": [item], "usage": usage }));
        self.send("response.completed", json!({ "response": completed })).await
    }

    /// Streams a text and returns the finished message.
    async fn speak(&mut self, text: &str, manner: Manner) -> Result<Value, HungUp> {
        let message = json!({ "type": "message", "id": id("msg"), "role": "assistant" });
        let empty = with(&message, json!({ "status": "in_progress", "content": [] }));
        let at = json!({ "item_id": message["id"], "output_index": 0, "content_index": 0 });
        let part = |text: &str| json!({ "type": "output_text", "text": text, "annotations": [] });

        // Codex quietly ignores deltas of an item that was not announced.
        self.send("response.output_item.added", json!({ "output_index": 0, "item": empty })).await?;
        self.send("response.content_part.added", with(&at, json!({ "part": part("") }))).await?;
        for (index, word) in words(text).enumerate() {
            self.send("response.output_text.delta", with(&at, json!({ "delta": word }))).await?;
            if index == 0 {
                self.stand_still(manner == Manner::Held).await?;
            }
            match manner {
                Manner::Dropping if index == 1 => break,
                Manner::Pausing(pause) if !pause.is_zero() => self.pause(pause).await?,
                _ => {}
            }
        }
        self.send("response.output_text.done", with(&at, json!({ "text": text }))).await?;
        Ok(with(&message, json!({ "status": "completed", "content": [part(text)] })))
    }

    /// Announces a tool call and returns it whole.
    async fn call(&mut self, call: Value, field: &str, payload: String) -> Result<Value, HungUp> {
        let begun = with(&call, json!({ "status": "in_progress", field: "" }));
        self.send("response.output_item.added", json!({ "output_index": 0, "item": begun })).await?;
        Ok(with(&call, json!({ "status": "completed", field: payload })))
    }

    /// Waits for the test's release, or until codex hangs up, if this answer is to be held.
    async fn stand_still(&self, scripted: bool) -> Result<(), HungUp> {
        let mut flow = self.state.flow.subscribe();
        let asked = flow.borrow().releases;
        // A release for this answer may have come before its first word was out.
        if asked > self.releases || !(scripted || flow.borrow().holding) {
            return Ok(());
        }
        let _held = Held::count(&self.state);
        loop {
            tokio::select! {
                _ = flow.wait_for(|flow| flow.releases > self.releases) => return Ok(()),
                () = tokio::time::sleep(STILL_THERE) => {
                    let comment = Bytes::from_static(b": held\n\n");
                    self.frames.send(Ok(comment)).await.map_err(|_| HungUp)?;
                }
            }
        }
    }

    async fn pause(&self, pause: Duration) -> Result<(), HungUp> {
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = self.frames.closed() => Err(HungUp),
        }
    }

    async fn send(&mut self, kind: &str, fields: Value) -> Result<(), HungUp> {
        let event = with(&json!({ "type": kind, "sequence_number": self.sequence }), fields);
        self.sequence += 1;
        let frame = Bytes::from(format!("event: {kind}\ndata: {event}\n\n"));
        self.frames.send(Ok(frame)).await.map_err(|_| HungUp)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Pausing(Duration),
    Held,
    Dropping,
}

/// Counts an answer as held for as long as it lives, whichever way it ends.
struct Held<'a>(&'a State);

impl<'a> Held<'a> {
    fn count(state: &'a State) -> Self {
        state.flow.send_modify(|flow| flow.held += 1);
        Self(state)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.flow.send_modify(|flow| flow.held -= 1);
    }
}

/// Words with the space after them, so that the deltas add up to the text.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let word = rest.find(|c: char| !c.is_whitespace())?;
        let gap = rest[word..].find(char::is_whitespace).map_or(rest.len(), |at| word + at);
        let next = rest[gap..].find(|c: char| !c.is_whitespace()).map_or(rest.len(), |at| gap + at);
        let (word, tail) = rest.split_at(next);
        rest = tail;
        Some(word)
    })
}

fn with(base: &Value, more: Value) -> Value {
    let mut joined = base.clone();
    if let (Value::Object(joined), Value::Object(more)) = (&mut joined, more) {
        joined.extend(more);
    }
    joined
}

fn id(kind: &str) -> String {
    format!("{kind}_{}", Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn the_deltas_add_up_to_the_text() {
        let text = "one  two\nthree ";
        assert_eq!(words(text).collect::<Vec<_>>(), ["one  ", "two\n", "three "]);
        assert_eq!(words(text).collect::<String>(), text);
        assert_eq!(words("").count(), 0);
    }
}
