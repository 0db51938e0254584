//! Events as a page of JSON, for those who poll.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header;
use bytes::{BufMut, BytesMut};
use optio_actors::SessionError;
use optio_actors::service::words::{JournalStream, Slice};
use tokio::sync::watch;
use tokio::time::Instant;

use super::feed::gap_data;
use crate::error::Problem;

/// Bytes of one page, unless one event alone has more.
const PAGE_BYTES: usize = 4 << 20;

/// Reads the events after `after`, and waits for the first one if there is none.
pub(super) async fn read(
    stream: &dyn JournalStream,
    after: u64,
    limit: usize,
    wait: Duration,
    mut shutdown: watch::Receiver<bool>,
) -> Result<HttpResponse, Problem> {
    let until = Instant::now() + wait;
    let mut newest = stream.newest();
    loop {
        // Seen before it is read: what comes during the read ends the wait after it.
        newest.borrow_and_update();
        let slice = stream.read(after, limit, PAGE_BYTES).await.map_err(SessionError::from)?;
        let found = slice.gap.is_some() || !slice.records.is_empty();
        if found || *shutdown.borrow() || Instant::now() >= until {
            return Ok(page(&slice));
        }
        tokio::select! {
            changed = newest.changed() => if changed.is_err() { return Ok(page(&slice)) },
            _ = shutdown.wait_for(|down| *down) => return Ok(page(&slice)),
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

/// Writes the page around events that are JSON already. `newest` tells where to go on from an empty one.
fn page(slice: &Slice) -> HttpResponse {
    let size: usize = slice.records.iter().map(|record| record.data.len() + 1).sum();
    let mut body = BytesMut::with_capacity(size + 256);
    body.put_slice(br#"{"data":["#);
    let gap = slice.gap.as_ref().map(gap_data);
    let gap = gap.as_deref().map(str::as_bytes);
    let events = slice.records.iter().map(|record| record.data.as_ref());
    for (place, event) in gap.into_iter().chain(events).enumerate() {
        if place > 0 {
            body.put_u8(b',');
        }
        body.put_slice(event);
    }
    let last = slice.records.last().map(|record| record.seq).or(slice.gap.as_ref().map(|gap| gap.to));
    let next =
        last.filter(|last| *last < slice.newest).map_or("null".to_owned(), |last| format!("\"{last}\""));
    body.put_slice(format!(r#"],"next_cursor":{next},"newest":{}}}"#, slice.newest).as_bytes());
    HttpResponse::Ok()
        .content_type("application/json")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .body(body.freeze())
}
