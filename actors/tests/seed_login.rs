//! A new login by a code: whatever breaks on the way, a login that is there becomes one seed, and nothing else stays.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use optio_actors::events::SERVICE_STREAM;
use optio_actors::seed_login::{LoginState, LoginView, MAX_LOGINS};
use optio_actors::service::SeedView;
use optio_actors::sessions::OnExit;
use optio_actors::supervision::ChildKind;
use optio_actors::testing::{Behaviour, CODE, World};
use optio_actors::{SessionError, faults};
use optio_host::faulty::{FaultKind, HostOp};
use optio_host::{Host, RelPath, TaskDir, TaskId};
use optio_store::faulty::{Fault, StoreOp};
use optio_store::{LoginId, PageRequest};
use serde_json::{Map, Value, json};

async fn begin(world: &World) -> LoginView {
    world.service().start_seed_login(Some("team".to_owned()), Map::new()).await.unwrap()
}

async fn view(world: &World, id: &LoginId) -> LoginView {
    world.service().seed_login(id).await.unwrap()
}

async fn wait(world: &World, id: &LoginId, state: LoginState) -> LoginView {
    world.until(&format!("{state:?}"), async || view(world, id).await.state == state).await;
    view(world, id).await
}

async fn seeds(world: &World) -> Vec<SeedView> {
    let page = PageRequest { cursor: None, limit: PageRequest::MAX };
    world.service().seeds(None, &page).await.unwrap().data
}

fn dir(world: &World, slot: usize) -> TaskDir {
    world.host.task_dir(&TaskId::new(format!("login-0-{slot}")).unwrap())
}

async fn is_wiped(world: &World) -> bool {
    for slot in 0..MAX_LOGINS {
        if world.host.exists(&dir(world, slot)).await.unwrap() {
            return false;
        }
    }
    world.host.agents_running() == 0
}

/// The events that say that a login was stored.
fn saved(world: &World) -> Vec<Value> {
    let events = world.journal.values(SERVICE_STREAM).into_iter();
    events.filter(|event| event["type"] == "seed.saved" && event["from"] == "login").collect()
}

#[actix::test]
async fn a_login_that_was_entered_is_a_seed_of_its_pool_and_its_home_is_gone() {
    let world = World::new().await;
    let metadata = json!({ "who": "ada" }).as_object().unwrap().clone();
    let login = world.service().start_seed_login(Some("team".to_owned()), metadata).await.unwrap();
    assert_eq!(login.state, LoginState::Pending);
    assert_eq!(login.verification_url.as_deref(), Some("https://auth.openai.com/codex/device"));
    assert_eq!(login.user_code.as_deref(), Some(CODE));
    let lifetime = login.expires_at.unwrap().duration_since(jiff::Timestamp::now());
    assert!(lifetime.as_secs() > 890 && lifetime.as_secs() <= 900, "{lifetime:?}");
    assert!(!format!("{login:?}").contains(CODE));
    let mode = world.host.info(&dir(&world, 0), &RelPath::new("login.json").unwrap()).await.unwrap();
    assert_eq!(mode.unwrap().mode, 0o600);

    world.agents.enter_code(&world.host, "acme");
    let done = wait(&world, &login.id, LoginState::Done).await;
    assert_eq!((&done.user_code, &done.verification_url), (&None, &None), "the code is no use any more");
    let stored = seeds(&world).await;
    assert_eq!(stored.len(), 1);
    assert_eq!(done.seed.as_ref(), Some(&stored[0].id));
    assert_eq!(stored[0].pool.as_deref(), Some("team"));
    assert_eq!(Value::from(stored[0].metadata.clone()), json!({ "who": "ada", "login": login.id }));
    assert_eq!(saved(&world).len(), 1);
    assert_eq!(saved(&world)[0]["seed"], json!(stored[0].id));
    assert!(is_wiped(&world).await);

    let session = world.launch(json!({ "seed": { "pool": "team" } })).await;
    world.stop(&session).await;
    world.check().await;
}

#[actix::test]
async fn codex_is_gone_before_its_login_is_read() {
    let world = World::new().await;
    world.agents.behave(Behaviour { ignores_term: true, leaves_behind: 2, ..Behaviour::default() });
    let login = begin(&world).await;
    world.agents.enter_code(&world.host, "acme");
    wait(&world, &login.id, LoginState::Saving).await;
    world
        .until("the end of codex", async || {
            let stored = !seeds(&world).await.is_empty();
            let running = world.host.agents_running();
            assert!(!stored || running == 0, "stored while {running} programs run");
            stored
        })
        .await;
    wait(&world, &login.id, LoginState::Done).await;
    assert!(is_wiped(&world).await);
}

#[actix::test]
async fn without_proof_that_codex_is_gone_nothing_is_read_and_it_is_tried_again() {
    let world = World::new().await;
    let login = begin(&world).await;
    world.faulty_host.fail_nth(HostOp::GuardGone, 1, FaultKind::Error);
    world.agents.enter_code(&world.host, "acme");
    world
        .until("the reason", async || {
            view(&world, &login.id).await.reason.is_some_and(|why| why.contains("not proven gone"))
        })
        .await;
    assert!(seeds(&world).await.is_empty());
    wait(&world, &login.id, LoginState::Done).await;
    assert_eq!(seeds(&world).await.len(), 1);
}

#[actix::test]
async fn a_login_that_was_refused_says_so_and_leaves_nothing() {
    let world = World::new().await;
    let login = begin(&world).await;
    world.agents.refuse_code();
    let failed = wait(&world, &login.id, LoginState::Failed).await;
    assert_eq!(failed.reason.as_deref(), Some("device auth failed with status 400 Bad Request"));
    assert!(seeds(&world).await.is_empty() && saved(&world).is_empty() && is_wiped(&world).await);
}

#[actix::test]
async fn a_code_that_nobody_enters_expires() {
    let world = World::new().await;
    let login = begin(&world).await;
    tokio::time::sleep(Duration::from_secs(14 * 60)).await;
    assert_eq!(view(&world, &login.id).await.state, LoginState::Pending, "its guard was kept from ending it");
    let failed = wait(&world, &login.id, LoginState::Failed).await;
    assert_eq!(failed.reason.as_deref(), Some("nobody entered the code within 15 minutes"));
    assert!(is_wiped(&world).await);
}

#[actix::test]
async fn a_cancelled_login_leaves_nothing_and_codex_was_told() {
    let world = World::new().await;
    let login = begin(&world).await;
    let cancelled = world.service().cancel_seed_login(&login.id).await.unwrap();
    assert_eq!((cancelled.state, &cancelled.user_code), (LoginState::Cancelled, &None));
    assert_eq!(world.agents.requests("account/login/cancel").len(), 1);
    assert!(seeds(&world).await.is_empty() && is_wiped(&world).await);
    let again = world.service().cancel_seed_login(&login.id).await.unwrap();
    assert_eq!(again.state, LoginState::Cancelled);
}

#[actix::test]
async fn a_login_that_was_entered_before_the_cancel_is_kept() {
    let world = World::new().await;
    let login = begin(&world).await;
    world.agents.enter_code(&world.host, "acme");
    let ended = world.service().cancel_seed_login(&login.id).await.unwrap();
    assert_eq!(ended.state, LoginState::Done);
    assert_eq!(seeds(&world).await.len(), 1);
}

#[actix::test]
async fn a_codex_that_cannot_do_it_is_a_refusal_with_the_reason() {
    let world = World::new().await;
    let start = async || world.service().start_seed_login(None, Map::new()).await.unwrap_err().to_string();
    world.agents.behave(Behaviour { has_no_codes: true, ..Behaviour::default() });
    let refused = start().await;
    assert!(refused.contains("device code login is not enabled"), "{refused}");
    world.agents.behave(Behaviour { dies_saying: Some("no config".to_owned()), ..Behaviour::default() });
    let refused = start().await;
    assert!(refused.contains("no config"), "{refused}");
    world.agents.behave(Behaviour { mute: true, ..Behaviour::default() });
    let refused = start().await;
    assert!(refused.contains("no answer within"), "{refused}");
    world.agents.behave(Behaviour::default());
    world.codex(false);
    let refused = start().await;
    assert!(refused.contains("cannot listen"), "{refused}");
    assert!(is_wiped(&world).await);
}

#[actix::test]
async fn a_caller_does_not_wait_for_a_code_for_ever() {
    let world = World::new().await;
    world.faulty_host.fail_nth(HostOp::FindCodex, 1, FaultKind::Hang);
    let login = begin(&world).await;
    assert_eq!((login.state, login.user_code), (LoginState::Starting, None));
}

#[actix::test]
async fn what_could_not_be_stored_is_refused_before_there_is_a_login() {
    let world = World::new().await;
    let notes = |notes: Value| notes.as_object().unwrap().clone();
    let service = world.service();
    for (pool, metadata) in
        [(Some(String::new()), json!({})), (None, json!({ "a.b": 1 })), (None, json!({ "login": "x" }))]
    {
        let refused = service.start_seed_login(pool, notes(metadata.clone())).await;
        assert!(refused.is_err(), "{metadata}");
    }
    assert!(world.agents.requests("initialize").is_empty());
}

#[actix::test]
async fn only_so_many_logins_are_under_way_and_a_place_that_is_free_is_used_again() {
    let world = World::new().await;
    let mut logins = Vec::new();
    for _ in 0..MAX_LOGINS {
        logins.push(begin(&world).await);
    }
    let refused = world.service().start_seed_login(None, Map::new()).await.unwrap_err();
    assert!(matches!(refused, SessionError::TooManyLogins { .. }), "{refused}");
    world.service().cancel_seed_login(&logins[3].id).await.unwrap();
    world
        .until("a free place", async || world.service().start_seed_login(None, Map::new()).await.is_ok())
        .await;
}

#[actix::test]
async fn a_directory_that_was_not_looked_through_is_not_written_over() {
    let world = World::new().await;
    begin(&world).await;
    world.crash();
    world.agents.enter_code(&world.host, "acme");
    world.faulty_host.fail_nth(HostOp::Exists, 1, FaultKind::Error);
    world.restart().await;
    let refused = world.service().start_seed_login(None, Map::new()).await.unwrap_err().to_string();
    assert!(refused.contains("an earlier login may lie there"), "{refused}");
    let other = begin(&world).await;
    assert_eq!(other.state, LoginState::Pending, "the next place is free");
    world.crash();
    world.restart().await;
    world.until("the earlier login", async || !seeds(&world).await.is_empty()).await;
}

#[actix::test]
async fn an_import_whose_answer_was_lost_is_one_seed_even_when_it_rotates_before_the_next_try() {
    let world = World::new().await;
    let login = begin(&world).await;
    world.faulty_store.fail(StoreOp::Import, 1, Fault::DoneButError);
    world.agents.enter_code(&world.host, "acme");
    world.until("the import", async || !seeds(&world).await.is_empty()).await;
    let seed = seeds(&world).await[0].id.clone();
    let holder = optio_store::Holder::mint_for("test");
    let store = world.service().settings().store.clone();
    store.leases.acquire_for_recovery(&seed, &holder).await.unwrap().unwrap();
    let (_, version) = store.seeds.load(&seed).await.unwrap();
    let next = optio_actors::testing::login("acme", 2);
    store.seeds.save_credential(&seed, &holder, &version, next).await.unwrap();
    assert_eq!(view(&world, &login.id).await.state, LoginState::Saving, "it was faster than the next try");
    let done = wait(&world, &login.id, LoginState::Done).await;
    assert_eq!((done.seed, seeds(&world).await.len()), (Some(seed), 1));
}

#[actix::test]
async fn a_login_waits_for_a_store_that_is_away_and_says_where_it_is() {
    let world = World::new().await;
    let login = begin(&world).await;
    for nth in 1..=3 {
        world.faulty_store.fail(StoreOp::Import, nth, Fault::Error);
    }
    world.agents.enter_code(&world.host, "acme");
    let place = dir(&world, 0).path().display().to_string();
    world
        .until("the place", async || {
            let view = view(&world, &login.id).await;
            view.state == LoginState::Saving && view.reason.is_some_and(|why| why.contains(&place))
        })
        .await;
    assert!(world.host.exists(&dir(&world, 0)).await.unwrap());
    wait(&world, &login.id, LoginState::Done).await;
    assert_eq!(seeds(&world).await.len(), 1);
    assert!(is_wiped(&world).await);
}

#[actix::test]
async fn an_import_whose_answer_was_lost_is_one_seed() {
    let world = World::new().await;
    let login = begin(&world).await;
    world.faulty_store.fail(StoreOp::Import, 1, Fault::DoneButError);
    world.agents.enter_code(&world.host, "acme");
    let done = wait(&world, &login.id, LoginState::Done).await;
    let stored = seeds(&world).await;
    assert_eq!((stored.len(), done.seed.as_ref()), (1, Some(&stored[0].id)));
}

#[actix::test]
async fn a_login_that_is_entered_while_the_service_is_dead_is_found_at_the_next_start() {
    let world = World::new().await;
    let login = begin(&world).await;
    world.crash();
    world.agents.enter_code(&world.host, "acme");
    world.restart().await;
    let done = wait(&world, &login.id, LoginState::Done).await;
    let stored = seeds(&world).await;
    assert_eq!((stored.len(), done.seed.as_ref()), (1, Some(&stored[0].id)));
    assert_eq!(stored[0].pool.as_deref(), Some("team"), "what was asked for is remembered");
    assert_eq!(saved(&world).len(), 1);
    assert!(is_wiped(&world).await);
}

#[actix::test]
async fn a_code_that_a_dead_service_showed_is_given_up_at_the_next_start() {
    let world = World::new().await;
    let login = begin(&world).await;
    world.crash();
    world.restart().await;
    let failed = wait(&world, &login.id, LoginState::Failed).await;
    assert_eq!(failed.reason.as_deref(), Some("the service was stopped meanwhile"));
    assert!(seeds(&world).await.is_empty() && is_wiped(&world).await);
}

#[actix::test]
async fn a_login_that_was_stored_and_has_rotated_since_is_not_stored_again() {
    let world = World::new().await;
    let login = begin(&world).await;
    // It is stored, and neither its copy nor its directory goes.
    world.faulty_host.fail_nth(HostOp::Remove, 1, FaultKind::Error);
    world.agents.enter_code(&world.host, "acme");
    wait(&world, &login.id, LoginState::Done).await;
    assert!(world.host.exists(&dir(&world, 0)).await.unwrap(), "the fault was met");
    let session = world.launch(json!({ "seed": { "pool": "team" } })).await;
    world.rotate(&session);
    world.stop(&session).await;
    world.crash();
    world.restart().await;
    world.until("the directory is wiped", async || is_wiped(&world).await).await;
    let stored = seeds(&world).await;
    assert_eq!(stored.len(), 1, "a second seed of one lineage would strand both");
    let again = view(&world, &login.id).await;
    assert_eq!(again.seed.as_ref(), Some(&stored[0].id));
}

#[actix::test]
async fn a_login_whose_actor_dies_is_taken_up_from_its_directory() {
    let world = World::new().await;
    let login = begin(&world).await;
    world.faults.arm(ChildKind::SeedLogin, "bring_home", faults::FaultKind::Panic, 2);
    world.agents.enter_code(&world.host, "acme");
    let done = wait(&world, &login.id, LoginState::Done).await;
    assert!(done.seed.is_some() && is_wiped(&world).await);
    assert_eq!(seeds(&world).await.len(), 1);
}

#[actix::test]
async fn a_login_whose_actor_dies_again_and_again_is_left_for_the_next_start() {
    let world = World::new().await;
    let login = begin(&world).await;
    world.faults.arm(ChildKind::SeedLogin, "bring_home", faults::FaultKind::Panic, 6);
    world.agents.enter_code(&world.host, "acme");
    let failed = wait(&world, &login.id, LoginState::Failed).await;
    assert!(failed.reason.unwrap().contains("next start"));
    assert!(world.host.exists(&dir(&world, 0)).await.unwrap(), "nothing is wiped that is not stored");
    world.crash();
    world.restart().await;
    wait(&world, &login.id, LoginState::Done).await;
    assert_eq!(seeds(&world).await.len(), 1);
}

#[actix::test]
async fn what_is_left_of_a_directory_that_was_not_wiped_is_no_login() {
    let world = World::new().await;
    let login = begin(&world).await;
    world.faulty_host.fail_nth(HostOp::Cleanup, 1, FaultKind::Error);
    world.agents.enter_code(&world.host, "acme");
    wait(&world, &login.id, LoginState::Done).await;
    let auth = RelPath::in_workdir("home/.codex/auth.json").unwrap();
    assert_eq!(world.host.info(&dir(&world, 0), &auth).await.unwrap(), None);
    assert!(world.host.exists(&dir(&world, 0)).await.unwrap(), "the fault was met");
    world.crash();
    world.restart().await;
    world.until("the directory is wiped", async || is_wiped(&world).await).await;
    assert_eq!((saved(&world).len(), seeds(&world).await.len()), (1, 1));
}

#[actix::test]
async fn a_service_that_leaves_gives_its_codes_up_and_takes_no_new_ones() {
    let world = World::new().await;
    let login = begin(&world).await;
    world.service().drain(OnExit::Detach).await;
    assert_eq!(view(&world, &login.id).await.state, LoginState::Cancelled);
    assert!(is_wiped(&world).await);
    let refused = world.service().start_seed_login(None, Map::new()).await.unwrap_err();
    assert!(matches!(refused, SessionError::Draining), "{refused}");
}
