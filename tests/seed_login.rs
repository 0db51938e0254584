//! A new login by a code, with the real codex: it asks the fake login service, over TLS and through its proxy.

mod common;

use common::{END, answers, files_beneath, service};
use optio_testkit::auth::refresh_token_of;
use optio_testkit::client::Client;
use optio_testkit::{Browser, FakeIssuer, FakeOauth, LIMIT, MockModel, ModelAuth, TestServer, wait_until};
use serde_json::{Value, json};

async fn server_at(issuer: &FakeIssuer, oauth: &FakeOauth) -> TestServer {
    let setup = service().env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", oauth.url());
    issuer.env().into_iter().fold(setup, |setup, (name, value)| setup.env(name, value)).start().await
}

/// Asks for a login and answers it with its code.
async fn begin(client: &Client) -> Value {
    let login = client.post("/v1/seeds/login", json!({ "pool": "team", "metadata": { "who": "ada" } })).await;
    assert_eq!(login["state"], "pending", "{login:#}");
    assert_eq!(login["verification_url"], "https://auth.openai.com/codex/device");
    login
}

fn code(login: &Value) -> &str {
    login["user_code"].as_str().expect("a login that is pending has a code")
}

fn path(login: &Value) -> String {
    format!("/v1/seeds/login/{}", login["id"].as_str().expect("a login has an id"))
}

/// Waits until a login is over.
async fn over(client: &Client, login: &Value) -> Value {
    let path = path(login);
    wait_until("the login is over", END, || async {
        let login = client.get(&path).await;
        let over = ["done", "failed", "cancelled"].iter().any(|state| login["state"] == *state);
        if over { Ok(login) } else { Err(login) }
    })
    .await
}

/// Nothing of a login is left on the machine, and its code was told to nobody but who asked.
fn assert_clean(server: &TestServer, issuer: &FakeIssuer) {
    assert!(server.agents().is_empty(), "{:?}", server.agents());
    let left: Vec<_> = files_beneath(&server.task_root());
    assert!(left.is_empty(), "{left:?}");
    for code in issuer.user_codes() {
        assert!(!server.output().contains(&code), "the code is in the log");
        for file in files_beneath(&server.data_dir().join("journal")) {
            let told =
                String::from_utf8_lossy(&std::fs::read(&file).expect("a journal can be read")).into_owned();
            assert!(!told.contains(&code), "the code is in {}", file.display());
        }
    }
}

/// A session of the pool, whose provider is the mock: works a turn and ends.
async fn work(client: &Client, model: &MockModel) {
    let mut provider = model.overrides(ModelAuth::ChatGpt);
    // Where a login lies is the service's to say.
    provider.as_object_mut().expect("overrides are keys").remove("cli_auth_credentials_store");
    let wanted = json!({
        "mode": "conversation",
        "instructions": "Answer what you are asked.",
        "seed": { "pool": "team" },
        "codex_config": provider,
    });
    let session = client.create(wanted).await;
    session.wait_idle().await;
    let mut events = session.events(None).await;
    session.turn("@say logged in").await;
    events.until_named("turn.completed", LIMIT).await;
    assert_eq!(answers(&session).await, ["logged in"]);
    session.end(END).await;
}

#[actix::test]
async fn a_code_that_is_entered_becomes_a_seed_that_a_session_works_with() {
    let (model, oauth, issuer) = (MockModel::start(), FakeOauth::start(), FakeIssuer::start());
    let server = server_at(&issuer, &oauth).await;
    let client = server.client();
    let login = begin(&client).await;
    assert_eq!(login["user_code"], json!(issuer.user_codes()[0]));
    wait_until("codex asks whether the code was entered", LIMIT, || async {
        (issuer.polls() > 1).then_some(())
    })
    .await;
    assert_eq!(client.get(&path(&login)).await["state"], "pending");

    oauth.enter_code(&issuer, code(&login), "acct-1");
    let done = over(&client, &login).await;
    assert_eq!(done["state"], "done", "{done:#}");
    assert!(done["user_code"].is_null() && done["verification_url"].is_null(), "{done:#}");
    assert_clean(&server, &issuer);
    let seed = client.seed(done["seed"].as_str().expect("a login that is done names its seed")).await;
    assert_eq!((&seed["pool"], &seed["status"]), (&json!("team"), &json!("alive")));
    assert_eq!(seed["account"], "acct-1@example.test (plus)");
    assert_eq!(seed["metadata"], json!({ "who": "ada", "login": login["id"] }));
    let mut told = client.all_events(Some(0)).await;
    let told = told.until_named("seed.saved", LIMIT).await;
    let saved = told.last().expect("the last one is the one that was waited for");
    assert_eq!((&saved.data["from"], &saved.data["seed"]), (&json!("login"), &seed["id"]));

    assert_eq!(issuer.refused_hosts(), Vec::<String>::new(), "codex is there for the login and nothing else");

    // Both of them with the same login: what one leaves the other takes up.
    work(&client, &model).await;
    work(&client, &model).await;
    assert_eq!(oauth.reuses(), Vec::<String>::new());
}

#[actix::test]
async fn a_code_that_is_refused_or_over_or_given_up_leaves_nothing() {
    let (oauth, issuer) = (FakeOauth::start(), FakeIssuer::start());
    let server = server_at(&issuer, &oauth).await;
    let client = server.client();

    let login = begin(&client).await;
    issuer.deny(code(&login));
    let failed = over(&client, &login).await;
    assert_eq!(failed["state"], "failed", "{failed:#}");
    assert!(failed["reason"].as_str().is_some_and(|why| why.contains("400")), "{failed:#}");
    assert_clean(&server, &issuer);

    let login = begin(&client).await;
    issuer.expire(code(&login));
    let failed = over(&client, &login).await;
    assert_eq!(failed["state"], "failed", "{failed:#}");
    assert!(failed["reason"].as_str().is_some_and(|why| why.contains("410")), "{failed:#}");
    assert_clean(&server, &issuer);

    let login = begin(&client).await;
    let cancelled = client.delete(&path(&login)).await;
    assert_eq!(cancelled["state"], "cancelled", "{cancelled:#}");
    assert_clean(&server, &issuer);
    assert_eq!(client.seeds().await, Vec::<Value>::new());
}

#[actix::test]
async fn a_code_that_is_entered_while_the_service_is_dead_is_a_seed_after_the_next_start() {
    let (model, oauth, issuer) = (MockModel::start(), FakeOauth::start(), FakeIssuer::start());
    let server = server_at(&issuer, &oauth).await;
    let login = begin(&server.client()).await;
    server.kill_9();
    oauth.enter_code(&issuer, code(&login), "acct-1");
    let token = oauth.issued("acct-1");
    let stored = || files_beneath(&server.task_root()).into_iter().find(|file| file.ends_with("auth.json"));
    wait_until("codex writes the login, with nobody there to take it", LIMIT, || async {
        let login = stored().and_then(|file| std::fs::read(file).ok());
        login.filter(|login| refresh_token_of(login) == token)
    })
    .await;
    assert!(!server.agents().is_empty(), "codex lives on under its guard");

    server.restart().await;
    let client = server.client();
    let done = over(&client, &login).await;
    assert_eq!(done["state"], "done", "{done:#}");
    assert_clean(&server, &issuer);
    let seeds = client.seeds().await;
    assert_eq!((seeds.len(), &seeds[0]["pool"]), (1, &json!("team")), "{seeds:#?}");
    work(&client, &model).await;
    assert_eq!(oauth.reuses(), Vec::<String>::new());
}

#[actix::test]
async fn a_code_that_a_killed_service_showed_is_given_up_by_the_next_one() {
    let (oauth, issuer) = (FakeOauth::start(), FakeIssuer::start());
    let server = server_at(&issuer, &oauth).await;
    let login = begin(&server.client()).await;
    server.kill_9();
    server.restart().await;
    let client = server.client();
    let failed = over(&client, &login).await;
    assert_eq!(failed["state"], "failed", "{failed:#}");
    assert_clean(&server, &issuer);
    assert_eq!(client.seeds().await, Vec::<Value>::new());
}

#[actix::test]
async fn a_person_logs_in_with_a_code_at_the_page() {
    let (oauth, issuer) = (FakeOauth::start(), FakeIssuer::start());
    let server = server_at(&issuer, &oauth).await;
    let browser = Browser::open(1280, 900).await;
    browser.go(&server.login_link().await).await;
    browser.sees("New session").await;
    browser.go(&format!("{}/#/seeds", server.url())).await;

    browser.fill("login-pool", "team").await;
    browser.click("Log in with a code").await;
    browser.sees("CODE-00001").await;
    browser.sees("https://auth.openai.com/codex/device").await;
    browser.click("Give up").await;
    browser.sees("The login was given up.").await;

    browser.click("Log in with a code").await;
    browser.sees("CODE-00002").await;
    oauth.enter_code(&issuer, "CODE-00002", "acct-1");
    browser.sees("Stored as seed").await;
    browser.sees("acct-1@example.test (plus)").await;
    assert!(!browser.text().await.contains("CODE-"), "a code that was used is not shown");
    assert_eq!(server.client().seeds().await[0]["pool"], "team");
    let failures = browser.run("return window.__failures ?? []").await;
    assert_eq!(failures, Value::Array(Vec::new()));
}
