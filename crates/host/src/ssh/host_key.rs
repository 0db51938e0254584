//! Whether the machine that answers is the one that is meant.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use russh::keys::ssh_key::Fingerprint;
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PublicKey};

use super::target::{DEFAULT_PORT, SshTarget};
use crate::error::{HostError, Result};

/// Longest file of known keys that is read; a few thousand machines need a tenth of it.
const KNOWN_HOSTS_LIMIT: u64 = 8 << 20;

/// A key that the configuration names.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Pin {
    Fingerprint(Fingerprint),
    Key(Box<PublicKey>),
}

impl Pin {
    /// Reads `SHA256:…` or `ssh-ed25519 AAAA…`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        if let Ok(fingerprint) = Fingerprint::from_str(text)
            && fingerprint.algorithm() == HashAlg::Sha256
        {
            return Ok(Self::Fingerprint(fingerprint));
        }
        PublicKey::from_openssh(text).map(|key| Self::Key(Box::new(key))).map_err(|_| HostError::Refused {
            what: "host key",
            value: text.to_owned(),
            why: "it must be a fingerprint (SHA256:…) or a public key (ssh-ed25519 AAAA…)",
        })
    }

    fn fits(&self, key: &PublicKey) -> bool {
        match self {
            Self::Fingerprint(fingerprint) => key.fingerprint(HashAlg::Sha256) == *fingerprint,
            Self::Key(pinned) => pinned.key_data() == key.key_data(),
        }
    }
}

/// All that is known of one machine's keys.
pub(super) struct Known {
    pins: Vec<Pin>,
    entries: Vec<(String, PublicKey)>,
    revoked: Vec<PublicKey>,
}

/// What is to be thought of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Trusted,
    Unknown,
    /// Another one stands here.
    Changed(String),
}

impl Known {
    /// Reads what is known of the target. Blocks.
    pub(super) fn load(target: &SshTarget, accepted: &Path) -> Result<Self> {
        let pins = target.host_keys.pinned.iter().map(|pin| Pin::parse(pin)).collect::<Result<Vec<_>>>()?;
        let mut known = Self { pins, entries: Vec::new(), revoked: Vec::new() };
        if !known.pins.is_empty() {
            return Ok(known);
        }
        let own = std::env::home_dir().map(|home| home.join(".ssh/known_hosts"));
        let files: Vec<PathBuf> = match &target.host_keys.known_hosts[..] {
            [] => own.into_iter().collect(),
            files => files.to_vec(),
        };
        for file in files.iter().map(PathBuf::as_path).chain([accepted]) {
            known.read(target, file)?;
        }
        Ok(known)
    }

    fn read(&mut self, target: &SshTarget, file: &Path) -> Result<()> {
        let failed = |error| HostError::io(format!("read {}", file.display()), error);
        match std::fs::metadata(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
            Ok(found) if found.len() > KNOWN_HOSTS_LIMIT => {
                let (len, limit) = (found.len(), KNOWN_HOSTS_LIMIT);
                return Err(HostError::TooLarge { path: file.display().to_string(), len, limit });
            }
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&std::fs::read(file).map_err(failed)?).into_owned();
        for line in text.lines().filter_map(|line| line.strip_prefix("@revoked ")) {
            // Wherever it stands: a key that was stolen is no good for any machine.
            let key = line.split_ascii_whitespace().nth(2);
            self.revoked.extend(key.and_then(|key| russh::keys::parse_public_key_base64(key).ok()));
        }
        // Russh counts the lines without comments.
        let numbers: Vec<usize> =
            (1..).zip(text.lines()).filter(|(_, line)| !line.starts_with('#')).map(|(n, _)| n).collect();
        let entries = russh::keys::known_hosts::known_host_keys_path(&target.address, target.port, file)
            .map_err(|error| failed(std::io::Error::other(error.to_string())))?;
        self.entries.extend(entries.into_iter().map(|(line, key)| {
            let number = numbers.get(line.saturating_sub(1)).copied().unwrap_or(line);
            (format!("{}:{number}", file.display()), key)
        }));
        Ok(())
    }

    pub(super) fn judge(&self, key: &PublicKey) -> Verdict {
        if self.revoked.iter().any(|revoked| revoked.key_data() == key.key_data()) {
            return Verdict::Changed("the list of revoked keys".into());
        }
        if !self.pins.is_empty() {
            return match self.pins.iter().any(|pin| pin.fits(key)) {
                true => Verdict::Trusted,
                false => Verdict::Changed("the configuration".into()),
            };
        }
        // A key of another kind than the known one was asked for only after that: the machine has lost the known one.
        match &self.entries[..] {
            [] => Verdict::Unknown,
            entries if entries.iter().any(|(_, known)| known.key_data() == key.key_data()) => {
                Verdict::Trusted
            }
            [(place, _), ..] => Verdict::Changed(place.clone()),
        }
    }

    pub(super) fn pinned(&self) -> bool {
        !self.pins.is_empty()
    }

    /// The kinds of keys to ask for, those first of which one is known: a machine has several keys, shows one, and would
    /// look like a stranger with another. Without RSA, which is not built in.
    pub(super) fn kinds(&self, without: &[Algorithm]) -> Vec<Algorithm> {
        let mut kinds: Vec<Algorithm> = self.entries.iter().map(|(_, key)| key.algorithm()).collect();
        kinds.extend(self.pins.iter().filter_map(|pin| match pin {
            Pin::Key(key) => Some(key.algorithm()),
            Pin::Fingerprint(_) => None,
        }));
        let curves = [EcdsaCurve::NistP256, EcdsaCurve::NistP384, EcdsaCurve::NistP521];
        let ours: Vec<Algorithm> =
            [Algorithm::Ed25519].into_iter().chain(curves.map(|curve| Algorithm::Ecdsa { curve })).collect();
        kinds.retain(|kind| ours.contains(kind));
        kinds.extend(ours);
        let mut seen = Vec::new();
        kinds.retain(|kind| {
            !without.contains(kind) && !seen.contains(kind) && {
                seen.push(kind.clone());
                true
            }
        });
        kinds
    }

    /// True when a key that does not fit may have a brother that does: a fingerprint does not say of which kind it is.
    pub(super) fn may_have_another(&self) -> bool {
        self.pins.iter().any(|pin| matches!(pin, Pin::Fingerprint(_)))
    }
}

/// Writes a key to the file of accepted ones, in place of what stands there for the same machine. Blocks.
pub(super) fn accept(accepted: &Path, target: &SshTarget, key: &PublicKey) -> Result<()> {
    // Several hosts share the file.
    static WRITING: Mutex<()> = Mutex::new(());
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);

    let failed = |error| HostError::io(format!("write {}", accepted.display()), error);
    let name = match target.port {
        DEFAULT_PORT => target.address.clone(),
        port => format!("[{}]:{port}", target.address),
    };
    let before = match std::fs::read_to_string(accepted) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error)),
    };
    let key = PublicKey::from(key.key_data().clone());
    let key = key.to_openssh().map_err(|error| failed(std::io::Error::other(error.to_string())))?;
    let mut text: String = before
        .lines()
        .filter(|line| line.split_ascii_whitespace().next() != Some(&name))
        .flat_map(|line| [line, "\n"])
        .collect();
    text.push_str(&format!("{name} {key}\n"));

    let sibling = accepted.with_file_name(format!(
        "{}.{}",
        accepted.file_name().unwrap_or_default().to_string_lossy(),
        uuid::Uuid::new_v4().simple()
    ));
    let written = (|| {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&sibling)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&sibling, accepted)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&sibling);
    }
    written.map_err(failed)
}

/// How people name a key.
pub(super) fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}
