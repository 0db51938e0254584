//! A lease that is lost, by theft or by silence of the store: the agent is gone in time, nothing of the run is written
//! to the seed any more, and its login is in the spool.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use optio_actors::faults::FaultKind;
use optio_actors::session::StopMode;
use optio_actors::session::phase::{EndState, State};
use optio_actors::supervision::ChildKind;
use optio_actors::teardown::Step;
use optio_actors::testing::{Behaviour, World, play};
use optio_actors::trace::Deed;
use optio_store::faulty::{Fault, StoreOp};
use optio_store::memory::SeedEvent;
use optio_store::{Holder, LEASE_TTL, Leases, SeedId, SessionId};
use serde_json::json;
use tokio::time::Instant;

/// Our looks at the world are at most this far apart.
const LOOK: Duration = Duration::from_millis(500);

/// A store that does not answer the renewer, and one that does not answer at all.
const RENEWALS: &[StoreOp] = &[StoreOp::Renew];
const EVERYTHING: &[StoreOp] = &[
    StoreOp::Renew,
    StoreOp::SaveCredential,
    StoreOp::Load,
    StoreOp::PatchSeed,
    StoreOp::Release,
    StoreOp::UpdateRecord,
    StoreOp::ListSnapshots,
    StoreOp::BeginSnapshot,
];

struct Leased {
    seed: SeedId,
    id: SessionId,
    holder: Holder,
}

async fn leased(world: &World) -> Leased {
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.talk(&id, "hello").await;
    let holder = world.holder(&id).await;
    Leased { seed, id, holder }
}

async fn no_agent(world: &World) {
    world.until("the end of the agent", async || world.host.agents_running() == 0).await;
}

/// What a holder did to the seed after it had been taken away.
fn after_the_theft(world: &World, thief: &Holder, holder: &Holder) -> Vec<SeedEvent> {
    let log = world.memory.log();
    let stolen = log.iter().position(|logged| logged.holder.as_ref() == Some(thief)).unwrap();
    let later = log[stolen..].iter().filter(|logged| logged.holder.as_ref() == Some(holder));
    later.map(|logged| logged.event).collect()
}

#[actix::test]
async fn a_stolen_lease_ends_the_agent_and_leaves_the_seed_to_its_new_holder() {
    let world = World::new().await;
    let Leased { seed, id, holder } = leased(&world).await;
    world.say(&id, "@hold a b").await;
    let planted = world.memory.credential(&seed);
    let thief = world.steal(&seed).await;
    let stolen = Instant::now();
    no_agent(&world).await;
    assert!(stolen.elapsed() < Duration::from_secs(11), "the next renewal hears of it");
    let view = world.wait_over(&id).await;
    assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Failed)));
    assert!(view.reason.unwrap().contains("lease of its seed is lost: somebody else holds the seed"));
    assert_eq!(after_the_theft(&world, &thief, &holder), []);
    assert_eq!((world.memory.holder(&seed), world.memory.credential(&seed)), (Some(thief), planted));
    assert_eq!(world.count(&id, "seed.lost"), 1);
    assert_eq!(world.memory.snapshot_count(&id), 1, "its work is kept");
    world.check().await;
}

#[actix::test]
async fn a_login_that_rotates_under_a_stolen_lease_is_spooled_and_not_stored() {
    let world = World::new().await;
    let Leased { seed, id, holder } = leased(&world).await;
    let planted = world.memory.credential(&seed);
    let thief = world.steal(&seed).await;
    let newest = world.rotate(&id);
    let view = world.wait_over(&id).await;
    assert_eq!(view.outcome, Some(EndState::Failed));
    assert_eq!(world.spooled().await.last().unwrap().auth_json, newest);
    assert_eq!(after_the_theft(&world, &thief, &holder), []);
    assert_eq!((world.memory.holder(&seed), world.memory.credential(&seed)), (Some(thief), planted));
    world.check().await;
}

#[derive(Debug, Clone, Copy)]
struct Silence {
    ops: &'static [StoreOp],
    fault: Fault,
    can_listen: bool,
}

fn silences() -> Vec<Silence> {
    let mut all = Vec::new();
    for ops in [RENEWALS, EVERYTHING] {
        for fault in [Fault::Error, Fault::Hang] {
            all.extend([true, false].map(|can_listen| Silence { ops, fault, can_listen }));
        }
    }
    all
}

async fn fences_itself(silence: Silence) {
    let world = World::new().await;
    world.codex(silence.can_listen);
    world.agents.behave(Behaviour { ignores_term: true, ..Behaviour::default() });
    let Leased { seed, id, holder } = leased(&world).await;
    let planted = world.memory.credential(&seed);
    world.say(&id, "@hold a b").await;
    world.renewal(&holder).await;
    let confirmed = Instant::now() - LOOK;
    for op in silence.ops {
        world.faulty_store.fail_always(*op, silence.fault);
    }
    let written = world.memory.log().len();
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(world.host.agents_running(), 1, "it may be back any moment");
    world.faults.arm(ChildKind::Session, "note_save_back", FaultKind::Delay { ms: 3000 }, 1);
    no_agent(&world).await;
    assert!(confirmed.elapsed() < LEASE_TTL, "{silence:?}: it ran for {:?}", confirmed.elapsed());
    world.until("the last save", async || world.faults.armed() == 0).await;
    let newest = world.rotate(&id);
    let ended = world.wait_event(&id, "session.ended", "could not be renewed for 45s").await;
    assert_eq!(ended["outcome"], "failed", "{silence:?}");
    assert_eq!(world.spooled().await.last().unwrap().auth_json, newest, "{silence:?}");
    assert_eq!(world.memory.log().len(), written, "{silence:?}: {:?}", world.memory.log());
    world.faulty_store.heal();
    // Somebody who mends it finds the login that the run was given, and keeps it also when the run is taken up again.
    world.until("the lease's end", async || world.seed_row(&seed).await.dirty).await;
    let mender = Holder::mint_for("mender");
    assert!(world.memory.acquire_for_recovery(&seed, &mender).await.unwrap().is_some());
    world.crash();
    world.restart().await;
    let view = world.wait_over(&id).await;
    assert_eq!(view.outcome, Some(EndState::Failed), "{silence:?}");
    assert_eq!((world.memory.holder(&seed), world.memory.credential(&seed)), (Some(mender), planted));
    world.check().await;
}

#[test]
fn a_run_whose_lease_is_not_confirmed_ends_its_agent_before_the_lease_ends() {
    let played = silences()
        .into_iter()
        .filter(|silence| std::panic::catch_unwind(|| play(fences_itself(*silence))).is_err());
    let broken: Vec<_> = played.collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[actix::test]
async fn a_store_that_is_back_after_half_a_minute_was_not_missed() {
    let world = World::new().await;
    let Leased { seed, id, holder } = leased(&world).await;
    for fault in [Fault::Error, Fault::Hang] {
        world.renewal(&holder).await;
        world.faulty_store.fail_always(StoreOp::Renew, fault);
        world.faulty_store.fail_always(StoreOp::SaveCredential, fault);
        let newest = world.rotate(&id);
        tokio::time::sleep(Duration::from_secs(30)).await;
        world.faulty_store.heal();
        world.renewal(&holder).await;
        world.talk(&id, "still there?").await;
        world.until("the save", async || world.memory.credential(&seed).as_ref() == Some(&newest)).await;
    }
    assert_eq!(world.count(&id, "seed.lost"), 0);
    world.stop(&id).await;
    assert_eq!(world.spooled().await, []);
    world.check().await;
}

/// Where a launch stands while its lease is stolen.
#[derive(Debug, Clone, Copy)]
enum During {
    /// The agent is being started.
    Start,
    /// The agent runs, and does not answer yet.
    Handshake,
    /// The reader is at it for longer than a lease lasts.
    Attach,
}

async fn lost_during_launch(during: During, can_listen: bool) {
    let world = World::new().await;
    world.codex(can_listen);
    let seed = world.seed("acme").await;
    let planted = world.memory.credential(&seed);
    match during {
        During::Start => {
            world.faults.arm(ChildKind::Process, "start", FaultKind::Delay { ms: 40_000 }, 1);
        }
        During::Handshake => world.agents.behave(Behaviour { mute: true, ..Behaviour::default() }),
        During::Attach => {
            world.faults.arm(ChildKind::ConversationReader, "attach", FaultKind::Hang, 1);
        }
    }
    let id = world.begin(json!({ "seed": { "id": seed } })).await;
    let there = |deed: &Deed| match during {
        During::Start => matches!(deed, Deed::LeaseAcquired { .. }),
        During::Handshake | During::Attach => *deed == Deed::AgentStarted,
    };
    world.wait_deed("the moment", there).await;
    let holder = world.holder(&id).await;
    let thief = world.steal(&seed).await;
    let stolen = Instant::now();
    let view = world.wait_over(&id).await;
    assert!(stolen.elapsed() < Duration::from_secs(30), "{during:?}: it took {:?}", stolen.elapsed());
    assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Failed)), "{during:?}");
    assert!(view.reason.unwrap().contains("lease of its seed is lost"), "{during:?}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.host.agents_running(), 0, "{during:?}");
    assert_eq!(after_the_theft(&world, &thief, &holder), [], "{during:?}");
    assert_eq!((world.memory.holder(&seed), world.memory.credential(&seed)), (Some(thief), planted));
    world.check().await;
}

#[test]
fn a_lease_that_is_lost_during_the_launch_ends_it() {
    for during in [During::Start, During::Handshake, During::Attach] {
        for can_listen in [true, false] {
            play(lost_during_launch(during, can_listen));
        }
    }
}

async fn lost_during_teardown(step: Step) {
    let world = World::new().await;
    let Leased { seed, id, holder } = leased(&world).await;
    let planted = world.memory.credential(&seed);
    world.faults.arm(ChildKind::Session, format!("note_{step}"), FaultKind::Delay { ms: 25_000 }, 1);
    world.service().stop(&id, StopMode::Graceful).await.unwrap();
    world.until("the step", async || world.faults.armed() == 0).await;
    let newest = world.rotate(&id);
    let thief = world.steal(&seed).await;
    let view = world.wait_over(&id).await;
    assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Stopped)), "{step}: {view:#?}");
    assert_eq!(after_the_theft(&world, &thief, &holder), [], "{step}");
    assert_eq!(
        (world.memory.holder(&seed), world.memory.credential(&seed)),
        (Some(thief), planted),
        "{step}"
    );
    assert_eq!(world.spooled().await.last().unwrap().auth_json, newest, "{step}");
    world.check().await;
}

#[test]
fn a_lease_that_is_lost_during_the_teardown_is_left_alone_from_then_on() {
    for step in [Step::Close, Step::StopAgent, Step::QuietWatcher, Step::SaveBack] {
        play(lost_during_teardown(step));
    }
}

#[actix::test]
async fn a_theft_that_nobody_has_heard_of_is_found_by_the_final_save() {
    let world = World::new().await;
    let Leased { seed, id, holder } = leased(&world).await;
    world.renewal(&holder).await;
    let newest = world.rotate(&id);
    let thief = world.steal(&seed).await;
    let view = world.stop(&id).await;
    assert_eq!(view.state, State::Ended);
    assert_eq!(after_the_theft(&world, &thief, &holder), []);
    assert_eq!(world.memory.holder(&seed), Some(thief));
    assert_eq!(world.spooled().await.last().unwrap().auth_json, newest);
    assert!(view.reason.unwrap().contains("the lease is lost, nothing may be written"));
    world.check().await;
}
