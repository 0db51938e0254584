//! The spool: one sealed file for each entry, complete and durable before it has its name.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{FILES_AT_ONCE, OPERATION_LIMIT, invalid, offload, private_dir, sync_dir, unavailable};
use crate::sealed::Sealer;
use crate::seeds::SEED_LIMIT;
use crate::{Holder, Result, SeedId, SeedVersion, SessionId, Spool, SpoolEntry, SpoolId, StoreError};

/// Ends the name of an entry.
const ENDING: &str = ".sealed";

/// What stands before the credential, in JSON, after its length in four bytes (big-endian).
#[derive(Serialize, Deserialize)]
struct Head {
    seed: SeedId,
    session: SessionId,
    holder: Holder,
    base: SeedVersion,
    fingerprint: String,
    account_id: Option<String>,
    at: Timestamp,
}

/// The spool in the directory `spool` of a store's directory.
pub(crate) struct DiskSpool {
    core: Arc<Core>,
    places: Arc<Semaphore>,
}

struct Core {
    dir: PathBuf,
    sealer: Sealer,
}

impl DiskSpool {
    /// Opens or makes it, and removes what a service that ended left half written.
    pub(crate) fn open(store_dir: &Path, sealer: Sealer) -> Result<Self> {
        let dir = store_dir.join("spool");
        private_dir(&dir)?;
        sweep(&dir)?;
        Ok(Self { core: Arc::new(Core { dir, sealer }), places: Arc::new(Semaphore::new(FILES_AT_ONCE)) })
    }

    async fn work<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        offload(&self.places, what, OPERATION_LIMIT, work).await
    }
}

#[async_trait]
impl Spool for DiskSpool {
    async fn put(&self, entry: SpoolEntry) -> Result<SpoolId> {
        let core = self.core.clone();
        self.work("spooling a credential", move || write(&core, entry)).await
    }

    async fn confirm(&self, id: &SpoolId) -> Result<()> {
        check_name(&id.0)?;
        let core = self.core.clone();
        let id = id.clone();
        self.work("confirming a spool entry", move || confirm(&core, &id)).await
    }

    async fn entries(&self) -> Result<Vec<(SpoolId, Result<SpoolEntry>)>> {
        let core = self.core.clone();
        let read = move || {
            let names = names(&core.dir)?;
            let mut entries: Vec<_> =
                names.into_iter().map(|n| (SpoolId(n.clone()), read(&core, &n))).collect();
            // Damaged ones last: of those the time is not known.
            entries.sort_by_key(|(id, entry)| {
                (entry.is_err(), entry.as_ref().map(|e| e.at).unwrap_or_default(), id.0.clone())
            });
            Ok(entries)
        };
        self.work("reading the spool", read).await
    }

    fn describe(&self, id: &SpoolId) -> String {
        self.core.dir.join(&id.0).display().to_string()
    }
}

fn write(core: &Core, entry: SpoolEntry) -> Result<SpoolId> {
    if entry.auth_json.len() > SEED_LIMIT {
        return Err(invalid("auth_json", format!("it must be at most {SEED_LIMIT} bytes")));
    }
    let stem = format!("{}-{}", entry.seed, uuid::Uuid::new_v4().simple());
    let name = format!("{stem}{ENDING}");
    let plain = encode(entry)?;
    let sealed = core.sealer.seal(&bound_to(&name), &plain)?;
    let dir = &core.dir;
    let beside = dir.join(format!("{stem}.tmp"));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&sealed)?;
        file.sync_all()?;
        std::fs::rename(&beside, dir.join(&name))
    })();
    if let Err(error) = written {
        // The first error is the one to tell; what is left of the file goes at the next start.
        let _swept_later = std::fs::remove_file(&beside);
        return Err(failed(&beside, error));
    }
    sync_dir(dir)?;
    Ok(SpoolId(name))
}

fn confirm(core: &Core, id: &SpoolId) -> Result<()> {
    let dir = &core.dir;
    if let Ok(confirmed) = read(core, &id.0) {
        for name in names(dir)? {
            // Names begin with the seed, so other seeds' entries need not be opened.
            if name == id.0 || !name.starts_with(confirmed.seed.as_str()) {
                continue;
            }
            let Ok(other) = read(core, &name) else { continue };
            if other.seed == confirmed.seed && other.holder == confirmed.holder && other.at <= confirmed.at {
                remove(&dir.join(name))?;
            }
        }
    }
    // Last: a crash before this leaves the newest one, whose replay finds that the store has it.
    remove(&dir.join(&id.0))?;
    sync_dir(dir)
}

fn read(core: &Core, name: &str) -> Result<SpoolEntry> {
    let path = core.dir.join(name);
    let file = File::open(&path).map_err(|e| failed(&path, e))?;
    let mut sealed = Vec::new();
    let room = SEED_LIMIT as u64 + (64 << 10);
    file.take(room).read_to_end(&mut sealed).map_err(|e| failed(&path, e))?;
    let plain = core.sealer.open(&bound_to(name), &sealed);
    plain.and_then(|plain| decode(&plain.into())).map_err(|error| match error {
        StoreError::Damaged { why, .. } => StoreError::Damaged { what: path.display().to_string(), why },
        other => other,
    })
}

fn encode(entry: SpoolEntry) -> Result<Vec<u8>> {
    let head = Head {
        seed: entry.seed,
        session: entry.session,
        holder: entry.holder,
        base: entry.base,
        fingerprint: entry.fingerprint,
        account_id: entry.account_id,
        at: entry.at,
    };
    let head = serde_json::to_vec(&head).map_err(|e| invalid("spool entry", e.to_string()))?;
    let mut plain = Vec::with_capacity(4 + head.len() + entry.auth_json.len());
    let len = u32::try_from(head.len()).map_err(|_| invalid("spool entry", "its texts are too long"))?;
    plain.extend_from_slice(&len.to_be_bytes());
    plain.extend_from_slice(&head);
    plain.extend_from_slice(&entry.auth_json);
    Ok(plain)
}

fn decode(plain: &Bytes) -> Result<SpoolEntry> {
    let damaged = |why: String| StoreError::Damaged { what: "spool entry".to_owned(), why };
    let (len, rest) = plain.split_first_chunk::<4>().ok_or_else(|| damaged("it is cut off".to_owned()))?;
    let len = u32::from_be_bytes(*len) as usize;
    let head = rest.get(..len).ok_or_else(|| damaged("it is cut off".to_owned()))?;
    let head: Head = serde_json::from_slice(head).map_err(|e| damaged(e.to_string()))?;
    Ok(SpoolEntry {
        seed: head.seed,
        session: head.session,
        holder: head.holder,
        base: head.base,
        fingerprint: head.fingerprint,
        account_id: head.account_id,
        at: head.at,
        auth_json: plain.slice(4 + len..),
    })
}

/// What an entry is sealed under.
fn bound_to(name: &str) -> String {
    format!("spool entry {name}")
}

/// An entry's name is `<seed>-<32 hex digits>.sealed`; anything else could be a path.
fn check_name(name: &str) -> Result<()> {
    let ours =
        name.strip_suffix(ENDING).and_then(|stem| stem.split_once('-')).is_some_and(|(seed, random)| {
            seed.parse::<SeedId>().is_ok()
                && random.len() == 32
                && random.bytes().all(|b| b.is_ascii_hexdigit())
        });
    if ours { Ok(()) } else { Err(invalid("spool id", format!("{name:?} is none"))) }
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in dir.read_dir().map_err(|e| failed(dir, e))? {
        let entry = entry.map_err(|e| failed(dir, e))?;
        if let Some(name) = entry.file_name().to_str()
            && check_name(name).is_ok()
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Removes entries that were being written when a service ended: nobody was told that they were durable.
fn sweep(dir: &Path) -> Result<()> {
    for entry in dir.read_dir().map_err(|e| failed(dir, e))? {
        let entry = entry.map_err(|e| failed(dir, e))?;
        let name = entry.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(".tmp"));
        if stem.is_some_and(|stem| check_name(&format!("{stem}{ENDING}")).is_ok()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(failed(path, e)),
        _ => Ok(()),
    }
}

fn failed(path: &Path, error: std::io::Error) -> StoreError {
    unavailable("the spool", format_args!("{}: {error}", path.display()))
}
