//! The tables, and how an older database becomes the present one.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use super::db::Failure;
use crate::local::invalid;
use crate::sealed::Sealer;
use crate::{Result, StoreError};

/// Longest wait for somebody who looks at the database with another program.
const BUSY: Duration = Duration::from_secs(5);

/// Each step brings the database from the version of its index to the next one (`PRAGMA user_version`). A step that
/// was released is never edited. Times are milliseconds since 1970 unless the name says otherwise.
const STEPS: &[&str] = &[
    "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
    CREATE TABLE seeds (
        id TEXT PRIMARY KEY,
        pool TEXT,
        status TEXT NOT NULL,
        status_reason TEXT,
        account TEXT NOT NULL,         -- JSON, no secret
        metadata TEXT NOT NULL,        -- JSON, the consumer's
        blob TEXT NOT NULL,            -- the version; names a file in blobs/
        sha256 TEXT NOT NULL,          -- of the archive before it was sealed
        lineage TEXT,                  -- see seed_archive::lineage
        lease_holder TEXT,             -- set and expired: dirty
        lease_expires INTEGER,
        turn INTEGER,                  -- when it was leased last, counted and not timed: fair within a millisecond
        created INTEGER NOT NULL,
        updated INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX seeds_by_pool ON seeds (pool, turn);
    CREATE INDEX seeds_by_lineage ON seeds (lineage);
    CREATE TABLE doomed_blobs (        -- no row names them any more; see sweep
        blob TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE snapshots (
        id TEXT PRIMARY KEY,
        session TEXT NOT NULL,
        captured INTEGER NOT NULL,
        end_state TEXT NOT NULL,
        thread_id TEXT,
        codec TEXT NOT NULL,
        seed TEXT,
        blob TEXT NOT NULL,
        len INTEGER NOT NULL,          -- before it was sealed
        sha256 TEXT NOT NULL           -- before it was sealed
    ) STRICT;
    CREATE UNIQUE INDEX snapshots_by_session ON snapshots (session, captured);
    CREATE TABLE records (
        id TEXT PRIMARY KEY,
        rev INTEGER NOT NULL,
        finished INTEGER NOT NULL,
        state TEXT NOT NULL,
        host TEXT NOT NULL,
        seed TEXT,
        name TEXT NOT NULL,
        name_folded TEXT NOT NULL,     -- lower case by Unicode's rules, which SQLite does not know
        labels TEXT NOT NULL,          -- JSON
        created_ns INTEGER NOT NULL,   -- nanoseconds
        body BLOB NOT NULL             -- sealed
    ) STRICT;
    CREATE INDEX records_by_age ON records (created_ns, id);
    CREATE INDEX records_unfinished ON records (created_ns) WHERE finished = 0;
    CREATE TABLE idempotency (
        key TEXT PRIMARY KEY,
        digest TEXT NOT NULL,
        session TEXT NOT NULL,
        at INTEGER NOT NULL
    ) STRICT;
",
    "
    ALTER TABLE seeds ADD COLUMN refreshed INTEGER;  -- when the credential was replaced last
    ALTER TABLE seeds ADD COLUMN verified INTEGER;   -- when the provider last answered for it
",
];

/// What is sealed into the database to know its key again.
const KEY_CHECK: &str = "key check";

/// Opens the database in its present form.
pub(super) fn open(path: &Path, sealer: &Sealer, key_path: &Path) -> Result<Connection> {
    let connection = connect(path).map_err(|e| Failure::Sql(e).named("opening the database"))?;
    let version: usize = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|e| Failure::Sql(e).named("opening the database"))?;
    if version > STEPS.len() {
        let why = format!(
            "{} has version {version}, this program knows {} and older ones; use a newer program",
            path.display(),
            STEPS.len()
        );
        return Err(invalid("database version", why));
    }
    migrate(&connection, version).map_err(|e| Failure::Sql(e).named("migrating the database"))?;
    check_key(&connection, sealer, key_path)?;
    Ok(connection)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    Ok(connection)
}

fn migrate(connection: &Connection, version: usize) -> rusqlite::Result<()> {
    for (done, step) in STEPS.iter().enumerate().skip(version) {
        let next = done + 1;
        tracing::info!(version = next, "migrating the database");
        let whole = format!("BEGIN IMMEDIATE; {step} PRAGMA user_version = {next}; COMMIT;");
        connection.execute_batch(&whole)?;
    }
    Ok(())
}

fn check_key(connection: &Connection, sealer: &Sealer, key_path: &Path) -> Result<()> {
    let failed = |e: rusqlite::Error| Failure::Sql(e).named("checking the key");
    let stored: Option<Vec<u8>> = connection
        .query_row("SELECT value FROM meta WHERE name = ?1", [KEY_CHECK], |row| row.get(0))
        .optional()
        .map_err(failed)?;
    let Some(stored) = stored else {
        let sealed = sealer.seal(KEY_CHECK, &[])?;
        connection
            .execute("INSERT INTO meta (name, value) VALUES (?1, ?2)", (KEY_CHECK, sealed))
            .map_err(failed)?;
        return Ok(());
    };
    sealer.open(KEY_CHECK, &stored).map(drop).map_err(|_| StoreError::Damaged {
        what: format!("key file {}", key_path.display()),
        why: "it is not the key that this store was made with".to_owned(),
    })
}
