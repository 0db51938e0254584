//! Finding the codex program of a host.
//!
//! What a person calls codex is often npm's launcher, a script that starts the native program. A session
//! needs the native one: it must be the process we signal, and a copy or link of the script alone is broken
//! (S-225, S-464).
//!
//! One script (`find_codex.sh`) finds it on the host, in one round trip, and says what its file is; the
//! program itself is asked only when that file is not known yet.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{HostError, Result};
use crate::{CodexBinary, Command, EnvPlan, Host, Output};

const SCRIPT: &str = include_str!("find_codex.sh");

/// Limit of asking codex itself; the real one answers in 0.1 s (LAB), a cold disk takes a few seconds.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// Limit of the script: two shells with whatever their profiles do, each as long as codex itself.
const LOOK_LIMIT: Duration = Duration::from_secs(20);
/// Programs remembered; an operator has one or two, and an update brings another.
const KNOWN_LIMIT: usize = 16;
const HOW_TO_GET: &str =
    "install it with `npm install -g @openai/codex`, or name the native codex program in the configuration";

/// What is known of the programs of one host that were asked before, for as long as their files stay as they
/// were.
#[derive(Debug, Default)]
pub(crate) struct KnownBinaries {
    known: Mutex<HashMap<PathBuf, (Stamp, CodexBinary)>>,
}

/// What changes when a program's file does, as the host words it: device, inode, length and time.
type Stamp = String;

impl KnownBinaries {
    /// Finds, resolves and asks a codex of `host` (see [`Host::find_codex`]).
    pub(crate) async fn find(&self, host: &dyn Host, wanted: Option<&Path>) -> Result<CodexBinary> {
        let wanted = match wanted {
            Some(wanted) => Some(expand(host, wanted).await?),
            None => None,
        };
        let (path, stamp) = look(host, wanted.as_deref(), EnvPlan::default()).await?;
        if let Some(known) = self.known(&path, &stamp) {
            return Ok(known);
        }
        let version = version(&path, &ask(host, &path, &["--version"]).await?)?;
        let help = ask(host, &path, &["app-server", "--help"]).await?;
        let can_listen = help.success() && can_listen(&String::from_utf8_lossy(&help.stdout));
        let binary = CodexBinary { path, version, can_listen };
        self.remember(stamp, binary.clone());
        Ok(binary)
    }

    fn known(&self, path: &Path, stamp: &Stamp) -> Option<CodexBinary> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(path).filter(|(then, _)| then == stamp).map(|(_, binary)| binary.clone())
    }

    fn remember(&self, stamp: Stamp, binary: CodexBinary) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_LIMIT {
            known.clear();
        }
        known.insert(binary.path.clone(), (stamp, binary));
    }
}

async fn expand(host: &dyn Host, wanted: &Path) -> Result<PathBuf> {
    let path = match wanted.strip_prefix("~") {
        Ok(below) => host.home().await?.join(below),
        Err(_) => wanted.to_path_buf(),
    };
    if path.is_absolute() {
        return Ok(path);
    }
    Err(unusable(wanted, "its path must be absolute, or start with '~/'"))
}

/// Has the script look for the native program. `env` is what differs from the environment of the host's user.
async fn look(host: &dyn Host, wanted: Option<&Path>, env: EnvPlan) -> Result<(PathBuf, Stamp)> {
    let wanted = match wanted {
        Some(wanted) => wanted.to_str().ok_or_else(|| unusable(wanted, "its path is not UTF-8"))?,
        None => "",
    };
    let looking = command(["sh", "-c", SCRIPT, "sh", wanted], LOOK_LIMIT);
    let said = host.run(Command { env, ..looking }).await?;
    let text = String::from_utf8_lossy(&said.stdout);
    let mut parts = text.splitn(3, '\n');
    let (Some(word), Some(about), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(HostError::Failed {
            what: "looking for codex".into(),
            status: said.status.to_string(),
            stderr: String::from_utf8_lossy(&said.stderr).trim().chars().take(1024).collect(),
        });
    };
    let path = Path::new(path);
    let why = match word {
        "found" => return Ok((path.to_owned(), about.to_owned())),
        "unknown" => {
            let why = format!("it is on neither the login shell's PATH nor the service's own; {HOW_TO_GET}");
            return Err(unusable(Path::new("codex"), &why));
        }
        "word" => {
            let why = format!("the shell knows it as {about:?}, which is no file; {HOW_TO_GET}");
            return Err(unusable(Path::new("codex"), &why));
        }
        "missing" => format!("it does not exist; {HOW_TO_GET}"),
        "broken" => about.to_owned(),
        "plain" => format!("it is not an executable file; {HOW_TO_GET}"),
        "script" => format!("it is a script, which cannot be signalled as codex must be; {HOW_TO_GET}"),
        "foreign" => "it is npm's launcher, and there is no native codex for this kind of machine".to_owned(),
        "empty" => format!(
            "it is npm's launcher, and the program behind it is missing (looked for {about}); {HOW_TO_GET}"
        ),
        other => format!("it was looked for with an answer that is none ({other:?})"),
    };
    Err(unusable(path, &why))
}

async fn ask(host: &dyn Host, path: &Path, words: &[&str]) -> Result<Output> {
    let Some(program) = path.to_str() else {
        return Err(unusable(path, "its path is not UTF-8"));
    };
    let mut asking = command(std::iter::once(program).chain(words.iter().copied()), ASK_LIMIT);
    // Each start of codex makes a directory in its home; a question shall leave nothing in the user's.
    asking.env.add.insert("CODEX_HOME".to_owned(), "/dev/null".to_owned());
    host.run(asking).await
}

/// A command that does not depend on the user's home being there.
fn command<'a>(words: impl IntoIterator<Item = &'a str>, limit: Duration) -> Command {
    Command { limit, cwd: Some(PathBuf::from("/")), ..Command::new(words) }
}

/// Accepts `codex-cli <semver>` and nothing else.
fn version(path: &Path, said: &Output) -> Result<String> {
    let text = String::from_utf8_lossy(&said.stdout);
    let version = text.trim().strip_prefix("codex-cli ").filter(|version| is_semver(version));
    match version {
        Some(version) if said.success() => Ok(version.to_owned()),
        _ => {
            let seen: String = text.chars().take(100).collect();
            let status = said.status;
            let why = format!(
                "it answered `--version` with {seen:?} ({status}), not with `codex-cli x.y.z`; {HOW_TO_GET}"
            );
            Err(unusable(path, &why))
        }
    }
}

fn is_semver(text: &str) -> bool {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    core.split('.').count() == 3 && core.split('.').all(number) && !text.contains(char::is_whitespace)
}

/// Reads a help text: `--listen` alone is not enough, it must take `unix://` (DESIGN §7).
fn can_listen(help: &str) -> bool {
    help.contains("--listen") && help.contains("unix://")
}

fn unusable(path: &Path, why: &str) -> HostError {
    HostError::Program { program: path.display().to_string(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::{LocalHost, LocalHostConfig};

    fn executable(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn host(temp: &Path) -> LocalHost {
        let (task_root, socket_root) = (Some(temp.join("tasks")), Some(temp.join("sockets")));
        LocalHost::new(LocalHostConfig { task_root, socket_root }).unwrap()
    }

    /// An environment in which only `home`'s profile is read, and whose own `PATH` begins with `first`.
    fn env(home: &Path, first: &Path) -> EnvPlan {
        let home = home.to_str().unwrap();
        let add = [("HOME", home), ("PATH", "/usr/bin:/bin")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        EnvPlan { add: add.into(), path_prefix: vec![first.into()], ..EnvPlan::default() }
    }

    #[tokio::test]
    async fn the_shell_finds_codex_on_the_path_the_service_was_started_with() {
        let temp = tempfile::tempdir().unwrap();
        let codex = temp.path().join("codex");
        executable(&codex, "");
        // Without a home there is no profile of the developer's; the machine's own may still set PATH anew.
        let env = env(Path::new("/nowhere"), temp.path());
        let (found, _) = look(&host(temp.path()), None, env).await.unwrap();
        let installed = ["/usr/local/bin/codex", "/usr/bin/codex", "/bin/codex"]
            .map(|path| std::fs::canonicalize(path).unwrap_or_default());
        assert!(found == codex || installed.contains(&found), "{found:?}");
    }

    #[tokio::test]
    async fn a_profile_that_talks_and_sets_path_decides_before_the_services_own_path() {
        let temp = tempfile::tempdir().unwrap();
        let (theirs, ours) = (temp.path().join("it's theirs/codex"), temp.path().join("ours/codex"));
        executable(&theirs, "");
        executable(&ours, "");
        let dir = theirs.parent().unwrap().display();
        let profile = format!("echo /not/this\nprintf welcome >&2\nPATH=\"{dir}:$PATH\"\necho 'good day'\n");
        std::fs::write(temp.path().join(".profile"), profile).unwrap();
        let env = env(temp.path(), ours.parent().unwrap());
        let (found, _) = look(&host(temp.path()), None, env).await.unwrap();
        assert_eq!(found, theirs);
    }

    #[tokio::test]
    async fn a_shell_that_knows_codex_as_no_file_is_quoted() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join(".profile"), "codex() { :; }\n").unwrap();
        let mut env = env(temp.path(), temp.path());
        // The plain shell must not find one that the machine has.
        std::os::unix::fs::symlink("/bin/sh", temp.path().join("sh")).unwrap();
        env.add.insert("PATH".into(), temp.path().to_str().unwrap().into());
        let error = look(&host(temp.path()), None, env).await.unwrap_err();
        assert!(error.to_string().contains("knows it as \"codex\""), "{error}");
    }

    #[tokio::test]
    async fn the_launchers_program_is_that_of_the_hosts_processor_and_not_of_ours() {
        let temp = tempfile::tempdir().unwrap();
        let launcher = temp.path().join("node_modules/@openai/codex/bin/codex.js");
        executable(&launcher, "#!/usr/bin/env node\n");
        let bin = temp.path().join("bin");
        let programs = [
            ("x86_64", "codex-linux-x64/vendor/x86_64-unknown-linux-musl"),
            ("aarch64", "codex-linux-arm64/vendor/aarch64-unknown-linux-musl"),
        ];
        for (_, native) in programs {
            let native = temp.path().join("node_modules/@openai").join(native).join("bin/codex");
            executable(&native, "\x7fELF");
        }
        let host = host(temp.path());
        for (arch, native) in programs {
            executable(&bin.join("uname"), &format!("#!/bin/sh\necho Linux {arch}\n"));
            let env = env(Path::new("/nowhere"), &bin);
            let (found, _) = look(&host, Some(&launcher), env).await.unwrap();
            assert_eq!(found, temp.path().join("node_modules/@openai").join(native).join("bin/codex"));
        }
        executable(&bin.join("uname"), "#!/bin/sh\necho Linux riscv64\n");
        let error = look(&host, Some(&launcher), env(Path::new("/nowhere"), &bin)).await.unwrap_err();
        assert!(error.to_string().contains("no native codex for this kind of machine"), "{error}");
    }

    #[tokio::test]
    async fn the_native_program_is_looked_for_where_node_looks() {
        let temp = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(temp.path()).unwrap();
        let own = root.join("lib/node_modules/@openai/codex");
        let launcher = own.join("bin/codex.js");
        executable(&launcher, "#!/usr/bin/env node\n");
        let bin = root.join("bin");
        executable(&bin.join("uname"), "#!/bin/sh\necho Linux x86_64\n");
        let package = "@openai/codex-linux-x64/vendor/x86_64-unknown-linux-musl/bin/codex";
        // From the last to the first: each is taken before those that are there already.
        let places = [
            own.join("vendor/x86_64-unknown-linux-musl/bin/codex"),
            root.join("node_modules").join(package),
            root.join("lib/node_modules").join(package),
            root.join("lib/node_modules/@openai/node_modules").join(package),
            own.join("node_modules").join(package),
        ];
        let host = host(&root);
        for place in places {
            executable(&place, "\x7fELF");
            let env = env(Path::new("/nowhere"), &bin);
            assert_eq!(look(&host, Some(&launcher), env).await.unwrap().0, place);
        }
    }

    #[test]
    fn only_three_numbers_are_a_version() {
        for good in ["0.142.5", "1.0.0-alpha.1", "1.2.3+build"] {
            assert!(is_semver(good), "{good}");
        }
        for bad in ["", "1", "1.2", "1.2.x", "1..3", "1.2.3.4", "1.2.3 and more", "-1.2.3"] {
            assert!(!is_semver(bad), "{bad}");
        }
    }

    #[test]
    fn listening_needs_the_option_and_the_unix_scheme() {
        assert!(can_listen("--listen <URL>\n Supported: `stdio://`, `unix://PATH`"));
        assert!(!can_listen("--listen <URL>\n Supported: `ws://IP:PORT`"));
        assert!(!can_listen("unix://"));
    }
}
