//! What a machine has: the script runs for real, under an environment of the test's, on a fake that has
//! nothing else.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use optio_host::fake::FakeHost;
use optio_host::provision::InPlace;
use optio_host::survey::{Survey, survey};
use optio_host::{CodexBinary, ExitStatus, HostError, LocalHost, LocalHostConfig};
use tokio::io::AsyncWriteExt;

/// Every program that sessions need of a system.
const BASICS: &str = "cat chmod cp date df du env find grep head id ln ls mkdir mv readlink rm rmdir sed \
                      setsid sleep stat tail timeout touch uname wc";

/// A login shell that reads the user's profile and not the machine's, which may set `PATH` anew.
const LOGIN_SHELL: &str = r#"#!/bin/sh
if [ "$1" = -lc ]; then
    shift
    . "$HOME/.profile"
    exec /bin/sh -c "$@"
fi
exec /bin/sh "$@"
"#;

/// A machine with these basics, and with a home whose profile talks and adds `~/more` to `PATH`.
struct Machine {
    fake: FakeHost,
    home: tempfile::TempDir,
}

impl Machine {
    fn with(basics: &str) -> Self {
        let home = tempfile::Builder::new().prefix("it's a home ").tempdir().unwrap();
        let bin = home.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        for name in basics.split_whitespace() {
            let real = ["/bin", "/usr/bin"].map(|dir| Path::new(dir).join(name));
            symlink(real.iter().find(|path| path.exists()).unwrap(), bin.join(name)).unwrap();
        }
        executable(&bin.join("sh"), LOGIN_SHELL);
        std::fs::write(
            home.path().join(".profile"),
            "echo arch fake; PATH=\"$PATH:$HOME/more\"; printf hello\n",
        )
        .unwrap();
        let fake = FakeHost::new();
        let root = home.path().to_owned();
        fake.on_program(move |mut launch| {
            let (root, bin) = (root.clone(), bin.clone());
            async move {
                let mut program = tokio::process::Command::new("/bin/sh");
                program.args(&launch.argv[1..]).env_clear().env("PATH", &bin).env("HOME", &root);
                let said = program.current_dir("/").stdin(Stdio::null()).output().await.unwrap();
                launch.stdout.write_all(&said.stdout).await.unwrap();
                launch.stderr.write_all(&said.stderr).await.unwrap();
                said.status.code().map_or(ExitStatus::Unknown, ExitStatus::Code)
            }
        });
        Self { fake, home }
    }

    fn tool(&self, at: &str, says: &str) -> PathBuf {
        let path = self.home.path().join(at);
        executable(&path, &format!("#!/bin/sh\necho '{says}'\necho 'and more'\n"));
        path
    }

    async fn survey(&self) -> Survey {
        survey(&self.fake, &InPlace, None).await.unwrap()
    }
}

fn executable(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn problem<'a>(survey: &'a Survey, about: &str) -> Option<&'a String> {
    survey.problems.iter().find(|problem| problem.starts_with(about))
}

#[tokio::test]
async fn a_machine_that_has_all_has_no_problems() {
    let machine = Machine::with(BASICS);
    let codex = CodexBinary { path: "/opt/codex".into(), version: "0.142.5".into(), can_listen: true };
    machine.fake.codex(codex);
    // By the profile, by the service's own, and where it is put.
    let tmux = machine.tool("more/tmux", "tmux 3.3a");
    let tar = machine.tool("bin/tar", "tar (GNU tar) 1.34");
    let ttyd = machine.tool(".local/bin/ttyd", "ttyd version 1.7.7-40e79c7");
    let found = machine.survey().await;
    // Only root may make the fake's task root on the machine that plays it.
    let problems: Vec<_> = found.problems.iter().filter(|told| !told.starts_with("/fake/tasks ")).collect();
    assert_eq!(problems, [""; 0]);
    for (tool, path, version) in [
        (&found.tools.tmux, &tmux, "3.3a"),
        (&found.tools.tar, &tar, "1.34"),
        (&found.tools.ttyd, &ttyd, "1.7.7-40e79c7"),
    ] {
        let tool = tool.as_ref().unwrap();
        assert_eq!((&tool.path, tool.version.as_deref()), (path, Some(version)));
    }
    assert_eq!(found.tools.bwrap, None);
    assert_eq!(found.home.as_deref(), Some(machine.home.path()));
    assert_ne!(found.arch.as_deref(), Some("fake"), "what a profile prints is no answer");
    let disk = found.disk.as_ref().unwrap();
    assert!(disk.free_bytes > 0 && disk.total_bytes >= disk.free_bytes, "{disk:?}");

    let api = serde_json::to_value(&found).unwrap();
    assert_eq!(api["tools"]["codex"]["path"], "/opt/codex");
    assert_eq!(api["tools"]["codex"]["version"], "0.142.5");
    assert_eq!(api["tools"]["bwrap"], serde_json::Value::Null);
    assert_eq!(api["disk"]["free_bytes"], disk.free_bytes);
}

#[tokio::test]
async fn what_is_missing_is_none_and_a_sentence_says_what_to_do() {
    let basics = BASICS.replace("setsid ", "").replace(" wc", "");
    let machine = Machine::with(&basics);
    let found = machine.survey().await;
    assert_eq!(found.tools, Default::default());
    for (about, what_to_do) in [
        ("tmux is missing", "install the package tmux"),
        ("ttyd is missing", "brings it along"),
        ("tar is missing", "install the package tar"),
        ("bwrap is missing", "install the package bubblewrap"),
        ("codex cannot be used", "brings it along"),
        ("setsid, wc are missing", "util-linux"),
    ] {
        let told = problem(&found, about).unwrap_or_else(|| panic!("{about}: {:?}", found.problems));
        assert!(told.contains(what_to_do), "{told}");
    }
}

#[tokio::test]
async fn a_foreign_machine_is_told_by_what_it_says_of_itself() {
    let machine = Machine::with(&BASICS.replace(" uname", ""));
    executable(
        &machine.home.path().join("bin/uname"),
        "#!/bin/sh\ncase $1 in -m) echo riscv64 ;; -sr) echo FreeBSD 14.1 ;; *) echo FreeBSD ;; esac\n",
    );
    machine.tool("bin/tar", "bsdtar 3.7.2 - libarchive 3.7.2");
    let found = machine.survey().await;
    assert_eq!(found.arch.as_deref(), Some("riscv64"));
    assert!(problem(&found, "its processor is riscv64").is_some(), "{:?}", found.problems);
    assert!(problem(&found, "its kernel is FreeBSD").is_some(), "{:?}", found.problems);
    assert!(problem(&found, "tar is not GNU tar (bsdtar 3.7.2").is_some(), "{:?}", found.problems);
}

#[tokio::test]
async fn a_tool_that_hangs_is_there_without_a_version() {
    let machine = Machine::with(BASICS);
    executable(&machine.home.path().join("bin/tmux"), "#!/bin/sh\nexec sleep 30\n");
    let tmux = machine.survey().await.tools.tmux.unwrap();
    assert_eq!((tmux.path, tmux.version), (machine.home.path().join("bin/tmux"), None));
}

#[tokio::test]
async fn a_codex_that_the_operator_names_and_that_is_no_codex_is_told_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let config = LocalHostConfig {
        task_root: Some(temp.path().join("not/yet made")),
        socket_root: Some(temp.path().join("sockets")),
    };
    let host = LocalHost::new(config).unwrap();
    let wanted = temp.path().join("codex");
    let found = survey(&host, &InPlace, Some(&wanted)).await.unwrap();
    assert_eq!(found.tools.codex, None);
    let told = problem(&found, wanted.to_str().unwrap()).unwrap();
    assert!(told.contains("does not exist") && !told.contains("brings it along"), "{told}");
    assert_eq!(found.disk.unwrap().path, temp.path().join("not/yet made"));
    assert!(!temp.path().join("not").exists(), "looking makes nothing");
}

#[tokio::test]
async fn a_machine_that_cannot_be_asked_is_an_error() {
    let fake = FakeHost::new();
    fake.on_program(async |_| ExitStatus::Code(127));
    assert!(matches!(survey(&fake, &InPlace, None).await, Err(HostError::Failed { .. })));
}
