//! Talk: the HTTP API, the event streams and the browser page.
//!
//! Handlers check, convert, ask [`optio_actors::Service`] and map; they decide nothing.

use std::sync::Arc;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::web::ServiceConfig;
use actix_web::{App, Error, HttpResponse};
use optio_actors::Service;
use tokio::sync::watch;

/// What the HTTP side has to be told.
#[derive(Clone)]
pub struct WebOptions {
    /// The bearer token; browsers get their cookie by a login link instead.
    pub token: String,
    /// Values of `Host` that are answered, `name` or `name:port`; see [`hosts_of`].
    pub allowed_hosts: Vec<String>,
    /// Where browsers find the service, when that is not where it listens: `https://codex.example.org`.
    pub public_url: Option<String>,
}

/// The HTTP side of one service. Clones share everything.
#[derive(Clone)]
pub struct Web(Arc<Inner>);

struct Inner {
    service: Service,
    #[allow(dead_code, reason = "the next commit reads it")]
    options: WebOptions,
    #[allow(dead_code, reason = "the next commit reads it")]
    shutdown: watch::Receiver<bool>,
}

impl Web {
    /// Puts HTTP before `service`. Once `shutdown` is true (or its sender is gone) event streams end and `/readyz`
    /// answers 503.
    pub fn new(service: Service, options: WebOptions, shutdown: watch::Receiver<bool>) -> Self {
        Self(Arc::new(Inner { service, options, shutdown }))
    }

    /// Mints a link that logs one browser in, once. `base` is where the browser finds the service, without a slash at
    /// the end.
    pub fn login_link(&self, base: &str) -> String {
        format!("{base}/login?ticket={}", uuid::Uuid::new_v4().simple())
    }
}

/// The values of `Host` that name a listener: its own address, and every loopback name if it is (or includes) loopback.
pub fn hosts_of(address: std::net::SocketAddr) -> Vec<String> {
    let mut hosts = vec![address.to_string()];
    if address.ip().is_loopback() || address.ip().is_unspecified() {
        hosts.extend(["127.0.0.1", "localhost", "[::1]"].map(|name| format!("{name}:{}", address.port())));
    }
    hosts
}

/// Mounts everything: `App::new().configure(optio_web::configure(web))`.
pub fn configure(web: Web) -> impl FnOnce(&mut ServiceConfig) + Clone {
    move |config| {
        config.app_data(actix_web::web::Data::new(web)).route(
            "/healthz",
            actix_web::web::get().to(|web: actix_web::web::Data<Web>| async move {
                let _ = &web.0.service;
                HttpResponse::Ok().finish()
            }),
        );
    }
}

/// The whole application, for `HttpServer::new(move || optio_web::app(web.clone()))`.
pub fn app(
    web: Web,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<impl MessageBody>,
        Error = Error,
        InitError = (),
    >,
> {
    App::new().configure(configure(web))
}
