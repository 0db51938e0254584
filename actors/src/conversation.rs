//! ConversationReader: what the app-server says, into the journal; what people say, to the app-server.

mod attach;
mod heal;
pub(crate) mod rpc_client;
pub(crate) mod wire;

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use futures_util::FutureExt;
use optio_codex_protocol::requests::{self, Input, TurnAck, TurnOptions, method};
use optio_codex_protocol::rpc::{self, RequestId, RpcError};
use optio_codex_protocol::server_requests::{self, Approval, Resolved, ServerRequest};
use optio_codex_protocol::turns::{Delivery, Effect, GivenBack, MessageId, Turns};
use optio_codex_protocol::{events, rpc::Incoming};
use optio_store::Draft;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot};
use tracing::{debug, info, warn};

pub use attach::{Attach, AttachError, Attached, Over, ThreadPlan};
pub use rpc_client::CallError;
pub use wire::WireError;

use crate::session::approvals::Decision;
use crate::session::{RunContext, TurnMode};
use crate::supervision::{ChildKind, ExitSlot, Observation, Observe, Pulse, beat};
use crate::teardown::{CloseDoor, EndTurn, Finish, StepError, StepResult};
use rpc_client::RpcClient;

/// How often the reader shows that it lives.
const BEAT: Duration = Duration::from_secs(5);

/// Silence past this is loss. A full disk may hold the journal, and so the reader, back for a while.
pub(crate) const PULSE_LIMIT: Duration = Duration::from_secs(120);

/// Messages that may wait for the running turn's end (`queue`).
const MAX_QUEUED: usize = 16;

/// How long a sender waits to hear which turn its message joined, before it is told that it is on its way.
const JOIN_LIMIT: Duration = Duration::from_secs(10);

/// How long the end of a turn waits for a sign that the provider has answered. Codex refreshes its login before it is
/// answered; interrupted there, it drops the refresh, and the provider has spent a token whose successor nobody has
/// (seen with 0.142.5). A refresh takes a second; a provider that thinks for longer is not waited for.
const REFRESH_LIMIT: Duration = Duration::from_secs(2);

/// Characters of a message by which its sender knows it again.
const SHOWN_OF_A_MESSAGE: usize = 80;

/// Bytes of a line that is no message which an event shows.
const FOREIGN_SHOWN: usize = 4096;

/// Holds the conversation with one app-server over one connection. When the connection breaks it exits, and its
/// successor attaches again: the agent goes on meanwhile, and what was missed is healed from what the server remembers.
///
/// It routes by the envelope alone; a payload goes into the journal as it came (DESIGN §4).
pub struct ConversationReader {
    run: RunContext,
    exit: ExitSlot,
    session: Recipient<ConversationFact>,
    pulse: Pulse,
    rpc: RpcClient,
    turns: Option<Turns>,
    /// What a message to send is, until it has joined a turn.
    outbox: HashMap<MessageId, Outbound>,
    queued: VecDeque<SendMessage>,
    /// Questions the server waits for an answer to.
    open: HashMap<RequestId, Approval>,
    /// The journal takes no events now; reading stops until it does.
    held_back: bool,
    /// What the message that was being read had to tell meanwhile.
    backlog: VecDeque<Draft>,
    turn_waiters: Vec<oneshot::Sender<()>>,
    /// The running turn went on while nobody listened: its items are read again when it ends.
    missed_some: bool,
    closed: bool,
    attached: bool,
    received: u64,
    /// Wakes whoever waits for a sign that the provider has answered the running turn.
    answered: Rc<Notify>,
    foreign: u64,
    last_error: Option<String>,
}

struct Outbound {
    input: Vec<Input>,
    joined: Option<oneshot::Sender<Result<Delivered, ConversationError>>>,
}

impl ConversationReader {
    /// A reader that is not attached yet.
    pub fn new(run: RunContext, pulse: Pulse, exit: ExitSlot, session: Recipient<ConversationFact>) -> Self {
        Self {
            run,
            exit,
            session,
            pulse,
            rpc: RpcClient::default(),
            turns: None,
            outbox: HashMap::new(),
            queued: VecDeque::new(),
            open: HashMap::new(),
            held_back: false,
            backlog: VecDeque::new(),
            turn_waiters: Vec::new(),
            missed_some: false,
            closed: false,
            attached: false,
            received: 0,
            answered: Rc::default(),
            foreign: 0,
            last_error: None,
        }
    }

    /// Fails for a reason of our own. The session hears it before the agent can notice that nobody listens any more: an
    /// agent on pipes then ends as if all were well, and its status would be taken for the cause.
    fn give_up(&mut self, why: impl Into<String>, ctx: &mut Context<Self>) {
        let why = why.into();
        self.session.do_send(ConversationFact::GaveUp { why: why.clone() });
        self.fail(why, ctx);
    }

    /// Fails because the wire broke.
    fn fail(&mut self, why: String, ctx: &mut Context<Self>) {
        self.last_error = Some(why.clone());
        self.hand_over();
        self.exit.fail(why);
        ctx.stop();
    }

    /// Loses no message silently: what waits for its turn is the successor's; of what was on its way nobody knows whether it
    /// arrived, and whoever was told that it would hears of it.
    fn hand_over(&mut self) {
        if !self.queued.is_empty() {
            let messages = self.queued.drain(..).collect();
            self.session.do_send(ConversationFact::NotSent { messages });
        }
        for outbound in std::mem::take(&mut self.outbox).into_values() {
            // One who still waits is told by the end of the wait.
            if outbound.joined.as_ref().is_some_and(|joined| !joined.is_closed()) {
                continue;
            }
            let text = outbound.input.iter().find_map(|part| match part {
                Input::Text(text) => Some(text.chars().take(SHOWN_OF_A_MESSAGE).collect::<String>()),
                _ => None,
            });
            let reason = format!("{}: {:?}", ConversationError::Unconfirmed, text.unwrap_or_default());
            self.run.events.tell("attention", &json!({ "reason": reason }));
        }
    }
}

/// What the reader tells its session.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub enum ConversationFact {
    /// A turn of the session's own thread runs.
    TurnStarted {
        /// Its id.
        turn: String,
    },
    /// It is over.
    TurnEnded {
        /// Its id.
        turn: String,
    },
    /// The agent asks a person.
    Asked(Asked),
    /// The agent no longer waits for an answer.
    Withdrawn {
        /// To which question.
        request: RequestId,
    },
    /// Messages that were taken to be sent when the running turn is over: the next reader sends them.
    NotSent {
        /// Which, in their order.
        messages: Vec<SendMessage>,
    },
    /// The reader does not go on with this connection, for a reason that is not the agent's end.
    GaveUp {
        /// Why.
        why: String,
    },
}

/// A question of the agent.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The agent's number for it.
    pub request: RequestId,
    /// How it was asked.
    pub method: String,
    /// What is asked.
    pub kind: String,
    /// The command, verbatim.
    pub command: Option<String>,
    /// Where it would run.
    pub cwd: Option<String>,
    /// Why the agent asks.
    pub reason: Option<String>,
    /// What would change.
    pub changes: Option<Value>,
    /// The whole question.
    pub raw: Value,
}

/// Why a message or an interrupt did not reach the agent.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConversationError {
    /// A turn runs, and a new one was wanted.
    #[error("a turn is running")]
    Busy,
    /// No turn runs, and a running one was wanted.
    #[error("no turn is running")]
    Idle,
    /// The agent refused.
    #[error("{0}")]
    Refused(RpcError),
    /// The conversation is not attached, or is being closed.
    #[error("the conversation is not attached")]
    NotAttached,
    /// The connection broke; whether the message arrived is unknown.
    #[error("the connection broke before the agent confirmed the message")]
    Unconfirmed,
    /// The turn was interrupted before the message was sent.
    #[error("the turn was interrupted before the message was sent")]
    Interrupted,
    /// More messages wait than a person could have typed.
    #[error("too many messages are waiting")]
    TooMany,
}

impl Actor for ConversationReader {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(BEAT, |reader, _| reader.pulse.touch());
        beat(ctx, ChildKind::ConversationReader, self.run.clone());
    }
}

impl StreamHandler<Result<Bytes, WireError>> for ConversationReader {
    fn handle(&mut self, item: Result<Bytes, WireError>, ctx: &mut Self::Context) {
        match item {
            Ok(line) => self.line(line, ctx),
            Err(broken) => {
                self.attached = false;
                self.rpc.disconnect();
                // With the door closed the agent is about to be stopped: it may go.
                if self.closed {
                    return;
                }
                match broken {
                    WireError::TooLong => self.give_up(broken.to_string(), ctx),
                    WireError::Closed | WireError::Broken(_) => self.fail(broken.to_string(), ctx),
                }
            }
        }
    }

    /// The stream's end follows its error, which has said everything.
    fn finished(&mut self, _: &mut Self::Context) {}
}

impl ConversationReader {
    fn line(&mut self, line: Bytes, ctx: &mut Context<Self>) {
        self.received += 1;
        match rpc::route(line) {
            Incoming::Notification { method, params } => self.notification(&method, &params, ctx),
            Incoming::Response { id, outcome } => self.rpc.answered(id, outcome),
            Incoming::ServerRequest { id, method, params } => self.server_request(id, method, params, ctx),
            Incoming::Foreign { why, .. } if why == rpc::BLANK => {}
            Incoming::Foreign { line, why } => {
                self.foreign += 1;
                debug!(why, bytes = line.len(), "line is not understood");
                let shown = String::from_utf8_lossy(&line[..line.len().min(FOREIGN_SHOWN)]);
                self.run.events.tell("codex.unparseable", &json!({ "why": why, "line": shown }));
            }
        }
    }

    fn notification(&mut self, method: &str, params: &Bytes, ctx: &mut Context<Self>) {
        if events::shows_an_answer(method, params) {
            self.answered.notify_waiters();
        }
        let draft = self.run.events.codex_draft(events::name(method), method, params);
        self.append(draft, ctx);
        if method == Resolved::METHOD
            && let Some(resolved) = Resolved::parse(params)
            && self.open.remove(&resolved.id).is_some()
        {
            self.session.do_send(ConversationFact::Withdrawn { request: resolved.id });
        }
        if let Some(turns) = &mut self.turns {
            let effects = turns.notification(method, params);
            self.perform(effects, ctx);
        }
    }

    /// Hands an event to the journal. While the disk holds the journal back, nothing more is read from the agent: the
    /// flood stops at its source and memory stays bounded.
    fn append(&mut self, draft: Draft, ctx: &mut Context<Self>) {
        if self.held_back {
            self.backlog.push_back(draft);
            return;
        }
        let stream = self.run.events.stream().clone();
        let mut appending = Box::pin(async move { stream.append(draft).await });
        match (&mut appending).now_or_never() {
            Some(Ok(_)) => {}
            Some(Err(problem)) => self.give_up(format!("journal does not take events: {problem}"), ctx),
            None => {
                self.held_back = true;
                let held = appending.into_actor(self).then(|appended, reader, _| {
                    let stream = reader.run.events.stream().clone();
                    let backlog = std::mem::take(&mut reader.backlog);
                    async move {
                        appended?;
                        for draft in backlog {
                            stream.append(draft).await?;
                        }
                        Ok::<(), optio_store::StoreError>(())
                    }
                    .into_actor(reader)
                });
                ctx.wait(held.map(|appended, reader, ctx| {
                    reader.held_back = false;
                    if let Err(problem) = appended {
                        reader.give_up(format!("journal does not take events: {problem}"), ctx);
                    }
                }));
            }
        }
    }

    fn server_request(&mut self, id: RequestId, method: String, params: Bytes, ctx: &mut Context<Self>) {
        match server_requests::classify(&id, &method, &params) {
            ServerRequest::Approval(approval) => {
                let asked = Asked {
                    request: id.clone(),
                    kind: approval.kind.as_str().to_owned(),
                    command: approval.command.clone(),
                    cwd: approval.cwd.clone(),
                    reason: approval.reason.clone(),
                    changes: approval.changes.as_ref().and_then(|raw| serde_json::from_slice(raw).ok()),
                    raw: serde_json::from_slice(&params).unwrap_or(Value::Null),
                    method,
                };
                self.open.insert(id, approval);
                self.session.do_send(ConversationFact::Asked(asked));
            }
            ServerRequest::Question(question) => {
                // Nobody can be asked this way yet; the agent goes on without, and everybody sees what it wanted.
                let draft = self.run.events.codex_draft(events::name(&method), &method, &params);
                self.append(draft, ctx);
                self.rpc.write(question.answer(&server_requests::Reply::Decline));
            }
            ServerRequest::Refused { answer, why } => {
                info!(method, why, "request of the agent is refused");
                let draft = self.run.events.codex_draft(events::name(&method), &method, &params);
                self.append(draft, ctx);
                self.rpc.write(answer);
            }
        }
    }

    fn perform(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        for effect in effects {
            match effect {
                Effect::Start { message } => self.start_turn(message, ctx),
                Effect::Steer { message, turn } => self.steer(message, turn, ctx),
                Effect::Interrupt { turn } => self.write_interrupt(turn, ctx),
                Effect::TurnStarted { turn } => self.session.do_send(ConversationFact::TurnStarted { turn }),
                Effect::TurnEnded { turn, status, .. } => self.turn_ended(turn, status.is_none(), ctx),
                Effect::Joined { message, turn, delivery } => {
                    let delivered_as = match delivery {
                        Delivery::Start => DeliveredAs::New,
                        Delivery::Steer => DeliveredAs::Steer,
                    };
                    self.settle(message, Ok(Delivered { turn_id: Some(turn), delivered_as }));
                }
                Effect::GivenBack { message, why } => self.settle(message, Err(why.into())),
                Effect::Unconfirmed { message } => self.settle(message, Err(ConversationError::Unconfirmed)),
            }
        }
        self.feed_queue(ctx);
    }

    fn settle(&mut self, message: MessageId, outcome: Result<Delivered, ConversationError>) {
        let waiting = self.outbox.remove(&message).and_then(|outbound| outbound.joined);
        if let Some(waiting) = waiting {
            // A sender that went away has nothing to hear.
            let _ = waiting.send(outcome);
        }
    }

    fn start_turn(&mut self, message: MessageId, ctx: &mut Context<Self>) {
        let Some(thread) = self.turns.as_ref().map(|turns| turns.thread().to_owned()) else {
            return;
        };
        let input = self.outbox.get(&message).map(|outbound| outbound.input.clone()).unwrap_or_default();
        let (model, effort) = self.run.ledger.read(|record| (record.model.clone(), record.effort.clone()));
        let rpc = self.rpc.clone();
        let asking = async move {
            let options = TurnOptions { model: model.as_deref(), effort: effort.as_deref() };
            let answer = rpc.call(|id| requests::turn_start(id, &thread, &input, options)).await?;
            Ok(TurnAck::parse(method::TURN_START, &answer).map(|ack| ack.turn_id).unwrap_or_default())
        };
        ctx.spawn(asking.into_actor(self).map(move |answer, reader, ctx| {
            let Some(answer) = as_refusal(answer) else { return };
            let Some(turns) = &mut reader.turns else { return };
            let effects = turns.start_answered(message, answer);
            reader.perform(effects, ctx);
        }));
    }

    fn steer(&mut self, message: MessageId, turn: String, ctx: &mut Context<Self>) {
        let Some(thread) = self.turns.as_ref().map(|turns| turns.thread().to_owned()) else {
            return;
        };
        let input = self.outbox.get(&message).map(|outbound| outbound.input.clone()).unwrap_or_default();
        let rpc = self.rpc.clone();
        let asking =
            async move { rpc.call(|id| requests::turn_steer(id, &thread, &turn, &input)).await.map(drop) };
        ctx.spawn(asking.into_actor(self).map(move |answer, reader, ctx| {
            let Some(answer) = as_refusal(answer) else { return };
            let Some(turns) = &mut reader.turns else { return };
            let effects = turns.steer_answered(message, answer);
            reader.perform(effects, ctx);
        }));
    }

    fn write_interrupt(&mut self, turn: String, ctx: &mut Context<Self>) {
        let Some(thread) = self.turns.as_ref().map(|turns| turns.thread().to_owned()) else {
            return;
        };
        let rpc = self.rpc.clone();
        let asked = turn.clone();
        let asking = async move { rpc.call(|id| requests::turn_interrupt(id, &thread, &asked)).await };
        ctx.spawn(asking.into_actor(self).map(move |answer, reader, ctx| {
            let (Some(turns), Err(CallError::Refused(refused))) = (&mut reader.turns, answer) else {
                return;
            };
            debug!(%refused, "interrupt was refused");
            let effects = turns.interrupt_refused(&turn);
            reader.perform(effects, ctx);
        }));
    }

    fn turn_ended(&mut self, turn: String, out_of_sight: bool, ctx: &mut Context<Self>) {
        for waiting in self.turn_waiters.drain(..) {
            // Whoever stopped waiting has gone on without.
            let _ = waiting.send(());
        }
        self.session.do_send(ConversationFact::TurnEnded { turn: turn.clone() });
        if out_of_sight || std::mem::take(&mut self.missed_some) {
            self.heal_from_server(turn, ctx);
        }
    }

    fn feed_queue(&mut self, ctx: &mut Context<Self>) {
        let idle = self.turns.as_ref().is_some_and(|turns| !turns.is_pending());
        if idle && let Some(message) = self.queued.pop_front() {
            self.submit(message.input, None, ctx);
        }
    }

    fn submit(
        &mut self,
        input: Vec<Input>,
        joined: Option<oneshot::Sender<Result<Delivered, ConversationError>>>,
        ctx: &mut Context<Self>,
    ) {
        let Some(turns) = &mut self.turns else { return };
        let (message, effects) = turns.submit();
        self.outbox.insert(message, Outbound { input, joined });
        self.perform(effects, ctx);
    }
}

/// An answer that the turns must hear of. A broken connection is none: the reader ends with it.
fn as_refusal<T>(answer: Result<T, CallError>) -> Option<Result<T, RpcError>> {
    match answer {
        Ok(answer) => Some(Ok(answer)),
        Err(CallError::Refused(refused)) => Some(Err(refused)),
        Err(CallError::Disconnected) => None,
        Err(CallError::Stuck) => Some(Err(RpcError {
            code: rpc::INTERNAL_ERROR,
            message: CallError::Stuck.to_string(),
            data: None,
        })),
    }
}

impl From<GivenBack> for ConversationError {
    fn from(why: GivenBack) -> Self {
        match why {
            GivenBack::Refused(refused) => Self::Refused(refused),
            GivenBack::Interrupted => Self::Interrupted,
            GivenBack::TooMany => Self::TooMany,
            GivenBack::Closed => Self::NotAttached,
        }
    }
}

/// Sends a message to the agent.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Delivered, ConversationError>")]
pub struct SendMessage {
    /// Its parts.
    pub input: Vec<Input>,
    /// How it may travel.
    pub mode: TurnMode,
}

/// Where a message went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Delivered {
    /// The turn that answers it, when it is known already.
    pub turn_id: Option<String>,
    /// How it travelled.
    pub delivered_as: DeliveredAs,
}

/// How a message travelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveredAs {
    /// As a new turn.
    New,
    /// Into the running one.
    Steer,
    /// Into the terminal, which says no more.
    Typed,
    /// It waits for the running one to end.
    Queue,
}

impl Handler<SendMessage> for ConversationReader {
    type Result = ResponseFuture<Result<Delivered, ConversationError>>;

    fn handle(&mut self, message: SendMessage, ctx: &mut Self::Context) -> Self::Result {
        let refuse = |why| -> Self::Result { Box::pin(async { Err(why) }) };
        let Some(turns) = self.turns.as_ref().filter(|_| self.attached && !self.closed) else {
            return refuse(ConversationError::NotAttached);
        };
        let (pending, running) = (turns.is_pending(), turns.current().is_some());
        match message.mode {
            TurnMode::New if pending => return refuse(ConversationError::Busy),
            TurnMode::Steer if !running => return refuse(ConversationError::Idle),
            TurnMode::Queue if pending => {
                if self.queued.len() >= MAX_QUEUED {
                    return refuse(ConversationError::TooMany);
                }
                self.queued.push_back(message);
                return Box::pin(async { Ok(Delivered { turn_id: None, delivered_as: DeliveredAs::Queue }) });
            }
            TurnMode::Auto | TurnMode::New | TurnMode::Steer | TurnMode::Queue => {}
        }
        let (tell, joined) = oneshot::channel();
        self.submit(message.input, Some(tell), ctx);
        Box::pin(async move {
            match tokio::time::timeout(JOIN_LIMIT, joined).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(ConversationError::Unconfirmed),
                Err(_) => Ok(Delivered { turn_id: None, delivered_as: DeliveredAs::Queue }),
            }
        })
    }
}

/// Ends the running turn; one that is only on its way is ended as soon as it has an id.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<(), ConversationError>")]
pub struct Interrupt;

impl Handler<Interrupt> for ConversationReader {
    type Result = Result<(), ConversationError>;

    fn handle(&mut self, _: Interrupt, ctx: &mut Self::Context) -> Self::Result {
        let turns = self.turns.as_mut().filter(|_| self.attached).ok_or(ConversationError::NotAttached)?;
        let effects = turns.interrupt().map_err(|_| ConversationError::Idle)?;
        self.perform(effects, ctx);
        Ok(())
    }
}

/// Answers a question of the agent.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct ReplyToAgent {
    /// The agent's number for it.
    pub request: RequestId,
    /// What to do.
    pub decision: Decision,
}

impl Handler<ReplyToAgent> for ConversationReader {
    type Result = ();

    fn handle(&mut self, reply: ReplyToAgent, ctx: &mut Self::Context) {
        // Not there means not attached: asked again after the next attach, the session replies again.
        let Some(approval) = self.open.remove(&reply.request) else {
            return;
        };
        let decision = as_wire(reply.decision);
        if !self.rpc.write(approval.answer(decision)) {
            warn!(request = %reply.request, "answer did not reach the agent, which will ask again");
        }
        if reply.decision == Decision::Cancel
            && approval.cancel_needs_interrupt()
            && let Some(turns) = &mut self.turns
            && let Ok(effects) = turns.interrupt()
        {
            self.perform(effects, ctx);
        }
    }
}

fn as_wire(decision: Decision) -> server_requests::Decision {
    match decision {
        Decision::Accept => server_requests::Decision::Accept,
        Decision::AcceptForSession => server_requests::Decision::AcceptForSession,
        Decision::Decline => server_requests::Decision::Decline,
        Decision::Cancel => server_requests::Decision::Cancel,
    }
}

impl Handler<CloseDoor> for ConversationReader {
    type Result = ResponseActFuture<Self, StepResult>;

    fn handle(&mut self, _: CloseDoor, _: &mut Self::Context) -> Self::Result {
        self.closed = true;
        self.queued.clear();
        let withdrawn = self.open.len();
        for (_, approval) in self.open.drain() {
            // An agent that cannot be told any more is about to end.
            self.rpc.write(approval.answer(server_requests::Decision::Cancel));
        }
        let run = self.run.clone();
        let closing = async move {
            run.step(ChildKind::ConversationReader, "close").await.map_err(StepError::new)?;
            Ok(Finish::Done(match withdrawn {
                0 => "no new input is taken".to_owned(),
                n => format!("no new input is taken; {n} pending approvals were cancelled"),
            }))
        };
        Box::pin(closing.into_actor(self))
    }
}

impl Handler<EndTurn> for ConversationReader {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: EndTurn, _: &mut Self::Context) -> Self::Result {
        let seeded = self.run.ledger.read(|record| record.run.as_ref().is_some_and(|run| run.seed.is_some()));
        let runs = self.turns.as_ref().is_some_and(|turns| turns.current().is_some());
        let answered = self.answered.clone();
        let harmless = async move {
            if seeded && runs {
                // A turn that stays silent is ended all the same.
                let _ = tokio::time::timeout(REFRESH_LIMIT, answered.notified()).await;
            }
        };
        let ending = harmless.into_actor(self).then(|(), reader, ctx| {
            let (tell, ended) = oneshot::channel();
            if let Some(effects) = reader.turns.as_mut().and_then(|turns| turns.interrupt().ok()) {
                reader.turn_waiters.push(tell);
                reader.perform(effects, ctx);
            } else {
                drop(tell);
            }
            let run = reader.run.clone();
            let waiting = async move {
                if run.step(ChildKind::ConversationReader, "end_turn").await.is_ok() {
                    // An error means that nothing runs.
                    let _ = ended.await;
                }
            };
            waiting.into_actor(reader)
        });
        Box::pin(ending.map(|(), reader, _| {
            // End-of-file is how an agent on our pipes is asked to end (S-458); one that listens only loses a client.
            reader.attached = false;
            reader.rpc.disconnect();
        }))
    }
}

impl Handler<Observe> for ConversationReader {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        let phase = match (self.attached, self.closed) {
            (_, true) => "closed",
            (true, false) => "attached",
            (false, false) => "not attached",
        };
        let turn = self.turns.as_ref().and_then(|turns| turns.current().map(str::to_owned));
        MessageResult(Observation {
            phase: phase.to_owned(),
            last_error: self.last_error.clone(),
            detail: json!({
                "received": self.received,
                "not_understood": self.foreign,
                "turn": turn,
                "queued": self.queued.len(),
                "open_questions": self.open.len(),
            }),
        })
    }
}
