//! Text typed into the terminal by us, for a person or a program.

use actix::prelude::*;
use jiff::Timestamp;
use optio_codex_protocol::{auth, workdir};
use optio_host::{HostError, Watch, tmux};
use tracing::debug;

use super::{Terminal, TerminalError};
use crate::session::RunContext;
use crate::supervision::ChildKind;

/// Types a text into the terminal and submits it. Answered when the screen has shown it.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<(), TypingError>")]
pub struct TypeText(pub String);

/// Presses Escape, which ends codex's running turn.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<(), TypingError>")]
pub struct PressEscape;

/// Why a text was not typed.
#[derive(Debug, thiserror::Error)]
pub enum TypingError {
    /// There is nothing to type into.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    /// As many texts wait as may.
    #[error("{MAX_WAITING} texts wait to be typed already")]
    Busy,
}

impl From<HostError> for TypingError {
    fn from(problem: HostError) -> Self {
        Self::Terminal(problem.into())
    }
}

/// Texts that wait for the one that is being typed. Each takes a tenth of a second where codex listens.
const MAX_WAITING: usize = 16;

impl Handler<TypeText> for Terminal {
    type Result = ResponseActFuture<Self, Result<(), TypingError>>;

    fn handle(&mut self, TypeText(text): TypeText, _: &mut Self::Context) -> Self::Result {
        self.type_with(move |typist| async move {
            tmux::paste(&*typist.run.host, &typist.tmux, &typist.socket, &text).await
        })
    }
}

impl Handler<PressEscape> for Terminal {
    type Result = ResponseActFuture<Self, Result<(), TypingError>>;

    fn handle(&mut self, _: PressEscape, _: &mut Self::Context) -> Self::Result {
        self.type_with(|typist| async move {
            tmux::press(&*typist.run.host, &typist.tmux, &typist.socket, "Escape").await
        })
    }
}

struct Typist {
    run: RunContext,
    tmux: std::path::PathBuf,
    socket: std::path::PathBuf,
}

impl Terminal {
    fn type_with<F>(
        &mut self,
        deed: impl FnOnce(Typist) -> F + 'static,
    ) -> ResponseActFuture<Self, Result<(), TypingError>>
    where
        F: Future<Output = Result<(), HostError>> + 'static,
    {
        let (run, turns, door) = (self.run.clone(), self.typing.clone(), self.door.clone());
        // One is this one's own.
        if std::sync::Arc::strong_count(&turns) > MAX_WAITING + 1 {
            return Box::pin(async { Err(TypingError::Busy) }.into_actor(self));
        }
        let typing = async move {
            let _turn = turns.lock().await;
            if door.is_cancelled() {
                return Err(TerminalError::Closed.into());
            }
            run.step(ChildKind::Terminal, "type").await.map_err(TerminalError::from)?;
            let places = run.ledger.read(|r| r.run.as_ref().and_then(|of_run| of_run.terminal.clone()));
            let places = places.ok_or(TerminalError::None)?;
            let socket = tmux::socket(&*run.host, &run.dir);
            Ok(deed(Typist { run, tmux: places.tmux, socket }).await?)
        };
        Box::pin(typing.into_actor(self).map(|typed: Result<(), TypingError>, terminal, _| {
            terminal.last_error = typed.as_ref().err().map(ToString::to_string);
            typed
        }))
    }
}

/// Waits until the login of this run is not due for a refresh: at once where none is, for the change where one is.
/// Codex refreshes a login when it is due and it has something to ask, so a login that is not due is not being refreshed.
pub(super) async fn refreshed(run: &RunContext) {
    let seeded = run.ledger.read(|record| record.run.as_ref().is_some_and(|of_run| of_run.seed.is_some()));
    if !seeded {
        return;
    }
    let path = RunContext::in_workdir(workdir::AUTH_JSON);
    let mut watch: Option<Watch> = match run.host.watch(&run.dir, &path).await {
        Ok(watch) => Some(watch),
        Err(problem) => {
            debug!(%problem, "login cannot be watched to the end");
            None
        }
    };
    loop {
        let due = match run.host.read(&run.dir, &path, auth::MAX_AUTH_JSON as u64).await {
            Ok(bytes) => match auth::read(&bytes) {
                auth::Credential::ChatGpt(login) => login.refreshes_by_itself(Timestamp::now()),
                // Half written, perhaps: it is looked at again when it changes.
                auth::Credential::Unreadable(_) => true,
                _ => false,
            },
            Err(_) => false,
        };
        if !due {
            return;
        }
        let changed = match &mut watch {
            Some(watch) => watch.changed().await,
            None => None,
        };
        if changed.is_none() {
            return std::future::pending().await;
        }
    }
}
