//! The one provisioner of a service: started with the root, started again when it dies or hangs, asked through the root,
//! whose address stays.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;
use tracing::{Span, error};

use super::Sessions;
use crate::provisioner::{PULSE_LIMIT, Provide, ProvideError, Provided, Provisioner, StopProviding};
use crate::settings::Settings;
use crate::supervision::{
    ChildExit, ChildHandle, ChildId, ChildKind, Observation, Observe, Pulse, spawn_child,
};

/// The wait before one that died is started again: one that dies at once must not take a core.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// How often its pulse is felt.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long nothing must be felt before it is killed. After a standstill of the whole process many looks may come before its
/// pulse does, but no time passes between them.
const CERTAIN_AFTER: Duration = Duration::from_secs(5);

/// The provisioner, while there is one.
#[derive(Default)]
pub(super) struct TheProvisioner {
    child: Option<(Addr<Provisioner>, ChildHandle, Pulse)>,
    lost_since: Option<Instant>,
}

impl TheProvisioner {
    pub(super) fn start(&mut self, settings: &Arc<Settings>, ctx: &mut Context<Sessions>) {
        let (settings, pulse) = (settings.clone(), Pulse::new(PULSE_LIMIT));
        let (parent, beat) = (ctx.address().recipient(), pulse.clone());
        let make = move |_| Provisioner::new(settings, beat);
        let (addr, handle) = spawn_child(parent, ChildKind::Provisioner, Span::none(), make);
        *self = Self { child: Some((addr, handle, pulse)), lost_since: None };
    }

    pub(super) fn is(&self, id: ChildId) -> bool {
        self.child.as_ref().is_some_and(|(_, handle, _)| handle.id == id)
    }

    /// Gives up what is under way: whoever waits for it shall end too.
    pub(super) fn stop(&self) {
        if let Some((addr, ..)) = &self.child {
            addr.do_send(StopProviding);
        }
    }
}

impl Sessions {
    /// Kills a provisioner that hangs; its exit has it started again.
    pub(super) fn look_after_the_provisioner(ctx: &mut Context<Self>) {
        ctx.run_interval(LOOK_EVERY, |root, _| {
            let the = &mut root.provisioner;
            let Some((_, handle, pulse)) = &mut the.child else { return };
            if !pulse.is_lost() {
                the.lost_since = None;
                return;
            }
            if the.lost_since.get_or_insert_with(Instant::now).elapsed() >= CERTAIN_AFTER {
                // Killed once is enough.
                pulse.quiet_for(PULSE_LIMIT);
                error!("provisioner gives no sign of life, it is killed");
                handle.kill();
            }
        });
    }

    pub(super) fn provisioner_died(&mut self, exit: &ChildExit, ctx: &mut Context<Self>) {
        error!(reason = %exit.reason, "provisioner died, it is started again");
        self.provisioner = TheProvisioner::default();
        ctx.run_later(RESTART_PAUSE, |root, ctx| {
            if !root.draining {
                root.provisioner.start(&root.settings, ctx);
            }
        });
    }
}

impl Handler<Provide> for Sessions {
    type Result = ResponseActFuture<Self, Result<Provided, ProvideError>>;

    fn handle(&mut self, ask: Provide, _: &mut Self::Context) -> Self::Result {
        let tool = ask.tool;
        let asking = self.provisioner.child.as_ref().map(|(addr, ..)| addr.send(ask));
        let answer = async move {
            let gone = ProvideError::Died(tool);
            match asking {
                Some(asking) => asking.await.unwrap_or(Err(gone)),
                None => Err(gone),
            }
        };
        Box::pin(answer.into_actor(self))
    }
}

/// What the provisioner does; `None` when there is none just now.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Option<Observation>")]
pub struct ObserveProvisioner;

impl Handler<ObserveProvisioner> for Sessions {
    type Result = ResponseActFuture<Self, Option<Observation>>;

    fn handle(&mut self, _: ObserveProvisioner, _: &mut Self::Context) -> Self::Result {
        let asking = self.provisioner.child.as_ref().map(|(addr, ..)| addr.send(Observe).timeout(LOOK_EVERY));
        let answer = async move { asking?.await.ok() };
        Box::pin(answer.into_actor(self))
    }
}
