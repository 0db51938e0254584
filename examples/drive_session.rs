//! You want one session under your own control, without HTTP, tokens or a page: launch it, hear it as it speaks, stop
//! it, and see that everything it held was let go in order.
//!
//! `Service` is the door of the actors. Below it are a store and a host; this example builds both by hand to show what
//! there is, and talks to a mock model: `cargo run --example drive_session`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use optio_actors::events::SERVICE_STREAM;
use optio_actors::service::words::{Input, JournalStream, Record, SessionConfig};
use optio_actors::session::{SendTurn, StopMode, TurnMode};
use optio_actors::sessions::{Launch, Places};
use optio_actors::{Service, Settings};
use optio_host::{Host, LocalHost, LocalHostConfig};
use optio_store::embedded::{Embedded, Options};
use optio_store::{DiskJournal, DiskJournalOptions};
use optio_testkit::{MockModel, ModelAuth, codex_binary};
use serde_json::{Value, json};

/// Events read in one go, and their bytes.
const BATCH: (usize, usize) = (500, 1 << 20);

/// How long any one thing may take.
const LIMIT: Duration = Duration::from_secs(60);

#[actix_rt::main]
async fn main() -> Result<()> {
    let model = MockModel::start();
    let dir = tempfile::tempdir()?;
    let service = Service::start(settings(dir.path()).await?, Places::new(1)).await?;

    // What a session shall be is one value, checked as a whole before anything exists.
    let config = SessionConfig::from_json(json!({
        "mode": "conversation",
        "instructions": "Speak slowly.",
        "codex_config": model.overrides(ModelAuth::Nothing),
    }))?;
    let launch = Launch {
        name: Some("driven".to_owned()),
        labels: BTreeMap::new(),
        host: "local".to_owned(),
        config,
        idempotency: None,
    };
    let id = service.launch(launch).await?.id;
    let mut reader = Reader { events: service.events(&id).await?, seen: 0 };
    reader.until(|event, data| event.name == "session.state" && data["state"] == "idle").await?;
    println!("session {id} is there, and so are its actors:");
    for child in service.actors(&id).await? {
        println!("  {:<20} {}", child.child.to_string(), child.phase.unwrap_or_default());
    }

    // The turn is taken at once; its answer comes through the journal, piece by piece.
    let text = "@slow 0.1 here I am, word by word";
    service.send(&id, SendTurn { input: vec![Input::Text(text.to_owned())], mode: TurnMode::New }).await?;
    let mut answer = String::new();
    reader
        .until(|event, data| {
            if let ("item.delta", Some(piece)) = (event.name.as_str(), data["codex"]["delta"].as_str()) {
                print!("{piece}");
                // A terminal that is gone does not end the session.
                let _ = std::io::stdout().flush();
                answer.push_str(piece);
            }
            event.name == "turn.completed"
        })
        .await?;
    println!();
    ensure!(answer == "here I am, word by word", "another answer than the mock was told to give: {answer:?}");

    // A stop is answered at once too: the teardown belongs to the session and cannot be cancelled.
    service.stop(&id, StopMode::Graceful).await?;
    reader.until(|event, _| event.name == "session.ended").await?;
    let ended = service.session(&id).await?;
    println!("{}:", ended.reason.unwrap_or_default());
    for step in &ended.teardown {
        println!("  {:<17} {:<8} {}", step.step, step.state, step.detail.as_deref().unwrap_or_default());
        ensure!(matches!(step.state, "done" | "skipped"), "step {} is {}", step.step, step.state);
    }
    Ok(())
}

/// A service's settings: a store, the machines, and what they say to each other.
async fn settings(dir: &Path) -> Result<Settings> {
    let data = dir.join("data");
    let embedded = Embedded::open(&data, Options::default())?;
    let store = embedded.store(DiskJournal::open(data.join("journal"), DiskJournalOptions::default())?);
    let places =
        LocalHostConfig { task_root: Some(dir.join("tasks")), socket_root: Some(dir.join("sockets")) };
    let local: Arc<dyn Host> = Arc::new(LocalHost::new(places)?);
    let hosts = BTreeMap::from([("local".to_owned(), local)]);
    let list = store.journal.open(SERVICE_STREAM).await?;
    Ok(Settings { codex: Some(codex_binary()), ..Settings::new(hosts, store, list) })
}

/// Follows a session's journal: reads what is there, then waits for the number to grow. Nothing is ever missed between.
struct Reader {
    events: Arc<dyn JournalStream>,
    seen: u64,
}

impl Reader {
    /// Shows each new event to `look` until it says that this was the one.
    async fn until(&mut self, mut look: impl FnMut(&Record, &Value) -> bool) -> Result<()> {
        let mut newest = self.events.newest();
        let following = async {
            loop {
                for event in self.events.read(self.seen, BATCH.0, BATCH.1).await?.records {
                    self.seen = event.seq;
                    if look(&event, &serde_json::from_slice(&event.data)?) {
                        return Ok(());
                    }
                }
                newest.wait_for(|newest| *newest > self.seen).await?;
            }
        };
        tokio::time::timeout(LIMIT, following).await.context("it took too long")?
    }
}
