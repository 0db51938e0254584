//! What Codex says and writes, without I/O: the app-server's wire, its files, its command line.
//!
//! Everything here is a function of its arguments or a state machine that is told what happened. Bytes come from and
//! go to `optio-host`; who does what and when is `optio-actors`' business.

pub mod agents_md;
pub mod answers;
pub mod argv;
pub mod auth;
pub mod config;
pub mod config_toml;
pub mod events;
pub mod messages;
pub mod models;
pub mod requests;
pub mod rollout;
pub mod rpc;
pub mod sandbox;
pub mod server_requests;
pub mod toml_literal;
pub mod turns;
pub mod workdir;
