//! The one verifier of a service: started with the root, started again when it dies, asked through the root, whose
//! address stays.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tracing::{Span, error, warn};

use super::{REST_LIMIT, Sessions};
use crate::error::SessionError;
use crate::settings::Settings;
use crate::supervision::{ChildExit, ChildHandle, ChildId, ChildKind, spawn_child};
use crate::verifier::{Checked, FinishChecks, Mend, Verifier, VerifySeed};

/// The wait before a verifier that died is started again: one that dies at once must not take a core.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// The verifier, while there is one.
#[derive(Default)]
pub(super) struct TheVerifier(Option<(Addr<Verifier>, ChildHandle)>);

impl TheVerifier {
    pub(super) fn start(&mut self, settings: &Arc<Settings>, ctx: &mut Context<Sessions>) {
        let settings = settings.clone();
        let parent = ctx.address().recipient();
        self.0 =
            Some(spawn_child(parent, ChildKind::Verifier, Span::none(), move |_| Verifier::new(settings)));
    }

    pub(super) fn is(&self, id: ChildId) -> bool {
        self.0.as_ref().is_some_and(|(_, handle)| handle.id == id)
    }

    /// Begins no check any more, and ends when the last one has, or when that takes too long: what is not home by then
    /// lies in the spool.
    pub(super) fn finish(&self) -> impl Future<Output = ()> + use<> {
        let verifier = self.0.as_ref().map(|(addr, _)| addr.clone());
        async move {
            let Some(verifier) = verifier else { return };
            if let Err(MailboxError::Timeout) = verifier.send(FinishChecks).timeout(REST_LIMIT).await {
                warn!("checks of logins are still under way, they are left to the next start");
            }
        }
    }

    fn ask<M>(&self, question: M) -> Option<actix::dev::Request<Verifier, M>>
    where
        Verifier: Handler<M>,
        M: Message + Send + 'static,
        M::Result: Send,
        <Verifier as Actor>::Context: actix::dev::ToEnvelope<Verifier, M>,
    {
        self.0.as_ref().map(|(addr, _)| addr.send(question))
    }
}

impl Sessions {
    pub(super) fn verifier_died(&mut self, exit: &ChildExit, ctx: &mut Context<Self>) {
        error!(reason = %exit.reason, "verifier died, it is started again");
        self.verifier = TheVerifier::default();
        ctx.run_later(RESTART_PAUSE, |root, ctx| {
            if !root.draining {
                root.verifier.start(&root.settings, ctx);
            }
        });
    }
}

impl Handler<VerifySeed> for Sessions {
    type Result = ResponseActFuture<Self, Result<Checked, SessionError>>;

    fn handle(&mut self, verify: VerifySeed, _: &mut Self::Context) -> Self::Result {
        let asking = self.verifier.ask(verify);
        let answer = async move {
            let gone = || SessionError::NoAnswer { what: "the verifier" };
            asking.ok_or_else(gone)?.await.map_err(|_| gone())?
        };
        Box::pin(answer.into_actor(self))
    }
}

impl Handler<Mend> for Sessions {
    type Result = ResponseActFuture<Self, bool>;

    fn handle(&mut self, mend: Mend, _: &mut Self::Context) -> Self::Result {
        let asking = self.verifier.ask(mend);
        let answer = async move {
            match asking {
                // A verifier that dies mends nothing.
                Some(asking) => asking.await.unwrap_or(false),
                None => false,
            }
        };
        Box::pin(answer.into_actor(self))
    }
}
