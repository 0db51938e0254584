//! The terminal of a session in a browser: a ticket, a page, and a WebSocket in the words of ttyd.
//!
//! ```text
//! POST …/terminal/ticket   a ticket, good once, for one session and one role
//! GET  …/terminal/         the page
//! GET  …/terminal/token    a ticket in the form that ttyd's pages ask for, at each connection
//! GET  …/terminal/ws       the socket; opened by a login and a ticket in its first message, or by `?ticket=` alone
//! ```
//!
//! | the socket closes with | because |
//! |---|---|
//! | 1001 | the service goes down |
//! | 1008 | a message is not acceptable; the reason says what is wrong with it |
//! | 4000 | the terminal has ended, or the session cannot be met now |
//! | 4001 | the seat was taken away: come back at once, perhaps as the owner |
//! | 4401 | no good ticket came in time |
//!
//! What a ttyd or a pty is, nobody here knows: [`optio_actors::terminal`] seats people.

mod ticket;
mod wire;

use std::time::Duration;

use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use actix_ws::{AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, Session};
use bytes::Bytes;
use optio_actors::service::words::SessionId;
use optio_actors::session::phase::State;
use optio_actors::terminal::{Role, Shown, TakeSeat, Viewer};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::debug;

pub(crate) use ticket::{Seats, issue, token};

use crate::Web;
use crate::auth;
use crate::edge::check_origin;
use crate::error::{CONFLICT, Problem, UNAUTHENTICATED};
use crate::page;
use crate::query::{Params, id};
use wire::{First, Said};

/// The subprotocol that ttyd's pages ask for.
const PROTOCOL: &str = "tty";

/// How long the first message may take.
const FIRST_LIMIT: Duration = Duration::from_secs(10);

/// The largest message that is taken: somebody may paste a file.
const MESSAGE_LIMIT: usize = 1 << 20;

/// How long a message may take to be taken off our hands, by a browser or by the terminal.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// How often a silent connection is asked for a sign of life.
const PING_EVERY: Duration = Duration::from_secs(15);

/// A peer that gave none for so long is gone.
const PEER_LIMIT: Duration = Duration::from_secs(45);

/// `GET /v1/sessions/{id}/terminal/`
pub(crate) async fn show(
    web: Data<Web>,
    request: HttpRequest,
    path: Path<String>,
) -> Result<HttpResponse, Problem> {
    ticket::of_terminal(&web, &id("session", &path)?).await?;
    Ok(page::of_terminal(&request))
}

/// `GET /v1/sessions/{id}/terminal/ws`. Not behind the door of the other routes: a ticket is a login of its own.
pub(crate) async fn connect(
    web: Data<Web>,
    request: HttpRequest,
    mut params: Params,
    path: Path<String>,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let session: SessionId = id("session", &path)?;
    // A page of another origin may open sockets to anywhere, and SameSite does not keep a cookie from going along.
    check_origin(&web, request.headers())?;
    let ticket = params.text("ticket")?;
    let role = match &ticket {
        Some(ticket) => Some(web.seats().take(ticket, &session).ok_or_else(|| {
            Problem::new(UNAUTHENTICATED, "the ticket was used already, has run out, or is another session's")
        })?),
        None => auth::caller(&web, &request).map(|_| None)?,
    };
    let view = ticket::of_terminal(&web, &session).await?;
    if matches!(view.state, State::Ended | State::Lost | State::Stopping) {
        return Err(Problem::new(CONFLICT, format!("session {session}: the session has ended")));
    }
    let opened = actix_ws::handle_with_protocols(&request, payload, &[PROTOCOL]);
    let (response, socket, messages) = opened.map_err(|problem| {
        Problem::new(crate::error::BAD_REQUEST, format!("this is a WebSocket: {problem}"))
    })?;
    let messages = messages.max_frame_size(MESSAGE_LIMIT).aggregate_continuations();
    let messages = messages.max_continuation_size(MESSAGE_LIMIT);
    let peer = Peer { web, session, name: view.name, socket, messages, heard: Instant::now() };
    actix_web::rt::spawn(peer.serve(role));
    Ok(response)
}

/// Why a connection ends.
enum End {
    /// The other side went.
    Gone,
    /// We end it.
    Close(u16, String),
}

impl End {
    fn wrong(why: impl Into<String>) -> Self {
        Self::Close(1008, why.into())
    }
}

struct Peer {
    web: Data<Web>,
    session: SessionId,
    name: String,
    socket: Session,
    messages: AggregatedMessageStream,
    heard: Instant,
}

impl Peer {
    /// From the first message to the last.
    async fn serve(mut self, role: Option<Role>) {
        let end = match self.sit(role).await {
            Ok(viewer) => self.converse(viewer).await,
            Err(end) => end,
        };
        debug!(session = %self.session, "terminal's connection ends");
        if let End::Close(code, why) = end {
            let reason = CloseReason { code: CloseCode::from(code), description: Some(why) };
            // Who does not hear it is gone.
            let _ = self.socket.close(Some(reason)).await;
        }
    }

    async fn sit(&mut self, role: Option<Role>) -> Result<Viewer, End> {
        let first = tokio::time::timeout(FIRST_LIMIT, self.first()).await;
        let no_ticket = || End::Close(4401, "no good ticket came in time".to_owned());
        let First { token, size } = first.map_err(|_| no_ticket())??;
        let role = match role {
            Some(role) => role,
            None => self.web.seats().take(&token, &self.session).ok_or_else(no_ticket)?,
        };
        let seated = self.web.service().open_terminal(&self.session, TakeSeat { role, size }).await;
        seated.map_err(|problem| End::Close(4000, wire::reason(&problem.to_string())))
    }

    async fn first(&mut self) -> Result<First, End> {
        loop {
            match self.messages.recv().await {
                Some(Ok(AggregatedMessage::Text(text))) => {
                    return First::read(text.as_bytes()).map_err(End::wrong);
                }
                Some(Ok(AggregatedMessage::Binary(bytes))) => return First::read(&bytes).map_err(End::wrong),
                Some(Ok(AggregatedMessage::Ping(payload))) => self.pong(&payload).await?,
                Some(Ok(AggregatedMessage::Pong(_))) => {}
                Some(Ok(AggregatedMessage::Close(_))) | None => return Err(End::Gone),
                Some(Err(problem)) => return Err(End::wrong(wire::reason(&problem.to_string()))),
            }
        }
    }

    async fn converse(&mut self, mut viewer: Viewer) -> End {
        let mut going_down = self.web.shutdown();
        let mut ping = tokio::time::interval(PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut paused = false;
        for hello in [wire::title(&self.name), wire::seat(viewer.seat(), viewer.size())] {
            if let Err(end) = self.send(hello).await {
                return end;
            }
        }
        let over = viewer.over();
        loop {
            let done = tokio::select! {
                biased;
                message = self.messages.recv() => {
                    self.heard = Instant::now();
                    match self.heed(message, &mut viewer).await {
                        Ok(Said::Pause) => { paused = true; Ok(()) }
                        Ok(Said::Resume) => { paused = false; Ok(()) }
                        Ok(_) => Ok(()),
                        Err(end) => Err(end),
                    }
                }
                shown = viewer.next(), if !paused => match shown {
                    Shown::Output(bytes) => self.send(wire::output(&bytes)).await,
                    Shown::Size(size) => self.send(wire::seat(viewer.seat(), size)).await,
                    Shown::Over => Err(self.sent_away().await),
                    Shown::Ended => Err(self.ended().await),
                },
                () = over.cancelled(), if paused => Err(self.sent_away().await),
                _ = ping.tick() => match self.heard.elapsed() > PEER_LIMIT {
                    true => Err(End::Gone),
                    false => self.socket.ping(b"").await.map_err(|_| End::Gone),
                },
                _ = going_down.changed() => Err(End::Close(1001, "the service is going down".to_owned())),
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    /// Does what somebody said.
    async fn heed(
        &mut self,
        message: Option<Result<AggregatedMessage, actix_ws::ProtocolError>>,
        viewer: &mut Viewer,
    ) -> Result<Said, End> {
        let bytes = match message {
            Some(Ok(AggregatedMessage::Binary(bytes))) => bytes,
            Some(Ok(AggregatedMessage::Text(text))) => text.into_bytes(),
            Some(Ok(AggregatedMessage::Ping(payload))) => {
                self.pong(&payload).await?;
                return Ok(Said::Nothing);
            }
            Some(Ok(AggregatedMessage::Pong(_))) => return Ok(Said::Nothing),
            Some(Ok(AggregatedMessage::Close(_))) | None => return Err(End::Gone),
            Some(Err(problem)) => return Err(End::wrong(wire::reason(&problem.to_string()))),
        };
        let said = Said::read(bytes).map_err(End::wrong)?;
        let doing = async {
            match &said {
                Said::Keys(keys) => viewer.keys(keys.clone()).await,
                Said::Size(size) => viewer.resize(*size).await,
                Said::Pause | Said::Resume | Said::Nothing => Ok(()),
            }
        };
        match tokio::time::timeout(SEND_LIMIT, doing).await {
            Ok(Ok(())) => Ok(said),
            Ok(Err(problem)) => {
                debug!(%problem, "terminal does not take what was typed");
                Err(self.ended().await)
            }
            Err(_) => Err(End::Close(4000, "the terminal takes no keys".to_owned())),
        }
    }

    async fn pong(&mut self, payload: &[u8]) -> Result<(), End> {
        self.socket.pong(payload).await.map_err(|_| End::Gone)
    }

    async fn send(&mut self, message: Bytes) -> Result<(), End> {
        match tokio::time::timeout(SEND_LIMIT, self.socket.binary(message)).await {
            Ok(Ok(())) => Ok(()),
            // A browser that reads nothing is slower than a terminal can wait.
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }

    /// What becomes of somebody whose seat was taken away: the next one is theirs, unless the run ends.
    async fn sent_away(&self) -> End {
        match self.web.service().session(&self.session).await {
            Ok(view) if matches!(view.state, State::Stopping | State::Ended | State::Lost) => {
                self.ended().await
            }
            _ => End::Close(4001, "come back".to_owned()),
        }
    }

    async fn ended(&self) -> End {
        let state = self.web.service().session(&self.session).await.map(|view| view.state.name());
        End::Close(4000, format!("the terminal has ended; the session is {}", state.unwrap_or("unknown")))
    }
}
