//! The fault matrix: each child × {panic, error, hang} × each teardown step it comes through, with a rotated login
//! that is not home yet. Whatever breaks, order and receipts hold.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use optio_actors::faults::FaultKind;
use optio_actors::session::StopMode;
use optio_actors::session::phase::{EndState, State};
use optio_actors::supervision::ChildKind;
use optio_actors::teardown::Step;
use optio_actors::testing::{World, play};
use optio_actors::trace::Deed;
use optio_store::SessionId;
use serde_json::json;

const CELLS: [(ChildKind, &str); 21] = [
    (ChildKind::ConversationReader, "close"),
    (ChildKind::ConversationReader, "end_turn"),
    (ChildKind::Process, "stop_agent"),
    (ChildKind::CredWatcher, "quiet_watcher"),
    (ChildKind::CredWatcher, "save_back"),
    (ChildKind::CredWatcher, "spool"),
    (ChildKind::CredWatcher, "store"),
    (ChildKind::LeaseRenewer, "release"),
    (ChildKind::Snapshotter, "capture_seed"),
    (ChildKind::Snapshotter, "capture_snapshot"),
    (ChildKind::HostLink, "wipe"),
    (ChildKind::HostLink, "disconnect"),
    (ChildKind::Session, "note_close"),
    (ChildKind::Session, "note_stop_agent"),
    (ChildKind::Session, "note_quiet_watcher"),
    (ChildKind::Session, "note_save_back"),
    (ChildKind::Session, "note_release_lease"),
    (ChildKind::Session, "note_capture_seed"),
    (ChildKind::Session, "note_capture_snapshot"),
    (ChildKind::Session, "note_wipe"),
    (ChildKind::Session, "note_disconnect"),
];

const KINDS: [FaultKind; 3] = [FaultKind::Panic, FaultKind::Error, FaultKind::Hang];

/// When the login changes.
#[derive(Debug, Clone, Copy)]
enum Rotated {
    /// Right before the stop, so that the watcher's own save is under way.
    BeforeTheStop,
    /// After the watcher was quieted, so that only the final save can bring it home.
    AfterTheQuiet,
}

/// Stops a session with a login that rotates at `when`, and waits until its actors are gone.
async fn stop_with_a_rotation(world: &World, id: &SessionId, when: Rotated, arm: impl FnOnce()) {
    if let Rotated::AfterTheQuiet = when {
        // Holds the teardown still while the login changes; armed first, so that it strikes first.
        let delay = FaultKind::Delay { ms: 1000 };
        world.faults.arm(ChildKind::Session, "note_save_back", delay, 1);
    } else {
        world.rotate(id);
    }
    arm();
    world.service().stop(id, StopMode::Graceful).await.unwrap();
    if let Rotated::AfterTheQuiet = when {
        let began = |deed: &Deed| matches!(deed, Deed::StepBegan { step: Step::SaveBack });
        world.wait_deed("the save-back", began).await;
        world.rotate(id);
    }
    world
        .until("the end of the actors", async || {
            world.service().actors(id).await.is_ok_and(|actors| actors.is_empty())
        })
        .await;
}

async fn cell(child: ChildKind, step: &'static str, kind: FaultKind, times: u32, when: Rotated) {
    let cell = format!("{child} × {kind:?} × {step} × {times}, {when:?}");
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.talk(&id, "hello").await;
    world.say(&id, "@hold a b").await;
    world.wait_state(&id, State::Working).await;
    let arm = || assert!(world.faults.arm(child, step, kind, times));
    stop_with_a_rotation(&world, &id, when, arm).await;
    let view = world.view(&id).await;
    if view.state == State::Stopping {
        // A supervisor that dies again and again is left for the next start.
        assert!(child == ChildKind::Session && kind == FaultKind::Panic && times > 1, "{cell}: {view:#?}");
        world.crash();
        assert_eq!(world.faults.disarm(), 1, "{cell}: it could go on for ever");
        world.restart().await;
        world.wait_over(&id).await;
    }
    let left = world.faults.disarm();
    assert!(times > 1 || left == 0, "{cell} did not strike");
    verdict(&cell, &world, &id).await;
}

async fn verdict(cell: &str, world: &World, id: &SessionId) {
    let view = world.view(id).await;
    assert!(matches!(view.state, State::Ended | State::Lost), "{cell}: {view:#?}");
    assert_eq!(view.outcome, Some(EndState::Stopped), "{cell}");
    assert!(view.reason.is_some_and(|reason| !reason.is_empty()), "{cell}");
    let wrong = world.wrong().await;
    assert!(wrong.is_empty(), "{cell}: {wrong:#?}\n{}", world.story());
}

/// Plays every cell of one child and names those that broke.
fn column(child: ChildKind) {
    let mut broken = Vec::new();
    for (child, step) in CELLS.into_iter().filter(|(of, _)| *of == child) {
        for kind in KINDS {
            for times in [1, 99] {
                for when in [Rotated::BeforeTheStop, Rotated::AfterTheQuiet] {
                    // A supervisor that dies at each try may never come to the save-back in this life.
                    let never_there = child == ChildKind::Session && kind == FaultKind::Panic && times > 1;
                    if never_there && matches!(when, Rotated::AfterTheQuiet) {
                        continue;
                    }
                    let played = std::panic::catch_unwind(|| play(cell(child, step, kind, times, when)));
                    if played.is_err() {
                        broken.push(format!("{child} × {kind:?} × {step} × {times}, {when:?}"));
                    }
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn whatever_the_conversation_reader_does_the_order_holds() {
    column(ChildKind::ConversationReader);
}

#[test]
fn whatever_the_process_does_the_order_holds() {
    column(ChildKind::Process);
}

#[test]
fn whatever_the_cred_watcher_does_the_order_holds() {
    column(ChildKind::CredWatcher);
}

#[test]
fn whatever_the_lease_renewer_does_the_order_holds() {
    column(ChildKind::LeaseRenewer);
}

#[test]
fn whatever_the_snapshotter_does_the_order_holds() {
    column(ChildKind::Snapshotter);
}

#[test]
fn whatever_the_host_link_does_the_order_holds() {
    column(ChildKind::HostLink);
}

#[test]
fn whatever_the_session_does_the_order_holds() {
    column(ChildKind::Session);
}

#[test]
fn the_matrix_has_every_step_of_a_teardown_that_can_be_broken() {
    let of_life = [
        "beat",
        "connect",
        "acquire",
        "renew",
        "restore",
        "watch",
        "start",
        "heartbeat",
        "attach",
        "read",
        "deliver",
    ];
    // The terminal's own are tried in `terminal.rs`: these cells are a conversation's.
    let of_conversation = |(child, _): &(ChildKind, _)| *child != ChildKind::Terminal;
    for (child, steps) in optio_actors::faults::STEPS.into_iter().filter(of_conversation) {
        for step in steps.iter().filter(|step| !of_life.contains(step)) {
            assert!(CELLS.contains(&(child, step)), "{child} × {step} is not tried");
        }
    }
    assert!(Duration::from_secs(1) < Step::SaveBack.limit());
}
