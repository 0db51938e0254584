//! A whole machine in memory, on tokio's clock, for tests of what runs above [`Host`].
//!
//! Files, watches, archives and the guard keep the same contracts as a real host's ([`crate::suite`] checks them).
//! Programs are played by the test:
//!
//! ```
//! use optio_host::fake::{FakeHost, FakeLaunch};
//! use optio_host::{Dial, ExitStatus, Host, TaskId};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let host = FakeHost::new();
//! let dir = host.task_dir(&TaskId::new("a").unwrap());
//! let socket = Dial::Unix(host.socket_path(&dir));
//! host.on_program({
//!     let socket = socket.clone();
//!     move |launch: FakeLaunch| {
//!         let mut listener = launch.listen(socket.clone());
//!         async move {
//!             let mut client = listener.accept().await;
//!             client.write_all(b"hello").await.unwrap();
//!             ExitStatus::Code(0)
//!         }
//!     }
//! });
//! let mut agent = host.spawn(optio_host::Command::new(["codex", "app-server"])).await.unwrap();
//! let mut said = String::new();
//! host.dial(&socket).await.unwrap().read_to_string(&mut said).await.unwrap();
//! assert_eq!(said, "hello");
//! assert_eq!(agent.process.wait().await.unwrap(), ExitStatus::Code(0));
//! # });
//! ```

mod archived;
mod guarded;
mod network;
mod programs;
mod pty;
mod tree;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};

use self::guarded::Guarded;
use self::network::Network;
use self::programs::{Child, KillOnDrop, PIPE, Process, Start, start};
pub use self::programs::{FakeLaunch, FakeListener, FakeSignals, FakeStart};
use self::tree::{Node, Tree};
use crate::error::{HostError, Result};
use crate::{
    AgentIdentity, AgentState, ByteStream, Codec, CodexBinary, Command, Dial, Duplex, EnvPlan, Excludes,
    ExitStatus, FileInfo, FilePart, GuardSpec, Host, OUTPUT_LIMIT, Output, Pty, Reach, RelPath, Signal, Size,
    Spawned, TaskDir, TaskId, Watch, archive,
};

/// Home directory of the fake's user.
const HOME: &str = "/home/fake";
/// Lines of [`FakeHost::trace`] that are kept, the last ones; a test that needs more looks at the wrong thing.
const TRACE_LIMIT: usize = 10_000;
/// How long a dial waits for a listener that does not accept.
const DIAL_LIMIT: Duration = Duration::from_secs(5);

type Program = Arc<dyn Fn(FakeLaunch) -> Pin<Box<dyn Future<Output = ExitStatus> + Send>> + Send + Sync>;

/// A machine in memory. Clones are the same machine, so one that outlives a test's "service" shows what a restarted
/// one would find.
#[derive(Clone)]
pub struct FakeHost {
    shared: Arc<Mutex<State>>,
    network: Arc<Network>,
}

struct State {
    tree: Tree,
    program: Option<Program>,
    codex: Option<CodexBinary>,
    next_pid: u32,
    /// Every spawned or guarded program, ended or not.
    agents: Vec<Arc<Process>>,
    listeners: HashMap<Dial, mpsc::Sender<DuplexStream>>,
    guarded: HashMap<PathBuf, Guarded>,
    /// The marks of runs whose agents no guard has started.
    marks: HashMap<PathBuf, String>,
    trace: VecDeque<String>,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHost {
    /// A machine without sessions, on which every program is missing until [`FakeHost::on_program`], and codex until
    /// [`FakeHost::codex`].
    pub fn new() -> Self {
        let state = State {
            tree: Tree::default(),
            program: None,
            codex: None,
            next_pid: 1000,
            agents: Vec::new(),
            listeners: HashMap::new(),
            guarded: HashMap::new(),
            marks: HashMap::new(),
            trace: VecDeque::new(),
        };
        Self { shared: Arc::new(Mutex::new(state)), network: Arc::default() }
    }

    /// Says what plays every program that is started from now on, by whichever way; it may look at
    /// [`FakeLaunch::argv`] and [`FakeLaunch::start`] to know which one it is.
    pub fn on_program<F, Fut>(&self, program: F)
    where
        F: Fn(FakeLaunch) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ExitStatus> + Send + 'static,
    {
        self.state().program = Some(Arc::new(move |launch| Box::pin(program(launch))));
    }

    /// Says what [`Host::find_codex`] answers from now on.
    pub fn codex(&self, binary: CodexBinary) {
        self.state().codex = Some(binary);
    }

    /// How many spawned or guarded programs are running.
    pub fn agents_running(&self) -> usize {
        self.state().agents.iter().filter(|agent| agent.ended().is_none()).count()
    }

    /// What [`Host::guard_state`] would answer, whatever becomes of the network.
    pub fn agent_state(&self, dir: &TaskDir) -> AgentState {
        self.guarded_state(dir)
    }

    /// The bytes of a file at an absolute path.
    pub fn file(&self, path: &Path) -> Option<Bytes> {
        match self.state().tree.node(path) {
            Some(Node::File { bytes, .. }) => Some(bytes.clone()),
            _ => None,
        }
    }

    /// Where a link at an absolute path points to.
    pub fn link_target(&self, path: &Path) -> Option<PathBuf> {
        match self.state().tree.node(path) {
            Some(Node::Link(target)) => Some(target.clone()),
            _ => None,
        }
    }

    /// Writes a file as the agent would: in place, past the rules of a task directory, making what is missing.
    pub fn put_file(&self, path: &Path, bytes: impl Into<Bytes>) {
        let mut state = self.state();
        if let Some(parent) = path.parent() {
            state.tree.make_all(parent);
        }
        let mode = match state.tree.node(path) {
            Some(Node::File { mode, .. }) => *mode,
            _ => 0o600,
        };
        state.tree.put(path, Node::File { bytes: bytes.into(), mode });
    }

    /// Makes a link as the agent would.
    pub fn put_link(&self, path: &Path, target: &Path) {
        let mut state = self.state();
        if let Some(parent) = path.parent() {
            state.tree.make_all(parent);
        }
        state.tree.put(path, Node::Link(target.to_path_buf()));
    }

    /// Removes a file or a whole directory as the agent would.
    pub fn remove_path(&self, path: &Path) {
        self.state().tree.remove_all(path);
    }

    /// Absolute paths of all files below a directory, sorted.
    pub fn files(&self, below: &Path) -> Vec<PathBuf> {
        let state = self.state();
        let is_file = |node: &Node| matches!(node, Node::File { .. });
        state.tree.below(below).filter(|(_, node)| is_file(node)).map(|(path, _)| path.clone()).collect()
    }

    /// What was asked of this machine and what its programs did, in order, one line each.
    pub fn trace(&self) -> Vec<String> {
        self.state().trace.iter().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panics while it holds the lock has failed anyway; the others' teardown should still work.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, line: String) {
        let mut state = self.state();
        if state.trace.len() == TRACE_LIMIT {
            state.trace.pop_front();
        }
        state.trace.push_back(line);
    }

    fn environment(&self, plan: &EnvPlan) -> Result<BTreeMap<String, String>> {
        let own = [("HOME", HOME), ("PATH", "/usr/local/bin:/usr/bin:/bin")];
        let env = plan.apply(own.map(|(name, value)| (name.into(), value.into())))?;
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Ok(env.into_iter().map(|(name, value)| (text(name), text(value))).collect())
    }

    fn next_program(&self, argv: &[String]) -> Result<(Program, u32)> {
        let Some(name) = argv.first().filter(|name| !name.is_empty()) else {
            return Err(HostError::Refused {
                what: "command",
                value: String::new(),
                why: "it names no program",
            });
        };
        let mut state = self.state();
        let Some(program) = state.program.clone() else {
            return Err(HostError::Program { program: name.clone(), why: "there is no such program".into() });
        };
        state.next_pid += 1;
        Ok((program, state.next_pid))
    }

    fn start(&self, how: FakeStart, command: &Command) -> Result<(Arc<Process>, programs::Pipes)> {
        let env = self.environment(&command.env)?;
        let (program, pid) = self.next_program(&command.argv)?;
        let cwd = command.cwd.clone().unwrap_or_else(|| PathBuf::from(HOME));
        let with = Start { start: how, argv: command.argv.clone(), env, cwd };
        Ok(start(self, &program, with, pid))
    }
}

#[async_trait]
impl Host for FakeHost {
    fn name(&self) -> &str {
        "fake"
    }

    fn reach(&self) -> watch::Receiver<Reach> {
        self.network.reach()
    }

    async fn connect(&self) -> Result<()> {
        self.reconnect().await
    }

    async fn home(&self) -> Result<PathBuf> {
        self.enter("home".to_owned()).await?;
        Ok(PathBuf::from(HOME))
    }

    fn task_dir(&self, id: &TaskId) -> TaskDir {
        TaskDir::new(Path::new("/fake/tasks"), id)
    }

    fn socket_path(&self, dir: &TaskDir) -> PathBuf {
        Path::new("/fake/run").join(dir.path().file_name().unwrap_or_default()).join("app.sock")
    }

    async fn create(&self, dir: &TaskDir) -> Result<()> {
        self.enter(format!("create {}", dir.path().display())).await?;
        let mut state = self.state();
        state.tree.remove_all(&dir.workdir());
        state.tree.make_all(&dir.workdir());
        state.listeners.remove(&Dial::Unix(self.socket_path(dir)));
        Ok(())
    }

    async fn exists(&self, dir: &TaskDir) -> Result<bool> {
        self.enter(format!("exists {}", dir.path().display())).await?;
        Ok(self.state().tree.is_dir(dir.path()))
    }

    async fn cleanup(&self, dir: &TaskDir) -> Result<()> {
        self.enter(format!("cleanup {}", dir.path().display())).await?;
        let mut state = self.state();
        state.tree.remove_all(dir.path());
        state.guarded.remove(dir.path());
        state.listeners.remove(&Dial::Unix(self.socket_path(dir)));
        Ok(())
    }

    async fn run(&self, command: Command) -> Result<Output> {
        let connection = self.enter(format!("run {}", command.argv.join(" "))).await?;
        let (process, mut pipes) = self.start(FakeStart::Run, &command)?;
        let process = KillOnDrop(process);
        let whole = async {
            let (mut stdin, bytes) = (pipes.stdin, command.stdin.unwrap_or_default());
            let feed = async move {
                // A program may end without reading its input.
                let _ = stdin.write_all(&bytes).await;
            };
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            let (_, out, err) = tokio::join!(
                feed,
                pipes.stdout.read_to_end(&mut stdout),
                pipes.stderr.read_to_end(&mut stderr)
            );
            out.and(err).map_err(|source| HostError::io("read a program's output", source))?;
            Ok(Output { status: process.0.wait().await, stdout: tail(stdout), stderr: tail(stderr) })
        };
        match tokio::time::timeout(command.limit, self.carry(connection, whole)).await {
            Ok(output) => output,
            Err(_) => Err(HostError::TimedOut {
                what: command.argv.first().cloned().unwrap_or_default(),
                limit: command.limit,
            }),
        }
    }

    async fn spawn(&self, command: Command) -> Result<Spawned> {
        let connection = self.enter(format!("spawn {}", command.argv.join(" "))).await?;
        let (process, pipes) = self.start(FakeStart::Spawn, &command)?;
        self.state().agents.push(Arc::clone(&process));
        Ok(Spawned {
            stdin: Box::new(self.wire(connection, pipes.stdin)),
            stdout: Box::new(self.wire(connection, pipes.stdout)),
            stderr: Box::new(self.wire(connection, pipes.stderr)),
            process: Box::new(Child { process, host: self.clone(), connection }),
        })
    }

    async fn open_pty(&self, command: Command, size: Size) -> Result<Pty> {
        let connection = self.enter(format!("open_pty {}", command.argv.join(" "))).await?;
        let (process, pipes) = self.start(FakeStart::Pty(size), &command)?;
        self.state().agents.push(Arc::clone(&process));
        let (stdin, stdout) = (self.wire(connection, pipes.stdin), self.wire(connection, pipes.stdout));
        Ok(pty::of(KillOnDrop(process), stdin, stdout))
    }

    async fn read(&self, dir: &TaskDir, path: &RelPath, limit: u64) -> Result<Bytes> {
        self.enter(format!("read {}", path.as_str())).await?;
        self.state().tree.read(dir, path, limit)
    }

    async fn read_from(&self, dir: &TaskDir, path: &RelPath, offset: u64, limit: usize) -> Result<FilePart> {
        self.enter(format!("read_from {} {offset}", path.as_str())).await?;
        self.state().tree.read_from(dir, path, offset, limit)
    }

    async fn write(&self, dir: &TaskDir, path: &RelPath, bytes: Bytes, mode: u32) -> Result<()> {
        self.enter(format!("write {}", path.as_str())).await?;
        self.state().tree.write(dir, path, bytes, mode)
    }

    async fn append(&self, dir: &TaskDir, path: &RelPath, bytes: Bytes) -> Result<()> {
        self.enter(format!("append {}", path.as_str())).await?;
        self.state().tree.append(dir, path, &bytes)
    }

    async fn rename(&self, dir: &TaskDir, from: &RelPath, to: &RelPath) -> Result<()> {
        self.enter(format!("rename {} {}", from.as_str(), to.as_str())).await?;
        self.state().tree.rename(dir, from, to)
    }

    async fn remove(&self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        self.enter(format!("remove {}", path.as_str())).await?;
        self.state().tree.remove(dir, path)
    }

    async fn make_dir(&self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        self.enter(format!("make_dir {}", path.as_str())).await?;
        self.state().tree.make_dir(dir, path)
    }

    async fn link(&self, dir: &TaskDir, path: &RelPath, target: &Path) -> Result<()> {
        self.enter(format!("link {}", path.as_str())).await?;
        self.state().tree.link(dir, path, target)
    }

    async fn info(&self, dir: &TaskDir, path: &RelPath) -> Result<Option<FileInfo>> {
        self.enter(format!("info {}", path.as_str())).await?;
        self.state().tree.info(dir, path)
    }

    async fn list(&self, dir: &TaskDir, path: &RelPath, limit: usize) -> Result<Vec<RelPath>> {
        self.enter(format!("list {}", path.as_str())).await?;
        self.state().tree.list(dir, path, limit)
    }

    async fn write_stream(&self, path: &Path, mut stream: ByteStream, mode: u32) -> Result<u64> {
        let connection = self.enter(format!("write_stream {}", path.display())).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = self.carry(connection, async { Ok(stream.next().await) }).await? {
            bytes.extend_from_slice(&chunk?);
        }
        let mut state = self.state();
        let shown = path.display().to_string();
        if !path.parent().is_some_and(|parent| state.tree.is_dir(parent)) {
            return Err(HostError::NotFound { path: shown });
        }
        if state.tree.node(path).is_some() {
            return Err(HostError::io(format!("make {shown}"), std::io::ErrorKind::AlreadyExists.into()));
        }
        let len = bytes.len() as u64;
        state.tree.put(path, Node::File { bytes: bytes.into(), mode });
        Ok(len)
    }

    async fn archive(&self, dir: &TaskDir, excludes: Excludes, codec: Codec) -> Result<ByteStream> {
        let connection = self.enter(format!("archive {}", dir.path().display())).await?;
        let (host, workdir) = (self.clone(), dir.workdir());
        let packed = async move {
            let state = host.state();
            if !state.tree.is_dir(&workdir) {
                return vec![Err(HostError::NotFound { path: workdir.display().to_string() })];
            }
            match archived::pack(&state.tree, &workdir, &excludes, codec) {
                Ok(packed) => packed.chunks(archive::CHUNK).map(|c| Ok(Bytes::copy_from_slice(c))).collect(),
                Err(source) => vec![Err(HostError::io("archive", source))],
            }
        };
        Ok(self.carry_stream(connection, stream::once(packed).flat_map(stream::iter).boxed()))
    }

    async fn restore(&self, dir: &TaskDir, mut stream: ByteStream, codec: Codec) -> Result<()> {
        let connection = self.enter(format!("restore {}", dir.path().display())).await?;
        let mut packed = Vec::new();
        while let Some(chunk) = self.carry(connection, async { Ok(stream.next().await) }).await? {
            packed.extend_from_slice(&chunk?);
        }
        let nodes = archived::unpack(&packed, codec)?;
        let workdir = dir.workdir();
        let mut state = self.state();
        state.tree.remove_all(&workdir);
        state.tree.make_all(&workdir);
        for (path, node) in nodes {
            state.tree.put(&workdir.join(path), node);
        }
        Ok(())
    }

    async fn dial(&self, target: &Dial) -> Result<Box<dyn Duplex>> {
        let connection = self.enter(format!("dial {target:?}")).await?;
        let not_listening = || HostError::NotListening { target: format!("{target:?}") };
        let listener = self.state().listeners.get(target).cloned().ok_or_else(not_listening)?;
        let (ours, theirs) = tokio::io::duplex(PIPE);
        match tokio::time::timeout(DIAL_LIMIT, listener.send(theirs)).await {
            Ok(Ok(())) => Ok(Box::new(self.wire(connection, ours))),
            Ok(Err(_)) => Err(not_listening()),
            Err(_) => Err(HostError::TimedOut { what: format!("connect to {target:?}"), limit: DIAL_LIMIT }),
        }
    }

    async fn watch(&self, dir: &TaskDir, path: &RelPath) -> Result<Watch> {
        self.enter(format!("watch {}", path.as_str())).await?;
        let (id, wakes) = self.state().tree.watch(dir, path)?;
        Ok(Watch::new(wakes, Unwatch { id, host: self.clone() }))
    }

    async fn find_codex(&self, wanted: Option<&Path>) -> Result<CodexBinary> {
        self.enter(format!("find_codex {wanted:?}")).await?;
        self.state().codex.clone().ok_or_else(|| HostError::Program {
            program: "codex".into(),
            why: "it is not on the login shell's PATH".into(),
        })
    }

    async fn guard_start(&self, dir: &TaskDir, spec: GuardSpec) -> Result<AgentIdentity> {
        self.enter(format!("guard_start {}", spec.argv.join(" "))).await?;
        self.start_guarded(dir, spec)
    }

    async fn guard_mark(&self, dir: &TaskDir, run_mark: &str) -> Result<()> {
        self.enter(format!("guard_mark {}", dir.path().display())).await?;
        let mut state = self.state();
        state.guarded.remove(dir.path());
        state.marks.insert(dir.path().to_path_buf(), run_mark.to_owned());
        Ok(())
    }

    async fn guard_state(&self, dir: &TaskDir) -> Result<AgentState> {
        self.enter(format!("guard_state {}", dir.path().display())).await?;
        Ok(self.guarded_state(dir))
    }

    async fn guard_heartbeat(&self, dir: &TaskDir) -> Result<()> {
        self.enter(format!("guard_heartbeat {}", dir.path().display())).await?;
        self.touch_heartbeat(dir)
    }

    async fn guard_signal(&self, dir: &TaskDir, signal: Signal) -> Result<bool> {
        self.enter(format!("guard_signal {signal:?} {}", dir.path().display())).await?;
        Ok(self.signal_guarded(dir, signal))
    }

    async fn guard_gone(&self, dir: &TaskDir, limit: Duration) -> Result<bool> {
        let connection = self.enter(format!("guard_gone {}", dir.path().display())).await?;
        self.carry(connection, async { Ok(self.all_gone(dir, limit).await) }).await
    }

    async fn guard_kill_leftovers(&self, dir: &TaskDir) -> Result<usize> {
        self.enter(format!("guard_kill_leftovers {}", dir.path().display())).await?;
        Ok(self.kill_all_leftovers(dir))
    }

    async fn guard_stderr(&self, dir: &TaskDir) -> Result<Bytes> {
        self.enter(format!("guard_stderr {}", dir.path().display())).await?;
        Ok(self.stderr_of(dir))
    }
}

/// Ends a watch when it is dropped.
struct Unwatch {
    id: u64,
    host: FakeHost,
}

impl Drop for Unwatch {
    fn drop(&mut self) {
        self.host.state().tree.unwatch(self.id);
    }
}

fn tail(bytes: Vec<u8>) -> Bytes {
    let surplus = bytes.len().saturating_sub(OUTPUT_LIMIT);
    Bytes::from(bytes).slice(surplus..)
}
