//! Waking up when a file may have changed.

use tokio::sync::mpsc;

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
