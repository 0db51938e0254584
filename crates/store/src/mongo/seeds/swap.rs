//! The moment in which a login's document names another blob.

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Document, doc};

use super::TRIES;
use crate::mongo::call::{PAUSE, Tried, is_passing};
use crate::mongo::documents::{SeedDocument, date, notes, object_id};
use crate::mongo::{Core, Update};
use crate::seeds::OWN_NOTES;
use crate::{Account, Holder, SaveOutcome, SeedId, SeedVersion, StoreError};

/// Points a document at another blob.
pub(super) struct Swap<'a> {
    pub(super) id: &'a SeedId,
    pub(super) holder: &'a Holder,
    pub(super) from: ObjectId,
    pub(super) to: ObjectId,
    pub(super) lineage: Option<String>,
    pub(super) account: Option<Account>,
    pub(super) now: i64,
    /// The document that named the old one.
    pub(super) before: &'a SeedDocument,
}

impl Core {
    /// Points the document at the new blob, if it still names the old one and the holder still has it. What came of it
    /// is read, whatever the update answered (T-054, T-055).
    pub(super) async fn swap(&self, swap: Swap<'_>) -> Tried<SaveOutcome> {
        self.supersede_blob(swap.from, swap.id.as_str()).await?;
        let filter = doc! {
            "_id": object_id(swap.id), "blobId": swap.from, "lease.holder": swap.holder.as_str(),
        };
        let update = self.repoint(&swap);
        let mut tries = 1;
        loop {
            let answered = self.seeds.update_one(filter.clone(), update.clone()).await;
            let outcome = match self.stored(swap.id).await? {
                None => SaveOutcome::Gone,
                Some(seed) if seed.blob()? == swap.to => {
                    self.settle_blob(swap.to).await;
                    return Ok(SaveOutcome::Saved(SeedVersion(swap.to.to_hex())));
                }
                Some(seed) if seed.holder() != Some(swap.holder.as_str()) => SaveOutcome::NotHolder,
                Some(seed) if seed.blob()? != swap.from => {
                    SaveOutcome::Superseded { current: SeedVersion(seed.blob()?.to_hex()) }
                }
                // Still as it was: the update did not arrive, or the majority does not have it yet, or the lease went
                // away and came back before this reading. It can be made twice.
                Some(_) => match answered {
                    Err(error) if tries == TRIES || !is_passing(&error) => return Err(error.into()),
                    _ if tries < TRIES => {
                        tries += 1;
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    _ => {
                        let why = "its lease keeps changing hands".to_owned();
                        let id = swap.id.to_string();
                        return Err(StoreError::Conflict { what: "seed", id, why }.into());
                    }
                },
            };
            self.abandon_blob(swap.to).await;
            return Ok(outcome);
        }
    }

    fn repoint(&self, swap: &Swap<'_>) -> Document {
        let mut update = Update::default();
        update.set.insert("blobId", swap.to);
        update.set.insert("updatedAt", date(swap.now));
        let own = |key: &str| format!("metadata.{OWN_NOTES}.{key}");
        // Without a known account these stay stale, and the next reader derives all three.
        if let Some(account) = &swap.account {
            for (key, value) in notes(swap.to, swap.lineage.as_deref(), account) {
                update.set.insert(own(&key), value);
            }
        }
        swap.before.set_key(&mut update, self.archive_keys.writing().map(|(key, _)| key));
        self.stamp(&mut update, "lastRefreshedAt");
        update.into_document()
    }
}
