//! The service itself, as a child process in a world of its own.

use std::collections::{BTreeMap, VecDeque};
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use serde_json::{Map, Value};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::LIMIT;
use crate::client::Client;
use crate::codex::codex_binary;
use crate::far::Far;
use crate::procs::{Proc, processes_touching, sockets_beneath};
use crate::wait::wait_until;

/// The output lines kept to be shown when a test fails.
const LINES: usize = 2_000;
/// The longest output line kept; the rest of it is dropped.
const LINE_LIMIT: u64 = 16 << 10;
/// The `PATH` of a service without codex.
const BARE_PATH: &str = "/usr/bin:/bin";
/// What stands before the address on the line that says the service is ready.
const READY: &str = "optio-codex listening on ";

/// What a service is started with.
pub struct ServerSetup {
    binary: PathBuf,
    codex: Option<PathBuf>,
    bare: bool,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    config: String,
    hosts: BTreeMap<String, Map<String, Value>>,
    far: Option<Arc<Far>>,
}

/// What sessions are told from, of the environment of a service: its own words, and what it hands to codex on its machine.
const FOR_CODEX: &str = "CODEX_";

impl ServerSetup {
    /// Adds arguments after `serve` and those the kit gives itself (`--listen`, `--data-dir`).
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args.extend(args.into_iter().map(str::to_owned));
        self
    }

    /// Adds or replaces an environment variable of the service.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Names the codex that sessions find, instead of the real one of [`codex_binary`].
    #[must_use]
    pub fn codex(mut self, program: impl Into<PathBuf>) -> Self {
        self.codex = Some(program.into());
        self
    }

    /// Gives the service a configuration file with this text, before the hosts.
    #[must_use]
    pub fn config(mut self, toml: impl Into<String>) -> Self {
        self.config = toml.into();
        self
    }

    /// Configures a host: the fields of its table in the configuration file, such as [`Far::entry`] gives.
    #[must_use]
    pub fn host(mut self, name: &str, entry: Map<String, Value>) -> Self {
        self.hosts.insert(name.to_owned(), entry);
        self
    }

    /// Puts the sessions of this service on another machine: it is configured as the host [`FAR`], and the clients of the
    /// service name it for every session that names none itself. What the service's environment says to codex is said there.
    #[must_use]
    pub fn on(self, far: &Arc<Far>) -> Self {
        let entry = far.entry();
        Self { far: Some(far.clone()), ..self.host(FAR, entry) }
    }

    /// Puts no codex where the service finds it: its `PATH`, a login shell's too, has the system's programs alone.
    #[must_use]
    pub fn without_codex(mut self) -> Self {
        self.bare = true;
        self
    }

    /// Starts the service and waits until it says that it is ready.
    ///
    /// # Panics
    /// When it ends or stays silent for [`LIMIT`](crate::LIMIT) instead, with all it said.
    pub async fn start(self) -> TestServer {
        let root =
            tempfile::Builder::new().prefix("optio-").tempdir().expect("the temp directory is writable");
        for dir in ["bin", "home", "run", "tasks", "tmp"] {
            std::fs::create_dir(root.path().join(dir)).expect("a new directory is empty");
        }
        // Sockets go here; a service that checks its directories wants this one to be nobody else's.
        let private = Permissions::from_mode(0o700);
        std::fs::set_permissions(root.path().join("run"), private)
            .expect("a directory of ours can be closed");
        if self.bare {
            let profile = root.path().join("home/.profile");
            std::fs::write(profile, format!("PATH={BARE_PATH}\n")).expect("a new directory is empty");
        } else {
            let codex = self.codex.clone().unwrap_or_else(codex_binary);
            symlink(codex, root.path().join("bin/codex")).expect("a new directory is empty");
        }

        if let Some(text) = self.config_file() {
            std::fs::write(root.path().join(CONFIG), text).expect("a new directory is empty");
        }
        if let Some(far) = &self.far {
            for (name, value) in self.env.iter().filter(|(name, _)| name.starts_with(FOR_CODEX)) {
                far.set_env(name, value).await;
            }
        }

        let running = Mutex::default();
        let server = TestServer { setup: self, root, running, output: Arc::default() };
        server.spawn("127.0.0.1:0").await;
        server
    }

    /// The text of the configuration file, with a table for each host. What JSON has of strings, numbers and lists is TOML
    /// too. Nothing when there is nothing to say: some tests give a file of their own.
    fn config_file(&self) -> Option<String> {
        let mut text = self.config.clone();
        for (name, entry) in &self.hosts {
            text.push_str(&format!("\n[hosts.{name}]\n"));
            for (field, value) in entry {
                text.push_str(&format!("{field} = {value}\n"));
            }
        }
        (!text.is_empty()).then_some(text)
    }
}

/// The name of the host that a service's sessions are on, see [`ServerSetup::on`].
pub const FAR: &str = "box";

/// The configuration file beneath a service's root, when it has one.
const CONFIG: &str = "config.toml";

/// Nobody listens there.
const NO_RELEASES: &str = "http://127.0.0.1:9";

/// A running service. Dropping it kills it and everything it ever started, and shows what it said if the test failed.
pub struct TestServer {
    setup: ServerSetup,
    root: TempDir,
    running: Mutex<Option<Running>>,
    output: Arc<watch::Sender<Output>>,
}

struct Running {
    child: Child,
    address: String,
}

/// The end of what the service said, both streams in the order of arrival.
#[derive(Default)]
struct Output {
    lines: VecDeque<String>,
    dropped: usize,
    /// Counts the starts: what a killed service still had in its pipes arrives after the next start.
    start: usize,
    /// Of the present start: what stood on standard output so far, and whether that was all.
    stdout: Vec<String>,
    closed: bool,
}

impl TestServer {
    /// Describes a service to start. A test of the root package names it with `env!("CARGO_BIN_EXE_optio-codex")`.
    pub fn of(binary: impl Into<PathBuf>) -> ServerSetup {
        ServerSetup {
            binary: binary.into(),
            codex: None,
            bare: false,
            args: Vec::new(),
            env: BTreeMap::new(),
            config: String::new(),
            hosts: BTreeMap::new(),
            far: None,
        }
    }

    /// The address as the start of a URL, without a slash at the end. It stays the same over a restart.
    pub fn url(&self) -> String {
        format!("http://{}", self.with_running(|running| running.address.clone()))
    }

    /// The one-time login link the service printed at its last start.
    pub async fn login_link(&self) -> String {
        wait_until("the service prints its login link", LIMIT, || async {
            self.output.borrow().stdout.iter().find_map(|line| link_in(line))
        })
        .await
    }

    /// A client with the operator's token.
    pub fn client(&self) -> Client {
        let token = self.data_dir().join("token");
        let token = std::fs::read_to_string(&token)
            .unwrap_or_else(|err| panic!("a ready service has its token in {}: {err}", token.display()));
        let client = Client::new(self.url(), token.trim());
        if self.setup.far.is_some() { client.on_host(FAR) } else { client }
    }

    /// The service's process.
    pub fn process(&self) -> Proc {
        let pid = self.with_running(|running| running.child.id().cast_signed());
        Proc::find(pid).expect("the service was started and not stopped")
    }

    /// What belongs to this service and nobody else: everything it makes lies beneath.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The directory of the store, the journals and the token.
    pub fn data_dir(&self) -> PathBuf {
        self.root().join("data")
    }

    /// The machine of its sessions, when it is another one.
    pub fn far(&self) -> Option<&Far> {
        self.setup.far.as_deref()
    }

    /// The directory of the task directories of its sessions (`OPTIO_CODEX_TASK_ROOT`), as this machine sees it.
    pub fn task_root(&self) -> PathBuf {
        self.far().map_or_else(|| self.near_task_root(), |far| far.seen(&far.task_root()))
    }

    fn near_task_root(&self) -> PathBuf {
        self.root().join("tasks")
    }

    /// A directory outside all task directories, with the same path here and on the machine of its sessions.
    pub fn open_dir(&self) -> PathBuf {
        self.far().map_or_else(|| self.root().to_owned(), Far::open_dir)
    }

    /// The sockets of its sessions, as this machine sees them.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let mut sockets = sockets_beneath(self.root());
        sockets.extend(self.far().map(Far::sockets).unwrap_or_default());
        sockets
    }

    /// The `XDG_RUNTIME_DIR`, under which the sockets are.
    pub fn runtime_dir(&self) -> PathBuf {
        self.root().join("run")
    }

    /// The processes that belong to this service, other than itself: guards, agents, tmux, ttyd and what they started,
    /// here and on the machine of its sessions.
    pub fn agents(&self) -> Vec<Proc> {
        let own = self.running().as_ref().map(|running| running.child.id().cast_signed());
        let near = processes_touching(self.root()).into_iter().filter(|process| Some(process.pid) != own);
        near.chain(self.far().map(Far::agents).unwrap_or_default()).collect()
    }

    /// Everything the service said so far, over all its starts.
    pub fn output(&self) -> String {
        let output = self.output.borrow();
        let mut text = String::new();
        if output.dropped > 0 {
            text.push_str(&format!("… {} lines before\n", output.dropped));
        }
        for line in &output.lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// Ends the service as a crash would: SIGKILL, nothing flushed, its agents left alone.
    pub fn kill_9(&self) {
        if let Some(mut running) = self.running().take() {
            running.child.kill().expect("a child of ours can be killed");
            running.child.wait().expect("a killed child ends");
        }
    }

    /// Asks the service to end, as `systemctl stop` does, without waiting for it.
    pub fn send_term(&self) {
        self.process().signal(Signal::TERM);
    }

    /// Asks the service to end and waits for it. Returns the exit code, or minus the number of the signal that killed it.
    ///
    /// # Panics
    /// When it still runs after [`LIMIT`](crate::LIMIT).
    pub async fn term(&self) -> i32 {
        self.send_term();
        self.wait_for_exit().await
    }

    /// Waits until the service has ended. Returns the exit code, or minus the number of the signal that killed it.
    ///
    /// # Panics
    /// When it still runs after [`LIMIT`](crate::LIMIT).
    pub async fn wait_for_exit(&self) -> i32 {
        let status = wait_until("the service has ended", LIMIT, || async { self.try_wait() }).await;
        *self.running() = None;
        status
            .code()
            .or(status.signal().map(|signal| -signal))
            .expect("an ended process has a code or a signal")
    }

    /// Starts the service again on the same data and the same port, after asking it to end if it still runs.
    pub async fn restart(&self) {
        let address = self.last_address();
        if self.running().is_some() {
            self.term().await;
        }
        self.spawn(&address).await;
    }

    fn try_wait(&self) -> Option<ExitStatus> {
        self.with_running(|running| running.child.try_wait().expect("a child of ours can be asked about"))
    }

    async fn spawn(&self, listen: &str) {
        let mut start = 0;
        self.output.send_modify(|output| {
            output.start += 1;
            output.stdout.clear();
            output.closed = false;
            start = output.start;
        });
        let mut child = self.command(listen).spawn().unwrap_or_else(|err| {
            panic!("the service is started as {}: {err}", self.setup.binary.display());
        });
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        read_lines(stdout, self.output.clone(), Stream::Out(start));
        read_lines(stderr, self.output.clone(), Stream::Err);
        // Owned from here on, so that a start that fails leaves nothing running.
        *self.running() = Some(Running { child, address: String::new() });

        let mut output = self.output.subscribe();
        let ready = |output: &Output| output.stdout.iter().find_map(|line| ready_address(line));
        let said = output.wait_for(|output| output.closed || ready(output).is_some());
        let address = match tokio::time::timeout(LIMIT, said).await {
            Ok(Ok(output)) => ready(&output),
            _ => None,
        };
        let Some(address) = address else {
            panic!("the service did not say {READY:?} within {LIMIT:?}; it said:\n{}", self.output());
        };
        std::fs::write(self.root().join("address"), &address).expect("the server's root is writable");
        self.with_running(|running| running.address = address);
    }

    fn command(&self, listen: &str) -> Command {
        let root = self.root();
        let path = match self.setup.bare {
            true => BARE_PATH.to_owned(),
            false => std::env::var("PATH").unwrap_or_default(),
        };
        let mut command = Command::new(&self.setup.binary);
        command
            .arg("serve")
            .args(["--listen", listen, "--data-dir"])
            .arg(self.data_dir())
            .args(self.setup.config_file().map(|_| format!("--config={}", root.join(CONFIG).display())))
            .args(&self.setup.args)
            .env_clear()
            .env("PATH", format!("{}:{path}", root.join("bin").display()))
            .env("HOME", root.join("home"))
            .env("TMPDIR", root.join("tmp"))
            .env("XDG_RUNTIME_DIR", self.runtime_dir())
            .env("OPTIO_CODEX_TASK_ROOT", self.near_task_root())
            .env("LANG", "C.UTF-8")
            // No test asks the world for a program; one about releases has a server of its own.
            .env("OPTIO_CODEX_TTYD_RELEASE_URL", NO_RELEASES)
            .env("RUST_BACKTRACE", "1")
            // Nobody listens there: no test ever asks the real login server.
            .env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", "http://127.0.0.1:9/oauth/token")
            // Named, so that it is used where it is: a copy of 286 MB for each test would be the most of its time.
            .envs((!self.setup.bare).then(|| ("OPTIO_CODEX_CODEX", root.join("bin/codex"))))
            .envs(std::env::var("RUST_LOG").map(|level| ("RUST_LOG", level)))
            .envs(&self.setup.env)
            .current_dir(root)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// The port of the last start, kept where a killed service leaves it too.
    fn last_address(&self) -> String {
        std::fs::read_to_string(self.root().join("address")).expect("the address is written at each start")
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn with_running<T>(&self, look: impl FnOnce(&mut Running) -> T) -> T {
        look(self.running().as_mut().expect("the service was started and not stopped"))
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(mut running) = self.running().take() {
            // It may have ended by itself; either way it is gone after this.
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
        // A process killed here may have started another a moment before.
        for _ in 0..10 {
            let left = self.agents();
            if left.is_empty() {
                break;
            }
            left.iter().for_each(Proc::kill_9);
        }
        if std::thread::panicking() {
            eprintln!("--- the service said:\n{}--- end of what the service said", self.output());
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Stream {
    /// Standard output of the so manieth start.
    Out(usize),
    Err,
}

/// Reads a stream to its end in a thread of its own: a full pipe would stop the service.
fn read_lines(stream: impl Read + Send + 'static, output: Arc<watch::Sender<Output>>, from: Stream) {
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut stream).take(LINE_LIMIT).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            output.send_modify(|output| output.push(text, from));
        }
        output.send_modify(|output| output.closed |= from == Stream::Out(output.start));
    });
}

impl Output {
    fn push(&mut self, line: String, from: Stream) {
        if from == Stream::Out(self.start) && self.stdout.len() < LINES {
            self.stdout.push(line.clone());
        }
        if self.lines.len() == LINES {
            self.lines.pop_front();
            self.dropped += 1;
        }
        self.lines.push_back(line);
    }
}

/// Reads `optio-codex listening on http://HOST:PORT`.
fn ready_address(line: &str) -> Option<String> {
    let url = line.strip_prefix(READY)?.split_whitespace().next()?;
    url.strip_prefix("http://").map(|address| address.trim_end_matches('/').to_owned())
}

/// Finds the link in any other line of standard output.
fn link_in(line: &str) -> Option<String> {
    if line.starts_with(READY) {
        return None;
    }
    line.split_whitespace()
        .find(|word| word.starts_with("http://") || word.starts_with("https://"))
        .map(str::to_owned)
}
