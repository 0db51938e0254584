//! Logins: documents, and archives that are complete before a document names them.

mod swap;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, doc};

use super::call::{Failure, Tried, again, is_duplicate};
use super::documents::{SeedDocument, changes, date, notes, object_id};
use super::notes::metadata_document;
use super::{Core, Mongo, Update};
use crate::local::invalid;
use crate::seeds::{KEY_NOTE, OWN_NOTES, SEED_LIMIT, check_metadata, check_pool};
use crate::{
    Account, Holder, NewSeed, Page, PageRequest, Result, SaveOutcome, SeedFiles, SeedId, SeedPatch, SeedRow,
    SeedStatus, SeedVersion, Seeds, StoreError, seed_archive,
};
use swap::Swap;

/// How often what was decided by reading is decided again, because a peer changed it in between (T-043).
const TRIES: usize = 3;
/// Rows whose account is read at once.
const READ_AT_ONCE: usize = 4;
/// The manifest's version (T-022). Nobody compares it (T-025).
const MANIFEST: i32 = 1;

#[async_trait]
impl Seeds for Mongo {
    async fn import(&self, seed: NewSeed) -> Result<SeedRow> {
        check_pool(seed.pool.as_deref())?;
        check_metadata(&seed.metadata)?;
        seed_archive::check(&seed.files)?;
        let core = &self.core;
        core.limited("importing a seed", core.limit * 3, core.import(seed)).await
    }

    async fn get(&self, id: &SeedId) -> Result<Option<SeedRow>> {
        self.core.limited("reading a seed", self.core.limit, self.core.seed_row(id)).await
    }

    async fn list(&self, pool: Option<&str>, page: &PageRequest) -> Result<Page<SeedRow>> {
        let (after, limit) = (page.after()?, page.rows());
        let core = &self.core;
        let read = async {
            let pool = pool.map(|pool| doc! { "$match": { "poolKey": pool } });
            let begin = after.map(|(time, id)| {
                let time = date(time);
                // An id that is none cannot be greater than any.
                let id = ObjectId::parse_str(id).map_or(Bson::MinKey, Bson::ObjectId);
                doc! { "$match": { "$or": [
                    { "created": { "$gt": time } },
                    { "created": time, "seed._id": { "$gt": id } },
                ] } }
            });
            let order = doc! { "$sort": { "created": 1, "seed._id": 1 } };
            let end = doc! { "$limit": limit as i64 + 1 };
            let after = begin.into_iter().chain([order, end]).collect();
            let seeds = core.shown(pool.into_iter().collect(), after).await?;
            let rows = stream::iter(seeds).map(|seed| async move { core.row(&seed).await });
            rows.buffered(READ_AT_ONCE).try_collect::<Vec<_>>().await
        };
        let rows = core.limited("listing seeds", core.limit * 3, read).await?;
        Ok(Page::cut(rows, limit, |row| (row.created_at.as_millisecond(), row.id.to_string())))
    }

    async fn load(&self, id: &SeedId) -> Result<(SeedFiles, SeedVersion)> {
        self.core.limited("loading a seed", self.core.limit, self.core.load(id)).await
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
        let core = &self.core;
        core.limited("saving a credential", core.limit * 3, core.save(id, holder, base, auth_json)).await
    }

    async fn patch(&self, id: &SeedId, holder: Option<&Holder>, patch: SeedPatch) -> Result<SeedRow> {
        check_metadata(&patch.metadata)?;
        if let Some(pool) = &patch.pool {
            check_pool(pool.as_deref())?;
        }
        self.core.limited("changing a seed", self.core.limit, self.core.patch(id, holder, patch)).await
    }

    async fn delete(&self, id: &SeedId, force: bool) -> Result<()> {
        self.core.limited("deleting a seed", self.core.limit, self.core.delete_seed(id, force)).await
    }
}

impl Core {
    pub(super) async fn stored(&self, id: &SeedId) -> Tried<Option<SeedDocument>> {
        let this = doc! { "$match": { "_id": object_id(id) } };
        Ok(self.shown(vec![this], vec![]).await?.pop())
    }

    async fn row(&self, seed: &SeedDocument) -> Tried<SeedRow> {
        let account = match seed.known_account() {
            Some(account) => account,
            None => self.derive(seed).await.map(|(account, _)| account).unwrap_or_else(unknown),
        };
        Ok(seed.row(account, &self.archive_keys)?)
    }

    async fn seed_row(&self, id: &SeedId) -> Tried<Option<SeedRow>> {
        match self.stored(id).await? {
            None => Ok(None),
            Some(seed) => Ok(Some(self.row(&seed).await?)),
        }
    }

    async fn import(&self, seed: NewSeed) -> Tried<SeedRow> {
        let id = SeedId::mint();
        let now = self.client_now();
        let lineage = seed.files.0.get(SeedFiles::AUTH).and_then(|auth| seed_archive::lineage(auth));
        let files = seed.files.clone();
        let archive =
            self.aside("packing a login", move || seed_archive::encode(&files, seconds(now))).await?;
        let Some(lineage) = lineage else {
            return self.insert(&id, seed, None, archive, now).await;
        };
        self.claim(&lineage, &id).await?;
        let stored = async {
            self.check_twin(&lineage).await?;
            self.insert(&id, seed, Some(&lineage), archive, now).await
        };
        let stored = stored.await;
        self.drop_claim(&lineage, &id).await;
        stored
    }

    async fn insert(
        &self,
        id: &SeedId,
        seed: NewSeed,
        lineage: Option<&str>,
        archive: Vec<u8>,
        now: i64,
    ) -> Tried<SeedRow> {
        let blob = ObjectId::new();
        let mut metadata = metadata_document(seed.metadata)?;
        metadata.insert(OWN_NOTES, notes(blob, lineage, &seed.account));
        metadata.extend(self.archive_keys.writing().map(|(key, _)| (KEY_NOTE.to_owned(), key.into())));
        let mut document = doc! {
            "_id": object_id(id), "createdAt": date(now), "blobId": blob, "manifestVersion": MANIFEST,
        };
        document.insert("metadata", metadata);
        if let Some(pool) = seed.pool {
            document.insert("poolKey", pool);
        }
        self.store_login(blob, id.as_str(), archive.into()).await?;
        let inserted = again(|| async {
            match self.seeds.insert_one(&document).await {
                // The id is ours: an earlier try arrived, and its answer did not.
                Err(error) if is_duplicate(&error) => Ok(()),
                done => done.map(drop),
            }
        });
        // On an error it may be stored all the same, so the blob stays; the sweeper knows in an hour.
        inserted.await?;
        self.settle_blob(blob).await;
        self.seed_row(id).await?.ok_or_else(|| not_found(id))
    }

    async fn load(&self, id: &SeedId) -> Tried<(SeedFiles, SeedVersion)> {
        let mut tries = 1;
        loop {
            let seed = self.stored(id).await?.ok_or_else(|| not_found(id))?;
            seed.check_readable(&self.archive_keys)?;
            let blob = seed.blob()?;
            let read = async {
                let archive = self.read_file(blob, SEED_LIMIT).await?;
                self.aside("unpacking a login", move || seed_archive::decode(&archive)).await
            };
            match read.await {
                Ok(files) => return Ok((files, SeedVersion(blob.to_hex()))),
                // Python deletes a replaced blob at once, under its readers.
                Err(failure) => {
                    let replaced = self.stored(id).await?.is_some_and(|now| now.blob().ok() != Some(blob));
                    if !replaced || tries == TRIES {
                        return Err(failure);
                    }
                    tries += 1;
                }
            }
        }
    }

    async fn save(
        &self,
        id: &SeedId,
        holder: &Holder,
        base: &SeedVersion,
        auth: Bytes,
    ) -> Tried<SaveOutcome> {
        let Some(seed) = self.stored(id).await? else {
            return Ok(SaveOutcome::Gone);
        };
        if seed.holder() != Some(holder.as_str()) {
            return Ok(SaveOutcome::NotHolder);
        }
        seed.check_readable(&self.archive_keys)?;
        let from = seed.blob()?;
        let current = SeedVersion(from.to_hex());
        let archive = match self.read_file(from, SEED_LIMIT).await {
            Ok(archive) => archive,
            // Python deletes a replaced blob at once, under its readers.
            Err(failure) => match self.stored(id).await? {
                Some(now) if now.blob()? != from => {
                    return Ok(SaveOutcome::Superseded { current: SeedVersion(now.blob()?.to_hex()) });
                }
                _ => return Err(failure),
            },
        };
        let lineage = seed_archive::lineage(&auth);
        let (named, now) = (*base == current, self.client_now());
        let prepared = self.aside("packing a login", move || {
            // A step that is tried again after an unknown outcome finds its bytes here, whatever base it names.
            if seed_archive::decode(&archive)?.0.get(SeedFiles::AUTH) == Some(&auth) {
                return Ok(Prepared::Already);
            }
            if !named {
                return Ok(Prepared::Superseded);
            }
            seed_archive::replace_auth(&archive, auth, seconds(now)).map(Prepared::New)
        });
        let archive = match prepared.await? {
            Prepared::Already => return Ok(SaveOutcome::Saved(current)),
            Prepared::Superseded => return Ok(SaveOutcome::Superseded { current }),
            Prepared::New(archive) => archive,
        };
        let account = seed.known_account();
        let to = ObjectId::new();
        let swap = Swap { id, holder, from, to, lineage, account, now, before: &seed };
        if let Err(failure) = self.store_login(swap.to, id.as_str(), archive.into()).await {
            self.abandon_blob(swap.to).await;
            return Err(failure);
        }
        self.swap(swap).await
    }

    async fn patch(&self, id: &SeedId, holder: Option<&Holder>, patch: SeedPatch) -> Tried<SeedRow> {
        let alive = patch.status.as_ref().is_some_and(|(status, _)| *status == SeedStatus::Alive);
        let verified = patch.verified;
        let (set, unset) = changes(patch)?;
        let mut update = Update { set, unset, stamps: Document::new() };
        update.set.insert("updatedAt", date(self.client_now()));
        if verified {
            self.stamp(&mut update, "lastVerifiedAt");
        }
        let mut filter = doc! { "_id": object_id(id) };
        if let Some(holder) = holder {
            filter.insert("lease.holder", holder.as_str());
        }
        let update = update.into_document();
        let done = again(|| async { self.seeds.update_one(filter.clone(), update.clone()).await }).await?;
        if done.matched_count == 0 {
            let there = self.stored(id).await?.is_some();
            return Err(match holder.filter(|_| there) {
                None => not_found(id),
                Some(holder) => {
                    let why = format!("{holder} does not hold its lease");
                    StoreError::Conflict { what: "seed", id: id.to_string(), why }.into()
                }
            });
        }
        if alive && holder.is_none() {
            // An expired lease only (T-096): a live one stays as it is.
            let ended = doc! { "_id": object_id(id), "lease": { "$ne": null }, "$expr": self.free() };
            let free = doc! { "$set": { "lease": null } };
            again(|| async { self.seeds.update_one(ended.clone(), free.clone()).await }).await?;
        }
        self.seed_row(id).await?.ok_or_else(|| not_found(id))
    }

    async fn delete_seed(&self, id: &SeedId, force: bool) -> Tried<()> {
        for _ in 0..TRIES {
            let seed = self.stored(id).await?.ok_or_else(|| not_found(id))?;
            let blob = seed.blob()?;
            let mut filter = doc! { "_id": seed.object, "blobId": blob };
            if !force {
                if seed.live {
                    let why = format!("{} has a live lease on it", seed.holder().unwrap_or("somebody"));
                    return Err(StoreError::Conflict { what: "seed", id: id.to_string(), why }.into());
                }
                filter.insert("$expr", self.free());
            }
            // Before the document, so that a crash in between loses no credential in the bucket (T-064).
            self.supersede_blob(blob, id.as_str()).await?;
            if self.seeds.delete_one(filter).await?.deleted_count == 1 || self.stored(id).await?.is_none() {
                return Ok(());
            }
        }
        let why = "it keeps changing while it is deleted".to_owned();
        Err(StoreError::Conflict { what: "seed", id: id.to_string(), why }.into())
    }
}

enum Prepared {
    Already,
    Superseded,
    New(Vec<u8>),
}

fn unknown() -> Account {
    Account { kind: "unknown".to_owned(), ..Account::default() }
}

fn not_found(id: &SeedId) -> Failure {
    StoreError::NotFound { what: "seed", id: id.to_string() }.into()
}

fn seconds(ms: i64) -> u64 {
    u64::try_from(ms / 1000).unwrap_or(0)
}
