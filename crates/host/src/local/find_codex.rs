//! Finding the codex program of this machine.
//!
//! What a person calls codex is often npm's launcher, a script that starts the native program. A session needs the
//! native one: it must be the process we signal, and a copy or link of the script alone is broken (S-225, S-464).

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{HostError, Result};
use crate::{CodexBinary, Command, EnvPlan, Output};

/// Limit of asking a shell or codex itself; the real one answers in 0.1 s (LAB), a cold disk takes a few seconds.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// Programs remembered; an operator has one or two, and an update brings another.
const KNOWN_LIMIT: usize = 16;
const HOW_TO_GET: &str =
    "install it with `npm install -g @openai/codex`, or name the native codex program in the configuration";
/// The launcher's place in its npm package.
const LAUNCHER: &str = "@openai/codex/bin/codex.js";

/// The native program's npm package and target triple on this machine, as the launcher itself has them.
const NATIVE: Option<(&str, &str)> =
    match (std::env::consts::OS.as_bytes(), std::env::consts::ARCH.as_bytes()) {
        (b"linux", b"x86_64") => Some(("codex-linux-x64", "x86_64-unknown-linux-musl")),
        (b"linux", b"aarch64") => Some(("codex-linux-arm64", "aarch64-unknown-linux-musl")),
        (b"macos", b"x86_64") => Some(("codex-darwin-x64", "x86_64-apple-darwin")),
        (b"macos", b"aarch64") => Some(("codex-darwin-arm64", "aarch64-apple-darwin")),
        _ => None,
    };

/// What is known of the programs that were asked before, for as long as their files stay as they were.
#[derive(Debug, Default)]
pub(super) struct KnownBinaries {
    known: Mutex<HashMap<PathBuf, (Stamp, CodexBinary)>>,
}

impl KnownBinaries {
    /// Finds, resolves and asks a codex (see [`crate::Host::find_codex`]).
    pub(super) async fn find(&self, wanted: Option<&Path>, home: &Path) -> Result<CodexBinary> {
        let path = match wanted {
            Some(wanted) => expand(wanted, home)?,
            None => ask_shell(&EnvPlan::default()).await?,
        };
        let (path, stamp) = super::blocking(move || resolve(&path)).await?;
        if let Some(known) = self.known(&path, stamp) {
            return Ok(known);
        }
        let version = version(&path, &ask(&path, &["--version"]).await?)?;
        let help = ask(&path, &["app-server", "--help"]).await?;
        let can_listen = help.success() && can_listen(&String::from_utf8_lossy(&help.stdout));
        let binary = CodexBinary { path, version, can_listen };
        self.remember(stamp, binary.clone());
        Ok(binary)
    }

    fn known(&self, path: &Path, stamp: Stamp) -> Option<CodexBinary> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(path).filter(|(then, _)| *then == stamp).map(|(_, binary)| binary.clone())
    }

    fn remember(&self, stamp: Stamp, binary: CodexBinary) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_LIMIT {
            known.clear();
        }
        known.insert(binary.path.clone(), (stamp, binary));
    }
}

/// What changes when a program's file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

fn expand(wanted: &Path, home: &Path) -> Result<PathBuf> {
    let path = match wanted.strip_prefix("~") {
        Ok(below) => home.join(below),
        Err(_) => wanted.to_path_buf(),
    };
    if path.is_absolute() {
        return Ok(path);
    }
    Err(unusable(wanted, "its path must be absolute, or start with '~/'"))
}

/// Asks a login shell, so that a `PATH` from the user's profile counts (S-244), and then a plain one: a profile may
/// set `PATH` anew (Debian's does) and so lose what the service itself was started with.
async fn ask_shell(env: &EnvPlan) -> Result<PathBuf> {
    let mut known_as = None;
    for flag in ["-lc", "-c"] {
        let command =
            Command { limit: ASK_LIMIT, env: env.clone(), ..Command::new(["sh", flag, "command -v codex"]) };
        let said = super::programs::run(command, Path::new("/")).await?;
        let text = String::from_utf8_lossy(&said.stdout);
        // A profile may print what it likes: only the last line is the answer.
        let last = text.lines().next_back().unwrap_or_default().trim();
        if said.success() && last.starts_with('/') {
            return Ok(last.into());
        }
        if said.success() {
            known_as = Some(last.to_owned());
        }
    }
    let why = match known_as {
        Some(word) => format!("the shell knows it as {word:?}, which is no file; {HOW_TO_GET}"),
        None => format!("it is on neither the login shell's PATH nor the service's own; {HOW_TO_GET}"),
    };
    Err(HostError::Program { program: "codex".into(), why })
}

/// Follows links, and npm's launcher, to the native program.
fn resolve(named: &Path) -> Result<(PathBuf, Stamp)> {
    let path = std::fs::canonicalize(named).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => unusable(named, &format!("it does not exist; {HOW_TO_GET}")),
        _ => unusable(named, &error.to_string()),
    })?;
    if !is_script(&path)? {
        return stamp(&path).map(|stamp| (path, stamp));
    }
    if !path.ends_with(LAUNCHER) {
        let why = format!("it is a script, which cannot be signalled as codex must be; {HOW_TO_GET}");
        return Err(unusable(&path, &why));
    }
    let Some((package, triple)) = NATIVE else {
        return Err(unusable(
            &path,
            "it is npm's launcher, and there is no native codex for this kind of machine",
        ));
    };
    let candidates = candidates(&path, package, triple);
    for native in &candidates {
        if let Ok(stamp) = stamp(native) {
            return Ok((native.clone(), stamp));
        }
    }
    let first = candidates.first().map(|path| path.display().to_string()).unwrap_or_default();
    let why = format!(
        "it is npm's launcher, and the program behind it is missing (looked for {first}); {HOW_TO_GET}"
    );
    Err(unusable(&path, &why))
}

/// Where node would find the launcher's native package: in a `node_modules` of the package itself, then of each
/// directory above it; older launchers carry the program within.
fn candidates(launcher: &Path, package: &str, triple: &str) -> Vec<PathBuf> {
    let Some(own) = launcher.ancestors().nth(2) else {
        return Vec::new();
    };
    let program = |vendor: PathBuf| vendor.join("vendor").join(triple).join("bin/codex");
    let above = own.ancestors().filter(|dir| !dir.ends_with("node_modules"));
    let mut candidates: Vec<_> =
        above.map(|dir| program(dir.join("node_modules/@openai").join(package))).collect();
    candidates.push(program(own.to_path_buf()));
    candidates
}

fn is_script(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(2).read_to_end(&mut start))
        .map_err(|error| unusable(path, &error.to_string()))?;
    Ok(start == b"#!")
}

fn stamp(path: &Path) -> Result<Stamp> {
    let found = std::fs::metadata(path).map_err(|error| unusable(path, &error.to_string()))?;
    if !found.is_file() || found.mode() & 0o111 == 0 {
        return Err(unusable(path, &format!("it is not an executable file; {HOW_TO_GET}")));
    }
    Ok(Stamp {
        device: found.dev(),
        inode: found.ino(),
        len: found.len(),
        modified: (found.mtime(), found.mtime_nsec()),
    })
}

async fn ask(path: &Path, words: &[&str]) -> Result<Output> {
    let Some(program) = path.to_str() else {
        return Err(unusable(path, "its path is not UTF-8"));
    };
    let words = std::iter::once(program).chain(words.iter().copied());
    super::programs::run(Command { limit: ASK_LIMIT, ..Command::new(words) }, Path::new("/")).await
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

    use super::*;

    #[tokio::test]
    async fn the_shell_finds_codex_on_the_path_the_service_was_started_with() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let codex = temp.path().join("codex");
        std::fs::write(&codex, "").unwrap();
        std::fs::set_permissions(&codex, std::fs::Permissions::from_mode(0o755)).unwrap();
        // Without a home there is no profile of the developer's; the machine's own may still set PATH anew.
        let add =
            [("HOME", "/nowhere"), ("PATH", "/usr/bin:/bin")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let env = EnvPlan { add: add.into(), path_prefix: vec![temp.path().into()], ..EnvPlan::default() };
        let found = ask_shell(&env).await.unwrap();
        let installed = ["/usr/local/bin/codex", "/usr/bin/codex", "/bin/codex"].map(PathBuf::from);
        assert!(found == codex || installed.contains(&found), "{found:?}");
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
    fn the_native_program_is_looked_for_where_node_looks() {
        let launcher = Path::new("/usr/lib/node_modules/@openai/codex/bin/codex.js");
        let tail = "vendor/t/bin/codex";
        let want = [
            format!("/usr/lib/node_modules/@openai/codex/node_modules/@openai/p/{tail}"),
            format!("/usr/lib/node_modules/@openai/node_modules/@openai/p/{tail}"),
            format!("/usr/lib/node_modules/@openai/p/{tail}"),
            format!("/usr/node_modules/@openai/p/{tail}"),
            format!("/node_modules/@openai/p/{tail}"),
            format!("/usr/lib/node_modules/@openai/codex/{tail}"),
        ];
        let got = candidates(launcher, "p", "t");
        assert_eq!(got, want.iter().map(PathBuf::from).collect::<Vec<_>>());
    }

    #[test]
    fn listening_needs_the_option_and_the_unix_scheme() {
        assert!(can_listen("--listen <URL>\n Supported: `stdio://`, `unix://PATH`"));
        assert!(!can_listen("--listen <URL>\n Supported: `ws://IP:PORT`"));
        assert!(!can_listen("unix://"));
    }
}
