//! Hosts: listed, added, taken away, looked at; their keys accepted, and what was left on them removed.

use actix_web::HttpResponse;
use actix_web::http::header;
use actix_web::web::{Data, Path};
use serde_json::json;

use crate::Web;
use crate::body::Fields;
use crate::error::Problem;
use crate::lists::list;
use crate::query::Params;

/// `GET /v1/hosts`
pub(crate) async fn all(web: Data<Web>, params: Params) -> Result<HttpResponse, Problem> {
    list(web.service().hosts().await?, params, |host| host.name.clone())
}

/// `POST /v1/hosts`
pub(crate) async fn add(web: Data<Web>, mut fields: Fields) -> Result<HttpResponse, Problem> {
    let name = fields.required::<String>("name")?;
    let host = web.service().add_host(&name, fields.rest()).await?;
    let place = format!("/v1/hosts/{name}");
    Ok(HttpResponse::Created().insert_header((header::LOCATION, place)).json(host))
}

/// `GET /v1/hosts/{name}`
pub(crate) async fn show(web: Data<Web>, name: Path<String>) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(web.service().host(&name).await?))
}

/// `DELETE /v1/hosts/{name}`
pub(crate) async fn remove(web: Data<Web>, name: Path<String>) -> Result<HttpResponse, Problem> {
    web.service().remove_host(&name).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// `POST /v1/hosts/{name}/probe`
pub(crate) async fn probe(
    web: Data<Web>,
    name: Path<String>,
    fields: Fields,
) -> Result<HttpResponse, Problem> {
    fields.finish()?;
    Ok(HttpResponse::Ok().json(web.service().probe_host(&name).await?))
}

/// `POST /v1/hosts/{name}/reap`
pub(crate) async fn reap(
    web: Data<Web>,
    name: Path<String>,
    mut fields: Fields,
) -> Result<HttpResponse, Problem> {
    let tasks = fields.required("tasks")?;
    fields.finish()?;
    let data = web.service().reap(&name, tasks).await?;
    Ok(HttpResponse::Ok().json(json!({ "data": data })))
}

/// `POST /v1/hosts/{name}/host-key`
pub(crate) async fn accept_key(
    web: Data<Web>,
    name: Path<String>,
    mut fields: Fields,
) -> Result<HttpResponse, Problem> {
    let fingerprint = fields.required::<String>("fingerprint")?;
    fields.finish()?;
    Ok(HttpResponse::Ok().json(web.service().accept_host_key(&name, &fingerprint).await?))
}
