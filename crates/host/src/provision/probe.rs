//! What counts as a program that works.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Provided, ProvisionError, Tool, script, word};
use crate::{CodexBinary, Command, Host, HostError};

/// Limit of a program's `--version`; a cold disk takes a few seconds for 286 MB.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// Oldest codex that is taken: older ones do not speak the protocol of threads and turns that conversations are made of.
/// Those without `--listen` are served through pipes (DESIGN §7).
const CODEX_OLDEST: [u64; 3] = [0, 100, 0];

/// Oldest ttyd that is taken: the seats of viewers travel as arguments of an address, and writing has to be allowed, both as
/// of this one.
const TTYD_OLDEST: [u64; 3] = [1, 7, 0];

/// The three numbers of a version; what follows them is not compared.
pub(super) fn numbers(version: &str) -> Option<[u64; 3]> {
    let core = version.split(['-', '+']).next()?;
    let mut parts = core.split('.').map(|part| part.parse().ok());
    let three = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(three)
}

/// Why a version is not taken.
fn too_old(tool: Tool, version: &str) -> Option<String> {
    let oldest = match tool {
        Tool::Codex => CODEX_OLDEST,
        Tool::Ttyd => TTYD_OLDEST,
    };
    let shown = oldest.map(|number| number.to_string()).join(".");
    match numbers(version) {
        Some(numbers) if numbers >= oldest => None,
        Some(_) => {
            Some(format!("its version {version} is older than {shown}, the oldest that is known to work"))
        }
        None => Some(format!("its version {version:?} is not of the form x.y.z")),
    }
}

/// Limit of [`Host::find_codex`], which asks a shell and then the program, some of it twice.
const FIND_LIMIT: Duration = Duration::from_secs(60);

/// Finds a codex, or answers in time that this did not end.
pub(super) async fn find_codex(host: &dyn Host, wanted: Option<&Path>) -> Result<CodexBinary, HostError> {
    let finding = tokio::time::timeout(FIND_LIMIT, host.find_codex(wanted)).await;
    finding
        .unwrap_or_else(|_| Err(HostError::TimedOut { what: "finding codex".to_owned(), limit: FIND_LIMIT }))
}

/// Accepts a codex of an age that works.
pub(super) fn codex(found: CodexBinary) -> Result<Provided, ProvisionError> {
    match too_old(Tool::Codex, &found.version) {
        None => Ok(found.into()),
        Some(why) => Err(unusable(Tool::Codex, &found.path, why)),
    }
}

/// Asks a ttyd what it is (S-240).
pub(super) async fn ttyd(host: &dyn Host, path: &Path) -> Result<Provided, ProvisionError> {
    let asking = Command { limit: ASK_LIMIT, ..Command::new([word(path)?, "--version"]) };
    let said = host.run(asking).await?;
    let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    let version = ttyd_version(&text).filter(|_| said.success());
    let Some(version) = version else {
        let seen: String = text.trim().chars().take(100).collect();
        let why =
            format!("it answered `--version` with {seen:?} ({}), not with `ttyd version x.y.z`", said.status);
        return Err(unusable(Tool::Ttyd, path, why));
    };
    match too_old(Tool::Ttyd, &version) {
        None => Ok(Provided { path: path.to_owned(), version, can_listen: false }),
        Some(why) => Err(unusable(Tool::Ttyd, path, why)),
    }
}

/// `ttyd version 1.7.7-40e79c7` → `1.7.7-40e79c7`.
fn ttyd_version(said: &str) -> Option<String> {
    let named = said.to_lowercase().contains("ttyd");
    let version = said.split_whitespace().find(|word| numbers(word).is_some());
    version.filter(|_| named).map(str::to_owned)
}

/// Looks a program up as its user's shell would (S-244): a login shell first, so that a `PATH` from a profile counts.
pub(super) async fn on_path(host: &dyn Host, tool: Tool) -> Result<PathBuf, ProvisionError> {
    for flag in ["-lc", "-c"] {
        let looking = Command::new(["sh", flag, r#"command -v "$0""#, tool.name()]);
        let said = host.run(Command { limit: ASK_LIMIT, ..looking }).await?;
        let text = String::from_utf8_lossy(&said.stdout);
        // A profile may print what it likes: only the last line is the answer.
        let last = text.lines().next_back().unwrap_or_default().trim();
        if said.success() && last.starts_with('/') {
            return Ok(last.into());
        }
    }
    let why = "it is on neither the login shell's PATH nor the service's own".to_owned();
    Err(ProvisionError::Host(HostError::Program { program: tool.name().to_owned(), why }))
}

/// An operator's path on the host: absolute, or below the user's home.
pub(super) async fn absolute(host: &dyn Host, path: &Path) -> Result<PathBuf, HostError> {
    let path = match path.strip_prefix("~") {
        Ok(below) => host.home().await?.join(below),
        Err(_) => path.to_owned(),
    };
    if path.is_absolute() {
        return Ok(path);
    }
    let value = path.display().to_string();
    Err(HostError::Refused { what: "path", value, why: "it must be absolute, or start with '~/'" })
}

/// Says whether the host has a sandbox helper of its own (LAB §4).
pub(super) async fn has_bwrap(host: &dyn Host) -> Result<bool, HostError> {
    Ok(host.run(script("command -v bwrap >/dev/null 2>&1", [])).await?.success())
}

pub(super) fn unusable(tool: Tool, path: &Path, why: String) -> ProvisionError {
    ProvisionError::Unusable { tool, path: path.display().to_string(), why, notes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_numbers_make_a_version_and_decide_its_age() {
        assert_eq!(numbers("1.7.7-40e79c7"), Some([1, 7, 7]));
        assert_eq!(numbers("0.142.5"), Some([0, 142, 5]));
        for bad in ["", "1", "1.7", "1.7.x", "1.7.7.1", "v1.7.7", "-1.2.3"] {
            assert_eq!(numbers(bad), None, "{bad}");
        }
        assert!(too_old(Tool::Codex, "0.99.9").is_some());
        assert!(too_old(Tool::Codex, "0.100.0").is_none());
        // By number and not by text.
        assert!(too_old(Tool::Codex, "0.1000.0").is_none());
        assert!(too_old(Tool::Ttyd, "1.6.3").is_some());
        assert!(too_old(Tool::Ttyd, "1.7.7-40e79c7").is_none());
    }

    #[test]
    fn only_a_ttyd_that_says_so_is_one() {
        assert_eq!(ttyd_version("ttyd version 1.7.7-40e79c7\n").as_deref(), Some("1.7.7-40e79c7"));
        assert_eq!(ttyd_version("TTYD 1.7.4").as_deref(), Some("1.7.4"));
        assert_eq!(ttyd_version("busybox 1.36.1"), None);
        assert_eq!(ttyd_version("ttyd: unknown option"), None);
    }
}
