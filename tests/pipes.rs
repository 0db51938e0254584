//! The transport for a Codex that cannot listen: the real one on the service's own pipes (`"transport": "stdio"`).

mod common;

use common::{END, answers, assert_ordered, conversation, import, seeded, service, step};
use jiff::SignedDuration;
use optio_testkit::{FakeOauth, LIMIT, MockModel, wait_until};
use serde_json::json;

#[actix::test]
async fn a_conversation_over_pipes_asks_works_stops_and_is_resumed() {
    let model = MockModel::start();
    let oauth = FakeOauth::start();
    let server = service().start().await;
    let client = server.client();
    let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;
    let mut wanted = seeded(&seed);
    wanted["transport"] = json!("stdio");
    let session = client.create(wanted).await;
    session.wait_idle().await;
    let mut events = session.events(None).await;

    session.turn("@say over pipes").await;
    events.until_named("turn.completed", LIMIT).await;
    assert_eq!(answers(&session).await, ["over pipes"]);

    let call = json!({ "cmd": "echo hi > asked.txt", "sandbox_permissions": "require_escalated" });
    session.turn(&format!("@call exec_command {call}")).await;
    let asked = session.pending_approval(LIMIT).await;
    session.answer(asked["id"].as_str().expect("an approval has an id"), "accept").await;
    events.until_named("turn.completed", LIMIT).await;
    let file = server.task_root().join(&session.id).join("workdir/asked.txt");
    assert_eq!(std::fs::read_to_string(file).expect("the command ran"), "hi\n");

    session.turn("@hold this is never finished").await;
    model.wait_until_held(1).await;
    let ended = session.end(END).await;
    assert_ordered(&ended);
    for name in ["stop_agent", "save_back", "release_lease", "capture_snapshot", "wipe"] {
        assert_eq!(step(&ended, name)["state"], "done", "{ended:#}");
    }
    assert!(server.agents().is_empty(), "{:?}", server.agents());
    model.release();

    session.resume().await;
    events.until_named("session.ended", END).await;
    let resumed = session.wait_idle().await;
    assert_eq!(resumed["run"]["thread_id"], ended["run"]["thread_id"], "the same conversation");
    session.turn("@say again").await;
    events.until(|event| event.data.to_string().contains("again"), LIMIT).await;
    session.end(END).await;
}

#[actix::test]
async fn a_login_that_rotates_over_pipes_is_home_before_the_release() {
    let model = MockModel::start();
    let oauth = FakeOauth::start();
    let server = service().env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", oauth.url()).start().await;
    let client = server.client();
    // So close to its end that codex refreshes it as soon as it starts (LAB §3).
    let login = oauth.login("acct-1").access_expires_in(SignedDuration::from_mins(4));
    let seed = import(&client, &model, &login.auth_json()).await;
    let mut wanted = seeded(&seed);
    wanted["transport"] = json!("stdio");
    let session = client.create(wanted).await;
    session.wait_idle().await;
    let mut events = session.events(None).await;
    events.until_named("seed.saved", LIMIT).await;
    session.end(END).await;
    assert!(client.seed(&seed).await["lease"].is_null());

    // The next session plants what was saved, and the provider sees no token twice.
    let next = client.create(seeded(&seed)).await;
    next.wait_idle().await;
    next.end(END).await;
    assert_eq!(oauth.reuses(), Vec::<String>::new());
}

#[actix::test]
async fn an_agent_on_pipes_ends_with_a_killed_service_and_its_session_is_resumed_after() {
    let model = MockModel::start();
    let server = service().start().await;
    let client = server.client();
    let mut wanted = conversation(&model);
    wanted["transport"] = json!("stdio");
    let session = client.create(wanted).await;
    session.wait_idle().await;
    let mut events = session.events(None).await;
    session.turn("@say before").await;
    events.until_named("turn.completed", LIMIT).await;
    session.wait_idle().await;

    server.kill_9();
    wait_until("the agent has read the end of its input", LIMIT, || async {
        server.agents().is_empty().then_some(())
    })
    .await;
    server.restart().await;
    session.events(None).await.until_named("session.ended", END).await;
    let ended = session.get().await;
    assert_ordered(&ended);
    assert_eq!((&ended["outcome"], &ended["has_snapshot"]), (&json!("failed"), &json!(true)), "{ended:#}");
    session.resume().await;
    session.wait_idle().await;
    let said = answers(&session).await;
    assert!(said.contains(&"before".to_owned()), "{said:?}");
}

#[actix::test]
async fn a_leaving_service_stops_an_agent_that_cannot_outlive_it_in_order() {
    let model = MockModel::start();
    let server = service().start().await;
    let client = server.client();
    let mut wanted = conversation(&model);
    wanted["transport"] = json!("stdio");
    let session = client.create(wanted).await;
    session.wait_idle().await;
    assert_eq!(server.term().await, 0);
    assert!(server.agents().is_empty(), "{:?}", server.agents());
    server.restart().await;
    let ended = session.get().await;
    assert_ordered(&ended);
    assert_eq!((&ended["state"], &ended["outcome"]), (&json!("ended"), &json!("stopped")), "{ended:#}");
}
