//! The side of a connection on which russh calls us: the machine's key, and the end.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use russh::Error;
use russh::client::{self, DisconnectReason};
use russh::keys::{PublicKey, PublicKeyOrCertificate};
use tokio::sync::watch;

use super::host_key::{self, Known, Verdict};
use super::target::{SshTarget, UnknownKey};
use crate::error::{HostError, Result};

/// Why a connection ended; `None` while it is there.
pub(super) type Ended = Option<Arc<str>>;

/// A fingerprint that somebody vouched for just now.
#[derive(Clone)]
pub(super) struct Accepting {
    pub(super) fingerprint: String,
    /// Set when a machine on the way showed the key, and it was written down.
    pub(super) done: Arc<AtomicBool>,
}

/// What a gate found out, for whoever connects: russh passes on no error of ours.
#[derive(Clone, Default)]
pub(super) struct Case(Arc<Mutex<Findings>>);

#[derive(Default)]
pub(super) struct Findings {
    pub(super) refusal: Option<HostError>,
    pub(super) key: Option<PublicKey>,
}

impl Case {
    /// Takes what was found out.
    pub(super) fn take(&self) -> Findings {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Judges the machine's key, and hears of the connection's end.
pub(super) struct Gate {
    pub(super) known: Arc<Known>,
    pub(super) case: Case,
    pub(super) shown: String,
    pub(super) name: String,
    pub(super) target: SshTarget,
    pub(super) accepted: PathBuf,
    pub(super) accepting: Option<Accepting>,
    pub(super) ended: watch::Sender<Ended>,
}

impl Gate {
    async fn judge(&self, key: &PublicKey) -> Result<()> {
        let verdict = self.known.judge(key);
        if verdict == Verdict::Trusted {
            return Ok(());
        }
        let fingerprint = host_key::fingerprint(key);
        let wanted = self
            .accepting
            .as_ref()
            .filter(|accepting| accepting.fingerprint == fingerprint && !self.known.pinned());
        let trusting = self.target.host_keys.unknown == UnknownKey::Trust && verdict == Verdict::Unknown;
        if wanted.is_some() || trusting {
            let (accepted, target, key) = (self.accepted.clone(), self.target.clone(), key.clone());
            crate::local::blocking(move || host_key::accept(&accepted, &target, &key)).await?;
            tracing::info!(host = %self.shown, %fingerprint, "host key accepted");
            if let Some(accepting) = wanted {
                accepting.done.store(true, Ordering::Relaxed);
            }
            return Ok(());
        }
        let (host, algorithm) = (self.shown.clone(), key.algorithm().to_string());
        let accept = self.how_to_accept(&fingerprint);
        Err(match verdict {
            Verdict::Changed(known_in) => {
                HostError::HostKeyChanged { host, algorithm, fingerprint, known_in, accept }
            }
            _ => HostError::HostKeyUnknown { host, algorithm, fingerprint, accept },
        })
    }

    fn how_to_accept(&self, fingerprint: &str) -> String {
        let setting = format!("`host_key = \"{fingerprint}\"` in the configuration");
        if self.known.pinned() {
            return setting;
        }
        format!("POST /v1/hosts/{}/host-key {{\"fingerprint\": \"{fingerprint}\"}}, or {setting}", self.name)
    }
}

impl client::Handler for Gate {
    type Error = Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> std::result::Result<bool, Error> {
        let key = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.clone(),
            PublicKeyOrCertificate::Certificate(certificate) => {
                PublicKey::from(certificate.public_key().clone())
            }
        };
        let judged = self.judge(&key).await;
        let mut findings = self.case.0.lock().unwrap_or_else(PoisonError::into_inner);
        findings.key = Some(key);
        findings.refusal = judged.err();
        Ok(findings.refusal.is_none())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Error>) -> std::result::Result<(), Error> {
        let (why, answer) = match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                (format!("it hung up: {}", super::mark::shown(info.message.as_bytes())), Ok(()))
            }
            DisconnectReason::Error(Error::KeepaliveTimeout) => {
                ("it has stopped answering".into(), Err(Error::KeepaliveTimeout))
            }
            DisconnectReason::Error(error) => (format!("the connection broke: {error}"), Err(error)),
        };
        self.ended.send_replace(Some(why.into()));
        answer
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert_with(|| "the connection was closed".into());
            first
        });
    }
}
