//! Agents on a terminal, with the real tmux, and viewers before it, with and without the real ttyd.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use optio_host::terminal::{Line, Seat};
use optio_host::{
    AgentIdentity, AgentState, EnvPlan, ExitStatus, GuardSpec, Host, HostError, LocalHost, LocalHostConfig,
    RelPath, Signal, Size, Stage, TaskDir, TaskId, Terminal, terminal, tmux, ttyd,
};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const NEVER: Duration = Duration::from_secs(3600);

struct Stagehand {
    host: LocalHost,
    dir: TaskDir,
    tmux: PathBuf,
    _roots: [tempfile::TempDir; 2],
}

impl Stagehand {
    async fn new() -> Self {
        Self::named("with a blank 'and a quote'").await
    }

    /// The task root has this name: whatever quotes badly breaks on it.
    async fn named(root: &str) -> Self {
        let [tasks, sockets] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let config = LocalHostConfig {
            task_root: Some(tasks.path().join(root)),
            socket_root: Some(sockets.path().join("s")),
        };
        let host = LocalHost::new(config).unwrap();
        let dir = host.task_dir(&TaskId::new("one").unwrap());
        host.create(&dir).await.unwrap();
        let tmux = tmux::find(&host).await.unwrap();
        Self { host, dir, tmux, _roots: [tasks, sockets] }
    }

    fn socket(&self) -> PathBuf {
        tmux::socket(&self.host, &self.dir)
    }

    fn spec(&self, argv: &[&str]) -> GuardSpec {
        let stage = Terminal { tmux: self.tmux.clone(), socket: self.socket(), size: tmux::FIRST_SIZE };
        GuardSpec {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: EnvPlan::default(),
            cwd: self.dir.workdir(),
            run_mark: format!("run-{}", uuid::Uuid::new_v4()),
            term_after: NEVER,
            kill_after: NEVER,
            stage: Stage::Terminal(stage),
        }
    }

    async fn start(&self, script: &str) -> AgentIdentity {
        self.host.guard_start(&self.dir, self.spec(&["sh", "-c", script])).await.unwrap()
    }

    async fn screen(&self) -> String {
        tmux::screen(&self.host, &self.tmux, &self.socket()).await.unwrap()
    }

    async fn shows(&self, text: &str) {
        wait_until(text, || async { self.screen().await.contains(text) }).await;
    }

    async fn sit(&self, seat: Seat, size: Size) -> Viewer {
        let line = terminal::open(&self.host, &self.tmux, &self.socket(), seat, size).await.unwrap();
        Viewer { line, seen: Vec::new() }
    }

    async fn end(&self) {
        self.host.guard_signal(&self.dir, Signal::Kill).await.unwrap();
        self.host.guard_kill_leftovers(&self.dir).await.unwrap();
        assert!(self.host.guard_gone(&self.dir, PATIENCE).await.unwrap());
    }

    async fn exit(&self) -> (ExitStatus, bool) {
        wait_until("the end is on record", || async {
            matches!(self.host.guard_state(&self.dir).await.unwrap(), AgentState::Exited { .. })
        })
        .await;
        match self.host.guard_state(&self.dir).await.unwrap() {
            AgentState::Exited { status, by_guard, .. } => (status, by_guard),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Stagehand {
    /// A test that failed leaves no server behind.
    fn drop(&mut self) {
        let mut kill = std::process::Command::new(&self.tmux);
        // There is none after a test that did not fail.
        let _ =
            kill.arg("-S").arg(self.socket()).arg("kill-server").stderr(std::process::Stdio::null()).status();
    }
}

async fn wait_until<F: Future<Output = bool>>(what: &str, look: impl Fn() -> F) {
    let looking = async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}

struct Viewer {
    line: Line,
    seen: Vec<u8>,
}

impl Viewer {
    async fn sees(&mut self, text: &str) {
        let looking = async {
            while !String::from_utf8_lossy(&self.seen).contains(text) {
                self.seen.extend(self.line.output.next().await.expect("the terminal is there").unwrap());
            }
        };
        let found = tokio::time::timeout(PATIENCE, looking).await.is_ok();
        assert!(found, "never seen: {text:?} in {:?}", String::from_utf8_lossy(&self.seen));
    }

    async fn types(&mut self, keys: &str) {
        self.line.input.keys(Bytes::copy_from_slice(keys.as_bytes())).await.unwrap();
    }
}

const SMALL: Size = Size { columns: 90, rows: 20 };
const LARGE: Size = Size { columns: 140, rows: 45 };

/// Prints what it reads, and its window's size when it is asked for.
const ECHO: &str = r#"echo ready; while read -r line; do
    case $line in size) stty size ;; quit) exit 3 ;; *) echo "heard <$line>" ;; esac
done"#;

#[tokio::test]
async fn an_agent_on_a_terminal_is_one_of_the_guards() {
    let stage = Stagehand::new().await;
    let identity = stage.start(ECHO).await;
    assert_eq!(stage.host.guard_state(&stage.dir).await.unwrap(), AgentState::Running(identity));
    stage.shows("ready").await;
    let again = stage.host.guard_start(&stage.dir, stage.spec(&["true"])).await;
    assert!(matches!(again, Err(HostError::AlreadyRunning { .. })), "{again:?}");
    assert!(!stage.host.guard_gone(&stage.dir, Duration::ZERO).await.unwrap());
    stage.end().await;
    assert_eq!(stage.exit().await, (ExitStatus::Unknown, false));
    assert!(!stage.socket().exists() || std::os::unix::net::UnixStream::connect(stage.socket()).is_err());
}

#[tokio::test]
async fn its_end_is_on_record_with_what_the_screen_said_last() {
    let stage = Stagehand::new().await;
    stage.start("echo 'the last words'; exit 7").await;
    assert_eq!(stage.exit().await, (ExitStatus::Code(7), false));
    assert!(stage.host.guard_gone(&stage.dir, PATIENCE).await.unwrap());
    let said = stage.host.guard_stderr(&stage.dir).await.unwrap();
    assert!(String::from_utf8_lossy(&said).contains("the last words"), "{said:?}");
}

#[tokio::test]
async fn a_signal_reaches_the_program_and_not_its_shell() {
    let stage = Stagehand::new().await;
    stage.start("trap 'echo flushed >flushed; exit 5' TERM; echo ready; while :; do sleep 0.1; done").await;
    stage.shows("ready").await;
    assert!(stage.host.guard_signal(&stage.dir, Signal::Term).await.unwrap());
    assert_eq!(stage.exit().await, (ExitStatus::Code(5), false));
    let path = RelPath::in_workdir("flushed").unwrap();
    assert_eq!(stage.host.read(&stage.dir, &path, 100).await.unwrap(), "flushed\n");
    assert!(stage.host.guard_gone(&stage.dir, PATIENCE).await.unwrap());
}

#[tokio::test]
async fn without_a_heartbeat_nothing_of_it_is_left() {
    let stage = Stagehand::new().await;
    let mut spec = stage.spec(&["sh", "-c", "trap : TERM HUP; while :; do sleep 0.1; done"]);
    (spec.term_after, spec.kill_after) = (Duration::from_secs(1), Duration::from_secs(2));
    stage.host.guard_start(&stage.dir, spec).await.unwrap();
    let (_, by_guard) = stage.exit().await;
    assert!(by_guard);
    assert!(stage.host.guard_gone(&stage.dir, PATIENCE).await.unwrap());
}

#[tokio::test]
async fn environment_and_words_reach_the_program_whole_and_nobody_elses_command_line() {
    let stage = Stagehand::new().await;
    let long = "x".repeat(100_000);
    let mut spec =
        stage.spec(&["sh", "-c", r#"printf %s "$1" >word; printf %s "$SECRET" >secret; echo done"#]);
    spec.argv.extend(["sh".to_owned(), format!("{long} 'and' \"all\" $HOME\n;")]);
    spec.env.add.insert("SECRET".to_owned(), "s3cret 'quoted'\nline".to_owned());
    spec.argv[2].push_str("; sleep 60");
    stage.host.guard_start(&stage.dir, spec).await.unwrap();
    stage.shows("done").await;
    let read = |name: &str| {
        let path = RelPath::in_workdir(name).unwrap();
        let (host, dir) = (&stage.host, &stage.dir);
        async move { host.read(dir, &path, 1 << 20).await.unwrap() }
    };
    assert_eq!(read("word").await, format!("{long} 'and' \"all\" $HOME\n;"));
    assert_eq!(read("secret").await, "s3cret 'quoted'\nline");
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&words).contains("s3cret"), "{:?}", process.path());
    }
    stage.end().await;
}

#[tokio::test]
async fn what_cannot_be_started_is_named() {
    let stage = Stagehand::new().await;
    let missing = stage.host.guard_start(&stage.dir, stage.spec(&["/no/such/codex"])).await.unwrap_err();
    assert!(missing.to_string().contains("/no/such/codex"), "{missing}");
    let mut spec = stage.spec(&["true"]);
    if let Stage::Terminal(terminal) = &mut spec.stage {
        terminal.tmux = "/no/such/tmux".into();
    }
    let missing = stage.host.guard_start(&stage.dir, spec).await.unwrap_err();
    assert!(missing.to_string().contains("/no/such/tmux"), "{missing}");
    assert!(stage.host.guard_gone(&stage.dir, PATIENCE).await.unwrap());
}

#[tokio::test]
async fn a_server_that_an_earlier_run_left_is_replaced() {
    let stage = Stagehand::new().await;
    stage.start(ECHO).await;
    stage.shows("ready").await;
    // The agent is killed, and the server kept by another window of it.
    let words = ["new-window", "-d", "sleep 1000"];
    let mut left = std::process::Command::new(&stage.tmux);
    assert!(left.arg("-S").arg(stage.socket()).args(words).status().unwrap().success());
    stage.host.guard_signal(&stage.dir, Signal::Kill).await.unwrap();
    stage.exit().await;
    stage.start("echo a new one; sleep 1000").await;
    stage.shows("a new one").await;
    stage.end().await;
}

#[tokio::test]
async fn an_owner_types_and_sizes_a_guest_types_a_viewer_looks_on() {
    let stage = Stagehand::new().await;
    stage.start(ECHO).await;
    let mut owner = stage.sit(Seat::Owner, SMALL).await;
    owner.sees("ready").await;
    owner.types("one\r").await;
    owner.sees("heard <one>").await;

    let mut guest = stage.sit(Seat::Guest, LARGE).await;
    guest.sees("heard <one>").await;
    guest.types("two\r").await;
    owner.sees("heard <two>").await;
    owner.types("size\r").await;
    owner.sees("20 90").await;

    let mut viewer = stage.sit(Seat::Viewer, LARGE).await;
    viewer.sees("heard <two>").await;
    viewer.types("never\r").await;
    owner.types("three\r").await;
    viewer.sees("heard <three>").await;
    assert!(!stage.screen().await.contains("never"), "{}", stage.screen().await);

    owner.line.input.resize(LARGE).await.unwrap();
    wait_until("the terminal has the new size", || async {
        tmux::size(&stage.host, &stage.tmux, &stage.socket()).await.unwrap() == LARGE
    })
    .await;
    // Nobody's leaving ends it; what has scrolled is still there for the next one.
    drop((owner, guest, viewer));
    let mut next = stage.sit(Seat::Owner, SMALL).await;
    next.sees("heard <three>").await;
    next.types("quit\r").await;
    assert_eq!(stage.exit().await, (ExitStatus::Code(3), false));
    while next.line.output.next().await.is_some_and(|read| read.is_ok()) {}
}

#[tokio::test]
async fn no_key_and_no_output_reaches_the_settings_of_tmux() {
    let stage = Stagehand::new().await;
    stage.start(ECHO).await;
    let mut owner = stage.sit(Seat::Owner, SMALL).await;
    owner.sees("ready").await;
    // The usual prefix and a command that would end everything, and a right click where tmux has a menu.
    owner.types("\x02:kill-server\r").await;
    owner.types("\x1b[<2;5;5M\x1b[<2;5;5m").await;
    owner.types("\rstill here\r").await;
    owner.sees("still here>").await;
    stage.end().await;
}

#[tokio::test]
async fn a_text_is_pasted_seen_and_sent_as_one() {
    let stage = Stagehand::new().await;
    // Has bracketed paste switched on as codex has, and shows what comes.
    stage.start(r"stty -icanon -echo; printf '\033[?2004hready\n'; tee got").await;
    stage.shows("ready").await;
    let text = "two lines\r\nwith a tab\tand \x1b[201~ an escape";
    tmux::paste(&stage.host, &stage.tmux, &stage.socket(), text).await.unwrap();
    let long: String = (0..6000).map(|n| format!("word {n}\n")).collect();
    tmux::paste(&stage.host, &stage.tmux, &stage.socket(), &long).await.unwrap();
    let path = RelPath::in_workdir("got").unwrap();
    let got = stage.host.read(&stage.dir, &path, 1 << 20).await.unwrap();
    let paste = |text: &str| format!("\x1b[200~{text}\x1b[201~\n");
    let expected = paste("two lines\nwith a tab\tand ␛[201~ an escape") + &paste(&long);
    assert_eq!(String::from_utf8_lossy(&got), expected);
    stage.end().await;
}

#[tokio::test]
async fn a_text_that_is_not_shown_is_not_sent() {
    let stage = Stagehand::new().await;
    stage
        .start("stty -echo; echo 'approve? [y]'; read -r answer; echo \"answered <$answer>\"; sleep 1000")
        .await;
    stage.shows("approve?").await;
    let refused = tmux::paste(&stage.host, &stage.tmux, &stage.socket(), "hello").await.unwrap_err();
    assert!(refused.to_string().contains("does not show"), "{refused}");
    assert!(!stage.screen().await.contains("answered"));
    stage.end().await;
}

/// The ttyd of this machine, if it has one.
fn real_ttyd() -> Option<PathBuf> {
    let tools = std::env::var_os("OPTIO_TOOLS").map(|tools| PathBuf::from(tools).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = tools.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join("ttyd"));
    let found = found.into_iter().find(|ttyd| ttyd.is_file());
    if found.is_none() {
        eprintln!("skipped: there is no ttyd here (`make setup-test` fetches one)");
    }
    found
}

#[tokio::test]
async fn a_ttyd_serves_the_three_seats_and_dies_with_its_owner() {
    let Some(program) = real_ttyd() else { return };
    let stage = Stagehand::named("tasks").await;
    stage.start(ECHO).await;
    let running = ttyd::start(&stage.host, &program, &stage.tmux, &stage.dir).await.unwrap();
    let sit = |seat, size| {
        let (host, at) = (&stage.host, running.at());
        async move { Viewer { line: ttyd::open(host, at, seat, size).await.unwrap(), seen: Vec::new() } }
    };
    let mut owner = sit(Seat::Owner, SMALL).await;
    owner.sees("ready").await;
    let mut viewer = sit(Seat::Viewer, LARGE).await;
    viewer.sees("ready").await;
    let mut guest = sit(Seat::Guest, LARGE).await;
    guest.sees("ready").await;
    viewer.types("never\r").await;
    guest.types("hello\r").await;
    owner.sees("heard <hello>").await;
    owner.types("size\r").await;
    owner.sees("20 90").await;
    owner.line.input.resize(LARGE).await.unwrap();
    wait_until("the terminal has the new size", || async {
        tmux::size(&stage.host, &stage.tmux, &stage.socket()).await.unwrap() == LARGE
    })
    .await;
    assert!(!stage.screen().await.contains("never"));
    let at = running.at().clone();
    drop(running);
    wait_until("nothing listens any more", || async { stage.host.dial(&at).await.is_err() }).await;
    // The agent did not notice.
    assert!(matches!(stage.host.guard_state(&stage.dir).await.unwrap(), AgentState::Running(_)));
    stage.end().await;
}

#[tokio::test]
async fn a_ttyd_that_does_not_start_says_why() {
    let stage = Stagehand::named("tasks").await;
    stage.start(ECHO).await;
    let program = stage.dir.path().join("ttyd");
    std::fs::write(&program, "#!/bin/sh\necho 'no libwebsockets here' >&2\nexit 9\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let why = ttyd::start(&stage.host, &program, &stage.tmux, &stage.dir).await.unwrap_err().to_string();
    assert!(why.contains("no libwebsockets here") && why.contains("exit status 9"), "{why}");
    stage.end().await;
}
