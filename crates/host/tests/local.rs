//! What only this machine can be asked: modes on disk, process groups, the watcher's economy, codex layouts.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use optio_host::{Command, Host, HostError, LocalHost, LocalHostConfig, RelPath, Spawned, TaskDir, TaskId};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

const PATIENCE: Duration = Duration::from_secs(10);

struct Fixture {
    host: LocalHost,
    temp: TempDir,
}

fn config(temp: &Path) -> LocalHostConfig {
    LocalHostConfig { task_root: Some(temp.join("tasks")), socket_root: Some(temp.join("sockets")) }
}

fn fixture() -> Fixture {
    let temp = tempfile::tempdir().unwrap();
    Fixture { host: LocalHost::new(config(temp.path())).unwrap(), temp }
}

impl Fixture {
    async fn task(&self, id: &str) -> TaskDir {
        let dir = self.host.task_dir(&TaskId::new(id).unwrap());
        self.host.create(&dir).await.unwrap();
        dir
    }
}

fn rel(path: &str) -> RelPath {
    RelPath::new(path).unwrap()
}

fn mode(path: impl AsRef<Path>) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o777
}

fn set_mode(path: impl AsRef<Path>, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn script(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    set_mode(path, 0o755);
}

async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}: not in time"));
}

/// True while a process runs; one that has ended but was not waited for does not.
fn runs(pid: &str) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat[stat.rfind(')').unwrap()..].starts_with(") Z"),
        Err(_) => false,
    }
}

// Directories

#[tokio::test]
async fn every_directory_of_a_task_is_private() {
    let fixture = fixture();
    let dir = fixture.task("a").await;
    fixture.host.write(&dir, &rel("workdir/made/on/the/way"), "".into(), 0o644).await.unwrap();
    let socket = fixture.host.socket_path(&dir);
    for path in [dir.path(), &dir.workdir(), &dir.workdir().join("made/on"), socket.parent().unwrap()] {
        assert_eq!(mode(path), 0o700, "{}", path.display());
    }
    set_mode(dir.path(), 0o755);
    set_mode(dir.workdir(), 0o755);
    fixture.host.create(&dir).await.unwrap();
    assert_eq!((mode(dir.path()), mode(dir.workdir())), (0o700, 0o700));
}

/// Root may remove anything, so as root this shows less than as a user.
#[tokio::test]
async fn what_denies_its_owner_is_wiped_all_the_same() {
    let fixture = fixture();
    let dir = fixture.task("a").await;
    std::fs::create_dir_all(dir.workdir().join("closed/inner")).unwrap();
    std::fs::write(dir.workdir().join("closed/inner/file"), "x").unwrap();
    set_mode(dir.workdir().join("closed/inner"), 0o500);
    set_mode(dir.workdir().join("closed"), 0);
    fixture.host.create(&dir).await.unwrap();
    assert_eq!(std::fs::read_dir(dir.workdir()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_tree_deeper_than_any_path_is_wiped() {
    let fixture = fixture();
    let dir = fixture.task("a").await;
    // 3000 levels are beyond PATH_MAX, so each is made in the one before.
    let top = dir.workdir();
    tokio::task::spawn_blocking(move || {
        use rustix::fs::{Mode, OFlags};
        let mut at = rustix::fs::open(top, OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "deep", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "deep", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
    })
    .await
    .unwrap();
    fixture.host.cleanup(&dir).await.unwrap();
    assert!(!dir.path().exists());
}

#[tokio::test]
async fn wiping_follows_no_link_out_of_the_workdir() {
    let fixture = fixture();
    let dir = fixture.task("a").await;
    let outside = fixture.temp.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "kept").unwrap();
    symlink(&outside, dir.workdir().join("link")).unwrap();
    fixture.host.create(&dir).await.unwrap();
    std::fs::remove_dir(dir.workdir()).unwrap();
    symlink(&outside, dir.workdir()).unwrap();
    fixture.host.cleanup(&dir).await.unwrap();
    assert!(!dir.path().exists());
    assert_eq!(std::fs::read_to_string(outside.join("file")).unwrap(), "kept");
}

#[tokio::test]
async fn a_fifo_or_a_socket_is_refused_without_waiting() {
    let fixture = fixture();
    let dir = fixture.task("a").await;
    let made = Command::new(["mkfifo".into(), dir.workdir().join("fifo").display().to_string()]);
    assert!(fixture.host.run(made).await.unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(dir.workdir().join("socket")).unwrap();
    for path in ["workdir/fifo", "workdir/socket"] {
        let reading = tokio::time::timeout(PATIENCE, fixture.host.read(&dir, &rel(path), 9)).await.unwrap();
        assert!(matches!(reading, Err(HostError::Refused { .. })), "{path}: {reading:?}");
        let appending = fixture.host.append(&dir, &rel(path), "x".into()).await;
        assert!(matches!(appending, Err(HostError::Refused { .. })), "{path}: {appending:?}");
    }
}

#[tokio::test]
async fn a_link_points_where_it_was_told_last() {
    let fixture = fixture();
    let dir = fixture.task("a").await;
    for target in ["/first", "../second"] {
        fixture.host.link(&dir, &rel("workdir/link"), Path::new(target)).await.unwrap();
        assert_eq!(std::fs::read_link(dir.workdir().join("link")).unwrap(), Path::new(target));
    }
    assert_eq!(std::fs::read_dir(dir.workdir()).unwrap().count(), 1, "a temporary link is left");
}

// Roots

fn refusal(config: LocalHostConfig) -> String {
    match LocalHost::new(config) {
        Err(error @ HostError::Refused { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_socket_root_that_is_too_long_is_refused_at_the_start() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path().display().to_string();
    let long = |len: usize| PathBuf::from(format!("{base}/{}", "x".repeat(len - base.len() - 1)));
    let at = |len| LocalHostConfig { socket_root: Some(long(len)), ..config(temp.path()) };
    assert!(refusal(at(74)).contains("too long"));
    let host = LocalHost::new(at(73)).unwrap();
    let path = host.socket_path(&host.task_dir(&TaskId::new("a").unwrap()));
    assert_eq!(path.as_os_str().len(), 99);
}

#[test]
fn a_socket_root_must_be_a_directory_of_our_own() {
    let temp = tempfile::tempdir().unwrap();
    let real = temp.path().join("real");
    std::fs::create_dir(&real).unwrap();
    let link = temp.path().join("link");
    symlink(&real, &link).unwrap();
    let file = temp.path().join("file");
    std::fs::write(&file, "").unwrap();
    let at = |root: &Path| LocalHostConfig { socket_root: Some(root.into()), ..config(temp.path()) };
    assert!(refusal(at(&link)).contains("symbolic link"));
    assert!(refusal(at(&file)).contains("not a directory"));
    assert!(refusal(at(Path::new("relative"))).contains("absolute"));

    set_mode(&real, 0o777);
    LocalHost::new(at(&real)).unwrap();
    assert_eq!(mode(&real), 0o700);
}

#[test]
fn a_socket_root_of_another_user_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let us = std::fs::metadata(temp.path()).unwrap().uid();
    // Either we may give a directory away, or the root directory's own child belongs to somebody else.
    let foreign = if us == 0 {
        let given = temp.path().join("given");
        std::fs::create_dir(&given).unwrap();
        std::os::unix::fs::chown(&given, Some(65534), None).unwrap();
        given
    } else {
        PathBuf::from("/usr")
    };
    let error = refusal(LocalHostConfig { socket_root: Some(foreign), ..config(temp.path()) });
    assert!(error.contains("another user"), "{error}");
}

#[tokio::test]
async fn a_socket_root_that_was_cleared_is_made_again() {
    let fixture = fixture();
    std::fs::remove_dir(fixture.temp.path().join("sockets")).unwrap();
    let dir = fixture.task("a").await;
    assert!(fixture.host.socket_path(&dir).parent().unwrap().is_dir());
}

// Programs

#[tokio::test]
async fn a_dropped_run_takes_its_whole_group_along() {
    let fixture = fixture();
    let dir = fixture.task("a").await;
    let pids = dir.workdir().join("pids");
    let text = "sleep 60 & echo $$ $! > pids.new && mv pids.new pids; wait";
    let command = Command { cwd: Some(dir.workdir()), ..Command::new(["sh", "-c", text]) };
    {
        let running = fixture.host.run(command);
        tokio::pin!(running);
        tokio::select! {
            output = &mut running => panic!("{output:?}"),
            () = wait_until("the program is up", || pids.exists()) => {}
        }
    }
    let pids = std::fs::read_to_string(pids).unwrap();
    for pid in pids.split_whitespace() {
        wait_until(&format!("{pid} is gone"), || !runs(pid)).await;
    }
}

#[tokio::test]
async fn a_timed_out_run_takes_its_whole_group_along() {
    let fixture = fixture();
    let dir = fixture.task("a").await;
    let text = "trap '' TERM; sleep 60 & echo $$ $! > pids; wait";
    let limit = Duration::from_millis(500);
    let command = Command { cwd: Some(dir.workdir()), limit, ..Command::new(["sh", "-c", text]) };
    let answer = fixture.host.run(command).await;
    assert!(matches!(answer, Err(HostError::TimedOut { .. })), "{answer:?}");
    let pids = std::fs::read_to_string(dir.workdir().join("pids")).unwrap();
    for pid in pids.split_whitespace() {
        wait_until(&format!("{pid} is gone"), || !runs(pid)).await;
    }
}

#[tokio::test]
async fn what_a_spawned_program_leaves_in_its_group_ends_with_it() {
    let fixture = fixture();
    let command = Command::new(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"]);
    let Spawned { stdin: _stdin, stdout, mut process, .. } = fixture.host.spawn(command).await.unwrap();
    let mut pid = String::new();
    BufReader::new(stdout).read_line(&mut pid).await.unwrap();
    process.wait().await.unwrap();
    wait_until("the leftover is gone", || !runs(pid.trim())).await;
}

#[tokio::test]
async fn a_daemon_that_keeps_the_pipes_does_not_hold_up_a_run() {
    let fixture = fixture();
    let started = std::time::Instant::now();
    let output = fixture.host.run(Command::new(["sh", "-c", "setsid sleep 60 & echo $!"])).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(10));
    let pid = String::from_utf8(output.stdout.to_vec()).unwrap();
    assert!(runs(pid.trim()), "a daemon in a group of its own was killed");
    let kill = Command::new(["kill", "-9", pid.trim()]);
    assert!(fixture.host.run(kill).await.unwrap().success());
}

#[tokio::test]
async fn a_missing_program_is_told_from_a_missing_directory() {
    let fixture = fixture();
    match fixture.host.run(Command::new(["optio-no-such-program"])).await {
        Err(HostError::Program { program, .. }) => assert_eq!(program, "optio-no-such-program"),
        other => panic!("{other:?}"),
    }
    let nowhere = Command { cwd: Some("/no/such/directory".into()), ..Command::new(["true"]) };
    match fixture.host.run(nowhere).await {
        Err(HostError::NotFound { path }) => assert_eq!(path, "/no/such/directory"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_listening_socket_is_dialled() {
    let fixture = fixture();
    let dir = fixture.task("a").await;
    let path = fixture.host.socket_path(&dir);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let mut ours = fixture.host.dial(&optio_host::Dial::Unix(path.clone())).await.unwrap();
    let (mut theirs, _) = listener.accept().await.unwrap();
    ours.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    theirs.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
    // A dead server leaves its socket file behind.
    drop(listener);
    let refused = fixture.host.dial(&optio_host::Dial::Unix(path)).await.map(drop);
    assert!(matches!(refused, Err(HostError::NotListening { .. })), "{refused:?}");
}

// Watching

#[tokio::test]
async fn a_file_emptied_and_written_in_place_wakes() {
    let fixture = fixture();
    let dir = fixture.task("a").await;
    let path = rel("workdir/auth.json");
    fixture.host.write(&dir, &path, "old".into(), 0o600).await.unwrap();
    let mut watch = fixture.host.watch(&dir, &path).await.unwrap();
    // The way codex 0.142.5 does it: open with O_TRUNC, one write, close.
    let file = dir.join(&path);
    tokio::task::spawn_blocking(move || std::fs::write(file, "new")).await.unwrap().unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, watch.changed()).await.unwrap(), Some(()));
}

#[tokio::test]
async fn reading_a_file_does_not_wake_its_reader() {
    let fixture = fixture();
    let dir = fixture.task("a").await;
    let path = rel("workdir/auth.json");
    fixture.host.write(&dir, &path, "x".into(), 0o600).await.unwrap();
    let mut watch = fixture.host.watch(&dir, &path).await.unwrap();
    for _ in 0..3 {
        fixture.host.read(&dir, &path, 9).await.unwrap();
        fixture.host.info(&dir, &path).await.unwrap();
    }
    let woken = tokio::time::timeout(Duration::from_millis(200), watch.changed()).await;
    assert!(woken.is_err(), "{woken:?}");
}

/// 128 inotify instances is the usual limit for one user.
#[tokio::test]
async fn a_thousand_watches_share_one_instance() {
    let fixture = fixture();
    let mut watches = Vec::new();
    for number in 0..1000 {
        let dir = fixture.task(&format!("s{number}")).await;
        let watch = fixture.host.watch(&dir, &rel("workdir/auth.json")).await.unwrap();
        watches.push((dir, watch));
    }
    for (dir, _) in watches.iter().step_by(7) {
        fixture.host.write(dir, &rel("workdir/auth.json"), "x".into(), 0o600).await.unwrap();
    }
    for (number, (_, watch)) in watches.iter_mut().enumerate() {
        let limit = if number % 7 == 0 { PATIENCE } else { Duration::from_millis(1) };
        let woken = tokio::time::timeout(limit, watch.changed()).await;
        assert_eq!(woken.is_ok(), number % 7 == 0, "session {number}");
    }
}

#[tokio::test]
async fn a_watch_outlives_the_host_it_came_from() {
    let fixture = fixture();
    let dir = fixture.task("a").await;
    let path = rel("workdir/auth.json");
    let mut watch = fixture.host.watch(&dir, &path).await.unwrap();
    drop(fixture.host);
    std::fs::write(dir.join(&path), "x").unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, watch.changed()).await.unwrap(), Some(()));
}

/// Watches come and go while their directory is wiped over and over: none may be left asleep.
#[tokio::test]
async fn arming_again_and_again_over_wiped_directories_never_sleeps() {
    let fixture = fixture();
    let path = rel("workdir/home/.codex/auth.json");
    for round in 0..50 {
        let dir = fixture.task("a").await;
        let watch = fixture.host.watch(&dir, &path).await;
        let mut watch = watch.unwrap();
        fixture.host.write(&dir, &path, "x".into(), 0o600).await.unwrap();
        // A wake-up, or the end because the wipe before was seen late; both make a caller look.
        tokio::time::timeout(PATIENCE, watch.changed()).await.unwrap_or_else(|_| panic!("asleep in {round}"));
    }
}

// codex

/// What a program must answer to be taken for codex, as a shell script.
const ANSWERS: &str = r#"case "$1" in
--version) echo "codex-cli 0.142.5" ;;
app-server) echo "--listen <URL>  Supported values: unix://PATH" ;;
esac"#;

async fn found(wanted: &Path) -> Result<optio_host::CodexBinary, HostError> {
    fixture().host.find_codex(Some(wanted)).await
}

fn why(error: HostError) -> String {
    match error {
        HostError::Program { .. } => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_script_that_is_not_npms_launcher_is_refused_with_what_would_be_right() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("codex");
    script(&path, &format!("#!/bin/sh\n{ANSWERS}\n"));
    let why = why(found(&path).await.unwrap_err());
    assert!(why.contains("it is a script") && why.contains("npm install"), "{why}");
    assert!(why.contains(path.to_str().unwrap()), "{why}");
}

#[tokio::test]
async fn what_is_missing_relative_or_not_executable_is_refused_by_its_path() {
    let temp = tempfile::tempdir().unwrap();
    let missing = temp.path().join("none");
    assert!(why(found(&missing).await.unwrap_err()).contains("does not exist"));
    assert!(why(found(Path::new("bin/codex")).await.unwrap_err()).contains("absolute"));
    let plain = temp.path().join("plain");
    std::fs::write(&plain, "\x7fELF").unwrap();
    assert!(why(found(&plain).await.unwrap_err()).contains("not an executable file"));
}

#[tokio::test]
async fn a_program_that_is_not_codex_is_refused_by_what_it_answered() {
    let echo = std::fs::canonicalize("/bin/echo").unwrap();
    let why = why(found(&echo).await.unwrap_err());
    assert!(why.contains("--version") && why.contains("codex-cli x.y.z"), "{why}");
}

#[tokio::test]
async fn npms_launcher_without_its_program_says_where_it_was_looked_for() {
    let temp = tempfile::tempdir().unwrap();
    let launcher = temp.path().join("node_modules/@openai/codex/bin/codex.js");
    script(&launcher, "#!/usr/bin/env node\n");
    let why = why(found(&launcher).await.unwrap_err());
    assert!(why.contains("the program behind it is missing") && why.contains("vendor"), "{why}");
}

/// The launcher's layouts as npm and pnpm make them: beside the package, or within it; reached through `.bin`.
#[tokio::test]
async fn npms_launcher_is_resolved_to_the_program_behind_it() {
    let (package, triple) = match std::env::consts::ARCH {
        "x86_64" => ("codex-linux-x64", "x86_64-unknown-linux-musl"),
        "aarch64" => ("codex-linux-arm64", "aarch64-unknown-linux-musl"),
        other => panic!("no codex for {other}"),
    };
    let beside = format!("node_modules/@openai/{package}");
    let within = format!("node_modules/@openai/codex/node_modules/@openai/{package}");
    for place in [beside.as_str(), within.as_str(), "node_modules/@openai/codex"] {
        let temp = tempfile::tempdir().unwrap();
        let launcher = temp.path().join("node_modules/@openai/codex/bin/codex.js");
        script(&launcher, "#!/usr/bin/env node\n");
        let native = temp.path().join(place).join("vendor").join(triple).join("bin/codex");
        script(&native, &format!("#!/bin/sh\n{ANSWERS}\n"));
        let bin = temp.path().join("node_modules/.bin/codex");
        std::fs::create_dir_all(bin.parent().unwrap()).unwrap();
        symlink("../@openai/codex/bin/codex.js", &bin).unwrap();

        let codex = found(&bin).await.unwrap();
        assert_eq!(codex.path, std::fs::canonicalize(&native).unwrap(), "{place}");
        assert_eq!((codex.version.as_str(), codex.can_listen), ("0.142.5", true));
    }
}

#[tokio::test]
async fn an_updated_program_is_asked_again() {
    let temp = tempfile::tempdir().unwrap();
    let launcher = temp.path().join("node_modules/@openai/codex/bin/codex.js");
    script(&launcher, "#!/usr/bin/env node\n");
    let native = temp.path().join(format!(
        "node_modules/@openai/codex/vendor/{}-unknown-linux-musl/bin/codex",
        std::env::consts::ARCH
    ));
    let asked = temp.path().join("asked");
    let answering = |answers: &str| format!("#!/bin/sh\necho x >> '{}'\n{answers}\n", asked.display());
    let times = || std::fs::read_to_string(&asked).unwrap().lines().count();
    let fixture = fixture();

    script(&native, &answering(ANSWERS));
    for _ in 0..3 {
        assert!(fixture.host.find_codex(Some(&launcher)).await.unwrap().can_listen);
    }
    assert_eq!(times(), 2, "once for the version, once for the help");

    script(&native, &answering("echo codex-cli 0.99.0"));
    let older = fixture.host.find_codex(Some(&launcher)).await.unwrap();
    assert_eq!((older.version.as_str(), older.can_listen), ("0.99.0", false));
}
