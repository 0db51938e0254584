//! Where the far side goes, and where it never goes.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;

use super::{FarHere, rel, task};
use crate::{Host, HostError};

#[tokio::test]
async fn names_may_have_any_characters() {
    let temp = tempfile::tempdir().unwrap();
    let host = FarHere::new(temp.path());
    let dir = task(&host).await;
    let names = [
        "a b",
        "it's",
        "-rf",
        "new\nline",
        "end\n",
        "$(id)",
        "*",
        "\\",
        "=x",
        "+x",
        "\"q\"",
        "é\u{7f}",
        "`x`",
    ];
    for name in names {
        let path = rel(&format!("workdir/{name}/{name}"));
        host.write(&dir, &path, "one".into(), 0o640).await.unwrap();
        host.append(&dir, &path, " two".into()).await.unwrap();
        assert_eq!(std::fs::read(dir.join(&path)).unwrap(), b"one two", "{name:?}");
        assert_eq!(host.read(&dir, &path, 99).await.unwrap(), "one two");
        assert_eq!(host.info(&dir, &path).await.unwrap().unwrap().mode, 0o640);
        let moved = rel(&format!("workdir/{name}/moved {name}"));
        host.rename(&dir, &path, &moved).await.unwrap();
        host.link(&dir, &path, Path::new(name)).await.unwrap();
        assert_eq!(std::fs::read_link(dir.join(&path)).unwrap(), Path::new(name));
        assert_eq!(host.list(&dir, &rel(&format!("workdir/{name}")), 9).await.unwrap(), [moved.clone()]);
        host.remove(&dir, &path).await.unwrap();
        host.remove(&dir, &moved).await.unwrap();
        host.remove(&dir, &rel(&format!("workdir/{name}"))).await.unwrap();
    }
    assert_eq!(std::fs::read_dir(dir.workdir()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_large_file_is_written_whole_and_one_that_is_refused_is_skipped() {
    let temp = tempfile::tempdir().unwrap();
    let host = FarHere::new(temp.path());
    let dir = task(&host).await;
    let bytes: Vec<u8> = (0..5_000_001u32).map(|at| (at % 251) as u8).collect();
    let path = rel("workdir/large");
    host.link(&dir, &rel("workdir/out"), Path::new("/")).await.unwrap();
    for refused in [rel("workdir/out/large"), rel("workdir/large/below")] {
        host.write(&dir, &path, "x".into(), 0o600).await.unwrap();
        host.write(&dir, &refused, bytes.clone().into(), 0o600).await.unwrap_err();
        host.append(&dir, &refused, bytes.clone().into()).await.unwrap_err();
    }
    host.write(&dir, &path, bytes.clone().into(), 0o600).await.unwrap();
    assert!(host.read(&dir, &path, bytes.len() as u64).await.unwrap() == bytes);
    host.append(&dir, &path, bytes.clone().into()).await.unwrap();
    let part = host.read_from(&dir, &path, 5_000_000, 3).await.unwrap();
    assert_eq!((&part.bytes[..], part.len), (&[bytes[5_000_000], 0, 1][..], 10_000_002));
}

/// A directory that turns into a link and back, as fast as a thread can, while things are done in it.
#[tokio::test]
async fn nothing_is_done_outside_while_a_directory_turns_into_a_link_and_back() {
    let temp = tempfile::tempdir().unwrap();
    let host = FarHere::new(temp.path());
    let dir = task(&host).await;
    let outside = temp.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("kept"), "kept").unwrap();
    std::fs::write(outside.join("file"), "theirs").unwrap();
    let (place, aside) = (dir.workdir().join("d"), dir.workdir().join("aside"));
    std::fs::create_dir(&place).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let swapping = std::thread::spawn({
        let (over, outside) = (over.clone(), outside.clone());
        // Of all lengths, so that each of the shell's steps is hit by some.
        let pause = |swaps: u32| std::thread::sleep(Duration::from_micros((swaps % 40 * 25).into()));
        move || {
            let mut swaps = 0u32;
            while !over.load(Ordering::SeqCst) {
                // What is made in the meantime under the name has to go.
                let _ = std::fs::rename(&place, &aside);
                while symlink(&outside, &place).is_err() {
                    let _ = std::fs::remove_dir_all(&place);
                }
                pause(swaps);
                std::fs::remove_file(&place).unwrap();
                while std::fs::rename(&aside, &place).is_err() {
                    let _ = std::fs::remove_dir_all(&place);
                }
                swaps += 1;
                pause(swaps * 7);
            }
            swaps
        }
    });
    let mut done = 0;
    for _ in 0..60 {
        let file = rel("workdir/d/file");
        done += u32::from(host.write(&dir, &file, "ours".into(), 0o600).await.is_ok());
        if let Ok(bytes) = host.read(&dir, &file, 99).await {
            assert_ne!(bytes, "theirs");
        }
        let _ = host.append(&dir, &rel("workdir/d/new"), "ours".into()).await;
        let _ = host.make_dir(&dir, &rel("workdir/d/made")).await;
        let _ = host.remove(&dir, &rel("workdir/d/kept")).await;
        let _ = host.rename(&dir, &file, &rel("workdir/d/moved")).await;
    }
    over.store(true, Ordering::SeqCst);
    assert!(swapping.join().unwrap() > 100);
    assert!(done > 0, "nothing was ever written");
    let mut names: Vec<_> =
        std::fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["file", "kept"]);
    assert_eq!(std::fs::read_to_string(outside.join("file")).unwrap(), "theirs");
}

#[tokio::test]
async fn a_root_that_is_a_link_or_open_to_others_is_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let host = FarHere::new(temp.path());
    let dir = host.task_dir(&crate::TaskId::new("task").unwrap());
    let root = temp.path().join("tasks");
    let refused = async || match host.create(&dir).await {
        Err(HostError::Refused { what: "task root", value, why }) => {
            assert_eq!(value, root.display().to_string());
            assert!(why.contains("task_root"), "{why}");
        }
        other => panic!("{other:?}"),
    };
    symlink("/nowhere", &root).unwrap();
    refused().await;
    std::fs::remove_file(&root).unwrap();
    std::fs::write(&root, "").unwrap();
    refused().await;
    std::fs::remove_file(&root).unwrap();
    std::fs::create_dir(&root).unwrap();
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o777)).unwrap();
    refused().await;
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
    host.create(&dir).await.unwrap();
    assert_eq!(std::fs::metadata(dir.path()).unwrap().mode_bits(), 0o700);
    assert_eq!(std::fs::metadata(dir.workdir()).unwrap().mode_bits(), 0o700);
}

trait ModeBits {
    fn mode_bits(&self) -> u32;
}

impl ModeBits for std::fs::Metadata {
    fn mode_bits(&self) -> u32 {
        self.permissions().mode() & 0o7777
    }
}

#[tokio::test]
async fn a_stream_whose_caller_goes_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let host = FarHere::new(temp.path());
    let dir = task(&host).await;
    let target = dir.path().join("program");
    let begun = Arc::new(tokio::sync::Notify::new());
    let told = begun.clone();
    let parts = futures_util::stream::unfold(0, move |sent| {
        let told = told.clone();
        async move {
            if sent == 8 {
                told.notify_one();
                std::future::pending::<()>().await;
            }
            Some((Ok(bytes::Bytes::from(vec![1; 1 << 20])), sent + 1))
        }
    });
    tokio::select! {
        _ = host.write_stream(&target, parts.boxed(), 0o755) => panic!("it cannot end"),
        () = begun.notified() => {}
    }
    let left = || {
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name != "workdir").collect::<Vec<_>>()
    };
    let since = Instant::now();
    while !left().is_empty() {
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", left());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
