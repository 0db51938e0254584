//! Starting a run, in order. Every failure, and every stop that comes meanwhile, leaves through the teardown.
//!
//! ```text
//! connect ─ workdir (empty, restored, or kept) ─ codex ─ lease ─ login ─ texts ─ log ─ agent ─ conversation ─ first turn
//!       └ tmux                                                                            └─ terminal
//! ```
//!
//! What a later process must know is on record before the deed that needs undoing is done.

mod agent;
mod login;
mod protocol;
mod terminal;

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use jiff::Timestamp;
use optio_codex_protocol::agents_md;
use optio_codex_protocol::argv::{KICKOFF, RESUME_NOTICE};
use optio_codex_protocol::config::Mode;
use optio_codex_protocol::requests::Input;
use optio_codex_protocol::workdir;
use optio_host::provision::Tool;
use optio_host::{CodexBinary, HostError, RelPath};
use optio_store::StoreError;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::children::{Crew, Front};
use super::end::Cause;
use super::last_words::last_words;
use super::record::{RunRecord, SessionRecord};
use super::{RunContext, TurnMode};
use crate::conversation::{Attach, AttachError, Attached, ConversationReader, Over, SendMessage, ThreadPlan};
use crate::hooks;
use crate::host_link::Connect;
use crate::lease_renewer::AcquireError;
use crate::process::{LastWords, Pipes};
use crate::provisioner::{self, ProvideError, Provided};
use crate::settings::Settings;
use crate::snapshotter::{Restore, RestoreError};
use crate::supervision::ChildKind;
use crate::teardown::Step;
use crate::trace::Deed;

/// Directories without which codex does not work (S-236).
const HOME_DIRS: [&str; 5] =
    ["home/.codex", "home/.local/bin", "home/.local/share", "home/.config", "home/.cache"];

/// How long a step may take that asks the host, the store or an actor for small things: several of their own limits.
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// How long a program may take to be had: longer than the limit of whoever provides it, which says more.
const PROVIDE_LIMIT: Duration = Duration::from_secs(40 * 60);

/// How long the workdir may take: a restore has the room that its capture had.
const WORKDIR_LIMIT: Duration = Step::CaptureSnapshot.limit();

/// How long the conversation may take to come up: dial, upgrade and handshake, each with a limit of its own.
pub(super) const ATTACH_LIMIT: Duration = Duration::from_secs(100);

/// How long an end that comes meanwhile waits for the step under way. Short: an agent whose lease is lost at 45 s has
/// to be gone before 60 s (INV-08).
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Why a run could not be started.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    /// Somebody stopped it meanwhile. That cause is on record already.
    #[error("the run was stopped while it was starting")]
    Stopped,
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Lease(#[from] AcquireError),
    #[error(transparent)]
    Provide(#[from] ProvideError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error("the conversation did not come up: {problem}{said}")]
    Attach { problem: AttachError, said: String },
    #[error("the conversation reader died during the launch{said}")]
    BrokeOff { said: String },
    #[error("{0}")]
    Unusable(String),
    #[error("{0} died during the launch")]
    Died(&'static str),
    #[error("{doing} did not end within {limit:?}")]
    Endless { doing: &'static str, limit: Duration, child: ChildKind },
}

impl LaunchError {
    /// The stable word for a host that could not be reached.
    fn code(&self) -> Option<&'static str> {
        match self {
            Self::Host(problem) | Self::Restore(RestoreError::Host(problem)) => problem.reach_code(),
            _ => None,
        }
    }
}

/// A launch that did not succeed.
pub(super) struct NotLaunched {
    /// Why.
    pub cause: Cause,
    /// The child that may still be at it, and must not finish what the teardown undoes.
    pub still_at_it: Option<ChildKind>,
}

/// Starts the run that is on record.
pub(super) async fn launch(
    settings: Arc<Settings>,
    run: RunContext,
    crew: Crew,
    stop: CancellationToken,
) -> Result<(), NotLaunched> {
    let launch = Launching { settings, run, crew, stop };
    launch.all().await.map_err(|problem| {
        warn!(%problem, "run did not start");
        let still_at_it = match &problem {
            LaunchError::Endless { child, .. } => Some(*child),
            _ => None,
        };
        let cause = Cause { code: problem.code().map(str::to_owned), ..Cause::failed(problem.to_string()) };
        NotLaunched { cause, still_at_it }
    })
}

struct Launching {
    settings: Arc<Settings>,
    run: RunContext,
    crew: Crew,
    stop: CancellationToken,
}

impl Launching {
    async fn all(&self) -> Result<(), LaunchError> {
        use ChildKind::{ConversationReader, HostLink, LeaseRenewer, Process, Snapshotter, Terminal};
        let mode = self.run.ledger.read(|record| record.config.mode());
        let reached = self.step("reaching the host", STEP_LIMIT, HostLink, self.connect()).await;
        if reached.is_err() {
            // Its teardown has nothing to wait for.
            self.run.ledger.edit(|record| {
                if let Some(run) = &mut record.run {
                    run.host_unreached = true;
                }
            });
        }
        reached?;
        if mode == Mode::Terminal {
            self.step("finding tmux", STEP_LIMIT, HostLink, self.places()).await?;
        }
        self.step("preparing the workdir", WORKDIR_LIMIT, Snapshotter, self.workdir()).await?;
        let codex = self.step("providing codex", PROVIDE_LIMIT, HostLink, self.codex()).await?;
        self.step("linking codex", STEP_LIMIT, HostLink, self.link(&codex)).await?;
        self.step("leasing the seed", STEP_LIMIT, LeaseRenewer, self.login()).await?;
        self.step("writing the instructions", STEP_LIMIT, HostLink, self.texts()).await?;
        self.step("preparing the log", STEP_LIMIT, HostLink, self.protocol()).await?;
        let asking = async { hooks::before_execute(&self.run).await.map_err(LaunchError::Unusable) };
        self.step("asking the operator's hook", hooks::LIMIT + STEP_LIMIT, HostLink, asking).await?;
        if mode == Mode::Terminal {
            self.step("starting the agent", STEP_LIMIT, Process, self.terminal(codex)).await?;
            return self.step("waiting for the terminal", STEP_LIMIT, Terminal, self.curtain()).await;
        }
        let pipes = self.step("starting the agent", STEP_LIMIT, Process, self.app_server(codex)).await?;
        let conversing = self.converse(pipes);
        let attached =
            self.step("attaching the conversation", ATTACH_LIMIT, ConversationReader, conversing).await?;
        let first = async {
            self.first_turn(&attached).await;
            Ok(())
        };
        self.step("sending the first message", STEP_LIMIT, ConversationReader, first).await
    }

    /// One step, unless somebody has stopped the run (S-190). A stop that comes meanwhile waits a little for it, so that
    /// its outcome does not come after the steps that undo it; a hung `child` is the teardown's to replace.
    async fn step<T>(
        &self,
        doing: &'static str,
        limit: Duration,
        child: ChildKind,
        step: impl Future<Output = Result<T, LaunchError>>,
    ) -> Result<T, LaunchError> {
        if self.stop.is_cancelled() {
            return Err(LaunchError::Stopped);
        }
        let given_up = async {
            self.stop.cancelled().await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            biased;
            ended = tokio::time::timeout(limit, step) => {
                ended.unwrap_or(Err(LaunchError::Endless { doing, limit, child }))
            }
            () = given_up => Err(LaunchError::Endless { doing, limit: STOP_GRACE, child }),
        }
    }

    async fn connect(&self) -> Result<(), LaunchError> {
        ask("the host link", self.crew.host_link.send(Connect)).await??;
        Ok(())
    }

    async fn save(&self) -> Result<(), LaunchError> {
        Ok(self.run.ledger.save().await?)
    }

    /// An empty workdir, a restored one, or the one that was kept because it could not be stored.
    async fn workdir(&self) -> Result<(), LaunchError> {
        let (host, dir) = (&self.run.host, &self.run.dir);
        let (kept, snapshot) = self.run.ledger.read(|record| {
            let snapshot = record.run.as_ref().and_then(|run| run.resumed_from.clone());
            (record.workdir_kept.is_some(), snapshot)
        });
        if kept && snapshot.is_none() && host.exists(dir).await? {
            info!("run goes on in the kept workdir");
        } else {
            host.create(dir).await?;
            if let Some(snapshot) = snapshot {
                ask("the snapshotter", self.crew.snapshotter.send(Restore(snapshot))).await??;
            }
        }
        // From here on the workdir is this run's; what becomes of it is its teardown's to say.
        self.run.ledger.edit(|record| record.workdir_kept = None);
        for path in HOME_DIRS {
            host.make_dir(dir, &in_workdir(path)?).await?;
        }
        Ok(())
    }

    async fn codex(&self) -> Result<CodexBinary, LaunchError> {
        let Provided { path, version, can_listen } = self.provide(Tool::Codex).await?;
        info!(version, path = %path.display(), "codex found");
        Ok(CodexBinary { path, version, can_listen })
    }

    /// Launched through a link of its own, a session's agent can be told from another's (S-235, S-237).
    async fn link(&self, codex: &CodexBinary) -> Result<(), LaunchError> {
        let link = in_workdir(&format!("{}/codex", workdir::LOCAL_BIN))?;
        Ok(self.run.host.link(&self.run.dir, &link, &codex.path).await?)
    }

    /// Has a tool provided on the host, as this session wants it. Its events tell how far that is.
    async fn provide(&self, tool: Tool) -> Result<Provided, LaunchError> {
        let wishes = self.run.ledger.read(|record| self.settings.wishes(tool, &record.config, &record.host));
        let (run, progress) = (&self.run, Some(self.run.events.clone()));
        match provisioner::provide(&run.provisioner, &run.host, tool, wishes, progress, &self.stop).await {
            Err(ProvideError::Stopped(_)) => Err(LaunchError::Stopped),
            provided => Ok(provided?),
        }
    }

    async fn texts(&self) -> Result<(), LaunchError> {
        let (host, dir) = (&self.run.host, &self.run.dir);
        let (agents_md, resumable) = self.run.ledger.read(|record| {
            let seeded = record.run.as_ref().is_some_and(|run| run.seed.is_some());
            let excludes = record.config.effective_excludes(seeded);
            let text = agents_md::compose(&record.config, record.config.keyword_features(), &excludes);
            (text, record.config.supports_resume())
        });
        host.write(dir, &in_workdir(workdir::AGENTS_MD)?, Bytes::from(agents_md), 0o600).await?;
        if resumable {
            let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ\n").to_string();
            host.append(dir, &in_workdir(workdir::RESUME_LOG)?, Bytes::from(now)).await?;
        }
        Ok(())
    }

    async fn converse(&self, pipes: Option<Pipes>) -> Result<Attached, LaunchError> {
        let over = match pipes {
            Some(pipes) => Over::Pipes(pipes),
            None => Over::Socket(self.run.host.socket_path(&self.run.dir)),
        };
        let attach = Attach { over, plan: ThreadPlan::of(&self.run) };
        let attaching = reader(&self.crew)?.send(attach);
        // A handshake may take its whole limit; a stop need not wait for it.
        let attached = tokio::select! {
            attached = attaching => attached,
            () = self.stop.cancelled() => return Err(LaunchError::Stopped),
        };
        let attached = match attached {
            Ok(Ok(attached)) => attached,
            Ok(Err(problem)) => {
                let said = self.last_words(!matches!(problem, AttachError::TimedOut)).await;
                return Err(LaunchError::Attach { problem, said });
            }
            // The reader exits without an answer when the wire breaks under it.
            Err(_) => return Err(LaunchError::BrokeOff { said: self.last_words(true).await }),
        };
        attached_is_live(&self.run, &attached).await?;
        Ok(attached)
    }

    /// What the agent last said on standard error: an agent that fails to come up says why there.
    async fn last_words(&self, to_the_end: bool) -> String {
        // A process actor that died is another exit, which the session hears of.
        let stderr = self.crew.process.send(LastWords { to_the_end }).await.unwrap_or_default();
        last_words(&stderr).map(|words| format!("; the agent last said: {words}")).unwrap_or_default()
    }

    /// The kickoff of a fresh run that starts by itself, or the notice of a resumed one (S-325).
    async fn first_turn(&self, attached: &Attached) {
        let (Some(text), Ok(reader)) = (self.run.ledger.read(first_text), reader(&self.crew)) else {
            return;
        };
        info!(thread = attached.thread_id, "first message is sent");
        let message = SendMessage { input: vec![Input::Text(text.to_owned())], mode: TurnMode::Auto };
        // The run is live whether or not this arrives; a person can say it again.
        match reader.send(message).await {
            Ok(Ok(_)) => {}
            Ok(Err(problem)) => self.run.events.tell(
                "attention",
                &json!({ "reason": format!("the first message was not taken: {problem}") }),
            ),
            Err(_) => warn!("reader died before the first message"),
        }
    }
}

/// What a run begins with: the kickoff of a fresh one that starts by itself, the notice of a resumed one (S-254).
fn first_text(record: &SessionRecord) -> Option<&'static str> {
    let run = record.run.as_ref();
    let resumed = run.is_some_and(|r| r.resumed_from.is_some() || r.resume_thread.is_some());
    match (resumed, record.config.auto_start()) {
        (true, _) => Some(RESUME_NOTICE),
        (false, true) => Some(KICKOFF),
        (false, false) => None,
    }
}

fn reader(crew: &Crew) -> Result<&Addr<ConversationReader>, LaunchError> {
    match &crew.front {
        Front::Conversation(reader) => Ok(reader),
        Front::Terminal(_) => Err(LaunchError::Unusable("a terminal has no conversation".to_owned())),
    }
}

async fn attached_is_live(run: &RunContext, attached: &Attached) -> Result<(), StoreError> {
    if attached.began_anew {
        let reason = "the conversation could not be resumed, its thread has no rollout; a new one was begun";
        run.events.tell("attention", &json!({ "reason": reason }));
    }
    went_live(run, |of_run| {
        of_run.thread_id = Some(attached.thread_id.clone());
        of_run.model = attached.model.clone();
        if let (Some(agent), Some(version)) = (&mut of_run.agent, &attached.version) {
            agent.version = version.clone();
        }
    })
    .await
}

/// Puts on record that the agent can be met, and that there is work to keep from here on.
pub(super) async fn went_live(run: &RunContext, with: impl FnOnce(&mut RunRecord)) -> Result<(), StoreError> {
    run.ledger.edit(|record| {
        let Some(of_run) = &mut record.run else { return };
        with(of_run);
        of_run.was_live = true;
    });
    run.ledger.save().await?;
    run.did(Deed::WentLive);
    Ok(())
}

/// Attaches a fresh reader to an agent that listens.
pub(super) async fn attach_again(run: RunContext, crew: Crew) -> Result<(), String> {
    let over = Over::Socket(run.host.socket_path(&run.dir));
    let attach = Attach { over, plan: ThreadPlan::of(&run) };
    let reader = reader(&crew).map_err(|problem| problem.to_string())?;
    let attached = reader.send(attach).await.map_err(|_| "the reader died".to_owned())?;
    let attached = attached.map_err(|problem| problem.to_string())?;
    attached_is_live(&run, &attached).await.map_err(|problem| problem.to_string())
}

async fn ask<T>(
    who: &'static str,
    asking: impl Future<Output = Result<T, MailboxError>>,
) -> Result<T, LaunchError> {
    asking.await.map_err(|_| LaunchError::Died(who))
}

fn in_workdir(path: &str) -> Result<RelPath, HostError> {
    RelPath::in_workdir(path)
}
