//! What every session of a service shares.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix::prelude::*;
use optio_codex_protocol::config::{ConfigError, SessionConfig};
use optio_hooks::{Hooks, NoHooks};
use optio_host::provision::{InPlace, Provision, Tool, Wishes};
use optio_oauth::{LoginServer, Offline};
use optio_store::{Clock, JournalStream, Store, SystemClock};
use serde_json::{Map, Value, json};

use crate::faults::Faults;
use crate::hosts::Hosts;
use crate::session::SessionEnded;
use crate::trace::Trace;
use crate::verifier::Probes;

/// Heartbeat age at which the guard of a leased agent sends SIGTERM: a service that is back within it adopts
/// (DESIGN §7).
pub const LEASED_TERM_AFTER: Duration = Duration::from_secs(45);

/// Heartbeat age at which the guard of a leased agent sends SIGKILL: before the lease's 60 s are over.
pub const LEASED_KILL_AFTER: Duration = Duration::from_secs(55);

/// How long an agent without a lease may live without a service.
pub const ORPHAN_TTL: Duration = Duration::from_secs(24 * 3600);

/// What every session of a service shares.
pub struct Settings {
    /// Tells this service's own directories on a host from another service's: letters and digits, the same at each start.
    pub name: String,
    /// The machines.
    pub hosts: Hosts,
    /// Durable state.
    pub store: Store,
    /// The stream that feeds the session list.
    pub service_stream: Arc<dyn JournalStream>,
    /// What is armed.
    pub faults: Faults,
    /// People may arm faults (`--enable-faults`).
    pub faults_enabled: bool,
    /// Where deeds are noted.
    pub trace: Trace,
    /// The codex program to use; without one the host's own, or a release, is found (see [`optio_host::provision`]).
    pub codex: Option<PathBuf>,
    /// The ttyd program that serves terminals; without one it is provided, and without any a pty of the host's does.
    pub ttyd: Option<PathBuf>,
    /// How hosts get the programs that they need.
    pub provision: Arc<dyn Provision>,
    /// See [`ORPHAN_TTL`].
    pub orphan_ttl: Duration,
    /// What a session gets that does not say otherwise.
    pub defaults: Defaults,
    /// Who knows whether a login is good.
    pub login_server: Arc<dyn LoginServer>,
    /// Seeds that lie idle in a pool are kept fresh.
    pub refresh_idle: bool,
    /// Codex itself may be asked whether a login is good, when the login server cannot be asked and somebody wants to
    /// know. That is a request to a model, so it costs.
    pub probe_seeds: bool,
    /// Where codex shall refresh when it is asked, if not at the real login server.
    pub refresh_url: Option<String>,
    /// Where codex is asked.
    pub probes: Probes,
    /// What an operator has a say in.
    pub hooks: Arc<dyn Hooks>,
    /// What tells how old a login is; leases go by the store's own clock.
    pub clock: Arc<dyn Clock>,
    /// The root actor, once it lives.
    pub root: OnceLock<Recipient<SessionEnded>>,
}

impl Settings {
    /// How a session on the host of this name wants a tool provided.
    pub fn wishes(&self, tool: Tool, config: &SessionConfig, host: &str) -> Wishes {
        let (program, install_if_missing, dir) = match tool {
            Tool::Codex => (self.codex_on(host), config.install_if_missing(), config.codex_install_dir()),
            Tool::Ttyd => (
                self.ttyd.clone().filter(|_| self.hosts.is_built_in(host)),
                config.install_ttyd_if_missing(),
                config.ttyd_install_dir(),
            ),
        };
        Wishes { program, install_if_missing, install_dir: dir.map(str::to_owned) }
    }

    /// The codex program that an operator has chosen for a host. The service's own setting is a path of its own machine,
    /// and says nothing about another one.
    pub fn codex_on(&self, host: &str) -> Option<PathBuf> {
        match self.hosts.is_built_in(host) {
            true => self.codex.clone(),
            false => self.hosts.entry(host).ok()?.target?.codex,
        }
    }

    /// Settings with nothing armed, the default times, no login server to ask, and no program installed anywhere.
    /// `hosts` may be machines by their names.
    pub fn new(hosts: impl Into<Hosts>, store: Store, service_stream: Arc<dyn JournalStream>) -> Self {
        Self {
            name: "0".to_owned(),
            hosts: hosts.into(),
            store,
            service_stream,
            faults: Faults::default(),
            faults_enabled: false,
            trace: Trace::default(),
            codex: None,
            ttyd: None,
            provision: Arc::new(InPlace),
            orphan_ttl: ORPHAN_TTL,
            defaults: Defaults::default(),
            login_server: Arc::new(Offline),
            refresh_idle: false,
            probe_seeds: false,
            refresh_url: None,
            probes: Probes::default(),
            hooks: Arc::new(NoHooks),
            clock: Arc::new(SystemClock),
            root: OnceLock::new(),
        }
    }
}

/// What every new session gets that does not say otherwise: an operator's provider, say, and the key it wants.
///
/// Like a session's own, these settings reach Codex on its command line, so they also win over the `config.toml` of a
/// seed.
#[derive(Clone, Default)]
pub struct Defaults {
    codex_config: Map<String, Value>,
    env: BTreeMap<String, String>,
}

impl Defaults {
    /// Checks the defaults as those of a session would be checked, so that what is wrong with them is known at the
    /// start and not at the first launch.
    pub fn new(codex_config: Map<String, Value>, env: BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let session =
            json!({ "mode": "conversation", "instructions": "", "codex_config": codex_config, "env": env });
        SessionConfig::from_json(session)?;
        Ok(Self { codex_config, env })
    }

    /// Adds to a configuration what it leaves open. A setting is left open when neither it nor a table that it lies in
    /// is named.
    pub fn under(&self, config: &SessionConfig) -> Result<SessionConfig, ConfigError> {
        let has_model = config.model().is_some();
        config.with(|fields| {
            if let Value::Object(own) = fields.entry("codex_config").or_insert_with(|| json!({})) {
                for (key, value) in &self.codex_config {
                    if !(names(own, key) || has_model && key == "model") {
                        own.insert(key.clone(), value.clone());
                    }
                }
            }
            if let Value::Object(own) = fields.entry("env").or_insert_with(|| json!({})) {
                for (name, value) in &self.env {
                    own.entry(name.clone()).or_insert_with(|| json!(value));
                }
            }
        })
    }
}

impl std::fmt::Debug for Defaults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The values of variables may be secrets.
        let env: Vec<_> = self.env.keys().collect();
        f.debug_struct("Defaults").field("codex_config", &self.codex_config).field("env", &env).finish()
    }
}

/// True when `settings` name the dotted `key` or a table around it.
fn names(settings: &Map<String, Value>, key: &str) -> bool {
    let mut dots = key.match_indices('.').map(|(at, _)| &key[..at]);
    settings.contains_key(key) || dots.any(|table| settings.contains_key(table))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn session(fields: Value) -> SessionConfig {
        let mut all = json!({ "mode": "conversation", "instructions": "" });
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        SessionConfig::from_json(all).unwrap()
    }

    fn defaults() -> Defaults {
        let config =
            json!({ "model": "m", "model_provider": "house", "model_providers.house.name": "House" });
        let env = BTreeMap::from([("KEY".to_owned(), "default".to_owned())]);
        Defaults::new(config.as_object().unwrap().clone(), env).unwrap()
    }

    #[test]
    fn what_a_session_says_wins_and_what_it_leaves_open_is_added() {
        let own =
            json!({ "codex_config": { "model_provider": "mine" }, "env": { "KEY": "mine", "OTHER": "x" } });
        let merged = defaults().under(&session(own)).unwrap().to_json();
        let config = json!({ "model": "m", "model_provider": "mine", "model_providers.house.name": "House" });
        assert_eq!(merged["codex_config"], config);
        assert_eq!(merged["env"], json!({ "KEY": "mine", "OTHER": "x" }));
    }

    #[test]
    fn a_table_of_the_session_is_not_reached_into() {
        let own = json!({ "codex_config": { "model_providers.house": { "name": "Mine" } } });
        let merged = defaults().under(&session(own)).unwrap().to_json();
        assert_eq!(merged["codex_config"].get("model_providers.house.name"), None);
    }

    #[test]
    fn a_model_of_the_session_is_not_contradicted() {
        let merged = defaults().under(&session(json!({ "model": "mine" }))).unwrap().to_json();
        assert_eq!((&merged["model"], merged["codex_config"].get("model")), (&json!("mine"), None));
    }

    #[test]
    fn defaults_that_no_session_could_have_are_refused_and_values_of_variables_are_never_shown() {
        let config = json!({ "sandbox_mode": "read-only" });
        assert!(Defaults::new(config.as_object().unwrap().clone(), BTreeMap::new()).is_err());
        assert!(!format!("{:?}", defaults()).contains("default\""));
    }
}
