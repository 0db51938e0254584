//! What the fake adds to the contract: programs that a test plays, on virtual time.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use optio_host::fake::{FakeHost, FakeLaunch, FakeStart};
use optio_host::{
    AgentState, CodexBinary, Command, Dial, EnvPlan, ExitStatus, GuardSpec, Host, HostError, Signal, Stage,
    TaskDir, TaskId,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

async fn task(host: &FakeHost) -> TaskDir {
    let dir = host.task_dir(&TaskId::new("a").unwrap());
    host.create(&dir).await.unwrap();
    dir
}

fn under_lease(dir: &TaskDir) -> GuardSpec {
    GuardSpec {
        argv: vec!["codex".into(), "app-server".into()],
        env: EnvPlan::default(),
        cwd: dir.workdir(),
        run_mark: "run-1".into(),
        term_after: Duration::from_secs(45),
        kill_after: Duration::from_secs(55),
        stage: Stage::Headless,
    }
}

/// An agent that ends only when it is killed.
async fn stubborn(mut launch: FakeLaunch) -> ExitStatus {
    let mut signals = launch.catch_signals();
    loop {
        signals.next().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_never_outlives_its_lease() {
    let host = FakeHost::new();
    host.on_program(stubborn);
    let dir = task(&host).await;
    let started = Instant::now();
    host.guard_start(&dir, under_lease(&dir)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(44)).await;
    host.guard_heartbeat(&dir).await.unwrap();
    tokio::time::sleep(Duration::from_secs(54)).await;
    assert_eq!(host.agents_running(), 1);
    assert!(host.guard_gone(&dir, Duration::from_secs(60)).await.unwrap());
    assert_eq!(started.elapsed().as_secs(), 44 + 55);
    assert_eq!(host.agents_running(), 0);
    let terms = host.trace().iter().filter(|line| line.contains("got Term")).count();
    assert_eq!(terms, 1, "{:?}", host.trace());
}

#[tokio::test(start_paused = true)]
async fn an_agent_without_its_guard_lives_until_a_heartbeat_brings_a_new_one() {
    let host = FakeHost::new();
    host.on_program(stubborn);
    let dir = task(&host).await;
    let agent = host.guard_start(&dir, under_lease(&dir)).await.unwrap();
    host.kill_guard(&dir);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(host.guard_state(&dir).await.unwrap(), AgentState::Running(agent));
    host.guard_heartbeat(&dir).await.unwrap();
    assert!(host.guard_gone(&dir, Duration::from_secs(56)).await.unwrap());
    match host.guard_state(&dir).await.unwrap() {
        AgentState::Exited { status: ExitStatus::Signal(9), by_guard: true, .. } => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_end_that_no_guard_saw_is_unknown() {
    let host = FakeHost::new();
    host.on_program(stubborn);
    let dir = task(&host).await;
    host.guard_start(&dir, under_lease(&dir)).await.unwrap();
    host.kill_guard(&dir);
    assert!(host.guard_signal(&dir, Signal::Kill).await.unwrap());
    assert!(host.guard_gone(&dir, Duration::from_secs(5)).await.unwrap());
    match host.guard_state(&dir).await.unwrap() {
        AgentState::Exited { status: ExitStatus::Unknown, by_guard: false, .. } => {}
        other => panic!("{other:?}"),
    }
}

/// The whole life of an app-server as an actor test plays it, over a restart of the service.
#[tokio::test]
async fn a_fake_app_server_serves_connections_rotates_a_login_and_ends_on_sigterm() {
    let host = FakeHost::new();
    let dir = task(&host).await;
    let socket = Dial::Unix(host.socket_path(&dir));
    let auth = dir.workdir().join("auth.json");
    host.on_program({
        let (socket, auth) = (socket.clone(), auth.clone());
        move |mut launch: FakeLaunch| {
            let (socket, auth) = (socket.clone(), auth.clone());
            async move {
                assert!(matches!(launch.start, FakeStart::Guard(_)));
                assert_eq!(launch.env["OPTIO_CODEX_RUN"], "run-1");
                let mut listener = launch.listen(socket);
                let mut signals = launch.catch_signals();
                loop {
                    tokio::select! {
                        mut client = listener.accept() => {
                            let mut word = [0; 4];
                            client.read_exact(&mut word).await.unwrap();
                            launch.host.put_file(&auth, word.to_vec());
                            client.write_all(b"done").await.unwrap();
                        }
                        signal = signals.next() => {
                            assert_eq!(signal, Signal::Term);
                            return ExitStatus::Code(0);
                        }
                    }
                }
            }
        }
    });
    assert!(matches!(host.dial(&socket).await.map(drop), Err(HostError::NotListening { .. })));
    host.guard_start(&dir, under_lease(&dir)).await.unwrap();
    for word in [b"one.", b"two."] {
        // A restarted service has a host of its own, and finds the same machine.
        let host = host.clone();
        let mut client = host.dial(&socket).await.unwrap();
        client.write_all(word).await.unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).await.unwrap();
        assert_eq!((said.as_str(), host.file(&auth).unwrap().as_ref()), ("done", word.as_slice()));
    }
    assert_eq!(host.files(dir.path()), [auth]);
    assert!(host.guard_signal(&dir, Signal::Term).await.unwrap());
    assert!(host.guard_gone(&dir, Duration::from_secs(5)).await.unwrap());
    assert!(matches!(host.dial(&socket).await.map(drop), Err(HostError::NotListening { .. })));
    host.cleanup(&dir).await.unwrap();
    assert_eq!(host.guard_state(&dir).await.unwrap(), AgentState::Absent);
}

#[tokio::test]
async fn a_panic_of_a_fake_program_is_a_crash_to_others_and_seen_in_the_trace() {
    let host = FakeHost::new();
    host.on_program(|_| async { panic!("the test's own mistake") });
    let output = host.run(Command::new(["codex"])).await.unwrap();
    assert_eq!(output.status, ExitStatus::Signal(6));
    assert!(host.trace().iter().any(|line| line.contains("panicked")));
}

#[tokio::test]
async fn what_was_not_set_up_is_missing() {
    let host = FakeHost::new();
    let dir = task(&host).await;
    assert!(matches!(host.run(Command::new(["x"])).await, Err(HostError::Program { .. })));
    assert!(matches!(host.find_codex(None).await, Err(HostError::Program { .. })));
    let codex = CodexBinary { path: "/bin/codex".into(), version: "0.142.5".into(), can_listen: true };
    host.codex(codex.clone());
    assert_eq!(host.find_codex(None).await.unwrap(), codex);
    host.put_link(&dir.workdir().join("link"), Path::new("/etc"));
    assert_eq!(host.link_target(&dir.workdir().join("link")).unwrap(), Path::new("/etc"));
    assert_eq!(host.file(&dir.workdir().join("link")), None);
}
