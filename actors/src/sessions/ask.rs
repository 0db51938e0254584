//! Finding sessions: answered from memory, at once.

use std::collections::BTreeMap;

use actix::prelude::*;
use optio_store::SessionId;
use tokio::sync::watch;

use super::{OnExit, Sessions};
use crate::error::SessionError;
use crate::session::Beginning;
use crate::session::Session;
use crate::session::phase::{Phase, Request};
use crate::session::record::SessionRecord;
use crate::session::status::SessionView;

/// A live session: whom to ask, and what it last published.
#[derive(Clone)]
pub struct Found {
    /// Its supervisor.
    pub addr: Addr<Session>,
    /// Its status.
    pub status: watch::Receiver<SessionView>,
}

/// Finds a live session. `None` for one whose run is over, or that never was.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Option<Found>")]
pub struct Find(pub SessionId);

impl Handler<Find> for Sessions {
    type Result = MessageResult<Find>;

    fn handle(&mut self, Find(id): Find, _: &mut Self::Context) -> Self::Result {
        let live = self.live.get(&id).filter(|live| live.addr.connected());
        MessageResult(live.map(|live| Found { addr: live.addr.clone(), status: live.status.clone() }))
    }
}

/// What every live session last published.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "BTreeMap<SessionId, SessionView>")]
pub struct ShowLive;

impl Handler<ShowLive> for Sessions {
    type Result = MessageResult<ShowLive>;

    fn handle(&mut self, _: ShowLive, _: &mut Self::Context) -> Self::Result {
        let live = self.live.iter().filter(|(_, live)| live.addr.connected());
        MessageResult(live.map(|(id, live)| (id.clone(), live.status.borrow().clone())).collect())
    }
}

/// True once the service drains.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "bool")]
pub struct IsDraining;

impl Handler<IsDraining> for Sessions {
    type Result = bool;

    fn handle(&mut self, _: IsDraining, _: &mut Self::Context) -> bool {
        self.draining
    }
}

/// Walks the teardown of a lost session once more, from its first step that did not end well.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<SessionView, SessionError>")]
pub struct StopAgain(pub SessionId);

impl Handler<StopAgain> for Sessions {
    type Result = ResponseActFuture<Self, Result<SessionView, SessionError>>;

    fn handle(&mut self, StopAgain(id): StopAgain, _: &mut Self::Context) -> Self::Result {
        let settings = self.settings.clone();
        let preparing = async move {
            let row = settings.store.records.get(&id).await?;
            let row = row.ok_or_else(|| SessionError::not_found("session", &id))?;
            let mut record = SessionRecord::read(&row)?;
            record.phase.accepts(Request::Stop).map_err(|refusal| SessionError::refused(&id, refusal))?;
            if record.phase == Phase::Lost {
                record.walk_again();
            }
            let view = SessionView::of(&record, 0);
            Ok((record, row.rev, view))
        };
        Box::pin(preparing.into_actor(self).map(|prepared: Result<_, SessionError>, root, ctx| {
            let (record, rev, view) = prepared?;
            root.take_up(record, rev, Beginning::Recover, ctx);
            Ok(view)
        }))
    }
}

impl OnExit {
    /// Reads a word of the command line.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "detach" => Some(Self::Detach),
            "teardown" => Some(Self::Teardown),
            _ => None,
        }
    }
}
