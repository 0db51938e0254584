//! What is done on the far side, done on this machine: the contract without a connection.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::files::FarFiles;
use super::shells::{Lane, Shells};
use super::watching::FarWatch;
use crate::{
    ByteStream, Codec, CodexBinary, Command, Dial, Duplex, Excludes, FileInfo, FilePart, Host, LocalHost,
    LocalHostConfig, Output, Pty, Reach, RelPath, Result, Size, Spawned, TaskDir, TaskId, Watch,
};

/// Starts the programs of the far side here.
pub(super) struct Here {
    host: LocalHost,
    /// Where programs are looked for first.
    programs: Vec<PathBuf>,
    pub(super) started: AtomicUsize,
}

impl Here {
    pub(super) fn new(temp: &Path) -> Arc<Self> {
        Self::with(temp, Vec::new())
    }

    pub(super) fn with(temp: &Path, programs: Vec<PathBuf>) -> Arc<Self> {
        let task_root = Some(temp.join("tasks"));
        let config = LocalHostConfig { task_root, socket_root: Some(temp.join("sockets")) };
        Arc::new(Self { host: LocalHost::new(config).unwrap(), programs, started: AtomicUsize::new(0) })
    }
}

#[async_trait]
impl Shells for Here {
    fn name(&self) -> &str {
        "here"
    }
    async fn spawn(&self, _: Lane, mut command: Command) -> Result<Spawned> {
        self.started.fetch_add(1, Ordering::SeqCst);
        command.env.path_prefix.clone_from(&self.programs);
        self.host.spawn(command).await
    }
}

/// This machine, with files, watches and archives as those of the far side are done.
pub(super) struct FarHere {
    here: Arc<Here>,
    files: FarFiles,
    watch: FarWatch,
}

impl FarHere {
    pub(super) fn new(temp: &Path) -> Self {
        Self::on(Here::new(temp))
    }

    pub(super) fn on(here: Arc<Here>) -> Self {
        Self { files: FarFiles::new(here.clone()), watch: FarWatch::new(here.clone()), here }
    }
}

/// A fresh task directory.
async fn task(host: &dyn Host) -> TaskDir {
    let dir = host.task_dir(&TaskId::new("task").unwrap());
    host.create(&dir).await.unwrap();
    dir
}

fn rel(path: &str) -> RelPath {
    RelPath::new(path).unwrap()
}

pub(super) async fn fresh() -> (Arc<dyn Host>, tempfile::TempDir) {
    let temp = tempfile::tempdir().unwrap();
    (Arc::new(FarHere::new(temp.path())), temp)
}

mod archived;
mod full;
mod hands;
mod places;

mod suite {
    crate::host_suite!(crate::ssh::on_this_machine::fresh: files watching archives);
}

#[async_trait]
impl Host for FarHere {
    fn name(&self) -> &str {
        "here"
    }
    fn reach(&self) -> watch::Receiver<Reach> {
        self.here.host.reach()
    }
    async fn connect(&self) -> Result<()> {
        Ok(())
    }
    async fn home(&self) -> Result<PathBuf> {
        self.here.host.home().await
    }
    fn task_dir(&self, id: &TaskId) -> TaskDir {
        self.here.host.task_dir(id)
    }
    fn socket_path(&self, dir: &TaskDir) -> PathBuf {
        self.here.host.socket_path(dir)
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
        self.here.host.run(command).await
    }
    async fn spawn(&self, command: Command) -> Result<Spawned> {
        self.here.host.spawn(command).await
    }
    async fn open_pty(&self, command: Command, size: Size) -> Result<Pty> {
        self.here.host.open_pty(command, size).await
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
        super::archives::pack(self.here.clone(), dir, excludes, codec).await
    }
    async fn restore(&self, dir: &TaskDir, stream: ByteStream, codec: Codec) -> Result<()> {
        super::archives::restore(self.here.clone(), dir, stream, codec).await
    }
    async fn dial(&self, target: &Dial) -> Result<Box<dyn Duplex>> {
        self.here.host.dial(target).await
    }
    async fn watch(&self, dir: &TaskDir, path: &RelPath) -> Result<Watch> {
        self.files.make_parent_of(dir, path).await?;
        self.watch.watch(dir, path).await
    }
    async fn find_codex(&self, wanted: Option<&Path>) -> Result<CodexBinary> {
        self.here.host.find_codex(wanted).await
    }
}
