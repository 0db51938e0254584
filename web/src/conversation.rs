//! Talking to a session's agent, and answering what it asks.

use actix_web::web::{Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use optio_actors::service::words::Input;
use optio_actors::session::{AnswerApproval, SendTurn};
use serde_json::{Map, Value, json};

use crate::Web;
use crate::body::Fields;
use crate::error::{INTERNAL, Problem};
use crate::lists::list;
use crate::query::{Params, id};
use crate::sessions::idempotency_key;

/// The longest note to an answer, in characters: a reason, not a document.
const NOTE_LIMIT: usize = 2_000;

/// Who answers: whoever is let in is the operator.
const OPERATOR: &str = "operator";

/// `POST /v1/sessions/{id}/turns`
pub(crate) async fn send(
    web: Data<Web>,
    request: HttpRequest,
    path: Path<String>,
    mut fields: Fields,
) -> Result<HttpResponse, Problem> {
    let session = id("session", &path)?;
    let key = idempotency_key(&request)?.map(|key| (key, fields.digest(&request)));
    let input = input(&mut fields)?;
    let mode = fields.optional("mode")?.unwrap_or_default();
    fields.finish()?;
    let service = web.service().clone();
    let sending =
        async move { service.send(&session, SendTurn { input, mode }).await.map_err(Problem::from) };
    let delivered = match key {
        Some((key, digest)) => web.turn_keys().once(key, digest, sending).await?,
        None => sending.await?,
    };
    Ok(HttpResponse::Accepted().json(delivered))
}

fn input(fields: &mut Fields) -> Result<Vec<Input>, Problem> {
    let text = fields.optional::<String>("text")?;
    let parts = fields.optional::<Vec<Map<String, Value>>>("input")?;
    match (text, parts) {
        (Some(text), None) if text.trim().is_empty() => Err(Problem::field("text", "it must not be empty")),
        (Some(text), None) => Ok(vec![Input::Text(text)]),
        (None, Some(parts)) if parts.is_empty() => Err(Problem::field("input", "it must not be empty")),
        (None, Some(parts)) => parts.into_iter().map(part).collect(),
        (None, None) => Err(Problem::field("text", "either text or input must be given")),
        (Some(_), Some(_)) => Err(Problem::field("input", "text and input exclude each other")),
    }
}

/// Takes one part in Codex's own form.
fn part(part: Map<String, Value>) -> Result<Input, Problem> {
    if !part.get("type").is_some_and(Value::is_string) {
        return Err(Problem::field(
            "input",
            "each part must say its type, as {\"type\":\"text\",\"text\":…} does",
        ));
    }
    match serde_json::value::to_raw_value(&part) {
        Ok(raw) => Ok(Input::Raw(raw)),
        Err(problem) => Err(Problem::new(INTERNAL, problem.to_string())),
    }
}

/// `POST /v1/sessions/{id}/interrupt`
pub(crate) async fn interrupt(
    web: Data<Web>,
    path: Path<String>,
    fields: Fields,
) -> Result<HttpResponse, Problem> {
    fields.finish()?;
    web.service().interrupt(&id("session", &path)?).await?;
    Ok(HttpResponse::Accepted().json(json!({})))
}

/// `GET /v1/sessions/{id}/approvals`
pub(crate) async fn approvals(
    web: Data<Web>,
    path: Path<String>,
    params: Params,
) -> Result<HttpResponse, Problem> {
    let approvals = web.service().approvals(&id("session", &path)?).await?;
    list(approvals, params, |approval| approval.id.to_string())
}

/// `POST /v1/sessions/{id}/approvals/{approval}`
pub(crate) async fn answer(
    web: Data<Web>,
    path: Path<(String, String)>,
    mut fields: Fields,
) -> Result<HttpResponse, Problem> {
    let (session, approval) = path.into_inner();
    let session = id("session", &session)?;
    let answer = AnswerApproval {
        approval: id("approval", &approval)?,
        decision: fields.required("decision")?,
        by: OPERATOR.to_owned(),
        note: fields.optional("note")?,
    };
    fields.finish()?;
    if answer.note.as_ref().is_some_and(|note| note.chars().count() > NOTE_LIMIT) {
        return Err(Problem::field("note", format!("it must have at most {NOTE_LIMIT} characters")));
    }
    Ok(HttpResponse::Ok().json(web.service().answer(&session, answer).await?))
}

/// `GET /v1/sessions/{id}/messages`
pub(crate) async fn messages(
    web: Data<Web>,
    path: Path<String>,
    mut params: Params,
) -> Result<HttpResponse, Problem> {
    let page = params.page()?;
    params.finish()?;
    let session = id("session", &path)?;
    Ok(HttpResponse::Ok().json(web.service().messages(&session, page.cursor.as_deref(), page.limit).await?))
}
