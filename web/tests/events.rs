//! Events: framing, resuming, gaps, and what a poller gets.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Frames, Reply, World, progress};
use optio_store::MemoryJournal;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

impl World {
    async fn tell(&self, numbers: std::ops::RangeInclusive<u64>) {
        let stream = self.service_stream().await;
        for n in numbers {
            stream.append(progress(n)).await.unwrap();
        }
        stream.flush().await.unwrap();
    }

    async fn follow(&self, path: &str) -> Frames {
        Frames::of(self.request(Method::GET, path)).await
    }

    async fn newest(&self) -> u64 {
        *self.service_stream().await.newest().borrow()
    }
}

#[actix_web::test]
async fn a_stream_is_framed_as_browsers_read_it_and_data_is_what_was_stored() {
    let world = World::start().await;
    world.tell(1..=3).await;
    let mut frames = world.follow("/v1/events?after=0").await;
    let header = |name: &str| frames.headers[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "text/event-stream");
    assert_eq!(header("cache-control"), "no-cache, no-transform");
    assert_eq!(header("x-accel-buffering"), "no");
    assert_eq!(frames.next().await.unwrap(), "retry: 2000");
    for record in world.journal.records("service") {
        let data = std::str::from_utf8(&record.data).unwrap();
        let frame = format!("event: progress\nid: {}\ndata: {data}", record.seq);
        assert_eq!(frames.next().await.unwrap(), frame);
    }
    world.tell(4..=4).await;
    assert_eq!(frames.id().await, 4);
    world.stop().await;
}

#[actix_web::test]
async fn a_reconnect_goes_on_after_the_last_event_whatever_the_address_says() {
    let world = World::start().await;
    world.tell(1..=600).await;
    let request = world.request(Method::GET, "/v1/events?after=1").header("last-event-id", "300");
    let mut frames = Frames::of(request).await;
    frames.next().await;
    for n in 301..=600 {
        assert_eq!(frames.id().await, n);
    }
    world.stop().await;
}

#[actix_web::test]
async fn the_service_is_followed_from_now_and_a_session_from_its_beginning() {
    let world = World::start().await;
    world.tell(1..=2).await;
    let mut frames = world.follow("/v1/events").await;
    frames.next().await;
    world.tell(3..=3).await;
    assert_eq!(frames.id().await, 3);
    let session = world.session().await;
    let mut frames = world.follow(&format!("/v1/sessions/{session}/events")).await;
    frames.next().await;
    assert!(frames.next().await.unwrap().starts_with("event: session.created\nid: 1\n"));
    world.stop().await;
}

#[actix_web::test]
async fn a_number_that_was_never_given_out_hides_nothing() {
    let world = World::start().await;
    world.tell(1..=2).await;
    let mut frames = world.follow("/v1/events?after=1000").await;
    frames.next().await;
    world.tell(3..=3).await;
    assert_eq!(frames.id().await, 3);
    world.stop().await;
}

#[actix_web::test]
async fn events_that_are_gone_are_named() {
    let world = World::with(MemoryJournal::keeping(3), None).await;
    world.tell(1..=10).await;
    let mut frames = world.follow("/v1/events?after=2").await;
    frames.next().await;
    let gap = frames.next().await.unwrap();
    let data = gap.strip_prefix("event: gap\nid: 7\ndata: ").unwrap_or_else(|| panic!("{gap}"));
    let data: Value = serde_json::from_str(data).unwrap();
    let expected = json!({ "v": 1, "seq": 7, "type": "gap", "from": 3, "to": 7, "reason": "retention" });
    assert_eq!(data, expected);
    for n in 8..=10 {
        assert_eq!(frames.id().await, n);
    }
    let page = world.get("/v1/events?after=2&limit=1").await.json();
    assert_eq!(page["data"][0], expected);
    assert_eq!((&page["data"][1]["seq"], &page["next_cursor"]), (&json!(8), &json!("8")));
    world.stop().await;
}

#[actix_web::test]
async fn a_page_is_the_events_as_stored_and_says_where_to_go_on() {
    let world = World::start().await;
    world.tell(1..=5).await;
    let page = world.get("/v1/events?after=0&limit=2").await;
    assert_eq!(page.header("content-type"), "application/json");
    let page = page.json();
    assert_eq!(page["data"].as_array().unwrap().as_slice(), &world.journal.values("service")[..2]);
    assert_eq!((&page["next_cursor"], &page["newest"]), (&json!("2"), &json!(5)));
    let rest = world.get("/v1/events?cursor=2").await.json();
    assert_eq!(rest["data"].as_array().unwrap().len(), 3);
    assert_eq!(rest["next_cursor"], Value::Null);
    assert_eq!(
        world.get("/v1/events?after=5").await.json(),
        json!({ "data": [], "next_cursor": null, "newest": 5 })
    );
    world.stop().await;
}

#[actix_web::test]
async fn a_long_poll_is_answered_by_the_next_event() {
    let world = World::start().await;
    let began = Instant::now();
    let newest = world.newest().await;
    let poll = Reply::to(world.request(Method::GET, &format!("/v1/events?after={newest}&wait=30")));
    let (page, ()) = tokio::join!(poll, async {
        // It waits: what was not told yet cannot have been answered.
        tokio::task::yield_now().await;
        world.tell(1..=1).await;
    });
    assert_eq!(page.json()["data"][0]["seq"], newest + 1);
    assert!(began.elapsed() < Duration::from_secs(10));
    world.stop().await;
}

#[actix_web::test]
async fn a_long_poll_gives_up_when_its_time_is_over() {
    let world = World::start().await;
    let began = Instant::now();
    let page = world.get("/v1/events?wait=1").await.json();
    assert_eq!(page["data"], json!([]));
    assert!(began.elapsed() >= Duration::from_secs(1));
    world.stop().await;
}

#[actix_web::test]
async fn streams_and_polls_end_when_the_service_goes_down() {
    let world = World::start().await;
    let mut frames = world.follow("/v1/events").await;
    frames.next().await;
    let poll = world.request(Method::GET, "/v1/events?wait=60");
    let began = Instant::now();
    let (page, end) = tokio::join!(Reply::to(poll), async {
        world.shutdown.send_replace(true);
        frames.next().await
    });
    assert_eq!(end, None);
    assert_eq!(page.json()["data"], json!([]));
    assert!(began.elapsed() < Duration::from_secs(5));
    world.stop().await;
}
