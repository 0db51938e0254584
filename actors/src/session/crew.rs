//! Starting children from what is on record, so that a fresh one goes on where the dead one stopped.

use actix::prelude::*;
use optio_host::provision::Tool;
use tracing::info_span;

use super::children::{AnyChild, Crew, Front};
use super::phase::Phase;
use super::record::SessionRecord;
use super::{Session, log};
use crate::conversation::{self, ConversationReader};
use crate::cred_watcher::{self, CredWatcher, Watched};
use crate::host_link::{self, HostLink};
use crate::lease_renewer::{self, EarlierLease, LeaseRenewer};
use crate::log_tail::{self, Ears, LogTail};
use crate::process::{self, Process, Transport};
use crate::snapshotter::{self, Snapshotter};
use crate::supervision::{ChildKind, Pulse, spawn_child};
use crate::terminal::{self, Terminal};

/// Every child, started if it is not there.
pub(super) fn complete(session: &mut Session, ctx: &mut Context<Session>) -> Crew {
    let front = Front::kind(session.ledger.read(|record| record.config.mode()));
    for kind in ChildKind::OF_SESSION {
        let wanted = !matches!(kind, ChildKind::ConversationReader | ChildKind::Terminal) || kind == front;
        if wanted && !session.children.has(kind) {
            start(session, kind, ctx);
        }
    }
    macro_rules! child {
        ($kind:ident) => {
            match session.children.get(ChildKind::$kind) {
                Some(AnyChild::$kind(addr)) => addr.clone(),
                _ => unreachable!("the loop above has put a {} under its own kind", ChildKind::$kind),
            }
        };
    }
    Crew {
        host_link: child!(HostLink),
        process: child!(Process),
        front: match front {
            ChildKind::Terminal => Front::Terminal(child!(Terminal)),
            _ => Front::Conversation(child!(ConversationReader)),
        },
        watcher: child!(CredWatcher),
        renewer: child!(LeaseRenewer),
        log_tail: child!(LogTail),
        snapshotter: child!(Snapshotter),
    }
}

/// A child whose death ends the run: what it owned died with it. An agent on our own pipes is such a thing.
pub(super) fn is_irreplaceable(session: &Session, kind: ChildKind) -> bool {
    let piped = session.ledger.read(|record| {
        record.run.as_ref().is_some_and(|run| run.transport == Some(Transport::Stdio) && run.agent.is_some())
    });
    piped && matches!(kind, ChildKind::Process | ChildKind::ConversationReader)
}

/// Starts one child and puts it into the table.
pub(super) fn start(session: &mut Session, kind: ChildKind, ctx: &mut Context<Session>) {
    let parent = ctx.address().recipient();
    let run = session.run.clone();
    let span = info_span!(parent: &session.span, "child", %kind);
    let (child, handle, pulse) = match kind {
        ChildKind::Session | ChildKind::Verifier | ChildKind::SeedLogin | ChildKind::Provisioner => {
            unreachable!("these are children of the root")
        }
        ChildKind::HostLink => {
            let pulse = Pulse::new(host_link::PULSE_LIMIT);
            let beat = pulse.clone();
            let facts = ctx.address().recipient();
            let (addr, handle) = spawn_child(parent, kind, span, move |_| HostLink::new(run, beat, facts));
            (AnyChild::HostLink(addr), handle, pulse)
        }
        ChildKind::Process => {
            let pulse = Pulse::new(process::PULSE_LIMIT);
            let (beat, facts) = (pulse.clone(), ctx.address().recipient());
            let known = session.ledger.read(guarded_agent);
            let (addr, handle) =
                spawn_child(parent, kind, span, move |_| Process::new(run, beat, facts, known));
            (AnyChild::Process(addr), handle, pulse)
        }
        ChildKind::ConversationReader => {
            let pulse = Pulse::new(conversation::PULSE_LIMIT);
            let (beat, facts) = (pulse.clone(), ctx.address().recipient());
            let make = move |exit| ConversationReader::new(run, beat, exit, facts);
            let (addr, handle) = spawn_child(parent, kind, span, make);
            (AnyChild::ConversationReader(addr), handle, pulse)
        }
        ChildKind::CredWatcher => {
            let pulse = Pulse::new(cred_watcher::PULSE_LIMIT);
            let (beat, facts) = (pulse.clone(), ctx.address().recipient());
            let (watched, quiet) =
                session.ledger.read(|record| (watched(record), record.phase == Phase::Stopping));
            let make = move |_| CredWatcher::new(run, beat, facts, watched, quiet);
            let (addr, handle) = spawn_child(parent, kind, span, make);
            (AnyChild::CredWatcher(addr), handle, pulse)
        }
        ChildKind::LeaseRenewer => {
            let pulse = Pulse::new(lease_renewer::PULSE_LIMIT);
            let (beat, facts) = (pulse.clone(), ctx.address().recipient());
            let (confirmed, left) = (session.lease_confirmed, session.loss.lease_left);
            let (holder, earlier) = session.ledger.read(|record| {
                let of_run = record.run.as_ref().expect("a session actor exists only for a run on record");
                let earlier = of_run.seed.clone().map(|seed| EarlierLease {
                    seed,
                    lost: of_run.lease_lost,
                    confirmed,
                    left,
                });
                (of_run.holder.clone(), earlier)
            });
            let make = move |_| LeaseRenewer::new(run, beat, facts, holder, earlier);
            let (addr, handle) = spawn_child(parent, kind, span, make);
            (AnyChild::LeaseRenewer(addr), handle, pulse)
        }
        ChildKind::LogTail => {
            let pulse = Pulse::new(log_tail::PULSE_LIMIT);
            let beat = pulse.clone();
            let ears = Ears { lines: ctx.address().recipient(), deliverables: ctx.address().recipient() };
            let begin = log::tail_start(session);
            let make = move |exit| LogTail::new(run, beat, exit, ears, begin);
            let (addr, handle) = spawn_child(parent, kind, span, make);
            (AnyChild::LogTail(addr), handle, pulse)
        }
        ChildKind::Snapshotter => {
            let pulse = Pulse::new(snapshotter::PULSE_LIMIT);
            let beat = pulse.clone();
            let (addr, handle) = spawn_child(parent, kind, span, move |_| Snapshotter::new(run, beat));
            (AnyChild::Snapshotter(addr), handle, pulse)
        }
        ChildKind::Terminal => {
            let pulse = Pulse::new(terminal::PULSE_LIMIT);
            let beat = pulse.clone();
            let wishes =
                |record: &SessionRecord| session.settings.wishes(Tool::Ttyd, &record.config, &record.host);
            let ttyd = session.ledger.read(wishes);
            let (addr, handle) = spawn_child(parent, kind, span, move |_| Terminal::new(run, beat, ttyd));
            (AnyChild::Terminal(addr), handle, pulse)
        }
    };
    session.children.put(child, handle, pulse);
}

/// The agent under the guard, if the record has one.
fn guarded_agent(record: &SessionRecord) -> Option<optio_host::AgentIdentity> {
    let run = record.run.as_ref()?;
    let agent = run.agent.as_ref()?;
    run.transport.is_some_and(Transport::is_guarded).then_some(agent.identity)
}

/// The login to watch over, if one was planted.
pub(super) fn watched(record: &SessionRecord) -> Option<Watched> {
    let run = record.run.as_ref()?;
    Some(Watched {
        seed: run.seed.clone()?,
        holder: run.holder.clone(),
        baseline: run.baseline.clone()?,
        may_save: !run.lease_lost,
    })
}
