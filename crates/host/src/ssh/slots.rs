//! Sessions on one connection: how many programs may run at once.
//!
//! A server refuses more sessions than its `MaxSessions`, so programs wait for their turn here. Those that go on for long must not
//! keep out those that are short, hence four classes, each of which leaves room for the ones before it:
//!
//! ```text
//! kill   a signal to a program               may take the last slot
//! run    a question that ends by itself      leaves 1
//! work   the hand, the watch, archives       leaves 2
//! seat   agents on pipes, terminals          leaves 4: the hand and the watch besides
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Fewest sessions with which all classes get on.
pub(super) const FEWEST: u16 = 4;
/// How long the server's refusal is believed. It may have counted a program of ours that is ending, or have a lower limit
/// than we were told: then this costs one refused channel each time, and only while somebody waits.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// The same when nothing of ours is open, so that nobody's end could make room.
const REFUSED_EMPTY_FOR: Duration = Duration::from_millis(250);

/// What a session is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Kill,
    Run,
    Work,
    Seat,
}

/// How many slots each class leaves to those before it.
const LEAVES: [u16; 4] = [0, 1, 2, 4];

/// The slots of one connection.
pub(super) struct Slots {
    /// One per class: a class holds a permit of its own and of all before it.
    classes: [Arc<Semaphore>; 4],
    open: Arc<AtomicUsize>,
}

/// The right to one session.
pub(super) struct Slot {
    permits: Vec<OwnedSemaphorePermit>,
    open: Option<Arc<AtomicUsize>>,
}

impl Slots {
    pub(super) fn new(sessions: u16) -> Self {
        let of = |leaves: u16| Arc::new(Semaphore::new(sessions.saturating_sub(leaves).max(1).into()));
        Self { classes: LEAVES.map(of), open: Arc::default() }
    }

    /// Waits for a slot.
    pub(super) async fn take(&self, class: Class) -> Slot {
        let mut permits = Vec::new();
        // From the narrow to the wide, so that nobody holds what others need while it waits for its own kind.
        for semaphore in self.classes[..=class as usize].iter().rev() {
            if let Ok(permit) = semaphore.clone().acquire_owned().await {
                permits.push(permit);
            }
        }
        Slot { permits, open: None }
    }

    /// The server opened a session in this slot.
    pub(super) fn opened(&self, slot: &mut Slot) {
        self.open.fetch_add(1, Ordering::Relaxed);
        slot.open = Some(self.open.clone());
    }

    /// The server refused a session in this slot: there is one less for a while.
    pub(super) fn refused(&self, mut slot: Slot, class: Class) {
        for permit in slot.permits.drain(..) {
            permit.forget();
        }
        let none_open = self.open.load(Ordering::Relaxed) == 0;
        let pause = if none_open { REFUSED_EMPTY_FOR } else { REFUSED_FOR };
        let classes: Vec<_> = self.classes[..=class as usize].iter().map(Arc::downgrade).collect();
        super::runtime::start(async move {
            tokio::time::sleep(pause).await;
            for semaphore in classes.iter().filter_map(std::sync::Weak::upgrade) {
                semaphore.add_permits(1);
            }
        });
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
