//! The place of one of the two connections.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::connection::Connection;
use crate::error::HostError;

/// One of the two connections.
#[derive(Default)]
pub(super) struct Road {
    /// The one that was made last; it may have ended since.
    current: Mutex<Option<Arc<Connection>>>,
    /// Held by whoever makes one. The attempt that failed last.
    pub(super) making: tokio::sync::Mutex<Option<(Instant, HostError)>>,
}

impl Road {
    /// The connection, if it still is one.
    pub(super) fn standing(&self) -> Option<Arc<Connection>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        current.filter(|connection| connection.why_ended().is_none())
    }

    /// Puts one in its place, or none.
    pub(super) fn set(&self, connection: Option<Arc<Connection>>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }
}

/// The same error once more, for everybody who asks in the same moment.
pub(super) fn again(name: &str, error: &HostError) -> HostError {
    match error {
        HostError::Unreachable { host, why } => {
            HostError::Unreachable { host: host.clone(), why: why.clone() }
        }
        HostError::NameUnknown { host, address, why } => {
            HostError::NameUnknown { host: host.clone(), address: address.clone(), why: why.clone() }
        }
        HostError::HostKeyUnknown { host, algorithm, fingerprint, accept } => HostError::HostKeyUnknown {
            host: host.clone(),
            algorithm: algorithm.clone(),
            fingerprint: fingerprint.clone(),
            accept: accept.clone(),
        },
        HostError::HostKeyChanged { host, algorithm, fingerprint, known_in, accept } => {
            HostError::HostKeyChanged {
                host: host.clone(),
                algorithm: algorithm.clone(),
                fingerprint: fingerprint.clone(),
                known_in: known_in.clone(),
                accept: accept.clone(),
            }
        }
        HostError::LoginRefused { host, user, why } => {
            HostError::LoginRefused { host: host.clone(), user: user.clone(), why: why.clone() }
        }
        HostError::LoginUnsupported { host, user, why } => {
            HostError::LoginUnsupported { host: host.clone(), user: user.clone(), why: why.clone() }
        }
        other => HostError::Unreachable { host: name.to_owned(), why: other.to_string() },
    }
}
