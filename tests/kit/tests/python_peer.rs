//! The real Python package on a real database: that the driver drives it, and that it writes what the specification says.

use jiff::SignedDuration;
use mongodb::bson::{Bson, Document, doc};
use optio_testkit::python_peer::installed;
use optio_testkit::{ChatGptLogin, FakeOauth, LIMIT, Mongod, PythonPeer, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

struct World {
    mongod: Mongod,
    dir: TempDir,
    oauth: FakeOauth,
}

/// Runs a story with each release that is installed, on a database of its own.
async fn with_each<F>(story: F)
where
    F: AsyncFn(&World, PythonPeer),
{
    for release in installed() {
        let dir = tempfile::tempdir().expect("the temp directory is writable");
        let world = World { mongod: Mongod::start().await, dir, oauth: FakeOauth::start() };
        let env = [("CODEX_REFRESH_TOKEN_URL_OVERRIDE", &*world.oauth.url())];
        let peer = PythonPeer::start(release, &world.mongod.uri(), "shared", "optio", &env).await;
        story(&world, peer).await;
    }
}

impl World {
    /// Makes a session that is logged in, and captures its seed.
    async fn captured(&self, peer: &mut PythonPeer, process: &str) -> (std::path::PathBuf, String) {
        let workdir = peer.open_session(process, &self.dir.path().join(process)).await;
        let home = workdir.join("home/.codex");
        std::fs::create_dir_all(&home).expect("the workdir is ours");
        std::fs::write(home.join("auth.json"), self.oauth.login("acct-a").auth_json()).expect("ours");
        std::fs::write(home.join("config.toml"), "model = \"gpt-5.5\"\n").expect("ours");
        let seed = peer.ask("capture", json!({ "process_id": process })).await;
        (workdir, seed.as_str().expect("a logged-in session is captured").to_owned())
    }

    async fn seed(&self, id: &str) -> Document {
        let seeds = self.mongod.database("shared").await.collection::<Document>("optio_codex_seeds");
        let id = mongodb::bson::oid::ObjectId::parse_str(id).expect("a seed's id is an ObjectId");
        seeds.find_one(doc! { "_id": id }).await.expect("mongod runs").expect("the seed is there")
    }
}

fn keys(document: &Document) -> Vec<&str> {
    document.keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_captured_seed_is_the_document_and_the_file_of_the_specification() {
    with_each(async |world, mut peer| {
        let (_, seed) = world.captured(&mut peer, "codex-1").await;
        let document = world.seed(&seed).await;
        assert_eq!(keys(&document), ["_id", "createdAt", "blobId", "manifestVersion"], "T-002");
        assert_eq!(document.get("manifestVersion"), Some(&Bson::Int32(1)));

        let files = world.mongod.database("shared").await.collection::<Document>("fs.files");
        let file = files.find_one(doc! { "_id": document.get("blobId") }).await.expect("mongod runs");
        let file = file.expect("a seed's blob is there");
        assert_eq!(
            (file.get_str("filename").ok(), file.get("chunkSize")),
            (Some("seed"), Some(&Bson::Int32(261_120)))
        );
        let metadata = file.get_document("metadata").expect("captured within a session (T-011)");
        assert_eq!(keys(metadata), ["processId", "prefix", "name"]);
    })
    .await;
}

#[tokio::test]
async fn a_logged_out_session_is_not_captured() {
    with_each(async |world, mut peer| {
        let workdir = peer.open_session("codex-1", &world.dir.path().join("codex-1")).await;
        std::fs::create_dir_all(workdir.join("home/.codex")).expect("ours");
        std::fs::write(workdir.join("home/.codex/auth.json"), "{}").expect("ours");
        assert_eq!(peer.ask("capture", json!({ "process_id": "codex-1" })).await, Value::Null);
        assert_eq!(peer.ask("list", json!({})).await, json!([]));
    })
    .await;
}

#[tokio::test]
async fn a_lease_is_acquired_renewed_and_released() {
    with_each(async |world, mut peer| {
        let (_, seed) = world.captured(&mut peer, "codex-1").await;
        peer.ask("assign", json!({ "seed": seed, "pool": "team" })).await;

        let mine = json!({ "seed": seed, "holder": "mine" });
        let theirs = json!({ "seed": seed, "holder": "theirs" });
        let acquired =
            peer.ask("acquire_at_once", json!({ "pool": "team", "holders": ["mine", "mine"] })).await;
        let winners: Vec<_> = acquired.as_array().expect("a list").iter().flat_map(Value::as_str).collect();
        assert_eq!(winners, [seed.as_str()], "there is one seed for two");
        assert_eq!(peer.ask("renew", theirs.clone()).await, false);
        peer.ask("release", theirs).await;
        assert_eq!(peer.ask("renew", mine.clone()).await, true);
        peer.ask("release", mine.clone()).await;
        assert_eq!(peer.ask("renew", mine).await, false);
        assert_eq!(world.seed(&seed).await.get("lease"), Some(&Bson::Null), "T-093");
    })
    .await;
}

#[tokio::test]
async fn the_watcher_saves_a_rotated_login_and_ends_the_session_when_the_lease_is_lost() {
    with_each(async |world, mut peer| {
        let (workdir, seed) = world.captured(&mut peer, "codex-1").await;
        peer.ask("assign", json!({ "seed": seed, "pool": "team" })).await;
        peer.ask("acquire", json!({ "pool": "team", "holder": "codex-1" })).await;
        let before = world.seed(&seed).await;
        let baseline = peer.ask("merge", json!({ "process_id": "codex-1", "seed": seed })).await;
        peer.ask(
            "watch",
            json!({ "process_id": "codex-1", "seed": seed, "baseline": baseline, "holder": "codex-1" }),
        )
        .await;

        let rotated = ChatGptLogin::new("acct-a").refresh_token("rt-next").auth_json();
        std::fs::write(workdir.join("home/.codex/auth.json"), rotated).expect("ours");
        wait_until("the seed has another blob", LIMIT, || async {
            world.seed(&seed).await.get("blobId") != before.get("blobId")
        })
        .await;
        assert_eq!(peer.ask("cancelled", json!({ "process_id": "codex-1" })).await, false);

        peer.ask("release", json!({ "seed": seed, "holder": "codex-1" })).await;
        let mut cancelled = Value::Null;
        while cancelled != true {
            cancelled = peer.ask("cancelled", json!({ "process_id": "codex-1" })).await;
        }
        peer.ask("unwatch", json!({ "process_id": "codex-1" })).await;
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_brings_the_workdir_and_the_thread_back() {
    with_each(async |world, mut peer| {
        let taskdir = world.dir.path().join("codex-1");
        let workdir = peer.open_session("codex-1", &taskdir).await;
        std::fs::write(workdir.join("haiku.txt"), "one\n").expect("ours");
        peer.ask("snapshot", json!({ "process_id": "codex-1", "thread": "t-1", "cancelled": true })).await;

        let row = peer.ask("latest_snapshot", json!({ "process_id": "codex-1" })).await;
        let fields: Vec<_> = row.as_object().expect("a row").keys().map(String::as_str).collect();
        assert_eq!(
            fields,
            ["_id", "capturedAt", "endState", "processId", "sessionId", "workdirBlobId"],
            "T-159, in the order of the alphabet"
        );
        assert_eq!(row["endState"], "cancelled");

        let workdir = peer.open_session("codex-1", &taskdir).await;
        assert!(!workdir.join("haiku.txt").exists(), "an opened session begins empty");
        assert_eq!(peer.ask("restore", json!({ "process_id": "codex-1" })).await, json!({ "thread": "t-1" }));
        assert_eq!(std::fs::read_to_string(workdir.join("haiku.txt")).ok().as_deref(), Some("one\n"));
    })
    .await;
}

#[tokio::test]
async fn a_verified_seed_says_so_in_the_shape_of_the_specification() {
    with_each(async |world, mut peer| {
        let (_, seed) = world.captured(&mut peer, "codex-1").await;
        assert_eq!(peer.ask("verify", json!({ "seed": seed })).await, true);
        let document = world.seed(&seed).await;
        assert_eq!(document.get_str("status").ok(), Some("alive"));
        let metadata = document.get_document("metadata").expect("T-217");
        assert_eq!(keys(metadata.get_document("verify").expect("T-217")), ["alive", "checkedAt"]);
        assert!(world.oauth.attempts().is_empty(), "a fresh login is taken at its word (row 7)");
    })
    .await;
}

#[tokio::test]
async fn a_login_that_is_due_is_refreshed_by_verify() {
    with_each(async |world, mut peer| {
        let (workdir, _) = world.captured(&mut peer, "codex-1").await;
        let stale = world.oauth.login("acct-b").refreshed_ago(SignedDuration::from_hours(24 * 9));
        std::fs::write(workdir.join("home/.codex/auth.json"), stale.auth_json()).expect("ours");
        let seed = peer.ask("capture", json!({ "process_id": "codex-1" })).await;

        assert_eq!(peer.ask("verify", json!({ "seed": seed })).await, true);
        assert_eq!(world.oauth.attempts(), [stale.current_refresh_token()]);
        peer.ask("merge", json!({ "process_id": "codex-1", "seed": seed })).await;
        let planted = std::fs::read_to_string(workdir.join("home/.codex/auth.json")).expect("it was planted");
        assert!(planted.contains(&world.oauth.issued("acct-b").expect("it is good")), "{planted}");
    })
    .await;
}

#[tokio::test]
async fn what_the_package_raises_arrives_with_its_kind() {
    with_each(async |_, mut peer| {
        let unknown = json!({ "seed": "0123456789abcdef01234567" });
        let raised = peer.attempt("purge", unknown.clone()).await.expect_err("there is no such seed");
        assert_eq!(raised.kind, "KeyError", "{raised:?}");
        assert_eq!(peer.ask("load", unknown).await, Value::Null);
    })
    .await;
}
