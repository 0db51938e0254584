//! Archives over a real connection, by those who take their time.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod sshd;

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use optio_host::{Codec, Excludes, Host, TaskId, archive};
use sshd::Sshd;

/// More than a connection keeps of one program that nobody listens to (32 MiB).
const LEN: usize = 48 << 20;

/// Bytes that no codec makes smaller.
fn noise() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..LEN / 8).flat_map(|_| next()).collect()
}

#[tokio::test]
async fn an_archive_waits_for_a_slow_reader_and_files_are_answered_meanwhile() {
    let Some(server) = Sshd::start() else { return };
    let host = server.host();
    let dir = host.task_dir(&TaskId::new("task").unwrap());
    host.create(&dir).await.unwrap();
    let bytes = noise();
    std::fs::write(dir.workdir().join("large"), &bytes).unwrap();
    let mut packing = host.archive(&dir, Excludes::default(), Codec::Zstd).await.unwrap();
    let mut packed = vec![packing.next().await.unwrap()];
    // It is slowness itself that is tried: everything that can come by itself comes in this time.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let path = optio_host::RelPath::new("workdir/small").unwrap();
    let asking = async {
        host.write(&dir, &path, Bytes::from_static(b"meanwhile"), 0o600).await.unwrap();
        host.read(&dir, &path, 99).await.unwrap()
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), asking).await.unwrap(), "meanwhile");
    while let Some(chunk) = packing.next().await {
        packed.push(chunk);
    }
    assert!(packed.iter().all(Result::is_ok), "{:?}", packed.last());
    let back = server.dir.path().join("back");
    let packed = futures_util::stream::iter(packed).boxed();
    archive::unpack(packed, Codec::Zstd, back.clone()).await.unwrap();
    assert!(std::fs::read(back.join("large")).unwrap() == bytes);
    host.cleanup(&dir).await.unwrap();
}
