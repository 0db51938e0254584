//! Who waits for whom when hosts need programs.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use optio_actors::faults::FaultKind;
use optio_actors::session::StopMode;
use optio_actors::session::phase::State;
use optio_actors::sessions::OnExit;
use optio_actors::supervision::ChildKind;
use optio_actors::testing::{FakeTools, World, play};
use optio_host::provision::Tool;
use optio_store::SessionId;
use serde_json::{Value, json};

/// A world whose codex comes when the test says so.
async fn world() -> (World, FakeTools) {
    let (world, tools) = (World::without_service(), FakeTools::default());
    world.provision.replace(Arc::new(tools.clone()));
    world.restart().await;
    (world, tools)
}

async fn begin(world: &World, count: usize) -> Vec<SessionId> {
    let mut sessions = Vec::new();
    for _ in 0..count {
        sessions.push(world.begin(json!({})).await);
    }
    sessions
}

/// What a session was told: (percent, message).
fn told(world: &World, id: &SessionId) -> Vec<(Value, String)> {
    let events = world.events(id).into_iter().filter(|event| event["type"] == "progress");
    events.map(|e| (e["percent"].clone(), e["message"].as_str().unwrap().to_owned())).collect()
}

async fn waits(world: &World, tools: &FakeTools, count: usize) {
    world.until("the requests", async || tools.begun() == count).await;
}

#[test]
fn fifty_sessions_wait_for_one_request_and_hear_the_same() {
    play(async {
        let (world, tools) = world().await;
        let sessions = begin(&world, 50).await;
        waits(&world, &tools, 1).await;
        tools.tell(0, None, "downloading codex");
        for id in &sessions {
            world.wait_event(id, "progress", "downloading").await;
        }
        tools.tell(0, Some(7), "downloading codex");
        let late = world.begin(json!({})).await;
        world.wait_event(&late, "progress", "downloading").await;
        tools.find(0);
        for id in sessions.iter().chain([&late]) {
            world.wait_state(id, State::Idle).await;
        }
        assert_eq!(tools.begun(), 1);
        let all = [(Value::Null, "downloading codex".to_owned()), (json!(7), "downloading codex".to_owned())];
        assert_eq!(told(&world, &sessions[0]), all);
        assert_eq!(told(&world, &sessions[49]), all);
        assert_eq!(told(&world, &late), all[1..]);
    });
}

#[test]
fn other_wishes_are_another_request_and_carry_what_the_session_says() {
    play(async {
        let (world, tools) = world().await;
        world.begin(json!({})).await;
        waits(&world, &tools, 1).await;
        world.begin(json!({ "install_if_missing": false, "codex_install_dir": "~/tools" })).await;
        waits(&world, &tools, 2).await;
        let (tool, wishes) = tools.asked(0);
        assert_eq!((tool, wishes.install_if_missing, wishes.install_dir), (Tool::Codex, true, None));
        let (_, wishes) = tools.asked(1);
        assert_eq!((wishes.install_if_missing, wishes.install_dir.as_deref()), (false, Some("~/tools")));
    });
}

#[test]
fn a_stopped_session_stops_waiting_and_the_others_go_on() {
    play(async {
        let (world, tools) = world().await;
        let sessions = begin(&world, 2).await;
        waits(&world, &tools, 1).await;
        let before = tokio::time::Instant::now();
        world.stop(&sessions[0]).await;
        assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
        assert!(!tools.is_given_up(0));
        tools.find(0);
        world.wait_state(&sessions[1], State::Idle).await;
        world.check().await;
    });
}

#[test]
fn with_the_last_who_waits_the_request_is_given_up_and_the_next_begins_anew() {
    play(async {
        let (world, tools) = world().await;
        for id in &begin(&world, 3).await {
            assert!(!tools.is_given_up(0));
            waits(&world, &tools, 1).await;
            world.stop(id).await;
        }
        world.until("the end of the request", async || tools.is_given_up(0)).await;
        let id = world.begin(json!({})).await;
        waits(&world, &tools, 2).await;
        tools.find(1);
        world.wait_state(&id, State::Idle).await;
    });
}

#[test]
fn who_comes_while_a_request_is_being_given_up_gets_one_of_their_own() {
    play(async {
        let (world, tools) = world().await;
        let cleaned_up = tools.slow_to_give_up();
        let first = world.begin(json!({})).await;
        waits(&world, &tools, 1).await;
        tools.tell(0, Some(50), "old");
        world.wait_event(&first, "progress", "old").await;
        world.stop(&first).await;
        world.until("the end of the request", async || tools.is_given_up(0)).await;
        let second = world.begin(json!({})).await;
        world
            .until("the session at its codex", async || {
                let seen = world.service().provisioner().await;
                seen.is_some_and(|seen| seen.detail["flights"][0]["waiting"] == 1)
            })
            .await;
        assert_eq!(tools.begun(), 1);
        cleaned_up.cancel();
        waits(&world, &tools, 2).await;
        tools.find(1);
        world.wait_state(&second, State::Idle).await;
    });
}

#[test]
fn an_error_is_for_all_who_waited_and_for_nobody_after_them() {
    play(async {
        let (world, tools) = world().await;
        let sessions = begin(&world, 5).await;
        waits(&world, &tools, 1).await;
        tools.fail(0, "the mirror burns");
        for id in &sessions {
            let view = world.wait_over(id).await;
            let reason = view.reason.clone().unwrap_or_default();
            assert!(reason.contains("the mirror burns"), "{view:#?}");
        }
        let seen = world.service().provisioner().await.unwrap();
        assert!(seen.last_error.unwrap().contains("the mirror burns"));
        let next = world.begin(json!({})).await;
        waits(&world, &tools, 2).await;
        tools.find(1);
        world.wait_state(&next, State::Idle).await;
        world.check().await;
    });
}

#[test]
fn a_request_that_panics_ends_those_who_wait_and_nobody_else() {
    play(async {
        let (world, tools) = world().await;
        let id = world.begin(json!({})).await;
        waits(&world, &tools, 1).await;
        tools.panic(0);
        let view = world.wait_over(&id).await;
        assert!(view.reason.clone().unwrap_or_default().contains("died"), "{view:#?}");
        let next = world.begin(json!({})).await;
        waits(&world, &tools, 2).await;
        tools.find(1);
        world.wait_state(&next, State::Idle).await;
    });
}

#[test]
fn a_provisioner_that_dies_or_hangs_is_started_again_and_gives_up_what_it_began() {
    for kind in [FaultKind::Panic, FaultKind::Error, FaultKind::Hang] {
        play(async {
            let (world, tools) = world().await;
            let id = world.begin(json!({})).await;
            waits(&world, &tools, 1).await;
            world.faults.arm(ChildKind::Provisioner, "beat", kind, 1);
            let view = world.wait_over(&id).await;
            assert!(view.reason.clone().unwrap_or_default().contains("died"), "{kind:?}: {view:#?}");
            world.until("the end of the request", async || tools.is_given_up(0)).await;
            world.until("another provisioner", async || world.service().provisioner().await.is_some()).await;
            let next = world.begin(json!({})).await;
            waits(&world, &tools, 2).await;
            tools.find(1);
            world.wait_state(&next, State::Idle).await;
            world.check().await;
        });
    }
}

#[test]
fn a_service_that_leaves_waits_for_no_download() {
    play(async {
        let (world, tools) = world().await;
        begin(&world, 3).await;
        waits(&world, &tools, 1).await;
        let before = tokio::time::Instant::now();
        world.service().stop(&world.begin(json!({})).await, StopMode::Graceful).await.unwrap();
        world.leave(OnExit::Detach).await;
        assert!(before.elapsed() < Duration::from_secs(30), "{:?}", before.elapsed());
        assert!(tools.is_given_up(0));
    });
}
