//! Proving who we are.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use russh::client::{AuthResult, Handle, Handler};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Error as KeyError, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, ssh_key};
use russh::{MethodKind, MethodSet};

use super::target::{Login, SshTarget};
use crate::error::{HostError, Result};

/// Keys of an agent that are tried; servers hang up after six (sshd's `MaxAuthTries`).
const AGENT_KEYS: usize = 6;

/// Logs in, on a connection whose machine is the one that is meant.
pub(super) async fn log_in<H: Handler>(host: &str, target: &SshTarget, handle: &mut Handle<H>) -> Result<()> {
    let who = Who { host, user: &target.user };
    match &target.login {
        Login::KeyFile(file) => {
            let path = file.clone();
            let key = tokio::task::spawn_blocking(move || read_key(&path)).await;
            let key = key.map_err(|_| who.unsupported("the key could not be read".into()))?;
            let key = key.map_err(|why| who.unsupported(why))?;
            let shown = format!("{} of {}", super::host_key::fingerprint(key.public_key()), file.display());
            let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
            let answer = handle.authenticate_publickey(&target.user, key).await;
            match answer.map_err(|error| who.refused(std::slice::from_ref(&shown), &error.to_string()))? {
                AuthResult::Success => Ok(()),
                AuthResult::Failure { remaining_methods, partial_success } => {
                    Err(who.turned_away(&[shown], &remaining_methods, partial_success))
                }
            }
        }
        Login::Agent(socket) => by_agent(&who, socket.as_deref(), handle).await,
    }
}

async fn by_agent<H: Handler>(who: &Who<'_>, socket: Option<&Path>, handle: &mut Handle<H>) -> Result<()> {
    let socket = match socket {
        Some(socket) => socket.to_path_buf(),
        None => match std::env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty()) {
            Some(socket) => socket.into(),
            None => return Err(who.unsupported("there is no agent: SSH_AUTH_SOCK is not set".into())),
        },
    };
    let failed = |error: &dyn std::fmt::Display| {
        who.unsupported(format!("the agent at {} does not answer: {error}", socket.display()))
    };
    let mut agent = AgentClient::connect_uds(&socket).await.map_err(|error| failed(&error))?;
    let keys = agent.request_identities().await.map_err(|error| failed(&error))?;
    let keys: Vec<PublicKey> = keys
        .into_iter()
        .filter_map(|identity| match identity {
            AgentIdentity::PublicKey { key, .. } => Some(key),
            AgentIdentity::Certificate { .. } => None,
        })
        .collect();
    if keys.is_empty() {
        return Err(who.unsupported(format!("the agent at {} has no keys", socket.display())));
    }
    let mut shown = Vec::new();
    let mut left = MethodSet::empty();
    let mut partial = false;
    for key in keys.into_iter().take(AGENT_KEYS) {
        shown.push(super::host_key::fingerprint(&key));
        let hash = match key.algorithm() {
            ssh_key::Algorithm::Rsa { .. } => {
                let best = handle.best_supported_rsa_hash().await;
                best.map_err(|error| who.refused(&shown, &error.to_string()))?
                    .unwrap_or(Some(HashAlg::Sha256))
            }
            _ => None,
        };
        let answer = handle.authenticate_publickey_with(who.user, key, hash, &mut agent).await;
        match answer.map_err(|error| who.refused(&shown, &error.to_string()))? {
            AuthResult::Success => return Ok(()),
            AuthResult::Failure { remaining_methods, partial_success } => {
                (left, partial) = (remaining_methods, partial_success);
            }
        }
        if handle.is_closed() || partial {
            break;
        }
    }
    Err(who.turned_away(&shown, &left, partial))
}

struct Who<'a> {
    host: &'a str,
    user: &'a str,
}

impl Who<'_> {
    fn unsupported(&self, why: String) -> HostError {
        HostError::LoginUnsupported { host: self.host.to_owned(), user: self.user.to_owned(), why }
    }

    fn refused(&self, keys: &[String], why: &str) -> HostError {
        let why = format!("it was offered {}: {why}", keys.join(", "));
        HostError::LoginRefused { host: self.host.to_owned(), user: self.user.to_owned(), why }
    }

    fn turned_away(&self, keys: &[String], left: &MethodSet, partial: bool) -> HostError {
        let methods: Vec<&'static str> = left.iter().map(Into::into).collect();
        let methods = methods.join(", ");
        if partial {
            return self.unsupported(format!("it wants more than a key: {methods}"));
        }
        if !methods.is_empty() && !left.contains(&MethodKind::PublicKey) {
            return self.unsupported(format!("it takes only {methods}, and we only have keys"));
        }
        self.refused(keys, "it takes none of them")
    }
}

/// Reads a private key. Blocks. The error is a part of a sentence and never has anything of the key.
fn read_key(file: &Path) -> std::result::Result<PrivateKey, String> {
    let name = file.display();
    let found = std::fs::metadata(file).map_err(|error| format!("its key {name} cannot be read: {error}"))?;
    if !found.is_file() {
        return Err(format!("its key {name} is no file"));
    }
    if found.mode() & 0o077 != 0 {
        return Err(format!(
            "others can read its key {name} (mode {:03o}); make it `chmod 600`",
            found.mode() & 0o777
        ));
    }
    let rsa = || {
        format!("its key {name} is an RSA key, which is not supported; make one by `ssh-keygen -t ed25519`")
    };
    let locked = || {
        format!(
            "its key {name} has a passphrase; add it to an agent (`ssh-add`) and set the agent as the way to log in, or \
             use a key without one"
        )
    };
    let key = match russh::keys::load_secret_key(file, None) {
        Ok(key) => key,
        Err(KeyError::KeyIsEncrypted) => return Err(locked()),
        Err(KeyError::UnsupportedKeyType { key_type_string, .. }) if key_type_string == "RSA" => {
            return Err(rsa());
        }
        Err(KeyError::IO(error)) => return Err(format!("its key {name} cannot be read: {error}")),
        Err(error) => return Err(format!("its key {name} cannot be used: {error}")),
    };
    if key.is_encrypted() {
        return Err(locked());
    }
    if matches!(key.algorithm(), ssh_key::Algorithm::Rsa { .. }) {
        return Err(rsa());
    }
    Ok(key)
}
