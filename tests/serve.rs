//! Starting and ending the service.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use optio_testkit::{LIMIT, MockModel, ModelAuth, ServerSetup, TestServer, wait_until};
use reqwest::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

fn service() -> ServerSetup {
    TestServer::of(env!("CARGO_BIN_EXE_optio-codex"))
}

/// Starts a service that is meant to be refused, without anything of the developer's.
fn second(args: &[&str], data_dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_optio-codex"));
    command.arg("serve").args(args).arg("--data-dir").arg(data_dir);
    command.env_clear().env("HOME", data_dir).env("XDG_RUNTIME_DIR", data_dir).env("RUST_LOG", "off");
    command.output().unwrap()
}

#[actix_rt::test]
async fn the_printed_port_is_the_one_that_answers_and_the_link_logs_one_browser_in() {
    let server = service().start().await;
    assert!(!server.url().ends_with(":0"), "{}", server.url());
    let client = server.client().anonymous();
    let health = client.send(client.request(Method::GET, "/healthz")).await;
    assert_eq!(health.status.as_u16(), 200, "{}", health.text());

    let link = server.login_link().await;
    let path = link.strip_prefix(&server.url()).expect("the link leads to the printed address").to_owned();
    let first = client.send(client.request(Method::GET, &path)).await;
    assert!(first.headers.contains_key("set-cookie"), "{} {}", first.status, first.text());
    let second = client.send(client.request(Method::GET, &path)).await;
    assert!(!second.headers.contains_key("set-cookie"), "a link works once: {}", second.status);
}

#[actix_rt::test]
async fn the_token_is_made_once_and_for_its_owner_alone() {
    let server = service().start().await;
    let file = server.data_dir().join("token");
    let token = std::fs::read(&file).unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(server.data_dir().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    server.restart().await;
    assert_eq!(std::fs::read(&file).unwrap(), token);
    assert!(
        !server.output().contains(String::from_utf8(token).unwrap().trim()),
        "the token is never printed"
    );
}

#[actix_rt::test]
async fn the_service_may_open_as_many_files_as_the_system_allows_it() {
    // Inherited by the service; many systems give no more than this.
    let own = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), ..own }).unwrap();
    let server = service().start().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.process().pid)).unwrap();
    let open = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<_> = open.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers[0], numbers[1], "{open}");
}

#[actix_rt::test]
async fn a_second_service_on_the_same_directory_is_refused_and_the_first_goes_on() {
    let server = service().start().await;
    let second = second(&["--listen", "127.0.0.1:0"], &server.data_dir());
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another service") && said.contains(&server.process().pid.to_string()), "{said}");
    assert!(second.stdout.is_empty());
    server.client().sessions("").await;
}

#[actix_rt::test]
async fn an_address_that_is_taken_is_named() {
    let server = service().start().await;
    let address = server.url().replace("http://", "");
    let dir = tempfile::tempdir().unwrap();
    let second = second(&["--listen", &address], dir.path());
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains(&address), "{said}");
}

#[actix_rt::test]
async fn a_term_ends_an_idle_service_at_once_and_cleanly() {
    let server = service().start().await;
    // An open event stream is somebody who is still there; it must not hold the service up.
    let events = server.client().all_events(None).await;
    let asked = Instant::now();
    assert_eq!(server.term().await, 0);
    assert!(asked.elapsed() < Duration::from_secs(3), "it took {:?}", asked.elapsed());
    drop(events);
}

#[actix_rt::test]
async fn detach_leaves_the_agent_to_the_next_start_and_teardown_leaves_nothing() {
    let model = MockModel::start();
    let session = json!({ "mode": "conversation", "instructions": "", "codex_config": model.overrides(ModelAuth::Nothing) });

    let server = service().start().await;
    let stays = server.client().create(session.clone()).await;
    stays.wait_idle().await;
    assert_eq!(server.term().await, 0);
    assert!(!server.agents().is_empty(), "the agent goes on");
    server.restart().await;
    server.client().session(&stays.id).wait_idle().await;

    let server = service().args(["--on-exit", "teardown"]).start().await;
    let ends = server.client().create(session).await;
    ends.wait_idle().await;
    let mut viewer = ends.events(None).await;
    server.send_term();
    viewer.until_named("session.ended", LIMIT).await;
    assert_eq!(server.wait_for_exit().await, 0);
    // The guard's watchdog, which has seen its agent end, looks up from its sleep within five seconds.
    wait_until("nothing of it runs", LIMIT, || async { server.agents().is_empty() }).await;
    assert_eq!(
        std::fs::read_dir(server.task_root()).unwrap().count(),
        0,
        "and its directory is stored and gone"
    );
}

#[actix_rt::test]
async fn a_second_signal_ends_a_drain_that_takes_long() {
    let model = MockModel::start();
    let session = json!({ "mode": "conversation", "instructions": "", "codex_config": model.overrides(ModelAuth::Nothing) });
    let server = service().args(["--on-exit", "teardown", "--enable-faults"]).start().await;
    let held = server.client().create(session).await;
    held.wait_idle().await;
    held.fault("process", "stop_agent", "hang").await;

    server.send_term();
    wait_until("the drain has begun", LIMIT, || async {
        server.output().contains("service drains").then_some(())
    })
    .await;
    let client = server.client();
    let ready = client.send(client.request(Method::GET, "/readyz")).await;
    assert_eq!((ready.status.as_u16(), ready.problem().as_str()), (503, "draining"));
    server.send_term();
    let asked = Instant::now();
    assert_eq!(server.wait_for_exit().await, 143);
    assert!(asked.elapsed() < Duration::from_secs(2), "it took {:?}", asked.elapsed());
}

#[actix_rt::test]
async fn the_unix_socket_is_a_second_door_for_the_same_token() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("optio.sock");
    let server = service().args(["--unix", socket.to_str().unwrap()]).start().await;
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let token = std::fs::read_to_string(server.data_dir().join("token")).unwrap();
    let http = reqwest::Client::builder().unix_socket(socket.clone()).build().unwrap();
    let ask = |token: &str| http.get("http://localhost/v1/sessions").bearer_auth(token).send();
    assert_eq!(ask(token.trim()).await.unwrap().status().as_u16(), 200);
    assert_eq!(ask("another").await.unwrap().status().as_u16(), 401);
    assert_eq!(server.term().await, 0);
    assert!(!socket.exists(), "it goes with the service");
}
