//! One line of a rollout, of either generation.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::messages::item::{changes, texts};
use crate::messages::{Kind, Message, PlanStep, Status, cut, plan_message};

/// A line's outer members; `timestamp`, 0.169's `ordinal` and `metadata` are not needed.
#[derive(Deserialize)]
pub(super) struct Line<'a> {
    pub(super) r#type: String,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// What a line says.
pub(super) enum Says {
    Nothing,
    TurnBegan(String),
    TurnEnded(Option<String>, Status),
    Failed(String),
    Item(Message),
    /// An item without an id.
    Unnamed(Message),
    CallEnded {
        id: String,
        turn: Option<String>,
        failed: bool,
    },
}

pub(super) fn read(line: &Line<'_>, current: Option<&str>) -> Says {
    if !matches!(line.r#type.as_str(), "event_msg" | "response_item") {
        return Says::Nothing;
    }
    let Ok(payload) = serde_json::from_str::<Value>(line.payload.get()) else {
        return Says::Nothing;
    };
    let Some(what) = payload.get("type").and_then(Value::as_str) else {
        return Says::Nothing;
    };
    let turn = payload
        .get("turn_id")
        .or_else(|| payload.get("internal_chat_message_metadata_passthrough")?.get("turn_id"))
        .and_then(Value::as_str);
    let scene = Scene { payload: &payload, turn: turn.or(current) };
    match (line.r#type.as_str(), what) {
        ("event_msg", "task_started") => turn.map_or(Says::Nothing, |turn| Says::TurnBegan(turn.to_owned())),
        ("event_msg", "task_complete") => Says::TurnEnded(turn.map(str::to_owned), Status::Completed),
        ("event_msg", "turn_aborted") => Says::TurnEnded(turn.map(str::to_owned), Status::Interrupted),
        ("event_msg", "error") => Says::Failed(scene.word("message").unwrap_or_default().to_owned()),
        ("event_msg", "user_message") => scene.unnamed(Kind::User, scene.word("message")),
        ("event_msg", "item_completed") => scene.item(),
        ("event_msg", "patch_apply_end") => scene.patch_end(),
        ("event_msg", _) => Says::Nothing,
        (_, "message") if scene.word("role") == Some("assistant") => scene.record(
            scene.word("id"),
            Kind::Assistant,
            texts(payload.get("content"), ""),
            Status::Completed,
        ),
        // The user's and the developer's messages of the model hold injected context too (L-08).
        (_, "message") => Says::Nothing,
        (_, "reasoning") => scene.record(
            scene.word("id"),
            Kind::Reasoning,
            texts(payload.get("summary"), "\n\n"),
            Status::Completed,
        ),
        (_, "function_call" | "custom_tool_call" | "local_shell_call") => scene.call(),
        (_, "web_search_call") => {
            let query = payload.get("action").and_then(|action| action.get("query")).and_then(Value::as_str);
            let text = query.unwrap_or_default().to_owned();
            scene.record(scene.word("id").or(scene.word("call_id")), Kind::Search, text, Status::Completed)
        }
        (_, "function_call_output" | "custom_tool_call_output") => match scene.word("call_id") {
            Some(id) => Says::CallEnded {
                id: id.to_owned(),
                turn: scene.turn.map(str::to_owned),
                failed: payload.get("output").and_then(Value::as_str).is_some_and(is_failure),
            },
            None => Says::Nothing,
        },
        _ => Says::Nothing,
    }
}

/// Says whether a tool's output reports a failure: both generations write the exit code into its first lines.
fn is_failure(output: &str) -> bool {
    output.lines().take(4).any(|line| {
        let code = line.strip_prefix("Process exited with code ").or(line.strip_prefix("Exit code: "));
        code.is_some_and(|code| code.trim() != "0")
    })
}

/// A payload and the turn it stands in.
struct Scene<'a> {
    payload: &'a Value,
    turn: Option<&'a str>,
}

impl<'a> Scene<'a> {
    fn word(&self, name: &str) -> Option<&'a str> {
        self.payload.get(name)?.as_str()
    }

    fn message(&self, id: &str, kind: Kind, text: String, status: Status) -> Message {
        Message {
            id: id.to_owned(),
            turn: self.turn.map(str::to_owned),
            kind,
            text: cut(text),
            status,
            raw: None,
        }
    }

    fn record(&self, id: Option<&str>, kind: Kind, text: String, status: Status) -> Says {
        match id {
            Some(id) if !text.is_empty() => Says::Item(self.message(id, kind, text, status)),
            _ => Says::Nothing,
        }
    }

    fn unnamed(&self, kind: Kind, text: Option<&str>) -> Says {
        match text {
            Some(text) => Says::Unnamed(self.message("", kind, text.to_owned(), Status::Completed)),
            None => Says::Nothing,
        }
    }

    /// A tool call of the model; the live wire knows it by its `call_id`.
    fn call(&self) -> Says {
        let id = self.word("call_id").or(self.word("id"));
        let name = self.word("name").unwrap_or("local_shell");
        let arguments: Value =
            self.word("arguments").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let (kind, text) = match name {
            "update_plan" => {
                let steps = arguments.get("plan").cloned().unwrap_or_default();
                let steps: Vec<PlanStep> = serde_json::from_value(steps).unwrap_or_default();
                return Says::Item(plan_message("plan", self.turn.map(str::to_owned), &steps));
            }
            "apply_patch" => (Kind::FileChange, patched(self.word("input").unwrap_or_default())),
            "exec_command" | "shell" | "shell_command" | "local_shell" => {
                let command = arguments.get("cmd").or(arguments.get("command"));
                let command = command.or_else(|| self.payload.get("action")?.get("command"));
                (Kind::Command, command.map(line_of).unwrap_or_default())
            }
            other => (Kind::Tool, other.to_owned()),
        };
        self.record(id, kind, text, Status::InProgress)
    }

    /// 0.142.5's report of a patch, with the files' whole paths.
    fn patch_end(&self) -> Says {
        let status = match self.payload.get("success").and_then(Value::as_bool) {
            Some(false) => Status::Failed,
            _ => Status::Completed,
        };
        let status = self.word("status").and_then(Status::from_word).unwrap_or(status);
        self.record(self.word("call_id"), Kind::FileChange, changes(self.payload.get("changes")), status)
    }

    /// 0.169's items: the wire's, in PascalCase and with snake_case members.
    fn item(&self) -> Says {
        let Some(item) = self.payload.get("item") else {
            return Says::Nothing;
        };
        let inner = Scene { payload: item, turn: self.turn };
        let content = |between| texts(item.get("content"), between);
        let (kind, text) = match inner.word("type").unwrap_or_default() {
            "UserMessage" => (Kind::User, content("\n")),
            "AgentMessage" => (Kind::Assistant, content("")),
            "Plan" => (Kind::Plan, inner.word("text").unwrap_or_default().to_owned()),
            "Reasoning" => {
                let summary = item.get("summary_text").or(item.get("summary"));
                (Kind::Reasoning, texts(summary, "\n\n"))
            }
            "CommandExecution" => (Kind::Command, item.get("command").map(line_of).unwrap_or_default()),
            "FileChange" => (Kind::FileChange, changes(item.get("changes"))),
            "McpToolCall" => {
                let (server, tool) = (inner.word("server").unwrap_or_default(), inner.word("tool"));
                (Kind::Tool, format!("{server}.{}", tool.unwrap_or_default()))
            }
            "WebSearch" => (Kind::Search, inner.word("query").unwrap_or_default().to_owned()),
            _ => return Says::Nothing,
        };
        let status = inner.word("status").and_then(Status::from_word).unwrap_or(Status::Completed);
        inner.record(inner.word("id"), kind, text, status)
    }
}

/// Answers a command as the wire shows it: its own line, or the script of `bash -lc SCRIPT`, or its words.
fn line_of(command: &Value) -> String {
    match command {
        Value::String(line) => line.clone(),
        Value::Array(words) => {
            let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            match words[..] {
                [shell, "-lc" | "-c", script] if shell.ends_with("sh") => script.to_owned(),
                _ => words.join(" "),
            }
        }
        _ => String::new(),
    }
}

/// Lists a patch's files, as [`changes`] does for the report of it.
fn patched(patch: &str) -> String {
    let file = |line: &str| {
        let (verb, path) = line.strip_prefix("*** ")?.split_once(" File: ")?;
        Some(format!("{} {path}", verb.to_ascii_lowercase()))
    };
    patch.lines().filter_map(file).collect::<Vec<_>>().join("\n")
}
