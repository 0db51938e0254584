//! Closing the hole that an absence leaves: what the agent said while nobody listened is read from what the server
//! remembers of the turn, so that the journal has every answer whole (DESIGN §1).

use std::borrow::Cow;

use actix::prelude::*;
use bytes::Bytes;
use optio_codex_protocol::requests::{self, ThreadOpened, ThreadOptions, method};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{ConversationReader, ThreadPlan};

/// Events of a turn that are looked through for what the journal has of it; deltas that came before matter little.
const LOOK_BACK: usize = 20_000;

/// A turn as `thread/resume` lists it.
#[derive(Deserialize)]
struct Turn<'a> {
    id: String,
    #[serde(default)]
    status: Option<String>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(default)]
    items: Vec<Value>,
}

impl ConversationReader {
    /// Asks the server for a turn that ended, and heals what the journal lacks of it.
    pub(super) fn heal_from_server(&mut self, turn: String, ctx: &mut Context<Self>) {
        let plan = ThreadPlan::of(&self.run);
        let Some(thread) = plan.thread.clone() else { return };
        let rpc = self.rpc.clone();
        let asking = async move {
            let options = ThreadOptions {
                cwd: &plan.cwd,
                sandbox: &plan.sandbox,
                approval_policy: &plan.approval_policy,
                model: None,
            };
            let answer = rpc.call(|id| requests::thread_resume(id, &thread, &options)).await.ok()?;
            ThreadOpened::parse(method::THREAD_RESUME, &answer).ok()?.turns
        };
        ctx.spawn(asking.into_actor(self).map(move |turns, reader, ctx| match turns {
            Some(turns) => reader.heal(&turn, &turns, false, ctx),
            None => warn!(turn, "turn could not be read again"),
        }));
    }

    /// Tells what the journal lacks of `turn`, from the server's list of turns; its end too, when nobody saw it.
    pub(super) fn heal(&mut self, turn: &str, turns: &Bytes, with_end: bool, ctx: &mut Context<Self>) {
        let listed = match serde_json::from_slice::<Vec<Turn<'_>>>(turns) {
            Ok(listed) => listed,
            Err(problem) => {
                warn!(turn, %problem, "list of turns is not understood");
                return;
            }
        };
        let Some(found) = listed.into_iter().rev().find(|t| t.id == turn) else {
            warn!(turn, "server does not remember the turn");
            return;
        };
        let end = with_end.then(|| {
            let error = found.error.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or(Value::Null);
            json!({ "id": turn, "items": [], "status": found.status.as_deref().unwrap_or("completed"), "error": error })
        });
        let said: Vec<Value> = found
            .items
            .into_iter()
            .filter(|item| item["type"] == "agentMessage" && item["text"] != "")
            .collect();
        let thread = self.turns.as_ref().map(|turns| turns.thread().to_owned()).unwrap_or_default();
        let stream = self.run.events.stream().clone();
        let of_turn = turn.to_owned();
        let looking = async move {
            stream.flush().await?;
            let records = stream.read_back(u64::MAX, LOOK_BACK).await?.records;
            let lines = records.iter().filter(|r| r.name.starts_with("item.")).map(|r| &r.data[..]);
            Ok::<_, optio_store::StoreError>(journalled(lines, &of_turn))
        };
        let turn = turn.to_owned();
        ctx.spawn(looking.into_actor(self).map(move |known, reader, ctx| {
            let known = known.unwrap_or_else(|problem| {
                warn!(%problem, "journal cannot be read, the turn's answers are told again");
                Vec::new()
            });
            for (at, item) in lacking(&known, said) {
                info!(turn, at, "answer is told again, nobody listened when it was finished");
                let params = json!({ "threadId": thread, "turnId": turn, "item": item });
                reader.tell_again("item.completed", "item/completed", &params, ctx);
            }
            if let Some(end) = end {
                let params = json!({ "threadId": thread, "turn": end });
                reader.tell_again("turn.completed", "turn/completed", &params, ctx);
            }
        }));
    }

    fn tell_again(&mut self, name: &'static str, method: &str, params: &Value, ctx: &mut Context<Self>) {
        let draft = self.run.events.codex_draft(Cow::Borrowed(name), method, params.to_string().as_bytes());
        self.append(draft, ctx);
    }
}

/// An agent message that the journal knows of.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    id: String,
    completed: bool,
}

/// The agent messages of a turn in the journal, in order of first appearance.
fn journalled<'a>(lines: impl Iterator<Item = &'a [u8]>, turn: &str) -> Vec<Known> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "type")]
        name: String,
        #[serde(default)]
        method: String,
        codex: Params,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        #[serde(default)]
        turn_id: String,
        #[serde(default)]
        item_id: Option<String>,
        #[serde(default)]
        item: Option<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        id: String,
        r#type: String,
    }
    let mut known: Vec<Known> = Vec::new();
    for line in lines {
        let Ok(line) = serde_json::from_slice::<Line>(line) else {
            continue;
        };
        if line.codex.turn_id != turn {
            continue;
        }
        let id = match (line.codex.item, line.codex.item_id) {
            (Some(item), _) if item.r#type == "agentMessage" => item.id,
            (None, Some(id)) if line.method == "item/agentMessage/delta" => id,
            _ => continue,
        };
        let completed = line.name == "item.completed";
        match known.iter_mut().find(|k| k.id == id) {
            Some(found) => found.completed |= completed,
            None => known.push(Known { id, completed }),
        }
    }
    known
}

/// The messages that the journal lacks or has only a part of. 0.142.5 numbers items anew when it lists them (LAB §1),
/// so they are matched by their place in the turn, and a part keeps the id under which viewers have it.
fn lacking(known: &[Known], said: Vec<Value>) -> Vec<(usize, Value)> {
    let mut lacking = Vec::new();
    for (at, mut item) in said.into_iter().enumerate() {
        match known.get(at) {
            Some(Known { completed: true, .. }) => continue,
            Some(part) => item["id"] = Value::from(part.id.clone()),
            None => {}
        }
        lacking.push((at, item));
    }
    lacking
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn line(name: &str, method: &str, params: &str) -> Vec<u8> {
        format!(r#"{{"v":1,"seq":1,"type":"{name}","method":"{method}","codex":{params}}}"#).into_bytes()
    }

    #[test]
    fn a_half_heard_answer_is_told_again_under_the_id_viewers_have() {
        let lines = [
            line(
                "item.completed",
                "item/completed",
                r#"{"turnId":"t","item":{"id":"a","type":"agentMessage","text":"one"}}"#,
            ),
            line("item.delta", "item/agentMessage/delta", r#"{"turnId":"t","itemId":"b","delta":"tw"}"#),
            line("item.delta", "item/agentMessage/delta", r#"{"turnId":"other","itemId":"x","delta":"no"}"#),
        ];
        let known = journalled(lines.iter().map(|l| &l[..]), "t");
        let said = vec![
            json!({"id":"item-1","type":"agentMessage","text":"one"}),
            json!({"id":"item-2","type":"agentMessage","text":"two"}),
            json!({"id":"item-3","type":"agentMessage","text":"three"}),
        ];
        let lacking = lacking(&known, said);
        let ids: Vec<_> = lacking.iter().map(|(_, item)| item["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["b", "item-3"]);
    }
}
