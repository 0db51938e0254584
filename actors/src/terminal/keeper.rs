//! The way to the terminal: a ttyd while somebody is there, where the host has one; else a pty of the host's.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use optio_host::terminal::{self, Line, Seat};
use optio_host::ttyd::{self, Ttyd};
use optio_host::{Size, tmux};
use tokio::time::Instant;
use tracing::{info, warn};

use super::TerminalError;
use crate::session::RunContext;

/// More ttyds than this that ended by themselves, or did not start, within [`BUDGET_WINDOW`]: it is done without.
const BUDGET: usize = 3;

/// See [`BUDGET`].
const BUDGET_WINDOW: Duration = Duration::from_secs(60);

/// Keeps the ttyd, and starts another when it has died. The agent notices none of it.
pub(super) struct Keeper {
    run: RunContext,
    /// Held while one is started, so that two who come at once share it.
    ttyd: tokio::sync::Mutex<Option<Ttyd>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    program: Option<PathBuf>,
    runs: bool,
    failures: Vec<Instant>,
    last_error: Option<String>,
}

impl Keeper {
    pub(super) fn new(run: RunContext) -> Self {
        Self { run, ttyd: tokio::sync::Mutex::default(), state: Mutex::default() }
    }

    /// Puts somebody before the terminal.
    pub(super) async fn open(&self, seat: Seat, size: Size) -> Result<Line, TerminalError> {
        let places = self.run.ledger.read(|r| r.run.as_ref().and_then(|of_run| of_run.terminal.clone()));
        let places = places.ok_or(TerminalError::None)?;
        let host = &*self.run.host;
        if let Some(program) = self.program() {
            let mut ttyd = self.ttyd.lock().await;
            if let Some(ended) = ttyd.as_mut().and_then(|running| running.ended().now_or_never()) {
                let status = ended.map_or_else(|problem| problem.to_string(), |status| status.to_string());
                let said = ttyd.take().map(|ended| ended.last_words()).unwrap_or_default();
                warn!(status, said, "ttyd has ended, another one is started");
                self.failed(format!("ttyd ended with {status}"));
            }
            if ttyd.is_none() {
                match ttyd::start(host, &program, &places.tmux, &self.run.dir).await {
                    Ok(started) => {
                        info!(at = ?started.at(), "ttyd listens");
                        self.state().runs = true;
                        *ttyd = Some(started);
                    }
                    Err(problem) => {
                        warn!(%problem, "ttyd does not start, the terminal is served without it");
                        self.failed(problem.to_string());
                    }
                }
            }
            if let Some(running) = ttyd.as_ref() {
                match ttyd::open(host, running.at(), seat, size).await {
                    Ok(line) => return Ok(line),
                    Err(problem) => {
                        warn!(%problem, "ttyd does not answer, the terminal is served without it");
                        self.failed(problem.to_string());
                        *ttyd = None;
                    }
                }
            }
        }
        let socket = tmux::socket(host, &self.run.dir);
        Ok(terminal::open(host, &places.tmux, &socket, seat, size).await?)
    }

    /// Ends the ttyd: nobody is before the terminal.
    pub(super) fn rest(&self) {
        // Held by somebody who is being seated, it ends when that one has left.
        if let Ok(mut ttyd) = self.ttyd.try_lock() {
            *ttyd = None;
            self.state().runs = false;
        }
    }

    pub(super) fn runs(&self) -> bool {
        self.state().runs
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.state().last_error.clone()
    }

    fn failed(&self, why: String) {
        let mut state = self.state();
        state.runs = false;
        state.last_error = Some(why);
        state.failures.push(Instant::now());
    }

    /// From now on there is this ttyd.
    pub(super) fn use_ttyd(&self, program: PathBuf) {
        self.state().program = Some(program);
    }

    /// The ttyd to use, unless it has failed too often.
    fn program(&self) -> Option<PathBuf> {
        let mut state = self.state();
        state.failures.retain(|at| at.elapsed() < BUDGET_WINDOW);
        state.program.clone().filter(|_| state.failures.len() < BUDGET)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing under this lock can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
