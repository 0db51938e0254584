//! Agents that behave as no codex should: each is a clear error of its own session, costs the service no memory to speak
//! of, and the real codex in the session beside it notices nothing.

mod common;

use std::time::Duration;

use common::{END, answers, assert_ordered, conversation, service};
use optio_testkit::bad_agent::{self, LONG_LINE, Vice};
use optio_testkit::client::Session;
use optio_testkit::{Client, LIMIT, MockModel, TestServer, codex_binary};
use serde_json::{Value, json};

/// How much the service may have grown at its highest, in KiB: two lines of 16 MiB that are on their way, and some room
/// for the other session. Half of the endless line would be more.
const GROWTH_KIB: u64 = (LONG_LINE as u64 >> 10) / 2;

/// An agent that says nothing is given up after this (S-324), and its session ends soon after.
const HANDSHAKE: Duration = Duration::from_secs(30);

fn misled(model: &MockModel, vice: Vice, transport: &str) -> Value {
    let mut session = conversation(model);
    session["env"] = json!({ bad_agent::VARIABLE: vice.name() });
    session["transport"] = json!(transport);
    session
}

/// A service whose codex is the bad agent, and a session of the real one in the middle of a turn.
async fn with_a_good_session(model: &MockModel) -> (TestServer, Client, Session) {
    // On the PATH of the service the bad agent is the codex: it has to be told where the real one is.
    let real = codex_binary().display().to_string();
    let setup = service().codex(bad_agent::program()).env("OPTIO_TEST_CODEX", real);
    let server = setup.start().await;
    let client = server.client();
    let good = client.create(conversation(model)).await;
    good.wait_idle().await;
    good.turn("@hold one two three").await;
    model.wait_until_held(1).await;
    (server, client, good)
}

async fn the_good_one_goes_on(model: &MockModel, good: &Session) {
    model.release();
    good.wait_idle().await;
    assert_eq!(answers(good).await, ["one two three"]);
    let actors = good.actors().await;
    let children = actors["data"].as_array().expect("the tree is a list");
    assert!(children.iter().all(|child| child["restarts"] == 0), "{actors:#}");
}

/// The most memory the service ever had, in KiB.
fn peak_kib(server: &TestServer) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process().pid))
        .expect("a running process of ours can be read");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok());
    kib.expect("the kernel says it in kB")
}

async fn failed(session: &Session, limit: Duration) -> (Value, String) {
    session.events(None).await.until_named("session.ended", limit).await;
    let ended = session.get().await;
    assert_eq!(ended["outcome"], "failed", "{ended:#}");
    assert_ordered(&ended);
    let reason = ended["reason"].as_str().expect("an end has a reason").to_owned();
    (ended, reason)
}

#[actix::test]
async fn an_agent_that_never_answers_ends_its_own_session_and_says_so() {
    let model = MockModel::start();
    let (server, client, good) = with_a_good_session(&model).await;
    let mute = [
        client.create(misled(&model, Vice::Mute, "unix")).await,
        client.create(misled(&model, Vice::Mute, "stdio")).await,
    ];
    for session in &mute {
        let (_, reason) = failed(session, HANDSHAKE + END).await;
        assert!(reason.contains("did not finish the handshake within 30s"), "{reason}");
    }
    the_good_one_goes_on(&model, &good).await;
    good.end(END).await;
    assert!(server.agents().is_empty(), "{:?}", server.agents());
}

#[actix::test]
async fn an_endless_line_ends_its_own_session_by_name_and_is_never_kept() {
    let model = MockModel::start();
    let (server, client, good) = with_a_good_session(&model).await;
    let before = peak_kib(&server);
    for transport in ["unix", "stdio"] {
        let session = client.create(misled(&model, Vice::LongLine, transport)).await;
        session.wait_idle().await;
        let turn = client.request(reqwest::Method::POST, &session.path("/turns"));
        let sending = client.send(turn.json(&json!({ "text": "hello", "mode": "auto" })));
        // Taken or not, nobody waits for an answer for ever.
        let reply = tokio::time::timeout(LIMIT, sending).await.expect("the message is answered in time");
        assert!(reply.status.is_success() || reply.problem() == "upstream_agent", "{}", reply.text());
        session.stop_if_live().await;
        let ended = session.wait_state("ended", END).await;
        assert_ordered(&ended);
        let told = session.journal().await;
        let named = |event: &Value| event.to_string().contains("a line of more than 16 MiB");
        assert!(told.iter().any(named), "{transport}: nobody was told: {told:#?}");
    }
    let grown = peak_kib(&server).saturating_sub(before);
    assert!(grown < GROWTH_KIB, "the service grew by {grown} KiB");
    the_good_one_goes_on(&model, &good).await;
}

#[actix::test]
async fn an_agent_that_raves_and_dies_leaves_its_status_and_its_last_words_only() {
    let model = MockModel::start();
    let (server, client, good) = with_a_good_session(&model).await;
    let before = peak_kib(&server);
    for transport in ["unix", "stdio"] {
        let session = client.create(misled(&model, Vice::Raving, transport)).await;
        let (ended, reason) = failed(&session, END).await;
        assert!(reason.contains("!!!!"), "{transport}: its last words: {reason:.200}");
        assert!(reason.len() < 4096, "{transport}: a reason is a sentence: {} bytes", reason.len());
        assert!(ended["workdir_kept"].is_null(), "{transport}: {:#}", ended["workdir_kept"]);
    }
    let grown = peak_kib(&server).saturating_sub(before);
    assert!(grown < GROWTH_KIB, "the service grew by {grown} KiB");
    the_good_one_goes_on(&model, &good).await;
}
