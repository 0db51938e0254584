//! The root's logins by a code: at most [`MAX_LOGINS`] at once, each in a directory that the next start finds by its name.

use std::collections::BTreeMap;

use actix::prelude::*;
use optio_host::HostError;
use optio_store::LoginId;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tracing::{error, info, info_span};

use super::{REST_LIMIT, REVIVALS, Sessions};
use crate::error::SessionError;
use crate::seed_login::{
    Begin, CancelLogin, LoginNote, LoginParts, LoginState, LoginView, MAX_LOGINS, SeedLogin,
};
use crate::settings::Settings;
use crate::supervision::{ChildExit, ChildHandle, ChildKind, ExitReason, spawn_child};
use crate::throw_away::{LOGIN, ThrowAway};

/// Logins that are over and can still be asked for.
const REMEMBERED: usize = 64;

/// Every login by a code that this process knows of.
#[derive(Default)]
pub(super) struct Logins {
    known: BTreeMap<LoginId, Known>,
}

struct Known {
    slot: usize,
    note: LoginNote,
    view: watch::Sender<LoginView>,
    place: Place,
    deaths: usize,
}

/// What is in the login's directory.
enum Place {
    /// Its actor works there.
    Live(Addr<SeedLogin>, ChildHandle),
    /// Something that could not be wiped.
    Kept,
    /// Nothing; another login may have it.
    Free,
}

impl Logins {
    fn free_slot(&self) -> Result<usize, SessionError> {
        let taken = |slot| self.known.values().any(|k| k.slot == slot && !matches!(k.place, Place::Free));
        (0..MAX_LOGINS).find(|slot| !taken(*slot)).ok_or(SessionError::TooManyLogins { count: MAX_LOGINS })
    }

    /// Forgets the oldest that are over: ids are in the order of their making.
    fn forget(&mut self) {
        let over = self.known.iter().filter(|(_, known)| matches!(known.place, Place::Free));
        let over: Vec<_> = over.map(|(id, _)| id.clone()).collect();
        for id in &over[..over.len().saturating_sub(REMEMBERED)] {
            self.known.remove(id);
        }
    }

    /// Asks every login to end, and waits until it has, or until the next start has to go on with it.
    pub(super) fn leave(&self) -> impl Future<Output = ()> + use<> {
        let leaving: Vec<_> = self
            .known
            .values()
            .filter_map(|known| match &known.place {
                Place::Live(addr, _) => Some((addr.clone(), known.view.subscribe())),
                Place::Kept | Place::Free => None,
            })
            .map(|(login, mut view)| async move {
                login.do_send(CancelLogin);
                // Late, its directory is finished by the next start.
                let _ = tokio::time::timeout(REST_LIMIT, view.wait_for(|view| view.state.is_over())).await;
            })
            .collect();
        async move {
            futures_util::future::join_all(leaving).await;
        }
    }
}

/// One of the homes where logins are made.
fn place(settings: &Settings, slot: usize) -> Result<ThrowAway, HostError> {
    ThrowAway::at(settings, LOGIN, slot)
}

impl Sessions {
    fn begin_login(
        &mut self,
        slot: usize,
        note: LoginNote,
        begin: Begin,
        ctx: &mut Context<Self>,
    ) -> Result<watch::Sender<LoginView>, HostError> {
        let home = place(&self.settings, slot)?;
        let before = self.logins.known.remove(&note.id);
        let deaths = before.as_ref().map_or(0, |known| known.deaths);
        let view = before.map_or_else(|| LoginParts::first_view(&note), |known| known.view);
        let parts = LoginParts {
            settings: self.settings.clone(),
            home,
            note: note.clone(),
            begin,
            view: view.clone(),
            provisioner: ctx.address().recipient(),
        };
        let span = info_span!("login", id = %note.id);
        let parent = ctx.address().recipient();
        let (addr, handle) =
            spawn_child(parent, ChildKind::SeedLogin, span, move |exit| SeedLogin::new(parts, exit));
        let known =
            Known { slot, note: note.clone(), view: view.clone(), place: Place::Live(addr, handle), deaths };
        self.logins.known.insert(note.id, known);
        self.logins.forget();
        Ok(view)
    }

    /// Takes the exit of a login; `false` when it was another child's. One that died is taken up from its directory.
    pub(super) fn login_exited(&mut self, exit: &ChildExit, ctx: &mut Context<Self>) -> bool {
        let is_it =
            |known: &&mut Known| matches!(&known.place, Place::Live(_, handle) if handle.id == exit.id);
        let Some(known) = self.logins.known.values_mut().find(is_it) else { return false };
        let id = known.note.id.clone();
        match &exit.reason {
            ExitReason::Normal => known.place = Place::Free,
            // It has said what is left, and where.
            ExitReason::Failed(_) => known.place = Place::Kept,
            died @ (ExitReason::Panicked(_) | ExitReason::Killed) => {
                error!(login = %id, reason = %died, "login died, its directory is looked through again");
                known.place = Place::Kept;
                known.deaths += 1;
                let (slot, note) = (known.slot, known.note.clone());
                if known.deaths > REVIVALS {
                    error!(login = %id, "login dies again and again, it is left for the next start");
                    known.view.send_modify(|view| {
                        view.state = LoginState::Failed;
                        view.reason = Some(format!("{died}; the next start goes on with what there is"));
                    });
                } else if let Err(problem) = self.begin_login(slot, note, Begin::Leftover, ctx) {
                    error!(login = %id, %problem, "login is left for the next start");
                }
            }
        }
        true
    }
}

/// Begins a login by a code. Answered with where its view can be followed.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<watch::Receiver<LoginView>, SessionError>")]
pub struct StartLogin {
    /// The pool that the seed shall be in.
    pub pool: Option<String>,
    /// The notes that the seed shall have.
    pub metadata: Map<String, Value>,
}

impl Handler<StartLogin> for Sessions {
    type Result = Result<watch::Receiver<LoginView>, SessionError>;

    fn handle(&mut self, start: StartLogin, ctx: &mut Self::Context) -> Self::Result {
        if self.draining {
            return Err(SessionError::Draining);
        }
        let slot = self.logins.free_slot()?;
        let note = LoginNote { id: LoginId::mint(), pool: start.pool, metadata: start.metadata };
        let id = note.id.clone();
        match self.begin_login(slot, note, Begin::Fresh, ctx) {
            Ok(view) => Ok(view.subscribe()),
            Err(problem) => Err(SessionError::Login { id, why: problem.to_string() }),
        }
    }
}

/// Finds a login that this process knows of.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Option<watch::Receiver<LoginView>>")]
pub struct FindLogin(pub LoginId);

impl Handler<FindLogin> for Sessions {
    type Result = MessageResult<FindLogin>;

    fn handle(&mut self, FindLogin(id): FindLogin, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.logins.known.get(&id).map(|known| known.view.subscribe()))
    }
}

/// Gives a login up; one that is over stays as it is. Answered with where its view can be followed.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Option<watch::Receiver<LoginView>>")]
pub struct GiveLoginUp(pub LoginId);

impl Handler<GiveLoginUp> for Sessions {
    type Result = MessageResult<GiveLoginUp>;

    fn handle(&mut self, GiveLoginUp(id): GiveLoginUp, _: &mut Self::Context) -> Self::Result {
        let known = self.logins.known.get(&id);
        if let Some(Known { place: Place::Live(addr, _), .. }) = known {
            addr.do_send(CancelLogin);
        }
        MessageResult(known.map(|known| known.view.subscribe()))
    }
}

/// Takes up every login that an earlier process left. Answers how many directories there were.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<usize, HostError>")]
pub struct RecoverLogins;

impl Handler<RecoverLogins> for Sessions {
    type Result = ResponseActFuture<Self, Result<usize, HostError>>;

    fn handle(&mut self, _: RecoverLogins, _: &mut Self::Context) -> Self::Result {
        let settings = self.settings.clone();
        let looking = async move {
            let mut found = Vec::new();
            for slot in 0..MAX_LOGINS {
                let home = place(&settings, slot)?;
                if home.host.exists(&home.dir).await? {
                    let note = LoginNote::read(&home).await?;
                    let nothing = || LoginNote { id: LoginId::mint(), pool: None, metadata: Map::new() };
                    found.push((slot, note.unwrap_or_else(nothing)));
                }
            }
            Ok(found)
        };
        Box::pin(looking.into_actor(self).map(|found: Result<Vec<_>, HostError>, root, ctx| {
            let found = found?;
            let count = found.len();
            for (slot, note) in found {
                info!(login = %note.id, "login of an earlier process is taken up");
                root.begin_login(slot, note, Begin::Leftover, ctx)?;
            }
            Ok(count)
        }))
    }
}
