//! Whose turn it is: the rules by which messages become turns, as a pure state machine.
//!
//! The real server makes this harder than it looks (S-370, LAB §2). A `turn/start` sent while a turn runs is folded
//! into that turn; 0.142.5 acknowledges it with a turn id that never starts. A turn's notifications may overtake the
//! acknowledgement. A reconnect finds a turn it did not see begin. So [`Turns`] takes the current turn's id only from
//! `turn/started` (or from what a re-attach finds), sends a further message as `turn/steer`, and keeps at most one
//! `turn/start` on its way. Messages that can be sent neither way yet are held, in order.
//!
//! It performs nothing: every input answers a list of [`Effect`]s, in the order in which they are to happen.

mod effect;

use std::collections::VecDeque;

use serde::Deserialize;

pub use effect::{Delivery, Effect, GivenBack, MessageId, TurnStatus};

use crate::requests::ThreadStatus;
use crate::rpc::{RpcError, Text};

/// The most messages held back or unacknowledged at once; one more is given back. A person types a handful, a runaway tool must not fill
/// the memory.
pub const MAX_HELD: usize = 64;

/// Nothing runs and nothing waits, so there is nothing to interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no turn is running")]
pub struct NothingRuns;

/// What the server is believed to do.
#[derive(Debug)]
enum State {
    Idle,
    /// A `turn/start` is on its way and its turn was not seen to begin.
    Starting,
    Active {
        /// Its id; unknown only after a re-attach that did not learn it.
        turn: Option<String>,
        /// Set when `turn/started` or the server's list of turns named the id; a mere sighting may be a late item of
        /// the turn before (LAB §2).
        certain: bool,
        /// Set while an interrupt of it is on its way or granted.
        asked: bool,
    },
}

/// The one `turn/start` that is not settled: not acknowledged, or its turn not known.
#[derive(Debug)]
struct Start {
    message: MessageId,
    /// The id in the acknowledgement. Only good as a name for a turn that ended out of sight.
    acked: Option<String>,
    /// The newest turn that began since it was written.
    seen: Option<String>,
}

/// A message that waits for its chance.
#[derive(Debug)]
struct Held {
    message: MessageId,
    /// The turn that refused it: no second try before that one ended.
    not_in: Option<String>,
}

/// The turns of one conversation's own thread. Other threads (sub-agents, reviews) run through the same connection and
/// are not counted (S-364).
#[derive(Debug)]
pub struct Turns {
    thread: String,
    state: State,
    start: Option<Start>,
    steering: Vec<(MessageId, String)>,
    /// Messages the running turn answers.
    joined: Vec<MessageId>,
    held: VecDeque<Held>,
    last: u64,
    /// The user wants the current turn to end (S-386); outlives an unknown turn id and a lost connection.
    wish: bool,
    /// Messages up to this one were submitted before the last interrupt: none of them may begin a turn after it.
    interrupted: MessageId,
    attached: bool,
    /// Set when this connection's notifications told the state before [`Turns::attached`] did.
    told: bool,
    closed: bool,
}

impl Turns {
    /// Begins with a thread of which nothing is known; messages are held until [`Turns::attached`].
    pub fn new(thread: impl Into<String>) -> Self {
        Self {
            thread: thread.into(),
            state: State::Idle,
            start: None,
            steering: Vec::new(),
            joined: Vec::new(),
            held: VecDeque::new(),
            last: 0,
            wish: false,
            interrupted: MessageId(0),
            attached: false,
            told: false,
            closed: false,
        }
    }

    /// Answers the conversation's own thread id.
    pub fn thread(&self) -> &str {
        &self.thread
    }

    /// Says whether any message is without its answer or any turn runs (S-369).
    pub fn is_pending(&self) -> bool {
        !matches!(self.state, State::Idle)
            || self.start.is_some()
            || !self.steering.is_empty()
            || !self.held.is_empty()
    }

    /// Answers the running turn's id, as far as it is known.
    pub fn current(&self) -> Option<&str> {
        match &self.state {
            State::Active { turn, .. } => turn.as_deref(),
            _ => None,
        }
    }

    /// Takes a message of the user and decides how it travels: as a new turn, into the running one, or later.
    pub fn submit(&mut self) -> (MessageId, Vec<Effect>) {
        self.last += 1;
        let message = MessageId(self.last);
        let mut effects = Vec::new();
        if self.closed {
            effects.push(Effect::GivenBack { message, why: GivenBack::Closed });
        } else if self.held.len() + self.steering.len() >= MAX_HELD {
            effects.push(Effect::GivenBack { message, why: GivenBack::TooMany });
        } else {
            self.held.push_back(Held { message, not_in: None });
            self.dispatch(&mut effects);
        }
        (message, effects)
    }

    /// Wants the running turn to end. A turn that has no id yet is interrupted as soon as it has one (S-386); messages
    /// still held are given back, for "stop" must not begin a turn.
    pub fn interrupt(&mut self) -> Result<Vec<Effect>, NothingRuns> {
        if !self.is_pending() {
            return Err(NothingRuns);
        }
        let mut effects = Vec::new();
        self.interrupted = MessageId(self.last);
        for held in self.held.drain(..) {
            effects.push(Effect::GivenBack { message: held.message, why: GivenBack::Interrupted });
        }
        self.wish = true;
        self.ask(&mut effects);
        Ok(effects)
    }

    /// Takes the answer to a `turn/start`. An overloaded server is tried again before it comes here (S-354).
    pub fn start_answered(&mut self, message: MessageId, answer: Result<String, RpcError>) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(start) = self.start.as_mut().filter(|start| start.message == message) else {
            return effects;
        };
        match answer {
            Ok(id) => start.acked = Some(id),
            Err(error) => {
                self.start = None;
                if matches!(self.state, State::Starting) {
                    self.state = State::Idle;
                }
                effects.push(Effect::GivenBack { message, why: GivenBack::Refused(error) });
            }
        }
        self.settle_start(&mut effects);
        self.forget_wish_when_idle();
        self.dispatch(&mut effects);
        effects
    }

    /// Takes the answer to a `turn/steer`. A refused message is sent again as soon as it can be: at once when the turn
    /// it was meant for is over, else when it ends.
    pub fn steer_answered(&mut self, message: MessageId, answer: Result<(), RpcError>) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(at) = self.steering.iter().position(|(steered, _)| *steered == message) else {
            return effects;
        };
        let (_, turn) = self.steering.remove(at);
        let is_running = self.current() == Some(&turn);
        match answer {
            Ok(()) => {
                if is_running {
                    self.joined.push(message);
                }
                effects.push(Effect::Joined { message, turn, delivery: Delivery::Steer });
            }
            Err(_) if message <= self.interrupted => {
                effects.push(Effect::GivenBack { message, why: GivenBack::Interrupted });
            }
            Err(_) => {
                let place = self.held.partition_point(|held| held.message < message);
                self.held.insert(place, Held { message, not_in: is_running.then_some(turn) });
            }
        }
        self.forget_wish_when_idle();
        self.dispatch(&mut effects);
        effects
    }

    /// Takes the refusal of a `turn/interrupt`. (That it was granted is no news: the turn's end is.)
    pub fn interrupt_refused(&mut self, refused: &str) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let State::Active { turn, certain, asked } = &mut self.state
            && turn.as_deref() == Some(refused)
            && *asked
        {
            *asked = false;
            if *certain {
                self.wish = false;
            } else {
                // Only a guess was refused. The wish waits for the id.
                *turn = None;
            }
            self.dispatch(&mut effects);
        }
        effects
    }

    /// Takes a notification. All but `turn/started` and `turn/completed` cost a comparison of the method, except after
    /// a re-attach that did not name the running turn: then any mention of a turn helps.
    pub fn notification(&mut self, method: &str, params: &[u8]) -> Vec<Effect> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Params<'a> {
            #[serde(borrow)]
            thread_id: Text<'a>,
            #[serde(borrow, default)]
            turn: Option<Turn<'a>>,
            #[serde(borrow, default)]
            turn_id: Option<Text<'a>>,
        }
        #[derive(Deserialize)]
        struct Turn<'a> {
            #[serde(borrow)]
            id: Text<'a>,
            #[serde(borrow, default)]
            status: Option<Text<'a>>,
        }
        let is_turn = matches!(method, "turn/started" | "turn/completed");
        let is_guessing = matches!(self.state, State::Active { certain: false, .. });
        if !is_turn && !is_guessing {
            return Vec::new();
        }
        let Ok(params) = serde_json::from_slice::<Params<'_>>(params) else {
            return Vec::new();
        };
        if *params.thread_id != *self.thread {
            return Vec::new();
        }
        match (method, params.turn, params.turn_id) {
            ("turn/started", Some(turn), _) => self.started(&turn.id),
            ("turn/completed", Some(turn), _) => {
                let status = turn.status.map(|word| TurnStatus::from_wire(&word));
                self.completed(&turn.id, status.unwrap_or(TurnStatus::Completed))
            }
            (_, _, Some(turn)) if !is_turn => self.sighted(&turn),
            _ => Vec::new(),
        }
    }

    /// Takes `turn/started` of the own thread.
    pub fn started(&mut self, turn: &str) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.told |= !self.attached;
        if self.current().is_some_and(|current| current != turn) {
            self.end(None, &mut effects);
        }
        self.begin(turn, &mut effects);
        self.dispatch(&mut effects);
        effects
    }

    /// Takes `turn/completed` of the own thread.
    pub fn completed(&mut self, turn: &str, status: TurnStatus) -> Vec<Effect> {
        let mut effects = Vec::new();
        match &mut self.state {
            State::Idle => return effects,
            // A turn that was never seen to begin is over. The message on its way may be in it (S-370); to believe
            // otherwise could wait for ever, and a turn of its own would still be seen to begin.
            State::Starting => {
                self.wish = false;
                self.begin(turn, &mut effects);
            }
            State::Active { turn: Some(current), certain, .. } if current.as_str() != turn => {
                if *certain {
                    return effects;
                }
                turn.clone_into(current);
            }
            State::Active { turn: Some(_), .. } => {}
            State::Active { turn: unknown, .. } => *unknown = Some(turn.to_owned()),
        }
        self.told |= !self.attached;
        self.settle_start(&mut effects);
        self.end(Some(status), &mut effects);
        self.dispatch(&mut effects);
        effects
    }

    /// The connection is gone: what was written and not answered is unknown from now on.
    pub fn detached(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.attached = false;
        self.told = false;
        // An acknowledged start arrived; what became of its turn is found at the re-attach.
        if let Some(start) = self.start.take_if(|start| start.acked.is_none()) {
            effects.push(Effect::Unconfirmed { message: start.message });
        }
        for (message, _) in self.steering.drain(..) {
            effects.push(Effect::Unconfirmed { message });
        }
        effects
    }

    /// A thread was opened on a fresh connection; `status` and `running` are what the answer said
    /// ([`crate::requests::ThreadOpened`]). Held messages go out now.
    pub fn attached(&mut self, status: &ThreadStatus, running: Option<&str>) -> Vec<Effect> {
        // Nothing written to an earlier connection is answered on this one, told or not that it broke.
        let mut effects = if self.attached { self.detached() } else { Vec::new() };
        self.attached = true;
        // Notifications of this connection are newer than the answer that was on its way with them.
        if !std::mem::take(&mut self.told) {
            match (status, running) {
                (ThreadStatus::Active { .. }, Some(turn)) => {
                    if self.current().is_some_and(|current| current != turn) {
                        self.end(None, &mut effects);
                    }
                    self.begin(turn, &mut effects);
                }
                (ThreadStatus::Active { .. }, None) => {
                    // Most likely the turn that ran before; a wrong guess is refused and then corrected.
                    let turn = self.current().map(str::to_owned);
                    self.state = State::Active { turn, certain: false, asked: false };
                }
                _ => {
                    self.end(None, &mut effects);
                    self.wish = false;
                    // Acknowledged before the connection broke, begun and ended out of sight.
                    if let Some(Start { message, acked: Some(turn), .. }) = self.start.take() {
                        effects.push(Effect::Joined {
                            message,
                            turn: turn.clone(),
                            delivery: Delivery::Start,
                        });
                        effects.push(Effect::TurnEnded { turn, status: None, messages: vec![message] });
                    }
                }
            }
        }
        if let State::Active { asked, .. } = &mut self.state {
            *asked = false;
        }
        self.ask(&mut effects);
        self.dispatch(&mut effects);
        effects
    }

    /// The process has ended: nothing will be answered any more.
    pub fn close(&mut self) -> Vec<Effect> {
        let mut effects = self.detached();
        self.closed = true;
        self.end(None, &mut effects);
        if let Some(start) = self.start.take() {
            effects.push(Effect::Unconfirmed { message: start.message });
        }
        for held in self.held.drain(..) {
            effects.push(Effect::GivenBack { message: held.message, why: GivenBack::Closed });
        }
        effects
    }

    /// Some notification of the own thread mentioned a turn while the running one is not certain.
    fn sighted(&mut self, seen: &str) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let State::Active { turn, asked, .. } = &mut self.state
            && turn.as_deref() != Some(seen)
        {
            *turn = Some(seen.to_owned());
            *asked = false;
            self.settle_start(&mut effects);
            self.ask(&mut effects);
            self.dispatch(&mut effects);
        }
        effects
    }

    /// Makes `turn` the running one. Its predecessor was ended before.
    fn begin(&mut self, turn: &str, effects: &mut Vec<Effect>) {
        if let State::Active { turn: Some(current), certain, .. } = &mut self.state
            && current.as_str() == turn
        {
            *certain = true;
            return;
        }
        if let Some(start) = &mut self.start {
            start.seen = Some(turn.to_owned());
        }
        self.state = State::Active { turn: Some(turn.to_owned()), certain: true, asked: false };
        effects.push(Effect::TurnStarted { turn: turn.to_owned() });
        self.settle_start(effects);
        self.ask(effects);
    }

    /// Ends the running turn, if one runs; a start on its way is left to its acknowledgement.
    fn end(&mut self, status: Option<TurnStatus>, effects: &mut Vec<Effect>) {
        // What is not acknowledged may yet belong to a turn the wish is about as well.
        self.wish &= self.is_in_flight();
        let messages = std::mem::take(&mut self.joined);
        if let State::Active { turn: Some(turn), .. } = std::mem::replace(&mut self.state, State::Idle) {
            effects.push(Effect::TurnEnded { turn, status, messages });
        }
    }

    /// Lets the start in flight join its turn once it is acknowledged and the turn is known.
    ///
    /// The server acknowledges before a turn can take the message in. So a turn that runs at the acknowledgement, or
    /// begins after it, is the one, whatever id was acknowledged; a turn that was over by then is it only by name, and
    /// otherwise the message's own turn is still to come.
    fn settle_start(&mut self, effects: &mut Vec<Effect>) {
        let Some(Start { message, acked: Some(acked), seen }) = &self.start else {
            return;
        };
        let message = *message;
        let running = self.current().map(str::to_owned);
        if let Some(turn) = running {
            self.joined.push(message);
            self.start = None;
            effects.push(Effect::Joined { message, turn, delivery: Delivery::Start });
        } else if seen.as_ref() == Some(acked) {
            let turn = acked.clone();
            self.start = None;
            effects.push(Effect::Joined { message, turn, delivery: Delivery::Start });
        } else if matches!(self.state, State::Idle) {
            self.state = State::Starting;
        }
    }

    /// Says whether the server has a message it did not acknowledge.
    fn is_in_flight(&self) -> bool {
        self.start.is_some() || !self.steering.is_empty()
    }

    /// Drops the wish for an end once there is nothing left that it could be about.
    fn forget_wish_when_idle(&mut self) {
        if matches!(self.state, State::Idle) && !self.is_in_flight() {
            self.wish = false;
        }
    }

    /// Interrupts the running turn when that is wished and possible.
    fn ask(&mut self, effects: &mut Vec<Effect>) {
        if let State::Active { turn: Some(turn), asked, .. } = &mut self.state
            && self.wish
            && self.attached
            && !*asked
        {
            *asked = true;
            effects.push(Effect::Interrupt { turn: turn.clone() });
        }
    }

    /// Sends what is held, as far as the state allows: one start when idle, everything into a running turn, nothing
    /// into one that is being interrupted.
    fn dispatch(&mut self, effects: &mut Vec<Effect>) {
        while self.attached
            && let Some(next) = self.held.front()
        {
            match &self.state {
                State::Idle if self.start.is_none() && !self.wish => {
                    let message = next.message;
                    self.start = Some(Start { message, acked: None, seen: None });
                    self.state = State::Starting;
                    effects.push(Effect::Start { message });
                }
                State::Active { turn: Some(turn), .. }
                    if !self.wish && next.not_in.as_ref() != Some(turn) =>
                {
                    self.steering.push((next.message, turn.clone()));
                    effects.push(Effect::Steer { message: next.message, turn: turn.clone() });
                }
                _ => return,
            }
            self.held.pop_front();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
