//! What the real Codex asks a person, and what becomes of it.

mod common;

use common::place::{Place, on_each_host};
use common::{answers, conversation, service};
use optio_testkit::{Client, LIMIT, MockModel, TestServer, client::Session};
use serde_json::{Value, json};

/// A session in which the agent waits to be allowed to write a file outside of its workdir.
async fn asking(server: &TestServer, model: &MockModel) -> (Client, Session, std::path::PathBuf, Value) {
    let client = server.client();
    let session = client.create(conversation(model)).await;
    session.wait_idle().await;
    let file = server.open_dir().join("outside.txt");
    let command = format!("echo hi > {}; echo ran", file.display());
    let call =
        json!({ "cmd": command, "sandbox_permissions": "require_escalated", "justification": "to show it" });
    session.turn(&format!("@call exec_command {call}")).await;
    let approval = session.pending_approval(LIMIT).await;
    (client, session, file, approval)
}

on_each_host!(a_command_that_needs_approval_waits_and_an_accepted_one_runs_once);
async fn a_command_that_needs_approval_waits_and_an_accepted_one_runs_once(place: Place) {
    let model = MockModel::start();
    let server = place.service().start().await;
    let (client, session, file, approval) = asking(&server, &model).await;
    let waiting = session.get().await;
    assert_eq!(waiting["state"], "waiting");
    assert_eq!(waiting["waiting"][0]["kind"], "approval");
    assert_eq!(waiting["waiting"][0]["id"], approval["id"]);
    assert!(approval["command"].as_str().is_some_and(|c| c.contains("outside.txt")), "{approval:#}");
    assert!(approval["cwd"].as_str().is_some_and(|c| c.ends_with("workdir")), "{approval:#}");
    assert!(!file.exists(), "nothing runs before the answer");

    let mut events = session.events(None).await;
    let id = approval["id"].as_str().expect("an approval has an id");
    assert_eq!(session.answer(id, "accept").await["state"], "accepted");
    events.until_named("turn.completed", LIMIT).await;
    assert_eq!(std::fs::read_to_string(&file).expect("the command ran"), "hi\n");
    let said = answers(&session).await;
    assert!(said.last().is_some_and(|text| text.contains("tool said")), "{said:?}");

    let second = client.request(reqwest::Method::POST, &session.path(&format!("/approvals/{id}")));
    let second = client.send(second.json(&json!({ "decision": "decline" }))).await;
    assert_eq!((second.status.as_u16(), second.problem().as_str()), (409, "conflict"));
    assert_eq!(session.approvals().await[0]["state"], "accepted", "the first answer stands");
}

#[actix::test]
async fn a_declined_command_does_not_run_and_the_turn_goes_on() {
    let model = MockModel::start();
    let server = service().start().await;
    let (_, session, file, approval) = asking(&server, &model).await;
    let mut events = session.events(None).await;
    session.answer(approval["id"].as_str().expect("an approval has an id"), "decline").await;
    let ended = events.until_named("turn.completed", LIMIT).await.pop().expect("until gives it");
    assert_eq!(ended.data["codex"]["turn"]["status"], "completed");
    assert!(!file.exists());
    session.wait_idle().await;
}

#[actix::test]
async fn an_interrupt_withdraws_what_was_asked() {
    let model = MockModel::start();
    let server = service().start().await;
    let (_, session, file, _) = asking(&server, &model).await;
    session.interrupt().await;
    session.wait_idle().await;
    assert_eq!(session.approvals().await[0]["state"], "cancelled");
    assert!(!file.exists());
}

on_each_host!(a_stop_cancels_what_was_asked);
async fn a_stop_cancels_what_was_asked(place: Place) {
    let model = MockModel::start();
    let server = place.service().start().await;
    let (_, session, file, _) = asking(&server, &model).await;
    let ended = session.end(common::END).await;
    common::assert_ordered(&ended);
    assert_eq!(ended["waiting"], json!([]));
    assert_eq!(session.approvals().await[0]["state"], "cancelled");
    assert!(!file.exists());
}
