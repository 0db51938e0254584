//! Archives of a workdir.

use std::path::Path;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{rel, task, text, write};
use crate::{ByteStream, Codec, Excludes, Host, HostError, TaskDir};

const CODECS: [Codec; 2] = [Codec::Gzip, Codec::Zstd];

async fn archive(host: &dyn Host, dir: &TaskDir, codec: Codec) -> Vec<Bytes> {
    let excludes = Excludes::new(["cache", "*.pyc"]).unwrap();
    host.archive(dir, excludes, codec).await.unwrap().try_collect().await.unwrap()
}

fn streamed(chunks: Vec<Bytes>) -> ByteStream {
    stream::iter(chunks.into_iter().map(Ok)).boxed()
}

/// A workdir that must survive a failing restore.
async fn precious(host: &dyn Host) -> TaskDir {
    let dir = task(host).await;
    write(host, &dir, "workdir/precious", "as it was").await;
    dir
}

async fn is_as_it_was(host: &dyn Host, dir: &TaskDir) {
    assert_eq!(text(host, dir, "workdir/precious").await, "as it was");
    assert_eq!(host.list(dir, &rel("workdir"), 9).await.unwrap(), [rel("workdir/precious")]);
}

pub async fn an_archive_brings_everything_back_but_what_is_excluded(host: &dyn Host) {
    for codec in CODECS {
        let dir = task(host).await;
        write(host, &dir, "workdir/a/b/file", "deep").await;
        write(host, &dir, "workdir/auth.json", "{}").await;
        host.write(&dir, &rel("workdir/tool"), "#!".into(), 0o755).await.unwrap();
        host.write(&dir, &rel("workdir/large"), vec![7; 3 << 20].into(), 0o600).await.unwrap();
        write(host, &dir, "workdir/a/cache/file", "left out").await;
        write(host, &dir, "workdir/a/module.pyc", "left out").await;
        host.make_dir(&dir, &rel("workdir/empty")).await.unwrap();
        host.link(&dir, &rel("workdir/link"), Path::new("/anywhere/at/all")).await.unwrap();
        let packed = archive(host, &dir, codec).await;
        assert!(packed.iter().all(|chunk| chunk.len() <= crate::archive::CHUNK));

        host.create(&dir).await.unwrap();
        host.restore(&dir, streamed(packed), codec).await.unwrap();
        let want = ["workdir/a/b/file", "workdir/auth.json", "workdir/large", "workdir/tool"].map(rel);
        assert_eq!(host.list(&dir, &rel("workdir"), 99).await.unwrap(), want, "{codec:?}");
        assert_eq!(text(host, &dir, "workdir/a/b/file").await, "deep");
        assert_eq!(host.info(&dir, &rel("workdir/tool")).await.unwrap().unwrap().mode & 0o700, 0o700);
        assert_eq!(host.info(&dir, &rel("workdir/large")).await.unwrap().unwrap().len, 3 << 20);
        let link = host.info(&dir, &rel("workdir/link")).await;
        assert!(matches!(link, Err(HostError::Refused { .. })), "the link is no link: {link:?}");
        let empty = host.info(&dir, &rel("workdir/empty")).await;
        assert!(matches!(empty, Err(HostError::Refused { .. })), "the directory is none: {empty:?}");
    }
}

pub async fn a_restore_leaves_nothing_of_before(host: &dyn Host) {
    let dir = precious(host).await;
    let packed = archive(host, &dir, Codec::Zstd).await;
    write(host, &dir, "workdir/later", "gone after").await;
    write(host, &dir, "side", "kept").await;
    host.restore(&dir, streamed(packed), Codec::Zstd).await.unwrap();
    is_as_it_was(host, &dir).await;
    assert_eq!(text(host, &dir, "side").await, "kept");
}

pub async fn garbage_leaves_the_workdir_as_it_was(host: &dyn Host) {
    let dir = precious(host).await;
    for codec in CODECS {
        for garbage in [&b""[..], b"not an archive at all, but long enough to look at twice"] {
            host.restore(&dir, streamed(vec![garbage.into()]), codec).await.unwrap_err();
            is_as_it_was(host, &dir).await;
        }
    }
}

pub async fn a_cut_archive_leaves_the_workdir_as_it_was(host: &dyn Host) {
    for codec in CODECS {
        let dir = task(host).await;
        write(host, &dir, "workdir/file", "some content to pack").await;
        let whole = archive(host, &dir, codec).await.concat();
        let dir = precious(host).await;
        for len in [whole.len() - 1, whole.len() / 2] {
            let cut = Bytes::copy_from_slice(&whole[..len]);
            host.restore(&dir, streamed(vec![cut]), codec).await.unwrap_err();
            is_as_it_was(host, &dir).await;
        }
    }
}

pub async fn a_stream_that_fails_leaves_the_workdir_as_it_was(host: &dyn Host) {
    let dir = precious(host).await;
    let packed = archive(host, &dir, Codec::Zstd).await;
    let broken = HostError::io("read a snapshot", std::io::Error::other("the store is gone"));
    let failing = stream::iter(packed.into_iter().map(Ok)).chain(stream::once(async { Err(broken) }));
    host.restore(&dir, failing.boxed(), Codec::Zstd).await.unwrap_err();
    is_as_it_was(host, &dir).await;
}
