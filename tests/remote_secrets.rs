//! What the other machine gets to see: no secret where other users look, no file where none belongs.

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use common::terminal::shows;
use common::{END, import, seeded, service};
use optio_testkit::{FakeOauth, Far, LIMIT, MockModel, procs, wait_until};
use serde_json::{Value, json};

/// The mark that the environment of an agent has, and of what it starts; on a terminal it has its home there instead.
const MARK: &[u8] = b"OPTIO_CODEX_RUN=";

/// Where codex keeps what its sandbox mounts, for root.
const CODEX_TMP: &str = "codex-bwrap-synthetic-mount-targets-0";

/// Looks at every process of a machine all the time, as its other users may.
struct Spy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Seen>>,
}

#[derive(Default)]
struct Seen {
    looks: usize,
    /// Distinct command lines, with what is secret in them.
    argv: BTreeSet<(Vec<String>, Option<usize>)>,
    /// Processes with something secret in their environment: what it is, whether it is an agent's environment, who.
    environ: BTreeSet<(usize, bool, Vec<String>)>,
}

impl Spy {
    fn on(far: &Arc<Far>, secrets: &[&str]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let secrets: Vec<Vec<u8>> = secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect();
        let (far, ends) = (far.clone(), stop.clone());
        let tasks = far.task_root().to_string_lossy().into_owned().into_bytes();
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !ends.load(Ordering::Relaxed) {
                seen.looks += 1;
                for process in far.processes() {
                    let has = |text: &[u8], part: &[u8]| text.windows(part.len()).any(|at| at == part);
                    let words = process.argv.join("\0").into_bytes();
                    let found = secrets.iter().position(|secret| has(&words, secret));
                    let environ = std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
                    for (index, secret) in secrets.iter().enumerate() {
                        if has(&environ, secret) {
                            let of_agent = has(&environ, MARK) || has(&environ, &tasks);
                            seen.environ.insert((index, of_agent, process.argv.clone()));
                        }
                    }
                    seen.argv.insert((process.argv, found));
                }
            }
            seen
        });
        Self { stop, thread: Some(thread) }
    }

    fn ends(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is taken here and in drop alone");
        thread.join().expect("it only looks")
    }
}

impl Drop for Spy {
    fn drop(&mut self) {
        // It holds the machine, which would outlive a test that fails.
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Every entry beneath a directory but what is beneath `except`, with its mode.
fn entries(dir: &Path, except: &[PathBuf]) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(about) = std::fs::symlink_metadata(&path) else { continue };
        if except.contains(&path) {
            continue;
        }
        found.push((path.clone(), about.permissions().mode() & 0o7777));
        if about.is_dir() {
            found.extend(entries(&path, except));
        }
    }
    found
}

#[actix::test]
async fn no_secret_is_seen_and_no_file_is_left_in_the_whole_life_of_two_sessions() {
    if !Far::can_be_apart_or_skip() {
        return;
    }
    let (model, oauth) = (MockModel::start(), FakeOauth::start());
    let far = Far::setup().start().await;
    let server = service().on(&far).env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", oauth.url()).start().await;
    let client = server.client();
    // One that rotates in the session, so that the new tokens go the other way.
    let login = oauth.login("acct-1").access_expires_in(jiff::SignedDuration::from_secs(60));
    let other = oauth.login("acct-2");
    let secrets = [
        login.current_refresh_token(),
        login.current_access_token(),
        other.current_refresh_token(),
        other.current_access_token(),
        "rt-acct-1-0-1",
        "hunter2-of-the-session",
    ];
    let env = secrets.len() - 1;
    let seed = import(&client, &model, &login.auth_json()).await;
    let seed_of_terminal = import(&client, &model, &other.auth_json()).await;
    let before = entries(&far.home(), &[]);
    let spy = Spy::on(&far, &secrets);

    let mut wanted = seeded(&seed);
    wanted["env"] = json!({ "SESSION_SECRET": secrets[env] });
    let session = client.create(wanted).await;
    session.wait_idle().await;
    let rotated = oauth.wait_for_grants(1).await;
    assert_eq!(rotated.refresh_token, secrets[4], "the spy looks for the right one");
    let mut events = session.events(None).await;
    events.until_named("seed.saved", LIMIT).await;
    session.turn("@call exec_command {\"cmd\":\"echo \\\"has $SESSION_SECRET\\\"\"}").await;
    events.until_named("turn.completed", LIMIT).await;
    let mut wanted = json!({ "mode": "terminal", "instructions": "", "seed": { "id": seed_of_terminal } });
    wanted["env"] = json!({ "SESSION_SECRET": secrets[env] });
    let terminal = client.create(wanted).await;
    terminal.wait_state("working", LIMIT).await;
    terminal.turn("@say seen on the screen").await;
    shows(&server, "• seen on the screen").await;

    // Nobody else gets in.
    for id in [&session.id, &terminal.id] {
        let task = far.task_root().join(id);
        let workdir = task.join("workdir");
        let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(mode(&task), 0o700);
        assert_eq!(mode(&workdir.join("home/.codex/auth.json")), 0o600);
        let of_guard = entries(&task.join("guard"), &[]);
        assert!(of_guard.len() > 4 && of_guard.iter().all(|(_, mode)| mode & 0o077 == 0), "{of_guard:?}");
    }
    // Codex has a directory of its own there, whose name begins so.
    let of_codex = |path: &Path| path.strip_prefix(far.tmp()).is_ok_and(|path| path.starts_with(CODEX_TMP));
    let in_tmp: Vec<_> = entries(&far.tmp(), &[]).into_iter().filter(|(path, _)| !of_codex(path)).collect();
    let in_tmp: Vec<_> = in_tmp.into_iter().filter(|(path, _)| !path.is_symlink()).collect();
    assert!(in_tmp.iter().all(|(_, mode)| mode & 0o077 == 0), "{in_tmp:?}");
    let roots: BTreeSet<_> = in_tmp
        .iter()
        .filter_map(|(path, _)| path.strip_prefix(far.tmp()).ok()?.components().next())
        .collect();
    assert_eq!(roots.len(), 1, "all its sockets are in one directory: {in_tmp:?}");

    for session in [&session, &terminal] {
        session.stop("graceful").await;
    }
    for session in [&session, &terminal] {
        session.wait_state("ended", END).await;
    }
    let seen = spy.ends();
    let told: Vec<_> = seen.argv.iter().filter(|(_, secret)| secret.is_some()).collect();
    assert!(told.is_empty(), "secrets in argv: {told:#?}");
    let told: Vec<_> =
        seen.environ.iter().filter(|(secret, of_agent, _)| *secret != env || !of_agent).collect();
    assert!(told.is_empty(), "secrets in environments: {told:#?}");
    // It did look: it saw the agents with what they were given, and what we ran there.
    assert!(seen.environ.iter().any(|(secret, ..)| *secret == env), "{} looks", seen.looks);
    let saw = |word: &str| seen.argv.iter().any(|(argv, _)| argv.iter().any(|arg| arg.contains(word)));
    assert!(saw("app-server") && saw("tmux") && saw("tar"), "{:#?}", seen.argv);
    println!("{} looks at {} command lines", seen.looks, seen.argv.len());

    assert_eq!(procs::entries(&far.task_root()), Vec::<String>::new());
    wait_until("only connections are left", LIMIT, || async {
        let left = far.agents();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    // The cache is ours. The other is codex's: it makes it in the home of whoever asks for its version.
    let known = [far.home().join(".cache"), far.home().join(".codex")];
    let after = entries(&far.home(), &known);
    assert_eq!(after, before, "nothing new in its home");
    let of_codex_there = procs::entries(&known[1]);
    assert!(of_codex_there.iter().all(|name| name == "tmp"), "no login, no settings: {of_codex_there:?}");
    let left: Vec<_> =
        entries(&far.tmp(), &[]).into_iter().filter(|(path, _)| !path.is_dir() && !of_codex(path)).collect();
    assert!(left.is_empty(), "{left:?}");
    for seed in [seed, seed_of_terminal] {
        assert_eq!(client.seed(&seed).await["lease"], Value::Null);
    }
    assert_eq!(oauth.reuses(), Vec::<String>::new());
}
