//! A real database: one that a test may stop, kill and freeze, or one that all tests share.

mod shared;

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use mongodb::bson::doc;
use mongodb::options::{ClientOptions, ServerAddress};
use mongodb::{Client, Database};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::LIMIT;
use crate::codex::tools_dir;
use crate::procs::Proc;
use crate::wait::wait_until;

/// For tests that look into the database, which need no dependency of their own for it.
pub use mongodb;
pub use shared::TestDatabase;

/// The name of the one-member replica set: transactions, majority writes and change streams need one.
const REPLICA_SET: &str = "rs0";
/// How many free ports are tried: between the look and the start somebody else may take it.
const PORT_TRIES: usize = 5;
/// mongod's exit code when its port is taken.
const PORT_TAKEN: i32 = 48;
/// How long one command of the kit's own client may take. A mongod that starts up answers late or not at all.
const COMMAND_LIMIT: Duration = Duration::from_secs(2);
/// How much of mongod's log is shown when it does not start.
const LOG_TAIL: usize = 4_000;

/// Finds mongod: `$OPTIO_TEST_MONGOD`, else the one that `make setup-test` installs, else `$PATH`.
///
/// # Panics
/// When there is none, saying how to get one.
pub fn mongod_binary() -> PathBuf {
    if let Some(named) = std::env::var_os("OPTIO_TEST_MONGOD") {
        let named = PathBuf::from(named);
        assert!(named.is_file(), "OPTIO_TEST_MONGOD names {}, which is no file", named.display());
        return named;
    }
    let installed = tools_dir().join("bin/mongod");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("mongod"));
    std::iter::once(installed)
        .chain(on_path)
        .find(|candidate| candidate.is_file())
        .expect("there is no mongod to test with: run `make setup-test`, or name one in OPTIO_TEST_MONGOD")
}

/// A mongod of its own on a free port of loopback: a replica set with one member, on data that is gone when dropped.
pub struct Mongod {
    root: TempDir,
    port: u16,
    /// Its replica set; none if it is a server by itself.
    set: Option<&'static str>,
    running: Mutex<Option<Child>>,
}

impl Mongod {
    /// Starts one and waits until it takes writes, which is about half a second.
    ///
    /// # Panics
    /// When there is no mongod, or it does not start, with the end of its log.
    pub async fn start() -> Self {
        Self::start_as(Some(REPLICA_SET)).await
    }

    /// Starts one that is no replica set: it has no transactions and confirms nothing to a majority but itself.
    ///
    /// # Panics
    /// As [`Mongod::start`].
    pub async fn start_without_a_set() -> Self {
        Self::start_as(None).await
    }

    async fn start_as(set: Option<&'static str>) -> Self {
        for _ in 0..PORT_TRIES {
            let root =
                tempfile::Builder::new().prefix("mongod-").tempdir().expect("the temp directory is writable");
            std::fs::create_dir(root.path().join("data")).expect("a new directory is empty");
            let mongod = Self { root, port: free_port(), set, running: Mutex::default() };
            if mongod.spawn().await {
                if let Some(set) = set {
                    initiate(mongod.port, set).await;
                }
                wait_until_primary(mongod.port).await;
                return mongod;
            }
        }
        panic!("{PORT_TRIES} ports that were free were taken when mongod came for them");
    }

    /// The connection string, as users give it. It stays the same over a restart.
    pub fn uri(&self) -> String {
        uri(self.port, self.set, "")
    }

    /// The connection string of one of its databases.
    pub fn uri_of(&self, database: &str) -> String {
        uri(self.port, self.set, database)
    }

    /// A client of the test's own, to look at what was written and to write what a peer might.
    pub async fn client(&self) -> Client {
        Client::with_uri_str(self.uri()).await.expect("the kit's own connection string is well-formed")
    }

    /// One database, through a client of the test's own.
    pub async fn database(&self, name: &str) -> Database {
        self.client().await.database(name)
    }

    /// The process.
    pub fn process(&self) -> Proc {
        let running = self.running();
        let child = running.as_ref().expect("mongod was started and not stopped");
        Proc::find(child.id().cast_signed()).expect("mongod runs until it is stopped")
    }

    /// Asks mongod to end, as `systemctl stop` does, and waits for it, which is about a second.
    ///
    /// # Panics
    /// When it does not end well within [`LIMIT`](crate::LIMIT).
    pub async fn stop(&self) {
        self.process().signal(Signal::TERM);
        let status = wait_until("mongod has ended", LIMIT, || async { self.ended() }).await;
        *self.running() = None;
        assert!(
            status.success(),
            "mongod ended with {status}; its log ends:\n{}",
            log_tail(self.root.path())
        );
    }

    /// Ends mongod as a crash would.
    pub fn kill_9(&self) {
        if let Some(mut child) = self.running().take() {
            child.kill().expect("a child of ours can be killed");
            child.wait().expect("a killed child ends");
        }
    }

    /// Starts mongod again on the same data and the same port, after asking it to end if it still runs, and waits until
    /// it takes writes.
    pub async fn restart(&self) {
        if self.running().is_some() {
            self.stop().await;
        }
        assert!(self.spawn().await, "somebody else took port {} while mongod was down", self.port);
        wait_until_primary(self.port).await;
    }

    /// Stops mongod in its tracks: its connections stay open and nobody answers them.
    pub fn freeze(&self) {
        self.process().signal(Signal::STOP);
    }

    /// Lets a frozen mongod go on.
    pub fn thaw(&self) {
        self.process().signal(Signal::CONT);
    }

    /// Starts the process and waits until it answers. `false` when its port was taken.
    async fn spawn(&self) -> bool {
        let root = self.root.path();
        let binary = mongod_binary();
        let child = Command::new(&binary)
            .args(arguments(root, self.port, self.set))
            .current_dir(root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|err| panic!("mongod is started as {}: {err}", binary.display()));
        // Owned from here on, so that a start that fails leaves nothing running.
        *self.running() = Some(child);
        let admin = direct(self.port);
        let status = wait_until("mongod answers or has ended", LIMIT, || async {
            if let Some(status) = self.ended() {
                return Some(Some(status));
            }
            admin.run_command(doc! { "ping": 1 }).await.is_ok().then_some(None)
        })
        .await;
        let Some(status) = status else { return true };
        *self.running() = None;
        if status.code() == Some(PORT_TAKEN) {
            return false;
        }
        let how =
            status.code().map_or_else(|| format!("signal {:?}", status.signal()), |code| code.to_string());
        panic!(
            "{} ended with {how} instead of starting; its log ends:\n{}",
            binary.display(),
            log_tail(self.root.path())
        );
    }

    fn ended(&self) -> Option<ExitStatus> {
        let mut running = self.running();
        let child = running.as_mut().expect("mongod was started and not stopped");
        child.try_wait().expect("a child of ours can be asked about")
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Mongod {
    fn drop(&mut self) {
        // Frozen or not: nothing survives SIGKILL, and nobody wants the data.
        self.kill_9();
    }
}

/// Asks the system for a port that nobody uses.
fn free_port() -> u16 {
    let probe = TcpListener::bind("127.0.0.1:0").expect("loopback always has a free port");
    probe.local_addr().expect("a bound socket has an address").port()
}

fn log_tail(root: &Path) -> String {
    let log = std::fs::read(root.join("log")).unwrap_or_default();
    String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL)..]).into_owned()
}

/// What mongod is called with, to keep everything in `root`.
fn arguments(root: &Path, port: u16, set: Option<&str>) -> Vec<String> {
    let path = |name: &str| root.join(name).display().to_string();
    let mut arguments = vec!["--dbpath".to_owned(), path("data"), "--logpath".to_owned(), path("log")];
    arguments.extend(["--port".to_owned(), port.to_string()]);
    arguments.extend(set.into_iter().flat_map(|set| ["--replSet".to_owned(), set.to_owned()]));
    let fixed = [
        ["--logappend", "--nounixsocket"],
        ["--bind_ip", "127.0.0.1"],
        // What a production server takes of its disk and memory in advance: 300 MB, and half of the RAM.
        ["--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=4MB)"],
        ["--wiredTigerCacheSizeGB", "0.25"],
        ["--oplogSize", "16"],
        ["--setParameter", "diagnosticDataCollectionEnabled=false"],
        // Fail points: a test can have it fail a command, or not confirm it.
        ["--setParameter", "enableTestCommands=1"],
    ];
    arguments.extend(fixed.concat().into_iter().map(str::to_owned));
    arguments
}

fn uri(port: u16, set: Option<&str>, database: &str) -> String {
    let set = set.map(|set| format!("?replicaSet={set}")).unwrap_or_default();
    format!("mongodb://127.0.0.1:{port}/{database}{set}")
}

/// The administration of this very process, whatever its replica set thinks of it.
fn direct(port: u16) -> Database {
    let host = ServerAddress::Tcp { host: "127.0.0.1".to_owned(), port: Some(port) };
    let options = ClientOptions::builder()
        .hosts(vec![host])
        .direct_connection(true)
        .server_selection_timeout(COMMAND_LIMIT)
        .connect_timeout(COMMAND_LIMIT)
        .build();
    Client::with_options(options).expect("the kit's own options fit each other").database("admin")
}

/// Makes a new mongod the only member of a replica set.
async fn initiate(port: u16, set: &str) {
    let member = doc! { "_id": 0, "host": format!("127.0.0.1:{port}") };
    let config = doc! { "_id": set, "members": [member] };
    direct(port)
        .run_command(doc! { "replSetInitiate": config })
        .await
        .expect("a new mongod becomes a replica set when told");
}

async fn wait_until_primary(port: u16) {
    let admin = direct(port);
    wait_until("mongod takes writes", LIMIT, || async {
        let hello = admin.run_command(doc! { "hello": 1 }).await.map_err(|err| err.to_string())?;
        let primary = hello.get_bool("isWritablePrimary").unwrap_or(false);
        if primary { Ok(()) } else { Err(hello.to_string()) }
    })
    .await;
}
