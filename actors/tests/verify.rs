//! Checks of stored logins, on virtual time: what each answer does to a seed, and that being killed anywhere, or a store
//! that goes away, neither loses a login nor spends a token twice unknowingly (INV-18…INV-33, F18–F20).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use optio_actors::faults::FaultKind;
use optio_actors::service::VerifyView;
use optio_actors::session::StopMode;
use optio_actors::session::phase::State;
use optio_actors::sessions::OnExit;
use optio_actors::supervision::ChildKind;
use optio_actors::testing::{World, login, play};
use optio_actors::{Service, SessionError};
use optio_codex_protocol::auth;
use optio_oauth::fake::Mode;
use optio_oauth::{LoginServer, RefreshAnswer, Secret};
use optio_store::faulty::{Fault, StoreOp};
use optio_store::memory::SeedEvent;
use optio_store::{
    Account, Holder, LEASE_TTL, Lease, Leases, NewSeed, SeedFiles, SeedId, SeedPatch, SeedRow, SeedStatus,
    SeedVersion, Seeds, Spool, SpoolEntry, Want,
};
use serde_json::{Value, json};

/// Longer than a lease lasts without renewal.
const LAPSE: Duration = Duration::from_secs(61);

/// Longer than a dirty seed is left to its last holder.
const GRACE: Duration = Duration::from_secs(601);

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

async fn row(world: &World, seed: &SeedId) -> SeedRow {
    Seeds::get(&world.memory, seed).await.unwrap().unwrap()
}

async fn verify(world: &World, seed: &SeedId) -> VerifyView {
    world.service().verify_seed(seed).await.unwrap()
}

/// The refresh token that the store has.
fn token(world: &World, seed: &SeedId) -> String {
    auth::refresh_token(&world.memory.credential(seed).unwrap()).unwrap()
}

async fn import(world: &World, auth_json: Bytes, pool: Option<&str>) -> SeedId {
    let files = SeedFiles(BTreeMap::from([(SeedFiles::AUTH.to_owned(), auth_json)]));
    let (account, pool) = (Account::default(), pool.map(str::to_owned));
    world.memory.import(NewSeed { files, account, pool, metadata: Default::default() }).await.unwrap().id
}

/// A login that was refreshed a moment ago.
fn fresh(world: &World, account: &str) -> Bytes {
    let mut login: Value = serde_json::from_slice(&login(account, 1)).unwrap();
    login["last_refresh"] = json!(world.clock.now());
    Bytes::from(login.to_string())
}

/// What anybody who wants this seed is given.
async fn acquire(world: &World, seed: &SeedId) -> Option<Lease> {
    Leases::acquire(&world.memory, &Want::Seed(seed.clone()), &Holder::mint_for("somebody")).await.unwrap()
}

/// Leaves the seed as a peer does that is killed.
async fn make_dirty(world: &World, seed: &SeedId) {
    acquire(world, seed).await.unwrap();
    pass(LAPSE).await;
    assert!(row(world, seed).await.dirty);
}

async fn set_status(world: &World, seed: &SeedId, status: SeedStatus) {
    let patch =
        SeedPatch { status: Some((status, Some("somebody said so".to_owned()))), ..SeedPatch::default() };
    world.memory.patch(seed, None, patch).await.unwrap();
}

fn refused(status: u16, code: &str) -> Mode {
    Mode::Answer(RefreshAnswer::Refused { status, code: Some(code.to_owned()), retry_after: None })
}

/// Begins a check that nobody waits for.
fn begin(service: Service, seed: &SeedId) {
    let seed = seed.clone();
    drop(actix::spawn(async move { service.verify_seed(&seed).await }));
}

#[actix::test]
async fn a_login_that_is_due_is_refreshed_and_its_successor_is_in_the_store() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let began = world.clock.now();
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.seed.status), ("alive", SeedStatus::Alive));
    assert_eq!(world.login_server.attempts(), ["refresh-acme-1"]);
    assert_eq!(token(&world, &seed), "granted-1");
    let stored: Value = serde_json::from_slice(&world.memory.credential(&seed).unwrap()).unwrap();
    assert_eq!((&stored["generation"], &stored["tokens"]["account_id"]), (&json!(1), &json!("acme")));
    assert_eq!(stored["tokens"]["access_token"], "access-of-granted-1");
    let refreshed: jiff::Timestamp = stored["last_refresh"].as_str().unwrap().parse().unwrap();
    assert!(refreshed.duration_since(began).as_secs().abs() < 2, "{refreshed}");

    let row = row(&world, &seed).await;
    assert!(row.last_refreshed_at.is_some() && row.last_verified_at.is_some() && row.lease.is_none());
    let note = &row.metadata["verify"];
    assert_eq!((&note["alive"], &note["verdict"]), (&json!(true), &json!("alive")));
    assert!(note["by"].as_str().unwrap().starts_with("verify:"), "{note}");
    assert!(note["checkedAt"].is_string() && !row.metadata.contains_key("refreshIntent"), "{row:?}");
    assert_eq!(seen.seed.verify.unwrap().verdict, "alive");
    assert!(world.memory.entries().await.unwrap().is_empty());
}

#[actix::test]
async fn a_session_after_a_check_is_planted_with_the_new_login() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    verify(&world, &seed).await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    let planted = world.host.file(&world.dir(&id).workdir().join("home/.codex/auth.json")).unwrap();
    assert_eq!(auth::refresh_token(&planted).as_deref(), Some("granted-1"));
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn a_fresh_login_and_a_key_are_alive_and_nobody_is_asked() {
    let world = World::new().await;
    let chatgpt = import(&world, fresh(&world, "acme"), None).await;
    let key = import(&world, Bytes::from_static(br#"{"OPENAI_API_KEY":"sk-1"}"#), None).await;
    for seed in [chatgpt, key] {
        let before = world.memory.credential(&seed);
        assert_eq!(verify(&world, &seed).await.verdict, "alive");
        assert_eq!(world.memory.credential(&seed), before);
        assert!(row(&world, &seed).await.lease.is_none());
    }
    assert_eq!((world.login_server.discoveries(), world.login_server.attempts().len()), (0, 0));
}

#[actix::test]
async fn freshness_does_not_bring_back_the_dead() {
    let world = World::new().await;
    let seed = import(&world, fresh(&world, "acme"), None).await;
    set_status(&world, &seed, SeedStatus::Dead).await;
    world.login_server.mode(refused(503, "away"));
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.seed.status), ("inconclusive", SeedStatus::Dead));
    assert_eq!(seen.seed.status_reason.as_deref(), Some("somebody said so"));
    world.login_server.mode(Mode::Grant);
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.seed.status, seen.seed.status_reason), ("alive", SeedStatus::Alive, None));

    let key = import(&world, Bytes::from_static(br#"{"OPENAI_API_KEY":"sk-1"}"#), None).await;
    set_status(&world, &key, SeedStatus::Dead).await;
    let seen = verify(&world, &key).await;
    assert_eq!((seen.verdict, seen.seed.status), ("inconclusive", SeedStatus::Dead));
}

#[actix::test]
async fn only_a_definite_refusal_is_death() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    for (status, code) in
        [(400, "invalid_request"), (403, "x"), (429, "x"), (500, "x"), (503, "refresh_token_reused")]
    {
        world.login_server.mode(refused(status, code));
        let seen = verify(&world, &seed).await;
        assert_eq!((seen.verdict, seen.seed.status), ("inconclusive", SeedStatus::Alive), "{status}");
        let row = row(&world, &seed).await;
        assert!(row.status_reason.is_none() && !row.metadata.contains_key("refreshIntent"), "{row:?}");
        assert_eq!(row.metadata["verify"]["alive"], Value::Null);
        let lease = acquire(&world, &seed).await.expect("nothing has changed, so it may be handed out");
        world.memory.release(&seed, &lease.holder).await.unwrap();
    }
    world.login_server.mode(refused(401, "refresh_token_expired"));
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.seed.status), ("dead", SeedStatus::Dead));
    assert!(seen.seed.status_reason.unwrap().contains("refresh_token_expired"));
    assert_eq!(token(&world, &seed), "refresh-acme-1");
    assert_eq!(acquire(&world, &seed).await, None);
}

#[actix::test]
async fn out_of_reach_nothing_is_sent() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    world.login_server.reachable(false);
    assert_eq!(verify(&world, &seed).await.verdict, "inconclusive");
    assert!(world.login_server.attempts().is_empty());
    assert!(acquire(&world, &seed).await.is_some());
}

#[test]
fn after_a_lost_answer_the_seed_is_parked_and_the_same_token_decides() {
    let lost = |lost, then, status| {
        play(async move {
            let world = World::new().await;
            let seed = world.seed("acme").await;
            world.login_server.mode(lost);
            let seen = verify(&world, &seed).await;
            assert_eq!((seen.verdict, seen.seed.status), ("suspect", SeedStatus::NeedsRecovery));
            assert!(seen.seed.status_reason.unwrap().contains("verify it again"));
            assert!(row(&world, &seed).await.metadata["refreshIntent"]["tokenHash"].is_string());
            assert_eq!(acquire(&world, &seed).await, None);
            world.login_server.mode(Mode::Grant);
            let seen = verify(&world, &seed).await;
            assert_eq!((seen.verdict, seen.seed.status), (then, status));
            assert_eq!(world.login_server.attempts(), ["refresh-acme-1", "refresh-acme-1"]);
            assert!(!row(&world, &seed).await.metadata.contains_key("refreshIntent"));
        })
    };
    lost(Mode::LoseAnswer, "dead", SeedStatus::Dead);
    lost(Mode::Answer(RefreshAnswer::NoAnswer("reset".to_owned())), "alive", SeedStatus::Alive);
}

#[actix::test]
async fn an_operators_word_decides_what_came_of_a_request() {
    let world = World::new().await;
    let seed = import(&world, fresh(&world, "acme"), None).await;
    make_dirty(&world, &seed).await;
    world.login_server.mode(Mode::LoseAnswer);
    assert_eq!(verify(&world, &seed).await.verdict, "suspect");
    world.service().set_seed_status(&seed, SeedStatus::Alive, None).await.unwrap();
    assert!(!row(&world, &seed).await.metadata.contains_key("refreshIntent"));
    assert_eq!(verify(&world, &seed).await.verdict, "alive");
    assert_eq!(world.login_server.attempts().len(), 1, "it is fresh, and nobody doubts it any more");
}

#[actix::test]
async fn a_peer_that_calls_the_seed_alive_does_not_decide_it() {
    let world = World::new().await;
    let seed = import(&world, fresh(&world, "acme"), None).await;
    make_dirty(&world, &seed).await;
    world.login_server.mode(Mode::LoseAnswer);
    verify(&world, &seed).await;
    // A peer writes the status and knows nothing of the note.
    set_status(&world, &seed, SeedStatus::Alive).await;
    world.login_server.mode(Mode::Grant);
    assert_eq!(verify(&world, &seed).await.verdict, "dead");
}

#[actix::test]
async fn a_session_that_could_not_save_leaves_a_seed_that_a_check_brings_home() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.faulty_store.fail_always(StoreOp::SaveCredential, Fault::Error);
    world.rotate(&id);
    world.service().stop(&id, StopMode::Graceful).await.unwrap();
    world.wait_over(&id).await;
    let parked = row(&world, &seed).await;
    assert_eq!(parked.status, SeedStatus::NeedsRecovery);
    assert!(parked.status_reason.unwrap().contains("verify it"), "it says what to do");
    world.faulty_store.heal();
    pass(LAPSE).await;
    assert_eq!(verify(&world, &seed).await.verdict, "alive");
    assert_eq!(world.login_server.attempts(), ["refresh-acme-2"], "never the token that was spent");
    assert_eq!(token(&world, &seed), world.login_server.newest("refresh-acme-2"));
}

#[actix::test]
async fn a_login_of_another_account_in_the_spool_is_for_a_person_to_look_at() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let (_, base) = world.memory.load(&seed).await.unwrap();
    let auth_json = login("beta", 7);
    let fingerprint = auth::fingerprint(&auth_json).unwrap();
    let (holder, at) = (Holder::stored("an-earlier-check"), world.clock.now());
    let account_id = Some("beta".to_owned());
    let entry = SpoolEntry {
        seed: seed.clone(),
        session: None,
        holder,
        base,
        fingerprint,
        account_id,
        at,
        auth_json,
    };
    let spooled = world.memory.put(entry).await.unwrap();
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.seed.status), ("needs-recovery", SeedStatus::NeedsRecovery));
    assert!(seen.seed.status_reason.unwrap().contains(&world.memory.describe(&spooled)));
    assert!(world.login_server.attempts().is_empty());
    assert_eq!(token(&world, &seed), "refresh-acme-1");
}

#[actix::test]
async fn a_spooled_login_that_is_older_than_the_stored_one_parks_nothing() {
    let world = World::without_service();
    let seed = import(&world, login("acme", 3), None).await;
    let auth_json = login("acme", 2);
    let fingerprint = auth::fingerprint(&auth_json).unwrap();
    let entry = SpoolEntry {
        seed: seed.clone(),
        session: None,
        holder: Holder::stored("an-earlier-run"),
        base: SeedVersion("an-earlier-version".to_owned()),
        fingerprint,
        account_id: Some("acme".to_owned()),
        at: world.clock.now(),
        auth_json,
    };
    world.memory.put(entry).await.unwrap();
    world.restart().await;
    assert_eq!(
        (row(&world, &seed).await.status, token(&world, &seed).as_str()),
        (SeedStatus::Alive, "refresh-acme-3")
    );
    assert!(acquire(&world, &seed).await.is_some());
}

#[actix::test]
async fn a_spooled_login_whose_own_token_was_sent_is_not_called_good_at_the_start() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    // The store has the login, and the spool has it still.
    world.faulty_store.fail_always(StoreOp::ConfirmSpool, Fault::Error);
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.rotate(&id);
    world.stop(&id).await;
    assert_eq!(token(&world, &seed), "refresh-acme-2");
    world.login_server.mode(Mode::HoldAfter);
    begin(world.service(), &seed);
    world.until("the request", async || !world.login_server.grants().is_empty()).await;
    world.crash();
    world.faulty_store.heal();
    pass(LAPSE).await;
    world.restart().await;
    assert!(world.memory.entries().await.unwrap().is_empty(), "the start has looked at the spool");
    assert_eq!(row(&world, &seed).await.status, SeedStatus::NeedsRecovery);
    assert_eq!(acquire(&world, &seed).await, None);
}

#[actix::test]
async fn a_spooled_login_that_stayed_behind_does_not_vouch_for_whoever_came_after() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    world.faulty_store.fail(StoreOp::ConfirmSpool, 1, Fault::Error);
    assert_eq!(verify(&world, &seed).await.verdict, "alive");
    assert_eq!(world.memory.entries().await.unwrap().len(), 1);
    // A peer spends the token, and dies before it has saved.
    acquire(&world, &seed).await.unwrap();
    world.login_server.refresh(&Secret::new("granted-1")).await;
    world.crash();
    pass(LAPSE).await;
    world.restart().await;
    assert!(world.memory.entries().await.unwrap().is_empty(), "the start has looked at the spool");
    assert_eq!(acquire(&world, &seed).await, None);
    pass(LAPSE).await;
    assert_eq!(acquire(&world, &seed).await, None);
    assert_eq!(verify(&world, &seed).await.verdict, "dead");
}

#[actix::test]
async fn a_spooled_login_with_the_token_that_was_sent_is_saved_and_still_in_doubt() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    world.login_server.mode(Mode::LoseAnswer);
    assert_eq!(verify(&world, &seed).await.verdict, "suspect");
    // Another service's run had got a new access token only, and its service starts again.
    let (files, base) = world.memory.load(&seed).await.unwrap();
    let new = auth::NewTokens { access_token: Some("newer"), ..Default::default() };
    let auth_json = Bytes::from(auth::refreshed(&files.0[SeedFiles::AUTH], &new, world.clock.now()).unwrap());
    let entry = SpoolEntry {
        seed: seed.clone(),
        session: None,
        holder: Holder::stored("a-run"),
        base,
        fingerprint: auth::fingerprint(&auth_json).unwrap(),
        account_id: Some("acme".to_owned()),
        at: world.clock.now(),
        auth_json: auth_json.clone(),
    };
    world.memory.put(entry).await.unwrap();
    world.crash();
    world.restart().await;
    assert_eq!(world.memory.credential(&seed), Some(auth_json));
    assert_eq!(row(&world, &seed).await.status, SeedStatus::NeedsRecovery);
    assert_eq!(acquire(&world, &seed).await, None);
}

#[actix::test]
async fn an_unknown_outcome_survives_an_answer_that_says_nothing() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    world.login_server.mode(Mode::LoseAnswer);
    verify(&world, &seed).await;
    let intent = row(&world, &seed).await.metadata["refreshIntent"].clone();
    world.login_server.mode(refused(503, "away"));
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.seed.status), ("inconclusive", SeedStatus::NeedsRecovery));
    assert_eq!(row(&world, &seed).await.metadata["refreshIntent"], intent);
}

#[actix::test]
async fn without_a_rotation_the_old_token_stays_and_that_is_said() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    world.login_server.mode(Mode::GrantWithoutRotation);
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.reason.as_str()), ("alive", "no-rotation"));
    assert_eq!(token(&world, &seed), "refresh-acme-1");
    assert!(String::from_utf8_lossy(&world.memory.credential(&seed).unwrap()).contains("another-access"));
}

#[actix::test]
async fn a_refresh_token_that_came_alone_is_kept() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let refresh_token = Some(Secret::new("came-alone"));
    let alone = optio_oauth::Tokens { refresh_token, ..Default::default() };
    world.login_server.mode(Mode::Answer(RefreshAnswer::Granted(alone)));
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.seed.status), ("suspect", SeedStatus::NeedsRecovery));
    assert_eq!(token(&world, &seed), "came-alone");
    world.login_server.mode(Mode::Grant);
    assert_eq!(verify(&world, &seed).await.verdict, "alive");
    assert_eq!(world.login_server.attempts(), ["refresh-acme-1", "came-alone"]);
}

#[actix::test]
async fn what_cannot_be_read_is_not_judged_and_what_is_logged_out_is_dead() {
    let world = World::new().await;
    let garbled = import(&world, Bytes::from_static(b"{\"tokens\":"), None).await;
    let seen = verify(&world, &garbled).await;
    assert_eq!((seen.verdict, seen.seed.status), ("undecodable", SeedStatus::Alive));
    let empty = import(&world, Bytes::from_static(b"{\"tokens\":{}}"), None).await;
    let seen = verify(&world, &empty).await;
    assert_eq!((seen.verdict, seen.seed.status), ("dead", SeedStatus::Dead));
    assert!(world.login_server.attempts().is_empty());
}

#[actix::test]
async fn an_unknown_seed_is_an_error_and_nothing_is_written() {
    let world = World::new().await;
    let refused = world.service().verify_seed(&SeedId::mint()).await.unwrap_err();
    assert!(matches!(refused, SessionError::Store(optio_store::StoreError::NotFound { .. })), "{refused}");
    assert!(world.memory.log().is_empty());
}

#[actix::test]
async fn a_seed_in_use_is_busy_and_nothing_is_written() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    let refused = world.service().verify_seed(&seed).await.unwrap_err();
    assert!(matches!(&refused, SessionError::SeedBusy { .. }), "{refused}");
    assert!(refused.to_string().contains(id.as_str()), "{refused}");
    let patched = world.memory.log().iter().any(|logged| logged.event == SeedEvent::Patched);
    assert!(!patched && world.login_server.attempts().is_empty());
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn two_checks_at_once_are_one_request_and_both_hear_of_it() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let service = world.service();
    let both = tokio::join!(service.verify_seed(&seed), service.verify_seed(&seed));
    assert_eq!((both.0.unwrap().verdict, both.1.unwrap().verdict), ("alive", "alive"));
    assert_eq!(world.login_server.attempts().len(), 1);
}

#[actix::test]
async fn many_checks_at_once_are_few_at_the_login_server() {
    let world = World::new().await;
    world.login_server.mode(Mode::HoldBefore);
    for i in 0..9 {
        begin(world.service(), &world.seed(&format!("acme-{i}")).await);
    }
    world.until("the first checks", async || world.login_server.attempts().len() >= 4).await;
    pass(Duration::from_secs(5)).await;
    assert_eq!(world.login_server.attempts().len(), 4);
    world.login_server.mode(Mode::Grant);
    world.until("all checks", async || world.login_server.grants().len() == 9).await;
}

#[actix::test]
async fn a_long_check_keeps_its_lease() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    world.login_server.mode(Mode::HoldAfter);
    begin(world.service(), &seed);
    world.until("the request", async || !world.login_server.grants().is_empty()).await;
    pass(LEASE_TTL * 3).await;
    assert!(row(&world, &seed).await.lease.unwrap().live);
    world.login_server.mode(Mode::Grant);
    world.until("the verdict", async || row(&world, &seed).await.lease.is_none()).await;
    assert_eq!(token(&world, &seed), "granted-1");
}

#[actix::test]
async fn a_dirty_seed_is_asked_about_however_fresh_it_is() {
    let world = World::new().await;
    let seed = import(&world, fresh(&world, "acme"), None).await;
    make_dirty(&world, &seed).await;
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.seed.dirty), ("alive", false));
    assert_eq!(world.login_server.attempts().len(), 1);
    assert!(acquire(&world, &seed).await.is_some());
}

#[actix::test]
async fn a_dirty_seed_of_which_nothing_was_learnt_stays_dirty() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    make_dirty(&world, &seed).await;
    world.login_server.mode(refused(503, "away"));
    assert_eq!(verify(&world, &seed).await.verdict, "inconclusive");
    assert_eq!(acquire(&world, &seed).await, None);
    pass(LAPSE).await;
    let row = row(&world, &seed).await;
    assert!(row.dirty && row.status == SeedStatus::Alive, "{row:?}");
    assert_eq!(acquire(&world, &seed).await, None);
}

#[actix::test]
async fn a_dirty_seed_whose_lease_came_without_an_answer_stays_dirty() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    make_dirty(&world, &seed).await;
    world.faulty_store.fail(StoreOp::AcquireForRecovery, 1, Fault::DoneButError);
    world.service().verify_seed(&seed).await.unwrap_err();
    assert_eq!(acquire(&world, &seed).await, None);
    pass(LAPSE).await;
    assert!(row(&world, &seed).await.dirty);
}

#[actix::test]
async fn a_pool_without_a_clean_seed_is_mended_once_the_last_holder_had_its_time() {
    let world = World::new().await;
    let seed = world.seed_in("acme", Some("team")).await;
    make_dirty(&world, &seed).await;
    let early = world.begin(json!({ "seed": { "pool": "team" } })).await;
    let view = world.wait_over(&early).await;
    assert!(view.reason.unwrap().contains("no seed of pool"), "{:?}", world.login_server.attempts());
    assert!(world.login_server.attempts().is_empty());
    pass(GRACE).await;
    let id = world.launch(json!({ "seed": { "pool": "team" } })).await;
    assert_eq!(world.login_server.attempts(), ["refresh-acme-1"]);
    assert_eq!(world.view(&id).await.run.unwrap().seed, Some(seed));
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn a_launch_waits_for_the_check_of_the_only_seed() {
    let world = World::new().await;
    let seed = world.seed_in("acme", Some("team")).await;
    world.login_server.mode(Mode::HoldBefore);
    begin(world.service(), &seed);
    world.until("the request", async || !world.login_server.attempts().is_empty()).await;
    let id = world.begin(json!({ "seed": { "pool": "team" } })).await;
    pass(Duration::from_secs(5)).await;
    world.login_server.mode(Mode::Grant);
    world.wait_state(&id, State::Idle).await;
    assert_eq!(world.login_server.attempts().len(), 1);
}

#[actix::test]
async fn a_lease_that_came_after_a_long_check_is_not_older_than_it_is() {
    let world = World::new().await;
    let seed = world.seed_in("acme", Some("team")).await;
    make_dirty(&world, &seed).await;
    pass(GRACE).await;
    world.login_server.mode(Mode::HoldBefore);
    let id = world.begin(json!({ "seed": { "pool": "team" } })).await;
    world.until("the request", async || !world.login_server.attempts().is_empty()).await;
    pass(Duration::from_secs(50)).await;
    world.login_server.mode(Mode::Grant);
    world.wait_state(&id, State::Idle).await;
    pass(LAPSE).await;
    assert_eq!(world.view(&id).await.state, State::Idle);
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn a_clean_seed_is_handed_out_before_a_dirty_one_is_looked_at() {
    let world = World::new().await;
    let dirty = world.seed_in("acme", Some("team")).await;
    make_dirty(&world, &dirty).await;
    let clean = world.seed_in("beta", Some("team")).await;
    pass(GRACE).await;
    let id = world.launch(json!({ "seed": { "pool": "team" } })).await;
    assert_eq!(world.view(&id).await.run.unwrap().seed, Some(clean));
    assert!(world.login_server.attempts().is_empty());
}

#[actix::test]
async fn a_seed_that_dies_in_the_mending_is_not_handed_out() {
    let world = World::new().await;
    let seed = world.seed_in("acme", Some("team")).await;
    make_dirty(&world, &seed).await;
    pass(GRACE).await;
    world.login_server.mode(refused(401, "refresh_token_reused"));
    let id = world.begin(json!({ "seed": { "pool": "team" } })).await;
    world.wait_over(&id).await;
    assert_eq!(row(&world, &seed).await.status, SeedStatus::Dead);
    assert_eq!(world.view(&id).await.run.unwrap().seed, None);
}

#[actix::test]
async fn a_run_that_is_known_to_be_home_needs_no_time() {
    let world = World::new().await;
    let seed = world.seed_in("acme", Some("team")).await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    world.stop(&id).await;
    // Its release did not reach the store.
    let holder = world.record(&id).await.run.unwrap().holder;
    Leases::acquire(&world.memory, &Want::Seed(seed.clone()), &holder).await.unwrap().unwrap();
    pass(LAPSE).await;
    assert!(row(&world, &seed).await.dirty);
    world.launch(json!({ "seed": { "pool": "team" } })).await;
    assert_eq!(world.login_server.attempts().len(), 1);
}

#[actix::test]
async fn while_a_lost_session_may_have_a_newer_login_its_seed_is_not_asked_about() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    // Its agent cannot be proven gone, and the login that it may still rotate is not home.
    world.faults.arm(ChildKind::Process, "stop_agent", FaultKind::Error, 20);
    world.faulty_store.fail_always(StoreOp::SaveCredential, Fault::Error);
    world.rotate(&id);
    world.service().stop(&id, StopMode::Graceful).await.unwrap();
    world.wait_state(&id, State::Lost).await;
    world.faulty_store.heal();
    world.faults.disarm();
    pass(GRACE).await;
    let refused = world.service().verify_seed(&seed).await.unwrap_err();
    assert!(refused.to_string().contains("stop it first"), "{refused}");
    assert!(world.login_server.attempts().is_empty());
    world.service().stop(&id, StopMode::Graceful).await.unwrap();
    world.wait_over(&id).await;
    assert_eq!(token(&world, &seed), "refresh-acme-2");
    world.check().await;
}

/// Where a service is killed.
#[derive(Debug, Clone, Copy)]
enum Killed {
    /// In this call of the store, which was not done.
    In(StoreOp, u64),
    /// After the request was sent, before the login server has looked at it.
    Sent,
    /// After the login server has spent the token.
    Spent,
}

/// What becomes of the seed.
#[derive(Debug, PartialEq, Eq)]
struct Fate {
    verdict: &'static str,
    /// Requests in all.
    attempts: usize,
    /// Of these, with a token that was spent: the answer had died with the service.
    reuses: usize,
}

#[test]
fn wherever_the_service_is_killed_the_seed_is_nobodys_until_it_is_known_what_came_of_its_token() {
    let fate = |verdict, attempts, reuses| Fate { verdict, attempts, reuses };
    let table = [
        (Killed::In(StoreOp::AcquireForRecovery, 1), fate("alive", 1, 0)),
        (Killed::In(StoreOp::Load, 1), fate("alive", 1, 0)),
        (Killed::In(StoreOp::PatchSeed, 1), fate("alive", 1, 0)),
        (Killed::Sent, fate("alive", 2, 0)),
        (Killed::Spent, fate("dead", 2, 1)),
        (Killed::In(StoreOp::PutSpool, 1), fate("dead", 2, 1)),
        (Killed::In(StoreOp::SaveCredential, 1), fate("alive", 1, 0)),
        (Killed::In(StoreOp::ConfirmSpool, 1), fate("alive", 1, 0)),
        (Killed::In(StoreOp::PatchSeed, 2), fate("alive", 2, 0)),
        (Killed::In(StoreOp::Release, 1), fate("alive", 2, 0)),
    ];
    for (killed, expected) in table {
        assert_eq!(play(kill_and_check_again(killed)), expected, "killed {killed:?}");
    }
}

async fn kill_and_check_again(killed: Killed) -> Fate {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    match killed {
        Killed::In(op, nth) => world.faulty_store.fail(op, nth, Fault::Hang),
        Killed::Sent => world.login_server.mode(Mode::HoldBefore),
        Killed::Spent => world.login_server.mode(Mode::HoldAfter),
    }
    begin(world.service(), &seed);
    world
        .until("the moment to be killed", async || match killed {
            Killed::In(op, nth) => world.faulty_store.calls(op) == nth,
            Killed::Sent => !world.login_server.attempts().is_empty(),
            Killed::Spent => !world.login_server.grants().is_empty(),
        })
        .await;
    world.crash();
    world.faulty_store.heal();
    world.login_server.mode(Mode::Grant);
    pass(LAPSE).await;
    let sent = !world.login_server.attempts().is_empty();
    if sent {
        assert_eq!(acquire(&world, &seed).await, None, "killed {killed:?}: handed out in doubt");
        // A peer that knows no dirty seeds is kept away by the mark, until the outcome is on record.
        let concluded = matches!(killed, Killed::In(StoreOp::Release, _));
        let status = if concluded { SeedStatus::Alive } else { SeedStatus::NeedsRecovery };
        assert_eq!(row(&world, &seed).await.status, status, "killed {killed:?}");
    }
    world.restart().await;
    let newest = world.login_server.newest("refresh-acme-1");
    if let Some(lease) = acquire(&world, &seed).await {
        assert_eq!(token(&world, &seed), newest, "killed {killed:?}: handed out with an old login");
        world.memory.release(&seed, &lease.holder).await.unwrap();
    }
    let verdict = verify(&world, &seed).await.verdict;
    let row = row(&world, &seed).await;
    assert!(row.lease.is_none() && !row.metadata.contains_key("refreshIntent"), "killed {killed:?}: {row:?}");
    if verdict == "alive" {
        assert_eq!(token(&world, &seed), world.login_server.newest("refresh-acme-1"), "killed {killed:?}");
    }
    assert!(world.memory.entries().await.unwrap().is_empty(), "killed {killed:?}");
    let login_server = &world.login_server;
    Fate { verdict, attempts: login_server.attempts().len(), reuses: login_server.reuses().len() }
}

#[actix::test]
async fn a_store_that_is_away_for_minutes_after_the_answer_gets_the_login_in_the_end() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    for op in [StoreOp::SaveCredential, StoreOp::Renew] {
        world.faulty_store.fail_always(op, Fault::Error);
    }
    let unknown = world.service().verify_seed(&seed).await.unwrap_err();
    assert!(matches!(unknown, SessionError::NoAnswer { .. }), "{unknown}");
    pass(Duration::from_secs(300)).await;
    assert_eq!(acquire(&world, &seed).await, None);
    world.faulty_store.heal();
    world.until("the save", async || token(&world, &seed) == "granted-1").await;
    world.until("the release", async || row(&world, &seed).await.lease.is_none()).await;
    assert_eq!(row(&world, &seed).await.status, SeedStatus::Alive);
    assert!(world.memory.entries().await.unwrap().is_empty());
}

#[actix::test]
async fn a_login_that_cannot_be_saved_is_parked_and_names_its_place_in_the_spool() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    world.faulty_store.fail_always(StoreOp::SaveCredential, Fault::Error);
    begin(world.service(), &seed);
    world.until("the verdict", async || row(&world, &seed).await.metadata.contains_key("verify")).await;
    let parked = row(&world, &seed).await;
    let (spooled, _) = world.memory.entries().await.unwrap().remove(0);
    assert_eq!(parked.status, SeedStatus::NeedsRecovery);
    assert!(parked.status_reason.unwrap().contains(&world.memory.describe(&spooled)));
    assert_eq!(parked.metadata["verify"]["verdict"], "needs-recovery");
    assert_eq!(acquire(&world, &seed).await, None);

    world.faulty_store.heal();
    world.until("the release", async || row(&world, &seed).await.lease.is_none()).await;
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.seed.status), ("alive", SeedStatus::Alive));
    assert_eq!(token(&world, &seed), "granted-1");
    assert_eq!(world.login_server.attempts().len(), 1, "the spooled login is fresh");
}

#[actix::test]
async fn a_save_whose_answer_was_lost_is_found_to_be_done() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    world.faulty_store.fail(StoreOp::SaveCredential, 1, Fault::DoneButError);
    assert_eq!(verify(&world, &seed).await.verdict, "alive");
    assert_eq!(token(&world, &seed), "granted-1");
}

#[actix::test]
async fn an_intent_that_could_not_be_recorded_is_never_sent() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    for fault in [Fault::Error, Fault::DoneButError] {
        world.faulty_store.fail(StoreOp::PatchSeed, 1, fault);
        assert_eq!(verify(&world, &seed).await.verdict, "inconclusive");
        assert!(world.login_server.attempts().is_empty(), "{fault:?}");
        let row = row(&world, &seed).await;
        assert!(row.status == SeedStatus::Alive && !row.metadata.contains_key("refreshIntent"), "{row:?}");
    }
}

#[actix::test]
async fn whoever_takes_the_seed_meanwhile_keeps_it_and_the_answer_is_spooled() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    world.faulty_store.fail_always(StoreOp::Renew, Fault::Error);
    world.login_server.mode(Mode::HoldAfter);
    begin(world.service(), &seed);
    world.until("the request", async || !world.login_server.grants().is_empty()).await;
    pass(LAPSE).await;
    let thief = Holder::stored("a-peer");
    Leases::acquire_for_recovery(&world.memory, &seed, &thief).await.unwrap().unwrap();
    world.login_server.mode(Mode::Grant);
    world.until("the spool", async || world.memory.entries().await.unwrap().len() == 1).await;
    world
        .until("the end of the check", async || {
            world
                .service()
                .verify_seed(&seed)
                .await
                .is_err_and(|e| e.to_string().contains("leased by somebody else"))
        })
        .await;
    assert_eq!(token(&world, &seed), "refresh-acme-1");
    assert_eq!(world.memory.holder(&seed), Some(thief.clone()));
    assert_eq!(row(&world, &seed).await.status, SeedStatus::NeedsRecovery);
    world.memory.release(&seed, &thief).await.unwrap();
    assert_eq!(acquire(&world, &seed).await, None);
    assert_eq!(verify(&world, &seed).await.verdict, "alive");
    assert_eq!((token(&world, &seed).as_str(), world.login_server.attempts().len()), ("granted-1", 1));
}

#[actix::test]
async fn only_idle_pooled_seeds_that_are_due_are_refreshed_in_passing() {
    let world = World::without_service();
    world.refresh_idle.set(true);
    let idle = world.seed_in("idle", Some("team")).await;
    let fresh = import(&world, fresh(&world, "fresh"), Some("team")).await;
    let unpooled = world.seed("unpooled").await;
    let dead = world.seed_in("dead", Some("team")).await;
    set_status(&world, &dead, SeedStatus::Dead).await;
    let parked = world.seed_in("parked", Some("team")).await;
    set_status(&world, &parked, SeedStatus::NeedsRecovery).await;
    let dirty = world.seed_in("dirty", Some("team")).await;
    acquire(&world, &dirty).await.unwrap();
    world.restart().await;
    pass(Duration::from_secs(3 * 3600)).await;
    assert_eq!(world.login_server.attempts(), ["refresh-idle-1"]);
    assert_eq!(token(&world, &idle), "granted-1");
    assert!(row(&world, &dirty).await.dirty);
    for untouched in [fresh, unpooled, dead, parked] {
        assert!(!row(&world, &untouched).await.metadata.contains_key("verify"));
    }
    pass(Duration::from_secs(9 * 24 * 3600)).await;
    let of_idle = world.login_server.attempts();
    assert!(
        of_idle.contains(&"granted-1".to_owned()) && of_idle.contains(&"refresh-fresh-1".to_owned()),
        "{of_idle:?}"
    );
    assert!(world.login_server.reuses().is_empty());
}

#[actix::test]
async fn a_login_server_that_asks_for_time_is_left_alone() {
    let world = World::without_service();
    world.refresh_idle.set(true);
    for account in ["a", "b", "c"] {
        world.seed_in(account, Some("team")).await;
    }
    let retry_after = Some(Duration::from_secs(900));
    world.login_server.mode(Mode::Answer(RefreshAnswer::Refused { status: 429, code: None, retry_after }));
    world.restart().await;
    pass(Duration::from_secs(600)).await;
    assert_eq!(world.login_server.attempts().len(), 1);
    world.login_server.mode(Mode::Grant);
    world.until("the others", async || world.login_server.grants().len() == 2).await;
    // The one that was sent away has its turn in the next walk.
    pass(Duration::from_secs(2 * 3600)).await;
    assert_eq!(world.login_server.grants().len(), 3);
}

#[actix::test]
async fn a_verifier_that_dies_is_started_again() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    world.faults.arm(ChildKind::Verifier, "verify", FaultKind::Panic, 1);
    let died = world.service().verify_seed(&seed).await.unwrap_err();
    assert!(matches!(died, SessionError::NoAnswer { .. }), "{died}");
    world
        .until("another verifier", async || {
            world.service().verify_seed(&seed).await.is_ok_and(|seen| seen.verdict == "alive")
        })
        .await;
}

#[actix::test]
async fn a_check_outlives_the_verifier_that_began_it() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    world.login_server.mode(Mode::HoldAfter);
    begin(world.service(), &seed);
    world.until("the request", async || !world.login_server.grants().is_empty()).await;
    world.faults.arm(ChildKind::Verifier, "verify", FaultKind::Panic, 1);
    world.service().verify_seed(&seed).await.unwrap_err();
    world.login_server.mode(Mode::Grant);
    world.until("the verdict", async || row(&world, &seed).await.metadata.contains_key("verify")).await;
    assert_eq!(token(&world, &seed), "granted-1");
}

#[actix::test]
async fn a_service_that_leaves_waits_for_its_checks() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    world.login_server.mode(Mode::HoldAfter);
    begin(world.service(), &seed);
    world.until("the request", async || !world.login_server.grants().is_empty()).await;
    let leaving = world.service();
    let left = actix::spawn(async move { leaving.drain(OnExit::Detach).await });
    pass(Duration::from_secs(10)).await;
    assert!(!left.is_finished());
    world.login_server.mode(Mode::Grant);
    left.await.unwrap();
    assert_eq!(token(&world, &seed), "granted-1");
    assert!(row(&world, &seed).await.lease.is_none());
    let refused = world.service().verify_seed(&world.seed("beta").await).await.unwrap_err();
    assert!(matches!(refused, SessionError::Draining), "{refused}");
}

#[actix::test]
async fn no_note_of_a_check_holds_a_token() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    for mode in [Mode::LoseAnswer, Mode::Grant] {
        world.login_server.mode(mode);
        let seen = verify(&world, &seed).await;
        let shown = format!("{seen:?} {}", json!(row(&world, &seed).await.metadata));
        assert!(!shown.contains("refresh-acme") && !shown.contains("granted-"), "{shown}");
    }
}
