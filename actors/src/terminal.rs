//! Terminal: the people before an agent's terminal, and text that is typed into it for them.

mod keeper;
mod typing;
mod viewer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use optio_host::provision::{Tool, Wishes};
use optio_host::terminal::Seat;
use optio_host::{HostError, Size, tmux};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::provisioner;
use crate::session::RunContext;
use crate::supervision::{ChildKind, Observation, Observe, Pulse, beat};
use crate::teardown::{CloseDoor, EndTurn, Finish, StepError, StepResult};

use keeper::Keeper;
pub use typing::{PressEscape, TypeText, TypingError};
use viewer::{Leave, Left};
pub use viewer::{Shown, Viewer};

/// How often the terminal shows that it lives.
const BEAT: Duration = Duration::from_secs(5);

/// Silence past this is loss.
pub(crate) const PULSE_LIMIT: Duration = Duration::from_secs(30);

/// Viewers at once: each is a program on the host, and a person is before one or two.
const MAX_VIEWERS: usize = 32;

/// How long the end of a run waits for a login that codex may be refreshing. A terminal says nothing of it, and codex
/// drops a refresh when it is signalled or asked to quit (seen with 0.142.5: SIGTERM, SIGHUP, Ctrl-C and `/quit` alike): the
/// provider has then spent a token whose successor nobody has. A refresh takes a second.
const REFRESH_LIMIT: Duration = Duration::from_secs(2);

/// Where the terminal of a run is; on record, so that a later process finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalRecord {
    /// The tmux program on the host.
    pub tmux: PathBuf,
}

/// Seats people before the terminal and types for them. The terminal itself is tmux's and needs nobody: this actor, a ttyd
/// and every viewer may come and go while the agent works on.
///
/// One operator at a time owns the size of the terminal, so that two windows do not fight over it; the others see it as it
/// is. When the owner leaves, the longest-seated guest is sent back to the door and comes in as the owner.
pub struct Terminal {
    run: RunContext,
    pulse: Pulse,
    /// How a ttyd is to be had.
    ttyd: Wishes,
    /// Cancelled when nobody wants a ttyd any more.
    leaving: CancellationToken,
    keeper: Arc<Keeper>,
    /// One text at a time: two pastes at once would be one message.
    typing: Arc<tokio::sync::Mutex<()>>,
    viewers: Vec<Seated>,
    next: u64,
    size: watch::Sender<Size>,
    /// Cancelled when nobody may type any more.
    door: CancellationToken,
    last_error: Option<String>,
}

/// Somebody before the terminal.
struct Seated {
    id: u64,
    seat: Seat,
    /// Cancelled to send this one away.
    over: CancellationToken,
}

impl Terminal {
    /// A terminal for this run, which has a ttyd provided as it is wished.
    pub fn new(run: RunContext, pulse: Pulse, ttyd: Wishes) -> Self {
        Self {
            ttyd,
            leaving: CancellationToken::new(),
            keeper: Arc::new(Keeper::new(run.clone())),
            run,
            pulse,
            typing: Arc::default(),
            viewers: Vec::new(),
            next: 0,
            size: watch::Sender::new(tmux::FIRST_SIZE),
            door: CancellationToken::new(),
            last_error: None,
        }
    }
}

impl Actor for Terminal {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(BEAT, |terminal, _| terminal.pulse.touch());
        beat(ctx, ChildKind::Terminal, self.run.clone());
        self.fetch_ttyd(ctx);
    }
}

impl Terminal {
    /// Has a ttyd provided, behind everybody's back: until it is there, and where there is none, people come by a pty of
    /// the host's.
    fn fetch_ttyd(&self, ctx: &mut Context<Self>) {
        let (run, wishes, leaving) = (self.run.clone(), self.ttyd.clone(), self.leaving.clone());
        let events = Some(run.events.clone());
        let providing = async move {
            provisioner::provide(&run.provisioner, &run.host, Tool::Ttyd, wishes, events, &leaving).await
        };
        ctx.spawn(providing.into_actor(self).map(|provided, terminal, _| match provided {
            Ok(ttyd) => {
                info!(version = ttyd.version, path = %ttyd.path.display(), "ttyd is there");
                terminal.keeper.use_ttyd(ttyd.path);
            }
            Err(problem) => {
                debug!(%problem, "there is no ttyd, the terminal is served without it");
                terminal.last_error = Some(problem.to_string());
            }
        }));
    }
}

impl Drop for Terminal {
    /// Its lines lead nowhere without it: viewers come back to its successor.
    fn drop(&mut self) {
        self.door.cancel();
        self.leaving.cancel();
    }
}

/// What somebody may do who wants to be seated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Types.
    Operator,
    /// Looks on.
    Viewer,
}

/// Seats somebody before the terminal.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<Viewer, TerminalError>")]
pub struct TakeSeat {
    /// What they may do.
    pub role: Role,
    /// The size of their window.
    pub size: Size,
}

/// Why nobody was seated.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// The run ends.
    #[error("the terminal is closed")]
    Closed,
    /// There is none.
    #[error("the run has no terminal")]
    None,
    /// See [`MAX_VIEWERS`].
    #[error("{MAX_VIEWERS} viewers are before the terminal already")]
    Full,
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The fault seam struck.
    #[error(transparent)]
    Injected(#[from] crate::faults::Injected),
}

impl Handler<TakeSeat> for Terminal {
    type Result = ResponseActFuture<Self, Result<Viewer, TerminalError>>;

    fn handle(&mut self, TakeSeat { role, size }: TakeSeat, ctx: &mut Self::Context) -> Self::Result {
        let refused = match () {
            () if self.door.is_cancelled() => Some(TerminalError::Closed),
            () if self.viewers.len() >= MAX_VIEWERS => Some(TerminalError::Full),
            () => None,
        };
        if let Some(refused) = refused {
            return Box::pin(async { Err(refused) }.into_actor(self));
        }
        let seat = match role {
            Role::Viewer => Seat::Viewer,
            Role::Operator if self.viewers.iter().any(|seated| seated.seat == Seat::Owner) => Seat::Guest,
            Role::Operator => Seat::Owner,
        };
        if seat == Seat::Owner {
            self.size.send_replace(size);
        }
        let shown = *self.size.borrow();
        self.next += 1;
        let id = self.next;
        let over = self.door.child_token();
        // Seated from here on, so that two who come at once do not both own the size.
        self.viewers.push(Seated { id, seat, over: over.clone() });
        let leave = Leave::new(id, ctx.address().downgrade());
        let (keeper, run, sizes) = (self.keeper.clone(), self.run.clone(), self.size.clone());
        let seating = async move {
            run.step(ChildKind::Terminal, "seat").await?;
            let line = keeper.open(seat, shown).await?;
            Ok(Viewer::new(line, seat, sizes, over, leave))
        };
        Box::pin(seating.into_actor(self).map(move |seated: Result<Viewer, TerminalError>, terminal, _| {
            match &seated {
                Ok(_) => info!(viewer = id, ?seat, "somebody is before the terminal"),
                // Dropping the viewer's leave tells us so; this is for the reader of the actor page.
                Err(problem) => terminal.last_error = Some(problem.to_string()),
            }
            seated
        }))
    }
}

/// Sends everybody away who is before the terminal: their lines broke with the way to the host. They may come back when it is.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct LoseViewers;

impl Handler<LoseViewers> for Terminal {
    type Result = ();

    fn handle(&mut self, _: LoseViewers, _: &mut Self::Context) {
        for seated in &self.viewers {
            seated.over.cancel();
        }
        // Its ttyd is out of reach too, which is no fault of its own.
        self.keeper.rest();
    }
}

impl Handler<Left> for Terminal {
    type Result = ();

    fn handle(&mut self, Left(id): Left, _: &mut Self::Context) {
        let Some(at) = self.viewers.iter().position(|seated| seated.id == id) else { return };
        let gone = self.viewers.remove(at);
        info!(viewer = id, "somebody left the terminal");
        if gone.seat == Seat::Owner
            && let Some(next) = self.viewers.iter().find(|seated| seated.seat == Seat::Guest)
        {
            next.over.cancel();
        }
        if self.viewers.is_empty() {
            self.keeper.rest();
        }
    }
}

impl Handler<CloseDoor> for Terminal {
    type Result = ResponseActFuture<Self, StepResult>;

    fn handle(&mut self, _: CloseDoor, _: &mut Self::Context) -> Self::Result {
        self.door.cancel();
        self.leaving.cancel();
        let (run, keeper) = (self.run.clone(), self.keeper.clone());
        let closing = async move {
            run.step(ChildKind::Terminal, "close").await.map_err(StepError::new)?;
            keeper.rest();
            Ok(Finish::Done("nobody can type any more".to_owned()))
        };
        Box::pin(closing.into_actor(self))
    }
}

impl Handler<EndTurn> for Terminal {
    type Result = ResponseActFuture<Self, ()>;

    /// There is no turn to be ended from here, but perhaps a refresh to be waited for.
    fn handle(&mut self, _: EndTurn, _: &mut Self::Context) -> Self::Result {
        let run = self.run.clone();
        let waiting = async move {
            if run.step(ChildKind::Terminal, "end_turn").await.is_ok() {
                // A login that stays as it is was not being refreshed, or by a provider that takes too long.
                let _ = tokio::time::timeout(REFRESH_LIMIT, typing::refreshed(&run)).await;
            }
        };
        Box::pin(waiting.into_actor(self))
    }
}

impl Handler<Observe> for Terminal {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        let size = *self.size.borrow();
        let seats = |seat| self.viewers.iter().filter(|seated| seated.seat == seat).count();
        MessageResult(Observation {
            phase: if self.door.is_cancelled() { "closed" } else { "open" }.to_owned(),
            last_error: self.keeper.last_error().or_else(|| self.last_error.clone()),
            detail: json!({
                "owners": seats(Seat::Owner),
                "guests": seats(Seat::Guest),
                "viewers": seats(Seat::Viewer),
                "columns": size.columns,
                "rows": size.rows,
                "ttyd": self.keeper.runs(),
            }),
        })
    }
}
