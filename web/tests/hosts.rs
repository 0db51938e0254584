//! Hosts over HTTP: listed, added, looked at, tidied and taken away.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;

use common::{FINGERPRINT, Reply, World};
use reqwest::Method;
use serde_json::{Value, json};

async fn delete(world: &World, path: &str) -> Reply {
    Reply::to(world.request(Method::DELETE, path)).await
}

async fn launch(world: &World, host: Value) -> Reply {
    let body = json!({ "mode": "conversation", "instructions": "x", "host": host });
    world.post("/v1/sessions", body).await
}

#[actix_web::test]
async fn hosts_are_listed_by_name() {
    let world = World::start().await;
    let hosts = world.get("/v1/hosts?limit=200").await.json();
    let here = json!({ "name": "box", "kind": "ssh", "address": "box.test", "port": 22, "user": "dev",
        "host_key": "pinned", "max_sessions": 10, "source": "config", "state": "up", "sessions": 0 });
    let local =
        json!({ "name": "local", "kind": "local", "source": "built_in", "state": "up", "sessions": 0 });
    assert_eq!(hosts, json!({ "data": [here, local], "next_cursor": null }));
    assert_eq!(world.get("/v1/hosts/box").await.json(), here);
    world.session().await;
    assert_eq!(world.get("/v1/hosts/local").await.json()["sessions"], 1);
    assert_eq!(world.get("/v1/hosts/nowhere").await.problem(), (404, "not_found".to_owned()));
    world.stop().await;
}

#[actix_web::test]
async fn a_host_is_added_once_and_removed_when_nobody_is_there() {
    let world = World::start().await;
    let body =
        json!({ "name": "gpu", "address": "fake", "port": 2222, "jump": "box", "trust_on_first_use": true });
    let added = world.post("/v1/hosts", body.clone()).await;
    assert_eq!((added.status.as_u16(), added.header("location")), (201, "/v1/hosts/gpu"), "{}", added.text);
    let shown = added.json();
    assert_eq!(
        (&shown["port"], &shown["jump"], &shown["source"]),
        (&json!(2222), &json!("box"), &json!("api"))
    );
    assert_eq!(shown["host_key"], "trust_on_first_use");
    assert_eq!(world.post("/v1/hosts", body).await.problem(), (409, "exists".to_owned()));

    let session = launch(&world, json!("gpu")).await.json();
    assert_eq!(session["host"], "gpu");
    assert_eq!(world.get("/v1/hosts/gpu").await.json()["sessions"], 1);
    let busy = delete(&world, "/v1/hosts/gpu").await;
    assert_eq!(busy.problem(), (409, "busy".to_owned()));
    assert!(busy.text.contains(session["id"].as_str().unwrap()), "{}", busy.text);
    for (name, said) in [("box", "configuration file"), ("local", "own machine")] {
        let fixed = delete(&world, &format!("/v1/hosts/{name}")).await;
        assert_eq!(fixed.problem(), (409, "conflict".to_owned()));
        assert!(fixed.text.contains(said), "{}", fixed.text);
    }
    world.post("/v1/hosts", json!({ "name": "spare", "address": "spare" })).await;
    assert_eq!(delete(&world, "/v1/hosts/spare").await.status, 204);
    assert_eq!(delete(&world, "/v1/hosts/spare").await.problem(), (404, "not_found".to_owned()));
    world.stop().await;
}

#[actix_web::test]
async fn what_is_wrong_with_a_host_is_named() {
    let world = World::start().await;
    for (body, field) in [
        (json!({ "address": "a" }), "name"),
        (json!({ "name": "Gpu", "address": "a" }), "name"),
        (json!({ "name": "local", "address": "a" }), "name"),
        (json!({ "name": "gpu" }), "address"),
        (json!({ "name": "gpu", "address": "a", "port": 70000 }), "port"),
        (json!({ "name": "gpu", "address": "a", "key_file": "id" }), "key_file"),
        (json!({ "name": "gpu", "address": "a", "jump": "nowhere" }), "jump"),
        (json!({ "name": "gpu", "address": "a", "jump": "gpu" }), "jump"),
        (json!({ "name": "gpu", "address": "a", "adress": "b" }), "adress"),
    ] {
        assert_eq!(world.post("/v1/hosts", body.clone()).await.wrong_fields(), [field], "{body}");
    }
    assert_eq!(world.get("/v1/hosts/gpu").await.problem().0, 404);
    world.stop().await;
}

#[actix_web::test]
async fn a_session_may_describe_its_machine() {
    let world = World::start().await;
    let described = json!({ "ssh": { "host": "fake", "user": "dev", "key_path": "/k" } });
    let session = launch(&world, described.clone()).await.json();
    assert_eq!(session["host"], "ssh:dev@fake:22", "{session}");
    let again = launch(&world, described).await.json();
    assert_eq!(again["host"], session["host"]);
    let shown = world.get("/v1/hosts/ssh:dev@fake:22").await.json();
    assert_eq!((&shown["source"], &shown["sessions"]), (&json!("inline"), &json!(2)), "{shown}");
    let listed = world.get("/v1/sessions?host=ssh:dev@fake:22").await.json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
    // The one that is configured is meant.
    let known =
        launch(&world, json!({ "ssh": { "host": "box.test", "user": "dev", "host_key": FINGERPRINT } }));
    assert_eq!(known.await.json()["host"], "box");

    for (host, field) in [
        (json!("nowhere"), "host"),
        (json!(7), "host"),
        (json!({}), "host"),
        (json!({ "ssh": "box" }), "host"),
        (json!({ "ssh": { "host": "a" }, "name": "b" }), "host"),
        (json!({ "ssh": {} }), "host.ssh.host"),
        (json!({ "ssh": { "host": "a", "port": "22" } }), "host.ssh.port"),
        (json!({ "ssh": { "host": "a", "password": "x" } }), "host.ssh.password"),
        (json!({ "ssh": { "host": "a", "jump": "nowhere" } }), "host.ssh.jump"),
    ] {
        assert_eq!(launch(&world, host.clone()).await.wrong_fields(), [field], "{host}");
    }
    // What is refused leaves no machine behind.
    let bad = json!({ "mode": "telepathy", "instructions": "x", "host": { "ssh": { "host": "other" } } });
    assert_eq!(world.post("/v1/sessions", bad).await.wrong_fields(), ["mode"]);
    assert_eq!(world.get("/v1/hosts/ssh:ada@other:22").await.problem().0, 404);
    world.stop().await;
}

#[actix_web::test]
async fn a_key_is_accepted_by_its_fingerprint_alone() {
    let world = World::start().await;
    let accept = |name: &str, fingerprint: &str| {
        let path = format!("/v1/hosts/{name}/host-key");
        let body = json!({ "fingerprint": fingerprint });
        let world = &world;
        async move { world.post(&path, body).await }
    };
    assert_eq!(accept("box", FINGERPRINT).await.json()["name"], "box");
    let other = accept("box", &FINGERPRINT.replace("uN", "nU")).await;
    assert_eq!(other.problem(), (409, "host_key_changed".to_owned()));
    let key = json!({ "algorithm": "ssh-ed25519", "fingerprint": FINGERPRINT, "known_in": "/known:7" });
    assert_eq!(other.json()["host_key"], key);
    assert_eq!(accept("box", "SHA256:abc").await.wrong_fields(), ["fingerprint"]);
    assert_eq!(accept("local", FINGERPRINT).await.problem(), (409, "conflict".to_owned()));
    assert_eq!(accept("nowhere", FINGERPRINT).await.problem().0, 404);
    world.stop().await;
}

#[actix_web::test]
async fn a_host_that_does_not_do_it_is_a_problem_of_its_own() {
    let world = World::start().await;
    world.post("/v1/hosts", json!({ "name": "odd", "address": "broken" })).await;
    assert_eq!(world.post("/v1/hosts/odd/probe", json!({})).await.problem(), (502, "host_failed".to_owned()));
    assert_eq!(world.post("/v1/hosts/nowhere/probe", json!({})).await.problem().0, 404);
    assert_eq!(world.post("/v1/hosts/odd/probe", json!({ "x": 1 })).await.wrong_fields(), ["x"]);
    world.stop().await;
}

/// A task directory as a service that is gone for good would leave it.
fn leave(world: &World, name: &str, with_login: bool) -> PathBuf {
    let dir = world.dir.path().join("box").join(name);
    std::fs::create_dir_all(dir.join("workdir/home/.codex")).unwrap();
    std::fs::write(dir.join("workdir/notes"), [b'x'; 5000]).unwrap();
    if with_login {
        std::fs::write(dir.join("workdir/home/.codex/auth.json"), "{}").unwrap();
    }
    dir
}

#[actix_web::test]
async fn what_was_left_on_a_host_is_shown_and_removed_only_as_it_was_chosen() {
    let world = World::start().await;
    // Of this service, but on another machine: what it is needed for is not asked.
    let session = world.session().await;
    let (plain, login, kept) =
        (leave(&world, "old-a", false), leave(&world, "old-b", true), leave(&world, &session, false));
    let probe = world.post("/v1/hosts/box/probe", json!({})).await;
    assert_eq!(probe.status, 200, "{}", probe.text);
    let probe = probe.json();
    assert_eq!(probe["name"], "box");
    assert!(
        probe["latency_ms"].is_u64() && probe["arch"].is_string() && probe["tools"].is_object(),
        "{probe}"
    );
    let left: Vec<_> =
        probe["orphans"].as_array().unwrap().iter().map(|left| left["id"].as_str().unwrap()).collect();
    assert_eq!(left.len(), 2, "{probe:#}");
    assert!(left.contains(&"old-a") && left.contains(&"old-b"), "{probe:#}");

    let reap = |tasks: Value| {
        let world = &world;
        async move { world.post("/v1/hosts/box/reap", json!({ "tasks": tasks })).await }
    };
    let all = reap(
        json!([{ "id": "old-a", "agent": null }, { "id": "old-b" }, { "id": session }, { "id": "none" }]),
    );
    let all = all.await.json();
    let outcomes: Vec<_> = all["data"].as_array().unwrap().iter().map(|one| one["outcome"].clone()).collect();
    assert_eq!(outcomes, ["reaped", "refused", "refused", "refused"], "{all:#}");
    assert_eq!((plain.exists(), login.exists(), kept.exists()), (false, true, true));
    let login_too = reap(json!([{ "id": "old-b", "discard_login": true }])).await.json();
    assert_eq!(login_too["data"][0]["outcome"], "reaped", "{login_too}");
    assert!(!login.exists());

    assert_eq!(reap(json!([])).await.wrong_fields(), ["tasks"]);
    assert_eq!(reap(json!([{ "id": "../x" }])).await.wrong_fields(), ["tasks[0].id"]);
    assert_eq!(reap(json!([{ "id": "a", "force": true }])).await.wrong_fields(), ["tasks"]);
    world.stop().await;
}
