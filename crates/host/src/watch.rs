//! Waking up when a file may have changed.

use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use crate::TaskDir;

/// Wakes for each possible change of one path; several changes may be one wake-up. Dropping it ends the watching.
pub struct Watch {
    wakes: mpsc::Receiver<()>,
    _keep: Box<dyn Send + Sync>,
}

impl Watch {
    /// A watch fed by `wakes` (capacity 1: a full queue means a wake-up is already due); `keep` is dropped with it.
    pub fn new(wakes: mpsc::Receiver<()>, keep: impl Send + Sync + 'static) -> Self {
        Self { wakes, _keep: Box::new(keep) }
    }

    /// Waits for the next possible change; `None` when the watching itself has failed and must be set up anew.
    /// Cancel safe.
    pub async fn changed(&mut self) -> Option<()> {
        self.wakes.recv().await
    }
}

/// The directories whose fate decides what `target` is, from the task directory down.
pub(crate) fn chain(dir: &TaskDir, target: &Path) -> Vec<PathBuf> {
    let mut chain: Vec<_> = target
        .ancestors()
        .skip(1)
        .take_while(|above| above.starts_with(dir.path()))
        .map(Path::to_path_buf)
        .collect();
    chain.reverse();
    chain
}
