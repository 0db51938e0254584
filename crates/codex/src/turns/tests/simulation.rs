//! A server as odd as the real ones, both generations, and any order of things between it and [`Turns`].

use std::collections::HashMap;

use super::*;

/// A request on the wire.
#[derive(Debug)]
enum Ask {
    Start(MessageId),
    Steer(MessageId, String),
    Interrupt(String),
}

/// What the server wrote.
#[derive(Debug)]
enum Said {
    Start(MessageId, Result<String, RpcError>),
    Steer(MessageId, Result<(), RpcError>),
    InterruptRefused(String),
    Started(String),
    Completed(String, TurnStatus),
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Submit,
    Interrupt,
    /// The server takes its next request.
    Serve,
    /// The client takes the server's next line.
    Deliver,
    /// The running turn ends by itself.
    Finish,
    /// The server begins a turn nobody asked for.
    Spontaneous,
    /// The server says no to its next request.
    Refuse,
    Reconnect {
        /// Whether the answer to `thread/resume` lists the running turn.
        named: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Submit),
        1 => Just(Step::Interrupt),
        6 => Just(Step::Serve),
        8 => Just(Step::Deliver),
        2 => Just(Step::Finish),
        1 => Just(Step::Spontaneous),
        1 => Just(Step::Refuse),
        1 => any::<bool>().prop_map(|named| Step::Reconnect { named }),
    ]
}

struct World {
    turns: Turns,
    asked: VecDeque<Ask>,
    said: VecDeque<Said>,
    running: Option<String>,
    next_turn: u32,
    /// 0.142.5 names a new turn for a folded start, 0.169 the running one.
    has_phantoms: bool,
    /// 0.142.5 writes the acknowledgement first; the order is not promised.
    starts_before_ack: bool,
    submitted: Vec<MessageId>,
    outcomes: HashMap<MessageId, Vec<Effect>>,
    answered: HashMap<MessageId, u32>,
    /// The user's last interrupt has not been followed by the end of the turn it met.
    wants_stop: bool,
    /// The newest message when the user wanted that.
    stopped_at: MessageId,
}

impl World {
    fn new(has_phantoms: bool, starts_before_ack: bool) -> Self {
        Self {
            turns: idle(),
            asked: VecDeque::new(),
            said: VecDeque::new(),
            running: None,
            next_turn: 0,
            has_phantoms,
            starts_before_ack,
            submitted: Vec::new(),
            outcomes: HashMap::new(),
            answered: HashMap::new(),
            wants_stop: false,
            stopped_at: MessageId(0),
        }
    }

    fn obey(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Start { message } => {
                    // A message sent after the interrupt may begin a turn.
                    self.wants_stop &= message <= self.stopped_at;
                    self.asked.push_back(Ask::Start(message));
                }
                Effect::Steer { message, turn } => self.asked.push_back(Ask::Steer(message, turn)),
                Effect::Interrupt { turn } => self.asked.push_back(Ask::Interrupt(turn)),
                Effect::TurnStarted { .. } => {}
                Effect::TurnEnded { messages, .. } => {
                    self.wants_stop = false;
                    for message in messages {
                        *self.answered.entry(message).or_default() += 1;
                    }
                }
                Effect::Joined { message, .. }
                | Effect::GivenBack { message, .. }
                | Effect::Unconfirmed { message } => {
                    self.outcomes.entry(message).or_default().push(effect);
                }
            }
        }
        self.wants_stop &= self.turns.is_pending();
    }

    fn begin(&mut self) -> String {
        self.next_turn += 1;
        let turn = format!("turn-{}", self.next_turn);
        self.running = Some(turn.clone());
        turn
    }

    fn finish(&mut self, status: TurnStatus) {
        if let Some(turn) = self.running.take() {
            self.said.push_back(Said::Completed(turn, status));
        }
    }

    fn serve(&mut self) {
        match self.asked.pop_front() {
            None => {}
            Some(Ask::Start(message)) => match self.running.clone() {
                Some(turn) => {
                    let id = if self.has_phantoms { format!("phantom-{message}") } else { turn };
                    self.said.push_back(Said::Start(message, Ok(id)));
                }
                None => {
                    let turn = self.begin();
                    let ack = Said::Start(message, Ok(turn.clone()));
                    let started = Said::Started(turn);
                    let both = if self.starts_before_ack { [started, ack] } else { [ack, started] };
                    self.said.extend(both);
                }
            },
            Some(Ask::Steer(message, turn)) => {
                let answer = if self.running.as_ref() == Some(&turn) { Ok(()) } else { Err(refusal()) };
                self.said.push_back(Said::Steer(message, answer));
            }
            Some(Ask::Interrupt(turn)) => match self.running.as_ref() == Some(&turn) {
                true => self.finish(TurnStatus::Interrupted),
                false => self.said.push_back(Said::InterruptRefused(turn)),
            },
        }
    }

    fn refuse(&mut self) {
        match self.asked.pop_front() {
            None => {}
            Some(Ask::Start(message)) => self.said.push_back(Said::Start(message, Err(refusal()))),
            Some(Ask::Steer(message, _)) => self.said.push_back(Said::Steer(message, Err(refusal()))),
            // A refused interrupt is the user's to repeat; here only requests that carry a message are refused.
            Some(interrupt @ Ask::Interrupt(_)) => self.asked.push_front(interrupt),
        }
    }

    fn deliver(&mut self) {
        let effects = match self.said.pop_front() {
            None => return,
            Some(Said::Start(message, answer)) => self.turns.start_answered(message, answer),
            Some(Said::Steer(message, answer)) => self.turns.steer_answered(message, answer),
            Some(Said::InterruptRefused(turn)) => self.turns.interrupt_refused(&turn),
            Some(Said::Started(turn)) => self.turns.started(&turn),
            Some(Said::Completed(turn, status)) => self.turns.completed(&turn, status),
        };
        self.obey(effects);
    }

    fn reconnect(&mut self, named: bool) {
        // What was on its way reached the server or not; what the server said is lost.
        if named {
            while !self.asked.is_empty() {
                self.serve();
            }
        }
        self.asked.clear();
        self.said.clear();
        let effects = self.turns.detached();
        self.obey(effects);
        let status = if self.running.is_some() { ACTIVE } else { ThreadStatus::Idle };
        let running = self.running.clone().filter(|_| named);
        let effects = self.turns.attached(&status, running.as_deref());
        self.obey(effects);
        if let Some(turn) = self.running.clone() {
            let params = format!(r#"{{"threadId":"own","turnId":"{turn}","itemId":"i"}}"#);
            let effects = self.turns.notification("item/started", params.as_bytes());
            self.obey(effects);
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Submit => {
                let (message, effects) = self.turns.submit();
                self.submitted.push(message);
                self.obey(effects);
            }
            Step::Interrupt => {
                if let Ok(effects) = self.turns.interrupt() {
                    self.wants_stop = true;
                    self.stopped_at = self.submitted.last().copied().unwrap_or(MessageId(0));
                    self.obey(effects);
                }
            }
            Step::Serve => self.serve(),
            Step::Deliver => self.deliver(),
            Step::Finish => self.finish(TurnStatus::Completed),
            Step::Spontaneous if self.running.is_none() => {
                // Nobody wanted this one to stop.
                self.wants_stop = false;
                let turn = self.begin();
                self.said.push_back(Said::Started(turn));
            }
            Step::Spontaneous => {}
            Step::Refuse => self.refuse(),
            Step::Reconnect { named } => self.reconnect(named),
        }
    }

    /// Lets everything on the wire arrive, without ending a turn.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.asked.is_empty() && self.said.is_empty() {
                return;
            }
            self.serve();
            self.deliver();
        }
        panic!("client and server talk for ever");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_nothing_leaks_and_an_interrupt_arrives(
        steps in proptest::collection::vec(step(), 0..60),
        has_phantoms in any::<bool>(),
        starts_before_ack in any::<bool>(),
    ) {
        let mut world = World::new(has_phantoms, starts_before_ack);
        for step in steps {
            world.take(step);
        }
        world.settle();
        if let (true, Some(turn)) = (world.wants_stop, &world.running) {
            panic!("{turn} still runs although the user wants it to stop: {:?}", world.turns);
        }
        prop_assert_eq!(world.turns.current(), world.running.as_deref());
        // Turns end; each end may let a held message begin another.
        for _ in 0..200 {
            if world.running.is_none() && !world.turns.is_pending() {
                break;
            }
            world.finish(TurnStatus::Completed);
            world.settle();
        }
        prop_assert!(world.running.is_none());
        prop_assert!(!world.turns.is_pending(), "{:?}", world.turns);
        for message in &world.submitted {
            let outcomes = world.outcomes.get(message).map_or(&[][..], Vec::as_slice);
            prop_assert_eq!(outcomes.len(), 1, "message {} got {:?}", message, outcomes);
            let answers = world.answered.get(message).copied().unwrap_or(0);
            prop_assert!(answers <= 1, "message {} was answered {} times", message, answers);
        }
    }
}
