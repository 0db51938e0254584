//! Pages of lists that are short enough to be had whole.

use actix_web::HttpResponse;
use optio_actors::service::words::Page;
use serde::Serialize;

use crate::error::Problem;
use crate::query::Params;

/// Answers the page of `all` that the query asks for. A cursor is the key of the last row that was seen.
pub(crate) fn list<T: Serialize>(
    all: Vec<T>,
    mut params: Params,
    key: impl Fn(&T) -> String,
) -> Result<HttpResponse, Problem> {
    let page = params.page()?;
    params.finish()?;
    let from = match &page.cursor {
        None => 0,
        Some(cursor) => {
            let seen = all.iter().position(|row| key(row) == *cursor);
            let rule = "it must be a next_cursor that was answered before, of a row that is still there";
            seen.ok_or_else(|| Problem::field("cursor", rule))? + 1
        }
    };
    let more = all.len() > from + page.limit;
    let data: Vec<T> = all.into_iter().skip(from).take(page.limit).collect();
    let next_cursor = data.last().filter(|_| more).map(key);
    Ok(HttpResponse::Ok().json(Page { data, next_cursor }))
}
