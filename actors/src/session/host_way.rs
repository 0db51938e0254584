//! A host that goes away and comes back: what a session shows of it, what waits for it, and how long.
//!
//! Whoever finds the way broken first, the link tells of it last: a child may have exited for it already. Such an exit is
//! no fault of the child's, before and after the link has told.

use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use tracing::{Instrument, info, warn};

use super::Session;
use super::children::Front;
use super::end::Cause;
use super::phase::Phase;
use super::record::HostDown;
use crate::cred_watcher::CheckLogin;
use crate::error::SessionError;
use crate::host_link::HostFact;
use crate::lease_renewer::{LetExpire, RenewNow};
use crate::log_tail::LookAtLog;
use crate::process::{CheckAgent, LookAfterLoss};
use crate::settings::{LEASED_KILL_AFTER, LEASED_TERM_AFTER};
use crate::supervision::{ChildExit, ChildKind, ExitReason};
use crate::teardown::{HostWay, Way};
use crate::terminal::LoseViewers;

/// Exits of children this long before a loss was told were its doing: a silent line is found out after 15 s, and what goes
/// over it gives up a little earlier or later.
const BEFORE_IT_WAS_TOLD: Duration = Duration::from_secs(20);

/// How long everything else waits for the first look at the login. A save may take longer, and then goes on beside it: the
/// guard's heartbeat cannot wait.
const LOGIN_FIRST: Duration = Duration::from_secs(5);

/// What a session knows of the way to its host beside what is on record.
#[derive(Default)]
pub(super) struct HostLoss {
    way: watch::Sender<HostWay>,
    /// Runs out when the agent's guard has ended it.
    clock: Option<SpawnHandle>,
    /// The lease was left to expire.
    pub(super) lease_left: bool,
}

impl HostLoss {
    /// The way, for whoever waits for it.
    pub(super) fn way(&self) -> watch::Receiver<HostWay> {
        self.way.subscribe()
    }

    pub(super) fn losses(&self) -> u64 {
        self.way.borrow().losses
    }

    fn is_away(&self) -> bool {
        self.way.borrow().way != Way::Open
    }
}

impl Handler<HostFact> for Session {
    type Result = ();

    fn handle(&mut self, fact: HostFact, ctx: &mut Self::Context) {
        if self.detaching {
            return;
        }
        match fact {
            HostFact::WentDown { since, code, why } => self.host_went_down(since, code, why, ctx),
            HostFact::CameBack => self.host_came_back(ctx),
        }
    }
}

impl Session {
    fn host_went_down(&mut self, since: Timestamp, code: &str, why: String, ctx: &mut Context<Self>) {
        let known = self.ledger.read(|record| record.host_down.as_ref().map(|down| down.since));
        let (first, since) = (known.is_none(), known.unwrap_or(since));
        let down = HostDown { since, code: code.to_owned(), why };
        self.ledger.edit(|record| record.host_down = Some(down.clone()));
        if first {
            let host = self.run.host.name();
            warn!(parent: &self.span, host, code, why = down.why, "host went down");
            self.loss.way.send_modify(|way| {
                way.way = Way::Away;
                way.losses += 1;
            });
            self.children.forgive(BEFORE_IT_WAS_TOLD);
            self.events.tell(
                "host.down",
                &json!({ "host": host, "since": since, "code": code, "reason": down.why }),
            );
            if let Front::Terminal(terminal) = self.crew(ctx).front {
                terminal.do_send(LoseViewers);
            }
            let limit = self.guard_limit();
            self.loss.clock = Some(ctx.run_later(limit, Self::the_agent_has_been_ended));
        }
        self.save(ctx);
        self.publish();
    }

    /// How long the agent lives when nobody reaches its guard. Counted from when the loss was found out: no heartbeat can
    /// have arrived after that.
    fn guard_limit(&self) -> Duration {
        let leased = self.ledger.read(|r| r.run.as_ref().is_some_and(|run| run.seed.is_some()));
        match leased {
            true => LEASED_KILL_AFTER,
            false => self.settings.orphan_ttl + (LEASED_KILL_AFTER - LEASED_TERM_AFTER),
        }
    }

    fn the_agent_has_been_ended(&mut self, ctx: &mut Context<Self>) {
        self.loss.clock = None;
        let Some(HostDown { since, code, .. }) = self.ledger.read(|record| record.host_down.clone()) else {
            return;
        };
        self.loss.lease_left = true;
        self.crew(ctx).renewer.do_send(LetExpire);
        let host = self.run.host.name();
        let reason = format!("host {host} is out of reach since {since}; its guard has ended the agent");
        self.end(Cause { code: Some(code), ..Cause::failed(reason) }, ctx);
    }

    fn host_came_back(&mut self, ctx: &mut Context<Self>) {
        if let Some(clock) = self.loss.clock.take() {
            ctx.cancel_future(clock);
        }
        let down = self.ledger.edit(|record| record.host_down.take());
        let Some(HostDown { since, code, why }) = down else { return };
        let host = self.run.host.name();
        info!(parent: &self.span, host, %since, "host is back");
        self.events.tell("host.up", &json!({ "host": host, "since": since, "code": code, "reason": why }));
        self.save(ctx);
        self.publish();
        let crew = self.crew(ctx);
        // Also what a teardown writes home needs its lease, if it is still to be had.
        self.loss.lease_left = false;
        crew.renewer.do_send(RenewNow);
        let looking = crew.watcher.send(CheckLogin);
        let first = async move {
            if tokio::time::timeout(LOGIN_FIRST, looking).await.is_err() {
                warn!("login is still being looked at");
            }
        };
        let losses = self.loss.losses();
        ctx.spawn(first.instrument(self.span.clone()).into_actor(self).map(move |(), session, ctx| {
            if session.loss.losses() == losses {
                session.go_on(ctx);
            }
        }));
    }

    /// Takes up what the loss had broken, the login being safe.
    fn go_on(&mut self, ctx: &mut Context<Self>) {
        self.loss.way.send_modify(|way| way.way = Way::Open);
        let parked = self.children.take_parked();
        let crew = self.crew(ctx);
        crew.process.do_send(LookAfterLoss);
        if self.phase() != Phase::Live || self.beginning_under_way || self.detaching {
            return;
        }
        // The renewal that was asked for may have been confirmed before there was anybody to touch the heartbeat.
        crew.process.do_send(crate::process::TouchHeartbeat { sent: self.lease_confirmed });
        crew.process.do_send(CheckAgent);
        crew.log_tail.do_send(LookAtLog);
        for kind in parked {
            self.after_restart(kind, ctx);
        }
    }

    /// Why a request cannot be done now, if its host is out of reach.
    pub(super) fn host_is_reached(&self) -> Result<(), SessionError> {
        let down = self.ledger.read(|record| record.host_down.clone());
        match down {
            None => Ok(()),
            Some(HostDown { since, code, why }) => Err(SessionError::HostDown {
                id: self.id().clone(),
                host: self.run.host.name().to_owned(),
                since,
                code,
                why,
            }),
        }
    }

    /// Whether the host is out of reach, as far as anybody knows: the link's word may be on its way.
    pub(super) fn host_is_away(&self) -> bool {
        self.loss.is_away() || self.run.host_is_away()
    }

    /// An exit for which the child is not to blame.
    pub(super) fn is_the_hosts_doing(&self, exit: &ChildExit) -> bool {
        let on_the_host = matches!(exit.kind, ChildKind::ConversationReader | ChildKind::LogTail);
        on_the_host && matches!(exit.reason, ExitReason::Failed(_)) && self.host_is_away()
    }

    /// The way that a teardown waits for; always open for a run that has nothing on its host.
    pub(super) fn way_for_the_end(&self) -> watch::Receiver<HostWay> {
        match self.run.never_reached_its_host() {
            true => watch::Sender::default().subscribe(),
            false => self.loss.way(),
        }
    }

    /// Waits for the host no longer: the run is over as far as it can be without it. Answers whether it was waited for.
    pub(super) fn give_the_host_up(&mut self) -> bool {
        let since = self.ledger.read(|record| record.host_down.as_ref().map(|down| down.since));
        let (Some(since), true) = (since, self.loss.is_away()) else { return false };
        let host = self.run.host.name();
        let why = format!("host {host} is out of reach since {since}, and is not waited for any more");
        self.loss.way.send_modify(|way| way.way = Way::GivenUp(why));
        true
    }
}
