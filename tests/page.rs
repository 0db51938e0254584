//! A person at the page: a real browser, a real Codex, a mock model.

mod common;

use common::{END, answers, service};
use optio_testkit::{Browser, LIMIT, MockModel, ModelAuth, wait_until};
use serde_json::Value;

/// The mock model's settings as the form takes them: one `dotted.key = value` a line.
fn settings(model: &MockModel) -> String {
    let overrides = model.overrides(ModelAuth::Nothing);
    let lines = overrides.as_object().into_iter().flatten();
    lines.map(|(key, value)| format!("{key} = {value}\n")).collect()
}

#[actix::test]
async fn a_person_logs_in_talks_answers_an_approval_stops_and_resumes() {
    let model = MockModel::start();
    let server = service().start().await;
    let link = server.login_link().await;
    let browser = Browser::open(1280, 900).await;

    browser.go(&format!("{}/", server.url())).await;
    browser.sees("login link").await;
    browser.go(&link).await;
    browser.sees("New session").await;
    assert!(!browser.address().await.contains("ticket"), "the ticket does not stay in the address");

    browser.go(&format!("{}/#/new", server.url())).await;
    browser.fill("name", "first try").await;
    browser.click("Advanced").await;
    browser.fill("codex_config", &settings(&model)).await;
    browser.click("Create session").await;
    browser.sees("first try").await;
    wait_until("the page is at the session", LIMIT, || async { browser.address().await.contains("ses_") })
        .await;
    let id = browser.address().await.rsplit("/s/").next().unwrap_or_default().to_owned();
    let client = server.client();
    let session = client.session(&id);
    session.wait_idle().await;

    browser.fill("Message", "@say a streamed answer").await;
    browser.click("Send").await;
    browser.sees("a streamed answer").await;
    wait_until("the answer is the agent's", LIMIT, || async {
        answers(&session).await == ["a streamed answer"]
    })
    .await;

    let file = server.root().join("outside.txt");
    let command = format!("echo hi > {}", file.display());
    let call = serde_json::json!({ "cmd": command, "sandbox_permissions": "require_escalated" });
    browser.fill("Message", &format!("@call exec_command {call}")).await;
    browser.click("Send").await;
    browser.sees("Codex wants to run a command").await;
    assert!(!file.exists());
    browser.click("Accept").await;
    wait_until("the command has run", LIMIT, || async { file.exists() }).await;
    session.wait_idle().await;

    browser.click("Stop").await;
    browser.sees("save back").await;
    wait_until("the session has ended", END, || async { session.get().await["state"] == "ended" }).await;
    browser.click("Resume").await;
    wait_until("the session is there again", END, || async { session.get().await["state"] == "idle" }).await;
    browser.sees("a streamed answer").await;

    // What the browser reports of the page: a violated policy or a failed script would stand here.
    let failures = browser.run("return window.__failures ?? []").await;
    assert_eq!(failures, Value::Array(Vec::new()));
}
