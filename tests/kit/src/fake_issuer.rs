//! The login service as codex meets it when a person logs in with a code: TLS and all, on loopback.
//!
//! The released codex 0.142.5 asks `https://auth.openai.com` and nobody else (the override of the issuer is in debug builds
//! only), but it goes through the proxy and trusts the certificates that its environment names. So this is a proxy that
//! ends every connection itself: what is meant for the login service is decrypted with a certificate made for the test and
//! answered here, everything else is refused. No byte leaves the machine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto::ring};

use crate::auth::{ChatGptLogin, id_token};
use crate::fake_oauth::FakeOauth;
use crate::loopback::Loopback;

/// Where codex goes to log in.
const ISSUER: &str = "auth.openai.com";

/// The largest head of a `CONNECT`.
const HEAD_LIMIT: usize = 8 << 10;

/// What becomes of a code.
#[derive(Clone, Debug, Default, PartialEq)]
enum Verdict {
    #[default]
    Pending,
    Approved(ChatGptLogin),
    Refused(u16, &'static str),
}

#[derive(Default)]
struct State {
    /// By device id; codes are handed out in order.
    codes: Vec<(String, Verdict)>,
    /// Logins whose authorization code was handed out and not exchanged yet.
    authorized: BTreeMap<String, ChatGptLogin>,
    /// How often a code was asked after.
    polls: usize,
    /// Every other host that a connection was wanted to.
    refused: Vec<String>,
    /// Where refreshes are passed on to.
    refreshes_at: Option<String>,
}

/// A fake login service for codes. It stops when dropped.
pub struct FakeIssuer {
    state: Arc<watch::Sender<State>>,
    _http: Loopback,
    proxy: SocketAddr,
    certificates: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeIssuer {
    /// Starts a login service on free loopback ports.
    pub fn start() -> Self {
        let state: Arc<watch::Sender<State>> = Arc::default();
        let shared = web::Data::from(state.clone());
        let http = Loopback::start(move |routes| {
            routes
                .app_data(shared.clone())
                .route("/api/accounts/deviceauth/usercode", web::post().to(user_code))
                .route("/api/accounts/deviceauth/token", web::post().to(poll))
                .route("/oauth/token", web::post().to(tokens));
        });
        let (tls, root) = certificates();
        let certificates = tempfile::Builder::new().prefix("issuer-").tempdir();
        let certificates = certificates.expect("the temp directory is writable");
        std::fs::write(certificates.path().join("ca.pem"), root).expect("a new directory is writable");

        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback always has a free port");
        let proxy = listener.local_addr().expect("a bound socket has an address");
        let (stop, stopped) = oneshot::channel();
        let http_address = http.url().trim_start_matches("http://").to_owned();
        let proxying = Proxy { tls, http: http_address, state: state.clone() };
        let thread = std::thread::spawn(move || proxying.run(listener, stopped));
        Self { state, _http: http, proxy, certificates, stop: Some(stop), thread: Some(thread) }
    }

    /// The variables that lead codex here, for the environment of a service or of codex itself.
    pub fn env(&self) -> [(&'static str, String); 3] {
        let proxy = format!("http://{}", self.proxy);
        let root: PathBuf = self.certificates.path().join("ca.pem");
        [
            ("HTTPS_PROXY", proxy),
            ("NO_PROXY", "127.0.0.1,localhost".to_owned()),
            ("CODEX_CA_CERTIFICATE", root.display().to_string()),
        ]
    }

    /// Lets logins be refreshed here, by this service. It still does not describe itself, as the real one does where it can
    /// be discovered.
    pub fn refreshes_at(&self, oauth: &FakeOauth) {
        self.state.send_modify(|state| state.refreshes_at = Some(oauth.url()));
    }

    /// A person enters this code, and logs in with the account of this login.
    ///
    /// # Panics
    /// When the code was never handed out.
    pub fn approve(&self, user_code: &str, login: ChatGptLogin) {
        self.judge(user_code, Verdict::Approved(login));
    }

    /// A person enters this code and says no.
    ///
    /// # Panics
    /// When the code was never handed out.
    pub fn deny(&self, user_code: &str) {
        self.judge(user_code, Verdict::Refused(400, "access_denied"));
    }

    /// This code's time is over.
    ///
    /// # Panics
    /// When the code was never handed out.
    pub fn expire(&self, user_code: &str) {
        self.judge(user_code, Verdict::Refused(410, "expired_token"));
    }

    fn judge(&self, user_code: &str, verdict: Verdict) {
        self.state.send_modify(|state| {
            let mut codes = state.codes.iter_mut().zip(1..);
            let known = codes.find(|(_, nth)| code(*nth) == user_code);
            let ((_, of_code), _) = known.expect("the code was handed out");
            *of_code = verdict;
        });
    }

    /// The codes handed out so far, in order.
    pub fn user_codes(&self) -> Vec<String> {
        (1..=self.state.borrow().codes.len()).map(code).collect()
    }

    /// How often a code was asked after so far.
    pub fn polls(&self) -> usize {
        self.state.borrow().polls
    }

    /// The other hosts that codex wanted to reach; it was let to none.
    pub fn refused_hosts(&self) -> Vec<String> {
        self.state.borrow().refused.clone()
    }
}

impl FakeOauth {
    /// Signs an account in as [`FakeOauth::login`] does, and lets it enter this code.
    ///
    /// # Panics
    /// When the code was never handed out.
    pub fn enter_code(&self, issuer: &FakeIssuer, user_code: &str, account: &str) {
        issuer.approve(user_code, self.login(account));
    }
}

impl Drop for FakeIssuer {
    fn drop(&mut self) {
        // A proxy that is gone already has dropped its end.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take() {
            // A panic over there was already printed; a second one here would abort the test run.
            drop(thread.join());
        }
    }
}

/// A root that only this test knows, and the login service's certificate signed by it.
fn certificates() -> (TlsAcceptor, String) {
    let sound = "parameters without names of another form make a certificate";
    let root_key = KeyPair::generate().expect(sound);
    let mut root = CertificateParams::new(Vec::new()).expect(sound);
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_pem = root.self_signed(&root_key).expect(sound).pem();
    let signer = Issuer::new(root, root_key);
    let key = KeyPair::generate().expect(sound);
    let mut leaf = CertificateParams::new([ISSUER.to_owned()]).expect(sound);
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = leaf.signed_by(&key, &signer).expect(sound);
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("the key is the certificate's own");
    (TlsAcceptor::from(Arc::new(config)), root_pem)
}

#[derive(Clone)]
struct Proxy {
    tls: TlsAcceptor,
    /// Where the plain form of the login service listens.
    http: String,
    state: Arc<watch::Sender<State>>,
}

impl Proxy {
    fn run(self, listener: std::net::TcpListener, stopped: oneshot::Receiver<()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let serving = async move {
            listener.set_nonblocking(true).expect("a socket of ours can be switched");
            let listener = TcpListener::from_std(listener).expect("a listening socket is one");
            while let Ok((client, _)) = listener.accept().await {
                let proxy = self.clone();
                tokio::spawn(async move {
                    // A client that breaks off gets no answer.
                    let _ = proxy.serve(client).await;
                });
            }
        };
        runtime.expect("a runtime can be made").block_on(async {
            tokio::select! {
                () = serving => {}
                _ = stopped => {}
            }
        });
    }

    async fn serve(self, mut client: TcpStream) -> std::io::Result<()> {
        let Some(target) = read_connect(&mut client).await? else { return Ok(()) };
        if target != format!("{ISSUER}:443") {
            self.state.send_modify(|state| state.refused.push(target));
            return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await;
        }
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
        let mut decrypted = self.tls.accept(client).await?;
        let mut plain = TcpStream::connect(&self.http).await?;
        copy_bidirectional(&mut decrypted, &mut plain).await.map(drop)
    }
}

/// The target of a `CONNECT`, byte by byte: what follows its head is another's.
async fn read_connect(client: &mut TcpStream) -> std::io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == HEAD_LIMIT {
            return Ok(None);
        }
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    Ok(target.map(str::to_owned))
}

fn code(nth: usize) -> String {
    format!("CODE-{nth:05}")
}

async fn user_code(shared: web::Data<watch::Sender<State>>) -> HttpResponse {
    let mut nth = 0;
    shared.send_modify(|state| {
        nth = state.codes.len() + 1;
        state.codes.push((format!("device-{nth}"), Verdict::Pending));
    });
    // The real one says five seconds; codex takes the number as text.
    HttpResponse::Ok().json(json!({
        "device_auth_id": format!("device-{nth}"), "user_code": code(nth), "interval": "1",
    }))
}

async fn poll(body: web::Bytes, shared: web::Data<watch::Sender<State>>) -> HttpResponse {
    let request: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let device = request["device_auth_id"].as_str().unwrap_or_default().to_owned();
    let mut verdict = Verdict::Refused(404, "unknown_device");
    shared.send_modify(|state| {
        state.polls += 1;
        let found = state.codes.iter().position(|(id, _)| *id == device);
        // Whoever has the device's id must also know its code.
        let found = found.filter(|at| request["user_code"] == code(at + 1));
        if let Some(at) = found {
            verdict = state.codes[at].1.clone();
        }
        if let Verdict::Approved(login) = &verdict {
            state.authorized.insert(format!("authorization-{device}"), login.clone());
        }
    });
    match verdict {
        Verdict::Pending => HttpResponse::Forbidden().json(json!({ "error": "authorization_pending" })),
        Verdict::Approved(_) => HttpResponse::Ok().json(json!({
            "authorization_code": format!("authorization-{device}"),
            "code_challenge": "challenge", "code_verifier": "verifier",
        })),
        Verdict::Refused(status, error) => {
            let status = actix_web::http::StatusCode::from_u16(status).expect("statuses that exist");
            HttpResponse::build(status).json(json!({ "error": error }))
        }
    }
}

/// Tokens for a code come as a form, a refresh as JSON.
async fn tokens(
    http: HttpRequest,
    body: web::Bytes,
    shared: web::Data<watch::Sender<State>>,
) -> HttpResponse {
    if http.content_type() == "application/json" {
        let at = shared.borrow().refreshes_at.clone();
        return match at {
            Some(at) => pass_on(&at, body).await,
            None => HttpResponse::NotFound().finish(),
        };
    }
    // A query and a form are written alike.
    let form = std::str::from_utf8(&body).unwrap_or_default();
    let form = web::Query::<BTreeMap<String, String>>::from_query(form);
    exchange(&form.map(web::Query::into_inner).unwrap_or_default(), &shared)
}

async fn pass_on(at: &str, body: web::Bytes) -> HttpResponse {
    let client = reqwest::Client::builder().no_proxy().build().expect("a plain client can be made");
    let request = client.post(at).header("content-type", "application/json").body(body);
    let answer = request.send().await.expect("loopback answers");
    let status = actix_web::http::StatusCode::from_u16(answer.status().as_u16());
    let mut response = HttpResponse::build(status.expect("what one server sent the other can send"));
    response.content_type("application/json").body(answer.bytes().await.unwrap_or_default())
}

fn exchange(form: &BTreeMap<String, String>, shared: &watch::Sender<State>) -> HttpResponse {
    let code = form.get("code").cloned().unwrap_or_default();
    let mut login = None;
    shared.send_modify(|state| {
        login = state.authorized.remove(&code);
    });
    match login {
        // An authorization code is good once.
        None => HttpResponse::BadRequest().json(json!({ "error": "invalid_grant" })),
        Some(login) => HttpResponse::Ok().json(json!({
            "id_token": id_token(login.account()),
            "access_token": login.current_access_token(),
            "refresh_token": login.current_refresh_token(),
        })),
    }
}
