//! The fault seam: breaking one actor on purpose at a named step (DESIGN §12).
//!
//! Compiled in and inert: nothing is armed unless a test, or a service started with `--enable-faults`, arms it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::supervision::ChildKind;

/// What happens at the armed step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The actor panics.
    Panic,
    /// The step fails.
    Error,
    /// The step never ends.
    Hang,
    /// The step takes this much longer.
    Delay {
        /// Milliseconds.
        ms: u64,
    },
}

#[derive(Debug, Clone)]
struct Armed {
    child: ChildKind,
    step: String,
    kind: FaultKind,
    times: u32,
}

/// The error of an armed [`FaultKind::Error`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("injected failure of {child} at {step}")]
pub struct Injected {
    child: ChildKind,
    step: String,
}

/// The armed faults of one session (or of all, in tests). Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Vec<Armed>>>);

/// More armed faults than this are a mistake of whoever arms them.
const MAX_ARMED: usize = 64;

impl Faults {
    /// Arms a fault for the next `times` times `child` comes to `step`. Answers `false` when too many are armed.
    pub fn arm(&self, child: ChildKind, step: impl Into<String>, kind: FaultKind, times: u32) -> bool {
        let mut armed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if armed.len() >= MAX_ARMED {
            return false;
        }
        armed.push(Armed { child, step: step.into(), kind, times });
        true
    }

    /// Called by `child` on its way through `step`.
    pub async fn at(&self, child: ChildKind, step: &str) -> Result<(), Injected> {
        let Some(kind) = self.take(child, step) else {
            return Ok(());
        };
        tracing::warn!(%child, step, ?kind, "armed fault strikes");
        match kind {
            FaultKind::Panic => panic!("injected panic of {child} at {step}"),
            FaultKind::Error => Err(Injected { child, step: step.to_owned() }),
            FaultKind::Hang => std::future::pending().await,
            FaultKind::Delay { ms } => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok(())
            }
        }
    }

    fn take(&self, child: ChildKind, step: &str) -> Option<FaultKind> {
        let mut armed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hit = armed.iter_mut().find(|a| a.child == child && a.step == step && a.times > 0)?;
        hit.times -= 1;
        let kind = hit.kind;
        armed.retain(|a| a.times > 0);
        Some(kind)
    }
}
