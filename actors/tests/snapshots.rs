//! One run stores one snapshot, its own: whatever the clocks say, and whichever snapshot it began from.
#![allow(clippy::unwrap_used)]

use optio_actors::session::phase::{EndState, State};
use optio_actors::sessions::Resume;
use optio_actors::testing::World;
use optio_store::{SNAPSHOTS_KEPT, SessionId, SnapshotId, Snapshots};
use serde_json::json;

/// Lets a session run once more, write `file`, and end.
async fn run_again(world: &World, id: &SessionId, snapshot: Option<SnapshotId>, file: &str) {
    world.service().resume(Resume { session: id.clone(), snapshot }).await.unwrap();
    world.wait(id, "a live run", |view| matches!(view.state, State::Idle | State::Working)).await;
    world.host.put_file(&world.dir(id).workdir().join(file), "work");
    let view = world.stop(id).await;
    assert_eq!((view.outcome, view.workdir_kept), (Some(EndState::Stopped), None));
}

fn has(world: &World, id: &SessionId, file: &str) -> bool {
    world.host.file(&world.dir(id).workdir().join(file)).is_some()
}

// In a world the store's clock runs ahead of ours: ours is the machine's, which stands still while virtual time passes.
#[actix::test]
async fn a_resumed_run_stores_its_work_though_the_clock_of_the_store_is_ahead() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.talk(&id, "hello").await;
    world.stop(&id).await;
    tokio::time::advance(std::time::Duration::from_secs(3600)).await;
    run_again(&world, &id, None, "first").await;
    run_again(&world, &id, None, "second").await;
    assert_eq!(world.memory.snapshot_count(&id), 3);
    world.service().resume(Resume { session: id.clone(), snapshot: None }).await.unwrap();
    world.wait(&id, "a live run", |view| matches!(view.state, State::Idle | State::Working)).await;
    assert!(has(&world, &id, "first") && has(&world, &id, "second"));
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn a_run_from_an_older_snapshot_stores_its_own_and_its_resume_begins_there() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.talk(&id, "hello").await;
    world.stop(&id).await;
    run_again(&world, &id, None, "newer").await;
    let oldest = Snapshots::list(&world.memory, &id).await.unwrap().pop().unwrap().id;
    run_again(&world, &id, Some(oldest), "branch").await;
    assert_eq!(world.memory.snapshot_count(&id), 3);
    world.service().resume(Resume { session: id.clone(), snapshot: None }).await.unwrap();
    world.wait(&id, "a live run", |view| matches!(view.state, State::Idle | State::Working)).await;
    assert!(has(&world, &id, "branch") && !has(&world, &id, "newer"));
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn more_runs_than_snapshots_are_kept_each_store_theirs() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.talk(&id, "hello").await;
    world.stop(&id).await;
    for run in 1..8 {
        run_again(&world, &id, None, &format!("run-{run}")).await;
    }
    assert_eq!(world.memory.snapshot_count(&id), SNAPSHOTS_KEPT);
    world.service().resume(Resume { session: id.clone(), snapshot: None }).await.unwrap();
    world.wait(&id, "a live run", |view| matches!(view.state, State::Idle | State::Working)).await;
    assert!(has(&world, &id, "run-1") && has(&world, &id, "run-7"));
}
