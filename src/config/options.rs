//! The options of `serve`, each at once a flag, an environment variable and a key of the file.

use std::collections::BTreeMap;
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use jiff::SignedDuration;
use optio_actors::sessions::OnExit;
use optio_oauth::Encoding;
use serde::Deserialize;
use serde_json::Value;

use super::hooks::HookOptions;
use super::hosts::HostOptions;
use super::provision::ProvisionOptions;

/// What was given, in one place; `None` is what was left out.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The file that holds what is not given otherwise [default: optio-codex/config.toml in the user's configuration]
    #[arg(long, env = "OPTIO_CODEX_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Address of HTTP; port 0 takes a free one [default: 127.0.0.1:7340]
    #[arg(long, env = "OPTIO_CODEX_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Also listen on this Unix socket, which only this user can open
    #[arg(long, env = "OPTIO_CODEX_UNIX", value_name = "PATH")]
    pub unix: Option<PathBuf>,
    /// Directory of the store, the journals and the token [default: optio-codex in the user's data]
    #[arg(long, env = "OPTIO_CODEX_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Directory of the sessions' working directories [default: tasks in the data directory]
    #[arg(long, env = "OPTIO_CODEX_TASK_ROOT", value_name = "DIR")]
    pub task_root: Option<PathBuf>,
    /// Where logins, snapshots and records are kept: "embedded", or mongodb://HOST/DATABASE (an address with a password
    /// belongs into the environment or the file) [default: embedded]
    #[arg(long, env = "OPTIO_CODEX_STORE", value_name = "STORE", hide_env_values = true)]
    pub store: Option<StoreAddress>,
    /// Begins the names of the collections in a MongoDB [default: optio]
    #[arg(long, env = "OPTIO_CODEX_PREFIX", value_name = "NAME")]
    pub prefix: Option<String>,
    /// The same for the logins, where they are shared with another deployment [default: the prefix]
    #[arg(long, env = "OPTIO_CODEX_SEED_PREFIX", value_name = "NAME")]
    pub seed_prefix: Option<String>,
    /// The same for the snapshots [default: the prefix]
    #[arg(long, env = "OPTIO_CODEX_SNAPSHOT_PREFIX", value_name = "NAME")]
    pub snapshot_prefix: Option<String>,
    /// Encrypt the logins and snapshots that are written to a MongoDB from now on; not for pools that are shared with
    /// Python [default: false]
    #[arg(
        long,
        env = "OPTIO_CODEX_ENCRYPT_STORE",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new(),
    )]
    pub encrypt_store: Option<bool>,
    /// File of the key for that, the same for each service on the database; made when it is missing and nothing in the
    /// database is encrypted yet [default: store-key in the data directory]
    #[arg(long, env = "OPTIO_CODEX_STORE_KEY", value_name = "FILE")]
    pub store_key: Option<PathBuf>,
    /// Files of keys that were in use before, for reading
    #[arg(long, env = "OPTIO_CODEX_OLD_STORE_KEYS", value_name = "FILE", value_delimiter = ',')]
    pub old_store_keys: Option<Vec<PathBuf>>,
    /// File of the bearer token, made when it is missing [default: token in the data directory]
    #[arg(long, env = "OPTIO_CODEX_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Where browsers find the service behind a proxy, such as https://codex.example.org
    #[arg(long, env = "OPTIO_CODEX_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// More names to answer to in the Host header, as name or name:port
    #[arg(long, env = "OPTIO_CODEX_ALLOWED_HOSTS", value_name = "HOST", value_delimiter = ',')]
    pub allowed_hosts: Option<Vec<String>>,
    /// The codex program [default: the host's own, copied into its cache, or else a pinned release]
    #[arg(long, env = "OPTIO_CODEX_CODEX", value_name = "FILE")]
    pub codex: Option<PathBuf>,
    /// The ttyd program that serves terminals [default: the host's own or a release; a terminal works without one, too]
    #[arg(long, env = "OPTIO_CODEX_TTYD", value_name = "FILE")]
    pub ttyd: Option<PathBuf>,
    /// Where releases of codex are, as URL/rust-vVERSION/FILE [default: GitHub's]
    #[arg(long, env = "OPTIO_CODEX_CODEX_RELEASE_URL", value_name = "URL", hide_env_values = true)]
    pub codex_release_url: Option<ReleaseUrl>,
    /// Where releases of ttyd are, as URL/VERSION/FILE [default: GitHub's]
    #[arg(long, env = "OPTIO_CODEX_TTYD_RELEASE_URL", value_name = "URL", hide_env_values = true)]
    pub ttyd_release_url: Option<ReleaseUrl>,
    /// What becomes of running sessions when the service ends [default: detach]
    #[arg(long, env = "OPTIO_CODEX_ON_EXIT", value_name = "WHAT")]
    pub on_exit: Option<OnExitOption>,
    /// How long an agent without a seed's lease may live without a service [default: 24h]
    #[arg(long, env = "OPTIO_CODEX_ORPHAN_TTL", value_name = "TIME")]
    pub orphan_ttl: Option<SignedDuration>,
    /// Keep the logins fresh that lie idle in a pool [default: true]
    #[arg(
        long,
        env = "OPTIO_CODEX_REFRESH_SEEDS",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new(),
    )]
    pub refresh_seeds: Option<bool>,
    /// Ask Codex itself whether a login is good when the login server cannot be asked and somebody wants to know; that is a
    /// request to a model, so it costs [default: true]
    #[arg(
        long,
        env = "OPTIO_CODEX_PROBE_SEEDS",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new(),
    )]
    pub probe_seeds: Option<bool>,
    /// How the login server is asked to refresh: as Codex asks, or in the form of the standard [default: json]
    #[arg(long, env = "OPTIO_CODEX_REFRESH_ENCODING", value_name = "FORM")]
    pub refresh_encoding: Option<RefreshEncoding>,
    /// Let people break actors on purpose, to see what happens
    #[arg(
        long,
        env = "OPTIO_CODEX_ENABLE_FAULTS",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new(),
    )]
    pub enable_faults: Option<bool>,
    /// Threads for HTTP, and as many for the sessions' actors [default: the number of cores]
    #[arg(long, env = "OPTIO_CODEX_WORKERS", value_name = "N")]
    pub workers: Option<NonZeroU8>,
    /// Form of the log on standard error [default: text]
    #[arg(long, env = "OPTIO_CODEX_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Which releases hosts get, and what their files must hash to; in the file only.
    #[arg(skip)]
    pub provision: Option<ProvisionOptions>,
    /// What sessions get that do not say otherwise; in the file only.
    #[arg(skip)]
    pub defaults: Option<DefaultOptions>,
    /// What an operator has a say in; in the file only.
    #[arg(skip)]
    pub hooks: Option<HookOptions>,
    /// The machines behind SSH, by name; in the file only.
    #[arg(skip)]
    pub hosts: Option<HostOptions>,
}

/// What was given as the store: a word, or an address that may hold a password, which is why it is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct StoreAddress(pub(super) String);

impl From<&str> for StoreAddress {
    fn from(given: &str) -> Self {
        Self(given.to_owned())
    }
}

impl std::fmt::Debug for StoreAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreAddress(…)")
    }
}

/// The address of a mirror. It may hold a password, which is why it is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ReleaseUrl(pub(super) String);

impl From<&str> for ReleaseUrl {
    fn from(given: &str) -> Self {
        Self(given.to_owned())
    }
}

impl std::fmt::Debug for ReleaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReleaseUrl(…)")
    }
}

/// The `[defaults]` of the file.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DefaultOptions {
    /// Settings for Codex, as in its own `config.toml`.
    pub codex_config: BTreeMap<String, Value>,
    /// Variables of the agents' environment; the values may be secrets.
    pub env: BTreeMap<String, String>,
}

impl std::fmt::Debug for DefaultOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let env: Vec<_> = self.env.keys().collect();
        f.debug_struct("DefaultOptions").field("codex_config", &self.codex_config).field("env", &env).finish()
    }
}

/// What becomes of running sessions when the service ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExitOption {
    /// They go on, and the next start takes them up again
    #[default]
    Detach,
    /// They are stopped: logins saved, workdirs stored
    Teardown,
}

impl From<OnExitOption> for OnExit {
    fn from(option: OnExitOption) -> Self {
        match option {
            OnExitOption::Detach => Self::Detach,
            OnExitOption::Teardown => Self::Teardown,
        }
    }
}

/// How the login server is asked to refresh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RefreshEncoding {
    /// A JSON object, as Codex sends it
    #[default]
    Json,
    /// Form fields, as the OAuth standard has them
    Form,
}

impl From<RefreshEncoding> for Encoding {
    fn from(option: RefreshEncoding) -> Self {
        match option {
            RefreshEncoding::Json => Self::Json,
            RefreshEncoding::Form => Self::Form,
        }
    }
}

/// The form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

impl Options {
    /// Reads a configuration file.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("configuration file {} cannot be read", path.display()))?;
        Self::parse(&text, path)
    }

    /// Parses the text of a configuration file. A refusal names the key, the file and the line, but never shows the
    /// line: it may hold a secret.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        toml::from_str(text).map_err(|refused: toml::de::Error| {
            let at = refused.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            let what = refused.message().lines().next().unwrap_or_default();
            anyhow!("configuration file {}, line {line}: {what}", path.display())
        })
    }

    /// Takes from `below` what is left out here.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            config: self.config.or(below.config),
            listen: self.listen.or(below.listen),
            unix: self.unix.or(below.unix),
            data_dir: self.data_dir.or(below.data_dir),
            task_root: self.task_root.or(below.task_root),
            store: self.store.or(below.store),
            prefix: self.prefix.or(below.prefix),
            seed_prefix: self.seed_prefix.or(below.seed_prefix),
            snapshot_prefix: self.snapshot_prefix.or(below.snapshot_prefix),
            encrypt_store: self.encrypt_store.or(below.encrypt_store),
            store_key: self.store_key.or(below.store_key),
            old_store_keys: self.old_store_keys.or(below.old_store_keys),
            token_file: self.token_file.or(below.token_file),
            public_url: self.public_url.or(below.public_url),
            allowed_hosts: self.allowed_hosts.or(below.allowed_hosts),
            codex: self.codex.or(below.codex),
            ttyd: self.ttyd.or(below.ttyd),
            codex_release_url: self.codex_release_url.or(below.codex_release_url),
            ttyd_release_url: self.ttyd_release_url.or(below.ttyd_release_url),
            provision: self.provision.or(below.provision),
            on_exit: self.on_exit.or(below.on_exit),
            orphan_ttl: self.orphan_ttl.or(below.orphan_ttl),
            refresh_seeds: self.refresh_seeds.or(below.refresh_seeds),
            probe_seeds: self.probe_seeds.or(below.probe_seeds),
            refresh_encoding: self.refresh_encoding.or(below.refresh_encoding),
            enable_faults: self.enable_faults.or(below.enable_faults),
            workers: self.workers.or(below.workers),
            log_format: self.log_format.or(below.log_format),
            defaults: self.defaults.or(below.defaults),
            hooks: self.hooks.or(below.hooks),
            hosts: self.hosts.or(below.hosts),
        }
    }
}
