//! The far side's tar, good and bad, against our own.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{FarHere, Here, rel, task};
use crate::{ByteStream, Codec, Excludes, Host, HostError, Result, TaskDir, archive};

/// What there is of a tree: kind and mode, content or target, time, and which names are one file.
type Tree = BTreeMap<PathBuf, (u32, Vec<u8>, i64, PathBuf)>;

fn tree(root: &Path) -> Tree {
    let (mut tree, mut first_names) = (Tree::new(), BTreeMap::new());
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_owned();
            let content = if meta.is_symlink() {
                std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
            } else if meta.is_dir() {
                waiting.push(path.clone());
                Vec::new()
            } else {
                std::fs::read(&path).unwrap()
            };
            let first = if meta.is_dir() {
                name.clone()
            } else {
                first_names.entry(meta.ino()).or_insert(name.clone()).clone()
            };
            tree.insert(name, (meta.mode(), content, meta.mtime(), first));
        }
    }
    tree
}

/// All that a workdir may have and that is hard.
fn odd(at: &Path) {
    let write = |path: &str, bytes: &[u8], mode: u32| {
        let path = at.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    write("plain", b"text", 0o644);
    write("tool", b"#!", 0o755);
    write("empty file", b"", 0o600);
    write("-rf", b"dash", 0o600);
    write("new\nline/and 'quote'", b"odd", 0o600);
    write("back\\slash", b"\\n", 0o600);
    write("--checkpoint-action=exec=sh", b"no option", 0o600);
    write(&format!("{}/{}", "deep".repeat(30), "long".repeat(40)), b"long", 0o600);
    write("closed/inside", b"read-only directory", 0o400);
    std::fs::write(at.join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), "no text").unwrap();
    std::fs::create_dir(at.join("empty")).unwrap();
    std::fs::hard_link(at.join("plain"), at.join("plain too")).unwrap();
    symlink("empty", at.join("to a directory")).unwrap();
    symlink("/nowhere/at/all", at.join("broken")).unwrap();
    symlink("x".repeat(300), at.join("far")).unwrap();
    std::fs::File::create(at.join("sparse")).unwrap().set_len(3 << 20).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    std::fs::File::open(at.join("plain")).unwrap().set_modified(old).unwrap();
    std::fs::set_permissions(at.join("closed"), std::fs::Permissions::from_mode(0o500)).unwrap();
    std::fs::File::open(at.join("closed")).unwrap().set_modified(old).unwrap();
}

fn streamed(chunks: Vec<Bytes>) -> ByteStream {
    stream::iter(chunks.into_iter().map(Ok)).boxed()
}

async fn packed(host: &dyn Host, dir: &TaskDir) -> Result<Vec<Bytes>> {
    host.archive(dir, Excludes::default(), Codec::Zstd).await?.try_collect().await
}

#[tokio::test]
async fn an_odd_tree_is_the_same_by_our_tar_and_by_the_far_one_both_ways() {
    let temp = tempfile::tempdir().unwrap();
    let host = FarHere::new(temp.path());
    let dir = task(&host).await;
    odd(&dir.workdir());
    let _socket = std::os::unix::net::UnixListener::bind(dir.workdir().join("socket")).unwrap();
    let mut want = tree_without_socket(&dir.workdir());
    for codec in [Codec::Gzip, Codec::Zstd] {
        let far: Vec<Bytes> =
            host.archive(&dir, Excludes::default(), codec).await.unwrap().try_collect().await.unwrap();
        let near: Vec<Bytes> =
            archive::pack(dir.workdir(), Excludes::default(), codec).try_collect().await.unwrap();
        let by_us = temp.path().join(format!("by us {codec:?}"));
        archive::unpack(streamed(far), codec, by_us.clone()).await.unwrap();
        assert_eq!(tree(&by_us), want, "packed there");
        host.restore(&dir, streamed(near), codec).await.unwrap();
        let restored = tree(&dir.workdir());
        assert_eq!(restored, want, "extracted there");
        want = restored;
    }
    assert_eq!(std::fs::metadata(dir.workdir()).unwrap().permissions().mode() & 0o7777, 0o700);
}

fn tree_without_socket(root: &Path) -> Tree {
    let socket = root.join("socket");
    let aside = root.parent().unwrap().join("socket");
    std::fs::rename(&socket, &aside).unwrap();
    let tree = tree(root);
    std::fs::rename(&aside, &socket).unwrap();
    tree
}

/// A machine whose tar is this script; `$real` is the true one.
fn with_tar(temp: &Path, script: &str) -> FarHere {
    let programs = temp.join("programs");
    std::fs::create_dir_all(&programs).unwrap();
    let text = format!("#!/bin/sh\nreal=$(PATH=${{PATH#*:}} command -v tar)\n{script}\n");
    std::fs::write(programs.join("tar"), text).unwrap();
    std::fs::set_permissions(programs.join("tar"), std::fs::Permissions::from_mode(0o755)).unwrap();
    FarHere::on(Here::with(temp, vec![programs]))
}

const VERSION: &str = r#"[ "$1" != --version ] || exec "$real" --version"#;

#[tokio::test]
async fn a_machine_without_the_tar_of_gnu_is_told_what_to_install() {
    let temp = tempfile::tempdir().unwrap();
    let host = with_tar(temp.path(), "echo 'tar (busybox) 1.36'");
    let dir = task(&host).await;
    let packing = packed(&host, &dir).await.map(drop);
    let near = archive::pack(dir.workdir(), Excludes::default(), Codec::Zstd);
    for answer in [packing, host.restore(&dir, near, Codec::Zstd).await] {
        match answer {
            Err(HostError::Program { program, why }) => {
                assert_eq!(program, "tar");
                assert!(why.contains("package"), "{why}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_tar_that_is_cut_is_no_archive_even_if_it_says_so() {
    let temp = tempfile::tempdir().unwrap();
    let host = with_tar(temp.path(), &format!("{VERSION}\n\"$real\" \"$@\" | head -c 1536; exit 0"));
    let dir = task(&host).await;
    host.write(&dir, &rel("workdir/file"), "text".into(), 0o600).await.unwrap();
    assert!(matches!(packed(&host, &dir).await, Err(HostError::BadArchive(_))));
}

#[tokio::test]
async fn files_that_vanish_are_no_failure_and_others_are() {
    let temp = tempfile::tempdir().unwrap();
    let complaining =
        |complaint: &str| format!("{VERSION}\n\"$real\" \"$@\"; echo 'tar: {complaint}' >&2; exit 2");
    let host = with_tar(temp.path(), &complaining("a: Cannot stat: No such file or directory"));
    let dir = task(&host).await;
    packed(&host, &dir).await.unwrap();
    let host = with_tar(temp.path(), &complaining("a: Cannot open: Permission denied"));
    let error = packed(&host, &dir).await.unwrap_err().to_string();
    assert!(error.contains("Permission denied"), "{error}");
    let host = with_tar(temp.path(), &format!("{VERSION}\nkill -9 $$"));
    packed(&host, &dir).await.unwrap_err();
}

#[tokio::test]
async fn what_a_crash_left_is_put_right_by_the_next_restore() {
    let temp = tempfile::tempdir().unwrap();
    let host = FarHere::new(temp.path());
    let dir = task(&host).await;
    host.write(&dir, &rel("workdir/precious"), "as it was".into(), 0o600).await.unwrap();
    std::fs::create_dir_all(dir.path().join(".workdir.new-1/closed")).unwrap();
    std::fs::rename(dir.workdir(), dir.path().join(".workdir.old-1")).unwrap();
    // It fails, and yet the workdir is back.
    host.restore(&dir, streamed(vec!["garbage".into()]), Codec::Zstd).await.unwrap_err();
    assert_eq!(host.read(&dir, &rel("workdir/precious"), 99).await.unwrap(), "as it was");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn an_archive_that_would_write_elsewhere_never_reaches_the_machine() {
    let temp = tempfile::tempdir().unwrap();
    let host = FarHere::new(temp.path());
    let dir = task(&host).await;
    host.write(&dir, &rel("workdir/precious"), "as it was".into(), 0o600).await.unwrap();
    let member = |kind: tar::EntryType, name: &str, target: &str| {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_size(0);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let bad = [
        vec![member(Regular, "/absolute", "")],
        vec![member(Regular, "a/../../out", "")],
        vec![member(Symlink, "out", "/tmp"), member(Regular, "out/file", "")],
        vec![member(Symlink, "out", "/tmp"), member(Directory, "out", "")],
        vec![member(Symlink, "out", "/"), member(Link, "passwd", "out/etc/passwd")],
        vec![member(Link, "passwd", "../../../etc/passwd")],
        vec![member(Link, "one", "two")],
    ];
    for members in bad {
        let tar = [members.concat(), vec![0; 1024]].concat();
        let packed = zstd::stream::encode_all(&tar[..], 1).unwrap();
        host.restore(&dir, streamed(vec![packed.into()]), Codec::Zstd).await.unwrap_err();
        assert_eq!(host.read(&dir, &rel("workdir/precious"), 99).await.unwrap(), "as it was");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
