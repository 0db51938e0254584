//! A hook that is an address: told by a POST, answers with its body.

use std::fmt;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};

use crate::ANSWER_LIMIT;

/// Which hook calls, for whoever routes by headers.
const HOOK: &str = "optio-hook";

/// An address that is told by `POST` with one JSON object. A status of 2xx is success and the body the answer; anything
/// else is a failure. It is tried once: whoever wants to be told again answers the next call.
#[derive(Clone)]
pub struct Webhook {
    client: Client,
    url: Url,
    bearer: Option<HeaderValue>,
}

impl fmt::Debug for Webhook {
    /// Shows no token, and nothing of an address that may carry one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("host", &self.url.host_str()).finish()
    }
}

/// Why an address cannot be a webhook.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// It is none, or one that would show the world what it is told.
    #[error("url: it must be https, or http on this machine's loopback")]
    Url,
    /// A token that no header can carry.
    #[error("token: it must be visible ASCII characters")]
    Token,
    /// TLS cannot work here.
    #[error("no client for it: {0}")]
    Client(String),
}

impl Webhook {
    /// An address, with the bearer token that it asks for, if it asks for one.
    pub fn new(url: &str, token: Option<&str>, limit: Duration) -> Result<Self, WebhookError> {
        let url = Url::parse(url).map_err(|_| WebhookError::Url)?;
        let loopback = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if url.scheme() != "https" && !(url.scheme() == "http" && loopback) {
            return Err(WebhookError::Url);
        }
        let bearer = token.map(|token| {
            let visible = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
            let value = HeaderValue::from_str(&format!("Bearer {token}")).ok().filter(|_| visible);
            value.map(|mut value| {
                value.set_sensitive(true);
                value
            })
        });
        let bearer = bearer.map(|value| value.ok_or(WebhookError::Token)).transpose()?;
        let client = Client::builder()
            .timeout(limit)
            // A redirect would hand the token and the text to whoever is named.
            .redirect(Policy::none())
            .build()
            .map_err(|problem| WebhookError::Client(problem.to_string()))?;
        Ok(Self { client, url, bearer })
    }

    pub(crate) async fn call(&self, hook: &'static str, told: Vec<u8>) -> Result<String, String> {
        let mut request = self.client.post(self.url.clone()).header(HOOK, hook);
        request = request.header(CONTENT_TYPE, "application/json").body(told);
        if let Some(bearer) = &self.bearer {
            request = request.header(AUTHORIZATION, bearer.clone());
        }
        let failed =
            |problem: reqwest::Error| format!("the webhook did not answer: {}", problem.without_url());
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > ANSWER_LIMIT {
                return Err(format!("the webhook answered more than {ANSWER_LIMIT} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        if !status.is_success() {
            return Err(format!("the webhook answered {status}"));
        }
        String::from_utf8(body).map_err(|_| "the webhook answered what is no UTF-8".to_owned())
    }
}
