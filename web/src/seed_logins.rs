//! New logins by a code: begun, followed, given up. The code is in the answers, for whoever asked, and nowhere else.

use actix_web::HttpResponse;
use actix_web::http::header;
use actix_web::web::{Data, Path};

use crate::Web;
use crate::body::Fields;
use crate::error::Problem;
use crate::query::id;

/// `POST /v1/seeds/login`
pub(crate) async fn start(web: Data<Web>, mut fields: Fields) -> Result<HttpResponse, Problem> {
    let pool = fields.optional("pool")?;
    let metadata = fields.optional("metadata")?.unwrap_or_default();
    fields.finish()?;
    let login = web.service().start_seed_login(pool, metadata).await?;
    let place = format!("/v1/seeds/login/{}", login.id);
    Ok(HttpResponse::Accepted().insert_header((header::LOCATION, place)).json(login))
}

/// `GET /v1/seeds/login/{id}`
pub(crate) async fn show(web: Data<Web>, path: Path<String>) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(web.service().seed_login(&id("login", &path)?).await?))
}

/// `DELETE /v1/seeds/login/{id}`; answers how it ended, which may be as a seed.
pub(crate) async fn cancel(web: Data<Web>, path: Path<String>) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(web.service().cancel_seed_login(&id("login", &path)?).await?))
}
