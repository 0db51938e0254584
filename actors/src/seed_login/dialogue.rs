//! The few words with an app-server that is there for a login.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use optio_codex_protocol::device_login::{self, DeviceCode, LoginCompleted};
use optio_codex_protocol::requests::{self, AnswerError};
use optio_codex_protocol::rpc::{self, METHOD_NOT_FOUND};
use optio_host::{Host, TaskDir};
use tracing::debug;

use crate::conversation::rpc_client::RpcClient;
use crate::conversation::wire::{self, Incoming};
use crate::conversation::{CallError, WireError};

/// How long codex may take to listen and to shake hands; it takes a tenth of a second (tried). Together with [`CODE_LIMIT`]
/// it is shorter than the guard's patience, which nobody renews before there is a code.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);

/// How long codex may take to get a code from the login service.
const CODE_LIMIT: Duration = Duration::from_secs(20);

/// How long codex may take to give a login up. It is ended right after, whether or not it answered.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

/// Why the words with codex led to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialogueError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("codex did not take it: {0}")]
    Call(#[from] CallError),
    #[error(transparent)]
    Answer(#[from] AnswerError),
    #[error("codex gave no answer within {0:?}")]
    Late(Duration),
}

/// A connection to the app-server. It never leaves its arbiter.
pub(super) struct Dialogue {
    rpc: RpcClient,
    incoming: Incoming,
    ended: Option<LoginCompleted>,
}

impl Dialogue {
    /// Connects, and shakes hands.
    pub(super) async fn open(host: &dyn Host, dir: &TaskDir) -> Result<Self, DialogueError> {
        let (incoming, out) = wire::dial(host, host.socket_path(dir), HANDSHAKE_LIMIT).await?;
        let rpc = RpcClient::default();
        rpc.connect(out);
        let mut dialogue = Self { rpc, incoming, ended: None };
        let version = env!("CARGO_PKG_VERSION");
        dialogue.call(HANDSHAKE_LIMIT, |id| requests::initialize(id, version)).await?;
        if !dialogue.rpc.write(requests::initialized()) {
            return Err(WireError::Closed.into());
        }
        Ok(dialogue)
    }

    /// Asks for a code.
    pub(super) async fn start(&mut self) -> Result<DeviceCode, DialogueError> {
        let answer = self.call(CODE_LIMIT, device_login::start).await?;
        Ok(DeviceCode::parse(&answer)?)
    }

    /// Gives the login up.
    pub(super) async fn cancel(&mut self, login_id: &str) -> Result<(), DialogueError> {
        self.call(CANCEL_LIMIT, |id| device_login::cancel(id, login_id)).await.map(drop)
    }

    /// Waits until codex says how the login ended. Cancel safe.
    pub(super) async fn completed(&mut self, login_id: &str) -> Result<LoginCompleted, DialogueError> {
        loop {
            if let Some(ended) = self.ended.take()
                && ended.login_id.as_deref().is_none_or(|id| id == login_id)
            {
                return Ok(ended);
            }
            let line = self.incoming.next().await.unwrap_or(Err(WireError::Closed))?;
            self.heard(line)?;
        }
    }

    async fn call(
        &mut self,
        limit: Duration,
        encode: impl Fn(u64) -> String,
    ) -> Result<Bytes, DialogueError> {
        let rpc = self.rpc.clone();
        let calling = rpc.call(encode);
        tokio::pin!(calling);
        let late = tokio::time::sleep(limit);
        tokio::pin!(late);
        loop {
            tokio::select! {
                answer = &mut calling => return Ok(answer?),
                line = self.incoming.next() => self.heard(line.unwrap_or(Err(WireError::Closed))?)?,
                () = &mut late => return Err(DialogueError::Late(limit)),
            }
        }
    }

    fn heard(&mut self, line: Bytes) -> Result<(), DialogueError> {
        match rpc::route(line) {
            rpc::Incoming::Response { id, outcome } => self.rpc.answered(id, outcome),
            rpc::Incoming::Notification { method, params } if method == device_login::method::COMPLETED => {
                self.ended = Some(LoginCompleted::parse(&params)?);
            }
            rpc::Incoming::ServerRequest { id, method, .. } => {
                // Nothing is asked of whoever only logs in; unanswered, codex would wait.
                self.rpc.write(rpc::encode_error(&id, METHOD_NOT_FOUND, &format!("{method} is not served")));
            }
            rpc::Incoming::Notification { .. } => {}
            rpc::Incoming::Foreign { why, .. } => debug!(why, "codex said something that is no message"),
        }
        Ok(())
    }
}
