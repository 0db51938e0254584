//! The exclusive, expiring right of one run to use one seed.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use crate::{Holder, Result, SeedId};

/// How long a lease lasts without renewal (T-078); the store's clock decides.
pub const LEASE_TTL: Duration = Duration::from_secs(60);

/// Which seed is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// This one (T-113).
    Seed(SeedId),
    /// Any of this pool, least recently leased first (T-083). Never the empty name (T-087).
    Pool(String),
}

/// A lease that was just acquired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The seed it is for.
    pub seed: SeedId,
    /// Who holds it.
    pub holder: Holder,
    /// When it ends unless renewed, by the store's clock.
    pub expires_at: Timestamp,
}

/// What a renewal found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// Ours for another [`LEASE_TTL`]. An expired lease that nobody took is revived (T-092).
    Renewed {
        /// The new end.
        expires_at: Timestamp,
    },
    /// Somebody else has it, or it was released, or the seed is gone. Final for this holder (INV-07).
    Lost,
}

/// Leases. Every implementation decides atomically, by its own clock, and waits at most
/// [`crate::embedded::OPERATION_LIMIT`] or its like before it answers [`crate::StoreError::TimedOut`].
#[async_trait]
pub trait Leases: Send + Sync + 'static {
    /// Leases a free seed: alive, in the wanted pool (or the wanted one), no live lease, and not *dirty*. A seed is
    /// dirty when its last lease expired without a release: its last holder may have a newer token (DESIGN §8).
    /// `None` when there is none. Not re-entrant (T-088).
    async fn acquire(&self, want: &Want, holder: &Holder) -> Result<Option<Lease>>;

    /// Leases one seed that may be dirty or `needs_recovery`, for whoever is about to mend exactly that: replay of
    /// the spool, verify.
    async fn acquire_for_recovery(&self, seed: &SeedId, holder: &Holder) -> Result<Option<Lease>>;

    /// Extends the lease, if `holder` still has it.
    async fn renew(&self, seed: &SeedId, holder: &Holder) -> Result<Renewal>;

    /// Ends the lease, if `holder` has it; `false` when it has not. The seed is clean afterwards. `lastLeasedAt`
    /// stays, so that a pool is used in turn (T-083, T-093).
    async fn release(&self, seed: &SeedId, holder: &Holder) -> Result<bool>;
}
