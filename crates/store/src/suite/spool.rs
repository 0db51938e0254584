use std::time::Duration;

use super::*;
use crate::{Clock, SeedVersion, SessionId, SpoolEntry, seed_archive};

fn entry(h: &Harness, seed: &SeedId, by: &str, token: &str) -> SpoolEntry {
    h.clock.advance(Duration::from_nanos(1_500_000));
    SpoolEntry {
        seed: seed.clone(),
        session: Some(SessionId::mint()),
        holder: holder(by),
        base: SeedVersion("v1".into()),
        fingerprint: seed_archive::sha256_hex(&auth(token)),
        account_id: Some("acct".into()),
        at: h.clock.now(),
        auth_json: auth(token),
    }
}

/// What is in the spool.
async fn all(h: &Harness) -> Vec<SpoolEntry> {
    h.store.spool.entries().await.unwrap().into_iter().map(|(_, entry)| entry.unwrap()).collect()
}

pub async fn an_entry_comes_back_as_it_was_given(h: Harness) {
    assert!(all(&h).await.is_empty());
    let new = entry(&h, &SeedId::mint(), "a", "t1");
    let id = h.store.spool.put(new.clone()).await.unwrap();
    let entries = h.store.spool.entries().await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((&entries[0].0, entries[0].1.as_ref().unwrap()), (&id, &new));
    assert!(h.store.spool.describe(&id).contains(&id.0));
    assert!(id.0.starts_with(new.seed.as_str()), "a damaged entry must still say whose it is");
    let of_no_session = SpoolEntry { session: None, ..entry(&h, &SeedId::mint(), "a", "t2") };
    h.store.spool.put(of_no_session.clone()).await.unwrap();
    assert_eq!(all(&h).await, [new, of_no_session]);
}

pub async fn entries_are_oldest_first(h: Harness) {
    let entries: Vec<_> = (0..5).map(|i| entry(&h, &SeedId::mint(), "a", &i.to_string())).collect();
    for entry in entries.iter().rev() {
        h.store.spool.put(entry.clone()).await.unwrap();
    }
    assert_eq!(all(&h).await, entries);
}

pub async fn confirming_removes_older_ones_of_the_same_seed_and_holder_only(h: Harness) {
    let (seed, other) = (SeedId::mint(), SeedId::mint());
    let older = entry(&h, &seed, "a", "1");
    let others = [entry(&h, &seed, "b", "2"), entry(&h, &other, "a", "3")];
    let confirmed = entry(&h, &seed, "a", "4");
    let newer = entry(&h, &seed, "a", "5");
    for entry in [&older, &others[0], &others[1], &newer] {
        h.store.spool.put(entry.clone()).await.unwrap();
    }
    let id = h.store.spool.put(confirmed).await.unwrap();
    h.store.spool.confirm(&id).await.unwrap();
    assert_eq!(all(&h).await, [others[0].clone(), others[1].clone(), newer]);
    h.store.spool.confirm(&id).await.unwrap();
}
