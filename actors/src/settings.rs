//! What every session of a service shares.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix::prelude::*;
use optio_host::Host;
use optio_store::{JournalStream, Store};

use crate::faults::Faults;
use crate::session::SessionEnded;
use crate::trace::Trace;

/// Heartbeat age at which the guard of a leased agent sends SIGTERM: a service that is back within it adopts
/// (DESIGN §7).
pub const LEASED_TERM_AFTER: Duration = Duration::from_secs(45);

/// Heartbeat age at which the guard of a leased agent sends SIGKILL: before the lease's 60 s are over.
pub const LEASED_KILL_AFTER: Duration = Duration::from_secs(55);

/// How long an agent without a lease may live without a service.
pub const ORPHAN_TTL: Duration = Duration::from_secs(24 * 3600);

/// What every session of a service shares.
pub struct Settings {
    /// The machines, by name.
    pub hosts: BTreeMap<String, Arc<dyn Host>>,
    /// Durable state.
    pub store: Store,
    /// The stream that feeds the session list.
    pub service_stream: Arc<dyn JournalStream>,
    /// What is armed.
    pub faults: Faults,
    /// People may arm faults (`--enable-faults`).
    pub faults_enabled: bool,
    /// Where deeds are noted.
    pub trace: Trace,
    /// The codex program to use; without one the host's `PATH` decides.
    pub codex: Option<PathBuf>,
    /// See [`ORPHAN_TTL`].
    pub orphan_ttl: Duration,
    /// The root actor, once it lives.
    pub root: OnceLock<Recipient<SessionEnded>>,
}

impl Settings {
    /// Settings with nothing armed and the default times.
    pub fn new(
        hosts: BTreeMap<String, Arc<dyn Host>>,
        store: Store,
        service_stream: Arc<dyn JournalStream>,
    ) -> Self {
        Self {
            hosts,
            store,
            service_stream,
            faults: Faults::default(),
            faults_enabled: false,
            trace: Trace::default(),
            codex: None,
            orphan_ttl: ORPHAN_TTL,
            root: OnceLock::new(),
        }
    }
}
