//! What every request passes, whatever its route: the name check, the origin check, the request's id, the headers of
//! the answer, the form of every refusal, and one line in the log.

use std::time::Instant;

use actix_web::Error;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::web::Data;
use tracing::{Instrument, info, info_span};

use crate::Web;
use crate::error::{BAD_HOST, FORBIDDEN, Problem};

/// The header that ties an answer to its line in the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is taken from a caller.
const REQUEST_ID_LIMIT: usize = 128;

/// What every answer carries. The page loads from itself and talks to itself, and nobody frames it.
const HEADERS: [(HeaderName, HeaderValue); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'self'; connect-src 'self'; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; \
             form-action 'self'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
];

/// Marks an answer whose text is for a person in front of a browser: it keeps its body whatever its status.
#[derive(Clone, Copy)]
pub(crate) struct ForPeople;

/// Wraps the whole application.
pub(crate) async fn edge(
    web: Data<Web>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let began = Instant::now();
    let id = request_id(request.headers());
    // The path only: a query may carry a ticket.
    let span = info_span!("request", %id, method = %request.method(), path = request.path());
    async {
        let answered = match check(&web, &request) {
            Ok(()) => next.call(request).await?.map_into_boxed_body(),
            Err(problem) => request.error_response(problem),
        };
        let answered = finish(answered, &id);
        info!(status = answered.status().as_u16(), ms = began.elapsed().as_millis() as u64, "answered");
        Ok(answered)
    }
    .instrument(span.clone())
    .await
}

/// Refuses a name that is not ours, before any routing, and a change that another page asks for.
fn check(web: &Web, request: &ServiceRequest) -> Result<(), Problem> {
    let allowed = web.allowed();
    let host = only(request.headers(), &header::HOST);
    let target = request.uri().authority().map(|authority| authority.as_str());
    let ours = |name: &str| allowed.host(name);
    if !host.is_some_and(ours) || !target.is_none_or(ours) {
        return Err(Problem::new(
            BAD_HOST,
            "the Host header names none of this service's addresses; --public-url adds one",
        ));
    }
    if !request.method().is_safe() {
        check_origin(web, request.headers())?;
    }
    Ok(())
}

/// Refuses an `Origin` that is not ours. A request without one passes: a tool sends none.
pub(crate) fn check_origin(web: &Web, headers: &HeaderMap) -> Result<(), Problem> {
    if !headers.contains_key(header::ORIGIN) {
        return Ok(());
    }
    if only(headers, &header::ORIGIN).is_some_and(|origin| web.allowed().origin(origin)) {
        return Ok(());
    }
    Err(Problem::new(FORBIDDEN, "the Origin header names a page that is not this service's own"))
}

/// The value of a header that was sent once.
pub(crate) fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name);
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn request_id(headers: &HeaderMap) -> String {
    let fits = |id: &&str| {
        (1..=REQUEST_ID_LIMIT).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match only(headers, &REQUEST_ID).filter(fits) {
        Some(id) => id.to_owned(),
        None => format!("req_{}", uuid::Uuid::new_v4().simple()),
    }
}

fn finish(mut answered: ServiceResponse<BoxBody>, id: &str) -> ServiceResponse<BoxBody> {
    let status = answered.status();
    let refused = status.is_client_error() || status.is_server_error();
    let problem = answered.response().extensions().get::<Problem>().cloned();
    let for_people = answered.response().extensions().get::<ForPeople>().is_some();
    if refused && !for_people {
        answered = problem.unwrap_or_else(|| Problem::of_status(status)).write(answered, id);
    }
    let headers = answered.headers_mut();
    for (name, value) in HEADERS {
        // A file of an agent has a stricter policy of its own; the page of a terminal is framed by ours.
        let own = [header::CONTENT_SECURITY_POLICY, header::X_FRAME_OPTIONS];
        if own.contains(&name) && headers.contains_key(&name) {
            continue;
        }
        headers.insert(name, value);
    }
    // It came in as a header's value or was minted as letters and digits.
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    answered
}
