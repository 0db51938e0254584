//! What outlives a session: logins and their leases, snapshots, session records, the credential spool, deliverables, the
//! journal.
//!
//! One trait per concern; [`Store`] bundles one implementation of each. [`embedded`] is a directory on this machine,
//! [`mongo`] a MongoDB that several services share, [`memory`] is for tests; all pass [`suite`]. Nothing here knows what an actor or a Codex message is.

mod clock;
mod deliverables;
pub mod embedded;
mod error;
mod health;
mod ids;
mod journal;
mod leases;
mod local;
pub mod mongo;
mod page;
mod records;
mod sealed;
mod seed_archive;
mod seeds;
mod snapshots;
mod spool;

#[cfg(feature = "testsuite")]
pub mod faulty;
#[cfg(feature = "testsuite")]
pub mod memory;
#[cfg(feature = "testsuite")]
pub mod suite;

use std::sync::Arc;

pub use clock::{Clock, SystemClock};
#[cfg(feature = "testsuite")]
pub use clock::{ManualClock, TokioClock};
pub use deliverables::{Deliverables, KEPT_BYTES, KEPT_FILES, KEPT_LIMIT, KeptFile};
pub use error::{Result, StoreError};
pub use health::{Health, StoreHealth};
pub use ids::{ApprovalId, Holder, LoginId, RunId, SeedId, SessionId, SnapshotId};
pub use journal::{DiskJournal, DiskJournalOptions, Draft, Gap, Journal, JournalStream, Record, Slice};
#[cfg(feature = "testsuite")]
pub use journal::{MemoryJournal, WriteFault};
pub use leases::{LEASE_TTL, Lease, Leases, Renewal, Want};
pub use page::{Page, PageRequest};
pub use records::{Inserted, RECORD_LIMIT, RecordFilter, RecordRow, Records};
pub use seeds::{
    Account, NewSeed, SEED_LIMIT, SaveOutcome, SeedFiles, SeedPatch, SeedRow, SeedStatus, SeedVersion, Seeds,
    StoredLease, check_metadata,
};
pub use snapshots::{NewSnapshot, SNAPSHOTS_KEPT, SnapshotRow, SnapshotWriter, Snapshots};
pub use spool::{Spool, SpoolEntry, SpoolId};

/// One implementation of each concern.
#[derive(Clone)]
pub struct Store {
    /// Logins.
    pub seeds: Arc<dyn Seeds>,
    /// The right to use one of them.
    pub leases: Arc<dyn Leases>,
    /// Stored workdirs.
    pub snapshots: Arc<dyn Snapshots>,
    /// What each session is and how far it came.
    pub records: Arc<dyn Records>,
    /// Rotated logins on this machine's disk, until the store has them.
    pub spool: Arc<dyn Spool>,
    /// What agents handed over, on this machine's disk.
    pub deliverables: Arc<dyn Deliverables>,
    /// Every session's ordered events.
    pub journal: Arc<dyn Journal>,
    /// Whether the rows above can be had now.
    pub health: Arc<dyn Health>,
}
