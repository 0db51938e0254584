//! The login server over HTTP, asked as Codex asks it (LAB §3, T-233…T-237).

use std::error::Error;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Discovery, LoginServer, RefreshAnswer, Secret, Tokens};

/// Where Codex refreshes (T-235).
pub const REFRESH_URL: &str = "https://auth.openai.com/oauth/token";

/// Where the real server describes itself (T-233).
const DISCOVERY_URL: &str = "https://auth.openai.com/.well-known/openid-configuration";

/// Codex's own client: the refresh tokens were issued to it (T-236).
pub const CLIENT_ID: &str = "app_EMoamEEZ73f0CkXaXp7hrann";

/// Who asks (T-233, T-236).
const USER_AGENT: &str = "optio-codex-seed-verify/1";

/// How long one request takes at most unless told otherwise (T-233).
pub const REQUEST_LIMIT: Duration = Duration::from_secs(20);

/// The part of the limit that connecting may take, names and TLS included. Less than the whole, so that a connection that
/// does not come about is known to be that, and not a request without an answer.
const CONNECTING: u32 = 2;

/// Largest body that is read; a real answer has some 5 KB.
pub const MAX_BODY: usize = 256 << 10;

/// The longest wait that a server is believed to mean.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// How the fields of a refresh are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// As Codex writes them.
    #[default]
    Json,
    /// As the OAuth standard has them. Never tried as a second attempt with the same token (T-237).
    Form,
}

/// Whom to ask, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpOptions {
    /// Where tokens are refreshed.
    pub refresh_url: String,
    /// Where the server describes itself. `None` takes it for reachable unasked.
    pub discovery_url: Option<String>,
    /// How the fields are written.
    pub encoding: Encoding,
    /// How long one request may take, its answer included.
    pub limit: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            refresh_url: REFRESH_URL.to_owned(),
            discovery_url: Some(DISCOVERY_URL.to_owned()),
            encoding: Encoding::default(),
            limit: REQUEST_LIMIT,
        }
    }
}

impl HttpOptions {
    /// The real server, or the one that `CODEX_REFRESH_TOKEN_URL_OVERRIDE` names. Of another server than the real one it
    /// is not known where it describes itself, and what the real one says would not be about it.
    pub fn with_override(refresh_url: Option<String>) -> Self {
        match refresh_url {
            None => Self::default(),
            Some(refresh_url) => Self { refresh_url, discovery_url: None, ..Self::default() },
        }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none. It is not shown: it may carry a password.
    #[error("the {what} address of the login server is no http address: {why}")]
    Url {
        /// Which of the two.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// TLS cannot work here.
    #[error("no client for the login server: {0}")]
    Client(String),
}

/// The login server over HTTP.
#[derive(Debug)]
pub struct HttpLoginServer {
    client: Client,
    refresh_url: Url,
    discovery_url: Option<Url>,
    encoding: Encoding,
}

impl HttpLoginServer {
    /// A client that asks nobody yet. Honours the proxy variables of the environment and trusts the system's roots (T-241).
    pub fn new(options: &HttpOptions) -> Result<Self, ClientError> {
        let client = Client::builder()
            .user_agent(USER_AGENT)
            .timeout(options.limit)
            .connect_timeout(options.limit / CONNECTING)
            // A redirected token request would hand the token to whoever is named (T-223).
            .redirect(Policy::none())
            // One request is one request: a connection that was kept may be dead, and then the client would try again.
            .pool_max_idle_per_host(0)
            .retry(reqwest::retry::never())
            .build()
            .map_err(|problem| ClientError::Client(told(&problem)))?;
        Ok(Self {
            client,
            refresh_url: parse("refresh", &options.refresh_url)?,
            discovery_url: options.discovery_url.as_deref().map(|url| parse("discovery", url)).transpose()?,
            encoding: options.encoding,
        })
    }

    fn body(&self, refresh_token: &Secret) -> (&'static str, Vec<u8>) {
        let fields =
            Fields { client_id: CLIENT_ID, grant_type: GRANT, refresh_token: refresh_token.reveal() };
        match self.encoding {
            Encoding::Json => {
                let body = serde_json::to_vec(&fields).expect("three texts have a JSON form");
                ("application/json", body)
            }
            Encoding::Form => {
                let body = form_urlencoded::Serializer::new(String::new())
                    .append_pair("grant_type", fields.grant_type)
                    .append_pair("refresh_token", fields.refresh_token)
                    .append_pair("client_id", fields.client_id)
                    .finish();
                ("application/x-www-form-urlencoded", body.into_bytes())
            }
        }
    }
}

const GRANT: &str = "refresh_token";

/// In the order in which Codex writes them (LAB §3).
#[derive(Serialize)]
struct Fields<'a> {
    client_id: &'a str,
    grant_type: &'a str,
    refresh_token: &'a str,
}

#[async_trait]
impl LoginServer for HttpLoginServer {
    async fn discover(&self) -> Discovery {
        let Some(url) = &self.discovery_url else {
            return Discovery::Reachable;
        };
        let asked = self.client.get(url.clone()).header(ACCEPT, "application/json").send().await;
        let answer = match asked {
            Ok(answer) => answer,
            Err(problem) => return Discovery::Unavailable(told(&problem)),
        };
        let status = answer.status();
        if !status.is_success() {
            return Discovery::Unavailable(format!("its description was answered with {}", status.as_u16()));
        }
        let described: Option<Value> = match read(answer).await {
            Ok(body) => serde_json::from_slice(&body).ok(),
            Err(why) => return Discovery::Unavailable(why),
        };
        // That there is an endpoint is all that counts. Which one it names is another surface, never to be used (T-234).
        let named = described
            .is_some_and(|described| described["token_endpoint"].as_str().is_some_and(|url| !url.is_empty()));
        match named {
            true => Discovery::Reachable,
            false => Discovery::Unavailable("its description names no token endpoint".to_owned()),
        }
    }

    async fn refresh(&self, refresh_token: &Secret) -> RefreshAnswer {
        let (content_type, body) = self.body(refresh_token);
        let request = self
            .client
            .post(self.refresh_url.clone())
            .header(CONTENT_TYPE, content_type)
            .header(ACCEPT, "application/json")
            .body(body);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(problem) if never_left(&problem) => return RefreshAnswer::NotSent(told(&problem)),
            Err(problem) => return RefreshAnswer::NoAnswer(told(&problem)),
        };
        let (status, retry_after) = (answer.status(), retry_after(answer.headers()));
        let body = read(answer).await;
        if !status.is_success() {
            // Without a body the status still says what it says.
            let code = body.ok().and_then(|body| error_code(&body));
            return RefreshAnswer::Refused { status: status.as_u16(), code, retry_after };
        }
        match body.map(|body| granted(&body)) {
            Ok(Some(tokens)) => RefreshAnswer::Granted(tokens),
            Ok(None) => {
                RefreshAnswer::NoAnswer(format!("{} with a body that is no JSON object", status.as_u16()))
            }
            Err(why) => RefreshAnswer::NoAnswer(why),
        }
    }
}

/// True only where it is certain that no byte of the request reached anybody: there was no connection, or no TLS on it.
/// Everything later counts as sent, even a connection that was closed at once (T-224).
fn never_left(problem: &reqwest::Error) -> bool {
    problem.is_builder() || problem.is_connect()
}

/// Reads a body up to [`MAX_BODY`].
async fn read(mut answer: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > MAX_BODY => {
                return Err(format!("the answer is larger than {MAX_BODY} bytes"));
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body),
            Err(problem) => return Err(told(&problem)),
        }
    }
}

fn granted(body: &[u8]) -> Option<Tokens> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        access_token: Value,
        #[serde(default)]
        refresh_token: Value,
        #[serde(default)]
        id_token: Value,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let secret = |value: Value| match value {
        Value::String(text) if !text.is_empty() => Some(Secret::new(text)),
        _ => None,
    };
    Some(Tokens {
        access_token: secret(answer.access_token),
        refresh_token: secret(answer.refresh_token),
        id_token: secret(answer.id_token),
    })
}

/// The error code of a refusal, in the three forms that Codex reads: `{"error": {"code"}}`, `{"error": "…"}`, `{"code"}`.
fn error_code(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let code = body["error"]["code"].as_str().or(body["error"].as_str()).or(body["code"].as_str());
    code.map(str::to_owned)
}

/// Only the form in seconds: a date would have to be compared with a clock that may be wrong.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER).map(HeaderValue::to_str)?.ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

fn parse(what: &'static str, url: &str) -> Result<Url, ClientError> {
    let bad = |why: String| ClientError::Url { what, why };
    let url: Url =
        url.parse().map_err(|problem: <Url as std::str::FromStr>::Err| bad(problem.to_string()))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(bad(format!("its scheme is {other:?}"))),
    }
}

/// What went wrong, down to the cause. Without the address, which may carry a password; a body never gets here.
fn told(problem: &reqwest::Error) -> String {
    let mut parts = vec![kind(problem).to_owned()];
    let mut cause = problem.source();
    while let Some(problem) = cause {
        let text = problem.to_string();
        if !parts.contains(&text) {
            parts.push(text);
        }
        cause = problem.source();
    }
    parts.join(": ")
}

fn kind(problem: &reqwest::Error) -> &'static str {
    match problem {
        p if p.is_timeout() => "no answer in time",
        p if p.is_connect() => "no connection",
        p if p.is_body() || p.is_decode() => "the answer broke off",
        _ => "the request failed",
    }
}
