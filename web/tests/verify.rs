//! Checks of logins over real HTTP on both sides: the API before them, and a login server behind them that revokes a
//! lineage at the first token it sees twice.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::World;
use optio_oauth::{HttpLoginServer, HttpOptions};
use optio_store::MemoryJournal;
use optio_testkit::{ChatGptLogin, FakeOauth, OauthMode};
use serde_json::{Value, json};

/// More than eight days.
const STALE: jiff::SignedDuration = jiff::SignedDuration::from_hours(9 * 24);

async fn world(oauth: &FakeOauth) -> World {
    let options = HttpOptions::with_override(Some(oauth.url()));
    let server = Arc::new(HttpLoginServer::new(&options).unwrap());
    World::asking(server, MemoryJournal::new(), None).await
}

async fn import(world: &World, login: &ChatGptLogin) -> String {
    let auth_json = String::from_utf8(login.auth_json()).unwrap();
    let made = world.post("/v1/seeds", json!({ "auth_json": auth_json, "pool": "team" })).await;
    assert_eq!(made.status, 201, "{}", made.text);
    made.header("location").to_owned()
}

async fn verify(world: &World, path: &str) -> Value {
    let checked = world.post(&format!("{path}/verify"), json!({})).await;
    assert_eq!(checked.status, 200, "{}", checked.text);
    checked.json()
}

/// The refresh token that the store has.
fn stored(world: &World, path: &str) -> String {
    let seed = path.rsplit('/').next().unwrap().parse().unwrap();
    optio_testkit::auth::refresh_token_of(&world.memory.credential(&seed).unwrap()).unwrap()
}

#[actix_web::test]
async fn a_stale_login_is_refreshed_once_and_then_it_is_fresh() {
    let oauth = FakeOauth::start();
    let world = world(&oauth).await;
    let seed = import(&world, &oauth.login("acme").refreshed_ago(STALE)).await;
    for reason in ["its login was refreshed", "its tokens are fresh"] {
        let seen = verify(&world, &seed).await;
        assert_eq!((&seen["verdict"], &seen["reason"]), (&json!("alive"), &json!(reason)));
        assert_eq!(Some(stored(&world, &seed)), oauth.issued("acme"));
    }
    assert_eq!((oauth.attempts().len(), oauth.reuses().len()), (1, 0));
    world.stop().await;
}

#[actix_web::test]
async fn many_who_ask_at_once_spend_one_token() {
    let oauth = FakeOauth::start();
    let world = world(&oauth).await;
    let seed = import(&world, &oauth.login("acme").refreshed_ago(STALE)).await;
    let asked = (0..8).map(|_| verify(&world, &seed));
    for seen in futures_util::future::join_all(asked).await {
        assert_eq!(seen["verdict"], "alive");
    }
    assert_eq!((oauth.attempts().len(), oauth.reuses().len()), (1, 0));
    assert_eq!(Some(stored(&world, &seed)), oauth.issued("acme"));
    world.stop().await;
}

#[actix_web::test]
async fn trouble_of_the_login_server_changes_nothing() {
    let oauth = FakeOauth::start();
    let world = world(&oauth).await;
    let seed = import(&world, &oauth.login("acme").refreshed_ago(STALE)).await;
    oauth.mode(OauthMode::error(503, "overloaded"));
    let seen = verify(&world, &seed).await;
    assert_eq!((&seen["verdict"], &seen["status"]), (&json!("inconclusive"), &json!("alive")));
    oauth.mode(OauthMode::Ok);
    assert_eq!(verify(&world, &seed).await["verdict"], "alive");
    assert!(oauth.reuses().is_empty());
    world.stop().await;
}

#[actix_web::test]
async fn after_a_lost_answer_the_seed_is_parked_until_the_same_token_has_decided() {
    let oauth = FakeOauth::start();
    let world = world(&oauth).await;
    let seed = import(&world, &oauth.login("acme").refreshed_ago(STALE)).await;
    oauth.mode(OauthMode::LoseAnswer);
    let seen = verify(&world, &seed).await;
    assert_eq!((&seen["verdict"], &seen["status"]), (&json!("suspect"), &json!("needs_recovery")));
    oauth.mode(OauthMode::Ok);
    let seen = verify(&world, &seed).await;
    assert_eq!((&seen["verdict"], &seen["status"]), (&json!("dead"), &json!("dead")));
    assert!(seen["reason"].as_str().unwrap().contains("refresh_token_reused"), "{seen}");
    world.stop().await;
}

#[actix_web::test]
async fn nobody_who_listens_is_nothing_sent() {
    let oauth = FakeOauth::start();
    let login = oauth.login("acme").refreshed_ago(STALE);
    let nowhere = HttpOptions::with_override(Some("http://127.0.0.1:9/oauth/token".to_owned()));
    let server = Arc::new(HttpLoginServer::new(&nowhere).unwrap());
    let world = World::asking(server, MemoryJournal::new(), None).await;
    let seed = import(&world, &login).await;
    let seen = verify(&world, &seed).await;
    assert_eq!((&seen["verdict"], &seen["status"]), (&json!("inconclusive"), &json!("alive")));
    assert_eq!(stored(&world, &seed), login.current_refresh_token());
    world.stop().await;
}
