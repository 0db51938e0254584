//! Deliverables on disk: for each file its sealed content, and a small sealed head that names it.
//!
//! ```text
//! DIR/deliverables/<session>/<digest of the path>.head    who it is, and which content is its
//!                            <32 hex digits>.content
//! ```
//!
//! A file changes by the rename of its head: a crash leaves the old one or the new one, and at most a content that nothing
//! names, which the next start sweeps.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{invalid, offload, private_dir, sync_dir, unavailable};
use crate::deliverables::{KEPT_LIMIT, check_room};
use crate::sealed::Sealer;
use crate::seed_archive::sha256_hex;
use crate::{Deliverables, KeptFile, Result, SessionId};

/// Ends the name of a head.
const HEAD: &str = ".head";
/// Ends the name of a content.
const CONTENT: &str = ".content";
/// The longest head: a path and some numbers.
const HEAD_LIMIT: u64 = 16 << 10;
/// What sealing adds at most.
const SEALED_ROOM: u64 = 1 << 10;
/// Files that are sealed or opened at once; each is in memory meanwhile, twice.
const AT_ONCE: usize = 2;
/// Longest wait for one file of the longest length, sealed and synced on a slow disk, behind others.
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Serialize, Deserialize)]
struct Head {
    file: KeptFile,
    content: String,
}

/// The deliverables in the directory `deliverables` of a store's directory.
pub(crate) struct DiskDeliverables {
    core: Arc<Core>,
    places: Arc<Semaphore>,
}

struct Core {
    dir: PathBuf,
    sealer: Sealer,
}

impl DiskDeliverables {
    /// Opens or makes it, and removes what a service that ended left half written.
    pub(crate) fn open(store_dir: &Path, sealer: Sealer) -> Result<Self> {
        let dir = store_dir.join("deliverables");
        private_dir(&dir)?;
        let core = Core { dir, sealer };
        core.sweep()?;
        Ok(Self { core: Arc::new(core), places: Arc::new(Semaphore::new(AT_ONCE)) })
    }

    async fn work<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let core = self.core.clone();
        offload(&self.places, what, LIMIT, move || work(&core)).await
    }
}

#[async_trait]
impl Deliverables for DiskDeliverables {
    async fn keep(&self, session: &SessionId, path: &str, content: Bytes) -> Result<KeptFile> {
        let (session, path) = (session.clone(), path.to_owned());
        self.work("keeping a deliverable", move |core| core.keep(&session, path, &content)).await
    }

    async fn list(&self, session: &SessionId) -> Result<Vec<KeptFile>> {
        let session = session.clone();
        self.work("listing deliverables", move |core| {
            let mut files: Vec<_> =
                core.heads(&core.of(&session))?.into_iter().map(|head| head.file).collect();
            files.sort_by(|a, b| a.path.cmp(&b.path));
            Ok(files)
        })
        .await
    }

    async fn read(&self, session: &SessionId, path: &str) -> Result<Option<(KeptFile, Bytes)>> {
        let (session, path) = (session.clone(), path.to_owned());
        self.work("reading a deliverable", move |core| core.read(&session, &path)).await
    }

    async fn delete_all(&self, session: &SessionId) -> Result<()> {
        let session = session.clone();
        self.work("deleting deliverables", move |core| {
            let dir = core.of(&session);
            match std::fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(failed(&dir, e)),
                _ => Ok(()),
            }
        })
        .await
    }
}

impl Core {
    fn of(&self, session: &SessionId) -> PathBuf {
        self.dir.join(session.as_str())
    }

    fn keep(&self, session: &SessionId, path: String, content: &[u8]) -> Result<KeptFile> {
        let dir = self.of(session);
        let kept: Vec<_> = self.heads(&dir)?.into_iter().map(|head| head.file).collect();
        check_room(&kept, &path, content.len() as u64)?;
        private_dir(&dir)?;
        let at = dir.join(head_name(&path));
        let before = self.head(&at).ok().flatten();
        let name = format!("{}{CONTENT}", uuid::Uuid::new_v4().simple());
        let sha256 = sha256_hex(content);
        let file = KeptFile { path, bytes: content.len() as u64, sha256, kept_at: Timestamp::now() };
        let head = Head { file, content: name.clone() };
        let plain = serde_json::to_vec(&head).map_err(|e| invalid("deliverable", e.to_string()))?;
        // Under its final name: nothing names it before its head does.
        write_new(&dir.join(&name), &self.sealer.seal(&name, content)?)?;
        let beside = dir.join(format!("{}.tmp", uuid::Uuid::new_v4().simple()));
        write_new(&beside, &self.sealer.seal(&bound_to(&at), &plain)?)?;
        std::fs::rename(&beside, &at).map_err(|e| failed(&at, e))?;
        sync_dir(&dir)?;
        if let Some(before) = before {
            remove(&dir.join(before.content))?;
        }
        Ok(head.file)
    }

    fn read(&self, session: &SessionId, path: &str) -> Result<Option<(KeptFile, Bytes)>> {
        let dir = self.of(session);
        let Some(head) = self.head(&dir.join(head_name(path)))? else { return Ok(None) };
        let at = dir.join(&head.content);
        let Some(sealed) = read_file(&at, KEPT_LIMIT + SEALED_ROOM)? else { return Ok(None) };
        let content = self.sealer.open(&head.content, &sealed)?;
        Ok(Some((head.file, content.into())))
    }

    fn heads(&self, dir: &Path) -> Result<Vec<Head>> {
        let mut heads = Vec::new();
        for at in files(dir)? {
            if at.extension().is_some_and(|ending| HEAD.strip_prefix('.').is_some_and(|head| ending == head))
            {
                heads.extend(self.head(&at)?);
            }
        }
        Ok(heads)
    }

    fn head(&self, at: &Path) -> Result<Option<Head>> {
        let Some(sealed) = read_file(at, HEAD_LIMIT + SEALED_ROOM)? else { return Ok(None) };
        let plain = self.sealer.open(&bound_to(at), &sealed)?;
        let head = serde_json::from_slice(&plain)
            .map_err(|e| crate::StoreError::Damaged { what: at.display().to_string(), why: e.to_string() })?;
        Ok(Some(head))
    }

    /// Removes contents that no head names and heads that have no name yet.
    fn sweep(&self) -> Result<()> {
        for dir in files(&self.dir)? {
            let heads = match self.heads(&dir) {
                Ok(heads) => heads,
                // Without its heads a directory says nothing about its contents: they stay.
                Err(problem) => {
                    tracing::warn!(dir = %dir.display(), %problem, "deliverables cannot be read");
                    continue;
                }
            };
            let named: HashSet<_> = heads.into_iter().map(|head| head.content).collect();
            for at in files(&dir)? {
                let name = at.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if name.ends_with(".tmp") || (name.ends_with(CONTENT) && !named.contains(name)) {
                    remove(&at)?;
                }
            }
        }
        Ok(())
    }
}

/// A path may be longer than a file name, and says what a session is about.
fn head_name(path: &str) -> String {
    format!("{}{HEAD}", sha256_hex(path.as_bytes()))
}

/// What a head is sealed under: its session and its name.
fn bound_to(at: &Path) -> String {
    let names: Vec<_> = at.iter().rev().take(2).map(|name| name.to_string_lossy()).collect();
    format!("deliverable {}", names.join(" of "))
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    match dir.read_dir() {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => {
            let paths = entries.and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect());
            paths.map_err(|e| failed(dir, e))
        }
    }
}

fn write_new(at: &Path, bytes: &[u8]) -> Result<()> {
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(at)?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    written.map_err(|e| {
        // The first error is the one to tell; what is left of the file goes at the next start.
        let _swept_later = std::fs::remove_file(at);
        failed(at, e)
    })
}

fn read_file(at: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match File::open(at).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(at, e)),
    }
}

fn remove(at: &Path) -> Result<()> {
    match std::fs::remove_file(at) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(failed(at, e)),
        _ => Ok(()),
    }
}

fn failed(at: &Path, error: std::io::Error) -> crate::StoreError {
    unavailable("the deliverables", format_args!("{}: {error}", at.display()))
}
