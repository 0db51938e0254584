//! Two seeds of one single-use login strand each other (INV-36): how an import sees that a login is stored already,
//! also when Python stored it, and also when somebody else is importing it at this moment.

use futures_util::{StreamExt, TryStreamExt, stream};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Document, doc};

use super::Core;
use super::call::{Failure, Tried, again, is_duplicate};
use super::documents::{SeedDocument, notes};
use crate::seeds::{OWN_NOTES, SEED_LIMIT};
use crate::{Account, SeedFiles, SeedId, StoreError, seed_archive};

/// Logins that are read at once to find out whose they are.
const READ_AT_ONCE: usize = 4;
/// How long an import may hold its claim, in milliseconds; an import that takes longer has failed (it has a limit).
const CLAIM_TTL: i64 = 60_000;

impl Core {
    /// Reserves a lineage for an import. Nobody else imports it until [`Core::drop_claim`], or for [`CLAIM_TTL`].
    pub(super) async fn claim(&self, lineage: &str, seed: &SeedId) -> Tried<()> {
        let ended = doc! { "$lte": ["$at", { "$subtract": [self.now(), CLAIM_TTL] }] };
        self.claims.delete_one(doc! { "_id": lineage, "$expr": ended }).await?;
        // Makes one where there is none, renews our own, and collides with anybody else's.
        let mine = doc! { "_id": lineage, "seed": seed.as_str() };
        let claim = vec![doc! { "$set": { "at": self.now() } }];
        let claimed = self.claims.update_one(mine, claim).upsert(true).await;
        match claimed {
            Err(error) if is_duplicate(&error) => {
                let other = self.claims.find_one(doc! { "_id": lineage }).await?;
                let other = other.as_ref().and_then(|claim| claim.get_str("seed").ok());
                Err(clone_of(other.unwrap_or("being imported")))
            }
            done => done.map(drop).map_err(Failure::from),
        }
    }

    /// Lets a lineage go: it is stored now, or not at all.
    pub(super) async fn drop_claim(&self, lineage: &str, seed: &SeedId) {
        let mine = doc! { "_id": lineage, "seed": seed.as_str() };
        if let Err(error) = self.claims.delete_one(mine).await {
            tracing::debug!(error = %error.kind, "the claim on a lineage will run out by itself");
        }
    }

    /// Refuses a lineage that a stored login has.
    pub(super) async fn check_twin(&self, lineage: &str) -> Tried<()> {
        let stale = doc! { "$expr": { "$ne": [format!("$metadata.{OWN_NOTES}.of"), "$blobId"] } };
        let unread = self.shown(vec![doc! { "$match": stale }], vec![]).await?;
        let mut known = stream::iter(unread)
            .map(|seed| async move { (self.derive(&seed).await.and_then(|(_, lineage)| lineage), seed.id) })
            .buffer_unordered(READ_AT_ONCE);
        while let Some((found, id)) = known.next().await {
            if found.as_deref() == Some(lineage) {
                return Err(clone_of(id.as_str()));
            }
        }
        let twin = doc! { format!("metadata.{OWN_NOTES}.lineage"): lineage };
        let twin =
            again(|| async { self.seeds.find_one(twin.clone()).projection(doc! { "_id": 1 }).await }).await?;
        match twin.and_then(|seed| seed.get_object_id("_id").ok()) {
            None => Ok(()),
            Some(id) => Err(clone_of(&id.to_hex())),
        }
    }

    /// Reads off a stored credential whose it is, and notes it beside that blob's id for the next time. `None` when it
    /// cannot be read: a list of seeds must not fail because of one of them.
    pub(super) async fn derive(&self, seed: &SeedDocument) -> Option<(Account, Option<String>)> {
        let read = async {
            seed.check_readable(&self.archive_keys)?;
            let blob = seed.blob()?;
            let archive = self.read_file(blob, SEED_LIMIT).await?;
            let account_of = self.account_of;
            let read = self.aside("reading a login", move || {
                let files = seed_archive::decode(&archive)?;
                let auth = files.0.get(SeedFiles::AUTH);
                Ok((
                    auth.map(|auth| account_of(auth)).unwrap_or_default(),
                    auth.and_then(|a| seed_archive::lineage(a)),
                ))
            });
            Ok::<_, Failure>((blob, read.await?))
        };
        let (blob, (account, lineage)) = match read.await {
            Ok(read) => read,
            Err(failure) => {
                let error = failure.named("reading a login");
                tracing::warn!(seed = %seed.id, %error, "whose login it is cannot be read");
                return None;
            }
        };
        self.remember(seed.object, blob, lineage.as_deref(), &account).await;
        Some((account, lineage))
    }

    async fn remember(&self, seed: ObjectId, blob: ObjectId, lineage: Option<&str>, account: &Account) {
        let mut set = Document::new();
        for (key, value) in notes(blob, lineage, account) {
            set.insert(format!("metadata.{OWN_NOTES}.{key}"), value);
        }
        // Without a stamp: nothing of the login has changed. Not if it has another blob by now.
        let noted = self.seeds.update_one(doc! { "_id": seed, "blobId": blob }, doc! { "$set": set }).await;
        if let Err(error) = noted {
            tracing::debug!(%seed, error = %error.kind, "whose login it is will be read again");
        }
    }

    /// Logins with what only the server can say of them. `after` comes behind the fields it may use.
    pub(super) async fn shown(
        &self,
        matching: Vec<Document>,
        after: Vec<Document>,
    ) -> Tried<Vec<SeedDocument>> {
        let show = doc! { "$project": {
            "_id": 0,
            "seed": "$$ROOT",
            "live": { "$not": self.free() },
            "created": { "$ifNull": ["$createdAt", { "$toDate": "$_id" }] },
        } };
        let pipeline: Vec<_> = matching.into_iter().chain([show]).chain(after).collect();
        let found: Vec<Document> =
            again(|| async { self.seeds.aggregate(pipeline.clone()).await?.try_collect().await }).await?;
        Ok(found.into_iter().map(SeedDocument::read).collect::<crate::Result<_>>()?)
    }
}

fn clone_of(id: &str) -> Failure {
    let why = "it holds the same login; two copies of a single-use login strand each other".to_owned();
    StoreError::Conflict { what: "seed", id: id.to_owned(), why }.into()
}
