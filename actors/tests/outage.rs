//! A store that is away for a while: what a session did meanwhile is on record once it is back, also when answers of
//! the store were lost on the way.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use optio_actors::session::approvals::Decision;
use optio_actors::session::phase::{EndState, Phase, State};
use optio_actors::session::{AnswerApproval, StopMode};
use optio_actors::sessions::OnExit;
use optio_actors::testing::World;
use optio_store::faulty::{Fault, StoreOp};
use optio_store::{RecordRow, Records, RunId};
use serde_json::json;
use tokio::time::{Instant, sleep};

const RECORDS: [StoreOp; 2] = [StoreOp::UpdateRecord, StoreOp::GetRecord];

#[actix::test]
async fn an_end_during_an_outage_is_on_record_when_the_store_is_back() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.talk(&id, "hello").await;
    // Longer than every try of a single save.
    for op in RECORDS {
        world.faulty_store.fail_always(op, Fault::Error);
    }
    let refused = world.service().stop(&id, StopMode::Graceful).await;
    let begun = Instant::now();
    world.until("the end of the agent", async || world.host.agents_running() == 0).await;
    sleep(Duration::from_secs(300)).await;
    assert_eq!(world.record(&id).await.phase, Phase::Live, "nothing could be stored: {refused:?}");
    world.faulty_store.heal();
    let view = world.wait_over(&id).await;
    assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Stopped)));
    assert_eq!(world.record(&id).await.phase, Phase::Ended, "{:?} after the stop", begun.elapsed());
    world.check().await;
    world.service().delete(&id).await.unwrap();
}

#[actix::test]
async fn a_service_that_ends_its_sessions_does_not_wait_for_a_store_that_stays_away() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.talk(&id, "hello").await;
    for op in RECORDS {
        world.faulty_store.fail_always(op, Fault::Error);
    }
    let service = world.service();
    let leaving = service.drain(OnExit::Teardown);
    assert!(tokio::time::timeout(Duration::from_secs(900), leaving).await.is_ok(), "it waits for ever");
    world.crash();
    world.faulty_store.heal();
    world.restart().await;
    assert_eq!(world.wait_over(&id).await.state, State::Ended);
    assert_eq!((world.record(&id).await.phase, world.memory.snapshot_count(&id)), (Phase::Ended, 1));
    world.check().await;
}

#[actix::test]
async fn a_write_whose_answer_was_lost_does_not_lock_the_session_out_of_its_own_record() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.faulty_store.fail(StoreOp::UpdateRecord, 1, Fault::DoneButError);
    world.talk(&id, "one").await;
    world.talk(&id, "two").await;
    world.until("the turns are on record", async || world.record(&id).await.run.unwrap().had_turn).await;
    world.stop(&id).await;
    assert_eq!(world.record(&id).await.phase, Phase::Ended);
    world.check().await;
}

#[actix::test]
async fn a_record_that_somebody_else_has_taken_on_is_not_overwritten() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    let mut stolen = world.record(&id).await;
    stolen.run.as_mut().unwrap().id = RunId::mint();
    let rev = Records::get(&world.memory, &id).await.unwrap().unwrap().rev;
    let row = RecordRow { rev, ..stolen.first_row().unwrap() };
    Records::update(&world.memory, row).await.unwrap();
    world.talk(&id, "one").await;
    world.service().stop(&id, StopMode::Graceful).await.unwrap_err();
    world
        .until("the end of the actors", async || {
            world.service().actors(&id).await.is_ok_and(|actors| actors.is_empty())
        })
        .await;
    assert_eq!(world.record(&id).await.run.unwrap().id, stolen.run.unwrap().id);
}

#[actix::test]
async fn an_answer_that_could_not_be_put_on_record_can_be_given_again() {
    let world = World::new().await;
    let id = world.launch(json!({ "permission_gate": true })).await;
    world.say(&id, "@ask rm -r build").await;
    let asked = world.wait_event(&id, "approval.requested", "").await["approval"]["id"].clone();
    let answer = || AnswerApproval {
        approval: asked.as_str().unwrap().parse().unwrap(),
        decision: Decision::Accept,
        by: "operator".to_owned(),
        note: None,
    };
    world.faulty_store.fail_always(StoreOp::UpdateRecord, Fault::Error);
    world.service().answer(&id, answer()).await.unwrap_err();
    assert_eq!(world.wait_state(&id, State::Waiting).await.waiting.len(), 1, "it still waits");
    world.faulty_store.heal();
    world.service().answer(&id, answer()).await.unwrap();
    world.wait_state(&id, State::Idle).await;
    world.service().answer(&id, answer()).await.unwrap_err();
}

#[actix::test]
async fn a_login_that_rotated_before_the_fence_is_home_soon_after_the_store_is_back() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.talk(&id, "hello").await;
    for op in [StoreOp::Renew, StoreOp::SaveCredential, StoreOp::Load, StoreOp::Release, StoreOp::PatchSeed] {
        world.faulty_store.fail_always(op, Fault::Error);
    }
    let newest = world.rotate(&id);
    let view = world.wait_over(&id).await;
    let reason = view.reason.unwrap();
    // The guard and the renewer have the same patience: whichever comes first.
    let lost = reason.contains("the lease of its seed is lost") || reason.contains("no renewal of its lease");
    assert!(lost, "it did not fence itself: {reason}");
    assert_ne!(world.memory.credential(&seed), Some(newest.clone()));
    world.faulty_store.heal();
    world.until("the login is home", async || world.memory.credential(&seed) == Some(newest.clone())).await;
    world.until("the spool is empty", async || world.spooled().await.is_empty()).await;
    let next = world.launch(json!({ "seed": { "id": seed } })).await;
    world.stop(&next).await;
    assert_eq!(world.memory.holder(&seed), None);
}
