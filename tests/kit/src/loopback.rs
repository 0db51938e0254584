//! A web server in the background of a test.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::thread::JoinHandle;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer, web};

/// The largest request body taken: codex sends its instructions, tools and the whole conversation each time.
const BODY_LIMIT: usize = 16 << 20;

/// Serves on a free port of 127.0.0.1 from a thread of its own until dropped, so that it works under any test runtime,
/// and goes on while the test itself blocks.
pub(crate) struct Loopback {
    address: SocketAddr,
    handle: ServerHandle,
    thread: Option<JoinHandle<()>>,
}

impl Loopback {
    pub(crate) fn start(routes: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, routes)
    }

    /// Serves on another address of this machine: one that a [far](crate::Far) machine can reach.
    pub(crate) fn start_at(
        address: Ipv4Addr,
        routes: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
    ) -> Self {
        let (started, start) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let app = move || {
                    App::new().app_data(web::PayloadConfig::new(BODY_LIMIT)).configure(routes.clone())
                };
                let server = HttpServer::new(app)
                    .workers(1)
                    .disable_signals()
                    .bind((address, 0))
                    .expect("an address of this machine has a free port");
                let address = server.addrs()[0];
                let server = server.run();
                if started.send((address, server.handle())).is_ok() {
                    server.await.expect("a loopback server ends when it is told to");
                }
            });
        });
        let (address, handle) = start.recv().expect("the server's thread sends its address before it serves");
        Self { address, handle, thread: Some(thread) }
    }

    /// The server's address as the start of a URL, without a slash at the end.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        // The command is sent by the call itself; its future only waits for the end, which joining does too.
        drop(self.handle.stop(false));
        if let Some(thread) = self.thread.take() {
            // A panic over there was already printed; a second one here would abort the test run.
            drop(thread.join());
        }
    }
}
