//! Logins: rows, and sealed archives that are complete before a row names them.

mod archive;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::Embedded;
use super::blobs::Fresh;
use super::columns::{from_json, json, parsed, status, status_text};
use super::db::Failure;
use super::doomed::doom;
use crate::clock::from_millis;
use crate::local::invalid;
use crate::seeds::{check_metadata, check_pool, merge_metadata};
use crate::{
    Account, Holder, NewSeed, Page, PageRequest, Result, SaveOutcome, SeedFiles, SeedId, SeedPatch, SeedRow,
    SeedStatus, SeedVersion, Seeds, StoreError, StoredLease, seed_archive,
};
use archive::{StoredBlob, read_archive};

/// Columns in the order in which [`seed_row`] reads them.
const COLUMNS: &str = "id, pool, status, status_reason, account, metadata, blob, lease_holder, lease_expires, \
                       created, updated, refreshed, verified";

/// How often a read starts again because the blob it was about to read was replaced and swept (T-043).
const LOAD_TRIES: usize = 3;

#[async_trait]
impl Seeds for Embedded {
    async fn import(&self, seed: NewSeed) -> Result<SeedRow> {
        check_pool(seed.pool.as_deref())?;
        check_metadata(&seed.metadata)?;
        seed_archive::check(&seed.files)?;
        let now = self.now_ms();
        let core = self.core.clone();
        let files = seed.files;
        let (lineage, stored) = self
            .login_work("importing a seed", move || {
                let lineage = files.0.get(SeedFiles::AUTH).and_then(|auth| seed_archive::lineage(auth));
                let archive = seed_archive::encode(&files, seconds(now))?;
                Ok((lineage, StoredBlob::write(&core, &archive)?))
            })
            .await?;
        let id = SeedId::mint();
        let account = json(&seed.account)?;
        let metadata = json(&seed.metadata)?;
        let pool = seed.pool;
        let insert = move |connection: &mut Connection| {
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            if let Some(twin) = twin(&tx, lineage.as_deref())? {
                let why =
                    "it holds the same login; two copies of a single-use login strand each other".to_owned();
                return Err(StoreError::Conflict { what: "seed", id: twin, why }.into());
            }
            tx.execute(
                "INSERT INTO seeds (id, pool, status, account, metadata, blob, sha256, lineage, created, updated)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9)",
                params![
                    id.as_str(),
                    pool,
                    status_text(SeedStatus::Alive),
                    account,
                    metadata,
                    stored.name,
                    stored.sha256,
                    lineage,
                    now
                ],
            )?;
            let row = require(&tx, &id, now)?;
            commit(tx, stored.fresh)?;
            Ok(row)
        };
        self.core.db.run("importing a seed", insert).await
    }

    async fn get(&self, id: &SeedId) -> Result<Option<SeedRow>> {
        let (id, now) = (id.clone(), self.now_ms());
        self.core.db.run("reading a seed", move |c| Ok(find(c, &id, now)?)).await
    }

    async fn list(&self, pool: Option<&str>, page: &PageRequest) -> Result<Page<SeedRow>> {
        let (after_time, after_id) = page.after()?.unwrap_or((i64::MIN, String::new()));
        let limit = page.rows();
        let pool = pool.map(str::to_owned);
        let now = self.now_ms();
        let read = move |c: &mut Connection| {
            let sql = format!(
                "SELECT {COLUMNS} FROM seeds WHERE (created, id) > (?1, ?2) AND (?3 IS NULL OR pool = ?3)
                 ORDER BY created, id LIMIT ?4"
            );
            let mut statement = c.prepare_cached(&sql)?;
            let rows =
                statement.query_map(params![after_time, after_id, pool, limit + 1], |r| seed_row(r, now))?;
            Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        };
        let rows = self.core.db.run("listing seeds", read).await?;
        Ok(Page::cut(rows, limit, |row| (row.created_at.as_millisecond(), row.id.to_string())))
    }

    async fn load(&self, id: &SeedId) -> Result<(SeedFiles, SeedVersion)> {
        let mut tries = 1;
        loop {
            let stored = self.stored(id).await?.ok_or_else(|| not_found(id))?;
            let core = self.core.clone();
            let (blob, sha256) = (stored.blob.clone(), stored.sha256);
            let read = self
                .login_work("loading a seed", move || {
                    seed_archive::decode(&read_archive(&core, &blob, &sha256)?)
                })
                .await;
            match read {
                Ok(files) => return Ok((files, SeedVersion(stored.blob))),
                Err(error) => {
                    let replaced = self.stored(id).await?.is_some_and(|now| now.blob != stored.blob);
                    if !replaced || tries == LOAD_TRIES {
                        return Err(error);
                    }
                    tries += 1;
                }
            }
        }
    }

    async fn save_credential(
        &self,
        id: &SeedId,
        holder: &Holder,
        base: &SeedVersion,
        auth_json: Bytes,
    ) -> Result<SaveOutcome> {
        if auth_json.is_empty() {
            return Err(invalid("auth_json", "it must not be empty"));
        }
        let Some(stored) = self.stored(id).await? else {
            return Ok(SaveOutcome::Gone);
        };
        if stored.holder.as_deref() != Some(holder.as_str()) {
            return Ok(SaveOutcome::NotHolder);
        }
        let now = self.now_ms();
        let core = self.core.clone();
        let (base, seed) = (base.clone(), id.clone());
        let lineage = seed_archive::lineage(&auth_json);
        let prepared = self
            .login_work("saving a credential", move || {
                let archive = read_archive(&core, &stored.blob, &stored.sha256)?;
                // A step that is tried again after an unknown outcome finds its bytes here, whatever base it names.
                if seed_archive::decode(&archive)?.0.get(SeedFiles::AUTH) == Some(&auth_json) {
                    return Ok(Prepared::Already(SeedVersion(stored.blob)));
                }
                if stored.blob != base.0 {
                    return Ok(Prepared::Superseded(SeedVersion(stored.blob)));
                }
                let archive = seed_archive::replace_auth(&archive, auth_json, seconds(now))?;
                Ok(Prepared::New(StoredBlob::write(&core, &archive)?, base))
            })
            .await?;
        match prepared {
            Prepared::Already(version) => Ok(SaveOutcome::Saved(version)),
            Prepared::Superseded(current) => Ok(SaveOutcome::Superseded { current }),
            Prepared::New(stored, base) => {
                let swap = Swap { seed, holder: holder.clone(), base, lineage, now };
                self.core.db.run("saving a credential", move |c| swap.run(c, stored)).await
            }
        }
    }

    async fn patch(&self, id: &SeedId, holder: Option<&Holder>, patch: SeedPatch) -> Result<SeedRow> {
        check_metadata(&patch.metadata)?;
        if let Some(pool) = &patch.pool {
            check_pool(pool.as_deref())?;
        }
        let (id, holder, now) = (id.clone(), holder.cloned(), self.now_ms());
        self.core.db.run("changing a seed", move |c| apply(c, &id, holder.as_ref(), patch, now)).await
    }

    async fn delete(&self, id: &SeedId, force: bool) -> Result<()> {
        let (id, now) = (id.clone(), self.now_ms());
        let delete = move |c: &mut Connection| {
            let tx = c.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let row = require(&tx, &id, now)?;
            if let Some(lease) = row.lease.filter(|lease| lease.live && !force) {
                let why = format!("{} has a live lease on it", lease.holder);
                return Err(StoreError::Conflict { what: "seed", id: id.to_string(), why }.into());
            }
            doom(&tx, &row.version.0, id.as_str(), now)?;
            tx.execute("DELETE FROM seeds WHERE id = ?1", [id.as_str()])?;
            Ok(tx.commit()?)
        };
        self.core.db.run("deleting a seed", delete).await
    }
}

/// What a save needs to know of a row.
struct Stored {
    blob: String,
    sha256: String,
    holder: Option<String>,
}

enum Prepared {
    Already(SeedVersion),
    Superseded(SeedVersion),
    New(StoredBlob, SeedVersion),
}

impl Embedded {
    async fn stored(&self, id: &SeedId) -> Result<Option<Stored>> {
        let id = id.clone();
        let read = move |c: &mut Connection| {
            let mut statement =
                c.prepare_cached("SELECT blob, sha256, lease_holder FROM seeds WHERE id = ?1")?;
            let row = statement.query_row([id.as_str()], |row| {
                Ok(Stored { blob: row.get(0)?, sha256: row.get(1)?, holder: row.get(2)? })
            });
            Ok(row.optional()?)
        };
        self.core.db.run("reading a seed", read).await
    }
}

/// Points a row at another blob.
struct Swap {
    seed: SeedId,
    holder: Holder,
    base: SeedVersion,
    lineage: Option<String>,
    now: i64,
}

impl Swap {
    /// Decides and writes in one transaction. The new blob stays only if the row names it.
    fn run(self, connection: &mut Connection, stored: StoredBlob) -> Result<SaveOutcome, Failure> {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let Some(row) = find(&tx, &self.seed, self.now)? else {
            return Ok(SaveOutcome::Gone);
        };
        if row.lease.is_none_or(|lease| lease.holder != self.holder) {
            return Ok(SaveOutcome::NotHolder);
        }
        if row.version != self.base {
            return Ok(SaveOutcome::Superseded { current: row.version });
        }
        tx.execute(
            "UPDATE seeds SET blob = ?2, sha256 = ?3, lineage = ?4, updated = ?5, refreshed = ?5 WHERE id = ?1",
            params![self.seed.as_str(), stored.name, stored.sha256, self.lineage, self.now],
        )?;
        doom(&tx, &self.base.0, self.seed.as_str(), self.now)?;
        let saved = require(&tx, &self.seed, self.now)?.version;
        commit(tx, stored.fresh)?;
        if saved.0 != stored.name {
            let why = "the row does not name what was just written".to_owned();
            return Err(StoreError::Damaged { what: format!("seed {}", self.seed), why }.into());
        }
        Ok(SaveOutcome::Saved(saved))
    }
}

/// Commits a transaction whose rows name a fresh blob. The file stays even if the commit fails, because a failed
/// commit may have happened; the next start knows, and sweeps it if no row names it.
pub(super) fn commit(tx: Transaction<'_>, mut fresh: Fresh) -> rusqlite::Result<()> {
    fresh.keep();
    tx.commit()
}

fn apply(
    connection: &mut Connection,
    id: &SeedId,
    holder: Option<&Holder>,
    patch: SeedPatch,
    now: i64,
) -> Result<SeedRow, Failure> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut row = require(&tx, id, now)?;
    if let Some(holder) = holder
        && row.lease.as_ref().is_none_or(|lease| lease.holder != *holder)
    {
        let why = format!("{holder} does not hold its lease");
        return Err(StoreError::Conflict { what: "seed", id: id.to_string(), why }.into());
    }
    if let Some((status, reason)) = patch.status {
        (row.status, row.status_reason) = (status, reason);
        if status == SeedStatus::Alive && holder.is_none() && row.dirty {
            let clear = "UPDATE seeds SET lease_holder = NULL, lease_expires = NULL WHERE id = ?1";
            tx.execute(clear, [id.as_str()])?;
        }
    }
    if let Some(pool) = patch.pool {
        row.pool = pool;
    }
    merge_metadata(&mut row.metadata, patch.metadata);
    tx.execute(
        "UPDATE seeds SET status = ?2, status_reason = ?3, pool = ?4, metadata = ?5, updated = ?6,
             verified = coalesce(?7, verified)
         WHERE id = ?1",
        params![
            id.as_str(),
            status_text(row.status),
            row.status_reason,
            row.pool,
            json(&row.metadata)?,
            now,
            patch.verified.then_some(now)
        ],
    )?;
    let row = require(&tx, id, now)?;
    tx.commit()?;
    Ok(row)
}

fn twin(tx: &Transaction<'_>, lineage: Option<&str>) -> rusqlite::Result<Option<String>> {
    tx.query_row("SELECT id FROM seeds WHERE lineage = ?1", [lineage], |row| row.get(0)).optional()
}

fn find(connection: &Connection, id: &SeedId, now: i64) -> rusqlite::Result<Option<SeedRow>> {
    let sql = format!("SELECT {COLUMNS} FROM seeds WHERE id = ?1");
    connection.prepare_cached(&sql)?.query_row([id.as_str()], |row| seed_row(row, now)).optional()
}

fn require(connection: &Connection, id: &SeedId, now: i64) -> Result<SeedRow, Failure> {
    find(connection, id, now)?.ok_or_else(|| not_found(id).into())
}

fn not_found(id: &SeedId) -> StoreError {
    StoreError::NotFound { what: "seed", id: id.to_string() }
}

fn seed_row(row: &Row<'_>, now: i64) -> rusqlite::Result<SeedRow> {
    let holder: Option<String> = row.get(7)?;
    let lease = match (holder, row.get::<_, Option<i64>>(8)?) {
        (Some(holder), Some(expires)) => Some(StoredLease {
            holder: Holder::stored(holder),
            expires_at: from_millis(expires),
            live: expires > now,
        }),
        _ => None,
    };
    Ok(SeedRow {
        id: parsed(row, 0)?,
        pool: row.get(1)?,
        status: status(row, 2)?,
        status_reason: row.get(3)?,
        account: from_json::<Account>(row, 4)?,
        metadata: from_json(row, 5)?,
        version: SeedVersion(row.get(6)?),
        dirty: lease.as_ref().is_some_and(|lease| !lease.live),
        lease,
        created_at: from_millis(row.get(9)?),
        updated_at: from_millis(row.get(10)?),
        last_refreshed_at: row.get::<_, Option<i64>>(11)?.map(from_millis),
        last_verified_at: row.get::<_, Option<i64>>(12)?.map(from_millis),
    })
}

fn seconds(ms: i64) -> u64 {
    u64::try_from(ms / 1000).unwrap_or(0)
}
