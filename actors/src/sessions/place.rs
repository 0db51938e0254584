//! Where session actors run: a fixed set of arbiters, one per core, apart from the HTTP workers (DESIGN §5).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix::prelude::*;
use tokio::sync::oneshot;
use tracing::Span;

use crate::error::SessionError;
use crate::session::{Session, SessionParts};
use crate::supervision::{ChildExit, ChildHandle, ChildKind, spawn_child};

/// The arbiters. A session's supervisor and its children share one, so that what they tell each other never leaves a
/// thread.
#[derive(Clone)]
pub struct Places {
    arbiters: Arc<Vec<ArbiterHandle>>,
    next: Arc<AtomicUsize>,
}

impl Places {
    /// Starts `count` arbiters. They live as long as the actix system.
    pub fn new(count: usize) -> Self {
        let arbiters = (0..count.max(1)).map(|_| Arbiter::new().handle()).collect();
        Self { arbiters: Arc::new(arbiters), next: Arc::default() }
    }

    /// Puts every session on the arbiter of whoever starts it: for tests, whose clock is one thread's.
    pub fn here() -> Self {
        Self { arbiters: Arc::default(), next: Arc::default() }
    }

    pub(super) async fn start(
        &self,
        parent: Recipient<ChildExit>,
        parts: SessionParts,
    ) -> Result<(Addr<Session>, ChildHandle), SessionError> {
        if self.arbiters.is_empty() {
            return Ok(spawn_child(parent, ChildKind::Session, Span::none(), move |_| Session::new(parts)));
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        self.arbiters[turn % self.arbiters.len()].spawn_fn(move || {
            let started = spawn_child(parent, ChildKind::Session, Span::none(), move |_| Session::new(parts));
            // Unheard, it drops the handle, which ends the session again.
            let _ = tell.send(started);
        });
        told.await.map_err(|_| SessionError::NoAnswer { what: "the arbiter of the session" })
    }
}
