//! Launches that do not go well: whatever breaks, and whenever somebody stops it, the run leaves through the whole
//! teardown, says why, and nothing of it is left (INV-11).
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use optio_actors::faults::FaultKind;
use optio_actors::session::StopMode;
use optio_actors::session::phase::{EndState, State};
use optio_actors::session::status::SessionView;
use optio_actors::sessions::Resume;
use optio_actors::supervision::ChildKind;
use optio_actors::testing::{Behaviour, World, play};
use optio_actors::trace::Deed;
use optio_store::faulty::{Fault, StoreOp};
use optio_store::{Holder, Leases, SeedId, SeedPatch, SeedStatus, Seeds, SessionId, Want};
use serde_json::{Value, json};

/// The steps without which there is no run.
const NEEDED: [(ChildKind, &str); 5] = [
    (ChildKind::HostLink, "connect"),
    (ChildKind::Snapshotter, "restore"),
    (ChildKind::LeaseRenewer, "acquire"),
    (ChildKind::Process, "start"),
    (ChildKind::ConversationReader, "attach"),
];

/// The steps whose failure a run survives.
const FORGIVEN: [(ChildKind, &str); 3] = [
    (ChildKind::CredWatcher, "watch"),
    (ChildKind::LeaseRenewer, "renew"),
    (ChildKind::Process, "heartbeat"),
];

const BROKEN: [FaultKind; 3] = [FaultKind::Panic, FaultKind::Error, FaultKind::Hang];

/// A session that has a snapshot and a seed, so that its next run comes through every step.
async fn ended_session(world: &World) -> (SessionId, SeedId) {
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.talk(&id, "hello").await;
    world.stop(&id).await;
    (id, seed)
}

async fn resume(world: &World, id: &SessionId) {
    world.service().resume(Resume { session: id.clone(), snapshot: None }).await.unwrap();
}

/// Nothing of the run is left, and the seed serves the next one.
async fn nothing_is_left(world: &World, view: &SessionView, seed: &SeedId) {
    assert_eq!(view.state, State::Ended, "{view:#?}");
    assert!(view.teardown.iter().all(|step| step.ended_at.is_some()), "{view:#?}");
    assert_eq!(world.host.agents_running(), 0);
    assert!(world.host.files(world.dir(&view.id).path()).is_empty(), "{view:#?}");
    assert_eq!(world.memory.holder(seed), None, "{view:#?}");
    world.check().await;
    let next = world.launch(json!({ "seed": { "id": seed } })).await;
    world.talk(&next, "still there?").await;
    world.stop(&next).await;
    world.check().await;
}

/// Plays a story of each cell in a world of its own and names the cells that broke.
fn each<C: std::fmt::Debug + Copy>(cells: impl IntoIterator<Item = C>, story: impl AsyncFn(C)) {
    let broken: Vec<_> = cells
        .into_iter()
        .filter(|cell| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(story(*cell)))).is_err())
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

fn cells(
    steps: &'static [(ChildKind, &'static str)],
) -> impl Iterator<Item = (ChildKind, &'static str, FaultKind)> {
    steps.iter().flat_map(|(child, step)| BROKEN.map(|kind| (*child, *step, kind)))
}

#[test]
fn a_launch_that_breaks_at_a_needed_step_says_so_and_leaves_nothing() {
    each(cells(&NEEDED), async |(child, step, kind)| {
        let world = World::new().await;
        let (id, seed) = ended_session(&world).await;
        assert!(world.faults.arm(child, step, kind, 1));
        resume(&world, &id).await;
        let view = world.wait_over(&id).await;
        assert_eq!(world.faults.armed(), 0, "the fault did not strike");
        assert_eq!(view.outcome, Some(EndState::Failed));
        let reason = view.reason.clone().unwrap();
        let named = match kind {
            FaultKind::Panic => "died during the launch",
            FaultKind::Error => step,
            _ => "did not end within",
        };
        assert!(reason.contains(named), "{reason}");
        // The one of the run before, which nothing shadows.
        assert_eq!(world.memory.snapshot_count(&id), 1);
        nothing_is_left(&world, &view, &seed).await;
    });
}

#[test]
fn a_launch_goes_on_after_a_fault_that_it_can_do_without() {
    each(cells(&FORGIVEN), async |(child, step, kind)| {
        let world = World::new().await;
        let seed = world.seed("acme").await;
        assert!(world.faults.arm(child, step, kind, 1));
        let id = world.launch(json!({ "seed": { "id": seed } })).await;
        world.until("the fault", async || world.faults.armed() == 0).await;
        world.talk(&id, "hello").await;
        let newest = world.rotate(&id);
        world.until("the save", async || world.memory.credential(&seed).as_ref() == Some(&newest)).await;
        let view = world.stop(&id).await;
        assert_eq!(view.outcome, Some(EndState::Stopped));
        nothing_is_left(&world, &view, &seed).await;
    });
}

#[test]
fn a_slow_step_is_waited_for() {
    let steps = NEEDED.into_iter().chain(FORGIVEN);
    each(steps, async |(child, step)| {
        let world = World::new().await;
        let (id, seed) = ended_session(&world).await;
        assert!(world.faults.arm(child, step, FaultKind::Delay { ms: 4000 }, 1));
        resume(&world, &id).await;
        world.wait(&id, "a live run", |v| matches!(v.state, State::Idle | State::Working)).await;
        world.until("the fault", async || world.faults.armed() == 0).await;
        let view = world.stop(&id).await;
        nothing_is_left(&world, &view, &seed).await;
    });
}

/// How a launch step keeps the stop waiting.
#[derive(Debug, Clone, Copy)]
enum Meanwhile {
    Slow,
    Hung,
    /// It ends well after the launch has been given up.
    TooSlow,
}

#[test]
fn a_stop_during_any_step_of_a_launch_leaves_nothing() {
    let kinds = [Meanwhile::Slow, Meanwhile::Hung, Meanwhile::TooSlow];
    let cells = NEEDED.into_iter().flat_map(|cell| kinds.map(|kind| (cell, kind)));
    each(cells, async |((child, step), how)| {
        let world = World::new().await;
        let (id, seed) = ended_session(&world).await;
        let kind = match how {
            Meanwhile::Slow => FaultKind::Delay { ms: 3000 },
            Meanwhile::Hung => FaultKind::Hang,
            Meanwhile::TooSlow => FaultKind::Delay { ms: 6000 },
        };
        assert!(world.faults.arm(child, step, kind, 1));
        resume(&world, &id).await;
        world.until("the fault", async || world.faults.armed() == 0).await;
        if let Meanwhile::TooSlow = how {
            // What ends after it was given up must not be done after the step that undoes it.
            for ms in [1, 3000] {
                world.faults.arm(ChildKind::Session, "note_stop_agent", FaultKind::Delay { ms }, 1);
            }
        }
        let asked = tokio::time::Instant::now();
        world.service().stop(&id, StopMode::Graceful).await.unwrap();
        let view = world.wait_over(&id).await;
        assert!(asked.elapsed() < Duration::from_secs(30), "it took {:?}", asked.elapsed());
        assert_eq!(view.outcome, Some(EndState::Stopped), "{view:#?}");
        tokio::time::sleep(Duration::from_secs(20)).await;
        nothing_is_left(&world, &view, &seed).await;
    });
}

#[actix::test]
async fn a_lease_whose_answer_was_lost_is_let_go() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    world.faulty_store.fail(StoreOp::Acquire, 1, Fault::DoneButError);
    let id = world.begin(json!({ "seed": { "id": seed } })).await;
    let view = world.wait_over(&id).await;
    assert!(view.reason.as_ref().unwrap().contains("the lease could not be acquired"), "{view:#?}");
    nothing_is_left(&world, &view, &seed).await;
}

/// Launches with this seed, and answers why that failed.
async fn refused(world: &World, seed: Value) -> String {
    let id = world.begin(json!({ "seed": seed })).await;
    let view = world.wait_over(&id).await;
    assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Failed)), "{view:#?}");
    assert!(world.host.files(world.dir(&id).path()).is_empty());
    assert!(world.deeds().iter().all(|done| done.session != id || done.deed != Deed::AgentStarted));
    view.reason.unwrap()
}

#[actix::test]
async fn a_seed_that_cannot_be_had_is_named_with_its_reason() {
    let world = World::new().await;
    let missing = SeedId::mint();
    let reason = refused(&world, json!({ "id": missing })).await;
    assert_eq!(reason, format!("seed {missing} does not exist"));

    let leased = world.seed("leased").await;
    let other = Holder::mint(&SessionId::mint());
    world.memory.acquire(&Want::Seed(leased.clone()), &other).await.unwrap().unwrap();
    let reason = refused(&world, json!({ "id": leased })).await;
    assert_eq!(reason, format!("seed {leased} is leased by session {}", other.session().unwrap()));
    assert_eq!(world.memory.holder(&leased), Some(other), "its lease is not touched");

    tokio::time::sleep(Duration::from_secs(61)).await;
    let reason = refused(&world, json!({ "id": leased })).await;
    assert!(reason.contains(&format!("seed {leased} was never released by its last holder")), "{reason}");

    let dead = world.seed("dead").await;
    for (status, said) in [(SeedStatus::Dead, "is dead"), (SeedStatus::NeedsRecovery, "needs recovery")] {
        let patch = SeedPatch { status: Some((status, Some("told".to_owned()))), ..SeedPatch::default() };
        Seeds::patch(&world.memory, &dead, None, patch).await.unwrap();
        assert_eq!(refused(&world, json!({ "id": dead })).await, format!("seed {dead} {said}"));
    }

    assert_eq!(refused(&world, json!({ "pool": "nobody" })).await, "no seed of pool \"nobody\" is free");
    world.check().await;
}

#[actix::test]
async fn a_pool_serves_as_many_sessions_as_it_has_seeds() {
    let world = World::new().await;
    for account in ["one", "two"] {
        world.seed_in(account, Some("team")).await;
    }
    let both = [
        world.launch(json!({ "seed": { "pool": "team" } })).await,
        world.launch(json!({ "seed": { "pool": "team" } })).await,
    ];
    assert_eq!(refused(&world, json!({ "pool": "team" })).await, "no seed of pool \"team\" is free");
    world.stop(&both[0]).await;
    let third = world.launch(json!({ "seed": { "pool": "team" } })).await;
    for id in [&both[1], &third] {
        world.stop(id).await;
    }
    world.check().await;
}

#[test]
fn an_agent_that_dies_at_once_is_quoted() {
    each([true, false], async |can_listen| {
        let world = World::new().await;
        world.codex(can_listen);
        let seed = world.seed("acme").await;
        let words = "codex: error while loading shared libraries: libssl.so.3".to_owned();
        world.agents.behave(Behaviour { dies_saying: Some(words.clone()), ..Behaviour::default() });
        let id = world.begin(json!({ "seed": { "id": seed } })).await;
        let view = world.wait_over(&id).await;
        assert_eq!(view.outcome, Some(EndState::Failed));
        assert!(view.reason.as_ref().unwrap().contains(&words), "listens: {can_listen}, {view:#?}");
        assert_eq!(world.memory.snapshot_count(&id), 0, "a run that never came up has nothing to store");
        world.agents.behave(Behaviour::default());
        nothing_is_left(&world, &view, &seed).await;
    });
}

#[test]
fn an_agent_that_never_answers_ends_within_its_limit() {
    each([true, false], async |can_listen| {
        let world = World::new().await;
        world.codex(can_listen);
        let seed = world.seed("acme").await;
        world.agents.behave(Behaviour { mute: true, ..Behaviour::default() });
        let asked = tokio::time::Instant::now();
        let id = world.begin(json!({ "seed": { "id": seed } })).await;
        let view = world.wait_over(&id).await;
        assert!(asked.elapsed() < Duration::from_secs(60), "it took {:?}", asked.elapsed());
        assert!(
            view.reason.as_ref().unwrap().contains("did not finish the handshake within 30s"),
            "{view:#?}"
        );
        world.agents.behave(Behaviour::default());
        nothing_is_left(&world, &view, &seed).await;
    });
}

#[actix::test]
async fn a_codex_that_is_missing_or_too_old_is_said() {
    let world = World::new().await;
    world.codex(false);
    let id = world.begin(json!({ "transport": "unix" })).await;
    let view = world.wait_over(&id).await;
    assert!(view.reason.unwrap().contains("codex 0.100.0 cannot listen on a socket"));
    world.check().await;
}
