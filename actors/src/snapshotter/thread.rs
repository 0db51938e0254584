//! Which Codex thread a workdir goes on with: looked up in the rollouts that Codex left in it.

use optio_codex_protocol::config::Mode;
use optio_codex_protocol::rollout::{Header, candidates};
use optio_codex_protocol::workdir::SESSIONS;
use optio_host::{HostError, RelPath};
use tracing::{info, warn};

use crate::session::RunContext;

/// Rollouts looked through; a session has one for each of its threads.
const ROLLOUTS: usize = 10_000;

/// Rollouts of sub-agents and nested runs that may be newer than the session's own (S-498).
const LOOKED_INTO: usize = 50;

/// Bytes of a rollout's first line: its header holds the whole base instructions.
const HEADER_LIMIT: usize = 1 << 20;

/// Looks for the thread's rollout by its name. When the directory cannot be read, the id is kept: only a confirmed
/// absence drops it (T-176).
pub(super) async fn has_rollout(run: &RunContext, thread: &str) -> bool {
    let suffix = format!("-{thread}.jsonl");
    match rollouts(run).await {
        Ok(files) => files.iter().map(RelPath::as_str).any(|path| path.ends_with(&suffix)),
        Err(problem) => {
            warn!(%problem, "rollouts cannot be listed, the thread is kept on record");
            true
        }
    }
}

/// Puts the thread of a terminal on record, which says nothing of it while it runs. What cannot be read leaves the thread
/// that is known (S-473, S-499).
pub(super) async fn note_the_terminals(run: &RunContext) {
    let known = run.ledger.read(|record| {
        let of_run = record.run.as_ref();
        let known = of_run.and_then(|of_run| of_run.thread_id.clone().or(of_run.resume_thread.clone()));
        (record.config.mode() == Mode::Terminal).then_some(known)
    });
    let Some(known) = known else { return };
    let thread = match newest(run, known.as_deref()).await {
        Ok(found) => found.or(known),
        Err(problem) => {
            warn!(%problem, "rollouts cannot be read, the thread that is known is kept");
            known
        }
    };
    info!(thread, "thread of the terminal");
    run.ledger.edit(|record| {
        if let Some(of_run) = record.run.as_mut().filter(|_| thread.is_some()) {
            of_run.thread_id = thread;
            of_run.had_turn = true;
        }
    });
}

async fn newest(run: &RunContext, known: Option<&str>) -> Result<Option<String>, HostError> {
    let files = rollouts(run).await?;
    for candidate in candidates(files.iter().map(RelPath::as_str), known).into_iter().take(LOOKED_INTO) {
        if Some(candidate.thread.as_str()) == known {
            return Ok(Some(candidate.thread));
        }
        let path = files.iter().find(|path| path.as_str().ends_with(&candidate.file));
        let Some(path) = path else { continue };
        let start = run.host.read_from(&run.dir, path, 0, HEADER_LIMIT).await?.bytes;
        let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
        if Header::parse(line).is_some_and(|header| header.is_top_level()) {
            return Ok(Some(candidate.thread));
        }
    }
    Ok(None)
}

async fn rollouts(run: &RunContext) -> Result<Vec<RelPath>, HostError> {
    run.host.list(&run.dir, &RunContext::in_workdir(SESSIONS), ROLLOUTS).await
}
