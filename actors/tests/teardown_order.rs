//! The normal end: every step once, in order, on record and in the API.
#![allow(clippy::unwrap_used)]

use optio_actors::session::StopMode;
use optio_actors::session::phase::{EndState, State};
use optio_actors::teardown::{Outcome, Step};
use optio_actors::testing::World;
use optio_actors::trace::Deed;
use serde_json::json;

fn ended_steps(world: &World) -> Vec<Step> {
    let deeds = world.deeds().into_iter();
    deeds
        .filter_map(|traced| match traced.deed {
            Deed::StepEnded { step, .. } => Some(step),
            _ => None,
        })
        .collect()
}

fn place(world: &World, wanted: impl Fn(&Deed) -> bool) -> usize {
    world.deeds().iter().position(|traced| wanted(&traced.deed)).expect("the deed was done")
}

#[actix::test]
async fn a_stop_walks_every_step_once_and_in_order() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.talk(&id, "hello").await;
    world.rotate(&id);
    let view = world.stop(&id).await;
    assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Stopped)));
    assert_eq!(ended_steps(&world), Step::ALL);
    let states: Vec<_> = view.teardown.iter().map(|step| (step.step, step.state)).collect();
    assert_eq!(states.iter().filter(|(_, state)| *state == "done").count(), 8, "{states:?}");
    assert_eq!(view.teardown[5].state, "skipped", "a seeded run captures no seed");
    let times: Vec<_> =
        view.teardown.iter().flat_map(|s| [s.started_at.unwrap(), s.ended_at.unwrap()]).collect();
    assert!(times.is_sorted(), "{times:?}");
    let gone = place(&world, |d| *d == Deed::AgentGone);
    let saved = place(&world, |d| *d == Deed::SavedBack);
    let released = place(&world, |d| matches!(d, Deed::LeaseReleased { .. }));
    let stored = place(&world, |d| *d == Deed::SnapshotStored);
    let wiped = place(&world, |d| *d == Deed::Wiped);
    assert!(gone < released && saved < released && released < stored && stored < wiped);
    assert_eq!(world.count(&id, "teardown.step"), 2 * Step::ALL.len());
    assert_eq!(world.memory.snapshot_count(&id), 1);
    world.check().await;
}

#[actix::test]
async fn a_stop_that_is_asked_for_twice_is_one_teardown() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.say(&id, "@hold a b").await;
    world.wait_state(&id, State::Working).await;
    let service = world.service();
    let both = tokio::join!(service.stop(&id, StopMode::Graceful), service.stop(&id, StopMode::Graceful));
    assert!(both.0.is_ok() && both.1.is_ok());
    world.wait_over(&id).await;
    assert_eq!(ended_steps(&world), Step::ALL);
    world.check().await;
}

#[actix::test]
async fn an_ended_session_cannot_be_stopped_again() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.stop(&id).await;
    let refused = world.service().stop(&id, StopMode::Graceful).await.unwrap_err();
    assert!(refused.to_string().contains("ended"), "{refused}");
}

#[actix::test]
async fn a_cancelled_run_without_a_seed_kills_at_once() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.say(&id, "@hold a b").await;
    world.wait_state(&id, State::Working).await;
    world.service().stop(&id, StopMode::Cancel).await.unwrap();
    let view = world.wait_over(&id).await;
    assert_eq!(view.teardown[1].detail.as_deref(), Some("killed"));
    world.check().await;
}

#[actix::test]
async fn a_cancelled_run_with_a_seed_ends_gently_all_the_same() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.say(&id, "@hold a b").await;
    world.wait_state(&id, State::Working).await;
    world.service().stop(&id, StopMode::Cancel).await.unwrap();
    let view = world.wait_over(&id).await;
    assert_eq!(view.teardown[1].detail.as_deref(), Some("it ended after SIGTERM"));
    assert!(world.count(&id, "turn.completed") == 1, "the turn was interrupted first");
    world.check().await;
}

#[actix::test]
async fn a_login_that_rotated_just_before_the_stop_is_home_before_the_release() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    let newest = world.rotate(&id);
    world.stop(&id).await;
    assert_eq!(world.memory.credential(&seed), Some(newest));
    world.check().await;
}

#[actix::test]
async fn a_run_without_resume_support_is_wiped_without_a_snapshot() {
    let world = World::new().await;
    let id = world.launch(json!({ "supports_resume": false })).await;
    world.talk(&id, "hello").await;
    world.stop(&id).await;
    assert_eq!(world.memory.snapshot_count(&id), 0);
    let skipped = |deed: &Deed| {
        matches!(deed, Deed::StepEnded { step: Step::CaptureSnapshot, outcome: Outcome::Skipped { .. } })
    };
    assert!(world.deeds().iter().any(|traced| skipped(&traced.deed)));
    world.check().await;
}
