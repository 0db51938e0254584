use std::time::Duration;

use super::*;
use crate::{Clock, Inserted, PageRequest, RECORD_LIMIT, RecordFilter, RecordRow, SessionId};

fn record(h: &Harness, name: &str) -> RecordRow {
    // Later than every earlier one, by a time finer than a millisecond.
    h.clock.advance(Duration::from_nanos(1_000_001));
    RecordRow {
        id: SessionId::mint(),
        rev: 1,
        finished: false,
        state: "working".into(),
        host: "local".into(),
        seed: Some(SeedId::mint()),
        name: name.into(),
        labels: [("team".into(), "a".into())].into(),
        created_at: h.clock.now(),
        body: Bytes::from_static(b"{\"env\":\"secret\"}"),
    }
}

async fn insert(h: &Harness, row: &RecordRow) {
    assert_eq!(h.store.records.insert(row.clone(), None).await.unwrap(), Inserted::New);
}

pub async fn a_record_comes_back_as_it_was_given(h: Harness) {
    let row = record(&h, "one");
    insert(&h, &row).await;
    assert_eq!(h.store.records.get(&row.id).await.unwrap(), Some(row.clone()));
    assert_eq!(h.store.records.get(&SessionId::mint()).await.unwrap(), None);
    let twice = h.store.records.insert(row, None).await;
    assert!(matches!(twice, Err(StoreError::Conflict { .. })), "{twice:?}");
}

pub async fn an_update_names_the_revision_it_follows(h: Harness) {
    let mut row = record(&h, "one");
    insert(&h, &row).await;
    row.state = "idle".into();
    row.finished = true;
    row.body = Bytes::from_static(b"other");
    assert_eq!(h.store.records.update(row.clone()).await.unwrap(), 2);
    let stale = h.store.records.update(row.clone()).await;
    assert!(matches!(stale, Err(StoreError::Conflict { .. })), "{stale:?}");
    row.rev = 2;
    assert_eq!(h.store.records.get(&row.id).await.unwrap(), Some(row));
    let absent = h.store.records.update(record(&h, "absent")).await;
    assert!(matches!(absent, Err(StoreError::NotFound { .. })), "{absent:?}");
}

pub async fn one_request_makes_one_record(h: Harness) {
    let (first, second) = (record(&h, "one"), record(&h, "two"));
    let key = |digest: &str| Some(("key".to_owned(), digest.to_owned()));
    assert_eq!(h.store.records.insert(first.clone(), key("d1")).await.unwrap(), Inserted::New);
    let same = h.store.records.insert(second.clone(), key("d1")).await.unwrap();
    assert_eq!(same, Inserted::Same(first.id));
    assert_eq!(h.store.records.insert(second.clone(), key("d2")).await.unwrap(), Inserted::KeyReused);
    assert_eq!(h.store.records.get(&second.id).await.unwrap(), None);
}

pub async fn an_idempotency_key_is_forgotten_after_a_day(h: Harness) {
    let day = Duration::from_secs(24 * 60 * 60);
    let key = || Some(("key".to_owned(), "d".to_owned()));
    let first = record(&h, "one");
    h.store.records.insert(first.clone(), key()).await.unwrap();
    h.clock.advance(day - Duration::from_secs(1));
    let same = h.store.records.insert(record(&h, "two"), key()).await.unwrap();
    assert_eq!(same, Inserted::Same(first.id));
    h.clock.advance(Duration::from_secs(2));
    assert_eq!(h.store.records.insert(record(&h, "three"), key()).await.unwrap(), Inserted::New);
}

pub async fn each_filter_filters(h: Harness) {
    let odd = RecordRow {
        state: "failed".into(),
        host: "remote".into(),
        labels: [("team".into(), "b".into()), ("od\"d.$key".into(), "x".into())].into(),
        ..record(&h, "ÄRGER 100%_x")
    };
    let plain = record(&h, "plain");
    insert(&h, &odd).await;
    insert(&h, &plain).await;
    let label = |key: &str, value: Option<&str>| RecordFilter {
        label: Some((key.into(), value.map(Into::into))),
        ..Default::default()
    };
    let q = |q: &str| RecordFilter { q: Some(q.into()), ..Default::default() };
    let states = |states: &[&str]| RecordFilter {
        states: states.iter().map(|s| (*s).to_owned()).collect(),
        ..Default::default()
    };
    let both = RecordFilter { q: Some("plain".into()), ..states(&["failed"]) };
    let cases: Vec<(RecordFilter, Vec<&RecordRow>)> = vec![
        (RecordFilter::default(), vec![&plain, &odd]),
        (states(&["failed"]), vec![&odd]),
        (states(&["failed", "working"]), vec![&plain, &odd]),
        (states(&["idle"]), vec![]),
        (RecordFilter { host: Some("remote".into()), ..Default::default() }, vec![&odd]),
        (RecordFilter { seed: plain.seed.clone(), ..Default::default() }, vec![&plain]),
        (label("team", None), vec![&plain, &odd]),
        (label("team", Some("b")), vec![&odd]),
        (label("od\"d.$key", Some("x")), vec![&odd]),
        (label("nothing", None), vec![]),
        (q("ärger"), vec![&odd]),
        (q("0%_X"), vec![&odd]),
        (q("%"), vec![&odd]),
        (both, vec![]),
    ];
    for (filter, expected) in cases {
        let page = h.store.records.list(&filter, &PageRequest::default()).await.unwrap();
        assert_eq!(page.data.iter().collect::<Vec<_>>(), expected, "{filter:?}");
    }
}

pub async fn records_are_listed_page_by_page_newest_first(h: Harness) {
    let mut rows = Vec::new();
    for i in 0..7 {
        let mut row = record(&h, &i.to_string());
        if i % 2 == 1 {
            // Two at one time: the id decides.
            row.created_at = h.clock.now() - Duration::from_nanos(1_000_001);
        }
        insert(&h, &row).await;
        rows.push(row);
    }
    rows.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
    let mut seen = Vec::new();
    let mut request = PageRequest { cursor: None, limit: 2 };
    loop {
        let page = h.store.records.list(&RecordFilter::default(), &request).await.unwrap();
        seen.extend(page.data);
        request.cursor = page.next_cursor;
        if request.cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, rows);
    let exactly =
        h.store.records.list(&RecordFilter::default(), &PageRequest { cursor: None, limit: 7 }).await;
    assert_eq!(exactly.unwrap().next_cursor, None);
}

pub async fn a_made_up_cursor_is_refused(h: Harness) {
    for cursor in ["", "x", "~", "x~y"] {
        let request = PageRequest { cursor: Some(cursor.into()), limit: 1 };
        let refused = h.store.records.list(&RecordFilter::default(), &request).await;
        assert!(matches!(refused, Err(StoreError::Invalid { field: "cursor", .. })), "{cursor:?}");
    }
}

pub async fn unfinished_records_are_oldest_first(h: Harness) {
    let (a, mut b, c) = (record(&h, "a"), record(&h, "b"), record(&h, "c"));
    for row in [&c, &b, &a] {
        insert(&h, row).await;
    }
    b.finished = true;
    h.store.records.update(b).await.unwrap();
    assert_eq!(h.store.records.unfinished().await.unwrap(), [a, c]);
}

pub async fn an_absent_record_is_deleted_without_an_error(h: Harness) {
    let row = record(&h, "a");
    insert(&h, &row).await;
    h.store.records.delete(&row.id).await.unwrap();
    assert_eq!(h.store.records.get(&row.id).await.unwrap(), None);
    h.store.records.delete(&row.id).await.unwrap();
}

pub async fn a_body_over_the_limit_is_refused(h: Harness) {
    let row = RecordRow { body: Bytes::from(vec![0; RECORD_LIMIT + 1]), ..record(&h, "big") };
    assert!(matches!(h.store.records.insert(row, None).await, Err(StoreError::Invalid { .. })));
}

pub async fn a_record_that_cannot_be_read_hides_no_other(h: Harness) {
    let rows = ["oldest", "damaged", "newest"].map(|name| record(&h, name));
    for row in &rows {
        insert(&h, row).await;
    }
    let [oldest, damaged, newest] = rows;
    (h.damage_record)(damaged.id.clone()).await;
    let read = h.store.records.get(&damaged.id).await;
    assert!(matches!(read, Err(StoreError::Damaged { .. })), "{read:?}");
    let filter = RecordFilter::default();
    let all = h.store.records.list(&filter, &PageRequest::default()).await.unwrap();
    assert_eq!((all.data, all.next_cursor), (vec![newest.clone(), oldest.clone()], None));
    // Page by page: the one it is on is shorter by it and not the last.
    let (mut cursor, mut pages) = (None, Vec::new());
    loop {
        let page = h.store.records.list(&filter, &PageRequest { cursor, limit: 1 }).await.unwrap();
        pages.push(page.data);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(pages, [vec![newest], vec![], vec![oldest]]);
}
