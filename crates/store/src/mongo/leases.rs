//! Leases: one conditional update each, by the server's clock (T-079…T-113).

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::ReturnDocument;

use super::call::again;
use super::documents::{lease_end, object_id, seed_id};
use super::{Core, Mongo};
use crate::clock::from_millis;
use crate::seeds::{KEY_NOTE, check_pool};
use crate::{Holder, LEASE_TTL, Lease, Leases, Renewal, Result, SeedId, StoreError, Want};

/// Holders remembered because nobody knows whether they acquired. A service that has more of them at once has other
/// troubles; the oldest leases of theirs end after a minute.
const UNSETTLED: usize = 1024;

#[async_trait]
impl Leases for Mongo {
    async fn acquire(&self, want: &Want, holder: &Holder) -> Result<Option<Lease>> {
        let wanted = match want {
            Want::Seed(seed) => doc! { "_id": object_id(seed) },
            Want::Pool(pool) => {
                check_pool(Some(pool))?;
                doc! { "poolKey": pool }
            }
        };
        let mut free = wanted.clone();
        free.insert("status", doc! { "$ne": "dead" });
        // Stricter than Python, which also takes an expired one: here that is dirty. Null or absent (T-084).
        free.insert("lease", Bson::Null);
        let lease = self.core.acquire(wanted, free, holder).await?;
        self.core.found(lease, want).await
    }

    async fn acquire_for_recovery(&self, seed: &SeedId, holder: &Holder) -> Result<Option<Lease>> {
        let wanted = doc! { "_id": object_id(seed) };
        let mut free = wanted.clone();
        free.insert("$expr", self.core.free());
        let lease = self.core.acquire(wanted, free, holder).await?;
        self.core.found(lease, &Want::Seed(seed.clone())).await
    }

    async fn renew(&self, seed: &SeedId, holder: &Holder) -> Result<Renewal> {
        let mine = doc! { "_id": object_id(seed), "lease.holder": holder.as_str() };
        let lease = self.core.limited("renewing a lease", self.core.limit, self.core.extend(mine)).await?;
        Ok(lease.map_or(Renewal::Lost, |lease| Renewal::Renewed { expires_at: lease.expires_at }))
    }

    async fn release(&self, seed: &SeedId, holder: &Holder) -> Result<bool> {
        let id = object_id(seed);
        let mine = doc! { "_id": id, "lease.holder": holder.as_str() };
        let core = &self.core;
        let release = async {
            let hidden = AtomicBool::new(false);
            let done = again(|| async {
                let done = core.seeds.update_one(mine.clone(), doc! { "$set": { "lease": null } }).await;
                hidden.fetch_or(done.is_err(), Ordering::Relaxed);
                done
            });
            let released = done.await?.matched_count == 1;
            if released || !hidden.into_inner() {
                return Ok(released);
            }
            // An earlier try may have done it, its answer lost. Nobody else leaves a seed that was ours without a lease.
            let free = doc! { "_id": id, "lease": null };
            Ok(again(|| async { core.seeds.find_one(free.clone()).await }).await?.is_some())
        };
        core.limited("releasing a lease", core.limit, release).await
    }
}

impl Core {
    /// What Python means by free (T-079): no lease, or one that has ended by the server's clock.
    pub(super) fn free(&self) -> Document {
        doc! { "$or": [
            { "$eq": [{ "$ifNull": ["$lease", null] }, null] },
            { "$not": { "$gt": ["$lease.expiresAt", self.now()] } },
        ] }
    }

    /// The end of a lease that is given now (INV-05).
    fn expiry(&self) -> Document {
        doc! { "$add": [self.now(), LEASE_TTL.as_millis() as i64] }
    }

    /// A login that is locked is no use to anybody here and its lease would only keep it from those who can read it, so
    /// nobody gets it: a pool goes on with the next one, and whoever names it is told.
    async fn acquire(&self, wanted: Document, mut free: Document, holder: &Holder) -> Result<Option<Lease>> {
        free.insert(format!("metadata.{KEY_NOTE}"), doc! { "$in": self.archive_keys.readable() });
        if self.is_unsettled(holder)
            && let Some(lease) = self.own(wanted.clone(), holder).await?
        {
            return Ok(Some(lease));
        }
        let what = "acquiring a lease";
        let taken = self.limited(what, self.limit, async {
            let take = doc! { "$set": {
                "lease": { "holder": holder.as_str(), "expiresAt": self.expiry() },
                "lastLeasedAt": self.now(),
            } };
            let taken = self
                .seeds
                .find_one_and_update(free, vec![take])
                // Ties are free (T-083); these make the older one first among those that were never leased.
                .sort(doc! { "lastLeasedAt": 1, "createdAt": 1, "_id": 1 })
                .projection(doc! { "lease": 1 })
                .return_document(ReturnDocument::After)
                .await?;
            Ok(taken.map(|seed| lease(&seed)).transpose()?)
        });
        match taken.await {
            Err(error @ StoreError::TimedOut { .. }) => {
                self.set_unsettled(holder);
                Err(error)
            }
            Err(error @ StoreError::Unavailable { .. }) => {
                self.set_unsettled(holder);
                // Whether the server did it before the connection broke can only be read (T-103).
                match self.own(wanted, holder).await {
                    Ok(Some(lease)) => Ok(Some(lease)),
                    Ok(None) | Err(_) => Err(error),
                }
            }
            settled => settled,
        }
    }

    /// What to answer whoever wants this: when it is one login that was not to be had because it is locked, that.
    async fn found(&self, lease: Option<Lease>, want: &Want) -> Result<Option<Lease>> {
        let Want::Seed(seed) = want else { return Ok(lease) };
        if lease.is_none() {
            let what = "looking for a lease";
            let stored = self.limited(what, self.limit, self.stored(seed)).await?;
            stored.map_or(Ok(()), |stored| stored.check_readable(&self.archive_keys))?;
        }
        Ok(lease)
    }

    /// The lease that this holder has after all, extended.
    async fn own(&self, mut wanted: Document, holder: &Holder) -> Result<Option<Lease>> {
        wanted.insert("lease.holder", holder.as_str());
        let found = self.limited("looking for a lease", self.limit, self.extend(wanted)).await?;
        if found.is_some() {
            self.unsettled().retain(|other| other != holder);
        }
        Ok(found)
    }

    /// Extends the lease that this filter finds. Twice is as good as once.
    async fn extend(&self, mine: Document) -> super::call::Tried<Option<Lease>> {
        let longer = vec![doc! { "$set": { "lease.expiresAt": self.expiry() } }];
        let renewed = again(|| async {
            self.seeds
                .find_one_and_update(mine.clone(), longer.clone())
                .projection(doc! { "lease": 1 })
                .return_document(ReturnDocument::After)
                .await
        });
        Ok(renewed.await?.map(|seed| lease(&seed)).transpose()?)
    }

    fn unsettled(&self) -> std::sync::MutexGuard<'_, std::collections::VecDeque<Holder>> {
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_unsettled(&self, holder: &Holder) -> bool {
        self.unsettled().contains(holder)
    }

    fn set_unsettled(&self, holder: &Holder) {
        let mut unsettled = self.unsettled();
        if !unsettled.contains(holder) {
            unsettled.push_back(holder.clone());
        }
        if unsettled.len() > UNSETTLED {
            unsettled.pop_front();
        }
    }
}

/// The lease in a document that was just written.
fn lease(seed: &Document) -> Result<Lease> {
    let id = seed_id(seed)?;
    let lease = seed.get_document("lease").ok();
    let parts = lease.and_then(|lease| Some((lease.get_str("holder").ok()?, lease_end(lease)?)));
    let (holder, end) = parts.ok_or_else(|| StoreError::Damaged {
        what: format!("seed {id}"),
        why: "its lease is not the one that was just written".to_owned(),
    })?;
    Ok(Lease { seed: id, holder: Holder::stored(holder), expires_at: from_millis(end) })
}
