//! Sessions on a terminal: how they begin, who sits before them, what is typed, and how they end.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use optio_actors::SessionError;
use optio_actors::faults::FaultKind;
use optio_actors::service::words::{Seat, Size};
use optio_actors::session::phase::{EndState, State};
use optio_actors::session::{ChangeSession, StopMode, TurnMode};
use optio_actors::sessions::OnExit;
use optio_actors::supervision::ChildKind;
use optio_actors::terminal::{Role, Shown, TakeSeat, Viewer};
use optio_actors::testing::{Behaviour, World, play};
use optio_store::SessionId;
use serde_json::{Value, json};

const SMALL: Size = Size { columns: 80, rows: 24 };
const LARGE: Size = Size { columns: 160, rows: 48 };

async fn launch(world: &World, more: Value) -> SessionId {
    let id = begin(world, more).await;
    world.wait_state(&id, State::Working).await;
    id
}

async fn begin(world: &World, more: Value) -> SessionId {
    let mut config = json!({ "mode": "terminal" });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    world.begin(config).await
}

async fn sit(world: &World, id: &SessionId, role: Role, size: Size) -> Result<Viewer, SessionError> {
    world.service().open_terminal(id, TakeSeat { role, size }).await
}

/// What a viewer is shown until this text has come.
async fn sees(viewer: &mut Viewer, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        match tokio::time::timeout(Duration::from_secs(60), viewer.next()).await {
            Ok(Shown::Output(bytes)) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            Ok(Shown::Size(_)) => {}
            other => panic!("never saw {text:?}: {other:?} after {seen:?}"),
        }
    }
}

async fn next_but_output(viewer: &mut Viewer) -> Shown {
    loop {
        match tokio::time::timeout(Duration::from_secs(60), viewer.next()).await.expect("something comes") {
            Shown::Output(_) => {}
            shown => return shown,
        }
    }
}

#[actix::test]
async fn a_terminal_is_launched_typed_into_and_stopped() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = launch(&world, json!({ "seed": { "id": seed } })).await;
    world.say(&id, "hello there").await;
    assert!(world.agents.screen().contains("> hello there"), "{}", world.agents.screen());
    world.service().interrupt(&id).await.unwrap();
    assert!(world.agents.screen().contains("<Escape>"));
    let view = world.stop(&id).await;
    assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Stopped)));
    assert_eq!(world.memory.snapshot_count(&id), 1);
    world.check().await;
}

#[actix::test]
async fn without_tmux_nothing_is_begun_and_no_login_is_taken() {
    let world = World::new().await;
    world.agents.without_tmux();
    let seed = world.seed("acme").await;
    let id = begin(&world, json!({ "seed": { "id": seed } })).await;
    let view = world.wait_over(&id).await;
    assert!(view.reason.as_ref().unwrap().contains("tmux"), "{view:#?}");
    assert_eq!(world.count(&id, "seed.leased"), 0);
    world.check().await;
}

#[actix::test]
async fn a_codex_that_draws_nothing_is_given_up() {
    let world = World::new().await;
    world.agents.draws_nothing();
    let id = begin(&world, json!({})).await;
    let view = world.wait_over(&id).await;
    assert!(view.reason.as_ref().unwrap().contains("waiting for the terminal"), "{view:#?}");
    world.check().await;
}

#[actix::test]
async fn a_codex_that_dies_at_once_says_why() {
    let world = World::new().await;
    world.agents.behave(Behaviour { dies_saying: Some("no model today".to_owned()), ..Behaviour::default() });
    let id = begin(&world, json!({})).await;
    let view = world.wait_over(&id).await;
    assert!(view.reason.as_ref().unwrap().contains("no model today"), "{view:#?}");
    world.check().await;
}

#[actix::test]
async fn an_operator_owns_the_size_and_the_longest_seated_guest_is_the_heir() {
    let world = World::new().await;
    let id = launch(&world, json!({})).await;
    let mut owner = sit(&world, &id, Role::Operator, SMALL).await.unwrap();
    let mut heir = sit(&world, &id, Role::Operator, LARGE).await.unwrap();
    let mut late = sit(&world, &id, Role::Operator, LARGE).await.unwrap();
    let mut viewer = sit(&world, &id, Role::Viewer, LARGE).await.unwrap();
    let seats = [owner.seat(), heir.seat(), late.seat(), viewer.seat()];
    assert_eq!(seats, [Seat::Owner, Seat::Guest, Seat::Guest, Seat::Viewer]);
    assert_eq!([heir.size(), viewer.size()], [SMALL, SMALL]);
    world.say(&id, "to everybody").await;
    for somebody in [&mut owner, &mut heir, &mut late, &mut viewer] {
        sees(somebody, "> to everybody").await;
    }
    heir.resize(Size { columns: 10, rows: 10 }).await.unwrap();
    viewer.resize(Size { columns: 10, rows: 10 }).await.unwrap();
    owner.resize(LARGE).await.unwrap();
    assert_eq!(next_but_output(&mut heir).await, Shown::Size(LARGE));
    assert_eq!(next_but_output(&mut viewer).await, Shown::Size(LARGE));

    drop(owner);
    assert_eq!(next_but_output(&mut heir).await, Shown::Over);
    drop(heir);
    world
        .until("the seat is free", async || {
            sit(&world, &id, Role::Operator, SMALL).await.unwrap().seat() == Seat::Owner
        })
        .await;
    assert_eq!(world.stop(&id).await.outcome, Some(EndState::Stopped));
    world.check().await;
}

#[actix::test]
async fn what_a_viewer_types_is_dropped_and_so_is_what_comes_after_the_door_was_closed() {
    let world = World::new().await;
    let id = launch(&world, json!({})).await;
    let mut owner = sit(&world, &id, Role::Operator, SMALL).await.unwrap();
    let mut viewer = sit(&world, &id, Role::Viewer, SMALL).await.unwrap();
    viewer.keys(Bytes::from_static(b"viewer")).await.unwrap();
    owner.keys(Bytes::from_static(b"owner")).await.unwrap();
    world.until("the owner's keys arrive", async || world.agents.keys().contains("owner")).await;
    assert!(!world.agents.keys().contains("viewer"), "{}", world.agents.keys());

    assert!(world.faults.arm(ChildKind::Process, "stop_agent", FaultKind::Delay { ms: 2000 }, 1));
    world.service().stop(&id, StopMode::Graceful).await.unwrap();
    assert_eq!(next_but_output(&mut owner).await, Shown::Over);
    owner.keys(Bytes::from_static(b"late")).await.unwrap();
    let refused = sit(&world, &id, Role::Operator, SMALL).await.err().unwrap();
    assert!(matches!(refused, SessionError::Refused { .. }), "{refused:?}");
    world.wait_over(&id).await;
    assert!(!world.agents.keys().contains("late"));
    world.check().await;
}

#[actix::test]
async fn there_is_room_for_so_many_and_no_more() {
    let world = World::new().await;
    let id = launch(&world, json!({})).await;
    let mut seated = Vec::new();
    for _ in 0..32 {
        seated.push(sit(&world, &id, Role::Viewer, SMALL).await.unwrap());
    }
    let refused = sit(&world, &id, Role::Operator, SMALL).await.err().unwrap();
    assert!(matches!(refused, SessionError::TooManyViewers { .. }), "{refused:?}");
    seated.pop();
    world.until("there is room again", async || sit(&world, &id, Role::Viewer, SMALL).await.is_ok()).await;
    drop(seated);
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn a_conversation_has_no_terminal_and_a_terminal_takes_plain_messages_only() {
    let world = World::new().await;
    let talk = world.launch(json!({})).await;
    let refused = sit(&world, &talk, Role::Operator, SMALL).await.err().unwrap();
    assert!(matches!(refused, SessionError::NoTerminal { .. }), "{refused:?}");
    world.stop(&talk).await;
    let id = launch(&world, json!({})).await;
    let refused = world.send(&id, "hello", TurnMode::Queue).await.unwrap_err();
    assert!(matches!(refused, SessionError::Invalid { field: "mode", .. }), "{refused:?}");
    let named = ChangeSession { name: Some("renamed".to_owned()), ..ChangeSession::default() };
    assert_eq!(world.service().change(&id, named).await.unwrap().name, "renamed");
    for (change, wrong) in [
        (ChangeSession { model: Some("m".to_owned()), ..ChangeSession::default() }, "model"),
        (ChangeSession { effort: Some("low".to_owned()), ..ChangeSession::default() }, "effort"),
    ] {
        let refused = world.service().change(&id, change).await.unwrap_err();
        assert!(matches!(refused, SessionError::Invalid { field, .. } if field == wrong), "{refused:?}");
    }
    world.stop(&id).await;
}

#[actix::test]
async fn a_message_into_a_question_is_not_submitted_and_its_sender_hears_it() {
    let world = World::new().await;
    let id = launch(&world, json!({})).await;
    world.agents.asks_a_question();
    let refused = world.send(&id, "yes", TurnMode::Auto).await.unwrap_err();
    assert!(matches!(refused, SessionError::Agent { retryable: true, .. }), "{refused:?}");
    assert!(!world.agents.screen().contains("> yes"));
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn texts_that_come_at_once_are_typed_one_after_the_other() {
    let world = World::new().await;
    let id = launch(&world, json!({})).await;
    let texts: Vec<String> = (0..5).map(|n| format!("text number {n}")).collect();
    let sent = futures_util::future::join_all(texts.iter().map(|text| world.send(&id, text, TurnMode::Auto)));
    assert!(sent.await.iter().all(Result::is_ok));
    let shown: Vec<String> = world.agents.screen().lines().map(str::to_owned).collect();
    assert_eq!(shown, texts.iter().map(|text| format!("> {text}")).collect::<Vec<_>>());
    world.stop(&id).await;
}

#[test]
fn a_terminal_actor_that_breaks_is_replaced_and_the_agent_does_not_notice() {
    for fault in [FaultKind::Panic, FaultKind::Error, FaultKind::Hang] {
        play(async {
            let world = World::new().await;
            let id = launch(&world, json!({})).await;
            let pid = world.view(&id).await.run.unwrap().agent.unwrap().pid;
            let mut viewer = sit(&world, &id, Role::Operator, SMALL).await.unwrap();
            assert!(world.faults.arm(ChildKind::Terminal, "beat", fault, 1));
            assert_eq!(next_but_output(&mut viewer).await, Shown::Over, "{fault:?}");
            world
                .until("another one seats people", async || {
                    sit(&world, &id, Role::Operator, SMALL)
                        .await
                        .is_ok_and(|seated| seated.seat() == Seat::Owner)
                })
                .await;
            world.say(&id, "still here").await;
            assert_eq!(world.view(&id).await.run.unwrap().agent.unwrap().pid, pid);
            world.stop(&id).await;
            world.check().await;
        });
    }
}

#[actix::test]
async fn a_terminal_outlives_the_service_and_is_taken_over() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = launch(&world, json!({ "seed": { "id": seed } })).await;
    world.say(&id, "before").await;
    let pid = world.view(&id).await.run.unwrap().agent.unwrap().pid;
    world.crash();
    world.restart().await;
    let view = world.wait_state(&id, State::Working).await;
    assert_eq!(view.run.unwrap().agent.unwrap().pid, pid);
    let mut viewer = sit(&world, &id, Role::Operator, SMALL).await.unwrap();
    sees(&mut viewer, "> before").await;
    world.say(&id, "after").await;
    sees(&mut viewer, "> after").await;
    world.leave(OnExit::Detach).await;
    world.restart().await;
    world.wait_state(&id, State::Working).await;
    let view = world.stop(&id).await;
    assert_eq!(view.outcome, Some(EndState::Stopped));
    world.check().await;
}

#[test]
fn each_step_of_its_end_survives_a_terminal_that_breaks_in_it() {
    for fault in [FaultKind::Panic, FaultKind::Error, FaultKind::Hang] {
        for step in ["close", "end_turn"] {
            play(async {
                let world = World::new().await;
                let seed = world.seed("acme").await;
                let id = launch(&world, json!({ "seed": { "id": seed } })).await;
                let newest = world.rotate(&id);
                assert!(world.faults.arm(ChildKind::Terminal, step, fault, 1));
                let view = world.stop(&id).await;
                assert_eq!(view.state, State::Ended, "{step} {fault:?}: {view:#?}");
                assert_eq!(world.memory.credential(&seed).as_ref(), Some(&newest), "{step} {fault:?}");
                world.check().await;
            });
        }
    }
}
