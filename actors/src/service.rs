//! The door for those who talk to people: every question and order, answered by the actor or the store that knows.
//!
//! It decides nothing. A live session is asked; an ended one is read from its record.

mod files;
mod hosts;
mod leftovers;
mod messages;
mod seed_logins;
mod seeds;

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;
use optio_store::{JournalStream, Page, PageRequest, RecordFilter, SessionId, SnapshotRow};
use serde::Serialize;
use tracing::{info, warn};

pub use files::FileCopy;
pub use hosts::{HostView, ReachView, TargetView};
pub use leftovers::{Chosen, ProbeView, ReapOutcome, ReapView};
pub use messages::MessageView;
pub use seeds::{ImportSeed, SeedLeaseView, SeedView, VerifyView};

/// What questions and answers are made of, so that whoever asks needs to know no package below this one.
pub mod words {
    pub use optio_codex_protocol::config::{ConfigError, Effort, SessionConfig};
    pub use optio_codex_protocol::requests::Input;
    pub use optio_host::terminal::Seat;
    pub use optio_host::{HostError, Size};
    pub use optio_store::{
        ApprovalId, Gap, JournalStream, LoginId, Page, PageRequest, Record, RecordFilter, SeedId, SeedStatus,
        SessionId, Slice, SnapshotId, SnapshotRow, StoreError,
    };
}

use crate::conversation::Delivered;
use crate::error::SessionError;
use crate::faults::{self, FaultKind};
use crate::recovery;
use crate::session::approvals::Approval;
use crate::session::children::ChildView;
use crate::session::phase::{Request, State};
use crate::session::record::SessionRecord;
use crate::session::status::SessionView;
use crate::session::{
    AnswerApproval, ChangeSession, InterruptTurn, ListApprovals, OpenTerminal, SendTurn, Session, ShowActors,
    StopMode, StopSession,
};
use crate::sessions::{
    Delete, Drain, Find, Found, IsDraining, Launch, ObserveProvisioner, OnExit, Places, Reconcile,
    RecoverLogins, Resume, Sessions, ShowLive, StopAgain, check_name_and_labels,
};
use crate::settings::Settings;
use crate::supervision::{ChildKind, Observation};
use crate::terminal::{TakeSeat, Viewer};

/// How long an actor may take to answer. Past it, whether a thing was done is unknown.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long an end that was told may take to be on record: one write, and the journal's last flush.
const RECORD_LIMIT: Duration = Duration::from_secs(10);

/// Something that the service stands on and that does not work now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// `store` or `journal`.
    pub part: &'static str,
    /// What is wrong with it. No secret.
    pub problem: String,
    /// Since when, by this machine's clock, where that is known.
    pub since: Option<Timestamp>,
}

/// The sessions of one service. Clones are the same door.
#[derive(Clone)]
pub struct Service {
    root: Addr<Sessions>,
    settings: Arc<Settings>,
}

impl Service {
    /// Starts the root, takes up what an earlier process left, and brings spooled logins home. Must run inside an
    /// actix system.
    pub async fn start(settings: Settings, places: Places) -> Result<Self, SessionError> {
        let settings = Arc::new(settings);
        let root = Sessions::new(settings.clone(), places).start();
        let service = Self { root, settings };
        let found = service.ask("the root", service.root.send(Reconcile)).await??;
        match service.ask("the root", service.root.send(RecoverLogins)).await? {
            Ok(found) => info!(found, "unfinished logins are taken up"),
            // Sessions do not wait for them; their directories stay for the next start.
            Err(problem) => warn!(%problem, "directories of unfinished logins cannot be looked through"),
        }
        let home = recovery::replay_spool(&service.settings).await;
        info!(sessions = found, logins = home.len(), "earlier work is taken up");
        Ok(service)
    }

    /// What all sessions share.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    async fn ask<T>(
        &self,
        what: &'static str,
        asking: impl Future<Output = Result<T, MailboxError>>,
    ) -> Result<T, SessionError> {
        match tokio::time::timeout(ANSWER_LIMIT, asking).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(SessionError::NoAnswer { what }),
        }
    }

    async fn find(&self, id: &SessionId) -> Result<Option<Found>, SessionError> {
        self.ask("the root", self.root.send(Find(id.clone()))).await
    }

    /// Asks a live session for something to look at. Nothing when there is none, or when it ended before it could answer: then its record, which
    /// is complete before its actor ends, has the answer.
    async fn ask_live<M>(&self, id: &SessionId, question: M) -> Result<Option<M::Result>, SessionError>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        Session: Handler<M>,
        <Session as Actor>::Context: actix::dev::ToEnvelope<Session, M>,
    {
        let Some(found) = self.find(id).await? else { return Ok(None) };
        match tokio::time::timeout(ANSWER_LIMIT, found.addr.send(question)).await {
            Ok(answer) => Ok(answer.ok()),
            Err(_) => Err(SessionError::NoAnswer { what: "the session" }),
        }
    }

    async fn record(&self, id: &SessionId) -> Result<(SessionRecord, u64), SessionError> {
        let row = self.settings.store.records.get(id).await?;
        let row = row.ok_or_else(|| SessionError::not_found("session", id))?;
        Ok((SessionRecord::read(&row)?, row.rev))
    }

    /// The live session, or the refusal that its record gives.
    async fn live(&self, id: &SessionId, request: Request) -> Result<Found, SessionError> {
        if let Some(found) = self.find(id).await? {
            return Ok(found);
        }
        let (record, _) = self.record(id).await?;
        match record.phase.accepts(request) {
            Err(refusal) => Err(SessionError::refused(id, refusal)),
            Ok(()) => Err(SessionError::agent_unreachable(id, "its actor is being started")),
        }
    }

    /// What does not work now of what the service stands on. Sessions go on meanwhile, and nothing is lost.
    pub fn troubles(&self) -> Vec<Trouble> {
        let store = self.settings.store.health.state();
        let store = store.problem.map(|problem| Trouble { part: "store", problem, since: Some(store.since) });
        let journal = self.settings.store.journal.trouble();
        let journal = journal.map(|problem| Trouble { part: "journal", problem, since: None });
        store.into_iter().chain(journal).collect()
    }

    /// Makes a session and launches it.
    pub async fn launch(&self, launch: Launch) -> Result<SessionView, SessionError> {
        self.ask("the root", self.root.send(launch)).await?
    }

    /// One session. Whatever its `last_event` counts is in what it shows: a caller may wait for what comes after it.
    pub async fn session(&self, id: &SessionId) -> Result<SessionView, SessionError> {
        let newest = *self.events(id).await?.newest().borrow();
        let view = match self.find(id).await? {
            Some(found) => found.status.borrow().clone(),
            None => SessionView::of(&self.record(id).await?.0, newest),
        };
        Ok(SessionView { last_event: newest, ..view })
    }

    /// Sessions, newest first. A live one is shown as it is now, not as it was last on record.
    pub async fn sessions(
        &self,
        filter: &RecordFilter,
        page: &PageRequest,
    ) -> Result<Page<SessionView>, SessionError> {
        let live = self.ask("the root", self.root.send(ShowLive)).await?;
        let rows = self.settings.store.records.list(filter, page).await?;
        let mut data = Vec::with_capacity(rows.data.len());
        for row in &rows.data {
            match live.get(&row.id) {
                Some(view) => data.push(view.clone()),
                None => match SessionRecord::read(row) {
                    Ok(record) => data.push(SessionView::of(&record, 0)),
                    Err(problem) => warn!(session = %row.id, %problem, "record cannot be shown"),
                },
            }
        }
        Ok(Page { data, next_cursor: rows.next_cursor })
    }

    /// Stops a session. A lost one walks its unfinished steps once more.
    pub async fn stop(&self, id: &SessionId, mode: StopMode) -> Result<SessionView, SessionError> {
        match self.find(id).await? {
            Some(found) => {
                let stop = StopSession { mode, reason: "stopped on request".to_owned() };
                self.ask("the session", found.addr.send(stop)).await?
            }
            None => self.ask("the root", self.root.send(StopAgain(id.clone()))).await?,
        }
    }

    /// Launches a new run of an ended session.
    pub async fn resume(&self, resume: Resume) -> Result<SessionView, SessionError> {
        self.at_rest(&resume.session, Request::Resume).await?;
        self.ask("the root", self.root.send(resume)).await?
    }

    /// Forgets an ended session.
    pub async fn delete(&self, id: &SessionId) -> Result<(), SessionError> {
        self.at_rest(id, Request::Delete).await?;
        self.ask("the root", self.root.send(Delete { session: id.clone() })).await?
    }

    /// Refuses a request that needs an ended session. One that has told of its end is about to put it on record: whoever
    /// heard it is not refused for being quick.
    async fn at_rest(&self, id: &SessionId, request: Request) -> Result<(), SessionError> {
        let Some(Found { mut status, .. }) = self.find(id).await? else { return Ok(()) };
        let told = matches!(status.borrow().state, State::Ended | State::Lost);
        if told {
            // Closed with the actor. A store that is away is not waited for: then the record speaks.
            let gone = async { while status.changed().await.is_ok() {} };
            let _ = tokio::time::timeout(RECORD_LIMIT, gone).await;
        }
        let (record, _) = self.record(id).await?;
        record.phase.accepts(request).map_err(|refusal| SessionError::refused(id, refusal))
    }

    /// Changes name, labels, model or effort.
    pub async fn change(&self, id: &SessionId, change: ChangeSession) -> Result<SessionView, SessionError> {
        check_name_and_labels(change.name.as_deref(), change.labels.as_ref().unwrap_or(&Default::default()))?;
        if let Some(found) = self.find(id).await? {
            return self.ask("the session", found.addr.send(change)).await?;
        }
        let (mut record, rev) = self.record(id).await?;
        change.check(&record)?;
        change.apply(&mut record);
        record.updated_at = jiff::Timestamp::now();
        let row = optio_store::RecordRow { rev, ..record.first_row()? };
        self.settings.store.records.update(row).await?;
        self.session(id).await
    }

    /// Sends a message to the agent.
    pub async fn send(&self, id: &SessionId, turn: SendTurn) -> Result<Delivered, SessionError> {
        let found = self.live(id, Request::Turn).await?;
        self.ask("the session", found.addr.send(turn)).await?
    }

    /// Ends the running turn.
    pub async fn interrupt(&self, id: &SessionId) -> Result<(), SessionError> {
        let found = self.live(id, Request::Interrupt).await?;
        self.ask("the session", found.addr.send(InterruptTurn)).await?
    }

    /// Seats somebody before a session's terminal.
    pub async fn open_terminal(&self, id: &SessionId, seat: TakeSeat) -> Result<Viewer, SessionError> {
        let found = self.live(id, Request::Terminal).await?;
        self.ask("the session", found.addr.send(OpenTerminal(seat))).await?
    }

    /// The agent's questions, newest first.
    pub async fn approvals(&self, id: &SessionId) -> Result<Vec<Approval>, SessionError> {
        if let Some(approvals) = self.ask_live(id, ListApprovals).await? {
            return Ok(approvals);
        }
        let (record, _) = self.record(id).await?;
        Ok(record.approvals.into_iter().rev().collect())
    }

    /// Answers a question of the agent.
    pub async fn answer(&self, id: &SessionId, answer: AnswerApproval) -> Result<Approval, SessionError> {
        if let Some(found) = self.find(id).await? {
            return self.ask("the session", found.addr.send(answer)).await?;
        }
        let (record, _) = self.record(id).await?;
        let approval = record.approvals.iter().find(|a| a.id == answer.approval);
        let approval = approval.ok_or_else(|| SessionError::not_found("approval", &answer.approval))?;
        Err(SessionError::AlreadyAnswered { id: approval.id.clone(), state: approval.state })
    }

    /// The live supervision tree; empty for a session whose run is over.
    pub async fn actors(&self, id: &SessionId) -> Result<Vec<ChildView>, SessionError> {
        match self.ask_live(id, ShowActors).await? {
            Some(actors) => Ok(actors),
            None => self.record(id).await.map(|_| Vec::new()),
        }
    }

    /// Breaks an actor of a live session on purpose, the next `times` times it comes to `step`. Only where the service
    /// was started with faults enabled.
    pub async fn arm_fault(
        &self,
        id: &SessionId,
        actor: ChildKind,
        step: &str,
        kind: FaultKind,
        times: u32,
    ) -> Result<(), SessionError> {
        if !self.settings.faults_enabled {
            return Err(SessionError::not_found(
                "route",
                &"faults (the service runs without --enable-faults)",
            ));
        }
        let known =
            faults::STEPS.iter().find(|(child, _)| *child == actor).map_or(&[][..], |(_, steps)| steps);
        if !known.contains(&step) {
            let why = format!("{step:?} is no step of {actor}; there is {}", known.join(", "));
            return Err(SessionError::Invalid { field: "step", why });
        }
        self.record(id).await?;
        if !self.settings.faults.arm_for(id.clone(), actor, step, kind, times) {
            return Err(SessionError::Invalid {
                field: "times",
                why: "too many faults are armed already".to_owned(),
            });
        }
        Ok(())
    }

    /// A session's events.
    pub async fn events(&self, id: &SessionId) -> Result<Arc<dyn JournalStream>, SessionError> {
        // Only a session that is on record has a stream: opening makes one. One that lives is, and is followed also while
        // the store is away.
        if self.find(id).await?.is_none() {
            self.record(id).await?;
        }
        Ok(self.settings.store.journal.open(id.as_str()).await?)
    }

    /// The events that change rows of the session list.
    pub fn service_events(&self) -> Arc<dyn JournalStream> {
        self.settings.service_stream.clone()
    }

    /// A session's snapshots, newest first.
    pub async fn snapshots(&self, id: &SessionId) -> Result<Vec<SnapshotRow>, SessionError> {
        self.record(id).await?;
        Ok(self.settings.store.snapshots.list(id).await?)
    }

    /// True once the service refuses new work.
    pub async fn is_draining(&self) -> bool {
        self.ask("the root", self.root.send(IsDraining)).await.unwrap_or(true)
    }

    /// What is being provided for hosts, and for how many; `None` when nobody can say just now.
    pub async fn provisioner(&self) -> Option<Observation> {
        self.root.send(ObserveProvisioner).await.ok().flatten()
    }

    /// Refuses new work and lets every session leave or end; answered when all have.
    pub async fn drain(&self, on_exit: OnExit) {
        // A root that is gone has nothing left to drain. There is no limit here: a teardown takes what it takes, and
        // whoever cannot wait sends a second signal.
        let _ = self.root.send(Drain { on_exit }).await;
    }
}
