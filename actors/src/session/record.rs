//! The record of a session: what a later process needs to go on where this one stopped.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use optio_codex_protocol::config::{Mode, SessionConfig};
use optio_host::{AgentIdentity, SshTarget};
use optio_store::{Holder, RecordRow, RunId, SeedId, SessionId, SnapshotId, SnapshotRow, Store, StoreError};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::approvals::Approval;
use super::log::LogRecord;
use super::phase::{EndState, Phase, State};
use crate::cred_watcher::Baseline;
use crate::process::Transport;
use crate::teardown::{Outcome, Progress, Step, StopStyle};
use crate::terminal::TerminalRecord;

/// Everything on record of a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Its id.
    pub id: SessionId,
    /// What people call it.
    pub name: String,
    /// What tools sort it by.
    pub labels: BTreeMap<String, String>,
    /// Its host's name.
    pub host: String,
    /// The host itself, where no configuration says what the name means: a session must find its machine again also when
    /// the service has forgotten it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<SshTarget>,
    /// What was asked for, validated.
    #[serde(with = "config_as_json")]
    pub config: SessionConfig,
    /// When it was made.
    pub created_at: Timestamp,
    /// When this record was last changed.
    pub updated_at: Timestamp,
    /// How far its run is.
    pub phase: Phase,
    /// How its last run ended.
    pub outcome: Option<EndState>,
    /// One sentence that a person understands.
    pub reason: Option<String>,
    /// The stable word for that reason, where it has one.
    #[serde(default)]
    pub code: Option<String>,
    /// Its host is out of reach.
    #[serde(default)]
    pub host_down: Option<HostDown>,
    /// The present run, or the last one.
    pub run: Option<RunRecord>,
    /// The teardown of that run; empty until it begins.
    pub teardown: Vec<StepRecord>,
    /// How gently that teardown stops the agent.
    pub style: Option<StopStyle>,
    /// The approvals of that run.
    pub approvals: Vec<Approval>,
    /// There is a snapshot to resume from.
    pub has_snapshot: bool,
    /// Where the workdir was kept, if it was.
    pub workdir_kept: Option<String>,
    /// The model chosen for the next turns.
    pub model: Option<String>,
    /// The reasoning effort chosen for the next turns.
    pub effort: Option<String>,
}

/// What is on record of a host that is out of reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDown {
    /// Since when.
    pub since: Timestamp,
    /// The stable word for it, see [`optio_host::HostError::reach_code`].
    pub code: String,
    /// What was tried last, in words.
    pub why: String,
}

/// What is on record of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its id; the mark that everything the agent starts carries.
    pub id: RunId,
    /// When it began.
    pub started_at: Timestamp,
    /// Its holder, minted before any lease is asked for, so that a lease whose answer was lost can be released.
    pub holder: Holder,
    /// The seed whose lease it has, or had.
    pub seed: Option<SeedId>,
    /// The seed of the run before, which a resumed one leases again (T-207).
    pub former_seed: Option<SeedId>,
    /// What the store is known to have of that seed's login.
    pub baseline: Option<Baseline>,
    /// The lease's end by the store's clock, as far as it is known.
    pub lease_expires_at: Option<Timestamp>,
    /// The lease is not this run's any more: final.
    pub lease_lost: bool,
    /// The agent, once it was started.
    pub agent: Option<AgentRecord>,
    /// How the agent is reached.
    pub transport: Option<Transport>,
    /// Where its terminal is, if it has one.
    #[serde(default)]
    pub terminal: Option<TerminalRecord>,
    /// The Codex thread.
    pub thread_id: Option<String>,
    /// The model the thread said it has.
    pub model: Option<String>,
    /// A turn of the thread has begun, so there is a rollout to resume (S-472).
    pub had_turn: bool,
    /// The turn that runs.
    pub turn: Option<String>,
    /// The conversation came up: from here on there is work to keep (INV-40).
    pub was_live: bool,
    /// The snapshot it began from.
    pub resumed_from: Option<SnapshotId>,
    /// The thread that snapshot said to resume.
    pub resume_thread: Option<String>,
    /// The operator's hook was told of the run's beginning, and is yet to be told of its end.
    #[serde(default)]
    pub after_execute_is_due: bool,
    /// The session's newest snapshot when the run began: a newest one with another id is this run's own.
    #[serde(default)]
    pub newest_before: NewestBefore,
    /// The launch did not reach the host, so that nothing of the run is there.
    #[serde(default)]
    pub host_unreached: bool,
    /// The agent's own log.
    #[serde(default)]
    pub log: LogRecord,
}

/// Which snapshot was a session's newest when a run of it began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewestBefore {
    /// The run is on record since before this was.
    #[default]
    Unknown,
    /// There was none.
    None,
    /// This one.
    Snapshot(SnapshotId),
}

impl NewestBefore {
    /// Of the session's snapshots, newest first, as they are when the run begins.
    pub fn of(snapshots: &[SnapshotRow]) -> Self {
        snapshots.first().map_or(Self::None, |row| Self::Snapshot(row.id.clone()))
    }

    /// The snapshot that the run itself has stored, of those there are now, newest first. Ids are compared, not times:
    /// the store's clock may be ahead of ours, and what the run began from would pass for what it made (INV-45). Where
    /// it is not known, none is its own: one snapshot too many costs room, one too few costs work.
    pub fn own<'a>(&self, snapshots: &'a [SnapshotRow]) -> Option<&'a SnapshotRow> {
        let newest = snapshots.first()?;
        let own = match self {
            Self::Unknown => false,
            Self::None => true,
            Self::Snapshot(before) => *before != newest.id,
        };
        own.then_some(newest)
    }
}

/// What is on record of an agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Who it is.
    pub identity: AgentIdentity,
    /// Codex's version.
    pub version: String,
}

/// What is on record of a teardown step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepRecord {
    /// Which.
    pub step: Step,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// How often the host went away under it, for which it was asked again.
    #[serde(default)]
    pub again: u32,
    /// What it said the last of these times.
    #[serde(default)]
    pub trouble: Option<String>,
}

impl SessionRecord {
    /// The steps that are over.
    pub fn progress(&self) -> Progress {
        self.teardown.iter().filter_map(|s| Some((s.step, s.outcome.clone()?))).collect()
    }

    /// Lays out the steps of a teardown that begins now.
    pub fn begin_teardown(&mut self, style: StopStyle) {
        let pending = |step| StepRecord {
            step,
            started_at: None,
            ended_at: None,
            outcome: None,
            again: 0,
            trouble: None,
        };
        self.teardown = Step::ALL.into_iter().map(pending).collect();
        self.style = Some(style);
        self.phase = Phase::Stopping;
    }

    /// Puts a lost session back to the first step that did not end well. That step and all after it are walked again.
    pub fn walk_again(&mut self) {
        let unwell = |step: &StepRecord| !step.outcome.as_ref().is_some_and(Outcome::is_settled_well);
        let from = self.teardown.iter().position(unwell).unwrap_or(self.teardown.len());
        for step in &mut self.teardown[from..] {
            (step.started_at, step.ended_at, step.outcome) = (None, None, None);
        }
        self.phase = Phase::Stopping;
    }

    /// The state the outside sees.
    pub fn state(&self) -> State {
        // What codex does behind its own screen is known to nobody: it works until it ends.
        let turn_runs =
            self.config.mode() == Mode::Terminal || self.run.as_ref().is_some_and(|run| run.turn.is_some());
        let called = self.run.as_ref().is_some_and(|run| run.log.attention.is_some());
        State::derive(self.phase, turn_runs, called || self.approvals.iter().any(Approval::is_pending))
    }

    /// Nothing is left to do for it.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Ended
    }

    fn row(&self, rev: u64) -> Result<RecordRow, StoreError> {
        let body = serde_json::to_vec(self).map_err(|problem| StoreError::Invalid {
            field: "record",
            why: format!("session {} has no json form: {problem}", self.id),
        })?;
        Ok(RecordRow {
            id: self.id.clone(),
            rev,
            finished: self.is_finished(),
            state: self.state().name().to_owned(),
            host: self.host.clone(),
            seed: self.run.as_ref().and_then(|run| run.seed.clone()),
            name: self.name.clone(),
            labels: self.labels.clone(),
            created_at: self.created_at,
            body: Bytes::from(body),
        })
    }

    /// The row of a record that is stored for the first time.
    pub fn first_row(&self) -> Result<RecordRow, StoreError> {
        self.row(1)
    }

    /// Reads a stored record.
    pub fn read(row: &RecordRow) -> Result<Self, StoreError> {
        serde_json::from_slice(&row.body).map_err(|problem| StoreError::Damaged {
            what: format!("record of session {}", row.id),
            why: problem.to_string(),
        })
    }
}

mod config_as_json {
    use optio_codex_protocol::config::SessionConfig;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(config: &SessionConfig, to: S) -> Result<S::Ok, S::Error> {
        config.to_json().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SessionConfig, D::Error> {
        SessionConfig::from_json(serde_json::Value::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// How long a write of the record is tried before its session goes on without it.
const SAVE_LIMIT: Duration = Duration::from_secs(10);

/// The wait between two tries.
const SAVE_PAUSE: Duration = Duration::from_millis(200);

/// The first wait before an end that could not be put on record is tried again; doubles to [`CERTAIN_PAUSE_MAX`].
const CERTAIN_PAUSE_MIN: Duration = Duration::from_secs(1);

/// The longest of these waits.
const CERTAIN_PAUSE_MAX: Duration = Duration::from_secs(30);

/// The stored row of a session, if it is this run's. A write without an answer may have been done: whoever makes the run
/// is the one writer of its record, so what stands there of it was written by them.
pub(crate) async fn of_run(
    store: &Store,
    id: &SessionId,
    run: &Option<RunId>,
) -> Result<Option<RecordRow>, StoreError> {
    let Some(row) = store.records.get(id).await? else {
        return Ok(None);
    };
    let written_by = SessionRecord::read(&row)?.run.map(|run| run.id);
    Ok((written_by == *run).then_some(row))
}

/// The record in memory and its way to the store. The session is its one writer; children read.
pub struct Ledger {
    record: Mutex<Edited>,
    rev: tokio::sync::Mutex<Stored>,
    store: Store,
}

struct Edited {
    record: SessionRecord,
    edits: u64,
}

struct Stored {
    rev: u64,
    edits: u64,
}

impl Ledger {
    /// A ledger of a record that is stored with this `rev`.
    pub fn new(record: SessionRecord, rev: u64, store: Store) -> Self {
        let edited = Edited { record, edits: 0 };
        Self { record: Mutex::new(edited), rev: tokio::sync::Mutex::new(Stored { rev, edits: 0 }), store }
    }

    /// Looks something up.
    pub fn read<T>(&self, look: impl FnOnce(&SessionRecord) -> T) -> T {
        look(&self.record.lock().unwrap_or_else(PoisonError::into_inner).record)
    }

    /// Changes it in memory.
    pub fn edit<T>(&self, change: impl FnOnce(&mut SessionRecord) -> T) -> T {
        let mut edited = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        edited.edits += 1;
        edited.record.updated_at = Timestamp::now();
        change(&mut edited.record)
    }

    /// Makes every change up to now durable. Several saves at once become one write.
    pub async fn save(&self) -> Result<(), StoreError> {
        let wanted = self.record.lock().unwrap_or_else(PoisonError::into_inner).edits;
        let mut stored = self.rev.lock().await;
        if stored.edits >= wanted && stored.edits > 0 {
            return Ok(());
        }
        let (mut row, edits) = {
            let edited = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            (edited.record.row(stored.rev)?, edited.edits)
        };
        let run = self.read(|record| record.run.as_ref().map(|run| run.id.clone()));
        let trying = async {
            loop {
                match self.store.records.update(row.clone()).await {
                    Err(StoreError::Unavailable { .. } | StoreError::TimedOut { .. }) => {
                        tokio::time::sleep(SAVE_PAUSE).await;
                    }
                    // Ours, if this run wrote it: a write whose answer was lost.
                    Err(conflict @ StoreError::Conflict { .. }) => {
                        match of_run(&self.store, &row.id, &run).await {
                            Ok(Some(stored)) if stored.body == row.body => return Ok(stored.rev),
                            Ok(Some(stored)) if stored.rev != row.rev => row.rev = stored.rev,
                            Ok(Some(_) | None) => return Err(conflict),
                            Err(StoreError::Unavailable { .. } | StoreError::TimedOut { .. }) => {
                                tokio::time::sleep(SAVE_PAUSE).await;
                            }
                            Err(problem) => return Err(problem),
                        }
                    }
                    ended => return ended,
                }
            }
        };
        let rev = tokio::time::timeout(SAVE_LIMIT, trying)
            .await
            .map_err(|_| StoreError::TimedOut { what: "session record", limit: SAVE_LIMIT })??;
        *stored = Stored { rev, edits };
        Ok(())
    }

    /// Saves for as long as it takes: what is on record must become true once the store is back (INV-52). Ends early
    /// only with an error that time does not mend.
    pub async fn save_for_certain(&self) -> Result<(), StoreError> {
        let mut pause = CERTAIN_PAUSE_MIN;
        loop {
            match self.save().await {
                Err(problem @ (StoreError::Unavailable { .. } | StoreError::TimedOut { .. })) => {
                    warn!(%problem, again_in = ?pause, "session record is not saved yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(CERTAIN_PAUSE_MAX);
                }
                ended => return ended,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> SnapshotRow {
        SnapshotRow {
            id: SnapshotId::mint(),
            session: SessionId::mint(),
            captured_at: Timestamp::UNIX_EPOCH,
            end_state: "done".to_owned(),
            thread_id: None,
            codec: "zstd".to_owned(),
            seed: None,
            len: 0,
            sha256: String::new(),
        }
    }

    #[test]
    fn what_a_run_began_from_is_not_its_own() {
        let mut stored = vec![snapshot(), snapshot()];
        let before = NewestBefore::of(&stored);
        assert_eq!(before.own(&stored), None);
        stored.insert(0, snapshot());
        assert_eq!(before.own(&stored), Some(&stored[0]));
        // Retention removed all the older ones.
        assert_eq!(before.own(&stored[..1]), Some(&stored[0]));
        assert_eq!(NewestBefore::of(&[]).own(&stored), Some(&stored[0]));
        assert_eq!(NewestBefore::of(&[]).own(&[]), None);
    }

    #[test]
    fn a_record_from_before_the_ids_were_kept_takes_no_snapshot_for_its_own() {
        let mut old = serde_json::json!({
            "id": RunId::mint(), "started_at": Timestamp::UNIX_EPOCH, "holder": Holder::mint(&SessionId::mint()),
            "lease_lost": false, "had_turn": false, "was_live": true,
        });
        let run: RunRecord = serde_json::from_value(old.clone()).expect("an old record is read");
        assert_eq!(run.newest_before.own(&[snapshot()]), None);
        old["newest_before"] = serde_json::json!("none");
        let run: RunRecord = serde_json::from_value(old).expect("a new record is read");
        assert_eq!(run.newest_before, NewestBefore::None);
    }
}
