//! One watcher of the kernel's file events, shared by all sessions of this machine.
//!
//! A user may have 128 inotify instances by default, and a service has hundreds of sessions, so all of them share
//! one. What is watched is never the file (a replaced file would take its watch away with it, LAB §3) but the
//! directory that holds it, and every directory above it up to the task directory: when one of these is moved or
//! removed, the watches below it look at something that is no longer there, so they end and their owners arm anew.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::error::{HostError, Result};
use crate::watch::chain;
use crate::{RelPath, TaskDir, Watch};

/// Hands out watches; clones are one and the same.
#[derive(Clone, Default)]
pub(super) struct Watcher {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Held while watches are armed; made by the first one. Never taken by the thread that brings events, which may
    /// be the one an arming waits for.
    kernel: Mutex<Option<RecommendedWatcher>>,
    table: Arc<Mutex<Table>>,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let table = lock(&self.inner.table);
        f.debug_struct("Watcher")
            .field("watches", &table.watches.len())
            .field("dirs", &table.dirs.len())
            .finish()
    }
}

impl Watcher {
    /// Arms a watch; blocks for a few system calls. The directory that holds the file must exist.
    pub(super) fn watch(&self, dir: &TaskDir, path: &RelPath) -> Result<Watch> {
        let target = dir.join(path);
        let failed = |source: notify::Error| {
            let source = match source.kind {
                notify::ErrorKind::Io(source) => source,
                notify::ErrorKind::PathNotFound => std::io::ErrorKind::NotFound.into(),
                _ => std::io::Error::other(source),
            };
            HostError::io(format!("watch {}", target.display()), source)
        };
        let mut kernel = lock(&self.inner.kernel);
        let kernel = match &mut *kernel {
            Some(kernel) => kernel,
            none => {
                let table = Arc::clone(&self.inner.table);
                let deliver = move |event| lock(&table).deliver(event);
                none.insert(notify::recommended_watcher(deliver).map_err(failed)?)
            }
        };
        // The table is never locked while the kernel's thread is waited for: that thread may wait for the table.
        let idle = lock(&self.inner.table).take_idle();
        for idle in idle {
            // It may have gone with its directory; then there is nothing to end.
            let _ = kernel.unwatch(&idle);
        }
        let chain = chain(dir, &target);
        // Registered before armed: an event between the two must find whom to wake.
        let (wake, wakes) = mpsc::channel(1);
        let id = lock(&self.inner.table).register(&target, &chain, wake);
        let entry = Entry { id, watcher: self.clone() };
        // From the top, so that a directory which is replaced meanwhile is either seen by the watch above it or is
        // already the new one.
        for dir in &chain {
            let arming = lock(&self.inner.table).arming_of(dir);
            match arming {
                Arming::Done => continue,
                Arming::Stale => drop(kernel.unwatch(dir)),
                Arming::New => {}
            }
            if let Err(error) = kernel.watch(dir, RecursiveMode::NonRecursive) {
                lock(&self.inner.table).not_armed(dir);
                return Err(failed(error));
            }
        }
        Ok(Watch::new(wakes, entry))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change of the table is complete before anything in it could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes its watch out of the table when it is dropped, and keeps the kernel's watcher alive until then.
struct Entry {
    id: u64,
    watcher: Watcher,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.watcher.inner.table).remove(self.id);
    }
}

/// Who waits for what.
#[derive(Default)]
struct Table {
    next_id: u64,
    watches: HashMap<u64, Watched>,
    by_target: HashMap<PathBuf, Vec<u64>>,
    dirs: HashMap<PathBuf, Dir>,
}

struct Watched {
    target: PathBuf,
    chain: Vec<PathBuf>,
    wake: mpsc::Sender<()>,
}

/// A directory that the kernel watches for us.
struct Dir {
    /// How many watches need it. One that nobody needs is given back at the next arming: a `Drop` must not wait for
    /// the kernel's thread.
    users: usize,
    arming: Arming,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arming {
    New,
    Done,
    /// What the kernel watches under this path is no longer what lies there.
    Stale,
}

impl Table {
    fn register(&mut self, target: &Path, chain: &[PathBuf], wake: mpsc::Sender<()>) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        for dir in chain {
            self.dirs.entry(dir.clone()).or_insert(Dir { users: 0, arming: Arming::New }).users += 1;
        }
        self.by_target.entry(target.to_path_buf()).or_default().push(id);
        self.watches.insert(id, Watched { target: target.to_path_buf(), chain: chain.to_vec(), wake });
        id
    }

    fn remove(&mut self, id: u64) {
        let Some(watched) = self.watches.remove(&id) else {
            return;
        };
        for dir in &watched.chain {
            if let Some(dir) = self.dirs.get_mut(dir) {
                dir.users -= 1;
            }
        }
        if let Some(ids) = self.by_target.get_mut(&watched.target) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_target.remove(&watched.target);
            }
        }
    }

    /// What must be done to have `dir` watched; it counts as done from now on, because an event that makes it stale
    /// again may come before the kernel has answered.
    fn arming_of(&mut self, dir: &Path) -> Arming {
        match self.dirs.get_mut(dir) {
            Some(dir) => std::mem::replace(&mut dir.arming, Arming::Done),
            // Its watch was ended meanwhile, and its owner will find out.
            None => Arming::Done,
        }
    }

    fn not_armed(&mut self, dir: &Path) {
        if let Some(dir) = self.dirs.get_mut(dir) {
            dir.arming = Arming::Stale;
        }
    }

    fn take_idle(&mut self) -> Vec<PathBuf> {
        let idle: Vec<_> =
            self.dirs.iter().filter(|(_, dir)| dir.users == 0).map(|(path, _)| path.clone()).collect();
        for path in &idle {
            self.dirs.remove(path);
        }
        idle
    }

    fn deliver(&mut self, event: notify::Result<notify::Event>) {
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            Ok(_) => return self.end_all(),
            Err(error) => {
                tracing::warn!(%error, "watching files failed");
                return self.end_all();
            }
        };
        // Reading is no change; a reader that woke itself would never sleep again.
        if matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)) {
            return;
        }
        let moved = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
        for path in &event.paths {
            for id in self.by_target.get(path).into_iter().flatten() {
                // A full queue means that a wake-up is already due.
                let _ = self.watches[id].wake.try_send(());
            }
            if moved && self.dirs.contains_key(path) {
                self.end_below(path);
            }
        }
    }

    /// Ends the watches below a directory that was moved or removed.
    fn end_below(&mut self, gone: &Path) {
        for (_, dir) in self.dirs.iter_mut().filter(|(path, _)| path.starts_with(gone)) {
            dir.arming = Arming::Stale;
        }
        let below = |watched: &Watched| watched.chain.iter().any(|dir| dir.starts_with(gone));
        let ended: Vec<_> =
            self.watches.iter().filter(|(_, watched)| below(watched)).map(|(id, _)| *id).collect();
        for id in ended {
            self.remove(id);
        }
    }

    /// Ends all watches, after events were lost.
    fn end_all(&mut self) {
        for dir in self.dirs.values_mut() {
            dir.arming = Arming::Stale;
        }
        for id in self.watches.keys().copied().collect::<Vec<_>>() {
            self.remove(id);
        }
    }
}
