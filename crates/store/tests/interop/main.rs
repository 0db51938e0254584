//! One database, two implementations: the real Python package and ours read, lease and change what the other wrote.
//!
//! Runs with each release that `make setup-test` could install, and says so when it could not.

#![allow(clippy::unwrap_used, missing_docs)]

mod leases;
mod model;
mod room;
mod sealed;
mod seeds;
mod snapshots;
mod verdicts;
mod world;
