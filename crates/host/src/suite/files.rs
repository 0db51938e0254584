//! Files beneath a task directory.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::StreamExt;

use super::{rel, task, text, write};
use crate::{ByteStream, Host, HostError, TaskId};

pub async fn a_write_replaces_the_whole_file_and_its_mode(host: &dyn Host) {
    let dir = task(host).await;
    let path = rel("workdir/new/deep/file");
    host.write(&dir, &path, "longer than the next".into(), 0o644).await.unwrap();
    assert_eq!(host.info(&dir, &path).await.unwrap().unwrap().mode, 0o644);
    host.write(&dir, &path, "next".into(), 0o600).await.unwrap();
    let info = host.info(&dir, &path).await.unwrap().unwrap();
    assert_eq!((info.len, info.mode), (4, 0o600));
    assert_eq!(text(host, &dir, "workdir/new/deep/file").await, "next");
    // No temporary file is left.
    assert_eq!(host.list(&dir, &rel("workdir"), 10).await.unwrap(), [path]);
}

pub async fn a_reader_never_sees_a_part_of_a_write(host: &dyn Host) {
    const LEN: usize = 64 * 1024;
    let dir = task(host).await;
    let path = rel("workdir/file");
    host.write(&dir, &path, vec![b'0'; LEN].into(), 0o600).await.unwrap();
    let done = AtomicBool::new(false);
    let writing = async {
        for round in 0..60u8 {
            host.write(&dir, &path, vec![b'0' + round % 10; LEN].into(), 0o600).await.unwrap();
        }
        done.store(true, Ordering::SeqCst);
    };
    let reading = async {
        while !done.load(Ordering::SeqCst) {
            let bytes = host.read(&dir, &path, LEN as u64).await.unwrap();
            assert_eq!(bytes.len(), LEN);
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "two writes are mixed");
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(writing, reading);
}

pub async fn a_file_beyond_the_limit_is_not_read(host: &dyn Host) {
    let dir = task(host).await;
    write(host, &dir, "workdir/file", "12345").await;
    assert_eq!(host.read(&dir, &rel("workdir/file"), 5).await.unwrap(), "12345");
    match host.read(&dir, &rel("workdir/file"), 4).await {
        Err(HostError::TooLarge { len: 5, limit: 4, .. }) => {}
        other => panic!("{other:?}"),
    }
}

pub async fn what_is_missing_is_not_found(host: &dyn Host) {
    let dir = task(host).await;
    write(host, &dir, "workdir/file", "").await;
    for path in ["workdir/none", "none/none", "workdir/file/below"] {
        let answer = host.read(&dir, &rel(path), 1).await;
        assert!(matches!(answer, Err(HostError::NotFound { .. })), "{path}: {answer:?}");
        assert_eq!(host.info(&dir, &rel(path)).await.unwrap(), None, "{path}");
    }
    let answer = host.rename(&dir, &rel("workdir/none"), &rel("workdir/to")).await;
    assert!(matches!(answer, Err(HostError::NotFound { .. })), "{answer:?}");
    assert_eq!(host.list(&dir, &rel("workdir/none"), 9).await.unwrap(), []);

    let never = host.task_dir(&TaskId::new("never-made").unwrap());
    let answer = host.write(&never, &rel("workdir/file"), Bytes::new(), 0o600).await;
    assert!(matches!(answer, Err(HostError::NotFound { .. })), "{answer:?}");
    assert_eq!(host.info(&never, &rel("workdir/file")).await.unwrap(), None);
    host.remove(&never, &rel("workdir/file")).await.unwrap();
}

pub async fn a_growing_file_is_read_from_where_one_stopped(host: &dyn Host) {
    let dir = task(host).await;
    let path = rel("workdir/log");
    let missing = host.read_from(&dir, &path, 0, 9).await;
    assert!(matches!(missing, Err(HostError::NotFound { .. })), "{missing:?}");
    host.append(&dir, &path, "12345".into()).await.unwrap();
    let first = host.read_from(&dir, &path, 0, 3).await.unwrap();
    assert_eq!((&first.bytes[..], first.len), (&b"123"[..], 5));
    host.append(&dir, &path, "67".into()).await.unwrap();
    let second = host.read_from(&dir, &path, 3, 100).await.unwrap();
    assert_eq!((&second.bytes[..], second.len), (&b"4567"[..], 7));
    assert_eq!(second.identity, first.identity, "it is the same file");
    for offset in [7, 1000] {
        let end = host.read_from(&dir, &path, offset, 100).await.unwrap();
        assert_eq!((end.bytes.len(), end.len), (0, 7));
    }
}

pub async fn a_cut_or_replaced_file_shows_it(host: &dyn Host) {
    let dir = task(host).await;
    let path = rel("workdir/log");
    host.append(&dir, &path, "12345".into()).await.unwrap();
    let first = host.read_from(&dir, &path, 0, 100).await.unwrap();
    host.write(&dir, &path, "12".into(), 0o600).await.unwrap();
    let replaced = host.read_from(&dir, &path, 5, 100).await.unwrap();
    assert_eq!((replaced.bytes.len(), replaced.len), (0, 2));
    assert_ne!(replaced.identity, first.identity);
    host.remove(&dir, &path).await.unwrap();
    host.append(&dir, &path, "1234567".into()).await.unwrap();
    let made_again = host.read_from(&dir, &path, 0, 100).await.unwrap();
    assert_ne!(made_again.identity, replaced.identity);
    assert_ne!(made_again.identity, first.identity);
}

/// `side` stands for a directory outside of the workdir that an agent's link points to.
pub async fn a_link_on_the_way_is_never_followed(host: &dyn Host) {
    let dir = task(host).await;
    write(host, &dir, "side/secret", "secret").await;
    host.link(&dir, &rel("workdir/out"), &dir.join(&rel("side"))).await.unwrap();
    host.link(&dir, &rel("workdir/relative"), Path::new("../side")).await.unwrap();
    for link in ["workdir/out", "workdir/relative"] {
        let path = rel(&format!("{link}/secret"));
        let new = rel(&format!("{link}/new"));
        let refused = |answer: Result<(), HostError>| match answer {
            Err(HostError::Refused { .. }) => {}
            other => panic!("{link}: {other:?}"),
        };
        refused(host.read(&dir, &path, 99).await.map(drop));
        refused(host.read_from(&dir, &path, 0, 99).await.map(drop));
        refused(host.info(&dir, &path).await.map(drop));
        refused(host.write(&dir, &path, "x".into(), 0o600).await);
        refused(host.append(&dir, &path, "x".into()).await);
        refused(host.remove(&dir, &path).await);
        refused(host.make_dir(&dir, &new).await);
        refused(host.link(&dir, &new, Path::new("/")).await);
        refused(host.rename(&dir, &path, &rel("workdir/stolen")).await);
        refused(host.rename(&dir, &rel(link), &new).await);
        refused(host.list(&dir, &rel(link), 9).await.map(drop));
        refused(host.watch(&dir, &path).await.map(drop));
    }
    assert_eq!(text(host, &dir, "side/secret").await, "secret");
    assert_eq!(host.list(&dir, &rel("side"), 9).await.unwrap(), [rel("side/secret")]);
}

pub async fn a_link_at_the_end_is_never_followed(host: &dyn Host) {
    let dir = task(host).await;
    write(host, &dir, "side/secret", "secret").await;
    let path = rel("workdir/link");
    host.link(&dir, &path, &dir.join(&rel("side/secret"))).await.unwrap();
    for answer in [
        host.read(&dir, &path, 99).await.map(drop),
        host.read_from(&dir, &path, 0, 99).await.map(drop),
        host.info(&dir, &path).await.map(drop),
        host.append(&dir, &path, "x".into()).await,
    ] {
        assert!(matches!(answer, Err(HostError::Refused { .. })), "{answer:?}");
    }
    // Both of these are about the link itself.
    host.write(&dir, &path, "own".into(), 0o600).await.unwrap();
    assert_eq!(text(host, &dir, "workdir/link").await, "own");
    host.link(&dir, &path, &dir.join(&rel("side/secret"))).await.unwrap();
    host.remove(&dir, &path).await.unwrap();
    assert_eq!(text(host, &dir, "side/secret").await, "secret");
}

pub async fn a_directory_is_no_file(host: &dyn Host) {
    let dir = task(host).await;
    let path = rel("workdir/dir");
    host.make_dir(&dir, &path).await.unwrap();
    host.make_dir(&dir, &path).await.unwrap();
    for answer in [
        host.read(&dir, &path, 99).await.map(drop),
        host.read_from(&dir, &path, 0, 99).await.map(drop),
        host.info(&dir, &path).await.map(drop),
        host.append(&dir, &path, "x".into()).await,
    ] {
        assert!(matches!(answer, Err(HostError::Refused { .. })), "{answer:?}");
    }
    host.write(&dir, &path, "x".into(), 0o600).await.unwrap_err();
    assert_eq!(host.list(&dir, &rel("workdir"), 9).await.unwrap(), []);
}

pub async fn an_append_goes_to_the_end_of_a_private_file(host: &dyn Host) {
    let dir = task(host).await;
    let path = rel("workdir/log");
    host.append(&dir, &path, "one ".into()).await.unwrap();
    assert_eq!(host.info(&dir, &path).await.unwrap().unwrap().mode, 0o600);
    host.append(&dir, &path, "two".into()).await.unwrap();
    assert_eq!(text(host, &dir, "workdir/log").await, "one two");
}

pub async fn a_rename_replaces_its_target(host: &dyn Host) {
    let dir = task(host).await;
    write(host, &dir, "workdir/from", "new").await;
    write(host, &dir, "to", "old").await;
    host.rename(&dir, &rel("workdir/from"), &rel("to")).await.unwrap();
    assert_eq!(text(host, &dir, "to").await, "new");
    assert_eq!(host.info(&dir, &rel("workdir/from")).await.unwrap(), None);

    write(host, &dir, "workdir/a/deep/file", "moved").await;
    host.rename(&dir, &rel("workdir/a"), &rel("workdir/b")).await.unwrap();
    assert_eq!(host.list(&dir, &rel("workdir"), 9).await.unwrap(), [rel("workdir/b/deep/file")]);
}

pub async fn removing_what_is_absent_succeeds(host: &dyn Host) {
    let dir = task(host).await;
    write(host, &dir, "workdir/file", "").await;
    for path in ["workdir/file", "workdir/file", "workdir/never", "never/never"] {
        host.remove(&dir, &rel(path)).await.unwrap();
    }
    assert_eq!(host.info(&dir, &rel("workdir/file")).await.unwrap(), None);
}

pub async fn only_an_empty_directory_is_removed(host: &dyn Host) {
    let dir = task(host).await;
    write(host, &dir, "workdir/dir/file", "kept").await;
    host.remove(&dir, &rel("workdir/dir")).await.unwrap_err();
    assert_eq!(text(host, &dir, "workdir/dir/file").await, "kept");
    host.remove(&dir, &rel("workdir/dir/file")).await.unwrap();
    host.remove(&dir, &rel("workdir/dir")).await.unwrap();
    // Gone indeed: a file may take its place.
    write(host, &dir, "workdir/dir", "file").await;
}

pub async fn a_listing_is_sorted_and_limited_and_follows_no_link(host: &dyn Host) {
    let dir = task(host).await;
    // Bytewise, `-` and `.` come before `/`, and `0` after it.
    let sorted = ["workdir/a-b", "workdir/a.txt", "workdir/a/z/1", "workdir/a/z2", "workdir/a0", "workdir/b"];
    for path in sorted.iter().rev() {
        write(host, &dir, path, "").await;
    }
    host.make_dir(&dir, &rel("workdir/empty")).await.unwrap();
    host.link(&dir, &rel("workdir/link"), &dir.join(&rel("workdir/a"))).await.unwrap();
    host.link(&dir, &rel("workdir/broken"), Path::new("nowhere")).await.unwrap();
    let want: Vec<_> = sorted.iter().map(|path| rel(path)).collect();
    assert_eq!(host.list(&dir, &rel("workdir"), 100).await.unwrap(), want);
    assert_eq!(host.list(&dir, &rel("workdir"), 4).await.unwrap(), want[..4]);
    assert_eq!(host.list(&dir, &rel("workdir/a"), 100).await.unwrap(), want[2..4]);
}

pub async fn a_link_can_be_pointed_elsewhere(host: &dyn Host) {
    let dir = task(host).await;
    let path = rel("workdir/home/.local/bin/codex");
    host.link(&dir, &path, Path::new("/anywhere/codex")).await.unwrap();
    host.link(&dir, &path, Path::new("../elsewhere")).await.unwrap();
    write(host, &dir, "workdir/file", "").await;
    host.link(&dir, &rel("workdir/file"), Path::new("/x")).await.unwrap();
    // Nothing but the links themselves is there.
    assert_eq!(host.list(&dir, &rel("workdir"), 9).await.unwrap(), []);
}

pub async fn create_empties_the_workdir_and_keeps_side_files(host: &dyn Host) {
    let dir = task(host).await;
    write(host, &dir, "workdir/deep/down/file", "old").await;
    host.link(&dir, &rel("workdir/link"), &dir.join(&rel("side"))).await.unwrap();
    write(host, &dir, "side/file", "kept").await;
    host.create(&dir).await.unwrap();
    assert_eq!(host.list(&dir, &rel("workdir"), 9).await.unwrap(), []);
    assert_eq!(text(host, &dir, "side/file").await, "kept");
}

pub async fn cleanup_may_come_twice(host: &dyn Host) {
    let dir = task(host).await;
    let other = host.task_dir(&TaskId::new("other").unwrap());
    host.create(&other).await.unwrap();
    write(host, &dir, "workdir/file", "").await;
    assert!(host.exists(&dir).await.unwrap());
    host.cleanup(&dir).await.unwrap();
    assert!(!host.exists(&dir).await.unwrap());
    host.cleanup(&dir).await.unwrap();
    assert!(host.exists(&other).await.unwrap());
}

fn chunks(chunks: impl IntoIterator<Item = Result<Bytes, HostError>>) -> ByteStream {
    futures_util::stream::iter(chunks.into_iter().collect::<Vec<_>>()).boxed()
}

pub async fn a_streamed_file_is_whole_and_has_its_mode(host: &dyn Host) {
    let dir = task(host).await;
    let path = rel("program");
    let parts = (0..40u8).map(|part| Ok(Bytes::from(vec![part; 100_000])));
    assert_eq!(host.write_stream(&dir.join(&path), chunks(parts), 0o755).await.unwrap(), 4_000_000);
    let info = host.info(&dir, &path).await.unwrap().unwrap();
    assert_eq!((info.len, info.mode), (4_000_000, 0o755));
    let bytes = host.read(&dir, &path, 4_000_000).await.unwrap();
    assert!(bytes.chunks(100_000).zip(0..).all(|(part, at): (_, u8)| part.iter().all(|byte| *byte == at)));
    assert_eq!(host.write_stream(&dir.join(&rel("empty")), chunks([]), 0o600).await.unwrap(), 0);
    assert_eq!(text(host, &dir, "empty").await, "");
}

pub async fn a_stream_that_breaks_leaves_no_file(host: &dyn Host) {
    let dir = task(host).await;
    let path = rel("program");
    let broken = HostError::BadArchive("cut".into());
    let parts = [Ok(Bytes::from(vec![1; 3_000_000])), Err(broken)];
    let answer = host.write_stream(&dir.join(&path), chunks(parts), 0o755).await;
    assert!(matches!(answer, Err(HostError::BadArchive(_))), "{answer:?}");
    assert_eq!(host.info(&dir, &path).await.unwrap(), None);
    let nowhere = dir.join(&rel("none/program"));
    let answer = host.write_stream(&nowhere, chunks([]), 0o755).await;
    assert!(matches!(answer, Err(HostError::NotFound { .. })), "{answer:?}");
}

pub async fn a_streamed_file_replaces_nothing(host: &dyn Host) {
    let dir = task(host).await;
    write(host, &dir, "program", "old").await;
    let new = chunks([Ok(Bytes::from_static(b"new"))]);
    host.write_stream(&dir.join(&rel("program")), new, 0o755).await.unwrap_err();
    assert_eq!(text(host, &dir, "program").await, "old");
}

pub async fn a_socket_path_is_short_and_belongs_to_one_task(host: &dyn Host) {
    let long = "x".repeat(128);
    let dir = host.task_dir(&TaskId::new(long.as_str()).unwrap());
    let other = host.task_dir(&TaskId::new(format!("{}y", &long[1..])).unwrap());
    let path = host.socket_path(&dir);
    assert!(path.is_absolute());
    assert_eq!(path, host.socket_path(&dir));
    assert_ne!(path, host.socket_path(&other));
    assert_ne!(path.parent(), host.socket_path(&other).parent());
}
