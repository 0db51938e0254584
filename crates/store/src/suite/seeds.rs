use serde_json::json;

use super::*;
use crate::{LEASE_TTL, PageRequest, SaveOutcome, SeedPatch, SeedStatus, SeedVersion};

pub async fn an_imported_seed_is_there_as_it_was_given(h: Harness) {
    let mut new = new_seed("t1", Some("p"));
    new.metadata.insert("note".into(), json!({"a": [1, null]}));
    let row = h.store.seeds.import(new.clone()).await.unwrap();
    assert_eq!((row.pool.as_deref(), row.status, row.dirty), (Some("p"), SeedStatus::Alive, false));
    assert_eq!((&row.account, &row.metadata, &row.lease), (&new.account, &new.metadata, &None));
    assert_eq!(h.store.seeds.get(&row.id).await.unwrap(), Some(row.clone()));
    let (files, version) = h.store.seeds.load(&row.id).await.unwrap();
    assert_eq!((files, version), (new.files, row.version));
    assert_eq!(h.store.seeds.get(&SeedId::mint()).await.unwrap(), None);
    assert!(matches!(h.store.seeds.load(&SeedId::mint()).await, Err(StoreError::NotFound { .. })));
}

pub async fn a_clone_of_a_stored_login_is_refused(h: Harness) {
    let first = seed(&h, "t1").await;
    let refused = h.store.seeds.import(new_seed("t1", None)).await;
    assert!(matches!(&refused, Err(StoreError::Conflict { id, .. }) if id == first.as_str()), "{refused:?}");
    h.store.seeds.delete(&first, false).await.unwrap();
    h.store.seeds.import(new_seed("t1", None)).await.unwrap();
}

pub async fn a_clone_of_a_saved_credential_is_refused(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    let version = h.store.seeds.load(&id).await.unwrap().1;
    h.store.seeds.save_credential(&id, &holder("a"), &version, auth("t2")).await.unwrap();
    let refused = h.store.seeds.import(new_seed("t2", None)).await;
    assert!(
        matches!(&refused, Err(StoreError::Conflict { id: twin, .. }) if twin == id.as_str()),
        "{refused:?}"
    );
}

pub async fn an_api_key_may_be_stored_twice(h: Harness) {
    let mut new = new_seed("", None);
    new.files
        .0
        .insert(SeedFiles::AUTH.into(), Bytes::from_static(br#"{"OPENAI_API_KEY":"sk","tokens":null}"#));
    h.store.seeds.import(new.clone()).await.unwrap();
    h.store.seeds.import(new).await.unwrap();
}

pub async fn a_seed_without_a_credential_or_with_an_unsafe_name_is_refused(h: Harness) {
    let mut bare = new_seed("t1", None);
    bare.files.0.remove(SeedFiles::AUTH);
    assert!(matches!(h.store.seeds.import(bare).await, Err(StoreError::Invalid { .. })));
    for name in ["../x", "/etc/x", "a/../../x", "./x", "", "a//b"] {
        let mut new = new_seed("t1", None);
        new.files.0.insert(name.into(), Bytes::new());
        assert!(matches!(h.store.seeds.import(new).await, Err(StoreError::Invalid { .. })), "{name:?}");
    }
    assert!(h.store.seeds.list(None, &PageRequest::default()).await.unwrap().data.is_empty());
}

pub async fn empty_pools_and_keys_with_dots_are_refused(h: Harness) {
    let id = seed(&h, "t1").await;
    let invalid = |result: Result<crate::SeedRow>| assert!(matches!(result, Err(StoreError::Invalid { .. })));
    invalid(h.store.seeds.import(new_seed("t2", Some(""))).await);
    invalid(
        h.store
            .seeds
            .patch(&id, None, SeedPatch { pool: Some(Some(String::new())), ..Default::default() })
            .await,
    );
    for key in ["a.b", "$set", "", "a\0", "optioCodex"] {
        let metadata = [(key.to_owned(), json!(1))].into_iter().collect();
        invalid(h.store.seeds.patch(&id, None, SeedPatch { metadata, ..Default::default() }).await);
    }
    let refused = h.store.leases.acquire(&pool(""), &holder("a")).await;
    assert!(matches!(refused, Err(StoreError::Invalid { .. })));
}

pub async fn seeds_are_listed_page_by_page_in_order_of_creation(h: Harness) {
    let mut made = Vec::new();
    for i in 0..5 {
        made.push(seed(&h, &format!("t{i}")).await);
        h.clock.advance(std::time::Duration::from_millis(1));
    }
    h.store.seeds.import(new_seed("elsewhere", Some("q"))).await.unwrap();
    let mut seen = Vec::new();
    let mut request = PageRequest { cursor: None, limit: 2 };
    loop {
        let page = h.store.seeds.list(Some("p"), &request).await.unwrap();
        assert!(page.data.len() <= 2);
        seen.extend(page.data.into_iter().map(|row| row.id));
        request.cursor = page.next_cursor;
        if request.cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, made);
    assert_eq!(h.store.seeds.list(None, &PageRequest::default()).await.unwrap().data.len(), 6);
}

pub async fn a_saved_credential_replaces_that_file_only(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    let before = h.store.seeds.get(&id).await.unwrap().unwrap();
    let saved = h.store.seeds.save_credential(&id, &holder("a"), &before.version, auth("t2")).await.unwrap();
    let (files, version) = h.store.seeds.load(&id).await.unwrap();
    assert_eq!(saved, SaveOutcome::Saved(version.clone()));
    assert_ne!(version, before.version);
    let mut expected = new_seed("t1", None).files;
    expected.0.insert(SeedFiles::AUTH.into(), auth("t2"));
    assert_eq!(files, expected);
    let after = h.store.seeds.get(&id).await.unwrap().unwrap();
    assert_eq!((after.account, after.metadata, after.lease), (before.account, before.metadata, before.lease));
}

pub async fn only_the_holder_saves(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    let (_, version) = h.store.seeds.load(&id).await.unwrap();
    let stranger = h.store.seeds.save_credential(&id, &holder("b"), &version, auth("t2")).await.unwrap();
    assert_eq!(stranger, SaveOutcome::NotHolder);
    h.store.leases.release(&id, &holder("a")).await.unwrap();
    let released = h.store.seeds.save_credential(&id, &holder("a"), &version, auth("t2")).await.unwrap();
    assert_eq!(released, SaveOutcome::NotHolder);
    assert_eq!(credential(&h, &id).await, auth("t1"));
}

pub async fn a_save_from_another_version_is_superseded(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    let (_, first) = h.store.seeds.load(&id).await.unwrap();
    h.store.seeds.save_credential(&id, &holder("a"), &first, auth("t2")).await.unwrap();
    let (_, second) = h.store.seeds.load(&id).await.unwrap();
    let stale = h.store.seeds.save_credential(&id, &holder("a"), &first, auth("t3")).await.unwrap();
    assert_eq!(stale, SaveOutcome::Superseded { current: second });
    assert_eq!(credential(&h, &id).await, auth("t2"));
}

pub async fn a_save_that_is_tried_again_succeeds(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    let (_, base) = h.store.seeds.load(&id).await.unwrap();
    let save = || h.store.seeds.save_credential(&id, &HOLDER, &base, auth("t2"));
    static HOLDER: std::sync::LazyLock<Holder> = std::sync::LazyLock::new(|| holder("a"));
    let first = save().await.unwrap();
    assert!(matches!(first, SaveOutcome::Saved(_)));
    assert_eq!(save().await.unwrap(), first);
    let unknown = SeedVersion("never heard of".into());
    let again = h.store.seeds.save_credential(&id, &HOLDER, &unknown, auth("t2")).await.unwrap();
    assert_eq!(again, first);
}

pub async fn an_expired_holder_still_saves_until_somebody_took_the_lease(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    let (_, base) = h.store.seeds.load(&id).await.unwrap();
    h.clock.advance(LEASE_TTL * 2);
    let saved = h.store.seeds.save_credential(&id, &holder("a"), &base, auth("t2")).await.unwrap();
    let SaveOutcome::Saved(version) = saved else { panic!("{saved:?}") };
    h.store.leases.acquire_for_recovery(&id, &holder("b")).await.unwrap().unwrap();
    let late = h.store.seeds.save_credential(&id, &holder("a"), &version, auth("t3")).await.unwrap();
    assert_eq!(late, SaveOutcome::NotHolder);
    assert_eq!(credential(&h, &id).await, auth("t2"));
}

pub async fn a_save_into_a_deleted_seed_is_gone(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    let (_, base) = h.store.seeds.load(&id).await.unwrap();
    h.store.seeds.delete(&id, true).await.unwrap();
    let gone = h.store.seeds.save_credential(&id, &holder("a"), &base, auth("t2")).await.unwrap();
    assert_eq!(gone, SaveOutcome::Gone);
}

pub async fn a_patch_changes_what_it_names_and_nothing_else(h: Harness) {
    let mut new = new_seed("t1", Some("p"));
    new.metadata = json!({"keep": 1, "replace": {"old": true}, "remove": 1}).as_object().unwrap().clone();
    let before = h.store.seeds.import(new).await.unwrap();
    h.clock.advance(std::time::Duration::from_secs(1));
    let patch = SeedPatch {
        status: Some((SeedStatus::Dead, Some("401".into()))),
        pool: Some(None),
        metadata: json!({"replace": {"new": 1}, "remove": null, "absent": null}).as_object().unwrap().clone(),
        verified: false,
    };
    let after = h.store.seeds.patch(&before.id, None, patch).await.unwrap();
    assert_eq!(
        (after.status, after.status_reason.as_deref(), after.pool.as_deref()),
        (SeedStatus::Dead, Some("401"), None)
    );
    assert_eq!(json!(after.metadata), json!({"keep": 1, "replace": {"new": 1}}));
    assert!(after.updated_at > before.updated_at);
    assert_eq!((&after.version, after.created_at), (&before.version, before.created_at));
    assert_eq!(h.store.seeds.get(&before.id).await.unwrap(), Some(after.clone()));
    let same = h.store.seeds.patch(&before.id, None, SeedPatch::default()).await.unwrap();
    assert_eq!((same.status, same.pool, same.metadata), (after.status, after.pool, after.metadata));
    let unknown = h.store.seeds.patch(&SeedId::mint(), None, SeedPatch::default()).await;
    assert!(matches!(unknown, Err(StoreError::NotFound { .. })));
}

pub async fn replacing_and_verifying_a_credential_is_stamped_and_nothing_else_is(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    let row = h.store.seeds.get(&id).await.unwrap().unwrap();
    assert_eq!((row.last_refreshed_at, row.last_verified_at), (None, None));
    h.clock.advance(std::time::Duration::from_secs(1));
    let saved_at = Some(crate::Clock::now(&*h.clock));
    h.store.seeds.save_credential(&id, &holder("a"), &row.version, auth("t2")).await.unwrap();
    h.clock.advance(std::time::Duration::from_secs(1));
    let verified_at = Some(crate::Clock::now(&*h.clock));
    let patch = SeedPatch { verified: true, ..Default::default() };
    let row = h.store.seeds.patch(&id, Some(&holder("a")), patch).await.unwrap();
    assert_eq!((row.last_refreshed_at, row.last_verified_at), (saved_at, verified_at));
    h.clock.advance(std::time::Duration::from_secs(1));
    h.store.seeds.save_credential(&id, &holder("a"), &row.version, auth("t2")).await.unwrap();
    h.store.seeds.patch(&id, None, SeedPatch { pool: Some(None), ..Default::default() }).await.unwrap();
    let row = h.store.seeds.get(&id).await.unwrap().unwrap();
    assert_eq!((row.last_refreshed_at, row.last_verified_at), (saved_at, verified_at));
}

pub async fn a_patch_by_a_holder_needs_the_lease(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    let dead = || SeedPatch { status: Some((SeedStatus::Dead, None)), ..Default::default() };
    let refused = h.store.seeds.patch(&id, Some(&holder("b")), dead()).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    assert_eq!(h.store.seeds.get(&id).await.unwrap().unwrap().status, SeedStatus::Alive);
    let row = h.store.seeds.patch(&id, Some(&holder("a")), dead()).await.unwrap();
    assert_eq!(row.status, SeedStatus::Dead);
    assert!(row.lease.unwrap().live, "a patch leaves the lease alone");
}

pub async fn a_leased_seed_is_deleted_by_force_only(h: Harness) {
    let id = leased(&h, "t1", "a").await;
    assert!(matches!(h.store.seeds.delete(&id, false).await, Err(StoreError::Conflict { .. })));
    assert!(h.store.seeds.get(&id).await.unwrap().is_some());
    h.store.seeds.delete(&id, true).await.unwrap();
    assert_eq!(h.store.seeds.get(&id).await.unwrap(), None);
    assert!(matches!(h.store.seeds.delete(&id, true).await, Err(StoreError::NotFound { .. })));
    let expired = leased(&h, "t2", "a").await;
    h.clock.advance(LEASE_TTL);
    h.store.seeds.delete(&expired, false).await.unwrap();
}
