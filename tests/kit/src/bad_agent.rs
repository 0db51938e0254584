//! A program that calls itself codex and behaves as no codex should; what it does is chosen per session, by a variable of
//! its environment. Without one it becomes the real codex, so that good and bad agents run side by side under one service.

use std::io::{BufRead, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::codex::codex_binary;

/// The variable that names the [`Vice`].
pub const VARIABLE: &str = "OPTIO_BAD_AGENT";

/// The length of an endless line: far beyond every limit, and enough to be seen in a service that keeps it.
pub const LONG_LINE: usize = 100 << 20;

/// What a bad agent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vice {
    /// It listens and reads, and never answers.
    Mute,
    /// It answers the handshake, and the first turn with a line of [`LONG_LINE`] bytes.
    LongLine,
    /// It says [`LONG_LINE`] bytes on standard error without one newline, and ends with status 3.
    Raving,
}

impl Vice {
    const ALL: [Self; 3] = [Self::Mute, Self::LongLine, Self::Raving];

    /// The value of [`VARIABLE`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Mute => "mute",
            Self::LongLine => "long-line",
            Self::Raving => "raving",
        }
    }
}

/// Finds the program: the example `bad_agent`, which cargo builds beside the tests. A script would not do, because the
/// service refuses scripts as codex.
///
/// # Panics
/// When it was not built, saying how.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let target = test.ancestors().nth(2).expect("tests lie two directories below cargo's");
    let program = target.join("examples/bad_agent");
    assert!(program.is_file(), "the bad agent is not built: run `cargo build --examples`");
    program
}

/// The program's `main`.
pub fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let vice = std::env::var(VARIABLE).ok();
    let Some(vice) = vice.and_then(|name| Vice::ALL.into_iter().find(|vice| vice.name() == name)) else {
        let real = codex_binary();
        let own = std::env::current_exe().and_then(std::fs::canonicalize).ok();
        assert!(own.as_ref() != Some(&real), "OPTIO_TEST_CODEX must name the real codex");
        let problem = std::process::Command::new(real).args(&args).exec();
        panic!("the real codex cannot be started: {problem}");
    };
    if vice == Vice::Raving {
        rave();
        std::process::exit(3);
    }
    match args.iter().find_map(|arg| arg.strip_prefix("unix://")) {
        Some(socket) => serve(vice, Path::new(socket)),
        None => over_pipes(vice),
    }
}

fn rave() {
    let mut stderr = std::io::stderr().lock();
    for _ in 0..LONG_LINE >> 20 {
        if stderr.write_all(&[b'!'; 1 << 20]).is_err() {
            return;
        }
    }
}

/// What this agent answers to a message, if anything.
fn answer(vice: Vice, message: &str) -> Option<String> {
    let message: Value = serde_json::from_str(message).expect("the service writes JSON");
    let result = match (vice, message["method"].as_str()?) {
        (Vice::Mute | Vice::Raving, _) => return None,
        (Vice::LongLine, "initialize") => json!({ "userAgent": "optio_codex/0.142.5 (bad)" }),
        (Vice::LongLine, "account/read") => json!({ "account": null, "requiresOpenaiAuth": false }),
        (Vice::LongLine, "model/list") => json!({ "data": [], "nextCursor": null }),
        (Vice::LongLine, "thread/start" | "thread/resume") => {
            let id = "00000000-0000-7000-8000-000000000001";
            json!({ "thread": { "id": id, "status": { "type": "idle" }, "turns": [] }, "model": "bad" })
        }
        (Vice::LongLine, "turn/start") => return Some("x".repeat(LONG_LINE)),
        (Vice::LongLine, _) => return None,
    };
    Some(json!({ "id": message["id"], "result": result }).to_string())
}

fn over_pipes(vice: Vice) {
    let mut stdout = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        if let Some(answer) = answer(vice, &line)
            && writeln!(stdout, "{answer}").and_then(|()| stdout.flush()).is_err()
        {
            // The service has hung up, as it should.
            return;
        }
    }
}

fn serve(vice: Vice, socket: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let listener = UnixListener::bind(socket).expect("the service gives a free socket path");
    listener.set_nonblocking(true).expect("a listener of ours can be changed");
    runtime.expect("a runtime starts").block_on(async {
        let listener = tokio::net::UnixListener::from_std(listener).expect("it was made non-blocking");
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            tokio::spawn(async move {
                // A client that breaks off is a client's own affair.
                let _ = converse(vice, stream).await;
            });
        }
    })
}

async fn converse(
    vice: Vice,
    stream: tokio::net::UnixStream,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    while let Some(message) = socket.next().await {
        if let Message::Text(text) = message?
            && let Some(answer) = answer(vice, &text)
        {
            socket.send(Message::text(answer)).await?;
        }
    }
    Ok(())
}
