//! Many sessions through one connection, and large ones through a small service.

mod common;

use std::time::{Duration, Instant};

use common::place::Place;
use common::{END, answers, conversation, service, step};
use futures_util::future::join_all;
use optio_testkit::{Far, MockModel, Session, TestServer, procs, wait_until};
use serde_json::json;

/// Forty agents start on a busy machine of two cores.
const START: Duration = Duration::from_secs(120);

#[actix::test]
async fn forty_sessions_live_on_a_server_that_gives_ten_channels() {
    let model = MockModel::start();
    let far = Far::setup().max_sessions(10).start().await;
    let server = service().on(&far).start().await;
    let client = server.client();
    let began = Instant::now();
    let sessions = join_all((0..40).map(|_| client.create(conversation(&model)))).await;
    join_all(sessions.iter().map(|session| session.wait_state("idle", START))).await;
    println!("forty are idle after {:?}", began.elapsed());
    let began = Instant::now();
    join_all(sessions.iter().enumerate().map(async |(n, session)| {
        session.turn(&format!("@say I am {n}")).await;
        wait_until(format!("the answer of {n}"), START, || async {
            answers(session).await == [format!("I am {n}")]
        })
        .await;
    }))
    .await;
    println!("forty have answered after {:?}", began.elapsed());
    // Whoever is told to wait for a channel waits; nobody is told that there is none.
    let said = server.output();
    assert!(!said.contains("open failed") && !said.contains("administratively"), "{said}");
    let began = Instant::now();
    join_all(sessions.iter().map(|session| session.stop("graceful"))).await;
    for session in &sessions {
        let ended = session.wait_state("ended", START).await;
        assert_eq!(
            (&ended["outcome"], &ended["has_snapshot"]),
            (&json!("stopped"), &json!(true)),
            "{ended:#}"
        );
        assert_eq!(step(&ended, "wipe")["state"], "done", "{ended:#}");
    }
    println!("forty have ended after {:?}", began.elapsed());
    assert!(far.agents().is_empty(), "{:?}", far.agents());
    assert_eq!(far.sockets(), Vec::<std::path::PathBuf>::new());
    assert_eq!(procs::entries(&server.task_root()), Vec::<String>::new());
}

/// What a service may need for an archive of any size.
const MEMORY: u64 = 32 << 20;
const LARGE: u64 = 200 << 20;

/// A number of `/proc/PID/status`, in bytes.
fn memory(server: &TestServer, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process().pid)).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.expect("Linux says so") << 10
}

/// How much more than now the service needs at most while something is done.
async fn growth(server: &TestServer, work: impl Future<Output = ()>) -> u64 {
    // 5: forget the peak.
    std::fs::write(format!("/proc/{}/clear_refs", server.process().pid), "5").expect("its owner may do that");
    let before = memory(server, "VmRSS");
    work.await;
    memory(server, "VmHWM").saturating_sub(before)
}

#[actix::test]
async fn a_snapshot_of_two_hundred_megabytes_goes_and_comes_in_a_few() {
    let model = MockModel::start();
    let place = Place::ssh().await;
    let server = place.service().start().await;
    let client = server.client();
    let session = client.create(conversation(&model)).await;
    session.wait_idle().await;
    // All of it comes through the connection; the store has less to do, whose cipher is slow when it is not optimised. Made
    // here and not by the agent: it is no part of the story.
    let workdir = server.task_root().join(&session.id).join("workdir");
    let made = std::process::Command::new("sh")
        .args(["-c", &format!("yes | head -c {LARGE} >large.bin && sha256sum large.bin >sum.txt")])
        .current_dir(&workdir)
        .status();
    assert!(made.expect("sh is everywhere").success());

    let began = Instant::now();
    let up = growth(&server, async {
        session.end(END * 4).await;
    })
    .await;
    let ended = session.get().await;
    assert_eq!(step(&ended, "wipe")["state"], "done", "{ended:#}");
    let captured = began.elapsed();
    let began = Instant::now();
    let down = growth(&server, async {
        session.resume().await;
        session.wait_state("idle", END * 4).await;
    })
    .await;
    println!("out: {captured:?}, {} KiB more; in: {:?}, {} KiB more", up >> 10, began.elapsed(), down >> 10);
    let checked =
        std::process::Command::new("sha256sum").args(["--check", "sum.txt"]).current_dir(&workdir).output();
    assert!(checked.expect("sha256sum is everywhere").status.success(), "the file is whole");
    assert!(up <= MEMORY && down <= MEMORY, "{up} and {down} bytes");
    stop(&session).await;
}

async fn stop(session: &Session) {
    session.stop("cancel").await;
    session.wait_state("ended", END * 4).await;
}
