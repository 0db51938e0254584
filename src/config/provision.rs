//! Which releases hosts get when they have no codex or ttyd of their own, and what their files must hash to.

use anyhow::{Context, Result, ensure};
use optio_host::provision::{Pins, Release, Releases, Sha256Sum};
use serde::Deserialize;

/// The `[provision]` of the file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProvisionOptions {
    /// Codex.
    pub codex: CodexRelease,
    /// Ttyd.
    pub ttyd: TtydRelease,
}

/// The `[provision.codex]` of the file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CodexRelease {
    /// The version to take instead of the one this service was written against; its files need pins then.
    pub version: Option<String>,
    /// SHA-256 of `codex-<arch>-unknown-linux-musl.tar.gz`.
    pub sha256: Sums,
    /// SHA-256 of `bwrap-<arch>-unknown-linux-musl.tar.gz`; with it the helper of Codex's sandbox is fetched too.
    pub bwrap_sha256: Sums,
}

/// The `[provision.ttyd]` of the file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TtydRelease {
    /// As in [`CodexRelease`].
    pub version: Option<String>,
    /// SHA-256 of `ttyd.<arch>`.
    pub sha256: Sums,
}

/// One SHA-256 for each kind of processor, in hexadecimal.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sums {
    /// 64-bit Intel and AMD.
    pub x86_64: Option<String>,
    /// 64-bit ARM.
    pub aarch64: Option<String>,
}

/// What was given over what is known. A pin belongs to one version: of another version none is known.
pub(super) fn releases(
    codex_url: Option<&str>,
    ttyd_url: Option<&str>,
    given: &ProvisionOptions,
) -> Result<Releases> {
    let mut all = Releases::default();
    let (codex, ttyd) = (&given.codex, &given.ttyd);
    change(&mut all.codex, "codex", codex_url, codex.version.as_deref(), &codex.sha256)?;
    change(&mut all.ttyd, "ttyd", ttyd_url, ttyd.version.as_deref(), &ttyd.sha256)?;
    pin(&mut all.codex.helper_pins, "provision.codex.bwrap_sha256", &codex.bwrap_sha256)?;
    Ok(all)
}

fn change(
    release: &mut Release,
    name: &str,
    url: Option<&str>,
    version: Option<&str>,
    sums: &Sums,
) -> Result<()> {
    if let Some(url) = url {
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        // Not shown: it may hold a password.
        ensure!(
            rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')),
            "{name}_release_url: it is not of the form https://mirror.example.org/{name}"
        );
        release.base = url.trim_end_matches('/').to_owned();
    }
    if let Some(version) = version.filter(|version| *version != release.version) {
        ensure!(
            Release::is_version(version),
            "provision.{name}.version: {version:?} is not a version such as {}",
            release.version
        );
        release.version = version.to_owned();
        release.pins = Pins::default();
    }
    pin(&mut release.pins, &format!("provision.{name}.sha256"), sums)
}

fn pin(pins: &mut Pins, key: &str, sums: &Sums) -> Result<()> {
    let given = [("x86_64", &sums.x86_64, &mut pins.x86_64), ("aarch64", &sums.aarch64, &mut pins.aarch64)];
    for (arch, sum, pin) in given {
        if let Some(sum) = sum {
            *pin = Some(sum.parse::<Sha256Sum>().with_context(|| format!("{key}.{arch}"))?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(toml: &str) -> Result<Releases> {
        releases(Some("http://127.0.0.1:1/r/"), None, &toml::from_str(toml)?)
    }

    #[test]
    fn another_place_keeps_the_pins_and_another_version_does_not() {
        let known = Releases::default();
        let moved = of("").unwrap();
        assert_eq!(
            (moved.codex.base.as_str(), &moved.codex.pins),
            ("http://127.0.0.1:1/r", &known.codex.pins)
        );
        let newer = of("[codex]\nversion = '0.200.0'").unwrap();
        assert_eq!((newer.codex.version.as_str(), newer.codex.pins), ("0.200.0", Pins::default()));
        assert_eq!(newer.ttyd, known.ttyd);
    }

    #[test]
    fn a_pin_can_be_given_for_one_kind_of_processor() {
        let sum = "ab".repeat(32);
        let all = of(&format!(
            "[codex]\nversion = '1.0.0'\nsha256.aarch64 = '{sum}'\nbwrap_sha256.x86_64 = '{sum}'"
        ));
        let codex = all.unwrap().codex;
        assert_eq!(codex.pins.aarch64.unwrap().to_string(), sum);
        assert_eq!((codex.pins.x86_64, codex.helper_pins.x86_64.is_some()), (None, true));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_key() {
        for (toml, key) in [
            ("[codex]\nversion = '../..'", "provision.codex.version"),
            ("[ttyd]\nsha256.x86_64 = 'abc'", "provision.ttyd.sha256.x86_64"),
            ("[ttyd]\nbwrap_sha256.x86_64 = 'abc'", "bwrap_sha256"),
            ("[tmux]", "tmux"),
        ] {
            let said = format!("{:#}", of(toml).unwrap_err());
            assert!(said.contains(key), "{toml}: {said}");
        }
        let said =
            releases(Some("ftp://ann:secret@x"), None, &ProvisionOptions::default()).unwrap_err().to_string();
        assert!(said.contains("codex_release_url") && !said.contains("secret"), "{said}");
    }
}
