//! The keys of the archives: one to seal with, if they are to be sealed, and those that open what was sealed before.
//!
//! Not the key of this machine (`DIR/key`): that one makes a service the owner of its sessions, so no two services may
//! have the same, and of this one they must.

use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use mongodb::bson::{Bson, Document, doc};

use super::call::Tried;
use super::gridfs::key_of;
use super::{Core, Options};
use crate::local::key;
use crate::sealed::{KEY_LEN, Sealer};
use crate::seeds::KEY_NOTE;
use crate::{Result, StoreError, seed_archive};

/// The file of the key in a service's directory, unless it is named.
const FILE: &str = "store-key";
/// Hex digits of a key's id: no two keys of a fleet have the same.
const ID_LENGTH: usize = 16;

/// The keys at hand.
#[derive(Default)]
pub(super) struct Keys {
    current: Option<Key>,
    old: Vec<Key>,
    /// New archives are sealed.
    encrypt: bool,
    /// Where the present one lies, or is to lie.
    path: PathBuf,
}

struct Key {
    /// Names the key where something is sealed with it. A digest: nobody gets from it to the key.
    id: String,
    sealer: Sealer,
}

impl Key {
    fn new(key: &[u8; KEY_LEN]) -> Self {
        let mut named = b"optio store key\0".to_vec();
        named.extend_from_slice(key);
        Self { id: seed_archive::sha256_hex(&named)[..ID_LENGTH].to_owned(), sealer: Sealer::new(key) }
    }
}

impl Keys {
    /// Reads the key files. One that is missing is an error if it was named and nothing will be sealed with it; the one
    /// to seal with may be missing still, see [`Core::settle_keys`]. Blocks.
    pub(super) fn load(dir: &Path, options: &Options) -> Result<Self> {
        let may_be_missing = options.encrypt || options.store_key.is_none();
        let path = options.store_key.clone().unwrap_or_else(|| dir.join(FILE));
        let absent = may_be_missing && !path.try_exists().unwrap_or(true);
        let read = |path: &Path| key::load(path, false).map(|key| Key::new(&key));
        Ok(Self {
            current: if absent { None } else { Some(read(&path)?) },
            old: options.old_store_keys.iter().map(|path| read(path)).collect::<Result<_>>()?,
            encrypt: options.encrypt,
            path,
        })
    }

    /// What new archives are sealed with, if they are.
    pub(super) fn writing(&self) -> Option<(&str, &Sealer)> {
        let key = self.current.as_ref().filter(|_| self.encrypt)?;
        Some((&key.id, &key.sealer))
    }

    /// What opens the archives that name this key.
    pub(super) fn sealer(&self, id: &str) -> Option<&Sealer> {
        self.all().find(|key| key.id == id).map(|key| &key.sealer)
    }

    /// What may stand as the key of a login that can be read here: nothing, or a key at hand.
    pub(super) fn readable(&self) -> Vec<Bson> {
        let ids = self.all().map(|key| Bson::String(key.id.clone()));
        std::iter::once(Bson::Null).chain(ids).collect()
    }

    fn all(&self) -> impl Iterator<Item = &Key> {
        self.current.iter().chain(&self.old)
    }
}

impl Core {
    /// Makes the key that is missing, unless something is sealed in the database already: then it is with somebody
    /// else, and with another one the fleet would fall apart. Says in the log which logins cannot be read here.
    pub(super) async fn settle_keys(&mut self) -> Result<()> {
        let what = "looking for the keys in use";
        let strange = self.limited(what, self.limit, self.strange_keys()).await?;
        if self.archive_keys.encrypt && self.archive_keys.current.is_none() {
            let known = match strange.first() {
                Some(key) => Some(key.clone()),
                None => self.limited(what, self.limit * 3, self.any_sealed_file()).await?,
            };
            if let Some(key) = known {
                let why = format!(
                    "it is missing, and the database has archives that are sealed with the key {key}: copy the file from \
                     the service that made them"
                );
                return Err(StoreError::Damaged { what: self.named_key_file(), why });
            }
            let path = self.archive_keys.path.clone();
            let made = self.aside("making the store's key", move || key::load(&path, true)).await;
            self.archive_keys.current = Some(Key::new(&made.map_err(|failure| failure.named(what))?));
            tracing::info!(file = %self.archive_keys.path.display(), "made the key of the store, each service on it needs a copy");
        }
        for key in strange {
            tracing::warn!(key, "logins are encrypted with a key that this service does not have");
        }
        Ok(())
    }

    fn named_key_file(&self) -> String {
        format!("key file {}", self.archive_keys.path.display())
    }

    /// Keys that logins name and that are not at hand.
    async fn strange_keys(&self) -> Tried<Vec<String>> {
        let place = format!("metadata.{KEY_NOTE}");
        let known = self.archive_keys.readable();
        let grouped = vec![
            doc! { "$match": { place.as_str(): { "$nin": known } } },
            doc! { "$group": { "_id": format!("${place}") } },
        ];
        let found: Vec<Document> = self.seeds.aggregate(grouped).await?.try_collect().await?;
        Ok(found.iter().map(|key| key.get_str("_id").unwrap_or("unknown").to_owned()).collect())
    }

    /// The key of some archive, of whichever prefix and kind.
    async fn any_sealed_file(&self) -> Tried<Option<String>> {
        let sealed = doc! { format!("metadata.{KEY_NOTE}"): { "$ne": null } };
        let found = self.files.find_one(sealed).projection(doc! { "metadata": 1 }).await?;
        Ok(found.as_ref().and_then(key_of).map(str::to_owned))
    }
}
