//! SeedLogin: one attempt to get a new login by a code, from nothing to a stored seed.
//!
//! ```text
//! starting ── codex, under its guard, in a home of its own
//! pending  ── a person enters the code at the login service; codex waits
//! saving   ── codex is ended and proven gone; its login goes into the store; its home is wiped
//! done · failed · cancelled
//! ```
//!
//! What counts is not what codex said but what lies in its home once it is gone: a login there is stored, whoever cancelled
//! and whatever broke ([`capture`]). So an attempt that a dead service left behind needs no record to be finished: its
//! directory is found by its name, and goes through the same door.
//!
//! Codex runs under the guard, as an agent of a session does: only so can a later process prove that it is gone, and a login
//! that is entered while the service is away is not lost.

mod capture;
mod dialogue;
mod start;

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;
use optio_host::HostError;
use optio_store::{LoginId, SeedId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::provisioner::Provide;
use crate::settings::Settings;
use crate::supervision::ExitSlot;
use crate::throw_away::ThrowAway;

/// Attempts under way at once: people log in one after the other, and each attempt is a codex process. Also the number of
/// directories that are looked through at the next start; a later version must not have fewer.
pub const MAX_LOGINS: usize = 8;

/// The file beside the home that says what was asked for, so that a later process can finish the attempt.
const NOTE: &str = "login.json";

/// The member of a seed's notes that names the attempt it came from. It makes the import one that can be done again: what
/// was stored already is found, even when the login in it has rotated since.
pub(crate) const ORIGIN: &str = "login";

/// How far an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginState {
    /// There is no code yet.
    Starting,
    /// The code waits to be entered.
    Pending,
    /// Nobody has to do anything any more; whether there is a login is being found out, and it is being stored.
    Saving,
    /// It is a seed.
    Done,
    /// There is no login, or (with a reason that says where it is) it could not be stored.
    Failed,
    /// It was given up on request.
    Cancelled,
}

impl LoginState {
    /// True when it will not change again in this process.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// An attempt as the API shows it.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct LoginView {
    /// Its id.
    pub id: LoginId,
    /// How far it is.
    pub state: LoginState,
    /// Where to log in; there while it is pending.
    pub verification_url: Option<String>,
    /// What to enter there; there while it is pending. For the person who asked, never for a log.
    pub user_code: Option<String>,
    /// Until when the code can be entered.
    pub expires_at: Option<Timestamp>,
    /// The seed it became.
    pub seed: Option<SeedId>,
    /// Why it failed, or what it waits for while it is saved.
    pub reason: Option<String>,
}

impl LoginView {
    fn new(id: LoginId) -> Self {
        Self {
            id,
            state: LoginState::Starting,
            verification_url: None,
            user_code: None,
            expires_at: None,
            seed: None,
            reason: None,
        }
    }
}

impl std::fmt::Debug for LoginView {
    /// Leaves the code out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginView")
            .field("id", &self.id)
            .field("state", &self.state)
            .field("seed", &self.seed)
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

/// What is asked for, as it stands in the attempt's directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoginNote {
    /// Which attempt.
    pub id: LoginId,
    /// The pool that the seed shall be in.
    pub pool: Option<String>,
    /// The notes that the seed shall have.
    pub metadata: Map<String, Value>,
}

impl LoginNote {
    /// Reads the note of a directory that an earlier process left. Without one nothing was started there.
    pub(crate) async fn read(home: &ThrowAway) -> Result<Option<Self>, HostError> {
        let note = home.note(NOTE).await?.transpose();
        Ok(note.inspect_err(|problem| warn!(%problem, "note of a login cannot be read")).ok().flatten())
    }
}

/// Where an attempt begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// With nothing.
    Fresh,
    /// With what an earlier actor or process left in the directory.
    Leftover,
}

/// Everything an attempt works with.
pub(crate) struct LoginParts {
    pub(crate) settings: Arc<Settings>,
    pub(crate) home: ThrowAway,
    pub(crate) note: LoginNote,
    pub(crate) begin: Begin,
    pub(crate) view: watch::Sender<LoginView>,
    /// Who has codex on the host.
    pub(crate) provisioner: Recipient<Provide>,
}

impl LoginParts {
    /// The view that an attempt begins with.
    pub(crate) fn first_view(note: &LoginNote) -> watch::Sender<LoginView> {
        watch::Sender::new(LoginView::new(note.id.clone()))
    }

    fn publish(&self, change: impl FnOnce(&mut LoginView)) {
        self.view.send_modify(change);
    }

    /// What it is now; the code is no use any more.
    fn moved_on(&self, state: LoginState, reason: Option<String>) {
        self.publish(|view| {
            (view.verification_url, view.user_code, view.expires_at) = (None, None, None);
            (view.state, view.reason) = (state, reason);
        });
    }
}

/// Why there may be no login.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ended {
    /// Codex said that it has one.
    Completed,
    /// It was given up on request.
    Cancelled,
    /// It went wrong.
    Failed(String),
}

/// Owns one attempt, its directory and its codex. Ends by itself; its exit is a failure when its directory could not be
/// wiped, and then the directory is looked through at the next start.
pub struct SeedLogin {
    parts: Option<LoginParts>,
    exit: ExitSlot,
    cancel: CancellationToken,
}

impl SeedLogin {
    pub(crate) fn new(parts: LoginParts, exit: ExitSlot) -> Self {
        Self { parts: Some(parts), exit, cancel: CancellationToken::new() }
    }
}

impl Actor for SeedLogin {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(parts) = self.parts.take() else { return };
        let cancel = self.cancel.clone();
        let attempt = async move {
            let ended = match parts.begin {
                Begin::Fresh => {
                    is_empty(&parts).await?;
                    start::log_in(&parts, &cancel).await
                }
                Begin::Leftover => Ended::Failed("the service was stopped meanwhile".to_owned()),
            };
            info!(login = %parts.note.id, ?ended, "login by a code is over");
            parts.moved_on(LoginState::Saving, None);
            capture::bring_home(&parts, ended).await
        };
        ctx.spawn(attempt.into_actor(self).map(|kept, login, ctx| {
            if let Err(why) = kept {
                login.exit.fail(why);
            }
            ctx.stop();
        }));
    }
}

/// Refuses a directory in which something lies: it could be a login that a start did not look through.
async fn is_empty(parts: &LoginParts) -> Result<(), String> {
    let why = match parts.home.host.exists(&parts.home.dir).await {
        Ok(false) => return Ok(()),
        Ok(true) => "an earlier login may lie there, the next start looks for it".to_owned(),
        Err(problem) => problem.to_string(),
    };
    let why = format!("{} cannot be used: {why}", parts.home.dir.path().display());
    parts.moved_on(LoginState::Failed, Some(why.clone()));
    Err(why)
}

/// Gives the attempt up. A login that is there already is stored all the same.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct CancelLogin;

impl Handler<CancelLogin> for SeedLogin {
    type Result = ();

    fn handle(&mut self, _: CancelLogin, _: &mut Self::Context) {
        self.cancel.cancel();
    }
}

/// How often the guard is told that the service lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
