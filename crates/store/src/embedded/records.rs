//! Session records: columns for lists, a sealed body.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{
    Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params, params_from_iter,
};

use super::Embedded;
use super::columns::{from_json, json, parsed, parsed_opt};
use super::db::Failure;
use crate::local::invalid;
use crate::records::{check_body, readable};
use crate::{
    Inserted, Page, PageRequest, RecordFilter, RecordRow, Records, Result, SeedId, SessionId, StoreError,
};

/// How long an idempotency key is remembered.
const KEY_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

const COLUMNS: &str = "id, rev, finished, state, host, seed, name, labels, created_ns, body";

#[async_trait]
impl Records for Embedded {
    async fn insert(&self, mut row: RecordRow, idempotency: Option<(String, String)>) -> Result<Inserted> {
        row.rev = 1;
        let sealed = self.seal(row).await?;
        let now = self.now_ms();
        let insert = move |c: &mut Connection| {
            let tx = c.transaction_with_behavior(TransactionBehavior::Immediate)?;
            if let Some((key, digest)) = idempotency {
                if let Some(earlier) = earlier(&tx, &key, &digest, now)? {
                    return Ok(earlier);
                }
                let sql = "INSERT INTO idempotency (key, digest, session, at) VALUES (?1, ?2, ?3, ?4)";
                tx.execute(sql, params![key, digest, sealed.row.id.as_str(), now])?;
            }
            if stored_rev(&tx, &sealed.row.id)?.is_some() {
                return Err(conflict(&sealed.row.id, "it exists".to_owned()));
            }
            sealed.write(&tx, "INSERT")?;
            tx.commit()?;
            Ok(Inserted::New)
        };
        self.core.db.run("storing a record", insert).await
    }

    async fn update(&self, row: RecordRow) -> Result<u64> {
        let mut sealed = self.seal(row).await?;
        let update = move |c: &mut Connection| {
            let tx = c.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let id = &sealed.row.id;
            let Some(rev) = stored_rev(&tx, id)? else {
                return Err(StoreError::NotFound { what: "session record", id: id.to_string() }.into());
            };
            if rev != sealed.row.rev {
                return Err(conflict(
                    id,
                    format!("revision {} was expected, {rev} is stored", sealed.row.rev),
                ));
            }
            sealed.row.rev += 1;
            sealed.write(&tx, "REPLACE")?;
            tx.commit()?;
            Ok(sealed.row.rev)
        };
        self.core.db.run("storing a record", update).await
    }

    async fn get(&self, id: &SessionId) -> Result<Option<RecordRow>> {
        let id = id.clone();
        let read = move |c: &mut Connection| {
            let sql = format!("SELECT {COLUMNS} FROM records WHERE id = ?1");
            Ok(c.prepare_cached(&sql)?.query_row([id.as_str()], record_row).optional()?)
        };
        let found = self.core.db.run("reading a record", read).await?;
        self.opened(found.into_iter().collect()).await?.pop().transpose()
    }

    async fn list(&self, filter: &RecordFilter, page: &PageRequest) -> Result<Page<RecordRow>> {
        let limit = page.rows();
        let query = Query::new(filter, page.after()?, limit + 1)?;
        let rows = self.core.db.run("listing records", move |c| query.run(c)).await?;
        // Cut before anything is left out, so that the next page begins where this one ends.
        let page = Page::cut(rows, limit, |row| {
            (i64::try_from(row.created_at.as_nanosecond()).unwrap_or(i64::MAX), row.id.to_string())
        });
        let data = readable(self.opened(page.data).await?);
        Ok(Page { data, next_cursor: page.next_cursor })
    }

    async fn unfinished(&self) -> Result<Vec<RecordRow>> {
        let read = |c: &mut Connection| {
            let sql = format!("SELECT {COLUMNS} FROM records WHERE finished = 0 ORDER BY created_ns, id");
            let mut statement = c.prepare_cached(&sql)?;
            let rows = statement.query_map([], record_row)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        };
        let rows = self.core.db.run("listing records", read).await?;
        self.opened(rows).await?.into_iter().collect()
    }

    async fn delete(&self, id: &SessionId) -> Result<()> {
        let id = id.clone();
        let delete = move |c: &mut Connection| {
            c.execute("DELETE FROM records WHERE id = ?1", [id.as_str()])?;
            Ok(())
        };
        self.core.db.run("deleting a record", delete).await
    }
}

/// A record whose body is sealed, with what the database needs of it.
struct Sealed {
    row: RecordRow,
    labels: String,
    created_ns: i64,
}

impl Embedded {
    async fn seal(&self, mut row: RecordRow) -> Result<Sealed> {
        check_body(&row.body)?;
        let created_ns = i64::try_from(row.created_at.as_nanosecond())
            .map_err(|_| invalid("created_at", "it must be between the years 1678 and 2262"))?;
        let labels = json(&row.labels)?;
        let core = self.core.clone();
        self.login_work("sealing a record", move || {
            row.body = core.sealer.seal(&bound_to(&row.id), &row.body)?.into();
            Ok(Sealed { row, labels, created_ns })
        })
        .await
    }

    async fn opened(&self, rows: Vec<RecordRow>) -> Result<Vec<Result<RecordRow>>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let core = self.core.clone();
        self.login_work("opening records", move || {
            let open = |row: RecordRow| {
                let body = core.sealer.open(&bound_to(&row.id), &row.body)?.into();
                Ok(RecordRow { body, ..row })
            };
            Ok(rows.into_iter().map(open).collect())
        })
        .await
    }
}

impl Sealed {
    fn write(&self, tx: &Transaction<'_>, verb: &'static str) -> rusqlite::Result<()> {
        let row = &self.row;
        let sql = format!(
            "{verb} INTO records ({COLUMNS}, name_folded) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
        );
        tx.prepare_cached(&sql)?
            .execute(params![
                row.id.as_str(),
                row.rev,
                row.finished,
                row.state,
                row.host,
                row.seed.as_ref().map(SeedId::as_str),
                row.name,
                self.labels,
                self.created_ns,
                &row.body[..],
                row.name.to_lowercase(),
            ])
            .map(drop)
    }
}

/// What a body is sealed under.
fn bound_to(id: &SessionId) -> String {
    format!("session record {id}")
}

fn record_row(row: &Row<'_>) -> rusqlite::Result<RecordRow> {
    let nanoseconds: i64 = row.get(8)?;
    Ok(RecordRow {
        id: parsed(row, 0)?,
        rev: row.get(1)?,
        finished: row.get(2)?,
        state: row.get(3)?,
        host: row.get(4)?,
        seed: parsed_opt(row, 5)?,
        name: row.get(6)?,
        labels: from_json::<BTreeMap<String, String>>(row, 7)?,
        // Every i64 of nanoseconds is within jiff's range.
        created_at: Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or(Timestamp::UNIX_EPOCH),
        body: Bytes::from(row.get::<_, Vec<u8>>(9)?),
    })
}

fn stored_rev(tx: &Transaction<'_>, id: &SessionId) -> rusqlite::Result<Option<u64>> {
    tx.query_row("SELECT rev FROM records WHERE id = ?1", [id.as_str()], |row| row.get(0)).optional()
}

/// What the key was used for before, if it is still remembered.
fn earlier(tx: &Transaction<'_>, key: &str, digest: &str, now: i64) -> Result<Option<Inserted>, Failure> {
    tx.execute("DELETE FROM idempotency WHERE at < ?1", [now - KEY_KEPT.as_millis() as i64])?;
    let sql = "SELECT digest, session FROM idempotency WHERE key = ?1";
    let found = tx.query_row(sql, [key], |row| Ok((row.get::<_, String>(0)?, parsed(row, 1)?))).optional()?;
    Ok(found.map(
        |(stored, session)| {
            if stored == digest { Inserted::Same(session) } else { Inserted::KeyReused }
        },
    ))
}

fn conflict(id: &SessionId, why: String) -> Failure {
    StoreError::Conflict { what: "session record", id: id.to_string(), why }.into()
}

/// A list as SQL. Values are always bound, never written into the text.
struct Query {
    sql: String,
    values: Vec<Value>,
}

impl Query {
    fn new(filter: &RecordFilter, before: Option<(i64, String)>, limit: usize) -> Result<Self> {
        let mut query = Self { sql: format!("SELECT {COLUMNS} FROM records WHERE true"), values: Vec::new() };
        if let Some((created, id)) = before {
            query.and("(created_ns, id) < (?, ?)", [Value::Integer(created), Value::Text(id)]);
        }
        if !filter.states.is_empty() {
            let states = Value::Text(json(&filter.states)?);
            query.and("state IN (SELECT value FROM json_each(?))", [states]);
        }
        if let Some(host) = &filter.host {
            query.and("host = ?", [Value::Text(host.clone())]);
        }
        if let Some(seed) = &filter.seed {
            query.and("seed = ?", [Value::Text(seed.to_string())]);
        }
        if let Some((key, value)) = &filter.label {
            let value = value.clone().map_or(Value::Null, Value::Text);
            query.and(
                "EXISTS (SELECT 1 FROM json_each(labels) WHERE key = ? AND value = coalesce(?, value))",
                [Value::Text(key.clone()), value],
            );
        }
        if let Some(q) = &filter.q {
            query.and("instr(name_folded, ?) > 0", [Value::Text(q.to_lowercase())]);
        }
        query.sql.push_str(" ORDER BY created_ns DESC, id DESC LIMIT ?");
        query.values.push(Value::Integer(limit as i64));
        Ok(query)
    }

    fn and<const N: usize>(&mut self, condition: &str, values: [Value; N]) {
        self.sql.push_str(" AND ");
        self.sql.push_str(condition);
        self.values.extend(values);
    }

    fn run(self, c: &mut Connection) -> Result<Vec<RecordRow>, Failure> {
        let mut statement = c.prepare_cached(&self.sql)?;
        let rows = statement.query_map(params_from_iter(self.values), record_row)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}
