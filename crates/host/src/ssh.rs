//! A machine behind SSH as a [`Host`].
//!
//! ```text
//! SshHost ─┬─ Link (link.rs)       the two connections, made anew when they break; run, spawn, pty, dial
//!          └─ what is done there, by programs that [`Shells`] starts:
//!             FarFiles (files.rs)  one long-lived shell answers questions about files, in order
//!             FarWatch             one long-lived shell speaks up when a watched file changed
//!             archives             tar on the far side, our matcher and our rules on this one
//! ```
//!
//! The guard, tmux, ttyd and the search for programs are written on [`Host`] itself and know nothing of SSH.
//!
//! Files do not go by SFTP: that protocol follows links and has no way to say "beneath this directory", and each step of
//! a path would be a round trip. A shell that enters a directory step by step and looks where it has arrived holds the
//! directory itself, whatever happens to its name (DESIGN §11: relative to open directories).

mod archives;
mod connection;
mod dial;
mod exec;
mod files;
mod gate;
mod hand;
mod host_key;
mod kills;
mod link;
mod listing;
mod login;
mod mark;
mod patient;
mod poured;
mod process;
mod ptys;
mod pump;
mod queue;
mod road;
mod runtime;
mod shells;
mod slots;
mod target;
mod wanted;
mod watching;

#[cfg(test)]
mod on_this_machine;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

pub use target::{DEFAULT_MAX_SESSIONS, DEFAULT_PORT, HostKeys, Login, SshTarget, UnknownKey};

use self::connection::Way;
use self::files::FarFiles;
use self::link::Link;
use self::watching::FarWatch;
use crate::error::Result;
use crate::find_codex::KnownBinaries;
use crate::{
    ByteStream, Codec, CodexBinary, Command, Dial, Duplex, Excludes, FileInfo, FilePart, Host, Output, Pty,
    Reach, RelPath, Size, Spawned, TaskDir, TaskId, Watch,
};

/// The directory of all task directories where nobody names another (S-056).
const TASK_ROOT: &str = "/tmp/optio-codex";

/// A machine behind SSH.
///
/// Connects when it is first needed. When a connection breaks, whatever went through it fails, [`Host::reach`] tells, and the
/// next call or [`Host::connect`] tries again. Its own tasks live on threads of their own, so it
/// may be shared by threads that come and go.
pub struct SshHost {
    name: String,
    task_root: PathBuf,
    socket_root: PathBuf,
    link: Arc<Link>,
    files: FarFiles,
    watch: FarWatch,
    known_binaries: KnownBinaries,
}

impl SshHost {
    /// A host of this name. Contacts nobody; fails when the target makes no sense (an empty address, a relative task
    /// root, a pinned key that is none). `accepted_keys` is the service's own file of host keys that were accepted, made
    /// when the first one is.
    pub fn new(name: impl Into<String>, target: SshTarget, accepted_keys: PathBuf) -> Result<Self> {
        target.check()?;
        let name = name.into();
        let task_root = match &target.task_root {
            Some(root) => root.clone(),
            None => match std::env::var_os("OPTIO_CODEX_REMOTE_TASK_ROOT").filter(|root| !root.is_empty()) {
                Some(root) => PathBuf::from(root),
                None => PathBuf::from(TASK_ROOT),
            },
        };
        crate::local::check_absolute("task root", &task_root)?;
        // By the user's name: the number is the machine's to know, and a path must not need a question.
        let socket_root = PathBuf::from(format!("/tmp/optio-codex-{}", target.file_name_of_user()));
        crate::local::check_socket_length(&socket_root)?;
        let link = Link::new(Way { name: name.clone(), target, accepted: accepted_keys });
        let (files, watch) = (FarFiles::new(link.clone()), FarWatch::new(link.clone()));
        let known_binaries = KnownBinaries::default();
        Ok(Self { name, task_root, socket_root, link, files, watch, known_binaries })
    }

    /// Connects once to see which key the machine shows, and accepts it when its fingerprint is this one: it is written
    /// to the service's own file, in place of another one for the same machine.
    pub async fn accept_host_key(&self, fingerprint: &str) -> Result<()> {
        self.link.accept_host_key(fingerprint).await
    }
}

#[async_trait]
impl Host for SshHost {
    fn name(&self) -> &str {
        &self.name
    }

    fn reach(&self) -> watch::Receiver<Reach> {
        self.link.reach()
    }

    async fn connect(&self) -> Result<()> {
        self.link.connect().await
    }

    async fn home(&self) -> Result<PathBuf> {
        self.link.home().await
    }

    fn task_dir(&self, id: &TaskId) -> TaskDir {
        TaskDir::new(&self.task_root, id)
    }

    fn socket_path(&self, dir: &TaskDir) -> PathBuf {
        crate::local::socket_path(&self.socket_root, dir)
    }

    async fn create(&self, dir: &TaskDir) -> Result<()> {
        self.files.create(dir, &self.socket_path(dir)).await
    }

    async fn exists(&self, dir: &TaskDir) -> Result<bool> {
        self.files.exists(dir).await
    }

    async fn cleanup(&self, dir: &TaskDir) -> Result<()> {
        self.files.cleanup(dir, &self.socket_path(dir)).await
    }

    async fn run(&self, command: Command) -> Result<Output> {
        self.link.run(command).await
    }

    async fn spawn(&self, command: Command) -> Result<Spawned> {
        self.link.spawn_agent(command).await
    }

    async fn open_pty(&self, command: Command, size: Size) -> Result<Pty> {
        self.link.open_pty(command, size).await
    }

    async fn read(&self, dir: &TaskDir, path: &RelPath, limit: u64) -> Result<Bytes> {
        self.files.read(dir, path, limit).await
    }

    async fn read_from(&self, dir: &TaskDir, path: &RelPath, offset: u64, limit: usize) -> Result<FilePart> {
        self.files.read_from(dir, path, offset, limit).await
    }

    async fn write(&self, dir: &TaskDir, path: &RelPath, bytes: Bytes, mode: u32) -> Result<()> {
        self.files.write(dir, path, bytes, mode).await
    }

    async fn append(&self, dir: &TaskDir, path: &RelPath, bytes: Bytes) -> Result<()> {
        self.files.append(dir, path, bytes).await
    }

    async fn rename(&self, dir: &TaskDir, from: &RelPath, to: &RelPath) -> Result<()> {
        self.files.rename(dir, from, to).await
    }

    async fn remove(&self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        self.files.remove(dir, path).await
    }

    async fn make_dir(&self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        self.files.make_dir(dir, path).await
    }

    async fn link(&self, dir: &TaskDir, path: &RelPath, target: &Path) -> Result<()> {
        self.files.link(dir, path, target).await
    }

    async fn info(&self, dir: &TaskDir, path: &RelPath) -> Result<Option<FileInfo>> {
        self.files.info(dir, path).await
    }

    async fn list(&self, dir: &TaskDir, path: &RelPath, limit: usize) -> Result<Vec<RelPath>> {
        self.files.list(dir, path, limit).await
    }

    async fn write_stream(&self, path: &Path, stream: ByteStream, mode: u32) -> Result<u64> {
        self.files.write_stream(path, stream, mode).await
    }

    async fn archive(&self, dir: &TaskDir, excludes: Excludes, codec: Codec) -> Result<ByteStream> {
        archives::pack(self.link.clone(), dir, excludes, codec).await
    }

    async fn restore(&self, dir: &TaskDir, stream: ByteStream, codec: Codec) -> Result<()> {
        archives::restore(self.link.clone(), dir, stream, codec).await
    }

    async fn dial(&self, target: &Dial) -> Result<Box<dyn Duplex>> {
        self.link.dial(target).await
    }

    async fn watch(&self, dir: &TaskDir, path: &RelPath) -> Result<Watch> {
        self.files.make_parent_of(dir, path).await?;
        self.watch.watch(dir, path).await
    }

    async fn find_codex(&self, wanted: Option<&Path>) -> Result<CodexBinary> {
        self.known_binaries.find(self, wanted).await
    }
}
