//! What Codex's own sandbox is told (S-285…S-297).
//!
//! Nothing of it is written to disk, so a restored workdir carries no stale posture (S-297): the mode travels in
//! `thread/start` and `thread/resume` (conversation) or as `--sandbox` (terminal), the rest as `-c` overrides. The
//! flag that bypasses approvals and sandbox together is never used (S-295).
//!
//! A command that a person approves runs *outside* of the sandbox (S-296); a page that asks must say so.

use crate::config::{GrantMode, SandboxMode, SessionConfig};
use crate::toml_literal;

/// The sandbox of one session on one host, made once when the host's home is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxSettings {
    mode: SandboxMode,
    writable_roots: Vec<String>,
    network_access: bool,
}

impl SandboxSettings {
    /// Resolves a configuration on a host. `host_home` is the host user's real home: the agent has another one, so
    /// Codex could not resolve `~` itself (S-287).
    pub fn resolve(config: &SessionConfig, host_home: &str) -> Self {
        let mode = config.sandbox_mode();
        let confined = mode == SandboxMode::WorkspaceWrite;
        let writable_roots = match confined {
            true => config
                .extra_allowed_dirs()
                .iter()
                .filter(|grant| grant.mode() == GrantMode::ReadWrite)
                .map(|grant| expand_home(grant.path(), host_home))
                .collect(),
            false => Vec::new(),
        };
        Self { mode, writable_roots, network_access: confined && config.network_access() }
    }

    /// Gives the mode; its word is what `thread/start` sends (S-291).
    pub fn mode(&self) -> SandboxMode {
        self.mode
    }

    /// Gives the directories that may be written besides the workdir and the temp directories; absolute.
    pub fn writable_roots(&self) -> &[String] {
        &self.writable_roots
    }

    /// Says whether confined commands may use the network.
    pub fn network_access(&self) -> bool {
        self.network_access
    }

    /// Writes the settings as `key=value` texts, each for a `-c` of its own (S-290).
    pub fn overrides(&self) -> Vec<String> {
        let mut overrides = Vec::new();
        if !self.writable_roots.is_empty() {
            let roots = toml_literal::strings(&self.writable_roots);
            overrides.push(format!("sandbox_workspace_write.writable_roots={roots}"));
        }
        if self.network_access {
            overrides.push("sandbox_workspace_write.network_access=true".to_owned());
        }
        overrides
    }

    /// Writes the arguments of the terminal program (S-289). The app-server has no such flag and takes
    /// [`SandboxSettings::overrides`] alone.
    pub fn terminal_arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--sandbox".to_owned(), self.mode.as_str().to_owned()];
        for setting in self.overrides() {
            arguments.extend(["-c".to_owned(), setting]);
        }
        arguments
    }
}

/// Resolves `~` and `~/…` against the host user's home and drops slashes at the end; `/` stays `/` (S-293).
pub fn expand_home(path: &str, host_home: &str) -> String {
    let home = host_home.trim_end_matches('/');
    let full = match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{home}{rest}"),
        _ => path.to_owned(),
    };
    match full.trim_end_matches('/') {
        "" => "/".to_owned(),
        trimmed => trimmed.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn settings(change: Value) -> SandboxSettings {
        let mut fields = json!({ "mode": "conversation", "instructions": "" });
        fields.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        SandboxSettings::resolve(&SessionConfig::from_json(fields).unwrap(), "/home/u")
    }

    #[test]
    fn the_default_is_a_writable_workspace_without_network() {
        let sandbox = settings(json!({}));
        assert_eq!(sandbox.terminal_arguments(), ["--sandbox", "workspace-write"]);
        assert!(sandbox.overrides().is_empty());
    }

    #[test]
    fn rw_grants_become_roots_in_order_and_ro_grants_change_nothing() {
        let sandbox = settings(json!({
            "network_access": true,
            "extra_allowed_dirs": [
                { "path": "~/cache/", "mode": "rw" }, { "path": "/usr/share", "mode": "ro" },
                { "path": "/scratch", "mode": "rw" },
            ],
        }));
        assert_eq!(
            sandbox.terminal_arguments(),
            [
                "--sandbox",
                "workspace-write",
                "-c",
                r#"sandbox_workspace_write.writable_roots=["/home/u/cache", "/scratch"]"#,
                "-c",
                "sandbox_workspace_write.network_access=true",
            ]
        );
    }

    #[test]
    fn outside_of_workspace_write_there_are_no_overrides() {
        let grants = json!([{ "path": "/scratch", "mode": "rw" }]);
        let open =
            settings(json!({ "fs_isolation": false, "network_access": true, "extra_allowed_dirs": grants }));
        assert_eq!(open.terminal_arguments(), ["--sandbox", "danger-full-access"]);
        assert!(!open.network_access() && open.writable_roots().is_empty());
        let closed = settings(
            json!({ "sandbox": "read-only", "extra_allowed_dirs": [{ "path": "/x", "mode": "ro" }] }),
        );
        assert_eq!(closed.terminal_arguments(), ["--sandbox", "read-only"]);
    }

    #[test]
    fn a_home_is_the_hosts_and_a_root_stays_a_root() {
        assert_eq!(expand_home("~", "/home/u/"), "/home/u");
        assert_eq!(expand_home("~/", "/home/u"), "/home/u");
        assert_eq!(expand_home("~", "/"), "/");
        assert_eq!(expand_home("~/a", "/"), "/a");
        assert_eq!(expand_home("/", "/home/u"), "/");
        assert_eq!(expand_home("//", "/home/u"), "/");
        assert_eq!(expand_home("/a~/b/", "/home/u"), "/a~/b");
    }

    proptest! {
        #[test]
        fn a_toml_parser_reads_back_every_root(paths in proptest::collection::vec("/[^\u{0}]{1,20}", 1..4)) {
            let grants: Vec<Value> = paths.iter().map(|path| json!({ "path": path, "mode": "rw" })).collect();
            let sandbox = settings(json!({ "extra_allowed_dirs": grants }));
            let text = sandbox.overrides().join("\n");
            let document: toml_edit::DocumentMut = text.parse().unwrap();
            let roots = document["sandbox_workspace_write"]["writable_roots"].as_array().unwrap();
            let roots: Vec<&str> = roots.iter().map(|root| root.as_str().unwrap()).collect();
            prop_assert_eq!(roots, sandbox.writable_roots());
        }
    }
}
