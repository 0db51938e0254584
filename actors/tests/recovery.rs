//! Spooled logins at the start of a service: brought home where it is certain that they are the newer ones, and
//! otherwise left where they are, with nobody handed the old one.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use optio_actors::events::SERVICE_STREAM;
use optio_actors::session::phase::State;
use optio_actors::testing::{World, login, play};
use optio_store::faulty::{Fault, StoreOp};
use optio_store::memory::SeedEvent;
use optio_store::{
    Holder, Leases, SeedId, SeedPatch, SeedStatus, SeedVersion, Seeds, SessionId, Spool, SpoolEntry, SpoolId,
    Want,
};
use serde_json::json;

/// Plays a story of each cell in a world of its own and names the cells that broke.
fn each<C: std::fmt::Debug + Copy>(cells: impl IntoIterator<Item = C>, story: impl AsyncFn(C)) {
    let fails =
        |cell: &C| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(story(*cell)))).is_err();
    let broken: Vec<_> = cells.into_iter().filter(fails).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

/// A world whose last service left a parked seed.
async fn parked() -> (World, SeedId) {
    let world = World::without_service();
    let seed = world.seed("acme").await;
    let status = Some((SeedStatus::NeedsRecovery, Some("parked".to_owned())));
    Seeds::patch(&world.memory, &seed, None, SeedPatch { status, ..SeedPatch::default() }).await.unwrap();
    (world, seed)
}

async fn version(world: &World, seed: &SeedId) -> SeedVersion {
    Seeds::load(&world.memory, seed).await.unwrap().1
}

async fn spool(world: &World, seed: &SeedId, base: SeedVersion, auth_json: Bytes) -> SpoolId {
    spool_of(world, seed, &Holder::mint(&SessionId::mint()), base, auth_json).await
}

async fn spool_of(
    world: &World,
    seed: &SeedId,
    holder: &Holder,
    base: SeedVersion,
    auth_json: Bytes,
) -> SpoolId {
    let entry = SpoolEntry {
        seed: seed.clone(),
        holder: holder.clone(),
        session: holder.session(),
        base,
        fingerprint: "f".repeat(64),
        account_id: Some("acme".to_owned()),
        at: Timestamp::now(),
        auth_json,
    };
    world.memory.put(entry).await.unwrap()
}

/// The login is home, and serves a session.
async fn is_home(world: &World, seed: &SeedId, newest: &Bytes) {
    assert_eq!(world.memory.credential(seed).as_ref(), Some(newest));
    let row = world.seed_row(seed).await;
    assert_eq!((row.status, row.lease), (SeedStatus::Alive, None));
    assert_eq!(world.memory.entries().await.unwrap().len(), 0);
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.talk(&id, "hello").await;
    world.stop(&id).await;
    assert_eq!((world.memory.credential(seed).as_ref(), world.memory.holder(seed)), (Some(newest), None));
}

/// The login stays where it is, and its seed is for nobody.
async fn is_left(world: &World, seed: &SeedId, stored: &Bytes, entry: &SpoolId) {
    assert_eq!(world.memory.credential(seed).as_ref(), Some(stored));
    let row = world.seed_row(seed).await;
    assert_eq!((row.status, row.lease), (SeedStatus::NeedsRecovery, None));
    assert!(row.status_reason.unwrap().contains(&world.memory.describe(entry)), "it says where");
    assert!(world.memory.entries().await.unwrap().iter().any(|(id, _)| id == entry));
    let mine = Holder::mint_for("anybody");
    assert_eq!(world.memory.acquire(&Want::Seed(seed.clone()), &mine).await.unwrap(), None);
}

#[actix::test]
async fn the_successor_of_the_stored_login_comes_home() {
    let (world, seed) = parked().await;
    let newest = login("acme", 2);
    spool(&world, &seed, version(&world, &seed).await, newest.clone()).await;
    world.restart().await;
    let log = world.memory.log();
    let holder = log.iter().rev().find_map(|logged| logged.holder.clone()).unwrap();
    assert!(holder.as_str().starts_with("recovery#"));
    use SeedEvent::{AcquiredForRecovery, Patched, Released, Saved};
    assert_eq!(world.deeds_of(&holder), [AcquiredForRecovery, Saved, Patched, Released]);
    let told = world.journal.names(SERVICE_STREAM);
    assert_eq!(told.iter().filter(|name| *name == "seed.saved").count(), 1, "{told:?}");
    is_home(&world, &seed, &newest).await;
}

#[actix::test]
async fn a_dead_seed_gets_its_newest_login_and_stays_dead() {
    let (world, seed) = parked().await;
    let patch = SeedPatch { status: Some((SeedStatus::Dead, None)), ..SeedPatch::default() };
    Seeds::patch(&world.memory, &seed, None, patch).await.unwrap();
    spool(&world, &seed, version(&world, &seed).await, login("acme", 2)).await;
    world.restart().await;
    let row = world.seed_row(&seed).await;
    assert_eq!((world.memory.credential(&seed), row.status), (Some(login("acme", 2)), SeedStatus::Dead));
}

#[actix::test]
async fn of_two_spooled_logins_the_newer_one_is_left_in_the_store() {
    let (world, seed) = parked().await;
    let base = version(&world, &seed).await;
    for generation in [2, 3] {
        spool(&world, &seed, base.clone(), login("acme", generation)).await;
    }
    world.restart().await;
    is_home(&world, &seed, &login("acme", 3)).await;
}

#[actix::test]
async fn a_seed_whose_lease_ran_out_gets_its_login_back() {
    let world = World::without_service();
    let seed = world.seed("acme").await;
    let dead = Holder::mint(&SessionId::mint());
    world.memory.acquire(&Want::Seed(seed.clone()), &dead).await.unwrap().unwrap();
    spool_of(&world, &seed, &dead, version(&world, &seed).await, login("acme", 2)).await;
    tokio::time::sleep(Duration::from_secs(61)).await;
    world.restart().await;
    is_home(&world, &seed, &login("acme", 2)).await;
}

#[actix::test]
async fn a_login_of_an_earlier_holder_does_not_vouch_for_the_one_whose_lease_ran_out() {
    let world = World::without_service();
    let seed = world.seed("acme").await;
    world.memory.acquire(&Want::Seed(seed.clone()), &Holder::mint_for("dead")).await.unwrap().unwrap();
    spool(&world, &seed, version(&world, &seed).await, login("acme", 2)).await;
    tokio::time::sleep(Duration::from_secs(61)).await;
    world.restart().await;
    assert_eq!(world.memory.credential(&seed), Some(login("acme", 2)));
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert!(world.seed_row(&seed).await.dirty, "the dead one may have rotated it once more");
}

#[actix::test]
async fn a_login_that_is_older_than_the_stored_one_is_left_and_bothers_nobody() {
    let world = World::without_service();
    let seed = world.seed("acme").await;
    let stored = world.memory.credential(&seed);
    let entry = spool(&world, &seed, SeedVersion("before".to_owned()), login("acme", 0)).await;
    world.restart().await;
    let row = world.seed_row(&seed).await;
    assert_eq!((row.status, row.lease, world.memory.credential(&seed)), (SeedStatus::Alive, None, stored));
    assert!(world.memory.entries().await.unwrap().iter().any(|(id, _)| *id == entry));
}

#[derive(Debug, Clone, Copy)]
enum Doubtful {
    OtherAccount,
    Garbage,
    LoggedOut,
}

#[test]
fn a_login_that_is_not_certainly_the_newer_one_is_left_and_its_seed_parked() {
    use Doubtful::{Garbage, LoggedOut, OtherAccount};
    each([OtherAccount, Garbage, LoggedOut], async |doubt| {
        let world = World::without_service();
        let seed = world.seed("acme").await;
        let stored = world.memory.credential(&seed).unwrap();
        let base = version(&world, &seed).await;
        let found = match doubt {
            OtherAccount => login("umbrella", 2),
            Garbage => Bytes::from_static(b"\x00 no json"),
            LoggedOut => Bytes::from_static(b"{\"tokens\":null}"),
        };
        let entry = spool(&world, &seed, base, found).await;
        for _ in 0..2 {
            world.restart().await;
            is_left(&world, &seed, &stored, &entry).await;
            world.crash();
        }
    });
}

#[test]
fn a_store_that_fails_in_the_middle_is_asked_again_at_the_next_start() {
    let ops = [
        StoreOp::SpoolEntries,
        StoreOp::AcquireForRecovery,
        StoreOp::Load,
        StoreOp::SaveCredential,
        StoreOp::PatchSeed,
        StoreOp::ConfirmSpool,
        StoreOp::Release,
    ];
    let faults = [Fault::Error, Fault::Hang, Fault::DoneButError];
    each(ops.into_iter().flat_map(|op| faults.map(|fault| (op, fault))), async |(op, fault)| {
        let (world, seed) = parked().await;
        let newest = login("acme", 2);
        spool(&world, &seed, version(&world, &seed).await, newest.clone()).await;
        world.faulty_store.fail_always(op, fault);
        world.restart().await;
        let home = world.memory.credential(&seed).as_ref() == Some(&newest);
        assert!(home || world.memory.entries().await.unwrap().len() == 1, "it is lost");
        let acquirable = world.seed_row(&seed).await.status == SeedStatus::Alive
            && world.seed_row(&seed).await.lease.is_none();
        assert!(home || !acquirable, "the old login can be had");
        world.crash();
        world.faulty_store.heal();
        // A lease of the recovery that was cut off runs out.
        tokio::time::sleep(Duration::from_secs(61)).await;
        world.restart().await;
        assert_eq!(world.memory.credential(&seed).as_ref(), Some(&newest));
        let row = world.seed_row(&seed).await;
        if (op, fault) == (StoreOp::SaveCredential, Fault::DoneButError) {
            // It was parked by name, and nothing proves that this entry was the cause.
            assert!(row.status_reason.unwrap().contains("verify it to try again"));
            return;
        }
        assert_eq!(row.status, SeedStatus::Alive);
        match row.lease {
            None => is_home(&world, &seed, &newest).await,
            // The login is home, and a check of it clears what the recovery that was cut off has left.
            Some(lease) => assert!(lease.holder.as_str().starts_with("recovery#"), "{lease:?}"),
        }
    });
}

#[actix::test]
async fn a_seed_that_somebody_uses_is_left_to_them() {
    let world = World::without_service();
    let seed = world.seed("acme").await;
    let other = Holder::mint_for("other");
    world.memory.acquire(&Want::Seed(seed.clone()), &other).await.unwrap().unwrap();
    spool(&world, &seed, version(&world, &seed).await, login("acme", 2)).await;
    let log = world.memory.log();
    world.restart().await;
    assert_eq!(world.memory.log(), log);
    assert_eq!(world.memory.entries().await.unwrap().len(), 1);
}

#[actix::test]
async fn the_login_of_a_session_that_is_taken_up_is_that_sessions_to_save() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    let holder = world.holder(&id).await;
    world.faulty_store.fail_always(StoreOp::SaveCredential, Fault::Error);
    let newest = world.rotate(&id);
    world.until("the spool", async || !world.spooled().await.is_empty()).await;
    world.crash();
    world.restart().await;
    assert!(!world.spooled().await.is_empty());
    assert_eq!(
        (world.memory.holder(&seed), world.seed_row(&seed).await.status),
        (Some(holder), SeedStatus::Alive)
    );
    world.wait_event(&id, "session.adopted", "").await;
    world.faulty_store.heal();
    world.until("the save", async || world.memory.credential(&seed).as_ref() == Some(&newest)).await;
    assert_eq!(world.stop(&id).await.state, State::Ended);
    world.check().await;
}

#[actix::test]
async fn a_damaged_entry_does_not_hide_the_others() {
    let (world, seed) = parked().await;
    let other = world.seed("other").await;
    let broken = spool(&world, &other, version(&world, &other).await, login("other", 2)).await;
    world.memory.damage_spooled(&broken);
    let newest = login("acme", 2);
    spool(&world, &seed, version(&world, &seed).await, newest.clone()).await;
    world.restart().await;
    assert_eq!(world.memory.credential(&seed), Some(newest));
    let left = world.memory.entries().await.unwrap();
    assert_eq!(left.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), [broken]);
}

#[actix::test]
async fn a_replay_that_was_done_is_not_done_again() {
    let (world, seed) = parked().await;
    let newest = login("acme", 2);
    spool(&world, &seed, version(&world, &seed).await, newest.clone()).await;
    world.restart().await;
    let log = world.memory.log();
    world.crash();
    world.restart().await;
    assert_eq!(world.memory.log(), log);
    is_home(&world, &seed, &newest).await;
}

#[actix::test]
async fn the_login_of_a_run_that_fenced_itself_is_home_after_the_next_start() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    for op in [StoreOp::Renew, StoreOp::SaveCredential] {
        world.faulty_store.fail_always(op, Fault::Error);
    }
    let newest = world.rotate(&id);
    world.wait_over(&id).await;
    assert_ne!(world.memory.credential(&seed).as_ref(), Some(&newest));
    world.crash();
    world.faulty_store.heal();
    tokio::time::sleep(Duration::from_secs(61)).await;
    world.restart().await;
    is_home(&world, &seed, &newest).await;
}
