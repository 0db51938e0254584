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

/// Runs the mongod `$2…` in the directory `$1`, and ends it when the lock `users` has been free for five seconds: the
/// kernel lets a lock go with its process, however that ends. `port` tells that the server is there; it goes first,
/// under the lock, so that nobody begins to use what is about to end.
const WATCHER: &str = r#"
dir=$1
shift
mkdir -p "$dir/data"
"$@" >"$dir/out" 2>&1 &
pid=$!
idle=0
while kill -0 $pid 2>/dev/null; do
    sleep 1
    if flock -n -x "$dir/users" true; then idle=$((idle + 1)); else idle=0; fi
    [ $idle -lt 5 ] || ! flock -n -x "$dir/users" sh -c 'rm -f "$1/port"; kill -9 $2' sh "$dir" $pid || break
done
wait $pid
[ $idle -lt 5 ] || rm -rf "$dir/data" "$dir/log" "$dir/out"
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
        let (used, port) = tokio::task::spawn_blocking(take).await.expect("taking a lock does not panic");
        let port = match port {
            Taken::Running(port) => port,
            Taken::ToStart(starting, dir) => {
                let port = start(&dir).await;
                std::fs::write(dir.join("port"), port.to_string()).expect("a directory of ours is writable");
                drop(starting);
                port
            }
        };
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

enum Taken {
    /// The server is there.
    Running(u16),
    /// Nobody else starts it while the lock is held.
    ToStart(File, PathBuf),
}

/// Becomes a user of the server, and finds out whether somebody has to start it.
fn take() -> (File, Taken) {
    let dir = directory();
    std::fs::create_dir_all(&dir).expect("the temp directory is writable");
    let lock = |name: &str| {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        options.open(dir.join(name)).expect("a directory of ours is writable")
    };
    let used = lock("users");
    used.lock_shared().expect("files in the temp directory can be locked");
    let starting = lock("start");
    starting.lock().expect("files in the temp directory can be locked");
    let port = std::fs::read_to_string(dir.join("port")).ok().and_then(|port| port.parse().ok());
    // One that was killed leaves its port; then nobody listens there.
    let listening = port.filter(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_ok());
    let taken = listening.map_or_else(|| Taken::ToStart(starting, dir), Taken::Running);
    (used, taken)
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
    // What a killed one left is no good without its log, and nobody wants it.
    let _absent = std::fs::remove_dir_all(dir.join("data"));
    let mut watcher = Command::new("sh")
        .args(["-c", WATCHER, "watcher"])
        .arg(dir)
        .arg(mongod_binary())
        .args(arguments(dir, port, Some(REPLICA_SET)))
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
        panic!("the shared mongod ended instead of starting; its log ends:\n{}", log_tail(dir));
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
