//! What a host has, for a person who wants to know whether sessions can live there, and what is missing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::orphans::task_root;
use crate::provision::{Provision, ProvisionError, Tool, Wishes};
use crate::{Command, Host, HostError, Result};

const SCRIPT: &str = include_str!("survey.sh");

/// Limit of the script: five programs of at most 5 s each, and whatever a profile does.
const LOOK_LIMIT: Duration = Duration::from_secs(40);

/// Limit of asking for codex, which asks two shells and then the program twice.
const CODEX_LIMIT: Duration = Duration::from_secs(45);

/// Free bytes below which a person hears of it: codex and its sandbox helper take 0.3 GB unpacked, twice
/// while they are installed, and a workdir some more.
const LITTLE_ROOM: u64 = 1 << 30;

/// A kind of processor for which codex and ttyd are released.
const PROCESSORS: [&str; 4] = ["x86_64", "amd64", "aarch64", "arm64"];

/// What a host is and has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// The system, as it calls itself, e.g. `Debian GNU/Linux 12 (bookworm)`.
    pub os: Option<String>,
    /// Its kernel, e.g. `Linux 6.1.0-18-amd64`.
    pub kernel: Option<String>,
    /// Its processor, as `uname -m` says it, e.g. `x86_64`.
    pub arch: Option<String>,
    /// The user that sessions run as there.
    pub user: Option<String>,
    /// That user's home.
    pub home: Option<PathBuf>,
    /// That user's login shell.
    pub shell: Option<PathBuf>,
    /// The programs that sessions use.
    pub tools: Tools,
    /// The room for task directories; `None` when the host does not tell.
    pub disk: Option<Disk>,
    /// What stands in the way of some or all sessions, as sentences for a person. Empty when nothing does.
    pub problems: Vec<String>,
}

/// The programs that sessions use; `None` is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tools {
    /// The agent. Missing is fine where it may be installed.
    pub codex: Option<Found>,
    /// What holds the terminal of an agent.
    pub tmux: Option<Found>,
    /// What shows it. Missing is fine where it may be installed.
    pub ttyd: Option<Found>,
    /// What codex's sandbox is made with.
    pub bwrap: Option<Found>,
    /// What workdirs are packed with on a machine behind SSH.
    pub tar: Option<Found>,
}

/// A program that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Where, by the `PATH` of the user's login.
    pub path: PathBuf,
    /// What it calls itself; `None` when it did not say so.
    pub version: Option<String>,
}

/// Room on a file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// The directory of all task directories, whose file system it is.
    pub path: PathBuf,
    /// Bytes that the user may still fill.
    pub free_bytes: u64,
    /// Bytes that it has.
    pub total_bytes: u64,
}

/// Surveys a host: everything else in one round trip, and then the codex that a session would find there. `codex` is the
/// operator's choice of one, if there is any. Nothing is installed.
///
/// What a host lacks is a problem in the answer; an error is a host that cannot be asked.
pub async fn survey(host: &dyn Host, tools: &dyn Provision, codex: Option<&Path>) -> Result<Survey> {
    let root = task_root(host).unwrap_or_else(|| PathBuf::from("/"));
    let root_word = root.to_str().ok_or_else(|| HostError::Refused {
        what: "task root",
        value: root.display().to_string(),
        why: "it is not UTF-8",
    })?;
    let looking = Command::new(["sh", "-c", SCRIPT, "sh", root_word]);
    let said = host.run(Command { limit: LOOK_LIMIT, cwd: Some(PathBuf::from("/")), ..looking }).await?;
    if !said.success() {
        return Err(HostError::Failed {
            what: format!("looking at what host {} has", host.name()),
            status: said.status.to_string(),
            stderr: String::from_utf8_lossy(&said.stderr).trim().chars().take(1024).collect(),
        });
    }
    let said = String::from_utf8_lossy(&said.stdout);
    let said = Said::read(&said);
    let mut problems = Vec::new();
    let mut found = Tools {
        codex: None,
        tmux: said.tool("tmux"),
        ttyd: said.tool("ttyd"),
        bwrap: said.tool("bwrap"),
        tar: said.tool("tar"),
    };
    said.machine_problems(&mut problems);
    match find_codex(host, tools, codex).await {
        Ok(codex) => found.codex = Some(codex),
        Err(ProvisionError::Host(error)) if error.reach_code().is_some() => return Err(error),
        Err(error) => problems.push(match (codex, error) {
            (Some(_), error) => error.to_string(),
            (None, ProvisionError::NotAllowed { .. }) => {
                "codex is missing: the first session brings it along where that is allowed".to_owned()
            }
            (None, error) => {
                format!("{error}; without one, a session brings it along where that is allowed")
            }
        }),
    }
    tool_problems(&found, &said, &mut problems);
    let disk = said.get("df").and_then(|line| room(line, &root));
    if let Some(disk) = disk.as_ref().filter(|disk| disk.free_bytes < LITTLE_ROOM) {
        let (free, path) = (disk.free_bytes >> 20, disk.path.display());
        problems
            .push(format!("only {free} MiB are free for {path}: sessions may run out of room; free some"));
    }
    if said.get("root_usable").is_none() {
        let root = root.display();
        problems.push(format!(
            "{root} cannot be written to: no session can run there; give it to the user, or name another \
             task root"
        ));
    }
    Ok(Survey {
        os: said.owned("os"),
        kernel: said.owned("kernel"),
        arch: said.owned("arch"),
        user: said.owned("user"),
        home: said.owned("home").map(PathBuf::from),
        shell: said.owned("shell").map(PathBuf::from),
        tools: found,
        disk,
        problems,
    })
}

async fn find_codex(
    host: &dyn Host,
    tools: &dyn Provision,
    wanted: Option<&Path>,
) -> Result<Found, ProvisionError> {
    // Only a look: what is cached there, or the host's own.
    let wishes =
        Wishes { program: wanted.map(Path::to_owned), install_if_missing: false, ..Wishes::default() };
    let nothing_to_cancel = CancellationToken::new();
    let finding = tools.provide(host, Tool::Codex, &wishes, &|_| {}, &nothing_to_cancel);
    let found = tokio::time::timeout(CODEX_LIMIT, finding).await;
    let found = found.unwrap_or_else(|_| {
        Err(HostError::TimedOut { what: "finding codex".into(), limit: CODEX_LIMIT }.into())
    })?;
    Ok(Found { path: found.path, version: Some(found.version) })
}

/// What the script said: names and values, without those that have none.
struct Said<'a>(HashMap<&'a str, &'a str>);

impl<'a> Said<'a> {
    fn read(text: &'a str) -> Self {
        let values = text.lines().filter_map(|line| line.split_once(' '));
        Self(
            values.map(|(name, value)| (name, value.trim())).filter(|(_, value)| !value.is_empty()).collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).copied()
    }

    fn owned(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    fn tool(&self, name: &str) -> Option<Found> {
        let path = self.get(&format!("{name}.path"))?.into();
        let version = self.get(&format!("{name}.says")).and_then(version);
        Some(Found { path, version })
    }

    fn machine_problems(&self, problems: &mut Vec<String>) {
        let mut tell = |problem: String| problems.push(problem);
        if !self.get("kernel").is_some_and(|kernel| kernel.starts_with("Linux")) {
            let kernel = self.get("kernel").unwrap_or("unknown");
            tell(format!("its kernel is {kernel}: sessions run on Linux only"));
        }
        let arch = self.get("arch").unwrap_or("unknown");
        if !PROCESSORS.contains(&arch) {
            tell(format!(
                "its processor is {arch}: codex is released for x86_64 and aarch64 only; install one that runs \
                 there, and name it in the configuration"
            ));
        }
        if self.get("proc").is_none() {
            tell("/proc is missing: no agent can be guarded there; mount it".to_owned());
        }
        if let Some(lacking) = self.get("lacking") {
            let (are, lacking) =
                (if lacking.contains(' ') { "are" } else { "is" }, lacking.replace(' ', ", "));
            tell(format!(
                "{lacking} {are} missing: sessions cannot run there; install the packages coreutils, findutils, \
                 grep, sed and util-linux"
            ));
        }
        if self.get("home_usable").is_none() {
            let home = self.get("home").unwrap_or("(none)");
            tell(format!(
                "its user's home {home} is no directory that can be written to: codex and ttyd cannot be \
                 installed there"
            ));
        }
    }
}

fn tool_problems(tools: &Tools, said: &Said<'_>, problems: &mut Vec<String>) {
    if tools.tmux.is_none() {
        problems
            .push("tmux is missing: terminal sessions cannot run there; install the package tmux".to_owned());
    }
    if tools.ttyd.is_none() {
        problems.push(
            "ttyd is missing: the first terminal session brings it along where that is allowed".to_owned(),
        );
    }
    if tools.bwrap.is_none() && tools.codex.is_none() {
        problems.push(
            "bwrap is missing: a codex that is downloaded may not be able to sandbox commands; install the \
             package bubblewrap"
                .to_owned(),
        );
    }
    let tar = said.get("tar.says").unwrap_or_default();
    match &tools.tar {
        None => problems.push(
            "tar is missing: over SSH no snapshot can be taken or restored there; install the package tar"
                .to_owned(),
        ),
        Some(_) if !tar.contains("GNU") => {
            let seen: String = tar.chars().take(60).collect();
            problems.push(format!(
                "tar is not GNU tar ({seen}): over SSH snapshots may not be taken or restored there; install \
                 the package tar"
            ));
        }
        Some(_) => {}
    }
}

/// The word of an answer to `--version` that is one: `tmux 3.3a` → `3.3a`, `tmux next-3.5` → `next-3.5`.
fn version(said: &str) -> Option<String> {
    let numbered = |word: &&str| {
        let word = word.strip_prefix("next-").or(word.strip_prefix('v')).unwrap_or(word);
        word.starts_with(|c: char| c.is_ascii_digit())
    };
    let word = said.split_whitespace().find(numbered)?;
    Some(word.trim_end_matches([',', ';', ')']).chars().take(64).collect())
}

/// Reads a line of `df -Pk`. Names at both its ends may have spaces in them; three numbers and a percentage
/// are its middle.
fn room(line: &str, root: &Path) -> Option<Disk> {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.windows(4).find_map(|window| {
        let percent = window[3].strip_suffix('%')?;
        if percent != "-" {
            percent.parse::<u32>().ok()?;
        }
        let [total, _, free] = [0, 1, 2].map(|at| window[at].parse::<u64>().ok());
        let (total_bytes, free_bytes) = (total?.checked_mul(1024)?, free?.checked_mul(1024)?);
        Some(Disk { path: root.to_owned(), free_bytes, total_bytes })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_programs_write_them() {
        for (said, want) in [
            ("tmux 3.3a", Some("3.3a")),
            ("tmux next-3.5", Some("next-3.5")),
            ("ttyd version 1.7.7-40e79c7", Some("1.7.7-40e79c7")),
            ("bubblewrap 0.9.0", Some("0.9.0")),
            ("tar (GNU tar) 1.34", Some("1.34")),
            ("bsdtar 3.7.2 - libarchive 3.7.2", Some("3.7.2")),
            ("tar (busybox) 1.36.1", Some("1.36.1")),
            ("usage: tmux", None),
        ] {
            assert_eq!(version(said).as_deref(), want, "{said}");
        }
    }

    #[test]
    fn room_is_read_between_names_with_spaces() {
        let root = Path::new("/tasks");
        let disk = |line| room(line, root).map(|disk| (disk.free_bytes, disk.total_bytes));
        assert_eq!(disk("/dev/vda 100 40 60 40% /"), Some((60 << 10, 100 << 10)));
        assert_eq!(disk("//nas/my share 7 100 40 60 40% /mnt/a 1 2 3 4% b"), Some((60 << 10, 100 << 10)));
        assert_eq!(disk("none 0 0 0 - /x"), None);
        assert_eq!(disk("none 0 0 0 -% /x"), Some((0, 0)));
        assert_eq!(disk("/dev/vda 18446744073709551615 0 1 1% /"), None);
    }
}
