//! The login link: a browser opens it once and has its cookie.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::web::{Data, ReqData};
use actix_web::{HttpRequest, HttpResponse};
use jiff::{SignedDuration, Timestamp};
use optio_actors::terminal::Role;
use serde_json::json;

use super::{By, Caller};
use crate::Web;
use crate::body::Fields;
use crate::edge::{ForPeople, only};
use crate::error::{FORBIDDEN, Problem, UNAUTHENTICATED};
use crate::query::Params;

/// What somebody reads whose link does not work.
const USED: &str = "This login link was used already, or has run out.\n\
    \n\
    Each link logs in one browser, once. The service prints a new one at each start; whoever has the token can ask \
    for one with POST /v1/login-links.\n";

/// `GET /login?ticket=…`: a good ticket becomes a cookie.
pub(crate) async fn login(
    web: Data<Web>,
    request: HttpRequest,
    mut params: Params,
) -> Result<HttpResponse, Problem> {
    let ticket = params.text("ticket")?.unwrap_or_default();
    if let Some(role) = web.tickets().take(&ticket) {
        return Ok(HttpResponse::SeeOther()
            .insert_header((header::LOCATION, "/"))
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .cookie(web.cookies().bake(role))
            .finish());
    }
    let accept = request.headers().get(header::ACCEPT);
    if !accept.and_then(|accept| accept.to_str().ok()).is_some_and(|accept| accept.contains("text/html")) {
        return Err(Problem::new(UNAUTHENTICATED, "the login link was used already, or has run out"));
    }
    let mut page =
        HttpResponse::build(StatusCode::UNAUTHORIZED).content_type("text/plain; charset=utf-8").body(USED);
    page.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    page.extensions_mut().insert(ForPeople);
    Ok(page)
}

/// `POST /v1/login-links`: another link. Not for a browser: what steals a page's session must not get a longer one.
pub(crate) async fn new_link(
    web: Data<Web>,
    request: HttpRequest,
    caller: ReqData<Caller>,
    mut fields: Fields,
) -> Result<HttpResponse, Problem> {
    let role = fields.optional::<Role>("role")?.unwrap_or(Role::Operator);
    fields.finish()?;
    if caller.by != By::Bearer {
        return Err(Problem::new(FORBIDDEN, "only a caller with the bearer token makes login links"));
    }
    // The edge let this name through, so it is one of ours.
    let host = only(request.headers(), &header::HOST).unwrap_or_default();
    let base = web.public_url().map_or_else(|| format!("http://{host}"), str::to_owned);
    let life = SignedDuration::try_from(web.tickets().life()).unwrap_or(SignedDuration::ZERO);
    let link = json!({ "url": web.login_link_for(role, &base), "role": role, "expires_at": Timestamp::now() + life });
    Ok(HttpResponse::Created().insert_header((header::CACHE_CONTROL, "no-store")).json(link))
}
