//! THE ORDER in which a run ends (DESIGN §6).
//!
//! Each step is a message to the child that does it. A step's message holds the receipt ([`Settled`]) of the steps
//! it depends on, a receipt can only be had by asking for that step, and receipts travel inside the message: a wrong
//! order does not compile, and a child can refuse on its own what its receipts do not allow.
//!
//! ```text
//! close ─ stop_agent ─ quiet_watcher ─ save_back ─ release_lease ─ capture_seed ─ capture_snapshot ─ wipe ─ disconnect
//!            └───────────────────────────┴──▶ release: only after the agent is proven gone and the login is home
//! ```
//!
//! A step that needs the host waits for one that is out of reach, and is asked again when the way broke under it.
//!
//! A teardown belongs to its session, not to a request: nothing cancels it. Every step's begin and end is on record
//! before the next one begins, so that a service that died half way goes on at the first step without an end.

mod run;
mod steps;

use std::marker::PhantomData;
use std::time::Duration;

use actix::prelude::*;
use optio_host::HostError;
use serde::{Deserialize, Serialize};

pub use run::{AskHands, Hands, HostWay, NoteStep, Noted, Progress, Report, Way, run};
pub use steps::{
    CaptureSeed, CaptureSnapshot, CloseDoor, Disconnect, EndTurn, QuietWatcher, ReleaseLease, SaveBack,
    StopAgent, StopStyle, Wipe,
};

use crate::supervision::ChildKind;

/// The steps, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// No new input; pending approvals resolve as cancelled.
    Close,
    /// The agent ends, and is proven gone.
    StopAgent,
    /// A save that has begun completes, no new one begins.
    QuietWatcher,
    /// The final read of the login, and its way home.
    SaveBack,
    /// The seed may be used by somebody else.
    ReleaseLease,
    /// A login made in this run becomes a seed.
    CaptureSeed,
    /// The workdir becomes a snapshot.
    CaptureSnapshot,
    /// The workdir goes.
    Wipe,
    /// The host is let go.
    Disconnect,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 9] = [
        Self::Close,
        Self::StopAgent,
        Self::QuietWatcher,
        Self::SaveBack,
        Self::ReleaseLease,
        Self::CaptureSeed,
        Self::CaptureSnapshot,
        Self::Wipe,
        Self::Disconnect,
    ];

    /// The name as the API writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::StopAgent => "stop_agent",
            Self::QuietWatcher => "quiet_watcher",
            Self::SaveBack => "save_back",
            Self::ReleaseLease => "release_lease",
            Self::CaptureSeed => "capture_seed",
            Self::CaptureSnapshot => "capture_snapshot",
            Self::Wipe => "wipe",
            Self::Disconnect => "disconnect",
        }
    }

    /// The child that does it.
    pub fn child(self) -> ChildKind {
        match self {
            Self::Close => ChildKind::ConversationReader,
            Self::StopAgent => ChildKind::Process,
            Self::QuietWatcher | Self::SaveBack => ChildKind::CredWatcher,
            Self::ReleaseLease => ChildKind::LeaseRenewer,
            Self::CaptureSeed | Self::CaptureSnapshot => ChildKind::Snapshotter,
            Self::Wipe | Self::Disconnect => ChildKind::HostLink,
        }
    }

    /// True when it cannot be done while the session's host is out of reach.
    pub const fn needs_host(self) -> bool {
        match self {
            Self::StopAgent | Self::SaveBack | Self::CaptureSeed | Self::CaptureSnapshot | Self::Wipe => true,
            Self::Close | Self::QuietWatcher | Self::ReleaseLease | Self::Disconnect => false,
        }
    }

    /// How long a child may take before the outcome counts as unknown.
    pub const fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Close | Self::Disconnect => 10,
            // SIGTERM 10 s, SIGKILL and proof 10 s, leftovers 10 s, and the interrupt before it.
            Self::StopAgent => 45,
            // A save has a limit of 30 s of its own (T-143).
            Self::QuietWatcher => 35,
            Self::SaveBack => 60,
            Self::ReleaseLease => 20,
            // An import, and the operator's hook that hears of it.
            Self::CaptureSeed => 100,
            // 100 MB/s is the slowest budget (DESIGN §14): room for a workdir of 60 GB.
            Self::CaptureSnapshot => 600,
            Self::Wipe => 120,
        })
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How a child says that it did its step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// It is done; the text says what was found.
    Done(String),
    /// There was nothing to do, for this reason.
    Skipped(String),
    /// It must not be done, for this reason.
    Withheld(String),
}

/// How a child says that it could not do its step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct StepError {
    /// What went wrong.
    pub why: String,
    /// Set by a failed save-back whose credential is safe in the spool: where it lies.
    pub spooled: Option<String>,
    /// The host was out of reach: the step may be done once it is back.
    pub host_was_away: bool,
}

impl StepError {
    /// A failure with nothing in the spool.
    pub fn new(why: impl std::fmt::Display) -> Self {
        Self { why: why.to_string(), spooled: None, host_was_away: false }
    }

    /// A failure of the host.
    pub fn of_host(problem: HostError) -> Self {
        Self { host_was_away: problem.reach_code().is_some(), ..Self::new(problem) }
    }
}

/// The reply of every step.
pub type StepResult = Result<Finish, StepError>;

/// How a step ended, as the teardown and the record know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Outcome {
    /// It is done.
    Done {
        /// What was found.
        detail: String,
    },
    /// There was nothing to do.
    Skipped {
        /// Why.
        detail: String,
    },
    /// It was not done, because what came before does not allow it.
    Withheld {
        /// Why.
        detail: String,
    },
    /// It was tried and did not work; or its child died or gave no answer twice, and the outcome is unknown.
    Failed {
        /// What went wrong.
        detail: String,
        /// Where the credential of a failed save-back lies.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spooled: Option<String>,
    },
}

impl Outcome {
    /// The text for a person.
    pub fn detail(&self) -> &str {
        match self {
            Self::Done { detail }
            | Self::Skipped { detail }
            | Self::Withheld { detail }
            | Self::Failed { detail, .. } => detail,
        }
    }

    /// The state's name as the API writes it.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Done { .. } => "done",
            Self::Skipped { .. } => "skipped",
            Self::Withheld { .. } => "withheld",
            Self::Failed { .. } => "failed",
        }
    }

    /// Done, or nothing to do.
    pub fn is_settled_well(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Skipped { .. })
    }
}

impl From<StepResult> for Outcome {
    fn from(result: StepResult) -> Self {
        match result {
            Ok(Finish::Done(detail)) => Self::Done { detail },
            Ok(Finish::Skipped(detail)) => Self::Skipped { detail },
            Ok(Finish::Withheld(detail)) => Self::Withheld { detail },
            Err(StepError { why, spooled, .. }) => Self::Failed { detail: why, spooled },
        }
    }
}

/// A message that is a step.
pub trait StepMessage: Message<Result = StepResult> + Clone + Send + 'static {
    /// Which.
    const STEP: Step;
}

/// Evidence that step `M` was asked for and is over, whichever way it ended. Only a teardown makes one: by asking, or
/// from the record of an earlier process that asked.
pub struct Settled<M> {
    outcome: Outcome,
    _step: PhantomData<fn() -> M>,
}

impl<M> Settled<M> {
    /// How it ended.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }
}

impl<M> Clone for Settled<M> {
    fn clone(&self) -> Self {
        Self { outcome: self.outcome.clone(), _step: PhantomData }
    }
}

impl<M: StepMessage> std::fmt::Debug for Settled<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Settled({}: {})", M::STEP, self.outcome.state())
    }
}

impl Settled<StopAgent> {
    /// Proof that nothing of the agent runs: without it the lease is not released and nothing is wiped.
    pub fn agent_is_gone(&self) -> bool {
        self.outcome.is_settled_well()
    }
}

impl Settled<SaveBack> {
    /// The store has the newest login.
    pub fn login_is_home(&self) -> bool {
        self.outcome.is_settled_well()
    }

    /// The newest login is in the store or in the spool, so the file in the workdir is not the only one.
    pub fn login_is_safe(&self) -> bool {
        self.login_is_home()
            || matches!(self.outcome, Outcome::Withheld { .. } | Outcome::Failed { spooled: Some(_), .. })
    }
}

impl Settled<CaptureSnapshot> {
    /// A snapshot is on record, or there is nothing in the workdir that anybody was promised.
    pub fn work_is_safe(&self) -> bool {
        self.outcome.is_settled_well()
    }
}
