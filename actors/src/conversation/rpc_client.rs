//! Requests to the app-server and their answers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use optio_codex_protocol::requests::Ids;
use optio_codex_protocol::rpc::{OVERLOAD_RETRIES, RpcError};
use tokio::sync::oneshot;

use super::wire::Outgoing;

/// Requests that may wait for an answer at once.
const MAX_PENDING: usize = 256;

/// The wait before an overloaded server is asked again; doubles each time (S-354).
const OVERLOAD_PAUSE: Duration = Duration::from_millis(250);

/// Why a request has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The server said no.
    #[error("the agent refused: {0}")]
    Refused(RpcError),
    /// The connection broke first; whether it was done is unknown.
    #[error("the connection to the agent broke")]
    Disconnected,
    /// More requests are unanswered than the agent could ever need.
    #[error("the agent does not answer")]
    Stuck,
}

#[derive(Default)]
struct State {
    ids: Ids,
    pending: HashMap<u64, oneshot::Sender<Result<Bytes, RpcError>>>,
    out: Option<Outgoing>,
}

/// The client half of one connection. Clones share it; it never leaves its arbiter.
#[derive(Clone, Default)]
pub(crate) struct RpcClient(Rc<RefCell<State>>);

impl RpcClient {
    /// Begins on a fresh connection: numbering starts anew, what was asked on the old one has no answer any more.
    pub(crate) fn connect(&self, out: Outgoing) {
        *self.0.borrow_mut() = State { out: Some(out), ..State::default() };
    }

    /// Closes our side.
    pub(crate) fn disconnect(&self) {
        let mut state = self.0.borrow_mut();
        state.out = None;
        state.pending.clear();
    }

    /// Writes something that has no answer; `false` when there is no connection.
    pub(crate) fn write(&self, message: String) -> bool {
        self.0.borrow().out.as_ref().is_some_and(|out| out.send(message))
    }

    /// Asks, and asks again while the server is overloaded.
    pub(crate) async fn call(&self, encode: impl Fn(u64) -> String) -> Result<Bytes, CallError> {
        let mut pause = OVERLOAD_PAUSE;
        for _ in 0..OVERLOAD_RETRIES {
            match self.call_once(&encode).await {
                Err(CallError::Refused(refused)) if refused.is_overloaded() => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                answered => return answered,
            }
        }
        self.call_once(&encode).await
    }

    async fn call_once(&self, encode: &impl Fn(u64) -> String) -> Result<Bytes, CallError> {
        let answer = {
            let mut state = self.0.borrow_mut();
            if state.pending.len() >= MAX_PENDING {
                return Err(CallError::Stuck);
            }
            let id = state.ids.mint();
            let sent = state.out.as_ref().is_some_and(|out| out.send(encode(id)));
            if !sent {
                return Err(CallError::Disconnected);
            }
            let (tell, answer) = oneshot::channel();
            state.pending.insert(id, tell);
            answer
        };
        match answer.await {
            Ok(outcome) => outcome.map_err(CallError::Refused),
            Err(_) => Err(CallError::Disconnected),
        }
    }

    /// Hands an answer to whoever asked; an answer to nothing is dropped.
    pub(crate) fn answered(&self, id: u64, outcome: Result<Bytes, RpcError>) {
        let asked = self.0.borrow_mut().pending.remove(&id);
        if let Some(asked) = asked {
            // Whoever stopped waiting has decided without the answer.
            let _ = asked.send(outcome);
        }
    }
}
