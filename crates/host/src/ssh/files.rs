//! Files on the far side, by the [`Hand`].

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::hand::{Answer, Hand, Question, Words, nonce};
use super::listing;
use super::poured;
use super::shells::{Lane, Shells};
use crate::{ByteStream, FileInfo, FilePart, HostError, RelPath, Result, TaskDir};

/// Limit of one file operation; more than a dead connection needs to be noticed (15 s).
pub(super) const FILE_LIMIT: Duration = Duration::from_secs(30);
/// Limit of work on a whole tree; a workdir with a million files takes about half a minute.
pub(super) const TREE_LIMIT: Duration = Duration::from_secs(600);
/// Bytes of a listing: a million paths of a hundred bytes.
const LIST_BYTES: usize = 128 << 20;

/// The file operations of [`super::SshHost`].
pub(super) struct FarFiles {
    shells: Arc<dyn Shells>,
    hand: Hand,
}

impl FarFiles {
    pub(super) fn new(shells: Arc<dyn Shells>) -> Self {
        Self { hand: Hand::new(shells.clone(), Lane::Control), shells }
    }

    /// `socket` is the path of the task's socket: its directory, and the one above that, are made as well.
    pub(super) async fn create(&self, dir: &TaskDir, socket: &Path) -> Result<()> {
        let words = Words::new("do_create").split(dir.path())?.split(above(socket)?)?;
        let what = format!("create {}", dir.path().display());
        let answer = self.apart(&what, words, 0).await?;
        if let ("root", [which, problem]) = (answer.word.as_str(), &answer.facts[..]) {
            let root = if which == "task" { above(dir.path())? } else { above(above(socket)?)? };
            return Err(root_refused(which, root, problem));
        }
        done(answer, &what, dir.path()).map(drop)
    }

    pub(super) async fn exists(&self, dir: &TaskDir) -> Result<bool> {
        let what = format!("look at {}", dir.path().display());
        let words = Words::new("do_exists").split(dir.path())?;
        match done(self.ask(&what, words).await?, &what, dir.path()) {
            Err(HostError::NotFound { .. }) => Ok(false),
            answer => answer.map(|_| true),
        }
    }

    pub(super) async fn cleanup(&self, dir: &TaskDir, socket: &Path) -> Result<()> {
        let words = Words::new("do_cleanup").split(dir.path())?.split(above(socket)?)?;
        let what = format!("remove {}", dir.path().display());
        done(self.apart(&what, words, 0).await?, &what, dir.path()).map(drop)
    }

    pub(super) async fn read(&self, dir: &TaskDir, path: &RelPath, limit: u64) -> Result<Bytes> {
        let target = dir.join(path);
        // One more than is accepted: it may grow while it is read.
        let part = Part { offset: 0, count: limit.saturating_add(1), limit: Some(limit) };
        let answer = self.part(dir, path, part).await?;
        let len = answer.body.len() as u64;
        if len > limit {
            return Err(HostError::TooLarge { path: target.display().to_string(), len, limit });
        }
        Ok(answer.body.into())
    }

    pub(super) async fn read_from(
        &self,
        dir: &TaskDir,
        path: &RelPath,
        offset: u64,
        limit: usize,
    ) -> Result<FilePart> {
        let answer = self.part(dir, path, Part { offset, count: limit as u64, limit: None }).await?;
        let (Some(identity), Some(len)) = (answer.facts.first(), answer.facts.get(1).and_then(number)) else {
            return Err(nonsense(&format!("read {}", dir.join(path).display()), &answer));
        };
        // It may have grown since it was looked at.
        let len = if answer.body.is_empty() { len } else { len.max(offset + answer.body.len() as u64) };
        Ok(FilePart { identity: identity.clone(), len, bytes: answer.body.into() })
    }

    async fn part(&self, dir: &TaskDir, path: &RelPath, part: Part) -> Result<Answer> {
        let Part { offset, count, limit } = part;
        let words = Words::new("do_read").number(offset).number(count.min(i64::MAX as u64));
        let words = match limit {
            Some(limit) => words.number(limit.min(i64::MAX as u64)),
            None => words.number(-1),
        };
        let target = dir.join(path);
        let what = format!("read {}", target.display());
        let body = usize::try_from(count).unwrap_or(usize::MAX);
        let words = in_parent(words, dir, path)?;
        let question = Question { what: what.clone(), words, payload: Bytes::new(), body, limit: FILE_LIMIT };
        let answer = self.hand.ask(question).await?;
        if let ("large", Some(len), Some(limit)) =
            (answer.word.as_str(), answer.facts.first().and_then(number), limit)
        {
            return Err(HostError::TooLarge { path: target.display().to_string(), len, limit });
        }
        done(answer, &what, &target)
    }

    pub(super) async fn write(&self, dir: &TaskDir, path: &RelPath, bytes: Bytes, mode: u32) -> Result<()> {
        let words = Words::new("do_write").number(bytes.len()).word(far_mode(mode))?.word(temporary())?;
        self.put("write", in_parent(words, dir, path)?, &dir.join(path), bytes).await
    }

    pub(super) async fn append(&self, dir: &TaskDir, path: &RelPath, bytes: Bytes) -> Result<()> {
        let words = Words::new("do_append").number(bytes.len());
        self.put("append to", in_parent(words, dir, path)?, &dir.join(path), bytes).await
    }

    async fn put(&self, deed: &str, words: Words, target: &Path, payload: Bytes) -> Result<()> {
        let what = format!("{deed} {}", target.display());
        let question = Question { what: what.clone(), words, payload, body: 0, limit: FILE_LIMIT };
        done(self.hand.ask(question).await?, &what, target).map(drop)
    }

    pub(super) async fn rename(&self, dir: &TaskDir, from: &RelPath, to: &RelPath) -> Result<()> {
        let (old, old_name) = split(from);
        let (new, new_name) = split(to);
        let enter_old = enter(Words::new("enter"), dir, old)?;
        let enter_new = enter(Words::new("enter"), dir, new)?;
        let words = Words::new("do_rename").word(old_name)?.word(new_name)?;
        let words = words.word(enter_old.as_bytes())?.word(enter_new.as_bytes())?;
        self.on_path("rename", words, &dir.join(from)).await.map(drop)
    }

    pub(super) async fn remove(&self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        let words = in_parent(Words::new("do_remove"), dir, path)?;
        match self.on_path("remove", words, &dir.join(path)).await {
            Err(HostError::NotFound { .. }) => Ok(()),
            removed => removed.map(drop),
        }
    }

    pub(super) async fn make_dir(&self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        let words = enter(Words::new("do_make_dir"), dir, path.as_str())?;
        self.on_path("make directory", words, &dir.join(path)).await.map(drop)
    }

    /// Makes the directory that is to hold `path`.
    pub(super) async fn make_parent_of(&self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        let words = enter(Words::new("do_make_dir"), dir, split(path).0)?;
        self.on_path("make directory of", words, &dir.join(path)).await.map(drop)
    }

    pub(super) async fn link(&self, dir: &TaskDir, path: &RelPath, target: &Path) -> Result<()> {
        let words = Words::new("do_link").word(target.as_os_str().as_encoded_bytes())?.word(temporary())?;
        self.on_path("link", in_parent(words, dir, path)?, &dir.join(path)).await.map(drop)
    }

    pub(super) async fn info(&self, dir: &TaskDir, path: &RelPath) -> Result<Option<FileInfo>> {
        let words = in_parent(Words::new("do_info"), dir, path)?;
        let answer = match self.on_path("look at", words, &dir.join(path)).await {
            Err(HostError::NotFound { .. }) => return Ok(None),
            answer => answer?,
        };
        let mode = answer.facts.get(1).and_then(|mode| u32::from_str_radix(mode, 16).ok());
        match (answer.facts.first().and_then(number), mode) {
            (Some(len), Some(mode)) => Ok(Some(FileInfo { len, mode: mode & 0o777 })),
            _ => Err(nonsense(&format!("look at {}", dir.join(path).display()), &answer)),
        }
    }

    pub(super) async fn list(&self, dir: &TaskDir, path: &RelPath, limit: usize) -> Result<Vec<RelPath>> {
        let words = enter(Words::new("do_list"), dir, path.as_str())?;
        let target = dir.join(path);
        let what = format!("list {}", target.display());
        match done(self.apart(&what, words, LIST_BYTES).await?, &what, &target) {
            Err(HostError::NotFound { .. }) => Ok(Vec::new()),
            answer => listing::sorted(&what, &target, path, &answer?.body, limit),
        }
    }

    pub(super) async fn write_stream(&self, path: &Path, stream: ByteStream, mode: u32) -> Result<u64> {
        poured::pour(self.shells.clone(), path, stream, mode).await
    }

    async fn ask(&self, what: &str, words: Words) -> Result<Answer> {
        let payload = Bytes::new();
        self.hand.ask(Question { what: what.to_owned(), words, payload, body: 0, limit: FILE_LIMIT }).await
    }

    async fn on_path(&self, deed: &str, words: Words, target: &Path) -> Result<Answer> {
        let what = format!("{deed} {}", target.display());
        done(self.ask(&what, words).await?, &what, target)
    }

    /// Asks a shell of its own, which nobody else waits for.
    async fn apart(&self, what: &str, words: Words, body: usize) -> Result<Answer> {
        let hand = Hand::new(self.shells.clone(), Lane::Control);
        let payload = Bytes::new();
        hand.ask(Question { what: what.to_owned(), words, payload, body, limit: TREE_LIMIT }).await
    }
}

/// Which bytes of a file, and how long the whole of it may be.
struct Part {
    offset: u64,
    count: u64,
    limit: Option<u64>,
}

/// What the umask takes from a new file, and the mode that chmod has to give where that is not enough.
fn far_mode(mode: u32) -> String {
    match mode & 0o777 {
        plain if plain & 0o111 == 0 => format!("{:03o}:", 0o666 & !plain),
        other => format!("077:{other:03o}"),
    }
}

/// A unique name for what is not yet whole.
pub(super) fn temporary() -> String {
    format!(".optio-{}.tmp", nonce())
}

fn split(path: &RelPath) -> (&str, &str) {
    path.as_str().rsplit_once('/').unwrap_or(("", path.as_str()))
}

fn above(path: &Path) -> Result<&Path> {
    let why = "it must be an absolute path below '/'";
    path.parent().ok_or_else(|| HostError::Refused { what: "path", value: path.display().to_string(), why })
}

/// The words that enter a directory of a task.
pub(super) fn enter(words: Words, dir: &TaskDir, rel: &str) -> Result<Words> {
    let segments = rel.split('/').filter(|segment| !segment.is_empty());
    segments.map(str::as_bytes).try_fold(words.split(dir.path())?, Words::word)
}

/// A name, and the words that enter the directory which holds it.
fn in_parent(words: Words, dir: &TaskDir, path: &RelPath) -> Result<Words> {
    let (above, name) = split(path);
    enter(words.word(name)?, dir, above)
}

fn number(text: impl AsRef<str>) -> Option<u64> {
    text.as_ref().parse().ok()
}

/// Turns an answer that is no success into what a caller can act on.
pub(super) fn done(answer: Answer, what: &str, target: &Path) -> Result<Answer> {
    let refused = |why| HostError::Refused { what: "path", value: target.display().to_string(), why };
    Err(match answer.word.as_str() {
        "ok" => return Ok(answer),
        "missing" => HostError::NotFound { path: target.display().to_string() },
        "link" => refused("a symbolic link lies on it"),
        "irregular" => refused("it is not a regular file"),
        "busy" => said(what, "it is replaced faster than it can be read"),
        "taken" => HostError::io(what, std::io::Error::new(ErrorKind::AlreadyExists, "File exists")),
        "failed" => said(what, &String::from_utf8_lossy(&answer.body)),
        _ => nonsense(what, &answer),
    })
}

/// What a program there had to say, as an error of the system.
pub(super) fn said(what: &str, words: &str) -> HostError {
    let words = words.trim();
    let kind = [
        ("No space left on device", ErrorKind::StorageFull),
        // GNU tar's word for it.
        ("Wrote only", ErrorKind::StorageFull),
        ("Disk quota exceeded", ErrorKind::QuotaExceeded),
        ("Permission denied", ErrorKind::PermissionDenied),
        ("Read-only file system", ErrorKind::ReadOnlyFilesystem),
        ("Directory not empty", ErrorKind::DirectoryNotEmpty),
        ("Is a directory", ErrorKind::IsADirectory),
    ];
    let kind = kind.iter().find(|(text, _)| words.contains(text)).map_or(ErrorKind::Other, |(_, kind)| *kind);
    let words = match kind {
        _ if words.is_empty() => "it failed without a word".to_owned(),
        ErrorKind::StorageFull if words.contains("Wrote only") => format!("No space left on device: {words}"),
        _ => words.to_owned(),
    };
    HostError::io(what, std::io::Error::new(kind, words))
}

fn nonsense(what: &str, answer: &Answer) -> HostError {
    let words = String::from_utf8_lossy(&answer.body);
    said(what, &format!("unexpected answer {:?} {:?} {words}", answer.word, answer.facts))
}

fn root_refused(which: &str, root: &Path, problem: &str) -> HostError {
    let what = if which == "task" { "task root" } else { "socket root" };
    let why = match problem {
        "link" => "it is a symbolic link; set another `task_root` for this host, or remove it",
        "file" => "it is not a directory; set another `task_root` for this host, or remove it",
        "owner" => "another user owns it; set a `task_root` for this host that its user owns",
        _ => "others can write to it; take that from them, or set another `task_root` for this host",
    };
    HostError::Refused { what, value: root.display().to_string(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_without_execution_needs_no_program() {
        assert_eq!(far_mode(0o600), "066:");
        assert_eq!(far_mode(0o644), "022:");
        assert_eq!(far_mode(0o755), "077:755");
        assert_eq!(far_mode(0o4400), "266:");
    }

    #[test]
    fn a_full_disk_is_known_by_the_words_of_the_program() {
        let error = said("write /a", "dd: writing 'standard output': No space left on device\n");
        assert!(matches!(&error, HostError::Io { source, .. } if source.kind() == ErrorKind::StorageFull));
        assert!(error.to_string().contains("write /a: dd: writing"), "{error}");
    }
}
