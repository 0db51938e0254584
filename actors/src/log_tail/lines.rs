//! Where a tail stands in its file, and the lines that come after: pure, but for the read.

use optio_host::{FilePart, Host, HostError, RelPath, TaskDir};
use serde::{Deserialize, Serialize};

/// Bytes read at once. A flood is digested in parts of this size, each told before the next is read.
const CHUNK: usize = 256 << 10;

/// The longest line that is read. Nobody types one of this length; a tool's output that went to the wrong file has them.
const LINE_LIMIT: usize = 64 << 10;

/// Characters of a longer line that are shown.
const SHOWN: usize = 200;

/// Bytes before the offset that must still be what they were. A file that was cut and has grown again since is longer than
/// what was read of it: only these tell, and a `DONE` that was written over the log is not missed.
const BEHIND: usize = 32;

/// How far a run's log was read. Stands in the record, so that a later child or process goes on exactly here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPosition {
    /// The file, as its host tells it from others; none before the first look.
    pub file: Option<String>,
    /// The byte that is read next.
    pub offset: u64,
    /// How many lines of this run were read, of whichever file.
    pub line: u64,
    /// The bytes right before the offset.
    behind: Vec<u8>,
    /// The offset is within a line that is too long.
    long: Option<LongLine>,
}

/// The beginning of a line that is being skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LongLine {
    shown: String,
    bytes: u64,
}

/// A whole line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// Its bytes, without the newline.
    Whole(Vec<u8>),
    /// What is shown of one that is too long.
    Shortened(String),
}

/// Reads on from a position: the bytes that follow it. A file that was cut or replaced is begun anew.
pub(super) async fn read_on(
    host: &dyn Host,
    dir: &TaskDir,
    path: &RelPath,
    at: &mut LogPosition,
) -> Result<Vec<u8>, HostError> {
    loop {
        let from = at.offset - at.behind.len() as u64;
        let part = host.read_from(dir, path, from, CHUNK + at.behind.len()).await?;
        match at.fresh(&part) {
            Some(fresh) => return Ok(fresh.to_vec()),
            None => at.begin_anew(part.identity),
        }
    }
}

impl LogPosition {
    /// What of a part that begins with [`LogPosition::behind`] is new, or nothing when it is another file's.
    fn fresh<'p>(&self, part: &'p FilePart) -> Option<&'p [u8]> {
        let same = self.file.as_ref() == Some(&part.identity) && part.len >= self.offset;
        part.bytes.strip_prefix(&self.behind[..]).filter(|_| same)
    }

    fn begin_anew(&mut self, file: String) {
        *self = Self { file: Some(file), line: self.line, ..Self::default() };
    }

    /// Takes the next line off the front of the bytes that follow the position, and goes behind it. A line without its
    /// newline stays (S-129), unless it is too long already.
    pub(super) fn take<'b>(&mut self, bytes: &'b [u8]) -> Option<(Line, &'b [u8])> {
        let Some(newline) = bytes.iter().position(|byte| *byte == b'\n') else {
            if self.long.is_some() || bytes.len() > LINE_LIMIT {
                self.skip(bytes);
            }
            return None;
        };
        let (line, rest) = bytes.split_at(newline + 1);
        let text = &line[..newline];
        if self.long.is_some() || text.len() > LINE_LIMIT {
            self.skip(text);
        }
        let line = match self.long.take() {
            None => Line::Whole(text.to_vec()),
            Some(LongLine { shown, bytes }) => {
                Line::Shortened(format!("{shown}… (a line of {bytes} bytes, shortened)"))
            }
        };
        let passed = bytes.len() - rest.len();
        // What was skipped has moved the offset already.
        let skipped = matches!(line, Line::Shortened(_));
        self.go_behind(&bytes[if skipped { newline } else { 0 }..passed]);
        self.line += 1;
        Some((line, rest))
    }

    fn skip(&mut self, bytes: &[u8]) {
        let long = self.long.get_or_insert_with(|| {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN)]);
            LongLine { shown: shown.chars().take(SHOWN).collect(), bytes: 0 }
        });
        long.bytes += bytes.len() as u64;
        self.go_behind(bytes);
    }

    fn go_behind(&mut self, bytes: &[u8]) {
        self.offset += bytes.len() as u64;
        self.behind.extend_from_slice(&bytes[bytes.len().saturating_sub(BEHIND)..]);
        let surplus = self.behind.len().saturating_sub(BEHIND);
        self.behind.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use optio_host::TaskId;
    use optio_host::fake::FakeHost;
    use proptest::prelude::*;

    use super::*;

    async fn all(host: &FakeHost, at: &mut LogPosition) -> Vec<String> {
        let dir = host.task_dir(&TaskId::new("t").unwrap());
        let path = RelPath::in_workdir("optio.log").unwrap();
        let mut lines = Vec::new();
        loop {
            let before = at.clone();
            let fresh = read_on(host, &dir, &path, at).await.unwrap();
            let mut rest = &fresh[..];
            while let Some((line, after)) = at.take(rest) {
                rest = after;
                lines.push(match line {
                    Line::Whole(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                    Line::Shortened(shown) => shown,
                });
            }
            if *at == before {
                return lines;
            }
        }
    }

    fn put(host: &FakeHost, text: impl Into<bytes::Bytes>) {
        let dir = host.task_dir(&TaskId::new("t").unwrap());
        host.put_file(&dir.workdir().join("optio.log"), text);
    }

    fn replace(host: &FakeHost, text: &'static str) {
        let dir = host.task_dir(&TaskId::new("t").unwrap());
        host.remove_path(&dir.workdir().join("optio.log"));
        put(host, text);
    }

    #[tokio::test]
    async fn lines_come_once_and_only_when_they_are_whole() {
        let (host, mut at) = (FakeHost::new(), LogPosition::default());
        put(&host, "one\ntw");
        assert_eq!(all(&host, &mut at).await, ["one"]);
        assert_eq!(all(&host, &mut at).await, Vec::<String>::new());
        put(&host, "one\ntwo\n\n");
        assert_eq!(all(&host, &mut at).await, ["two", ""]);
        assert_eq!((at.offset, at.line), (9, 3));
    }

    #[tokio::test]
    async fn a_cut_file_is_read_from_its_beginning_even_if_it_has_grown_since() {
        let (host, mut at) = (FakeHost::new(), LogPosition::default());
        put(&host, "a\nb\n");
        assert_eq!(all(&host, &mut at).await, ["a", "b"]);
        put(&host, "c\n");
        assert_eq!(all(&host, &mut at).await, ["c"]);
        put(&host, "DONE: written over the log\n");
        assert_eq!(all(&host, &mut at).await, ["DONE: written over the log"]);
        replace(&host, "DONE: written over the log\nand more\n");
        assert_eq!(all(&host, &mut at).await, ["DONE: written over the log", "and more"]);
        assert_eq!(at.line, 6, "lines are counted over the whole run");
    }

    #[tokio::test]
    async fn a_line_of_ten_megabytes_is_skipped_and_said() {
        let (host, mut at) = (FakeHost::new(), LogPosition::default());
        let long = format!("first\n{}", "é".repeat(5 << 20));
        put(&host, long.clone());
        assert_eq!(all(&host, &mut at).await, ["first"]);
        assert_eq!(at.offset, long.len() as u64, "it is not kept until its end");
        put(&host, format!("{long}x\nDONE\n"));
        let shown = format!("{}… (a line of {} bytes, shortened)", "é".repeat(SHOWN), (10 << 20) + 1);
        assert_eq!(all(&host, &mut at).await, [shown, "DONE".to_owned()]);
    }

    #[test]
    fn a_line_of_the_limit_is_whole_and_one_more_byte_is_too_long() {
        let mut at = LogPosition::default();
        let line = [vec![b'x'; LINE_LIMIT], vec![b'\n']].concat();
        assert_eq!(at.take(&line).unwrap().0, Line::Whole(vec![b'x'; LINE_LIMIT]));
        let line = [vec![b'x'; LINE_LIMIT + 1], vec![b'\n']].concat();
        assert!(matches!(at.take(&line).unwrap().0, Line::Shortened(_)));
        assert_eq!(at.offset, 2 * LINE_LIMIT as u64 + 3);
    }

    proptest! {
        /// However a file grows and whenever it is looked at, the lines are those of the whole.
        #[test]
        fn no_line_is_missed_or_repeated(
            parts in proptest::collection::vec("[ab\n]{0,12}", 1..12),
            forget in proptest::collection::vec(any::<bool>(), 12),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (host, mut at, mut text, mut lines) =
                    (FakeHost::new(), LogPosition::default(), String::new(), Vec::new());
                for (part, forget) in parts.iter().zip(forget) {
                    text.push_str(part);
                    put(&host, text.clone());
                    lines.extend(all(&host, &mut at).await);
                    if forget {
                        at = serde_json::from_value(serde_json::to_value(&at).unwrap()).unwrap();
                    }
                }
                let whole = text.rsplit_once('\n').map(|(whole, _)| whole.split('\n').collect::<Vec<_>>());
                prop_assert_eq!(lines, whole.unwrap_or_default());
                Ok(())
            })?;
        }
    }
}
