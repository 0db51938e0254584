//! The fault seam: breaking one actor on purpose at a named step (DESIGN §12).
//!
//! Compiled in and inert: nothing is armed unless a test, or a service started with `--enable-faults`, arms it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use optio_store::SessionId;
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
    /// Any session's, without one.
    session: Option<SessionId>,
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

/// The steps at which each child can be broken.
pub const STEPS: [(ChildKind, &[&str]); 9] = [
    (ChildKind::HostLink, &["beat", "connect", "wipe", "disconnect"]),
    (ChildKind::LeaseRenewer, &["beat", "acquire", "renew", "release"]),
    (ChildKind::Snapshotter, &["beat", "restore", "capture_seed", "capture_snapshot"]),
    (ChildKind::CredWatcher, &["beat", "watch", "spool", "store", "quiet_watcher", "save_back"]),
    (ChildKind::Process, &["beat", "start", "heartbeat", "stop_agent"]),
    (ChildKind::ConversationReader, &["beat", "attach", "close", "end_turn"]),
    (ChildKind::Terminal, &["beat", "seat", "type", "close", "end_turn"]),
    (ChildKind::LogTail, &["beat", "read", "deliver"]),
    (
        ChildKind::Session,
        &[
            "beat",
            "note_close",
            "note_stop_agent",
            "note_quiet_watcher",
            "note_save_back",
            "note_release_lease",
            "note_capture_seed",
            "note_capture_snapshot",
            "note_wipe",
            "note_disconnect",
        ],
    ),
];

/// The armed faults of a service. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Vec<Armed>>>);

/// More armed faults than this are a mistake of whoever arms them.
const MAX_ARMED: usize = 64;

impl Faults {
    /// Arms a fault for the next `times` times the `child` of any session comes to `step`. Answers `false` when too many
    /// are armed.
    pub fn arm(&self, child: ChildKind, step: impl Into<String>, kind: FaultKind, times: u32) -> bool {
        self.put(Armed { session: None, child, step: step.into(), kind, times })
    }

    /// The same for the child of one session.
    pub fn arm_for(
        &self,
        session: SessionId,
        child: ChildKind,
        step: &str,
        kind: FaultKind,
        times: u32,
    ) -> bool {
        self.put(Armed { session: Some(session), child, step: step.to_owned(), kind, times })
    }

    /// Takes every armed fault back, and answers how many had not struck as often as they were to. What hangs already
    /// goes on hanging.
    pub fn disarm(&self) -> usize {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).len()
    }

    /// How many armed faults have not struck as often as they are to.
    pub fn armed(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn put(&self, fault: Armed) -> bool {
        let mut armed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if armed.len() >= MAX_ARMED {
            return false;
        }
        armed.push(fault);
        true
    }

    /// Called by the `child` of `session` on its way through `step`.
    pub async fn at(&self, session: &SessionId, child: ChildKind, step: &str) -> Result<(), Injected> {
        self.strike(Some(session), child, step).await
    }

    /// Called by a `child` of the root that works for no session.
    pub(crate) async fn at_root(&self, child: ChildKind, step: &str) -> Result<(), Injected> {
        self.strike(None, child, step).await
    }

    async fn strike(
        &self,
        session: Option<&SessionId>,
        child: ChildKind,
        step: &str,
    ) -> Result<(), Injected> {
        let Some(kind) = self.take(session, child, step) else {
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

    fn take(&self, session: Option<&SessionId>, child: ChildKind, step: &str) -> Option<FaultKind> {
        let mut armed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_hit = |a: &&mut Armed| {
            a.child == child && a.step == step && (a.session.is_none() || a.session.as_ref() == session)
        };
        let hit = armed.iter_mut().find(is_hit)?;
        hit.times -= 1;
        let kind = hit.kind;
        armed.retain(|a| a.times > 0);
        Some(kind)
    }
}
