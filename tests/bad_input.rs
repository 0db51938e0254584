//! What people and agents send that cannot be meant: a clear error each, and nobody else notices.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::{END, answers, assert_ordered, conversation, service};
use optio_testkit::{Client, LIMIT, MockModel, TestServer};
use reqwest::Method;
use serde_json::{Value, json};

async fn create(client: &Client, body: &Value) -> (u16, String, String) {
    let reply = client.send(client.request(Method::POST, "/v1/sessions").json(body)).await;
    (reply.status.as_u16(), reply.problem(), reply.text())
}

#[actix::test]
async fn a_wrong_request_is_refused_by_name_and_makes_no_session() {
    let model = MockModel::start();
    let server = service().start().await;
    let client = server.client();

    let mut body = conversation(&model);
    body["permision_gate"] = json!(true);
    let (status, code, text) = create(&client, &body).await;
    assert_eq!((status, code.as_str()), (422, "validation"));
    assert!(text.contains("permision_gate"), "{text}");

    let mut body = conversation(&model);
    body["mode"] = json!("telepathy");
    let (status, code, text) = create(&client, &body).await;
    assert_eq!((status, code.as_str()), (422, "validation"));
    assert!(text.contains("\"field\":\"mode\"") && text.contains("conversation"), "{text}");

    let mut body = conversation(&model);
    body["instructions"] = json!("x".repeat(2 << 20));
    let (status, code, _) = create(&client, &body).await;
    assert_eq!((status, code.as_str()), (413, "payload_too_large"));

    for id in ["nonsense", "..", "ses_00000000000000000000000000"] {
        let reply = client.send(client.request(Method::GET, &format!("/v1/sessions/{id}/messages"))).await;
        assert_eq!((reply.status.as_u16(), reply.problem().as_str()), (404, "not_found"), "{id}");
    }

    let strangers = client.anonymous();
    let reply = strangers.send(strangers.request(Method::GET, "/v1/sessions")).await;
    assert_eq!((reply.status.as_u16(), reply.problem().as_str()), (401, "unauthenticated"));
    let rebound = client.request(Method::GET, "/v1/sessions").header("host", "evil.test");
    let reply = client.send(rebound).await;
    assert_eq!((reply.status.as_u16(), reply.problem().as_str()), (421, "bad_host"));

    assert_eq!(client.sessions("").await, Vec::<Value>::new());
}

/// A program that calls itself codex and, as an app-server, does what `script` says. Everything else of it is real.
async fn with_agent(script: &str) -> (TestServer, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("the temp directory is writable");
    let program: PathBuf = dir.path().join("codex");
    let text = format!(
        "#!/usr/bin/env python3\nimport sys, time\n\
         if '--version' in sys.argv: print('codex-cli 0.1.0'); sys.exit()\n\
         if '--help' in sys.argv: print('no listening here'); sys.exit()\n{script}\n"
    );
    std::fs::write(&program, text).expect("a new file can be written");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755))
        .expect("a file of ours can be changed");
    (service().codex(program).start().await, dir)
}

#[actix::test]
async fn a_launcher_that_is_no_codex_is_refused_with_what_would_be_right() {
    let model = MockModel::start();
    let (server, _dir) = with_agent("time.sleep(600)").await;
    let client = server.client();
    let session = client.create(conversation(&model)).await;
    session.events(None).await.until_named("session.ended", END).await;
    let ended = session.get().await;
    assert_eq!(ended["outcome"], "failed");
    assert!(ended["reason"].as_str().is_some_and(|reason| reason.contains("codex")), "{ended:#}");
    assert_ordered(&ended);
}

#[actix::test]
async fn a_model_that_breaks_off_ends_the_turn_and_not_the_session() {
    let model = MockModel::start();
    let server = service().start().await;
    let client = server.client();
    let session = client.create(conversation(&model)).await;
    session.wait_idle().await;
    let mut events = session.events(None).await;
    for broken in ["@drop one two three four", "@http 500"] {
        session.turn(broken).await;
        let ended = events.until_named("turn.completed", LIMIT).await.pop().expect("until gives it");
        assert_eq!(ended.data["codex"]["turn"]["status"], "failed", "{broken}");
    }
    session.turn("@say still here").await;
    events.until_named("turn.completed", LIMIT).await;
    assert_eq!(answers(&session).await.last().map(String::as_str), Some("still here"));
}
