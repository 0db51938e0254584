//! What a session is asked to be: one immutable value, checked as a whole before anything exists (S-001…S-048).
//!
//! Reading order: [`SessionConfig`] and its getters; `config/values.rs` for the vocabularies; `config/fields.rs` for
//! names and types in JSON; `config/check.rs` for the rules and their order.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

mod check;
mod error;
mod fields;
mod overrides;
mod session_store;
mod values;

#[cfg(test)]
mod tests;

pub use error::ConfigError;
pub use values::{
    ApprovalPolicy, Effort, Grant, GrantMode, Mode, SandboxMode, SeedChoice, ThinkingVerbosity,
    ToolVerbosity, Transport,
};

use crate::agents_md::{BrowserMode, KeywordFeatures};
use crate::workdir;

/// A session's configuration. Once made it never changes, so a rule that held when it was made holds for ever
/// (S-003); [`SessionConfig::with`] makes another one.
///
/// A getter answers what is *in force*, not what was written: `model` of `""` is none, a sandbox that was left out is
/// the one that follows, a policy under which nobody would be asked is replaced while the gate is on.
#[derive(Clone, PartialEq)]
pub struct SessionConfig {
    mode: Mode,
    instructions: String,
    transport: Transport,
    host_protocol: bool,
    client_messages: bool,
    caller_messages: bool,
    auto_start: bool,
    supports_resume: bool,
    seed: Option<SeedChoice>,
    capture_seed: bool,
    model: Option<String>,
    effort: Option<Effort>,
    env: BTreeMap<String, String>,
    scrub_env: Vec<String>,
    scrub_credentials: bool,
    codex_config: Map<String, Value>,
    overrides: BTreeMap<String, String>,
    sandbox: Option<SandboxMode>,
    effective_sandbox: SandboxMode,
    fs_isolation: bool,
    network_access: bool,
    extra_allowed_dirs: Vec<Grant>,
    ask_for_approval: Option<ApprovalPolicy>,
    permission_gate: bool,
    workdir_exclude: Option<Vec<String>>,
    conversation_ui: bool,
    tool_verbosity: ToolVerbosity,
    thinking_verbosity: ThinkingVerbosity,
    default_model: Option<String>,
    show_model_selector: bool,
    show_file_upload: bool,
    max_upload_bytes: u64,
    file_download: bool,
    max_download_bytes: u64,
    install_if_missing: bool,
    codex_install_dir: Option<String>,
    install_ttyd_if_missing: bool,
    ttyd_install_dir: Option<String>,
    warnings: Vec<String>,
}

impl SessionConfig {
    /// Reads a configuration from a JSON object. `mode` and `instructions` are required, everything else has a
    /// default; a name nobody knows is refused, null is the same as absent. Spellings of the original are taken:
    /// `consumer_instructions`, `seed_id`, `reasoning_effort`, `install_dir`, and mode `iframe`.
    ///
    /// Names, labels and the host of a session are no part of it: take them out first.
    pub fn from_json(json: impl Into<Value>) -> Result<Self, ConfigError> {
        match json.into() {
            Value::Object(map) => check::session_config(map),
            other => Err(ConfigError::new("configuration", &other, "must be an object")),
        }
    }

    /// Makes a copy with changes, made on the JSON that [`SessionConfig::to_json`] writes, and checks it as a whole.
    pub fn with(&self, change: impl FnOnce(&mut Map<String, Value>)) -> Result<Self, ConfigError> {
        let mut map = self.fields();
        change(&mut map);
        check::session_config(map)
    }

    /// Writes the configuration; [`SessionConfig::from_json`] reads back an equal one.
    ///
    /// The values of `env` are in it and may be secrets: this is for the session's record, never for a log, an event
    /// or an answer to a viewer.
    pub fn to_json(&self) -> Value {
        Value::Object(self.fields())
    }

    fn fields(&self) -> Map<String, Value> {
        let seed = self.seed.as_ref().map(|seed| match seed {
            SeedChoice::Id(id) => json!({ "id": id }),
            SeedChoice::Pool(pool) => json!({ "pool": pool }),
        });
        let grants: Vec<Value> = self
            .extra_allowed_dirs
            .iter()
            .map(|grant| json!({ "path": grant.path, "mode": grant.mode.as_str() }))
            .collect();
        let fields = [
            ("mode", json!(self.mode.as_str())),
            ("instructions", json!(self.instructions)),
            ("transport", json!(self.transport.as_str())),
            ("host_protocol", json!(self.host_protocol)),
            ("client_messages", json!(self.client_messages)),
            ("caller_messages", json!(self.caller_messages)),
            ("auto_start", json!(self.auto_start)),
            ("supports_resume", json!(self.supports_resume)),
            ("seed", json!(seed)),
            ("capture_seed", json!(self.capture_seed)),
            ("model", json!(self.model)),
            ("effort", json!(self.effort.map(Effort::as_str))),
            ("env", json!(self.env)),
            ("scrub_env", json!(self.scrub_env)),
            ("scrub_credentials", json!(self.scrub_credentials)),
            ("codex_config", Value::Object(self.codex_config.clone())),
            ("sandbox", json!(self.sandbox.map(SandboxMode::as_str))),
            ("fs_isolation", json!(self.fs_isolation)),
            ("network_access", json!(self.network_access)),
            ("extra_allowed_dirs", json!(grants)),
            ("ask_for_approval", json!(self.ask_for_approval.map(ApprovalPolicy::as_str))),
            ("permission_gate", json!(self.permission_gate)),
            ("workdir_exclude", json!(self.workdir_exclude)),
            ("conversation_ui", json!(self.conversation_ui)),
            ("tool_verbosity", json!(self.tool_verbosity.as_str())),
            ("thinking_verbosity", json!(self.thinking_verbosity.as_str())),
            ("default_model", json!(self.default_model)),
            ("show_model_selector", json!(self.show_model_selector)),
            ("show_file_upload", json!(self.show_file_upload)),
            ("max_upload_bytes", json!(self.max_upload_bytes)),
            ("file_download", json!(self.file_download)),
            ("max_download_bytes", json!(self.max_download_bytes)),
            ("install_if_missing", json!(self.install_if_missing)),
            ("codex_install_dir", json!(self.codex_install_dir)),
            ("install_ttyd_if_missing", json!(self.install_ttyd_if_missing)),
            ("ttyd_install_dir", json!(self.ttyd_install_dir)),
        ];
        fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// Gives what was accepted although it does not do what it says; to be logged once, at launch (S-041, S-047).
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Gives how a person meets the session.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Gives the caller's text for AGENTS.md; empty for a plain chat (S-005).
    pub fn instructions(&self) -> &str {
        &self.instructions
    }

    /// Gives how the app-server is reached; means nothing in terminal mode.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Says whether the agent reports through the keyword log (S-026). Unless it is configured, a terminal does and a
    /// conversation does not.
    pub fn host_protocol(&self) -> bool {
        self.host_protocol
    }

    /// Gives the keywords that are in force in the log. AGENTS.md and the reader of the log both take this value (S-159,
    /// S-161).
    pub fn keyword_features(&self) -> KeywordFeatures {
        KeywordFeatures {
            browser: BrowserMode::Redirect,
            client_messages: self.host_protocol && self.client_messages,
            caller_messages: self.host_protocol && self.caller_messages,
        }
    }

    /// Says whether a fresh launch starts on its task by itself (S-021).
    pub fn auto_start(&self) -> bool {
        self.auto_start
    }

    /// Says whether the session's end is captured so that it can resume (S-034).
    pub fn supports_resume(&self) -> bool {
        self.supports_resume
    }

    /// Gives the login to start from; without one the session starts logged out (S-023).
    pub fn seed(&self) -> Option<&SeedChoice> {
        self.seed.as_ref()
    }

    /// Says whether a login made in this session becomes a new seed at its end (S-024). Never true for a session that
    /// took its login from a seed: two seeds would share one single-use token (S-047).
    pub fn captures_seed(&self) -> bool {
        self.capture_seed && self.seed.is_none()
    }

    /// Gives the model a thread starts with: `model`, or else `default_model`, so that the page never shows a model
    /// that is not running (S-045). Without one it is Codex's choice.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref().or(self.default_model.as_deref().filter(|model| !model.is_empty()))
    }

    /// Gives how hard the model thinks; without one it is the model's own default.
    pub fn effort(&self) -> Option<Effort> {
        self.effort
    }

    /// Gives the variables set for the agent, above the isolation variables (S-006). Values may be secrets.
    pub fn env(&self) -> &BTreeMap<String, String> {
        &self.env
    }

    /// Gives the caller's globs over names of inherited variables to remove (S-007).
    pub fn scrub_env(&self) -> &[String] {
        &self.scrub_env
    }

    /// Says whether inherited credentials are removed by default (S-249); false is the caller's opt-out.
    pub fn scrub_credentials(&self) -> bool {
        self.scrub_credentials
    }

    /// Gives the caller's settings for Codex as `(dotted key, TOML)`, ready for `-c key=value`. None of them is a
    /// setting of ours or a secret.
    pub fn overrides(&self) -> impl Iterator<Item = (&str, &str)> {
        self.overrides.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Gives the sandbox in force: the configured one, or the one that follows from `fs_isolation` (S-011).
    pub fn sandbox_mode(&self) -> SandboxMode {
        self.effective_sandbox
    }

    /// Says whether the agent is confined at all (S-013).
    pub fn fs_isolation(&self) -> bool {
        self.fs_isolation
    }

    /// Says whether commands in the workspace-write sandbox may use the network; means nothing elsewhere (S-012).
    pub fn network_access(&self) -> bool {
        self.network_access
    }

    /// Gives the directories outside of the workdir that the agent may use (S-014).
    pub fn extra_allowed_dirs(&self) -> &[Grant] {
        &self.extra_allowed_dirs
    }

    /// Says whether a person decides about the agent's commands in a conversation (S-027).
    pub fn permission_gate(&self) -> bool {
        self.permission_gate
    }

    /// Gives the policy sent to Codex.
    ///
    /// An explicit `ask_for_approval` wins, in both modes, with two exceptions, each of which leaves a warning:
    /// `on-failure` becomes `on-request`, because Codex 0.169 no longer knows it (LAB §2); and while the gate is on,
    /// a policy under which Codex would never ask is replaced by the one the gate stands for. That one is
    /// `on-request`, or `untrusted` without a sandbox, where `on-request` runs everything unasked (S-046, S-342).
    /// Without an explicit value and without the gate it is `never`.
    pub fn approval_policy(&self) -> ApprovalPolicy {
        let open = self.effective_sandbox == SandboxMode::DangerFullAccess;
        let gate = if open { ApprovalPolicy::Untrusted } else { ApprovalPolicy::OnRequest };
        match (self.ask_for_approval, self.permission_gate) {
            (None, false) => ApprovalPolicy::Never,
            (None | Some(ApprovalPolicy::Never), true) => gate,
            (Some(ApprovalPolicy::OnFailure | ApprovalPolicy::OnRequest), true) => gate,
            (Some(ApprovalPolicy::OnFailure), false) => ApprovalPolicy::OnRequest,
            (Some(explicit), _) => explicit,
        }
    }

    /// Gives the patterns that stay out of a snapshot: the configured list as it is, or the default one; an empty
    /// list leaves nothing out (S-035, T-182). The session's seed is the authority over its login, so a seeded
    /// session's snapshot carries no `auth.json` (T-193).
    ///
    /// The archive and AGENTS.md both take this list, so what the agent is told is what happens (S-309).
    pub fn effective_excludes(&self, seeded: bool) -> Vec<String> {
        let mut patterns = self.workdir_exclude.clone().unwrap_or_else(default_workdir_excludes);
        if seeded && !patterns.iter().any(|pattern| pattern == workdir::AUTH_JSON) {
            patterns.push(workdir::AUTH_JSON.to_owned());
        }
        patterns
    }

    /// Says whether the original's chat widget is served (S-028).
    pub fn conversation_ui(&self) -> bool {
        self.conversation_ui
    }

    /// Gives how much of a tool call is shown (S-029).
    pub fn tool_verbosity(&self) -> ToolVerbosity {
        self.tool_verbosity
    }

    /// Gives whether reasoning is shown (S-030).
    pub fn thinking_verbosity(&self) -> ThinkingVerbosity {
        self.thinking_verbosity
    }

    /// Gives the model that the picker offers first (S-031); [`SessionConfig::model`] is the one that runs.
    pub fn default_model(&self) -> Option<&str> {
        self.default_model.as_deref()
    }

    /// Says whether the page offers a choice of models (S-032).
    pub fn show_model_selector(&self) -> bool {
        self.show_model_selector
    }

    /// Says whether the page offers uploads (S-032).
    pub fn show_file_upload(&self) -> bool {
        self.show_file_upload
    }

    /// Gives the longest upload, in bytes (S-033).
    pub fn max_upload_bytes(&self) -> u64 {
        self.max_upload_bytes
    }

    /// Says whether the agent may offer files for download (S-032).
    pub fn file_download(&self) -> bool {
        self.file_download
    }

    /// Gives the longest download, in bytes (S-033).
    pub fn max_download_bytes(&self) -> u64 {
        self.max_download_bytes
    }

    /// Says whether Codex may be put on the host where it is missing (S-018).
    pub fn install_if_missing(&self) -> bool {
        self.install_if_missing
    }

    /// Gives where Codex is kept on the host: absolute, `~` or below `~/` of the host's own home (S-019, S-020).
    pub fn codex_install_dir(&self) -> Option<&str> {
        self.codex_install_dir.as_deref()
    }

    /// Says whether ttyd may be put on the host where it is missing (S-018).
    pub fn install_ttyd_if_missing(&self) -> bool {
        self.install_ttyd_if_missing
    }

    /// Gives where ttyd is kept on the host, as for [`SessionConfig::codex_install_dir`].
    pub fn ttyd_install_dir(&self) -> Option<&str> {
        self.ttyd_install_dir.as_deref()
    }
}

impl fmt::Debug for SessionConfig {
    /// Shows no value of a variable and no text of the caller's instructions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = self.fields();
        fields.insert("env".to_owned(), self.env.keys().cloned().collect());
        fields.insert("instructions".to_owned(), format!("{} bytes", self.instructions.len()).into());
        f.debug_tuple("SessionConfig").field(&format_args!("{}", Value::Object(fields))).finish()
    }
}

/// Patterns of what any agent's workdir can do without (S-114). They reach the user's own project too: its `.git`
/// and `node_modules` do not come back after a resume (S-496).
const REBUILDABLE: [&str; 6] = [".git", "node_modules", "__pycache__", ".venv", "*.pyc", ".DS_Store"];

/// Parts of Codex's home that Codex rebuilds by itself. Its databases hold absolute paths and are rebuilt from the
/// rollouts; the pattern is anchored, so that the user's own databases stay in (S-495).
const CODEX_REBUILDS: [&str; 11] = [
    "home/.codex/packages",
    "home/.codex/*.sqlite*",
    "home/.codex/cache",
    "home/.codex/tmp",
    "home/.codex/.tmp",
    "home/.codex/shell_snapshots",
    "home/.codex/models_cache.json",
    "home/.codex/version.json",
    "home/.codex/installation_id",
    "home/.codex/log",
    "home/.cache",
];

/// Gives the patterns that stay out of a snapshot when the configuration names none (S-494). Never the rollouts.
pub fn default_workdir_excludes() -> Vec<String> {
    REBUILDABLE.iter().chain(&CODEX_REBUILDS).map(|pattern| (*pattern).to_owned()).collect()
}
