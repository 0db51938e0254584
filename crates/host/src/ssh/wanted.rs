//! Which paths of a far tree go into an archive.

use crate::Excludes;

/// Takes what `find` says, paths that end in NUL and begin with `./`, and keeps the names that are wanted.
pub(super) struct Wanted {
    excludes: Excludes,
    /// The beginning of a path whose end has not come yet.
    rest: Vec<u8>,
    /// Names to be packed, each ending in NUL, that nobody has taken yet.
    names: Vec<u8>,
    /// A directory that stays out, with its slash: what lies in it follows it in the list.
    out: Option<Vec<u8>>,
    /// Where an empty path has come, the next one is no path.
    over: bool,
    status: Option<u8>,
}

impl Wanted {
    pub(super) fn new(excludes: Excludes) -> Self {
        Self { excludes, rest: Vec::new(), names: Vec::new(), out: None, over: false, status: None }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        let mut parts = bytes.split(|byte| *byte == 0);
        let mut last = parts.next().unwrap_or_default();
        for next in parts {
            let mut path = std::mem::take(&mut self.rest);
            path.extend_from_slice(last);
            self.path(&path);
            last = next;
        }
        self.rest.extend_from_slice(last);
    }

    fn path(&mut self, path: &[u8]) {
        if self.over {
            let status = std::str::from_utf8(path).ok().and_then(|status| status.parse().ok());
            self.status = Some(status.unwrap_or(u8::MAX));
            return;
        }
        let (path, special) = match path.strip_prefix(b"special:") {
            Some(path) => (path, true),
            None => (path, false),
        };
        let name = path.strip_prefix(b"./").unwrap_or(path);
        if name.is_empty() {
            self.over = true;
            return;
        }
        if self.out.as_ref().is_some_and(|out| name.starts_with(out)) {
            return;
        }
        if self.excludes.matches(name) {
            self.out = Some([name, b"/"].concat());
            return;
        }
        if special {
            let path = String::from_utf8_lossy(name);
            tracing::warn!(%path, why = "it is a socket, FIFO or device", "left out of the archive");
            return;
        }
        self.names.extend_from_slice(name);
        self.names.push(0);
    }

    /// What came since the last time.
    pub(super) fn names(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.names)
    }

    /// How `find` ended, once it has.
    pub(super) fn status(&self) -> Option<u8> {
        self.status
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_excluded_stays_out_with_all_that_lies_in_it_however_the_list_is_cut() {
        let said = b"./a\0./a/cache\0./a/cache/x\0./a/cache2\0./home\0./home/.c\0./home/.c/d\0./x.pyc\0special:./s\0\0";
        let said = [&said[..], b"1\0"].concat();
        for size in 1..said.len() {
            let mut wanted = Wanted::new(Excludes::new(["cache", "*.pyc", "home/.c"]).unwrap());
            let mut names = Vec::new();
            for part in said.chunks(size) {
                assert_eq!(wanted.status(), None);
                wanted.take(part);
                names.extend(wanted.names());
            }
            assert_eq!(String::from_utf8(names).unwrap(), "a\0a/cache2\0home\0");
            assert_eq!(wanted.status(), Some(1));
        }
    }
}
