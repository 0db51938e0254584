//! Files that agents handed over.

use bytes::Bytes;

use super::Harness;
use crate::deliverables::{KEPT_FILES, KEPT_LIMIT};
use crate::{SessionId, StoreError};

pub async fn a_kept_file_comes_back_and_replaces_its_predecessor(h: Harness) {
    let (kept, session) = (&h.store.deliverables, SessionId::mint());
    assert_eq!(kept.read(&session, "a/b.md").await.unwrap(), None);
    kept.keep(&session, "a/b.md", Bytes::from_static(b"first")).await.unwrap();
    let file = kept.keep(&session, "a/b.md", Bytes::from_static(b"second")).await.unwrap();
    kept.keep(&session, "Z", Bytes::new()).await.unwrap();
    assert_eq!((file.path.as_str(), file.bytes), ("a/b.md", 6));
    assert_eq!(file.sha256, crate::seed_archive::sha256_hex(b"second"));
    let read = kept.read(&session, "a/b.md").await.unwrap();
    assert_eq!(read, Some((file, Bytes::from_static(b"second"))));
    let paths: Vec<_> = kept.list(&session).await.unwrap().into_iter().map(|file| file.path).collect();
    assert_eq!(paths, ["Z", "a/b.md"]);
}

pub async fn the_files_of_a_session_go_with_it_and_no_others(h: Harness) {
    let kept = &h.store.deliverables;
    let (one, other) = (SessionId::mint(), SessionId::mint());
    for session in [&one, &other] {
        kept.keep(session, "x", Bytes::from(session.to_string())).await.unwrap();
    }
    assert_eq!(kept.read(&one, "x").await.unwrap().unwrap().1, Bytes::from(one.to_string()));
    kept.delete_all(&one).await.unwrap();
    kept.delete_all(&one).await.unwrap();
    assert_eq!(kept.list(&one).await.unwrap(), []);
    assert_eq!(kept.list(&other).await.unwrap().len(), 1);
}

pub async fn too_much_and_odd_paths_are_refused(h: Harness) {
    let (kept, session) = (&h.store.deliverables, SessionId::mint());
    let long = "x".repeat(5000);
    for path in ["", "/x", "a//b", "../x", "a/.", long.as_str()] {
        let refused = kept.keep(&session, path, Bytes::new()).await;
        assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{path:?}: {refused:?}");
    }
    let huge = Bytes::from(vec![0; usize::try_from(KEPT_LIMIT).unwrap() + 1]);
    let refused = kept.keep(&session, "x", huge).await;
    assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{refused:?}");
    for n in 0..KEPT_FILES {
        kept.keep(&session, &n.to_string(), Bytes::new()).await.unwrap();
    }
    let refused = kept.keep(&session, "one more", Bytes::new()).await;
    assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{refused:?}");
    kept.keep(&session, "0", Bytes::from_static(b"in place of another")).await.unwrap();
}
