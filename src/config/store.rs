//! Where logins, snapshots and records are kept.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use super::{Options, absolute};

/// The prefix of a deployment's collections unless it is named; a Python deployment has the same (T-001).
const PREFIX: &str = "optio";

/// Where logins, snapshots and records are kept.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreChoice {
    /// In the data directory.
    Embedded,
    /// In a MongoDB, which several services and a Python deployment may share.
    Mongo {
        /// Its connection string, which names the database and may hold a password.
        uri: String,
        /// Begins the names of this deployment's collections.
        prefix: String,
        /// The same for the logins: that of the Python deployment whose logins are shared (T-252).
        seed_prefix: String,
        /// The same for the snapshots.
        snapshot_prefix: String,
        /// Whether logins and snapshots are encrypted, and with what.
        encryption: Encryption,
    },
}

/// Whether logins and snapshots in a MongoDB are encrypted, and with what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encryption {
    /// Those that are written from now on are.
    pub on: bool,
    /// The file of the key, absolute; without one `<data_dir>/store-key`.
    pub key: Option<PathBuf>,
    /// Files of keys that were in use before, absolute.
    pub old_keys: Vec<PathBuf>,
}

impl StoreChoice {
    pub(super) fn of(options: &Options) -> Result<Self> {
        let store = options.store.as_ref().map_or("embedded", |store| &store.0);
        let named = [
            ("prefix", &options.prefix),
            ("seed_prefix", &options.seed_prefix),
            ("snapshot_prefix", &options.snapshot_prefix),
        ];
        if store == "embedded" {
            if let Some((key, _)) = named.iter().find(|(_, prefix)| prefix.is_some()) {
                bail!(
                    "{key}: the embedded store has no collections to name; leave it out, or name a MongoDB as store"
                );
            }
            let keys = [
                ("encrypt_store", options.encrypt_store.is_some()),
                ("store_key", options.store_key.is_some()),
                ("old_store_keys", options.old_store_keys.is_some()),
            ];
            if let Some((key, _)) = keys.iter().find(|(_, given)| *given) {
                bail!(
                    "{key}: the embedded store is always encrypted, with the key beside it; leave it out, or name a MongoDB as \
                     store"
                );
            }
            return Ok(Self::Embedded);
        }
        // The address may carry a password, so none of these shows it.
        let address = store.strip_prefix("mongodb://").or_else(|| store.strip_prefix("mongodb+srv://"));
        match address {
            Some(rest) => ensure!(
                rest.split_once('/').is_some_and(|(_, path)| !path
                    .split('?')
                    .next()
                    .unwrap_or("")
                    .is_empty()),
                "store: the MongoDB address must name a database, as in mongodb://127.0.0.1:27017/optio"
            ),
            None if store.contains("://") => {
                bail!(
                    "store: its kind is not known; it is \"embedded\", or a mongodb:// or mongodb+srv:// address"
                )
            }
            None => bail!("store: {store:?} is not known; it is \"embedded\" or a mongodb:// address"),
        }
        let old_keys = options.old_store_keys.iter().flatten();
        let encryption = Encryption {
            on: options.encrypt_store.unwrap_or(false),
            key: options.store_key.as_ref().map(|path| absolute("store_key", path)).transpose()?,
            old_keys: old_keys.map(|path| absolute("old_store_keys", path)).collect::<Result<_>>()?,
        };
        let prefix = options.prefix.clone().unwrap_or_else(|| PREFIX.to_owned());
        Ok(Self::Mongo {
            uri: store.to_owned(),
            seed_prefix: options.seed_prefix.clone().unwrap_or_else(|| prefix.clone()),
            snapshot_prefix: options.snapshot_prefix.clone().unwrap_or_else(|| prefix.clone()),
            prefix,
            encryption,
        })
    }
}

impl std::fmt::Debug for StoreChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedded => f.write_str("Embedded"),
            Self::Mongo { prefix, seed_prefix, snapshot_prefix, encryption, .. } => {
                let mut shown = f.debug_struct("Mongo");
                shown.field("prefix", prefix).field("seed_prefix", seed_prefix);
                shown.field("snapshot_prefix", snapshot_prefix).field("encryption", encryption);
                shown.finish_non_exhaustive()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn choice(store: &str, prefix: Option<&str>) -> Result<StoreChoice> {
        let prefix = prefix.map(str::to_owned);
        StoreChoice::of(&Options { store: Some(store.into()), prefix, ..Options::default() })
    }

    #[test]
    fn one_prefix_is_enough_and_each_can_be_another() {
        let options = Options {
            store: Some("mongodb://db/fleet".into()),
            prefix: Some("rust".to_owned()),
            seed_prefix: Some("optio".to_owned()),
            ..Options::default()
        };
        let StoreChoice::Mongo { prefix, seed_prefix, snapshot_prefix, .. } =
            StoreChoice::of(&options).unwrap()
        else {
            panic!("an address is no directory");
        };
        assert_eq!(
            (prefix.as_str(), seed_prefix.as_str(), snapshot_prefix.as_str()),
            ("rust", "optio", "rust")
        );
    }

    #[test]
    fn a_password_is_never_shown() {
        let shown = format!("{:?}", choice("mongodb://ada:hunter2@db/fleet", None).unwrap());
        assert!(shown.contains("optio") && !shown.contains("hunter2"), "{shown}");
        for wrong in ["mongodb://ada:hunter2@db", "mongodb://ada:hunter2@db/?w=1", "redis://ada:hunter2@db/0"]
        {
            let said = format!("{:#}", choice(wrong, None).unwrap_err());
            assert!(said.starts_with("store:") && !said.contains("hunter2"), "{said}");
        }
        let options = Options { store: Some("mongodb://ada:hunter2@db/x".into()), ..Options::default() };
        assert!(!format!("{options:?}").contains("hunter2"));
    }

    #[test]
    fn logins_in_a_mongodb_are_encrypted_when_that_is_said_and_keys_may_be_there_without() {
        let encryption = |toml: &str| {
            let options: Options = toml::from_str(toml).unwrap();
            match StoreChoice::of(&options).unwrap() {
                StoreChoice::Mongo { encryption, .. } => encryption,
                StoreChoice::Embedded => panic!("an address is no directory"),
            }
        };
        let store = "store = 'mongodb://db/fleet'";
        assert_eq!(encryption(store), Encryption::default(), "off, for Python");
        assert_eq!(
            encryption(&format!("{store}\nencrypt_store = true\nold_store_keys = ['/k/1', '/k/2']")),
            Encryption { on: true, key: None, old_keys: vec!["/k/1".into(), "/k/2".into()] }
        );
        let reading = encryption(&format!("{store}\nstore_key = 'here'"));
        assert!(!reading.on && reading.key.unwrap().is_absolute());
    }

    #[test]
    fn what_does_not_fit_is_refused_by_its_key() {
        let said = |store, prefix| format!("{:#}", choice(store, prefix).unwrap_err());
        assert!(said("etcd", None).contains("\"etcd\" is not known"));
        assert!(said("embedded", Some("optio")).starts_with("prefix: the embedded store"));
        for key in ["encrypt_store = false", "store_key = 'k'", "old_store_keys = []"] {
            let options: Options = toml::from_str(key).unwrap();
            let said = format!("{:#}", StoreChoice::of(&options).unwrap_err());
            assert!(said.contains("is always encrypted") && key.starts_with(said.split(':').next().unwrap()));
        }
    }
}
