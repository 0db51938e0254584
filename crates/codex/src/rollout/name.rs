//! Rollout file names: `rollout-2026-11-21T00-54-03-<thread id>.jsonl`.

use jiff::civil::DateTime;

/// A rollout's name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutName {
    /// The file's name without its directories.
    pub file: String,
    /// When the thread began, in the local time of the machine that wrote it (LAB §5).
    pub began: DateTime,
    /// The thread's id: a UUID (S-497).
    pub thread: String,
}

impl RolloutName {
    /// Reads a file's name, with or without directories before it; `None` when it is not a rollout's.
    pub fn parse(path: &str) -> Option<Self> {
        let file = path.rsplit('/').next()?;
        let stem = file.strip_prefix("rollout-")?.strip_suffix(".jsonl")?;
        // `2026-11-21T00-54-03`, a dash, and a UUID; all ASCII, or it is no rollout.
        let (time, thread) = stem.is_ascii().then(|| stem.split_at_checked(19)).flatten()?;
        let thread = thread.strip_prefix('-').filter(|thread| is_uuid(thread))?;
        let began = DateTime::strptime("%Y-%m-%dT%H-%M-%S", time).ok()?;
        Some(Self { file: file.to_owned(), began, thread: thread.to_owned() })
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// Answers which rollouts may be a session's own, best first (S-497, S-498).
///
/// The one whose thread the run resumed or observed is certain and stands alone. Otherwise the newest by name come
/// first, and the caller takes the first whose [`super::Header`] is top-level: sub-agents and nested runs write newer
/// files. With neither, the id known before is kept (S-473); it never comes from here.
pub fn candidates<'a>(paths: impl IntoIterator<Item = &'a str>, known: Option<&str>) -> Vec<RolloutName> {
    let mut names: Vec<RolloutName> = paths.into_iter().filter_map(RolloutName::parse).collect();
    names.sort_unstable_by(|a, b| b.file.cmp(&a.file));
    if let Some(own) = names.iter().find(|name| Some(name.thread.as_str()) == known) {
        return vec![own.clone()];
    }
    names
}
