//! A seed that is held for a check: leased under a holder of its own, renewed while the check works, let go at its end.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use optio_store::{Holder, Renewal, SeedId, SeedPatch, SeedRow, Store, StoreError, Want};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::Occasion;
use super::probe::Note;

/// How often the lease is renewed: a sixth of its life, as a run does it (DESIGN §8).
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// How long one answer of the store is waited for.
pub(super) const STORE_LIMIT: Duration = Duration::from_secs(15);

/// How long the end of a check is tried to be put on record. What is not on record by then is found by the next check.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);

/// The wait between two tries.
const SETTLE_PAUSE: Duration = Duration::from_secs(2);

/// A lease of a check.
pub(super) struct Held {
    store: Store,
    pub(super) seed: SeedId,
    pub(super) holder: Holder,
    /// Who had it last and never released it. Let go, it would count as clean.
    pub(super) last: Option<Holder>,
    /// Told of each renewal.
    renewed: watch::Sender<()>,
    lost: CancellationToken,
    /// It must not be let go: somebody who may rotate the login is not proven gone.
    withheld: AtomicBool,
}

impl Held {
    /// Leases the seed of `row`, or answers `None` because somebody else has it. In passing, only a clean one is taken;
    /// the store itself sees to it.
    pub(super) async fn acquire(
        store: &Store,
        row: &SeedRow,
        occasion: Occasion,
    ) -> Result<Option<Self>, StoreError> {
        // The form of T-213. Without a session in it, nobody looks for one.
        let holder = Holder::stored(format!("verify:{}", Uuid::new_v4().simple()));
        let last = row.lease.as_ref().map(|lease| lease.holder.clone());
        let held = Self::new(store, &row.id, holder, last);
        let acquired = match occasion {
            Occasion::InPassing => store.leases.acquire(&Want::Seed(row.id.clone()), &held.holder).await,
            Occasion::Asked | Occasion::Leftover => {
                store.leases.acquire_for_recovery(&row.id, &held.holder).await
            }
        };
        match acquired {
            Ok(lease) => Ok(lease.map(|_| held)),
            Err(problem) => {
                // It may have been done nevertheless; nothing was learnt under it.
                held.let_go_unlearnt().await;
                Err(problem)
            }
        }
    }

    fn new(store: &Store, seed: &SeedId, holder: Holder, last: Option<Holder>) -> Self {
        Self {
            store: store.clone(),
            seed: seed.clone(),
            holder,
            last,
            renewed: watch::Sender::default(),
            lost: CancellationToken::new(),
            withheld: AtomicBool::new(false),
        }
    }

    /// Goes on with the lease of a check that is over and left it, if nobody else has taken it since.
    pub(super) async fn take_over(store: &Store, note: &Note) -> Result<Option<Self>, StoreError> {
        let held = Self::new(store, &note.seed, note.holder.clone(), note.last.clone());
        let renewed = timeout(STORE_LIMIT, store.leases.renew(&held.seed, &held.holder)).await;
        match renewed {
            Ok(renewed) => Ok(matches!(renewed?, Renewal::Renewed { .. }).then_some(held)),
            Err(_) => Err(StoreError::TimedOut { what: "a lease", limit: STORE_LIMIT }),
        }
    }

    /// Renews once. An error is no proof that the lease is lost.
    pub(super) async fn renew(&self) -> Result<(), String> {
        match timeout(STORE_LIMIT, self.store.leases.renew(&self.seed, &self.holder)).await {
            Ok(Ok(Renewal::Renewed { .. })) => {
                self.renewed.send_replace(());
                Ok(())
            }
            Ok(Ok(Renewal::Lost)) => {
                self.lost.cancel();
                Err("its lease is lost".to_owned())
            }
            Ok(Err(problem)) => Err(format!("its lease was not renewed: {problem}")),
            Err(_) => Err("its lease was not renewed in time".to_owned()),
        }
    }

    /// Told of each renewal from now on.
    pub(super) fn renewals(&self) -> watch::Receiver<()> {
        self.renewed.subscribe()
    }

    /// Comes back when the lease is known to be lost.
    pub(super) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// From now on the lease is left to run out, whatever comes of the check.
    pub(super) fn withhold(&self) {
        self.withheld.store(true, Ordering::Relaxed);
    }

    /// Renews for as long as it is polled. A lease that is lost shows at the next write, which the store refuses.
    pub(super) async fn keep(&self) -> Infallible {
        loop {
            sleep(RENEW_EVERY).await;
            if let Err(problem) = self.renew().await {
                warn!(seed = %self.seed, problem, "lease of a check was not renewed");
            }
        }
    }

    /// Writes to the seed once, as its holder.
    pub(super) async fn patch(&self, patch: SeedPatch) -> Result<(), StoreError> {
        let patching = self.store.seeds.patch(&self.seed, Some(&self.holder), patch);
        match timeout(STORE_LIMIT, patching).await {
            Ok(patched) => patched.map(drop),
            Err(_) => Err(StoreError::TimedOut { what: "a seed's notes", limit: STORE_LIMIT }),
        }
    }

    /// The same, tried again while the store does not answer.
    pub(super) async fn settle(&self, patch: SeedPatch) -> Result<(), StoreError> {
        let begun = Instant::now();
        loop {
            match self.patch(patch.clone()).await {
                Err(problem @ (StoreError::TimedOut { .. } | StoreError::Unavailable { .. })) => {
                    warn!(seed = %self.seed, %problem, "outcome of a check is not on record yet");
                    if begun.elapsed() >= SETTLE_PATIENCE {
                        return Err(problem);
                    }
                    sleep(SETTLE_PAUSE).await;
                }
                ended => return ended,
            }
        }
    }

    /// Lets the seed go, unless that would make it clean without anybody having found out why it was not: then the lease
    /// is left to run out, and the seed is dirty as before.
    pub(super) async fn let_go_unlearnt(&self) {
        if self.last.is_none() {
            self.let_go().await;
        }
    }

    /// Lets the seed go. A release that fails leaves it dirty, which the next check mends.
    pub(super) async fn let_go(&self) {
        if self.withheld.load(Ordering::Relaxed) {
            return;
        }
        match timeout(STORE_LIMIT, self.store.leases.release(&self.seed, &self.holder)).await {
            Ok(Ok(_)) => {}
            Ok(Err(problem)) => warn!(seed = %self.seed, %problem, "lease of a check was not released"),
            Err(_) => warn!(seed = %self.seed, "lease of a check was not released in time"),
        }
    }
}
