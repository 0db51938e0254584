//! Talk: the HTTP API, the event streams and the browser page.
//!
//! ```text
//! edge.rs      every request: name, origin, id, headers, the form of refusals, the log
//! └─ auth.rs   everything under /v1: token or cookie
//!    ├─ terminal.rs  its socket alone is opened by a ticket too
//!    └─ sessions.rs  conversation.rs  events.rs  files.rs  hosts.rs  seeds.rs  seed_logins.rs  operation.rs
//! ```
//!
//! Handlers check, convert, ask [`optio_actors::Service`] and map; they decide nothing. [`configure`] is the table of
//! routes, `error.rs` the one table of what a refusal means in HTTP.

mod auth;
mod body;
mod conversation;
mod edge;
mod error;
mod events;
mod files;
mod hosts;
mod lists;
mod operation;
mod origin;
mod page;
mod query;
mod seed_logins;
mod seeds;
mod sessions;
mod terminal;
mod turn_keys;

use std::sync::Arc;
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::{HttpServiceFactory, ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::middleware::from_fn;
use actix_web::web::{self, Data, ServiceConfig, delete, get, head, patch, post, resource as at};
use actix_web::{App, Error};
use optio_actors::Service;
use optio_actors::terminal::Role;
use tokio::sync::watch;

pub use origin::hosts_of;

use auth::{Cookies, Tickets, Token};
use origin::Allowed;
use terminal::Seats;
use turn_keys::TurnKeys;

/// How long a login link waits for its use: a service started in the evening is opened the next morning.
const LINK_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Unused login links kept; with one more the oldest goes.
const LINKS_KEPT: usize = 32;

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
    token: Token,
    cookies: Cookies,
    tickets: Tickets<Role>,
    seats: Seats,
    allowed: Allowed,
    public_url: Option<String>,
    turn_keys: TurnKeys,
    shutdown: watch::Receiver<bool>,
}

impl Web {
    /// Puts HTTP before `service`. Once `shutdown` is true (or its sender is gone) event streams end and `/readyz`
    /// answers 503.
    pub fn new(service: Service, options: WebOptions, shutdown: watch::Receiver<bool>) -> Self {
        let public_url = options.public_url.as_deref().map(|url| url.trim_end_matches('/'));
        let secure = public_url.is_some_and(|url| url.starts_with("https://"));
        Self(Arc::new(Inner {
            service,
            token: Token::new(&options.token),
            cookies: Cookies::new(&options.token, secure),
            tickets: Tickets::new(LINK_LIFE, LINKS_KEPT),
            seats: Seats::default(),
            allowed: Allowed::new(&options.allowed_hosts, public_url),
            public_url: public_url.map(str::to_owned),
            turn_keys: TurnKeys::default(),
            shutdown,
        }))
    }

    /// Mints a link that logs one browser in, once, within a day, as an operator's. `base` is where the browser finds
    /// the service.
    pub fn login_link(&self, base: &str) -> String {
        self.login_link_for(Role::Operator, base)
    }

    fn login_link_for(&self, role: Role, base: &str) -> String {
        format!("{}/login?ticket={}", base.trim_end_matches('/'), self.0.tickets.mint(role))
    }

    fn service(&self) -> &Service {
        &self.0.service
    }

    fn token(&self) -> &Token {
        &self.0.token
    }

    fn cookies(&self) -> &Cookies {
        &self.0.cookies
    }

    fn tickets(&self) -> &Tickets<Role> {
        &self.0.tickets
    }

    fn seats(&self) -> &Seats {
        &self.0.seats
    }

    fn allowed(&self) -> &Allowed {
        &self.0.allowed
    }

    fn public_url(&self) -> Option<&str> {
        self.0.public_url.as_deref()
    }

    fn turn_keys(&self) -> &TurnKeys {
        &self.0.turn_keys
    }

    fn shutdown(&self) -> watch::Receiver<bool> {
        self.0.shutdown.clone()
    }

    fn is_going_down(&self) -> bool {
        *self.0.shutdown.borrow() || self.0.shutdown.has_changed().is_err()
    }
}

/// Mounts everything: `App::new().configure(optio_web::configure(web))`.
pub fn configure(web: Web) -> impl FnOnce(&mut ServiceConfig) + Clone {
    move |config| {
        let everything = web::scope("")
            .service(at("/healthz").route(get().to(operation::health)).route(head().to(operation::health)))
            .service(at("/readyz").route(get().to(operation::ready)).route(head().to(operation::ready)))
            .service(at("/login").route(get().to(auth::login)))
            .service(at("/v1/sessions/{id}/terminal/ws").route(get().to(terminal::connect)))
            .service(api())
            .default_service(web::to(page::serve));
        config.app_data(Data::new(web)).service(everything.wrap(from_fn(edge::edge)));
    }
}

/// Everything that needs a login.
fn api() -> impl HttpServiceFactory {
    web::scope("/v1")
        .service(at("/sessions").route(get().to(sessions::find)).route(post().to(sessions::create)))
        .service(
            at("/sessions/{id}")
                .route(get().to(sessions::show))
                .route(patch().to(sessions::change))
                .route(delete().to(sessions::delete)),
        )
        .service(at("/sessions/{id}/stop").route(post().to(sessions::stop)))
        .service(at("/sessions/{id}/resume").route(post().to(sessions::resume)))
        .service(at("/sessions/{id}/turns").route(post().to(conversation::send)))
        .service(at("/sessions/{id}/interrupt").route(post().to(conversation::interrupt)))
        .service(at("/sessions/{id}/approvals").route(get().to(conversation::approvals)))
        .service(at("/sessions/{id}/approvals/{approval}").route(post().to(conversation::answer)))
        .service(at("/sessions/{id}/messages").route(get().to(conversation::messages)))
        .service(at("/sessions/{id}/events").route(get().to(events::of_session)))
        .service(at("/sessions/{id}/terminal/ticket").route(post().to(terminal::issue)))
        .service(at("/sessions/{id}/terminal/token").route(get().to(terminal::token)))
        .service(at("/sessions/{id}/terminal/").route(get().to(terminal::show)))
        .service(at("/sessions/{id}/actors").route(get().to(sessions::actors)))
        .service(at("/sessions/{id}/snapshots").route(get().to(sessions::snapshots)))
        .service(at("/sessions/{id}/deliverables").route(get().to(files::deliverables)))
        .service(at("/sessions/{id}/files/{path:.*}").route(get().to(files::download)))
        .service(at("/sessions/{id}/faults").route(post().to(operation::arm_fault)))
        .service(at("/events").route(get().to(events::of_service)))
        .service(
            at("/seeds")
                .app_data(seeds::IMPORT_LIMIT)
                .route(get().to(seeds::find))
                .route(post().to(seeds::import)),
        )
        .service(at("/seeds/login").route(post().to(seed_logins::start)))
        .service(
            at("/seeds/login/{id}")
                .route(get().to(seed_logins::show))
                .route(delete().to(seed_logins::cancel)),
        )
        .service(at("/seeds/{id}").route(get().to(seeds::show)).route(delete().to(seeds::delete)))
        .service(at("/seeds/{id}/assign").route(post().to(seeds::assign)))
        .service(at("/seeds/{id}/status").route(post().to(seeds::set_status)))
        .service(at("/seeds/{id}/verify").route(post().to(seeds::verify)))
        .service(at("/hosts").route(get().to(hosts::all)).route(post().to(hosts::add)))
        .service(at("/hosts/{name}").route(get().to(hosts::show)).route(delete().to(hosts::remove)))
        .service(at("/hosts/{name}/probe").route(post().to(hosts::probe)))
        .service(at("/hosts/{name}/reap").route(post().to(hosts::reap)))
        .service(at("/hosts/{name}/host-key").route(post().to(hosts::accept_key)))
        .service(at("/login-links").route(post().to(auth::new_link)))
        .default_service(web::to(page::no_such_route))
        .wrap(from_fn(auth::authenticate))
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
