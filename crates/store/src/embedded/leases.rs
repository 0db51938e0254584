//! Leases: one transaction each, by the store's clock.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::Embedded;
use super::columns::{parsed, status_text};
use super::db::Failure;
use crate::clock::from_millis;
use crate::seeds::check_pool;
use crate::{Holder, LEASE_TTL, Lease, Leases, Renewal, Result, SeedId, SeedStatus, Want};

#[async_trait]
impl Leases for Embedded {
    async fn acquire(&self, want: &Want, holder: &Holder) -> Result<Option<Lease>> {
        if let Want::Pool(pool) = want {
            check_pool(Some(pool))?;
        }
        let (want, holder, now) = (want.clone(), holder.clone(), self.now_ms());
        let acquire = move |c: &mut Connection| {
            let tx = c.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let Some(seed) = free(&tx, &want)? else {
                return Ok(None);
            };
            take(tx, seed, holder, now).map(Some)
        };
        self.core.db.run("acquiring a lease", acquire).await
    }

    async fn acquire_for_recovery(&self, seed: &SeedId, holder: &Holder) -> Result<Option<Lease>> {
        let (seed, holder, now) = (seed.clone(), holder.clone(), self.now_ms());
        let acquire = move |c: &mut Connection| {
            let tx = c.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let sql = "SELECT id FROM seeds WHERE id = ?1 AND (lease_holder IS NULL OR lease_expires <= ?2)";
            let free = tx.query_row(sql, params![seed.as_str(), now], |row| parsed(row, 0)).optional()?;
            let Some(seed) = free else { return Ok(None) };
            take(tx, seed, holder, now).map(Some)
        };
        self.core.db.run("acquiring a lease", acquire).await
    }

    async fn renew(&self, seed: &SeedId, holder: &Holder) -> Result<Renewal> {
        let (seed, holder, expires) = (seed.clone(), holder.clone(), expiry(self.now_ms()));
        let renew = move |c: &mut Connection| {
            let sql = "UPDATE seeds SET lease_expires = ?3 WHERE id = ?1 AND lease_holder = ?2";
            let renewed = c.execute(sql, params![seed.as_str(), holder.as_str(), expires])? == 1;
            Ok(if renewed { Renewal::Renewed { expires_at: from_millis(expires) } } else { Renewal::Lost })
        };
        self.core.db.run("renewing a lease", renew).await
    }

    async fn release(&self, seed: &SeedId, holder: &Holder) -> Result<bool> {
        let (seed, holder) = (seed.clone(), holder.clone());
        let release = move |c: &mut Connection| {
            let sql = "UPDATE seeds SET lease_holder = NULL, lease_expires = NULL
                       WHERE id = ?1 AND lease_holder = ?2";
            Ok(c.execute(sql, params![seed.as_str(), holder.as_str()])? == 1)
        };
        self.core.db.run("releasing a lease", release).await
    }
}

/// The seed whose turn it is: alive, without a lease (an expired one makes it dirty), least recently leased first.
fn free(tx: &Transaction<'_>, want: &Want) -> rusqlite::Result<Option<SeedId>> {
    let (column, value) = match want {
        Want::Seed(id) => ("id", id.as_str()),
        Want::Pool(pool) => ("pool", pool.as_str()),
    };
    let sql = format!(
        "SELECT id FROM seeds WHERE {column} = ?1 AND status = ?2 AND lease_holder IS NULL
         ORDER BY turn NULLS FIRST, created, id LIMIT 1"
    );
    let mut statement = tx.prepare_cached(&sql)?;
    statement.query_row(params![value, status_text(SeedStatus::Alive)], |row| parsed(row, 0)).optional()
}

fn take(tx: Transaction<'_>, seed: SeedId, holder: Holder, now: i64) -> Result<Lease, Failure> {
    let expires = expiry(now);
    tx.execute(
        "UPDATE seeds SET lease_holder = ?2, lease_expires = ?3,
             turn = (SELECT coalesce(max(turn), 0) + 1 FROM seeds)
         WHERE id = ?1",
        params![seed.as_str(), holder.as_str(), expires],
    )?;
    tx.commit()?;
    Ok(Lease { seed, holder, expires_at: from_millis(expires) })
}

/// The end of a lease that is given now (INV-05).
fn expiry(now: i64) -> i64 {
    now + LEASE_TTL.as_millis() as i64
}
