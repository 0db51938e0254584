//! A database of a real mongod for the tests of the MongoDB backend, and the store in it.

#![allow(clippy::unwrap_used, dead_code, reason = "for several test binaries; none uses all of it")]

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::io::AsyncWriteExt;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Document, doc};
use mongodb::{Client, Database};
use optio_store::memory::MemoryStore;
use optio_store::mongo::{Mongo, Options};
use optio_store::suite::{DamageRecord, Harness, no_journal};
use optio_store::{ManualClock, SessionId};
use optio_testkit::{Mongod, TestDatabase};

/// A database of a test's own, and the store in it.
pub(crate) struct World {
    pub(crate) connection: String,
    pub(crate) db: Database,
    pub(crate) dir: tempfile::TempDir,
    server: Server,
}

enum Server {
    Shared { _database: TestDatabase },
    Own(Mongod),
}

impl World {
    /// A new database on the server that all tests share.
    pub(crate) async fn new() -> Self {
        let database = TestDatabase::new().await;
        let (connection, db) = (database.uri().to_owned(), database.open().await);
        let dir = tempfile::tempdir().unwrap();
        Self { connection, db, dir, server: Server::Shared { _database: database } }
    }

    /// A database on a server of the test's own, which it may stop, kill and freeze.
    pub(crate) async fn alone() -> Self {
        Self::on(Mongod::start().await).await
    }

    /// A database on a server without a replica set.
    pub(crate) async fn without_a_set() -> Self {
        Self::on(Mongod::start_without_a_set().await).await
    }

    async fn on(mongod: Mongod) -> Self {
        let connection = mongod.uri_of("optio_test");
        let db = Client::with_uri_str(&connection).await.unwrap().database("optio_test");
        Self { connection, db, dir: tempfile::tempdir().unwrap(), server: Server::Own(mongod) }
    }

    /// The server, if it is the test's own.
    pub(crate) fn mongod(&self) -> &Mongod {
        match &self.server {
            Server::Own(mongod) => mongod,
            Server::Shared { .. } => panic!("nobody stops the server that others use"),
        }
    }

    /// The store, on the server's clock.
    pub(crate) async fn open(&self) -> Mongo {
        self.open_with("store", Options::default()).await
    }

    /// A store of a service whose directory has this name.
    pub(crate) async fn open_with(&self, service: &str, options: Options) -> Mongo {
        Mongo::open(&self.connection, &self.dir.path().join(service), options).await.unwrap()
    }

    pub(crate) fn collection(&self, name: &str) -> mongodb::Collection<Document> {
        self.db.collection(name)
    }

    /// How many documents a collection has.
    pub(crate) async fn count(&self, name: &str) -> u64 {
        self.collection(name).count_documents(doc! {}).await.unwrap()
    }

    /// Writes a file as the driver does, which is not how we do it.
    pub(crate) async fn upload(&self, name: &str, bytes: &[u8]) -> ObjectId {
        let mut stream = self.db.gridfs_bucket(None).open_upload_stream(name).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.close().await.unwrap();
        stream.id().as_object_id().unwrap()
    }

    /// The only document of a collection.
    pub(crate) async fn only(&self, name: &str) -> Document {
        let all = self.collection(name);
        assert_eq!(all.count_documents(doc! {}).await.unwrap(), 1, "{name}");
        all.find_one(doc! {}).await.unwrap().unwrap()
    }
}

/// The store on a clock that the test moves.
pub(crate) async fn harness(clock: Arc<ManualClock>, options: Options) -> Harness {
    let world = World::new().await;
    let options = Options { clock: Some(clock.clone()), ..options };
    let store = world.open_with("store", options).await.store(no_journal());
    let records = world.collection("optio_codex_sessions");
    let damage_record = Box::new(move |id: SessionId| -> Pin<Box<dyn Future<Output = ()>>> {
        let records = records.clone();
        Box::pin(async move {
            let damaged = records.update_one(doc! { "_id": id.as_str() }, doc! { "$unset": { "host": "" } });
            assert_eq!(damaged.await.unwrap().modified_count, 1);
        })
    });
    Harness { store, clock, damage_record, keep: Box::new(world) as Box<dyn Any> }
}

/// Damages records of a store in memory.
pub(crate) fn damages(memory: MemoryStore) -> DamageRecord {
    Box::new(move |id| {
        memory.damage_record(&id);
        Box::pin(std::future::ready(()))
    })
}
