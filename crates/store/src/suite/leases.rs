use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::{LEASE_TTL, Renewal, SeedPatch, SeedStatus};

pub async fn an_acquired_lease_ends_after_its_ttl_exactly(h: Harness) {
    let id = seed(&h, "t1").await;
    let now = crate::Clock::now(&*h.clock);
    let lease = h.store.leases.acquire(&pool("p"), &holder("a")).await.unwrap().unwrap();
    assert_eq!((lease.seed, lease.holder, lease.expires_at), (id.clone(), holder("a"), now + LEASE_TTL));
    h.clock.advance(LEASE_TTL - Duration::from_millis(1));
    let row = h.store.seeds.get(&id).await.unwrap().unwrap();
    assert!(row.lease.unwrap().live && !row.dirty);
    h.clock.advance(Duration::from_millis(1));
    let row = h.store.seeds.get(&id).await.unwrap().unwrap();
    assert!(!row.lease.unwrap().live && row.dirty, "the end itself is expired (T-085)");
}

pub async fn two_holders_never_have_one_seed(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    assert_eq!(h.store.leases.acquire(&pool("p"), &holder("b")).await.unwrap(), None);
    assert_eq!(h.store.leases.acquire(&Want::Seed(id.clone()), &holder("b")).await.unwrap(), None);
    h.store.leases.release(&id, &holder("a")).await.unwrap();
    assert!(h.store.leases.acquire(&pool("p"), &holder("b")).await.unwrap().is_some());
}

pub async fn many_at_once_get_as_many_as_there_are(h: Harness) {
    for i in 0..5 {
        seed(&h, &format!("t{i}")).await;
    }
    let tasks: Vec<_> = (0..20)
        .map(|i| {
            let leases = h.store.leases.clone();
            tokio::spawn(async move { leases.acquire(&pool("p"), &holder(&format!("h{i}"))).await.unwrap() })
        })
        .collect();
    let mut won = Vec::new();
    for task in tasks {
        won.extend(task.await.unwrap().map(|lease| lease.seed));
    }
    assert_eq!(won.len(), 5);
    assert_eq!(won.into_iter().collect::<BTreeSet<_>>().len(), 5);
}

pub async fn the_least_recently_leased_comes_first(h: Harness) {
    let made = [seed(&h, "t0").await, seed(&h, "t1").await, seed(&h, "t2").await];
    let mut order = Vec::new();
    for _ in 0..6 {
        let lease = h.store.leases.acquire(&pool("p"), &holder("a")).await.unwrap().unwrap();
        h.store.leases.release(&lease.seed, &holder("a")).await.unwrap();
        order.push(lease.seed);
        // Within one millisecond the order is free (T-083).
        h.clock.advance(Duration::from_millis(1));
    }
    assert_eq!(order[..3].iter().collect::<BTreeSet<_>>(), made.iter().collect());
    assert_eq!(order[..3], order[3..]);
    let fresh = seed(&h, "t3").await;
    let next = h.store.leases.acquire(&pool("p"), &holder("a")).await.unwrap().unwrap();
    assert_eq!(next.seed, fresh, "one that was never leased comes before all");
}

pub async fn acquiring_is_not_reentrant(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    assert_eq!(h.store.leases.acquire(&pool("p"), &holder("a")).await.unwrap(), None);
    assert_eq!(h.store.leases.acquire_for_recovery(&id, &holder("a")).await.unwrap(), None);
}

pub async fn only_alive_seeds_of_the_pool_are_leased(h: Harness) {
    h.store.seeds.import(new_seed("poolless", None)).await.unwrap();
    h.store.seeds.import(new_seed("elsewhere", Some("q"))).await.unwrap();
    let id = seed(&h, "t1").await;
    for status in [SeedStatus::Dead, SeedStatus::NeedsRecovery] {
        let patch = SeedPatch { status: Some((status, None)), ..Default::default() };
        h.store.seeds.patch(&id, None, patch).await.unwrap();
        assert_eq!(h.store.leases.acquire(&pool("p"), &holder("a")).await.unwrap(), None);
        assert_eq!(h.store.leases.acquire(&Want::Seed(id.clone()), &holder("a")).await.unwrap(), None);
        assert!(h.store.leases.acquire_for_recovery(&id, &holder("a")).await.unwrap().is_some());
        h.store.leases.release(&id, &holder("a")).await.unwrap();
    }
    let unknown = Want::Seed(SeedId::mint());
    assert_eq!(h.store.leases.acquire(&unknown, &holder("a")).await.unwrap(), None);
}

pub async fn an_expired_lease_makes_a_seed_dirty_until_it_is_mended(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    h.clock.advance(LEASE_TTL);
    assert!(h.store.seeds.get(&id).await.unwrap().unwrap().dirty);
    assert_eq!(h.store.leases.acquire(&pool("p"), &holder("b")).await.unwrap(), None);
    assert_eq!(h.store.leases.acquire(&Want::Seed(id.clone()), &holder("b")).await.unwrap(), None);
    assert!(h.store.leases.acquire_for_recovery(&id, &holder("b")).await.unwrap().is_some());
    h.clock.advance(LEASE_TTL);
    assert!(h.store.seeds.get(&id).await.unwrap().unwrap().dirty, "a recovery that died leaves it dirty");
    assert!(h.store.leases.acquire_for_recovery(&id, &holder("c")).await.unwrap().is_some());
    assert!(h.store.leases.release(&id, &holder("c")).await.unwrap());
    assert!(!h.store.seeds.get(&id).await.unwrap().unwrap().dirty);
    assert!(h.store.leases.acquire(&pool("p"), &holder("d")).await.unwrap().is_some());
}

pub async fn an_operator_who_says_alive_clears_an_expired_lease_but_no_live_one(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    let alive = || SeedPatch { status: Some((SeedStatus::Alive, None)), ..Default::default() };
    assert!(h.store.seeds.patch(&id, None, alive()).await.unwrap().lease.is_some());
    h.clock.advance(LEASE_TTL);
    let other = SeedPatch { pool: Some(Some("p".into())), ..Default::default() };
    assert!(h.store.seeds.patch(&id, None, other).await.unwrap().dirty);
    assert!(h.store.seeds.patch(&id, Some(&holder("a")), alive()).await.unwrap().dirty);
    let row = h.store.seeds.patch(&id, None, alive()).await.unwrap();
    assert!(row.lease.is_none() && !row.dirty);
    assert_eq!(h.store.leases.renew(&id, &holder("a")).await.unwrap(), Renewal::Lost);
}

pub async fn an_expired_lease_is_revived_if_nobody_took_it(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    h.clock.advance(LEASE_TTL * 3);
    let expires_at = crate::Clock::now(&*h.clock) + LEASE_TTL;
    assert_eq!(h.store.leases.renew(&id, &holder("a")).await.unwrap(), Renewal::Renewed { expires_at });
    assert!(!h.store.seeds.get(&id).await.unwrap().unwrap().dirty);
}

pub async fn a_lost_lease_stays_lost(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    h.clock.advance(LEASE_TTL);
    h.store.leases.acquire_for_recovery(&id, &holder("b")).await.unwrap().unwrap();
    assert_eq!(h.store.leases.renew(&id, &holder("a")).await.unwrap(), Renewal::Lost);
    h.store.leases.release(&id, &holder("b")).await.unwrap();
    assert_eq!(h.store.leases.renew(&id, &holder("a")).await.unwrap(), Renewal::Lost);
    assert_eq!(
        h.store.leases.renew(&id, &holder("b")).await.unwrap(),
        Renewal::Lost,
        "after a release (T-094)"
    );
    assert_eq!(h.store.leases.renew(&SeedId::mint(), &holder("a")).await.unwrap(), Renewal::Lost);
}

pub async fn only_the_holder_releases(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    assert!(!h.store.leases.release(&id, &holder("b")).await.unwrap());
    assert!(!h.store.leases.release(&SeedId::mint(), &holder("a")).await.unwrap());
    assert_eq!(h.store.seeds.get(&id).await.unwrap().unwrap().lease.unwrap().holder, holder("a"));
    assert!(h.store.leases.release(&id, &holder("a")).await.unwrap());
    assert!(!h.store.leases.release(&id, &holder("a")).await.unwrap());
}

pub async fn a_dead_seeds_holder_goes_on_renewing(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    let dead = SeedPatch { status: Some((SeedStatus::Dead, None)), ..Default::default() };
    h.store.seeds.patch(&id, None, dead).await.unwrap();
    assert!(matches!(h.store.leases.renew(&id, &holder("a")).await.unwrap(), Renewal::Renewed { .. }));
}

pub async fn recovery_does_not_take_a_live_lease(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    assert_eq!(h.store.leases.acquire_for_recovery(&id, &holder("b")).await.unwrap(), None);
    assert_eq!(h.store.leases.acquire_for_recovery(&SeedId::mint(), &holder("b")).await.unwrap(), None);
    let row = h.store.seeds.get(&id).await.unwrap().unwrap();
    assert_eq!(row.lease.unwrap().holder, holder("a"));
}
