//! What happens on the host: where a tool's place is, what is there, and how something new gets there whole.
//!
//! A place is one name in the cache: for codex a directory (the program, what its sandbox needs, a stamp), for ttyd the
//! program itself. What is new is put together in a stage, a hidden directory beside the place, and renamed. All of it is
//! done by the host's own `sh` and a few programs every Linux has.

use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::{ProvisionError, Tool, probe, script, word};
use crate::{ByteStream, Command, Host, HostError, Output};

/// Limit of copying a program and what it needs on the host; 300 MB take a second, on a network disk a minute.
const COPY_LIMIT: Duration = Duration::from_secs(300);

/// Most bytes of a stamp; one has some 120.
const STAMP_LIMIT: usize = 512;

/// Where codex is cached, as the host's own environment says (S-218).
const CACHE_DIR: &str =
    r#"printf '%s\n' "${OPTIO_CODEX_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/optio-codex/bin}""#;

const UNAME: &str = "uname -s && uname -m";

/// Shows the stamp, and says by its status whether the program is a regular file that can be executed.
const LOOK: &str =
    r#"head -c "$3" -- "$1/stamp" 2>/dev/null; [ -f "$1/$2" ] && [ ! -L "$1/$2" ] && [ -x "$1/$2" ]"#;

/// The entries of codex that a cache has, whatever is in them.
const ENTRIES: &str =
    r#"for entry in "$1"/codex-*/; do [ -d "$entry" ] && printf '%s\n' "${entry%/}"; done | head -n 64"#;

/// Makes a stage, and removes those that were left: ours of an earlier process, and anybody's after an hour.
const OPEN: &str = r#"set -eu
dir=$1 ours=$2 now=$3 stage=$4
umask 022
mkdir -p -- "$dir"
for left in "$dir/.optio-$ours-"*; do
  case $left in "$dir/.optio-$ours-$now-"*) ;; *) rm -rf -- "$left" ;; esac
done
find "$dir" -maxdepth 1 -name '.optio-*' -mmin +60 -exec rm -rf -- {} + 2>/dev/null || :
mkdir -- "$stage""#;

/// Copies a program, links followed, and the directory that codex looks for its sandbox helper in: beside the program, or
/// beside the directory of the program (LAB §4).
const COPY: &str = r#"set -eu
from=$1 stage=$2 name=$3
cp -L -- "$from" "$stage/$name"
chmod 755 -- "$stage/$name"
dir=${from%/*}
for resources in "$dir/codex-resources" "${dir%/*}/codex-resources"; do
  if [ -d "$resources" ]; then cp -RL -- "$resources" "$stage/codex-resources"; break; fi
done"#;

const MAKE_DIR: &str = r#"umask 022; mkdir -p -- "$1""#;

/// Puts a stage in its place. What is there already stays when somebody else has put it there meanwhile, which its stamp
/// tells: it is not the one that was found to be bad. The lock keeps two services from moving each other's work; it is on
/// the directory itself, so nothing of it is left.
const PLACE_DIR: &str = r#"set -eu
stage=$1 entry=$2 bad=$3 stamp=$4
printf '%s' "$stamp" >"$stage/stamp"
exec 9<"${entry%/*}"
if command -v flock >/dev/null 2>&1; then flock -w 60 9; fi
if [ -e "$entry" ] || [ -L "$entry" ]; then
  id=$(sed -n 's/^id //p' "$entry/stamp" 2>/dev/null || :)
  if [ -n "$id" ] && [ "$id" != "$bad" ]; then rm -rf -- "$stage"; exit 0; fi
  mv -T -- "$entry" "$stage.old"
fi
mv -T -- "$stage" "$entry"
rm -rf -- "$stage.old""#;

/// Puts the program of a stage in its place; whoever runs the old one keeps it.
const PLACE_FILE: &str = r#"set -eu
chmod 755 -- "$1/$2"
mv -fT -- "$1/$2" "$3"
rmdir -- "$1""#;

const DISCARD: &str = r#"rm -rf -- "$1" "$1.old""#;

/// What an entry of the cache says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    /// What the program answered when it was put there.
    pub(super) version: String,
    /// Told apart from every other, so that a bad entry can be replaced and a new one not.
    id: String,
}

impl Stamp {
    pub(super) fn new(version: &str) -> Self {
        Self { version: version.to_owned(), id: Uuid::new_v4().simple().to_string() }
    }

    fn write(&self) -> String {
        format!("version {}\nid {}\n", self.version, self.id)
    }

    fn read(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.filter(|value| !value.is_empty()).map(str::to_owned)
        };
        Some(Self { version: field("version")?, id: field("id")? })
    }
}

/// What is in a place.
pub(super) struct Look {
    /// What it says of itself.
    pub(super) stamp: Option<Stamp>,
    /// Its program is a regular file that can be executed.
    pub(super) sound: bool,
}

/// Looks at an entry of the cache.
pub(super) async fn look(host: &dyn Host, entry: &Path, tool: Tool) -> Result<Look, HostError> {
    let limit = STAMP_LIMIT.to_string();
    let said = host.run(script(LOOK, [word(entry)?, tool.name(), &limit])).await?;
    Ok(Look { stamp: Stamp::read(&String::from_utf8_lossy(&said.stdout)), sound: said.success() })
}

/// Every entry of codex in a cache.
pub(super) async fn entries(host: &dyn Host, cache: &Path) -> Result<Vec<PathBuf>, HostError> {
    let said = host.run(script(ENTRIES, [word(cache)?])).await?;
    Ok(String::from_utf8_lossy(&said.stdout).lines().map(PathBuf::from).collect())
}

/// The directory in which codex is cached (S-218…S-220).
pub(super) async fn cache_dir(host: &dyn Host, wanted: Option<&str>) -> Result<PathBuf, HostError> {
    match wanted {
        Some(dir) => probe::absolute(host, Path::new(dir)).await.map(tidy),
        None => {
            let said = done("finding the cache of the host", host.run(script(CACHE_DIR, [])).await?)?;
            let text = String::from_utf8_lossy(&said.stdout);
            let dir = text.trim_end_matches('\n');
            if !dir.starts_with('/') {
                let why = "it must be an absolute path; OPTIO_CODEX_CACHE_DIR names another";
                return Err(HostError::Refused { what: "cache directory", value: dir.to_owned(), why });
            }
            Ok(tidy(dir.into()))
        }
    }
}

/// The directory in which ttyd is (S-239).
pub(super) async fn ttyd_dir(host: &dyn Host, wanted: Option<&str>) -> Result<PathBuf, HostError> {
    probe::absolute(host, Path::new(wanted.unwrap_or("~/.local/bin"))).await.map(tidy)
}

/// Without slashes at the end.
fn tidy(dir: PathBuf) -> PathBuf {
    dir.components().collect()
}

/// What the host is.
pub(super) async fn uname(host: &dyn Host) -> Result<String, HostError> {
    let said = done("asking the host what it is", host.run(script(UNAME, [])).await?)?;
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// A private directory beside a place. It has to be placed or discarded; dropping it leaves it to the next one.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    path: PathBuf,
    tool: Tool,
}

impl Stage {
    /// Makes an empty stage in `dir`. `ours` is the same at each start of one service and of nobody else, `now` is this
    /// process alone.
    pub(super) fn new(dir: &Path, tool: Tool, ours: &str, now: &str) -> Self {
        let token = Uuid::new_v4().simple();
        Self { path: dir.join(format!(".optio-{ours}-{now}-{token}")), tool }
    }

    pub(super) async fn open(&self, host: &dyn Host, ours: &str, now: &str) -> Result<(), HostError> {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let opening = script(OPEN, [word(dir)?, ours, now, word(&self.path)?]);
        done("making room on the host", host.run(opening).await?).map(drop)
    }

    /// Where the program is in it.
    pub(super) fn program(&self) -> PathBuf {
        self.path.join(self.tool.name())
    }

    /// Copies a program of the host, and what it needs.
    pub(super) async fn copy(&self, host: &dyn Host, from: &Path) -> Result<(), HostError> {
        let copying = script(COPY, [word(from)?, word(&self.path)?, self.tool.name()]);
        done("copying a program on the host", host.run(Command { limit: COPY_LIMIT, ..copying }).await?)
            .map(drop)
    }

    /// Writes the program.
    pub(super) async fn upload(&self, host: &dyn Host, program: ByteStream) -> Result<(), HostError> {
        host.write_stream(&self.program(), program, 0o755).await.map(drop)
    }

    /// Writes the helper of codex's sandbox.
    pub(super) async fn upload_helper(&self, host: &dyn Host, helper: ByteStream) -> Result<(), HostError> {
        let dir = self.path.join("codex-resources");
        done("making a directory on the host", host.run(script(MAKE_DIR, [word(&dir)?])).await?)?;
        host.write_stream(&dir.join("bwrap"), helper, 0o755).await.map(drop)
    }

    /// Makes it the entry of the cache, unless there is one by now that is not the `bad` one.
    pub(super) async fn place_dir(
        &self,
        host: &dyn Host,
        entry: &Path,
        bad: Option<&Stamp>,
        stamp: &Stamp,
    ) -> Result<(), HostError> {
        let bad = bad.map(|stamp| stamp.id.as_str()).unwrap_or_default();
        let stamp = stamp.write();
        let placing = script(PLACE_DIR, [word(&self.path)?, word(entry)?, bad, &stamp]);
        let limit = Duration::from_secs(90);
        done("putting a program in its place", host.run(Command { limit, ..placing }).await?).map(drop)
    }

    /// Makes its program the file at `place`.
    pub(super) async fn place_file(&self, host: &dyn Host, place: &Path) -> Result<(), HostError> {
        let placing = script(PLACE_FILE, [word(&self.path)?, self.tool.name(), word(place)?]);
        done("putting a program in its place", host.run(placing).await?).map(drop)
    }

    /// Removes it with all that is in it; gone is fine.
    pub(super) async fn discard(&self, host: &dyn Host) {
        let discarding = async { host.run(script(DISCARD, [word(&self.path)?])).await };
        if let Err(problem) = discarding.await.and_then(|said| done("removing", said)) {
            tracing::warn!(stage = %self.path.display(), %problem, "what was begun on the host is left to the next one");
        }
    }
}

/// A script of ours that must succeed.
fn done(what: &str, said: Output) -> Result<Output, HostError> {
    if said.success() {
        return Ok(said);
    }
    let stderr = String::from_utf8_lossy(&said.stderr);
    let stderr: String = stderr.trim().chars().take(1024).collect();
    Err(HostError::Failed { what: what.to_owned(), status: said.status.to_string(), stderr })
}

impl Look {
    /// The entry can be asked; what it says of itself.
    pub(super) fn usable(&self) -> Option<&Stamp> {
        self.stamp.as_ref().filter(|_| self.sound)
    }
}

/// True for what another source may still cure: the host answered, and what it has is no use.
pub(super) fn is_about_the_program(problem: &ProvisionError) -> bool {
    matches!(
        problem,
        ProvisionError::Unusable { .. }
            | ProvisionError::Host(
                HostError::Program { .. }
                    | HostError::TimedOut { .. }
                    | HostError::NotFound { .. }
                    | HostError::Failed { .. }
                    | HostError::Refused { .. }
                    | HostError::Io { .. }
            )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written_and_nothing_else_is_one() {
        let stamp = Stamp::new("0.142.5");
        assert_eq!(Stamp::read(&stamp.write()), Some(stamp));
        for bad in ["", "version 1.2.3\n", "id x\n", "version \nid \n", "\u{0}\u{1}"] {
            assert_eq!(Stamp::read(bad), None, "{bad:?}");
        }
    }
}
