//! CredWatcher: sees `auth.json` change, and brings the new login home.

mod save;

use std::time::Duration;

use actix::prelude::*;
use futures_util::Stream;
use optio_host::Watch;
use optio_store::{Holder, SeedId, SeedVersion};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::session::RunContext;
use crate::supervision::{ChildKind, Observation, Observe, Pulse, beat};
use crate::teardown::{Finish, QuietWatcher, SaveBack, StepError, StepResult};
use save::{Saving, Trouble};

/// The login's place below the workdir.
pub(crate) const AUTH_JSON: &str = "home/.codex/auth.json";

/// A look without being woken, in case a wake-up was missed (an inotify queue overran, a watch broke).
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long a save may take before it is tried again (T-143).
const SAVE_LIMIT: Duration = Duration::from_secs(30);

/// Silence past this is loss: one save's limit and one look.
pub(crate) const PULSE_LIMIT: Duration = Duration::from_secs(40);

/// The first wait after a save that failed; doubles to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);

/// The longest wait after a save that failed.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What the store is known to have: which version, and the fingerprint of its `auth.json`. One baseline for the
/// watcher and the final save (T-146); it stands in the run's record, so that a restart begins where it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// The version that the workdir's login was derived from.
    pub version: SeedVersion,
    /// SHA-256 of the login that version holds, in hex.
    pub fingerprint: Option<String>,
    /// Whose login it is; another account is never saved over it (T-132).
    pub account_id: Option<String>,
}

/// The seed a watcher saves to.
#[derive(Debug, Clone)]
pub struct Watched {
    /// The seed.
    pub seed: SeedId,
    /// Who may write it.
    pub holder: Holder,
    /// What it has.
    pub baseline: Baseline,
    /// False once the lease was lost: from then on nothing is written (INV-07).
    pub may_save: bool,
}

/// Watches over one run's login. Single-use tokens make each missed change a lost login, so it listens to the file,
/// looks again every few seconds, and never lets go of a change it could not save.
pub struct CredWatcher {
    run: RunContext,
    session: Recipient<CredFact>,
    watched: Option<Watched>,
    saving: Option<Instant>,
    /// The file is watched, or a watch is being set up.
    armed: bool,
    quiet: bool,
    /// Something may have changed while a save was running.
    look_again: bool,
    /// Who waits for the save that is under way.
    idle: Vec<oneshot::Sender<()>>,
    retry: Duration,
    pulse: Pulse,
    saves: u64,
    last_error: Option<String>,
}

impl CredWatcher {
    /// A watcher for this run; without a seed it has nothing to do and says so. A `quiet` one takes the place of one
    /// that died during a teardown: it saves only when told.
    pub fn new(
        run: RunContext,
        pulse: Pulse,
        session: Recipient<CredFact>,
        watched: Option<Watched>,
        quiet: bool,
    ) -> Self {
        Self {
            run,
            session,
            watched,
            saving: None,
            armed: false,
            quiet,
            look_again: false,
            idle: Vec::new(),
            retry: RETRY_MIN,
            pulse,
            saves: 0,
            last_error: None,
        }
    }

    fn arm(&mut self, ctx: &mut Context<Self>) {
        if self.armed || self.quiet {
            return;
        }
        if self.run.host_is_away() {
            // Its session tells when it is back, and the next look would find out too.
            return self.later(LOOK_EVERY, ctx, Self::arm);
        }
        self.armed = true;
        let run = self.run.clone();
        let arming = async move {
            run.step(ChildKind::CredWatcher, "watch").await.map_err(|injected| injected.to_string())?;
            let path = RunContext::in_workdir(AUTH_JSON);
            run.host.watch(&run.dir, &path).await.map_err(|problem| problem.to_string())
        };
        ctx.spawn(arming.into_actor(self).map(|armed, watcher, ctx| match armed {
            Ok(watch) => {
                let looking = wakes(watch).into_actor(watcher).map(|(), watcher, ctx| watcher.look(ctx));
                ctx.spawn(looking.finish().map(|(), watcher, ctx| {
                    debug!("watch ended, it is set up again");
                    watcher.armed = false;
                    watcher.later(RETRY_MIN, ctx, Self::arm);
                }));
                // What changed before the watch was there.
                watcher.look(ctx);
            }
            Err(why) => {
                warn!(why, "login is not watched, only looked at");
                watcher.last_error = Some(why);
                watcher.armed = false;
                watcher.later(LOOK_EVERY, ctx, Self::arm);
            }
        }));
    }

    fn later(&self, after: Duration, ctx: &mut Context<Self>, what: fn(&mut Self, &mut Context<Self>)) {
        if !self.quiet {
            ctx.run_later(after, what);
        }
    }

    /// Starts a save unless one runs; what changes meanwhile is looked at afterwards.
    fn look(&mut self, ctx: &mut Context<Self>) {
        self.pulse.touch();
        let Some(watched) = self.watched.clone() else {
            return;
        };
        if self.quiet || !watched.may_save || self.run.host_is_away() {
            return;
        }
        if self.saving.is_some() {
            self.look_again = true;
            return;
        }
        self.saving = Some(Instant::now());
        self.look_again = false;
        let saving = Saving::new(self.run.clone(), watched, "watch");
        ctx.spawn(saving.run(SAVE_LIMIT).into_actor(self).map(|ended, watcher, ctx| {
            watcher.saving = None;
            for waiting in watcher.idle.drain(..) {
                // Whoever stopped waiting has decided without us.
                let _ = waiting.send(());
            }
            watcher.pulse.touch();
            let failed = ended.is_err();
            watcher.note(ended);
            if failed {
                let after = watcher.retry;
                watcher.retry = (after * 2).min(RETRY_MAX);
                watcher.later(after, ctx, Self::look);
            } else {
                watcher.retry = RETRY_MIN;
                if watcher.look_again {
                    watcher.look(ctx);
                }
            }
        }));
    }

    /// Takes over what a save found, for the next one and for the session's record.
    fn note(&mut self, ended: Result<save::Saved, Trouble>) {
        match ended {
            Ok(save::Saved::Unchanged) => self.last_error = None,
            Ok(save::Saved::Stored { baseline }) => {
                self.saves += 1;
                self.last_error = None;
                if let Some(watched) = &mut self.watched {
                    watched.baseline = baseline.clone();
                }
                self.session.do_send(CredFact::Saved { baseline });
            }
            Ok(save::Saved::NotALogin { why }) => {
                if self.last_error.as_ref() != Some(&why) {
                    self.session.do_send(CredFact::Attention { why: why.clone() });
                }
                self.last_error = Some(why);
            }
            Err(Trouble::NotHolder) => {
                if let Some(watched) = &mut self.watched {
                    watched.may_save = false;
                }
                self.last_error = Some("the seed has another holder".to_owned());
                self.session.do_send(CredFact::NotHolder);
            }
            Err(trouble) => {
                warn!(%trouble, "login is not saved yet");
                self.last_error = Some(trouble.to_string());
            }
        }
    }
}

/// The wake-ups of a watch, until it ends.
fn wakes(watch: Watch) -> impl Stream<Item = ()> {
    futures_util::stream::unfold(
        watch,
        |mut watch| async move { watch.changed().await.map(|()| ((), watch)) },
    )
}

impl Actor for CredWatcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.watched.is_some() && !self.quiet {
            self.arm(ctx);
        }
        ctx.run_interval(LOOK_EVERY, |watcher, ctx| watcher.look(ctx));
        beat(ctx, ChildKind::CredWatcher, self.run.clone());
    }
}

/// What the watcher tells its session.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub enum CredFact {
    /// The store has this login now.
    Saved {
        /// What it has.
        baseline: Baseline,
    },
    /// The store says that this run does not hold the seed.
    NotHolder,
    /// A person should look at the login.
    Attention {
        /// Why.
        why: String,
    },
}

/// Begins to watch over a seed's login. Sent once, on launch, after the login was planted and before the agent starts.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct WatchLogin(pub Watched);

impl Handler<WatchLogin> for CredWatcher {
    type Result = ();

    fn handle(&mut self, WatchLogin(watched): WatchLogin, ctx: &mut Self::Context) {
        self.watched = Some(watched);
        self.arm(ctx);
    }
}

/// Says that the lease is lost: nothing is saved from now on (T-156).
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct StopSaving;

impl Handler<StopSaving> for CredWatcher {
    type Result = ();

    fn handle(&mut self, _: StopSaving, _: &mut Self::Context) {
        if let Some(watched) = &mut self.watched {
            watched.may_save = false;
        }
    }
}

/// Looks at the login now, for the host is back after a loss; answered when what was found is saved, or could not be.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct CheckLogin;

impl Handler<CheckLogin> for CredWatcher {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: CheckLogin, ctx: &mut Self::Context) -> Self::Result {
        self.retry = RETRY_MIN;
        if self.watched.is_some() {
            self.arm(ctx);
        }
        self.look(ctx);
        let (tell, idle) = oneshot::channel();
        match self.saving {
            Some(_) => self.idle.push(tell),
            None => drop(tell),
        }
        Box::pin(async move {
            // An error means that no save is under way.
            let _ = idle.await;
        })
    }
}

impl Handler<QuietWatcher> for CredWatcher {
    type Result = ResponseActFuture<Self, StepResult>;

    fn handle(&mut self, _: QuietWatcher, _: &mut Self::Context) -> Self::Result {
        self.quiet = true;
        let (tell, idle) = oneshot::channel();
        match self.saving {
            Some(_) => self.idle.push(tell),
            None => drop(tell),
        }
        let watched = self.watched.is_some();
        let run = self.run.clone();
        let quieting = async move {
            run.step(ChildKind::CredWatcher, "quiet_watcher").await.map_err(StepError::new)?;
            // An error means that no save is under way: either none was, or its end dropped the sender.
            let _ = idle.await;
            Ok(match watched {
                true => Finish::Done("no save is under way".to_owned()),
                false => Finish::Skipped("no login is watched".to_owned()),
            })
        };
        Box::pin(quieting.into_actor(self))
    }
}

impl Handler<SaveBack> for CredWatcher {
    type Result = ResponseActFuture<Self, StepResult>;

    fn handle(&mut self, save: SaveBack, _: &mut Self::Context) -> Self::Result {
        self.quiet = true;
        let Some(watched) = self.watched.clone() else {
            return Box::pin(async { Ok(Finish::Skipped("no seed is in use".to_owned())) }.into_actor(self));
        };
        debug!(quiet = ?save.quiet, "final save-back");
        let may_save = watched.may_save;
        let run = self.run.clone();
        let saving = async move {
            run.step(ChildKind::CredWatcher, "save_back").await.map_err(Trouble::failed)?;
            let saving = Saving::new(run, watched, "final");
            if may_save { saving.run_to_the_end().await } else { saving.spool_only().await }
        };
        Box::pin(saving.into_actor(self).map(|ended: Result<save::Saved, Trouble>, watcher, _| {
            let result = save::as_step(&ended);
            watcher.note(ended);
            result
        }))
    }
}

impl Handler<Observe> for CredWatcher {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        let phase = match (&self.watched, self.saving, self.quiet) {
            (None, ..) => "no login",
            _ if self.run.host_is_away() => "waiting for the host",
            (_, Some(_), _) => "saving",
            (_, None, true) => "quiet",
            (_, None, false) => "watching",
        };
        let fingerprint = self.watched.as_ref().and_then(|w| w.baseline.fingerprint.as_deref());
        MessageResult(Observation {
            phase: phase.to_owned(),
            last_error: self.last_error.clone(),
            // Twelve digits tell two logins apart and nobody anything else.
            detail: json!({ "saves": self.saves, "fingerprint": fingerprint.map(|f| &f[..f.len().min(12)]) }),
        })
    }
}
