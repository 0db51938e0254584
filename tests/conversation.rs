//! Talking to the real Codex through the whole program.

mod common;

use std::time::{Duration, Instant};

use common::place::{Place, on_each_host};
use common::{END, answers, assert_ordered, conversation, import, seeded, service, step};
use optio_testkit::{FakeOauth, LIMIT, MockModel, procs};

on_each_host!(a_seeded_turn_streams_to_every_viewer_whole_and_in_order);
async fn a_seeded_turn_streams_to_every_viewer_whole_and_in_order(place: Place) {
    let model = MockModel::start();
    let oauth = FakeOauth::start();
    let server = place.service().start().await;
    let client = server.client();
    let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;

    let session = client.create(seeded(&seed)).await;
    let mut early = session.events(None).await;
    session.wait_idle().await;
    session.turn("@say one two three four").await;
    let first = early.until_named("turn.completed", LIMIT).await;
    assert!(first.iter().any(|e| e.name == "item.delta"), "the answer streams");
    assert!(early.seen().windows(2).all(|pair| pair[0] < pair[1]), "ids increase: {:?}", early.seen());

    // A viewer that joins late sees the same from the beginning.
    let mut late = session.events(None).await;
    late.until_named("turn.completed", LIMIT).await;
    assert_eq!(late.seen(), early.seen());

    // One that was away goes on where it stopped.
    let middle = early.seen()[early.seen().len() / 2];
    let mut returned = session.events(Some(middle)).await;
    returned.until_named("turn.completed", LIMIT).await;
    let expected: Vec<u64> = early.seen().iter().copied().filter(|id| *id > middle).collect();
    assert_eq!(returned.seen(), expected);

    assert_eq!(answers(&session).await, ["one two three four"]);
    let turn = model.turns().pop().expect("the model was asked");
    assert!(turn.bearer().is_some(), "the seed's login was used");
}

#[actix::test]
async fn an_interrupt_ends_a_slow_turn_within_two_seconds() {
    let model = MockModel::start();
    let server = service().start().await;
    let client = server.client();
    let session = client.create(conversation(&model)).await;
    session.wait_idle().await;
    let mut events = session.events(None).await;
    session
        .turn("@slow 0.2 tick tock tick tock tick tock tick tock tick tock tick tock tick tock tick tock")
        .await;
    events.until_named("item.delta", LIMIT).await;

    let asked = Instant::now();
    session.interrupt().await;
    let ended =
        events.until_named("turn.completed", Duration::from_secs(2)).await.pop().expect("until gives it");
    assert!(asked.elapsed() < Duration::from_secs(2));
    assert_eq!(ended.data["codex"]["turn"]["status"], "interrupted");
    session.wait_idle().await;

    // Nothing runs now, and the next turn is as good as any.
    let again = client.send(client.request(reqwest::Method::POST, &session.path("/interrupt"))).await;
    assert_eq!((again.status.as_u16(), again.problem().as_str()), (409, "idle"));
    session.turn("@say alive").await;
    events.until_named("turn.completed", LIMIT).await;
    assert_eq!(answers(&session).await.last().map(String::as_str), Some("alive"));
}

#[actix::test]
async fn another_model_applies_to_the_next_turn() {
    let model = MockModel::start();
    let server = service().start().await;
    let client = server.client();
    let session = client.create(conversation(&model)).await;
    session.wait_idle().await;
    let change = client.request(reqwest::Method::PATCH, &session.path(""));
    let changed = client.send(change.json(&serde_json::json!({ "model": "gpt-5.4" }))).await.json();
    assert_eq!(changed["run"]["model"], "gpt-5.4");
    let mut events = session.events(None).await;
    session.turn("@say hello").await;
    events.until_named("turn.completed", LIMIT).await;
    assert_eq!(model.turns().pop().expect("the model was asked").body["model"], "gpt-5.4");
}

on_each_host!(a_message_during_a_turn_steers_it_and_a_queued_one_waits_for_its_end);
async fn a_message_during_a_turn_steers_it_and_a_queued_one_waits_for_its_end(place: Place) {
    let model = MockModel::start();
    let server = place.service().start().await;
    let client = server.client();
    let session = client.create(conversation(&model)).await;
    session.wait_idle().await;
    let mut events = session.events(None).await;
    assert_eq!(session.turn("@hold first answer").await["delivered_as"], "new");
    model.wait_until_held(1).await;
    assert_eq!(session.turn_as("@say queued answer", "queue").await["delivered_as"], "queue");
    assert_eq!(session.turn("@say steered answer").await["delivered_as"], "steer");
    let busy = client.request(reqwest::Method::POST, &session.path("/turns"));
    let busy = client.send(busy.json(&serde_json::json!({ "text": "no", "mode": "new" }))).await;
    assert_eq!((busy.status.as_u16(), busy.problem().as_str()), (409, "busy"));
    model.release();
    events.until_named("turn.completed", LIMIT).await;
    events.until_named("turn.completed", LIMIT).await;
    let said = answers(&session).await;
    assert_eq!(said.last().map(String::as_str), Some("queued answer"), "{said:?}");
    assert!(said.contains(&"steered answer".to_owned()), "{said:?}");
}

on_each_host!(a_stop_leaves_nothing_behind_but_the_snapshot_and_a_free_seed);
async fn a_stop_leaves_nothing_behind_but_the_snapshot_and_a_free_seed(place: Place) {
    let model = MockModel::start();
    let oauth = FakeOauth::start();
    let server = place.service().start().await;
    let client = server.client();
    let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;
    let session = client.create(seeded(&seed)).await;
    session.wait_idle().await;
    let mut events = session.events(None).await;
    session.turn("@call exec_command {\"cmd\":\"echo work > kept.txt; sleep 300 & echo started\"}").await;
    events.until_named("turn.completed", LIMIT).await;
    assert!(!server.agents().is_empty(), "an agent runs");

    let ended = session.end(END).await;
    assert_ordered(&ended);
    assert_eq!(ended["outcome"], "stopped");
    for name in ["stop_agent", "save_back", "release_lease", "capture_snapshot", "wipe"] {
        assert_eq!(step(&ended, name)["state"], "done", "{ended:#}");
    }
    assert_eq!(ended["has_snapshot"], true);
    assert!(client.seed(&seed).await["lease"].is_null());
    let left = server.agents();
    assert!(left.is_empty(), "processes are left: {left:?}");
    assert_eq!(server.sockets(), Vec::<std::path::PathBuf>::new());
    assert_eq!(procs::entries(&server.task_root()), Vec::<String>::new());
}

on_each_host!(a_resumed_session_has_its_history_its_files_and_its_seed_again);
async fn a_resumed_session_has_its_history_its_files_and_its_seed_again(place: Place) {
    let model = MockModel::start();
    let oauth = FakeOauth::start();
    let server = place.service().start().await;
    let client = server.client();
    let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;
    let session = client.create(seeded(&seed)).await;
    session.wait_idle().await;
    let mut events = session.events(None).await;
    session.turn("@call exec_command {\"cmd\":\"echo work > kept.txt\"}").await;
    events.until_named("turn.completed", LIMIT).await;
    let first = session.end(END).await;
    let thread = first["run"]["thread_id"].clone();

    session.resume().await;
    events.until_named("session.ended", END).await;
    // The notice of the resume is the first turn of the new run.
    events.until_named("turn.completed", LIMIT).await;
    let resumed = session.wait_idle().await;
    assert_eq!(resumed["run"]["thread_id"], thread, "the same conversation");
    assert_ne!(resumed["run"]["id"], first["run"]["id"]);
    assert_eq!(resumed["run"]["seed"], seed.as_str());
    assert_eq!(client.seed(&seed).await["lease"]["session"], resumed["id"]);
    let workdir = server.task_root().join(&session.id).join("workdir");
    assert_eq!(std::fs::read_to_string(workdir.join("kept.txt")).expect("the file is back"), "work\n");
    let log = std::fs::read_to_string(workdir.join("resume.log")).expect("the log of starts is there");
    assert_eq!(log.lines().count(), 2, "{log}");
    let asked = model.turns().pop().expect("the notice went to the model");
    assert!(asked.body.to_string().contains("kept.txt"), "the model is given the earlier turns");
    session.end(END).await;
}
