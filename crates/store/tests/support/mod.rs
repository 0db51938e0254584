//! A real mongod for the tests of the MongoDB backend.
//!
//! `OPTIO_TEST_MONGODB` names a server to use. Without it one is started: shared by every test process of this user,
//! since starting it takes two seconds, or one of a test's own that it may stop and kill. Each test has its own
//! database in it.
//!
//! Nothing stays behind: whoever uses a mongod holds a lock on its directory, and a small watcher ends the mongod when
//! nobody has held it for a while. The kernel lets a lock go with its process, however that ends.

#![allow(clippy::unwrap_used, dead_code, reason = "for several test binaries; none uses all of it")]

use std::any::Any;
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};
use mongodb::{Client, Database};
use optio_store::ManualClock;
use optio_store::mongo::{Mongo, Options};
use optio_store::suite::{Harness, no_journal};

/// Runs mongod in $1, and ends it when the lock `users` has been free for five seconds. `port` tells that it is there;
/// it goes first, under the lock, so that nobody begins to use what is about to end.
const WATCHER: &str = r#"
dir=$1 mongod=$2 port=$3 set=$4
mkdir -p "$dir/db"
"$mongod" --dbpath "$dir/db" --port "$port" --bind_ip 127.0.0.1 ${set:+--replSet "$set"} --nounixsocket \
    --wiredTigerCacheSizeGB 0.25 --setParameter enableTestCommands=1 --logpath "$dir/log" --logappend >"$dir/out" 2>&1 &
pid=$!
echo $pid >"$dir/pid.new"; mv "$dir/pid.new" "$dir/pid"
idle=0
while kill -0 $pid 2>/dev/null; do
    sleep 1
    if flock -n -x "$dir/users" true; then idle=$((idle + 1)); else idle=0; fi
    [ $idle -lt 5 ] || ! flock -n -x "$dir/users" sh -c 'rm -f "$1/port"; kill -9 $2' sh "$dir" $pid || break
done
wait $pid
[ $idle -lt 5 ] || rm -rf "$dir/db" "$dir/log" "$dir/out" "$dir/pid"
"#;
/// Longest wait for a mongod to start, on a machine that builds at the same time.
const START: Duration = Duration::from_secs(60);
/// The replica set.
const SET: &str = "rs0";

/// A server that tests use.
pub(crate) struct Mongod {
    /// Where it is, without a database.
    address: String,
    /// Of one that was started here.
    dir: Option<PathBuf>,
    /// Lets it live.
    _used: Option<File>,
}

impl Mongod {
    /// The server that is shared.
    pub(crate) async fn shared() -> Self {
        if let Ok(address) = std::env::var("OPTIO_TEST_MONGODB") {
            return Self { address, dir: None, _used: None };
        }
        let dir = shared_dir();
        std::fs::create_dir_all(&dir).unwrap();
        let used = lock_file(&dir.join("users"));
        used.lock_shared().unwrap();
        let starting = lock_file(&dir.join("start"));
        starting.lock().unwrap();
        let port = match std::fs::read_to_string(dir.join("port")) {
            Ok(port) if answers(&port).await => port,
            _ => {
                let port = free_port();
                start(&dir, &port, SET).await;
                std::fs::write(dir.join("port"), &port).unwrap();
                port
            }
        };
        Self { address: address(&port), dir: Some(dir), _used: Some(used) }
    }

    /// A server for one test, in this directory. It may be stopped, killed and started again.
    pub(crate) async fn own(dir: &Path, set: &str) -> Self {
        let used = lock_file(&dir.join("users"));
        used.lock_shared().unwrap();
        let port = free_port();
        start(dir, &port, set).await;
        std::fs::write(dir.join("port"), &port).unwrap();
        let address = if set.is_empty() { format!("mongodb://127.0.0.1:{port}") } else { address(&port) };
        Self { address, dir: Some(dir.to_owned()), _used: Some(used) }
    }

    /// Starts it again where it was.
    pub(crate) async fn start_again(&self) {
        let dir = self.dir.as_deref().unwrap();
        start(dir, &std::fs::read_to_string(dir.join("port")).unwrap(), SET).await;
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.dir.as_deref().unwrap().join("pid")).unwrap();
        assert!(Command::new("kill").args([signal, pid.trim()]).status().unwrap().success());
    }

    /// The connection string of a database in it.
    pub(crate) fn database(&self, name: &str) -> String {
        match self.address.split_once('?') {
            Some((host, options)) => format!("{}/{name}?{options}", host.trim_end_matches('/')),
            None => format!("{}/{name}", self.address.trim_end_matches('/')),
        }
    }
}

fn shared_dir() -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let uid = std::fs::metadata("/proc/self").unwrap().uid();
    let mut name = format!("optio-test-mongod-{uid}");
    // Another program is another server.
    for byte in binary().as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() {
            name.push(char::from(*byte));
        }
    }
    std::env::temp_dir().join(name)
}

fn lock_file(path: &Path) -> File {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).unwrap()
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

fn address(port: &str) -> String {
    format!("mongodb://127.0.0.1:{port}?replicaSet=rs0")
}

/// Finds the mongod program.
fn binary() -> PathBuf {
    let tools = std::env::var_os("OPTIO_TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools"), PathBuf::from);
    let named = std::env::var_os("OPTIO_TEST_MONGOD").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("mongod"));
    let mut places = named.into_iter().chain([tools.join("bin/mongod")]).chain(on_path);
    places.find(|place| place.is_file()).expect(
        "there is no mongod: run `make setup-test`, or name one with OPTIO_TEST_MONGOD, or a server with \
         OPTIO_TEST_MONGODB=mongodb://…",
    )
}

async fn direct(port: &str) -> Database {
    let to = format!("mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS=500");
    Client::with_uri_str(to).await.unwrap().database("admin")
}

async fn answers(port: &str) -> bool {
    direct(port).await.run_command(doc! { "ping": 1 }).await.is_ok()
}

/// Starts one, as the only member of a set, or without one.
async fn start(dir: &Path, port: &str, set: &str) {
    let watcher = Command::new("sh")
        .args(["-c", WATCHER, "watcher"])
        .arg(dir)
        .arg(binary())
        .arg(port)
        .arg(set)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // It outlives this test, and whoever ends the test's group.
        .process_group(0)
        .spawn()
        .unwrap();
    drop(watcher);
    let begun = Instant::now();
    let admin = direct(port).await;
    let member = doc! { "_id": 0, "host": format!("127.0.0.1:{port}") };
    let initiate = doc! { "replSetInitiate": { "_id": set, "members": [member] } };
    loop {
        // Fails until it listens, and once it has been done.
        let _initiated = admin.run_command(initiate.clone()).await;
        let hello = admin.run_command(doc! { "hello": 1 }).await;
        if hello.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or(false)) {
            return;
        }
        assert!(begun.elapsed() < START, "mongod in {} did not start", dir.display());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A database of a test's own, and the store in it.
pub(crate) struct World {
    pub(crate) mongod: Mongod,
    pub(crate) connection: String,
    pub(crate) db: Database,
    pub(crate) dir: tempfile::TempDir,
}

impl World {
    /// A new database on the shared server.
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::on(Mongod::shared().await, dir).await
    }

    /// A new database on a server of the test's own.
    pub(crate) async fn alone() -> Self {
        Self::apart(SET).await
    }

    /// A new database on a server without a replica set.
    pub(crate) async fn without_a_set() -> Self {
        Self::apart("").await
    }

    async fn apart(set: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("mongod");
        std::fs::create_dir(&home).unwrap();
        Self::on(Mongod::own(&home, set).await, dir).await
    }

    async fn on(mongod: Mongod, dir: tempfile::TempDir) -> Self {
        let name = format!("optio_test_{}", uuid::Uuid::new_v4().simple());
        let connection = mongod.database(&name);
        let db = Client::with_uri_str(&connection).await.unwrap().database(&name);
        Self { mongod, connection, db, dir }
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

    /// The only document of a collection.
    pub(crate) async fn only(&self, name: &str) -> Document {
        let all = self.collection(name);
        assert_eq!(all.count_documents(doc! {}).await.unwrap(), 1, "{name}");
        all.find_one(doc! {}).await.unwrap().unwrap()
    }
}

impl Drop for World {
    /// A server that is not ours is left as it was found.
    fn drop(&mut self) {
        if self.mongod.dir.is_some() {
            return;
        }
        let (connection, name) = (self.connection.clone(), self.db.name().to_owned());
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                Client::with_uri_str(connection).await.unwrap().database(&name).drop().await.unwrap();
            });
        });
        dropping.join().unwrap();
    }
}

/// The store on a clock that the test moves.
pub(crate) async fn harness(clock: Arc<ManualClock>) -> Harness {
    let world = World::new().await;
    let options = Options { clock: Some(clock.clone()), ..Options::default() };
    let store = world.open_with("store", options).await.store(no_journal());
    Harness { store, clock, keep: Box::new(world) as Box<dyn Any> }
}
