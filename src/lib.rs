//! Wiring: opens the store, starts the actors, puts HTTP before them. It decides nothing.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use optio_codex::{Config, Options, Server};
//!
//! let (config, _) = Config::load(Options::default())?;
//! let server = Server::new(config).await?;
//! println!("open {}", server.login_link());
//! server.run(async { /* until this future ends */ }).await
//! # }
//! ```

pub mod config;
mod listen;
mod stores;
mod token;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::HttpServer;
use anyhow::{Context, Result};
use optio_actors::events::SERVICE_STREAM;
use optio_actors::hosts::{self, Hosts, HostsPlan, LOCAL};
use optio_actors::sessions::{OnExit, Places};
use optio_actors::{Service, Settings};
use optio_host::provision::HostTools;
use optio_host::{Host, LocalHost, LocalHostConfig};
use optio_oauth::{ClientError, HttpLoginServer, LoginServer, Offline, REFRESH_URL};
use optio_store::embedded::BLOB_GRACE;
use optio_store::{DiskJournal, Health, Journal, Store};
use optio_web::{Web, WebOptions};
use tokio::sync::watch;
use tracing::{info, warn};

pub use config::{Config, Options};
use stores::OpenStore;

/// How long an idle connection is kept: longer than a page takes between two requests, and than most proxies keep theirs.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// How long a client may take to send the head of a request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// How long requests under way may take to end once the sessions have left. Event streams end by themselves then.
const HTTP_GRACE_SECS: u64 = 5;

/// Characters of the name under which a service has directories on a host: as many as keep two services apart.
const NAME_LENGTH: usize = 12;

/// How often the journal's disk and the store are asked after.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A service that owns its data directory and listens, but serves nobody before [`Server::run`].
pub struct Server {
    address: SocketAddr,
    public_url: Option<String>,
    on_exit: OnExit,
    service: Service,
    web: Web,
    http: actix_web::dev::Server,
    unix: Option<listen::UnixSocket>,
    draining: watch::Sender<bool>,
    store: OpenStore,
    journal: Arc<DiskJournal>,
}

impl Server {
    /// Opens the store, takes the address, and takes up the sessions of an earlier service. Must run inside an actix
    /// system, which has to live until [`Server::run`] is over.
    ///
    /// Fails with one sentence for the operator: another service has the data directory, the address is taken, the
    /// token's file can be read by others.
    pub async fn new(config: Config) -> Result<Self> {
        let (store, journal) = OpenStore::open(&config).await?;
        let token = token::load_or_make(&config.token_file)?;
        let tcp = listen::tcp(config.listen)?;
        let address = tcp.local_addr().context("the listener has no address")?;
        let unix = config.unix.as_deref().map(listen::unix).transpose()?;

        let settings = settings(&config, store.store(journal.clone())).await?;
        let service = Service::start(settings, Places::new(config.workers)).await?;

        let mut allowed_hosts = optio_web::hosts_of(address);
        allowed_hosts.extend(config.allowed_hosts);
        // Whoever asks through the socket has no port to name.
        allowed_hosts.extend(unix.as_ref().map(|_| "localhost".to_owned()));
        let public_url = config.public_url;
        let options = WebOptions { token, allowed_hosts, public_url: public_url.clone() };
        let (draining, told) = watch::channel(false);
        let web = Web::new(service.clone(), options, told);

        let app = web.clone();
        let mut http = HttpServer::new(move || optio_web::app(app.clone()))
            .workers(config.workers)
            .keep_alive(KEEP_ALIVE)
            .client_request_timeout(REQUEST_LIMIT)
            .shutdown_timeout(HTTP_GRACE_SECS)
            // Whoever owns the server owns the signals.
            .disable_signals()
            .listen(tcp)
            .context("the listener cannot be served")?;
        if let Some(socket) = &unix {
            http = http.listen_uds(socket.listener()?).context("the socket cannot be served")?;
        }
        let (http, on_exit) = (http.run(), config.on_exit);
        Ok(Self { address, public_url, on_exit, service, web, http, unix, draining, store, journal })
    }

    /// The address of HTTP, with the port that was taken.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The actors' door, for whoever embeds the service and does not want to talk HTTP to itself.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Mints a link that logs one browser in, once.
    pub fn login_link(&self) -> String {
        let base =
            self.public_url.clone().unwrap_or_else(|| format!("http://{}", listen::reachable(self.address)));
        self.web.login_link(&base)
    }

    /// Serves until `shutdown` ends (or HTTP breaks), then lets go of everything in order: new work is refused, the
    /// sessions leave or end as the configuration says, HTTP stops, the journal is written out.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let handle = self.http.handle();
        let mut serving = actix_rt::spawn(self.http);
        let health = self.service.settings().store.health.clone();
        let keeping = actix_rt::spawn(keep_house(self.store.clone(), self.journal.clone(), health));
        let broken = tokio::select! {
            ended = &mut serving => Some(ended),
            () = shutdown => None,
        };

        // From here on `/readyz` and every request for new work are refused. Viewers stay until the sessions have left:
        // what they see last is how each ended.
        self.service.drain(self.on_exit).await;
        // There may be nobody left who listens.
        let _ = self.draining.send(true);
        handle.stop(true).await;
        let ended = match broken {
            Some(ended) => ended,
            None => serving.await,
        };
        keeping.abort();
        drop(self.unix);
        self.journal.close().await;
        info!("service has ended");
        ended.context("the HTTP server died")?.context("the HTTP server failed")
    }
}

async fn settings(config: &Config, store: Store) -> Result<Settings> {
    let places = LocalHostConfig {
        task_root: Some(config.task_root.clone()),
        socket_root: config.socket_root.clone(),
    };
    let local: Arc<dyn Host> = Arc::new(LocalHost::new(places)?);
    let plan = HostsPlan {
        configured: config.hosts.clone(),
        own: config.own.clone(),
        data_dir: config.data_dir.clone(),
        connector: hosts::over_ssh(),
    };
    let hosts = Hosts::open(BTreeMap::from([(LOCAL.to_owned(), local)]), plan)?;
    let service_stream = store.journal.open(SERVICE_STREAM).await?;
    // The directories of a service must be its own: two services of one user may share a task root.
    let name: String =
        token::load_or_make(&config.data_dir.join("instance"))?.chars().take(NAME_LENGTH).collect();
    let downloads = config.data_dir.join("provision");
    Ok(Settings {
        provision: Arc::new(HostTools::new(config.releases.clone(), downloads, &name)),
        name,
        faults_enabled: config.enable_faults,
        codex: config.codex.clone(),
        ttyd: config.ttyd.clone(),
        orphan_ttl: config.orphan_ttl,
        defaults: config.defaults.clone(),
        hooks: config.hooks.0.clone(),
        refresh_idle: config.refresh_seeds,
        probe_seeds: config.probe_seeds,
        refresh_url: (config.login_server.refresh_url != REFRESH_URL)
            .then(|| config.login_server.refresh_url.clone()),
        login_server: login_server(config)?,
        ..Settings::new(hosts, store, service_stream)
    })
}

/// A machine without certificates can run everything but checks of logins. An address that is none is a mistake.
fn login_server(config: &Config) -> Result<Arc<dyn LoginServer>> {
    match HttpLoginServer::new(&config.login_server) {
        Ok(server) => Ok(Arc::new(server)),
        Err(problem @ ClientError::Client(_)) => {
            warn!(%problem, "stored logins cannot be checked or kept fresh");
            Ok(Arc::new(Offline))
        }
        Err(problem) => Err(problem.into()),
    }
}

/// Deletes the blobs that nothing names any more, looks whether the store works (a service without sessions has no other
/// reason to ask it), and tells the log when the journal's disk fails and when it is back.
async fn keep_house(store: OpenStore, journal: Arc<DiskJournal>, health: Arc<dyn Health>) {
    let mut sweep = tokio::time::interval(BLOB_GRACE);
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut known = None;
    loop {
        tokio::select! {
            _ = sweep.tick() => match store.sweep().await {
                Ok(0) => {}
                Ok(blobs) => info!(blobs, "superseded blobs are deleted"),
                Err(problem) => warn!(%problem, "superseded blobs could not be deleted, the next sweep tries again"),
            },
            _ = look.tick() => {
                let trouble = journal.trouble();
                match &trouble {
                    Some(trouble) if known.is_none() => warn!(trouble, "journal cannot be written, events wait in memory"),
                    None if known.is_some() => info!("journal can be written again"),
                    _ => {}
                }
                known = trouble;
                // It notes and tells what it finds.
                health.check().await;
            }
        }
    }
}
