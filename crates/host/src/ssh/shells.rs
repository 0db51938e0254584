//! The seam between the way to a machine and what is done there.

use async_trait::async_trait;

use crate::{Command, Result, Spawned};

/// Which of the two connections to a machine something runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// Questions and small answers: nothing here may wait for anything large.
    Control,
    /// Archives and uploads.
    Bulk,
}

/// Starts programs on the machine. What is built on it (files, watches, archives) runs in tests on this machine too.
#[async_trait]
pub(super) trait Shells: Send + Sync + 'static {
    /// The host's name, for errors.
    fn name(&self) -> &str;

    /// Starts a program with three pipes on the given lane, see [`crate::Host::spawn`]. Its streams end with an error when
    /// the connection does.
    async fn spawn(&self, lane: Lane, command: Command) -> Result<Spawned>;
}
