//! What Python makes of logins and workdirs that we sealed: nothing, and it breaks nothing by it.

use bytes::Bytes;
use mongodb::bson::{Document, doc};
use optio_store::mongo::{Mongo, Options};
use optio_store::suite::no_journal;
use optio_store::{Holder, NewSnapshot, SeedFiles, SeedId, SeedPatch, SeedStatus, SessionId, Store, Want};
use serde_json::{Value, json};

use crate::world::{World, log_in, login, new_seed, options, with_each};

/// A service of ours that seals, on the same database.
async fn sealing(w: &World) -> Store {
    let options = Options { encrypt: true, ..options() };
    Mongo::open(w.server.uri(), &w.directory("sealing"), options).await.unwrap().store(no_journal())
}

/// Has Python try what must not work, and answers its words.
async fn fails(w: &mut World, op: &str, arguments: Value) -> String {
    match w.python.attempt(op, arguments).await {
        Err(error) => format!("{}: {}", error.kind, error.message),
        Ok(answer) => panic!("{op}: {answer}"),
    }
}

async fn stored(w: &World, seed: &SeedId) -> (Document, u64) {
    let files = w.database.collection::<Document>("fs.files").count_documents(doc! {}).await.unwrap();
    (w.document(seed).await, files)
}

#[tokio::test]
async fn python_lists_a_sealed_login_cannot_plant_it_and_leaves_it_whole() {
    with_each(async |mut w| {
        let store = sealing(&w).await;
        let seed = store.seeds.import(new_seed(&login("acct-a", "rt-1"))).await.unwrap().id;
        assert_eq!(w.python("list", json!({})).await, json!([seed]));
        assert_eq!(w.python_acquires("task").await.as_ref(), Some(&seed), "it knows nothing of keys");
        let leased = stored(&w, &seed).await;

        let workdir = w.session("task").await;
        let said = fails(&mut w, "merge", json!({ "process_id": "task", "seed": seed })).await;
        assert!(said.contains("not in gzip format"), "{said}");
        assert!(!workdir.join("home/.codex/auth.json").exists(), "no half of a login is planted");
        log_in(&workdir, &login("acct-a", "rt-2"));
        let save = json!({ "process_id": "task", "seed": seed, "baseline": "another" });
        // It logs the failure and goes on with the fingerprint of before: it would try again.
        assert_eq!(w.python("save_back", save).await, "another");
        let content = String::from_utf8(login("acct-a", "rt-3")).unwrap();
        let overwrite = json!({ "seed": seed, "member": SeedFiles::AUTH, "content": content });
        let said = fails(&mut w, "overwrite", overwrite).await;
        assert!(said.contains("not a gzip file"), "{said}");
        assert_eq!(stored(&w, &seed).await, leased, "not a field and not a blob is another one");
        w.python_releases(&seed, "task").await;
        assert_eq!(store.seeds.load(&seed).await.unwrap().0.0[SeedFiles::AUTH], login("acct-a", "rt-1"));
    })
    .await;
}

#[tokio::test]
async fn python_calls_a_sealed_login_dead_when_it_checks_it_and_an_operator_can_take_that_back() {
    with_each(async |mut w| {
        let store = sealing(&w).await;
        let seed = store.seeds.import(new_seed(&login("acct-a", "rt-1"))).await.unwrap().id;
        assert_eq!(w.python("verify", json!({ "seed": seed })).await, false, "T-221");
        let row = store.seeds.get(&seed).await.unwrap().unwrap();
        assert_eq!((row.status, &row.metadata["verify"]["alive"]), (SeedStatus::Dead, &json!(false)));
        assert!(w.oauth.grants().is_empty(), "it never got to see the token");
        let alive = SeedPatch { status: Some((SeedStatus::Alive, None)), ..SeedPatch::default() };
        store.seeds.patch(&seed, None, alive).await.unwrap();
        let lease = store.leases.acquire(&Want::Seed(seed.clone()), &Holder::mint_for("ours")).await;
        assert!(lease.unwrap().is_some());
        assert_eq!(store.seeds.load(&seed).await.unwrap().0.0[SeedFiles::AUTH], login("acct-a", "rt-1"));
    })
    .await;
}

#[tokio::test]
async fn python_cannot_restore_a_sealed_workdir_and_says_so() {
    with_each(async |mut w| {
        let store = sealing(&w).await;
        let session = SessionId::mint();
        let mut writer = store.snapshots.begin().await.unwrap();
        writer.write(Bytes::from(vec![7; 2_000_000])).await.unwrap();
        let about = NewSnapshot {
            session: session.clone(),
            end_state: "done".into(),
            thread_id: Some("thread".into()),
            codec: "gzip".into(),
            seed: None,
        };
        let row = writer.commit(about).await.unwrap();
        let workdir = w.session(session.as_str()).await;
        let said = fails(&mut w, "restore", json!({ "process_id": session })).await;
        assert!(said.contains("not a gzip file"), "{said}");
        assert_eq!(std::fs::read_dir(&workdir).map_or(0, Iterator::count), 0, "no half of a workdir");
        store.snapshots.verify(&row.id).await.unwrap();
    })
    .await;
}
