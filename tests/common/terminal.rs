//! The terminals of a service, past the service: what their tmux shows.

use std::path::PathBuf;
use std::process::Command;

use optio_testkit::{LIMIT, MockModel, ModelAuth, TestServer, wait_until};
use serde_json::{Value, json};

/// A terminal that talks to the mock model.
pub(crate) fn terminal(model: &MockModel) -> Value {
    json!({
        "mode": "terminal",
        "instructions": "Answer what you are asked.",
        "codex_config": model.overrides(ModelAuth::Nothing),
    })
}

/// The sockets of the terminals that this service has.
pub(crate) fn sockets(server: &TestServer) -> Vec<PathBuf> {
    server.sockets().into_iter().filter(|path| path.ends_with("tmux.sock")).collect()
}

/// Asks tmux about the one terminal of this service; what it answers, or nothing when there is not one.
pub(crate) fn tmux(server: &TestServer, words: &[&str]) -> String {
    let [socket] = &sockets(server)[..] else { return String::new() };
    let answer = Command::new("tmux").arg("-S").arg(socket).args(words).output().expect("tmux is there");
    String::from_utf8_lossy(&answer.stdout).into_owned()
}

/// What the one terminal of this service shows, with what has scrolled away.
pub(crate) fn screen(server: &TestServer) -> String {
    tmux(server, &["capture-pane", "-p", "-S", "-500"])
}

/// Waits until the one terminal of this service shows a text, or has shown it.
pub(crate) async fn shows(server: &TestServer, text: &str) {
    wait_until(format!("the terminal shows {text:?}"), LIMIT, || async {
        let seen = screen(server);
        if seen.contains(text) { Ok(()) } else { Err(seen) }
    })
    .await;
}
