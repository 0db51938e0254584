//! Verifier: finds out whether stored logins are good, keeps idle ones fresh, and mends those that were left in doubt.
//!
//! One for a service, a child of the root. A check of a seed is a task of its own that ends by itself, whatever becomes
//! of this actor or of other checks: it may have the only copy of a token. This actor sees to it that there is one at a
//! time for each seed and few in all; the lease sees to the rest (INV-32).

mod check;
mod held;
mod mend;
mod notes;
mod probe;
mod save;
mod walk;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;
use optio_oauth::Verdict;
use optio_store::{SeedId, StoreError, Want};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tracing::{info, warn};

pub use notes::LastVerdict;
pub(crate) use notes::{INTENT, Intent};
pub use probe::{PROBES, Probes};

use crate::error::SessionError;
use crate::settings::Settings;
use crate::supervision::ChildKind;
use walk::{Stepped, Walk};

/// Checks that are at work at once: the login server limits whoever asks too much, and one that hangs must not stop all.
const AT_ONCE: usize = 4;

/// Checks that are at work or wait for their turn. Beyond it the answer is busy.
const FLIGHTS: usize = 64;

/// Who waits for one check. Beyond it the answer is busy too.
const WAITING: usize = 256;

/// The wait before it is tried again to bring home what an earlier check left. A store that is back is noticed within it.
const LEFT_PAUSE: Duration = Duration::from_secs(60);

/// Seeds that are tried for one wish for a mend: a launch waits for it.
const MEND_TRIES: usize = 3;

/// Finds out whether stored logins are good.
pub struct Verifier {
    settings: Arc<Settings>,
    /// Who waits for which check.
    flights: BTreeMap<SeedId, Vec<oneshot::Sender<Ended>>>,
    turns: Arc<Semaphore>,
    /// Until when the login server wants to be left alone. What a person asks for is asked nevertheless.
    resting_until: Option<Instant>,
    walk: Walk,
    leaving: bool,
    /// Who waits for the last check to end.
    left: Vec<oneshot::Sender<()>>,
}

/// How a check ended, for everybody who waited for it.
type Ended = Result<Checked, StoreError>;

/// Why a seed is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// Somebody wants to know, or needs the seed: also a dirty or a parked one is taken.
    Asked,
    /// It is due: only a clean one is taken.
    InPassing,
    /// An earlier check asked codex and did not come to its end: what it left is brought home, and nobody is asked.
    Leftover,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The verdict.
    pub verdict: Verdict,
    /// When it was made.
    pub at: Timestamp,
    /// How long to leave the login server alone.
    wait: Option<Duration>,
}

impl Checked {
    fn unwritten(verdict: Verdict, at: Timestamp) -> Self {
        Self { verdict, at, wait: None }
    }
}

impl Verifier {
    /// A verifier with nothing to do yet.
    pub fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            flights: BTreeMap::new(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            resting_until: None,
            walk: Walk::default(),
            leaving: false,
            left: Vec::new(),
        }
    }

    /// Joins the check of a seed that is under way, or begins one.
    fn check(
        &mut self,
        seed: SeedId,
        occasion: Occasion,
        ctx: &mut Context<Self>,
    ) -> Result<oneshot::Receiver<Ended>, SessionError> {
        let (tell, told) = oneshot::channel();
        let crowded = || "too many checks are asked for".to_owned();
        if let Some(waiting) = self.flights.get_mut(&seed) {
            if waiting.len() >= WAITING {
                return Err(SessionError::SeedBusy { id: seed, why: crowded() });
            }
            waiting.push(tell);
            return Ok(told);
        }
        if self.leaving {
            return Err(SessionError::Draining);
        }
        if self.flights.len() >= FLIGHTS {
            return Err(SessionError::SeedBusy { id: seed, why: crowded() });
        }
        self.flights.insert(seed.clone(), vec![tell]);
        let (settings, turns, id) = (self.settings.clone(), self.turns.clone(), seed.clone());
        let task = actix_rt::spawn(async move {
            // The semaphore is never closed.
            let _turn = turns.acquire_owned().await;
            Box::pin(check::verify(settings, id, occasion)).await
        });
        ctx.spawn(task.into_actor(self).map(move |ended, verifier, ctx| {
            let ended = ended.unwrap_or_else(|died| {
                let why = format!("the check died: {died}");
                Err(StoreError::Unavailable { what: "checking a login", why })
            });
            verifier.ended(&seed, ended, occasion, ctx);
        }));
        Ok(told)
    }

    /// Goes on with what an earlier process, or check, left. What is not home yet is tried again later.
    fn take_up(&mut self, ctx: &mut Context<Self>) {
        if self.leaving {
            return;
        }
        let settings = self.settings.clone();
        let looking = async move { settings.probes.left(&settings).await };
        ctx.spawn(looking.into_actor(self).map(|left, verifier, ctx| match left {
            Ok(left) => {
                for seed in left {
                    info!(%seed, "what a check left of a login is taken up");
                    // Refused at the limit: whoever checks it next goes on with it. Nobody waits for the answer.
                    let _ = verifier.check(seed, Occasion::Leftover, ctx);
                }
            }
            Err(problem) => {
                warn!(%problem, "homes of earlier checks cannot be looked through yet");
                ctx.run_later(LEFT_PAUSE, Self::take_up);
            }
        }));
    }

    fn ended(&mut self, seed: &SeedId, ended: Ended, occasion: Occasion, ctx: &mut Context<Self>) {
        let undone = match &ended {
            Ok(checked) => matches!(checked.verdict, Verdict::Busy(_)),
            Err(_) => true,
        };
        if occasion == Occasion::Leftover && undone {
            ctx.run_later(LEFT_PAUSE, Self::take_up);
        }
        match &ended {
            Ok(checked) => {
                info!(%seed, verdict = checked.verdict.name(), reason = checked.verdict.reason(), "login checked");
                if let Some(wait) = checked.wait {
                    self.resting_until = Some(Instant::now() + wait);
                }
            }
            Err(problem) => warn!(%seed, %problem, "login could not be checked"),
        }
        for waiting in self.flights.remove(seed).unwrap_or_default() {
            // Whoever stopped waiting reads the verdict from the seed.
            let _ = waiting.send(ended.clone());
        }
        if self.flights.is_empty() {
            self.left.clear();
        }
    }

    fn is_resting(&self) -> bool {
        self.resting_until.is_some_and(|until| Instant::now() < until)
    }

    fn step(&mut self, ctx: &mut Context<Self>) {
        if self.leaving {
            return;
        }
        if self.is_resting() {
            ctx.run_later(Walk::pause(&Stepped::Nothing), Self::step);
            return;
        }
        let (walk, settings) = (std::mem::take(&mut self.walk), self.settings.clone());
        let stepping = async move { walk.step(&settings).await };
        ctx.spawn(stepping.into_actor(self).map(|(walk, found), verifier, ctx| {
            verifier.walk = walk;
            let pause = Walk::pause(&found);
            if let Stepped::Due(seed) = found {
                // Refused while leaving or at the limit: the next walk comes by again. Nobody waits for the answer.
                let _ = verifier.check(seed, Occasion::InPassing, ctx);
            }
            ctx.run_later(pause, Self::step);
        }));
    }
}

impl Actor for Verifier {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.take_up(ctx);
        if self.settings.refresh_idle {
            ctx.run_later(Walk::pause(&Stepped::Nothing), Self::step);
        }
    }
}

/// Checks one seed, and waits for the verdict. A check of it that is under way answers this too.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Checked, SessionError>")]
pub struct VerifySeed(pub SeedId);

impl Handler<VerifySeed> for Verifier {
    type Result = ResponseActFuture<Self, Result<Checked, SessionError>>;

    fn handle(&mut self, VerifySeed(seed): VerifySeed, _: &mut Self::Context) -> Self::Result {
        let faults = self.settings.faults.clone();
        let seam = async move { faults.at_root(ChildKind::Verifier, "verify").await };
        Box::pin(seam.into_actor(self).then(move |seam, verifier, ctx| {
            let begun = match seam {
                Ok(()) => verifier.check(seed, Occasion::Asked, ctx),
                Err(_) => Err(SessionError::NoAnswer { what: "the verifier" }),
            };
            async move { heard(begun?).await }.into_actor(verifier)
        }))
    }
}

async fn heard(told: oneshot::Receiver<Ended>) -> Result<Checked, SessionError> {
    match told.await {
        Ok(Ok(checked)) => Ok(checked),
        Ok(Err(problem)) => Err(problem.into()),
        Err(_) => Err(SessionError::NoAnswer { what: "the verifier" }),
    }
}

/// Says that nothing that is wanted is free. Has those in doubt checked that may be by now, until one is good, and
/// answers whether one is.
#[derive(Debug, Clone, Message)]
#[rtype(result = "bool")]
pub struct Mend {
    /// What is wanted.
    pub want: Want,
}

impl Handler<Mend> for Verifier {
    type Result = ResponseActFuture<Self, bool>;

    fn handle(&mut self, Mend { want }: Mend, ctx: &mut Self::Context) -> Self::Result {
        if self.leaving || self.is_resting() {
            return Box::pin(async { false }.into_actor(self));
        }
        let (settings, this) = (self.settings.clone(), ctx.address());
        let under_way: Vec<_> = self.flights.keys().cloned().collect();
        let mending = async move {
            let found = match mend::candidates(&settings, &want, |seed| under_way.contains(seed)).await {
                Ok(found) => found,
                Err(problem) => {
                    warn!(%problem, "seeds in doubt cannot be found");
                    return false;
                }
            };
            for seed in found.into_iter().take(MEND_TRIES) {
                info!(%seed, "login in doubt is checked because it is needed");
                let checked = this.send(VerifySeed(seed)).await;
                if matches!(&checked, Ok(Ok(checked)) if checked.verdict.alive() == Some(true)) {
                    return true;
                }
            }
            false
        };
        Box::pin(mending.into_actor(self))
    }
}

/// Begins nothing any more; answered when the last check has ended.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct FinishChecks;

impl Handler<FinishChecks> for Verifier {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: FinishChecks, _: &mut Self::Context) -> Self::Result {
        self.leaving = true;
        self.settings.probes.stop();
        let (keep, over) = oneshot::channel::<()>();
        if !self.flights.is_empty() {
            self.left.push(keep);
        }
        let leaving = async move {
            // Dropping the sender is the news.
            let _ = over.await;
        };
        Box::pin(leaving.into_actor(self))
    }
}
