//! Children that break while their session is live: they are started again and the session goes on, until whatever is
//! wrong does not go away.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use optio_actors::faults::FaultKind;
use optio_actors::session::children::ChildView;
use optio_actors::session::phase::{EndState, State};
use optio_actors::session::{AnswerApproval, approvals::Decision};
use optio_actors::session::{StopMode, TurnMode};
use optio_actors::supervision::ChildKind;
use optio_actors::testing::{World, play};
use optio_store::SessionId;
use serde_json::json;
use tokio::time::Instant;

const KINDS: [FaultKind; 3] = [FaultKind::Panic, FaultKind::Error, FaultKind::Hang];

/// Plays a story of each cell in a world of its own and names the cells that broke.
fn each<C: std::fmt::Debug + Copy>(cells: impl IntoIterator<Item = C>, story: impl AsyncFn(C)) {
    let fails =
        |cell: &C| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(story(*cell)))).is_err();
    let broken: Vec<_> = cells.into_iter().filter(fails).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The children that a conversation has.
fn of_conversation() -> impl Iterator<Item = ChildKind> {
    ChildKind::OF_SESSION.into_iter().filter(|kind| *kind != ChildKind::Terminal)
}

fn cells() -> impl Iterator<Item = (ChildKind, FaultKind)> {
    of_conversation().flat_map(|child| KINDS.map(|kind| (child, kind)))
}

async fn child(world: &World, id: &SessionId, kind: ChildKind) -> ChildView {
    let actors = world.service().actors(id).await.unwrap();
    actors.into_iter().find(|view| view.child == kind).unwrap()
}

/// Looks often enough to see a child that is dead for a tenth of a second.
async fn closely(
    world: &World,
    id: &SessionId,
    kind: ChildKind,
    wanted: impl Fn(&ChildView) -> bool,
) -> ChildView {
    loop {
        let view = child(world, id, kind).await;
        if wanted(&view) {
            return view;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_child_that_breaks_is_started_again_and_the_session_goes_on() {
    each(cells(), async |(kind, fault)| {
        let world = World::new().await;
        let seed = world.seed("acme").await;
        let id = world.launch(json!({ "seed": { "id": seed } })).await;
        world.say(&id, "@hold one two").await;
        assert!(world.faults.arm(kind, "beat", fault, 1));
        world.until("the fault", async || world.faults.armed() == 0).await;
        let newest = world.rotate(&id);
        world
            .until("the restart", async || {
                let view = child(&world, &id, kind).await;
                view.restarts == 1 && view.alive
            })
            .await;
        let exit = child(&world, &id, kind).await.last_exit.unwrap();
        let said = match fault {
            FaultKind::Panic => "panicked: injected panic",
            FaultKind::Hang => "killed after it gave no sign of life",
            _ => "stopped",
        };
        assert!(exit.contains(said), "{exit}");
        world.until("the save", async || world.memory.credential(&seed).as_ref() == Some(&newest)).await;
        world.agents.release();
        world.until("the turn's end", async || world.count(&id, "turn.completed") == 1).await;
        world.talk(&id, "hello").await;
        assert_eq!(world.answers(&id), ["one two", "pong: hello"]);
        assert_eq!(world.count(&id, "seed.lost"), 0);
        let view = world.stop(&id).await;
        assert_eq!(view.outcome, Some(EndState::Stopped));
        world.check().await;
    });
}

#[test]
fn a_child_that_breaks_again_and_again_ends_the_run_with_the_first_cause() {
    each(of_conversation(), async |kind| {
        let world = World::new().await;
        let seed = world.seed("acme").await;
        let id = world.launch(json!({ "seed": { "id": seed } })).await;
        world.talk(&id, "hello").await;
        world.rotate(&id);
        assert!(world.faults.arm(kind, "beat", FaultKind::Panic, 99));
        let view = world.wait_over(&id).await;
        assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Failed)));
        let said = format!("{kind} failed again and again: panicked: injected panic of {kind} at beat");
        assert!(view.reason.as_ref().unwrap().starts_with(&said), "{view:#?}");
        assert_eq!(world.count(&id, "child.restarted"), 5, "five times in a minute are forgiven");
        assert_eq!(world.memory.snapshot_count(&id), 1);
        world.check().await;
    });
}

#[actix::test]
async fn a_child_that_breaks_now_and_then_is_started_for_ever() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    for died in 1..=12 {
        world.faults.arm(ChildKind::HostLink, "beat", FaultKind::Panic, 1);
        world
            .until("the restart", async || {
                let view = child(&world, &id, ChildKind::HostLink).await;
                view.restarts == died && view.alive
            })
            .await;
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    world.talk(&id, "hello").await;
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn each_restart_waits_twice_as_long_as_the_one_before() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.faults.arm(ChildKind::Snapshotter, "beat", FaultKind::Panic, 5);
    let mut waits = Vec::new();
    for died in 1..=5 {
        closely(&world, &id, ChildKind::Snapshotter, |view| view.restarts == died).await;
        let dead = Instant::now();
        closely(&world, &id, ChildKind::Snapshotter, |view| view.alive).await;
        waits.push(dead.elapsed().as_millis());
    }
    for (waited, wanted) in waits.iter().zip([100, 200, 400, 800, 1600]) {
        assert!(waited.abs_diff(wanted) <= 20, "{waits:?}");
    }
}

#[actix::test]
async fn a_dead_child_can_be_read() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.renewal(&world.holder(&id).await).await;
    closely(&world, &id, ChildKind::LeaseRenewer, |view| view.detail.is_some()).await;
    world.faults.arm(ChildKind::LeaseRenewer, "beat", FaultKind::Panic, 1);
    let dead = closely(&world, &id, ChildKind::LeaseRenewer, |view| !view.alive).await;
    assert_eq!(dead.phase.as_deref(), Some("holding"));
    assert_eq!(dead.detail.unwrap()["seed"], json!(seed));
    assert!(dead.last_exit.unwrap().contains("injected panic"));
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn a_renewal_without_an_end_is_found_by_the_pulse_of_its_renewer() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.faults.arm(ChildKind::LeaseRenewer, "renew", FaultKind::Hang, 1);
    world
        .until("the restart", async || child(&world, &id, ChildKind::LeaseRenewer).await.restarts == 1)
        .await;
    world.renewal(&world.holder(&id).await).await;
    world.talk(&id, "hello").await;
    assert_eq!(world.count(&id, "seed.lost"), 0, "another renewer was there before the fence");
    world.stop(&id).await;
    world.check().await;
}

#[test]
fn an_agent_on_pipes_ends_with_the_child_that_held_it() {
    each(cells(), async |(kind, fault)| {
        let world = World::new().await;
        world.codex(false);
        let seed = world.seed("acme").await;
        let id = world.launch(json!({ "seed": { "id": seed } })).await;
        world.talk(&id, "hello").await;
        let newest = world.rotate(&id);
        assert!(world.faults.arm(kind, "beat", fault, 1));
        world.until("the fault", async || world.faults.armed() == 0).await;
        if matches!(kind, ChildKind::Process | ChildKind::ConversationReader) {
            let view = world.wait_over(&id).await;
            assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Failed)));
            assert!(view.reason.as_ref().unwrap().starts_with(&format!("{kind} failed: ")), "{view:#?}");
        } else {
            world.until("the restart", async || child(&world, &id, kind).await.restarts == 1).await;
            world.talk(&id, "still there?").await;
            let view = world.stop(&id).await;
            assert_eq!(view.outcome, Some(EndState::Stopped));
        }
        assert_eq!(world.host.agents_running(), 0);
        assert_eq!(world.memory.credential(&seed), Some(newest));
        assert_eq!(world.memory.snapshot_count(&id), 1);
        world.check().await;
    });
}

#[test]
fn an_agent_that_dies_is_the_cause_whatever_else_it_breaks() {
    each([true, false], async |can_listen| {
        let world = World::new().await;
        world.codex(can_listen);
        let id = world.launch(json!({})).await;
        // Whether it was taken before the end is nobody's matter.
        let _ = world.send(&id, "@die out of memory", TurnMode::Auto).await;
        let view = world.wait_over(&id).await;
        let reason = view.reason.unwrap();
        assert!(reason.contains("exit status 101") && reason.contains("out of memory"), "{reason}");
        world.check().await;
    });
}

#[actix::test]
async fn another_session_on_the_same_arbiter_notices_nothing() {
    let world = World::new().await;
    let calm = world.launch(json!({})).await;
    let broken = world.launch(json!({})).await;
    world.say(&calm, "@hold one two").await;
    for kind in of_conversation() {
        for fault in [FaultKind::Panic, FaultKind::Hang] {
            world.faults.arm_for(broken.clone(), kind, "beat", fault, 1);
        }
    }
    world.faults.arm_for(broken.clone(), ChildKind::Session, "beat", FaultKind::Panic, 1);
    world.until("the faults", async || world.faults.armed() == 0).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    world.agents.release();
    world.until("the turn's end", async || world.count(&calm, "turn.completed") == 1).await;
    assert_eq!(world.answers(&calm), ["one two"]);
    assert_eq!(world.count(&calm, "child.restarted") + world.count(&calm, "session.adopted"), 0);
    assert!(world.service().actors(&calm).await.unwrap().iter().all(|view| view.restarts == 0));
    for id in [&calm, &broken] {
        world.stop(id).await;
    }
    world.check().await;
}

#[actix::test]
async fn a_session_whose_supervisor_panics_is_taken_up_from_its_record() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed }, "permission_gate": true })).await;
    world.say(&id, "@ask make").await;
    let asked = world.wait_state(&id, State::Waiting).await.waiting;
    world.faults.arm(ChildKind::Session, "beat", FaultKind::Panic, 1);
    world.wait_event(&id, "session.adopted", "").await;
    let view = world.wait_state(&id, State::Waiting).await;
    assert_eq!(view.waiting, asked, "the same question waits");
    let (approval, decision) = (asked[0].id.parse().unwrap(), Decision::Accept);
    let answer = AnswerApproval { approval, decision, by: "owner".to_owned(), note: None };
    world.service().answer(&id, answer).await.unwrap();
    world.until("the turn's end", async || world.count(&id, "turn.completed") == 1).await;
    assert_eq!(world.answers(&id), ["accept: make"]);
    assert_eq!(world.count(&id, "approval.requested"), 1);
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn a_supervisor_that_dies_for_the_sixth_time_is_left_for_the_next_start() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.talk(&id, "hello").await;
    world.faults.arm(ChildKind::Session, "beat", FaultKind::Panic, 6);
    let said = world.wait_event(&id, "attention", "its supervisor died 6 times").await;
    assert!(said["reason"].as_str().unwrap().contains("injected panic"), "{said}");
    assert_eq!(world.count(&id, "session.adopted"), 5);
    assert_eq!(world.host.agents_running(), 1, "nothing is torn down on a guess");
    world.crash();
    world.restart().await;
    world.until("the adoption", async || world.count(&id, "session.adopted") == 6).await;
    world.talk(&id, "still there?").await;
    world.service().stop(&id, StopMode::Graceful).await.unwrap();
    world.wait_over(&id).await;
    world.check().await;
}
