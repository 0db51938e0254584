//! Tickets for the terminal: good once, soon, for one session and one role.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header;
use actix_web::web::{Data, Path, ReqData};
use jiff::{SignedDuration, Timestamp};
use optio_actors::SessionError;
use optio_actors::service::words::SessionId;
use optio_actors::session::status::SessionView;
use optio_actors::terminal::Role;
use serde_json::json;

use crate::Web;
use crate::auth::{Caller, Tickets};
use crate::body::Fields;
use crate::error::{FORBIDDEN, Problem};
use crate::query::id;

/// How long a ticket waits: a page uses it at once.
const LIFE: Duration = Duration::from_secs(30);

/// Unused tickets kept. Each page asks for one and uses it; more than these at once are an attack or a mistake.
const KEPT: usize = 1024;

/// The tickets that were not used yet.
pub(crate) struct Seats(Tickets<(SessionId, Role)>);

impl Default for Seats {
    fn default() -> Self {
        Self(Tickets::new(LIFE, KEPT))
    }
}

impl Seats {
    fn mint(&self, session: SessionId, role: Role) -> String {
        self.0.mint((session, role))
    }

    /// Takes a ticket. One for another session is used up by it: it was stolen or mistaken.
    pub(crate) fn take(&self, ticket: &str, session: &SessionId) -> Option<Role> {
        self.0.take(ticket).filter(|(of, _)| of == session).map(|(_, role)| role)
    }
}

/// `POST /v1/sessions/{id}/terminal/ticket`
pub(crate) async fn issue(
    web: Data<Web>,
    caller: ReqData<Caller>,
    path: Path<String>,
    mut fields: Fields,
) -> Result<HttpResponse, Problem> {
    let session: SessionId = id("session", &path)?;
    let role = fields.optional::<Role>("role")?.unwrap_or(caller.role);
    fields.finish()?;
    if role == Role::Operator && caller.role != Role::Operator {
        return Err(Problem::new(FORBIDDEN, "who may only look on gets the role \"viewer\" and no other"));
    }
    of_terminal(&web, &session).await?;
    let ends = Timestamp::now() + SignedDuration::try_from(web.seats().0.life()).unwrap_or_default();
    let ticket = web.seats().mint(session, role);
    let answer = json!({ "ticket": ticket, "role": role, "expires_at": ends });
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(answer))
}

/// `GET /v1/sessions/{id}/terminal/token`: the same, as a page asks for it each time it connects.
pub(crate) async fn token(
    web: Data<Web>,
    caller: ReqData<Caller>,
    path: Path<String>,
) -> Result<HttpResponse, Problem> {
    let session: SessionId = id("session", &path)?;
    of_terminal(&web, &session).await?;
    let answer = json!({ "token": web.seats().mint(session, caller.role) });
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(answer))
}

/// The session, if there is one and it has a terminal.
pub(super) async fn of_terminal(web: &Web, session: &SessionId) -> Result<SessionView, Problem> {
    let view = web.service().session(session).await?;
    match view.mode {
        "terminal" => Ok(view),
        _ => Err(SessionError::NoTerminal { id: session.clone() }.into()),
    }
}
