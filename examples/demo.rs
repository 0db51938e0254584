//! The whole life of a session without an account: the service, its page, and a mock in the place of the model.
//!
//! Codex, the actors, the store and the page are real. Only the model's answers are scripted: you type what it shall
//! answer. `make demo` runs this; `cargo run --example demo -- --check` drives one session by itself and ends.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use optio_actors::Defaults;
use optio_codex::{Config, Server};
use optio_testkit::{Client, MockModel, ModelAuth, codex_binary};
use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;

/// How long the check waits for an answer or an end; both take a second or two on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);

const WHAT_TO_TYPE: &str = r#"
  ** THE MODEL IS A MOCK. ** It understands nothing; it answers what the first line of your message says:

    @say any words                             those words, streamed
    @slow 0.5 one two three                    the same, half a second after each word: time to interrupt it
    @call exec_command {"cmd":"ls -la"}        a command that the real codex runs in the session's directory
                                               (and asks you about, if the session was made with permission_gate)
    @http 500                                  a provider that fails

  Everything here lies in a directory that goes away when you end this program (Ctrl-C).
"#;

#[actix_rt::main]
async fn main() -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let check = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => anyhow::bail!("{other:?} is not known; there is --check"),
    };

    let model = MockModel::start();
    let dir = tempfile::Builder::new().prefix("optio-demo-").tempdir()?;
    let config = Config {
        // Every session that names no provider of its own talks to the mock.
        defaults: to_the_mock(&model)?,
        codex: Some(codex_binary()),
        ..Config::for_test(dir.path())
    };
    let token_file = config.token_file.clone();
    let server = Server::new(config).await?;
    let url = format!("http://{}", server.addr());
    if check {
        let client = client(&url, &token_file)?;
        let (told, outcome) = tokio::sync::oneshot::channel();
        server
            .run(async {
                // Nobody listens only when serving has failed, which is an error already.
                let _ = told.send(one_session(&client).await);
            })
            .await?;
        return outcome.await.context("the service ended before the session did")?;
    }

    println!("{WHAT_TO_TYPE}");
    println!("  page     {}", server.login_link());
    println!("  api      {url}/v1/sessions   (the bearer token is in {})\n", token_file.display());
    server.run(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await?;
    dir.close()?;
    println!("\nevery session was stopped in order, and the directory is gone");
    Ok(())
}

fn to_the_mock(model: &MockModel) -> Result<Defaults> {
    let Value::Object(settings) = model.overrides(ModelAuth::Nothing) else {
        anyhow::bail!("the mock's settings are an object");
    };
    Ok(Defaults::new(settings, Default::default())?)
}

fn client(url: &str, token_file: &Path) -> Result<Client> {
    let token = std::fs::read_to_string(token_file).context("the service made no token")?;
    Ok(Client::new(url, token.trim()))
}

/// Does what a person does with the page: makes a session, talks, lets it use a tool, stops and resumes it, twice.
async fn one_session(client: &Client) -> Result<()> {
    let session = client
        .create(json!({ "mode": "conversation", "instructions": "Do as you are told.", "name": "demo" }))
        .await;
    println!("session {} of the MOCK model", session.id);
    let mut events = session.events(None).await;
    session.wait_idle().await;

    session.turn("@say the whole way works").await;
    events.until_named("turn.completed", LIMIT).await;
    println!("  answered in {} events", events.seen().len());
    ensure!(says(&session.messages().await, "the whole way works"), "the answer is not in the conversation");

    session.wait_idle().await;
    session.turn("@call exec_command {\"cmd\":\"echo kept > note\"}").await;
    events.until_named("turn.completed", LIMIT).await;
    session.wait_idle().await;

    for _ in 0..2 {
        let ended = session.end(LIMIT).await;
        for step in ended["teardown"].as_array().into_iter().flatten() {
            println!("  {:<17} {}", text(&step["step"]), text(&step["state"]));
        }
        ensure!(ended["outcome"] != "failed", "the session failed: {}", text(&ended["reason"]));
        ensure!(ended["has_snapshot"] == true, "there is nothing to resume from");
        session.resume().await;
        session.wait_idle().await;
        println!("  resumed");
    }
    session.turn("@say and it remembers").await;
    events.until(|event| event.data.to_string().contains("and it remembers"), LIMIT).await;
    ensure!(
        says(&session.messages().await, "the whole way works"),
        "the first turn is forgotten after a resume"
    );
    println!("demo: one session was made, used, stopped, resumed and continued");
    Ok(())
}

fn says(messages: &[Value], words: &str) -> bool {
    messages.iter().any(|message| message["kind"] == "assistant" && text(&message["text"]).contains(words))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
