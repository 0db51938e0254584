//! Programs that a session needs on its host: found there, copied from there, or brought there.
//!
//! Sources, in this order, and the first that works is taken:
//!
//! ```text
//!   1  what the operator names                      used where it is
//!   2  the host's cache                             stamped, and it answers `--version` as its stamp says
//!   3  the host's own, on its login PATH            codex: copied into the cache, with what its sandbox needs
//!   4  the pinned release                           downloaded by the service, checked, then written to the host
//! ```
//!
//! Everything is put together in a private directory beside its place and renamed into it, so whoever looks sees nothing,
//! the old or the new, and never a part. Reading order: [`order`](HostTools) (the sources), `release` (names and pins),
//! `fetch` (HTTP), `unpack` (the tarball), `install` (what happens on the host), `probe` (what counts as working).

mod fetch;
mod install;
mod order;
mod percents;
mod probe;
mod release;
mod unpack;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::{CodexBinary, Command, Host, HostError};

pub use order::HostTools;
pub use percents::Percents;
pub use release::{Arch, Asset, BadSum, Pins, Release, Releases, Sha256Sum};

/// A program that is provided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tool {
    /// The agent.
    Codex,
    /// The viewers' side of a terminal. Tmux is never provided: it belongs to the host's system (S-243).
    Ttyd,
}

impl Tool {
    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Codex => "codex",
            Self::Ttyd => "ttyd",
        }
    }
}

impl std::fmt::Display for Tool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How somebody wants a tool provided. Equal wishes on one host have one answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Wishes {
    /// The operator's own program; nothing else is looked at then.
    pub program: Option<PathBuf>,
    /// Something may be put on the host (S-018).
    pub install_if_missing: bool,
    /// Where it is put (S-019): absolute, or below the host user's home as `~/…`. Without it codex goes to the host's cache
    /// (S-218) and ttyd to `~/.local/bin` (S-239).
    pub install_dir: Option<String>,
}

impl Default for Wishes {
    fn default() -> Self {
        Self { program: None, install_if_missing: true, install_dir: None }
    }
}

/// A program that is there and works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provided {
    /// Where it is on the host, absolute; never a launcher script of codex (S-225).
    pub path: PathBuf,
    /// What it calls itself, e.g. `0.142.5`.
    pub version: String,
    /// Of a codex: its app-server can listen on a Unix socket (DESIGN §7).
    pub can_listen: bool,
}

impl From<CodexBinary> for Provided {
    fn from(codex: CodexBinary) -> Self {
        Self { path: codex.path, version: codex.version, can_listen: codex.can_listen }
    }
}

/// How far it is, for whoever waits (S-133, S-136, S-234).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Progress {
    /// How much of a download has come, 0 to 100; told when it changes, and never without a known length.
    pub percent: Option<u8>,
    /// What is being done.
    pub message: String,
}

/// Hears of progress; cheap, because it is called within the work.
pub type Tell<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Why there is no such program. Shared by everybody who waited for it; the next request tries anew.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProvisionError {
    /// The host failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// There is no release for such a host (S-228).
    #[error(
        "the host's {what} is {found:?}, and there is no {tool} for it to download ({known}); install {tool} there"
    )]
    Unsupported {
        /// Which tool.
        tool: Tool,
        /// `OS` or `arch`.
        what: &'static str,
        /// What the host says it is.
        found: String,
        /// What would do.
        known: &'static str,
    },
    /// It is not there and must not be installed (S-222, S-241).
    #[error("{tool} is not on the host, and {flag}=False forbids to install it{}", told(.notes))]
    NotAllowed {
        /// Which tool.
        tool: Tool,
        /// The setting that forbids it.
        flag: &'static str,
        /// Why what was found did not do.
        notes: Vec<String>,
    },
    /// Nobody has said what the file must hash to (S-233).
    #[error(
        "{asset} of version {version} is not downloaded, because its SHA-256 is not known; give it as \
         [provision.{tool}] sha256.{arch} in the configuration file{}", told(.notes)
    )]
    NotPinned {
        /// Which tool.
        tool: Tool,
        /// The file's name.
        asset: String,
        /// The release.
        version: String,
        /// The host's architecture, as the setting names it.
        arch: &'static str,
        /// Why what was found did not do.
        notes: Vec<String>,
    },
    /// It could not be downloaded.
    #[error(
        "{url} could not be downloaded: {why}; see that the service reaches it, name another place for releases \
         ({setting}), or install the program on the host"
    )]
    Download {
        /// The address, without what may be secret in it.
        url: String,
        /// What went wrong.
        why: String,
        /// The setting that names another place.
        setting: &'static str,
        /// It may come later: the server was not reached, or could not.
        transient: bool,
    },
    /// The file is not the one that was released.
    #[error(
        "{asset} from {url} has the SHA-256 {found}, not {expected}: it is damaged, or not what was released, and is not \
         used; try another place for releases ({setting}), or correct the pin in the configuration file"
    )]
    Mismatch {
        /// The file's name.
        asset: String,
        /// The address, without what may be secret in it.
        url: String,
        /// What it must be.
        expected: Box<Sha256Sum>,
        /// What it is.
        found: Box<Sha256Sum>,
        /// The setting that names another place.
        setting: &'static str,
    },
    /// What was put on the host does not work there.
    #[error("{tool} at {path} cannot be used: {why}{}", told(.notes))]
    Unusable {
        /// Which tool.
        tool: Tool,
        /// Where it is, or where it came from.
        path: String,
        /// What is wrong, and what would be right.
        why: String,
        /// Why what was found before did not do.
        notes: Vec<String>,
    },
    /// A file of the service.
    #[error("{what}: {source}")]
    Disk {
        /// What was tried, with the path.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Nobody waits for it any more (S-141).
    #[error("providing {0} was given up, because nobody waits for it any more")]
    Cancelled(Tool),
    /// It took too long; whatever was begun is removed.
    #[error("providing {tool} did not end within {limit:?}")]
    Endless {
        /// Which tool.
        tool: Tool,
        /// The limit.
        limit: std::time::Duration,
    },
}

/// Earlier disappointments, as the end of a sentence.
fn told(notes: &[String]) -> String {
    notes.iter().map(|note| format!("; {note}")).collect()
}

/// Provides programs. The port between who waits for whom and what happens to files.
#[async_trait]
pub trait Provision: Send + Sync + 'static {
    /// Provides `tool` on `host`. Ends soon after `cancel`, with nothing half-done left behind; dropping the future instead
    /// may leave a private directory to the next call.
    async fn provide(
        &self,
        host: &dyn Host,
        tool: Tool,
        wishes: &Wishes,
        tell: Tell<'_>,
        cancel: &CancellationToken,
    ) -> Result<Provided, ProvisionError>;
}

/// Takes what is on the host, where it is, and installs nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct InPlace;

#[async_trait]
impl Provision for InPlace {
    async fn provide(
        &self,
        host: &dyn Host,
        tool: Tool,
        wishes: &Wishes,
        _: Tell<'_>,
        _: &CancellationToken,
    ) -> Result<Provided, ProvisionError> {
        match tool {
            Tool::Codex => Ok(probe::find_codex(host, wishes.program.as_deref()).await?.into()),
            Tool::Ttyd => {
                let path = match &wishes.program {
                    Some(program) => probe::absolute(host, program).await?,
                    None => probe::on_path(host, Tool::Ttyd).await?,
                };
                probe::ttyd(host, &path).await
            }
        }
    }
}

/// A small script with its words, for a host's `sh`. Values go in as words and are never read as script.
fn script<'a>(script: &'a str, words: impl IntoIterator<Item = &'a str>) -> Command {
    Command::new(["sh", "-c", script, "sh"].into_iter().chain(words))
}

/// A path as a word of a script.
fn word(path: &Path) -> Result<&str, HostError> {
    path.to_str().ok_or_else(|| HostError::Refused {
        what: "path",
        value: path.display().to_string(),
        why: "it is not UTF-8",
    })
}
