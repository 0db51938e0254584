//! The one table of a session's children: iterated for health, for observing and for teardown alike.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use actix::prelude::*;
use optio_codex_protocol::config::Mode;
use serde::Serialize;
use tokio::time::Instant;

use crate::conversation::ConversationReader;
use crate::cred_watcher::CredWatcher;
use crate::host_link::HostLink;
use crate::lease_renewer::LeaseRenewer;
use crate::log_tail::LogTail;
use crate::process::Process;
use crate::snapshotter::Snapshotter;
use crate::supervision::{ChildExit, ChildHandle, ChildId, ChildKind, Observation, Observe, Pulse};
use crate::teardown::{CloseDoor, EndTurn};
use crate::terminal::Terminal;

/// More restarts of one child than this within [`BUDGET_WINDOW`] end the run: whatever is wrong does not go away.
const BUDGET: usize = 5;

/// See [`BUDGET`].
const BUDGET_WINDOW: Duration = Duration::from_secs(60);

/// The wait before the first restart; doubles with each one within the window, to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// The longest wait before a restart.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How long a child may take to say what it is doing.
const OBSERVE_LIMIT: Duration = Duration::from_secs(2);

/// A child's address, whichever child it is.
#[derive(Clone)]
pub enum AnyChild {
    /// See [`HostLink`].
    HostLink(Addr<HostLink>),
    /// See [`Process`].
    Process(Addr<Process>),
    /// See [`ConversationReader`].
    ConversationReader(Addr<ConversationReader>),
    /// See [`CredWatcher`].
    CredWatcher(Addr<CredWatcher>),
    /// See [`LeaseRenewer`].
    LeaseRenewer(Addr<LeaseRenewer>),
    /// See [`LogTail`].
    LogTail(Addr<LogTail>),
    /// See [`Snapshotter`].
    Snapshotter(Addr<Snapshotter>),
    /// See [`Terminal`].
    Terminal(Addr<Terminal>),
}

impl AnyChild {
    fn observe(&self) -> Recipient<Observe> {
        match self {
            Self::HostLink(addr) => addr.clone().recipient(),
            Self::Process(addr) => addr.clone().recipient(),
            Self::ConversationReader(addr) => addr.clone().recipient(),
            Self::CredWatcher(addr) => addr.clone().recipient(),
            Self::LeaseRenewer(addr) => addr.clone().recipient(),
            Self::LogTail(addr) => addr.clone().recipient(),
            Self::Snapshotter(addr) => addr.clone().recipient(),
            Self::Terminal(addr) => addr.clone().recipient(),
        }
    }
}

/// Every child's address, all alive a moment ago.
#[derive(Clone)]
pub struct Crew {
    /// The way to the host.
    pub host_link: Addr<HostLink>,
    /// The agent's process.
    pub process: Addr<Process>,
    /// What people and programs meet the agent through.
    pub front: Front,
    /// The watch over the login.
    pub watcher: Addr<CredWatcher>,
    /// The lease.
    pub renewer: Addr<LeaseRenewer>,
    /// The agent's own log.
    pub log_tail: Addr<LogTail>,
    /// Captures and restores.
    pub snapshotter: Addr<Snapshotter>,
}

/// What people and programs meet the agent through.
#[derive(Clone)]
pub enum Front {
    /// The app-server's protocol.
    Conversation(Addr<ConversationReader>),
    /// Codex's own screen.
    Terminal(Addr<Terminal>),
}

impl Front {
    /// The kind of child that a session of this mode has for it.
    pub fn kind(mode: Mode) -> ChildKind {
        match mode {
            Mode::Conversation => ChildKind::ConversationReader,
            Mode::Terminal => ChildKind::Terminal,
        }
    }

    /// Who closes the door of the run.
    pub fn close(&self) -> Recipient<CloseDoor> {
        match self {
            Self::Conversation(reader) => reader.clone().recipient(),
            Self::Terminal(terminal) => terminal.clone().recipient(),
        }
    }

    /// Who makes the agent ready to be stopped.
    pub fn end_turn(&self) -> Recipient<EndTurn> {
        match self {
            Self::Conversation(reader) => reader.clone().recipient(),
            Self::Terminal(terminal) => terminal.clone().recipient(),
        }
    }
}

struct Slot {
    addr: AnyChild,
    handle: ChildHandle,
    pulse: Pulse,
}

#[derive(Default)]
struct History {
    restarts: u32,
    recent: VecDeque<Instant>,
    last: Option<Observation>,
    last_exit: Option<String>,
}

/// The table.
#[derive(Default)]
pub struct Children {
    slots: BTreeMap<ChildKind, Slot>,
    history: BTreeMap<ChildKind, History>,
    /// Who waits for the host.
    parked: BTreeSet<ChildKind>,
}

/// What a child's death asks of its supervisor.
#[derive(Debug, PartialEq, Eq)]
pub enum AfterExit {
    /// It was replaced already, or ended because it was told to.
    Nothing,
    /// Start it again after this wait.
    Restart(Duration),
    /// Its host is away, which is no fault of its own: it waits until the host is back.
    Parked,
    /// It died too often.
    BudgetSpent,
}

impl Children {
    /// Puts a started child into the table. One that it replaces is killed by losing its handle.
    pub fn put(&mut self, addr: AnyChild, handle: ChildHandle, pulse: Pulse) {
        self.slots.insert(handle.kind, Slot { addr, handle, pulse });
    }

    /// The child, if it is there.
    pub fn get(&self, kind: ChildKind) -> Option<&AnyChild> {
        self.slots.get(&kind).map(|slot| &slot.addr)
    }

    /// True when the child is there.
    pub fn has(&self, kind: ChildKind) -> bool {
        self.slots.contains_key(&kind)
    }

    /// Kills a child and forgets it; its exit is no news any more.
    pub fn discard(&mut self, kind: ChildKind) {
        self.slots.remove(&kind);
        self.history.entry(kind).or_default().restarts += 1;
    }

    /// Takes note of a child's end. One that is excused does not count.
    pub fn exited(&mut self, exit: &ChildExit, excused: bool) -> AfterExit {
        let is_current = |id: ChildId| self.slots.get(&exit.kind).is_some_and(|slot| slot.handle.id == id);
        if !is_current(exit.id) {
            return AfterExit::Nothing;
        }
        self.slots.remove(&exit.kind);
        let history = self.history.entry(exit.kind).or_default();
        history.last_exit = Some(exit.reason.to_string());
        if excused {
            self.parked.insert(exit.kind);
            return AfterExit::Parked;
        }
        history.restarts += 1;
        let now = Instant::now();
        history.recent.retain(|at| now.duration_since(*at) < BUDGET_WINDOW);
        history.recent.push_back(now);
        if history.recent.len() > BUDGET {
            return AfterExit::BudgetSpent;
        }
        let doublings = history.recent.len() as u32 - 1;
        AfterExit::Restart((BACKOFF_MIN * 2u32.pow(doublings)).min(BACKOFF_MAX))
    }

    /// Has a child wait for the host.
    pub fn park(&mut self, kind: ChildKind) {
        self.parked.insert(kind);
    }

    /// Who has waited for the host, which is back.
    pub fn take_parked(&mut self) -> BTreeSet<ChildKind> {
        std::mem::take(&mut self.parked)
    }

    /// Forgets the exits of the last `time` of the children that live by the host: it was the host's doing.
    pub fn forgive(&mut self, time: Duration) {
        for kind in [ChildKind::ConversationReader, ChildKind::LogTail] {
            if let Some(history) = self.history.get_mut(&kind) {
                history.recent.retain(|at| at.elapsed() >= time);
            }
        }
    }

    /// Kills every child that has been silent for longer than it may; their exits follow.
    pub fn kill_the_silent(&mut self) -> Vec<ChildKind> {
        let silent = self.slots.iter_mut().filter(|(_, slot)| slot.pulse.is_lost());
        silent
            .map(|(kind, slot)| {
                slot.handle.kill();
                // Killed once is enough: the exit takes it out of the table.
                slot.pulse.quiet_for(BUDGET_WINDOW);
                *kind
            })
            .collect()
    }

    /// Whom to ask for an observation.
    pub fn observed(&self) -> Vec<(ChildKind, Recipient<Observe>)> {
        self.slots.iter().map(|(kind, slot)| (*kind, slot.addr.observe())).collect()
    }

    /// Keeps what a child said of itself, for when it is dead.
    pub fn remember(&mut self, kind: ChildKind, observation: Observation) {
        self.history.entry(kind).or_default().last = Some(observation);
    }

    /// Shows the tree.
    pub fn view(&self) -> Vec<ChildView> {
        let kinds = ChildKind::OF_SESSION.into_iter();
        kinds
            .filter(|kind| self.has(*kind) || self.history.contains_key(kind))
            .map(|kind| {
                let history = self.history.get(&kind);
                let last = history.and_then(|h| h.last.clone());
                ChildView {
                    child: kind,
                    alive: self.has(kind),
                    restarts: history.map_or(0, |h| h.restarts),
                    last_exit: history.and_then(|h| h.last_exit.clone()),
                    phase: match self.parked.contains(&kind) {
                        true => Some("waiting for the host".to_owned()),
                        false => last.as_ref().map(|o| o.phase.clone()),
                    },
                    last_error: last.as_ref().and_then(|o| o.last_error.clone()),
                    detail: last.map(|o| o.detail),
                }
            })
            .collect()
    }
}

/// A child as the API shows it.
#[derive(Debug, Clone, Serialize)]
pub struct ChildView {
    /// Which.
    pub child: ChildKind,
    /// It lives.
    pub alive: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// How its last predecessor ended.
    pub last_exit: Option<String>,
    /// What it last said it was doing.
    pub phase: Option<String>,
    /// The last thing that went wrong in it.
    pub last_error: Option<String>,
    /// More.
    pub detail: Option<serde_json::Value>,
}

/// Asks each of `whom` what it is doing; a child that does not answer is left out.
pub async fn observe_all(whom: Vec<(ChildKind, Recipient<Observe>)>) -> Vec<(ChildKind, Observation)> {
    let asking = whom.into_iter().map(|(kind, child)| async move {
        let answer = tokio::time::timeout(OBSERVE_LIMIT, child.send(Observe)).await;
        answer.ok()?.ok().map(|observation| (kind, observation))
    });
    futures_util::future::join_all(asking).await.into_iter().flatten().collect()
}
