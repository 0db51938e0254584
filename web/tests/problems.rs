//! Whatever goes wrong is a problem with a code, and names what was wrong.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Reply, World};
use reqwest::Method;
use serde_json::{Value, json};

fn conversation(more: Value) -> Value {
    let mut body = json!({ "mode": "conversation", "instructions": "x" });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[actix_web::test]
async fn what_is_not_there_is_not_found() {
    let world = World::start().await;
    let absent = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV";
    let ids = [absent, "x", "-rf", "ses_%0A", "ses_..%2F..%2Fetc", "%00", "%ff"];
    for id in ids {
        for rest in ["", "/events", "/approvals", "/messages", "/actors", "/snapshots"] {
            let path = format!("/v1/sessions/{id}{rest}");
            assert_eq!(world.get(&path).await.problem(), (404, "not_found".to_owned()), "{path}");
        }
    }
    for (path, body) in [
        (format!("/v1/sessions/{absent}/stop"), json!({})),
        (format!("/v1/sessions/{absent}/resume"), json!({})),
        (format!("/v1/sessions/{absent}/turns"), json!({ "text": "x" })),
        (format!("/v1/sessions/{absent}/interrupt"), json!({})),
        ("/v1/seeds/0123456789abcdef01234567/assign".to_owned(), json!({ "pool": "x" })),
        ("/v1/seeds/0123456789abcdef01234567/status".to_owned(), json!({ "status": "dead" })),
    ] {
        assert_eq!(world.post(&path, body).await.problem(), (404, "not_found".to_owned()), "{path}");
    }
    let seed = Reply::to(world.request(Method::DELETE, "/v1/seeds/0123456789abcdef01234567")).await;
    assert_eq!(seed.problem(), (404, "not_found".to_owned()));
    for path in ["/nothing", "/v1/nothing", "/v1/sessions/", "/assets/../Cargo.toml", "/assets/%2e%2e/x"] {
        assert_eq!(world.get(path).await.problem(), (404, "not_found".to_owned()), "{path}");
    }
    // Clients tidy such paths up before they send them.
    for path in [
        "/v1/sessions/..",
        "/v1/sessions/../events",
        "/v1/sessions/%2e%2e/events",
        "/v1/./sessions",
        "//v1/sessions",
    ] {
        assert_eq!(
            world.raw(&format!("GET {path} HTTP/1.1\r\nHost: {}", world.authority())).await,
            404,
            "{path}"
        );
    }
    world.stop().await;
}

#[actix_web::test]
async fn another_method_is_refused_with_those_there_are() {
    let world = World::start().await;
    for (method, path, allowed) in [
        (Method::PUT, "/v1/sessions", "GET, POST"),
        (Method::GET, "/v1/sessions/x/stop", "POST"),
        (Method::POST, "/v1/sessions/x/events", "GET"),
        (Method::DELETE, "/healthz", "GET, HEAD"),
        (Method::POST, "/readyz", "GET, HEAD"),
        (Method::POST, "/login", "GET"),
    ] {
        let reply = Reply::to(world.request(method.clone(), path)).await;
        assert_eq!(reply.problem(), (405, "method_not_allowed".to_owned()), "{method} {path}");
        assert_eq!(reply.header("allow"), allowed, "{method} {path}");
    }
    world.stop().await;
}

#[actix_web::test]
async fn a_body_that_is_no_json_object_is_refused() {
    let world = World::start().await;
    for body in ["{", "[]", "7", "null", "{\"a\":1}{}", "\u{0}"] {
        let request = world.request(Method::POST, "/v1/sessions").header("content-type", "application/json");
        assert_eq!(Reply::to(request.body(body)).await.problem(), (400, "bad_json".to_owned()), "{body:?}");
    }
    let deep = "[".repeat(200_000);
    let request =
        world.request(Method::POST, "/v1/seeds").header("content-type", "application/json; charset=utf-8");
    let deep = Reply::to(request.body(format!("{{\"a\":{deep}"))).await;
    assert_eq!(deep.problem(), (400, "bad_json".to_owned()));
    world.stop().await;
}

#[actix_web::test]
async fn a_body_over_its_routes_limit_is_refused() {
    let world = World::start().await;
    for (path, limit) in
        [("/v1/sessions", 1 << 20), ("/v1/sessions/x/turns", 1 << 20), ("/v1/seeds", 2 << 20)]
    {
        let text = "x".repeat(limit);
        let declared = world.request(Method::POST, path).json(&json!({ "text": text }));
        assert_eq!(Reply::to(declared).await.problem(), (413, "payload_too_large".to_owned()), "{path}");
        let pieces = (0..=limit >> 16).map(|_| Ok::<_, std::io::Error>("x".repeat(1 << 16)));
        let streamed = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
        let streamed =
            world.request(Method::POST, path).header("content-type", "application/json").body(streamed);
        assert_eq!(Reply::to(streamed).await.problem(), (413, "payload_too_large".to_owned()), "{path}");
    }
    world.stop().await;
}

#[actix_web::test]
async fn a_field_that_is_wrong_or_unknown_is_named() {
    let world = World::start().await;
    let session = world.session().await;
    let on = |rest: &str| format!("/v1/sessions/{session}{rest}");
    for (path, body, field) in [
        ("/v1/sessions".to_owned(), json!({}), "mode"),
        ("/v1/sessions".to_owned(), conversation(json!({ "modle": "o3" })), "modle"),
        ("/v1/sessions".to_owned(), conversation(json!({ "mode": "chat" })), "mode"),
        ("/v1/sessions".to_owned(), conversation(json!({ "name": 7 })), "name"),
        ("/v1/sessions".to_owned(), conversation(json!({ "name": "" })), "name"),
        ("/v1/sessions".to_owned(), conversation(json!({ "labels": ["a"] })), "labels"),
        ("/v1/sessions".to_owned(), conversation(json!({ "host": "elsewhere" })), "host"),
        ("/v1/sessions".to_owned(), conversation(json!({ "host": { "ssh": {} } })), "host.ssh.host"),
        (on("/stop"), json!({ "mode": "gently" }), "mode"),
        (on("/stop"), json!({ "force": true }), "force"),
        (on("/resume"), json!({ "snapshot": "newest" }), "snapshot"),
        (on("/turns"), json!({}), "text"),
        (on("/turns"), json!({ "text": " " }), "text"),
        (on("/turns"), json!({ "text": "a", "input": [] }), "input"),
        (on("/turns"), json!({ "input": [] }), "input"),
        (on("/turns"), json!({ "input": [{ "text": "a" }] }), "input"),
        (on("/turns"), json!({ "text": "a", "mode": "now" }), "mode"),
        (on("/interrupt"), json!({ "why": "x" }), "why"),
        (on("/approvals/apr_01ARZ3NDEKTSV4RRFFQ69G5FAV"), json!({}), "decision"),
        (on("/approvals/apr_01ARZ3NDEKTSV4RRFFQ69G5FAV"), json!({ "decision": "yes" }), "decision"),
        ("/v1/seeds".to_owned(), json!({}), "auth_json"),
        ("/v1/seeds".to_owned(), json!({ "auth_json": "{}" }), "auth_json"),
        ("/v1/seeds".to_owned(), json!({ "auth_json": {} }), "auth_json"),
        ("/v1/seeds".to_owned(), json!({ "auth_json": "{}", "token": "x" }), "token"),
        ("/v1/seeds/0123456789abcdef01234567/status".to_owned(), json!({ "status": "fine" }), "status"),
        ("/v1/login-links".to_owned(), json!({ "for": "x" }), "for"),
    ] {
        let reply = world.post(&path, body.clone()).await;
        assert_eq!(reply.wrong_fields(), [field], "{path} {body}");
    }
    let two = world.post(&on("/stop"), json!({ "a": 1, "b": 2 })).await;
    assert_eq!(two.wrong_fields(), ["a", "b"]);
    for (change, field) in [
        (json!({ "state": "idle" }), "state"),
        (json!({ "effort": "utmost" }), "effort"),
        (json!({ "model": "" }), "model"),
        (json!({ "name": "a\nb" }), "name"),
    ] {
        let patch = world.request(Method::PATCH, &on("")).json(&change);
        assert_eq!(Reply::to(patch).await.wrong_fields(), [field], "{change}");
    }
    world.stop().await;
}

#[actix_web::test]
async fn a_parameter_that_is_wrong_or_unknown_is_named() {
    let world = World::start().await;
    for (path, parameter) in [
        ("/v1/sessions?limit=0", "limit"),
        ("/v1/sessions?limit=501", "limit"),
        ("/v1/sessions?limit=ten", "limit"),
        ("/v1/sessions?limit=1&limit=2", "limit"),
        ("/v1/sessions?cursor=x", "cursor"),
        ("/v1/sessions?state=idle,asleep", "state"),
        ("/v1/sessions?seed=x", "seed"),
        ("/v1/sessions?sort=name", "sort"),
        ("/v1/hosts?cursor=nowhere", "cursor"),
        ("/v1/events?after=-1", "after"),
        ("/v1/events?wait=61", "wait"),
        ("/v1/events?wiat=5", "wiat"),
    ] {
        assert_eq!(world.get(path).await.wrong_fields(), [parameter], "{path}");
    }
    for key in ["two words", &"k".repeat(256), "grün"] {
        let request = world.request(Method::POST, "/v1/sessions").header("idempotency-key", key.as_bytes());
        let reply = Reply::to(request.json(&conversation(json!({})))).await;
        assert_eq!(reply.wrong_fields(), ["Idempotency-Key"], "{key}");
    }
    let event = world.request(Method::GET, "/v1/events").header("last-event-id", "x");
    assert_eq!(Reply::to(event).await.wrong_fields(), ["Last-Event-ID"]);
    world.stop().await;
}

#[actix_web::test]
async fn no_secret_of_a_request_comes_back_in_its_refusal() {
    let world = World::start().await;
    for body in [
        json!({ "auth_json": "{\"tokens\":{\"refresh_token\":\"s3cret\"}" }),
        json!({ "auth_json": { "tokens": { "refresh_token": "s3cret" } } }),
        json!({ "auth_json": "s3cret" }),
    ] {
        let reply = world.post("/v1/seeds", body).await;
        reply.wrong_fields();
        assert!(!reply.text.contains("s3cret"), "{}", reply.text);
    }
    let env = conversation(json!({ "env": { "A": ["s3cret"] } }));
    let reply = world.post("/v1/sessions", env).await;
    assert!(reply.wrong_fields()[0].starts_with("env"));
    assert!(!reply.text.contains("s3cret"), "{}", reply.text);
    world.stop().await;
}
