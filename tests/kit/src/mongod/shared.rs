//! The server that all tests share.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mongodb::bson::doc;
use mongodb::{Client, Database};
use uuid::Uuid;

use super::{
    REPLICA_SET, arguments, direct, free_port, initiate, log_tail, mongod_binary, uri, wait_until_primary,
};
use crate::LIMIT;
use crate::procs::Proc;
use crate::wait::wait_until;

/// Names a server to use in the place of one that is started here.
const ELSEWHERE: &str = "OPTIO_TEST_MONGODB";

/// How often a server is asked whether it is one; each may take as long as the kit waits for a command.
const TRIES: usize = 10;

/// Runs the mongod `$3…` in the directory `$2`, and ends it when the lock `$1/users` has been free for five seconds: the
/// kernel lets a lock go with its process, however that ends. `$1/port` tells that the server is there; it goes first,
/// under the lock, so that nobody begins to use what is about to end. The directory is this server's alone: the next one
/// may have started before it is deleted.
const WATCHER: &str = r#"
dir=$1 root=$2
shift 2
"$@" >"$root/out" 2>&1 &
pid=$!
idle=0
while kill -0 $pid 2>/dev/null; do
    sleep 1
    if flock -n -x "$dir/users" true; then idle=$((idle + 1)); else idle=0; fi
    [ $idle -lt 5 ] || ! flock -n -x "$dir/users" sh -c 'rm -f "$1/port"; kill -9 $2' sh "$dir" $pid || break
done
wait $pid
[ $idle -lt 5 ] || rm -rf "$root"
"#;

/// A database of a test's own, on a server that every test process of this user shares: what hundreds of short tests
/// need, which neither stop the server nor look at anything but their database.
///
/// `OPTIO_TEST_MONGODB` may name the server to use, as a connection string. Otherwise the first test starts one, and it
/// ends by itself, with its data, a few seconds after the last test.
pub struct TestDatabase {
    uri: String,
    name: String,
    /// Lets the server live; none when it is not ours.
    used: Option<File>,
}

impl TestDatabase {
    /// Makes a name for a new database, and sees to it that there is a server.
    ///
    /// # Panics
    /// When there is no mongod, or it does not start, with the end of its log.
    pub async fn new() -> Self {
        let name = format!("optio_test_{}", Uuid::new_v4().simple());
        if let Ok(server) = std::env::var(ELSEWHERE) {
            return Self { uri: with_database(&server, &name), name, used: None };
        }
        let dir = directory();
        let locks = dir.clone();
        let locked =
            tokio::task::spawn_blocking(move || (lock(&locks, "users", false), lock(&locks, "start", true)));
        let (used, starting) = locked.await.expect("taking a lock does not panic");
        let port = std::fs::read_to_string(dir.join("port")).ok().and_then(|port| port.parse().ok());
        let port = match port {
            Some(port) if answers(port).await => port,
            _ => {
                let port = start(&dir).await;
                std::fs::write(dir.join("port"), port.to_string()).expect("a directory of ours is writable");
                port
            }
        };
        drop(starting);
        Self { uri: uri(port, Some(REPLICA_SET), &name), name, used: Some(used) }
    }

    /// The connection string, as users give it. It names the database.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The database, through a client of the test's own.
    pub async fn open(&self) -> Database {
        let client = Client::with_uri_str(&self.uri).await;
        client
            .unwrap_or_else(|err| panic!("the server of {ELSEWHERE} is well named: {err}"))
            .database(&self.name)
    }
}

impl Drop for TestDatabase {
    /// A server that is not ours is left as it was found.
    fn drop(&mut self) {
        if self.used.is_some() {
            return;
        }
        let (uri, name) = (self.uri.clone(), self.name.clone());
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { Client::with_uri_str(uri).await?.database(&name).drop().await })
        });
        match dropping.join() {
            Ok(Ok(())) => {}
            left => eprintln!("the database {} was left behind: {left:?}", self.name),
        }
    }
}

/// Whether there is a mongod behind this port: one that was killed leaves its port, and somebody else may have it now.
async fn answers(port: u16) -> bool {
    // Being refused is certain. On a busy machine a server may well be late, and must not be taken for gone.
    if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        return false;
    }
    let admin = direct(port);
    for _ in 0..TRIES {
        if admin.run_command(doc! { "ping": 1 }).await.is_ok() {
            return true;
        }
    }
    false
}

/// Waits for a lock of the server's directory: alone, or with others.
fn lock(dir: &Path, name: &str, alone: bool) -> File {
    std::fs::create_dir_all(dir).expect("the temp directory is writable");
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    let file = options.open(dir.join(name)).expect("a directory of ours is writable");
    let locked = if alone { file.lock() } else { file.lock_shared() };
    locked.expect("files in the temp directory can be locked");
    file
}

/// One for each user and each program.
fn directory() -> PathBuf {
    let binary = mongod_binary();
    let program = binary.display().to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let user = rustix::process::getuid().as_raw();
    std::env::temp_dir().join(format!("optio-test-mongod-{user}{program}"))
}

async fn start(dir: &Path) -> u16 {
    let port = free_port();
    // What servers left whose watcher was killed. Nobody else starts one now, and none is running.
    for left in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if left.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _gone_already = std::fs::remove_dir_all(left.path());
        }
    }
    let root = dir.join(format!("server-{}", Uuid::new_v4().simple()));
    std::fs::create_dir_all(root.join("data")).expect("a directory of ours is writable");
    let mut watcher = Command::new("sh")
        .args(["-c", WATCHER, "watcher"])
        .args([dir, &root])
        .arg(mongod_binary())
        .args(arguments(&root, port, Some(REPLICA_SET)))
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // It outlives this test, and whoever ends the test's process group.
        .process_group(0)
        .spawn()
        .expect("there is a shell");
    let (admin, process) = (direct(port), Proc::find(watcher.id().cast_signed()));
    wait_until("the shared mongod answers or has ended", LIMIT, || async {
        let ended = process.as_ref().is_none_or(|process| !process.is_alive());
        ended || admin.run_command(doc! { "ping": 1 }).await.is_ok()
    })
    .await;
    if let Ok(Some(_)) = watcher.try_wait() {
        panic!("the shared mongod ended instead of starting; its log ends:\n{}", log_tail(&root));
    }
    initiate(port, REPLICA_SET).await;
    wait_until_primary(port).await;
    port
}

/// Puts a database into a connection string that names none, or another one.
fn with_database(server: &str, name: &str) -> String {
    let (rest, options) =
        server.split_once('?').map_or((server, String::new()), |(rest, o)| (rest, format!("?{o}")));
    let (scheme, rest) = rest.split_once("://").unwrap_or(("mongodb", rest));
    let host = rest.split('/').next().unwrap_or_default();
    format!("{scheme}://{host}/{name}{options}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_put_where_a_connection_string_has_it() {
        for (server, expected) in [
            ("mongodb://h", "mongodb://h/db"),
            ("mongodb://h/", "mongodb://h/db"),
            ("mongodb://u:p@h:1,i:2/other?replicaSet=rs0", "mongodb://u:p@h:1,i:2/db?replicaSet=rs0"),
            ("mongodb+srv://h?w=1", "mongodb+srv://h/db?w=1"),
        ] {
            assert_eq!(with_database(server, "db"), expected);
        }
    }
}
