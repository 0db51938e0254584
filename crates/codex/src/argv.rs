//! The command lines and the environment that Codex is started with.
//!
//! A command line is readable by every user of its host, so nothing secret is ever on one: variables travel in the
//! environment, and a configuration whose overrides would carry a secret is refused where it is read.

use std::collections::BTreeMap;

use crate::config::{Effort, SessionConfig};
use crate::sandbox::SandboxSettings;
use crate::workdir;

/// What the agent is told when its session was restored (S-206); an exact text that other programs look for.
pub const RESUME_NOTICE: &str = "System: you have been resumed";

/// What the agent is told when it shall begin by itself (S-021, L-22).
pub const KICKOFF: &str =
    "System: read AGENTS.md in your working directory, then start on the task it describes.";

/// Names of inherited variables that the agent never sees unless the caller opts out (S-249): credentials of whoever
/// started the service are not the agent's. A variable that the caller sets itself always survives.
pub const CREDENTIAL_GLOBS: [&str; 6] =
    ["*_API_KEY", "*_TOKEN", "*_SECRET", "*_PASSWORD", "*_ACCESS_KEY", "*_SECRET_KEY"];

/// The service's own settings, among them its token. No opt-out lets the agent see them.
pub const OWN_GLOB: &str = "OPTIO_CODEX_*";

/// How the app-server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen<'a> {
    /// On a Unix socket at this absolute path of at most 107 bytes (LAB §9).
    Unix(&'a str),
    /// On its pipes; the form that every version knows.
    Stdio,
}

/// Writes the command line of `codex app-server`. The sandbox mode and the approval policy are not on it: they travel
/// in `thread/start` (S-291). Codex takes the last of two overrides, so ours come last.
pub fn app_server(
    codex: &str,
    listen: Listen<'_>,
    config: &SessionConfig,
    sandbox: &SandboxSettings,
) -> Vec<String> {
    let mut argv = vec![codex.to_owned(), "app-server".to_owned()];
    if let Listen::Unix(path) = listen {
        argv.extend(["--listen".to_owned(), format!("unix://{path}")]);
    }
    push_overrides(&mut argv, config.overrides().map(|(key, value)| format!("{key}={value}")));
    push_overrides(&mut argv, sandbox.overrides());
    push_overrides(&mut argv, [FILE_CREDENTIALS.to_owned()]);
    argv
}

/// Writes the command line of an app-server that is there for a login and nothing else, listening at this socket. What it
/// would fetch for an agent stays unfetched.
pub fn login_server(codex: &str, socket: &str) -> Vec<String> {
    let mut argv = vec![codex.to_owned(), "app-server".to_owned()];
    argv.extend(["--listen".to_owned(), format!("unix://{socket}")]);
    push_overrides(&mut argv, LOGIN_DEFAULTS.map(str::to_owned));
    push_overrides(&mut argv, [FILE_CREDENTIALS.to_owned()]);
    argv
}

/// Gives the environment of [`login_server`]: a home of its own, and nobody's credentials. The proxy and the certificates
/// of the service stay, without which some machines reach no login service.
pub fn login_environment(workdir: &str) -> AgentEnvironment {
    let mut remove: Vec<String> = vec![OWN_GLOB.to_owned()];
    remove.extend(CREDENTIAL_GLOBS.map(str::to_owned));
    AgentEnvironment { remove, add: isolation(workdir), path_prefix: Vec::new() }
}

/// Writes the command line that asks Codex once and writes what it says as JSON lines into the file `output`. It may read
/// only, whatever its settings say, and what it would fetch for an agent stays unfetched (T-243).
pub fn probe(codex: &str, output: &str) -> Vec<String> {
    // `exec`, so that the process that is watched and ended is codex itself.
    let mut argv =
        ["sh", "-c", "exec \"$@\" >\"$0\"", output, codex, "exec", "--json"].map(str::to_owned).to_vec();
    argv.extend(["-s", "read-only", "--skip-git-repo-check"].map(str::to_owned));
    push_overrides(&mut argv, LOGIN_DEFAULTS.map(str::to_owned));
    push_overrides(&mut argv, [UNASKED_UPDATE.to_owned(), FILE_CREDENTIALS.to_owned()]);
    argv.push(crate::probe::PROMPT.to_owned());
    argv
}

/// Plugins and apps are fetched from the network at the start of every app-server of 0.142.5 (tried).
const LOGIN_DEFAULTS: [&str; 3] =
    ["features.plugins=false", "features.apps=false", "analytics.enabled=false"];

/// What the terminal program is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TerminalStart<'a> {
    /// The Codex session to go on with.
    pub resume: Option<&'a str>,
    /// The text it begins with: [`KICKOFF`], [`RESUME_NOTICE`], or none (S-254).
    pub prompt: Option<&'a str>,
}

/// Writes the command line of the terminal program (S-253). `resume` is a subcommand and stands before all flags.
pub fn terminal(
    codex: &str,
    start: TerminalStart<'_>,
    config: &SessionConfig,
    sandbox: &SandboxSettings,
) -> Vec<String> {
    let mut argv = vec![codex.to_owned()];
    if let Some(id) = start.resume {
        argv.extend(["resume".to_owned(), id.to_owned()]);
    }
    argv.extend(["--ask-for-approval".to_owned(), config.approval_policy().to_string()]);
    argv.extend(sandbox.terminal_arguments());
    push_overrides(&mut argv, TERMINAL_DEFAULTS.map(str::to_owned));
    if let Some(effort) = config.effort().map(Effort::as_str) {
        push_overrides(&mut argv, [format!("model_reasoning_effort=\"{effort}\"")]);
    }
    push_overrides(&mut argv, config.overrides().map(|(key, value)| format!("{key}={value}")));
    push_overrides(&mut argv, [FILE_CREDENTIALS.to_owned()]);
    if let Some(model) = config.model() {
        argv.extend(["--model".to_owned(), model.to_owned()]);
    }
    argv.extend(start.prompt.map(str::to_owned));
    argv
}

/// Keeps a login where it is watched and saved: Codex would otherwise be free to move it into a keyring and delete
/// `auth.json` (T-124).
const FILE_CREDENTIALS: &str = "cli_auth_credentials_store=\"file\"";

/// Settings without which the terminal program of 0.169 leaves a daemon behind that outlives its tmux, or asks about
/// an update before it takes input (LAB §5). The caller's overrides come later and win.
const TERMINAL_DEFAULTS: [&str; 2] = ["features.daemon_auto_start=false", UNASKED_UPDATE];

/// Nobody is there to be asked about an update.
const UNASKED_UPDATE: &str = "check_for_update_on_startup=false";

fn push_overrides(argv: &mut Vec<String>, settings: impl IntoIterator<Item = String>) {
    for setting in settings {
        argv.extend(["-c".to_owned(), setting]);
    }
}

/// Gives the five variables that keep a session's home inside of its workdir (S-248).
pub fn isolation(workdir: &str) -> BTreeMap<String, String> {
    let below = |relative| workdir::below(workdir, relative);
    [
        ("HOME", below(workdir::HOME)),
        ("CODEX_HOME", below(workdir::CODEX_HOME)),
        ("XDG_CONFIG_HOME", below("home/.config")),
        ("XDG_DATA_HOME", below("home/.local/share")),
        ("XDG_CACHE_HOME", below("home/.cache")),
    ]
    .into_iter()
    .map(|(name, path)| (name.to_owned(), path))
    .collect()
}

/// How the agent's environment differs from the host user's: what matches `remove` goes, then `add` comes, then
/// `path_prefix` is put in front of whatever `PATH` is by then, on the host (S-078, S-251).
#[derive(Clone, PartialEq, Eq)]
pub struct AgentEnvironment {
    /// Globs over variable names.
    pub remove: Vec<String>,
    /// Variables to set; values may be secrets.
    pub add: BTreeMap<String, String>,
    /// Directories in front of `PATH`, first one first.
    pub path_prefix: Vec<String>,
}

impl std::fmt::Debug for AgentEnvironment {
    /// Shows names only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentEnvironment")
            .field("remove", &self.remove)
            .field("add", &self.add.keys().collect::<Vec<_>>())
            .field("path_prefix", &self.path_prefix)
            .finish()
    }
}

/// Whether stubs stand in for a browser on the agent's `PATH` (S-196).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrowserShims {
    /// They are installed in the workdir.
    Installed,
    /// They are not.
    Absent,
}

/// Codex 0.142.5 makes none of its helper programs (`apply_patch` and others) where its home lies below the directory for
/// temporary files, and says so on the first screen instead. That is where sessions on other machines live unless told
/// otherwise (S-056).
const DEFAULT_TMPDIR: &str = "/tmp/";
const OTHER_TMPDIR: &str = "/var/tmp";

/// Composes the agent's environment. Lowest to highest: isolation, the caller's `env`, the browser stubs (S-250); the
/// caller may so move `HOME` on purpose (S-006), and a `PATH` of the caller's is prefixed, not replaced.
pub fn environment(config: &SessionConfig, workdir: &str, shims: BrowserShims) -> AgentEnvironment {
    let mut remove: Vec<String> = vec![OWN_GLOB.to_owned()];
    if config.scrub_credentials() {
        remove.extend(CREDENTIAL_GLOBS.map(str::to_owned));
    }
    remove.extend(config.scrub_env().iter().cloned());
    let mut add = isolation(workdir);
    if workdir.starts_with(DEFAULT_TMPDIR) {
        add.insert("TMPDIR".to_owned(), OTHER_TMPDIR.to_owned());
    }
    add.extend(config.env().clone());
    let mut path_prefix = vec![workdir::below(workdir, workdir::LOCAL_BIN)];
    if shims == BrowserShims::Installed {
        add.insert("BROWSER".to_owned(), workdir::below(workdir, workdir::BROWSER_SHIM));
        path_prefix.insert(0, workdir::below(workdir, workdir::SHIMS));
    }
    AgentEnvironment { remove, add, path_prefix }
}

#[cfg(test)]
mod tests;
