//! Walking the steps.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    CaptureSeed, CaptureSnapshot, CloseDoor, Disconnect, EndTurn, Outcome, QuietWatcher, ReleaseLease,
    SaveBack, Settled, Step, StepError, StepMessage, StepResult, StopAgent, StopStyle, Wipe,
};
use crate::supervision::ChildKind;

/// Longest wait for the turn's end after an interrupt; a turn that does not end is ended with its process.
const END_TURN_LIMIT: Duration = Duration::from_secs(4);

/// Longest wait for the session to hand out its children or to put a step on record.
const SESSION_LIMIT: Duration = Duration::from_secs(30);

/// How long after a failed step the loss of the host may still be told: whoever used the way may notice before whoever
/// keeps it.
const DOUBT: Duration = Duration::from_secs(1);

/// Tries of a step that says the host was out of reach, while the host counts as reachable. A way that comes and goes between
/// two looks is worth as many.
const TRIES_PER_RECONNECT: u32 = 3;

/// Losses of the host under one step. A snapshot of ten minutes over a line that breaks each of them needs ten; a step that
/// breaks the line itself must come to an end.
const LOSSES_PER_STEP: u32 = 50;

/// What a teardown knows of the way to the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostWay {
    /// Whether it is there.
    pub way: Way,
    /// How often it was lost.
    pub losses: u64,
}

/// Whether a host can be reached, as far as a teardown waits for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Way {
    /// It can, as far as is known.
    #[default]
    Open,
    /// It cannot; it is waited for.
    Away,
    /// It cannot, and nobody waits for it any more, for this reason.
    GivenUp(String),
}

/// The children, as far as a teardown needs them.
#[derive(Clone)]
pub struct Hands {
    /// Closes the door.
    pub close: Recipient<CloseDoor>,
    /// Ends the turn.
    pub end_turn: Recipient<EndTurn>,
    /// Stops the agent.
    pub stop_agent: Recipient<StopAgent>,
    /// Quiets the watcher.
    pub quiet: Recipient<QuietWatcher>,
    /// Saves back.
    pub save_back: Recipient<SaveBack>,
    /// Releases.
    pub release: Recipient<ReleaseLease>,
    /// Captures the seed.
    pub capture_seed: Recipient<CaptureSeed>,
    /// Captures the workdir.
    pub capture_snapshot: Recipient<CaptureSnapshot>,
    /// Wipes.
    pub wipe: Recipient<Wipe>,
    /// Disconnects.
    pub disconnect: Recipient<Disconnect>,
}

/// Asks the session for its children, with a fresh one in place of a dead or hung one.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Hands")]
pub struct AskHands {
    /// The child to be replaced first.
    pub replace: Option<ChildKind>,
}

/// Puts a step on record; answered when the record is durable (or when the session has given up trying to make it so:
/// the order does not depend on it).
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct NoteStep {
    /// Which step.
    pub step: Step,
    /// What of it.
    pub noted: Noted,
}

/// What is put on record of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Noted {
    /// It begins.
    Began,
    /// The host went away under it, for which it is asked again once the host is back. What it said.
    Again(String),
    /// It is over.
    Ended(Outcome),
}

/// The steps that are over, from the record.
pub type Progress = BTreeMap<Step, Outcome>;

/// How a teardown ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Every step's outcome.
    pub outcomes: Progress,
    /// Nothing of the agent runs.
    pub agent_is_gone: bool,
    /// The task directory was kept.
    pub workdir_kept: bool,
}

/// Walks the steps from the first one that `progress` does not have to the last, and answers when all are over. Never
/// fails: what a failed step means for the later ones is theirs to say.
pub async fn run(
    hands: Recipient<AskHands>,
    notes: Recipient<NoteStep>,
    host: watch::Receiver<HostWay>,
    style: StopStyle,
    progress: Progress,
) -> Report {
    let mut walk = Walk { hands, notes, host, progress };
    let closed = walk.settle(|h| &h.close, CloseDoor).await;
    if style == StopStyle::Graceful && !walk.progress.contains_key(&Step::StopAgent) {
        // Nobody there, nobody to tell; and whoever is there has a turn to end first.
        if walk.host_is_there().await.is_ok() {
            walk.end_turn(closed.clone()).await;
        }
    }
    let stopped = walk.settle(|h| &h.stop_agent, StopAgent { closed, style }).await;
    let quiet = walk.settle(|h| &h.quiet, QuietWatcher { stopped: stopped.clone() }).await;
    let saved = walk.settle(|h| &h.save_back, SaveBack { quiet }).await;
    let release = ReleaseLease { stopped: stopped.clone(), saved: saved.clone() };
    let released = walk.settle(|h| &h.release, release).await;
    let seed = walk.settle(|h| &h.capture_seed, CaptureSeed { stopped: stopped.clone(), released }).await;
    let capture = CaptureSnapshot { stopped: stopped.clone(), seed };
    let captured = walk.settle(|h| &h.capture_snapshot, capture).await;
    let agent_is_gone = stopped.agent_is_gone();
    let wiped = walk.settle(|h| &h.wipe, Wipe { stopped, saved, captured }).await;
    let workdir_kept = !wiped.outcome().is_settled_well();
    walk.settle(|h| &h.disconnect, Disconnect { wiped }).await;
    Report { outcomes: walk.progress, agent_is_gone, workdir_kept }
}

struct Walk {
    hands: Recipient<AskHands>,
    notes: Recipient<NoteStep>,
    host: watch::Receiver<HostWay>,
    progress: Progress,
}

impl Walk {
    async fn settle<M>(&mut self, hand: impl Fn(&Hands) -> &Recipient<M>, message: M) -> Settled<M>
    where
        M: StepMessage,
    {
        if let Some(outcome) = self.progress.get(&M::STEP) {
            return Settled { outcome: outcome.clone(), _step: PhantomData };
        }
        // Not begun before it can be: what is on record as begun is tried first by the next process.
        let there = if M::STEP.needs_host() { self.host_is_there().await.map(drop) } else { Ok(()) };
        self.note(M::STEP, Noted::Began).await;
        let outcome = match there {
            Ok(()) if M::STEP.needs_host() => self.settle_there(hand, message).await,
            Ok(()) => Outcome::from(self.ask_twice(&hand, message).await),
            Err(given_up) => given_up,
        };
        info!(step = %M::STEP, state = outcome.state(), detail = outcome.detail(), "step settled");
        self.note(M::STEP, Noted::Ended(outcome.clone())).await;
        self.progress.insert(M::STEP, outcome.clone());
        Settled { outcome, _step: PhantomData }
    }

    /// Waits until the host can be reached; answers how often it was lost before. Without a limit: what has to be done there
    /// cannot be done anywhere else. An error is the outcome of a step for which nobody waits any more.
    async fn host_is_there(&mut self) -> Result<u64, Outcome> {
        let found = self.host.wait_for(|host| host.way != Way::Away).await;
        match found.as_deref() {
            Ok(HostWay { way: Way::GivenUp(why), .. }) => {
                Err(Outcome::Failed { detail: why.clone(), spooled: None })
            }
            Ok(HostWay { losses, .. }) => Ok(*losses),
            // The session that would tell is gone, and this walk is about to be.
            Err(_) => Ok(0),
        }
    }

    /// Asks for a step on the host; again when the host went away under it. Every step may be asked again.
    async fn settle_there<M>(&mut self, hand: impl Fn(&Hands) -> &Recipient<M>, message: M) -> Outcome
    where
        M: StepMessage,
    {
        let (mut lost, mut tries) = (0, 1);
        loop {
            let losses = match self.host_is_there().await {
                Ok(losses) => losses,
                Err(given_up) => return given_up,
            };
            let failed = match self.ask_twice(&hand, message.clone()).await {
                Err(failed) => failed,
                settled => return Outcome::from(settled),
            };
            let lost_again = self.host.wait_for(|host| host.losses != losses || host.way != Way::Open);
            if matches!(tokio::time::timeout(DOUBT, lost_again).await, Ok(Ok(_))) {
                (lost, tries) = (lost + 1, 1);
            } else if failed.host_was_away {
                tries += 1;
            } else {
                return Outcome::from(Err(failed));
            }
            if lost > LOSSES_PER_STEP || tries > TRIES_PER_RECONNECT {
                return Outcome::from(Err(failed));
            }
            warn!(step = %M::STEP, why = failed.why, lost, tries, "host went away under a step, which is asked again");
            self.note(M::STEP, Noted::Again(failed.why)).await;
        }
    }

    /// A child that is dead or hung is replaced by a fresh one, which is asked once more.
    async fn ask_twice<M>(&self, hand: &impl Fn(&Hands) -> &Recipient<M>, message: M) -> StepResult
    where
        M: StepMessage,
    {
        let child = M::STEP.child();
        let first = match self.ask(hand, message.clone(), None).await {
            Ok(result) => return result,
            Err(unknown) => unknown,
        };
        warn!(step = %M::STEP, %child, why = first, "step has no outcome, a fresh child is asked");
        match self.ask(hand, message, Some(child)).await {
            Ok(result) => result,
            Err(second) => Err(StepError::new(format!("{first}; a fresh {child}: {second}"))),
        }
    }

    /// The step's outcome, or why it is unknown.
    async fn ask<M>(
        &self,
        hand: &impl Fn(&Hands) -> &Recipient<M>,
        message: M,
        replace: Option<ChildKind>,
    ) -> Result<StepResult, String>
    where
        M: StepMessage,
    {
        let asked = tokio::time::timeout(SESSION_LIMIT, self.hands.send(AskHands { replace })).await;
        let Ok(Ok(hands)) = asked else {
            return Err("the session did not lend its children".to_owned());
        };
        let limit = M::STEP.limit();
        match tokio::time::timeout(limit, hand(&hands).send(message)).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(format!("{} died during {}", M::STEP.child(), M::STEP)),
            Err(_) => Err(format!("{} gave no answer within {limit:?}", M::STEP.child())),
        }
    }

    async fn end_turn(&self, closed: Settled<CloseDoor>) {
        let Ok(hands) = self.hands.send(AskHands { replace: None }).await else {
            return;
        };
        let ended = tokio::time::timeout(END_TURN_LIMIT, hands.end_turn.send(EndTurn { closed })).await;
        if !matches!(ended, Ok(Ok(()))) {
            warn!("turn did not end before its agent");
        }
    }

    async fn note(&self, step: Step, noted: Noted) {
        let noted = tokio::time::timeout(SESSION_LIMIT, self.notes.send(NoteStep { step, noted })).await;
        if !matches!(noted, Ok(Ok(()))) {
            warn!(%step, "step could not be put on record");
        }
    }
}
