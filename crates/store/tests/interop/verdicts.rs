//! Whether a login is good: what one found out, the other goes by.

use jiff::SignedDuration;
use optio_store::{Holder, SeedPatch, SeedStatus};
use serde_json::{Value, json};

use crate::world::{login, with_each, with_one};

#[tokio::test]
async fn a_login_that_pythons_verify_refreshed_is_the_newest_for_us() {
    with_each(async |mut w| {
        let stale = w.oauth.login("acct-a").refreshed_ago(SignedDuration::from_hours(9 * 24));
        let seed = w.imported(&stale.auth_json()).await;
        w.we_judge(&seed, SeedStatus::Dead, Some("an operator said so")).await;
        assert_eq!(w.python("verify", json!({ "seed": seed })).await, true);

        let row = w.row(&seed).await;
        assert_eq!(
            (row.status, row.status_reason.as_deref()),
            (SeedStatus::Alive, None),
            "Python found it alive"
        );
        assert_eq!(row.metadata["verify"]["alive"], true);
        assert!(row.metadata["verify"]["checkedAt"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
        let stored: Value = serde_json::from_slice(&w.our_login(&seed).await).unwrap();
        assert_eq!(stored["tokens"]["refresh_token"].as_str(), w.oauth.issued("acct-a").as_deref());
        assert!(w.oauth.reuses().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_login_that_python_found_dead_is_not_handed_out() {
    with_each(async |mut w| {
        let stale = w.oauth.login("acct-a").refreshed_ago(SignedDuration::from_hours(9 * 24));
        let spent = stale.clone().refresh_token("never issued");
        let seed = w.captured(&spent.auth_json()).await;
        assert_eq!(w.python("verify", json!({ "seed": seed })).await, false);
        let row = w.row(&seed).await;
        assert_eq!((row.status, &row.metadata["verify"]["alive"]), (SeedStatus::Dead, &json!(false)));
        assert_eq!(w.we_acquire(&Holder::mint_for("ours")).await, None);
    })
    .await;
}

#[tokio::test]
async fn a_verdict_of_ours_is_where_python_looks_for_one() {
    with_one(async |mut w| {
        let seed = w.imported(&login("acct-a", "rt-1")).await;
        let at = "2026-07-02T00:11:54.339Z";
        let verdict =
            json!({ "alive": false, "checkedAt": at, "verdict": "dead", "reason": "refresh_token_reused" });
        let patch = SeedPatch {
            status: Some((SeedStatus::Dead, Some("refresh_token_reused".into()))),
            metadata: [("verify".to_owned(), verdict.clone())].into_iter().collect(),
            verified: true,
            ..SeedPatch::default()
        };
        assert_eq!(w.store.seeds.patch(&seed, None, patch).await.unwrap().metadata["verify"], verdict);

        let row = w.pythons_row(&seed).await.unwrap();
        let seen = &row["metadata"]["verify"];
        let date = |value: &Value| value["$date"]["$numberLong"].as_str().map(str::to_owned);
        assert_eq!(
            (&seen["alive"], date(&seen["checkedAt"]).as_deref()),
            (&json!(false), Some("1782951114339"))
        );
        let verified = w.document(&seed).await.get_datetime("lastVerifiedAt").unwrap().timestamp_millis();
        assert_eq!(date(&row["lastVerifiedAt"]), Some(verified.to_string()), "T-098");
    })
    .await;
}

#[tokio::test]
async fn status_is_understood_both_ways() {
    with_each(async |mut w| {
        let seed = w.imported(&login("acct-a", "rt-1")).await;
        let holder = Holder::mint_for("ours");

        w.python("mark", json!({ "seed": seed, "status": "dead" })).await;
        let row = w.row(&seed).await;
        assert_eq!((row.status, row.status_reason), (SeedStatus::Dead, None));
        assert_eq!(w.we_acquire(&holder).await, None);
        w.python("mark", json!({ "seed": seed, "status": "alive" })).await;
        assert_eq!(w.row(&seed).await.status, SeedStatus::Alive);

        for said in [SeedStatus::Dead, SeedStatus::NeedsRecovery] {
            w.we_judge(&seed, said, Some("why")).await;
            let row = w.row(&seed).await;
            assert_eq!((row.status, row.status_reason.as_deref()), (said, Some("why")));
            assert_eq!(w.pythons_row(&seed).await.unwrap()["status"], "dead", "{said:?} (T-086)");
            assert_eq!(w.python_acquires("codex-1").await, None);
            w.we_judge(&seed, SeedStatus::Alive, None).await;
            assert_eq!(w.pythons_row(&seed).await.unwrap()["status"], "alive");
            let acquired = w.python_acquires("codex-1").await.expect("alive again at once (T-069)");
            w.python_releases(&acquired, "codex-1").await;
        }

        // A word that we do not know is not "dead" (T-004, T-086).
        w.python("mark", json!({ "seed": seed, "status": "resting" })).await;
        assert_eq!(w.row(&seed).await.status, SeedStatus::Alive);
        assert_eq!(w.we_acquire(&holder).await, Some(seed));
    })
    .await;
}

#[tokio::test]
async fn a_dead_seed_keeps_the_lease_it_has_whoever_says_so() {
    with_one(async |mut w| {
        let seed = w.imported(&login("acct-a", "rt-1")).await;
        let holder = Holder::mint_for("ours");
        w.we_acquire(&holder).await.unwrap();
        w.python("mark", json!({ "seed": seed, "status": "dead" })).await;
        assert!(w.row(&seed).await.lease.unwrap().live, "T-068");
        assert!(w.store.leases.release(&seed, &holder).await.unwrap());

        w.python("mark", json!({ "seed": seed, "status": "alive" })).await;
        w.python_acquires("codex-1").await.unwrap();
        w.we_judge(&seed, SeedStatus::Dead, None).await;
        assert!(w.python_renews(&seed, "codex-1").await);
    })
    .await;
}
