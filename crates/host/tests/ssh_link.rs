//! The way to a machine, against a real sshd: what SSH makes of programs, and what becomes of both when a way breaks.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod sshd;

use std::sync::Arc;
use std::time::{Duration, Instant};

use optio_host::ssh::SshTarget;
use optio_host::{
    Command, Dial, EnvPlan, ExitStatus, Host, HostError, Pty, Reach, Signal, Size, Spawned, SshHost,
};
use sshd::{PATIENCE, Sshd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn sh(script: &str) -> Command {
    Command::new(["sh", "-c", script])
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

async fn until(what: &str, mut ask: impl FnMut() -> bool) {
    let asking = async {
        while !ask() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(what, asking).await;
}

fn alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat[stat.rfind(')').unwrap() + 1..].trim_start().chars().next();
    state != Some('Z')
}

async fn goes_down(host: &SshHost) -> (String, String) {
    let mut reach = host.reach();
    let down =
        soon("the break is noticed", reach.wait_for(|reach| matches!(reach, Reach::Down { .. }))).await;
    let Reach::Down { code, why, .. } = &*down.unwrap() else { unreachable!() };
    ((*code).to_owned(), why.clone())
}

// ---- programs ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_write_to_a_program_that_has_ended_fails_soon() {
    let Some(server) = Sshd::start() else { return };
    let host = server.host();
    let Spawned { mut stdin, process: mut ended, stdout: _o, stderr: _e } =
        host.spawn(sh("exit 3")).await.unwrap();
    let writing = async {
        let chunk = vec![0; 1 << 20];
        loop {
            if stdin.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    soon("the write fails", writing).await;
    assert_eq!(ended.wait().await.unwrap(), ExitStatus::Code(3));
}

#[tokio::test]
async fn a_write_on_a_connection_that_is_killed_fails_soon_and_its_program_is_lost_and_not_a_success() {
    let Some(server) = Sshd::start() else { return };
    let host = server.host();
    let Spawned { mut stdin, mut stdout, mut process, stderr: _e } =
        host.spawn(sh("exec sleep 60")).await.unwrap();
    let pid = process.identity().pid;
    let writing = tokio::spawn(async move {
        let chunk = vec![0; 1 << 20];
        while stdin.write_all(&chunk).await.is_ok() {}
    });
    server.signal_connections(rustix::process::Signal::KILL);
    soon("the write fails", writing).await.unwrap();
    match soon("the program is lost", process.wait()).await {
        Err(HostError::Unreachable { .. }) => {}
        other => panic!("{other:?}"),
    }
    let mut rest = Vec::new();
    assert!(
        soon("the output fails", stdout.read_to_end(&mut rest)).await.is_err(),
        "a cut looks like an end"
    );
    let (code, _) = goes_down(&host).await;
    assert_eq!(code, "host_unreachable");

    // Its owner lets it go while there is no way to it; it is killed when there is one again.
    assert!(alive(pid));
    drop(process);
    assert!(alive(pid));
    host.connect().await.unwrap();
    assert_eq!(*host.reach().borrow(), Reach::Up);
    until("the program is killed", || !alive(pid)).await;
}

#[tokio::test]
async fn fifty_programs_one_after_another_and_forty_at_once_share_ten_sessions() {
    let Some(server) = Sshd::start() else { return };
    let host = Arc::new(server.host());
    for _ in 0..50 {
        assert!(host.run(sh("exit 0")).await.unwrap().success());
    }
    let many: Vec<_> = (0..40)
        .map(|n| {
            let host = host.clone();
            tokio::spawn(async move { host.run(sh(&format!("sleep 0.1; echo {n}"))).await })
        })
        .collect();
    for (n, one) in many.into_iter().enumerate() {
        assert_eq!(one.await.unwrap().unwrap().stdout, format!("{n}\n"));
    }
    assert!(!server.log().contains("no more sessions"), "more were asked for than there are");
}

#[tokio::test]
async fn a_server_with_fewer_sessions_than_we_were_told_makes_programs_wait() {
    let Some(server) = Sshd::with("MaxSessions 3") else { return };
    let host = Arc::new(server.host());
    let many: Vec<_> = (0..40)
        .map(|n| {
            let host = host.clone();
            tokio::spawn(async move { host.run(sh(&format!("sleep 0.1; echo {n}"))).await })
        })
        .collect();
    for (n, one) in many.into_iter().enumerate() {
        assert_eq!(one.await.unwrap().unwrap().stdout, format!("{n}\n"));
    }
    assert!(server.log().contains("no more sessions"), "the server did not refuse any");
}

#[tokio::test]
async fn agents_on_pipes_leave_room_for_questions() {
    let Some(server) = Sshd::start() else { return };
    let host = Arc::new(server.host());
    let mut agents = Vec::new();
    for _ in 0..6 {
        agents.push(host.spawn(sh("exec sleep 60")).await.unwrap());
    }
    let waiting = tokio::spawn({
        let host = host.clone();
        async move { host.spawn(sh("exec sleep 60")).await.map(drop) }
    });
    for _ in 0..10 {
        assert!(soon("a question is answered", host.run(sh("exit 0"))).await.unwrap().success());
    }
    assert!(!waiting.is_finished(), "seven agents have sessions, and nothing is left for the others");
    agents.pop();
    soon("its turn comes", waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_that_nobody_reads_does_not_stall_others_and_ends_when_it_is_too_much() {
    let Some(server) = Sshd::start() else { return };
    let host = server.host();
    let Spawned { mut stdout, mut process, stdin: _i, stderr: _e } =
        host.spawn(sh("exec cat /dev/zero")).await.unwrap();
    let pid = process.identity().pid;
    for _ in 0..20 {
        assert!(soon("a question is answered", host.run(sh("exit 0"))).await.unwrap().success());
    }
    let error = soon("it is ended", process.wait()).await.unwrap_err().to_string();
    assert!(error.contains("not read"), "{error}");
    let mut sum = 0;
    let mut chunk = vec![0; 1 << 20];
    let error = loop {
        match soon("what was kept is read", stdout.read(&mut chunk)).await {
            Ok(0) => panic!("the cut looks like an end"),
            Ok(len) => sum += len,
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("not read"), "{error}");
    assert!(sum <= 32 << 20, "{sum} bytes were kept");
    drop(process);
    until("the program is killed", || !alive(pid)).await;
    assert!(host.run(sh("exit 0")).await.unwrap().success());
}

#[tokio::test]
async fn large_input_and_output_are_whole() {
    let Some(server) = Sshd::start() else { return };
    let host = server.host();
    let Spawned { mut stdin, mut stdout, mut process, stderr: _e } =
        host.spawn(sh("exec cat")).await.unwrap();
    let sent: Vec<u8> = (0u32..10 << 20).flat_map(|n| n.to_le_bytes()).collect();
    let copy = sent.clone();
    let writing = tokio::spawn(async move {
        for chunk in copy.chunks(1_000_003) {
            stdin.write_all(chunk).await.unwrap();
        }
    });
    let mut got = Vec::new();
    tokio::time::timeout(Duration::from_secs(60), stdout.read_to_end(&mut got)).await.unwrap().unwrap();
    writing.await.unwrap();
    assert!(got == sent, "{} of {} bytes, or others", got.len(), sent.len());
    assert_eq!(process.wait().await.unwrap(), ExitStatus::Code(0));
}

#[tokio::test]
async fn a_missing_directory_or_program_is_told_and_nothing_runs() {
    let Some(server) = Sshd::start() else { return };
    let host = server.host();
    let nowhere = server.dir.path().join("no such place");
    let made = server.dir.path().join("made");
    let touch = Command { cwd: Some(nowhere.clone()), ..Command::new(["touch", made.to_str().unwrap()]) };
    match host.run(touch).await {
        Err(HostError::NotFound { path }) => assert_eq!(path, nowhere.to_str().unwrap()),
        other => panic!("{other:?}"),
    }
    assert!(!made.exists());
    for name in ["no-such-program", "/no/such/program", "/etc/passwd", "/etc", "cd"] {
        match host.run(Command::new([name])).await {
            Err(HostError::Program { program, .. }) => assert_eq!(program, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_environment_is_the_logins_without_what_is_removed_and_with_what_is_added() {
    let Some(server) = Sshd::with("SetEnv SECRET_ONE=1 SECRET_TWO=2 STAYS=3") else { return };
    let host = server.host();
    let env = EnvPlan {
        remove: vec!["SECRET_*".into()],
        add: [("SECRET_TWO".to_owned(), "new 'value'\nof two lines".to_owned())].into(),
        path_prefix: vec!["/first place".into()],
    };
    let mut command = Command { env, ..Command::new(["env", "-0"]) };
    let seen = host.run(command.clone()).await.unwrap().stdout;
    let text = String::from_utf8(seen.to_vec()).unwrap();
    let vars: Vec<_> = text.split('\0').collect();
    assert!(!text.contains("SECRET_ONE"), "{vars:?}");
    assert!(vars.contains(&"SECRET_TWO=new 'value'\nof two lines") && vars.contains(&"STAYS=3"), "{vars:?}");
    assert!(vars.iter().any(|var| var.starts_with("PATH=/first place:")), "{vars:?}");
    assert!(!text.contains("_og_"), "our own variables leak: {vars:?}");
    command.env.add.insert("_og_1".into(), "x".into());
    assert!(matches!(host.run(command).await, Err(HostError::Refused { .. })));
}

#[tokio::test]
async fn words_of_any_kind_arrive_as_they_are() {
    let Some(server) = Sshd::start() else { return };
    let words = ["", " ", "it's", "$HOME", "`id`", "a\nb\n", "*", "-n", "\\", "ü€", "\u{1b}[1m", "!!"];
    let argv = ["printf", "%s\\0"].into_iter().chain(words);
    let output = server.host().run(Command::new(argv)).await.unwrap();
    let expected: String = words.iter().flat_map(|word| [word, "\0"]).collect();
    assert_eq!(output.stdout, expected);
}

#[tokio::test]
async fn values_and_input_are_in_no_argument_and_no_exported_environment_but_the_programs_own() {
    let Some(server) = Sshd::start() else { return };
    let host = Arc::new(server.host());
    let secret = format!("secret{}", uuid::Uuid::new_v4().simple());
    let scanner = {
        let secret = secret.clone();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut found = Vec::new();
            let mut rounds = 0;
            while !told.load(std::sync::atomic::Ordering::Relaxed) {
                rounds += 1;
                for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                    let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
                    let env = std::fs::read(entry.path().join("environ")).unwrap_or_default();
                    let has =
                        |bytes: &[u8]| bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
                    if has(&line) {
                        found.push(String::from_utf8_lossy(&line).into_owned());
                    }
                    // The program that it was given to has it, and nobody else.
                    if has(&env) && !line.starts_with(b"sleep\0") {
                        found.push(format!("environment of {}", String::from_utf8_lossy(&line)));
                    }
                }
            }
            (rounds, found)
        });
        (stop, thread)
    };
    let add = [("TOKEN".to_owned(), secret.clone())].into();
    let command = Command {
        env: EnvPlan { add, ..EnvPlan::default() },
        stdin: Some(secret.clone().into()),
        ..Command::new(["sleep", "0.2"])
    };
    for _ in 0..10 {
        assert!(host.run(command.clone()).await.unwrap().success());
    }
    scanner.0.store(true, std::sync::atomic::Ordering::Relaxed);
    let (rounds, found) = scanner.1.join().unwrap();
    assert!(rounds > 10, "it was hardly looked");
    assert_eq!(found, Vec::<String>::new());
}

#[tokio::test]
async fn a_call_that_is_dropped_kills_its_whole_group() {
    let Some(server) = Sshd::start() else { return };
    let host = Arc::new(server.host());
    let note = server.dir.path().join("pids");
    let script = format!("sleep 61 & echo $$ $! >{}.new; mv {0}.new {0}; wait", note.display());
    let running = tokio::spawn({
        let host = host.clone();
        async move { host.run(sh(&script)).await }
    });
    until("it runs", || note.exists()).await;
    let pids = std::fs::read_to_string(&note).unwrap();
    let pids: Vec<u32> = pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| alive(*pid)));
    running.abort();
    until("all of it is killed", || !pids.iter().any(|pid| alive(*pid))).await;
}

#[tokio::test]
async fn what_a_spawned_program_leaves_in_its_group_ends_with_it() {
    let Some(server) = Sshd::start() else { return };
    let host = server.host();
    let mut spawned = host.spawn(sh("sleep 62 >/dev/null 2>&1 </dev/null & echo $!")).await.unwrap();
    let mut left = String::new();
    soon("it says whom it leaves", spawned.stdout.read_to_string(&mut left)).await.unwrap();
    let left: u32 = left.trim().parse().unwrap();
    assert_eq!(spawned.process.wait().await.unwrap(), ExitStatus::Code(0));
    until("that is killed", || !alive(left)).await;
}

// ---- shells ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn greetings_on_both_streams_are_not_the_programs() {
    for force in [
        r#"sh -c 'echo hello; echo you >&2; printf "no end"; exec sh -c "$SSH_ORIGINAL_COMMAND"'"#,
        // A shell that stays in front: the program gets a group of its own all the same.
        r#"sh -c 'echo hello; echo you >&2; sh -c "$SSH_ORIGINAL_COMMAND"; exit $?'"#,
    ] {
        let Some(server) = Sshd::with(&format!("ForceCommand {force}")) else { return };
        let host = server.host();
        let output = host.run(sh("echo out; echo err >&2; exit 5")).await.unwrap();
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
        assert_eq!(output.status, ExitStatus::Code(5));
        let Spawned { mut process, stdout: mut out, stdin: _i, stderr: _e } =
            host.spawn(sh("trap '' TERM; echo on; while :; do sleep 1; done")).await.unwrap();
        let mut on = [0; 3];
        soon("it runs", out.read_exact(&mut on)).await.unwrap();
        let pid = process.identity().pid;
        process.signal(Signal::Kill).await.unwrap();
        until("it is killed", || !alive(pid)).await;
        // The shell in front of it has seen a signal, or passes it on as a code.
        let status = soon("its end is known", process.wait()).await.unwrap();
        assert!([ExitStatus::Signal(9), ExitStatus::Code(137)].contains(&status), "{status:?}");
    }
}

#[tokio::test]
async fn a_login_that_runs_nothing_says_what_it_said_instead() {
    for (force, said) in [
        ("/bin/false", "answers with nothing"),
        (
            "sh -c 'echo This account is currently not available.; exit 1'",
            "This account is currently not available.",
        ),
        ("cat", "(what we say to it)"),
        ("yes", "y y y"),
    ] {
        let Some(server) = Sshd::with(&format!("ForceCommand {force}")) else { return };
        let mut command = sh("exit 0");
        command.env.add.insert("TOKEN".into(), "a secret".into());
        match tokio::time::timeout(2 * PATIENCE, server.host().run(command)).await.unwrap() {
            Err(error @ HostError::ShellUnusable { .. }) => {
                assert!(error.to_string().contains(said), "{force}: {error}");
                assert!(!error.to_string().contains("a secret"), "{force}: {error}");
                assert_eq!(error.reach_code(), Some("host_shell_unusable"));
            }
            other => panic!("{force}: {other:?}"),
        }
    }
}

// ---- terminals ---------------------------------------------------------------------------------------------------

/// Reads until the text was seen.
async fn seen(output: &mut (impl tokio::io::AsyncRead + Unpin), wanted: &str) -> String {
    let mut text = Vec::new();
    let reading = async {
        let mut chunk = [0; 1024];
        while !String::from_utf8_lossy(&text).contains(wanted) {
            let len = output.read(&mut chunk).await.unwrap();
            assert!(len > 0, "it ends with {:?}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&chunk[..len]);
        }
    };
    if tokio::time::timeout(PATIENCE, reading).await.is_err() {
        panic!("{wanted:?} is not seen");
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn a_terminal_has_its_size_is_usual_echoes_nothing_of_ours_and_ends_with_its_viewer() {
    let Some(server) = Sshd::start() else { return };
    let host = server.host();
    let script = "trap 'stty size' WINCH; stty size; stty -a | tr ';' '\\n' | grep -o ' icanon\\| echo '; echo pid=$$.; \
                  while :; do read -r l && echo \"<$l>\"; done";
    let mut command = sh(script);
    // Longer than a line of a terminal may be.
    command.env.add.insert("LONG".into(), "x".repeat(20_000));
    let Pty { mut output, mut input } = host.open_pty(command, Size { columns: 91, rows: 33 }).await.unwrap();
    let begin = seen(&mut output, ".\r\n").await;
    assert!(begin.starts_with("33 91\r\n"), "{begin:?}");
    assert!(begin.contains("icanon") && begin.contains("echo") && !begin.contains("xxx"), "{begin:?}");
    let pid: u32 = begin.split("pid=").nth(1).unwrap().split('.').next().unwrap().parse().unwrap();
    if input.write_all(b"typed\n").await.is_err() {
        let mut rest = String::new();
        let _ = output.read_to_string(&mut rest).await;
        panic!("{begin:?} {rest:?} {}", server.log());
    }
    seen(&mut output, "<typed>").await;
    input.resize(Size { columns: 120, rows: 40 }).unwrap();
    // The shell's trap runs when it has read the next line.
    tokio::time::sleep(Duration::from_millis(100)).await;
    input.write_all(b"again\n").await.unwrap();
    seen(&mut output, "40 120").await;
    assert!(alive(pid));
    drop(input);
    until("the program is gone", || !alive(pid)).await;
}

// ---- dialling ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_socket_and_a_port_of_the_machine_are_reached_and_closed_again() {
    let Some(server) = Sshd::start() else { return };
    let host = server.host();
    let path = server.dir.path().join("a socket");
    let unix = tokio::net::UnixListener::bind(&path).unwrap();
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = tcp.local_addr().unwrap().port();

    let mut ours = host.dial(&Dial::Unix(path.clone())).await.unwrap();
    let (mut theirs, _) = unix.accept().await.unwrap();
    ours.write_all(b"ping").await.unwrap();
    let mut heard = [0; 4];
    soon("it is heard", theirs.read_exact(&mut heard)).await.unwrap();
    theirs.write_all(b"pong").await.unwrap();
    soon("so is the answer", ours.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"pong");
    drop(ours);
    let mut rest = Vec::new();
    soon("the end is seen", theirs.read_to_end(&mut rest)).await.unwrap();

    let ours = host.dial(&Dial::Loopback(port)).await.unwrap();
    let (theirs, _) = tcp.accept().await.unwrap();
    drop((ours, theirs));

    std::fs::remove_file(&path).unwrap();
    drop(unix);
    for target in [Dial::Unix(path), Dial::Loopback(1)] {
        match host.dial(&target).await {
            Err(HostError::NotListening { .. }) => {}
            Err(other) => panic!("{target:?}: {other}"),
            Ok(_) => panic!("{target:?} answers"),
        }
    }
}

#[tokio::test]
async fn a_server_that_forbids_forwarding_is_told_by_its_setting() {
    let Some(server) = Sshd::with("AllowStreamLocalForwarding no\nAllowTcpForwarding no") else { return };
    let path = server.dir.path().join("socket");
    let _unix = tokio::net::UnixListener::bind(&path).unwrap();
    let host = server.host();
    for (target, setting) in
        [(Dial::Unix(path), "AllowStreamLocalForwarding"), (Dial::Loopback(1), "AllowTcpForwarding")]
    {
        let error = host.dial(&target).await.err().unwrap().to_string();
        assert!(error.contains(setting), "{error}");
    }
}

// ---- breaks ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn many_callers_share_one_attempt_and_its_failure() {
    let Some(server) = Sshd::start() else { return };
    let host = Arc::new(server.host());
    assert_eq!(*host.reach().borrow(), Reach::Untried);
    let all = || {
        let calls = (0..40).map(|_| {
            let host = host.clone();
            async move { host.connect().await }
        });
        futures_util::future::join_all(calls)
    };
    assert!(all().await.iter().all(Result::is_ok));
    assert_eq!(server.log().matches("Connection from").count(), 1);
    assert_eq!(*host.reach().borrow(), Reach::Up);

    let port = server.port;
    drop(server);
    goes_down(&host).await;
    let attempts = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let counting = std::thread::spawn(move || {
        // What answers there speaks no SSH.
        attempts.set_nonblocking(true).unwrap();
        let (begun, mut count) = (Instant::now(), 0);
        while begun.elapsed() < Duration::from_millis(900) {
            if let Ok((stream, _)) = attempts.accept() {
                count += 1;
                drop(stream);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        count
    });
    for answer in all().await {
        assert!(matches!(answer, Err(HostError::Unreachable { .. })), "{answer:?}");
    }
    assert_eq!(counting.join().unwrap(), 1);
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_anew_and_down_begins_with_the_break() {
    let Some(server) = Sshd::start() else { return };
    let host = server.host();
    host.connect().await.unwrap();
    server.signal_connections(rustix::process::Signal::KILL);
    goes_down(&host).await;
    let Reach::Down { since, .. } = host.reach().borrow().clone() else { panic!() };
    assert!(since.elapsed().unwrap() < Duration::from_secs(5));
    assert!(host.run(sh("exit 0")).await.unwrap().success());
    assert_eq!(*host.reach().borrow(), Reach::Up);
}

#[tokio::test]
async fn a_machine_that_freezes_is_found_out_and_nothing_hangs() {
    let Some(server) = Sshd::start() else { return };
    freezes(&server, server.target()).await;
}

#[tokio::test]
async fn a_machine_that_freezes_behind_a_jump_host_is_found_out_and_nothing_hangs() {
    let (Some(jump), Some(server)) = (Sshd::start(), Sshd::start()) else { return };
    freezes(&server, SshTarget { jump: Some(Box::new(jump.target())), ..server.target() }).await;
}

async fn freezes(server: &Sshd, target: SshTarget) {
    let host = server.host_at(target);
    let mut spawned = host.spawn(sh("exec cat")).await.unwrap();
    // So many that the system's buffers are full, and russh itself hangs in a write.
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(host.spawn(sh("exec cat")).await.unwrap());
    }
    let begun = Instant::now();
    server.signal_connections(rustix::process::Signal::STOP);
    let inputs = others.iter_mut().map(|other| &mut other.stdin).chain([&mut spawned.stdin]);
    let writing = futures_util::future::join_all(inputs.map(|input| async move {
        let chunk = vec![0; 1 << 20];
        while input.write_all(&chunk).await.is_ok() {}
    }));
    let limit = Duration::from_secs(30);
    let asking = host.run(sh("exit 0"));
    let lost = spawned.process.wait();
    let all = async { tokio::join!(writing, asking, lost) };
    let (_, asked, lost) = tokio::time::timeout(limit, all).await.expect("all of it ends");
    assert!(matches!(asked, Err(HostError::Unreachable { .. })), "{asked:?}");
    assert!(matches!(lost, Err(HostError::Unreachable { .. })), "{lost:?}");
    assert!(begun.elapsed() > Duration::from_secs(5), "it did not freeze");
    assert!(matches!(&*host.reach().borrow(), Reach::Down { .. }));
    assert!(host.run(sh("exit 0")).await.unwrap().success(), "a new connection is made");
}
