//! A disk that is full, which takes a file system of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{FarHere, rel, task};
use crate::{Codec, Excludes, Host, HostError, Result, archive};

/// Eight MiB in memory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "optio-test"]).arg(at).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            other => {
                eprintln!("skipped: a small disk needs the right to mount one: {other:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}

fn is_full<T: std::fmt::Debug>(answer: Result<T>) {
    match answer {
        Err(HostError::Io { source, what }) => {
            assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{what}: {source}");
            assert!(source.to_string().contains("No space left on device"), "{source}");
        }
        other => panic!("{other:?}"),
    }
}

/// Bytes that no codec makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

#[tokio::test]
async fn a_full_disk_is_named_and_keeps_what_was_there() {
    let temp = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(temp.path()) else { return };
    let host = FarHere::new(temp.path());
    let dir = task(&host).await;
    let precious = rel("workdir/precious");
    host.write(&dir, &precious, "as it was".into(), 0o600).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("large"), noise(16 << 20)).unwrap();
    let large: Vec<Bytes> = archive::pack(elsewhere.path().to_owned(), Excludes::default(), Codec::Zstd)
        .try_collect()
        .await
        .unwrap();

    is_full(host.write(&dir, &precious, noise(500_000).repeat(20).into(), 0o600).await);
    is_full(host.write(&dir, &rel("workdir/new"), noise(500_000).repeat(20).into(), 0o755).await);
    let parts = stream::iter((0..20).map(|_| Ok(Bytes::from(noise(1 << 20))))).boxed();
    is_full(host.write_stream(&dir.path().join("program"), parts, 0o755).await);
    is_full(host.restore(&dir, stream::iter(large.into_iter().map(Ok)).boxed(), Codec::Zstd).await);

    let left = |path: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(left(dir.path()), ["workdir"]);
    assert_eq!(left(&dir.workdir()), ["precious"]);
    assert_eq!(host.read(&dir, &precious, 99).await.unwrap(), "as it was");

    // What is there can still be saved.
    is_full(host.append(&dir, &rel("workdir/filling"), noise(9 << 20).into()).await);
    let packed: Vec<Bytes> = host
        .archive(&dir, Excludes::new(["filling"]).unwrap(), Codec::Zstd)
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    let back = elsewhere.path().join("back");
    archive::unpack(stream::iter(packed.into_iter().map(Ok)).boxed(), Codec::Zstd, back.clone())
        .await
        .unwrap();
    assert_eq!(left(&back), ["precious"]);
    drop((host, disk));
}
