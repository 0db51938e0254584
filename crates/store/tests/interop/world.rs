//! A real mongod, one release of the Python package and our store on it, and a third client that sees what is stored.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Document, doc};
use mongodb::{Collection, Database};
use optio_store::mongo::{Mongo, Options};
use optio_store::suite::no_journal;
use optio_store::{Account, Holder, NewSeed, SeedFiles, SeedId, SeedPatch, SeedRow, SeedStatus, Store, Want};
use optio_testkit::python_peer::installed;
use optio_testkit::{FakeOauth, PythonPeer, TestDatabase};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The pool that both draw from.
pub(crate) const POOL: &str = "team";
/// What stands in `config.toml` of every login.
pub(crate) const CONFIG: &str = "model = \"gpt-5.5\"\n";
/// Python's prefix, and with it that of the logins and snapshots (T-252).
const SHARED: &str = "optio";
/// Ours, for what Python has no business with (T-251).
const OWN: &str = "rust";

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) python: PythonPeer,
    pub(crate) oauth: FakeOauth,
    pub(crate) database: Database,
    pub(crate) server: TestDatabase,
    dir: TempDir,
}

/// Tells a story once with each release, each time in a new world: for what they do differently, which is archives,
/// verify and the listing.
pub(crate) async fn with_each(story: impl AsyncFn(World)) {
    for release in installed() {
        eprintln!("with Python's optio-codex {release}:");
        story(World::new(release).await).await;
    }
}

/// Tells a story with one release: the leases, the watcher and the documents have the same source in all of them.
pub(crate) async fn with_one(story: impl AsyncFn(World)) {
    if let Some(release) = installed().into_iter().next() {
        story(World::new(release).await).await;
    }
}

/// What a service that shares a database with Python is configured with.
pub(crate) fn options() -> Options {
    Options {
        prefix: OWN.into(),
        seed_prefix: Some(SHARED.into()),
        snapshot_prefix: Some(SHARED.into()),
        ..Options::default()
    }
}

impl World {
    pub(crate) async fn new(release: &'static str) -> Self {
        let (server, oauth) = (TestDatabase::new().await, FakeOauth::start());
        let env = [("CODEX_REFRESH_TOKEN_URL_OVERRIDE", &*oauth.url())];
        let python = PythonPeer::start(release, server.uri(), server.name(), SHARED, &env).await;
        let dir = tempfile::tempdir().unwrap();
        let store = Mongo::open(server.uri(), &dir.path().join("store"), options()).await.unwrap();
        let (store, database) = (store.store(no_journal()), server.open().await);
        Self { store, python, oauth, database, server, dir }
    }

    /// Has Python do one thing that must work.
    pub(crate) async fn python(&mut self, op: &str, arguments: Value) -> Value {
        self.python.ask(op, arguments).await
    }

    /// A new directory that is gone with the world.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Opens a session of Python's whose workdir is empty.
    pub(crate) async fn session(&mut self, process: &str) -> PathBuf {
        let taskdir = self.dir.path().join(process);
        self.python.open_session(process, &taskdir).await
    }

    /// Has Python capture a login from a session of its own, and put it into the pool.
    pub(crate) async fn captured(&mut self, login: &[u8]) -> SeedId {
        let workdir = self.session("setup").await;
        log_in(&workdir, login);
        let seed = self.python("capture", json!({ "process_id": "setup" })).await;
        self.python("assign", json!({ "seed": seed, "pool": POOL })).await;
        seed.as_str().expect("a login was there to capture").parse().unwrap()
    }

    /// Has us import a login into the pool.
    pub(crate) async fn imported(&self, login: &[u8]) -> SeedId {
        self.store.seeds.import(new_seed(login)).await.unwrap().id
    }

    /// Has Python acquire from the pool.
    pub(crate) async fn python_acquires(&mut self, holder: &str) -> Option<SeedId> {
        let seed = self.python("acquire", json!({ "pool": POOL, "holder": holder })).await;
        seed.as_str().map(|seed| seed.parse().unwrap())
    }

    pub(crate) async fn python_renews(&mut self, seed: &SeedId, holder: &str) -> bool {
        self.python("renew", json!({ "seed": seed, "holder": holder })).await == true
    }

    pub(crate) async fn python_releases(&mut self, seed: &SeedId, holder: &str) {
        self.python("release", json!({ "seed": seed, "holder": holder })).await;
    }

    /// Has us acquire from the pool.
    pub(crate) async fn we_acquire(&self, holder: &Holder) -> Option<SeedId> {
        self.store.leases.acquire(&pool(), holder).await.unwrap().map(|lease| lease.seed)
    }

    /// Has us say whether a login is good.
    pub(crate) async fn we_judge(&self, seed: &SeedId, status: SeedStatus, reason: Option<&str>) {
        let patch = SeedPatch { status: Some((status, reason.map(str::to_owned))), ..SeedPatch::default() };
        self.store.seeds.patch(seed, None, patch).await.unwrap();
    }

    /// The row of a seed in Python's listing of the pool.
    pub(crate) async fn pythons_row(&mut self, seed: &SeedId) -> Option<Value> {
        let rows = self.python("list_pool", json!({ "pool": POOL })).await;
        rows.as_array().unwrap().iter().find(|row| row["seedId"] == seed.as_str()).cloned()
    }

    /// Our row of a seed.
    pub(crate) async fn row(&self, seed: &SeedId) -> SeedRow {
        self.store.seeds.get(seed).await.unwrap().expect("the seed is there")
    }

    /// The login as we plant it.
    pub(crate) async fn our_login(&self, seed: &SeedId) -> Bytes {
        let (files, _) = self.store.seeds.load(seed).await.unwrap();
        assert_eq!(files.0.get(SeedFiles::CONFIG).map(|b| &b[..]), Some(CONFIG.as_bytes()), "config.toml");
        files.0[SeedFiles::AUTH].clone()
    }

    /// The login as Python plants it in a new session.
    pub(crate) async fn pythons_login(&mut self, seed: &SeedId) -> Bytes {
        let workdir = self.session("reader").await;
        self.python("merge", json!({ "process_id": "reader", "seed": seed })).await;
        let home = workdir.join("home/.codex");
        assert_eq!(std::fs::read_to_string(home.join("config.toml")).unwrap(), CONFIG);
        std::fs::read(home.join("auth.json")).unwrap().into()
    }

    pub(crate) fn seeds(&self) -> Collection<Document> {
        self.database.collection("optio_codex_seeds")
    }

    pub(crate) fn snapshots(&self) -> Collection<Document> {
        self.database.collection("optio_codex_session_snapshots")
    }

    /// A seed's document as it is stored.
    pub(crate) async fn document(&self, seed: &SeedId) -> Document {
        self.seeds().find_one(by_id(seed)).await.unwrap().expect("the seed is there")
    }

    /// Changes a seed's document behind everybody's back.
    pub(crate) async fn tamper(&self, seed: &SeedId, set: Document) {
        let changed = self.seeds().update_one(by_id(seed), doc! { "$set": set }).await.unwrap();
        assert_eq!(changed.matched_count, 1);
    }

    /// Lets a minute pass for one lease: its holder did not renew.
    pub(crate) async fn expire(&self, seed: &SeedId) {
        let long_ago = mongodb::bson::DateTime::from_millis(0);
        self.tamper(seed, doc! { "lease.expiresAt": long_ago }).await;
    }
}

pub(crate) fn by_id(seed: &SeedId) -> Document {
    doc! { "_id": ObjectId::parse_str(seed.as_str()).unwrap() }
}

pub(crate) fn pool() -> Want {
    Want::Pool(POOL.into())
}

/// A login of this account, whose refresh token is `token`: the same bytes each time.
pub(crate) fn login(account: &str, token: &str) -> Vec<u8> {
    let tokens = json!({
        "id_token": "not.looked.at", "access_token": "opaque", "refresh_token": token, "account_id": account,
    });
    let login = json!({
        "auth_mode": "chatgpt", "OPENAI_API_KEY": null, "last_refresh": "2026-07-02T00:11:54.339893366Z", "tokens": tokens,
    });
    serde_json::to_vec_pretty(&login).unwrap()
}

/// A login to import, into the pool that both draw from.
pub(crate) fn new_seed(login: &[u8]) -> NewSeed {
    let files = [(SeedFiles::AUTH, login), (SeedFiles::CONFIG, CONFIG.as_bytes())];
    let files = files.map(|(name, bytes)| (name.to_owned(), Bytes::copy_from_slice(bytes)));
    let auth: Value = serde_json::from_slice(login).unwrap();
    let id = auth["tokens"]["account_id"].as_str().map(str::to_owned);
    NewSeed {
        files: SeedFiles(files.into()),
        account: Account { id, kind: "chatgpt".into(), ..Account::default() },
        pool: Some(POOL.into()),
        metadata: serde_json::Map::new(),
    }
}

/// Puts a login where codex would.
pub(crate) fn log_in(workdir: &Path, login: &[u8]) {
    let home = workdir.join("home/.codex");
    std::fs::create_dir_all(&home).unwrap();
    std::fs::write(home.join("auth.json"), login).unwrap();
    std::fs::write(home.join("config.toml"), CONFIG).unwrap();
}

pub(crate) fn keys(document: &Document) -> Vec<&str> {
    document.keys().map(String::as_str).collect()
}
