//! Sessions: the root actor. Launches, finds, lists, adopts and drains; knows nothing of how a session works.

mod ask;
mod place;
mod provisioner;
mod seed_logins;
mod verifier;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;
use optio_codex_protocol::config::SessionConfig;
use optio_host::TaskId;
use optio_store::{Holder, Inserted, LEASE_TTL, RunId, SessionId, SnapshotId, StoreError};
use serde_json::json;
use tokio::sync::watch;
use tracing::{error, info, warn};

pub use ask::{Find, Found, IsDraining, ShowLive, StopAgain};
pub use place::Places;
pub use provisioner::ObserveProvisioner;
pub use seed_logins::{FindLogin, GiveLoginUp, RecoverLogins, StartLogin};

use self::provisioner::TheProvisioner;
use self::seed_logins::Logins;
use crate::error::SessionError;
use crate::events::Events;
use crate::recovery;
use crate::session::phase::{Phase, Request, State};
use crate::session::record::{Ledger, NewestBefore, RunRecord, SessionRecord, of_run};
use crate::session::status::SessionView;
use crate::session::{
    Beginning, Detach, IsPiped, RunContext, Session, SessionEnded, SessionParts, StopMode, StopSession,
};
use crate::settings::Settings;
use crate::supervision::{ChildExit, ChildHandle, ExitReason};
use verifier::TheVerifier;

/// The longest name of a session, in characters: a list shows it on one line.
const NAME_LIMIT: usize = 200;

/// The most labels of a session, and the most characters of a label's name or value.
const LABELS: (usize, usize) = (64, 200);

/// A session actor that dies is taken up again from its record, but not more often than this within
/// [`REVIVALS_WINDOW`].
const REVIVALS: usize = 5;

/// How long after a session's end its spooled logins are looked for: a lease that it lost and could not release has run
/// out by then.
const REPLAY_AFTER: Duration = Duration::from_secs(LEASE_TTL.as_secs() + 5);

/// See [`REVIVALS`].
const REVIVALS_WINDOW: Duration = Duration::from_secs(600);

/// The root of the tree.
pub struct Sessions {
    settings: Arc<Settings>,
    places: Places,
    live: BTreeMap<SessionId, Live>,
    verifier: TheVerifier,
    provisioner: TheProvisioner,
    logins: Logins,
    draining: bool,
}

/// A session whose run is not over.
struct Live {
    addr: Addr<Session>,
    handle: ChildHandle,
    status: watch::Receiver<SessionView>,
    revived: Vec<tokio::time::Instant>,
}

impl Sessions {
    /// A root that puts its sessions on `places`.
    pub fn new(settings: Arc<Settings>, places: Places) -> Self {
        Self {
            settings,
            places,
            live: BTreeMap::new(),
            verifier: TheVerifier::default(),
            provisioner: TheProvisioner::default(),
            logins: Logins::default(),
            draining: false,
        }
    }

    /// Starts the actor of a run that is on record.
    fn take_up(&self, record: SessionRecord, rev: u64, beginning: Beginning, ctx: &mut Context<Self>) {
        let id = record.id.clone();
        let starting =
            start(self.settings.clone(), self.places.clone(), record, rev, beginning, ctx.address());
        ctx.spawn(starting.into_actor(self).map(move |started, root, ctx| match started {
            Ok((addr, handle, status)) => {
                let revived = root.live.remove(&id).map(|live| live.revived).unwrap_or_default();
                root.live.insert(id, Live { addr, handle, status, revived });
                if root.draining {
                    ctx.address().do_send(Drain { on_exit: OnExit::Detach });
                }
            }
            Err(problem) => error!(session = %id, %problem, "session actor was not started"),
        }));
    }
}

type Started = (Addr<Session>, ChildHandle, watch::Receiver<SessionView>);

async fn start(
    settings: Arc<Settings>,
    places: Places,
    record: SessionRecord,
    rev: u64,
    beginning: Beginning,
    root: Addr<Sessions>,
) -> Result<Started, SessionError> {
    let parts = parts(settings, record, rev, beginning, root.clone()).await?;
    let status = parts.status.subscribe();
    let (addr, handle) = places.start(root.recipient(), parts).await?;
    Ok((addr, handle, status))
}

async fn parts(
    settings: Arc<Settings>,
    record: SessionRecord,
    rev: u64,
    beginning: Beginning,
    root: Addr<Sessions>,
) -> Result<SessionParts, SessionError> {
    let invalid = |field, why: String| SessionError::Invalid { field, why };
    let host = settings.hosts.of_record(&record.host, record.ssh.as_ref())?;
    let run = record.run.as_ref().map(|run| run.id.clone());
    let run = run.ok_or_else(|| SessionError::not_found("run of session", &record.id))?;
    let task = TaskId::new(record.id.as_str()).map_err(|problem| invalid("id", problem.to_string()))?;
    let stream = settings.store.journal.open(record.id.as_str()).await?;
    let events = Events::new(record.id.clone(), stream, settings.service_stream.clone());
    let (status, _) = watch::channel(SessionView::of(&record, 0));
    let session = record.id.clone();
    let ledger = Arc::new(Ledger::new(record, rev, settings.store.clone()));
    let run = RunContext {
        session,
        run,
        dir: host.task_dir(&task),
        host,
        store: settings.store.clone(),
        events: events.clone(),
        faults: settings.faults.clone(),
        trace: settings.trace.clone(),
        ledger: ledger.clone(),
        hooks: settings.hooks.clone(),
        mender: root.clone().recipient(),
        provisioner: root.recipient(),
    };
    Ok(SessionParts { settings, ledger, events, run, beginning, status })
}

impl Actor for Sessions {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Only a second root over the same settings would find it set; there is one (Service::start).
        let _ = self.settings.root.set(ctx.address().recipient());
        self.verifier.start(&self.settings, ctx);
        self.provisioner.start(&self.settings, ctx);
        Self::look_after_the_provisioner(ctx);
    }
}

/// Takes up every unfinished record of an earlier process: adopts what lives, tears down what does not. Answers how
/// many there were.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<usize, StoreError>")]
pub struct Reconcile;

impl Handler<Reconcile> for Sessions {
    type Result = ResponseActFuture<Self, Result<usize, StoreError>>;

    fn handle(&mut self, _: Reconcile, _: &mut Self::Context) -> Self::Result {
        let settings = self.settings.clone();
        let reading = async move { settings.store.records.unfinished().await };
        Box::pin(reading.into_actor(self).map(|rows, root, ctx| {
            let rows = rows?;
            let found = rows.len();
            for row in rows {
                match SessionRecord::read(&row) {
                    Ok(mut record) => {
                        // Its agent was not proven gone: that is tried again, whatever runs of it is not adopted.
                        if record.phase == Phase::Lost {
                            record.walk_again();
                        }
                        root.take_up(record, row.rev, Beginning::Recover, ctx);
                    }
                    // Its workdir and its lease's mark stay as they are; nothing is wiped on a guess.
                    Err(problem) => error!(session = %row.id, %problem, "record cannot be read, the session is left alone"),
                }
            }
            info!(found, "unfinished sessions are taken up");
            Ok(found)
        }))
    }
}

/// Makes a session and launches its first run. Answered as soon as it is on record.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<SessionView, SessionError>")]
pub struct Launch {
    /// What people call it; its id without one.
    pub name: Option<String>,
    /// What tools sort it by.
    pub labels: BTreeMap<String, String>,
    /// Its host's name.
    pub host: String,
    /// What is asked for.
    pub config: SessionConfig,
    /// The caller's key and a digest of its request.
    pub idempotency: Option<(String, String)>,
}

impl Handler<Launch> for Sessions {
    type Result = ResponseActFuture<Self, Result<SessionView, SessionError>>;

    fn handle(&mut self, launch: Launch, _: &mut Self::Context) -> Self::Result {
        let checked = self.check(&launch);
        let settings = self.settings.clone();
        let making = async move {
            checked?;
            let config = settings.defaults.under(&launch.config)?;
            let ssh = settings.hosts.entry(&launch.host)?.for_record();
            let record = SessionRecord { ssh, ..new_record(launch.name, launch.labels, launch.host, config) };
            let inserted = match settings.store.records.insert(record.first_row()?, launch.idempotency).await
            {
                // It may be there all the same, and nobody would begin its run.
                Err(unknown @ (StoreError::Unavailable { .. } | StoreError::TimedOut { .. })) => {
                    let run = record.run.as_ref().map(|run| run.id.clone());
                    let there = of_run(&settings.store, &record.id, &run).await?;
                    there.map(|_| Inserted::New).ok_or(unknown)
                }
                inserted => inserted,
            };
            match inserted? {
                Inserted::New => Ok((record, true)),
                Inserted::KeyReused => Err(SessionError::KeyReused),
                Inserted::Same(id) => {
                    let row = settings.store.records.get(&id).await?;
                    let row = row.ok_or_else(|| SessionError::not_found("session", &id))?;
                    Ok((SessionRecord::read(&row)?, false))
                }
            }
        };
        Box::pin(making.into_actor(self).then(|made: Result<(SessionRecord, bool), SessionError>, root, ctx| {
            let settings = root.settings.clone();
            let made = made.map(|(record, new)| {
                let view = SessionView::of(&record, 0);
                (record, view, new)
            });
            let address = ctx.address();
            async move {
                let (record, view, new) = made?;
                if new {
                    let stream = settings.store.journal.open(record.id.as_str()).await?;
                    let events = Events::new(record.id.clone(), stream, settings.service_stream.clone());
                    events.tell("session.created", &json!({ "name": record.name, "host": record.host, "labels": record.labels, "state": view.state }));
                    for warning in record.config.warnings() {
                        events.tell("attention", &json!({ "reason": warning }));
                    }
                    address.do_send(StartRun { record: Box::new(record), rev: 1 });
                }
                Ok(view)
            }
            .into_actor(root)
        }))
    }
}

/// Starts the actor of a run that was just put on record.
#[derive(Message)]
#[rtype(result = "()")]
struct StartRun {
    record: Box<SessionRecord>,
    rev: u64,
}

impl Handler<StartRun> for Sessions {
    type Result = ();

    fn handle(&mut self, StartRun { record, rev }: StartRun, ctx: &mut Self::Context) {
        self.take_up(*record, rev, Beginning::Launch, ctx);
    }
}

impl Sessions {
    fn check(&self, launch: &Launch) -> Result<(), SessionError> {
        if self.draining {
            return Err(SessionError::Draining);
        }
        let invalid = |field, why: String| Err(SessionError::Invalid { field, why });
        if self.settings.hosts.get(&launch.host).is_none() {
            let known = self.settings.hosts.names();
            return invalid("host", format!("{:?} is not configured; there is {known}", launch.host));
        }
        check_name_and_labels(launch.name.as_deref(), &launch.labels)
    }
}

/// Checks what people and tools call a session.
pub(crate) fn check_name_and_labels(
    name: Option<&str>,
    labels: &BTreeMap<String, String>,
) -> Result<(), SessionError> {
    let invalid = |field, why: String| Err(SessionError::Invalid { field, why });
    if name.is_some_and(|name| {
        name.is_empty() || name.chars().count() > NAME_LIMIT || name.chars().any(char::is_control)
    }) {
        return invalid(
            "name",
            format!("it must have 1 to {NAME_LIMIT} characters, none of them a control character"),
        );
    }
    let (most, longest) = LABELS;
    let too_long = |text: &String| text.chars().count() > longest;
    if labels.len() > most
        || labels.iter().any(|(name, value)| name.is_empty() || too_long(name) || too_long(value))
    {
        return invalid(
            "labels",
            format!("at most {most} labels, with names and values of at most {longest} characters"),
        );
    }
    Ok(())
}

fn new_record(
    name: Option<String>,
    labels: BTreeMap<String, String>,
    host: String,
    config: SessionConfig,
) -> SessionRecord {
    let id = SessionId::mint();
    let now = Timestamp::now();
    SessionRecord {
        name: name.unwrap_or_else(|| id.to_string()),
        labels,
        host,
        ssh: None,
        model: config.model().map(str::to_owned),
        effort: config.effort().map(|effort| effort.as_str().to_owned()),
        run: Some(new_run(&id)),
        config,
        created_at: now,
        updated_at: now,
        phase: Phase::Starting,
        outcome: None,
        reason: None,
        code: None,
        host_down: None,
        teardown: Vec::new(),
        style: None,
        approvals: Vec::new(),
        has_snapshot: false,
        workdir_kept: None,
        id,
    }
}

fn new_run(session: &SessionId) -> RunRecord {
    RunRecord {
        id: RunId::mint(),
        started_at: Timestamp::now(),
        holder: Holder::mint(session),
        seed: None,
        former_seed: None,
        baseline: None,
        lease_expires_at: None,
        lease_lost: false,
        agent: None,
        transport: None,
        terminal: None,
        thread_id: None,
        model: None,
        had_turn: false,
        turn: None,
        was_live: false,
        resumed_from: None,
        resume_thread: None,
        after_execute_is_due: false,
        newest_before: NewestBefore::None,
        host_unreached: false,
        log: Default::default(),
    }
}

/// Launches a new run of an ended session, from its newest snapshot or from the one that is named.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<SessionView, SessionError>")]
pub struct Resume {
    /// Which session.
    pub session: SessionId,
    /// Which snapshot; the newest without one.
    pub snapshot: Option<SnapshotId>,
}

impl Handler<Resume> for Sessions {
    type Result = ResponseActFuture<Self, Result<SessionView, SessionError>>;

    fn handle(&mut self, resume: Resume, ctx: &mut Self::Context) -> Self::Result {
        let draining = self.draining;
        let settings = self.settings.clone();
        let address = ctx.address();
        let resuming = async move {
            if draining {
                return Err(SessionError::Draining);
            }
            let row = settings.store.records.get(&resume.session).await?;
            let mut row = row.ok_or_else(|| SessionError::not_found("session", &resume.session))?;
            let mut record = SessionRecord::read(&row)?;
            record
                .phase
                .accepts(Request::Resume)
                .map_err(|refusal| SessionError::refused(&record.id, refusal))?;
            prepare_resume(&settings, &mut record, resume.snapshot).await?;
            let first = record.first_row()?;
            row = optio_store::RecordRow { rev: row.rev, ..first };
            let rev = match settings.store.records.update(row).await {
                Ok(rev) => rev,
                Err(unknown @ (StoreError::Unavailable { .. } | StoreError::TimedOut { .. })) => {
                    let run = record.run.as_ref().map(|run| run.id.clone());
                    of_run(&settings.store, &record.id, &run).await?.ok_or(unknown)?.rev
                }
                Err(problem) => return Err(problem.into()),
            };
            let view = SessionView::of(&record, 0);
            address.do_send(StartRun { record: Box::new(record), rev });
            Ok(view)
        };
        Box::pin(resuming.into_actor(self))
    }
}

async fn prepare_resume(
    settings: &Settings,
    record: &mut SessionRecord,
    wanted: Option<SnapshotId>,
) -> Result<(), SessionError> {
    let refuse = |why: &str| Err(SessionError::NotResumable { id: record.id.clone(), why: why.to_owned() });
    if !record.config.supports_resume() {
        return refuse("it was made without resume support");
    }
    let snapshots = settings.store.snapshots.list(&record.id).await?;
    let newest_before = NewestBefore::of(&snapshots);
    let snapshot = match &wanted {
        Some(id) => snapshots.into_iter().find(|row| &row.id == id),
        None => snapshots.into_iter().next(),
    };
    if wanted.is_some() && snapshot.is_none() {
        return refuse("the named snapshot is not one of its");
    }
    if snapshot.is_none() && record.workdir_kept.is_none() {
        return refuse("there is no snapshot of it");
    }
    // A kept workdir is newer than any snapshot: it was kept because it could not be stored.
    let from_workdir = wanted.is_none() && record.workdir_kept.is_some();
    let last = record.run.take();
    let mut run = new_run(&record.id);
    run.newest_before = newest_before;
    run.former_seed = last.as_ref().and_then(|last| last.seed.clone().or(last.former_seed.clone()));
    if from_workdir {
        run.resume_thread = last.filter(|last| last.had_turn).and_then(|last| last.thread_id);
    } else {
        run.resume_thread = snapshot.as_ref().and_then(|row| row.thread_id.clone());
        run.former_seed = snapshot.as_ref().and_then(|row| row.seed.clone()).or(run.former_seed);
        run.resumed_from = snapshot.map(|row| row.id);
        record.workdir_kept = None;
    }
    record.run = Some(run);
    record.phase = Phase::Starting;
    record.outcome = None;
    record.reason = None;
    record.code = None;
    record.host_down = None;
    record.teardown = Vec::new();
    record.style = None;
    record.approvals = Vec::new();
    record.updated_at = Timestamp::now();
    Ok(())
}

/// Forgets an ended session: its record, snapshots and journal.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<(), SessionError>")]
pub struct Delete {
    /// Which.
    pub session: SessionId,
}

impl Handler<Delete> for Sessions {
    type Result = ResponseActFuture<Self, Result<(), SessionError>>;

    fn handle(&mut self, Delete { session }: Delete, _: &mut Self::Context) -> Self::Result {
        let settings = self.settings.clone();
        let deleting = async move {
            let row = settings.store.records.get(&session).await?;
            let row = row.ok_or_else(|| SessionError::not_found("session", &session))?;
            let record = SessionRecord::read(&row)?;
            record
                .phase
                .accepts(Request::Delete)
                .map_err(|refusal| SessionError::refused(&session, refusal))?;
            if record.workdir_kept.is_some()
                && let Ok(host) = settings.hosts.of_record(&record.host, record.ssh.as_ref())
                && let Ok(task) = TaskId::new(session.as_str())
            {
                let kept = host.cleanup(&host.task_dir(&task)).await;
                kept.map_err(|problem| SessionError::Invalid {
                    field: "workdir_kept",
                    why: problem.to_string(),
                })?;
            }
            settings.store.snapshots.delete_all(&session).await?;
            settings.store.deliverables.delete_all(&session).await?;
            // The record goes last but one: while it is there, a delete that failed half way can be asked for again.
            settings.store.records.delete(&session).await?;
            settings.store.journal.delete(session.as_str()).await?;
            let data = json!({ "deleted": true });
            Events::new(session, settings.service_stream.clone(), settings.service_stream.clone())
                .tell("session.deleted", &data);
            Ok(())
        };
        Box::pin(deleting.into_actor(self))
    }
}

impl Handler<SessionEnded> for Sessions {
    type Result = ();

    fn handle(&mut self, ended: SessionEnded, ctx: &mut Self::Context) {
        info!(session = %ended.session, outcome = ?ended.outcome, "session ended");
        ctx.run_later(REPLAY_AFTER, move |root, ctx| {
            let settings = root.settings.clone();
            let replaying = async move { recovery::replay_spool_of(&settings, &ended.session).await };
            ctx.spawn(replaying.into_actor(root).map(|_, _, _| ()));
        });
    }
}

impl Handler<ChildExit> for Sessions {
    type Result = ();

    fn handle(&mut self, exit: ChildExit, ctx: &mut Self::Context) {
        if self.verifier.is(exit.id) {
            self.verifier_died(&exit, ctx);
            return;
        }
        if self.provisioner.is(exit.id) {
            self.provisioner_died(&exit, ctx);
            return;
        }
        if self.login_exited(&exit, ctx) {
            return;
        }
        let found = self.live.iter().find(|(_, live)| live.handle.id == exit.id).map(|(id, _)| id.clone());
        let Some(id) = found else { return };
        if exit.reason == ExitReason::Normal || self.draining {
            self.live.remove(&id);
            return;
        }
        error!(session = %id, reason = %exit.reason, "session actor died, its run is taken up from the record");
        let Some(live) = self.live.get_mut(&id) else {
            return;
        };
        let now = tokio::time::Instant::now();
        live.revived.retain(|at| now.duration_since(*at) < REVIVALS_WINDOW);
        live.revived.push(now);
        if live.revived.len() > REVIVALS {
            error!(session = %id, "session actor dies again and again, it is left for the next start");
            self.live.remove(&id);
            let settings = self.settings.clone();
            let why = format!(
                "its supervisor died {} times ({}); it is left as it is for the next start of the service",
                REVIVALS + 1,
                exit.reason
            );
            let telling = async move {
                match settings.store.journal.open(id.as_str()).await {
                    Ok(stream) => Events::new(id, stream, settings.service_stream.clone())
                        .tell("attention", &json!({ "reason": why })),
                    Err(problem) => error!(session = %id, %problem, "journal cannot be opened"),
                }
            };
            ctx.spawn(telling.into_actor(self));
            return;
        }
        let settings = self.settings.clone();
        let reading = async move { settings.store.records.get(&id).await };
        ctx.spawn(reading.into_actor(self).map(|row, root, ctx| match row {
            Ok(Some(row)) => match SessionRecord::read(&row) {
                Ok(record) => root.take_up(record, row.rev, Beginning::Recover, ctx),
                Err(problem) => error!(session = %row.id, %problem, "record cannot be read"),
            },
            Ok(None) => warn!("session actor died without a record"),
            Err(problem) => error!(%problem, "record cannot be read"),
        }));
    }
}

/// What becomes of live sessions when the service goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    /// They stay, for the next start.
    Detach,
    /// They are torn down.
    Teardown,
}

/// Refuses new work and lets every session leave or end. Answered when all have.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Drain {
    /// What becomes of live sessions.
    pub on_exit: OnExit,
}

impl Handler<Drain> for Sessions {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, drain: Drain, _: &mut Self::Context) -> Self::Result {
        self.draining = true;
        self.provisioner.stop();
        let leaving: Vec<_> = self
            .live
            .values()
            .map(|live| leave(live.addr.clone(), live.status.clone(), drain.on_exit))
            .collect();
        info!(sessions = leaving.len(), on_exit = ?drain.on_exit, "service drains");
        let (checks, logins) = (self.verifier.finish(), self.logins.leave());
        let all = async move {
            tokio::join!(futures_util::future::join_all(leaving), logins);
            checks.await;
        };
        Box::pin(all.into_actor(self))
    }
}

/// How long a session that is being launched or torn down may take to come to rest before it is left as it is. The next
/// start takes it up where it stands either way.
const REST_LIMIT: Duration = Duration::from_secs(60);

/// Lets one session leave. An agent on our own pipes cannot outlive us, so its session is torn down either way.
async fn leave(session: Addr<Session>, mut status: watch::Receiver<SessionView>, on_exit: OnExit) {
    let moving = |view: &SessionView| matches!(view.state, State::Starting | State::Stopping);
    let over = |view: &SessionView| matches!(view.state, State::Ended | State::Lost);
    let piped = session.send(IsPiped).await.unwrap_or(false);
    if on_exit == OnExit::Detach && !piped {
        // An error means that the session is over: its status went with its actor.
        let _ = tokio::time::timeout(REST_LIMIT, status.wait_for(|view| !moving(view))).await;
        // A session that ends meanwhile has left too.
        let _ = session.send(Detach).await;
        return;
    }
    let stop = StopSession { mode: StopMode::Graceful, reason: "the service was shut down".to_owned() };
    // Refused by a session that is over.
    let _ = session.send(stop).await;
    // A host that is away may stay away for days: its session goes on with its end at the next start.
    let stuck = |view: &SessionView| view.state == State::Stopping && view.host_down.is_some();
    let rest = status.wait_for(|view| over(view) || stuck(view)).await.map(|view| stuck(&view));
    if rest.is_ok_and(|stuck| stuck) {
        let _ = session.send(Detach).await;
        return;
    }
    // The status is dropped with the actor, whose last deed is to make its end durable. A store that is away would hold
    // that up for ever; the next start finds the end unwritten and every step done.
    let written = async { while status.changed().await.is_ok() {} };
    if tokio::time::timeout(REST_LIMIT, written).await.is_err() {
        warn!("end of a session is not on record, it is left to the next start");
    }
}
