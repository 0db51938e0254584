//! Sessions: made, listed, changed, stopped, resumed, forgotten.

use std::collections::BTreeMap;

use actix_web::http::header::{self, HeaderName};
use actix_web::web::{Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use optio_actors::hosts::{HostsError, LOCAL};
use optio_actors::service::words::{Effort, RecordFilter, SessionConfig, SnapshotId};
use optio_actors::session::{ChangeSession, StopMode};
use optio_actors::sessions::{Launch, Resume};
use serde_json::Value;

use crate::Web;
use crate::body::Fields;
use crate::edge::only;
use crate::error::Problem;
use crate::lists::list;
use crate::query::{Params, id};

/// The longest idempotency key.
const KEY_LIMIT: usize = 255;

/// The states a list may be filtered by (API "Objects").
const STATES: [&str; 7] = ["starting", "idle", "working", "waiting", "stopping", "ended", "lost"];

pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// `POST /v1/sessions`
pub(crate) async fn create(
    web: Data<Web>,
    request: HttpRequest,
    mut fields: Fields,
) -> Result<HttpResponse, Problem> {
    let idempotency = idempotency_key(&request)?.map(|key| (key, fields.digest(&request)));
    let name = fields.optional("name")?;
    let labels = fields.optional("labels")?.unwrap_or_default();
    let host = fields.optional::<Value>("host")?;
    let config =
        SessionConfig::from_json(fields.rest()).map_err(|wrong| Problem::field(wrong.field, wrong.rule))?;
    let host = host.map_or(Ok(LOCAL.to_owned()), |host| name_of(&web, host))?;
    let launch = Launch { name, labels, host, config, idempotency };
    let session = web.service().launch(launch).await?;
    let place = format!("/v1/sessions/{}", session.id);
    Ok(HttpResponse::Created().insert_header((header::LOCATION, place)).json(session))
}

/// The name of a session's host, which may be described in the request.
fn name_of(web: &Web, host: Value) -> Result<String, Problem> {
    let described = match host {
        Value::String(name) => return Ok(name),
        Value::Object(mut described) if described.len() == 1 => described.remove("ssh"),
        _ => None,
    };
    let Some(Value::Object(fields)) = described else {
        let rule = "it must be \"local\", the name of a host, or {\"ssh\": {\"host\": …, \"user\": …, \"key_path\": …}}";
        return Err(Problem::field("host", rule));
    };
    web.service().describe_host(fields).map_err(|refused| match refused {
        HostsError::Wrong(wrong) => Problem::field(format!("host.ssh.{}", wrong.field), wrong.why),
        refused => Problem::from(&refused),
    })
}

/// The caller's name for a request that must not be done twice.
pub(crate) fn idempotency_key(request: &HttpRequest) -> Result<Option<String>, Problem> {
    if !request.headers().contains_key(IDEMPOTENCY_KEY) {
        return Ok(None);
    }
    let fits =
        |key: &&str| (1..=KEY_LIMIT).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    let key = only(request.headers(), &IDEMPOTENCY_KEY).filter(fits);
    let rule = || format!("it must be 1 to {KEY_LIMIT} visible ASCII characters, given once");
    key.map(|key| Some(key.to_owned())).ok_or_else(|| Problem::field("Idempotency-Key", rule()))
}

/// `GET /v1/sessions`
pub(crate) async fn find(web: Data<Web>, mut params: Params) -> Result<HttpResponse, Problem> {
    let page = params.page()?;
    let filter = filter(&mut params)?;
    params.finish()?;
    Ok(HttpResponse::Ok().json(web.service().sessions(&filter, &page).await?))
}

fn filter(params: &mut Params) -> Result<RecordFilter, Problem> {
    let states: Vec<String> =
        params.all("state").iter().flat_map(|states| states.split(',')).map(str::to_owned).collect();
    if states.iter().any(|state| !STATES.contains(&state.as_str())) {
        return Err(Problem::field("state", format!("it must be one of {}", STATES.join(", "))));
    }
    let label = params.text("label")?.map(|label| match label.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (label, None),
    });
    Ok(RecordFilter {
        states,
        host: params.text("host")?,
        seed: params.parsed("seed", "it must be a seed's id")?,
        label,
        q: params.text("q")?,
    })
}

/// `GET /v1/sessions/{id}`
pub(crate) async fn show(web: Data<Web>, path: Path<String>) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(web.service().session(&id("session", &path)?).await?))
}

/// `PATCH /v1/sessions/{id}`
pub(crate) async fn change(
    web: Data<Web>,
    path: Path<String>,
    mut fields: Fields,
) -> Result<HttpResponse, Problem> {
    let change = ChangeSession {
        name: fields.optional("name")?,
        labels: fields.optional::<BTreeMap<String, String>>("labels")?,
        model: fields.optional("model")?,
        effort: fields.optional("effort")?,
    };
    fields.finish()?;
    if change.model.as_ref().is_some_and(String::is_empty) {
        return Err(Problem::field("model", "it must not be empty"));
    }
    if change.effort.as_ref().is_some_and(|effort| Effort::from_word(effort).is_none()) {
        let words: Vec<_> = Effort::ALL.iter().map(|effort| effort.as_str()).collect();
        return Err(Problem::field("effort", format!("it must be one of {}", words.join(", "))));
    }
    Ok(HttpResponse::Ok().json(web.service().change(&id("session", &path)?, change).await?))
}

/// `DELETE /v1/sessions/{id}`
pub(crate) async fn delete(web: Data<Web>, path: Path<String>) -> Result<HttpResponse, Problem> {
    web.service().delete(&id("session", &path)?).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// `POST /v1/sessions/{id}/stop`
pub(crate) async fn stop(
    web: Data<Web>,
    path: Path<String>,
    mut fields: Fields,
) -> Result<HttpResponse, Problem> {
    let mode = fields.optional::<StopMode>("mode")?.unwrap_or_default();
    fields.finish()?;
    Ok(HttpResponse::Accepted().json(web.service().stop(&id("session", &path)?, mode).await?))
}

/// `POST /v1/sessions/{id}/resume`
pub(crate) async fn resume(
    web: Data<Web>,
    path: Path<String>,
    mut fields: Fields,
) -> Result<HttpResponse, Problem> {
    let snapshot = fields.optional::<SnapshotId>("snapshot")?;
    fields.finish()?;
    let resume = Resume { session: id("session", &path)?, snapshot };
    Ok(HttpResponse::Accepted().json(web.service().resume(resume).await?))
}

/// `GET /v1/sessions/{id}/actors`
pub(crate) async fn actors(
    web: Data<Web>,
    path: Path<String>,
    params: Params,
) -> Result<HttpResponse, Problem> {
    let tree = web.service().actors(&id("session", &path)?).await?;
    list(tree, params, |child| child.child.name().to_owned())
}

/// `GET /v1/sessions/{id}/snapshots`
pub(crate) async fn snapshots(
    web: Data<Web>,
    path: Path<String>,
    params: Params,
) -> Result<HttpResponse, Problem> {
    let snapshots = web.service().snapshots(&id("session", &path)?).await?;
    list(snapshots, params, |snapshot| snapshot.id.to_string())
}
