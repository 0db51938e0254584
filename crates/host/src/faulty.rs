//! A host that fails when it is told to.
//!
//! Wraps any other host. A test arms one fault per operation and call; everything else goes through untouched.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::error::{HostError, Result};
use crate::{
    AgentIdentity, AgentState, ByteStream, Codec, CodexBinary, Command, Dial, Duplex, Excludes, FileInfo,
    FilePart, GuardSpec, Host, Output, Pty, Reach, RelPath, Signal, Size, Spawned, TaskDir, TaskId, Watch,
};

/// What a fault does to the call it meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// It answers an error, and nothing was done.
    Error,
    /// It never answers, and nothing was done.
    Hang,
    /// It is done, and answers an error all the same: the caller must not conclude that it did not happen.
    ErrorAfterDoing,
}

/// An operation of [`Host`]; those that only compute are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // Each is named after its method.
pub enum HostOp {
    Connect,
    Home,
    Create,
    Exists,
    Cleanup,
    Run,
    Spawn,
    OpenPty,
    Read,
    ReadFrom,
    Write,
    Append,
    Rename,
    Remove,
    MakeDir,
    Link,
    Info,
    List,
    WriteStream,
    Archive,
    Restore,
    Dial,
    Watch,
    FindCodex,
    GuardStart,
    GuardMark,
    GuardState,
    GuardHeartbeat,
    GuardSignal,
    GuardGone,
    GuardKillLeftovers,
    GuardStderr,
}

/// A host with faults.
pub struct FaultyHost {
    inner: Arc<dyn Host>,
    ops: Mutex<HashMap<HostOp, Op>>,
}

/// One operation's calls so far, and the calls that shall fail.
#[derive(Default)]
struct Op {
    calls: usize,
    armed: HashMap<usize, FaultKind>,
}

impl FaultyHost {
    /// Wraps a host; no fault is armed.
    pub fn new(inner: Arc<dyn Host>) -> Self {
        Self { inner, ops: Mutex::default() }
    }

    /// Makes the `n`th call of `op` from now on meet a fault; the next call is the first. Each armed fault is met
    /// once.
    pub fn fail_nth(&self, op: HostOp, n: usize, kind: FaultKind) {
        let mut ops = self.ops();
        let op = ops.entry(op).or_default();
        let call = op.calls + n;
        op.armed.insert(call, kind);
    }

    /// Takes every fault back. Calls that hang go on hanging.
    pub fn heal(&self) {
        for op in self.ops().values_mut() {
            op.armed.clear();
        }
    }

    /// How often `op` was called, faults included.
    pub fn calls(&self, op: HostOp) -> usize {
        self.ops().get(&op).map_or(0, |op| op.calls)
    }

    fn ops(&self) -> MutexGuard<'_, HashMap<HostOp, Op>> {
        // Nothing under this lock can panic half way.
        self.ops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call, and does what is armed for it.
    async fn meet<T>(&self, op: HostOp, doing: impl Future<Output = Result<T>>) -> Result<T> {
        let fault = {
            let mut ops = self.ops();
            let op = ops.entry(op).or_default();
            op.calls += 1;
            let call = op.calls;
            op.armed.remove(&call)
        };
        let injected = || HostError::io(format!("{op:?}"), std::io::Error::other("injected fault"));
        match fault {
            None => doing.await,
            Some(FaultKind::Error) => Err(injected()),
            Some(FaultKind::Hang) => std::future::pending().await,
            Some(FaultKind::ErrorAfterDoing) => doing.await.and_then(|_| Err(injected())),
        }
    }
}

#[async_trait]
impl Host for FaultyHost {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn reach(&self) -> watch::Receiver<Reach> {
        self.inner.reach()
    }

    async fn connect(&self) -> Result<()> {
        self.meet(HostOp::Connect, self.inner.connect()).await
    }

    async fn home(&self) -> Result<PathBuf> {
        self.meet(HostOp::Home, self.inner.home()).await
    }

    fn task_dir(&self, id: &TaskId) -> TaskDir {
        self.inner.task_dir(id)
    }

    fn socket_path(&self, dir: &TaskDir) -> PathBuf {
        self.inner.socket_path(dir)
    }

    async fn create(&self, dir: &TaskDir) -> Result<()> {
        self.meet(HostOp::Create, self.inner.create(dir)).await
    }

    async fn exists(&self, dir: &TaskDir) -> Result<bool> {
        self.meet(HostOp::Exists, self.inner.exists(dir)).await
    }

    async fn cleanup(&self, dir: &TaskDir) -> Result<()> {
        self.meet(HostOp::Cleanup, self.inner.cleanup(dir)).await
    }

    async fn run(&self, command: Command) -> Result<Output> {
        self.meet(HostOp::Run, self.inner.run(command)).await
    }

    async fn open_pty(&self, command: Command, size: Size) -> Result<Pty> {
        self.meet(HostOp::OpenPty, self.inner.open_pty(command, size)).await
    }

    async fn spawn(&self, command: Command) -> Result<Spawned> {
        self.meet(HostOp::Spawn, self.inner.spawn(command)).await
    }

    async fn read(&self, dir: &TaskDir, path: &RelPath, limit: u64) -> Result<Bytes> {
        self.meet(HostOp::Read, self.inner.read(dir, path, limit)).await
    }

    async fn read_from(&self, dir: &TaskDir, path: &RelPath, offset: u64, limit: usize) -> Result<FilePart> {
        self.meet(HostOp::ReadFrom, self.inner.read_from(dir, path, offset, limit)).await
    }

    async fn write(&self, dir: &TaskDir, path: &RelPath, bytes: Bytes, mode: u32) -> Result<()> {
        self.meet(HostOp::Write, self.inner.write(dir, path, bytes, mode)).await
    }

    async fn append(&self, dir: &TaskDir, path: &RelPath, bytes: Bytes) -> Result<()> {
        self.meet(HostOp::Append, self.inner.append(dir, path, bytes)).await
    }

    async fn rename(&self, dir: &TaskDir, from: &RelPath, to: &RelPath) -> Result<()> {
        self.meet(HostOp::Rename, self.inner.rename(dir, from, to)).await
    }

    async fn remove(&self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        self.meet(HostOp::Remove, self.inner.remove(dir, path)).await
    }

    async fn make_dir(&self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        self.meet(HostOp::MakeDir, self.inner.make_dir(dir, path)).await
    }

    async fn link(&self, dir: &TaskDir, path: &RelPath, target: &Path) -> Result<()> {
        self.meet(HostOp::Link, self.inner.link(dir, path, target)).await
    }

    async fn info(&self, dir: &TaskDir, path: &RelPath) -> Result<Option<FileInfo>> {
        self.meet(HostOp::Info, self.inner.info(dir, path)).await
    }

    async fn list(&self, dir: &TaskDir, path: &RelPath, limit: usize) -> Result<Vec<RelPath>> {
        self.meet(HostOp::List, self.inner.list(dir, path, limit)).await
    }

    async fn write_stream(&self, path: &Path, stream: ByteStream, mode: u32) -> Result<u64> {
        self.meet(HostOp::WriteStream, self.inner.write_stream(path, stream, mode)).await
    }

    async fn archive(&self, dir: &TaskDir, excludes: Excludes, codec: Codec) -> Result<ByteStream> {
        self.meet(HostOp::Archive, self.inner.archive(dir, excludes, codec)).await
    }

    async fn restore(&self, dir: &TaskDir, stream: ByteStream, codec: Codec) -> Result<()> {
        self.meet(HostOp::Restore, self.inner.restore(dir, stream, codec)).await
    }

    async fn dial(&self, target: &Dial) -> Result<Box<dyn Duplex>> {
        self.meet(HostOp::Dial, self.inner.dial(target)).await
    }

    async fn watch(&self, dir: &TaskDir, path: &RelPath) -> Result<Watch> {
        self.meet(HostOp::Watch, self.inner.watch(dir, path)).await
    }

    async fn find_codex(&self, wanted: Option<&Path>) -> Result<CodexBinary> {
        self.meet(HostOp::FindCodex, self.inner.find_codex(wanted)).await
    }

    async fn guard_start(&self, dir: &TaskDir, spec: GuardSpec) -> Result<AgentIdentity> {
        self.meet(HostOp::GuardStart, self.inner.guard_start(dir, spec)).await
    }

    async fn guard_mark(&self, dir: &TaskDir, run_mark: &str) -> Result<()> {
        self.meet(HostOp::GuardMark, self.inner.guard_mark(dir, run_mark)).await
    }

    async fn guard_state(&self, dir: &TaskDir) -> Result<AgentState> {
        self.meet(HostOp::GuardState, self.inner.guard_state(dir)).await
    }

    async fn guard_heartbeat(&self, dir: &TaskDir) -> Result<()> {
        self.meet(HostOp::GuardHeartbeat, self.inner.guard_heartbeat(dir)).await
    }

    async fn guard_signal(&self, dir: &TaskDir, signal: Signal) -> Result<bool> {
        self.meet(HostOp::GuardSignal, self.inner.guard_signal(dir, signal)).await
    }

    async fn guard_gone(&self, dir: &TaskDir, limit: Duration) -> Result<bool> {
        self.meet(HostOp::GuardGone, self.inner.guard_gone(dir, limit)).await
    }

    async fn guard_kill_leftovers(&self, dir: &TaskDir) -> Result<usize> {
        self.meet(HostOp::GuardKillLeftovers, self.inner.guard_kill_leftovers(dir)).await
    }

    async fn guard_stderr(&self, dir: &TaskDir) -> Result<Bytes> {
        self.meet(HostOp::GuardStderr, self.inner.guard_stderr(dir)).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::fake::FakeHost;

    async fn faulty() -> (FaultyHost, TaskDir, RelPath) {
        let host = FaultyHost::new(Arc::new(FakeHost::new()));
        let dir = host.task_dir(&TaskId::new("t").unwrap());
        host.create(&dir).await.unwrap();
        (host, dir, RelPath::new("workdir/f").unwrap())
    }

    #[tokio::test]
    async fn only_the_armed_call_fails_and_only_once() {
        let (host, dir, path) = faulty().await;
        host.write(&dir, &path, "0".into(), 0o600).await.unwrap();
        host.fail_nth(HostOp::Write, 2, FaultKind::Error);
        host.write(&dir, &path, "1".into(), 0o600).await.unwrap();
        host.write(&dir, &path, "2".into(), 0o600).await.unwrap_err();
        assert_eq!(host.read(&dir, &path, 9).await.unwrap(), "1");
        host.write(&dir, &path, "3".into(), 0o600).await.unwrap();
        assert_eq!((host.calls(HostOp::Write), host.calls(HostOp::Append)), (4, 0));
    }

    #[tokio::test]
    async fn an_error_after_doing_leaves_the_deed() {
        let (host, dir, path) = faulty().await;
        host.fail_nth(HostOp::Write, 1, FaultKind::ErrorAfterDoing);
        host.write(&dir, &path, "done".into(), 0o600).await.unwrap_err();
        assert_eq!(host.read(&dir, &path, 9).await.unwrap(), "done");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_call_does_nothing() {
        let (host, dir, path) = faulty().await;
        host.fail_nth(HostOp::Write, 1, FaultKind::Hang);
        let hung = host.write(&dir, &path, "never".into(), 0o600);
        tokio::time::timeout(Duration::from_secs(3600), hung).await.unwrap_err();
        assert!(host.info(&dir, &path).await.unwrap().is_none());
    }
}
