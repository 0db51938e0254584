//! Session records of this service: fields for lists, a sealed body.
//!
//! A session lives with the service that has its journal and reaches its host, so each service sees its own records
//! only. Their collection is no collection of Python's (T-254).

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, Document, doc};

use super::call::{Failure, Tried, again, is_duplicate};
use super::documents::date;
use super::gridfs::number;
use super::{Core, Mongo};
use crate::local::invalid;
use crate::records::{check_body, readable};
use crate::{
    Inserted, Page, PageRequest, RecordFilter, RecordRow, Records, Result, SeedId, SessionId, StoreError,
};

/// How long an idempotency key is remembered.
pub(super) const KEY_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// How old a key must be whose record never came, before another request may have it: older than any request is.
const KEY_ABANDONED: Duration = Duration::from_secs(60);
/// How often a key that changes hands is looked at.
const TRIES: usize = 3;

#[async_trait]
impl Records for Mongo {
    async fn insert(&self, mut row: RecordRow, idempotency: Option<(String, String)>) -> Result<Inserted> {
        check_body(&row.body)?;
        row.rev = 1;
        let core = &self.core;
        core.limited("storing a record", core.limit, core.insert_record(row, idempotency)).await
    }

    async fn update(&self, row: RecordRow) -> Result<u64> {
        check_body(&row.body)?;
        let core = &self.core;
        core.limited("storing a record", core.limit, core.update_record(row)).await
    }

    async fn get(&self, id: &SessionId) -> Result<Option<RecordRow>> {
        let core = &self.core;
        let this = doc! { "_id": id.as_str() };
        let read = async {
            let found = core.records(this, doc! {}, 1).await?;
            core.opened(found).await
        };
        core.limited("reading a record", core.limit, read).await?.pop().transpose()
    }

    async fn list(&self, filter: &RecordFilter, page: &PageRequest) -> Result<Page<RecordRow>> {
        let limit = page.rows();
        let wanted = query(filter, page.after()?);
        let core = &self.core;
        let newest_first = doc! { "createdNs": -1, "_id": -1 };
        let read = async {
            let found = core.records(wanted, newest_first, limit as i64 + 1).await?;
            // Cut before anything is left out, so that the next page begins where this one ends.
            let page = Page::cut(found, limit, place);
            let data = readable(core.opened(page.data).await?);
            Ok(Page { data, next_cursor: page.next_cursor })
        };
        core.limited("listing records", core.limit, read).await
    }

    async fn unfinished(&self) -> Result<Vec<RecordRow>> {
        let core = &self.core;
        let read = async {
            let oldest_first = doc! { "createdNs": 1, "_id": 1 };
            let found = core.records(doc! { "finished": false }, oldest_first, 0).await?;
            core.opened(found).await
        };
        core.limited("listing records", core.limit, read).await?.into_iter().collect()
    }

    async fn delete(&self, id: &SessionId) -> Result<()> {
        let core = &self.core;
        let this = doc! { "_id": id.as_str(), "service": &core.service };
        let delete =
            async { again(|| async { core.sessions.delete_one(this.clone()).await }).await.map(drop) };
        core.limited("deleting a record", core.limit, delete).await
    }
}

impl Core {
    async fn insert_record(&self, row: RecordRow, idempotency: Option<(String, String)>) -> Tried<Inserted> {
        let id = row.id.clone();
        let document = self.sealed(row).await?;
        let key = match &idempotency {
            None => None,
            Some((key, digest)) => match self.take_key(key, digest, &id).await? {
                Taken::Ours(key) => Some(key),
                Taken::Earlier(earlier) => return Ok(earlier),
            },
        };
        let inserted = again(|| async {
            match self.sessions.insert_one(&document).await {
                Err(error) if is_duplicate(&error) => Ok(false),
                done => done.map(|_| true),
            }
        });
        if !inserted.await? && !self.is_stored(&document).await? {
            if let Some(key) = key {
                self.keys.delete_one(doc! { "_id": key, "session": id.as_str() }).await?;
            }
            return Err(conflict(&id, "it exists".to_owned()));
        }
        if let Some(key) = key {
            let kept = doc! { "_id": key };
            again(|| async { self.keys.update_one(kept.clone(), doc! { "$set": { "done": true } }).await })
                .await?;
        }
        Ok(Inserted::New)
    }

    async fn update_record(&self, mut row: RecordRow) -> Tried<u64> {
        let id = row.id.clone();
        let rev = row.rev;
        let this = doc! { "_id": id.as_str(), "service": &self.service, "rev": signed(rev)? };
        row.rev += 1;
        let document = self.sealed(row).await?;
        let replace = || async { self.sessions.replace_one(this.clone(), &document).await };
        if again(replace).await?.matched_count == 1 || self.is_stored(&document).await? {
            return Ok(rev + 1);
        }
        let stored = doc! { "_id": id.as_str(), "service": &self.service };
        let stored =
            again(|| async { self.sessions.find_one(stored.clone()).projection(doc! { "rev": 1 }).await });
        let stored = stored.await?.and_then(|stored| number(&stored, "rev"));
        let stored = stored.ok_or(StoreError::NotFound { what: "session record", id: id.to_string() })?;
        Err(conflict(&id, format!("revision {rev} was expected, {stored} is stored")))
    }

    /// Whether exactly this is stored: a sealed body never comes out the same twice, so it is our own write whose
    /// answer was lost.
    async fn is_stored(&self, document: &Document) -> Tried<bool> {
        let same = ["_id", "service", "rev", "body"];
        let same: Document =
            same.iter().filter_map(|key| Some(((*key).to_owned(), document.get(key)?.clone()))).collect();
        let found =
            again(|| async { self.sessions.find_one(same.clone()).projection(doc! { "_id": 1 }).await });
        Ok(found.await?.is_some())
    }

    /// Takes an idempotency key for a session, or says what it was used for before.
    async fn take_key(&self, key: &str, digest: &str, session: &SessionId) -> Tried<Taken> {
        let id = format!("{}:{key}", self.service);
        let now = self.client_now();
        let new = doc! {
            "_id": &id, "digest": digest, "session": session.as_str(), "at": date(now), "done": false,
        };
        for _ in 0..TRIES {
            match self.keys.insert_one(&new).await {
                Err(error) if is_duplicate(&error) => {}
                done => {
                    done?;
                    return Ok(Taken::Ours(id));
                }
            }
            let Some(earlier) = again(|| async { self.keys.find_one(doc! { "_id": &id }).await }).await?
            else {
                continue;
            };
            let age = now - earlier.get_datetime("at").map_or(0, |at| at.timestamp_millis());
            let done = earlier.get_bool("done").unwrap_or(true);
            let over = if done { KEY_KEPT } else { KEY_ABANDONED };
            if age <= over.as_millis() as i64 {
                let named = earlier.get_str("session").ok().and_then(|session| session.parse().ok());
                return match named {
                    // Our own insert, whose answer was lost.
                    Some(named) if named == *session => Ok(Taken::Ours(id)),
                    Some(named) if earlier.get_str("digest").is_ok_and(|d| d == digest) => {
                        Ok(Taken::Earlier(Inserted::Same(named)))
                    }
                    _ => Ok(Taken::Earlier(Inserted::KeyReused)),
                };
            }
            // Forgotten, or of a service that died between key and record. Of two that find it, one deletes it.
            self.keys.delete_one(earlier).await?;
        }
        Err(super::not_now("storing a record", "its idempotency key keeps changing hands").into())
    }

    async fn sealed(&self, row: RecordRow) -> Tried<Document> {
        let created = nanoseconds(&row)
            .ok_or_else(|| invalid("created_at", "it must be between the years 1678 and 2262"))?;
        let (sealer, bound, body) = (self.sealer.clone(), bound_to(&row.id), row.body.clone());
        let body = self.aside("sealing a record", move || sealer.seal(&bound, &body)).await?;
        let labels: Vec<_> = row.labels.iter().map(|(k, v)| doc! { "k": k, "v": v }).collect();
        Ok(doc! {
            "_id": row.id.as_str(),
            "service": &self.service,
            "rev": signed(row.rev)?,
            "finished": row.finished,
            "state": &row.state,
            "host": &row.host,
            "seed": row.seed.as_ref().map(SeedId::as_str),
            "name": &row.name,
            "nameFolded": row.name.to_lowercase(),
            "labels": labels,
            "createdNs": created,
            "body": Binary { subtype: BinarySubtype::Generic, bytes: body },
        })
    }

    /// The service's own records that this filter finds, sealed; a limit of 0 is none.
    async fn records(&self, mut filter: Document, order: Document, limit: i64) -> Tried<Vec<Document>> {
        filter.insert("service", &self.service);
        again(|| async {
            let found = self.sessions.find(filter.clone()).sort(order.clone()).limit(limit);
            found.await?.try_collect::<Vec<_>>().await
        })
        .await
    }

    async fn opened(&self, found: Vec<Document>) -> Tried<Vec<Result<RecordRow>>> {
        let sealer = self.sealer.clone();
        self.aside("opening records", move || {
            let open = |document: Document| {
                let mut row = record_row(document)?;
                row.body = sealer.open(&bound_to(&row.id), &row.body)?.into();
                Ok(row)
            };
            Ok(found.into_iter().map(open).collect())
        })
        .await
    }
}

enum Taken {
    /// By this request, under this id.
    Ours(String),
    /// Before.
    Earlier(Inserted),
}

/// What a body is sealed under.
fn bound_to(id: &SessionId) -> String {
    format!("session record {id}")
}

/// What a list is ordered by. A document without a time stands last, as it does in the database.
fn place(document: &Document) -> (i64, String) {
    let id = document.get_str("_id").unwrap_or_default();
    (document.get_i64("createdNs").unwrap_or(i64::MIN), id.to_owned())
}

fn nanoseconds(row: &RecordRow) -> Option<i64> {
    i64::try_from(row.created_at.as_nanosecond()).ok()
}

fn signed(rev: u64) -> Result<i64> {
    i64::try_from(rev).map_err(|_| invalid("rev", "it is too large"))
}

fn conflict(id: &SessionId, why: String) -> Failure {
    StoreError::Conflict { what: "session record", id: id.to_string(), why }.into()
}

fn query(filter: &RecordFilter, before: Option<(i64, String)>) -> Document {
    let mut query = Document::new();
    if let Some((created, id)) = before {
        let earlier = doc! { "createdNs": { "$lt": created } };
        query.insert("$or", vec![earlier, doc! { "createdNs": created, "_id": { "$lt": id } }]);
    }
    if !filter.states.is_empty() {
        query.insert("state", doc! { "$in": &filter.states });
    }
    if let Some(host) = &filter.host {
        query.insert("host", host);
    }
    if let Some(seed) = &filter.seed {
        query.insert("seed", seed.as_str());
    }
    if let Some((key, value)) = &filter.label {
        let mut label = doc! { "k": key };
        if let Some(value) = value {
            label.insert("v", value);
        }
        query.insert("labels", doc! { "$elemMatch": label });
    }
    if let Some(q) = &filter.q {
        let place = doc! { "$indexOfBytes": ["$nameFolded", { "$literal": q.to_lowercase() }] };
        query.insert("$expr", doc! { "$gte": [place, 0] });
    }
    query
}

fn record_row(mut document: Document) -> Result<RecordRow> {
    let body = match document.remove("body") {
        Some(Bson::Binary(body)) => Some(Bytes::from(body.bytes)),
        _ => None,
    };
    let text = |key: &str| document.get_str(key).ok().map(str::to_owned);
    let label = |label: &Bson| {
        let label = label.as_document()?;
        Some((label.get_str("k").ok()?.to_owned(), label.get_str("v").ok()?.to_owned()))
    };
    let read = || {
        Some(RecordRow {
            id: text("_id")?.parse().ok()?,
            rev: number(&document, "rev")?,
            finished: document.get_bool("finished").ok()?,
            state: text("state")?,
            host: text("host")?,
            seed: text("seed").and_then(|seed| seed.parse().ok()),
            name: text("name")?,
            labels: document.get_array("labels").ok()?.iter().filter_map(label).collect::<BTreeMap<_, _>>(),
            created_at: Timestamp::from_nanosecond(document.get_i64("createdNs").ok()?.into()).ok()?,
            body: body?,
        })
    };
    read().ok_or_else(|| StoreError::Damaged {
        what: format!("session record {}", document.get_str("_id").unwrap_or("without an id")),
        why: "it lacks a field".to_owned(),
    })
}
