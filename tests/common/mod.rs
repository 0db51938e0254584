//! How the stories of this directory begin: a service, a model, a session.

#![allow(dead_code, unused_imports, unused_macros)] // Each story uses its part.

pub(crate) mod place;
pub(crate) mod terminal;

use std::path::{Path, PathBuf};
use std::time::Duration;

use optio_testkit::{LIMIT, MockModel, ModelAuth, ServerSetup, TestServer, client, wait_until};
use serde_json::{Value, json};

/// The service under test, not started yet.
pub(crate) fn service() -> ServerSetup {
    TestServer::of(env!("CARGO_BIN_EXE_optio-codex"))
}

/// A conversation that talks to the mock model and may do nothing outside its workdir without asking.
pub(crate) fn conversation(model: &MockModel) -> Value {
    json!({
        "mode": "conversation",
        "instructions": "Answer what you are asked.",
        "permission_gate": true,
        "codex_config": model.overrides(ModelAuth::Nothing),
    })
}

/// The same with the login of a seed. Its provider stands in the seed's own `config.toml`.
pub(crate) fn seeded(seed: &str) -> Value {
    json!({
        "mode": "conversation",
        "instructions": "Answer what you are asked.",
        "permission_gate": true,
        "seed": { "id": seed },
    })
}

/// Imports a login and answers its seed's id.
pub(crate) async fn import(client: &client::Client, model: &MockModel, auth_json: &[u8]) -> String {
    client.import_seed("team", auth_json, &model.config(ModelAuth::ChatGpt)).await
}

/// The text of each assistant message, oldest first.
pub(crate) async fn answers(session: &client::Session) -> Vec<String> {
    let said = session.messages().await.into_iter().rev();
    said.filter(|m| m["kind"] == "assistant")
        .map(|m| m["text"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Says something to a session that was just taken up: its agent is asked again until it is attached.
pub(crate) async fn says(session: &client::Session, text: &str) {
    wait_until("the agent is attached", LIMIT, || async {
        let turn = session.client().request(reqwest::Method::POST, &session.path("/turns"));
        let reply = session.client().send(turn.json(&json!({ "text": text }))).await;
        // Nothing was said to anybody: it may be said again.
        let attached = !(reply.status == 502 && reply.text().contains("not attached"));
        assert!(!attached || reply.status.is_success(), "{} {}", reply.status, reply.text());
        attached
    })
    .await;
}

/// The steps of a session's teardown as (name, state).
pub(crate) fn steps(session: &Value) -> Vec<(String, String)> {
    let steps = session["teardown"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    steps.iter().map(|step| (text(&step["step"]), text(&step["state"]))).collect()
}

/// The state of one teardown step.
pub(crate) fn step<'a>(session: &'a Value, name: &str) -> &'a Value {
    let steps = session["teardown"].as_array().into_iter().flatten();
    steps.into_iter().find(|step| step["step"] == name).unwrap_or(&Value::Null)
}

/// The order that every teardown has.
pub(crate) const ORDER: [&str; 9] = [
    "close",
    "stop_agent",
    "quiet_watcher",
    "save_back",
    "release_lease",
    "capture_seed",
    "capture_snapshot",
    "wipe",
    "disconnect",
];

/// Asserts that the whole teardown ran, each step after the one before it.
pub(crate) fn assert_ordered(session: &Value) {
    let names: Vec<_> = steps(session).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ORDER, "{session:#}");
    let mut before = String::new();
    for step in session["teardown"].as_array().into_iter().flatten() {
        let (began, ended) = (step["started_at"].as_str(), step["ended_at"].as_str());
        let (Some(began), Some(ended)) = (began, ended) else { panic!("a step has no times: {step:#}") };
        assert!(before.as_str() <= began && began <= ended, "{step:#} after {before}");
        before = ended.to_owned();
    }
}

/// Every regular file below a directory; none when it is not there.
pub(crate) fn files_beneath(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths.flat_map(|path| if path.is_dir() { files_beneath(&path) } else { vec![path] }).collect()
}

/// Long enough for a teardown with every patience it has, on a busy machine.
pub(crate) const END: Duration = Duration::from_secs(60);
