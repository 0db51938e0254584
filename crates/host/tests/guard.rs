//! The guard, by a real `sh` on this machine.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use optio_host::{
    AgentIdentity, AgentState, EnvPlan, ExitStatus, GuardSpec, Host, HostError, LocalHost, LocalHostConfig,
    Signal, Stage, TaskDir, TaskId,
};

/// Longer than any test takes: no heartbeat is needed.
const NEVER: Duration = Duration::from_secs(600);
/// Until something that must happen has happened.
const SOON: Duration = Duration::from_secs(10);

struct Room {
    host: LocalHost,
    dir: TaskDir,
    _roots: [tempfile::TempDir; 2],
}

impl Room {
    async fn new() -> Self {
        let tasks = tempfile::Builder::new().prefix("it's a \"$HOME\" room ").tempdir().unwrap();
        let sockets = tempfile::tempdir().unwrap();
        let host = LocalHost::new(LocalHostConfig {
            task_root: Some(tasks.path().join("tasks")),
            socket_root: Some(sockets.path().join("s")),
        })
        .unwrap();
        let dir = host.task_dir(&TaskId::new("one").unwrap());
        host.create(&dir).await.unwrap();
        Self { host, dir, _roots: [tasks, sockets] }
    }

    fn spec(&self, script: &str) -> GuardSpec {
        GuardSpec {
            argv: vec!["sh".into(), "-c".into(), script.into()],
            env: EnvPlan::default(),
            cwd: self.dir.workdir(),
            run_mark: format!("run-{}", uuid::Uuid::new_v4()),
            term_after: NEVER,
            kill_after: NEVER,
            stage: Stage::Headless,
        }
    }

    async fn start(&self, script: &str) -> AgentIdentity {
        self.host.guard_start(&self.dir, self.spec(script)).await.unwrap()
    }

    async fn start_with_limits(&self, script: &str, term: f64, kill: f64) -> AgentIdentity {
        let mut spec = self.spec(script);
        spec.term_after = Duration::from_secs_f64(term);
        spec.kill_after = Duration::from_secs_f64(kill);
        self.host.guard_start(&self.dir, spec).await.unwrap()
    }

    async fn state(&self) -> AgentState {
        self.host.guard_state(&self.dir).await.unwrap()
    }

    /// The end of the agent, which must come soon: its status, and whether the guard caused it.
    async fn end(&self) -> (ExitStatus, bool) {
        let mut end = None;
        until("the agent's end", async || {
            if let AgentState::Exited { status, by_guard, .. } = self.state().await {
                end = Some((status, by_guard));
            }
            end.is_some()
        })
        .await;
        end.unwrap()
    }

    fn guard_file(&self, name: &str) -> PathBuf {
        self.dir.path().join("guard").join(name)
    }

    fn watcher(&self) -> Option<AgentIdentity> {
        let text = std::fs::read_to_string(self.guard_file("watcher")).ok()?;
        let (pid, start_time) = text.trim().split_once(' ')?;
        Some(AgentIdentity { pid: pid.parse().ok()?, start_time: start_time.parse().ok()? })
    }

    fn workfile(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.dir.workdir().join(name)).ok()
    }

    fn pid_in(&self, name: &str) -> u32 {
        self.workfile(name).unwrap().trim().parse().unwrap()
    }

    async fn clean(self) {
        self.host.guard_kill_leftovers(&self.dir).await.unwrap();
        assert!(self.host.guard_gone(&self.dir, SOON).await.unwrap(), "a test leaves nothing behind");
    }
}

async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !check().await {
        assert!(start.elapsed() < SOON, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn its_files_are_private_and_the_agent_has_its_users_umask() {
    use std::os::unix::fs::PermissionsExt;
    let room = Room::new().await;
    room.start("umask >umask; env >env; echo said >&2").await;
    room.end().await;
    let ours =
        String::from_utf8(std::process::Command::new("sh").args(["-c", "umask"]).output().unwrap().stdout);
    assert_eq!(room.workfile("umask"), ours.ok());
    assert!(!room.workfile("env").unwrap().contains("UMASK"), "nothing of ours is handed down");
    let mut seen = 0;
    for entry in std::fs::read_dir(room.guard_file("")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.path());
        seen += 1;
    }
    assert!(seen > 4, "{seen}");
    room.clean().await;
}

/// State letter and start time from the process table.
fn look(pid: u32) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields[0].chars().next()?, fields[19].parse().ok()?))
}

fn is_dead(pid: u32) -> bool {
    look(pid).is_none_or(|(state, _)| matches!(state, 'Z' | 'X'))
}

fn lives(agent: AgentIdentity) -> bool {
    !is_dead(agent.pid) && look(agent.pid).is_some_and(|(_, start)| start == agent.start_time)
}

fn kill(pid: u32) {
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

#[tokio::test]
async fn the_exit_status_is_kept() {
    for (script, status) in [
        ("exit 0", ExitStatus::Code(0)),
        ("exit 3", ExitStatus::Code(3)),
        ("kill -TERM $$", ExitStatus::Signal(15)),
        ("kill -KILL $$", ExitStatus::Signal(9)),
    ] {
        let room = Room::new().await;
        let agent = room.start(script).await;
        assert_eq!(room.end().await, (status, false), "{script}");
        assert!(!lives(agent));
        room.clean().await;
    }
}

#[tokio::test]
async fn nothing_was_ever_started_is_absent_and_gone() {
    let room = Room::new().await;
    assert_eq!(room.state().await, AgentState::Absent);
    assert!(room.host.guard_gone(&room.dir, Duration::ZERO).await.unwrap());
    assert!(!room.host.guard_signal(&room.dir, Signal::Term).await.unwrap());
    assert_eq!(room.host.guard_kill_leftovers(&room.dir).await.unwrap(), 0);
    assert!(room.host.guard_stderr(&room.dir).await.unwrap().is_empty());
    room.host.guard_heartbeat(&room.dir).await.unwrap();
}

#[tokio::test]
async fn the_agent_leads_a_session_of_its_own_with_every_signal_at_its_default() {
    let room = Room::new().await;
    let agent =
        room.start("cat /proc/$$/stat > stat; cat /proc/self/status > status; echo > ready; sleep 60").await;
    until("the agent", async || room.workfile("ready").is_some()).await;
    let stat = room.workfile("stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let pid = agent.pid.to_string();
    assert_eq!((fields[2], fields[3]), (pid.as_str(), pid.as_str()), "group and session");
    let status = room.workfile("status").unwrap();
    let ignored = status.lines().find_map(|l| l.strip_prefix("SigIgn:")).unwrap().trim();
    let interrupt_and_quit = u64::from_str_radix(ignored, 16).unwrap() & 0b0110;
    assert_eq!(interrupt_and_quit, 0, "SIGINT and SIGQUIT are ignored: {ignored}");
    assert!(room.host.guard_signal(&room.dir, Signal::Int).await.unwrap());
    assert_eq!(room.end().await, (ExitStatus::Signal(2), false));
    assert!(!room.host.guard_signal(&room.dir, Signal::Int).await.unwrap(), "nothing is left to signal");
    room.clean().await;
}

#[tokio::test]
async fn a_stale_heartbeat_brings_sigterm_in_time() {
    let room = Room::new().await;
    let started = Instant::now();
    room.start_with_limits("trap 'exit 7' TERM; while :; do sleep 0.05; done", 1.5, 60.0).await;
    assert_eq!(room.end().await, (ExitStatus::Code(7), true));
    let elapsed = started.elapsed();
    assert!(elapsed > Duration::from_millis(700), "far too early: {elapsed:?}");
    assert!(elapsed < Duration::from_secs(3), "too late: {elapsed:?}");
    room.clean().await;
}

#[tokio::test]
async fn an_agent_that_ignores_sigterm_is_killed_with_what_it_started() {
    let room = Room::new().await;
    let script = "trap '' TERM; setsid sleep 300 & echo $! > child; while :; do sleep 0.05; done";
    room.start_with_limits(script, 0.6, 1.4).await;
    assert_eq!(room.end().await, (ExitStatus::Signal(9), true));
    let child = room.pid_in("child");
    until("the end of the agent's child", async || is_dead(child)).await;
    room.clean().await;
}

#[tokio::test]
async fn heartbeats_keep_the_agent_alive_and_their_end_ends_it() {
    let room = Room::new().await;
    let agent = room.start_with_limits("sleep 60", 1.0, 1.5).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        room.host.guard_heartbeat(&room.dir).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(room.state().await, AgentState::Running(agent));
    assert_eq!(room.end().await, (ExitStatus::Signal(15), true));
    room.clean().await;
}

#[tokio::test]
async fn a_killed_watcher_is_replaced_and_the_switch_still_works() {
    let room = Room::new().await;
    let agent = room.start_with_limits("sleep 60", 1.5, 2.0).await;
    let first = room.watcher().unwrap();
    kill(first.pid);
    until("another watcher", async || {
        room.host.guard_heartbeat(&room.dir).await.unwrap();
        room.watcher().is_some_and(|w| w != first && lives(w))
    })
    .await;
    assert_eq!(room.state().await, AgentState::Running(agent));
    assert_eq!(room.end().await, (ExitStatus::Signal(15), true), "the keeper still sees the status");
    room.clean().await;
}

#[tokio::test]
async fn with_keeper_and_watcher_killed_the_agent_lives_on_and_is_guarded_again() {
    let room = Room::new().await;
    let agent = room.start_with_limits("sleep 60", 1.5, 2.0).await;
    let first = room.watcher().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid)).unwrap();
    let keeper = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
    kill(keeper);
    kill(first.pid);
    until("another watcher", async || {
        room.host.guard_heartbeat(&room.dir).await.unwrap();
        room.watcher().is_some_and(|w| w != first && lives(w))
    })
    .await;
    assert!(lives(agent));
    assert_eq!(room.end().await, (ExitStatus::Unknown, true));
    room.clean().await;
}

#[tokio::test]
async fn a_process_that_was_given_the_agents_pid_is_never_signalled() {
    let room = Room::new().await;
    room.start("exit 0").await;
    room.end().await;
    let mut alien =
        tokio::process::Command::new("sleep").arg("60").process_group(0).kill_on_drop(true).spawn().unwrap();
    let pid = alien.id().unwrap();
    let (_, start) = look(pid).unwrap();
    std::fs::write(room.guard_file("agent"), format!("{pid} {}\n", start - 1)).unwrap();
    assert!(matches!(room.state().await, AgentState::Exited { .. }));
    for signal in [Signal::Int, Signal::Term, Signal::Kill] {
        assert!(!room.host.guard_signal(&room.dir, signal).await.unwrap());
    }
    assert!(room.host.guard_gone(&room.dir, Duration::ZERO).await.unwrap());
    assert_eq!(room.host.guard_kill_leftovers(&room.dir).await.unwrap(), 0);
    assert!(alien.try_wait().unwrap().is_none(), "it was signalled");
    alien.kill().await.unwrap();
    room.clean().await;
}

#[tokio::test]
async fn a_grandchild_that_left_the_session_is_seen_and_ended() {
    let room = Room::new().await;
    room.start("setsid sleep 300 & echo $! > child; exit 0").await;
    room.end().await;
    let child = room.pid_in("child");
    assert!(!room.host.guard_gone(&room.dir, Duration::from_millis(200)).await.unwrap());
    assert!(!is_dead(child));
    assert_eq!(room.host.guard_kill_leftovers(&room.dir).await.unwrap(), 1);
    assert!(room.host.guard_gone(&room.dir, SOON).await.unwrap());
    assert!(is_dead(child));
    room.clean().await;
}

#[tokio::test]
async fn a_child_without_the_mark_is_seen_and_ended_while_it_is_in_the_session() {
    let room = Room::new().await;
    room.start("env -i sleep 300 & echo $! > child; sleep 0.2; exit 0").await;
    room.end().await;
    let child = room.pid_in("child");
    assert!(!room.host.guard_gone(&room.dir, Duration::ZERO).await.unwrap());
    assert_eq!(room.host.guard_kill_leftovers(&room.dir).await.unwrap(), 1);
    assert!(room.host.guard_gone(&room.dir, SOON).await.unwrap());
    assert!(is_dead(child));
    room.clean().await;
}

#[tokio::test]
async fn a_mark_that_begins_like_another_is_another() {
    let (one, ten) = (Room::new().await, Room::new().await);
    let mut spec = one.spec("setsid sleep 300 & exit 0");
    spec.run_mark = format!("{}-1", spec.run_mark);
    let mut longer = ten.spec("sleep 300");
    longer.run_mark = format!("{}0", spec.run_mark);
    one.host.guard_start(&one.dir, spec).await.unwrap();
    let other = ten.host.guard_start(&ten.dir, longer).await.unwrap();
    one.end().await;
    assert_eq!(one.host.guard_kill_leftovers(&one.dir).await.unwrap(), 1);
    assert!(one.host.guard_gone(&one.dir, SOON).await.unwrap());
    assert_eq!(ten.state().await, AgentState::Running(other));
    one.clean().await;
    ten.clean().await;
}

#[tokio::test]
async fn the_environment_is_removed_added_and_prefixed_exactly() {
    let room = Room::new().await;
    let nasty = "a'b\"c $HOME `id` $(id) \\ * ? [x] \n second=line\n\ttab é";
    let inner = "env -0 > env; pwd > here; printf '%s\\n' \"$1\" > word; echo > ready";
    let mut spec = room.spec("");
    spec.argv = vec!["sh".into(), "-c".into(), inner.into(), "sh".into(), nasty.into()];
    spec.env = EnvPlan {
        remove: vec!["CARGO*".into(), "[H]OM?".into(), "NASTY_*".into()],
        add: BTreeMap::from([("NASTY_VALUE".into(), nasty.into()), ("EMPTY".into(), String::new())]),
        path_prefix: vec!["/opt/first place".into(), "/opt/it's".into()],
    };
    let mark = spec.run_mark.clone();
    room.host.guard_start(&room.dir, spec).await.unwrap();
    until("the agent", async || room.workfile("ready").is_some()).await;
    let text = room.workfile("env").unwrap();
    let env: BTreeMap<&str, &str> = text.split('\0').filter_map(|l| l.split_once('=')).collect();
    assert_eq!(env["NASTY_VALUE"], nasty, "an addition whose name matches a removal survives");
    assert_eq!(env["EMPTY"], "");
    assert_eq!(env["OPTIO_CODEX_RUN"], mark);
    assert_eq!(env["PATH"], format!("/opt/first place:/opt/it's:{}", std::env::var("PATH").unwrap()));
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some(), "outside of cargo this test means nothing");
    assert!(!env.keys().any(|name| name.starts_with("CARGO") || *name == "HOME"), "{:?}", env.keys());
    assert!(!env.keys().any(|name| name.starts_with("_og_")), "{:?}", env.keys());
    assert_eq!(Path::new(room.workfile("here").unwrap().trim_end()), room.dir.workdir());
    assert_eq!(room.workfile("word").unwrap(), format!("{nasty}\n"));
    assert!(!room.guard_file("launch").exists(), "values stay on disk");
    room.end().await;
    room.clean().await;
}

#[tokio::test]
async fn removing_everything_still_starts_the_agent() {
    let room = Room::new().await;
    let mut spec = room.spec("");
    spec.argv = vec!["/bin/sh".into(), "-c".into(), "/usr/bin/env -0 > env; echo > ready".into()];
    spec.env.remove = vec!["*".into()];
    room.host.guard_start(&room.dir, spec).await.unwrap();
    until("the agent", async || room.workfile("ready").is_some()).await;
    let text = room.workfile("env").unwrap();
    let names: Vec<&str> = text.split('\0').filter_map(|l| l.split_once('=')).map(|(name, _)| name).collect();
    // The other three are the shells' own.
    assert!(names.iter().all(|n| ["OPTIO_CODEX_RUN", "PWD", "OLDPWD", "_"].contains(n)), "{names:?}");
    room.end().await;
    room.clean().await;
}

#[tokio::test]
async fn a_flood_on_standard_error_is_cut_and_its_end_is_kept() {
    let room = Room::new().await;
    let script = "i=0; while [ $i -lt 40 ]; do head -c 100000 /dev/zero | tr '\\0' x >&2; i=$((i+1)); done
        echo last words >&2; sleep 60";
    room.start_with_limits(script, 4.0, 500.0).await;
    let log = room.guard_file("stderr");
    until("the last words", async || {
        room.host.guard_stderr(&room.dir).await.unwrap().ends_with(b"last words\n")
    })
    .await;
    until("the cut", async || {
        room.host.guard_heartbeat(&room.dir).await.unwrap();
        std::fs::metadata(&log).unwrap().len() <= 4 * optio_host::guard::STDERR_TAIL as u64
    })
    .await;
    let tail = room.host.guard_stderr(&room.dir).await.unwrap();
    assert!(tail.len() <= optio_host::guard::STDERR_TAIL);
    assert!(tail.ends_with(b"xxx\nlast words\n") || tail.ends_with(b"xlast words\n"));
    room.clean().await;
}

#[tokio::test]
async fn a_missing_program_or_directory_is_said_clearly_and_leaves_no_agent() {
    let room = Room::new().await;
    for argv0 in ["no-such-program-at-all", "/no/such/program", "/etc/passwd", "/etc"] {
        let mut spec = room.spec("");
        spec.argv = vec![argv0.into()];
        let error = room.host.guard_start(&room.dir, spec).await.unwrap_err();
        assert!(matches!(&error, HostError::Program { program, .. } if program == argv0), "{error}");
        assert!(!room.guard_file("launch").exists());
        assert_eq!(room.state().await, AgentState::Absent);
    }
    let mut spec = room.spec("exit 0");
    spec.cwd = room.dir.path().join("no such directory");
    let error = room.host.guard_start(&room.dir, spec).await.unwrap_err().to_string();
    assert!(error.contains("cannot enter the directory") && error.contains("no such directory"), "{error}");
    room.clean().await;
}

#[tokio::test]
async fn what_a_shell_would_misread_is_refused() {
    let room = Room::new().await;
    let refused = async |change: &dyn Fn(&mut GuardSpec)| {
        let mut spec = room.spec("exit 0");
        change(&mut spec);
        let result = room.host.guard_start(&room.dir, spec).await;
        assert!(matches!(result, Err(HostError::Refused { .. })), "{result:?}");
    };
    refused(&|spec| spec.env.remove = vec!["A;B".into()]).await;
    refused(&|spec| spec.env.add = BTreeMap::from([("A B".into(), String::new())])).await;
    refused(&|spec| spec.env.add = BTreeMap::from([("A".into(), "\0".into())])).await;
    refused(&|spec| spec.env.path_prefix = vec!["/a:/b".into()]).await;
    refused(&|spec| spec.run_mark = "a b".into()).await;
    refused(&|spec| spec.argv.clear()).await;
    refused(&|spec| spec.cwd = "relative".into()).await;
    refused(&|spec| spec.kill_after = Duration::ZERO).await;
}

#[tokio::test]
async fn a_second_start_is_refused_while_the_agent_lives_and_accepted_afterwards() {
    let room = Room::new().await;
    let agent = room.start("sleep 60").await;
    let error = room.host.guard_start(&room.dir, room.spec("exit 0")).await.unwrap_err();
    assert!(matches!(error, HostError::AlreadyRunning { pid, .. } if pid == agent.pid), "{error}");
    assert_eq!(room.state().await, AgentState::Running(agent));
    assert!(room.host.guard_signal(&room.dir, Signal::Kill).await.unwrap());
    assert_eq!(room.end().await, (ExitStatus::Signal(9), false));
    let next = room.start("exit 5").await;
    assert_ne!(next, agent);
    assert_eq!(room.end().await, (ExitStatus::Code(5), false));
    room.clean().await;
}

#[tokio::test]
async fn two_task_directories_never_affect_each_other() {
    let (one, two) = (Room::new().await, Room::new().await);
    let quick = one.start_with_limits("sleep 60", 0.5, 1.0).await;
    let slow = two.start("sleep 60").await;
    assert_eq!(one.end().await, (ExitStatus::Signal(15), true));
    one.host.guard_kill_leftovers(&one.dir).await.unwrap();
    one.host.guard_signal(&one.dir, Signal::Kill).await.unwrap();
    assert!(!lives(quick));
    assert_eq!(two.state().await, AgentState::Running(slow));
    one.clean().await;
    two.clean().await;
}

#[tokio::test]
async fn no_guard_is_left_when_everything_is_gone() {
    let room = Room::new().await;
    room.start_with_limits("exit 0", 1.0, 2.0).await;
    room.end().await;
    let watcher = room.watcher().unwrap();
    until("the watcher's end", async || !lives(watcher)).await;
    room.clean().await;
}

#[tokio::test]
async fn proof_that_all_is_gone_ends_the_watcher_too_even_in_the_middle_of_its_nap() {
    let room = Room::new().await;
    // With these limits a nap takes 5 s.
    room.start("exit 0").await;
    room.end().await;
    let watcher = room.watcher().unwrap();
    assert!(room.host.guard_gone(&room.dir, SOON).await.unwrap());
    let since = Instant::now();
    until("the watcher's end", async || !lives(watcher)).await;
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    room.clean().await;
}

#[test]
fn the_script_is_clean_for_every_shell_at_hand() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/guard/guard.sh");
    for shell in [&["sh"][..], &["dash"], &["bash", "--posix"], &["busybox", "sh"]] {
        let run = std::process::Command::new(shell[0]).args(&shell[1..]).args(["-n", script]).output();
        let Ok(output) = run else { continue };
        assert!(output.status.success() && output.stderr.is_empty(), "{shell:?}: {output:?}");
    }
}
