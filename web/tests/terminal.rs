//! The terminal's gateway: who gets in, what reaches whom, and how a connection ends.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{LIMIT, TOKEN, World};
use optio_testkit::{Client, Session, TerminalClient, wait_until};
use reqwest::{Method, StatusCode};
use serde_json::json;

impl World {
    /// A session on a terminal that is live.
    async fn terminal(&self) -> Session {
        let client = Client::new(&self.base, TOKEN);
        let session = client.create(json!({ "mode": "terminal", "instructions": "x" })).await;
        session.wait_state("working", LIMIT).await;
        session
    }

    async fn ticket(&self, session: &Session, role: &str) -> String {
        let reply = self.post(&session.path("/terminal/ticket"), json!({ "role": role })).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
        assert_eq!((reply.header("cache-control"), &reply.json()["role"]), ("no-store", &json!(role)));
        reply.json()["ticket"].as_str().unwrap().to_owned()
    }

    async fn open(
        &self,
        session: &Session,
        query: &str,
        headers: &[(&str, &str)],
    ) -> Result<TerminalClient, u16> {
        TerminalClient::open(&self.base, &format!("{}{query}", session.path("/terminal/ws")), headers).await
    }
}

fn hello(token: &str) -> String {
    json!({ "AuthToken": token, "columns": 80, "rows": 24 }).to_string()
}

#[actix_web::test]
async fn keys_go_in_and_the_screen_comes_out() {
    let world = World::start().await;
    let session = world.terminal().await;
    let mut operator = TerminalClient::sit(&session, "operator", 80, 24).await;
    assert_eq!(operator.seat, json!({ "seat": "owner", "columns": 80, "rows": 24 }));
    let mut viewer = TerminalClient::sit(&session, "viewer", 200, 60).await;
    assert_eq!(viewer.seat, json!({ "seat": "viewer", "columns": 80, "rows": 24 }));
    viewer.types("from the viewer").await;
    operator.types("from the operator").await;
    wait_until("the keys arrive", LIMIT, || async { world.agents.keys().contains("from the operator") })
        .await;
    session.turn("said by a program").await;
    operator.sees("> said by a program").await;
    viewer.sees("> said by a program").await;
    assert!(!world.agents.keys().contains("from the viewer"), "{}", world.agents.keys());
    operator.resize(132, 43).await;
    viewer.until("the new size", |viewer| viewer.seat["columns"] == 132 && viewer.seat["rows"] == 43).await;
    world.stop().await;
}

#[actix_web::test]
async fn a_ticket_opens_one_connection_of_one_session() {
    let world = World::start().await;
    let (session, other) = (world.terminal().await, world.terminal().await);
    let ticket = world.ticket(&session, "operator").await;
    assert_eq!(world.open(&other, &format!("?ticket={ticket}"), &[]).await.err(), Some(401));
    let ticket = world.ticket(&session, "operator").await;
    assert!(world.open(&session, &format!("?ticket={ticket}"), &[]).await.is_ok());
    assert_eq!(world.open(&session, &format!("?ticket={ticket}"), &[]).await.err(), Some(401));
    assert_eq!(world.open(&session, "", &[]).await.err(), Some(401));
    world.stop().await;
}

#[actix_web::test]
async fn a_browser_brings_its_ticket_with_the_first_message() {
    let world = World::start().await;
    let session = world.terminal().await;
    let cookie = world.cookie().await;
    let ours = [("cookie", cookie.as_str()), ("origin", world.base.as_str())];
    let page = world.anonymous(Method::GET, &session.path("/terminal/token")).header("cookie", &cookie);
    let token = common::Reply::to(page).await.json()["token"].as_str().unwrap().to_owned();
    let mut browser = world.open(&session, "", &ours).await.unwrap();
    browser.say(&hello(&token)).await;
    browser.until("a seat", |browser| browser.seat["seat"] == "owner").await;
    for bad in [token.as_str(), ""] {
        let mut again = world.open(&session, "", &ours).await.unwrap();
        again.say(&hello(bad)).await;
        assert_eq!(again.is_closed().await.0, 4401, "{bad:?}");
    }
    world.stop().await;
}

#[actix_web::test]
async fn a_page_of_another_origin_gets_no_socket() {
    let world = World::start().await;
    let session = world.terminal().await;
    let cookie = world.cookie().await;
    for origin in ["http://evil.test", "null", "http://127.0.0.1:1"] {
        let theirs = [("cookie", cookie.as_str()), ("origin", origin)];
        assert_eq!(world.open(&session, "", &theirs).await.err(), Some(403), "{origin}");
        let ticket = world.ticket(&session, "operator").await;
        let query = format!("?ticket={ticket}");
        assert_eq!(world.open(&session, &query, &[("origin", origin)]).await.err(), Some(403), "{origin}");
    }
    assert_eq!(
        world.open(&session, "", &[("cookie", &cookie), ("host", "evil.test")]).await.err(),
        Some(421)
    );
    // A browser sends its origin with every socket; a cookie without one is no page of ours.
    let none = [("cookie", cookie.as_str()), ("sec-fetch-site", "cross-site")];
    assert_eq!(world.open(&session, "", &none).await.err(), Some(403));
    world.stop().await;
}

#[actix_web::test]
async fn what_is_no_message_of_a_terminal_is_refused_with_a_reason() {
    let world = World::start().await;
    let session = world.terminal().await;
    for (message, why) in [
        ("hello", "first message"),
        (r#"{"AuthToken":"","columns":1,"rows":24}"#, "columns and rows"),
        (r#"{"AuthToken":"","columns":80,"rows":9999}"#, "columns and rows"),
    ] {
        let ticket = world.ticket(&session, "operator").await;
        let mut client = world.open(&session, &format!("?ticket={ticket}"), &[]).await.unwrap();
        client.say(message).await;
        let (code, reason) = client.is_closed().await;
        assert!(code == 1008 && reason.contains(why), "{message}: {code} {reason}");
    }
    for (message, why) in
        [("9", "begin with"), ("1{}", "a size"), (r#"1{"columns":0,"rows":0}"#, "columns and rows")]
    {
        let mut client = TerminalClient::sit(&session, "operator", 80, 24).await;
        client.say(message).await;
        let (code, reason) = client.is_closed().await;
        assert!(code == 1008 && reason.contains(why), "{message}: {code} {reason}");
    }
    let mut client = TerminalClient::sit(&session, "operator", 80, 24).await;
    client.types(&"x".repeat(2 << 20)).await;
    assert!([1006, 1008].contains(&client.is_closed().await.0), "{:?}", client.closed);
    world.stop().await;
}

#[actix_web::test]
async fn a_paused_page_is_shown_nothing_and_then_all_of_it() {
    let world = World::start().await;
    let session = world.terminal().await;
    let mut client = TerminalClient::sit(&session, "operator", 80, 24).await;
    client.sees("codex").await;
    client.say("2").await;
    client.types("paused").await;
    // Read in order, so the pause was heard before the keys.
    wait_until("the keys arrive", LIMIT, || async { world.agents.keys().contains("paused") }).await;
    session.turn("said meanwhile").await;
    assert!(!client.shown().contains("said meanwhile"));
    client.say("3").await;
    client.sees("> said meanwhile").await;
    world.stop().await;
}

#[actix_web::test]
async fn the_heir_is_called_back_and_the_end_is_told() {
    let world = World::start().await;
    let session = world.terminal().await;
    let owner = TerminalClient::sit(&session, "operator", 80, 24).await;
    let mut heir = TerminalClient::sit(&session, "operator", 100, 30).await;
    assert_eq!(heir.seat["seat"], "guest");
    drop(owner);
    assert_eq!(heir.is_closed().await.0, 4001);
    let mut heir = TerminalClient::sit(&session, "operator", 100, 30).await;
    assert_eq!(heir.seat, json!({ "seat": "owner", "columns": 100, "rows": 30 }));
    session.stop("graceful").await;
    let (code, reason) = heir.is_closed().await;
    assert!(code == 4000 && reason.contains("the terminal has ended"), "{code} {reason}");
    session.end(LIMIT).await;
    let ticket = world.post(&session.path("/terminal/ticket"), json!({})).await.json();
    let query = format!("?ticket={}", ticket["ticket"].as_str().unwrap());
    assert_eq!(world.open(&session, &query, &[]).await.err(), Some(409));
    world.stop().await;
}

#[actix_web::test]
async fn a_service_that_goes_down_says_so() {
    let world = World::start().await;
    let session = world.terminal().await;
    let mut client = TerminalClient::sit(&session, "viewer", 80, 24).await;
    world.shutdown.send_replace(true);
    assert_eq!(client.is_closed().await.0, 1001);
}

#[actix_web::test]
async fn a_conversation_has_no_terminal() {
    let world = World::start().await;
    let id = world.session().await;
    for (method, path) in
        [(Method::POST, "ticket"), (Method::GET, "token"), (Method::GET, ""), (Method::GET, "ws")]
    {
        let refused =
            common::Reply::to(world.request(method, &format!("/v1/sessions/{id}/terminal/{path}"))).await;
        assert_eq!(refused.problem(), (409, "conflict".to_owned()), "{path}: {}", refused.text);
        assert!(refused.text.contains("no terminal"), "{}", refused.text);
    }
    world.stop().await;
}

#[actix_web::test]
async fn the_page_of_a_terminal_is_framed_by_our_own_page_only() {
    let world = World::start().await;
    let session = world.terminal().await;
    let page = world.get(&session.path("/terminal/")).await;
    assert_eq!(page.status, StatusCode::OK, "{}", page.text);
    let policy = page.header("content-security-policy");
    assert!(policy.contains("frame-ancestors 'self'") && policy.contains("connect-src 'self'"), "{policy}");
    assert_eq!(page.header("x-frame-options"), "SAMEORIGIN");
    assert_eq!(world.get("/").await.header("x-frame-options"), "DENY");
    world.stop().await;
}

#[actix_web::test]
async fn who_says_nothing_is_not_waited_for() {
    let world = World::start().await;
    let session = world.terminal().await;
    let ticket = world.ticket(&session, "operator").await;
    let mut silent = world.open(&session, &format!("?ticket={ticket}"), &[]).await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(20), silent.is_closed()).await.unwrap();
    assert_eq!(closed.0, 4401);
    world.stop().await;
}
