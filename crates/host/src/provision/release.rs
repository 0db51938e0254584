//! What is downloaded: names, addresses, and the hashes that it must have. Pure.

use std::fmt;
use std::str::FromStr;

use super::{ProvisionError, Tool};

/// The release that is taken unless the operator names another (S-227): the one that this service was written against.
const CODEX_VERSION: &str = "0.142.5";
const CODEX_BASE: &str = "https://github.com/openai/codex/releases/download";
/// Confirmed by the Homebrew cask of this version, and by Nix and TypeScript packages that pin the same files.
const CODEX_SUMS: [&str; 2] = [
    "cb933ec3cb61bf4b5fc88eecf5e6149829faa6172535b6ef0afb0154beb4aab8",
    "b18c75c49645918fae23beba0ab41c05f07941601510a2451ba97fe519573c38",
];

/// See [`CODEX_VERSION`] (S-241).
const TTYD_VERSION: &str = "1.7.7";
const TTYD_BASE: &str = "https://github.com/tsl0922/ttyd/releases/download";
/// Confirmed by a dozen images and installers that pin these files of the release.
const TTYD_SUMS: [&str; 2] = [
    "8a217c968aba172e0dbf3f34447218dc015bc4d5e59bf51db2f2cd12b7be4f55",
    "b38acadd89d1d396a0f5649aa52c539edbad07f4bc7348b27b4f4b7219dd4165",
];

/// Largest file that is taken: the tarball of codex has 110 MB, and grew by half within a year.
const CODEX_LIMIT: u64 = 512 << 20;
/// The sandbox helper has 0.3 MB, ttyd 1.4 MB.
const SMALL_LIMIT: u64 = 64 << 20;

/// Longest version: it stands in file names.
const VERSION_LIMIT: usize = 64;

/// A kind of processor for which there are releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit Intel and AMD.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl Arch {
    /// Reads the two lines of `uname -s; uname -m` (S-228).
    pub fn of_uname(tool: Tool, said: &str) -> Result<Self, ProvisionError> {
        let mut lines = said.lines().map(str::trim);
        let (os, arch) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let unsupported = |what, found: &str, known| {
            let found = found.chars().take(VERSION_LIMIT).collect();
            Err(ProvisionError::Unsupported { tool, what, found, known })
        };
        if os != "Linux" {
            return unsupported("OS", os, "releases are taken for Linux only");
        }
        match arch {
            "x86_64" | "amd64" => Ok(Self::X86_64),
            "aarch64" | "arm64" => Ok(Self::Aarch64),
            _ => unsupported("arch", arch, "releases are taken for x86_64 and aarch64"),
        }
    }

    /// As releases and settings name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha256Sum(pub [u8; 32]);

/// It is not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no SHA-256, which has 64 hexadecimal digits")]
pub struct BadSum(String);

impl FromStr for Sha256Sum {
    type Err = BadSum;

    fn from_str(text: &str) -> Result<Self, BadSum> {
        let bad = || BadSum(text.chars().take(80).collect());
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut sum = [0; 32];
        for (byte, at) in sum.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(sum))
    }
}

impl fmt::Display for Sha256Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the files of one release must hash to; without it a file is not taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins {
    /// The file for [`Arch::X86_64`].
    pub x86_64: Option<Sha256Sum>,
    /// The file for [`Arch::Aarch64`].
    pub aarch64: Option<Sha256Sum>,
}

impl Pins {
    fn known([x86_64, aarch64]: [&str; 2]) -> Self {
        // The pins of this file are read by a test below.
        Self { x86_64: x86_64.parse().ok(), aarch64: aarch64.parse().ok() }
    }

    fn of(&self, arch: Arch) -> Option<Sha256Sum> {
        match arch {
            Arch::X86_64 => self.x86_64,
            Arch::Aarch64 => self.aarch64,
        }
    }
}

/// One release of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Its version, e.g. `0.142.5`.
    pub version: String,
    /// What its addresses begin with, without a slash at the end.
    pub base: String,
    /// What its files must hash to.
    pub pins: Pins,
    /// Of codex: what its sandbox helper must hash to. Without it the helper is not fetched, and a codex that was
    /// downloaded needs a `bwrap` on the host's `PATH` for its sandbox (LAB §4).
    pub helper_pins: Pins,
}

impl Release {
    /// The release of codex that this service was written against.
    pub fn codex() -> Self {
        Self {
            version: CODEX_VERSION.to_owned(),
            base: CODEX_BASE.to_owned(),
            pins: Pins::known(CODEX_SUMS),
            helper_pins: Pins::default(),
        }
    }

    /// The release of ttyd that this service was written against.
    pub fn ttyd() -> Self {
        Self {
            version: TTYD_VERSION.to_owned(),
            base: TTYD_BASE.to_owned(),
            pins: Pins::known(TTYD_SUMS),
            helper_pins: Pins::default(),
        }
    }

    /// True for a version that can stand in an address and in a file's name.
    pub fn is_version(text: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".+-".contains(&byte);
        text.starts_with(|c: char| c.is_ascii_digit())
            && text.len() <= VERSION_LIMIT
            && text.bytes().all(allowed)
    }
}

/// Where the programs come from when a host has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Releases {
    /// Of codex.
    pub codex: Release,
    /// Of ttyd.
    pub ttyd: Release,
}

impl Default for Releases {
    fn default() -> Self {
        Self { codex: Release::codex(), ttyd: Release::ttyd() }
    }
}

impl Releases {
    /// The tool's release.
    pub fn of(&self, tool: Tool) -> &Release {
        match tool {
            Tool::Codex => &self.codex,
            Tool::Ttyd => &self.ttyd,
        }
    }

    /// The file that is the tool, for hosts of this kind.
    pub fn asset(&self, tool: Tool, arch: Arch) -> Asset {
        let release = self.of(tool);
        let sum = release.pins.of(arch);
        match tool {
            Tool::Codex => codex_file(release, "codex", arch, sum, CODEX_LIMIT),
            Tool::Ttyd => {
                let name = format!("ttyd.{}", arch.name());
                Asset::new(tool, release, &release.version, name, sum, false, SMALL_LIMIT)
            }
        }
    }

    /// The file that is the helper of codex's sandbox, where somebody has said what it must hash to.
    pub fn helper(&self, arch: Arch) -> Option<Asset> {
        let sum = self.codex.helper_pins.of(arch)?;
        Some(codex_file(&self.codex, "bwrap", arch, Some(sum), SMALL_LIMIT))
    }
}

fn codex_file(release: &Release, stem: &str, arch: Arch, sum: Option<Sha256Sum>, limit: u64) -> Asset {
    let name = format!("{stem}-{}-unknown-linux-musl.tar.gz", arch.name());
    let tag = format!("rust-v{}", release.version);
    Asset::new(Tool::Codex, release, &tag, name, sum, true, limit)
}

/// One file of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    /// Whose it is.
    pub tool: Tool,
    /// The release's version.
    pub version: String,
    /// The file's name, e.g. `codex-x86_64-unknown-linux-musl.tar.gz`.
    pub name: String,
    /// Where it is. May hold a password; [`Asset::shown`] does not.
    pub url: String,
    /// What it must hash to.
    pub sum: Option<Sha256Sum>,
    /// It is a gzipped tar around the program, and not the program itself.
    pub packed: bool,
    /// Most bytes it may have.
    pub limit: u64,
}

impl Asset {
    fn new(
        tool: Tool,
        release: &Release,
        tag: &str,
        name: String,
        sum: Option<Sha256Sum>,
        packed: bool,
        limit: u64,
    ) -> Self {
        let url = format!("{}/{tag}/{name}", release.base.trim_end_matches('/'));
        Self { tool, version: release.version.clone(), name, url, sum, packed, limit }
    }

    /// The name of its copy in the service's own directory.
    pub(super) fn file_name(&self) -> String {
        format!("{}-{}", self.version, self.name)
    }

    /// The setting that names another place for it.
    pub(super) fn setting(&self) -> &'static str {
        match self.tool {
            Tool::Codex => "codex_release_url",
            Tool::Ttyd => "ttyd_release_url",
        }
    }

    /// Its address without a password, a query or a fragment.
    pub fn shown(&self) -> String {
        shown(&self.url)
    }
}

/// An address without what may be secret in it.
pub(super) fn shown(url: &str) -> String {
    let bare = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = bare.split_once("://") else {
        return bare.to_owned();
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}/{path}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_are_named_and_found_as_they_were_released() {
        let releases = Releases::default();
        let of = |tool, arch| releases.asset(tool, arch);
        let codex = of(Tool::Codex, Arch::X86_64);
        let at = "https://github.com/openai/codex/releases/download/rust-v0.142.5/codex-x86_64-unknown-linux-musl.tar.gz";
        assert_eq!((codex.url.as_str(), codex.packed), (at, true));
        assert_eq!(of(Tool::Codex, Arch::Aarch64).name, "codex-aarch64-unknown-linux-musl.tar.gz");
        let ttyd = of(Tool::Ttyd, Arch::Aarch64);
        let at = "https://github.com/tsl0922/ttyd/releases/download/1.7.7/ttyd.aarch64";
        assert_eq!((ttyd.url.as_str(), ttyd.packed), (at, false));
    }

    #[test]
    fn every_file_of_the_known_releases_is_pinned_and_no_two_alike() {
        let releases = Releases::default();
        let mut sums = Vec::new();
        for tool in [Tool::Codex, Tool::Ttyd] {
            for arch in [Arch::X86_64, Arch::Aarch64] {
                let sum = releases.asset(tool, arch).sum.expect("a pin of this file is a SHA-256");
                assert!(!sums.contains(&sum), "{sum}");
                sums.push(sum);
            }
        }
        assert_eq!(releases.helper(Arch::X86_64), None, "nobody has confirmed one");
    }

    #[test]
    fn the_host_says_what_it_is_and_others_are_refused_by_name() {
        assert_eq!(Arch::of_uname(Tool::Codex, "Linux\nx86_64\n").unwrap(), Arch::X86_64);
        assert_eq!(Arch::of_uname(Tool::Codex, "Linux\naarch64\n").unwrap(), Arch::Aarch64);
        for (said, word) in [
            ("Darwin\narm64\n", "OS"),
            ("\n", "OS"),
            ("Linux\narmv7l\n", "arch"),
            ("Linux\n", "arch"),
            ("Linux\ni686", "arch"),
        ] {
            let refused = Arch::of_uname(Tool::Codex, said).unwrap_err().to_string();
            assert!(refused.contains(word), "{said:?}: {refused}");
        }
    }

    #[test]
    fn a_sum_is_64_hexadecimal_digits_and_is_shown_as_it_was_given() {
        let good = CODEX_SUMS[0];
        assert_eq!(good.parse::<Sha256Sum>().unwrap().to_string(), good);
        for bad in ["", &good[1..], &format!("{}g", &good[1..]), &format!("{good}0"), "é".repeat(32).as_str()]
        {
            bad.parse::<Sha256Sum>().unwrap_err();
        }
    }

    #[test]
    fn a_version_cannot_leave_its_place_in_an_address_or_a_directory() {
        for good in ["0.142.5", "1.0.0-alpha.1", "1.7.7"] {
            assert!(Release::is_version(good), "{good}");
        }
        for bad in ["", "v1", "../1", "1/2", "1 2", "1?x", "1\n", &"1".repeat(65)] {
            assert!(!Release::is_version(bad), "{bad:?}");
        }
    }

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        assert_eq!(shown("https://ann:pw@mirror.example/a/b?sig=s#f"), "https://mirror.example/a/b");
        assert_eq!(shown("http://127.0.0.1:8080/x"), "http://127.0.0.1:8080/x");
    }
}
