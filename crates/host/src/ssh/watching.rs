//! Waking up when a file of the far side may have changed.
//!
//! One shell per connection (`watch.sh`) looks at all watched files, and the directories above them, each time it is told
//! to, and says what changed. The kernel's own events would need a program there that few machines have. A look is one
//! `stat` however many files there are, and an idle one costs two bytes there and two back.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::files::FILE_LIMIT;
use super::runtime;
use super::shells::{Lane, Shells};
use crate::guard::quote;
use crate::watch::chain;
use crate::{Command, HostError, RelPath, Result, Spawned, TaskDir, Watch};

const SCRIPT: &str = include_str!("watch.sh");

/// Pause between two looks. Rotated credentials must be saved within a second, of which the round trip, the reading and the
/// store need their part.
const PAUSE: Duration = Duration::from_millis(250);
/// Watches that wait to be armed; a session has three.
const ARMING: usize = 64;
/// Length of one line of the shell: a path and a few numbers.
const LINE_LIMIT: usize = 16 * 1024;

/// Hands out watches of one host.
pub(super) struct FarWatch {
    shells: Arc<dyn Shells>,
    /// The way to the task that looks, held while it is started.
    looking: Mutex<Option<mpsc::Sender<Arm>>>,
}

struct Arm {
    target: PathBuf,
    chain: Vec<PathBuf>,
    wake: mpsc::Sender<()>,
    armed: oneshot::Sender<Result<()>>,
}

impl FarWatch {
    pub(super) fn new(shells: Arc<dyn Shells>) -> Self {
        Self { shells, looking: Mutex::new(None) }
    }

    /// The directory that holds the file must exist. When that directory, or one above it, is replaced or removed, or the
    /// connection breaks, [`Watch::changed`] answers `None`.
    pub(super) async fn watch(&self, dir: &TaskDir, path: &RelPath) -> Result<Watch> {
        let target = dir.join(path);
        let what = format!("watch {}", target.display());
        if target.as_os_str().as_bytes().contains(&b'\n') {
            let why = "a path with a newline cannot be watched";
            return Err(HostError::Refused { what: "path", value: target.display().to_string(), why });
        }
        let chain = chain(dir, &target);
        let (wake, wakes) = mpsc::channel(1);
        let arming = async {
            let (armed, answer) = oneshot::channel();
            // An answer that cannot come shows in the same way as one that does not.
            let _ = self.looking().await?.send(Arm { target, chain, wake, armed }).await;
            answer.await.unwrap_or_else(|_| {
                let why = "the shell that watches files ended".to_owned();
                Err(HostError::Unreachable { host: self.shells.name().to_owned(), why })
            })
        };
        match tokio::time::timeout(FILE_LIMIT, arming).await {
            Ok(armed) => armed.map(|()| Watch::new(wakes, ())),
            Err(_) => Err(HostError::TimedOut { what, limit: FILE_LIMIT }),
        }
    }

    async fn looking(&self) -> Result<mpsc::Sender<Arm>> {
        let mut looking = self.looking.lock().await;
        if let Some(arming) = looking.as_ref().filter(|arming| !arming.is_closed()) {
            return Ok(arming.clone());
        }
        let shells = self.shells.clone();
        let command = Command::new(["sh", "-c", SCRIPT]);
        let spawned = runtime::run(async move { shells.spawn(Lane::Control, command).await }).await??;
        let (arming, arms) = mpsc::channel(ARMING);
        let host = self.shells.name().to_owned();
        runtime::start(look(spawned, arms, host));
        *looking = Some(arming.clone());
        Ok(arming)
    }
}

/// Looks until nobody watches any more, or the shell breaks. Then all watches end, because their wakers go.
async fn look(spawned: Spawned, mut arms: mpsc::Receiver<Arm>, host: String) {
    let Spawned { stdin, stdout, stderr, process: _process } = spawned;
    let mut complaint = Vec::new();
    let looking = async {
        let mut looks = Looks { stdin, stdout: BufReader::new(stdout), table: Table::default() };
        loop {
            let fresh = match looks.table.watches.is_empty() {
                true => arms.recv().await,
                false => tokio::time::timeout(PAUSE, arms.recv()).await.ok().flatten(),
            };
            let Some(due) =
                looks.table.begin(fresh.into_iter().chain(std::iter::from_fn(|| arms.try_recv().ok())))
            else {
                if arms.is_closed() {
                    return Ok(());
                }
                continue;
            };
            match tokio::time::timeout(FILE_LIMIT, looks.once(due)).await {
                Ok(looked) => looked?,
                Err(_) => return Err(std::io::Error::from(std::io::ErrorKind::TimedOut)),
            }
        }
    };
    tokio::select! {
        looked = looking => {
            if let Err(error) = looked {
                tracing::warn!(%host, %error, "watching files has ended and begins anew");
            }
        }
        () = super::hand::listen(stderr, &mut complaint) => {}
    }
}

struct Looks {
    stdin: Box<dyn AsyncWrite + Send + Unpin>,
    stdout: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    table: Table,
}

impl Looks {
    /// One look: what there is to say goes there, what changed comes back.
    async fn once(&mut self, mut request: Vec<u8>) -> std::io::Result<()> {
        request.extend_from_slice(b"t\n");
        self.stdin.write_all(&request).await?;
        self.stdin.flush().await?;
        let mut changes = Vec::new();
        loop {
            let mut line = Vec::new();
            let mut limited = tokio::io::AsyncReadExt::take(&mut self.stdout, LINE_LIMIT as u64);
            limited.read_until(b'\n', &mut line).await?;
            if line.pop() != Some(b'\n') {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            match line.split_first() {
                Some((b'.', [])) => break,
                Some((sign @ (b'-' | b'+'), fact)) => changes.push((*sign == b'+', Fact::read(fact)?)),
                _ => return Err(std::io::Error::other("the shell that watches files said something else")),
            }
        }
        self.table.changed(changes);
        Ok(())
    }
}

/// What is known of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fact {
    path: PathBuf,
    /// Device, inode and time of birth, if it is a directory.
    directory: Option<String>,
}

impl Fact {
    /// Reads `mode:device:inode:birth:…|path`.
    fn read(line: &[u8]) -> std::io::Result<Self> {
        let nonsense = || std::io::Error::other("the shell that watches files said something else");
        let bar = line.iter().position(|byte| *byte == b'|').ok_or_else(nonsense)?;
        let facts = std::str::from_utf8(&line[..bar]).map_err(|_| nonsense())?;
        let (mode, rest) = facts.split_once(':').ok_or_else(nonsense)?;
        let mode = u32::from_str_radix(mode, 16).map_err(|_| nonsense())?;
        let identity: Vec<_> = rest.split(':').take(3).collect();
        let directory = (mode & 0o170_000 == 0o040_000).then(|| identity.join(":"));
        Ok(Self { path: Path::new(std::ffi::OsStr::from_bytes(&line[bar + 1..])).to_owned(), directory })
    }
}

/// Who waits for what.
#[derive(Default)]
struct Table {
    watches: Vec<Watched>,
    /// What the last look found of every path; a path that is missing there is missing here.
    facts: HashMap<PathBuf, Fact>,
    /// The paths that the shell looks at.
    paths: BTreeSet<PathBuf>,
}

struct Watched {
    target: PathBuf,
    /// Each directory, and which one it was when the watch was armed.
    chain: Vec<(PathBuf, Option<String>)>,
    wake: mpsc::Sender<()>,
    /// There until the first look after it was registered.
    armed: Option<oneshot::Sender<Result<()>>>,
}

impl Table {
    /// Takes new watches in and lets go of those nobody waits for. Answers what must be said before the next look, if there is
    /// to be one.
    fn begin(&mut self, arms: impl Iterator<Item = Arm>) -> Option<Vec<u8>> {
        self.watches.retain(|watched| !watched.wake.is_closed());
        self.watches.extend(arms.map(|Arm { target, chain, wake, armed }| Watched {
            target,
            chain: chain.into_iter().map(|dir| (dir, None)).collect(),
            wake,
            armed: Some(armed),
        }));
        if self.watches.is_empty() {
            return None;
        }
        let paths: BTreeSet<_> = self
            .watches
            .iter()
            .flat_map(|watched| watched.chain.iter().map(|(dir, _)| dir).chain([&watched.target]))
            .cloned()
            .collect();
        if paths == self.paths {
            return Some(Vec::new());
        }
        let mut line = b"p".to_vec();
        for path in &paths {
            line.push(b' ');
            line.extend(quote(path.as_os_str().as_bytes()).expect("a path that is opened has no NUL"));
        }
        line.push(b'\n');
        self.paths = paths;
        Some(line)
    }

    /// Takes in what a look has found: wakes those whose file changed, ends those whose directory is not the same.
    fn changed(&mut self, changes: Vec<(bool, Fact)>) {
        let touched: BTreeSet<PathBuf> = changes.iter().map(|(_, fact)| fact.path.clone()).collect();
        for (_, fact) in changes.iter().filter(|(there, _)| !there) {
            self.facts.remove(&fact.path);
        }
        for (_, fact) in changes.into_iter().filter(|(there, _)| *there) {
            self.facts.insert(fact.path.clone(), fact);
        }
        let facts = &self.facts;
        let now = |dir: &Path| facts.get(dir).and_then(|fact| fact.directory.clone());
        self.watches.retain_mut(|watched| {
            if let Some(armed) = watched.armed.take() {
                for (dir, was) in &mut watched.chain {
                    *was = now(dir);
                }
                let missing = watched.chain.iter().find(|(_, was)| was.is_none());
                let answer = match missing {
                    Some((dir, _)) => Err(HostError::NotFound { path: dir.display().to_string() }),
                    None => Ok(()),
                };
                let lasts = answer.is_ok();
                return armed.send(answer).is_ok() && lasts;
            }
            if watched.chain.iter().any(|(dir, was)| now(dir) != *was) {
                return false;
            }
            if touched.contains(&watched.target) {
                // A full queue means that a wake-up is already due.
                let _ = watched.wake.try_send(());
            }
            true
        });
    }
}
