//! From a checked tarball to the one program in it.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;

use bytes::Bytes;
use flate2::read::GzDecoder;
use futures_util::StreamExt;
use tar::{Archive, EntryType};
use tokio::sync::mpsc;

use crate::archive::CHUNK;
use crate::{ByteStream, HostError, Result};

/// Largest program that is taken; codex has 286 MB.
const PROGRAM_LIMIT: u64 = 2 << 30;

/// Chunks that wait for whoever writes them to the host.
const AHEAD: usize = 2;

/// Streams the only file of a gzipped tar (S-229). The stream fails when there is any other entry, a directory or a link
/// too, so whoever reads it must not use what came before it has ended well.
pub(super) fn only_file(tarball: PathBuf, name: String) -> ByteStream {
    stream(move |out| unpack(File::open(&tarball), &name, out))
}

/// Streams a file as it is.
pub(super) fn whole_file(path: PathBuf) -> ByteStream {
    stream(move |out| {
        let mut file = File::open(&path).map_err(|source| unreadable(&path.display().to_string(), source))?;
        pour(&mut file, out).map_err(|source| unreadable(&path.display().to_string(), source))
    })
}

/// Runs blocking work on the blocking pool; it ends when nobody reads any more.
fn stream(work: impl FnOnce(&mpsc::Sender<Result<Bytes>>) -> Result<()> + Send + 'static) -> ByteStream {
    let (out, mut chunks) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        if let Err(problem) = work(&out) {
            // A reader that is gone has given up.
            let _ = out.blocking_send(Err(problem));
        }
    });
    futures_util::stream::poll_fn(move |cx| chunks.poll_recv(cx)).boxed()
}

fn unpack(file: std::io::Result<File>, name: &str, out: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
    let failed = |source| unreadable(name, source);
    let refused = |what: &str| {
        HostError::BadArchive(format!("{name} must hold exactly one file and nothing else, and {what}"))
    };
    let file = file.map_err(failed)?;
    let mut archive = Archive::new(GzDecoder::new(BufReader::with_capacity(CHUNK, file)));
    let mut entries = archive.entries().map_err(failed)?;
    let mut first = match entries.next() {
        None => return Err(refused("it is empty")),
        Some(entry) => entry.map_err(failed)?,
    };
    if first.header().entry_type() != EntryType::Regular {
        return Err(refused("its first entry is no regular file"));
    }
    if first.size() == 0 || first.size() > PROGRAM_LIMIT {
        return Err(refused(&format!("that file has {} bytes", first.size())));
    }
    pour(&mut first, out).map_err(failed)?;
    drop(first);
    match entries.next() {
        None => {}
        Some(Ok(_)) => return Err(refused("it has a second entry")),
        Some(Err(source)) => return Err(failed(source)),
    }
    // To the end: what is checked there belongs to the file.
    let mut rest = archive.into_inner();
    std::io::copy(&mut rest, &mut std::io::sink()).map(drop).map_err(failed)
}

fn pour(from: &mut impl Read, out: &mpsc::Sender<Result<Bytes>>) -> std::io::Result<()> {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        if from.by_ref().take(CHUNK as u64).read_to_end(&mut chunk)? == 0 {
            return Ok(());
        }
        if out.blocking_send(Ok(chunk.into())).is_err() {
            return Err(std::io::Error::other("nobody takes it any more"));
        }
    }
}

fn unreadable(name: &str, source: std::io::Error) -> HostError {
    HostError::BadArchive(format!("{name} cannot be read: {source}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tar::{Builder, Header};

    use super::*;

    type Entry<'a> = (EntryType, &'a str, &'a [u8]);

    fn tarball(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut tar = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (kind, path, bytes) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(bytes.len() as u64);
            if matches!(kind, EntryType::Symlink | EntryType::Link) {
                header.set_link_name("/bin/sh").unwrap();
            }
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, path, *bytes).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    async fn unpacked(bytes: &[u8]) -> Result<Vec<u8>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let mut stream = only_file(file.path().to_owned(), "codex.tar.gz".into());
        let mut all = Vec::new();
        while let Some(chunk) = stream.next().await {
            all.extend_from_slice(&chunk?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn the_one_file_comes_out_whatever_its_name_and_mode() {
        let program = vec![7; 3 * CHUNK + 5];
        let tar = tarball(&[(EntryType::Regular, "any-name", &program)]);
        assert_eq!(unpacked(&tar).await.unwrap(), program);
    }

    #[tokio::test]
    async fn anything_but_exactly_one_file_is_refused() {
        let file: Entry<'_> = (EntryType::Regular, "codex", b"x");
        let (dir, link): (Entry<'_>, Entry<'_>) =
            ((EntryType::Directory, "bin/", b""), (EntryType::Symlink, "codex", b""));
        let hard: Entry<'_> = (EntryType::Link, "codex", b"");
        let empty: Entry<'_> = (EntryType::Regular, "codex", b"");
        for entries in [
            vec![],
            vec![file, file],
            vec![dir, file],
            vec![file, dir],
            vec![link],
            vec![file, link],
            vec![hard],
            vec![empty],
        ] {
            let refused = unpacked(&tarball(&entries)).await.unwrap_err().to_string();
            assert!(refused.contains("exactly one"), "{entries:?}: {refused}");
        }
    }

    #[tokio::test]
    async fn what_is_cut_or_no_tarball_is_an_error() {
        let tar = tarball(&[(EntryType::Regular, "codex", &[9; 100_000])]);
        for bytes in [&tar[..tar.len() / 2], &tar[..tar.len() - 4], b"#!/bin/sh\n", b""] {
            unpacked(bytes).await.unwrap_err();
        }
    }
}
