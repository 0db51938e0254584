//! The login service: hands out tokens the strict way, so that a test can tell a login that was kept from one that was lost.
//!
//! Every refresh token is good once. Its use makes a new one and spends the old; a second use of a spent one is what a
//! lost rotation looks like from the outside. It is recorded, and the whole lineage is revoked, as the real service does.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::LIMIT;
use crate::auth::{ChatGptLogin, access_token, id_token};
use crate::loopback::Loopback;
use crate::wait::wait_until;

/// How the service answers from now on.
#[derive(Clone, Debug, PartialEq)]
pub enum OauthMode {
    /// At once and truthfully.
    Ok,
    /// With this status and body. No token is spent.
    Refuse(u16, String),
    /// Truthfully, but the answer comes this long after the old token is spent and the new one made.
    Slow(Duration),
    /// Not at all until the mode changes. No token is spent while it hangs; afterwards one is, even if whoever asked has
    /// gone meanwhile.
    Hang,
    /// The old token is spent, the new one made, and the answer never arrives: the connection breaks.
    LoseAnswer,
}

impl OauthMode {
    /// Refuses with the error object of the real service, as in `error(401, "refresh_token_expired")`.
    pub fn error(status: u16, code: &str) -> Self {
        Self::Refuse(status, error_body(code).to_string())
    }
}

/// One refresh that was granted.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// Whose login it is.
    pub account: String,
    /// The token that was spent.
    pub spent: String,
    /// The token that took its place.
    pub refresh_token: String,
    /// The bearer token that came with it.
    pub access_token: String,
    /// When.
    pub at: Timestamp,
}

/// A fake login service. It stops when dropped.
pub struct FakeOauth {
    state: Arc<watch::Sender<State>>,
    server: Loopback,
}

struct State {
    mode: OauthMode,
    access_lifetime: SignedDuration,
    /// Every refresh token ever made here.
    tokens: HashMap<String, Token>,
    lineages: Vec<Lineage>,
    /// The refresh tokens presented, good or not, in order.
    attempts: Vec<String>,
    grants: Vec<Grant>,
    reuses: Vec<String>,
}

struct Token {
    lineage: usize,
    spent: bool,
}

struct Lineage {
    account: String,
    newest: String,
    rotations: u64,
    revoked: bool,
}

impl FakeOauth {
    /// Starts a login service on a free loopback port.
    pub fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST)
    }

    /// Starts a login service on a free port of another address of this machine, such as [`Far::near`](crate::Far::near).
    pub fn start_at(address: Ipv4Addr) -> Self {
        let state = Arc::new(watch::Sender::new(State {
            mode: OauthMode::Ok,
            access_lifetime: SignedDuration::from_hours(240),
            tokens: HashMap::new(),
            lineages: Vec::new(),
            attempts: Vec::new(),
            grants: Vec::new(),
            reuses: Vec::new(),
        }));
        let shared = web::Data::from(state.clone());
        let server = Loopback::start_at(address, move |routes| {
            routes.app_data(shared.clone()).route("/oauth/token", web::post().to(token));
        });
        Self { state, server }
    }

    /// The token endpoint, for `CODEX_REFRESH_TOKEN_URL_OVERRIDE`.
    pub fn url(&self) -> String {
        format!("{}/oauth/token", self.server.url())
    }

    /// Signs an account in: a login whose refresh token starts a lineage of its own.
    pub fn login(&self, account: &str) -> ChatGptLogin {
        let mut refresh_token = String::new();
        self.state.send_modify(|state| {
            let lineage = state.lineages.len();
            refresh_token = format!("rt-{account}-{lineage}-0");
            state.tokens.insert(refresh_token.clone(), Token { lineage, spent: false });
            let (account, newest) = (account.to_owned(), refresh_token.clone());
            state.lineages.push(Lineage { account, newest, rotations: 0, revoked: false });
        });
        ChatGptLogin::new(account).refresh_token(refresh_token)
    }

    /// Changes how the service answers; a request that hangs is answered the new way.
    pub fn mode(&self, mode: OauthMode) {
        self.state.send_modify(|state| state.mode = mode);
    }

    /// Sets how long the access tokens of later refreshes live (ten days unless told). Codex refreshes again when less
    /// than five minutes are left, so a shorter life makes it rotate at each use.
    pub fn access_lifetime(&self, lifetime: SignedDuration) {
        self.state.send_modify(|state| state.access_lifetime = lifetime);
    }

    /// The only refresh token of the account's last login that is still good; nothing once its lineage is revoked. What
    /// the store must hold in the end.
    pub fn issued(&self, account: &str) -> Option<String> {
        let state = self.state.borrow();
        let lineage = state.lineages.iter().rfind(|lineage| lineage.account == account)?;
        (!lineage.revoked).then(|| lineage.newest.clone())
    }

    /// The refresh tokens presented so far, good or not, in order.
    pub fn attempts(&self) -> Vec<String> {
        self.state.borrow().attempts.clone()
    }

    /// The refreshes granted so far, in order.
    pub fn grants(&self) -> Vec<Grant> {
        self.state.borrow().grants.clone()
    }

    /// The spent tokens that somebody presented again. A test about logins ends with this being empty.
    pub fn reuses(&self) -> Vec<String> {
        self.state.borrow().reuses.clone()
    }

    /// Waits until `count` refreshes were granted in all and returns the last of these.
    ///
    /// # Panics
    /// When they were not within [`LIMIT`], with what was granted and what was presented.
    pub async fn wait_for_grants(&self, count: usize) -> Grant {
        wait_until(format!("{count} refreshes are granted"), LIMIT, || async {
            let grants = self.grants();
            let enough = count.checked_sub(1).and_then(|last| grants.get(last)).cloned();
            enough.ok_or_else(|| (grants, self.attempts()))
        })
        .await
    }

    /// Waits until a refresh token was presented `count` times in all, whatever came of it.
    ///
    /// # Panics
    /// When it was not within [`LIMIT`].
    pub async fn wait_for_attempts(&self, count: usize) {
        wait_until(format!("{count} refreshes are tried"), LIMIT, || async {
            let attempts = self.attempts();
            if attempts.len() >= count { Ok(()) } else { Err(attempts) }
        })
        .await;
    }
}

async fn token(http: HttpRequest, body: web::Bytes, shared: web::Data<watch::Sender<State>>) -> HttpResponse {
    let request = fields(http.content_type(), &body);
    let Some(presented) = request["refresh_token"].as_str() else {
        return refuse(400, error_body("invalid_request").to_string());
    };
    if request["grant_type"] != "refresh_token" {
        return refuse(400, error_body("unsupported_grant_type").to_string());
    }
    shared.send_modify(|state| state.attempts.push(presented.to_owned()));

    let mut modes = shared.subscribe();
    let mode = match modes.wait_for(|state| state.mode != OauthMode::Hang).await {
        Ok(state) => state.mode.clone(),
        Err(_) => return refuse(503, error_body("shutting_down").to_string()),
    };
    if let OauthMode::Refuse(status, body) = mode {
        return refuse(status, body);
    }

    let mut granted = Err("never asked");
    shared.send_modify(|state| granted = state.spend(presented));
    let grant = match granted {
        Ok(grant) => grant,
        Err(code) => return refuse(401, error_body(code).to_string()),
    };
    match mode {
        OauthMode::LoseAnswer => {
            let broken = std::io::Error::other("the fake login service loses this answer");
            return HttpResponse::Ok().streaming(tokio_stream::once(Err::<web::Bytes, _>(broken)));
        }
        OauthMode::Slow(delay) => tokio::time::sleep(delay).await,
        _ => {}
    }
    HttpResponse::Ok().json(json!({
        "id_token": id_token(&grant.account),
        "access_token": grant.access_token,
        "refresh_token": grant.refresh_token,
        "token_type": "Bearer",
        "scope": "openid",
    }))
}

/// Reads the fields of a request: JSON as codex sends it, or a form as the Python package does (T-236, T-237).
fn fields(content_type: &str, body: &[u8]) -> Value {
    if content_type != "application/x-www-form-urlencoded" {
        return serde_json::from_slice(body).unwrap_or(Value::Null);
    }
    let form = std::str::from_utf8(body).unwrap_or_default();
    // A query and a form are written alike.
    let form = web::Query::<HashMap<String, String>>::from_query(form);
    form.map_or(Value::Null, |form| json!(form.into_inner()))
}

impl State {
    /// Spends a token for the next of its lineage, or names the error code.
    fn spend(&mut self, presented: &str) -> Result<Grant, &'static str> {
        let token = self.tokens.get_mut(presented).ok_or("refresh_token_invalidated")?;
        let lineage = &mut self.lineages[token.lineage];
        if token.spent {
            lineage.revoked = true;
            self.reuses.push(presented.to_owned());
            return Err("refresh_token_reused");
        }
        if lineage.revoked {
            return Err("refresh_token_invalidated");
        }
        token.spent = true;
        lineage.rotations += 1;
        let id = token.lineage;
        let next = format!("rt-{}-{id}-{}", lineage.account, lineage.rotations);
        lineage.newest.clone_from(&next);
        let grant = Grant {
            account: lineage.account.clone(),
            spent: presented.to_owned(),
            refresh_token: next.clone(),
            access_token: access_token(self.access_lifetime, self.grants.len() as u64 + 1),
            at: Timestamp::now(),
        };
        self.tokens.insert(next, Token { lineage: id, spent: false });
        self.grants.push(grant.clone());
        Ok(grant)
    }
}

fn error_body(code: &str) -> Value {
    json!({ "error": { "message": format!("fake login service: {code}"), "type": "invalid_request_error", "code": code } })
}

fn refuse(status: u16, body: String) -> HttpResponse {
    let status = StatusCode::from_u16(status).expect("a test asks for statuses that exist");
    HttpResponse::build(status).content_type("application/json").body(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refresh(oauth: &FakeOauth, token: &str) -> (u16, Value) {
        let request = json!({ "client_id": "app", "grant_type": "refresh_token", "refresh_token": token });
        let answer =
            reqwest::Client::new().post(oauth.url()).json(&request).send().await.expect("loopback answers");
        (answer.status().as_u16(), answer.json().await.expect("answers are JSON"))
    }

    #[tokio::test]
    async fn a_refresh_token_is_good_once_and_its_reuse_ends_the_lineage() {
        let oauth = FakeOauth::start();
        let original = oauth.login("acct-a").current_refresh_token().to_owned();
        let bystander = oauth.login("acct-b").current_refresh_token().to_owned();

        let (status, tokens) = refresh(&oauth, &original).await;
        assert_eq!((status, tokens["refresh_token"].as_str()), (200, oauth.issued("acct-a").as_deref()));

        let (status, body) = refresh(&oauth, &original).await;
        assert_eq!((status, body["error"]["code"].as_str()), (401, Some("refresh_token_reused")));
        assert_eq!(oauth.reuses(), [original]);
        assert_eq!(oauth.issued("acct-a"), None);

        let successor = tokens["refresh_token"].as_str().expect("checked above");
        assert_eq!(refresh(&oauth, successor).await.0, 401, "the whole lineage is revoked");
        assert_eq!(refresh(&oauth, &bystander).await.0, 200, "another lineage is not");
    }

    #[tokio::test]
    async fn a_form_is_understood_as_well() {
        let oauth = FakeOauth::start();
        let token = oauth.login("acct a+b").current_refresh_token().to_owned();
        let form =
            format!("grant_type=refresh_token&refresh_token={}&client_id=app", token.replace('+', "%2B"));
        let request = reqwest::Client::new()
            .post(oauth.url())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.replace(' ', "+"));
        let status = request.send().await.expect("loopback answers").status();
        assert_eq!((status.as_u16(), oauth.attempts()), (200, vec![token]));
    }

    #[tokio::test]
    async fn a_refused_refresh_spends_nothing() {
        let oauth = FakeOauth::start();
        let token = oauth.login("acct-a").current_refresh_token().to_owned();
        oauth.mode(OauthMode::error(500, "server_error"));
        assert_eq!(refresh(&oauth, &token).await.0, 500);
        oauth.mode(OauthMode::Ok);
        assert_eq!(refresh(&oauth, &token).await.0, 200);
        assert!(oauth.reuses().is_empty());
    }

    #[tokio::test]
    async fn a_lost_answer_leaves_the_caller_with_a_spent_token() {
        let oauth = FakeOauth::start();
        let token = oauth.login("acct-a").current_refresh_token().to_owned();
        oauth.mode(OauthMode::LoseAnswer);
        let request = json!({ "grant_type": "refresh_token", "refresh_token": token });
        let answer = reqwest::Client::new().post(oauth.url()).json(&request).send().await;
        let body = match answer {
            Ok(answer) => answer.bytes().await,
            Err(err) => Err(err),
        };
        assert!(body.is_err(), "the body must break off: {body:?}");
        assert_ne!(oauth.issued("acct-a"), Some(token));
    }

    #[tokio::test]
    async fn a_hanging_refresh_is_answered_once_the_mode_changes() {
        let oauth = FakeOauth::start();
        let token = oauth.login("acct-a").current_refresh_token().to_owned();
        oauth.mode(OauthMode::Hang);
        let (answer, ()) = tokio::join!(refresh(&oauth, &token), async {
            oauth.wait_for_attempts(1).await;
            assert!(oauth.grants().is_empty());
            oauth.mode(OauthMode::Ok);
        });
        assert_eq!(answer.0, 200);
    }
}
