//! What actix lacks for our purpose: children whose end is always news, that can be killed while hung, and that can
//! be read after their death.
//!
//! `actix::Supervisor` does not restart after a panic, and a panic in an actor is told to nobody (measured, STYLE
//! §2.3). So a parent starts its children with [`spawn_child`], which fences them: whatever happens inside, the
//! parent gets exactly one [`ChildExit`].

mod beat;
mod fence;
mod pulse;

use actix::prelude::*;
use serde::Serialize;

pub(crate) use beat::beat;
pub use fence::{ChildExit, ChildHandle, ChildId, ExitReason, ExitSlot, spawn_child};
pub use pulse::Pulse;

/// The children of a session, and those of the root: the names that traces, faults, restart rules
/// and the actor page use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildKind {
    /// The supervisor of one session.
    Session,
    /// The connection to the host.
    HostLink,
    /// The agent's process.
    Process,
    /// The conversation with the app-server.
    ConversationReader,
    /// The people before the agent's terminal.
    Terminal,
    /// The watch over `auth.json`.
    CredWatcher,
    /// The seed's lease.
    LeaseRenewer,
    /// The agent's own log.
    LogTail,
    /// Capturing and restoring.
    Snapshotter,
    /// The checks of stored logins; one for a service.
    Verifier,
    /// Getting a new login by a code. A child of the root.
    SeedLogin,
    /// The programs that hosts need; one for a service.
    Provisioner,
}

impl ChildKind {
    /// Every kind of child that a session may have, in the order in which they are started. It has a conversation or a
    /// terminal.
    pub const OF_SESSION: [Self; 8] = [
        Self::HostLink,
        Self::LeaseRenewer,
        Self::Snapshotter,
        Self::CredWatcher,
        Self::Process,
        Self::ConversationReader,
        Self::Terminal,
        Self::LogTail,
    ];

    /// The name as it is written in JSON and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::HostLink => "host_link",
            Self::Process => "process",
            Self::ConversationReader => "conversation_reader",
            Self::Terminal => "terminal",
            Self::CredWatcher => "cred_watcher",
            Self::LogTail => "log_tail",
            Self::LeaseRenewer => "lease_renewer",
            Self::Snapshotter => "snapshotter",
            Self::Verifier => "verifier",
            Self::SeedLogin => "seed_login",
            Self::Provisioner => "provisioner",
        }
    }
}

impl std::fmt::Display for ChildKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Asks a child what it is doing. Answered from memory, at once; a child that does not answer is hung.
#[derive(Debug, Clone, Copy)]
pub struct Observe;

impl Message for Observe {
    type Result = Observation;
}

/// What a child says of itself. The supervisor keeps the last one, so that the dead can be read.
#[derive(Debug, Clone, Serialize)]
pub struct Observation {
    /// What it is doing, in a word or two.
    pub phase: String,
    /// The last thing that went wrong, if anything did.
    pub last_error: Option<String>,
    /// Whatever else helps: counters, the byte it has read to, when it renewed. Never a secret.
    pub detail: serde_json::Value,
}

impl<A, M> actix::dev::MessageResponse<A, M> for Observation
where
    A: Actor,
    M: Message<Result = Observation>,
{
    fn handle(self, _: &mut A::Context, tx: Option<actix::dev::OneshotSender<M::Result>>) {
        if let Some(tx) = tx {
            // A supervisor that stopped waiting does not need the answer.
            let _ = tx.send(self);
        }
    }
}
