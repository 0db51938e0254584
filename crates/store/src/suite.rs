//! The contract of every backend (but the journal's), as tests.
//!
//! ```ignore
//! async fn make() -> Harness { … }
//! optio_store::store_suite!(make);
//! ```

#![allow(clippy::unwrap_used, missing_docs, reason = "tests; their names are their documentation")]

pub mod deliverables;
pub mod leases;
pub mod records;
pub mod seeds;
pub mod snapshots;
pub mod spool;

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    Account, Holder, Journal, JournalStream, ManualClock, NewSeed, Result, SeedFiles, SeedId, SessionId,
    Store, StoreError, Want,
};

/// A fresh store, and the clock it goes by.
pub struct Harness {
    pub store: Store,
    pub clock: Arc<ManualClock>,
    /// Makes a session's record one that cannot be read, behind the store's back.
    pub damage_record: DamageRecord,
    /// What must live as long as the store, e.g. its directory.
    pub keep: Box<dyn Any>,
}

/// See [`Harness::damage_record`].
pub type DamageRecord = Box<dyn Fn(SessionId) -> Pin<Box<dyn Future<Output = ()>>>>;

/// Makes every test of the suite, each with a harness of its own. Used in a module for each backend.
#[macro_export]
macro_rules! store_suite {
    ($make:path) => {
        $crate::store_suite!(@tests $make; seeds:
            an_imported_seed_is_there_as_it_was_given,
            a_clone_of_a_stored_login_is_refused,
            a_clone_of_a_saved_credential_is_refused,
            an_api_key_may_be_stored_twice,
            a_seed_without_a_credential_or_with_an_unsafe_name_is_refused,
            empty_pools_and_keys_with_dots_are_refused,
            seeds_are_listed_page_by_page_in_order_of_creation,
            a_saved_credential_replaces_that_file_only,
            only_the_holder_saves,
            a_save_from_another_version_is_superseded,
            a_save_that_is_tried_again_succeeds,
            an_expired_holder_still_saves_until_somebody_took_the_lease,
            a_save_into_a_deleted_seed_is_gone,
            a_patch_changes_what_it_names_and_nothing_else,
            replacing_and_verifying_a_credential_is_stamped_and_nothing_else_is,
            a_patch_by_a_holder_needs_the_lease,
            a_leased_seed_is_deleted_by_force_only,
        );
        $crate::store_suite!(@tests $make; leases:
            an_acquired_lease_ends_after_its_ttl_exactly,
            two_holders_never_have_one_seed,
            many_at_once_get_as_many_as_there_are,
            the_least_recently_leased_comes_first,
            acquiring_is_not_reentrant,
            only_alive_seeds_of_the_pool_are_leased,
            an_expired_lease_makes_a_seed_dirty_until_it_is_mended,
            an_operator_who_says_alive_clears_an_expired_lease_but_no_live_one,
            an_expired_lease_is_revived_if_nobody_took_it,
            a_lost_lease_stays_lost,
            only_the_holder_releases,
            a_dead_seeds_holder_goes_on_renewing,
            recovery_does_not_take_a_live_lease,
        );
        $crate::store_suite!(@tests $make; deliverables:
            a_kept_file_comes_back_and_replaces_its_predecessor,
            the_files_of_a_session_go_with_it_and_no_others,
            too_much_and_odd_paths_are_refused,
        );
        $crate::store_suite!(@tests $make; snapshots:
            an_archive_comes_back_as_it_went_in,
            an_empty_archive_is_an_archive,
            nothing_is_there_before_the_commit,
            the_newest_five_are_kept_and_listed_newest_first,
            sessions_do_not_prune_each_other,
            an_unknown_snapshot_is_not_found,
        );
        $crate::store_suite!(@tests $make; records:
            a_record_comes_back_as_it_was_given,
            an_update_names_the_revision_it_follows,
            one_request_makes_one_record,
            an_idempotency_key_is_forgotten_after_a_day,
            each_filter_filters,
            records_are_listed_page_by_page_newest_first,
            a_made_up_cursor_is_refused,
            a_record_that_cannot_be_read_hides_no_other,
            unfinished_records_are_oldest_first,
            an_absent_record_is_deleted_without_an_error,
            a_body_over_the_limit_is_refused,
        );
        $crate::store_suite!(@tests $make; spool:
            an_entry_comes_back_as_it_was_given,
            entries_are_oldest_first,
            confirming_removes_older_ones_of_the_same_seed_and_holder_only,
        );
    };
    (@tests $make:path; $module:ident: $($name:ident,)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                $crate::suite::$module::$name($make().await).await;
            }
        )*
    };
}

/// A login with this refresh token, as Codex writes it.
pub fn auth(token: &str) -> Bytes {
    format!(r#"{{"tokens":{{"account_id":"acct","refresh_token":"{token}"}},"last_refresh":"2026-01-01T00:00:00Z"}}"#)
        .into()
}

/// A seed to store, with this refresh token.
pub fn new_seed(token: &str, pool: Option<&str>) -> NewSeed {
    let files = [
        (SeedFiles::AUTH.to_owned(), auth(token)),
        (SeedFiles::CONFIG.to_owned(), Bytes::from_static(b"model = \"x\"\n")),
    ];
    NewSeed {
        files: SeedFiles(files.into()),
        account: Account {
            id: Some("acct".into()),
            email: None,
            plan: Some("plus".into()),
            kind: "chatgpt".into(),
        },
        pool: pool.map(str::to_owned),
        metadata: serde_json::Map::new(),
    }
}

pub fn holder(name: &str) -> Holder {
    Holder::stored(name)
}

pub fn pool(name: &str) -> Want {
    Want::Pool(name.to_owned())
}

/// Imports a seed into pool `p`.
pub async fn seed(h: &Harness, token: &str) -> SeedId {
    h.store.seeds.import(new_seed(token, Some("p"))).await.unwrap().id
}

/// Imports a seed and leases it to `holder`.
pub async fn leased(h: &Harness, token: &str, by: &str) -> SeedId {
    let id = seed(h, token).await;
    h.store.leases.acquire(&Want::Seed(id.clone()), &holder(by)).await.unwrap().unwrap();
    id
}

/// The credential that is stored now.
pub async fn credential(h: &Harness, id: &SeedId) -> Bytes {
    h.store.seeds.load(id).await.unwrap().0.0[SeedFiles::AUTH].clone()
}

/// A journal for a store whose journal is not used.
pub fn no_journal() -> Arc<dyn Journal> {
    struct NoJournal;
    #[async_trait]
    impl Journal for NoJournal {
        async fn open(&self, _name: &str) -> Result<Arc<dyn JournalStream>> {
            Err(StoreError::Unavailable { what: "journal", why: "this store has none".to_owned() })
        }
        async fn delete(&self, _name: &str) -> Result<()> {
            Ok(())
        }
    }
    Arc::new(NoJournal)
}
