//! Who may ask: a bearer token for tools, a cookie for browsers, and the link that gives a browser its cookie.

mod cookie;
mod login;
mod tickets;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpMessage, HttpRequest};
use optio_actors::terminal::Role;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

pub(crate) use cookie::Cookies;
pub(crate) use login::{login, new_link};
pub(crate) use tickets::Tickets;

use crate::Web;
use crate::edge::{check_origin, only};
use crate::error::{FORBIDDEN, Problem, UNAUTHENTICATED};

/// What a browser says about the page that sends a request; no page can forge it.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What the caller may do, so that a page shows nobody what they cannot do.
const OPTIO_ROLE: HeaderName = HeaderName::from_static("optio-role");

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    /// How they showed that they may.
    pub by: By,
    /// What they may do.
    pub role: Role,
}

/// How a caller showed that it may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// The token: a tool, and an operator.
    Bearer,
    /// A cookie of ours: a browser.
    Cookie,
}

/// What somebody may ask for who only looks on, beside everything that changes nothing: the last words of a path.
const FOR_VIEWERS: [&str; 1] = ["/terminal/ticket"];

/// The token, as its hash: comparing hashes takes the same time whatever is wrong, its length too.
pub(crate) struct Token([u8; 32]);

impl Token {
    pub(crate) fn new(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }

    fn matches(&self, given: &str) -> bool {
        let hash: [u8; 32] = Sha256::digest(given).into();
        // A service that was given no token lets nobody in.
        !given.is_empty() && bool::from(self.0.ct_eq(&hash))
    }
}

/// Wraps everything under `/v1`.
pub(crate) async fn authenticate(
    web: Data<Web>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    match caller(&web, request.request()).and_then(|caller| check_role(caller, request.request())) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            let mut response = next.call(request).await?.map_into_boxed_body();
            let role = match caller.role {
                Role::Operator => HeaderValue::from_static("operator"),
                Role::Viewer => HeaderValue::from_static("viewer"),
            };
            response.headers_mut().insert(OPTIO_ROLE, role);
            Ok(response)
        }
        Err(problem) => Ok(request.error_response(problem)),
    }
}

/// Who sends a request, if they may ask anything at all.
pub(crate) fn caller(web: &Web, request: &HttpRequest) -> Result<Caller, Problem> {
    if request.headers().contains_key(header::AUTHORIZATION) {
        let given = only(request.headers(), &header::AUTHORIZATION).and_then(bearer);
        return match given.is_some_and(|given| web.token().matches(given)) {
            true => Ok(Caller { by: By::Bearer, role: Role::Operator }),
            false => Err(Problem::new(UNAUTHENTICATED, "the bearer token is not this service's")),
        };
    }
    let Some(role) = web.cookies().admit(request) else {
        let how = "send the token as Authorization: Bearer, or open the login link that the service printed";
        return Err(Problem::new(UNAUTHENTICATED, how));
    };
    check_page(web, request)?;
    Ok(Caller { by: By::Cookie, role })
}

/// Refuses a change that somebody asks for who only looks on.
fn check_role(caller: Caller, request: &HttpRequest) -> Result<Caller, Problem> {
    let allowed = caller.role == Role::Operator
        || request.method().is_safe()
        || FOR_VIEWERS.iter().any(|words| request.path().ends_with(words));
    match allowed {
        true => Ok(caller),
        false => Err(Problem::new(FORBIDDEN, "the role \"viewer\" changes nothing; an operator may")),
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Refuses a request that a browser sends with our cookie for a page that is not ours. `SameSite` alone does not see
/// that: another port of this machine is the same site.
fn check_page(web: &Web, request: &HttpRequest) -> Result<(), Problem> {
    let headers = request.headers();
    check_origin(web, headers)?;
    let site = only(headers, &SEC_FETCH_SITE);
    let unproven = !request.method().is_safe() && !headers.contains_key(header::ORIGIN);
    let fits = match site {
        Some("same-origin") => true,
        Some("none") | None => !unproven,
        Some(_) => false,
    };
    match fits {
        true => Ok(()),
        false => Err(Problem::new(
            FORBIDDEN,
            "with a cookie, requests are taken from this service's own page only",
        )),
    }
}
