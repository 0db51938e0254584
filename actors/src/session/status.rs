//! What the outside may know of a session (API "Objects"). One writer: the session itself.

use std::collections::BTreeMap;

use jiff::Timestamp;
use optio_codex_protocol::config::Mode;
use optio_store::{Holder, RunId, SeedId, SessionId, SnapshotId};
use serde::Serialize;

use super::log::Progress;
use super::phase::{EndState, State};
use super::record::{SessionRecord, StepRecord};

/// A session as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionView {
    /// Its id.
    pub id: SessionId,
    /// What people call it.
    pub name: String,
    /// What tools sort it by.
    pub labels: BTreeMap<String, String>,
    /// `conversation` or `terminal`.
    pub mode: &'static str,
    /// Its host's name.
    pub host: String,
    /// What it is doing.
    pub state: State,
    /// How it ended, once it has.
    pub outcome: Option<EndState>,
    /// One sentence that a person understands.
    pub reason: Option<String>,
    /// The stable word for the reason, where it has one, e.g. that of a host that could not be reached.
    pub code: Option<String>,
    /// Its host is out of reach; the agent may live on meanwhile.
    pub host_down: Option<HostDownView>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Its present or last run.
    pub run: Option<RunView>,
    /// What it waits for.
    pub waiting: Vec<WaitingFor>,
    /// How far the agent is, as it says itself.
    pub progress: Option<Progress>,
    /// Its teardown, step by step; empty until it begins.
    pub teardown: Vec<StepView>,
    /// There is a snapshot to resume from.
    pub has_snapshot: bool,
    /// Where the workdir was kept, if it was.
    pub workdir_kept: Option<String>,
    /// The number of its newest event.
    pub last_event: u64,
}

/// A host that is out of reach, as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostDownView {
    /// Since when.
    pub since: Timestamp,
    /// The stable word for it.
    pub code: String,
    /// What was tried last, in words.
    pub reason: String,
}

/// A run as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunView {
    /// Its id.
    pub id: RunId,
    /// When it began.
    pub started_at: Timestamp,
    /// Its agent.
    pub agent: Option<AgentView>,
    /// The seed it uses.
    pub seed: Option<SeedId>,
    /// The seed's lease, while it is held.
    pub lease: Option<LeaseView>,
    /// The Codex thread.
    pub thread_id: Option<String>,
    /// The model of the next turn.
    pub model: Option<String>,
    /// The reasoning effort of the next turn.
    pub effort: Option<String>,
    /// The snapshot it began from.
    pub resumed_from: Option<SnapshotId>,
}

/// An agent as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentView {
    /// Its process id on its host.
    pub pid: u32,
    /// Codex's version.
    pub version: String,
}

/// A lease as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaseView {
    /// Who holds it.
    pub holder: Holder,
    /// When it ends unless renewed, by the store's clock.
    pub expires_at: Timestamp,
}

/// Something a person has to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WaitingFor {
    /// What kind of thing.
    pub kind: &'static str,
    /// Which: an approval's id, or the name of a call for a person.
    pub id: String,
    /// Since when.
    pub since: Timestamp,
    /// What for, where the agent said it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A teardown step as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepView {
    /// Its name.
    pub step: &'static str,
    /// `pending`, `running`, `done`, `skipped`, `failed` or `withheld`.
    pub state: &'static str,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
    /// What was found, or what went wrong.
    pub detail: Option<String>,
}

impl From<&StepRecord> for StepView {
    fn from(record: &StepRecord) -> Self {
        let state = match (&record.outcome, record.started_at) {
            (Some(outcome), _) => outcome.state(),
            (None, Some(_)) => "running",
            (None, None) => "pending",
        };
        Self {
            step: record.step.name(),
            state,
            started_at: record.started_at,
            ended_at: record.ended_at,
            detail: match (&record.outcome, &record.trouble) {
                (Some(outcome), _) => Some(outcome.detail().to_owned()).filter(|d| !d.is_empty()),
                (None, trouble) => trouble
                    .as_ref()
                    .map(|why| format!("it is asked again, {} times by now: {why}", record.again)),
            },
        }
    }
}

impl SessionView {
    /// Shows a record; `last_event` is the newest number of its journal.
    pub fn of(record: &SessionRecord, last_event: u64) -> Self {
        let approvals = record.approvals.iter().filter(|a| a.is_pending()).map(|a| WaitingFor {
            kind: "approval",
            id: a.id.to_string(),
            since: a.asked_at,
            reason: None,
        });
        let log = record.run.as_ref().map(|run| &run.log);
        let attention = log.and_then(|log| log.attention.as_ref()).map(|attention| WaitingFor {
            kind: "attention",
            id: attention.id.clone(),
            since: attention.since,
            reason: Some(attention.reason.clone()),
        });
        Self {
            id: record.id.clone(),
            name: record.name.clone(),
            labels: record.labels.clone(),
            mode: match record.config.mode() {
                Mode::Conversation => "conversation",
                Mode::Terminal => "terminal",
            },
            host: record.host.clone(),
            state: record.state(),
            outcome: record.outcome,
            reason: record.reason.clone().or_else(|| {
                let down = record.host_down.as_ref()?;
                Some(format!("host {}: down since {}", record.host, down.since))
            }),
            code: record.code.clone(),
            host_down: record.host_down.as_ref().map(|down| HostDownView {
                since: down.since,
                code: down.code.clone(),
                reason: down.why.clone(),
            }),
            created_at: record.created_at,
            updated_at: record.updated_at,
            run: RunView::of(record),
            waiting: approvals.chain(attention).collect(),
            progress: log.and_then(|log| log.progress.clone()),
            teardown: record.teardown.iter().map(StepView::from).collect(),
            has_snapshot: record.has_snapshot,
            workdir_kept: record.workdir_kept.clone(),
            last_event,
        }
    }
}

impl RunView {
    fn of(record: &SessionRecord) -> Option<Self> {
        let run = record.run.as_ref()?;
        let over = record.is_finished() || run.lease_lost;
        let expires_at = run.lease_expires_at.filter(|_| !over);
        Some(Self {
            id: run.id.clone(),
            started_at: run.started_at,
            agent: run
                .agent
                .as_ref()
                .map(|agent| AgentView { pid: agent.identity.pid, version: agent.version.clone() }),
            seed: run.seed.clone(),
            lease: expires_at.map(|expires_at| LeaseView { holder: run.holder.clone(), expires_at }),
            thread_id: run.thread_id.clone(),
            model: record.model.clone().or_else(|| run.model.clone()),
            effort: record.effort.clone(),
            resumed_from: run.resumed_from.clone(),
        })
    }
}
