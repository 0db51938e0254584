//! Every answer that is not a success: an RFC 9457 problem. One table says what each refusal means in HTTP.

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use optio_actors::SessionError;
use optio_actors::hosts::HostsError;
use optio_actors::service::words::{HostError, StoreError};
use optio_actors::session::phase::Refusal;
use serde::Serialize;

/// The media type of a problem.
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// What kind of refusal a code is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// The name that programs compare.
    pub code: &'static str,
    /// The status it has.
    pub status: StatusCode,
    /// The same sentence for every problem of this kind.
    pub title: &'static str,
    /// Asking again, unchanged, may succeed after this many seconds.
    pub retry_after: Option<u32>,
}

macro_rules! kinds {
    ($($name:ident = $code:literal $status:ident $title:literal $(retry $seconds:literal)?;)*) => {
        $(pub(crate) const $name: &Kind = &Kind {
            code: $code,
            status: StatusCode::$status,
            title: $title,
            retry_after: kinds!(@retry $($seconds)?),
        };)*
        /// Every kind there is; a status of the framework takes the first kind that has it.
        pub(crate) const KINDS: &[&Kind] = &[$($name),*];
    };
    (@retry) => { None };
    (@retry $seconds:literal) => { Some($seconds) };
}

kinds! {
    BAD_REQUEST = "bad_request" BAD_REQUEST "The request cannot be read";
    BAD_JSON = "bad_json" BAD_REQUEST "The body is not JSON";
    UNAUTHENTICATED = "unauthenticated" UNAUTHORIZED "A login is needed";
    FORBIDDEN = "forbidden" FORBIDDEN "This caller may not do this";
    NOT_FOUND = "not_found" NOT_FOUND "There is no such thing";
    METHOD_NOT_ALLOWED = "method_not_allowed" METHOD_NOT_ALLOWED "This route has no such method";
    REQUEST_TIMEOUT = "request_timeout" REQUEST_TIMEOUT "The request came too slowly" retry 1;
    CONFLICT = "conflict" CONFLICT "The present state does not allow it";
    BUSY = "busy" CONFLICT "It is at work";
    STARTING = "busy" CONFLICT "It is still starting" retry 1;
    EXISTS = "exists" CONFLICT "There is one already";
    IDLE = "idle" CONFLICT "Nothing is running";
    NOT_RESUMABLE = "not_resumable" CONFLICT "There is nothing to resume from";
    HOST_KEY_UNKNOWN = "host_key_unknown" CONFLICT "Nobody has vouched for the host's key";
    HOST_KEY_CHANGED = "host_key_changed" CONFLICT "The host shows another key than the known one";
    IDEMPOTENCY_CONFLICT = "idempotency_conflict" CONFLICT "The key belongs to another request";
    PAYLOAD_TOO_LARGE = "payload_too_large" PAYLOAD_TOO_LARGE "The body is too large";
    RANGE = "range" RANGE_NOT_SATISFIABLE "The file has no such part";
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type" UNSUPPORTED_MEDIA_TYPE "The body has the wrong media type";
    BAD_HOST = "bad_host" MISDIRECTED_REQUEST "The service has another name";
    VALIDATION = "validation" UNPROCESSABLE_ENTITY "A value is not acceptable";
    INTERNAL = "internal" INTERNAL_SERVER_ERROR "The service made a mistake";
    DAMAGED = "damaged" INTERNAL_SERVER_ERROR "Stored data is damaged";
    LOCKED = "locked" INTERNAL_SERVER_ERROR "Stored data is encrypted with a key that is not here";
    UPSTREAM_AGENT = "upstream_agent" BAD_GATEWAY "The agent did not take it";
    UPSTREAM_AGENT_AWAY = "upstream_agent" BAD_GATEWAY "The agent cannot be reached now" retry 1;
    HOST_UNAVAILABLE = "host_unavailable" BAD_GATEWAY "The session's host does not answer" retry 2;
    HOST_UNREACHABLE = "host_unreachable" BAD_GATEWAY "The host cannot be reached" retry 5;
    HOST_NAME_UNKNOWN = "host_name_unknown" BAD_GATEWAY "The host's address is not known";
    HOST_LOGIN_REFUSED = "host_login_refused" BAD_GATEWAY "The host does not let the service in";
    HOST_LOGIN_UNSUPPORTED = "host_login_unsupported" BAD_GATEWAY "The service cannot log in to the host";
    HOST_SHELL_UNUSABLE = "host_shell_unusable" BAD_GATEWAY "The host runs no commands";
    HOST_FAILED = "host_failed" BAD_GATEWAY "The host did not do it";
    DRAINING = "draining" SERVICE_UNAVAILABLE "The service is going down" retry 5;
    STORE_UNAVAILABLE = "store_unavailable" SERVICE_UNAVAILABLE "The store does not answer" retry 2;
    AGENT_TIMEOUT = "agent_timeout" GATEWAY_TIMEOUT "There was no answer in time" retry 1;
    HOST_TIMEOUT = "host_timeout" GATEWAY_TIMEOUT "The host did not answer in time" retry 5;
}

/// A field of the request, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct FieldError {
    field: String,
    detail: String,
}

/// A refusal on its way out. The edge writes its body, because only there the request's id is known.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct Problem {
    kind: &'static Kind,
    detail: String,
    errors: Vec<FieldError>,
    host_key: Option<Box<HostKey>>,
}

/// The key that a host shows, for somebody to compare and accept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct HostKey {
    algorithm: String,
    fingerprint: String,
    /// Where another key stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    known_in: Option<String>,
}

impl Problem {
    pub(crate) fn new(kind: &'static Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), errors: Vec::new(), host_key: None }
    }

    /// Names the field that is wrong.
    pub(crate) fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        let error = FieldError { field: field.into(), detail: detail.into() };
        Self { detail: format!("{}: {}", error.field, error.detail), ..Self::fields(vec![error]) }
    }

    /// Names every field that nobody knows.
    pub(crate) fn unknown<'a>(fields: impl Iterator<Item = &'a String>) -> Option<Self> {
        /// A body of a thousand wrong names needs no answer of a thousand lines.
        const SHOWN: usize = 20;
        let unknown = |name: &String| FieldError {
            field: name.chars().take(100).collect(),
            detail: "there is no such field".to_owned(),
        };
        let errors: Vec<_> = fields.take(SHOWN).map(unknown).collect();
        let names: Vec<_> = errors.iter().map(|error| error.field.clone()).collect();
        let detail = format!("unknown: {}", names.join(", "));
        (!errors.is_empty()).then(|| Self { detail, ..Self::fields(errors) })
    }

    fn fields(errors: Vec<FieldError>) -> Self {
        Self { errors, ..Self::new(VALIDATION, "") }
    }

    /// What the framework means by a bare status.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        let fallback = if status.is_server_error() { INTERNAL } else { BAD_REQUEST };
        let kind = KINDS.iter().find(|kind| kind.status == status).copied().unwrap_or(fallback);
        Self::new(kind, kind.title)
    }

    /// Writes the problem's body and headers over whatever the answer had.
    pub(crate) fn write(
        self,
        mut response: ServiceResponse<BoxBody>,
        request_id: &str,
    ) -> ServiceResponse<BoxBody> {
        let instance = response.request().path().to_owned();
        let body = Body {
            r#type: format!("urn:optio-codex:error:{}", self.kind.code),
            title: self.kind.title,
            status: self.kind.status.as_u16(),
            detail: &self.detail,
            instance: &instance,
            code: self.kind.code,
            retryable: self.kind.retry_after.is_some(),
            retry_after_s: self.kind.retry_after,
            request_id,
            errors: &self.errors,
            host_key: self.host_key.as_deref(),
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        *response.response_mut().status_mut() = self.kind.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.kind.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.kind == UNAUTHENTICATED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.map_body(|_, _| body.boxed())
    }
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    instance: &'a str,
    code: &'a str,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_s: Option<u32>,
    request_id: &'a str,
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    errors: &'a [FieldError],
    #[serde(skip_serializing_if = "Option::is_none")]
    host_key: Option<&'a HostKey>,
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.kind.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::new(self.kind.status);
        response.extensions_mut().insert(self.clone());
        response
    }
}

/// What the stable word for a host out of reach means.
pub(crate) fn of_reach(code: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.code == code).copied().unwrap_or(HOST_UNAVAILABLE)
}

impl Problem {
    fn of_host(problem: &HostError) -> Self {
        let kind = match (problem.reach_code(), problem) {
            (Some(code), _) => of_reach(code),
            (None, HostError::TimedOut { .. }) => HOST_TIMEOUT,
            (None, _) => HOST_FAILED,
        };
        let shown = |algorithm: &String, fingerprint: &String, known_in| {
            let (algorithm, fingerprint) = (algorithm.clone(), fingerprint.clone());
            Some(Box::new(HostKey { algorithm, fingerprint, known_in }))
        };
        let host_key = match problem {
            HostError::HostKeyUnknown { algorithm, fingerprint, .. } => shown(algorithm, fingerprint, None),
            HostError::HostKeyChanged { algorithm, fingerprint, known_in, .. } => {
                shown(algorithm, fingerprint, Some(known_in.clone()))
            }
            _ => None,
        };
        Self { host_key, ..Self::new(kind, problem.to_string()) }
    }
}

impl From<&HostsError> for Problem {
    fn from(error: &HostsError) -> Self {
        use HostsError as E;
        let kind = match error {
            E::Wrong(wrong) => return Self::field(&wrong.field, &wrong.why),
            E::Unknown { .. } => NOT_FOUND,
            E::Exists { .. } => EXISTS,
            E::Fixed { .. } => CONFLICT,
            E::InUse { .. } | E::TooMany { .. } => BUSY,
            E::Unusable { .. } => VALIDATION,
            E::File { .. } => INTERNAL,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<SessionError> for Problem {
    fn from(error: SessionError) -> Self {
        use SessionError as E;
        let kind = match &error {
            E::Config(wrong) => return Self::field(&wrong.field, &wrong.rule),
            E::Invalid { field, why } => return Self::field(*field, why),
            E::Store(StoreError::Invalid { field, why }) => return Self::field(*field, why),
            E::NotFound { .. } | E::Store(StoreError::NotFound { .. }) => NOT_FOUND,
            E::Refused { refusal: Refusal::Starting, .. } => STARTING,
            E::Refused { refusal: Refusal::Live(_), .. } | E::Busy { .. } | E::SeedBusy { .. } => BUSY,
            E::Refused { refusal: Refusal::Ended, .. } | E::AlreadyAnswered { .. } => CONFLICT,
            E::Store(StoreError::Conflict { .. }) => CONFLICT,
            E::Idle { .. } => IDLE,
            E::NotResumable { .. } => NOT_RESUMABLE,
            E::KeyReused => IDEMPOTENCY_CONFLICT,
            E::Agent { retryable: true, .. } => UPSTREAM_AGENT_AWAY,
            E::Agent { retryable: false, .. } | E::Login { .. } => UPSTREAM_AGENT,
            E::Host { .. } => HOST_UNAVAILABLE,
            E::HostDown { code, .. } => of_reach(code),
            E::Machine(problem) => return Self::of_host(problem),
            E::Hosts(problem) => return problem.into(),
            E::TooManyLogins { .. } | E::TooManyViewers { .. } => BUSY,
            E::NoTerminal { .. } => CONFLICT,
            E::Draining => DRAINING,
            E::NoAnswer { .. } => AGENT_TIMEOUT,
            E::Store(StoreError::Damaged { .. }) => DAMAGED,
            E::Store(StoreError::Locked { .. }) => LOCKED,
            E::Store(StoreError::TimedOut { .. } | StoreError::Unavailable { .. }) => STORE_UNAVAILABLE,
            _ => INTERNAL,
        };
        Self::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> String {
        "x".to_owned()
    }

    #[test]
    fn each_way_in_which_a_host_is_out_of_reach_has_a_code_of_its_own() {
        let (host, why) = (text, text);
        let problems = [
            HostError::Unreachable { host: host(), why: why() },
            HostError::NameUnknown { host: host(), address: text(), why: why() },
            HostError::HostKeyUnknown {
                host: host(),
                algorithm: text(),
                fingerprint: "SHA256:a".to_owned(),
                accept: text(),
            },
            HostError::HostKeyChanged {
                host: host(),
                algorithm: text(),
                fingerprint: "SHA256:a".to_owned(),
                known_in: text(),
                accept: text(),
            },
            HostError::LoginRefused { host: host(), user: text(), why: why() },
            HostError::LoginUnsupported { host: host(), user: text(), why: why() },
            HostError::ShellUnusable { host: host(), why: why() },
        ];
        for error in problems {
            let code = error.reach_code().unwrap_or_default();
            let problem = Problem::from(SessionError::from(error));
            assert_eq!(problem.kind.code, code);
            let is_key = code.starts_with("host_key");
            assert_eq!(problem.kind.status == StatusCode::CONFLICT, is_key, "{code}");
            assert_eq!(problem.host_key.is_some_and(|key| key.fingerprint == "SHA256:a"), is_key, "{code}");
            // Only time may mend a network; the rest is somebody's to mend.
            assert_eq!(problem.kind.retry_after.is_some(), code == "host_unreachable", "{code}");
        }
    }
}
