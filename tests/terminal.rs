//! People before a terminal: the real Codex in the real tmux, met through the gateway's WebSocket and in a real browser,
//! with a ttyd and without.

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::place::{Place, on_each_host};
use common::terminal::{screen, shows, tmux};
use common::{END, service};
use optio_testkit::procs::{Proc, descendants};
use optio_testkit::{Browser, LIMIT, MockModel, Session, TerminalClient, TestServer, codex, wait_until};
use serde_json::{Value, json};

/// How long a person waits for what they typed to be seen.
const SEEN_LIMIT: Duration = Duration::from_secs(3);

/// What codex's first screen ends with; a person types when it is there.
const FOOTER: &str = "gpt-5.5 default";

/// A terminal that talks to the mock model and is at work.
async fn terminal(server: &TestServer, model: &MockModel) -> Session {
    let session = server.client().create(common::terminal::terminal(model)).await;
    session.wait_state("working", LIMIT).await;
    session
}

/// Types a line as a person does: what was typed is on the screen before Enter is pressed, because codex takes keys that
/// come all at once for a paste, and an Enter among them for a part of it. And a person who sees nothing types again: keys
/// pressed in the moment in which the terminal takes its first viewer's size were seen to get lost, in about one of four.
async fn asks(server: &TestServer, client: &mut TerminalClient, text: &str) {
    for _ in 0..3 {
        client.types(text).await;
        if tokio::time::timeout(SEEN_LIMIT, shows(server, text)).await.is_ok() {
            break;
        }
    }
    shows(server, text).await;
    client.types("\r").await;
}

async fn has_size(server: &TestServer, size: &str) {
    wait_until(format!("the terminal is {size}"), LIMIT, || async {
        let seen = tmux(server, &["display-message", "-p", "#{window_width}x#{window_height}"]);
        if seen.trim() == size { Ok(()) } else { Err(seen) }
    })
    .await;
}

/// What the terminal's actor says of itself.
async fn actor(session: &Session) -> Value {
    let tree = session.actors().await;
    find(&tree, "terminal").unwrap_or_else(|| panic!("no terminal among the actors: {tree:#}"))
}

fn find(tree: &Value, kind: &str) -> Option<Value> {
    match tree {
        Value::Object(fields) if fields.values().any(|value| value == kind) => Some(tree.clone()),
        Value::Object(fields) => fields.values().find_map(|value| find(value, kind)),
        Value::Array(items) => items.iter().find_map(|item| find(item, kind)),
        _ => None,
    }
}

/// The ttyds of this service.
fn ttyds(server: &TestServer) -> Vec<Proc> {
    // Its leash, a shell, has the same words.
    let serves = |process: &Proc| {
        process.argv.iter().any(|word| word.ends_with("ttyd.sock"))
            && process.argv.first().is_some_and(|program| !program.ends_with("sh"))
    };
    descendants(server.process().pid).into_iter().filter(serves).collect()
}

/// The ttyd of this machine, if it has one.
fn real_ttyd() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = std::iter::once(codex::tools_dir().join("bin"));
    let mut found = tools.chain(std::env::split_paths(&path)).map(|dir| dir.join("ttyd"));
    let found = found.find(|ttyd| ttyd.is_file());
    if found.is_none() {
        eprintln!("skipped: there is no ttyd here (`make setup-test` fetches one)");
    }
    found
}

/// One story, told with a ttyd and without.
async fn people_come_type_look_on_and_go(server: &TestServer, by_ttyd: bool) {
    let model = MockModel::start();
    let session = terminal(server, &model).await;
    let mut owner = TerminalClient::sit(&session, "operator", 110, 32).await;
    assert_eq!(owner.seat, json!({ "seat": "owner", "columns": 110, "rows": 32 }));
    assert_eq!(actor(&session).await["detail"]["ttyd"], by_ttyd);
    has_size(server, "110x32").await;
    owner.sees(FOOTER).await;
    asks(server, &mut owner, "hello from a browser").await;
    owner.sees("pong:").await;
    shows(server, "• pong: hello from a browser").await;

    let mut viewer = TerminalClient::sit(&session, "viewer", 60, 20).await;
    assert_eq!(viewer.seat, json!({ "seat": "viewer", "columns": 110, "rows": 32 }));
    viewer.sees("pong: hello from a browser").await;
    // Escape and tmux's own keys too. It must not be seen, and what follows must be unharmed by it.
    viewer.types("typed by a viewer\x1b\x02:kill-server\r").await;
    viewer.resize(50, 10).await;
    asks(server, &mut owner, "and once more").await;
    viewer.sees("pong: and once more").await;
    assert!(!screen(server).contains("typed by a viewer"), "{}", screen(server));
    assert!(model.turns().iter().all(|turn| !turn.user_text().contains("viewer")));
    has_size(server, "110x32").await;

    owner.resize(90, 25).await;
    has_size(server, "90x25").await;
    viewer
        .until("the owner's size", |viewer| viewer.seat["columns"] == 90 && viewer.seat["rows"] == 25)
        .await;

    drop(owner);
    wait_until("the owner's seat is free", LIMIT, || async {
        actor(&session).await["detail"]["owners"] == 0
    })
    .await;
    let mut next = TerminalClient::sit(&session, "operator", 100, 30).await;
    assert_eq!(next.seat["seat"], "owner");
    next.sees("pong: and once more").await;
    has_size(server, "100x30").await;

    session.stop("graceful").await;
    assert_eq!(next.is_closed().await.0, 4000, "{:?}", next.closed);
    assert_eq!(viewer.is_closed().await.0, 4000, "{:?}", viewer.closed);
    let ended = session.wait_state("ended", END).await;
    assert_eq!(ended["outcome"], "stopped", "{ended:#}");
    assert!(server.agents().is_empty(), "{:?}", server.agents());
    assert!(!server.output().contains("ws?"), "the address with its ticket stands in the log");
}

on_each_host!(people_are_served_without_a_ttyd);
async fn people_are_served_without_a_ttyd(place: Place) {
    let server = place.service().args(["--ttyd", "/there/is/none"]).start().await;
    people_come_type_look_on_and_go(&server, false).await;
}

#[actix::test]
async fn people_are_served_by_a_ttyd() {
    let Some(ttyd) = real_ttyd() else { return };
    let server = service().args(["--ttyd", &ttyd.to_string_lossy()]).start().await;
    people_come_type_look_on_and_go(&server, true).await;
}

#[actix::test]
async fn a_ttyd_that_is_killed_is_replaced_and_the_session_does_not_notice() {
    let Some(ttyd) = real_ttyd() else { return };
    let server = service().args(["--ttyd", &ttyd.to_string_lossy()]).start().await;
    let model = MockModel::start();
    let session = terminal(&server, &model).await;
    let before = session.get().await;
    let mut owner = TerminalClient::sit(&session, "operator", 100, 30).await;
    let mut viewer = TerminalClient::sit(&session, "viewer", 100, 30).await;
    owner.sees(FOOTER).await;
    asks(&server, &mut owner, "hello before").await;
    shows(&server, "• pong: hello before").await;
    let running = ttyds(&server);
    let [killed] = &running[..] else { panic!("there is one ttyd: {running:?}") };
    killed.kill_9();
    // Come back a little later: not at once, and not never.
    assert_eq!(owner.is_closed().await.0, 4002, "{:?}", owner.closed);
    assert_eq!(viewer.is_closed().await.0, 4002, "{:?}", viewer.closed);

    let mut owner = TerminalClient::sit(&session, "operator", 100, 30).await;
    assert_eq!(owner.seat["seat"], "owner");
    owner.sees("pong: hello before").await;
    asks(&server, &mut owner, "hello after").await;
    shows(&server, "• pong: hello after").await;
    let another = ttyds(&server);
    assert!(another.len() == 1 && another[0] != *killed, "{another:?}");
    let after = session.get().await;
    assert_eq!(after["run"]["agent"], before["run"]["agent"]);
    assert_eq!((&after["state"], &after["run"]["id"]), (&json!("working"), &before["run"]["id"]));
    drop(owner);
    wait_until("nobody needs the ttyd", LIMIT, || async { ttyds(&server).is_empty() }).await;
    session.end(END).await;
}

#[actix::test]
async fn a_ttyd_does_not_outlive_its_service_and_the_next_one_serves_as_well() {
    let Some(ttyd) = real_ttyd() else { return };
    let model = MockModel::start();
    let server = service().args(["--ttyd", &ttyd.to_string_lossy()]).start().await;
    let session = terminal(&server, &model).await;
    let mut client = TerminalClient::sit(&session, "operator", 110, 32).await;
    client.sees(FOOTER).await;
    let running = ttyds(&server);
    let [ttyd] = &running[..] else { panic!("there is one ttyd: {running:?}") };
    server.kill_9();
    wait_until("the ttyd has ended", LIMIT, || async { !ttyd.is_alive() }).await;
    client.is_closed().await;
    server.restart().await;
    let session = server.client().session(&session.id);
    session.wait_state("working", LIMIT).await;
    let mut client = TerminalClient::sit(&session, "operator", 110, 32).await;
    client.sees(FOOTER).await;
    session.stop("cancel").await;
    session.wait_state("ended", END).await;
    wait_until("no ttyd is left", LIMIT, || async { ttyds(&server).is_empty() }).await;
}

#[actix::test]
async fn a_person_types_in_a_browser_and_finds_it_all_again_after_a_reload() {
    let server = service().start().await;
    let model = MockModel::start();
    let session = terminal(&server, &model).await;
    let browser = Browser::open(1000, 700).await;
    browser.go(&server.login_link().await).await;
    browser.sees("New session").await;
    browser.go(&format!("{}/#/s/{}", server.url(), session.id)).await;
    browser.enter("Terminal").await;
    browser.sees("OpenAI Codex").await;
    browser.press("hello from a window").await;
    browser.sees("hello from a window").await;
    browser.press("\n").await;
    browser.sees("pong: hello from a window").await;

    browser.reload().await;
    browser.enter("Terminal").await;
    browser.sees("pong: hello from a window").await;
    wait_until("the one window owns the size", LIMIT, || async {
        let detail = actor(&session).await["detail"].clone();
        if detail["owners"] == 1 && detail["guests"] == 0 { Ok(()) } else { Err(detail) }
    })
    .await;
    browser.press("and again\n").await;
    browser.sees("and again").await;

    // Its end is told in words, beside the terminal or in its place.
    session.stop("graceful").await;
    session.wait_state("ended", END).await;
    browser.go(&format!("{}/#/", server.url())).await;
    browser.go(&format!("{}/#/s/{}", server.url(), session.id)).await;
    browser.sees("The terminal has ended").await;
}
