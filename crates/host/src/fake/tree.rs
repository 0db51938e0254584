//! The files of a [`super::FakeHost`]: one tree of absolute paths, with the rules of a real one.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::{HostError, Result};
use crate::{FileInfo, FilePart, RelPath, TaskDir};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Dir,
    File { bytes: Bytes, mode: u32 },
    Link(PathBuf),
}

#[derive(Default)]
pub(super) struct Tree {
    /// A path sorts directly before all that lies below it.
    nodes: BTreeMap<PathBuf, Node>,
    /// Which making of the file under a path this is: a new one has another identity.
    made: BTreeMap<PathBuf, u64>,
    next_made: u64,
    watches: Vec<(u64, PathBuf, mpsc::Sender<()>)>,
    next_watch: u64,
}

impl Tree {
    pub(super) fn is_dir(&self, path: &Path) -> bool {
        self.nodes.get(path) == Some(&Node::Dir)
    }

    pub(super) fn node(&self, path: &Path) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// Everything below a path, without the path itself.
    pub(super) fn below(&self, path: &Path) -> impl Iterator<Item = (&PathBuf, &Node)> {
        self.nodes.range(path.to_path_buf()..).skip_while(move |(at, _)| *at == path).take_while({
            let path = path.to_path_buf();
            move |(at, _)| at.starts_with(&path)
        })
    }

    /// Makes a directory and all above it, past any rule.
    pub(super) fn make_all(&mut self, path: &Path) {
        for at in path.ancestors() {
            self.nodes.entry(at.to_path_buf()).or_insert(Node::Dir);
        }
    }

    /// Sets a node and wakes who watches it.
    pub(super) fn put(&mut self, path: &Path, node: Node) {
        if !matches!(self.nodes.get(path), Some(Node::File { .. })) {
            self.next_made += 1;
            self.made.insert(path.to_path_buf(), self.next_made);
        }
        self.nodes.insert(path.to_path_buf(), node);
        self.wake(path);
    }

    /// Removes a path with all below it; watches below end.
    pub(super) fn remove_all(&mut self, path: &Path) {
        let gone: Vec<_> = self.below(path).map(|(at, _)| at.clone()).collect();
        for at in gone {
            self.nodes.remove(&at);
        }
        if self.nodes.remove(path).is_some() {
            self.wake(path);
        }
        self.end_watches_below(path);
    }

    fn wake(&self, path: &Path) {
        for (_, target, wake) in &self.watches {
            if target == path {
                // A full queue means that a wake-up is already due.
                let _ = wake.try_send(());
            }
        }
    }

    fn end_watches_below(&mut self, path: &Path) {
        self.watches.retain(|(_, target, _)| target == path || !target.starts_with(path));
    }

    pub(super) fn watch(&mut self, dir: &TaskDir, path: &RelPath) -> Result<(u64, mpsc::Receiver<()>)> {
        self.make_parents(dir, path)?;
        let (wake, wakes) = mpsc::channel(1);
        self.next_watch += 1;
        self.watches.push((self.next_watch, dir.join(path), wake));
        Ok((self.next_watch, wakes))
    }

    /// Ends every watch: whoever wants to know sets up another.
    pub(super) fn unwatch_all(&mut self) {
        self.watches.clear();
    }

    pub(super) fn unwatch(&mut self, id: u64) {
        self.watches.retain(|(other, ..)| *other != id);
    }

    /// Checks that only directories lead to `path`, up from the task directory.
    fn walk(&self, dir: &TaskDir, path: &Path) -> Result<()> {
        let mut above: Vec<_> =
            path.ancestors().skip(1).take_while(|at| at.starts_with(dir.path())).collect();
        above.reverse();
        for at in above {
            match self.nodes.get(at) {
                Some(Node::Dir) => {}
                Some(Node::Link(_)) => return Err(refused(at, "a symbolic link lies on it")),
                Some(Node::File { .. }) | None => return Err(not_found(at)),
            }
        }
        Ok(())
    }

    fn make_parents(&mut self, dir: &TaskDir, path: &RelPath) -> Result<PathBuf> {
        let target = dir.join(path);
        if let Some((parents, _)) = path.as_str().rsplit_once('/') {
            self.make_dir(dir, &RelPath::new(parents)?)?;
        } else {
            self.walk(dir, &target)?;
        }
        Ok(target)
    }

    pub(super) fn make_dir(&mut self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        let mut at = dir.path().to_path_buf();
        for segment in path.as_str().split('/') {
            at.push(segment);
            self.walk(dir, &at)?;
            self.nodes.entry(at.clone()).or_insert(Node::Dir);
        }
        // The end itself may be something else.
        self.walk(dir, &at.join("end"))
    }

    pub(super) fn read(&self, dir: &TaskDir, path: &RelPath, limit: u64) -> Result<Bytes> {
        let target = dir.join(path);
        self.walk(dir, &target)?;
        match self.nodes.get(&target) {
            Some(Node::File { bytes, .. }) if bytes.len() as u64 > limit => Err(HostError::TooLarge {
                path: target.display().to_string(),
                len: bytes.len() as u64,
                limit,
            }),
            Some(Node::File { bytes, .. }) => Ok(bytes.clone()),
            Some(Node::Dir) => Err(refused(&target, "it is not a regular file")),
            Some(Node::Link(_)) => Err(refused(&target, "a symbolic link lies on it")),
            None => Err(not_found(&target)),
        }
    }

    pub(super) fn read_from(
        &self,
        dir: &TaskDir,
        path: &RelPath,
        offset: u64,
        limit: usize,
    ) -> Result<FilePart> {
        let whole = self.read(dir, path, u64::MAX)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(whole.len());
        let bytes = whole.slice(from..from.saturating_add(limit).min(whole.len()));
        let identity = self.made.get(&dir.join(path)).map(u64::to_string).unwrap_or_default();
        Ok(FilePart { bytes, len: whole.len() as u64, identity })
    }

    pub(super) fn write(&mut self, dir: &TaskDir, path: &RelPath, bytes: Bytes, mode: u32) -> Result<()> {
        let target = self.make_parents(dir, path)?;
        if self.is_dir(&target) {
            return Err(system("write", &target, io::ErrorKind::IsADirectory));
        }
        // A rename puts another file in its place.
        self.nodes.remove(&target);
        self.put(&target, Node::File { bytes, mode: mode & 0o777 });
        Ok(())
    }

    pub(super) fn append(&mut self, dir: &TaskDir, path: &RelPath, bytes: &[u8]) -> Result<()> {
        let target = self.make_parents(dir, path)?;
        let node = match self.nodes.get(&target) {
            None => Node::File { bytes: Bytes::copy_from_slice(bytes), mode: 0o600 },
            Some(Node::File { bytes: old, mode }) => {
                Node::File { bytes: [old, bytes].concat().into(), mode: *mode }
            }
            Some(Node::Dir) => return Err(refused(&target, "it is not a regular file")),
            Some(Node::Link(_)) => return Err(refused(&target, "a symbolic link lies on it")),
        };
        self.put(&target, node);
        Ok(())
    }

    pub(super) fn rename(&mut self, dir: &TaskDir, from: &RelPath, to: &RelPath) -> Result<()> {
        let (from, to) = (dir.join(from), dir.join(to));
        self.walk(dir, &from)?;
        self.walk(dir, &to)?;
        let node = self.nodes.get(&from).cloned().ok_or_else(|| not_found(&from))?;
        if from == to {
            return Ok(());
        }
        match (&node, self.nodes.get(&to)) {
            (Node::Dir, Some(Node::File { .. } | Node::Link(_))) => {
                return Err(system("rename", &from, io::ErrorKind::NotADirectory));
            }
            (Node::Dir, Some(Node::Dir)) if self.below(&to).next().is_some() => {
                return Err(system("rename", &from, io::ErrorKind::DirectoryNotEmpty));
            }
            (Node::File { .. } | Node::Link(_), Some(Node::Dir)) => {
                return Err(system("rename", &from, io::ErrorKind::IsADirectory));
            }
            _ => {}
        }
        self.nodes.remove(&to);
        let moved: Vec<_> = self.below(&from).map(|(at, node)| (at.clone(), node.clone())).collect();
        self.remove_all(&from);
        self.put(&to, node);
        for (at, node) in moved {
            if let Ok(rest) = at.strip_prefix(&from) {
                self.put(&to.join(rest), node);
            }
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        let target = dir.join(path);
        match self.walk(dir, &target) {
            Err(HostError::NotFound { .. }) => return Ok(()),
            walked => walked?,
        }
        if self.below(&target).next().is_some() {
            return Err(system("remove", &target, io::ErrorKind::DirectoryNotEmpty));
        }
        self.remove_all(&target);
        Ok(())
    }

    pub(super) fn link(&mut self, dir: &TaskDir, path: &RelPath, target: &Path) -> Result<()> {
        let at = self.make_parents(dir, path)?;
        if self.is_dir(&at) {
            return Err(system("link", &at, io::ErrorKind::IsADirectory));
        }
        self.put(&at, Node::Link(target.to_path_buf()));
        Ok(())
    }

    pub(super) fn info(&self, dir: &TaskDir, path: &RelPath) -> Result<Option<FileInfo>> {
        let target = dir.join(path);
        match self.walk(dir, &target) {
            Err(HostError::NotFound { .. }) => return Ok(None),
            walked => walked?,
        }
        match self.nodes.get(&target) {
            Some(Node::File { bytes, mode }) => Ok(Some(FileInfo { len: bytes.len() as u64, mode: *mode })),
            Some(_) => Err(refused(&target, "it is not a regular file")),
            None => Ok(None),
        }
    }

    pub(super) fn list(&self, dir: &TaskDir, path: &RelPath, limit: usize) -> Result<Vec<RelPath>> {
        let top = dir.join(path);
        match self.walk(dir, &top.join("any")) {
            Err(HostError::NotFound { .. }) => return Ok(Vec::new()),
            walked => walked?,
        }
        let mut found = Vec::new();
        for (at, node) in self.below(&top) {
            let rel = at.strip_prefix(dir.path()).ok().and_then(Path::to_str);
            if let (Node::File { .. }, Some(rel)) = (node, rel) {
                found.push(RelPath::new(rel)?);
            }
        }
        // Paths sort by segment in the tree, but bytewise in the answer.
        found.sort();
        found.truncate(limit);
        Ok(found)
    }
}

fn not_found(path: &Path) -> HostError {
    HostError::NotFound { path: path.display().to_string() }
}

fn refused(path: &Path, why: &'static str) -> HostError {
    HostError::Refused { what: "path", value: path.display().to_string(), why }
}

fn system(deed: &str, path: &Path, kind: io::ErrorKind) -> HostError {
    HostError::io(format!("{deed} {}", path.display()), kind.into())
}
