//! What was left on a machine, found and reaped, by the real guard on this one.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use optio_host::orphans::{Leftover, Reap, ReapError, orphans, reap};
use optio_host::{
    AgentIdentity, AgentState, EnvPlan, GuardSpec, Host, LocalHost, LocalHostConfig, RelPath, Stage, TaskDir,
    TaskId,
};

/// Longer than any test takes: no heartbeat is needed.
const NEVER: Duration = Duration::from_secs(600);
const MOST: usize = 100;

struct Room {
    host: LocalHost,
    root: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        let root = tempfile::Builder::new().prefix("it's a \"$HOME\" room ").tempdir().unwrap();
        let config = LocalHostConfig {
            task_root: Some(root.path().join("tasks")),
            socket_root: Some(PathBuf::from(format!("/tmp/optio-{}", uuid::Uuid::new_v4().simple()))),
        };
        Self { host: LocalHost::new(config).unwrap(), root }
    }

    fn tasks(&self) -> PathBuf {
        self.root.path().join("tasks")
    }

    async fn task(&self, name: &str) -> TaskDir {
        let dir = self.host.task_dir(&id(name));
        self.host.create(&dir).await.unwrap();
        dir
    }

    async fn agent(&self, dir: &TaskDir, script: &str) -> AgentIdentity {
        let spec = GuardSpec {
            argv: vec!["sh".into(), "-c".into(), script.into()],
            env: EnvPlan::default(),
            cwd: dir.workdir(),
            run_mark: format!("run-{}", uuid::Uuid::new_v4()),
            term_after: NEVER,
            kill_after: NEVER,
            stage: Stage::Headless,
        };
        self.host.guard_start(dir, spec).await.unwrap()
    }

    async fn login(&self, dir: &TaskDir, at: &str) {
        let path = RelPath::new(at).unwrap();
        self.host.write(dir, &path, "{\"tokens\":{}}".into(), 0o600).await.unwrap();
    }

    async fn left(&self, known: &[&str]) -> Vec<Leftover> {
        orphans(&self.host, &set(known), MOST).await.unwrap()
    }

    async fn reap(&self, choice: Reap) -> Result<optio_host::orphans::Reaped, ReapError> {
        reap(&self.host, &set(&[]), &choice).await
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let sockets = self.host.socket_path(&self.host.task_dir(&id("any")));
        // Best effort: a socket root that stays is an empty directory in /tmp.
        let _ = sockets.parent().and_then(Path::parent).map(std::fs::remove_dir_all);
    }
}

fn id(name: &str) -> TaskId {
    TaskId::new(name).unwrap()
}

fn set(names: &[&str]) -> BTreeSet<TaskId> {
    names.iter().map(|name| id(name)).collect()
}

fn choice(name: &str) -> Reap {
    Reap { id: id(name), agent: None, discard_login: false }
}

fn names(left: &[Leftover]) -> Vec<&str> {
    left.iter().map(|left| left.id.as_str()).collect()
}

/// Makes a file or directory look as if it had last changed that long ago.
fn age(path: &Path, seconds: u64) {
    let then = std::time::SystemTime::now() - Duration::from_secs(seconds);
    std::fs::File::open(path).unwrap().set_modified(then).unwrap();
}

/// Waits for what must come soon.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("no {what}"));
}

/// A zombie has no words: it is dead, and its parent's business.
fn lives(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| !words.is_empty())
}

#[tokio::test]
async fn a_machine_on_which_nothing_ever_ran_has_nothing_left() {
    assert_eq!(Room::new().left(&[]).await, []);
}

#[tokio::test]
async fn what_is_known_is_not_told_and_what_is_not_is_told_with_age_and_size() {
    let room = Room::new();
    for name in ["known", "old", "new", "old.er"] {
        room.task(name).await;
    }
    std::fs::write(room.tasks().join("old/workdir/big"), vec![7; 3 << 20]).unwrap();
    for (name, seconds) in [("old", 1000), ("old.er", 5000)] {
        age(&room.tasks().join(name).join("workdir"), seconds);
        age(&room.tasks().join(name), seconds);
    }
    let left = room.left(&["known", "unheard-of"]).await;
    assert_eq!(names(&left), ["old.er", "old", "new"]);
    assert!((1000..1100).contains(&left[1].age_seconds), "{left:?}");
    assert!(left[2].age_seconds < 100, "{left:?}");
    assert!(left[1].bytes.unwrap() >= 3 << 20 && left[2].bytes.unwrap() < 1 << 20, "{left:?}");
    assert_eq!(left[1].path, room.tasks().join("old"));
    assert!(left.iter().all(|left| left.agent.is_none() && left.mark.is_none() && !left.has_login));
    let oldest = orphans(&room.host, &set(&[]), 1).await.unwrap();
    assert_eq!(names(&oldest), ["old.er"], "the limit keeps those that changed longest ago");
    let api = serde_json::to_value(&left[2]).unwrap();
    assert_eq!((&api["id"], &api["agent"]), (&"new".into(), &serde_json::Value::Null));
}

#[tokio::test]
async fn what_does_not_look_like_ours_is_neither_told_nor_reaped() {
    let room = Room::new();
    let elsewhere = room.root.path().join("elsewhere");
    std::fs::create_dir_all(elsewhere.join("workdir")).unwrap();
    std::fs::create_dir_all(room.tasks().join("bare/src")).unwrap();
    std::fs::create_dir_all(room.tasks().join("no id/workdir")).unwrap();
    std::fs::write(room.tasks().join("file"), "").unwrap();
    symlink(&elsewhere, room.tasks().join("link")).unwrap();
    let theirs = room.task("theirs").await;
    // Only root can give things away; for everybody else there are none of others.
    let foreign = std::os::unix::fs::chown(theirs.path(), Some(12345), None).is_ok()
        && std::fs::metadata(theirs.path()).unwrap().uid() == 12345;
    assert_eq!(names(&room.left(if foreign { &[] } else { &["theirs"] }).await), [""; 0]);
    for name in ["bare", "file", "link", "never"] {
        let refused = room.reap(Reap { discard_login: true, ..choice(name) }).await;
        assert!(matches!(refused, Err(ReapError::Absent { .. })), "{name}: {refused:?}");
    }
    assert!(elsewhere.join("workdir").exists() && room.tasks().join("bare/src").exists());
}

#[tokio::test]
async fn an_agent_is_told_and_ended_only_by_its_name() {
    let room = Room::new();
    let dir = room.task("agent").await;
    let agent = room.agent(&dir, "sleep 600").await;
    let left = room.left(&[]).await;
    assert_eq!(left[0].agent, Some(agent));
    assert!(left[0].mark.as_deref().unwrap().starts_with("run-"), "{left:?}");

    let other = AgentIdentity { start_time: agent.start_time + 1, ..agent };
    for named in [None, Some(other)] {
        let refused = room.reap(Reap { agent: named, ..choice("agent") }).await;
        assert!(matches!(refused, Err(ReapError::OtherAgent { found, .. }) if found == agent), "{refused:?}");
    }
    assert_eq!(room.host.guard_state(&dir).await.unwrap(), AgentState::Running(agent), "nothing was touched");

    let reaped = room.reap(Reap { agent: Some(agent), ..choice("agent") }).await.unwrap();
    assert_eq!((reaped.ended, reaped.killed), (Some(agent), 0));
    assert!(!lives(agent.pid));
    assert!(!dir.path().exists());
    assert_eq!(room.left(&[]).await, []);
}

#[tokio::test]
async fn what_does_not_end_when_asked_and_what_has_left_its_group_is_killed() {
    let room = Room::new();
    let dir = room.task("stubborn").await;
    let agent =
        room.agent(&dir, "trap '' TERM; setsid sleep 601 & echo $! >child; while :; do sleep 1; done").await;
    let child = dir.workdir().join("child");
    until("child", async || std::fs::read_to_string(&child).is_ok_and(|pid| pid.ends_with('\n'))).await;
    let child: u32 = std::fs::read_to_string(child).unwrap().trim().parse().unwrap();
    let reaped = room.reap(Reap { agent: Some(agent), ..choice("stubborn") }).await.unwrap();
    assert!(reaped.killed >= 2, "{reaped:?}");
    for pid in [agent.pid, child] {
        assert!(!lives(pid), "{pid}");
    }
    assert!(!dir.path().exists());
}

#[tokio::test]
async fn an_agent_that_has_ended_meanwhile_is_no_obstacle_and_what_it_started_is_killed() {
    let room = Room::new();
    let dir = room.task("ended").await;
    let agent = room.agent(&dir, "setsid sleep 602 & read _ <fifo || sleep 1").await;
    until("end", async || matches!(room.host.guard_state(&dir).await.unwrap(), AgentState::Exited { .. }))
        .await;
    assert_eq!(room.left(&[]).await[0].agent, None);
    let reaped = room.reap(Reap { agent: Some(agent), ..choice("ended") }).await.unwrap();
    assert_eq!((reaped.ended, reaped.killed), (None, 1));
    assert!(!dir.path().exists());
}

#[tokio::test]
async fn a_login_is_told_and_goes_only_when_it_is_given_up() {
    let room = Room::new();
    // The second one is what a restore that was cut off leaves.
    for at in ["workdir/home/.codex/auth.json", ".optio-x.new/home/.codex/auth.json"] {
        let dir = room.task("login").await;
        let agent = room.agent(&dir, "sleep 600").await;
        room.login(&dir, at).await;
        assert!(room.left(&[]).await[0].has_login, "{at}");
        let chosen = Reap { agent: Some(agent), ..choice("login") };
        match room.reap(chosen.clone()).await {
            Err(ReapError::HasLogin { path, .. }) => assert_eq!(path, dir.path().display().to_string()),
            other => panic!("{other:?}"),
        }
        assert_eq!(room.host.guard_state(&dir).await.unwrap(), AgentState::Running(agent), "untouched");
        room.reap(Reap { discard_login: true, ..chosen }).await.unwrap();
        assert!(!dir.path().exists());
    }
}

#[tokio::test]
async fn a_login_that_an_agent_writes_as_its_last_deed_is_kept() {
    let room = Room::new();
    let dir = room.task("late").await;
    let agent = room
        .agent(
            &dir,
            "trap 'mkdir -p home/.codex; echo new >home/.codex/auth.json; exit' TERM
            : >ready
            while :; do sleep 0.05; done",
        )
        .await;
    until("trap", async || dir.workdir().join("ready").exists()).await;
    let kept = room.reap(Reap { agent: Some(agent), ..choice("late") }).await;
    assert!(matches!(kept, Err(ReapError::HasLogin { .. })), "{kept:?}");
    assert_eq!(std::fs::read_to_string(dir.workdir().join("home/.codex/auth.json")).unwrap(), "new\n");
}

#[tokio::test]
async fn what_cannot_be_looked_into_may_hold_a_login() {
    let room = Room::new();
    let dir = room.task("shut").await;
    room.login(&dir, "workdir/home/.codex/auth.json").await;
    let home = dir.workdir().join("home");
    std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o000)).unwrap();
    let refused = room.reap(choice("shut")).await;
    assert!(matches!(refused, Err(ReapError::HasLogin { .. })), "{refused:?}");
}

#[tokio::test]
async fn what_is_known_is_never_reaped() {
    let room = Room::new();
    let dir = room.task("known").await;
    let chosen = Reap { discard_login: true, ..choice("known") };
    let refused = reap(&room.host, &set(&["known"]), &chosen).await;
    assert!(matches!(refused, Err(ReapError::Known { .. })), "{refused:?}");
    assert!(dir.path().exists());
}
