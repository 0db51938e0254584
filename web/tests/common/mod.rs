//! A service with its HTTP side on a port of its own: real actors and real HTTP, a machine and a store in memory.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actix_web::HttpServer;
use actix_web::dev::ServerHandle;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use optio_actors::hosts::{Description, HostKey, Hosts, HostsPlan, Machine, Own};
use optio_actors::sessions::Places;
use optio_actors::testing::FakeAgents;
use optio_actors::{Service, Settings};
use optio_host::fake::{FakeHost, FakeLaunch};
use optio_host::faulty::{FaultKind, FaultyHost, HostOp};
use optio_host::ssh::Login;
use optio_host::{CodexBinary, ExitStatus, Host, HostError, LocalHost, LocalHostConfig, SshTarget};
use optio_oauth::LoginServer;
use optio_oauth::fake::FakeLoginServer;
use optio_store::memory::MemoryStore;
use optio_store::{Draft, Journal, JournalStream, MemoryJournal};
use optio_web::{Web, WebOptions, hosts_of};
use reqwest::header::{self, HeaderMap};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

pub(crate) const TOKEN: &str = "the-token-of-the-test";

/// Longer than anything here takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

pub(crate) struct World {
    pub(crate) web: Web,
    pub(crate) base: String,
    pub(crate) journal: Arc<MemoryJournal>,
    pub(crate) host: FakeHost,
    /// The terminals; an app-server never says anything.
    pub(crate) agents: FakeAgents,
    pub(crate) memory: MemoryStore,
    pub(crate) login_server: FakeLoginServer,
    pub(crate) shutdown: watch::Sender<bool>,
    /// Where the other machines are, each beneath its name.
    pub(crate) dir: TempDir,
    http: reqwest::Client,
    server: ServerHandle,
}

/// A fingerprint of the right form: the one that every other machine shows.
pub(crate) const FINGERPRINT: &str = "SHA256:uNiVztksCsDhcc0u9e8BrsR6hlMaFmeqhKDKtmVqzi8";

/// Other machines: `box` is configured; one at an address `fake` is the machine in memory, one at `broken` cannot be connected,
/// any other is this one with directories of its own.
fn others(dir: &Path, fake: &FakeHost) -> HostsPlan {
    let own = Own { user: Some("ada".to_owned()), home: Some(dir.to_owned()), login: Login::Agent(None) };
    let fields = json!({ "address": "box.test", "user": "dev", "host_key": FINGERPRINT });
    let described = Description::read(fields.as_object().unwrap().clone(), &own).unwrap();
    let (beneath, fake) = (dir.to_owned(), fake.clone());
    let connector = move |name: &str, target: SshTarget, _: PathBuf| {
        let host: Arc<dyn Host> = match target.address.as_str() {
            "fake" => Arc::new(fake.clone()),
            address => {
                let places = LocalHostConfig {
                    task_root: Some(beneath.join(name)),
                    socket_root: Some(beneath.join("s")),
                };
                let host = FaultyHost::new(Arc::new(LocalHost::new(places)?));
                if address == "broken" {
                    host.fail_nth(HostOp::Connect, 1, FaultKind::Error);
                }
                Arc::new(host)
            }
        };
        Ok(Machine { host, keys: Some(Arc::new(OneKey(name.to_owned()))) })
    };
    HostsPlan {
        configured: BTreeMap::from([("box".to_owned(), described)]),
        own,
        data_dir: dir.to_owned(),
        connector: Arc::new(connector),
    }
}

/// A machine that shows [`FINGERPRINT`].
struct OneKey(String);

#[async_trait]
impl HostKey for OneKey {
    async fn accept(&self, fingerprint: &str) -> Result<(), HostError> {
        if fingerprint == FINGERPRINT {
            return Ok(());
        }
        Err(HostError::HostKeyChanged {
            host: self.0.clone(),
            algorithm: "ssh-ed25519".to_owned(),
            fingerprint: FINGERPRINT.to_owned(),
            known_in: "/known:7".to_owned(),
            accept: "in some way".to_owned(),
        })
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(MemoryJournal::new(), None).await
    }

    pub(crate) async fn with(journal: Arc<MemoryJournal>, public_url: Option<&str>) -> Self {
        let login_server = FakeLoginServer::default();
        let asked = Arc::new(login_server.clone());
        Self { login_server, ..Self::asking(asked, journal, public_url).await }
    }

    /// The same with another login server.
    pub(crate) async fn asking(
        login_server: Arc<dyn LoginServer>,
        journal: Arc<MemoryJournal>,
        public_url: Option<&str>,
    ) -> Self {
        let host = FakeHost::new();
        host.codex(CodexBinary {
            path: "/usr/bin/codex".into(),
            version: "0.142.5".to_owned(),
            can_listen: true,
        });
        let agents = FakeAgents::default();
        host.on_program({
            let agents = agents.clone();
            move |launch| play(agents.clone(), launch)
        });
        let machine: Arc<dyn Host> = Arc::new(host.clone());
        let service_stream = journal.open(optio_actors::events::SERVICE_STREAM).await.unwrap();
        let memory = MemoryStore::new();
        let store = memory.store(journal.clone());
        let dir = tempfile::tempdir().unwrap();
        let others = others(dir.path(), &host);
        let hosts = Hosts::open(BTreeMap::from([("local".to_owned(), machine)]), others).unwrap();
        let mut settings = Settings::new(hosts, store, service_stream);
        settings.login_server = login_server;
        let service = Service::start(settings, Places::here()).await.unwrap();

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let options = WebOptions {
            token: TOKEN.to_owned(),
            allowed_hosts: hosts_of(address),
            public_url: public_url.map(str::to_owned),
        };
        let (shutdown, down) = watch::channel(false);
        let web = Web::new(service, options, down);
        let served = web.clone();
        let server =
            HttpServer::new(move || optio_web::app(served.clone())).workers(1).listen(listener).unwrap();
        let server = server.disable_signals().run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let http = http.build().unwrap();
        let base = format!("http://{address}");
        let login_server = FakeLoginServer::default();
        Self { web, base, journal, host, agents, memory, login_server, shutdown, dir, http, server: handle }
    }

    /// A request without a login.
    pub(crate) fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// A request with the token.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, path).bearer_auth(TOKEN)
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        Reply::to(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        Reply::to(self.request(Method::POST, path).json(&body)).await
    }

    /// Sends bytes as they are, for requests that no client makes; answers the status line's number.
    pub(crate) async fn raw(&self, head: &str) -> u16 {
        let mut stream = tokio::net::TcpStream::connect(self.authority()).await.unwrap();
        let request =
            format!("{}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n", head.trim());
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("no status: {answer:?}"));
        status.parse().unwrap()
    }

    /// The value of `Host` that clients send.
    pub(crate) fn authority(&self) -> &str {
        self.base.strip_prefix("http://").unwrap()
    }

    /// A cookie of the service, as a browser would send it back.
    pub(crate) async fn cookie(&self) -> String {
        let link = self.web.login_link(&self.base);
        let path = link.strip_prefix(&self.base).unwrap();
        let reply = Reply::to(self.anonymous(Method::GET, path)).await;
        assert_eq!(reply.status, StatusCode::SEE_OTHER, "{}", reply.text);
        reply.header("set-cookie").split(';').next().unwrap().to_owned()
    }

    /// A session whose agent never answers; its id.
    pub(crate) async fn session(&self) -> String {
        let reply = self.post("/v1/sessions", json!({ "mode": "conversation", "instructions": "x" })).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text);
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    /// The stream of the whole service.
    pub(crate) async fn service_stream(&self) -> Arc<dyn JournalStream> {
        self.journal.open(optio_actors::events::SERVICE_STREAM).await.unwrap()
    }

    pub(crate) async fn stop(self) {
        self.server.stop(false).await;
    }
}

/// Terminals as they are, and an app-server that never says anything: its session is starting until it is stopped.
async fn play(agents: FakeAgents, launch: FakeLaunch) -> ExitStatus {
    match launch.argv.iter().any(|word| word == "app-server") {
        true => std::future::pending().await,
        false => agents.play(launch).await,
    }
}

/// An event called `progress` that says `n`.
pub(crate) fn progress(n: u64) -> Draft {
    let body = Bytes::from(format!(r#""n":{n},"text":"zwei\nZeilen ✓""#));
    Draft { name: "progress".into(), body, session: "ses_x".into() }
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) async fn to(request: RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        Self { status, headers, text: response.text().await.unwrap() }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|problem| panic!("{problem}: {}", self.text))
    }

    /// Checks that this is a whole problem; answers its status and code.
    #[track_caller]
    pub(crate) fn problem(&self) -> (u16, String) {
        assert_eq!(self.header("content-type"), "application/problem+json", "{} {}", self.status, self.text);
        let body = self.json();
        let code = body["code"].as_str().unwrap();
        assert_eq!(body["status"], self.status.as_u16(), "{body}");
        assert_eq!(body["type"], format!("urn:optio-codex:error:{code}"));
        assert_eq!(body["request_id"], self.header("x-request-id"));
        assert!(body["instance"].as_str().unwrap().starts_with('/'), "{body}");
        assert!(body["title"].is_string() && body["detail"].is_string(), "{body}");
        assert_eq!(
            body["retryable"].as_bool().unwrap(),
            self.headers.contains_key(header::RETRY_AFTER),
            "{body}"
        );
        (self.status.as_u16(), code.to_owned())
    }

    /// The fields that a validation problem names.
    #[track_caller]
    pub(crate) fn wrong_fields(&self) -> Vec<String> {
        assert_eq!(self.problem(), (422, "validation".to_owned()), "{}", self.text);
        let body = self.json();
        let errors = body["errors"].as_array().unwrap().iter();
        errors.map(|error| error["field"].as_str().unwrap().to_owned()).collect()
    }
}

/// Frames of an event stream, each without its blank line.
pub(crate) struct Frames {
    response: futures_util::stream::BoxStream<'static, reqwest::Result<Bytes>>,
    pub(crate) headers: HeaderMap,
    text: String,
}

impl Frames {
    pub(crate) async fn of(request: RequestBuilder) -> Self {
        let response: Response = request.header(header::ACCEPT, "text/event-stream").send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let headers = response.headers().clone();
        Self { headers, response: response.bytes_stream().boxed(), text: String::new() }
    }

    /// The next frame; nothing when the stream is over.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((frame, rest)) = self.text.split_once("\n\n") {
                let (frame, rest) = (frame.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(frame);
            }
            let chunk =
                tokio::time::timeout(LIMIT, self.response.next()).await.expect("a frame or the end")?;
            self.text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
    }

    /// The `id` of the next frame.
    pub(crate) async fn id(&mut self) -> u64 {
        let frame = self.next().await.expect("the stream goes on");
        let id = frame.lines().find_map(|line| line.strip_prefix("id: "));
        id.unwrap_or_else(|| panic!("no id: {frame}")).parse().unwrap()
    }
}
