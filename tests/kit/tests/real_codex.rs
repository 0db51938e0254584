//! The kit's two servers, judged by the real codex: what it accepts is right.

use std::process::Output;

use jiff::SignedDuration;
use optio_testkit::auth::refresh_token_of;
use optio_testkit::{CodexHome, FakeOauth, LIMIT, MockModel, ModelAuth, OauthMode, wait_until};
use serde_json::Value;

/// Runs one turn to its end and returns what codex said, event by event.
async fn turn(home: &CodexHome, prompt: &str) -> Vec<Value> {
    events(&finish(home.exec(prompt)).await)
}

async fn finish(mut command: tokio::process::Command) -> Output {
    let output = tokio::time::timeout(LIMIT, command.output()).await.expect("codex ends its turn in time");
    output.expect("codex can be started")
}

fn events(output: &Output) -> Vec<Value> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let events: Vec<Value> = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert!(!events.is_empty(), "codex said nothing but: {stderr}");
    events
}

/// The texts of the agent's messages.
fn said(events: &[Value]) -> Vec<&str> {
    let messages = events.iter().filter(|event| event["item"]["type"] == "agent_message");
    messages.filter_map(|event| event["item"]["text"].as_str()).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["type"].as_str()).collect()
}

/// A home logged in with ChatGPT, and codex in it told where to refresh.
fn refreshing(home: &CodexHome, oauth: &FakeOauth, prompt: &str) -> tokio::process::Command {
    let mut command = home.exec(prompt);
    command.env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", oauth.url());
    command
}

#[tokio::test]
async fn a_turn_is_answered_and_the_key_is_sent() {
    let model = MockModel::start();
    let home = CodexHome::new(&model.config(ModelAuth::EnvKey));

    let events = turn(&home, "hello there").await;

    assert_eq!(said(&events), ["pong: hello there"]);
    assert_eq!(kinds(&events).last(), Some(&"turn.completed"));
    let turns = model.turns();
    assert_eq!(turns.len(), 1);
    assert_eq!((turns[0].bearer(), turns[0].user_text().as_str()), (Some("sk-mock"), "hello there"));
}

#[tokio::test]
async fn the_overrides_say_what_the_config_file_says() {
    let (model, oauth) = (MockModel::start(), FakeOauth::start());
    let login = oauth.login("acct-lab");
    for (auth, bearer) in [(ModelAuth::EnvKey, "sk-mock"), (ModelAuth::ChatGpt, login.current_access_token())]
    {
        let home = CodexHome::new("").with_auth(&login.auth_json());
        let mut codex = home.exec("hello");
        for (key, value) in model.overrides(auth).as_object().expect("overrides are keys and values") {
            codex.arg("-c").arg(format!("{key}={value}"));
        }
        assert_eq!(said(&events(&finish(codex).await)), ["pong: hello"]);
        assert_eq!(model.turns().last().and_then(|turn| turn.bearer()), Some(bearer), "{auth:?}");
    }
}

#[tokio::test]
async fn a_scripted_call_runs_and_a_patch_is_applied() {
    let model = MockModel::start();
    let home = CodexHome::new(&model.config(ModelAuth::Nothing));

    let script = "@call exec_command {\"cmd\":\"echo made > by-call\"}\n\
                  @raw apply_patch *** Begin Patch\n*** Add File: by-patch\n+made\n*** End Patch\n\
                  @say both done";
    let events = turn(&home, script).await;

    assert_eq!(said(&events), ["both done"]);
    for file in ["by-call", "by-patch"] {
        assert_eq!(std::fs::read_to_string(home.workdir().join(file)).expect(file), "made\n");
    }
    assert_eq!(model.turns().len(), 3);
}

#[tokio::test]
async fn a_tool_output_without_a_script_is_repeated() {
    let model = MockModel::start();
    let home = CodexHome::new(&model.config(ModelAuth::Nothing));

    let events = turn(&home, r#"@call exec_command {"cmd":"echo forty-two"}"#).await;

    let said = said(&events);
    assert!(said[0].starts_with("tool said: ") && said[0].contains("forty-two"), "{said:?}");
}

#[tokio::test]
async fn a_refused_and_a_dropped_answer_fail_the_turn() {
    let model = MockModel::start();
    let home = CodexHome::new(&model.config(ModelAuth::Nothing));

    for (prompt, complaint) in [("@http 503", "503"), ("@drop one two three", "stream disconnected")] {
        let events = turn(&home, prompt).await;
        let last = events.last().expect("checked by turn");
        assert_eq!(last["type"], "turn.failed", "{prompt}: {events:?}");
        let message = last["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(complaint), "{prompt}: {message}");
    }
    assert_eq!(model.turns().len(), 2, "codex was told not to try again");
}

#[tokio::test]
async fn a_held_answer_goes_on_only_when_released() {
    let model = MockModel::start();
    let home = CodexHome::new(&model.config(ModelAuth::Nothing));

    let codex = home.exec("@hold one two three").spawn_piped();
    model.wait_until_held(1).await;
    model.release();

    let output =
        tokio::time::timeout(LIMIT, codex.wait_with_output()).await.expect("codex ends its turn in time");
    assert_eq!(said(&events(&output.expect("codex can be waited for"))), ["one two three"]);
    assert_eq!(model.held(), 0);
}

#[tokio::test]
async fn a_listener_that_is_killed_mid_turn_is_no_longer_held() {
    let model = MockModel::start();
    model.hold();
    let home = CodexHome::new(&model.config(ModelAuth::Nothing));

    let mut codex = home.exec("hello there").spawn_piped();
    model.wait_until_held(1).await;
    codex.kill().await.expect("a child of ours can be killed");

    model.wait_until_held(0).await;
}

#[tokio::test]
async fn an_expired_login_is_refreshed_once_and_kept() {
    let (model, oauth) = (MockModel::start(), FakeOauth::start());
    let login = oauth.login("acct-lab").access_expires_in(SignedDuration::from_mins(-1));
    let home = CodexHome::new(&model.config(ModelAuth::ChatGpt)).with_auth(&login.auth_json());

    let events = events(&finish(refreshing(&home, &oauth, "hello")).await);

    assert_eq!(said(&events), ["pong: hello"]);
    let grants = oauth.grants();
    assert_eq!(grants.len(), 1);
    assert_eq!(grants[0].spent, login.current_refresh_token());
    assert_eq!(refresh_token_of(&home.auth_json()), oauth.issued("acct-lab"));
    let turn = &model.turns()[0];
    assert_eq!(turn.bearer(), Some(grants[0].access_token.as_str()));
    assert_eq!(turn.headers["chatgpt-account-id"], "acct-lab");
    assert!(oauth.reuses().is_empty());
}

#[tokio::test]
async fn a_fresh_login_is_left_alone() {
    let (model, oauth) = (MockModel::start(), FakeOauth::start());
    let login = oauth.login("acct-lab").refreshed_ago(SignedDuration::from_hours(240));
    let home = CodexHome::new(&model.config(ModelAuth::ChatGpt)).with_auth(&login.auth_json());

    finish(refreshing(&home, &oauth, "hello")).await;

    assert_eq!(model.turns()[0].bearer(), Some(login.current_access_token()));
    assert!(oauth.attempts().is_empty());
}

#[tokio::test]
async fn an_opaque_login_is_refreshed_by_its_age() {
    let (model, oauth) = (MockModel::start(), FakeOauth::start());
    let login = oauth.login("acct-lab").opaque_access().refreshed_ago(SignedDuration::from_hours(24 * 9));
    let home = CodexHome::new(&model.config(ModelAuth::ChatGpt)).with_auth(&login.auth_json());

    finish(refreshing(&home, &oauth, "hello")).await;

    assert_eq!(oauth.grants().len(), 1);
    assert_eq!(refresh_token_of(&home.auth_json()), oauth.issued("acct-lab"));
}

#[tokio::test]
async fn a_login_that_the_model_no_longer_takes_is_refreshed() {
    let (model, oauth) = (MockModel::start(), FakeOauth::start());
    let login = oauth.login("acct-lab");
    let home = CodexHome::new(&model.config(ModelAuth::ChatGpt)).with_auth(&login.auth_json());
    model.accept_only("a token nobody has yet");

    let codex = refreshing(&home, &oauth, "hello").spawn_piped();
    let grant = oauth.wait_for_grants(1).await;
    model.accept_only(&grant.access_token);

    drop(codex);
    assert!(model.turns().iter().any(|turn| turn.bearer() == Some(login.current_access_token())));
    wait_until("codex writes the new login down", LIMIT, || async {
        let now = refresh_token_of(&home.auth_json());
        if now == Some(grant.refresh_token.clone()) { Ok(()) } else { Err(now) }
    })
    .await;
}

#[tokio::test]
async fn a_stolen_login_is_recognised_as_used_already() {
    let (model, oauth) = (MockModel::start(), FakeOauth::start());
    let login = oauth.login("acct-lab").access_expires_in(SignedDuration::from_mins(-1));
    let config = model.config(ModelAuth::ChatGpt);
    let first = CodexHome::new(&config).with_auth(&login.auth_json());
    let second = CodexHome::new(&config).with_auth(&login.auth_json());

    finish(refreshing(&first, &oauth, "hello")).await;
    let output = finish(refreshing(&second, &oauth, "hello")).await;

    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("already used"), "{stderr}");
    assert_eq!(oauth.reuses()[0], login.current_refresh_token());
    assert_eq!(oauth.issued("acct-lab"), None, "the reuse has cost the first home its login too");
}

#[tokio::test]
async fn a_login_service_that_refuses_leaves_the_login_as_it_was() {
    let (model, oauth) = (MockModel::start(), FakeOauth::start());
    let login = oauth.login("acct-lab").access_expires_in(SignedDuration::from_mins(2));
    let home = CodexHome::new(&model.config(ModelAuth::ChatGpt)).with_auth(&login.auth_json());
    oauth.mode(OauthMode::error(500, "server_error"));

    let events = events(&finish(refreshing(&home, &oauth, "hello")).await);

    assert_eq!(said(&events), ["pong: hello"], "the old token was still good");
    assert!(!oauth.attempts().is_empty());
    assert_eq!(home.auth_json(), login.auth_json());
}

trait SpawnPiped {
    fn spawn_piped(self) -> tokio::process::Child;
}

impl SpawnPiped for tokio::process::Command {
    fn spawn_piped(mut self) -> tokio::process::Child {
        self.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        self.spawn().expect("codex can be started")
    }
}
