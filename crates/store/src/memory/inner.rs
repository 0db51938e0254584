//! What the store in memory holds, and its rules.

use std::collections::HashMap;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::{Map, Value};

use super::{Logged, SeedEvent};
use crate::clock::from_millis;
use crate::seed_archive::sha256_hex;
use crate::{
    Account, Holder, Inserted, LEASE_TTL, Lease, NewSeed, NewSnapshot, RecordFilter, RecordRow, Result,
    SNAPSHOTS_KEPT, SeedFiles, SeedId, SeedRow, SeedStatus, SeedVersion, SessionId, SnapshotId, SnapshotRow,
    SpoolEntry, StoreError, StoredLease,
};

/// How long an idempotency key is remembered, in milliseconds.
const KEY_KEPT: i64 = 24 * 60 * 60 * 1000;

/// Everything.
#[derive(Default)]
pub(super) struct State {
    pub(super) logins: BTreeMap<SeedId, Login>,
    pub(super) snapshots: BTreeMap<SnapshotId, Snapshot>,
    pub(super) records: BTreeMap<SessionId, RecordRow>,
    /// Records that cannot be read.
    pub(super) damaged_records: BTreeSet<SessionId>,
    /// Idempotency key to digest, session and time.
    pub(super) keys: HashMap<String, (String, SessionId, i64)>,
    pub(super) spool: BTreeMap<String, SpoolEntry>,
    /// Entries of the spool that cannot be read.
    pub(super) damaged: BTreeSet<String>,
    pub(super) log: Vec<Logged>,
    versions: u64,
    turns: u64,
}

/// A stored login.
pub(super) struct Login {
    pub(super) files: SeedFiles,
    pub(super) version: SeedVersion,
    pub(super) lineage: Option<String>,
    pub(super) pool: Option<String>,
    pub(super) status: SeedStatus,
    pub(super) status_reason: Option<String>,
    account: Account,
    pub(super) metadata: Map<String, Value>,
    /// Who, and until when in milliseconds since 1970.
    pub(super) lease: Option<(Holder, i64)>,
    /// When it was leased last, counted.
    pub(super) turn: Option<u64>,
    pub(super) created: i64,
    pub(super) updated: i64,
    pub(super) refreshed: Option<i64>,
    pub(super) verified: Option<i64>,
}

impl Login {
    pub(super) fn new(seed: NewSeed, lineage: Option<String>, version: SeedVersion, now: i64) -> Self {
        Self {
            files: seed.files,
            version,
            lineage,
            pool: seed.pool,
            status: SeedStatus::Alive,
            status_reason: None,
            account: seed.account,
            metadata: seed.metadata,
            lease: None,
            turn: None,
            created: now,
            updated: now,
            refreshed: None,
            verified: None,
        }
    }

    pub(super) fn dirty(&self, now: i64) -> bool {
        self.lease.as_ref().is_some_and(|(_, expires)| *expires <= now)
    }

    pub(super) fn row(&self, id: &SeedId, now: i64) -> SeedRow {
        let lease = self.lease.as_ref().map(|(holder, expires)| StoredLease {
            holder: holder.clone(),
            expires_at: from_millis(*expires),
            live: *expires > now,
        });
        SeedRow {
            id: id.clone(),
            pool: self.pool.clone(),
            status: self.status,
            status_reason: self.status_reason.clone(),
            account: self.account.clone(),
            lease,
            dirty: self.dirty(now),
            version: self.version.clone(),
            created_at: from_millis(self.created),
            updated_at: from_millis(self.updated),
            last_refreshed_at: self.refreshed.map(from_millis),
            last_verified_at: self.verified.map(from_millis),
            metadata: self.metadata.clone(),
        }
    }
}

/// A stored workdir.
pub(super) struct Snapshot {
    pub(super) row: SnapshotRow,
    pub(super) bytes: Bytes,
}

impl State {
    pub(super) fn opened(&self, row: RecordRow) -> Result<RecordRow> {
        if self.damaged_records.contains(&row.id) {
            let what = format!("session record {}", row.id);
            return Err(StoreError::Damaged { what, why: "it was damaged on purpose".to_owned() });
        }
        Ok(row)
    }

    pub(super) fn login(&self, id: &SeedId) -> Result<&Login> {
        self.logins.get(id).ok_or_else(|| StoreError::NotFound { what: "seed", id: id.to_string() })
    }

    pub(super) fn login_mut(&mut self, id: &SeedId) -> Result<&mut Login> {
        self.logins.get_mut(id).ok_or_else(|| StoreError::NotFound { what: "seed", id: id.to_string() })
    }

    pub(super) fn next_version(&mut self) -> SeedVersion {
        self.versions += 1;
        SeedVersion(format!("v{}", self.versions))
    }

    pub(super) fn note(&mut self, now: i64, seed: &SeedId, holder: Option<&Holder>, event: SeedEvent) {
        let (seed, holder) = (seed.clone(), holder.cloned());
        self.log.push(Logged { at: from_millis(now), seed, holder, event });
    }

    pub(super) fn lease(
        &mut self,
        now: i64,
        seed: SeedId,
        holder: &Holder,
        event: SeedEvent,
    ) -> Option<Lease> {
        self.turns += 1;
        let expires = expiry(now);
        let login = self.logins.get_mut(&seed)?;
        login.lease = Some((holder.clone(), expires));
        login.turn = Some(self.turns);
        self.note(now, &seed, Some(holder), event);
        Some(Lease { seed, holder: holder.clone(), expires_at: from_millis(expires) })
    }

    pub(super) fn snapshots_of(&self, session: &SessionId) -> Vec<SnapshotRow> {
        let of = self.snapshots.values().map(|s| &s.row).filter(|row| row.session == *session);
        let mut rows: Vec<_> = of.cloned().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.captured_at));
        rows
    }

    pub(super) fn add_snapshot(&mut self, now: i64, about: NewSnapshot, bytes: Bytes) -> SnapshotRow {
        let earlier = self.snapshots_of(&about.session);
        let captured = earlier.first().map_or(now, |row| now.max(crate::clock::millis(row.captured_at) + 1));
        let row = SnapshotRow {
            id: SnapshotId::mint(),
            session: about.session,
            captured_at: from_millis(captured),
            end_state: about.end_state,
            thread_id: about.thread_id,
            codec: about.codec,
            seed: about.seed,
            len: bytes.len() as u64,
            sha256: sha256_hex(&bytes),
        };
        self.snapshots.insert(row.id.clone(), Snapshot { row: row.clone(), bytes });
        for stale in earlier.iter().skip(SNAPSHOTS_KEPT - 1) {
            self.snapshots.remove(&stale.id);
        }
        row
    }

    /// What an idempotency key was used for before, if it is still remembered.
    pub(super) fn earlier(&mut self, key: &str, digest: &str, now: i64) -> Option<Inserted> {
        self.keys.retain(|_, (_, _, at)| *at >= now - KEY_KEPT);
        let (stored, session, _) = self.keys.get(key)?;
        Some(if stored == digest { Inserted::Same(session.clone()) } else { Inserted::KeyReused })
    }
}

/// The end of a lease that is given now.
pub(super) fn expiry(now: i64) -> i64 {
    now + LEASE_TTL.as_millis() as i64
}

/// Whether a list shows this record.
pub(super) fn matches(row: &RecordRow, filter: &RecordFilter) -> bool {
    let label = filter.label.as_ref().is_none_or(|(key, value)| {
        row.labels.get(key).is_some_and(|stored| value.as_ref().is_none_or(|value| value == stored))
    });
    label
        && (filter.states.is_empty() || filter.states.contains(&row.state))
        && filter.host.as_ref().is_none_or(|host| row.host == *host)
        && filter.seed.as_ref().is_none_or(|seed| row.seed.as_ref() == Some(seed))
        && filter.q.as_ref().is_none_or(|q| row.name.to_lowercase().contains(&q.to_lowercase()))
}
