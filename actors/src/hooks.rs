//! What an operator's hooks are told of a run, and what becomes of their answers.

use std::time::Duration;

use optio_codex_protocol::config::Mode;
use optio_hooks::{End, Run};
use serde_json::json;
use tracing::warn;

use crate::session::RunContext;
use crate::session::phase::EndState;

/// How long a hook may take that a launch or an end waits for. A little more than the hooks of the configuration have, so
/// that those say themselves that they took too long.
pub(crate) const LIMIT: Duration = Duration::from_secs(65);

/// The run as it is told.
pub(crate) fn about(run: &RunContext) -> Run {
    run.ledger.read(|record| Run {
        session: record.id.to_string(),
        run: run.run.to_string(),
        name: record.name.clone(),
        labels: record.labels.clone(),
        host: record.host.clone(),
        mode: match record.config.mode() {
            Mode::Conversation => "conversation",
            Mode::Terminal => "terminal",
        },
        workdir: run.dir.workdir().display().to_string(),
    })
}

/// Asks before the agent is started. The answer is why it is not to be.
pub(crate) async fn before_execute(run: &RunContext) -> Result<(), String> {
    // On record first: from here on there is somebody to be told of the end.
    run.ledger.edit(|record| {
        if let Some(of_run) = &mut record.run {
            of_run.after_execute_is_due = true;
        }
    });
    run.ledger.save().await.map_err(|problem| problem.to_string())?;
    match tokio::time::timeout(LIMIT, run.hooks.before_execute(&about(run))).await {
        Ok(answer) => answer.map_err(|problem| problem.to_string()),
        Err(_) => Err(format!("before_execute did not end within {LIMIT:?}")),
    }
}

/// Tells of the end, once: the agent is gone, its workdir still there. A failure is what the run failed of, unless it had
/// failed already (S-191).
pub(crate) async fn after_execute(run: &RunContext) {
    let due = run.ledger.read(|record| record.run.as_ref().is_some_and(|of_run| of_run.after_execute_is_due));
    if !due {
        return;
    }
    let end = run.ledger.read(|record| End {
        outcome: record.outcome.unwrap_or(EndState::Failed).name(),
        reason: record.reason.clone(),
    });
    let told = tokio::time::timeout(LIMIT, run.hooks.after_execute(&about(run), &end)).await;
    let why = match told {
        Ok(Ok(())) => None,
        Ok(Err(problem)) => Some(problem.to_string()),
        Err(_) => Some(format!("after_execute did not end within {LIMIT:?}")),
    };
    if let Some(why) = &why {
        warn!(why, "hook failed");
        run.events.tell("attention", &json!({ "reason": why }));
    }
    run.ledger.edit(|record| {
        if let Some(of_run) = &mut record.run {
            of_run.after_execute_is_due = false;
        }
        if let Some(why) = why.filter(|_| record.outcome != Some(EndState::Failed)) {
            record.outcome = Some(EndState::Failed);
            record.reason = Some(why);
        }
    });
    if let Err(problem) = run.ledger.save().await {
        // It is told once more, then, by the next service that walks this end.
        warn!(%problem, "hook's call is not on record");
    }
}

/// Tells that a login has become a seed; a failure is shown and changes nothing (S-468).
pub(crate) async fn on_seed_saved(run: &RunContext, seed: &str) {
    let told = tokio::time::timeout(LIMIT, run.hooks.on_seed_saved(&about(run), seed)).await;
    let why = match told {
        Ok(Ok(())) => return,
        Ok(Err(problem)) => problem.to_string(),
        Err(_) => format!("on_seed_saved did not end within {LIMIT:?}"),
    };
    warn!(why, "hook failed");
    run.events.tell("attention", &json!({ "reason": why }));
}
