//! The service is killed, at every point, and started again: what lived is adopted, what had begun to end goes on to
//! end, in order, and nothing is lost or done twice.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use optio_actors::faults::FaultKind;
use optio_actors::session::phase::{EndState, State};
use optio_actors::session::{AnswerApproval, StopMode, approvals::Decision};
use optio_actors::sessions::OnExit;
use optio_actors::supervision::ChildKind;
use optio_actors::teardown::Step;
use optio_actors::testing::{World, play};
use optio_actors::trace::Deed;
use optio_store::faulty::{Fault, StoreOp};
use optio_store::{ApprovalId, Holder, Leases, SeedId, SessionId};
use serde_json::json;

/// Longer than any test waits.
const LONG: FaultKind = FaultKind::Delay { ms: 3_600_000 };

/// Plays a story of each cell in a world of its own and names the cells that broke.
fn each<C: std::fmt::Debug + Copy>(cells: impl IntoIterator<Item = C>, story: impl AsyncFn(C)) {
    let fails =
        |cell: &C| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(story(*cell)))).is_err();
    let broken: Vec<_> = cells.into_iter().filter(fails).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

async fn seeded(world: &World) -> (SeedId, SessionId) {
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed }, "permission_gate": true })).await;
    (seed, id)
}

/// Kills the service, lets some time pass, and starts another one.
async fn crash_for(world: &World, seconds: u64) {
    world.crash();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    world.restart().await;
}

async fn answer(world: &World, id: &SessionId, approval: ApprovalId) {
    let decision = Decision::Accept;
    let answer = AnswerApproval { approval, decision, by: "owner".to_owned(), note: None };
    world.service().answer(id, answer).await.unwrap();
}

/// Where a launch stands when the service is killed.
#[derive(Debug, Clone, Copy)]
enum Launching {
    /// The child is about to do this.
    Before(ChildKind, &'static str),
    /// This write of the record does not come through any more.
    Unwritten(u64),
}

#[test]
fn a_launch_that_is_cut_off_is_ended_or_goes_on() {
    let steps = [
        (ChildKind::HostLink, "connect"),
        (ChildKind::LeaseRenewer, "acquire"),
        (ChildKind::CredWatcher, "watch"),
        (ChildKind::Process, "start"),
        (ChildKind::ConversationReader, "attach"),
    ];
    // Before the acquire, after it, after the planting, before and after the start, after the attach.
    let cells = steps
        .map(|(child, step)| Launching::Before(child, step))
        .into_iter()
        .chain((1..=6).map(Launching::Unwritten));
    each(cells, async |at| {
        let world = World::new().await;
        let seed = world.seed("acme").await;
        match at {
            Launching::Before(child, step) => assert!(world.faults.arm(child, step, LONG, 1)),
            Launching::Unwritten(nth) => world.faulty_store.fail(StoreOp::UpdateRecord, nth, Fault::Hang),
        }
        let calls = world.faulty_store.calls(StoreOp::UpdateRecord);
        let id = world.begin(json!({ "seed": { "id": seed } })).await;
        match at {
            Launching::Before(..) => world.until("the step", async || world.faults.armed() == 0).await,
            Launching::Unwritten(nth) => {
                world
                    .until("the write", async || {
                        world.faulty_store.calls(StoreOp::UpdateRecord) >= calls + nth
                    })
                    .await;
            }
        }
        crash_for(&world, 5).await;
        let adopted = || world.count(&id, "session.adopted") > 0;
        world.until("rest", async || adopted() || world.count(&id, "session.ended") > 0).await;
        if adopted() {
            world.talk(&id, "hello").await;
            assert_eq!(world.stop(&id).await.outcome, Some(EndState::Stopped));
        } else {
            let view = world.wait_over(&id).await;
            assert_eq!(view.outcome, Some(EndState::Failed));
            assert!(view.reason.unwrap().contains("service stopped while the session was starting"));
        }
        assert_eq!((world.host.agents_running(), world.memory.holder(&seed)), (0, None));
        world.check().await;
        let next = world.launch(json!({ "seed": { "id": seed } })).await;
        world.stop(&next).await;
        world.check().await;
    });
}

#[actix::test]
async fn an_idle_session_is_adopted_and_goes_on() {
    let world = World::new().await;
    let (seed, id) = seeded(&world).await;
    world.talk(&id, "hello").await;
    world.crash();
    let newest = world.rotate(&id);
    tokio::time::sleep(Duration::from_secs(30)).await;
    world.restart().await;
    world.wait_event(&id, "session.adopted", "").await;
    world.until("the save", async || world.memory.credential(&seed).as_ref() == Some(&newest)).await;
    // The guard would have ended it at 45 s.
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.talk(&id, "still there?").await;
    assert_eq!(world.answers(&id), ["pong: hello", "pong: still there?"]);
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn a_run_that_cannot_be_taken_over_in_time_is_torn_down_in_order() {
    let world = World::new().await;
    let (seed, id) = seeded(&world).await;
    world.talk(&id, "hello").await;
    world.crash();
    assert!(world.faults.arm(ChildKind::HostLink, "connect", FaultKind::Hang, 1));
    world.restart().await;
    let view = world.wait_over(&id).await;
    assert!(view.reason.unwrap().contains("could not be taken over within 180s"));
    assert_eq!((view.outcome, world.memory.holder(&seed)), (Some(EndState::Failed), None));
    assert_eq!(world.memory.snapshot_count(&id), 1);
    world.check().await;
}

#[test]
fn a_turn_goes_on_while_the_service_is_away() {
    each([true, false], async |ends_meanwhile| {
        let world = World::new().await;
        let (_, id) = seeded(&world).await;
        world.say(&id, "@hold one two").await;
        world.wait_state(&id, State::Working).await;
        world.crash();
        tokio::time::sleep(Duration::from_secs(5)).await;
        if ends_meanwhile {
            world.agents.release();
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        world.restart().await;
        if !ends_meanwhile {
            world.wait_state(&id, State::Working).await;
            world.agents.release();
        }
        world.wait_state(&id, State::Idle).await;
        world.until("the answer", async || world.answers(&id).len() == 1).await;
        assert_eq!(world.answers(&id), ["one two"], "whole, and once");
        assert_eq!(world.count(&id, "turn.completed"), 1);
        world.talk(&id, "hello").await;
        world.stop(&id).await;
        world.check().await;
    });
}

#[actix::test]
async fn a_question_is_asked_again_under_its_id_and_answered_once() {
    let world = World::new().await;
    let (_, id) = seeded(&world).await;
    world.say(&id, "@ask make").await;
    let asked = world.wait_state(&id, State::Waiting).await.waiting;
    for _ in 0..3 {
        crash_for(&world, 5).await;
        world.wait_event(&id, "session.adopted", "").await;
        assert_eq!(world.wait_state(&id, State::Waiting).await.waiting, asked);
    }
    answer(&world, &id, asked[0].id.parse().unwrap()).await;
    world.until("the answer", async || world.answers(&id) == ["accept: make"]).await;
    assert_eq!(world.service().approvals(&id).await.unwrap().len(), 1);
    assert_eq!(world.count(&id, "approval.requested"), 1);
    assert_eq!(world.count(&id, "approval.resolved"), 1);
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn an_answer_that_did_not_arrive_is_given_again() {
    let world = World::new().await;
    let (_, id) = seeded(&world).await;
    world.say(&id, "@ask make").await;
    let asked = world.wait_state(&id, State::Waiting).await.waiting;
    world.faults.arm(ChildKind::ConversationReader, "beat", FaultKind::Hang, 1);
    world.until("the fault", async || world.faults.armed() == 0).await;
    answer(&world, &id, asked[0].id.parse().unwrap()).await;
    assert_eq!(world.answers(&id), [""; 0], "a hung reader passes nothing on");
    crash_for(&world, 5).await;
    world.until("the answer", async || world.answers(&id) == ["accept: make"]).await;
    let view = world.wait_state(&id, State::Idle).await;
    assert_eq!((view.waiting, world.count(&id, "approval.requested")), (Vec::new(), 1));
    world.stop(&id).await;
    world.check().await;
}

#[test]
fn an_agent_that_ended_while_the_service_was_away_leaves_its_login_and_its_work() {
    each([true, false], async |can_listen| {
        let world = World::new().await;
        world.codex(can_listen);
        let (seed, id) = seeded(&world).await;
        world.talk(&id, "hello").await;
        world.crash();
        let newest = world.rotate(&id);
        tokio::time::sleep(Duration::from_secs(70)).await;
        assert_eq!(world.host.agents_running(), 0, "the guard, or the end of its pipes, has ended it");
        world.restart().await;
        let view = world.wait_over(&id).await;
        assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Failed)));
        let said = if can_listen { "its guard ended it" } else { "ended while the service was away" };
        assert!(view.reason.unwrap().contains(said));
        assert_eq!(world.memory.credential(&seed), Some(newest));
        assert_eq!((world.memory.holder(&seed), world.memory.snapshot_count(&id)), (None, 1));
        world.check().await;
    });
}

#[test]
fn a_lease_that_went_to_somebody_else_meanwhile_is_left_to_them() {
    each([10, 70], async |seconds| {
        let world = World::new().await;
        let (seed, id) = seeded(&world).await;
        let planted = world.memory.credential(&seed);
        world.crash();
        let newest = world.rotate(&id);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let thief = if seconds > 60 {
            let mender = Holder::mint_for("mender");
            world.memory.acquire_for_recovery(&seed, &mender).await.unwrap().unwrap();
            mender
        } else {
            world.steal(&seed).await
        };
        let log = world.memory.log().len();
        world.restart().await;
        let view = world.wait_over(&id).await;
        assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Failed)));
        assert_eq!((world.host.agents_running(), world.memory.holder(&seed)), (0, Some(thief)));
        assert_eq!((world.memory.credential(&seed), world.memory.log().len()), (planted, log));
        assert_eq!(world.spooled().await.last().unwrap().auth_json, newest);
        world.check().await;
    });
}

/// Holds the teardown before a step's begin is on record, or after its deed and before its end is.
fn hold(world: &World, step: Step, after_the_deed: bool) {
    let seam = format!("note_{step}");
    if after_the_deed {
        assert!(world.faults.arm(ChildKind::Session, seam.clone(), FaultKind::Delay { ms: 1 }, 1));
    }
    assert!(world.faults.arm(ChildKind::Session, seam, LONG, 1));
}

async fn ended_well(world: &World, seed: &SeedId, id: &SessionId) {
    let view = world.wait_over(id).await;
    assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Stopped)), "{view:#?}");
    assert_eq!(view.reason.as_deref(), Some("stopped on request"));
    assert!(view.teardown.iter().all(|s| matches!(s.state, "done" | "skipped")), "{view:#?}");
    assert_eq!(world.memory.snapshot_count(id), 1, "one run stores one snapshot");
    assert_eq!((world.host.agents_running(), world.memory.holder(seed)), (0, None));
    world.check().await;
}

#[test]
fn a_teardown_that_is_cut_off_at_any_step_goes_on_there() {
    let cells = Step::ALL.into_iter().flat_map(|step| [(step, false), (step, true)]);
    each(cells, async |(step, after_the_deed)| {
        let world = World::new().await;
        let (seed, id) = seeded(&world).await;
        world.talk(&id, "hello").await;
        world.say(&id, "@ask make").await;
        world.wait_state(&id, State::Waiting).await;
        let newest = world.rotate(&id);
        hold(&world, step, after_the_deed);
        world.service().stop(&id, StopMode::Graceful).await.unwrap();
        world.until("the step", async || world.faults.armed() == 0).await;
        crash_for(&world, 5).await;
        ended_well(&world, &seed, &id).await;
        assert_eq!(world.memory.credential(&seed), Some(newest));
        let deeds = world.deeds();
        let ended = |d: &Deed| matches!(d, Deed::StepEnded { step: ended, .. } if *ended == step);
        assert!(deeds.iter().any(|traced| ended(&traced.deed)));
        assert_eq!(world.count(&id, "approval.resolved"), 1);
    });
}

#[actix::test]
async fn a_service_that_dies_at_every_step_of_a_teardown_ends_it_all_the_same() {
    let world = World::new().await;
    let (seed, id) = seeded(&world).await;
    world.talk(&id, "hello").await;
    let newest = world.rotate(&id);
    for step in Step::ALL {
        hold(&world, step, true);
    }
    world.service().stop(&id, StopMode::Graceful).await.unwrap();
    for left in (0..Step::ALL.len()).rev() {
        world.until("the next step", async || world.faults.armed() == 2 * left).await;
        crash_for(&world, 2).await;
    }
    ended_well(&world, &seed, &id).await;
    assert_eq!(world.memory.credential(&seed), Some(newest));
}

#[test]
fn a_service_that_leaves_in_order_leaves_agents_that_listen_and_ends_those_on_pipes() {
    each([true, false], async |can_listen| {
        let world = World::new().await;
        world.codex(can_listen);
        let (seed, id) = seeded(&world).await;
        world.talk(&id, "hello").await;
        let newest = world.rotate(&id);
        world.leave(OnExit::Detach).await;
        assert_eq!(world.host.agents_running(), usize::from(can_listen));
        tokio::time::sleep(Duration::from_secs(40)).await;
        world.restart().await;
        if can_listen {
            world.wait_event(&id, "session.adopted", "").await;
            world.talk(&id, "still there?").await;
            world.stop(&id).await;
        }
        let view = world.wait_over(&id).await;
        assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Stopped)));
        assert_eq!((world.memory.credential(&seed), world.memory.holder(&seed)), (Some(newest), None));
        world.check().await;
    });
}
