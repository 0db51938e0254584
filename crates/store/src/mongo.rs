//! The store in a MongoDB: one for several services, and for a Python deployment that knows these documents (T-001…).
//!
//! ```text
//! {seed prefix}_codex_seeds                  logins and their leases, shared with Python
//! {snapshot prefix}_codex_session_snapshots  stored workdirs, shared with Python
//! fs.files, fs.chunks                        the archives of both, shared with everybody in the database
//!
//! {prefix}_codex_blob_journal                blobs on their way in or out; the sweeper deletes what stands here only
//! {seed prefix}_codex_lineage_claims         logins that are being imported just now
//! {prefix}_codex_snapshot_notes              what only we know of a snapshot: codec, hash, seed
//! {prefix}_codex_sessions                    session records, one service's each; the bodies are sealed
//! {prefix}_codex_session_keys                idempotency keys
//!
//! DIR/key, DIR/lock, DIR/spool/, DIR/deliverables/   this machine's own, whatever the store is
//! DIR/store-key                              seals the archives, if they are sealed; the same in the whole fleet
//! ```
//!
//! What is shared keeps Python's form: nothing is added to a snapshot's row, and what only we know of a seed lies under
//! one key of its `metadata`, which Python carries along. Updates name the fields they change, never a whole document.
//!
//! There are no transactions, so a server without a replica set works too; what it lacks is what a replica set is for.
//! Instead, a blob is complete, read back and journalled before a document names it, each write to a held seed names
//! the holder and the blob it follows, and an outcome that the network hid is found out by reading.
//!
//! The driver waits for ever on a server that is frozen, so every operation has a limit of ours (LAB §7, stack §5).

mod blobs;
mod call;
mod client;
mod documents;
mod gridfs;
mod health;
mod keys;
mod leases;
mod lineage;
mod notes;
mod records;
mod sealed_files;
mod seeds;
mod snapshots;

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mongodb::bson::{Bson, DateTime, Document, doc};
use mongodb::options::IndexOptions;
use mongodb::{Client, Collection, Database, IndexModel};
use tokio::sync::Semaphore;

use crate::clock::{Clock, millis};
use crate::health::HealthNote;
use crate::local::deliverables::DiskDeliverables;
use crate::local::spool::DiskSpool;
use crate::local::{FILES_AT_ONCE, invalid, key, lock, offload, private_dir, unavailable};
use crate::sealed::Sealer;
use crate::{Account, Holder, Journal, Result, Store, StoreError, seed_archive};
use call::Tried;
use keys::Keys;

/// Longest wait for one operation; what takes longer is [`StoreError::TimedOut`], and whether it happened is unknown.
/// Saving and importing a login, a dozen operations each, have three times as long; a commit of a snapshot has a second
/// more for each 16 MiB.
pub const OPERATION_LIMIT: Duration = Duration::from_secs(10);
/// How long a blob stays after the document that named it names another, for whoever is reading it (T-056).
pub const BLOB_GRACE: Duration = Duration::from_secs(10 * 60);
/// How long one look at whether the store works may take.
const CHECK_LIMIT: Duration = Duration::from_secs(3);
/// Ends the name of a collection of logins (T-001).
const SEEDS: &str = "_codex_seeds";
/// Ends the name of a collection of stored workdirs (T-159).
const SNAPSHOTS: &str = "_codex_session_snapshots";

/// What is not the same everywhere.
#[derive(Clone)]
pub struct Options {
    /// The database; the one that the connection string names if none is given.
    pub database: Option<String>,
    /// Begins the names of this deployment's collections, e.g. `optio`.
    pub prefix: String,
    /// The prefix of the logins, if it is another one: a Python deployment's (T-252).
    pub seed_prefix: Option<String>,
    /// The prefix of the snapshots, if it is another one.
    pub snapshot_prefix: Option<String>,
    /// The key file; `DIR/key` if none is given. It is made when the directory is.
    pub key_file: Option<PathBuf>,
    /// New logins and snapshots are sealed. What Python shares must not be: it has no use for them.
    pub encrypt: bool,
    /// The file of the key they are sealed with, the same for every service on the database; `DIR/store-key` if none is
    /// given. It is made when it is needed and the database holds nothing sealed yet. Without `encrypt` it is for reading.
    pub store_key: Option<PathBuf>,
    /// Files of keys that were in use before, for reading.
    pub old_store_keys: Vec<PathBuf>,
    /// Reads off a credential whose it is, for logins that Python stored.
    pub account_of: fn(&[u8]) -> Account,
    /// Longest wait for one operation.
    pub limit: Duration,
    /// How long to wait for a service that is just ending to let the directory go.
    pub lock_wait: Duration,
    /// A clock in the place of the server's. For tests: with several services, only the server's can decide leases.
    pub clock: Option<Arc<dyn Clock>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            database: None,
            prefix: "optio".to_owned(),
            seed_prefix: None,
            snapshot_prefix: None,
            key_file: None,
            encrypt: false,
            store_key: None,
            old_store_keys: Vec::new(),
            account_of: seed_archive::account,
            limit: OPERATION_LIMIT,
            lock_wait: Duration::from_secs(2),
            clock: None,
        }
    }
}

/// A connected store. Clones share it; its directory is let go when the last one, and every [`Store`] made from it, is
/// gone.
#[derive(Clone)]
pub struct Mongo {
    core: Arc<Core>,
}

struct Core {
    db: Database,
    seeds: Collection<Document>,
    claims: Collection<Document>,
    snapshots: Collection<Document>,
    notes: Collection<Document>,
    journal: Collection<Document>,
    sessions: Collection<Document>,
    keys: Collection<Document>,
    files: Collection<Document>,
    chunks: Collection<Document>,
    /// The prefix that stands in the metadata of snapshot files.
    snapshot_prefix: String,
    /// Whose records are ours: a digest of the key, since nobody without the key could read them.
    service: String,
    /// For what is this service's own.
    sealer: Sealer,
    /// For the archives, which are the fleet's.
    archive_keys: Keys,
    spool: Arc<DiskSpool>,
    deliverables: Arc<DiskDeliverables>,
    /// Holders of which an acquire had an unknown outcome (T-103).
    unsettled: Mutex<VecDeque<Holder>>,
    work: Arc<Semaphore>,
    health: HealthNote,
    account_of: fn(&[u8]) -> Account,
    limit: Duration,
    clock: Option<Arc<dyn Clock>>,
    _lock: File,
}

/// What a store keeps on this machine.
struct Local {
    lock: File,
    sealer: Sealer,
    archive_keys: Keys,
    service: String,
    spool: DiskSpool,
    deliverables: DiskDeliverables,
}

impl Local {
    fn open(dir: &Path, options: &Options) -> Result<Self> {
        private_dir(dir)?;
        let lock = lock(dir, options.lock_wait)?;
        let key_path = options.key_file.clone().unwrap_or_else(|| dir.join("key"));
        let key = key::load(&key_path, !dir.join("spool").exists())?;
        let sealer = Sealer::new(&key);
        let spool = DiskSpool::open(dir, sealer.clone())?;
        let deliverables = DiskDeliverables::open(dir, sealer.clone())?;
        let mut named = b"optio service of this key\0".to_vec();
        named.extend_from_slice(&key);
        let service = seed_archive::sha256_hex(&named)[..24].to_owned();
        let archive_keys = Keys::load(dir, options)?;
        Ok(Self { lock, sealer, archive_keys, service, spool, deliverables })
    }
}

impl Mongo {
    /// Connects, and makes the indexes that are missing. `dir` is this machine's part: the key, the spool.
    ///
    /// Errors: [`StoreError::Invalid`] for a connection string that is none or names no database, for a prefix with odd
    /// characters, or when others may read the key file; [`StoreError::Unavailable`] when another service has the
    /// directory open, or the server cannot be reached; [`StoreError::Damaged`] when a key is missing. None of them
    /// quotes the connection string, which may hold a password.
    pub async fn open(connection: &str, dir: &Path, options: Options) -> Result<Self> {
        let prefixes =
            [Some(&options.prefix), options.seed_prefix.as_ref(), options.snapshot_prefix.as_ref()];
        prefixes.into_iter().flatten().try_for_each(|prefix| check_prefix(prefix))?;
        let (at, given) = (dir.to_owned(), options.clone());
        let work = Arc::new(Semaphore::new(FILES_AT_ONCE));
        let limit = OPERATION_LIMIT + options.lock_wait;
        let local = offload(&work, "opening the store", limit, move || Local::open(&at, &given)).await?;

        let client_options = client::client_options(connection).await?;
        let database = options.database.or_else(|| client_options.default_database.clone());
        let why = "it must name a database, as in mongodb://host/name";
        let database = database.ok_or_else(|| invalid("connection string", why))?;
        let client = Client::with_options(client_options).map_err(|e| call::refused(connection, &e))?;
        let db = client.database(&database);

        let own = options.prefix;
        let seed_prefix = options.seed_prefix.unwrap_or_else(|| own.clone());
        let snapshot_prefix = options.snapshot_prefix.unwrap_or_else(|| own.clone());
        let named = |prefix: &str, suffix: &str| db.collection::<Document>(&format!("{prefix}{suffix}"));
        let mut core = Core {
            seeds: named(&seed_prefix, SEEDS),
            claims: named(&seed_prefix, "_codex_lineage_claims"),
            snapshots: named(&snapshot_prefix, SNAPSHOTS),
            notes: named(&own, "_codex_snapshot_notes"),
            journal: named(&own, "_codex_blob_journal"),
            sessions: named(&own, "_codex_sessions"),
            keys: named(&own, "_codex_session_keys"),
            files: named("fs", ".files"),
            chunks: named("fs", ".chunks"),
            db: db.clone(),
            snapshot_prefix,
            service: local.service,
            sealer: local.sealer,
            archive_keys: local.archive_keys,
            spool: Arc::new(local.spool),
            deliverables: Arc::new(local.deliverables),
            unsettled: Mutex::default(),
            work,
            health: HealthNote::new(),
            account_of: options.account_of,
            limit: options.limit,
            clock: options.clock,
            _lock: local.lock,
        };
        core.limited("making the indexes", core.limit * 3, core.make_indexes()).await?;
        core.settle_keys().await?;
        Ok(Self { core: Arc::new(core) })
    }

    /// This store with a journal beside it.
    pub fn store(&self, journal: Arc<dyn Journal>) -> Store {
        Store {
            seeds: Arc::new(self.clone()),
            leases: Arc::new(self.clone()),
            snapshots: Arc::new(self.clone()),
            records: Arc::new(self.clone()),
            spool: self.core.spool.clone(),
            deliverables: self.core.deliverables.clone(),
            journal,
            health: Arc::new(self.clone()),
        }
    }

    /// Deletes the blobs of our journal whose time has come and that no document of anybody names, and answers how
    /// many. To be called every few minutes, and once after the start. Several services may do so at once.
    pub async fn sweep(&self) -> Result<usize> {
        self.core.sweep().await
    }
}

impl Core {
    /// Now, as an expression: the server's clock (T-100), unless a test has given another one.
    fn now(&self) -> Bson {
        match &self.clock {
            None => Bson::String("$$NOW".to_owned()),
            Some(clock) => DateTime::from_millis(millis(clock.now())).into(),
        }
    }

    /// Now, for what Python stamps by the clock of its own process.
    fn client_now(&self) -> i64 {
        match &self.clock {
            None => DateTime::now().timestamp_millis(),
            Some(clock) => millis(clock.now()),
        }
    }

    /// Has an update stamp a field by the store's clock.
    fn stamp(&self, update: &mut Update, field: &str) {
        match &self.clock {
            None => update.stamps.insert(field, true),
            Some(_) => update.set.insert(field, DateTime::from_millis(self.client_now())),
        };
    }

    /// Runs what takes a while on the blocking pool.
    async fn aside<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Tried<T> {
        Ok(offload(&self.work, what, self.limit, work).await?)
    }

    /// Makes the indexes that are missing. Names and options of shared ones are Python's (T-008, T-160); those of the
    /// bucket are the GridFS specification's.
    async fn make_indexes(&self) -> Tried<()> {
        let plain = IndexOptions::default;
        let unique = || IndexOptions::builder().unique(true).build();
        let newest_first = IndexOptions::builder().name("by_processId_capturedAt_desc".to_owned()).build();
        let forgotten = IndexOptions::builder().expire_after(records::KEY_KEPT * 2).build();
        let wanted = [
            (&self.seeds, doc! { "poolKey": 1, "lastLeasedAt": 1 }, plain()),
            (&self.snapshots, doc! { "processId": 1, "capturedAt": -1 }, newest_first),
            (&self.files, doc! { "filename": 1, "uploadDate": 1 }, plain()),
            (&self.chunks, doc! { "files_id": 1, "n": 1 }, unique()),
            (&self.sessions, doc! { "service": 1, "createdNs": -1, "_id": -1 }, plain()),
            (&self.sessions, doc! { "service": 1, "finished": 1, "createdNs": 1 }, plain()),
            (&self.keys, doc! { "at": 1 }, forgotten),
        ];
        for (collection, keys, options) in wanted {
            let index = IndexModel::builder().keys(keys).options(options).build();
            match collection.create_index(index).await {
                // Somebody made it with other options; it serves the same reads.
                Err(error) if call::is_index_conflict(&error) => {
                    tracing::warn!(collection = collection.name(), error = %error.kind, "an index is another one than ours");
                }
                made => drop(made?),
            }
        }
        Ok(())
    }
}

/// An update that names the fields it changes, and no other.
#[derive(Default)]
struct Update {
    set: Document,
    unset: Document,
    stamps: Document,
}

impl Update {
    fn into_document(self) -> Document {
        let parts = [("$set", self.set), ("$unset", self.unset), ("$currentDate", self.stamps)];
        parts
            .into_iter()
            .filter(|(_, fields)| !fields.is_empty())
            .map(|(name, f)| (name.to_owned(), Bson::from(f)))
            .collect()
    }
}

/// Refuses what would make odd names of collections.
fn check_prefix(prefix: &str) -> Result<()> {
    let fine = !prefix.is_empty()
        && prefix.len() <= 60
        && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let why = || format!("{prefix:?} must be 1 to 60 letters, digits, - or _");
    if fine { Ok(()) } else { Err(invalid("prefix", why())) }
}

/// The error for what cannot be done now, where the driver has no word for it.
fn not_now(what: &'static str, why: impl std::fmt::Display) -> StoreError {
    unavailable(what, why)
}
