//! LeaseRenewer: keeps the seed's lease, lets it go when told, and says when it is lost.

use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;
use optio_store::{
    Holder, Lease, PageRequest, Renewal, SeedId, SeedPatch, SeedRow, SeedStatus, StoreError, Want,
};
use serde_json::json;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::session::RunContext;
use crate::supervision::{ChildKind, Observation, Observe, Pulse, beat};
use crate::teardown::{Finish, Outcome, ReleaseLease, StepError, StepResult};
use crate::trace::Deed;
use crate::verifier::Mend;

/// How often the lease is renewed: a sixth of its life (DESIGN §8).
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// How long one renewal may take before the next one is tried.
const RENEW_LIMIT: Duration = Duration::from_secs(8);

/// Without a confirmed renewal for this long, counted from before the last confirmed request was sent, the lease
/// counts as lost: the agent has to be gone before the store's 60 s are over (T-117, INV-08).
const FENCE_AFTER: Duration = Duration::from_secs(45);

/// How long a launch waits for a seed in doubt to be checked: discovery, a refresh and a save take less than this where
/// they take their time. A check that takes longer goes on without us.
const MEND_LIMIT: Duration = Duration::from_secs(60);

/// Silence past this is loss of the renewer itself: one renewal's limit and one interval, twice.
pub(crate) const PULSE_LIMIT: Duration = Duration::from_secs(36);

/// Keeps one run's lease from the moment it has it, whatever mode the run is in (T-114, T-115). It is the only actor
/// that renews and releases; a save never waits for it, nor it for a save (T-141).
pub struct LeaseRenewer {
    run: RunContext,
    session: Recipient<LeaseFact>,
    holder: Holder,
    /// The seed, once the lease was asked for.
    seed: Option<SeedId>,
    state: LeaseState,
    pulse: Pulse,
    last_error: Option<String>,
    renewals: u64,
    renewing: bool,
    /// It was left to expire, and nobody knows yet whether it still is ours.
    left: bool,
}

/// A lease that an earlier actor or process of this run asked for.
#[derive(Debug, Clone)]
pub struct EarlierLease {
    /// The seed.
    pub seed: SeedId,
    /// It was found lost, which is final.
    pub lost: bool,
    /// When its last confirmed renewal was sent; now, if nobody knows.
    pub confirmed: Instant,
    /// It was left to expire, see [`LetExpire`].
    pub left: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeaseState {
    /// No lease in this run.
    None,
    /// Ours, confirmed by a request that was sent at this time.
    Held { confirmed: Instant },
    /// Perhaps ours: taken over from an earlier process, or released with an unknown outcome.
    Unconfirmed { since: Instant },
    /// Ours, and not kept any more: it expires unless it is taken up again, see [`LetExpire`].
    Left,
    /// Not ours any more, for good (INV-07).
    Lost,
    /// Let go.
    Released,
}

impl LeaseRenewer {
    /// A renewer for this run; `earlier` is what an earlier actor or process left.
    pub fn new(
        run: RunContext,
        pulse: Pulse,
        session: Recipient<LeaseFact>,
        holder: Holder,
        earlier: Option<EarlierLease>,
    ) -> Self {
        let state = match &earlier {
            None => LeaseState::None,
            Some(EarlierLease { lost: true, .. }) => LeaseState::Lost,
            Some(EarlierLease { left: true, .. }) => LeaseState::Left,
            Some(EarlierLease { confirmed, .. }) => LeaseState::Unconfirmed { since: *confirmed },
        };
        let left = state == LeaseState::Left;
        let seed = earlier.map(|lease| lease.seed);
        Self {
            run,
            session,
            holder,
            seed,
            state,
            pulse,
            last_error: None,
            renewals: 0,
            renewing: false,
            left,
        }
    }

    fn renew(&mut self, ctx: &mut Context<Self>) {
        let since = match self.state {
            LeaseState::Held { confirmed } => confirmed,
            LeaseState::Unconfirmed { since } => since,
            LeaseState::None | LeaseState::Left | LeaseState::Lost | LeaseState::Released => {
                self.pulse.touch();
                return;
            }
        };
        let Some(seed) = self.seed.clone() else { return };
        if since.elapsed() >= FENCE_AFTER {
            let why = self.last_error.clone().unwrap_or_else(|| "no renewal was confirmed".to_owned());
            self.lose(&seed, format!("the lease could not be renewed for {FENCE_AFTER:?}: {why}"));
            return;
        }
        if std::mem::replace(&mut self.renewing, true) {
            return;
        }
        let sent = Instant::now();
        let renewing = renew_once(self.run.clone(), seed.clone(), self.holder.clone());
        ctx.spawn(renewing.into_actor(self).map(move |renewed, renewer, _| {
            renewer.pulse.touch();
            renewer.renewing = false;
            renewer.renewed(&seed, sent, renewed);
        }));
    }

    fn renewed(&mut self, seed: &SeedId, sent: Instant, renewed: Result<Renewal, String>) {
        if !matches!(self.state, LeaseState::Held { .. } | LeaseState::Unconfirmed { .. }) {
            return;
        }
        match renewed {
            Ok(Renewal::Renewed { expires_at }) => {
                if std::mem::take(&mut self.left) {
                    self.run.did(Deed::LeaseAcquired { seed: seed.clone() });
                }
                self.renewals += 1;
                self.last_error = None;
                self.state = LeaseState::Held { confirmed: sent };
                self.session.do_send(LeaseFact::Renewed { expires_at, sent });
            }
            Ok(Renewal::Lost) => {
                self.lose(seed, "somebody else holds the seed, or it was released".to_owned())
            }
            Err(why) => {
                warn!(%seed, why, "lease was not renewed");
                self.last_error = Some(why);
            }
        }
    }

    fn lose(&mut self, seed: &SeedId, why: String) {
        if self.state == LeaseState::Lost {
            return;
        }
        warn!(%seed, why, "lease is lost");
        self.state = LeaseState::Lost;
        self.last_error = Some(why.clone());
        self.run.did(Deed::LeaseLost { seed: seed.clone() });
        self.session.do_send(LeaseFact::Lost { why });
    }
}

async fn renew_once(run: RunContext, seed: SeedId, holder: Holder) -> Result<Renewal, String> {
    run.step(ChildKind::LeaseRenewer, "renew").await.map_err(|injected| injected.to_string())?;
    match tokio::time::timeout(RENEW_LIMIT, run.store.leases.renew(&seed, &holder)).await {
        Ok(Ok(renewal)) => Ok(renewal),
        Ok(Err(problem)) => Err(problem.to_string()),
        Err(_) => Err(format!("the store did not answer within {RENEW_LIMIT:?}")),
    }
}

impl Actor for LeaseRenewer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.seed.is_some() {
            self.renew(ctx);
        }
        ctx.run_interval(RENEW_EVERY, |renewer, ctx| renewer.renew(ctx));
        beat(ctx, ChildKind::LeaseRenewer, self.run.clone());
    }
}

/// What the renewer tells its session.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub enum LeaseFact {
    /// The lease is ours for another 60 s from `sent`.
    Renewed {
        /// Its end by the store's clock.
        expires_at: Timestamp,
        /// When the confirmed request was sent, by our clock.
        sent: Instant,
    },
    /// The lease is not ours, or can no longer be kept: the agent must be gone at once.
    Lost {
        /// Why.
        why: String,
    },
}

/// Leases a seed for this run. Sent once, on launch; renewals begin with the answer.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Lease, AcquireError>")]
pub struct AcquireLease {
    /// Which seed.
    pub want: Want,
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// Nothing that is wanted is free.
    #[error("{0}")]
    Unavailable(String),
    /// The store does not work, or the fault seam struck.
    #[error("the lease could not be acquired: {0}")]
    Store(String),
}

impl Handler<AcquireLease> for LeaseRenewer {
    type Result = ResponseActFuture<Self, Result<Lease, AcquireError>>;

    fn handle(&mut self, acquire: AcquireLease, _: &mut Self::Context) -> Self::Result {
        let acquiring = acquire_or_mend(self.run.clone(), self.holder.clone(), acquire.want);
        Box::pin(acquiring.into_actor(self).map(|acquired, renewer, _| match acquired {
            Ok((lease, sent)) => {
                info!(seed = %lease.seed, "lease acquired");
                renewer.seed = Some(lease.seed.clone());
                renewer.state = LeaseState::Held { confirmed: sent };
                renewer.run.did(Deed::LeaseAcquired { seed: lease.seed.clone() });
                Ok(lease)
            }
            Err(problem) => {
                renewer.last_error = Some(problem.to_string());
                Err(problem)
            }
        }))
    }
}

/// Leases what is wanted. Where nothing is free, a seed in doubt may be, once somebody has looked at it (DESIGN §8).
/// Answers also when the request that was granted was sent.
async fn acquire_or_mend(
    run: RunContext,
    holder: Holder,
    want: Want,
) -> Result<(Lease, Instant), AcquireError> {
    run.step(ChildKind::LeaseRenewer, "acquire")
        .await
        .map_err(|injected| AcquireError::Store(injected.to_string()))?;
    let acquire = async || {
        let sent = Instant::now();
        let acquired = run.store.leases.acquire(&want, &holder).await;
        let acquired = acquired.map_err(|problem| AcquireError::Store(problem.to_string()))?;
        Ok(acquired.map(|lease| (lease, sent)))
    };
    if let Some(acquired) = acquire().await? {
        return Ok(acquired);
    }
    let mended = run.mender.send(Mend { want: want.clone() }).timeout(MEND_LIMIT).await;
    if let (Ok(true), Some(acquired)) = (mended, acquire().await?) {
        return Ok(acquired);
    }
    Err(AcquireError::Unavailable(why_none(&run, &want).await))
}

/// Says why nothing was free, as far as the rows tell.
async fn why_none(run: &RunContext, want: &Want) -> String {
    match want {
        Want::Pool(pool) => format!("no seed of pool {pool:?} is free"),
        Want::Seed(id) => match run.store.seeds.get(id).await {
            Ok(None) => format!("seed {id} does not exist"),
            Ok(Some(row)) if row.status == SeedStatus::Dead => format!("seed {id} is dead"),
            Ok(Some(row)) if row.status == SeedStatus::NeedsRecovery => format!("seed {id} needs recovery"),
            Ok(Some(row)) if row.dirty => {
                format!(
                    "seed {id} was never released by its last holder, whose login may be newer than the stored one"
                )
            }
            Ok(Some(row)) => match row.lease.and_then(|lease| lease.holder.session()) {
                Some(session) => format!("seed {id} is leased by session {session}"),
                None => format!("seed {id} is leased by somebody else"),
            },
            Err(problem) => format!("seed {id} is not free ({problem})"),
        },
    }
}

impl Handler<ReleaseLease> for LeaseRenewer {
    type Result = ResponseActFuture<Self, StepResult>;

    fn handle(&mut self, release: ReleaseLease, _: &mut Self::Context) -> Self::Result {
        // A lease whose acquire had no answer may have been found, and put on record, after this actor began.
        let on_record = || self.run.ledger.read(|r| r.run.as_ref().and_then(|of_run| of_run.seed.clone()));
        let known = self.seed.clone().or_else(on_record);
        let lost = self.state == LeaseState::Lost;
        let refusal = withhold(&release);
        let (run, holder) = (self.run.clone(), self.holder.clone());
        let releasing = async move {
            run.step(ChildKind::LeaseRenewer, "release").await.map_err(StepError::new)?;
            // An acquire without an answer may have been done all the same (INV-11).
            let seed = match known {
                Some(seed) => Some(seed),
                None => unnoted_lease(&run).await.map_err(StepError::new)?,
            };
            let Some(seed) = seed else {
                return Ok(Finish::Skipped("no seed was leased".to_owned()));
            };
            if lost {
                return Ok(Finish::Skipped(format!("the lease of seed {seed} was already lost")));
            }
            if let Some(why) = refusal {
                park(&run, &seed, &holder, &why).await.map_err(StepError::new)?;
                return Ok(Finish::Withheld(format!("seed {seed} is not released: {why}")));
            }
            let released = run.store.leases.release(&seed, &holder).await.map_err(StepError::new)?;
            run.did(Deed::LeaseReleased { seed: seed.clone() });
            run.events.tell("seed.released", &json!({ "seed": seed }));
            Ok(match released {
                true => Finish::Done(format!("seed {seed} is free")),
                // A release whose answer was lost, or a lease that went before.
                false => Finish::Done(format!("seed {seed} was no longer held by this run")),
            })
        };
        Box::pin(releasing.into_actor(self).map(|result: StepResult, renewer, _| {
            // Also after a withheld release: the mark on the seed keeps others away, and a lease that is renewed for
            // ever would keep away whoever comes to mend it.
            match &result {
                Ok(_) if renewer.state != LeaseState::Lost => renewer.state = LeaseState::Released,
                Ok(_) => {}
                Err(problem) => renewer.last_error = Some(problem.to_string()),
            }
            result
        }))
    }
}

/// The seed whose lease this run has in the store without knowing it: the answer of its acquire was lost, with the actor
/// or the process that asked. The holder was minted before and is on record, so the lease is found by it (T-103).
pub(crate) async fn unnoted_lease(run: &RunContext) -> Result<Option<SeedId>, StoreError> {
    let (wanted, holder) = run.ledger.read(|record| {
        let of_run = record.run.as_ref();
        let asked = record.config.seed().is_some() || of_run.is_some_and(|r| r.former_seed.is_some());
        (asked && of_run.is_some_and(|r| r.seed.is_none()), of_run.map(|r| r.holder.clone()))
    });
    let Some(holder) = holder.filter(|_| wanted) else {
        return Ok(None);
    };
    let mut page = PageRequest { cursor: None, limit: PageRequest::MAX };
    loop {
        let seeds = run.store.seeds.list(None, &page).await?;
        let is_ours = |row: &&SeedRow| row.lease.as_ref().is_some_and(|lease| lease.holder == holder);
        if let Some(row) = seeds.data.iter().find(is_ours) {
            return Ok(Some(row.id.clone()));
        }
        match seeds.next_cursor {
            Some(cursor) => page.cursor = Some(cursor),
            None => return Ok(None),
        }
    }
}

/// Why this lease must not be released, if it must not.
fn withhold(release: &ReleaseLease) -> Option<String> {
    if !release.stopped.agent_is_gone() {
        let detail = release.stopped.outcome().detail();
        return Some(format!(
            "its agent is not proven gone ({detail}); stop the session again, then verify it"
        ));
    }
    if release.saved.login_is_home() {
        return None;
    }
    let detail = release.saved.outcome().detail();
    Some(match release.saved.outcome() {
        Outcome::Failed { spooled: Some(at), .. } => {
            format!(
                "its newest login is not in the store ({detail}); it lies in the spool at {at}; verify it to bring it home"
            )
        }
        _ => format!("its newest login may not be in the store ({detail}); look for it before you verify it"),
    })
}

/// Marks the seed, while this run still holds it, so that nobody is handed a login that is known to be old.
async fn park(run: &RunContext, seed: &SeedId, holder: &Holder, why: &str) -> Result<(), StoreError> {
    let status = Some((SeedStatus::NeedsRecovery, Some(why.to_owned())));
    let patch = SeedPatch { status, ..SeedPatch::default() };
    run.store.seeds.patch(seed, Some(holder), patch).await?;
    run.events
        .tell("attention", &json!({ "seed": seed, "reason": format!("seed {seed} needs recovery: {why}") }));
    Ok(())
}

impl Handler<Observe> for LeaseRenewer {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        let (phase, confirmed) = match self.state {
            LeaseState::None => ("no lease", None),
            LeaseState::Held { confirmed } => ("holding", Some(confirmed)),
            LeaseState::Unconfirmed { .. } => ("unconfirmed", None),
            LeaseState::Left => ("left to expire", None),
            LeaseState::Lost => ("lost", None),
            LeaseState::Released => ("released", None),
        };
        let confirmed = confirmed.map(|at| at.elapsed().as_secs());
        MessageResult(Observation {
            phase: phase.to_owned(),
            last_error: self.last_error.clone(),
            detail: json!({ "seed": self.seed, "renewals": self.renewals, "confirmed_seconds_ago": confirmed }),
        })
    }
}

/// Keeps the lease no longer, and does not release it either: the host is away for so long that the agent has ended, and
/// what it left there nobody has seen. Whoever wants the seed finds it never released, which is what it is.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct LetExpire;

impl Handler<LetExpire> for LeaseRenewer {
    type Result = ();

    fn handle(&mut self, _: LetExpire, _: &mut Self::Context) {
        if !matches!(self.state, LeaseState::Held { .. } | LeaseState::Unconfirmed { .. }) {
            return;
        }
        warn!(seed = ?self.seed, "lease is left to expire");
        self.state = LeaseState::Left;
        self.left = true;
        if let Some(seed) = self.seed.clone() {
            self.run.did(Deed::LeaseLeft { seed });
        }
    }
}

/// Renews at once, also a lease that was left to expire: the host is back. Whose it is by now the answer says.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct RenewNow;

impl Handler<RenewNow> for LeaseRenewer {
    type Result = ();

    fn handle(&mut self, _: RenewNow, ctx: &mut Self::Context) {
        if self.state == LeaseState::Left {
            self.state = LeaseState::Unconfirmed { since: Instant::now() };
        }
        self.renew(ctx);
    }
}

/// Renews once more and stops without releasing: the run goes on without this process (a drain that detaches).
/// Answers whether the lease is ours for another 60 s.
#[derive(Debug, Clone, Message)]
#[rtype(result = "bool")]
pub struct LeaveLease;

impl Handler<LeaveLease> for LeaseRenewer {
    type Result = ResponseActFuture<Self, bool>;

    fn handle(&mut self, _: LeaveLease, _: &mut Self::Context) -> Self::Result {
        let held = matches!(self.state, LeaseState::Held { .. } | LeaseState::Unconfirmed { .. });
        let (run, seed, holder) = (self.run.clone(), self.seed.clone(), self.holder.clone());
        self.state = LeaseState::Released;
        let leaving = async move {
            let Some(seed) = seed.filter(|_| held) else {
                return false;
            };
            matches!(renew_once(run, seed, holder).await, Ok(Renewal::Renewed { .. }))
        };
        Box::pin(leaving.into_actor(self))
    }
}
