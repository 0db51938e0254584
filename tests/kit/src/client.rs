//! The HTTP API as a test speaks it.
//!
//! A method named after what a user does answers what the API answered, as JSON, and panics with the whole answer when it
//! was not a success. For answers that are meant to be refusals there is [`Client::request`] with [`Client::send`].

mod events;

use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode, header};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::LIMIT;
pub use events::{Event, EventStream};

/// The longest a single answer may take: a long-poll of 25 s, and some.
const ANSWER_LIMIT: Duration = Duration::from_secs(40);
/// How long one long-poll waits at most, in seconds; the API's own example.
const POLL_SECONDS: u64 = 25;

/// An API client with one bearer token.
#[derive(Clone)]
pub struct Client {
    base: String,
    token: Option<String>,
    host: Option<String>,
    http: reqwest::Client,
}

/// One answer, whatever it is.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers.
    pub headers: header::HeaderMap,
    /// The body, read to its end.
    pub body: bytes::Bytes,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Panics
    /// With the body when it is not JSON.
    pub fn json(&self) -> Value {
        if self.body.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&self.body).unwrap_or_else(|err| panic!("not JSON ({err}): {}", self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// One header's value; empty when it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Checks that this is an RFC 9457 problem with everything the API promises of one, and returns its `code`.
    ///
    /// # Panics
    /// With the answer when it is not.
    pub fn problem(&self) -> String {
        let body = self.json();
        let whole = self.header("content-type").starts_with("application/problem+json")
            && body["status"].as_u64() == Some(u64::from(self.status.as_u16()))
            && body["retryable"].is_boolean()
            && body["request_id"].is_string();
        match body["code"].as_str() {
            Some(code) if whole => code.to_owned(),
            _ => panic!("{} is no whole problem: {:?} {}", self.status, self.headers, self.text()),
        }
    }
}

impl Client {
    /// Makes a client for a base URL without a slash at its end.
    pub fn new(base: impl Into<String>, token: &str) -> Self {
        let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let http = http.build().expect("a client without TLS needs nothing of the machine");
        Self { base: base.into(), token: Some(token.to_owned()), host: None, http }
    }

    /// Where the service is.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The same client without its token.
    #[must_use]
    pub fn anonymous(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// The same client with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// The same client, whose sessions are on this host unless they say otherwise.
    #[must_use]
    pub fn on_host(&self, name: &str) -> Self {
        Self { host: Some(name.to_owned()), ..self.clone() }
    }

    // --- sessions ----------------------------------------------------------------------------------------------------

    /// Creates and launches a session.
    pub async fn create(&self, mut session: Value) -> Session {
        if let (Some(host), Value::Object(fields)) = (&self.host, &mut session) {
            fields.entry("host").or_insert_with(|| json!(host));
        }
        let created = self.post("/v1/sessions", session).await;
        Session { id: text(&created, "id"), client: self.clone(), created }
    }

    /// Takes up a session by its id.
    pub fn session(&self, id: &str) -> Session {
        Session { id: id.to_owned(), client: self.clone(), created: Value::Null }
    }

    /// Lists sessions, newest page only, with a query such as `state=idle&limit=10`; empty for all.
    pub async fn sessions(&self, query: &str) -> Vec<Value> {
        list(self.get(&format!("/v1/sessions?{query}")).await)
    }

    /// Follows the events of the whole service.
    pub async fn all_events(&self, after: Option<u64>) -> EventStream {
        EventStream::open(self, "/v1/events", after).await
    }

    // --- seeds -------------------------------------------------------------------------------------------------------

    /// Imports a login into a pool and returns the seed's id.
    pub async fn import_seed(&self, pool: &str, auth_json: &[u8], config_toml: &str) -> String {
        let auth = String::from_utf8_lossy(auth_json);
        let seed = json!({ "pool": pool, "auth_json": auth, "config_toml": config_toml });
        text(&self.post("/v1/seeds", seed).await, "id")
    }

    /// Lists all seeds.
    pub async fn seeds(&self) -> Vec<Value> {
        list(self.get("/v1/seeds").await)
    }

    /// Reads one seed.
    pub async fn seed(&self, id: &str) -> Value {
        self.get(&format!("/v1/seeds/{id}")).await
    }

    // --- any request -------------------------------------------------------------------------------------------------

    /// Begins a request with the client's token, for whatever the methods above do not say. The path starts with a slash.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request and returns the answer, whatever its status.
    ///
    /// # Panics
    /// When there is no answer at all.
    pub async fn send(&self, request: RequestBuilder) -> Reply {
        let request = request.build().expect("a test writes requests that can be built");
        let what = format!("{} {}", request.method(), request.url());
        let answer = async {
            let response = self.http.execute(request).await?;
            let (status, headers) = (response.status(), response.headers().clone());
            Ok::<_, reqwest::Error>(Reply { status, headers, body: response.bytes().await? })
        };
        match tokio::time::timeout(ANSWER_LIMIT, answer).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(err)) => panic!("{what} was not answered: {err:?}"),
            Err(_) => panic!("{what} was not answered within {ANSWER_LIMIT:?}"),
        }
    }

    /// The same, or nothing when there is no answer: of a service that a test may kill.
    pub async fn try_send(&self, request: RequestBuilder) -> Option<Reply> {
        let response = request.timeout(ANSWER_LIMIT).send().await.ok()?;
        let (status, headers) = (response.status(), response.headers().clone());
        Some(Reply { status, headers, body: response.bytes().await.ok()? })
    }

    /// Gets a page as JSON; panics unless it is a success, as do the next two.
    pub async fn get(&self, path: &str) -> Value {
        self.succeed(Method::GET, path, None).await
    }

    /// Posts JSON.
    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.succeed(Method::POST, path, Some(body)).await
    }

    /// Deletes.
    pub async fn delete(&self, path: &str) -> Value {
        self.succeed(Method::DELETE, path, None).await
    }

    async fn succeed(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let mut request = self.request(method.clone(), path).header(header::ACCEPT, "application/json");
        if let Some(body) = &body {
            request = request.json(body);
        }
        let reply = self.send(request).await;
        assert!(
            reply.status.is_success(),
            "{method} {path} with {body:?}: {} {}",
            reply.status,
            reply.text()
        );
        reply.json()
    }
}

/// One session, as its user drives it.
#[derive(Clone)]
pub struct Session {
    /// Its id.
    pub id: String,
    /// What its creation answered; null for one taken up by its id.
    pub created: Value,
    client: Client,
}

impl Session {
    /// Who asks for it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its state now, as the API's `Session` object.
    pub async fn get(&self) -> Value {
        self.client.get(&self.path("")).await
    }

    /// Stops it: `graceful` or `cancel`. Returns at once; the teardown goes on.
    pub async fn stop(&self, mode: &str) -> Value {
        self.client.post(&self.path("/stop"), json!({ "mode": mode })).await
    }

    /// Stops it gracefully and waits for its end.
    pub async fn end(&self, limit: Duration) -> Value {
        self.stop("graceful").await;
        self.wait_state("ended", limit).await
    }

    /// Stops it gracefully unless it is ending by itself.
    pub async fn stop_if_live(&self) {
        let stop = self.client.request(Method::POST, &self.path("/stop"));
        let reply = self.client.send(stop.json(&json!({ "mode": "graceful" }))).await;
        assert!(reply.status.is_success() || reply.status == 409, "{} {}", reply.status, reply.text());
    }

    /// Resumes it from its newest snapshot.
    pub async fn resume(&self) -> Value {
        self.client.post(&self.path("/resume"), json!({})).await
    }

    /// Removes it.
    pub async fn delete(&self) {
        self.client.delete(&self.path("")).await;
    }

    /// Says something, in mode `auto`.
    pub async fn turn(&self, text: &str) -> Value {
        self.turn_as(text, "auto").await
    }

    /// Says something as `auto`, `new`, `steer` or `queue`.
    pub async fn turn_as(&self, text: &str, mode: &str) -> Value {
        self.client.post(&self.path("/turns"), json!({ "text": text, "mode": mode })).await
    }

    /// Ends the running turn.
    pub async fn interrupt(&self) -> Value {
        self.client.post(&self.path("/interrupt"), json!({})).await
    }

    /// Lists its approvals.
    pub async fn approvals(&self) -> Vec<Value> {
        list(self.client.get(&self.path("/approvals")).await)
    }

    /// Answers one approval: `accept`, `accept_for_session`, `decline` or `cancel`.
    pub async fn answer(&self, approval: &str, decision: &str) -> Value {
        self.client.post(&self.path(&format!("/approvals/{approval}")), json!({ "decision": decision })).await
    }

    /// Waits for an approval that nobody has answered.
    pub async fn pending_approval(&self, limit: Duration) -> Value {
        self.long_poll("an approval is pending", limit, async |_| {
            self.approvals().await.into_iter().find(|approval| approval["state"] == "pending")
        })
        .await
    }

    /// Reads one page of events after a sequence number.
    pub async fn events_page(&self, after: u64) -> Vec<Value> {
        list(self.client.get(&self.path(&format!("/events?after={after}"))).await)
    }

    /// Every event so far, page by page.
    pub async fn journal(&self) -> Vec<Value> {
        let mut events: Vec<Value> = Vec::new();
        loop {
            let after = events.last().and_then(|event| event["seq"].as_u64()).unwrap_or(0);
            let page = self.events_page(after).await;
            if page.is_empty() {
                return events;
            }
            events.extend(page);
        }
    }

    /// Follows its events live, all of them or those after an id.
    pub async fn events(&self, last_event_id: Option<u64>) -> EventStream {
        EventStream::open(&self.client, &self.path("/events"), last_event_id).await
    }

    /// Reads the folded conversation, newest first.
    pub async fn messages(&self) -> Vec<Value> {
        list(self.client.get(&self.path("/messages")).await)
    }

    /// Reads the live supervision tree.
    pub async fn actors(&self) -> Value {
        self.client.get(&self.path("/actors")).await
    }

    /// Arms a fault; the service must run with `--enable-faults`.
    pub async fn fault(&self, actor: &str, step: &str, kind: &str) -> Value {
        self.client.post(&self.path("/faults"), json!({ "actor": actor, "step": step, "kind": kind })).await
    }

    /// Waits until it is in this state and returns it.
    ///
    /// # Panics
    /// When it is not after `limit`, or ends before, with what it looked like last.
    pub async fn wait_state(&self, state: &str, limit: Duration) -> Value {
        self.long_poll(&format!("the session is {state}"), limit, async |session: &Value| {
            if session["state"] == state {
                return Some(session.clone());
            }
            assert!(
                session["state"] != "ended",
                "waited until the session is {state}, but it ended: {session:#}"
            );
            None
        })
        .await
    }

    /// Waits until it has nothing to do, for at most [`LIMIT`].
    pub async fn wait_idle(&self) -> Value {
        self.wait_state("idle", LIMIT).await
    }

    /// Looks at the session after each of its events until there is what `found` looks for.
    async fn long_poll<T>(&self, what: &str, limit: Duration, found: impl AsyncFn(&Value) -> Option<T>) -> T {
        let deadline = Instant::now() + limit;
        loop {
            let session = self.get().await;
            if let Some(found) = found(&session).await {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited {limit:?} until {what}; the session is {session:#}");
            // The object is older than the events after its `last_event`: none can slip through between the two.
            let after = session["last_event"].as_u64().unwrap_or(0);
            let wait = left.as_secs().clamp(1, POLL_SECONDS);
            let page = self.client.get(&self.path(&format!("/events?after={after}&wait={wait}"))).await;
            assert!(page["data"].is_array(), "a page of events has data: {page}");
        }
    }

    /// The path of one of its sub-resources, which starts with a slash.
    pub fn path(&self, rest: &str) -> String {
        format!("/v1/sessions/{}{rest}", self.id)
    }
}

fn text(object: &Value, field: &str) -> String {
    let text = object[field].as_str().unwrap_or_else(|| panic!("{field} is missing in {object:#}"));
    text.to_owned()
}

fn list(mut page: Value) -> Vec<Value> {
    match page["data"].take() {
        Value::Array(items) => items,
        other => panic!("a list has its items in data, this one has {other}: {page}"),
    }
}
