//! One Codex item as one record.

use serde_json::Value;
use serde_json::value::RawValue;

use super::{Kind, MAX_RAW, Message, Status, cut};

/// Reads an item as `item/started`, `item/completed` and a resumed thread's turns carry it; `None` without id or type.
pub(crate) fn read(turn: Option<String>, raw: &RawValue, otherwise: Status) -> Option<Message> {
    let item: Value = serde_json::from_str(raw.get()).ok()?;
    let word = |name: &str| item.get(name).and_then(Value::as_str);
    let (kind, text) = match word("type")? {
        "userMessage" => (Kind::User, texts(item.get("content"), "\n")),
        "agentMessage" => (Kind::Assistant, word("text").unwrap_or_default().to_owned()),
        "plan" => (Kind::Plan, word("text").unwrap_or_default().to_owned()),
        "reasoning" => {
            let summary = texts(item.get("summary"), "\n\n");
            (Kind::Reasoning, if summary.is_empty() { texts(item.get("content"), "\n\n") } else { summary })
        }
        "commandExecution" => (Kind::Command, word("command").unwrap_or_default().to_owned()),
        "fileChange" => (Kind::FileChange, changes(item.get("changes"))),
        "mcpToolCall" => {
            let (server, tool) = (word("server").unwrap_or_default(), word("tool").unwrap_or_default());
            (Kind::Tool, format!("{server}.{tool}"))
        }
        "dynamicToolCall" | "collabAgentToolCall" => {
            (Kind::Tool, word("tool").unwrap_or_default().to_owned())
        }
        "functionCallOutput" => (Kind::Tool, word("name").unwrap_or_default().to_owned()),
        "webSearch" => (Kind::Search, word("query").unwrap_or_default().to_owned()),
        "enteredReviewMode" | "exitedReviewMode" => {
            (Kind::Notice, word("review").unwrap_or_default().to_owned())
        }
        "contextCompaction" => (Kind::Notice, "the context was compacted".to_owned()),
        _ => (Kind::Other, String::new()),
    };
    Some(Message {
        id: word("id")?.to_owned(),
        turn,
        kind,
        text: cut(text),
        status: word("status").and_then(Status::from_word).unwrap_or(otherwise),
        raw: keep(raw),
    })
}

/// Keeps an item with its record unless it is too large.
pub(super) fn keep(raw: &RawValue) -> Option<Box<RawValue>> {
    (raw.get().len() <= MAX_RAW).then(|| raw.to_owned())
}

/// Joins what is text in a list: strings, and objects with `text`.
pub(crate) fn texts(list: Option<&Value>, between: &str) -> String {
    let parts = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |part: &Value| part.as_str().or_else(|| part.get("text")?.as_str()).map(str::to_owned);
    parts.iter().filter_map(text).collect::<Vec<_>>().join(between)
}

/// Lists changed files, `add /path` per line: from the wire's list or the rollout's map.
pub(crate) fn changes(changes: Option<&Value>) -> String {
    let line = |path: &str, kind: Option<&str>| format!("{} {path}", kind.unwrap_or("change"));
    let lines: Vec<String> = match changes {
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(|change| {
                let kind = change.get("kind").and_then(|kind| kind.get("type").unwrap_or(kind).as_str());
                Some(line(change.get("path")?.as_str()?, kind))
            })
            .collect(),
        Some(Value::Object(files)) => files
            .iter()
            .map(|(path, change)| line(path, change.get("type").and_then(Value::as_str)))
            .collect(),
        _ => Vec::new(),
    };
    lines.join("\n")
}
