//! Waking up when a file may have changed.

use std::time::Duration;

use super::{PATIENCE, rel, task, write};
use crate::{Host, TaskDir, Watch};

const AUTH: &str = "workdir/home/.codex/auth.json";

async fn watch(host: &dyn Host, dir: &TaskDir) -> Watch {
    host.watch(dir, &rel(AUTH)).await.unwrap()
}

/// Waits for a wake-up, and for the further ones that the same change may cause.
async fn woken(watch: &mut Watch) {
    let first = tokio::time::timeout(PATIENCE, watch.changed()).await;
    assert_eq!(first.expect("slept through a change"), Some(()), "the watch ended");
    while let Ok(Some(())) = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await {}
}

async fn ended(watch: &mut Watch) {
    let ending = async { while watch.changed().await.is_some() {} };
    tokio::time::timeout(PATIENCE, ending).await.expect("the watch goes on");
}

pub async fn writing_in_place_wakes(host: &dyn Host) {
    let dir = task(host).await;
    write(host, &dir, AUTH, "one").await;
    let mut watch = watch(host, &dir).await;
    for _ in 0..3 {
        host.append(&dir, &rel(AUTH), "more".into()).await.unwrap();
        woken(&mut watch).await;
    }
}

pub async fn replacing_by_rename_wakes(host: &dyn Host) {
    let dir = task(host).await;
    write(host, &dir, AUTH, "one").await;
    let mut watch = watch(host, &dir).await;
    for _ in 0..3 {
        write(host, &dir, AUTH, "two").await;
        woken(&mut watch).await;
    }
}

/// Neither the file nor the directory that is to hold it exists when the watch begins.
pub async fn making_the_file_wakes(host: &dyn Host) {
    let dir = task(host).await;
    let mut watch = watch(host, &dir).await;
    write(host, &dir, AUTH, "one").await;
    woken(&mut watch).await;
}

pub async fn removing_the_file_wakes(host: &dyn Host) {
    let dir = task(host).await;
    write(host, &dir, AUTH, "one").await;
    let mut watch = watch(host, &dir).await;
    host.remove(&dir, &rel(AUTH)).await.unwrap();
    woken(&mut watch).await;
}

pub async fn two_watches_of_one_file_both_wake(host: &dyn Host) {
    let dir = task(host).await;
    let mut one = watch(host, &dir).await;
    let mut two = watch(host, &dir).await;
    write(host, &dir, AUTH, "one").await;
    woken(&mut one).await;
    woken(&mut two).await;
    drop(one);
    write(host, &dir, AUTH, "two").await;
    woken(&mut two).await;
}

pub async fn other_files_of_the_directory_do_not_matter(host: &dyn Host) {
    let dir = task(host).await;
    let mut watch = watch(host, &dir).await;
    write(host, &dir, "workdir/home/.codex/history.jsonl", "x").await;
    host.remove(&dir, &rel("workdir/home/.codex/history.jsonl")).await.unwrap();
    let woken = tokio::time::timeout(Duration::from_millis(100), watch.changed()).await;
    assert!(woken.is_err(), "{woken:?}");
}

pub async fn removing_the_directory_ends_the_watch(host: &dyn Host) {
    let dir = task(host).await;
    let mut first = watch(host, &dir).await;
    host.remove(&dir, &rel("workdir/home/.codex")).await.unwrap();
    ended(&mut first).await;
    // Armed anew, it is as good as the first one.
    let mut second = watch(host, &dir).await;
    write(host, &dir, AUTH, "one").await;
    woken(&mut second).await;
}

pub async fn a_wiped_workdir_ends_the_watch(host: &dyn Host) {
    let dir = task(host).await;
    let mut first = watch(host, &dir).await;
    host.create(&dir).await.unwrap();
    ended(&mut first).await;
    let mut second = watch(host, &dir).await;
    write(host, &dir, AUTH, "one").await;
    woken(&mut second).await;
    host.rename(&dir, &rel("workdir/home"), &rel("workdir/elsewhere")).await.unwrap();
    ended(&mut second).await;
}
