//! The model's side of the wire: the Responses API over SSE, as far as the real codex asks for it.
//!
//! What it answers is written in the last message of the user:
//!
//! | directive | answer |
//! |---|---|
//! | `@say text` | the text, one word a delta |
//! | `@slow SECS text` | the same, that long after each word |
//! | `@hold text` | the first word, and the rest only after [`MockModel::release`] |
//! | `@call NAME JSON` | a call of a function tool |
//! | `@raw NAME TEXT` | a call of a custom tool, such as `apply_patch` |
//! | `@http CODE` | that HTTP status instead of a stream |
//! | `@drop text` | two words, then the connection breaks |
//!
//! Directives on lines of their own after the first are the answers to the tool outputs that follow, in order. Without one,
//! a tool output is answered `tool said: …`, a message that [`MockModel::knows`] as it was told, and any other `pong: …`.

mod answer;
mod script;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::LIMIT;
use crate::auth::{ModelAuth, config_toml, overrides};
use crate::loopback::Loopback;
use crate::wait::wait_until;

/// The most requests kept for a test to look at; one that makes more is a benchmark and counts on its own.
const LOG_LIMIT: usize = 20_000;

/// A model that answers by script. It stops when dropped.
pub struct MockModel {
    state: Arc<State>,
    server: Loopback,
}

struct State {
    requests: watch::Sender<Vec<ModelRequest>>,
    flow: watch::Sender<Flow>,
}

/// What the test has told the model from outside.
#[derive(Default)]
struct Flow {
    /// Every answer stops after its first word.
    holding: bool,
    /// Counts the calls of `release`: an answer goes on when one came after its request.
    releases: u64,
    /// Answers that stand still right now.
    held: usize,
    /// The next so many requests are refused with this status.
    refuse: (usize, u16),
    /// The only bearer token that is still good, when the test says so.
    only_bearer: Option<String>,
    /// A part of a question, and its answer.
    known: Option<(String, String)>,
}

/// One request as the model saw it.
#[derive(Clone, Debug)]
pub struct ModelRequest {
    /// `GET` or `POST`.
    pub method: String,
    /// With the query, as in `/v1/responses`.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The JSON sent; null when there was none.
    pub body: Arc<Value>,
}

impl ModelRequest {
    /// Tells whether a turn was asked for, rather than a list of models or an account.
    pub fn is_turn(&self) -> bool {
        self.method == "POST" && self.path.ends_with("/responses")
    }

    /// Returns the token of the `authorization` header.
    pub fn bearer(&self) -> Option<&str> {
        self.headers.get("authorization")?.strip_prefix("Bearer ")
    }

    /// Returns the last message of the user: what was typed, not what codex adds about the environment.
    pub fn user_text(&self) -> String {
        script::last_user_text(script::input(&self.body))
    }
}

impl MockModel {
    /// Starts a model on a free loopback port.
    pub fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST)
    }

    /// Starts a model on a free port of another address of this machine, such as [`Far::near`](crate::Far::near).
    pub fn start_at(address: Ipv4Addr) -> Self {
        let state = Arc::new(State { requests: watch::Sender::default(), flow: watch::Sender::default() });
        let shared = web::Data::from(state.clone());
        let server = Loopback::start_at(address, move |routes| {
            routes
                .app_data(shared.clone())
                .route("/v1/responses", web::post().to(responses))
                .route("/backend-api/wham/accounts/check", web::get().to(accounts))
                .default_service(web::to(anything_else));
        });
        Self { state, server }
    }

    /// The server's root; the API is under `/v1`, the account pages under `/backend-api`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The `config.toml` that makes codex use this model and nothing else of the network.
    pub fn config(&self, auth: ModelAuth) -> String {
        config_toml(&self.url(), auth)
    }

    /// The same settings as dotted keys, for a session's `codex_config`.
    pub fn overrides(&self, auth: ModelAuth) -> Value {
        overrides(&self.url(), auth)
    }

    /// Every request so far, oldest first.
    pub fn requests(&self) -> Vec<ModelRequest> {
        self.state.requests.borrow().clone()
    }

    /// The requests for a turn so far, oldest first.
    pub fn turns(&self) -> Vec<ModelRequest> {
        self.requests().into_iter().filter(ModelRequest::is_turn).collect()
    }

    /// Waits for the first request, past or to come, of which this is true.
    ///
    /// # Panics
    /// When none came within [`LIMIT`], with what the user said in those that did.
    pub async fn wait_for_request(&self, is_it: impl Fn(&ModelRequest) -> bool) -> ModelRequest {
        wait_until("the model got that request", LIMIT, || async {
            let requests = self.requests();
            let found = requests.iter().find(|request| is_it(request)).cloned();
            found.ok_or_else(|| requests.iter().map(|r| (r.path.clone(), r.user_text())).collect::<Vec<_>>())
        })
        .await
    }

    /// Makes every answer, however scripted, stop after its first word until [`release`](Self::release).
    pub fn hold(&self) {
        self.state.flow.send_modify(|flow| flow.holding = true);
    }

    /// Lets every answer that has begun go on, and ends [`hold`](Self::hold). A later `@hold` stands still again.
    pub fn release(&self) {
        self.state.flow.send_modify(|flow| {
            flow.holding = false;
            flow.releases += 1;
        });
    }

    /// Returns how many answers stand still now. One whose listener hung up no longer counts.
    pub fn held(&self) -> usize {
        self.state.flow.borrow().held
    }

    /// Waits until exactly `count` answers stand still in the middle of their text.
    ///
    /// # Panics
    /// When that does not come about within [`LIMIT`], with the number that do.
    pub async fn wait_until_held(&self, count: usize) {
        wait_until(format!("{count} answers are held"), LIMIT, || async {
            let held = self.held();
            if held == count { Ok(()) } else { Err(held) }
        })
        .await;
    }

    /// Refuses the next `count` requests for a turn with this HTTP status.
    pub fn refuse_next(&self, count: usize, status: u16) {
        self.state.flow.send_modify(|flow| flow.refuse = (count, status));
    }

    /// Answers so to a message with these words in it, which a test cannot give a directive.
    pub fn knows(&self, words: &str, answer: &str) {
        let known = Some((words.to_owned(), answer.to_owned()));
        self.state.flow.send_modify(|flow| flow.known = known);
    }

    /// Answers 401 to every bearer token but this one, as the service does when a login was rotated elsewhere.
    pub fn accept_only(&self, bearer: impl Into<String>) {
        let bearer = Some(bearer.into());
        self.state.flow.send_modify(|flow| flow.only_bearer = bearer);
    }

    /// Takes any bearer token again, or none.
    pub fn accept_any(&self) {
        self.state.flow.send_modify(|flow| flow.only_bearer = None);
    }
}

impl State {
    fn record(&self, request: &HttpRequest, body: &[u8]) -> ModelRequest {
        let headers = request
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
        let request = ModelRequest {
            method: request.method().to_string(),
            path: request.uri().to_string(),
            headers: headers.collect(),
            body: Arc::new(serde_json::from_slice(body).unwrap_or(Value::Null)),
        };
        self.requests.send_modify(|log| {
            assert!(log.len() < LOG_LIMIT, "a test made more than {LOG_LIMIT} requests of the mock model");
            log.push(request.clone());
        });
        request
    }

    /// Says whether the test wants this request refused, and uses up one of the refusals it asked for.
    fn refusal(&self, request: &ModelRequest) -> Option<u16> {
        let mut refused = None;
        self.flow.send_modify(|flow| {
            let stale = flow.only_bearer.as_deref().is_some_and(|good| request.bearer() != Some(good));
            if stale {
                refused = Some(401);
            } else if flow.refuse.0 > 0 {
                flow.refuse.0 -= 1;
                refused = Some(flow.refuse.1);
            }
        });
        refused
    }
}

async fn responses(request: HttpRequest, body: web::Bytes, state: web::Data<State>) -> HttpResponse {
    // Read before the request is on record: a test that releases once it sees the request must find it releasable.
    let releases = state.flow.borrow().releases;
    let request = state.record(&request, &body);
    if let Some(status) = state.refusal(&request) {
        return error(status, &format!("mock refuses with {status}"));
    }
    let known = state.flow.borrow().known.clone();
    let known = known.filter(|(words, _)| request.user_text().contains(words)).map(|(_, answer)| answer);
    match known.map_or_else(|| script::next_step(&request.body), |text| Ok(script::say(text))) {
        Ok(script::Step::Http(status)) => error(status, &format!("mock says {status}")),
        Ok(step) => answer::stream(step, request, state.into_inner(), releases),
        Err(reason) => error(400, &format!("mock cannot read its script: {reason}")),
    }
}

/// What codex 0.169 wants before it answers `account/read` in ChatGPT mode. The origin has to be https and is never asked.
async fn accounts(request: HttpRequest, state: web::Data<State>) -> HttpResponse {
    let request = state.record(&request, b"");
    let account = request.headers.get("chatgpt-account-id").map_or("acct-lab", String::as_str);
    HttpResponse::Ok().json(json!({
        "accounts": [{
            "id": account,
            "name": "Test",
            "plan_type": "plus",
            "structure": "personal",
            "workspace_backend_origin": "https://chatgpt.com",
            "account_routing_override": "NO_CONSTRAINT",
            "is_deactivated": false,
            "can_access_with_session": true,
            "is_fedramp_compliant_workspace": false,
            "sso_connection_name": null,
            "profile_picture_url": null,
        }],
        "default_account_id": account,
        "account_ordering": [account],
    }))
}

/// Everything codex asks beside turns it can do without. A WebSocket is refused so that it falls back to SSE.
async fn anything_else(request: HttpRequest, body: web::Bytes, state: web::Data<State>) -> HttpResponse {
    state.record(&request, &body);
    if request.headers().contains_key(header::UPGRADE) {
        return error(426, "mock speaks no websocket");
    }
    error(404, "mock has no such page")
}

fn error(status: u16, message: &str) -> HttpResponse {
    let status =
        actix_web::http::StatusCode::from_u16(status).unwrap_or(actix_web::http::StatusCode::BAD_REQUEST);
    HttpResponse::build(status)
        .json(json!({ "error": { "message": message, "type": "mock", "code": "mock" } }))
}
