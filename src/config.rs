//! One [`Config`]: the file, then the environment, then the flags.

mod hooks;
mod hosts;
mod options;
mod provision;
mod store;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use optio_actors::Defaults;
use optio_actors::hosts::{Description, Own};
use optio_actors::sessions::OnExit;
use optio_actors::settings::ORPHAN_TTL;
use optio_host::provision::Releases;
use optio_host::ssh::Login;
use optio_oauth::HttpOptions;
use serde_json::{Map, Value};

pub use hooks::{HookOption, HookOptions, HookSet};
pub use hosts::HostOptions;
pub use options::{
    DefaultOptions, LogFormat, OnExitOption, Options, RefreshEncoding, ReleaseUrl, StoreAddress,
};
pub use provision::{CodexRelease, ProvisionOptions, Sums, TtydRelease};
pub use store::{Encryption, StoreChoice};

/// Where the service listens unless it is told otherwise.
const LISTEN: &str = "127.0.0.1:7340";

/// Names another login server than the real one, for Codex as for us (T-235).
const REFRESH_URL_OVERRIDE: &str = "CODEX_REFRESH_TOKEN_URL_OVERRIDE";

/// A login server for tests: nobody listens there, so that no test ever asks the real one.
const NO_LOGIN_SERVER: &str = "http://127.0.0.1:9/oauth/token";

/// The directory of ours in the user's directories.
const OURS: &str = "optio-codex";

/// Everything a [`Server`](crate::Server) has to be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address of HTTP; port 0 takes a free one.
    pub listen: SocketAddr,
    /// A second listener, for this user only.
    pub unix: Option<PathBuf>,
    /// The directory of the store and the journals, absolute; made 0700.
    pub data_dir: PathBuf,
    /// Where logins, snapshots and records are kept.
    pub store: StoreChoice,
    /// The directory of the sessions' own directories, absolute; `<data_dir>/tasks` unless it is named.
    pub task_root: PathBuf,
    /// The directory of the agents' sockets, absolute; without one the user's runtime directory.
    pub socket_root: Option<PathBuf>,
    /// The file of the bearer token; made 0600 when it is missing.
    pub token_file: PathBuf,
    /// Where browsers find the service, when that is not where it listens.
    pub public_url: Option<String>,
    /// More values of `Host` to answer to.
    pub allowed_hosts: Vec<String>,
    /// The codex program, used where it is; without one see [`optio_host::provision`].
    pub codex: Option<PathBuf>,
    /// The ttyd program; without one it is provided, and without any terminals are served without.
    pub ttyd: Option<PathBuf>,
    /// What hosts get that have none.
    pub releases: Releases,
    /// What a session gets that does not say otherwise.
    pub defaults: Defaults,
    /// What an operator has a say in.
    pub hooks: HookSet,
    /// The machines behind SSH, by name.
    pub hosts: BTreeMap<String, Description>,
    /// Who runs the service, for hosts that do not say who it is there.
    pub own: Own,
    /// What becomes of live sessions when the service ends.
    pub on_exit: OnExit,
    /// How long an agent without a lease may live without a service.
    pub orphan_ttl: Duration,
    /// Logins that lie idle in a pool are kept fresh.
    pub refresh_seeds: bool,
    /// Codex itself is asked whether a login is good where the login server cannot be.
    pub probe_seeds: bool,
    /// The login server, and how it is asked.
    pub login_server: HttpOptions,
    /// People may break actors on purpose.
    pub enable_faults: bool,
    /// HTTP workers, and as many threads of session actors.
    pub workers: usize,
}

impl Config {
    /// Reads the configuration of a service: `given` (flags and environment) over the file it names, or over the
    /// user's own file if there is one.
    pub fn load(given: Options) -> Result<(Self, LogFormat)> {
        let dirs = UserDirs::of(|name| std::env::var_os(name).map(PathBuf::from), std::env::home_dir());
        let file = match (&given.config, dirs.config_file()) {
            (Some(named), _) => Options::from_file(named)?,
            (None, Some(own)) if own.exists() => Options::from_file(&own)?,
            (None, _) => Options::default(),
        };
        let options = given.over(file);
        let log_format = options.log_format.unwrap_or_default();
        Ok((Self::of(options, &dirs)?, log_format))
    }

    /// A service for one test or example: a free loopback port, and everything it makes beneath `dir`.
    pub fn for_test(dir: &Path) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            unix: None,
            data_dir: dir.join("data"),
            store: StoreChoice::Embedded,
            task_root: dir.join("tasks"),
            socket_root: Some(dir.join("sockets")),
            token_file: dir.join("data/token"),
            public_url: None,
            allowed_hosts: Vec::new(),
            codex: None,
            ttyd: None,
            releases: Releases::default(),
            defaults: Defaults::default(),
            hooks: HookSet::default(),
            hosts: BTreeMap::new(),
            // A test uses no key of whoever runs it.
            own: Own { user: None, home: None, login: Login::Agent(None) },
            on_exit: OnExit::Teardown,
            // A test that was killed leaves its agents; they shall not live for a day.
            orphan_ttl: Duration::from_secs(60),
            refresh_seeds: false,
            probe_seeds: false,
            login_server: HttpOptions::with_override(Some(NO_LOGIN_SERVER.to_owned())),
            enable_faults: false,
            workers: 2,
        }
    }

    fn of(options: Options, dirs: &UserDirs) -> Result<Self> {
        let store = StoreChoice::of(&options)?;
        let listen = options.listen.as_deref().unwrap_or(LISTEN);
        let listen: SocketAddr = listen
            .parse()
            .with_context(|| format!("listen: {listen:?} is not an address with a port, such as {LISTEN}"))?;
        ensure!(
            listen.ip().is_loopback() || options.token_file.is_some() || options.public_url.is_some(),
            "listen: {listen} can be reached from other machines, and whoever has the token can run programs here; say \
             that this is meant by naming the token's file (--token-file) or the address people use (--public-url)"
        );
        let data_dir = match options.data_dir {
            Some(dir) => absolute("data_dir", &dir)?,
            None => dirs
                .data
                .clone()
                .context("data_dir: neither XDG_DATA_HOME nor HOME names a directory for it")?,
        };
        let orphan_ttl = match options.orphan_ttl {
            Some(ttl) => Duration::try_from(ttl).context("orphan_ttl: it must not be negative")?,
            None => ORPHAN_TTL,
        };
        let other_server = std::env::var(REFRESH_URL_OVERRIDE).ok().filter(|url| !url.is_empty());
        let login_server = HttpOptions {
            encoding: options.refresh_encoding.unwrap_or_default().into(),
            ..HttpOptions::with_override(other_server)
        };
        let own = hosts::own(dirs.home.clone());
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Ok(Self {
            listen,
            unix: options.unix.map(|path| absolute("unix", &path)).transpose()?,
            task_root: match options.task_root {
                Some(dir) => absolute("task_root", &dir)?,
                None => data_dir.join("tasks"),
            },
            socket_root: None,
            token_file: match options.token_file {
                Some(file) => absolute("token_file", &file)?,
                None => data_dir.join("token"),
            },
            data_dir,
            store,
            public_url: options.public_url.map(|url| check_public_url(&url)).transpose()?,
            allowed_hosts: options.allowed_hosts.unwrap_or_default(),
            codex: options.codex.map(|path| absolute("codex", &path)).transpose()?,
            ttyd: options.ttyd.map(|path| absolute("ttyd", &path)).transpose()?,
            releases: provision::releases(
                options.codex_release_url.as_ref().map(|url| url.0.as_str()),
                options.ttyd_release_url.as_ref().map(|url| url.0.as_str()),
                &options.provision.unwrap_or_default(),
            )?,
            defaults: defaults(options.defaults.unwrap_or_default())?,
            hooks: HookSet::new(hooks::hooks(options.hooks.unwrap_or_default())?),
            hosts: hosts::hosts(options.hosts.unwrap_or_default(), &own)?,
            own,
            on_exit: options.on_exit.unwrap_or_default().into(),
            orphan_ttl,
            refresh_seeds: options.refresh_seeds.unwrap_or(true),
            probe_seeds: options.probe_seeds.unwrap_or(true),
            login_server,
            enable_faults: options.enable_faults.unwrap_or(false),
            workers: options.workers.map_or(cores, |workers| workers.get().into()),
        })
    }
}

/// Where a user's programs keep things, as the XDG base directory specification says.
struct UserDirs {
    home: Option<PathBuf>,
    data: Option<PathBuf>,
    config: Option<PathBuf>,
}

impl UserDirs {
    fn of(var: impl Fn(&str) -> Option<PathBuf>, home: Option<PathBuf>) -> Self {
        let home = home.filter(|home| home.is_absolute());
        // A relative directory is to be ignored, says the specification.
        let dir = |name, below_home: &str| {
            let named = var(name).filter(|dir| dir.is_absolute());
            named.or_else(|| home.as_ref().map(|home| home.join(below_home))).map(|dir| dir.join(OURS))
        };
        let (data, config) = (dir("XDG_DATA_HOME", ".local/share"), dir("XDG_CONFIG_HOME", ".config"));
        Self { home, data, config }
    }

    fn config_file(&self) -> Option<PathBuf> {
        self.config.as_ref().map(|dir| dir.join("config.toml"))
    }
}

fn absolute(key: &str, path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{key}: {path:?} cannot be made an absolute path"))
}

/// A login link and the origin check are made of it: an origin, nothing more.
fn check_public_url(url: &str) -> Result<String> {
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = host.map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    let fits = |host: &str| {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b))
    };
    ensure!(
        host.is_some_and(fits),
        "public_url: {url:?} is not of the form https://codex.example.org or http://box:7340"
    );
    Ok(url.trim_end_matches('/').to_owned())
}

fn defaults(options: DefaultOptions) -> Result<Defaults> {
    let mut codex_config = Map::new();
    flatten("", options.codex_config, &mut codex_config);
    Defaults::new(codex_config, options.env).context("defaults")
}

/// Turns TOML's tables into the dotted keys that a session's `codex_config` has, so that a session can replace one
/// setting of a table. A table with a name that does not fit into a dotted key stays a value.
fn flatten(prefix: &str, table: BTreeMap<String, Value>, flat: &mut Map<String, Value>) {
    let bare = |name: &String| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    for (name, value) in table {
        let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value {
            Value::Object(members) if !members.is_empty() && members.keys().all(bare) => {
                flatten(&key, members.into_iter().collect(), flat);
            }
            value => {
                flat.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn dirs() -> UserDirs {
        UserDirs::of(|_| None, Some("/home/ada".into()))
    }

    fn config(toml: &str) -> Result<Config> {
        Config::of(Options::parse(toml, Path::new("test.toml"))?, &dirs())
    }

    fn refusal(toml: &str) -> String {
        format!("{:#}", config(toml).unwrap_err())
    }

    #[test]
    fn everything_has_a_default_beneath_the_users_own_directories() {
        let config = config("").unwrap();
        assert_eq!(config.listen.to_string(), LISTEN);
        assert_eq!(config.data_dir, Path::new("/home/ada/.local/share/optio-codex"));
        assert_eq!(config.token_file, config.data_dir.join("token"));
        assert_eq!(config.task_root, config.data_dir.join("tasks"));
        assert_eq!(config.on_exit, OnExit::Detach);
    }

    #[test]
    fn a_relative_xdg_directory_is_ignored() {
        let dirs =
            UserDirs::of(|name| (name == "XDG_DATA_HOME").then(|| "here".into()), Some("/home/ada".into()));
        assert_eq!(dirs.data.unwrap(), Path::new("/home/ada/.local/share/optio-codex"));
        let dirs = UserDirs::of(|name| (name == "XDG_CONFIG_HOME").then(|| "/etc/me".into()), None);
        assert_eq!(dirs.config_file().unwrap(), Path::new("/etc/me/optio-codex/config.toml"));
        assert_eq!(dirs.data, None);
    }

    #[test]
    fn other_machines_are_served_only_when_that_was_said_twice() {
        let said = refusal("listen = '0.0.0.0:7340'");
        assert!(said.contains("--token-file") && said.contains("--public-url"), "{said}");
        config("listen = '0.0.0.0:7340'\ntoken_file = '/etc/token'").unwrap();
        config("listen = '[::]:7340'\npublic_url = 'https://codex.example.org'").unwrap();
        config("listen = '[::1]:0'").unwrap();
    }

    #[test]
    fn a_public_url_is_an_origin() {
        let config = config("public_url = 'https://codex.example.org/'").unwrap();
        assert_eq!(config.public_url.unwrap(), "https://codex.example.org");
        for bad in ["codex.example.org", "https://", "https://codex.example.org/base", "ftp://box"] {
            assert!(refusal(&format!("public_url = '{bad}'")).contains("public_url"), "{bad}");
        }
    }

    #[test]
    fn tables_of_the_defaults_become_dotted_keys() {
        let toml = "[codex_config]\nmodel = 'm'\nmodel_providers.house = { name = 'House', request_max_retries = 1 }\n\
                    notice.model_migrations = { 'gpt-5.5' = 'gpt-6' }";
        let options: DefaultOptions = toml::from_str(toml).unwrap();
        let mut flat = Map::new();
        flatten("", options.codex_config, &mut flat);
        let expected = serde_json::json!({
            "model": "m",
            "model_providers.house.name": "House",
            "model_providers.house.request_max_retries": 1,
            "notice.model_migrations": { "gpt-5.5": "gpt-6" },
        });
        assert_eq!(Value::Object(flat), expected);
    }

    #[test]
    fn defaults_that_no_session_could_have_are_refused_at_the_start() {
        let said = refusal("[defaults.codex_config]\nsandbox_mode = 'read-only'");
        assert!(said.contains("defaults") && said.contains("sandbox_mode"), "{said}");
    }
}
