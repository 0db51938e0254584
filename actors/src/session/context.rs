//! What every child of a run knows.

use std::sync::Arc;

use actix::prelude::*;
use optio_hooks::Hooks;
use optio_host::{Host, RelPath, TaskDir};
use optio_store::{RunId, SessionId, Store};

use super::record::Ledger;
use crate::events::Events;
use crate::faults::{Faults, Injected};
use crate::provisioner::Provide;
use crate::supervision::ChildKind;
use crate::trace::{Deed, Trace};
use crate::verifier::Mend;

/// The run a child works for, and its ways to the world. Cheap to clone.
#[derive(Clone)]
pub struct RunContext {
    /// The session.
    pub session: SessionId,
    /// This launch of it.
    pub run: RunId,
    /// The machine.
    pub host: Arc<dyn Host>,
    /// The session's place on it.
    pub dir: TaskDir,
    /// Durable state.
    pub store: Store,
    /// The session's events.
    pub events: Events,
    /// What is armed.
    pub faults: Faults,
    /// Where deeds are noted.
    pub trace: Trace,
    /// The session's record. Children read it; the session alone writes it.
    pub ledger: Arc<Ledger>,
    /// What an operator has a say in.
    pub hooks: Arc<dyn Hooks>,
    /// Who can free a seed that nobody may be handed.
    pub mender: Recipient<Mend>,
    /// Who provides programs on hosts.
    pub provisioner: Recipient<Provide>,
}

impl RunContext {
    /// Notes a deed of this run.
    pub fn did(&self, deed: Deed) {
        self.trace.note(&self.session, &self.run, deed);
    }

    /// Goes through the fault seam.
    pub async fn step(&self, child: ChildKind, step: &str) -> Result<(), Injected> {
        self.faults.at(&self.session, child, step).await
    }

    /// True while the host is known to be out of reach: asking it something would only be one more failure.
    pub fn host_is_away(&self) -> bool {
        !self.host.reach().borrow().may_answer()
    }

    /// True when this run ended before its host was reached: nothing of it is there, and nothing there has to be undone.
    pub fn never_reached_its_host(&self) -> bool {
        self.ledger.read(|record| record.run.as_ref().is_some_and(|run| run.host_unreached))
    }

    /// A path below the workdir that is known to be well formed.
    pub fn in_workdir(path: &'static str) -> RelPath {
        RelPath::in_workdir(path).expect("a literal relative path without empty or dot segments")
    }
}
