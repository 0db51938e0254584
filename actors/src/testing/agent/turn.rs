//! Turns, played by their text: one order a line.
//!
//! | order | what the agent does |
//! |---|---|
//! | `@say WORDS` | says them, word by word |
//! | `@hold WORDS` | says the first, waits for [`super::FakeAgents::release`], says the rest |
//! | `@ask COMMAND` | asks for approval; says what was decided |
//! | `@question` | asks a person for words; says what came |
//! | `@unknown` | sends a request nobody knows; says what came |
//! | `@rotate` | replaces its login, truncating the file first |
//! | `@flood N` | says N words without a pause |
//! | `@foreign` | writes a line that is no JSON |
//! | `@long` | writes a line of more than 16 MiB |
//! | `@die WORDS` | says them on standard error and ends with status 101 |
//!
//! Anything else is answered with `pong: TEXT`.

use std::time::Duration;

use bytes::Bytes;
use optio_codex_protocol::rpc::MAX_LINE;
use optio_host::ExitStatus;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::server::{Server, turn_json};

/// Between two words.
const PAUSE: Duration = Duration::from_millis(5);

/// How long a login is truncated while it is being written.
const TORN: Duration = Duration::from_millis(10);

pub(super) struct Turn {
    pub(super) server: Server,
    pub(super) thread: String,
    pub(super) turn: String,
    pub(super) interrupt: CancellationToken,
    pub(super) steered: mpsc::UnboundedReceiver<String>,
}

pub(super) async fn play(mut turn: Turn, text: String) {
    let (server, interrupt) = (turn.server.clone(), turn.interrupt.clone());
    turn.notify("thread/status/changed", json!({ "status": { "type": "active", "activeFlags": [] } }));
    turn.notify("turn/started", json!({ "turn": turn_json(&turn.turn, "inProgress") }));
    let status = tokio::select! {
        biased;
        () = interrupt.cancelled() => "interrupted",
        () = turn.answer_all(text) => "completed",
    };
    server.withdraw_questions(&turn.thread);
    turn.notify("thread/status/changed", json!({ "status": { "type": "idle" } }));
    turn.notify("turn/completed", json!({ "turn": turn_json(&turn.turn, status) }));
    server.turn_over(&turn.thread, status);
}

impl Turn {
    fn notify(&self, method: &str, mut params: Value) {
        params["threadId"] = json!(self.thread);
        if method.starts_with("item/") {
            params["turnId"] = json!(self.turn);
        }
        self.server.notify(method, &params);
    }

    async fn answer_all(&mut self, text: String) {
        let mut next = Some(text);
        while let Some(text) = next {
            let content = json!([{ "type": "text", "text": text, "text_elements": [] }]);
            let item = json!({ "type": "userMessage", "id": Uuid::new_v4().to_string(), "content": content });
            self.notify("item/started", json!({ "item": item }));
            self.notify("item/completed", json!({ "item": item }));
            self.server.keep(&self.thread, &item);
            for line in text.lines() {
                self.obey(line).await;
            }
            next = self.steered.try_recv().ok();
        }
    }

    async fn obey(&mut self, line: &str) {
        let (order, rest) = line.split_once(' ').unwrap_or((line, ""));
        match order {
            "@say" => self.say(rest, None).await,
            "@hold" => self.say(rest, Some(1)).await,
            "@ask" => {
                let item = format!("call_{}", Uuid::new_v4().simple());
                let params = json!({
                    "threadId": self.thread, "turnId": self.turn, "itemId": item, "command": rest,
                    "cwd": "/w", "reason": "it writes", "availableDecisions": ["accept", "decline", "cancel"],
                });
                let answer = self.ask("item/commandExecution/requestApproval", params).await;
                let decision = answer["result"]["decision"].as_str().unwrap_or("nothing").to_owned();
                if decision == "cancel" {
                    self.interrupt.cancel();
                    return std::future::pending().await;
                }
                self.say(&format!("{decision}: {rest}"), None).await;
            }
            "@question" => {
                let questions = json!([{ "id": "q", "header": "", "question": "which?" }]);
                let params = json!({ "threadId": self.thread, "turnId": self.turn, "itemId": "i", "questions": questions });
                let answer = self.ask("item/tool/requestUserInput", params).await;
                self.say(&format!("answers {}", answer["result"]["answers"]), None).await;
            }
            "@unknown" => {
                let answer = self.ask("fancy/new", json!({ "threadId": self.thread })).await;
                self.say(&format!("refused {}", answer["error"]["code"]), None).await;
            }
            "@rotate" => {
                let path = self.server.home.join("auth.json");
                let old = self.server.host.file(&path).expect("there is a login to rotate");
                self.server.host.put_file(&path, Bytes::new());
                tokio::time::sleep(TORN).await;
                self.server.host.put_file(&path, old);
                self.server.agents.rotate(&self.server.host, &self.server.home);
                self.say("rotated", None).await;
            }
            "@flood" => {
                let words = rest.parse().expect("@flood has a number");
                self.words("flood", (0..words).map(|n| format!("{n} ")), None, Duration::ZERO).await;
            }
            "@foreign" => self.server.say("warning: this is no JSON".to_owned()),
            "@long" => {
                let params = json!({ "threadId": self.thread, "long": "x".repeat(MAX_LINE) });
                self.server.notify("item/long", &params);
            }
            "@die" => {
                self.server.exit(ExitStatus::Code(101), rest);
                std::future::pending().await
            }
            _ => self.say(&format!("pong: {line}"), None).await,
        }
    }

    async fn ask(&self, method: &str, params: Value) -> Value {
        self.server.ask(&self.thread, method, &params).await.unwrap_or_default()
    }

    async fn say(&self, words: &str, hold_after: Option<usize>) {
        let id = format!("msg_{}", Uuid::new_v4().simple());
        let words = words.split_inclusive(' ').map(str::to_owned);
        self.words(&id, words, hold_after, PAUSE).await;
    }

    async fn words(
        &self,
        id: &str,
        words: impl Iterator<Item = String>,
        hold_after: Option<usize>,
        pause: Duration,
    ) {
        let item = |text: &str| json!({ "type": "agentMessage", "id": id, "text": text, "phase": null });
        self.notify("item/started", json!({ "item": item("") }));
        let mut text = String::new();
        for (at, word) in words.enumerate() {
            if hold_after == Some(at) {
                let held = self.server.agents.lock().held.clone();
                held.notified().await;
            }
            self.notify("item/agentMessage/delta", json!({ "itemId": id, "delta": word }));
            text.push_str(&word);
            if pause.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(pause).await;
            }
        }
        self.server.keep(&self.thread, &item(&text));
        self.notify("item/completed", json!({ "item": item(&text) }));
    }
}
