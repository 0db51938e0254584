//! The service as a whole: whether it lives, whether it takes work, and breaking it on purpose.

use actix_web::HttpResponse;
use actix_web::web::{Data, Path};
use optio_actors::faults::FaultKind;
use serde_json::json;

use crate::Web;
use crate::body::Fields;
use crate::error::{DRAINING, Problem};
use crate::query::id;

/// `GET /healthz`: the process answers.
pub(crate) async fn health() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "status": "ok" }))
}

/// `GET /readyz`: the service takes work. With its store or its disk in trouble it still does, and says so: sessions go
/// on, and a service that is taken out of rotation for it could not even be stopped.
pub(crate) async fn ready(web: Data<Web>) -> Result<HttpResponse, Problem> {
    if web.is_going_down() || web.service().is_draining().await {
        return Err(Problem::new(DRAINING, "the service is draining"));
    }
    let problems = web.service().troubles();
    let status = if problems.is_empty() { "ready" } else { "degraded" };
    Ok(HttpResponse::Ok().json(json!({ "status": status, "problems": problems })))
}

/// `POST /v1/sessions/{id}/faults`: refused unless the service was started with `--enable-faults`.
pub(crate) async fn arm_fault(
    web: Data<Web>,
    path: Path<String>,
    mut fields: Fields,
) -> Result<HttpResponse, Problem> {
    let session = id("session", &path)?;
    let actor = fields.required("actor")?;
    let step = fields.required::<String>("step")?;
    let kind = fields.required::<String>("kind")?;
    let ms = fields.optional::<u64>("ms")?;
    let times = fields.optional("times")?.unwrap_or(1);
    fields.finish()?;
    let kind = match (kind.as_str(), ms) {
        ("panic", None) => FaultKind::Panic,
        ("error", None) => FaultKind::Error,
        ("hang", None) => FaultKind::Hang,
        ("delay", Some(ms)) => FaultKind::Delay { ms },
        ("delay", None) => return Err(Problem::field("ms", "a delay needs its milliseconds")),
        ("panic" | "error" | "hang", Some(_)) => return Err(Problem::field("ms", "only a delay has it")),
        _ => return Err(Problem::field("kind", "it must be panic, error, hang or delay")),
    };
    web.service().arm_fault(&session, actor, &step, kind, times).await?;
    Ok(HttpResponse::Accepted().json(json!({})))
}
