//! Which machine is meant, and how it is reached.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::host_key::Pin;
use super::slots;
use crate::error::{HostError, Result};

/// Where SSH servers listen.
pub const DEFAULT_PORT: u16 = 22;

/// Sessions that a server gives to one connection when its operator has changed nothing (sshd's `MaxSessions`).
pub const DEFAULT_MAX_SESSIONS: u16 = 10;

/// A machine behind SSH (S-061…S-069). Nothing in it is secret: keys are named by their files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshTarget {
    /// A name or an IP address.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// Who we are there.
    pub user: String,
    /// How we prove it.
    pub login: Login,
    /// How it proves who it is.
    pub host_keys: HostKeys,
    /// A machine to go through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jump: Option<Box<SshTarget>>,
    /// Channels that may run programs at once on one connection; more wait for their turn. Not above the server's own
    /// `MaxSessions`.
    pub max_sessions: u16,
    /// The directory of all task directories, absolute. Default (S-056): `$OPTIO_CODEX_REMOTE_TASK_ROOT` of the service,
    /// else `/tmp/optio-codex`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_root: Option<PathBuf>,
    /// The codex program there, absolute or below `~/` of its user's home. Without one it is looked for, or brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codex: Option<PathBuf>,
}

/// Machines that one may go through. More are a mistake, most likely a circle.
const MOST_JUMPS: usize = 4;

impl SshTarget {
    /// Refuses what cannot be meant.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |what, value: &str, why| Err(HostError::Refused { what, value: value.to_owned(), why });
        let plain =
            |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_control() || c.is_whitespace());
        if !plain(&self.address) {
            return refuse("address", &self.address, "it must be a name or an IP address");
        }
        if self.port == 0 {
            return refuse("port", "0", "there is no such port");
        }
        if !plain(&self.user) {
            return refuse("user", &self.user, "it must be a name without spaces");
        }
        if self.max_sessions < slots::FEWEST {
            let why = "a host needs 4 sessions at least, by its server's MaxSessions";
            return refuse("max_sessions", &self.max_sessions.to_string(), why);
        }
        for pin in &self.host_keys.pinned {
            Pin::parse(pin)?;
        }
        let jumps = std::iter::successors(self.jump.as_deref(), |target| target.jump.as_deref());
        if jumps.count() > MOST_JUMPS {
            return refuse("jump", &self.address, "there are too many hosts to go through");
        }
        self.jump.as_ref().map_or(Ok(()), |jump| jump.check())
    }

    /// The user as a part of a file's name.
    pub(super) fn file_name_of_user(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
        self.user.chars().map(plain).collect()
    }
}

/// How we prove who we are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Login {
    /// By a private key in this file of the service's machine, without a passphrase.
    KeyFile(PathBuf),
    /// By whatever keys an agent holds: the one at this socket, or at `$SSH_AUTH_SOCK`.
    Agent(Option<PathBuf>),
}

/// How a machine proves who it is: by any of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostKeys {
    /// Fingerprints (`SHA256:…`) or whole public keys (`ssh-ed25519 AAAA…`). If there are any, nothing else counts.
    #[serde(default)]
    pub pinned: Vec<String>,
    /// Files in the format of OpenSSH, hashed entries too. The service's own file of accepted keys counts as well.
    #[serde(default)]
    pub known_hosts: Vec<PathBuf>,
    /// What to do about a machine that none of them knows.
    #[serde(default)]
    pub unknown: UnknownKey,
}

/// What to do about a key that nobody has vouched for. A changed key is always refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownKey {
    /// Refuse it, and say how it is accepted.
    #[default]
    Refuse,
    /// Take it, and remember it: trust on first use.
    Trust,
}
