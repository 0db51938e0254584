//! What an app-server knows and how it answers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use optio_host::ExitStatus;
use optio_host::fake::FakeHost;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::turn::{self, Turn};
use super::{Behaviour, FakeAgents};

const INVALID_REQUEST: i64 = -32600;

/// One app-server. Clones are the same one.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) agents: FakeAgents,
    pub(super) host: FakeHost,
    pub(super) home: PathBuf,
    behaviour: Behaviour,
    jobs: mpsc::UnboundedSender<BoxFuture<'static, ()>>,
    exit: mpsc::UnboundedSender<(ExitStatus, String)>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    clients: BTreeMap<u64, Client>,
    last_client: u64,
    threads: BTreeMap<String, Thread>,
    pending: Vec<Pending>,
    last_request: u64,
    draining: bool,
}

struct Client {
    out: mpsc::UnboundedSender<String>,
    listens: bool,
}

struct Thread {
    model: String,
    /// As the rollout has them: `{id, status, items, error}`.
    turns: Vec<Value>,
    running: Option<Running>,
}

struct Running {
    turn: String,
    interrupt: CancellationToken,
    steer: mpsc::UnboundedSender<String>,
}

/// A question that waits for its answer.
struct Pending {
    id: u64,
    thread: String,
    line: String,
    answer: oneshot::Sender<Value>,
}

impl Server {
    pub(super) fn new(
        agents: FakeAgents,
        host: FakeHost,
        home: PathBuf,
        behaviour: Behaviour,
        jobs: mpsc::UnboundedSender<BoxFuture<'static, ()>>,
        exit: mpsc::UnboundedSender<(ExitStatus, String)>,
    ) -> Self {
        Self { agents, host, home, behaviour, jobs, exit, state: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the program.
    pub(super) fn exit(&self, status: ExitStatus, words: &str) {
        // A program that is ending already needs no second reason.
        let _ = self.exit.send((status, words.to_owned()));
    }

    /// Takes a SIGTERM: `true` when nothing runs, else it ends with the last turn.
    pub(super) fn drain(&self) -> bool {
        let mut state = self.lock();
        state.draining = true;
        state.threads.values().all(|thread| thread.running.is_none())
    }

    pub(super) fn connected(&self, out: mpsc::UnboundedSender<String>) -> u64 {
        let mut state = self.lock();
        state.last_client += 1;
        let id = state.last_client;
        state.clients.insert(id, Client { out, listens: false });
        id
    }

    pub(super) fn disconnected(&self, client: u64) {
        self.lock().clients.remove(&client);
    }

    /// Takes one message of a client.
    pub(super) fn heard(&self, client: u64, line: &str) {
        let message: Value = serde_json::from_str(line).expect("the client writes JSON");
        let params = message["params"].clone();
        let Some(method) = message["method"].as_str() else {
            return self.answered(&message);
        };
        self.agents.lock().requests.push((method.to_owned(), params.clone()));
        if self.behaviour.mute || message["id"].is_null() {
            return;
        }
        let answer = match method {
            "initialize" => Ok(json!({
                "userAgent": "optio_codex/0.142.5 (Debian 12.0.0; x86_64) memory",
                "codexHome": self.home, "platformFamily": "unix", "platformOs": "linux",
            })),
            "account/read" => Ok(json!({ "account": null, "requiresOpenaiAuth": false })),
            "model/list" => {
                Ok(json!({ "data": [model("gpt-5.5"), model("gpt-5.5-mini")], "nextCursor": null }))
            }
            "account/login/start" => self.start_login(client),
            "account/login/cancel" => Ok(self.cancel_login(&params)),
            "thread/start" => Ok(self.start_thread(client, &params)),
            "thread/resume" => self.resume_thread(client, &params),
            "turn/start" => self.start_turn(client, &message["id"], &params),
            "turn/steer" => self.steer_turn(&params),
            "turn/interrupt" => self.interrupt_turn(&params),
            other => Err(format!("Invalid request: unknown variant `{other}`")),
        };
        self.reply(client, &message["id"], answer);
        if method == "thread/resume" {
            self.ask_again(client, params["threadId"].as_str().unwrap_or_default());
        }
    }

    fn reply(&self, client: u64, id: &Value, answer: Result<Value, String>) {
        let line = match answer {
            // Somebody has answered already.
            Ok(Value::Null) => return,
            Ok(result) => json!({ "id": id, "result": result }),
            Err(message) => json!({ "id": id, "error": { "code": INVALID_REQUEST, "message": message } }),
        };
        self.write(client, line.to_string());
    }

    fn write(&self, client: u64, line: String) {
        if let Some(client) = self.lock().clients.get(&client) {
            // A client that went away hears nothing.
            let _ = client.out.send(line);
        }
    }

    /// Says something to everybody who follows the thread.
    pub(super) fn say(&self, line: String) {
        let state = self.lock();
        for client in state.clients.values().filter(|client| client.listens) {
            let _ = client.out.send(line.clone());
        }
    }

    pub(super) fn notify(&self, method: &str, params: &Value) {
        self.say(json!({ "method": method, "params": params }).to_string());
    }

    fn start_login(&self, client: u64) -> Result<Value, String> {
        if self.behaviour.has_no_codes {
            return Err("device code login is not enabled for this Codex server. Use the browser login or verify the \
                        server URL."
                .to_owned());
        }
        let out = self.lock().clients[&client].out.clone();
        Ok(self.agents.login_waits(self.home.clone(), out))
    }

    fn cancel_login(&self, params: &Value) -> Value {
        let id = params["loginId"].as_str().unwrap_or_default();
        let status =
            if self.agents.login_is_over(id, "Login was not completed") { "canceled" } else { "notFound" };
        json!({ "status": status })
    }

    fn start_thread(&self, client: u64, params: &Value) -> Value {
        let id = Uuid::now_v7().to_string();
        let model = params["model"].as_str().unwrap_or("gpt-5.5").to_owned();
        let mut state = self.lock();
        state.threads.insert(id.clone(), Thread { model: model.clone(), turns: Vec::new(), running: None });
        if let Some(client) = state.clients.get_mut(&client) {
            client.listens = true;
        }
        self.thread_answer(&id, &state.threads[&id], params)
    }

    fn resume_thread(&self, client: u64, params: &Value) -> Result<Value, String> {
        let id = params["threadId"].as_str().unwrap_or_default().to_owned();
        let mut state = self.lock();
        if !state.threads.contains_key(&id) {
            let rollout = self.host.file(&self.rollout(&id));
            let rollout = rollout.ok_or_else(|| format!("no rollout found for thread id {id}"))?;
            let turns = serde_json::from_slice(&rollout).expect("rollouts of this world are JSON");
            state.threads.insert(id.clone(), Thread { model: "gpt-5.5".to_owned(), turns, running: None });
        }
        if let Some(client) = state.clients.get_mut(&client) {
            client.listens = true;
        }
        Ok(self.thread_answer(&id, &state.threads[&id], params))
    }

    fn thread_answer(&self, id: &str, thread: &Thread, params: &Value) -> Value {
        let status = match thread.running {
            Some(_) => json!({ "type": "active", "activeFlags": [] }),
            None => json!({ "type": "idle" }),
        };
        let turns: Vec<Value> = thread.turns.iter().map(renumbered).collect();
        json!({
            "thread": { "id": id, "status": status, "path": self.rollout(id), "cwd": params["cwd"], "turns": turns },
            "model": thread.model,
            "cwd": params["cwd"],
        })
    }

    fn rollout(&self, thread: &str) -> PathBuf {
        self.home.join(format!("sessions/2026/01/01/rollout-2026-01-01T00-00-00-{thread}.jsonl"))
    }

    /// The real server asks again, under the same number, what it still waits for (LAB §9).
    fn ask_again(&self, client: u64, thread: &str) {
        let lines: Vec<_> = {
            let state = self.lock();
            state.pending.iter().filter(|p| p.thread == thread).map(|p| p.line.clone()).collect()
        };
        for line in lines {
            self.write(client, line);
        }
    }

    fn start_turn(&self, client: u64, id: &Value, params: &Value) -> Result<Value, String> {
        let thread = params["threadId"].as_str().unwrap_or_default().to_owned();
        let text = params["input"][0]["text"].as_str().unwrap_or_default().to_owned();
        let turn = Uuid::now_v7().to_string();
        let mut state = self.lock();
        let found = state.threads.get_mut(&thread).ok_or_else(|| format!("thread not found: {thread}"))?;
        if let Some(model) = params["model"].as_str() {
            found.model = model.to_owned();
        }
        let answer = json!({ "turn": turn_json(&turn, "inProgress") });
        if let Some(running) = &found.running {
            // Folded into the running turn, and answered with an id that never starts (S-370).
            let _ = running.steer.send(text);
            return Ok(answer);
        }
        let (steer, steered) = mpsc::unbounded_channel();
        let interrupt = CancellationToken::new();
        found.running = Some(Running { turn: turn.clone(), interrupt: interrupt.clone(), steer });
        found.turns.push(json!({ "id": turn, "status": "inProgress", "items": [], "error": null }));
        drop(state);
        self.save(&thread);
        self.reply(client, id, Ok(answer));
        let playing = turn::play(Turn { server: self.clone(), thread, turn, interrupt, steered }, text);
        // A program that is ending plays nothing more.
        let _ = self.jobs.send(playing.boxed());
        Ok(Value::Null)
    }

    fn steer_turn(&self, params: &Value) -> Result<Value, String> {
        let state = self.lock();
        let thread = state.threads.get(params["threadId"].as_str().unwrap_or_default());
        let running = thread.and_then(|thread| thread.running.as_ref());
        let running = running.ok_or("no active turn to steer")?;
        if params["expectedTurnId"] != running.turn.as_str() {
            return Err(format!(
                "expected active turn id {} but found {}",
                params["expectedTurnId"], running.turn
            ));
        }
        let _ = running.steer.send(params["input"][0]["text"].as_str().unwrap_or_default().to_owned());
        Ok(json!({ "turnId": running.turn }))
    }

    fn interrupt_turn(&self, params: &Value) -> Result<Value, String> {
        let state = self.lock();
        let thread = state.threads.get(params["threadId"].as_str().unwrap_or_default());
        let running = thread.and_then(|thread| thread.running.as_ref());
        let running = running.ok_or("no active turn to interrupt")?;
        if params["turnId"] != running.turn.as_str() {
            return Err(format!("expected active turn id {} but found {}", params["turnId"], running.turn));
        }
        running.interrupt.cancel();
        Ok(json!({}))
    }

    /// Asks the client; the receiver ends without an answer when the question is withdrawn.
    pub(super) fn ask(&self, thread: &str, method: &str, params: &Value) -> oneshot::Receiver<Value> {
        let (tell, answer) = oneshot::channel();
        let line = {
            let mut state = self.lock();
            // From 0 with each process, like the real one.
            let id = state.last_request;
            state.last_request += 1;
            let line = json!({ "method": method, "id": id, "params": params }).to_string();
            state.pending.push(Pending { id, thread: thread.to_owned(), line: line.clone(), answer: tell });
            line
        };
        self.say(line);
        answer
    }

    fn answered(&self, message: &Value) {
        let found = {
            let mut state = self.lock();
            let at = state.pending.iter().position(|p| Some(p.id) == message["id"].as_u64());
            at.map(|at| state.pending.remove(at))
        };
        let Some(pending) = found else { return };
        self.resolved(&pending);
        // A turn that was interrupted meanwhile does not wait any more.
        let _ = pending.answer.send(message.clone());
    }

    fn resolved(&self, pending: &Pending) {
        let params = json!({ "threadId": pending.thread, "requestId": pending.id });
        self.notify("serverRequest/resolved", &params);
    }

    pub(super) fn withdraw_questions(&self, thread: &str) {
        let withdrawn: Vec<_> = self.lock().pending.extract_if(.., |p| p.thread == thread).collect();
        for pending in withdrawn {
            self.resolved(&pending);
        }
    }

    /// Puts an item of the running turn on record.
    pub(super) fn keep(&self, thread: &str, item: &Value) {
        let mut state = self.lock();
        let turns = state.threads.get_mut(thread).map(|thread| &mut thread.turns);
        if let Some(turn) = turns.and_then(|turns| turns.last_mut())
            && let Some(items) = turn["items"].as_array_mut()
        {
            items.push(item.clone());
        }
        drop(state);
        self.save(thread);
    }

    pub(super) fn turn_over(&self, thread: &str, status: &str) {
        let over = {
            let mut state = self.lock();
            if let Some(thread) = state.threads.get_mut(thread) {
                thread.running = None;
                if let Some(turn) = thread.turns.last_mut() {
                    turn["status"] = json!(status);
                }
            }
            state.draining && state.threads.values().all(|thread| thread.running.is_none())
        };
        self.save(thread);
        if over {
            self.exit(ExitStatus::Code(0), "");
        }
    }

    fn save(&self, thread: &str) {
        let turns = self.lock().threads.get(thread).map(|thread| json!(thread.turns));
        if let Some(turns) = turns {
            self.host.put_file(&self.rollout(thread), Bytes::from(turns.to_string()));
        }
    }
}

pub(super) fn turn_json(id: &str, status: &str) -> Value {
    json!({ "id": id, "items": [], "itemsView": "notLoaded", "status": status, "error": null })
}

/// 0.142.5 numbers the items of a turn anew when it lists them (LAB §1).
fn renumbered(turn: &Value) -> Value {
    let mut turn = turn.clone();
    for (at, item) in turn["items"].as_array_mut().into_iter().flatten().enumerate() {
        item["id"] = json!(format!("item-{}", at + 1));
    }
    turn
}

fn model(id: &str) -> Value {
    json!({
        "id": id, "model": id, "displayName": id, "description": "", "hidden": false,
        "supportedReasoningEfforts": [{ "reasoningEffort": "low", "description": "" }],
        "defaultReasoningEffort": "low", "isDefault": id == "gpt-5.5",
    })
}
