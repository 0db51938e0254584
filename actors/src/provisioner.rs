//! Provisioner: sees to it that hosts have the programs sessions need; who waits for whom.
//!
//! One for a service, a child of the root. Equal wishes for one host are one flight, however many wait for it: its progress
//! goes to all of them, and so does its end. A flight is a task of its own, so nothing it does holds this actor up. It is
//! given up when the last one who waits stops waiting; an error is for those who waited, and the next request tries anew.
//! What happens to files is [`optio_host::provision`]'s.

mod audience;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use optio_host::Host;
use optio_host::provision::{ProvisionError, Tool, Wishes};
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

pub use optio_host::provision::Provided;

use self::audience::Audience;
use crate::events::Events;
use crate::settings::Settings;
use crate::supervision::{ChildKind, Observation, Observe, Pulse};

/// Flights at once: a host has two tools, and wishes differ little.
const FLIGHTS: usize = 64;

/// Who waits for one flight. A service has a thousand sessions.
const WAITING: usize = 4096;

/// How often it shows that it lives.
const BEAT: Duration = Duration::from_secs(5);

/// Silence after which it is taken for hung: it never does anything long itself.
pub(crate) const PULSE_LIMIT: Duration = Duration::from_secs(30);

/// Provides a tool on a host. Answered when it is there, or cannot be had.
#[derive(Message)]
#[rtype(result = "Result<Provided, ProvideError>")]
pub struct Provide {
    /// The host. Its name tells it from others.
    pub host: Arc<dyn Host>,
    /// What is needed.
    pub tool: Tool,
    /// How.
    pub wishes: Wishes,
    /// Whose events tell how far it is; nobody's without one.
    pub progress: Option<Events>,
    /// Cancelled when whoever asks has stopped waiting; [`provide`] does that when it is dropped.
    pub stop: CancellationToken,
}

/// Why a tool is not provided.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProvideError {
    /// It cannot be had; the same for everybody who waited.
    #[error(transparent)]
    Failed(Arc<ProvisionError>),
    /// Whoever asked has stopped waiting.
    #[error("nobody waits for {0} any more")]
    Stopped(Tool),
    /// The service is shutting down.
    #[error("{0} is not provided any more, because the service is shutting down")]
    Draining(Tool),
    /// More wait than can be right.
    #[error("too many wait for {0}; ask again later")]
    Crowded(Tool),
    /// It died over it. It is started again.
    #[error("the provisioner died while it provided {0}; ask again")]
    Died(Tool),
}

/// Has a tool provided. Whoever drops the future has stopped waiting.
pub async fn provide(
    provisioner: &Recipient<Provide>,
    host: &Arc<dyn Host>,
    tool: Tool,
    wishes: Wishes,
    progress: Option<Events>,
    stop: &CancellationToken,
) -> Result<Provided, ProvideError> {
    let stop = stop.child_token();
    let _waiting = stop.clone().drop_guard();
    let asking = Provide { host: host.clone(), tool, wishes, progress, stop: stop.clone() };
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(ProvideError::Stopped(tool)),
        provided = provisioner.send(asking) => provided.unwrap_or(Err(ProvideError::Died(tool))),
    }
}

/// Equal keys share a flight.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    host: String,
    tool: Tool,
    wishes: Wishes,
}

type Ended = Result<Provided, ProvideError>;

/// See the module.
pub struct Provisioner {
    settings: Arc<Settings>,
    pulse: Pulse,
    flights: BTreeMap<Key, Flight>,
    last_error: Option<String>,
    leaving: bool,
}

struct Flight {
    host: Arc<dyn Host>,
    audience: Audience,
    /// Cancelled when nobody waits, and with this actor.
    given_up: DropGuard,
}

impl Provisioner {
    /// A provisioner with nothing to do yet.
    pub(crate) fn new(settings: Arc<Settings>, pulse: Pulse) -> Self {
        Self { settings, pulse, flights: BTreeMap::new(), last_error: None, leaving: false }
    }

    /// Joins the flight of equal wishes, or begins one.
    fn join(
        &mut self,
        ask: Provide,
        ctx: &mut Context<Self>,
    ) -> Result<(Key, u64, oneshot::Receiver<Ended>), ProvideError> {
        let Provide { host, tool, wishes, progress, .. } = ask;
        if self.leaving {
            return Err(ProvideError::Draining(tool));
        }
        let key = Key { host: host.name().to_owned(), tool, wishes };
        if let Some(flight) = self.flights.get(&key) {
            if flight.audience.len() >= WAITING {
                return Err(ProvideError::Crowded(tool));
            }
            let (seat, ended) = flight.audience.join(progress);
            return Ok((key, seat, ended));
        }
        if self.flights.len() >= FLIGHTS {
            return Err(ProvideError::Crowded(tool));
        }
        let audience = Audience::default();
        let (seat, ended) = audience.join(progress);
        self.begin(key.clone(), host, audience, ctx);
        Ok((key, seat, ended))
    }

    fn begin(&mut self, key: Key, host: Arc<dyn Host>, audience: Audience, ctx: &mut Context<Self>) {
        let cancel = CancellationToken::new();
        let (settings, of) = (self.settings.clone(), key.clone());
        let task = actix_rt::spawn({
            let (host, audience, cancel) = (host.clone(), audience.clone(), cancel.clone());
            async move {
                let tell = move |progress| audience.tell(progress);
                settings.provision.provide(&*host, of.tool, &of.wishes, &tell, &cancel).await
            }
        });
        let of = key.clone();
        ctx.spawn(task.into_actor(self).map(move |ended, provisioner, ctx| {
            let ended = match ended {
                Ok(ended) => ended.map_err(|problem| ProvideError::Failed(Arc::new(problem))),
                Err(died) => {
                    warn!(tool = %of.tool, %died, "providing a program died");
                    Err(ProvideError::Died(of.tool))
                }
            };
            provisioner.ended(&of, &ended, ctx);
        }));
        self.flights.insert(key, Flight { host, audience, given_up: cancel.drop_guard() });
    }

    fn ended(&mut self, key: &Key, ended: &Ended, ctx: &mut Context<Self>) {
        let Some(flight) = self.flights.remove(key) else { return };
        let given_up =
            matches!(ended, Err(ProvideError::Failed(why)) if matches!(**why, ProvisionError::Cancelled(_)));
        if given_up && !self.leaving && flight.audience.len() > 0 {
            // They came while it was being given up for want of anybody.
            info!(tool = %key.tool, host = key.host, "providing begins again");
            flight.audience.lock().last = None;
            self.begin(key.clone(), flight.host, flight.audience, ctx);
            return;
        }
        self.last_error = ended.as_ref().err().filter(|_| !given_up).map(ToString::to_string);
        flight.audience.end(ended);
    }

    /// Somebody stopped waiting.
    fn left(&mut self, key: &Key, seat: u64) {
        let Some(flight) = self.flights.get_mut(key) else { return };
        if flight.audience.leave(seat) == 0 {
            info!(tool = %key.tool, host = key.host, "nobody waits for a program any more, providing it is given up");
            // Replacing the guard drops it, which cancels; the flight stays in the table until it has cleaned up.
            flight.given_up = CancellationToken::new().drop_guard();
        }
    }
}

impl Actor for Provisioner {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(BEAT, |provisioner, ctx| {
            let faults = provisioner.settings.faults.clone();
            let beating = async move { faults.at_root(ChildKind::Provisioner, "beat").await };
            ctx.wait(beating.into_actor(provisioner).map(|beat, provisioner, ctx| match beat {
                Ok(()) => provisioner.pulse.touch(),
                Err(injected) => {
                    warn!(%injected, "provisioner stops");
                    ctx.stop();
                }
            }));
        });
    }
}

impl Handler<Provide> for Provisioner {
    type Result = ResponseActFuture<Self, Result<Provided, ProvideError>>;

    fn handle(&mut self, ask: Provide, ctx: &mut Self::Context) -> Self::Result {
        self.pulse.touch();
        let (tool, stop) = (ask.tool, ask.stop.clone());
        let joined = self.join(ask, ctx);
        let waiting = async move {
            let (key, seat, ended) = joined.map_err(|problem| (None, problem))?;
            tokio::select! {
                biased;
                ended = ended => match ended {
                    Ok(ended) => ended.map_err(|problem| (None, problem)),
                    Err(_) => Err((None, ProvideError::Died(tool))),
                },
                () = stop.cancelled() => Err((Some((key, seat)), ProvideError::Stopped(tool))),
            }
        };
        Box::pin(waiting.into_actor(self).map(|ended, provisioner, _| {
            ended.map_err(|(left, problem)| {
                if let Some((key, seat)) = left {
                    provisioner.left(&key, seat);
                }
                problem
            })
        }))
    }
}

/// Gives every flight up and begins none any more: the service ends.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct StopProviding;

impl Handler<StopProviding> for Provisioner {
    type Result = ();

    fn handle(&mut self, _: StopProviding, _: &mut Self::Context) {
        self.leaving = true;
        for (key, flight) in &mut self.flights {
            flight.audience.end(&Err(ProvideError::Draining(key.tool)));
            flight.given_up = CancellationToken::new().drop_guard();
        }
    }
}

impl Handler<Observe> for Provisioner {
    type Result = Observation;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Observation {
        let flights: Vec<_> = self
            .flights
            .iter()
            .map(|(key, flight)| {
                let waiting = flight.audience.lock();
                let last = waiting.last.as_ref();
                json!({
                    "host": key.host,
                    "tool": key.tool,
                    "waiting": waiting.seats.len(),
                    "doing": last.map(|last| last.message.as_str()),
                    "percent": last.and_then(|last| last.percent),
                })
            })
            .collect();
        let phase = if flights.is_empty() { "idle" } else { "providing" };
        Observation {
            phase: phase.to_owned(),
            last_error: self.last_error.clone(),
            detail: json!({ "flights": flights }),
        }
    }
}
