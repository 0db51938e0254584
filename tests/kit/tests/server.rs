//! The life of a server, judged with a stand-in: a shell script that says what the service says and starts what it starts.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use optio_testkit::{LIMIT, ServerSetup, TestServer, wait_until};
use tempfile::TempDir;

/// A stand-in for the service that runs `body` when it is ready.
fn stand_in(body: &str) -> (TempDir, ServerSetup) {
    let dir = tempfile::tempdir().expect("the temp directory is writable");
    let script = dir.path().join("service");
    let start = r#"#!/bin/sh
listen=$3 data=$5
case $listen in *:0) listen=127.0.0.1:47999 ;; esac
mkdir -p "$data"; echo secret-token > "$data/token"
echo "starting with $*" >&2
echo "optio-codex listening on http://$listen"
echo "open http://$listen/login?once=$$"
"#;
    std::fs::write(&script, format!("{start}{body}\n")).expect("the temp directory is writable");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("a file of ours");
    (dir, TestServer::of(script).codex("/bin/true"))
}

#[tokio::test]
async fn a_server_is_ready_when_it_says_so_and_ends_when_told() {
    let (_dir, setup) = stand_in("trap 'echo going; exit 7' TERM; while :; do sleep 0.01; done");
    let server = setup.args(["--enable-faults"]).env("EXTRA", "yes").start().await;

    assert_eq!(server.url(), "http://127.0.0.1:47999");
    assert!(server.login_link().await.starts_with("http://127.0.0.1:47999/login?once="));
    wait_until("stderr is read too", LIMIT, || async { server.output().contains("--enable-faults") }).await;

    assert_eq!(server.term().await, 7);
    wait_until("its last words are read", LIMIT, || async { server.output().contains("going") }).await;
}

#[tokio::test]
async fn a_killed_server_is_restarted_where_it_was() {
    let (_dir, setup) = stand_in("while :; do sleep 0.01; done");
    let server = setup.start().await;
    let (url, link, process) = (server.url(), server.login_link().await, server.process());

    server.kill_9();
    assert!(!process.is_alive());
    server.restart().await;

    assert_eq!(server.url(), url);
    assert_ne!(server.login_link().await, link, "the link is that of the new start");
    assert!(server.process().pid != process.pid);
}

#[tokio::test]
async fn what_a_server_leaves_behind_is_seen_and_ends_with_the_test() {
    let (_dir, setup) = stand_in("setsid sleep 600 >/dev/null 2>&1 & while :; do sleep 0.01; done");
    let server = setup.start().await;
    let left = wait_until("the agent runs", LIMIT, || async {
        server.agents().into_iter().find(|process| process.argv == ["sleep", "600"])
    })
    .await;

    server.kill_9();
    assert!(left.is_alive(), "an agent outlives its service");
    assert!(server.agents().contains(&left));

    drop(server);
    wait_until("the agent is gone", Duration::from_secs(5), || async { !left.is_alive() }).await;
}

#[tokio::test]
#[should_panic(expected = "no such luck")]
async fn a_server_that_does_not_start_is_quoted() {
    let dir = tempfile::tempdir().expect("the temp directory is writable");
    let script: PathBuf = dir.path().join("service");
    std::fs::write(&script, "#!/bin/sh\necho no such luck\nexit 1\n")
        .expect("the temp directory is writable");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("a file of ours");
    TestServer::of(script).codex("/bin/true").start().await;
}
