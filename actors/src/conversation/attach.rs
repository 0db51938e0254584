//! Attaching to an app-server: connection, handshake, thread (S-335…S-341, LAB §9).

use std::path::PathBuf;
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use optio_codex_protocol::models::{self, ModelList};
use optio_codex_protocol::requests::{
    self, AnswerError, InitializeResult, ThreadOpened, ThreadOptions, ThreadStatus, method,
};
use optio_codex_protocol::turns::Turns;
use serde_json::json;
use tracing::{info, warn};

use super::ConversationReader;
use super::rpc_client::{CallError, RpcClient};
use super::wire::{self, WireError};
use crate::process::Pipes;
use crate::session::RunContext;
use crate::supervision::ChildKind;

/// How long an agent may take to listen and to answer the handshake; a fresh one takes half a second (S-324, LAB §1).
const ATTACH_LIMIT: Duration = Duration::from_secs(30);

/// How the agent is reached.
pub enum Over {
    /// It listens here.
    Socket(PathBuf),
    /// It is on our pipes.
    Pipes(Pipes),
}

/// Which thread the conversation is held in, and how it works.
#[derive(Debug, Clone)]
pub struct ThreadPlan {
    /// The thread to go on with; a new one without.
    pub thread: Option<String>,
    /// A thread without a rollout may be begun anew: no turn of this run has made one (S-356, S-472).
    pub may_begin_anew: bool,
    /// The workdir.
    pub cwd: String,
    /// The sandbox mode.
    pub sandbox: String,
    /// The approval policy.
    pub approval_policy: String,
    /// The model, if one was chosen.
    pub model: Option<String>,
}

/// Attaches the reader. Sent once to each reader.
#[derive(Message)]
#[rtype(result = "Result<Attached, AttachError>")]
pub struct Attach {
    /// How the agent is reached.
    pub over: Over,
    /// What for.
    pub plan: ThreadPlan,
}

/// An attached conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Attached {
    /// The thread.
    pub thread_id: String,
    /// The model it works with.
    pub model: Option<String>,
    /// Codex's version, as the server says it.
    pub version: Option<String>,
    /// The thread that was to be resumed had no rollout, so this one is new.
    pub began_anew: bool,
    /// The turn that runs.
    pub running_turn: Option<String>,
}

/// Why a conversation could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The connection.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A request of the handshake.
    #[error("{method}: {problem}")]
    Call {
        /// Which.
        method: &'static str,
        /// What became of it.
        problem: CallError,
    },
    /// An answer of the handshake.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The agent is there and says nothing.
    #[error("the agent did not finish the handshake within {ATTACH_LIMIT:?}")]
    TimedOut,
    /// The fault seam struck.
    #[error(transparent)]
    Injected(#[from] crate::faults::Injected),
}

impl AttachError {
    /// The other side is gone, and knows better why.
    fn is_the_agents_end(&self) -> bool {
        match self {
            Self::Wire(problem) => matches!(problem, WireError::Closed | WireError::Broken(_)),
            Self::Call { problem, .. } => matches!(problem, CallError::Disconnected),
            Self::Answer(_) | Self::TimedOut | Self::Injected(_) => false,
        }
    }
}

impl Handler<Attach> for ConversationReader {
    type Result = ResponseActFuture<Self, Result<Attached, AttachError>>;

    fn handle(&mut self, Attach { over, plan }: Attach, _: &mut Self::Context) -> Self::Result {
        self.pulse.quiet_for(ATTACH_LIMIT * 3);
        let run = self.run.clone();
        let connecting = async move {
            run.step(ChildKind::ConversationReader, "attach").await?;
            match over {
                Over::Socket(path) => Ok(wire::dial(&*run.host, path, ATTACH_LIMIT).await?),
                Over::Pipes(pipes) => Ok(wire::over_pipes(pipes)),
            }
        };
        let attaching =
            connecting.into_actor(self).then(move |connected: Result<_, AttachError>, reader, ctx| {
                let rpc = reader.rpc.clone();
                let connected = connected.map(|(incoming, out)| {
                    rpc.connect(out);
                    ctx.add_stream(incoming);
                });
                async move {
                    connected?;
                    let shaken = tokio::time::timeout(ATTACH_LIMIT, handshake(&rpc, &plan)).await;
                    shaken.map_err(|_| AttachError::TimedOut)?
                }
                .into_actor(reader)
            });
        Box::pin(attaching.map(|shaken, reader, ctx| {
            let shaken = shaken.inspect_err(|problem| match problem.is_the_agents_end() {
                true => reader.fail(problem.to_string(), ctx),
                false => reader.give_up(problem.to_string(), ctx),
            })?;
            Ok(reader.attached(shaken, ctx))
        }))
    }
}

struct Shaken {
    opened: ThreadOpened,
    version: Option<String>,
    models: ModelList,
    began_anew: bool,
}

async fn handshake(rpc: &RpcClient, plan: &ThreadPlan) -> Result<Shaken, AttachError> {
    let answer =
        call(rpc, method::INITIALIZE, |id| requests::initialize(id, env!("CARGO_PKG_VERSION"))).await?;
    let version = InitializeResult::parse(&answer)?.version().map(str::to_owned);
    rpc.write(requests::initialized());
    // 0.169 asks its backend first and fails when that does; turns work all the same (LAB §2).
    if let Err(problem) = call(rpc, method::ACCOUNT_READ, requests::account_read).await {
        warn!(%problem, "account is not known");
    }
    let models = read_models(rpc).await;
    let options = ThreadOptions {
        cwd: &plan.cwd,
        sandbox: &plan.sandbox,
        approval_policy: &plan.approval_policy,
        model: plan.model.as_deref(),
    };
    let (opened, began_anew) = open_thread(rpc, plan, &options).await?;
    Ok(Shaken { opened, version, models, began_anew })
}

async fn open_thread(
    rpc: &RpcClient,
    plan: &ThreadPlan,
    options: &ThreadOptions<'_>,
) -> Result<(ThreadOpened, bool), AttachError> {
    if let Some(thread) = &plan.thread {
        let resumed =
            call(rpc, method::THREAD_RESUME, |id| requests::thread_resume(id, thread, options)).await;
        match resumed {
            Ok(answer) => return Ok((ThreadOpened::parse(method::THREAD_RESUME, &answer)?, false)),
            Err(AttachError::Call { problem: CallError::Refused(refused), .. })
                if plan.may_begin_anew && refused.is_no_rollout() =>
            {
                warn!(thread, "thread has no rollout, a new one is begun");
            }
            Err(problem) => return Err(problem),
        }
    }
    let answer = call(rpc, method::THREAD_START, |id| requests::thread_start(id, options)).await?;
    Ok((ThreadOpened::parse(method::THREAD_START, &answer)?, plan.thread.is_some()))
}

async fn call(
    rpc: &RpcClient,
    method: &'static str,
    encode: impl Fn(u64) -> String,
) -> Result<Bytes, AttachError> {
    rpc.call(encode).await.map_err(|problem| AttachError::Call { method, problem })
}

/// Reads the model list, every page of it; an agent that has none to give still talks.
async fn read_models(rpc: &RpcClient) -> ModelList {
    let mut pages = Vec::new();
    let mut cursor = None;
    while pages.len() < models::MAX_PAGES {
        match call(rpc, method::MODEL_LIST, |id| requests::model_list(id, cursor.as_deref())).await {
            Ok(page) => {
                cursor = models::next_cursor(&page);
                pages.push(page);
            }
            Err(problem) => {
                warn!(%problem, "model list is not known");
                break;
            }
        }
        if cursor.is_none() {
            break;
        }
    }
    ModelList::from_pages(&pages)
}

impl ConversationReader {
    fn attached(&mut self, shaken: Shaken, ctx: &mut Context<Self>) -> Attached {
        let Shaken { opened, version, models, began_anew } = shaken;
        info!(thread = opened.id, status = ?opened.status, "conversation attached");
        self.attached = true;
        self.pulse.touch();
        self.run.events.tell("codex.model/list", &json!({ "models": models }));
        let known = self.run.ledger.read(|record| record.run.as_ref().and_then(|run| run.turn.clone()));
        let running = opened.running_turn.clone().or_else(|| match opened.status {
            ThreadStatus::Active { .. } => known.clone(),
            ThreadStatus::Idle | ThreadStatus::Other(_) => None,
        });
        let turns = self.turns.insert(Turns::new(opened.id.clone()));
        let effects = turns.attached(&opened.status, running.as_deref());
        // What ran while nobody listened either still runs, or has ended out of sight.
        let ended = known.filter(|turn| running.as_ref() != Some(turn));
        self.missed_some = running.is_some();
        self.perform(effects, ctx);
        if let Some(turn) = ended {
            if let Some(turns) = &opened.turns {
                self.heal(&turn, turns, true, ctx);
            }
            self.session.do_send(super::ConversationFact::TurnEnded { turn });
        }
        Attached { thread_id: opened.id, model: opened.model, version, began_anew, running_turn: running }
    }
}

impl ThreadPlan {
    /// The plan that the record says.
    pub fn of(run: &RunContext) -> Self {
        run.ledger.read(|record| {
            let of_run = record.run.as_ref();
            Self {
                thread: of_run.and_then(|r| r.thread_id.clone().or_else(|| r.resume_thread.clone())),
                may_begin_anew: !of_run.is_some_and(|r| r.had_turn),
                cwd: run.dir.workdir().display().to_string(),
                sandbox: record.config.sandbox_mode().as_str().to_owned(),
                approval_policy: record.config.approval_policy().as_str().to_owned(),
                model: record.model.clone(),
            }
        })
    }
}
