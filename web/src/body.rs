//! Reading a JSON body: bounded, and strict enough that a mistyped field is named instead of ignored.

use std::pin::Pin;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header;
use actix_web::{FromRequest, HttpRequest};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{
    BAD_JSON, BAD_REQUEST, PAYLOAD_TOO_LARGE, Problem, REQUEST_TIMEOUT, UNSUPPORTED_MEDIA_TYPE,
};

/// The largest body of a route that names no other limit: the longest instructions and messages people write are far
/// below it.
pub(crate) const BODY_LIMIT: usize = 1 << 20;

/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The limit of one route, in bytes, as its `app_data`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimit(pub usize);

/// The members of a JSON body, taken out one by one; what is left in the end is unknown. A body of no bytes has none.
#[derive(Debug)]
pub(crate) struct Fields {
    members: Map<String, Value>,
    bytes: Bytes,
}

impl Fields {
    /// Takes a member. `null` is the same as absent.
    pub(crate) fn optional<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>, Problem> {
        match self.members.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|problem| Problem::field(name, problem.to_string())),
        }
    }

    /// Takes a member that must be there.
    pub(crate) fn required<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<T, Problem> {
        self.optional(name)?.ok_or_else(|| Problem::field(name, "it is missing"))
    }

    /// Refuses what was not taken.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        Problem::unknown(self.members.keys()).map_or(Ok(()), Err)
    }

    /// Gives what was not taken.
    pub(crate) fn rest(self) -> Map<String, Value> {
        self.members
    }

    /// Tells this body from any other one.
    pub(crate) fn digest(&self, request: &HttpRequest) -> String {
        let hash = Sha256::new()
            .chain_update(request.method().as_str())
            .chain_update("\n")
            .chain_update(request.path())
            .chain_update("\n")
            .chain_update(&self.bytes)
            .finalize();
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl FromRequest for Fields {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let limit = request.app_data::<BodyLimit>().map_or(BODY_LIMIT, |limit| limit.0);
        let declared = request.headers().get(header::CONTENT_LENGTH);
        let declared = declared.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let json = is_json(request);
        let payload = payload.take();
        Box::pin(async move {
            if declared.is_some_and(|length| length > limit) {
                return Err(too_large(limit));
            }
            let reading = tokio::time::timeout(BODY_TIME, read(payload, limit)).await;
            let bytes = reading.map_err(|_| {
                Problem::new(
                    REQUEST_TIMEOUT,
                    format!("the body was not there after {} s", BODY_TIME.as_secs()),
                )
            })??;
            if bytes.is_empty() {
                return Ok(Self { members: Map::new(), bytes });
            }
            if !json {
                return Err(Problem::new(UNSUPPORTED_MEDIA_TYPE, "send the body as application/json"));
            }
            match serde_json::from_slice(&bytes) {
                Ok(Value::Object(members)) => Ok(Self { members, bytes }),
                Ok(_) => Err(Problem::new(BAD_JSON, "the body must be a JSON object")),
                Err(problem) => Err(Problem::new(BAD_JSON, problem.to_string())),
            }
        })
    }
}

async fn read(mut payload: Payload, limit: usize) -> Result<Bytes, Problem> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|problem| Problem::new(BAD_REQUEST, problem.to_string()))?;
        if bytes.len() + chunk.len() > limit {
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

fn too_large(limit: usize) -> Problem {
    Problem::new(PAYLOAD_TOO_LARGE, format!("a body of this route has at most {limit} bytes"))
}

/// A page of another origin can send `text/plain` without asking first; `application/json` it cannot.
fn is_json(request: &HttpRequest) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).map(str::trim);
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use actix_web::ResponseError;
    use actix_web::test::TestRequest;
    use futures_util::{Stream, stream};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_given_up() {
        let request =
            TestRequest::post().insert_header((header::CONTENT_TYPE, "application/json")).to_http_request();
        // A byte each ten seconds, for ever.
        let drops = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Some((Ok(Bytes::from_static(b" ")), ()))
        });
        let drops: Pin<Box<dyn Stream<Item = _>>> = Box::pin(drops);
        let mut payload = Payload::Stream { payload: drops };
        let began = Instant::now();
        let problem = Fields::from_request(&request, &mut payload).await.unwrap_err();
        assert_eq!(problem.status_code(), 408);
        assert_eq!(began.elapsed(), BODY_TIME);
    }

    #[tokio::test]
    async fn null_is_the_same_as_absent_and_what_is_left_is_unknown() {
        let request = TestRequest::post().insert_header((header::CONTENT_TYPE, "application/json"));
        let (request, mut payload) = request.set_payload(r#"{"a":null,"b":1,"c":2}"#).to_http_parts();
        let mut fields = Fields::from_request(&request, &mut payload).await.unwrap();
        assert_eq!(fields.optional::<u8>("a").unwrap(), None);
        assert!(fields.required::<u8>("a").is_err());
        assert_eq!(fields.required::<u8>("b").unwrap(), 1);
        assert_eq!(fields.finish().unwrap_err().to_string(), "unknown: c");
    }
}
