//! Who waits for a flight.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use optio_host::provision::Progress;
use tokio::sync::oneshot;

use super::Ended;
use crate::events::Events;

/// Who waits for a flight, shared with it.
#[derive(Clone, Default)]
pub(super) struct Audience(Arc<Mutex<Waiting>>);

#[derive(Default)]
pub(super) struct Waiting {
    pub(super) seats: BTreeMap<u64, Seat>,
    next: u64,
    /// The last that was told, for those who come later.
    pub(super) last: Option<Progress>,
}

pub(super) struct Seat {
    progress: Option<Events>,
    end: oneshot::Sender<Ended>,
}

impl Audience {
    pub(super) fn lock(&self) -> MutexGuard<'_, Waiting> {
        // What is told under this lock is an append to a journal, which does not panic half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn join(&self, progress: Option<Events>) -> (u64, oneshot::Receiver<Ended>) {
        let (end, ended) = oneshot::channel();
        let mut waiting = self.lock();
        if let (Some(events), Some(last)) = (&progress, &waiting.last) {
            events.tell("progress", last);
        }
        let seat = waiting.next;
        waiting.next += 1;
        waiting.seats.insert(seat, Seat { progress, end });
        (seat, ended)
    }

    pub(super) fn tell(&self, progress: Progress) {
        let mut waiting = self.lock();
        for events in waiting.seats.values().filter_map(|seat| seat.progress.as_ref()) {
            events.tell("progress", &progress);
        }
        waiting.last = Some(progress);
    }

    /// Answers how many are left.
    pub(super) fn leave(&self, seat: u64) -> usize {
        let mut waiting = self.lock();
        waiting.seats.remove(&seat);
        waiting.seats.len()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().seats.len()
    }

    pub(super) fn end(&self, ended: &Ended) {
        for seat in std::mem::take(&mut self.lock().seats).into_values() {
            // Whoever stopped waiting does not want it.
            let _ = seat.end.send(ended.clone());
        }
    }
}
