//! A login's document: what Python and we both know, and what lies under our one key of its `metadata`.
//!
//! ```text
//! metadata.optioCodex = {
//!   of: ObjectId,                  the blob that account and lineage were read from; another one makes them stale
//!   lineage: string | null,        see seed_archive::lineage
//!   account: {id, email, plan, kind},
//!   verdict: {of, recovery, reason}   why the document has its status, as long as that status is `of`
//! }
//! ```
//!
//! Readers here tolerate every field missing or of another kind (T-003), as a peer may have written it.

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, DateTime, Document, doc};
use serde_json::Value;

use super::Update;
use super::gridfs::key_of;
use super::keys::Keys;
use super::notes::{note, to_json};
use crate::clock::from_millis;
use crate::seeds::{KEY_NOTE, OWN_NOTES};
use crate::{
    Account, Holder, Result, SeedId, SeedPatch, SeedRow, SeedStatus, SeedVersion, StoreError, StoredLease,
};

/// A login as it was read, and what the server said of its lease.
pub(super) struct SeedDocument {
    pub(super) id: SeedId,
    pub(super) object: ObjectId,
    pub(super) document: Document,
    /// The lease has not ended, by the server's clock.
    pub(super) live: bool,
    /// When it was made, milliseconds since 1970.
    pub(super) created: i64,
}

impl SeedDocument {
    /// Reads `{seed, live, created}` as `Core::shown` answers it.
    pub(super) fn read(mut shown: Document) -> Result<Self> {
        let damaged = |why: &str| StoreError::Damaged { what: "seed".to_owned(), why: why.to_owned() };
        let Some(Bson::Document(document)) = shown.remove("seed") else {
            return Err(damaged("it is no document"));
        };
        let id = seed_id(&document)?;
        let object = object_id(&id);
        let created = shown.get_datetime("created").map_or(0, |at| at.timestamp_millis());
        Ok(Self { id, object, live: shown.get_bool("live").unwrap_or(false), created, document })
    }

    /// The blob it names.
    pub(super) fn blob(&self) -> Result<ObjectId> {
        self.document.get_object_id("blobId").map_err(|_| StoreError::Damaged {
            what: format!("seed {}", self.id),
            why: "it names no blob".to_owned(),
        })
    }

    /// Refuses a login that is encrypted with a key that is not at hand: nothing may be said of it (T-072).
    pub(super) fn check_readable(&self, keys: &Keys) -> Result<()> {
        match key_of(&self.document) {
            Some(key) if keys.sealer(key).is_none() => {
                Err(StoreError::Locked { what: format!("seed {}", self.id), key: key.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Has an update name the key of the blob that it points the document to, or no key. Where the notes are no
    /// document there is no place for it; the file says the same.
    pub(super) fn set_key(&self, update: &mut Update, key: Option<&str>) {
        let place = format!("metadata.{KEY_NOTE}");
        match (key, self.document.get("metadata")) {
            (Some(key), None | Some(Bson::Document(_))) => drop(update.set.insert(place, key)),
            (None, Some(Bson::Document(notes))) if notes.contains_key(KEY_NOTE) => {
                update.unset.insert(place, "");
            }
            _ => {}
        }
    }

    pub(super) fn holder(&self) -> Option<&str> {
        self.document.get_document("lease").ok()?.get_str("holder").ok()
    }

    fn metadata(&self) -> Option<&Document> {
        self.document.get_document("metadata").ok()
    }

    fn own(&self) -> Option<&Document> {
        self.metadata()?.get_document(OWN_NOTES).ok()
    }

    /// Whose login it is, if that is known of the present blob.
    pub(super) fn known_account(&self) -> Option<Account> {
        let own = self.own()?;
        let same = own.get_object_id("of").ok() == self.blob().ok();
        let account = own.get_document("account").ok().filter(|_| same)?;
        let text = |key: &str| account.get_str(key).ok().map(str::to_owned);
        Some(Account {
            id: text("id"),
            email: text("email"),
            plan: text("plan"),
            kind: text("kind").unwrap_or_default(),
        })
    }

    /// What a list shows, given whose login it is. One that is locked keeps its status, which is not ours to change,
    /// and says why it is of no use here.
    pub(super) fn row(&self, account: Account, keys: &Keys) -> Result<SeedRow> {
        let document = &self.document;
        let date =
            |field: &str| document.get_datetime(field).ok().map(|at| from_millis(at.timestamp_millis()));
        let created_at = from_millis(self.created);
        let (status, reason) = self.status();
        let status_reason = match (self.check_readable(keys), reason) {
            (Ok(()), reason) => reason,
            (Err(locked), None) => Some(locked.to_string()),
            (Err(locked), Some(reason)) => Some(format!("{locked}; {reason}")),
        };
        let lease = document.get_document("lease").ok();
        let lease = lease.and_then(|lease| {
            Some(StoredLease {
                holder: Holder::stored(lease.get_str("holder").ok()?),
                expires_at: from_millis(lease_end(lease).unwrap_or(0)),
                live: self.live,
            })
        });
        let held = document.get("lease").is_some_and(|lease| *lease != Bson::Null);
        let metadata = self.metadata().into_iter().flatten();
        Ok(SeedRow {
            id: self.id.clone(),
            pool: document.get_str("poolKey").ok().map(str::to_owned),
            status,
            status_reason,
            account,
            lease,
            dirty: held && !self.live,
            version: SeedVersion(self.blob()?.to_hex()),
            created_at,
            updated_at: date("updatedAt").unwrap_or(created_at),
            last_refreshed_at: date("lastRefreshedAt"),
            last_verified_at: date("lastVerifiedAt"),
            metadata: metadata
                .filter(|(key, _)| ![OWN_NOTES, KEY_NOTE].contains(&key.as_str()))
                .map(|(key, value)| (key.clone(), to_json(value)))
                .collect(),
        })
    }

    /// Python knows `dead` and everything else (T-004, T-086); what more there is holds while the status is the one it
    /// was noted with.
    fn status(&self) -> (SeedStatus, Option<String>) {
        let word = if self.document.get_str("status").is_ok_and(|status| status == "dead") {
            "dead"
        } else {
            "alive"
        };
        let verdict = self.own().and_then(|own| own.get_document("verdict").ok());
        let verdict = verdict.filter(|verdict| verdict.get_str("of").is_ok_and(|of| of == word));
        let reason = verdict.and_then(|v| v.get_str("reason").ok()).map(str::to_owned);
        let recovery = verdict.is_some_and(|v| v.get_bool("recovery").unwrap_or(false));
        let status = match (word, recovery) {
            ("dead", true) => SeedStatus::NeedsRecovery,
            ("dead", false) => SeedStatus::Dead,
            _ => SeedStatus::Alive,
        };
        (status, reason)
    }
}

/// A login's id as MongoDB has it.
pub(super) fn object_id(id: &SeedId) -> ObjectId {
    ObjectId::parse_str(id.as_str()).expect("a seed id is 24 hex digits, as an ObjectId is written")
}

/// The id of a login's document.
pub(super) fn seed_id(seed: &Document) -> Result<SeedId> {
    let id = seed.get_object_id("_id").ok().and_then(|id| id.to_hex().parse().ok());
    id.ok_or_else(|| StoreError::Damaged { what: "seed".to_owned(), why: "its id is no ObjectId".to_owned() })
}

/// The end of a lease in milliseconds since 1970, if it is one.
pub(super) fn lease_end(lease: &Document) -> Option<i64> {
    lease.get_datetime("expiresAt").ok().map(|end| end.timestamp_millis())
}

/// Our notes on a new credential.
pub(super) fn notes(of: ObjectId, lineage: Option<&str>, account: &Account) -> Document {
    doc! { "of": of, "lineage": lineage, "account": account_document(account) }
}

pub(super) fn account_document(account: &Account) -> Document {
    doc! {
        "id": account.id.as_deref(),
        "email": account.email.as_deref(),
        "plan": account.plan.as_deref(),
        "kind": account.kind.as_str(),
    }
}

/// The fields that a patch sets and removes, but for the stamps.
pub(super) fn changes(patch: SeedPatch) -> Result<(Document, Document)> {
    let (mut set, mut unset) = (Document::new(), Document::new());
    if let Some((status, reason)) = patch.status {
        let word = if status == SeedStatus::Alive { "alive" } else { "dead" };
        set.insert("status", word);
        let recovery = status == SeedStatus::NeedsRecovery;
        let verdict = doc! { "of": word, "recovery": recovery, "reason": reason };
        set.insert(format!("metadata.{OWN_NOTES}.verdict"), verdict);
    }
    match patch.pool {
        Some(Some(pool)) => drop(set.insert("poolKey", pool)),
        Some(None) => drop(unset.insert("poolKey", "")),
        None => {}
    }
    for (key, value) in patch.metadata {
        match value {
            Value::Null => drop(unset.insert(format!("metadata.{key}"), "")),
            value => drop(set.insert(format!("metadata.{key}"), note(&key, value)?)),
        }
    }
    Ok((set, unset))
}

/// A time as BSON has it.
pub(super) fn date(ms: i64) -> DateTime {
    DateTime::from_millis(ms)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(seed: Document, live: bool) -> SeedDocument {
        let created = date(5);
        SeedDocument::read(doc! { "seed": seed, "live": live, "created": created }).unwrap()
    }

    #[test]
    fn a_document_with_nothing_but_what_capture_writes_is_an_alive_free_clean_seed() {
        let seed = read(doc! { "_id": ObjectId::new(), "blobId": ObjectId::new() }, false);
        let row = seed.row(Account::default(), &Keys::default()).unwrap();
        assert_eq!((row.status, row.status_reason, row.pool), (SeedStatus::Alive, None, None));
        assert_eq!((row.lease, row.dirty, row.created_at), (None, false, row.updated_at));
        assert!(row.metadata.is_empty());
    }

    #[test]
    fn fields_of_another_kind_are_tolerated() {
        let odd = doc! {
            "_id": ObjectId::new(), "blobId": ObjectId::new(), "poolKey": 3, "status": "invented", "lease": "?",
            "metadata": { "when": date(0), "n": 1_i32 }, "updatedAt": "yesterday", "manifestVersion": 77,
        };
        let row = read(odd, false).row(Account::default(), &Keys::default()).unwrap();
        assert_eq!((row.status, row.pool, row.lease, row.dirty), (SeedStatus::Alive, None, None, true));
        assert_eq!(
            serde_json::json!(row.metadata),
            serde_json::json!({ "when": "1970-01-01T00:00:00Z", "n": 1 })
        );
    }

    #[test]
    fn a_reason_holds_only_with_the_status_it_was_given_for() {
        let mut seed = doc! { "_id": ObjectId::new(), "blobId": ObjectId::new() };
        let patch = |status| SeedPatch { status: Some((status, Some("why".into()))), ..Default::default() };
        let (set, _) = changes(patch(SeedStatus::NeedsRecovery)).unwrap();
        assert_eq!(set.get_str("status").unwrap(), "dead", "which is what Python understands (T-086)");
        let verdict = set.get_document(format!("metadata.{OWN_NOTES}.verdict")).unwrap().clone();
        seed.insert("metadata", doc! { OWN_NOTES: { "verdict": verdict } });
        seed.insert("status", "dead");
        let status = |seed: &Document| read(seed.clone(), false).status();
        assert_eq!(status(&seed), (SeedStatus::NeedsRecovery, Some("why".into())));
        seed.insert("status", "alive");
        assert_eq!(status(&seed), (SeedStatus::Alive, None), "Python said so since");
    }

    #[test]
    fn an_encrypted_login_is_locked_and_not_damaged() {
        let seed = doc! { "_id": ObjectId::new(), "metadata": { "enc": "key-7" } };
        let error = read(seed, false).check_readable(&Keys::default()).unwrap_err();
        assert!(matches!(&error, StoreError::Locked { key, .. } if key == "key-7"), "{error}");
    }

    #[test]
    fn a_documents_key_is_named_and_taken_away_wherever_there_is_a_place_for_it() {
        let update = |metadata: Option<Bson>, key| {
            let mut seed = doc! { "_id": ObjectId::new(), "blobId": ObjectId::new() };
            seed.extend(metadata.map(|notes| ("metadata".to_owned(), notes)));
            let mut update = Update::default();
            read(seed, false).set_key(&mut update, key);
            (update.set, update.unset)
        };
        let named = (doc! { "metadata.enc": "k" }, doc! {});
        assert_eq!(update(None, Some("k")), named);
        assert_eq!(update(Some(doc! { "enc": "old" }.into()), Some("k")), named);
        assert_eq!(update(Some(doc! { "enc": "old" }.into()), None), (doc! {}, doc! { "metadata.enc": "" }));
        // An update of a field below these would fail, and with it the save of a login.
        for odd in [Bson::Null, "text".into(), 3.into()] {
            assert_eq!(update(Some(odd), Some("k")), (doc! {}, doc! {}));
        }
        assert_eq!(update(Some(doc! {}.into()), None), (doc! {}, doc! {}));
    }
}
