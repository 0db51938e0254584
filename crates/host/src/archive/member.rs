//! One member of a tar: its header, as GNU tar writes it, and its bytes.
//!
//! Headers are put together here and not by `tar::Builder`: that one rewrites link targets (`a//b` becomes `a/b`) and
//! writes the end of the archive when it is dropped after an error, which makes a torn archive look whole.

use std::io::{self, Read, Write};

use rustix::fs::Stat;
use tar::{EntryType, Header};

/// Size of a block of a tar.
const BLOCK: u64 = 512;
/// A name or link target up to this length stands in the header itself.
const NAME_FIELD: usize = 100;
/// What a file is read by.
const READ_BUFFER: usize = 128 * 1024;

/// What a header says besides names, kind and length.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970.
    pub(super) mtime: i64,
}

impl From<&Stat> for Head {
    fn from(stat: &Stat) -> Self {
        Self { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime: stat.st_mtime }
    }
}

/// Writes members to a compressor.
pub(super) struct Members<W: Write> {
    out: W,
    buffer: Vec<u8>,
}

impl<W: Write> Members<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, buffer: vec![0; READ_BUFFER] }
    }

    /// Writes a member without content: a directory, or a link to `target`.
    pub(super) fn empty(
        &mut self,
        kind: EntryType,
        path: &[u8],
        target: &[u8],
        head: impl Into<Head>,
    ) -> io::Result<()> {
        self.header(kind, path, target, head.into(), 0)
    }

    /// Writes a file of exactly `size` bytes: what the file has more is cut, what it has less is zeros. Answers
    /// whether it had fewer.
    pub(super) fn file(
        &mut self,
        path: &[u8],
        head: impl Into<Head>,
        size: u64,
        mut from: impl Read,
    ) -> io::Result<bool> {
        self.header(EntryType::Regular, path, b"", head.into(), size)?;
        let mut left = size;
        let mut short = false;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let mut got = 0;
            if !short {
                got = match from.read(&mut self.buffer[..want]) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    other => other?,
                };
            }
            if got == 0 {
                short = true;
                self.buffer[..want].fill(0);
                got = want;
            }
            self.out.write_all(&self.buffer[..got])?;
            left -= got as u64;
        }
        self.pad(size)?;
        Ok(short)
    }

    /// Writes the two empty blocks that end an archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.end()?;
        Ok(self.out)
    }

    /// The same, where what is written to is somebody else's.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK as usize])
    }

    fn header(
        &mut self,
        kind: EntryType,
        path: &[u8],
        target: &[u8],
        head: Head,
        size: u64,
    ) -> io::Result<()> {
        if target.len() > NAME_FIELD {
            self.long(EntryType::GNULongLink, target)?;
        }
        if path.len() > NAME_FIELD {
            self.long(EntryType::GNULongName, path)?;
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        fill(&mut header.as_old_mut().name, path);
        fill(&mut header.as_old_mut().linkname, target);
        header.set_mode(head.mode);
        header.set_uid(head.uid.into());
        header.set_gid(head.gid.into());
        // Python's reader takes no time before 1970 from this field.
        header.set_mtime(u64::try_from(head.mtime).unwrap_or(0));
        header.set_size(size);
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    /// Writes what GNU tar puts before a member whose name or target does not fit into its header.
    fn long(&mut self, kind: EntryType, value: &[u8]) -> io::Result<()> {
        let size = value.len() as u64 + 1;
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        fill(&mut header.as_old_mut().name, b"././@LongLink");
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(value)?;
        self.out.write_all(&[0])?;
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let missing = (BLOCK - size % BLOCK) % BLOCK;
        self.out.write_all(&[0; BLOCK as usize][..missing as usize])
    }
}

fn fill(field: &mut [u8; NAME_FIELD], value: &[u8]) {
    let len = value.len().min(NAME_FIELD);
    field[..len].copy_from_slice(&value[..len]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(5))
        }
    }

    fn stat() -> Stat {
        rustix::fs::stat("/").unwrap()
    }

    #[test]
    fn a_read_error_is_an_error_and_not_zeros() {
        let error = Members::new(Vec::new()).file(b"a", &stat(), 10, Broken).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5));
    }

    #[test]
    fn a_file_that_shrank_is_padded_and_one_that_grew_is_cut() {
        for (content, short) in [(&b"abc"[..], true), (&b"abcdefghijkl"[..], false)] {
            let mut members = Members::new(Vec::new());
            assert_eq!(members.file(b"a", &stat(), 10, content).unwrap(), short);
            let bytes = members.finish().unwrap();
            assert_eq!(bytes.len(), 512 + 512 + 1024);
            let mut expected = content[..content.len().min(10)].to_vec();
            expected.resize(10, 0);
            assert_eq!(&bytes[512..522], expected);
        }
    }
}
