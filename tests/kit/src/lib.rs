//! The words in which tests of the whole program are told.
//!
//! Everything here is real but two things: the model ([`MockModel`]) and the login service ([`FakeOauth`], and
//! [`FakeIssuer`] where people log in), which are servers on loopback that the real codex talks to and that a test steers. A test starts the service as a child process
//! ([`TestServer`]), speaks to it as a user does ([`Client`]), and looks at the machine itself ([`procs`]) for what must
//! or must not be there.
//!
//! ```no_run
//! # use optio_testkit::*;
//! # use std::time::Duration;
//! # async fn story() {
//! let model = MockModel::start();
//! let server = TestServer::of("target/debug/optio-codex").start().await;
//! let client = server.client();
//!
//! let session = client
//!     .create(serde_json::json!({ "mode": "conversation", "instructions": "@hold hello there", "codex_config": model.overrides(ModelAuth::Nothing) }))
//!     .await;
//! model.wait_until_held(1).await; // the turn is now half way, and stays there
//! server.kill_9();
//! # }
//! ```
//!
//! The kit panics where a test would have to: its failures are the test's failures, and say what was seen last. Nothing in
//! it sleeps for luck; every wait has a condition and a limit.

pub mod auth;
pub mod bad_agent;
pub mod browser;
pub mod client;
pub mod codex;
pub mod fake_issuer;
pub mod fake_oauth;
pub mod far;
mod loopback;
pub mod mock_model;
pub mod mongod;
mod netns;
pub mod procs;
pub mod python_peer;
pub mod releases;
mod server;
mod sshd;
pub mod terminal;
pub mod wait;

pub use auth::{ChatGptLogin, ModelAuth};
pub use browser::Browser;
pub use client::{Client, Event, EventStream, Reply, Session};
pub use codex::{CodexHome, codex_binary};
pub use fake_issuer::FakeIssuer;
pub use fake_oauth::{FakeOauth, OauthMode};
pub use far::{Far, FarSetup};
pub use mock_model::{MockModel, ModelRequest};
pub use mongod::{Mongod, TestDatabase};
pub use python_peer::{PeerError, PythonPeer};
pub use releases::{Act, Asked, ReleaseServer};
pub use server::{FAR, ServerSetup, TestServer};
pub use terminal::TerminalClient;
pub use wait::wait_until;

/// How long a step that normally takes well under a second may take on a busy machine of two cores, before it is broken.
pub const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);
