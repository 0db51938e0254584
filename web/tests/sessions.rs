//! Sessions, seeds and the service over HTTP.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Reply, World};
use optio_oauth::fake::Mode;
use optio_store::{Holder, Leases, SeedId, Want};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

fn create(world: &World, key: &str, body: &Value) -> reqwest::RequestBuilder {
    world.request(Method::POST, "/v1/sessions").header("idempotency-key", key).json(body)
}

/// Waits by long-poll until the session is in this state.
async fn until(world: &World, id: &str, state: &str) -> Value {
    loop {
        let session = world.get(&format!("/v1/sessions/{id}")).await.json();
        if session["state"] == state {
            return session;
        }
        let after = session["last_event"].as_u64().unwrap();
        let page = world.get(&format!("/v1/sessions/{id}/events?after={after}&wait=10")).await.json();
        assert_ne!(page["data"], json!([]), "waited for {state}: {session:#}");
    }
}

#[actix_web::test]
async fn a_session_is_made_shown_changed_stopped_and_forgotten() {
    let world = World::start().await;
    let body =
        json!({ "name": "one", "labels": { "team": "a" }, "mode": "conversation", "instructions": "x" });
    let made = world.post("/v1/sessions", body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let session = made.json();
    let id = session["id"].as_str().unwrap();
    let path = format!("/v1/sessions/{id}");
    assert_eq!(made.header("location"), path);
    assert_eq!(
        (&session["name"], &session["host"], &session["state"]),
        (&json!("one"), &json!("local"), &json!("starting"))
    );

    let patch = world.request(Method::PATCH, &path).json(&json!({ "name": "two" }));
    assert_eq!(Reply::to(patch).await.json()["name"], "two");
    for (rest, body) in [("/turns", json!({ "text": "x" })), ("/interrupt", json!({}))] {
        let refused = world.post(&format!("{path}{rest}"), body).await;
        assert_eq!(refused.problem(), (409, "busy".to_owned()), "{rest} while it starts");
        assert_eq!(refused.json()["retryable"], true);
    }
    for request in
        [world.request(Method::DELETE, &path), world.request(Method::POST, &format!("{path}/resume"))]
    {
        let refused = Reply::to(request).await;
        assert_eq!(refused.problem(), (409, "busy".to_owned()), "{}", refused.text);
    }
    assert!(!world.get(&format!("{path}/actors")).await.json()["data"].as_array().unwrap().is_empty());

    let stopped = Reply::to(world.request(Method::POST, &format!("{path}/stop"))).await;
    assert_eq!(stopped.status, StatusCode::ACCEPTED, "{}", stopped.text);
    let ended = until(&world, id, "ended").await;
    assert_eq!(ended["outcome"], "stopped");
    for rest in ["/stop", "/interrupt"] {
        let refused = Reply::to(world.request(Method::POST, &format!("{path}{rest}"))).await;
        assert_eq!(refused.problem(), (409, "conflict".to_owned()), "{rest} after the end");
    }
    let deleted = Reply::to(world.request(Method::DELETE, &path)).await;
    assert_eq!((deleted.status, deleted.text.as_str()), (StatusCode::NO_CONTENT, ""));
    assert_eq!(world.get(&path).await.status, 404);
    world.stop().await;
}

#[actix_web::test]
async fn a_key_makes_one_session_however_often_it_is_sent() {
    let world = World::start().await;
    let body = json!({ "mode": "conversation", "instructions": "x" });
    let first = Reply::to(create(&world, "key-1", &body)).await;
    let again = Reply::to(create(&world, "key-1", &body)).await;
    assert_eq!((first.status, again.status), (StatusCode::CREATED, StatusCode::CREATED));
    assert_eq!(first.json()["id"], again.json()["id"]);
    let other = Reply::to(create(&world, "key-2", &body)).await;
    assert_ne!(first.json()["id"], other.json()["id"]);
    let reused =
        Reply::to(create(&world, "key-1", &json!({ "mode": "conversation", "instructions": "y" }))).await;
    assert_eq!(reused.problem(), (409, "idempotency_conflict".to_owned()));
    assert_eq!(world.get("/v1/sessions").await.json()["data"].as_array().unwrap().len(), 2);
    world.stop().await;
}

#[actix_web::test]
async fn a_list_is_paged_and_filtered() {
    let world = World::start().await;
    for (name, team) in [("one", "a"), ("two", "b"), ("three", "b")] {
        let body =
            json!({ "name": name, "labels": { "team": team }, "mode": "conversation", "instructions": "x" });
        assert_eq!(world.post("/v1/sessions", body).await.status, StatusCode::CREATED);
    }
    let names = async |query: &str| -> Vec<String> {
        let page = world.get(&format!("/v1/sessions?{query}")).await.json();
        page["data"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect()
    };
    let first = world.get("/v1/sessions?limit=2").await.json();
    let cursor = first["next_cursor"].as_str().unwrap();
    assert_eq!(first["data"].as_array().unwrap().len(), 2);
    let rest = world.get(&format!("/v1/sessions?limit=2&cursor={cursor}")).await.json();
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["next_cursor"]), (1, &Value::Null));
    assert_eq!(names("label=team%3Da").await, ["one"]);
    assert_eq!(names("label=team&q=t").await.len(), 2);
    assert_eq!(names("host=elsewhere").await.len(), 0);
    assert_eq!(names("state=starting&state=ended,lost").await.len(), 3);
    assert_eq!(names("state=ended,lost").await.len(), 0);
    world.stop().await;
}

#[actix_web::test]
async fn a_seed_is_imported_assigned_judged_and_removed_and_never_shown() {
    let world = World::start().await;
    let auth = json!({ "OPENAI_API_KEY": "sk-s3cret", "auth_mode": "apikey" }).to_string();
    let made = world.post("/v1/seeds", json!({ "auth_json": auth, "pool": "team" })).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let path = made.header("location").to_owned();
    let assigned = world.post(&format!("{path}/assign"), json!({ "pool": null })).await;
    assert_eq!(assigned.json()["pool"], Value::Null);
    let judged =
        world.post(&format!("{path}/status"), json!({ "status": "dead", "reason": "revoked" })).await;
    assert_eq!(
        (&judged.json()["status"], &judged.json()["status_reason"]),
        (&json!("dead"), &json!("revoked"))
    );
    let list = world.get("/v1/seeds?pool=team").await;
    assert_eq!(list.json()["data"], json!([]));
    for reply in [made, assigned, judged, world.get("/v1/seeds").await, world.get(&path).await] {
        assert!(!reply.text.contains("s3cret"), "{}", reply.text);
    }
    assert_eq!(Reply::to(world.request(Method::DELETE, &path)).await.status, StatusCode::NO_CONTENT);
    assert_eq!(world.get(&path).await.status, 404);
    world.stop().await;
}

#[actix_web::test]
async fn a_seed_is_checked_and_says_what_was_found() {
    let world = World::start().await;
    let auth = json!({ "tokens": { "refresh_token": "s3cret", "account_id": "acme" } }).to_string();
    let made = world.post("/v1/seeds", json!({ "auth_json": auth })).await;
    let path = made.header("location").to_owned();
    assert_eq!(world.get(&path).await.json()["verify"], Value::Null);

    let checked = world.post(&format!("{path}/verify"), json!({})).await;
    assert_eq!(checked.status, StatusCode::OK, "{}", checked.text);
    let (verdict, seed) = (checked.json(), world.get(&path).await.json());
    assert_eq!((&verdict["verdict"], &verdict["status"]), (&json!("alive"), &json!("alive")));
    assert_eq!(verdict["reason"], "its login was refreshed");
    let last = json!({ "verdict": "alive", "checked_at": verdict["checked_at"] });
    assert_eq!((&seed["verify"], &verdict["verify"]), (&last, &last));
    assert!(verdict["checked_at"].is_string(), "{verdict}");

    world.login_server.mode(Mode::LoseAnswer);
    set_aside(&world, &seed).await;
    let lost = world.post(&format!("{path}/verify"), json!({})).await.json();
    assert_eq!((&lost["verdict"], &lost["status"]), (&json!("suspect"), &json!("needs_recovery")));
    let what_to_do = lost["status_reason"].as_str().unwrap();
    assert!(what_to_do.contains("verify it again"), "{what_to_do}");

    for reply in [checked, world.get(&path).await, world.get("/v1/seeds").await] {
        assert!(!reply.text.contains("s3cret") && !reply.text.contains("granted-"), "{}", reply.text);
    }
    world.stop().await;
}

/// Makes the check ask however fresh the login is.
async fn set_aside(world: &World, seed: &Value) {
    let path = format!("/v1/seeds/{}/status", seed["id"].as_str().unwrap());
    world.post(&path, json!({ "status": "needs_recovery" })).await;
}

#[actix_web::test]
async fn a_seed_in_use_is_not_checked() {
    let world = World::start().await;
    let auth = json!({ "tokens": { "refresh_token": "s3cret" } }).to_string();
    let made = world.post("/v1/seeds", json!({ "auth_json": auth })).await;
    let path = made.header("location").to_owned();
    let seed: SeedId = made.json()["id"].as_str().unwrap().parse().unwrap();
    world.memory.acquire(&Want::Seed(seed.clone()), &Holder::stored("a-peer")).await.unwrap().unwrap();
    let refused = world.post(&format!("{path}/verify"), json!({})).await;
    assert_eq!(refused.problem(), (409, "busy".to_owned()));
    assert!(world.login_server.attempts().is_empty());

    let unknown = world.post("/v1/seeds/0123456789abcdef01234567/verify", json!({})).await;
    assert_eq!(unknown.problem(), (404, "not_found".to_owned()));
    world.stop().await;
}

#[actix_web::test]
async fn a_service_that_goes_down_says_so_and_takes_no_work() {
    let world = World::start().await;
    assert_eq!(world.get("/readyz").await.status, 200);
    world.shutdown.send_replace(true);
    let ready = Reply::to(world.anonymous(Method::GET, "/readyz")).await;
    assert_eq!(ready.problem(), (503, "draining".to_owned()));
    assert_eq!(world.get("/healthz").await.status, 200);
    world.stop().await;
}

#[actix_web::test]
async fn faults_are_no_route_of_a_service_that_was_started_without_them() {
    let world = World::start().await;
    let session = world.session().await;
    let fault = json!({ "actor": "cred_watcher", "step": "store", "kind": "panic" });
    let refused = world.post(&format!("/v1/sessions/{session}/faults"), fault).await;
    assert_eq!(refused.problem(), (404, "not_found".to_owned()));
    world.stop().await;
}
