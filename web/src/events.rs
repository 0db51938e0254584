//! Events for viewers: a stream of frames, or pages of JSON. Both read the journal only (DESIGN §9).

mod feed;
mod page;

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::web::{Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use optio_actors::service::words::JournalStream;

use crate::Web;
use crate::edge::only;
use crate::error::Problem;
use crate::query::{Params, id};
use feed::Feed;

const EVENT_STREAM: &str = "text/event-stream";

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The longest that a request for a page may wait for its first event.
const WAIT_LIMIT: u64 = 60;

/// Where a viewer that names no place begins.
#[derive(Clone, Copy)]
enum Start {
    /// With the first event: a session's story.
    Beginning,
    /// With the next event: a list was just read.
    Now,
}

/// `GET /v1/sessions/{id}/events`
pub(crate) async fn of_session(
    web: Data<Web>,
    path: Path<String>,
    request: HttpRequest,
    params: Params,
) -> Result<HttpResponse, Problem> {
    let stream = web.service().events(&id("session", &path)?).await?;
    answer(&web, stream, Start::Beginning, &request, params).await
}

/// `GET /v1/events`
pub(crate) async fn of_service(
    web: Data<Web>,
    request: HttpRequest,
    params: Params,
) -> Result<HttpResponse, Problem> {
    answer(&web, web.service().service_events(), Start::Now, &request, params).await
}

async fn answer(
    web: &Web,
    stream: Arc<dyn JournalStream>,
    start: Start,
    request: &HttpRequest,
    mut params: Params,
) -> Result<HttpResponse, Problem> {
    let newest = *stream.newest().borrow();
    let after = match (after(request.headers(), &mut params)?, start) {
        // A number that was never given out yet would hide the events that will have it.
        (Some(after), _) => after.min(newest),
        (None, Start::Beginning) => 0,
        (None, Start::Now) => newest,
    };
    let limit = params.limit()?;
    let wait = params.parsed::<u64>("wait", "it must be a number of seconds")?.unwrap_or(0);
    params.finish()?;
    if wait > WAIT_LIMIT {
        return Err(Problem::field("wait", format!("it must be at most {WAIT_LIMIT} seconds")));
    }
    if wants_stream(request.headers()) {
        let body = Feed::new(stream, after, web.shutdown()).into_body();
        return Ok(HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, EVENT_STREAM))
            .insert_header((header::CACHE_CONTROL, "no-cache, no-transform"))
            .insert_header((HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")))
            .streaming(body));
    }
    page::read(stream.as_ref(), after, limit, Duration::from_secs(wait), web.shutdown()).await
}

/// The last event the viewer has. The header wins: a browser that reconnects sends it with the address it began with.
fn after(headers: &HeaderMap, params: &mut Params) -> Result<Option<u64>, Problem> {
    let rule = "it must be the number of an event";
    let after = params.parsed("after", rule)?;
    let cursor = params.parsed("cursor", rule)?;
    let header = match only(headers, &LAST_EVENT_ID).filter(|id| !id.is_empty()) {
        Some(id) => Some(id.parse().map_err(|_| Problem::field("Last-Event-ID", rule))?),
        None => None,
    };
    Ok(header.or(cursor).or(after))
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).filter_map(|accept| accept.to_str().ok());
    let mut kinds = accepted.flat_map(|accept| accept.split(','));
    kinds
        .any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(EVENT_STREAM)))
}
