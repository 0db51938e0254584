//! What the log says of a request, and what it must not.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::sync::{Arc, Mutex};

use common::{Reply, TOKEN, World};
use reqwest::Method;
use serde_json::json;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// The only test of its binary: the subscriber is the whole process's, because requests are served on other threads.
#[actix_web::test]
async fn the_log_has_every_request_and_no_secret_of_any() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
    subscriber.with_writer(move || writer.clone()).init();

    let world = World::start().await;
    let link = world.web.login_link(&world.base);
    let ticket = link.split_once("ticket=").unwrap().1.to_owned();
    let cookie = Reply::to(world.anonymous(Method::GET, &format!("/login?ticket={ticket}"))).await;
    let cookie = cookie.header("set-cookie").split(';').next().unwrap().to_owned();
    Reply::to(world.anonymous(Method::GET, &format!("/login?ticket={ticket}"))).await;
    Reply::to(world.anonymous(Method::GET, "/v1/hosts").header("cookie", &cookie)).await;
    Reply::to(world.request(Method::GET, "/v1/hosts").header("x-request-id", "named-1")).await;
    let auth = json!({ "OPENAI_API_KEY": "sk-s3cret", "auth_mode": "apikey" }).to_string();
    world.post("/v1/seeds", json!({ "auth_json": auth })).await;
    world.post("/v1/seeds", json!({ "auth_json": "s3cret" })).await;
    let env = json!({ "mode": "conversation", "instructions": "s3cret", "env": { "KEY": "s3cret" } });
    world.post("/v1/sessions", env).await;
    world.stop().await;

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    // The client is in the same process; its lines are not the service's.
    let ours: Vec<_> =
        log.lines().filter(|line| !line.contains("hyper") && !line.contains("reqwest")).collect();
    let of = |what: &str| ours.iter().filter(|line| line.contains("answered") && line.contains(what)).count();
    assert_eq!(of("path=\"/login\""), 2, "{log}");
    assert_eq!(of("named-1"), 1, "{log}");
    for secret in [ticket.as_str(), cookie.split_once('=').unwrap().1, TOKEN, "s3cret"] {
        let found: Vec<_> = ours.iter().filter(|line| line.contains(secret)).collect();
        assert!(found.is_empty(), "{secret} is in the log: {found:#?}");
    }
}
