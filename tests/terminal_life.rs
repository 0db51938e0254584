//! The life of a session on a terminal, with the real Codex in the real tmux.

mod common;

use std::time::Duration;

use common::place::{Place, on_each_host};
use common::terminal::{shows, sockets, terminal};
use common::{END, assert_ordered, files_beneath, import, service, step};
use jiff::SignedDuration;
use optio_testkit::{FakeOauth, LIMIT, MockModel, OauthMode, TestServer, procs, wait_until};
use reqwest::Method;
use serde_json::{Value, json};

/// Waits until codex has put the end of this many turns on record; the screen shows an answer before.
async fn turns_end(server: &TestServer, count: usize) {
    wait_until(format!("{count} turns are over"), LIMIT, || async {
        let files = files_beneath(&server.task_root()).into_iter();
        let rollouts = files.filter(|path| path.extension().is_some_and(|ending| ending == "jsonl"));
        let text: String = rollouts.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
        text.matches("\"task_complete\"").count() >= count
    })
    .await;
}

on_each_host!(a_terminal_is_typed_into_stopped_and_resumed_with_its_thread);
async fn a_terminal_is_typed_into_stopped_and_resumed_with_its_thread(place: Place) {
    let model = MockModel::start();
    let server = place.service().start().await;
    let session = server.client().create(terminal(&model)).await;
    let live = session.wait_state("working", LIMIT).await;
    assert_eq!(live["mode"], "terminal");
    let delivered = session.turn("@say the first answer").await;
    assert_eq!(delivered["delivered_as"], "typed", "{delivered:#}");
    shows(&server, "• the first answer").await;
    let long: String = (0..300).map(|n| format!("line {n} of a long message\n")).collect();
    session.turn(&format!("@say the second answer\n{long}")).await;
    shows(&server, "• the second answer").await;
    turns_end(&server, 2).await;
    assert!(model.turns().pop().expect("it was asked").user_text().contains("line 299 of a long message"));

    session.stop("graceful").await;
    let ended = session.end(END).await;
    assert_eq!((&ended["outcome"], &ended["has_snapshot"]), (&json!("stopped"), &json!(true)), "{ended:#}");
    assert_ordered(&ended);
    assert_eq!(step(&ended, "stop_agent")["state"], "done", "{ended:#}");
    let thread = ended["run"]["thread_id"].as_str().expect("its thread is on record").to_owned();
    assert!(server.agents().is_empty(), "{:?}", server.agents());
    assert!(sockets(&server).is_empty(), "{:?}", sockets(&server));
    assert!(files_beneath(&server.task_root()).is_empty());

    session.resume().await;
    session.wait_state("working", LIMIT).await;
    shows(&server, "• the second answer").await;
    wait_until("the resumed agent was told so", LIMIT, || async {
        model.turns().last().is_some_and(|turn| turn.user_text() == "System: you have been resumed")
    })
    .await;
    session.stop("cancel").await;
    let ended = session.end(END).await;
    assert_eq!(ended["run"]["thread_id"], json!(thread), "{ended:#}");
}

on_each_host!(a_service_that_was_killed_finds_its_terminal_with_its_screen_and_its_lease);
async fn a_service_that_was_killed_finds_its_terminal_with_its_screen_and_its_lease(place: Place) {
    let model = MockModel::start();
    let oauth = FakeOauth::start();
    let server = place.service().env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", oauth.url()).start().await;
    let client = server.client();
    let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;
    let wanted = json!({ "mode": "terminal", "instructions": "", "seed": { "id": seed } });
    let session = client.create(wanted).await;
    let before = session.wait_state("working", LIMIT).await;
    session.turn("@say remembered by the screen").await;
    shows(&server, "• remembered by the screen").await;
    turns_end(&server, 1).await;
    session.turn(&format!("@slow 0.2 {}", "tick ".repeat(20))).await;
    shows(&server, "tick tick").await;

    server.kill_9();
    server.restart().await;
    let session = server.client().session(&session.id);
    let after = session.wait_state("working", LIMIT).await;
    assert_eq!(after["run"]["agent"]["pid"], before["run"]["agent"]["pid"], "{after:#}");
    assert_eq!(after["run"]["lease"]["holder"], before["run"]["lease"]["holder"]);
    assert!(after["run"]["lease"]["expires_at"].as_str() > before["run"]["lease"]["expires_at"].as_str());
    shows(&server, "• remembered by the screen").await;
    shows(&server, "tick ".repeat(20).trim()).await;
    turns_end(&server, 2).await;
    session.turn("@say and it goes on").await;
    shows(&server, "• and it goes on").await;
    turns_end(&server, 3).await;

    session.stop("graceful").await;
    let ended = session.end(END).await;
    assert_ordered(&ended);
    assert_eq!(ended["outcome"], "stopped", "{ended:#}");
    assert_eq!(server.client().seed(&seed).await["lease"], Value::Null);
    assert!(server.agents().is_empty());
}

on_each_host!(a_login_that_codex_refreshes_as_it_is_stopped_comes_home);
async fn a_login_that_codex_refreshes_as_it_is_stopped_comes_home(place: Place) {
    let model = MockModel::start();
    let oauth = FakeOauth::start();
    let server = place.service().env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", oauth.url()).start().await;
    let client = server.client();
    // Due from the start: codex refreshes it before it draws its first screen.
    let login = oauth.login("acct-1").access_expires_in(SignedDuration::from_secs(60));
    let seed = import(&client, &model, &login.auth_json()).await;
    let wanted = || json!({ "mode": "terminal", "instructions": "", "seed": { "id": seed } });
    oauth.mode(OauthMode::Slow(Duration::from_millis(900)));
    let session = client.create(wanted()).await;
    // Stopped while the provider has spent the token and its answer is on its way.
    oauth.wait_for_grants(1).await;
    session.stop("graceful").await;
    let ended = session.end(END).await;
    assert_eq!(step(&ended, "release_lease")["state"], "done", "{ended:#}");

    oauth.mode(OauthMode::Ok);
    let next = client.create(wanted()).await;
    next.wait_state("working", LIMIT).await;
    next.turn("@say logged in").await;
    shows(&server, "• logged in").await;
    next.stop("graceful").await;
    next.end(END).await;
    assert_eq!((oauth.grants().len(), oauth.reuses()), (1, Vec::new()));
}

#[actix::test]
async fn the_end_of_one_terminal_is_nothing_to_another() {
    let model = MockModel::start();
    let server = service().start().await;
    let client = server.client();
    let (first, second) = (client.create(terminal(&model)).await, client.create(terminal(&model)).await);
    let pid = |session: &Value| session["run"]["agent"]["pid"].as_i64().expect("a pid") as i32;
    let one = pid(&first.wait_state("working", LIMIT).await);
    let other = pid(&second.wait_state("working", LIMIT).await);
    first.stop("cancel").await;
    first.end(END).await;
    assert!(procs::Proc::find(one).is_none() && procs::Proc::find(other).is_some());
    assert_eq!(sockets(&server).len(), 1);
    second.turn("@say still here").await;
    shows(&server, "• still here").await;
    second.stop("cancel").await;
    second.end(END).await;
}

#[actix::test]
async fn what_a_terminal_cannot_do_is_refused_by_name() {
    let model = MockModel::start();
    let server = service().start().await;
    let session = server.client().create(terminal(&model)).await;
    session.wait_state("working", LIMIT).await;
    let client = server.client();
    let turn = client.request(Method::POST, &session.path("/turns"));
    let refused = client.send(turn.json(&json!({ "text": "hello", "mode": "queue" }))).await;
    assert_eq!(refused.json()["errors"][0]["field"], "mode", "{}", refused.text());
    session.stop("cancel").await;
    session.end(END).await;
}

#[actix::test]
async fn a_codex_that_does_not_come_up_or_is_quit_says_how_it_ended() {
    let model = MockModel::start();
    let server = service().start().await;
    let mut broken = terminal(&model);
    broken["codex_config"] = json!({ "model_provider": "nowhere" });
    let session = server.client().create(broken).await;
    let ended = session.wait_state("ended", LIMIT).await;
    let reason = ended["reason"].as_str().expect("a reason");
    assert_eq!(ended["outcome"], "failed", "{ended:#}");
    assert!(reason.contains("`nowhere` not found"), "{reason}");

    // Quit by a person, it is done.
    let session = server.client().create(terminal(&model)).await;
    session.wait_state("working", LIMIT).await;
    session.turn("/quit").await;
    let ended = session.wait_state("ended", LIMIT).await;
    assert_eq!(ended["outcome"], "done", "{ended:#}");
    assert_eq!(ended["has_snapshot"], true, "{ended:#}");
}
