//! This machine as a [`Host`].

mod beneath;
mod files;
mod programs;
mod ptys;
mod roots;
mod streamed;
mod tree;
mod watching;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};

use self::beneath::Beneath;
pub(crate) use self::roots::{check_absolute, check_socket_length};
use self::watching::Watcher;
use crate::error::{HostError, Result};
use crate::find_codex::KnownBinaries;
use crate::{
    ByteStream, Codec, CodexBinary, Command, Dial, Duplex, Excludes, FileInfo, FilePart, Host, Output, Pty,
    Reach, RelPath, Size, Spawned, TaskDir, TaskId, Watch, archive,
};

/// File operations under way at once, over all sessions of this host. They are short; more of them would only queue
/// in the kernel, and each holds a thread of the runtime's blocking pool (512 at most, shared with the store).
const FILE_CALLS: usize = 32;
/// Limit of one file operation. Local disks answer in milliseconds; a network disk that hangs must not hang a session.
const FILE_LIMIT: Duration = Duration::from_secs(30);
/// Limit of wiping a whole tree; a workdir with a million files takes about half a minute.
const TREE_LIMIT: Duration = Duration::from_secs(600);
/// Limit of connecting on this machine; only a full backlog makes it wait at all.
const DIAL_LIMIT: Duration = Duration::from_secs(5);

/// Where a [`LocalHost`] keeps things; what is left out has a default.
#[derive(Debug, Clone, Default)]
pub struct LocalHostConfig {
    /// The directory of all task directories, absolute. Default (S-055): `$OPTIO_CODEX_TASK_ROOT`, else
    /// `$XDG_DATA_HOME/optio-codex`, else `~/.local/share/optio-codex`.
    pub task_root: Option<PathBuf>,
    /// The directory of all socket directories, absolute and at most 73 bytes long; made 0700 and refused when
    /// anybody else owns it. Default: `$XDG_RUNTIME_DIR/optio-codex`, else `/tmp/optio-codex-<uid>`.
    pub socket_root: Option<PathBuf>,
}

/// This machine.
///
/// Its methods must be called within a tokio runtime that has I/O and time switched on; a child it spawned lives in
/// the runtime that spawned it.
#[derive(Debug)]
pub struct LocalHost {
    home: PathBuf,
    task_root: PathBuf,
    socket_root: PathBuf,
    uid: u32,
    file_calls: Arc<Semaphore>,
    watcher: Watcher,
    known_binaries: KnownBinaries,
    /// Never changes; kept so that nobody who listens hears the end of it.
    reach: watch::Sender<Reach>,
}

impl LocalHost {
    /// Takes this machine with these directories, and makes the socket root. Blocks for a few system calls, so it
    /// belongs into a program's start. Fails when the home directory is unknown, when a root is relative, or when the
    /// socket root is too long, is a link or belongs to somebody else.
    pub fn new(config: LocalHostConfig) -> Result<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let home = std::env::home_dir().filter(|home| home.is_absolute()).ok_or(HostError::Refused {
            what: "home directory",
            value: String::new(),
            why: "HOME must be an absolute path",
        })?;
        let var = |name: &str| std::env::var_os(name);
        let task_root = config.task_root.unwrap_or_else(|| roots::default_task_root(var, &home));
        let socket_root = config.socket_root.unwrap_or_else(|| roots::default_socket_root(var, uid));
        roots::check_absolute("task root", &task_root)?;
        roots::check_absolute("socket root", &socket_root)?;
        roots::check_socket_length(&socket_root)?;
        roots::claim_socket_root(&socket_root, uid)?;
        Ok(Self {
            home,
            task_root,
            socket_root,
            uid,
            file_calls: Arc::new(Semaphore::new(FILE_CALLS)),
            watcher: Watcher::default(),
            known_binaries: KnownBinaries::default(),
            reach: watch::Sender::new(Reach::Up),
        })
    }

    /// Runs file work on the blocking pool. Past its limit the work may still happen, as with any lost answer.
    async fn on_disk<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let calls = Arc::clone(&self.file_calls);
        let answer = async move {
            let slot = calls.acquire_owned().await;
            // The slot goes with the work: a call that hangs keeps its place even when nobody waits for it any more.
            blocking(move || {
                let _slot = slot;
                work()
            })
            .await
        };
        match tokio::time::timeout(limit, answer).await {
            Ok(done) => done,
            Err(_) => Err(HostError::TimedOut { what: what.to_owned(), limit }),
        }
    }

    /// File work on one path of one task directory.
    async fn on_path<T: Send + 'static>(
        &self,
        deed: &str,
        dir: &TaskDir,
        path: &RelPath,
        work: impl FnOnce(&Beneath, &RelPath) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let what = format!("{deed} {}", dir.join(path).display());
        let (dir, path) = (dir.clone(), path.clone());
        self.on_disk(&what, FILE_LIMIT, move || work(&Beneath::open(&dir)?, &path)).await
    }
}

/// Where the socket of a task directory is, below a socket root.
pub(crate) fn socket_path(socket_root: &Path, dir: &TaskDir) -> PathBuf {
    roots::socket_dir(socket_root, dir).join(roots::SOCKET_NAME)
}

/// Runs blocking work off the executor's threads; a panic in it goes on in the caller.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => {
                Err(HostError::io("blocking work", std::io::Error::other("the runtime is shutting down")))
            }
        },
    }
}

#[async_trait]
impl Host for LocalHost {
    fn name(&self) -> &str {
        "local"
    }

    fn reach(&self) -> watch::Receiver<Reach> {
        self.reach.subscribe()
    }

    async fn connect(&self) -> Result<()> {
        Ok(())
    }

    async fn home(&self) -> Result<PathBuf> {
        Ok(self.home.clone())
    }

    fn task_dir(&self, id: &TaskId) -> TaskDir {
        TaskDir::new(&self.task_root, id)
    }

    fn socket_path(&self, dir: &TaskDir) -> PathBuf {
        socket_path(&self.socket_root, dir)
    }

    async fn create(&self, dir: &TaskDir) -> Result<()> {
        let (dir, socket_root, uid) = (dir.clone(), self.socket_root.clone(), self.uid);
        let what = format!("create {}", dir.path().display());
        let sockets = roots::socket_dir(&socket_root, &dir);
        self.on_disk(&what, TREE_LIMIT, move || {
            tree::create_task_dir(&dir)?;
            // Again, because what clears /tmp or ends a login session may have taken it since the start.
            roots::claim_socket_root(&socket_root, uid)?;
            tree::make_empty_dir(&sockets)
        })
        .await
    }

    async fn exists(&self, dir: &TaskDir) -> Result<bool> {
        let dir = dir.clone();
        let what = format!("look at {}", dir.path().display());
        self.on_disk(&what, FILE_LIMIT, move || match Beneath::open(&dir) {
            Ok(_) => Ok(true),
            Err(HostError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        })
        .await
    }

    async fn cleanup(&self, dir: &TaskDir) -> Result<()> {
        let sockets = roots::socket_dir(&self.socket_root, dir);
        let task = dir.path().to_path_buf();
        let what = format!("remove {}", task.display());
        self.on_disk(&what, TREE_LIMIT, move || {
            tree::remove_tree(&sockets)?;
            tree::remove_tree(&task)
        })
        .await
    }

    async fn run(&self, command: Command) -> Result<Output> {
        programs::run(command, &self.home).await
    }

    async fn spawn(&self, command: Command) -> Result<Spawned> {
        programs::spawn(command, &self.home).await
    }

    async fn open_pty(&self, command: Command, size: Size) -> Result<Pty> {
        ptys::open(command, size, &self.home)
    }

    async fn read(&self, dir: &TaskDir, path: &RelPath, limit: u64) -> Result<Bytes> {
        self.on_path("read", dir, path, move |task, path| files::read(task, path, limit)).await
    }

    async fn read_from(&self, dir: &TaskDir, path: &RelPath, offset: u64, limit: usize) -> Result<FilePart> {
        self.on_path("read", dir, path, move |task, path| files::read_from(task, path, offset, limit)).await
    }

    async fn write(&self, dir: &TaskDir, path: &RelPath, bytes: Bytes, mode: u32) -> Result<()> {
        self.on_path("write", dir, path, move |task, path| files::write(task, path, &bytes, mode)).await
    }

    async fn append(&self, dir: &TaskDir, path: &RelPath, bytes: Bytes) -> Result<()> {
        self.on_path("append to", dir, path, move |task, path| files::append(task, path, &bytes)).await
    }

    async fn rename(&self, dir: &TaskDir, from: &RelPath, to: &RelPath) -> Result<()> {
        let to = to.clone();
        self.on_path("rename", dir, from, move |task, from| files::rename(task, from, &to)).await
    }

    async fn remove(&self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        match self.on_path("remove", dir, path, files::remove).await {
            // The task directory itself is not there.
            Err(HostError::NotFound { .. }) => Ok(()),
            removed => removed,
        }
    }

    async fn make_dir(&self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        self.on_path("make directory", dir, path, |task, path| task.make_dirs(path.as_str()).map(drop)).await
    }

    async fn link(&self, dir: &TaskDir, path: &RelPath, target: &Path) -> Result<()> {
        let target = target.to_path_buf();
        self.on_path("link", dir, path, move |task, path| files::link(task, path, &target)).await
    }

    async fn info(&self, dir: &TaskDir, path: &RelPath) -> Result<Option<FileInfo>> {
        match self.on_path("look at", dir, path, files::info).await {
            Err(HostError::NotFound { .. }) => Ok(None),
            info => info,
        }
    }

    async fn list(&self, dir: &TaskDir, path: &RelPath, limit: usize) -> Result<Vec<RelPath>> {
        match self.on_path("list", dir, path, move |task, path| files::list(task, path, limit)).await {
            Err(HostError::NotFound { .. }) => Ok(Vec::new()),
            list => list,
        }
    }

    async fn write_stream(&self, path: &Path, stream: ByteStream, mode: u32) -> Result<u64> {
        streamed::write(self, path, stream, mode).await
    }

    async fn archive(&self, dir: &TaskDir, excludes: Excludes, codec: Codec) -> Result<ByteStream> {
        Ok(archive::pack(dir.workdir(), excludes, codec))
    }

    async fn restore(&self, dir: &TaskDir, stream: ByteStream, codec: Codec) -> Result<()> {
        archive::restore_beside(stream, codec, dir.workdir()).await
    }

    async fn dial(&self, target: &Dial) -> Result<Box<dyn Duplex>> {
        let shown = match target {
            Dial::Unix(path) => path.display().to_string(),
            Dial::Loopback(port) => format!("127.0.0.1:{port}"),
        };
        let connecting = async {
            let connection: Box<dyn Duplex> = match target {
                Dial::Unix(path) => Box::new(UnixStream::connect(path).await?),
                Dial::Loopback(port) => Box::new(TcpStream::connect(("127.0.0.1", *port)).await?),
            };
            Ok::<_, std::io::Error>(connection)
        };
        match tokio::time::timeout(DIAL_LIMIT, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                    Err(HostError::NotListening { target: shown })
                }
                _ => Err(HostError::io(format!("connect to {shown}"), error)),
            },
            Err(_) => Err(HostError::TimedOut { what: format!("connect to {shown}"), limit: DIAL_LIMIT }),
        }
    }

    /// Makes the directory that is to hold the file (0700) when it is missing, because only what exists can be
    /// watched. When that directory, or one above it, is replaced or removed, [`Watch::changed`] answers `None`.
    async fn watch(&self, dir: &TaskDir, path: &RelPath) -> Result<Watch> {
        let watcher = self.watcher.clone();
        let dir_of_task = dir.clone();
        self.on_path("watch", dir, path, move |task, path| {
            task.made_parent_of(path)?;
            watcher.watch(&dir_of_task, path)
        })
        .await
    }

    async fn find_codex(&self, wanted: Option<&Path>) -> Result<CodexBinary> {
        self.known_binaries.find(self, wanted).await
    }
}
