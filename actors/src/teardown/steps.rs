//! The messages of the steps. Their fields are the order.

use actix::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Settled, Step, StepMessage, StepResult};

macro_rules! step {
    ($name:ident, $step:ident) => {
        impl Message for $name {
            type Result = StepResult;
        }
        impl StepMessage for $name {
            const STEP: Step = Step::$step;
        }
    };
}

/// How gently the agent is stopped (S-454).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopStyle {
    /// The turn is interrupted, then the agent may flush and end by itself.
    Graceful,
    /// At once: a cancelled run without a seed, where nothing single-use can be lost.
    Aggressive,
    /// At once, because the lease is lost or about to be: somebody else may use the login any moment (T-117).
    Fence,
}

/// Refuses new input and resolves pending approvals as cancelled, while the agent can still read the answers.
#[derive(Debug, Clone)]
pub struct CloseDoor;
step!(CloseDoor, Close);

/// Makes the agent ready to be stopped. A conversation interrupts a running turn and waits for its end, because SIGTERM alone
/// would wait for the whole turn (LAB §9); a terminal waits for a login that may be refreshed just now. Part of the step [`Step::StopAgent`]; nothing depends on its outcome.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct EndTurn {
    /// The door is closed.
    pub closed: Settled<CloseDoor>,
}

/// Ends the agent and proves that it is gone.
#[derive(Debug, Clone)]
pub struct StopAgent {
    /// The door is closed.
    pub closed: Settled<CloseDoor>,
    /// How gently.
    pub style: StopStyle,
}
step!(StopAgent, StopAgent);

/// Lets a save that has begun complete, and begins no other (INV-16).
#[derive(Debug, Clone)]
pub struct QuietWatcher {
    /// The agent was stopped: nothing rotates the login any more.
    pub stopped: Settled<StopAgent>,
}
step!(QuietWatcher, QuietWatcher);

/// Reads `auth.json` for the last time and brings a changed one home: spool, then the guarded store write.
#[derive(Debug, Clone)]
pub struct SaveBack {
    /// Nobody else is saving.
    pub quiet: Settled<QuietWatcher>,
}
step!(SaveBack, SaveBack);

/// Gives the seed back, if the agent is gone and the login is home; marks it as needing recovery otherwise.
#[derive(Debug, Clone)]
pub struct ReleaseLease {
    /// Whether the agent is gone.
    pub stopped: Settled<StopAgent>,
    /// Whether the login is home.
    pub saved: Settled<SaveBack>,
}
step!(ReleaseLease, ReleaseLease);

/// Makes a seed of a login that was made in this run (fresh, unseeded, valid login only).
#[derive(Debug, Clone)]
pub struct CaptureSeed {
    /// Whether the agent is gone: a login that still changes must not be copied.
    pub stopped: Settled<StopAgent>,
    /// The lease is over (INV-35).
    pub released: Settled<ReleaseLease>,
}
step!(CaptureSeed, CaptureSeed);

/// Stores the workdir.
#[derive(Debug, Clone)]
pub struct CaptureSnapshot {
    /// Whether the agent is gone: a workdir that still changes must not be stored as the run's last word.
    pub stopped: Settled<StopAgent>,
    /// Seeds come first.
    pub seed: Settled<CaptureSeed>,
}
step!(CaptureSnapshot, CaptureSnapshot);

/// Deletes the task directory, if nothing in it is the only one of its kind.
#[derive(Debug, Clone)]
pub struct Wipe {
    /// Whether the agent is gone.
    pub stopped: Settled<StopAgent>,
    /// Whether the login is safe.
    pub saved: Settled<SaveBack>,
    /// Whether the work is safe.
    pub captured: Settled<CaptureSnapshot>,
}
step!(Wipe, Wipe);

/// Lets the host go.
#[derive(Debug, Clone)]
pub struct Disconnect {
    /// The last thing that needed the host is over.
    pub wiped: Settled<Wipe>,
}
step!(Disconnect, Disconnect);
