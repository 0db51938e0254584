//! Which codex program a host has.

use std::path::PathBuf;

/// A codex program that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodexBinary {
    /// The native program, absolute; never a launcher script (S-225).
    pub path: PathBuf,
    /// What it calls itself, e.g. `0.142.5`.
    pub version: String,
    /// Whether its app-server can listen on a Unix socket (DESIGN §7), found by asking it.
    pub can_listen: bool,
}
