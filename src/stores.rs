//! The store that the configuration names, opened.

use std::sync::Arc;

use anyhow::{Context, Result};
use optio_store::embedded::{self, Embedded};
use optio_store::mongo::{self, Mongo};
use optio_store::{DiskJournal, DiskJournalOptions, Store};

use crate::config::{Config, StoreChoice};

/// An open store, whichever it is. The journal lies on this machine's disk either way.
#[derive(Clone)]
pub(crate) enum OpenStore {
    /// In the data directory.
    Embedded(Embedded),
    /// In a MongoDB.
    Mongo(Mongo),
}

impl OpenStore {
    /// Opens the store and then the journal: the store's lock is the one that says who else is there.
    pub(crate) async fn open(config: &Config) -> Result<(Self, Arc<DiskJournal>)> {
        let dir = config.data_dir.clone();
        let in_dir = || format!("data directory {}", config.data_dir.display());
        let store = match &config.store {
            StoreChoice::Embedded => {
                let dir = dir.clone();
                let opening = move || Embedded::open(&dir, embedded::Options::default());
                let opened = tokio::task::spawn_blocking(opening).await;
                Self::Embedded(opened.context("opening the store was interrupted")?.with_context(in_dir)?)
            }
            StoreChoice::Mongo { uri, prefix, seed_prefix, snapshot_prefix, encryption } => {
                let options = mongo::Options {
                    prefix: prefix.clone(),
                    seed_prefix: Some(seed_prefix.clone()),
                    snapshot_prefix: Some(snapshot_prefix.clone()),
                    encrypt: encryption.on,
                    store_key: encryption.key.clone(),
                    old_store_keys: encryption.old_keys.clone(),
                    account_of: optio_actors::account_in,
                    ..mongo::Options::default()
                };
                Self::Mongo(Mongo::open(uri, &dir, options).await.context("MongoDB as the store")?)
            }
        };
        let journal = move || DiskJournal::open(dir.join("journal"), DiskJournalOptions::default());
        let journal = tokio::task::spawn_blocking(journal).await;
        Ok((store, journal.context("opening the journal was interrupted")?.with_context(in_dir)?))
    }

    /// The store for the actors.
    pub(crate) fn store(&self, journal: Arc<DiskJournal>) -> Store {
        match self {
            Self::Embedded(store) => store.store(journal),
            Self::Mongo(store) => store.store(journal),
        }
    }

    /// Deletes the blobs that nothing names any more, and answers how many there were.
    pub(crate) async fn sweep(&self) -> optio_store::Result<usize> {
        match self {
            Self::Embedded(store) => store.sweep().await,
            Self::Mongo(store) => store.sweep().await,
        }
    }
}
