//! The browser page, as it was built into the program.

use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse};
use rust_embed::{EmbeddedFile, RustEmbed};

use crate::error::{METHOD_NOT_ALLOWED, NOT_FOUND, Problem};

/// What `build.rs` made of `web/ui`; empty where it could not.
#[derive(RustEmbed)]
#[folder = "$OUT_DIR/ui"]
struct Ui;

/// What stands in for a page that was not built.
const NOT_BUILT: &str = "The page was not built into this program: there was no npm, or it failed (the build's \
    warnings say which).\n\n\
    The API works, and so does the command line. To have the page, install Node.js 20.19 or later and build again.\n";

/// Answers whatever no route has: a file of the page, or nothing.
pub(crate) async fn serve(request: HttpRequest) -> Result<HttpResponse, Problem> {
    let name = match request.path() {
        "/" => "index.html",
        path => path.trim_start_matches('/'),
    };
    let file = Ui::get(name);
    if file.is_none() && name != "index.html" {
        return no_such_route(request).await;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Problem::new(METHOD_NOT_ALLOWED, "a file of the page can only be read"));
    }
    Ok(match file {
        Some(file) => answer(&request, name, file),
        None => HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(NOT_BUILT),
    })
}

/// What a page may do that our own main page shows in a frame.
const FRAMED: &str = "default-src 'self'; connect-src 'self'; object-src 'none'; frame-ancestors 'self'; \
    base-uri 'none'; form-action 'none'";

/// The page of a terminal, wherever it is served.
pub(crate) fn of_terminal(request: &HttpRequest) -> HttpResponse {
    const NAME: &str = "terminal.html";
    let mut response = match Ui::get(NAME) {
        Some(file) => answer(request, NAME, file),
        None => HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(NOT_BUILT),
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(FRAMED));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN"));
    response
}

/// Refuses an address that nothing is at.
pub(crate) async fn no_such_route(_: HttpRequest) -> Result<HttpResponse, Problem> {
    Err(Problem::new(NOT_FOUND, "there is no such route"))
}

fn answer(request: &HttpRequest, name: &str, file: EmbeddedFile) -> HttpResponse {
    let hash = file.metadata.sha256_hash();
    let tag = format!("\"{}\"", hash[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    // The bundler puts a hash into the names of scripts and styles; everything else keeps its name when it changes.
    let hashed = name.starts_with("assets/") && (name.ends_with(".js") || name.ends_with(".css"));
    let cache = if hashed { "public, max-age=31536000, immutable" } else { "no-cache" };
    let known = request.headers().get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    let known =
        known.is_some_and(|tags| tags.split(',').any(|known| known.trim().trim_start_matches("W/") == tag));
    let status = if known { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let mut response = HttpResponse::build(status);
    response.insert_header((header::CACHE_CONTROL, HeaderValue::from_static(cache)));
    response.insert_header((header::ETAG, tag));
    match known {
        true => response.finish(),
        false => response.content_type(kind_of(&file)).body(file.data.into_owned()),
    }
}

fn kind_of(file: &EmbeddedFile) -> String {
    let kind = file.metadata.mimetype();
    match kind.starts_with("text/") {
        true => format!("{kind}; charset=utf-8"),
        false => kind.to_owned(),
    }
}
