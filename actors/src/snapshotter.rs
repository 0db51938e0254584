//! Snapshotter: captures the seed and the workdir of a run, and restores a workdir.

mod thread;

use std::time::Duration;

use actix::prelude::*;
use futures_util::StreamExt;
use optio_codex_protocol::auth;
use optio_host::{Codec, Excludes, HostError};
use optio_store::{NewSeed, NewSnapshot, SeedFiles, SnapshotId, SnapshotRow, StoreError};
use serde_json::json;
use tracing::{info, warn};

use crate::cred_watcher::AUTH_JSON;
use crate::hooks;
use crate::login::account_of;
use crate::session::RunContext;
use crate::session::phase::EndState;
use crate::session::record::SessionRecord;
use crate::supervision::{ChildKind, Observation, Observe, Pulse, beat};
use crate::teardown::{CaptureSeed, CaptureSnapshot, Finish, Step, StepError, StepResult};
use crate::trace::Deed;

/// How often it shows that it lives.
const BEAT: Duration = Duration::from_secs(5);

/// Silence past this is loss.
pub(crate) const PULSE_LIMIT: Duration = Duration::from_secs(30);

/// Largest file of a login that is captured.
const LOGIN_LIMIT: u64 = 1 << 20;

/// Captures and restores. It decides nothing about the order; its receipts say what it may do.
pub struct Snapshotter {
    run: RunContext,
    pulse: Pulse,
    phase: &'static str,
    last_error: Option<String>,
}

impl Snapshotter {
    /// A snapshotter for this run.
    pub fn new(run: RunContext, pulse: Pulse) -> Self {
        Self { run, pulse, phase: "idle", last_error: None }
    }

    fn finish<T, E: ToString>(&mut self, result: Result<T, E>) -> Result<T, E> {
        self.phase = "idle";
        self.last_error = result.as_ref().err().map(ToString::to_string);
        result
    }
}

impl Actor for Snapshotter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(BEAT, |snapshotter, _| snapshotter.pulse.touch());
        beat(ctx, ChildKind::Snapshotter, self.run.clone());
    }
}

/// Puts a snapshot's workdir in place of the run's.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<SnapshotRow, RestoreError>")]
pub struct Restore(pub SnapshotId);

/// Why a workdir could not be restored. There is never a silent fresh start instead (T-198).
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The snapshot cannot be read.
    #[error("snapshot cannot be read: {0}")]
    Store(#[from] StoreError),
    /// The workdir cannot be written, or the archive is not acceptable.
    #[error("snapshot cannot be restored: {0}")]
    Host(#[from] HostError),
    /// The fault seam struck.
    #[error(transparent)]
    Injected(#[from] crate::faults::Injected),
}

impl Handler<Restore> for Snapshotter {
    type Result = ResponseActFuture<Self, Result<SnapshotRow, RestoreError>>;

    fn handle(&mut self, Restore(id): Restore, _: &mut Self::Context) -> Self::Result {
        self.phase = "restoring";
        let run = self.run.clone();
        let restoring = async move {
            run.step(ChildKind::Snapshotter, "restore").await?;
            let row = run.store.snapshots.get(&id).await?;
            let row = row.ok_or_else(|| StoreError::NotFound { what: "snapshot", id: id.to_string() })?;
            let codec = codec_of(&row.codec).ok_or_else(|| StoreError::Damaged {
                what: format!("snapshot {id}"),
                why: format!("codec {:?} is not known", row.codec),
            })?;
            let archive = run.store.snapshots.open(&id).await?;
            // What the store finds wrong half way must stop the extraction, not end it.
            let archive =
                archive.map(|chunk| chunk.map_err(|problem| HostError::BadArchive(problem.to_string())));
            run.host.restore(&run.dir, archive.boxed(), codec).await?;
            info!(snapshot = %id, "workdir restored");
            Ok(row)
        };
        Box::pin(restoring.into_actor(self).map(|result, snapshotter, _| snapshotter.finish(result)))
    }
}

impl Handler<CaptureSeed> for Snapshotter {
    type Result = ResponseActFuture<Self, StepResult>;

    fn handle(&mut self, capture: CaptureSeed, _: &mut Self::Context) -> Self::Result {
        self.phase = "capturing the seed";
        let run = self.run.clone();
        let refusal = seed_refusal(&run, &capture);
        let capturing = async move {
            run.step(ChildKind::Snapshotter, "capture_seed").await.map_err(StepError::new)?;
            if let Some(why) = refusal {
                return Ok(Finish::Skipped(why));
            }
            capture_seed(&run).await
        };
        Box::pin(capturing.into_actor(self).map(|result, snapshotter, _| snapshotter.finish(result)))
    }
}

/// Why no seed is captured: only a login that was made in this run, and is not in use elsewhere, becomes one
/// (T-148…T-151, INV-34…INV-37).
fn seed_refusal(run: &RunContext, capture: &CaptureSeed) -> Option<String> {
    if !capture.stopped.agent_is_gone() {
        return Some("the agent is not proven gone".to_owned());
    }
    run.ledger.read(|record| {
        let of_run = record.run.as_ref()?;
        let why = if !record.config.captures_seed() {
            "it was not asked for"
        } else if !of_run.was_live {
            "the agent never came up"
        } else if of_run.seed.is_some() {
            "the session uses a seed already"
        } else if of_run.resumed_from.is_some() {
            "the session was resumed"
        } else {
            return None;
        };
        Some(why.to_owned())
    })
}

async fn capture_seed(run: &RunContext) -> StepResult {
    let Some(auth_json) = read_optional(run, AUTH_JSON).await? else {
        return Ok(Finish::Skipped("there is no login".to_owned()));
    };
    let credential = auth::read(&auth_json);
    if !credential.is_login() {
        return Ok(Finish::Skipped("there is no login".to_owned()));
    }
    let mut files = SeedFiles::default();
    files.0.insert(SeedFiles::AUTH.to_owned(), auth_json);
    if let Some(config) = read_optional(run, "home/.codex/config.toml").await? {
        files.0.insert(SeedFiles::CONFIG.to_owned(), config);
    }
    let seed =
        NewSeed { files, account: account_of(&credential), pool: None, metadata: serde_json::Map::new() };
    let row = match run.store.seeds.import(seed).await {
        Ok(row) => row,
        // Two seeds of one lineage would strand each other; the one that is there is the login.
        Err(StoreError::Conflict { id, .. }) => {
            return Ok(Finish::Skipped(format!("the login is stored already, as seed {id}")));
        }
        Err(problem) => return Err(StepError::new(problem)),
    };
    run.did(Deed::SeedCaptured);
    run.events.tell("seed.saved", &json!({ "seed": row.id, "captured": true }));
    hooks::on_seed_saved(run, &row.id.to_string()).await;
    Ok(Finish::Done(format!("seed {} was captured", row.id)))
}

async fn read_optional(run: &RunContext, path: &'static str) -> Result<Option<bytes::Bytes>, StepError> {
    match run.host.read(&run.dir, &RunContext::in_workdir(path), LOGIN_LIMIT).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(HostError::NotFound { .. }) => Ok(None),
        Err(problem) => Err(StepError::of_host(problem)),
    }
}

impl Handler<CaptureSnapshot> for Snapshotter {
    type Result = ResponseActFuture<Self, StepResult>;

    fn handle(&mut self, capture: CaptureSnapshot, _: &mut Self::Context) -> Self::Result {
        self.phase = "capturing the workdir";
        self.pulse.quiet_for(Step::CaptureSnapshot.limit());
        let run = self.run.clone();
        let gone = capture.stopped.agent_is_gone();
        let capturing = async move {
            run.step(ChildKind::Snapshotter, "capture_snapshot").await.map_err(StepError::new)?;
            if gone {
                hooks::after_execute(&run).await;
            }
            let gate = run.ledger.read(snapshot_refusal);
            match gate {
                Some(why) => Ok(Finish::Skipped(why)),
                None if !gone => Ok(Finish::Withheld("the agent is not proven gone".to_owned())),
                None => {
                    thread::note_the_terminals(&run).await;
                    capture_workdir(&run).await
                }
            }
        };
        Box::pin(capturing.into_actor(self).map(|result, snapshotter, _| {
            snapshotter.pulse.touch();
            snapshotter.finish(result)
        }))
    }
}

fn codec_of(word: &str) -> Option<Codec> {
    match word {
        "gzip" => Some(Codec::Gzip),
        "zstd" => Some(Codec::Zstd),
        _ => None,
    }
}

/// Why no snapshot is due: a run that never came up must not shadow an earlier one (S-322, S-466, T-179).
fn snapshot_refusal(record: &SessionRecord) -> Option<String> {
    if !record.config.supports_resume() {
        return Some("the session does not support resume".to_owned());
    }
    let live = record.run.as_ref().is_some_and(|run| run.was_live);
    (!live).then(|| "the agent never came up".to_owned())
}

async fn capture_workdir(run: &RunContext) -> StepResult {
    // Begun by an earlier process, and perhaps finished: one run stores one snapshot.
    let stored = run.store.snapshots.list(&run.session).await.map_err(StepError::new)?;
    let before = run.ledger.read(|r| r.run.as_ref().map(|of_run| of_run.newest_before.clone()));
    if let Some(row) = before.unwrap_or_default().own(&stored) {
        run.did(Deed::SnapshotStored);
        return Ok(Finish::Done(format!("snapshot {} is on record", row.id)));
    }
    // Whoever shares the store must be able to read it.
    let word = run.store.snapshots.codec();
    let codec = codec_of(word).ok_or_else(|| StepError::new(format!("codec {word:?} is not known")))?;
    let (patterns, mut about) = run.ledger.read(|record| (excludes(record), about(record, word)));
    if let Some(thread) = &about.thread_id
        && !thread::has_rollout(run, thread).await
    {
        warn!("thread has no rollout, a resume will begin a new one");
        about.thread_id = None;
    }
    let excludes = Excludes::new(patterns).map_err(StepError::of_host)?;
    let mut archive = run.host.archive(&run.dir, excludes, codec).await.map_err(StepError::of_host)?;
    let mut writer = run.store.snapshots.begin().await.map_err(StepError::new)?;
    while let Some(chunk) = archive.next().await {
        writer.write(chunk.map_err(StepError::of_host)?).await.map_err(StepError::new)?;
    }
    let row = writer.commit(about).await.map_err(StepError::new)?;
    run.did(Deed::SnapshotStored);
    run.events.tell(
        "snapshot.captured",
        &json!({ "snapshot": row.id, "bytes": row.len, "thread_id": row.thread_id }),
    );
    Ok(Finish::Done(format!("snapshot {} has {} bytes", row.id, row.len)))
}

/// What stays out. A seeded session's login too: the seed is the authority, and a stored copy of a single-use token
/// would come back as a spent one (T-193).
fn excludes(record: &SessionRecord) -> Vec<String> {
    let seeded = record.run.as_ref().is_some_and(|run| run.seed.is_some());
    record.config.effective_excludes(seeded)
}

fn about(record: &SessionRecord, codec: &str) -> NewSnapshot {
    let run = record.run.as_ref();
    NewSnapshot {
        session: record.id.clone(),
        end_state: record.outcome.unwrap_or(EndState::Stopped).on_snapshot().to_owned(),
        // A thread that never had a turn has no rollout and cannot be resumed (S-472); the one that this run itself
        // resumed has one.
        thread_id: run.and_then(|r| {
            r.thread_id.clone().filter(|id| r.had_turn || r.resume_thread.as_ref() == Some(id))
        }),
        codec: codec.to_owned(),
        seed: run.and_then(|r| r.seed.clone()),
    }
}

impl Handler<Observe> for Snapshotter {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        MessageResult(Observation {
            phase: self.phase.to_owned(),
            last_error: self.last_error.clone(),
            detail: json!({}),
        })
    }
}
