//! The real codex: where it is, and a home to run it in by hand.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::Command;

use crate::auth::KEY_VARIABLE;

/// Finds the native codex program: `$OPTIO_TEST_CODEX`, else the one that `make setup-test` installs, else `$PATH`.
///
/// # Panics
/// When there is none, saying how to get one. A test of the whole program without codex would test nothing.
pub fn codex_binary() -> PathBuf {
    if let Some(named) = std::env::var_os("OPTIO_TEST_CODEX") {
        let named = PathBuf::from(named);
        return native(&named)
            .unwrap_or_else(|| panic!("OPTIO_TEST_CODEX names {}, which is no codex", named.display()));
    }
    let installed = tools_dir().join("bin/codex");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("codex"));
    std::iter::once(installed)
        .chain(on_path)
        .find_map(|candidate| native(&candidate))
        .expect("there is no codex to test with: run `make setup-test`, or name one in OPTIO_TEST_CODEX")
}

/// The directory that `scripts/setup` installs into.
pub fn tools_dir() -> PathBuf {
    std::env::var_os("OPTIO_TOOLS").map_or_else(|| repository().join(".tools"), PathBuf::from)
}

/// The directory of the whole project.
pub fn repository() -> PathBuf {
    let kit = Path::new(env!("CARGO_MANIFEST_DIR"));
    kit.ancestors().nth(2).expect("the kit lies in tests/kit of the repository").to_owned()
}

/// Follows links, and npm's launcher script to the program it starts: signals and process ids are then codex's own.
fn native(candidate: &Path) -> Option<PathBuf> {
    let program = candidate.canonicalize().ok().filter(|program| program.is_file())?;
    if program.extension().is_none() {
        return Some(program);
    }
    let scope = program.ancestors().find(|dir| dir.ends_with("@openai"))?;
    let packages = std::fs::read_dir(scope).ok()?.flatten().map(|package| package.path().join("vendor"));
    let targets = packages.filter_map(|vendor| std::fs::read_dir(vendor).ok()).flatten().flatten();
    targets.map(|target| target.path().join("bin/codex")).find(|program| program.is_file())
}

/// A `CODEX_HOME` of its own with an empty `HOME` and a workdir beside it, gone when dropped.
pub struct CodexHome {
    root: TempDir,
}

impl CodexHome {
    /// Makes a home with this `config.toml` and nothing else.
    pub fn new(config_toml: &str) -> Self {
        let root =
            tempfile::Builder::new().prefix("codex-home-").tempdir().expect("the temp directory is writable");
        for dir in ["codex", "home", "work"] {
            std::fs::create_dir(root.path().join(dir)).expect("a new directory is empty");
        }
        let home = Self { root };
        std::fs::write(home.dir().join("config.toml"), config_toml).expect("a new home is writable");
        home
    }

    /// Puts an `auth.json` in.
    #[must_use]
    pub fn with_auth(self, auth_json: &[u8]) -> Self {
        std::fs::write(self.dir().join("auth.json"), auth_json).expect("a new home is writable");
        self
    }

    /// The `CODEX_HOME`.
    pub fn dir(&self) -> PathBuf {
        self.root.path().join("codex")
    }

    /// The directory codex works in.
    pub fn workdir(&self) -> PathBuf {
        self.root.path().join("work")
    }

    /// The `auth.json` as it is now; empty when there is none.
    pub fn auth_json(&self) -> Vec<u8> {
        std::fs::read(self.dir().join("auth.json")).unwrap_or_default()
    }

    /// Prepares the real codex in this home: nothing of the developer's environment but `PATH`, killed when dropped.
    pub fn command(&self) -> Command {
        let mut command = Command::new(codex_binary());
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CODEX_HOME", self.dir())
            .env("HOME", self.root.path().join("home"))
            .env(KEY_VARIABLE, "sk-mock")
            .current_dir(self.workdir())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Prepares one `codex exec --json` turn, unsandboxed and never asking.
    pub fn exec(&self, prompt: &str) -> Command {
        let mut command = self.command();
        command.args(["exec", "--json", "--skip-git-repo-check", "--sandbox", "danger-full-access", prompt]);
        command
    }
}
