//! Programs and connections.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{PATIENCE, script, sh, task};
use crate::{Command, Dial, ExitStatus, Host, HostError, OUTPUT_LIMIT, Signal, Spawned};

pub async fn a_failing_program_is_a_result(host: &dyn Host) {
    let output = host.run(sh(script::FAIL)).await.unwrap();
    assert_eq!(output.status, ExitStatus::Code(7));
    assert!(!output.success());
}

pub async fn a_signal_is_told_from_an_exit_code(host: &dyn Host) {
    assert_eq!(host.run(sh(script::DIE)).await.unwrap().status, ExitStatus::Signal(15));
}

pub async fn input_output_errors_and_environment_are_passed(host: &dyn Host) {
    let mut command = sh(script::COPY);
    command.stdin = Some("what goes in".into());
    command.env.add.insert("WORD".into(), "a 'quoted'\n$word".into());
    let output = host.run(command).await.unwrap();
    assert!(output.success());
    assert_eq!(output.stdout, "what goes in");
    assert_eq!(output.stderr, "a 'quoted'\n$word");
}

pub async fn a_program_without_input_reads_its_end(host: &dyn Host) {
    let output = host.run(sh(script::COPY)).await.unwrap();
    assert!(output.success());
    assert!(output.stdout.is_empty());
}

pub async fn a_program_over_its_limit_is_timed_out(host: &dyn Host) {
    let limit = Duration::from_millis(100);
    let answer = host.run(Command { limit, ..sh(script::SLEEP) }).await;
    match answer {
        Err(HostError::TimedOut { limit: told, .. }) => assert_eq!(told, limit),
        other => panic!("{other:?}"),
    }
}

pub async fn the_last_output_is_kept(host: &dyn Host) {
    let output = host.run(sh(script::FLOOD)).await.unwrap();
    assert_eq!(output.stdout.len(), OUTPUT_LIMIT);
    assert!(output.stdout.ends_with(b"xend"));
}

pub async fn a_program_runs_where_it_is_told(host: &dyn Host) {
    let dir = task(host).await;
    let command = Command { cwd: Some(dir.workdir()), ..sh(script::WHERE) };
    assert_eq!(host.run(command).await.unwrap().stdout, format!("{}\n", dir.workdir().display()));
    let home = host.home().await.unwrap();
    assert_eq!(host.run(sh(script::WHERE)).await.unwrap().stdout, format!("{}\n", home.display()));
}

pub async fn a_spawned_program_talks_through_its_pipes(host: &dyn Host) {
    let mut command = sh(script::COPY);
    command.env.add.insert("WORD".into(), "aside".into());
    let Spawned { mut stdin, mut stdout, mut stderr, mut process } = host.spawn(command).await.unwrap();
    let mut heard = [0; 4];
    for word in [b"ping", b"pong"] {
        stdin.write_all(word).await.unwrap();
        stdin.flush().await.unwrap();
        tokio::time::timeout(PATIENCE, stdout.read_exact(&mut heard)).await.unwrap().unwrap();
        assert_eq!(&heard, word);
    }
    drop(stdin);
    let mut aside = String::new();
    tokio::time::timeout(PATIENCE, stderr.read_to_string(&mut aside)).await.unwrap().unwrap();
    assert_eq!(aside, "aside");
    assert_eq!(process.wait().await.unwrap(), ExitStatus::Code(0));
}

pub async fn a_spawned_program_can_be_signalled_and_waited_for_twice(host: &dyn Host) {
    let mut first = host.spawn(sh(script::SLEEP)).await.unwrap().process;
    let mut second = host.spawn(sh(script::SLEEP)).await.unwrap();
    assert_ne!(first.identity(), second.process.identity());
    first.signal(Signal::Term).await.unwrap();
    for _ in 0..2 {
        let status = tokio::time::timeout(PATIENCE, first.wait()).await.unwrap().unwrap();
        assert_eq!(status, ExitStatus::Signal(15));
    }
    // Its group is gone, and that is no error.
    first.signal(Signal::Kill).await.unwrap();
    let running = tokio::time::timeout(Duration::from_millis(50), second.process.wait()).await;
    assert!(running.is_err(), "the signal reached the wrong program");
    second.process.signal(Signal::Kill).await.unwrap();
    assert_eq!(second.process.wait().await.unwrap(), ExitStatus::Signal(9));
}

pub async fn a_dropped_process_is_killed(host: &dyn Host) {
    let Spawned { stdin: _stdin, mut stdout, stderr: _stderr, process } =
        host.spawn(sh(script::STUBBORN)).await.unwrap();
    let mut ready = [0; 6];
    tokio::time::timeout(PATIENCE, stdout.read_exact(&mut ready)).await.unwrap().unwrap();
    drop(process);
    // The pipe ends when its last writer is gone.
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, stdout.read_to_end(&mut rest)).await.unwrap().unwrap();
}

pub async fn a_command_without_words_is_refused(host: &dyn Host) {
    for argv in [vec![], vec![""]] {
        let answer = host.run(Command::new(argv.clone())).await;
        assert!(matches!(answer, Err(HostError::Refused { .. })), "{argv:?}: {answer:?}");
    }
}

pub async fn dialling_where_nothing_listens_says_so(host: &dyn Host) {
    let dir = task(host).await;
    // Port 1 (tcpmux) has had no listener in decades.
    for target in [Dial::Unix(host.socket_path(&dir)), Dial::Loopback(1)] {
        match host.dial(&target).await {
            Err(HostError::NotListening { .. }) => {}
            Err(other) => panic!("{target:?}: {other}"),
            Ok(_) => panic!("{target:?} answers"),
        }
    }
}
