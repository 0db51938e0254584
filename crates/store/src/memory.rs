//! The store in memory, for tests: the same contracts, a clock that tests move, and a look inside.
//!
//! Its clock is tokio's unless another one is given, so leases expire under `tokio::time::pause`.

mod deliverables;
mod inner;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::clock::{from_millis, millis};
use crate::records::{check_body, readable};
use crate::seed_archive::{self, hex};
use crate::seeds::{check_metadata, check_pool, merge_metadata};
use crate::{
    Clock, Health, Holder, Inserted, Journal, Lease, Leases, NewSeed, NewSnapshot, Page, PageRequest,
    RecordFilter, RecordRow, Records, Renewal, Result, SaveOutcome, SeedFiles, SeedId, SeedPatch, SeedRow,
    SeedStatus, SeedVersion, Seeds, SessionId, SnapshotId, SnapshotRow, SnapshotWriter, Snapshots, Spool,
    SpoolEntry, SpoolId, Store, StoreError, StoreHealth, TokioClock, Want,
};
use deliverables::MemoryDeliverables;
use inner::{Login, Snapshot, State, matches};

/// Largest piece that a snapshot's reader is given.
const CHUNK: usize = 1 << 20;

/// What happened to a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeedEvent {
    /// It was stored.
    Imported,
    /// It was leased.
    Acquired,
    /// It was leased to be mended.
    AcquiredForRecovery,
    /// Its lease was extended.
    Renewed,
    /// Its lease ended by its holder's word.
    Released,
    /// Its credential was replaced.
    Saved,
    /// Its status, pool or notes changed.
    Patched,
    /// It was deleted.
    Deleted,
}

/// One change of a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// When, by the store's clock.
    pub at: Timestamp,
    /// Which seed.
    pub seed: SeedId,
    /// By whom, where a holder was named.
    pub holder: Option<Holder>,
    /// What.
    pub event: SeedEvent,
}

/// A store in memory. Clones share it.
#[derive(Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    deliverables: Arc<MemoryDeliverables>,
    clock: Arc<dyn Clock>,
    opened: Timestamp,
}

impl MemoryStore {
    /// An empty store on tokio's clock; to be made inside a runtime.
    pub fn new() -> Self {
        Self::with_clock(Arc::new(TokioClock::new()))
    }

    /// An empty store on this clock.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self { state: Arc::default(), deliverables: Arc::default(), opened: clock.now(), clock }
    }

    /// This store with a journal beside it.
    pub fn store(&self, journal: Arc<dyn Journal>) -> Store {
        Store {
            seeds: Arc::new(self.clone()),
            leases: Arc::new(self.clone()),
            snapshots: Arc::new(self.clone()),
            records: Arc::new(self.clone()),
            spool: Arc::new(self.clone()),
            deliverables: self.deliverables.clone(),
            journal,
            health: Arc::new(self.clone()),
        }
    }

    /// Makes a session's record one that cannot be read, until it is written again.
    pub fn damage_record(&self, session: &SessionId) {
        self.lock().damaged_records.insert(session.clone());
    }

    /// Every change of a seed, in order.
    pub fn log(&self) -> Vec<Logged> {
        self.lock().log.clone()
    }

    /// The credential that is stored now.
    pub fn credential(&self, seed: &SeedId) -> Option<Bytes> {
        self.lock().logins.get(seed)?.files.0.get(SeedFiles::AUTH).cloned()
    }

    /// Who has a lease on the seed that was not released, live or expired.
    pub fn holder(&self, seed: &SeedId) -> Option<Holder> {
        Some(self.lock().logins.get(seed)?.lease.as_ref()?.0.clone())
    }

    /// How many snapshots a session has.
    pub fn snapshot_count(&self, session: &SessionId) -> usize {
        self.lock().snapshots.values().filter(|s| s.row.session == *session).count()
    }

    /// Flips a bit of a stored snapshot, which a reader must notice.
    pub fn damage_snapshot(&self, id: &SnapshotId) {
        if let Some(snapshot) = self.lock().snapshots.get_mut(id) {
            let mut bytes = snapshot.bytes.to_vec();
            match bytes.first_mut() {
                Some(byte) => *byte ^= 1,
                None => bytes.push(0),
            }
            snapshot.bytes = bytes.into();
        }
    }

    /// Makes an entry of the spool unreadable.
    pub fn damage_spooled(&self, id: &SpoolId) {
        self.lock().damaged.insert(id.0.clone());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> i64 {
        millis(self.clock.now())
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Seeds for MemoryStore {
    async fn import(&self, seed: NewSeed) -> Result<SeedRow> {
        check_pool(seed.pool.as_deref())?;
        check_metadata(&seed.metadata)?;
        seed_archive::check(&seed.files)?;
        // Only for what it refuses.
        seed_archive::encode(&seed.files, 0)?;
        let lineage = seed.files.0.get(SeedFiles::AUTH).and_then(|auth| seed_archive::lineage(auth));
        let now = self.now();
        let mut state = self.lock();
        if let Some((twin, _)) = state.logins.iter().find(|(_, l)| lineage.is_some() && l.lineage == lineage)
        {
            let why =
                "it holds the same login; two copies of a single-use login strand each other".to_owned();
            return Err(StoreError::Conflict { what: "seed", id: twin.to_string(), why });
        }
        let id = SeedId::mint();
        let login = Login::new(seed, lineage, state.next_version(), now);
        let row = login.row(&id, now);
        state.logins.insert(id.clone(), login);
        state.note(now, &id, None, SeedEvent::Imported);
        Ok(row)
    }

    async fn get(&self, id: &SeedId) -> Result<Option<SeedRow>> {
        let now = self.now();
        Ok(self.lock().logins.get(id).map(|login| login.row(id, now)))
    }

    async fn list(&self, pool: Option<&str>, page: &PageRequest) -> Result<Page<SeedRow>> {
        let (after, limit, now) = (page.after()?, page.rows(), self.now());
        let key = |row: &SeedRow| (millis(row.created_at), row.id.to_string());
        let state = self.lock();
        let mut rows: Vec<_> = state.logins.iter().map(|(id, login)| login.row(id, now)).collect();
        rows.retain(|row| pool.is_none_or(|pool| row.pool.as_deref() == Some(pool)));
        rows.retain(|row| after.as_ref().is_none_or(|after| key(row) > *after));
        rows.sort_by_key(key);
        Ok(Page::cut(rows, limit, key))
    }

    async fn load(&self, id: &SeedId) -> Result<(SeedFiles, SeedVersion)> {
        let state = self.lock();
        let login = state.login(id)?;
        Ok((login.files.clone(), login.version.clone()))
    }

    async fn save_credential(
        &self,
        id: &SeedId,
        holder: &Holder,
        base: &SeedVersion,
        auth_json: Bytes,
    ) -> Result<SaveOutcome> {
        if auth_json.is_empty() {
            return Err(StoreError::Invalid { field: "auth_json", why: "it must not be empty".to_owned() });
        }
        let now = self.now();
        let mut state = self.lock();
        let next = state.next_version();
        let Some(login) = state.logins.get_mut(id) else {
            return Ok(SaveOutcome::Gone);
        };
        if login.lease.as_ref().is_none_or(|(by, _)| by != holder) {
            return Ok(SaveOutcome::NotHolder);
        }
        if login.files.0.get(SeedFiles::AUTH) == Some(&auth_json) {
            return Ok(SaveOutcome::Saved(login.version.clone()));
        }
        if login.version != *base {
            return Ok(SaveOutcome::Superseded { current: login.version.clone() });
        }
        login.lineage = seed_archive::lineage(&auth_json);
        login.files.0.insert(SeedFiles::AUTH.to_owned(), auth_json);
        login.version = next.clone();
        login.updated = now;
        login.refreshed = Some(now);
        state.note(now, id, Some(holder), SeedEvent::Saved);
        Ok(SaveOutcome::Saved(next))
    }

    async fn patch(&self, id: &SeedId, holder: Option<&Holder>, patch: SeedPatch) -> Result<SeedRow> {
        check_metadata(&patch.metadata)?;
        if let Some(pool) = &patch.pool {
            check_pool(pool.as_deref())?;
        }
        let now = self.now();
        let mut state = self.lock();
        let login = state.login_mut(id)?;
        if let Some(holder) = holder
            && login.lease.as_ref().is_none_or(|(by, _)| by != holder)
        {
            let why = format!("{holder} does not hold its lease");
            return Err(StoreError::Conflict { what: "seed", id: id.to_string(), why });
        }
        if let Some((status, reason)) = patch.status {
            login.status = status;
            login.status_reason = reason;
            if status == SeedStatus::Alive && holder.is_none() && login.dirty(now) {
                login.lease = None;
            }
        }
        if let Some(pool) = patch.pool {
            login.pool = pool;
        }
        merge_metadata(&mut login.metadata, patch.metadata);
        if patch.verified {
            login.verified = Some(now);
        }
        login.updated = now;
        let row = login.row(id, now);
        state.note(now, id, holder, SeedEvent::Patched);
        Ok(row)
    }

    async fn delete(&self, id: &SeedId, force: bool) -> Result<()> {
        let now = self.now();
        let mut state = self.lock();
        let login = state.login(id)?;
        if let Some((holder, expires)) = &login.lease
            && *expires > now
            && !force
        {
            let why = format!("{holder} has a live lease on it");
            return Err(StoreError::Conflict { what: "seed", id: id.to_string(), why });
        }
        state.logins.remove(id);
        state.note(now, id, None, SeedEvent::Deleted);
        Ok(())
    }
}

#[async_trait]
impl Leases for MemoryStore {
    async fn acquire(&self, want: &Want, holder: &Holder) -> Result<Option<Lease>> {
        if let Want::Pool(pool) = want {
            check_pool(Some(pool))?;
        }
        let now = self.now();
        let mut state = self.lock();
        let free = state.logins.iter().filter(|(id, login)| {
            let wanted = match want {
                Want::Seed(seed) => *id == seed,
                Want::Pool(pool) => login.pool.as_ref() == Some(pool),
            };
            wanted && login.status == SeedStatus::Alive && login.lease.is_none()
        });
        let next = free.min_by_key(|(id, login)| (login.turn, login.created, (*id).clone()));
        let Some(seed) = next.map(|(id, _)| id.clone()) else {
            return Ok(None);
        };
        Ok(state.lease(now, seed, holder, SeedEvent::Acquired))
    }

    async fn acquire_for_recovery(&self, seed: &SeedId, holder: &Holder) -> Result<Option<Lease>> {
        let now = self.now();
        let mut state = self.lock();
        let free = state.logins.get(seed).is_some_and(|login| login.lease.is_none() || login.dirty(now));
        if !free {
            return Ok(None);
        }
        Ok(state.lease(now, seed.clone(), holder, SeedEvent::AcquiredForRecovery))
    }

    async fn renew(&self, seed: &SeedId, holder: &Holder) -> Result<Renewal> {
        let now = self.now();
        let mut state = self.lock();
        let expires = inner::expiry(now);
        match state.logins.get_mut(seed).and_then(|login| login.lease.as_mut()) {
            Some((by, until)) if by == holder => *until = expires,
            _ => return Ok(Renewal::Lost),
        }
        state.note(now, seed, Some(holder), SeedEvent::Renewed);
        Ok(Renewal::Renewed { expires_at: from_millis(expires) })
    }

    async fn release(&self, seed: &SeedId, holder: &Holder) -> Result<bool> {
        let now = self.now();
        let mut state = self.lock();
        let Some(login) = state.logins.get_mut(seed) else {
            return Ok(false);
        };
        if login.lease.as_ref().is_none_or(|(by, _)| by != holder) {
            return Ok(false);
        }
        login.lease = None;
        state.note(now, seed, Some(holder), SeedEvent::Released);
        Ok(true)
    }
}

struct Writer {
    store: MemoryStore,
    bytes: Vec<u8>,
}

#[async_trait]
impl SnapshotWriter for Writer {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    async fn commit(self: Box<Self>, about: NewSnapshot) -> Result<SnapshotRow> {
        let now = self.store.now();
        let mut state = self.store.lock();
        Ok(state.add_snapshot(now, about, self.bytes.into()))
    }
}

#[async_trait]
impl Snapshots for MemoryStore {
    async fn begin(&self) -> Result<Box<dyn SnapshotWriter>> {
        Ok(Box::new(Writer { store: self.clone(), bytes: Vec::new() }))
    }

    async fn list(&self, session: &SessionId) -> Result<Vec<SnapshotRow>> {
        Ok(self.lock().snapshots_of(session))
    }

    async fn get(&self, id: &SnapshotId) -> Result<Option<SnapshotRow>> {
        Ok(self.lock().snapshots.get(id).map(|snapshot| snapshot.row.clone()))
    }

    async fn open(&self, id: &SnapshotId) -> Result<BoxStream<'static, Result<Bytes>>> {
        let state = self.lock();
        let not_found = || StoreError::NotFound { what: "snapshot", id: id.to_string() };
        let Snapshot { row, bytes } = state.snapshots.get(id).ok_or_else(not_found)?;
        let mut chunks: Vec<Result<Bytes>> = (0..bytes.len())
            .step_by(CHUNK)
            .map(|at| Ok(bytes.slice(at..bytes.len().min(at + CHUNK))))
            .collect();
        if hex(&Sha256::digest(bytes)) != row.sha256 {
            let why = "it has another hash than its row says".to_owned();
            chunks.push(Err(StoreError::Damaged { what: format!("snapshot {id}"), why }));
        }
        Ok(stream::iter(chunks).boxed())
    }

    async fn verify(&self, id: &SnapshotId) -> Result<()> {
        let mut chunks = self.open(id).await?;
        while let Some(chunk) = chunks.next().await {
            chunk?;
        }
        Ok(())
    }

    async fn delete_all(&self, session: &SessionId) -> Result<()> {
        self.lock().snapshots.retain(|_, snapshot| snapshot.row.session != *session);
        Ok(())
    }
}

#[async_trait]
impl Records for MemoryStore {
    async fn insert(&self, mut row: RecordRow, idempotency: Option<(String, String)>) -> Result<Inserted> {
        check_body(&row.body)?;
        row.rev = 1;
        let now = self.now();
        let mut state = self.lock();
        if let Some((key, digest)) = &idempotency
            && let Some(earlier) = state.earlier(key, digest, now)
        {
            return Ok(earlier);
        }
        if state.records.contains_key(&row.id) {
            let why = "it exists".to_owned();
            return Err(StoreError::Conflict { what: "session record", id: row.id.to_string(), why });
        }
        if let Some((key, digest)) = idempotency {
            state.keys.insert(key, (digest, row.id.clone(), now));
        }
        state.records.insert(row.id.clone(), row);
        Ok(Inserted::New)
    }

    async fn update(&self, mut row: RecordRow) -> Result<u64> {
        check_body(&row.body)?;
        let mut state = self.lock();
        let id = row.id.to_string();
        let Some(stored) = state.records.get_mut(&row.id) else {
            return Err(StoreError::NotFound { what: "session record", id });
        };
        if stored.rev != row.rev {
            let why = format!("revision {} was expected, {} is stored", row.rev, stored.rev);
            return Err(StoreError::Conflict { what: "session record", id, why });
        }
        row.rev += 1;
        let rev = row.rev;
        *stored = row.clone();
        state.damaged_records.remove(&row.id);
        Ok(rev)
    }

    async fn get(&self, id: &SessionId) -> Result<Option<RecordRow>> {
        let state = self.lock();
        state.records.get(id).cloned().map(|row| state.opened(row)).transpose()
    }

    async fn list(&self, filter: &RecordFilter, page: &PageRequest) -> Result<Page<RecordRow>> {
        let (before, limit) = (page.after()?, page.rows());
        let key = |row: &RecordRow| {
            (i64::try_from(row.created_at.as_nanosecond()).unwrap_or(i64::MAX), row.id.to_string())
        };
        let state = self.lock();
        let mut rows: Vec<_> = state.records.values().filter(|row| matches(row, filter)).cloned().collect();
        rows.retain(|row| before.as_ref().is_none_or(|before| key(row) < *before));
        rows.sort_by_key(|row| std::cmp::Reverse(key(row)));
        let page = Page::cut(rows, limit, key);
        let data = readable(page.data.into_iter().map(|row| state.opened(row)));
        Ok(Page { data, next_cursor: page.next_cursor })
    }

    async fn unfinished(&self) -> Result<Vec<RecordRow>> {
        let state = self.lock();
        let mut rows: Vec<_> = state.records.values().filter(|row| !row.finished).cloned().collect();
        rows.sort_by_key(|row| (row.created_at, row.id.clone()));
        rows.into_iter().map(|row| state.opened(row)).collect()
    }

    async fn delete(&self, id: &SessionId) -> Result<()> {
        self.lock().records.remove(id);
        Ok(())
    }
}

#[async_trait]
impl Health for MemoryStore {
    fn state(&self) -> StoreHealth {
        StoreHealth { since: self.opened, problem: None }
    }

    async fn check(&self) -> StoreHealth {
        self.state()
    }
}

#[async_trait]
impl Spool for MemoryStore {
    async fn put(&self, entry: SpoolEntry) -> Result<SpoolId> {
        let id = SpoolId(format!("{}-{}.sealed", entry.seed, uuid::Uuid::new_v4().simple()));
        self.lock().spool.insert(id.0.clone(), entry);
        Ok(id)
    }

    async fn confirm(&self, id: &SpoolId) -> Result<()> {
        let mut state = self.lock();
        let Some(confirmed) = state.spool.remove(&id.0) else {
            return Ok(());
        };
        state.spool.retain(|_, other| {
            other.seed != confirmed.seed || other.holder != confirmed.holder || other.at > confirmed.at
        });
        Ok(())
    }

    async fn entries(&self) -> Result<Vec<(SpoolId, Result<SpoolEntry>)>> {
        let state = self.lock();
        let entries: BTreeMap<_, _> =
            state.spool.clone().into_iter().map(|(id, e)| ((e.at, id), e)).collect();
        let read = |(id, entry): (String, SpoolEntry)| {
            let damaged = || StoreError::Damaged {
                what: format!("spooled login memory:{id}"),
                why: "it was damaged on purpose".to_owned(),
            };
            let entry = if state.damaged.contains(&id) { Err(damaged()) } else { Ok(entry) };
            (SpoolId(id), entry)
        };
        Ok(entries.into_iter().map(|((_, id), entry)| read((id, entry))).collect())
    }

    fn describe(&self, id: &SpoolId) -> String {
        format!("memory:{}", id.0)
    }
}
