//! The blobs that no row names any more, until the sweeper deletes them.

use std::collections::BTreeSet;

use rusqlite::{Connection, Transaction};

use super::db::Failure;
use crate::Result;

/// Notes that no row names a blob any more.
pub(super) fn doom(tx: &Transaction<'_>, blob: &str, owner: &str, now: i64) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT OR REPLACE INTO doomed_blobs (blob, owner, at) VALUES (?1, ?2, ?3)",
        (blob, owner, now),
    )
    .map(drop)
}

/// Every blob that a row, or the list of doomed ones, names.
pub(super) fn blob_names(connection: &Connection) -> Result<BTreeSet<String>> {
    let read = || -> rusqlite::Result<BTreeSet<String>> {
        let mut statement = connection.prepare(
            "SELECT blob FROM seeds UNION SELECT blob FROM snapshots UNION SELECT blob FROM doomed_blobs",
        )?;
        let names = statement.query_map([], |row| row.get(0))?;
        names.collect()
    };
    read().map_err(|e| Failure::Sql(e).named("listing blobs"))
}

/// The blobs that were doomed at `before` or earlier. One that a row names after all is not among them (INV-54).
pub(super) fn doomed_before(connection: &Connection, before: i64) -> Result<Vec<String>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT blob FROM doomed_blobs WHERE at <= ?1
         AND blob NOT IN (SELECT blob FROM seeds) AND blob NOT IN (SELECT blob FROM snapshots)",
    )?;
    let names = statement.query_map([before], |row| row.get(0))?;
    Ok(names.collect::<rusqlite::Result<_>>()?)
}

/// Forgets a doomed blob whose file is gone.
pub(super) fn forget_doomed(connection: &Connection, blob: &str) -> Result<(), Failure> {
    connection.execute("DELETE FROM doomed_blobs WHERE blob = ?1", [blob])?;
    Ok(())
}
