//! New logins by a code over HTTP.
#![allow(clippy::unwrap_used)]

mod common;

use common::{LIMIT, Reply, World};
use optio_actors::seed_login::MAX_LOGINS;
use optio_actors::testing::{Behaviour, CODE, FakeAgents};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// A service whose codex answers.
async fn start() -> (World, FakeAgents) {
    let (world, agents) = (World::start().await, FakeAgents::default());
    world.host.on_program({
        let agents = agents.clone();
        move |launch| agents.clone().play(launch)
    });
    (world, agents)
}

async fn delete(world: &World, path: &str) -> Reply {
    Reply::to(world.request(Method::DELETE, path)).await
}

async fn until(world: &World, path: &str, state: &str) -> Value {
    let waiting = async {
        loop {
            let login = world.get(path).await.json();
            if login["state"] == state {
                return login;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("{state} never came"))
}

#[actix_web::test]
async fn a_login_is_begun_followed_and_becomes_a_seed() {
    let (world, agents) = start().await;
    let begun = world.post("/v1/seeds/login", json!({ "pool": "team", "metadata": { "a": 1 } })).await;
    assert_eq!(begun.status, StatusCode::ACCEPTED, "{}", begun.text);
    let (path, login) = (begun.header("location").to_owned(), begun.json());
    assert_eq!(path, format!("/v1/seeds/login/{}", login["id"].as_str().unwrap()));
    assert_eq!(login["state"], "pending");
    assert_eq!(login["verification_url"], "https://auth.openai.com/codex/device");
    assert_eq!(login["user_code"], CODE);
    assert!(login["expires_at"].is_string() && login["seed"].is_null(), "{login}");
    assert_eq!(world.get(&path).await.json(), login);

    agents.enter_code(&world.host, "acme");
    let done = until(&world, &path, "done").await;
    assert!(!done.to_string().contains(CODE), "{done}");
    let seed = world.get(&format!("/v1/seeds/{}", done["seed"].as_str().unwrap())).await.json();
    assert_eq!(seed["pool"], "team");
    world.stop().await;
}

#[actix_web::test]
async fn a_login_is_given_up_once_and_answers_how_it_ended() {
    let (world, _agents) = start().await;
    let begun = world.post("/v1/seeds/login", json!({})).await;
    let path = begun.header("location").to_owned();
    let ended = delete(&world, &path).await;
    assert_eq!((ended.status, &ended.json()["state"]), (StatusCode::OK, &json!("cancelled")));
    assert_eq!(delete(&world, &path).await.json(), ended.json());
    world.stop().await;
}

#[actix_web::test]
async fn what_cannot_be_begun_is_a_problem_that_says_why() {
    let (world, agents) = start().await;
    for (body, field) in [
        (json!({ "pool": "" }), "pool"),
        (json!({ "metadata": { "a.b": 1 } }), "metadata"),
        (json!({ "metadata": { "login": 1 } }), "metadata"),
        (json!({ "metadata": [] }), "metadata"),
        (json!({ "code": "x" }), "code"),
    ] {
        assert_eq!(world.post("/v1/seeds/login", body).await.wrong_fields(), [field]);
    }
    agents.behave(Behaviour { has_no_codes: true, ..Behaviour::default() });
    let refused = world.post("/v1/seeds/login", json!({})).await;
    assert_eq!(refused.problem(), (502, "upstream_agent".to_owned()));
    assert!(refused.text.contains("not enabled"), "{}", refused.text);
    agents.behave(Behaviour::default());
    for _ in 0..MAX_LOGINS {
        assert_eq!(world.post("/v1/seeds/login", json!({})).await.status, StatusCode::ACCEPTED);
    }
    assert_eq!(world.post("/v1/seeds/login", json!({})).await.problem(), (409, "busy".to_owned()));
    for unknown in ["/v1/seeds/login/log_01ARZ3NDEKTSV4RRFFQ69G5FAV", "/v1/seeds/login/x"] {
        assert_eq!(world.get(unknown).await.status, StatusCode::NOT_FOUND, "{unknown}");
        assert_eq!(delete(&world, unknown).await.status, StatusCode::NOT_FOUND, "{unknown}");
    }
    world.stop().await;
}
