//! A stored login is checked while the login server cannot be discovered: the real codex is asked with it.

mod common;

use common::{files_beneath, import, service};
use jiff::SignedDuration;
use optio_testkit::auth::refresh_token_of;
use optio_testkit::client::Client;
use optio_testkit::{FakeIssuer, FakeOauth, LIMIT, MockModel, TestServer, wait_until};
use serde_json::{Value, json};

struct Stage {
    model: MockModel,
    oauth: FakeOauth,
    issuer: FakeIssuer,
}

impl Stage {
    /// A login server that refreshes, and does not say where; a model that knows its cities.
    fn new() -> Self {
        let stage =
            Self { model: MockModel::start(), oauth: FakeOauth::start(), issuer: FakeIssuer::start() };
        stage.issuer.refreshes_at(&stage.oauth);
        stage.model.knows("capital of France", "Paris.");
        stage
    }

    /// A service that has, as codex has, no other way to the network than the issuer's proxy.
    async fn serve(&self) -> TestServer {
        // The real server's address, which the proxy answers for: only that one is discovered.
        let setup = service().env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", "");
        let setup = setup.env("OPENAI_API_KEY", "sk-ambient").env("CODEX_API_KEY", "sk-ambient");
        let setup = self.issuer.env().into_iter().fold(setup, |setup, (name, value)| setup.env(name, value));
        setup.start().await
    }
}

async fn verify(client: &Client, seed: &str) -> Value {
    client.post(&format!("/v1/seeds/{seed}/verify"), json!({})).await
}

/// Nothing of a probe is left on the machine, and no token in what the service says.
fn assert_clean(server: &TestServer, tokens: &[&str]) {
    assert!(server.agents().is_empty(), "{:?}", server.agents());
    let left: Vec<_> = files_beneath(&server.task_root());
    assert!(left.is_empty(), "{left:?}");
    for token in tokens {
        assert!(!server.output().contains(token), "a token is in the log");
    }
}

#[actix::test]
async fn a_login_that_codex_is_let_in_with_is_alive_and_the_one_it_got_is_in_the_store() {
    let stage = Stage::new();
    let server = stage.serve().await;
    let client = server.client();
    // So near to its end that codex gets another one before it asks the model; and old enough to be asked about.
    let login = stage.oauth.login("acct-1").access_expires_in(SignedDuration::from_secs(60));
    let login = login.refreshed_ago(SignedDuration::from_hours(24 * 9));
    let seed = import(&client, &stage.model, &login.auth_json()).await;

    let seen = verify(&client, &seed).await;
    assert_eq!(seen["verdict"], "alive", "{seen:#}\n{}", server.output());
    assert!(seen["reason"].as_str().is_some_and(|why| why.contains("codex")), "{seen:#}");
    let granted = stage.oauth.grants();
    assert_eq!(
        (granted.len(), stage.oauth.reuses()),
        (1, Vec::new()),
        "codex has refreshed it, and nobody else"
    );
    let turns = stage.model.turns();
    assert_eq!(turns.len(), 1, "codex is asked once");
    assert_eq!(
        turns[0].bearer(),
        Some(granted[0].access_token.as_str()),
        "the login itself, and no ambient key"
    );
    assert_clean(&server, &[login.current_refresh_token(), &granted[0].refresh_token]);

    // What the store has is what is good: the next probe refreshes with it.
    let row = client.seed(&seed).await;
    assert_eq!((&row["status"], &row["lease"]), (&json!("alive"), &Value::Null), "{row:#}");
    let session = client.create(common::seeded(&seed)).await;
    session.wait_idle().await;
    let planted = server.task_root().join(&session.id).join("workdir/home/.codex/auth.json");
    let planted = std::fs::read(planted).expect("a session has its login");
    assert_eq!(refresh_token_of(&planted).as_deref(), Some(granted[0].refresh_token.as_str()));
    session.end(common::END).await;
}

#[actix::test]
async fn a_login_whose_token_was_used_elsewhere_is_dead_by_name() {
    let stage = Stage::new();
    let server = stage.serve().await;
    let client = server.client();
    let old = SignedDuration::from_hours(24 * 9);
    let login = stage.oauth.login("acct-1").refreshed_ago(old);
    let seed = import(&client, &stage.model, &login.auth_json()).await;
    // The model does not take it any more, and the token that would help was used by somebody else.
    stage.model.accept_only("nobody's");
    let token = json!({ "grant_type": "refresh_token", "refresh_token": login.current_refresh_token() });
    let elsewhere = reqwest::Client::builder().no_proxy().build().expect("a plain client can be made");
    let used = elsewhere.post(stage.oauth.url()).json(&token).send().await.expect("loopback answers");
    assert_eq!(used.status(), 200);

    let seen = verify(&client, &seed).await;
    assert_eq!(seen["verdict"], "dead", "{seen:#}\n{}", server.output());
    assert!(seen["reason"].as_str().is_some_and(|why| why.contains("refresh_token_reused")), "{seen:#}");
    assert_eq!(client.seed(&seed).await["status"], "dead");
    assert_clean(&server, &[login.current_refresh_token()]);

    // A model that refuses while the token is good proves nothing, and the rotated login is kept.
    let login = stage.oauth.login("acct-2").refreshed_ago(old);
    let seed = import(&client, &stage.model, &login.auth_json()).await;
    let seen = verify(&client, &seed).await;
    assert_eq!((&seen["verdict"], &seen["status"]), (&json!("inconclusive"), &json!("alive")), "{seen:#}");
    stage.model.accept_any();
    assert_eq!(verify(&client, &seed).await["verdict"], "alive");
    assert_eq!(stage.oauth.reuses(), ["rt-acct-1-0-0"], "of the second one no token was used twice");
}

#[actix::test]
async fn a_service_killed_while_codex_is_asked_brings_its_login_home_at_the_next_start() {
    let stage = Stage::new();
    let server = stage.serve().await;
    let client = server.client();
    let login = stage.oauth.login("acct-1").access_expires_in(SignedDuration::from_secs(60));
    let login = login.refreshed_ago(SignedDuration::from_hours(24 * 9));
    let seed = import(&client, &stage.model, &login.auth_json()).await;
    stage.model.hold();
    let asking = client.request(reqwest::Method::POST, &format!("/v1/seeds/{seed}/verify"));
    let asking = actix::spawn(async move { asking.json(&json!({})).send().await.is_ok() });
    stage.model.wait_until_held(1).await;
    let granted = stage.oauth.wait_for_grants(1).await;
    assert!(!server.agents().is_empty());
    server.kill_9();
    drop(asking.await);
    server.restart().await;
    let client = server.client();
    wait_until("the login is home", LIMIT, || async {
        let row = client.seed(&seed).await;
        (row["status"] == "alive" && row["verify"]["verdict"] == "inconclusive").then_some(()).ok_or(row)
    })
    .await;
    wait_until("nothing is left", LIMIT, || async {
        let left = files_beneath(&server.task_root());
        if left.is_empty() && server.agents().is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    stage.model.release();
    assert_eq!(verify(&client, &seed).await["verdict"], "alive");
    assert_eq!(stage.oauth.reuses(), Vec::<String>::new());
    assert_eq!(stage.oauth.issued("acct-1").as_deref(), Some(granted.refresh_token.as_str()));
}
