//! What `find` said, as a listing.

use std::collections::BinaryHeap;
use std::path::Path;

use super::files::said;
use crate::{HostError, RelPath, Result};

/// Files one listing looks at; see the local host's.
const LIST_ENTRIES: u64 = 1_000_000;

/// How a program of the far side says that something went away while it looked at it.
pub(super) const VANISHED: &str = "No such file or directory";

/// The first `limit` paths in bytewise order. What vanished meanwhile is no failure; what could not be looked at is.
pub(super) fn sorted(
    what: &str,
    target: &Path,
    dir: &RelPath,
    said_by_find: &[u8],
    limit: usize,
) -> Result<Vec<RelPath>> {
    let (mut first, mut seen) = (BinaryHeap::new(), 0);
    let mut rest = said_by_find;
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let (path, behind) = (&rest[..end], &rest[end + 1..]);
        rest = behind;
        if path.is_empty() {
            let words = String::from_utf8_lossy(behind);
            match words.lines().find(|line| !line.ends_with(VANISHED)) {
                Some(problem) => return Err(said(what, problem)),
                None => break,
            }
        }
        seen += 1;
        if seen > LIST_ENTRIES {
            let path = target.display().to_string();
            return Err(HostError::TooLarge { path, len: seen, limit: LIST_ENTRIES });
        }
        // Another name has no `RelPath`, so nobody could ask for it either.
        let Ok(path) = std::str::from_utf8(path.strip_prefix(b"./").unwrap_or(path)) else { continue };
        let Ok(path) = RelPath::new(format!("{}/{path}", dir.as_str())) else { continue };
        first.push(path);
        if first.len() > limit {
            first.pop();
        }
    }
    Ok(first.into_sorted_vec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn listed(said: &[u8], limit: usize) -> Result<Vec<String>> {
        let dir = RelPath::new("workdir").unwrap();
        let paths = sorted("list", Path::new("/t/workdir"), &dir, said, limit)?;
        Ok(paths.iter().map(|path| path.as_str().to_owned()).collect())
    }

    #[test]
    fn the_first_ones_are_kept_and_sorted_by_their_bytes() {
        let said = b"./b\0./a/z\0./a-b\0./\xff\0./a\nb\0";
        assert_eq!(listed(said, 9).unwrap(), ["workdir/a\nb", "workdir/a-b", "workdir/a/z", "workdir/b"]);
        assert_eq!(listed(said, 2).unwrap(), ["workdir/a\nb", "workdir/a-b"]);
        assert_eq!(listed(b"", 2).unwrap(), [""; 0]);
    }

    #[test]
    fn what_vanished_is_no_failure_and_what_is_closed_is_one() {
        let vanished = b"./b\0\0find: './a': No such file or directory\n";
        assert_eq!(listed(vanished, 9).unwrap(), ["workdir/b"]);
        let closed = b"./b\0\0find: './x': No such file or directory\nfind: './a': Permission denied";
        assert!(listed(closed, 9).unwrap_err().to_string().contains("'./a': Permission denied"));
    }
}
