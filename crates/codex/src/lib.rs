//! What Codex says and writes, without I/O: the app-server's wire, its files, its command line.
//!
//! Everything here is a function of its arguments or a state machine that is told what happened. Bytes come from and
//! go to `optio-host`; who does what and when is `optio-actors`' business. So every rule can be tried on plain values,
//! and no test of this crate needs a process, a file or a clock.
//!
//! Reading order, what we tell Codex: [`config`] (what a session is asked to be, checked as a whole), [`sandbox`] and
//! [`argv`] (the same as command line and environment), [`agents_md`] (the same in words, for the agent). What lies on
//! the host: [`workdir`] (where), [`auth`] (the login: whose, and is it new), [`config_toml`] (edits that touch nothing
//! else). What Codex says: [`rpc`] (the envelope), then [`requests`], [`turns`], [`events`] and [`rollout`];
//! [`keywords`] (the agent's log) and [`device_login`] are conversations of their own, and [`probe`] is a single question.

pub mod agents_md;
pub mod answers;
pub mod argv;
pub mod auth;
pub mod config;
pub mod config_toml;
pub mod device_login;
pub mod events;
pub mod keywords;
pub mod messages;
pub mod models;
pub mod probe;
pub mod requests;
pub mod rollout;
pub mod rpc;
pub mod sandbox;
pub mod server_requests;
pub mod toml_literal;
pub mod turns;
pub mod workdir;
