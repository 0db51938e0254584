//! Stores and hosts that fail at any of their operations, at any time of a run: the verdict is the one of the fault
//! matrix, and what could not be done is done or said after the next start.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use optio_actors::session::StopMode;
use optio_actors::session::phase::{Phase, State};
use optio_actors::sessions::Resume;
use optio_actors::testing::{World, play};
use optio_host::faulty::{FaultKind, HostOp};
use optio_store::SessionId;
use optio_store::faulty::{Fault, StoreOp};
use serde_json::json;

const STORE: [StoreOp; 17] = [
    StoreOp::GetSeed,
    StoreOp::ListSeeds,
    StoreOp::Load,
    StoreOp::SaveCredential,
    StoreOp::PatchSeed,
    StoreOp::Acquire,
    StoreOp::Renew,
    StoreOp::Release,
    StoreOp::BeginSnapshot,
    StoreOp::WriteSnapshot,
    StoreOp::CommitSnapshot,
    StoreOp::ListSnapshots,
    StoreOp::GetSnapshot,
    StoreOp::OpenSnapshot,
    StoreOp::UpdateRecord,
    StoreOp::PutSpool,
    StoreOp::ConfirmSpool,
];

const HOST: [HostOp; 21] = [
    HostOp::Home,
    HostOp::Create,
    HostOp::Cleanup,
    HostOp::Spawn,
    HostOp::Read,
    HostOp::ReadFrom,
    HostOp::Write,
    HostOp::Append,
    HostOp::MakeDir,
    HostOp::Link,
    HostOp::List,
    HostOp::Archive,
    HostOp::Restore,
    HostOp::Dial,
    HostOp::Watch,
    HostOp::FindCodex,
    HostOp::GuardStart,
    HostOp::GuardState,
    HostOp::GuardHeartbeat,
    HostOp::GuardSignal,
    HostOp::GuardGone,
];

#[derive(Debug, Clone, Copy)]
enum Broken {
    Store(StoreOp, Fault),
    Host(HostOp, FaultKind),
}

/// When the part breaks.
#[derive(Debug, Clone, Copy)]
enum When {
    Launch,
    Live,
    Teardown,
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    part: Broken,
    when: When,
    /// The first call that fails, and how many do.
    nth: usize,
    times: usize,
}

impl Cell {
    fn arm(self, world: &World) {
        for nth in self.nth..self.nth + self.times {
            match self.part {
                Broken::Store(op, fault) => world.faulty_store.fail(op, nth as u64, fault),
                Broken::Host(op, fault) => world.faulty_host.fail_nth(op, nth, fault),
            }
        }
    }
}

/// A run that resumes, talks, rotates its login and is stopped, with one part broken on its way. Answers how often that
/// part was used from then on.
async fn cell(cell: Cell) -> u64 {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.talk(&id, "hello").await;
    world.host.put_file(&world.dir(&id).workdir().join("work"), "of the first run");
    world.stop(&id).await;
    let mut before = cell.part.calls(&world);
    if let When::Launch = cell.when {
        cell.arm(&world);
    }
    let resume = Resume { session: id.clone(), snapshot: None };
    if world.service().resume(resume.clone()).await.is_err() {
        // Said at once, and nothing was begun.
        assert_eq!(world.record(&id).await.phase, Phase::Ended, "{cell:?}");
        world.faulty_store.heal();
        world.service().resume(resume).await.unwrap();
    }
    let settled = |state| matches!(state, State::Idle | State::Working | State::Ended | State::Lost);
    let view = world.wait(&id, "the launch's outcome", |view| settled(view.state)).await;
    if matches!(view.state, State::Idle | State::Working) {
        before = run_and_stop(&world, &id, cell).await.unwrap_or(before);
    }
    at_rest(&world, &id).await;
    let used = cell.part.calls(&world) - before;
    verdict(&world, &id, cell).await;
    used
}

/// Answers how often the part had been used before it was broken, if that is done here.
async fn run_and_stop(world: &World, id: &SessionId, cell: Cell) -> Option<u64> {
    let mut before = None;
    let mut arm = || {
        before = Some(cell.part.calls(world));
        cell.arm(world);
    };
    if let When::Live = cell.when {
        arm();
    }
    world.rotate(id);
    world.host.put_file(&world.dir(id).workdir().join("more"), "of the second run");
    // Through two renewals and some looks of everybody.
    tokio::time::sleep(Duration::from_secs(25)).await;
    if let When::Teardown = cell.when {
        world.rotate(id);
        arm();
    }
    // A run that has ended by itself, or a record that cannot be written, refuses; the next start ends it.
    let _ = world.service().stop(id, StopMode::Graceful).await;
    before
}

async fn at_rest(world: &World, id: &SessionId) {
    world
        .until("the end of the actors", async || {
            world.service().actors(id).await.is_ok_and(|actors| actors.is_empty())
        })
        .await;
}

async fn verdict(world: &World, id: &SessionId, cell: Cell) {
    world.faulty_store.heal();
    world.faulty_host.heal();
    let wrong = match world.record(id).await.phase {
        Phase::Ended | Phase::Lost => world.wrong().await,
        _ => Vec::new(),
    };
    assert!(wrong.is_empty(), "{cell:?}: {wrong:#?}\n{}", world.story());
    // What was left over is taken up by the next start.
    world.crash();
    world.restart().await;
    let view = world.wait_over(id).await;
    assert_eq!(view.state, State::Ended, "{cell:?}: the next start ends it: {view:#?}");
    assert!(view.outcome.is_some() && view.reason.is_some_and(|reason| !reason.is_empty()), "{cell:?}");
    assert_eq!(world.host.agents_running(), 0, "{cell:?}");
    let newest = world.agents.newest_login("acme");
    let seed = view.run.unwrap().seed;
    let home = seed.is_none_or(|seed| newest.is_none() || world.memory.credential(&seed) == newest);
    let spooled = world.spooled().await.iter().any(|entry| Some(&entry.auth_json) == newest.as_ref());
    let file = world.host.file(&world.dir(id).workdir().join("home/.codex/auth.json"));
    assert!(home || spooled || file == newest, "{cell:?}: the newest login is lost");
    assert!(world.memory.snapshot_count(id) >= 1, "{cell:?}: its work is lost");
}

impl Broken {
    fn calls(self, world: &World) -> u64 {
        match self {
            Self::Store(op, _) => world.faulty_store.calls(op),
            Self::Host(op, _) => world.faulty_host.calls(op) as u64,
        }
    }
}

/// Plays the cells of one operation and answers those that broke. What is not called meanwhile cannot break.
fn row(when: When, error: Broken, hang: Broken, done: Broken) -> Vec<Cell> {
    let cells = [(error, 1, 1), (hang, 1, 1), (done, 1, 1), (error, 2, 1), (hang, 1, 40), (error, 1, 40)];
    let mut broken = Vec::new();
    for (part, nth, times) in cells {
        let one = Cell { part, when, nth, times };
        match std::panic::catch_unwind(|| play(cell(one))) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => broken.push(one),
        }
    }
    broken
}

fn stores(when: When) {
    let rows = STORE.map(|op| {
        let fault = |fault| Broken::Store(op, fault);
        row(when, fault(Fault::Error), fault(Fault::Hang), fault(Fault::DoneButError))
    });
    assert!(rows.iter().all(Vec::is_empty), "{:#?}", rows.concat());
}

fn hosts(when: When) {
    let rows = HOST.map(|op| {
        let fault = |fault| Broken::Host(op, fault);
        row(when, fault(FaultKind::Error), fault(FaultKind::Hang), fault(FaultKind::ErrorAfterDoing))
    });
    assert!(rows.iter().all(Vec::is_empty), "{:#?}", rows.concat());
}

#[test]
fn a_store_that_fails_during_a_launch_loses_nothing() {
    stores(When::Launch);
}

#[test]
fn a_store_that_fails_while_a_session_is_live_loses_nothing() {
    stores(When::Live);
}

#[test]
fn a_store_that_fails_during_a_teardown_loses_nothing() {
    stores(When::Teardown);
}

#[test]
fn a_host_that_fails_during_a_launch_loses_nothing() {
    hosts(When::Launch);
}

#[test]
fn a_host_that_fails_while_a_session_is_live_loses_nothing() {
    hosts(When::Live);
}

#[test]
fn a_host_that_fails_during_a_teardown_loses_nothing() {
    hosts(When::Teardown);
}
