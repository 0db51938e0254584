//! A store that fails on command, for tests.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::embedded::OPERATION_LIMIT;
use crate::{
    Deliverables, Health, Holder, Inserted, Journal, JournalStream, KeptFile, Lease, Leases, NewSeed,
    NewSnapshot, Page, PageRequest, RecordFilter, RecordRow, Records, Renewal, Result, SaveOutcome,
    SeedFiles, SeedId, SeedPatch, SeedRow, SeedVersion, Seeds, SessionId, SnapshotId, SnapshotRow,
    SnapshotWriter, Snapshots, Spool, SpoolEntry, SpoolId, Store, StoreError, StoreHealth, Want,
};

/// An operation that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is named after its trait's method")]
pub enum StoreOp {
    Import,
    GetSeed,
    ListSeeds,
    Load,
    SaveCredential,
    PatchSeed,
    DeleteSeed,
    Acquire,
    AcquireForRecovery,
    Renew,
    Release,
    BeginSnapshot,
    WriteSnapshot,
    CommitSnapshot,
    ListSnapshots,
    GetSnapshot,
    OpenSnapshot,
    VerifySnapshot,
    DeleteSnapshots,
    InsertRecord,
    UpdateRecord,
    GetRecord,
    ListRecords,
    UnfinishedRecords,
    DeleteRecord,
    PutSpool,
    ConfirmSpool,
    SpoolEntries,
    KeepDeliverable,
    ListDeliverables,
    ReadDeliverable,
    DeleteDeliverables,
    OpenJournal,
    DeleteJournal,
    CheckHealth,
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not done, and answers [`StoreError::Unavailable`].
    Error,
    /// It is not done, and never answers.
    Hang,
    /// It is done, but answers [`StoreError::TimedOut`]: the outcome is unknown to the caller.
    DoneButError,
}

/// Which calls fail.
#[derive(Debug, Clone, Copy)]
struct Armed {
    op: StoreOp,
    /// The first call that fails, counted from the store's making.
    first: u64,
    /// The last one.
    last: u64,
    fault: Fault,
}

#[derive(Default)]
struct Faults {
    armed: Vec<Armed>,
    calls: BTreeMap<StoreOp, u64>,
}

/// Wraps a store. Clones share the faults.
#[derive(Clone)]
pub struct FaultyStore {
    inner: Store,
    faults: Arc<Mutex<Faults>>,
}

impl FaultyStore {
    /// A wrapper that does nothing yet.
    pub fn new(inner: Store) -> Self {
        Self { inner, faults: Arc::default() }
    }

    /// The store to hand to the code under test.
    pub fn store(&self) -> Store {
        Store {
            seeds: Arc::new(self.clone()),
            leases: Arc::new(self.clone()),
            snapshots: Arc::new(self.clone()),
            records: Arc::new(self.clone()),
            spool: Arc::new(self.clone()),
            deliverables: Arc::new(self.clone()),
            journal: Arc::new(self.clone()),
            health: Arc::new(self.clone()),
        }
    }

    /// Makes the `nth` call of `op` from now on fail; 1 is the next one.
    pub fn fail(&self, op: StoreOp, nth: u64, fault: Fault) {
        self.arm(op, nth, 1, fault);
    }

    /// Makes every call of `op` fail, until [`FaultyStore::heal`].
    pub fn fail_always(&self, op: StoreOp, fault: Fault) {
        self.arm(op, 1, u64::MAX, fault);
    }

    /// Takes every fault back. Calls that hang go on hanging.
    pub fn heal(&self) {
        self.lock().armed.clear();
    }

    /// How often `op` was called, whatever became of it.
    pub fn calls(&self, op: StoreOp) -> u64 {
        self.lock().calls.get(&op).copied().unwrap_or(0)
    }

    fn arm(&self, op: StoreOp, nth: u64, times: u64, fault: Fault) {
        assert!(nth > 0, "calls are counted from 1");
        let first = self.calls(op) + nth;
        self.lock().armed.push(Armed { op, first, last: first.saturating_add(times - 1), fault });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, op: StoreOp) -> Option<Fault> {
        let mut faults = self.lock();
        let call = faults.calls.entry(op).or_default();
        *call += 1;
        let call = *call;
        let armed = faults.armed.iter().find(|a| a.op == op && (a.first..=a.last).contains(&call));
        armed.map(|armed| armed.fault)
    }

    async fn run<T>(&self, op: StoreOp, call: impl Future<Output = Result<T>>) -> Result<T> {
        match self.count(op) {
            None => call.await,
            Some(Fault::Error) => Err(StoreError::Unavailable {
                what: "injected fault",
                why: format!("{op:?} was told to fail"),
            }),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::DoneButError) => {
                call.await?;
                Err(StoreError::TimedOut { what: "injected fault", limit: OPERATION_LIMIT })
            }
        }
    }
}

#[async_trait]
impl Seeds for FaultyStore {
    async fn import(&self, seed: NewSeed) -> Result<SeedRow> {
        self.run(StoreOp::Import, self.inner.seeds.import(seed)).await
    }

    async fn get(&self, id: &SeedId) -> Result<Option<SeedRow>> {
        self.run(StoreOp::GetSeed, self.inner.seeds.get(id)).await
    }

    async fn list(&self, pool: Option<&str>, page: &PageRequest) -> Result<Page<SeedRow>> {
        self.run(StoreOp::ListSeeds, self.inner.seeds.list(pool, page)).await
    }

    async fn load(&self, id: &SeedId) -> Result<(SeedFiles, SeedVersion)> {
        self.run(StoreOp::Load, self.inner.seeds.load(id)).await
    }

    async fn save_credential(
        &self,
        id: &SeedId,
        holder: &Holder,
        base: &SeedVersion,
        auth_json: Bytes,
    ) -> Result<SaveOutcome> {
        self.run(StoreOp::SaveCredential, self.inner.seeds.save_credential(id, holder, base, auth_json)).await
    }

    async fn patch(&self, id: &SeedId, holder: Option<&Holder>, patch: SeedPatch) -> Result<SeedRow> {
        self.run(StoreOp::PatchSeed, self.inner.seeds.patch(id, holder, patch)).await
    }

    async fn delete(&self, id: &SeedId, force: bool) -> Result<()> {
        self.run(StoreOp::DeleteSeed, self.inner.seeds.delete(id, force)).await
    }
}

#[async_trait]
impl Leases for FaultyStore {
    async fn acquire(&self, want: &Want, holder: &Holder) -> Result<Option<Lease>> {
        self.run(StoreOp::Acquire, self.inner.leases.acquire(want, holder)).await
    }

    async fn acquire_for_recovery(&self, seed: &SeedId, holder: &Holder) -> Result<Option<Lease>> {
        self.run(StoreOp::AcquireForRecovery, self.inner.leases.acquire_for_recovery(seed, holder)).await
    }

    async fn renew(&self, seed: &SeedId, holder: &Holder) -> Result<Renewal> {
        self.run(StoreOp::Renew, self.inner.leases.renew(seed, holder)).await
    }

    async fn release(&self, seed: &SeedId, holder: &Holder) -> Result<bool> {
        self.run(StoreOp::Release, self.inner.leases.release(seed, holder)).await
    }
}

struct Writer {
    faulty: FaultyStore,
    inner: Box<dyn SnapshotWriter>,
}

#[async_trait]
impl SnapshotWriter for Writer {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.faulty.run(StoreOp::WriteSnapshot, self.inner.write(chunk)).await
    }

    async fn commit(self: Box<Self>, about: NewSnapshot) -> Result<SnapshotRow> {
        self.faulty.run(StoreOp::CommitSnapshot, self.inner.commit(about)).await
    }
}

#[async_trait]
impl Snapshots for FaultyStore {
    fn codec(&self) -> &'static str {
        self.inner.snapshots.codec()
    }

    async fn begin(&self) -> Result<Box<dyn SnapshotWriter>> {
        let inner = self.run(StoreOp::BeginSnapshot, self.inner.snapshots.begin()).await?;
        Ok(Box::new(Writer { faulty: self.clone(), inner }))
    }

    async fn list(&self, session: &SessionId) -> Result<Vec<SnapshotRow>> {
        self.run(StoreOp::ListSnapshots, self.inner.snapshots.list(session)).await
    }

    async fn get(&self, id: &SnapshotId) -> Result<Option<SnapshotRow>> {
        self.run(StoreOp::GetSnapshot, self.inner.snapshots.get(id)).await
    }

    async fn open(&self, id: &SnapshotId) -> Result<BoxStream<'static, Result<Bytes>>> {
        self.run(StoreOp::OpenSnapshot, self.inner.snapshots.open(id)).await
    }

    async fn verify(&self, id: &SnapshotId) -> Result<()> {
        self.run(StoreOp::VerifySnapshot, self.inner.snapshots.verify(id)).await
    }

    async fn delete_all(&self, session: &SessionId) -> Result<()> {
        self.run(StoreOp::DeleteSnapshots, self.inner.snapshots.delete_all(session)).await
    }
}

#[async_trait]
impl Records for FaultyStore {
    async fn insert(&self, row: RecordRow, idempotency: Option<(String, String)>) -> Result<Inserted> {
        self.run(StoreOp::InsertRecord, self.inner.records.insert(row, idempotency)).await
    }

    async fn update(&self, row: RecordRow) -> Result<u64> {
        self.run(StoreOp::UpdateRecord, self.inner.records.update(row)).await
    }

    async fn get(&self, id: &SessionId) -> Result<Option<RecordRow>> {
        self.run(StoreOp::GetRecord, self.inner.records.get(id)).await
    }

    async fn list(&self, filter: &RecordFilter, page: &PageRequest) -> Result<Page<RecordRow>> {
        self.run(StoreOp::ListRecords, self.inner.records.list(filter, page)).await
    }

    async fn unfinished(&self) -> Result<Vec<RecordRow>> {
        self.run(StoreOp::UnfinishedRecords, self.inner.records.unfinished()).await
    }

    async fn delete(&self, id: &SessionId) -> Result<()> {
        self.run(StoreOp::DeleteRecord, self.inner.records.delete(id)).await
    }
}

#[async_trait]
impl Spool for FaultyStore {
    async fn put(&self, entry: SpoolEntry) -> Result<SpoolId> {
        self.run(StoreOp::PutSpool, self.inner.spool.put(entry)).await
    }

    async fn confirm(&self, id: &SpoolId) -> Result<()> {
        self.run(StoreOp::ConfirmSpool, self.inner.spool.confirm(id)).await
    }

    async fn entries(&self) -> Result<Vec<(SpoolId, Result<SpoolEntry>)>> {
        self.run(StoreOp::SpoolEntries, self.inner.spool.entries()).await
    }

    fn describe(&self, id: &SpoolId) -> String {
        self.inner.spool.describe(id)
    }
}

#[async_trait]
impl Deliverables for FaultyStore {
    async fn keep(&self, session: &SessionId, path: &str, content: Bytes) -> Result<KeptFile> {
        self.run(StoreOp::KeepDeliverable, self.inner.deliverables.keep(session, path, content)).await
    }

    async fn list(&self, session: &SessionId) -> Result<Vec<KeptFile>> {
        self.run(StoreOp::ListDeliverables, self.inner.deliverables.list(session)).await
    }

    async fn read(&self, session: &SessionId, path: &str) -> Result<Option<(KeptFile, Bytes)>> {
        self.run(StoreOp::ReadDeliverable, self.inner.deliverables.read(session, path)).await
    }

    async fn delete_all(&self, session: &SessionId) -> Result<()> {
        self.run(StoreOp::DeleteDeliverables, self.inner.deliverables.delete_all(session)).await
    }
}

#[async_trait]
impl Health for FaultyStore {
    /// The inner store's, whatever is armed: it asks nobody, so there is no call to fail.
    fn state(&self) -> StoreHealth {
        self.inner.health.state()
    }

    async fn check(&self) -> StoreHealth {
        let checked = self.run(StoreOp::CheckHealth, async { Ok(self.inner.health.check().await) }).await;
        checked.unwrap_or_else(|error| StoreHealth {
            since: self.inner.health.state().since,
            problem: Some(error.to_string()),
        })
    }
}

#[async_trait]
impl Journal for FaultyStore {
    async fn open(&self, name: &str) -> Result<Arc<dyn JournalStream>> {
        self.run(StoreOp::OpenJournal, self.inner.journal.open(name)).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.run(StoreOp::DeleteJournal, self.inner.journal.delete(name)).await
    }
}
