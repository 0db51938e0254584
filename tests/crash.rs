//! `kill -9`, of the service and of the agent, with everything else real.

mod common;

use std::time::{Duration, Instant};

use common::place::{Place, on_each_host};
use common::{END, answers, assert_ordered, conversation, import, seeded, step};
use optio_testkit::{FakeOauth, LIMIT, MockModel, auth, procs, wait_until};
use serde_json::json;

on_each_host!(a_turn_survives_the_service_and_its_answer_is_whole);
async fn a_turn_survives_the_service_and_its_answer_is_whole(place: Place) {
    let model = MockModel::start();
    let oauth = FakeOauth::start();
    let server = place.service().start().await;
    let client = server.client();
    let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;
    let session = client.create(seeded(&seed)).await;
    session.wait_idle().await;
    session.turn("@hold one two three four five").await;
    model.wait_until_held(1).await;
    let before = session.get().await;
    server.kill_9();
    server.restart().await;

    let adopted = session.wait_state("working", LIMIT).await;
    assert_eq!(adopted["run"]["id"], before["run"]["id"], "the same run");
    assert_eq!(adopted["run"]["agent"]["pid"], before["run"]["agent"]["pid"], "the same agent");
    assert_eq!(adopted["run"]["lease"]["holder"], before["run"]["lease"]["holder"], "the same lease");
    let mut events = session.events(before["last_event"].as_u64()).await;
    events.until_named("session.adopted", LIMIT).await;
    model.release();
    events.until_named("turn.completed", LIMIT).await;
    session.wait_idle().await;
    assert_eq!(answers(&session).await, ["one two three four five"]);
    session.turn("@say and on").await;
    events.until_named("turn.completed", LIMIT).await;
    session.wait_idle().await;
    assert_eq!(answers(&session).await.last().map(String::as_str), Some("and on"));
}

on_each_host!(a_turn_that_ended_while_the_service_was_away_has_its_whole_answer);
async fn a_turn_that_ended_while_the_service_was_away_has_its_whole_answer(place: Place) {
    let model = MockModel::start();
    let server = place.service().start().await;
    let client = server.client();
    let session = client.create(conversation(&model)).await;
    session.wait_idle().await;
    session.turn("@hold one two three four five").await;
    model.wait_until_held(1).await;
    server.kill_9();
    model.release();
    let rollouts = server.task_root().join(&session.id).join("workdir/home/.codex/sessions");
    wait_until("the turn is over without the service", LIMIT, || async {
        common::files_beneath(&rollouts)
            .iter()
            .any(|f| std::fs::read_to_string(f).is_ok_and(|text| text.contains("task_complete")))
    })
    .await;
    server.restart().await;
    session.wait_idle().await;
    wait_until("the answer is healed", LIMIT, || async {
        answers(&session).await == ["one two three four five"]
    })
    .await;
}

on_each_host!(a_pending_approval_is_asked_again_and_can_be_answered);
async fn a_pending_approval_is_asked_again_and_can_be_answered(place: Place) {
    let model = MockModel::start();
    let server = place.service().start().await;
    let client = server.client();
    let session = client.create(conversation(&model)).await;
    session.wait_idle().await;
    let file = server.open_dir().join("outside.txt");
    let call =
        json!({ "cmd": format!("echo hi > {}", file.display()), "sandbox_permissions": "require_escalated" });
    session.turn(&format!("@call exec_command {call}")).await;
    let asked = session.pending_approval(LIMIT).await;
    server.kill_9();
    server.restart().await;

    session.wait_state("waiting", LIMIT).await;
    let again = session.pending_approval(LIMIT).await;
    assert_eq!(again["id"], asked["id"], "it is the same question");
    let mut events = session.events(session.get().await["last_event"].as_u64()).await;
    session.answer(asked["id"].as_str().expect("an approval has an id"), "accept").await;
    events.until_named("turn.completed", LIMIT).await;
    assert_eq!(std::fs::read_to_string(&file).expect("the command ran"), "hi\n");
    assert_eq!(session.approvals().await.len(), 1);
}

/// Each teardown step, with the actor and the place at which it can be made to stand still.
const STANDSTILLS: [(&str, &str, &str); 9] = [
    ("close", "conversation_reader", "close"),
    ("stop_agent", "process", "stop_agent"),
    ("quiet_watcher", "cred_watcher", "quiet_watcher"),
    ("save_back", "cred_watcher", "save_back"),
    ("release_lease", "lease_renewer", "release"),
    ("capture_seed", "snapshotter", "capture_seed"),
    ("capture_snapshot", "snapshotter", "capture_snapshot"),
    ("wipe", "host_link", "wipe"),
    ("disconnect", "host_link", "disconnect"),
];

on_each_host!(a_teardown_goes_on_where_the_killed_service_left_it_at_every_step);
async fn a_teardown_goes_on_where_the_killed_service_left_it_at_every_step(place: Place) {
    let model = MockModel::start();
    let oauth = FakeOauth::start();
    let setup =
        place.service().args(["--enable-faults"]).env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", oauth.url());
    let server = setup.start().await;
    for (name, actor, place) in STANDSTILLS {
        let client = server.client();
        let login = oauth.login(&format!("acct-{name}"));
        let seed = import(&client, &model, &login.auth_json()).await;
        let session = client.create(seeded(&seed)).await;
        session.wait_idle().await;
        let mut events = session.events(None).await;
        session.turn("@call exec_command {\"cmd\":\"echo work > kept.txt\"}").await;
        events.until_named("turn.completed", LIMIT).await;
        session.fault(actor, place, "hang").await;
        session.stop("graceful").await;
        let running = |e: &optio_testkit::Event| {
            e.name == "teardown.step"
                && e.data["step"]["step"] == name
                && e.data["step"]["state"] == "running"
        };
        events.until(running, LIMIT).await;
        server.kill_9();
        server.restart().await;

        let client = server.client();
        let session = client.session(&session.id);
        let mut events = session.events(None).await;
        events.until_named("session.ended", END).await;
        let ended = session.get().await;
        assert_ordered(&ended);
        for step in ended["teardown"].as_array().expect("a teardown has steps") {
            let state = step["state"].as_str().unwrap_or_default();
            assert!(matches!(state, "done" | "skipped"), "killed at {name}: {step:#}");
        }
        assert_eq!(ended["has_snapshot"], true, "killed at {name}");
        assert!(client.seed(&seed).await["lease"].is_null(), "killed at {name}: the seed is free");
        assert!(server.agents().is_empty(), "killed at {name}: {:?}", server.agents());
        assert_eq!(procs::entries(&server.task_root()), Vec::<String>::new(), "killed at {name}");
    }
    assert_eq!(oauth.reuses(), Vec::<String>::new(), "no token was used twice");
}

on_each_host!(an_agent_never_outlives_its_lease_when_no_service_comes_back);
async fn an_agent_never_outlives_its_lease_when_no_service_comes_back(place: Place) {
    let model = MockModel::start();
    let oauth = FakeOauth::start();
    let server = place.service().start().await;
    let client = server.client();
    let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;
    let session = client.create(seeded(&seed)).await;
    session.wait_idle().await;
    session.turn("@hold never ends").await;
    model.wait_until_held(1).await;
    let pid = session.get().await["run"]["agent"]["pid"].as_i64().expect("an agent has a pid");
    let agent = procs::Proc::find(i32::try_from(pid).expect("a pid fits")).expect("the agent runs");
    server.kill_9();
    let killed = Instant::now();
    // The lease was renewed at most 10 s before the kill, and holds for 60 s.
    wait_until("the guard has ended the agent", Duration::from_secs(60), || async { !agent.is_alive() })
        .await;
    assert!(killed.elapsed() < Duration::from_secs(60));
    wait_until("nothing of it is left", LIMIT, || async { server.agents().is_empty() }).await;

    // The service that comes late finds the workdir, tears down from there, and it can be resumed.
    server.restart().await;
    let client = server.client();
    let session = client.session(&session.id);
    let mut events = session.events(None).await;
    events.until_named("session.ended", END).await;
    let ended = session.get().await;
    assert_ordered(&ended);
    assert_eq!(ended["outcome"], "failed");
    assert!(ended["reason"].as_str().is_some_and(|r| r.contains("guard")), "{ended:#}");
    assert_eq!(step(&ended, "release_lease")["state"], "done");
    assert!(client.seed(&seed).await["lease"].is_null());
}

on_each_host!(a_killed_app_server_ends_the_run_with_its_status_through_the_whole_teardown);
async fn a_killed_app_server_ends_the_run_with_its_status_through_the_whole_teardown(place: Place) {
    let model = MockModel::start();
    let oauth = FakeOauth::start();
    let server = place.service().start().await;
    let client = server.client();
    let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;
    let session = client.create(seeded(&seed)).await;
    session.wait_idle().await;
    session.turn("@hold half an answer").await;
    model.wait_until_held(1).await;
    let pid = session.get().await["run"]["agent"]["pid"].as_i64().expect("an agent has a pid");
    procs::Proc::find(i32::try_from(pid).expect("a pid fits")).expect("the agent runs").kill_9();

    let mut events = session.events(None).await;
    events.until_named("session.ended", END).await;
    let ended = session.get().await;
    assert_eq!(ended["outcome"], "failed");
    assert!(ended["reason"].as_str().is_some_and(|r| r.contains("signal 9")), "{ended:#}");
    assert_ordered(&ended);
    assert_eq!(step(&ended, "capture_snapshot")["state"], "done");
    assert!(client.seed(&seed).await["lease"].is_null());
    assert!(server.agents().is_empty());
}

on_each_host!(a_login_that_rotates_is_in_the_store_before_anybody_else_may_use_it);
async fn a_login_that_rotates_is_in_the_store_before_anybody_else_may_use_it(place: Place) {
    let model = MockModel::start();
    let oauth = FakeOauth::start();
    // Its access token is due: codex refreshes it when the session starts.
    let due = oauth.login("acct-1").access_expires_in(jiff::SignedDuration::from_secs(60));
    let setup = place.service().env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", oauth.url());
    let server = setup.start().await;
    let client = server.client();
    let seed = import(&client, &model, &due.auth_json()).await;
    let session = client.create(seeded(&seed)).await;
    let mut events = session.events(None).await;
    let newest = oauth.wait_for_grants(1).await;
    let rotated = Instant::now();
    events.until_named("seed.saved", Duration::from_secs(4)).await;
    assert!(rotated.elapsed() < Duration::from_secs(2), "saved after {:?}", rotated.elapsed());
    session.wait_idle().await;
    session.end(END).await;

    let later = client.create(seeded(&seed)).await;
    later.wait_idle().await;
    let planted = server.task_root().join(&later.id).join("workdir/home/.codex/auth.json");
    let planted = std::fs::read(planted).expect("the login is planted");
    assert_eq!(auth::refresh_token_of(&planted).as_deref(), Some(newest.refresh_token.as_str()));
    later.end(END).await;
    assert_eq!(oauth.reuses(), Vec::<String>::new());
}
