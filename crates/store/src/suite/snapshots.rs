use futures_util::StreamExt;

use super::*;
use crate::{NewSnapshot, SNAPSHOTS_KEPT, SessionId, SnapshotId, SnapshotRow, seed_archive};

fn about(session: &SessionId, thread: &str) -> NewSnapshot {
    NewSnapshot {
        session: session.clone(),
        end_state: "done".into(),
        thread_id: Some(thread.into()),
        codec: "zstd".into(),
        seed: Some(SeedId::mint()),
    }
}

async fn store(h: &Harness, about: NewSnapshot, chunks: &[Bytes]) -> SnapshotRow {
    let mut writer = h.store.snapshots.begin().await.unwrap();
    for chunk in chunks {
        writer.write(chunk.clone()).await.unwrap();
    }
    writer.commit(about).await.unwrap()
}

async fn read(h: &Harness, id: &SnapshotId) -> Vec<u8> {
    let mut stream = h.store.snapshots.open(id).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.unwrap();
        assert!(chunk.len() <= 1 << 20);
        bytes.extend_from_slice(&chunk);
    }
    bytes
}

pub async fn an_archive_comes_back_as_it_went_in(h: Harness) {
    let session = SessionId::mint();
    let mib = 1 << 20;
    // Around the chunk's size, in pieces smaller and larger than it.
    for (len, piece) in [(1, 1), (mib, 4096), (mib + 1, 3 * mib), (2 * mib, 300_001)] {
        let bytes: Bytes = (0..len).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
        let pieces: Vec<_> = (0..len).step_by(piece).map(|at| bytes.slice(at..len.min(at + piece))).collect();
        let new = about(&session, "thread");
        let row = store(&h, new.clone(), &pieces).await;
        assert_eq!((row.len, &row.sha256), (len as u64, &seed_archive::sha256_hex(&bytes)));
        assert_eq!(
            (&row.end_state, &row.thread_id, &row.codec, &row.seed),
            (&new.end_state, &new.thread_id, &new.codec, &new.seed)
        );
        assert_eq!(h.store.snapshots.get(&row.id).await.unwrap().as_ref(), Some(&row));
        assert!(read(&h, &row.id).await == bytes, "{len} bytes in pieces of {piece}");
        h.store.snapshots.verify(&row.id).await.unwrap();
    }
}

pub async fn an_empty_archive_is_an_archive(h: Harness) {
    let row = store(&h, about(&SessionId::mint(), "t"), &[]).await;
    assert_eq!(row.len, 0);
    assert!(read(&h, &row.id).await.is_empty());
    h.store.snapshots.verify(&row.id).await.unwrap();
}

pub async fn nothing_is_there_before_the_commit(h: Harness) {
    let session = SessionId::mint();
    let mut writer = h.store.snapshots.begin().await.unwrap();
    writer.write(Bytes::from_static(b"half")).await.unwrap();
    assert!(h.store.snapshots.list(&session).await.unwrap().is_empty());
    drop(writer);
    assert!(h.store.snapshots.list(&session).await.unwrap().is_empty());
}

pub async fn the_newest_five_are_kept_and_listed_newest_first(h: Harness) {
    let session = SessionId::mint();
    let mut rows = Vec::new();
    for i in 0..SNAPSHOTS_KEPT + 2 {
        // The clock stands still: each is 1 ms after the one before (T-162).
        rows.push(store(&h, about(&session, &i.to_string()), &[Bytes::from(vec![i as u8; 10])]).await);
    }
    assert!(rows.windows(2).all(|w| w[0].captured_at < w[1].captured_at));
    let listed = h.store.snapshots.list(&session).await.unwrap();
    let expected: Vec<_> = rows.iter().rev().take(SNAPSHOTS_KEPT).cloned().collect();
    assert_eq!(listed, expected);
    assert_eq!(h.store.snapshots.get(&rows[0].id).await.unwrap(), None);
    assert_eq!(read(&h, &rows[2].id).await, vec![2; 10]);
}

pub async fn sessions_do_not_prune_each_other(h: Harness) {
    let (a, b) = (SessionId::mint(), SessionId::mint());
    for _ in 0..SNAPSHOTS_KEPT {
        store(&h, about(&a, "t"), &[Bytes::from_static(b"a")]).await;
    }
    let other = store(&h, about(&b, "t"), &[Bytes::from_static(b"b")]).await;
    assert_eq!(h.store.snapshots.list(&a).await.unwrap().len(), SNAPSHOTS_KEPT);
    h.store.snapshots.delete_all(&a).await.unwrap();
    assert!(h.store.snapshots.list(&a).await.unwrap().is_empty());
    assert_eq!(read(&h, &other.id).await, b"b");
    h.store.snapshots.delete_all(&a).await.unwrap();
}

pub async fn an_unknown_snapshot_is_not_found(h: Harness) {
    let id = SnapshotId::mint();
    assert_eq!(h.store.snapshots.get(&id).await.unwrap(), None);
    assert!(matches!(h.store.snapshots.open(&id).await.err(), Some(StoreError::NotFound { .. })));
    assert!(matches!(h.store.snapshots.verify(&id).await, Err(StoreError::NotFound { .. })));
}
