//! Seeds: brought, listed, put into pools, checked, judged by hand, removed. Never shown.

use actix_web::HttpResponse;
use actix_web::http::header;
use actix_web::web::{Data, Path};
use optio_actors::service::ImportSeed;
use optio_actors::service::words::SeedStatus;

use crate::Web;
use crate::body::{BodyLimit, Fields};
use crate::error::Problem;
use crate::query::{Params, id};

/// The largest import: a login and a `config.toml` that names many projects.
pub(crate) const IMPORT_LIMIT: BodyLimit = BodyLimit(2 << 20);

/// The longest reason for a status, in characters.
const REASON_LIMIT: usize = 500;

/// `POST /v1/seeds`
pub(crate) async fn import(web: Data<Web>, mut fields: Fields) -> Result<HttpResponse, Problem> {
    let import = ImportSeed {
        auth_json: fields.required("auth_json")?,
        config_toml: fields.optional("config_toml")?,
        pool: fields.optional("pool")?,
        metadata: fields.optional("metadata")?.unwrap_or_default(),
    };
    fields.finish()?;
    let seed = web.service().import_seed(import).await?;
    let place = format!("/v1/seeds/{}", seed.id);
    Ok(HttpResponse::Created().insert_header((header::LOCATION, place)).json(seed))
}

/// `GET /v1/seeds`
pub(crate) async fn find(web: Data<Web>, mut params: Params) -> Result<HttpResponse, Problem> {
    let page = params.page()?;
    let pool = params.text("pool")?;
    params.finish()?;
    Ok(HttpResponse::Ok().json(web.service().seeds(pool.as_deref(), &page).await?))
}

/// `GET /v1/seeds/{id}`
pub(crate) async fn show(web: Data<Web>, path: Path<String>) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(web.service().seed(&id("seed", &path)?).await?))
}

/// `DELETE /v1/seeds/{id}`
pub(crate) async fn delete(web: Data<Web>, path: Path<String>) -> Result<HttpResponse, Problem> {
    web.service().delete_seed(&id("seed", &path)?).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// `POST /v1/seeds/{id}/assign`; without a pool the seed leaves the one it is in.
pub(crate) async fn assign(
    web: Data<Web>,
    path: Path<String>,
    mut fields: Fields,
) -> Result<HttpResponse, Problem> {
    let pool = fields.optional("pool")?;
    fields.finish()?;
    Ok(HttpResponse::Ok().json(web.service().assign_seed(&id("seed", &path)?, pool).await?))
}

/// `POST /v1/seeds/{id}/status`
pub(crate) async fn set_status(
    web: Data<Web>,
    path: Path<String>,
    mut fields: Fields,
) -> Result<HttpResponse, Problem> {
    let status = fields.required::<SeedStatus>("status")?;
    let reason = fields.optional::<String>("reason")?;
    fields.finish()?;
    if reason.as_ref().is_some_and(|reason| reason.chars().count() > REASON_LIMIT) {
        return Err(Problem::field("reason", format!("it must have at most {REASON_LIMIT} characters")));
    }
    Ok(HttpResponse::Ok().json(web.service().set_seed_status(&id("seed", &path)?, status, reason).await?))
}

/// `POST /v1/seeds/{id}/verify`; answered when there is a verdict. One that is in use is refused.
pub(crate) async fn verify(
    web: Data<Web>,
    path: Path<String>,
    fields: Fields,
) -> Result<HttpResponse, Problem> {
    fields.finish()?;
    Ok(HttpResponse::Ok().json(web.service().verify_seed(&id("seed", &path)?).await?))
}
