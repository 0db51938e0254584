//! The real database, in the ways a test may treat it.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use mongodb::{Collection, Database};
use optio_testkit::{LIMIT, Mongod, TestDatabase, wait_until};

/// A frozen database must not answer within this; a thawed one answers in a hundredth of it.
const SILENCE: Duration = Duration::from_millis(300);

async fn collection(mongod: &Mongod) -> (Database, Collection<Document>) {
    let database = mongod.database("kit").await;
    let collection = database.collection("things");
    (database, collection)
}

async fn count(collection: &Collection<Document>) -> u64 {
    collection.count_documents(doc! {}).await.expect("a running mongod counts")
}

#[tokio::test]
async fn a_database_is_a_replica_set_that_takes_majority_writes_in_transactions() {
    let mongod = Mongod::start().await;
    let client = mongod.client().await;
    let things = client.database("kit").collection::<Document>("things");
    things.insert_one(doc! { "_id": 0 }).await.expect("the default is a majority write");

    let mut session = client.start_session().await.expect("a replica set has sessions");
    for commit in [true, false] {
        session.start_transaction().await.expect("a replica set has transactions");
        things.insert_one(doc! { "commit": commit }).session(&mut session).await.expect("it takes writes");
        if commit {
            session.commit_transaction().await.expect("nobody is in the way");
        } else {
            session.abort_transaction().await.expect("nobody is in the way");
        }
    }
    assert_eq!(count(&things).await, 2);
    let version =
        client.database("kit").run_command(doc! { "buildInfo": 1 }).await.expect("it says what it is");
    let version = version.get_str("version").expect("it has a version");
    assert!(
        version.split('.').next().and_then(|major| major.parse().ok()) >= Some(5),
        "{version} is too old"
    );
}

#[tokio::test]
async fn what_was_written_survives_a_stop_and_a_kill() {
    let mongod = Mongod::start().await;
    let uri = mongod.uri();
    let (_, things) = collection(&mongod).await;

    things.insert_one(doc! { "_id": 1 }).await.expect("it runs");
    let first = mongod.process();
    mongod.stop().await;
    assert!(!first.is_alive());
    mongod.restart().await;
    assert_eq!(count(&things).await, 1, "the client finds it again by itself");

    things.insert_one(doc! { "_id": 2 }).await.expect("it runs again");
    let second = mongod.process();
    mongod.kill_9();
    assert!(!second.is_alive());
    mongod.restart().await;
    assert_eq!(count(&things).await, 2);

    mongod.restart().await;
    assert_eq!(count(&things).await, 2, "a running one is stopped first");
    assert_eq!(mongod.uri(), uri);
}

#[tokio::test]
async fn a_frozen_database_answers_nobody_until_it_is_thawed() {
    let mongod = Mongod::start().await;
    let (database, things) = collection(&mongod).await;
    things.insert_one(doc! { "_id": 1 }).await.expect("it runs");

    mongod.freeze();
    let ping = tokio::time::timeout(SILENCE, database.run_command(doc! { "ping": 1 })).await;
    assert!(ping.is_err(), "it answered {ping:?}");
    mongod.thaw();

    wait_until("it answers again", LIMIT, || async { things.count_documents(doc! {}).await }).await;
}

#[tokio::test]
async fn a_dropped_database_leaves_no_process_even_when_it_was_frozen() {
    let mongod = Mongod::start().await;
    let process = mongod.process();
    mongod.freeze();
    drop(mongod);
    assert!(!process.is_alive());
}

#[tokio::test]
async fn databases_of_tests_are_on_one_server_and_do_not_see_each_other() {
    let (one, other) = (TestDatabase::new().await, TestDatabase::new().await);
    let (here, there) = (one.open().await, other.open().await);
    let things = |database: &Database| database.collection::<Document>("things");
    things(&here).insert_one(doc! { "_id": 1 }).await.expect("it takes writes");
    assert_eq!((count(&things(&here)).await, count(&things(&there)).await), (1, 0));

    let process = async |database: &Database| {
        let status = database.run_command(doc! { "serverStatus": 1 }).await.expect("it says how it is");
        (status.get("host").cloned(), status.get("pid").cloned())
    };
    assert_eq!(process(&here).await, process(&there).await);
}

#[tokio::test]
async fn a_server_without_a_set_stores_and_has_no_transactions() {
    let mongod = Mongod::start_without_a_set().await;
    let client = mongod.client().await;
    let things = client.database("kit").collection::<Document>("things");
    things.insert_one(doc! { "_id": 0 }).await.expect("it takes writes");
    let mut session = client.start_session().await.expect("it has sessions");
    session.start_transaction().await.expect("nothing was sent yet");
    things
        .insert_one(doc! {})
        .session(&mut session)
        .await
        .expect_err("a server by itself has no transactions");
}
