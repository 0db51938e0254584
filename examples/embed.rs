//! A program of your own needs agents for an evening: it asks three of them at once, lets you watch in the browser, and
//! ends when the last one is done. There is no second service to install, and when your program ends nothing of them
//! is left.
//!
//! [`Server`] is a value in your own `main`: your configuration, your log, your condition for the end. This example
//! talks to a mock model, so that it runs without an account: `cargo run --example embed`.

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use optio_actors::Service;
use optio_actors::service::words::{Input, SessionConfig, SessionId};
use optio_actors::session::phase::State;
use optio_actors::session::{SendTurn, TurnMode};
use optio_actors::sessions::{Launch, OnExit};
use optio_codex::{Config, Server};
use optio_codex_protocol::messages::Kind;
use optio_testkit::{MockModel, ModelAuth, codex_binary};
use serde_json::json;

/// Messages of a session that are looked through for its answer; one turn makes two.
const MESSAGES: usize = 20;

#[actix_rt::main]
async fn main() -> Result<()> {
    let model = MockModel::start();
    let dir = tempfile::tempdir()?;
    let config = Config {
        codex: Some(codex_binary()),
        // Nobody comes back for these sessions: when this program ends, they do.
        on_exit: OnExit::Teardown,
        ..Config::for_test(dir.path())
    };

    let server = Server::new(config).await?;
    println!("watch them at {}", server.login_link());
    let service = server.service().clone();

    // `run` serves until its future ends. Here the work itself is that future, not a signal.
    let mut answers = None;
    server
        .run(async {
            let questions = ["@say four", "@say blue", "@slow 0.1 it depends"];
            let asking = questions.map(|question| ask(&service, &model, question));
            answers = Some(try_join_all(asking).await);
        })
        .await?;

    let answers = answers.context("the service broke before the answers were there")??;
    for answer in &answers {
        println!("answer: {answer}");
    }
    ensure!(answers == ["four", "blue", "it depends"], "other answers than the mock was told to give");

    // The teardown was part of `run`: each session has stopped in order and is on record.
    let left = std::fs::read_dir(dir.path().join("tasks"))?.count();
    ensure!(left == 0, "{left} working directories are left");
    println!("all are stopped and stored, no working directory is left");
    Ok(())
}

/// Asks one question in a session of its own.
async fn ask(service: &Service, model: &MockModel, question: &str) -> Result<String> {
    let config = SessionConfig::from_json(json!({
        "mode": "conversation",
        "instructions": "Answer in one word.",
        "codex_config": model.overrides(ModelAuth::Nothing),
    }))?;
    let launch = Launch {
        name: Some(question.to_owned()),
        labels: Default::default(),
        host: "local".to_owned(),
        config,
        idempotency: None,
    };
    let session = service.launch(launch).await?.id;
    rest(service, &session).await?;
    let turn = SendTurn { input: vec![Input::Text(question.to_owned())], mode: TurnMode::New };
    service.send(&session, turn).await?;

    // The journal is the one thing every viewer reads, this program too: a turn is over when it says so.
    let events = service.events(&session).await?;
    let (mut newest, mut seen) = (events.newest(), 0);
    loop {
        let slice = events.read(seen, 100, 1 << 20).await?;
        seen = slice.records.last().map_or(seen, |record| record.seq);
        if slice.records.iter().any(|record| record.name == "turn.completed") {
            break;
        }
        if slice.records.is_empty() {
            newest.wait_for(|newest| *newest > seen).await?;
        }
    }
    let said = service.messages(&session, None, MESSAGES).await?;
    let answer = said.data.into_iter().find(|message| message.kind == Kind::Assistant);
    answer.map(|message| message.text).context("the agent said nothing")
}

/// Waits until the session's agent has nothing to do.
async fn rest(service: &Service, session: &SessionId) -> Result<()> {
    let events = service.events(session).await?;
    let mut newest = events.newest();
    loop {
        let view = service.session(session).await?;
        let over = matches!(view.state, State::Ended | State::Lost);
        ensure!(!over, "session {session} is over: {}", view.reason.unwrap_or_default());
        if view.state == State::Idle {
            return Ok(());
        }
        newest.wait_for(|newest| *newest > view.last_event).await?;
    }
}
