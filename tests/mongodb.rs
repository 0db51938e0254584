//! The service on a real MongoDB: alone, with another one on the same database, and while the database is away.

mod common;

use std::time::{Duration, Instant};

use common::{END, answers, assert_ordered, import, seeded, service, step};
use optio_testkit::mongod::mongodb::bson::oid::ObjectId;
use optio_testkit::mongod::mongodb::bson::{Document, doc};
use optio_testkit::{
    Client, FakeOauth, LIMIT, MockModel, Mongod, ServerSetup, Session, TestServer, auth, wait_until,
};
use serde_json::{Value, json};

const DATABASE: &str = "fleet";

/// A lease that nobody renews is over by then; the agent has to be gone before (INV-08).
const LEASE: Duration = Duration::from_secs(60);

fn on(mongod: &Mongod, oauth: &FakeOauth) -> ServerSetup {
    let setup = service().env("OPTIO_CODEX_STORE", mongod.uri_of(DATABASE));
    setup.env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", oauth.url())
}

async fn readiness(client: &Client) -> Value {
    client.get("/readyz").await
}

async fn wait_for_readiness(client: &Client, status: &str) {
    wait_until(format!("the service is {status}"), LIMIT, || async {
        let ready = readiness(client).await;
        if ready["status"] == status { Ok(()) } else { Err(ready) }
    })
    .await;
}

/// Makes codex refresh its login: the provider says that the access token is not good, again and again.
async fn rotate(session: &Session, oauth: &FakeOauth) -> String {
    let before = oauth.grants().len();
    let mut events = session.events(session.get().await["last_event"].as_u64()).await;
    session.turn("@http 401").await;
    events.until_named("turn.completed", LIMIT).await;
    let grants = oauth.grants();
    assert!(grants.len() > before, "codex did not refresh");
    grants.last().expect("there is one more than before").refresh_token.clone()
}

/// The login on the disk of a live session.
fn planted(server: &TestServer, session: &Session) -> Option<String> {
    let file = server.task_root().join(&session.id).join("workdir/home/.codex/auth.json");
    auth::refresh_token_of(&std::fs::read(file).ok()?)
}

/// A session with a login, on a database of its own.
struct Leased {
    model: MockModel,
    oauth: FakeOauth,
    mongod: Mongod,
    server: TestServer,
    client: Client,
    seed: String,
    session: Session,
}

impl Leased {
    async fn start() -> Self {
        let (model, oauth, mongod) = (MockModel::start(), FakeOauth::start(), Mongod::start().await);
        let server = on(&mongod, &oauth).start().await;
        let client = server.client();
        let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;
        let session = client.create(seeded(&seed)).await;
        session.wait_idle().await;
        Self { model, oauth, mongod, server, client, seed, session }
    }
}

async fn seed_row(mongod: &Mongod, seed: &str) -> Document {
    let id: ObjectId = seed.parse().expect("a seed's id is an object id");
    let seeds = mongod.database(DATABASE).await.collection::<Document>("optio_codex_seeds");
    let row = seeds.find_one(doc! { "_id": id }).await.expect("the database answers");
    row.expect("the seed is there")
}

#[actix::test]
async fn a_session_lives_stops_and_is_resumed_on_a_database_that_python_can_read() {
    let Leased { model: _model, oauth, mongod, server, client, seed, session } = Leased::start().await;
    assert_eq!(readiness(&client).await, json!({ "status": "ready", "problems": [] }));
    let row = seed_row(&mongod, &seed).await;
    assert_eq!(row.get_str("poolKey").expect("it is in a pool"), "team");
    let holder = row.get_document("lease").and_then(|lease| lease.get_str("holder")).expect("it is leased");
    assert!(holder.starts_with(&session.id), "{holder}");

    let mut events = session.events(None).await;
    session.turn("@call exec_command {\"cmd\":\"echo work > kept.txt\"}").await;
    events.until_named("turn.completed", LIMIT).await;
    let newest = rotate(&session, &oauth).await;
    let ended = session.end(END).await;
    assert_ordered(&ended);
    assert_eq!(step(&ended, "release_lease")["state"], "done", "{ended:#}");
    assert!(seed_row(&mongod, &seed).await.get("lease").is_some_and(|lease| lease.as_null().is_some()));

    let database = mongod.database(DATABASE).await;
    let snapshots = database.collection::<Document>("optio_codex_session_snapshots");
    let snapshot = snapshots.find_one(doc! { "processId": &session.id }).await.expect("the database answers");
    let mut keys: Vec<_> = snapshot.as_ref().expect("it is stored").keys().cloned().collect();
    keys.sort();
    assert_eq!(keys, ["_id", "capturedAt", "endState", "processId", "sessionId", "workdirBlobId"]);

    // A restart finds its own sessions and nobody else's.
    server.restart().await;
    session.resume().await;
    events.until_named("session.ended", END).await;
    session.wait_idle().await;
    assert_eq!(planted(&server, &session).as_deref(), Some(newest.as_str()), "the saved login was planted");
    let kept = server.task_root().join(&session.id).join("workdir/kept.txt");
    assert_eq!(std::fs::read_to_string(kept).expect("the file is back"), "work\n");
    session.end(END).await;
    assert_eq!(oauth.reuses(), Vec::<String>::new());
    assert!(!server.output().contains("mongodb://"), "the address is never logged");
}

/// Whether these bytes stand in any chunk of the bucket, as it lies in the database.
async fn bucket_holds(mongod: &Mongod, needle: &str) -> bool {
    let chunks = mongod.database(DATABASE).await.collection::<Document>("fs.chunks");
    let mut found = chunks.find(doc! {}).await.expect("the database answers");
    while found.advance().await.expect("the database answers") {
        let chunk = found.deserialize_current().expect("a chunk is a document");
        let bytes = chunk.get_binary_generic("data").expect("a chunk holds bytes");
        // Not packed, these would be found as they are; packed, the archive would begin like this.
        if bytes.starts_with(&[0x1f, 0x8b]) || bytes.windows(needle.len()).any(|w| w == needle.as_bytes()) {
            return true;
        }
    }
    false
}

#[actix::test]
async fn a_session_lives_stops_and_is_resumed_on_an_encrypted_database() {
    let (model, oauth, mongod) = (MockModel::start(), FakeOauth::start(), Mongod::start().await);
    let server = on(&mongod, &oauth).args(["--encrypt-store"]).start().await;
    let client = server.client();
    let login = oauth.login("acct-1");
    let seed = import(&client, &model, &login.auth_json()).await;
    let session = client.create(seeded(&seed)).await;
    session.wait_idle().await;
    let mut events = session.events(None).await;
    session.turn("@call exec_command {\"cmd\":\"echo work-of-mine > kept.txt\"}").await;
    events.until_named("turn.completed", LIMIT).await;
    let newest = rotate(&session, &oauth).await;
    let ended = session.end(END).await;
    assert_ordered(&ended);
    assert_eq!(step(&ended, "capture_snapshot")["state"], "done", "{ended:#}");
    assert_eq!(step(&ended, "wipe")["state"], "done", "{ended:#}");

    let row = seed_row(&mongod, &seed).await;
    let key = row.get_document("metadata").and_then(|notes| notes.get_str("enc")).expect("it names its key");
    for needle in ["work-of-mine", "refresh_token", &newest] {
        assert!(!bucket_holds(&mongod, needle).await, "{needle}");
    }
    // The login of before, the one of now and the workdir; each says which key opens it.
    let files = mongod.database(DATABASE).await.collection::<Document>("fs.files");
    let sealed = files.count_documents(doc! { "metadata.enc": key }).await.expect("the database answers");
    assert!(sealed >= 3, "{sealed}");
    assert_eq!(files.count_documents(doc! {}).await.expect("the database answers"), sealed);

    server.restart().await;
    session.resume().await;
    events.until_named("session.ended", END).await;
    session.wait_idle().await;
    assert_eq!(planted(&server, &session).as_deref(), Some(newest.as_str()), "the saved login was planted");
    let kept = server.task_root().join(&session.id).join("workdir/kept.txt");
    assert_eq!(std::fs::read_to_string(kept).expect("the file is back"), "work-of-mine\n");
    session.end(END).await;
    assert_eq!(oauth.reuses(), Vec::<String>::new());

    // One without the key sees the login, is told why it cannot have it, and does not start with a key of its own.
    let stranger = on(&mongod, &oauth).start().await;
    let reason = stranger.client().seed(&seed).await["status_reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("encrypted with the key") && reason.contains(key), "{reason}");
    let refused = stranger.client().create(seeded(&seed)).await;
    refused.events(None).await.until_named("session.ended", END).await;
    let why = refused.get().await["reason"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains("encrypted with the key"), "{why}");
    let row = seed_row(&mongod, &seed).await;
    assert!(row.get("lease").is_some_and(|lease| lease.as_null().is_some()), "{row}");

    let bytes = std::fs::read(server.data_dir().join("store-key")).expect("the key was made");
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    for said in [server.output(), stranger.output(), readiness(&client).await.to_string()] {
        assert!(!said.contains(&hex) && !said.contains(&newest), "{said}");
    }
}

#[actix::test]
async fn two_services_share_the_seeds_and_keep_their_sessions_apart() {
    let (model, oauth, mongod) = (MockModel::start(), FakeOauth::start(), Mongod::start().await);
    let first = on(&mongod, &oauth).start().await;
    let second = on(&mongod, &oauth).start().await;
    let (one, two) = (first.client(), second.client());
    let seed = import(&one, &model, &oauth.login("acct-1").auth_json()).await;
    let session = one.create(seeded(&seed)).await;
    session.wait_idle().await;

    assert_eq!(two.sessions("").await, Vec::<Value>::new());
    assert_eq!(two.seed(&seed).await["lease"]["session"], json!(session.id));
    let refused = two.create(seeded(&seed)).await;
    refused.events(None).await.until_named("session.ended", END).await;
    let reason = refused.get().await["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains(&format!("is leased by session {}", session.id)), "{reason}");

    // The other one starts again and leaves what is not its own alone.
    second.restart().await;
    assert_eq!(session.get().await["state"], "idle");
    session.end(END).await;
    let next = two.create(seeded(&seed)).await;
    next.wait_idle().await;
    next.end(END).await;
    assert_eq!(oauth.reuses(), Vec::<String>::new());
}

#[actix::test]
async fn a_database_that_is_away_for_a_while_is_said_and_costs_nothing() {
    let Leased { model: _model, oauth, mongod, server, client, seed, session } = Leased::start().await;
    let before = session.get().await;

    let away = Instant::now();
    mongod.stop().await;
    wait_for_readiness(&client, "degraded").await;
    let problems = readiness(&client).await["problems"].clone();
    assert_eq!(problems[0]["part"], "store", "{problems:#}");
    assert!(problems[0]["problem"].as_str().is_some_and(|why| !why.is_empty()), "{problems:#}");

    // The agent works on, and even rotates its login.
    let newest = rotate(&session, &oauth).await;
    session.turn("@say still here").await;
    wait_until("the turn is over", LIMIT, || async {
        answers(&session).await.last().is_some_and(|said| said == "still here")
    })
    .await;
    wait_until("twenty seconds are over", LIMIT, || async { away.elapsed() >= Duration::from_secs(20) })
        .await;
    mongod.restart().await;

    wait_for_readiness(&client, "ready").await;
    let mut events = session.events(before["last_event"].as_u64()).await;
    events.until_named("seed.saved", LIMIT).await;
    let now = session.get().await;
    assert_eq!(now["run"]["lease"]["holder"], before["run"]["lease"]["holder"], "the same lease");
    let ended = session.end(END).await;
    assert_eq!((&ended["outcome"], &ended["workdir_kept"]), (&json!("stopped"), &Value::Null), "{ended:#}");

    let next = client.create(seeded(&seed)).await;
    next.wait_idle().await;
    assert_eq!(planted(&server, &next).as_deref(), Some(newest.as_str()));
    next.end(END).await;
    assert_eq!(oauth.reuses(), Vec::<String>::new());
}

#[actix::test]
async fn a_database_that_is_away_too_long_ends_the_agent_before_its_lease_and_loses_no_login() {
    let Leased { model: _model, oauth, mongod, server, client, seed, session } = Leased::start().await;
    let mut events = session.events(None).await;
    session.turn("@call exec_command {\"cmd\":\"echo work > kept.txt\"}").await;
    events.until_named("turn.completed", LIMIT).await;

    // Not asked to end: a machine that lost its power says nothing either.
    let away = Instant::now();
    mongod.kill_9();
    let newest = rotate(&session, &oauth).await;
    wait_until("the agent is gone", LEASE, || async { server.agents().is_empty() }).await;
    assert!(away.elapsed() < LEASE, "after {:?}", away.elapsed());
    wait_until("ninety seconds are over", LEASE, || async { away.elapsed() >= Duration::from_secs(90) })
        .await;
    mongod.restart().await;

    // Back, it is told how the run ended, and gets the login that was in the spool (after the lease is over for sure).
    wait_for_readiness(&client, "ready").await;
    let ended = session.wait_state("ended", END * 2).await;
    assert_eq!(ended["outcome"], "failed");
    assert!(ended["reason"].as_str().is_some_and(|why| why.contains("lease")), "{ended:#}");
    wait_until("the login is home", LEASE * 2, || async {
        let seed = client.seed(&seed).await;
        if seed["lease"].is_null() && seed["dirty"] == false && seed["status"] == "alive" {
            return Ok(());
        }
        Err(seed)
    })
    .await;
    session.resume().await;
    events.until_named("session.ended", END).await;
    session.wait_idle().await;
    assert_eq!(planted(&server, &session).as_deref(), Some(newest.as_str()));
    let kept = server.task_root().join(&session.id).join("workdir/kept.txt");
    assert_eq!(std::fs::read_to_string(kept).expect("the work was kept"), "work\n");
    session.end(END).await;
    assert_eq!(oauth.reuses(), Vec::<String>::new());
}

#[actix::test]
async fn a_database_that_dies_during_an_upload_leaves_no_torn_snapshot_and_the_workdir() {
    let (model, oauth, mongod) = (MockModel::start(), FakeOauth::start(), Mongod::start().await);
    let server = on(&mongod, &oauth).start().await;
    let client = server.client();
    let session = client.create(common::conversation(&model)).await;
    session.wait_idle().await;
    let mut events = session.events(None).await;
    session.turn("@call exec_command {\"cmd\":\"head -c 60000000 /dev/urandom > big.bin\"}").await;
    events.until_named("turn.completed", LIMIT).await;
    session.stop("graceful").await;
    let chunks = mongod.database(DATABASE).await.collection::<Document>("fs.chunks");
    wait_until("the upload is under way", LIMIT, || async {
        chunks.count_documents(doc! {}).await.is_ok_and(|count| count > 20)
    })
    .await;
    mongod.kill_9();
    wait_until("the upload has failed", END * 2, || async {
        let capture = step(&session.get().await, "capture_snapshot")["state"].clone();
        if capture == "failed" { Ok(()) } else { Err(capture) }
    })
    .await;
    mongod.restart().await;
    let ended = session.wait_state("ended", END * 2).await;
    assert_eq!(step(&ended, "wipe")["state"], "withheld", "{ended:#}");
    assert!(ended["workdir_kept"].is_string(), "{ended:#}");
    let snapshots = mongod.database(DATABASE).await.collection::<Document>("optio_codex_session_snapshots");
    assert_eq!(snapshots.count_documents(doc! {}).await.expect("the database answers"), 0);

    // What was kept is gone on with, and stored at last.
    session.resume().await;
    events.until_named("session.ended", END).await;
    session.wait_idle().await;
    let ended = session.end(END * 2).await;
    assert_eq!(step(&ended, "capture_snapshot")["state"], "done", "{ended:#}");
    assert_eq!(snapshots.count_documents(doc! {}).await.expect("the database answers"), 1);
}
