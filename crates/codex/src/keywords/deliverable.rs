//! Where a deliverable may lie, judged on its path as text (S-170), and the words the agent gets for it (S-174, S-175).
//!
//! Links are not followed here or anywhere: the host reads the file beneath the workdir only, so a name that passes here
//! and turns out to be a link is refused there (S-171).

use crate::workdir;

/// The longest name of a deliverable: Linux takes no longer path.
const MAX_NAME: usize = 4096;

/// Characters of a name that an answer repeats: as many as a file's name has at the most.
const SHOWN_NAME: usize = 255;

/// Characters of a reply: a person's remarks on one file, not another file.
const SHOWN_REPLY: usize = 4000;

/// Why a path is no deliverable's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// It is somewhere else, or the directory itself.
    #[error("the path must lie below ./deliverables/")]
    Elsewhere,
    /// It has characters in it that no list could show.
    #[error("the path must not contain control characters")]
    Control,
    /// It is longer than a path can be.
    #[error("the path must have at most {MAX_NAME} bytes")]
    TooLong,
}

/// Gives a deliverable's name: its path relative to `deliverables/`. Relative paths are relative to the workdir, absolute
/// ones must lie in it. Errors are for the agent.
pub fn name_of(path: &str, workdir: &str) -> Result<String, BadPath> {
    if path.len() > MAX_NAME {
        return Err(BadPath::TooLong);
    }
    if path.contains(char::is_control) {
        return Err(BadPath::Control);
    }
    let whole = if path.starts_with('/') { path.to_owned() } else { workdir::below(workdir, path) };
    let whole = plain(&whole);
    let mut above = plain(workdir);
    above.push(workdir::DELIVERABLES);
    match whole.strip_prefix(above.as_slice()) {
        Some(name) if !name.is_empty() => Ok(name.join("/")),
        _ => Err(BadPath::Elsewhere),
    }
}

/// The segments of an absolute path, without `.` and `..`.
fn plain(path: &str) -> Vec<&str> {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    segments
}

/// A path as it is remembered: one that is too long stays too long, and takes no more room than that.
pub fn bounded(mut path: String) -> String {
    if path.len() > MAX_NAME {
        path.truncate(path.ceil_char_boundary(MAX_NAME + 1));
    }
    path
}

/// The one line that answers a `DELIVERABLE:` line, without its `System: ` prefix. `path` is as the agent wrote it.
pub fn answer(path: &str, reply: &str) -> String {
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
    let name: String = name.chars().take(SHOWN_NAME).collect();
    let reply: String = reply.trim().chars().take(SHOWN_REPLY).collect();
    let line = format!("deliverable {name}: {reply}");
    // One line is one answer: whatever breaks it would be read as another message.
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
