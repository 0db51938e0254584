//! What a machine has, and what was left on it that no session of ours needs.

use std::collections::BTreeSet;
use std::time::Instant;

use optio_host::orphans::{Leftover, Reap, ReapError, Reaped, orphans, reap};
use optio_host::survey::{Survey, survey};
use optio_host::{AgentIdentity, Command, TaskId};
use optio_store::{PageRequest, RecordFilter, SessionId, StoreError};
use serde::{Deserialize, Serialize};
use tokio::task::spawn;
use tracing::{info, warn};

use super::Service;
use crate::error::SessionError;
use crate::hosts::{HostsError, WrongField};
use crate::seed_login::MAX_LOGINS;
use crate::session::record::SessionRecord;
use crate::throw_away;
use crate::verifier::PROBES;

/// Leftovers that one answer tells of: as many as a person can look through.
const SHOWN: usize = 200;

/// Leftovers that one request may name: as many as one answer tells of.
const CHOSEN: usize = SHOWN;

/// What was found on a host.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbeView {
    /// The host's name.
    pub name: String,
    /// How long it took to start a program there and hear of its end, in milliseconds, once connected.
    pub latency_ms: u64,
    /// What it is and has.
    #[serde(flatten)]
    pub survey: Survey,
    /// Task directories of which this service knows nothing, or nothing any more; another service may.
    pub orphans: Vec<Leftover>,
}

/// A leftover to be removed, and what was seen of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    /// Its name.
    pub id: String,
    /// The agent that lives in it, if one was seen.
    #[serde(default)]
    pub agent: Option<AgentIdentity>,
    /// A login that lies in it may be lost.
    #[serde(default)]
    pub discard_login: bool,
}

/// What became of a leftover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReapView {
    /// Its name.
    pub id: String,
    /// In a word.
    pub outcome: ReapOutcome,
    /// In a sentence.
    pub detail: String,
}

/// What became of a leftover, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReapOutcome {
    /// Its agent is ended and its directory gone.
    Reaped,
    /// It is not what was chosen, or not to be removed; nothing was touched.
    Refused,
    /// Something of it is still there.
    Failed,
}

impl Service {
    /// Looks at a host: connects if need be, asks what it has, and what was left there.
    pub async fn probe_host(&self, name: &str) -> Result<ProbeView, SessionError> {
        let host = self.settings.hosts.entry(name)?.machine.host;
        let known = self.known_tasks().await?;
        host.connect().await?;
        let began = Instant::now();
        host.run(Command::new(["true"])).await?;
        let latency_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let codex = self.settings.codex_on(name);
        let (survey, mut orphans) = tokio::try_join!(
            survey(&*host, &*self.settings.provision, codex.as_deref()),
            orphans(&*host, &known, SHOWN),
        )?;
        let mut unknown = Vec::with_capacity(orphans.len());
        for left in orphans.drain(..) {
            // A list leaves out what cannot be read, and new sessions come all the time.
            if !self.is_known(&left.id).await? {
                unknown.push(left);
            }
        }
        Ok(ProbeView { name: name.to_owned(), latency_ms, survey, orphans: unknown })
    }

    /// Ends and removes leftovers of a host, each only if it is still what was seen. What was begun is finished also when
    /// nobody waits for the answer any more.
    pub async fn reap(&self, name: &str, chosen: Vec<Chosen>) -> Result<Vec<ReapView>, SessionError> {
        let host = self.settings.hosts.entry(name)?.machine.host;
        let wrong =
            |field: String, why: String| SessionError::from(HostsError::from(WrongField { field, why }));
        if chosen.is_empty() || chosen.len() > CHOSEN {
            return Err(wrong("tasks".to_owned(), format!("it must name 1 to {CHOSEN} of them")));
        }
        let mut choices = Vec::with_capacity(chosen.len());
        for (at, Chosen { id, agent, discard_login }) in chosen.into_iter().enumerate() {
            let id =
                TaskId::new(id).map_err(|refused| wrong(format!("tasks[{at}].id"), refused.to_string()))?;
            choices.push(Reap { id, agent, discard_login });
        }
        host.connect().await?;
        let service = self.clone();
        let (name, reaping) = (name.to_owned(), async move {
            let mut all = Vec::with_capacity(choices.len());
            for choice in choices {
                let done = match service.known_if(&choice.id).await {
                    Ok(known) => reap(&*host, &known, &choice).await,
                    Err(problem) => {
                        let why = format!("it is not known whether it is a session's: {problem}");
                        all.push(ReapView::new(&choice.id, ReapOutcome::Refused, why));
                        continue;
                    }
                };
                all.push(ReapView::of(&choice, done));
            }
            all
        });
        let all = spawn(reaping).await.map_err(|_| SessionError::NoAnswer { what: "the host" })?;
        for ReapView { id, outcome, detail } in &all {
            match outcome {
                ReapOutcome::Reaped => info!(host = %name, task = %id, detail, "leftover is removed"),
                _ => warn!(host = %name, task = %id, ?outcome, detail, "leftover is not removed"),
            }
        }
        Ok(all)
    }

    /// The task, if it is known.
    async fn known_if(&self, id: &TaskId) -> Result<BTreeSet<TaskId>, StoreError> {
        Ok(self.is_known(id).await?.then(|| id.clone()).into_iter().collect())
    }

    /// True for a task that this service needs, and for one of which it cannot say.
    async fn is_known(&self, id: &TaskId) -> Result<bool, StoreError> {
        if self.throw_aways().any(|known| known == *id) {
            return Ok(true);
        }
        let Ok(session) = id.as_str().parse::<SessionId>() else { return Ok(false) };
        match self.settings.store.records.get(&session).await {
            Ok(None) => Ok(false),
            Ok(Some(row)) => Ok(SessionRecord::read(&row).map_or(true, |record| is_needed(&record))),
            Err(StoreError::Damaged { .. } | StoreError::Locked { .. }) => Ok(true),
            Err(problem) => Err(problem),
        }
    }

    /// Every task directory that this service needs: of runs that are not over, of directories that were kept, and its own
    /// for what it asks codex apart from any session.
    async fn known_tasks(&self) -> Result<BTreeSet<TaskId>, StoreError> {
        let mut known: BTreeSet<_> = self.throw_aways().collect();
        let mut page = PageRequest { cursor: None, limit: PageRequest::MAX };
        loop {
            let rows = self.settings.store.records.list(&RecordFilter::default(), &page).await?;
            let needed = rows.data.iter().filter(|row| {
                !row.finished || SessionRecord::read(row).map_or(true, |record| is_needed(&record))
            });
            known.extend(needed.filter_map(|row| TaskId::new(row.id.as_str()).ok()));
            match rows.next_cursor {
                Some(cursor) => page.cursor = Some(cursor),
                None => return Ok(known),
            }
        }
    }

    /// The homes of logins by a code and of checks that ask codex: they are looked after by whoever made them.
    fn throw_aways(&self) -> impl Iterator<Item = TaskId> + '_ {
        let kinds = [(throw_away::LOGIN, MAX_LOGINS), (throw_away::PROBE, PROBES)];
        let slots = kinds.into_iter().flat_map(|(kind, slots)| (0..slots).map(move |slot| (kind, slot)));
        slots.filter_map(|(kind, slot)| throw_away::task(&self.settings, kind, slot).ok())
    }
}

fn is_needed(record: &SessionRecord) -> bool {
    !record.is_finished() || record.workdir_kept.is_some()
}

impl ReapView {
    fn new(id: &TaskId, outcome: ReapOutcome, detail: String) -> Self {
        Self { id: id.as_str().to_owned(), outcome, detail }
    }

    fn of(choice: &Reap, done: Result<Reaped, ReapError>) -> Self {
        match done {
            Ok(reaped) => {
                let detail = match reaped.ended {
                    Some(agent) => {
                        format!("its agent (pid {}) is ended and its directory removed", agent.pid)
                    }
                    None => "its directory is removed".to_owned(),
                };
                Self::new(&choice.id, ReapOutcome::Reaped, detail)
            }
            Err(problem) => {
                let outcome = match &problem {
                    ReapError::StillThere { .. } | ReapError::Host(_) => ReapOutcome::Failed,
                    _ => ReapOutcome::Refused,
                };
                Self::new(&choice.id, outcome, problem.to_string())
            }
        }
    }
}
