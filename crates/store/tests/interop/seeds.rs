//! What one stores, the other lists and plants; what one changes, the other sees; what neither knows, both keep.

use std::os::unix::fs::PermissionsExt;

use mongodb::bson::{Bson, Document, doc};
use optio_store::{Holder, PageRequest, SaveOutcome, SeedFiles, SeedId, SeedPatch, SeedStatus, StoreError};
use serde_json::{Value, json};

use crate::world::{CONFIG, POOL, World, by_id, keys, log_in, login, new_seed, with_each, with_one};

/// Python's write without a session or a lease.
async fn python_overwrites(w: &mut World, seed: &SeedId, login: &[u8]) {
    let content = std::str::from_utf8(login).unwrap();
    w.python("overwrite", json!({ "seed": seed, "member": SeedFiles::AUTH, "content": content })).await;
}

#[tokio::test]
async fn what_python_captures_we_list_and_plant() {
    with_each(async |mut w| {
        let login = login("acct-a", "rt-1");
        let seed = w.captured(&login).await;

        let page = w.store.seeds.list(Some(POOL), &PageRequest::default()).await.unwrap();
        assert_eq!(page.data.iter().map(|row| &row.id).collect::<Vec<_>>(), [&seed]);
        let row = w.row(&seed).await;
        assert_eq!(page.data[0], row);
        assert_eq!((row.status, row.pool.as_deref(), row.dirty), (SeedStatus::Alive, Some(POOL), false));
        assert_eq!((row.lease, row.last_refreshed_at, row.last_verified_at), (None, None, None));
        assert_eq!(row.account.id.as_deref(), Some("acct-a"), "read off the login");
        assert!(row.metadata.is_empty(), "{:?}", row.metadata);

        let (files, version) = w.store.seeds.load(&seed).await.unwrap();
        assert_eq!(version, row.version);
        assert_eq!(files.0.keys().collect::<Vec<_>>(), [SeedFiles::AUTH, SeedFiles::CONFIG]);
        assert_eq!(files.0[SeedFiles::AUTH], login);
        assert_eq!(files.0[SeedFiles::CONFIG], CONFIG.as_bytes());
    })
    .await;
}

#[tokio::test]
async fn what_we_import_python_lists_and_plants() {
    with_each(async |mut w| {
        let login = login("acct-a", "rt-1");
        let seed = w.imported(&login).await;

        let document = w.document(&seed).await;
        for (field, kind) in [
            ("_id", mongodb::bson::spec::ElementType::ObjectId),
            ("createdAt", mongodb::bson::spec::ElementType::DateTime),
            ("blobId", mongodb::bson::spec::ElementType::ObjectId),
            ("manifestVersion", mongodb::bson::spec::ElementType::Int32),
            ("poolKey", mongodb::bson::spec::ElementType::String),
        ] {
            assert_eq!(document.get(field).map(Bson::element_type), Some(kind), "{field} (T-002, T-003)");
        }
        let files = w.database.collection::<Document>("fs.files");
        let file = files.find_one(doc! { "_id": document.get("blobId") }).await.unwrap().unwrap();
        assert_eq!(
            (file.get_str("filename").unwrap(), file.get_i32("chunkSize").unwrap()),
            ("seed", 261_120),
            "T-010"
        );
        assert_eq!(w.python("list", json!({})).await, json!([seed]));
        let row = w.pythons_row(&seed).await.expect("it is in the pool");
        assert_eq!((&row["status"], &row["leased"]), (&json!("alive"), &json!(false)));

        assert_eq!(w.pythons_login(&seed).await, login);
        let workdir = w.session("looker").await;
        w.python("merge", json!({ "process_id": "looker", "seed": seed })).await;
        let mode = |name: &str| {
            std::fs::metadata(workdir.join("home/.codex").join(name)).unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode("auth.json"), mode("config.toml")), (0o600, 0o644), "as codex makes them (T-016)");
    })
    .await;
}

#[tokio::test]
async fn a_login_that_python_stored_is_not_imported_a_second_time() {
    with_one(async |mut w| {
        let seed = w.captured(&login("acct-a", "rt-1")).await;
        let refused = w.store.seeds.import(new_seed(&login("acct-a", "rt-1"))).await;
        assert!(
            matches!(&refused, Err(StoreError::Conflict { id, .. }) if id == seed.as_str()),
            "{refused:?}"
        );
        w.store.seeds.import(new_seed(&login("acct-a", "rt-2"))).await.unwrap();

        // Python rotates it; from then on the new token is the one that must not be stored twice.
        python_overwrites(&mut w, &seed, &login("acct-a", "rt-3")).await;
        let refused = w.store.seeds.import(new_seed(&login("acct-a", "rt-3"))).await;
        assert!(
            matches!(&refused, Err(StoreError::Conflict { id, .. }) if id == seed.as_str()),
            "{refused:?}"
        );
    })
    .await;
}

#[tokio::test]
async fn what_python_saves_back_we_plant() {
    with_one(async |mut w| {
        let seed = w.imported(&login("acct-a", "rt-1")).await;
        let before = w.row(&seed).await;
        w.python_acquires("codex-1").await.unwrap();
        let workdir = w.session("codex-1").await;
        let baseline = w.python("merge", json!({ "process_id": "codex-1", "seed": seed })).await;
        let rotated = login("acct-a", "rt-2");
        log_in(&workdir, &rotated);
        let save = json!({ "process_id": "codex-1", "seed": seed, "baseline": baseline });
        assert_ne!(w.python("save_back", save).await, baseline);
        w.python_releases(&seed, "codex-1").await;

        let holder = Holder::mint_for("ours");
        assert_eq!(w.we_acquire(&holder).await.as_ref(), Some(&seed));
        assert_eq!(w.our_login(&seed).await, rotated);
        let after = w.row(&seed).await;
        assert_ne!(after.version, before.version);
        assert_eq!((after.account, after.created_at), (before.account, before.created_at));
    })
    .await;
}

#[tokio::test]
async fn what_we_save_back_python_plants() {
    with_one(async |mut w| {
        let seed = w.captured(&login("acct-a", "rt-1")).await;
        let before = w.document(&seed).await;
        let holder = Holder::mint_for("ours");
        w.we_acquire(&holder).await.unwrap();
        let version = w.row(&seed).await.version;
        let rotated = login("acct-a", "rt-2");
        let saved =
            w.store.seeds.save_credential(&seed, &holder, &version, rotated.clone().into()).await.unwrap();
        assert!(matches!(saved, SaveOutcome::Saved(_)), "{saved:?}");

        // Whoever read the document a moment ago can still read the blob that it named (T-056).
        let old = before.get_object_id("blobId").unwrap();
        assert_ne!(w.python("blob_size", json!({ "blob": old.to_hex() })).await, 0);
        w.store.leases.release(&seed, &holder).await.unwrap();
        assert_eq!(w.python_acquires("codex-1").await.as_ref(), Some(&seed));
        assert_eq!(w.pythons_login(&seed).await, rotated);
        let after = w.document(&seed).await;
        for kept in ["createdAt", "manifestVersion", "poolKey"] {
            assert_eq!(after.get(kept), before.get(kept), "{kept} (INV-25)");
        }
        let row = w.pythons_row(&seed).await.unwrap();
        let refreshed = after.get_datetime("lastRefreshedAt").unwrap().timestamp_millis();
        assert_eq!(row["lastRefreshedAt"]["$date"]["$numberLong"], json!(refreshed.to_string()), "T-098");
    })
    .await;
}

#[tokio::test]
async fn a_login_saved_in_turn_by_both_keeps_every_other_file() {
    with_one(async |mut w| {
        let seed = w.captured(&login("acct-a", "rt-0")).await;
        for round in 0..3 {
            let ours = login("acct-a", &format!("rt-{round}-ours"));
            let holder = Holder::mint_for("ours");
            w.we_acquire(&holder).await.unwrap();
            let version = w.row(&seed).await.version;
            w.store.seeds.save_credential(&seed, &holder, &version, ours.clone().into()).await.unwrap();
            w.store.leases.release(&seed, &holder).await.unwrap();
            assert_eq!(w.pythons_login(&seed).await, ours);

            let theirs = login("acct-a", &format!("rt-{round}-theirs"));
            python_overwrites(&mut w, &seed, &theirs).await;
            assert_eq!(w.our_login(&seed).await, theirs, "and config.toml with it");
        }
    })
    .await;
}

#[tokio::test]
async fn pools_are_the_same_both_ways() {
    with_one(async |mut w| {
        let seed = w.imported(&login("acct-a", "rt-1")).await;
        let ours = Holder::mint_for("ours");

        w.python("assign", json!({ "seed": seed, "pool": "elsewhere" })).await;
        assert_eq!(w.row(&seed).await.pool.as_deref(), Some("elsewhere"));
        assert_eq!(w.we_acquire(&ours).await, None);

        let to = |pool: Option<&str>| SeedPatch { pool: Some(pool.map(str::to_owned)), ..Default::default() };
        w.store.seeds.patch(&seed, None, to(Some(POOL))).await.unwrap();
        assert!(w.pythons_row(&seed).await.is_some());
        assert_eq!(w.python_acquires("codex-1").await.as_ref(), Some(&seed));
        w.python_releases(&seed, "codex-1").await;

        w.store.seeds.patch(&seed, None, to(None)).await.unwrap();
        assert_eq!(w.pythons_row(&seed).await, None);
        assert_eq!(w.python_acquires("codex-1").await, None);
        assert_eq!(w.python("list", json!({})).await, json!([seed]), "it is there all the same");
    })
    .await;
}

#[tokio::test]
async fn notes_of_either_are_read_and_kept_by_the_other() {
    with_one(async |mut w| {
        let mut new = new_seed(&login("acct-a", "rt-1"));
        new.metadata =
            json!({ "ours": { "n": 1, "list": [1.5, null, "x"] }, "both": 1 }).as_object().unwrap().clone();
        let seed = w.store.seeds.import(new).await.unwrap().id;

        let metadata = w.pythons_row(&seed).await.unwrap()["metadata"].clone();
        assert_eq!(metadata["ours"]["list"][2], "x");
        let notes = json!({ "theirs": { "label": "ümlaut", "n": 7 }, "both": { "replaced": true } });
        w.python("declare", json!({ "seed": seed, "metadata": notes })).await;
        let expected = json!({
            "ours": { "n": 1, "list": [1.5, null, "x"] },
            "theirs": { "label": "ümlaut", "n": 7 },
            "both": { "replaced": true },
        });
        assert_eq!(json!(w.row(&seed).await.metadata), expected);

        let patch = json!({ "both": "ours again" }).as_object().unwrap().clone();
        w.store.seeds.patch(&seed, None, SeedPatch { metadata: patch, ..Default::default() }).await.unwrap();
        let metadata = w.pythons_row(&seed).await.unwrap()["metadata"].clone();
        assert_eq!(
            (&metadata["both"], &metadata["theirs"]["label"]),
            (&json!("ours again"), &json!("ümlaut"))
        );
    })
    .await;
}

#[tokio::test]
async fn what_neither_knows_survives_everything_that_both_do() {
    with_one(async |mut w| {
        let seed = w.captured(&login("acct-a", "rt-1")).await;
        let strange = doc! { "nested": { "deep": [1_i32, doc! { "x": Bson::Null }] }, "when": mongodb::bson::DateTime::now() };
        w.tamper(&seed, doc! { "strange": &strange, "metadata.strange": &strange, "manifestVersion": 77_i32 }).await;

        let holder = Holder::mint_for("ours");
        w.we_acquire(&holder).await.unwrap();
        w.store.leases.renew(&seed, &holder).await.unwrap();
        let version = w.row(&seed).await.version;
        w.store.seeds.save_credential(&seed, &holder, &version, login("acct-a", "rt-2").into()).await.unwrap();
        w.we_judge(&seed, SeedStatus::NeedsRecovery, Some("why")).await;
        w.we_judge(&seed, SeedStatus::Alive, None).await;
        let notes = json!({ "noted": 1 }).as_object().unwrap().clone();
        let patch = SeedPatch { pool: Some(None), metadata: notes, verified: true, ..Default::default() };
        w.store.seeds.patch(&seed, Some(&holder), patch).await.unwrap();
        w.store.leases.release(&seed, &holder).await.unwrap();
        w.store.leases.acquire_for_recovery(&seed, &holder).await.unwrap().unwrap();
        w.store.leases.release(&seed, &holder).await.unwrap();

        w.python("assign", json!({ "seed": seed, "pool": POOL })).await;
        w.python_acquires("codex-1").await.unwrap();
        assert!(w.python_renews(&seed, "codex-1").await);
        python_overwrites(&mut w, &seed, &login("acct-a", "rt-3")).await;
        w.python_releases(&seed, "codex-1").await;
        // A reader that finds out whose login it is now may note it; it may touch nothing else.
        assert_eq!(w.row(&seed).await.account.id.as_deref(), Some("acct-a"));

        let document = w.document(&seed).await;
        assert_eq!(document.get("strange"), Some(&Bson::Document(strange.clone())));
        assert_eq!(document.get("manifestVersion"), Some(&Bson::Int32(77)), "T-025");
        let metadata = document.get_document("metadata").unwrap();
        assert_eq!(metadata.get("strange"), Some(&Bson::Document(strange)));
        assert_eq!(w.row(&seed).await.metadata["noted"], 1);
        let known = [
            "_id", "createdAt", "blobId", "manifestVersion", "poolKey", "status", "lease", "lastLeasedAt", "metadata",
            "updatedAt", "lastRefreshedAt", "lastVerifiedAt", "strange",
        ];
        let unknown: Vec<_> = keys(&document).into_iter().filter(|key| !known.contains(key)).collect();
        assert_eq!(unknown, [""; 0], "nothing is at the top that the specification does not name (T-003)");
    })
    .await;
}

#[tokio::test]
async fn what_either_deletes_is_gone_for_the_other() {
    with_one(async |mut w| {
        let ours = Holder::mint_for("ours");
        let first = w.imported(&login("acct-a", "rt-1")).await;
        let (_, version) = w.store.seeds.load(&first).await.unwrap();
        w.we_acquire(&ours).await.unwrap();
        w.python("purge", json!({ "seed": first })).await;
        assert_eq!(w.store.seeds.get(&first).await.unwrap(), None);
        assert!(matches!(w.store.seeds.load(&first).await, Err(StoreError::NotFound { .. })));
        let save =
            w.store.seeds.save_credential(&first, &ours, &version, login("acct-a", "rt-2").into()).await;
        assert_eq!(save.unwrap(), SaveOutcome::Gone);
        assert_eq!(w.store.leases.renew(&first, &ours).await.unwrap(), optio_store::Renewal::Lost);

        let second = w.captured(&login("acct-b", "rt-1")).await;
        w.store.seeds.delete(&second, false).await.unwrap();
        assert_eq!(w.python("load", json!({ "seed": second })).await, Value::Null);
        let purged = w.python.attempt("purge", json!({ "seed": second })).await.unwrap_err();
        assert_eq!(purged.kind, "KeyError", "T-062");
        assert_eq!(w.seeds().find_one(by_id(&second)).await.unwrap(), None);
    })
    .await;
}
