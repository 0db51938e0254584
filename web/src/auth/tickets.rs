//! One-time tickets: what a login link carries, and what opens a terminal.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

/// The tickets that were not used yet, as hashes, each with what it is good for.
pub(crate) struct Tickets<T> {
    life: Duration,
    kept: usize,
    unused: Mutex<VecDeque<Unused<T>>>,
}

struct Unused<T> {
    hash: [u8; 32],
    ends: Instant,
    good_for: T,
}

impl<T> Tickets<T> {
    /// Tickets that wait this long for their use. Of more unused ones than `kept` the oldest goes.
    pub(crate) fn new(life: Duration, kept: usize) -> Self {
        Self { life, kept, unused: Mutex::default() }
    }

    /// How long a ticket waits for its use.
    pub(crate) fn life(&self) -> Duration {
        self.life
    }

    /// Mints one of two random ids, 244 random bits.
    pub(crate) fn mint(&self, good_for: T) -> String {
        let halves = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(|half| half.simple().to_string());
        let ticket = halves.concat();
        let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        if unused.len() >= self.kept {
            unused.pop_front();
        }
        let hash = Sha256::digest(&ticket).into();
        unused.push_back(Unused { hash, ends: Instant::now() + self.life, good_for });
        ticket
    }

    /// Takes a ticket: answers what it is good for once, and only before its time is over.
    pub(crate) fn take(&self, ticket: &str) -> Option<T> {
        let given: [u8; 32] = Sha256::digest(ticket).into();
        let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        unused.retain(|ticket| Instant::now() < ticket.ends);
        let found = unused.iter().position(|ticket| ticket.hash.ct_eq(&given).into())?;
        unused.remove(found).map(|ticket| ticket.good_for)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(60);

    #[test]
    fn a_ticket_is_good_once_for_what_it_was_made_for() {
        let tickets = Tickets::new(LIFE, 32);
        let ticket = tickets.mint("this");
        assert_eq!(tickets.take(""), None);
        assert_eq!(tickets.take(&ticket[1..]), None);
        assert_eq!(tickets.take(&ticket), Some("this"));
        assert_eq!(tickets.take(&ticket), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_runs_out() {
        let tickets = Tickets::new(LIFE, 32);
        let ticket = tickets.mint(());
        tokio::time::advance(LIFE).await;
        assert_eq!(tickets.take(&ticket), None);
    }

    #[test]
    fn unused_tickets_do_not_pile_up() {
        let tickets = Tickets::new(LIFE, 32);
        let first = tickets.mint(());
        let last = (0..32).map(|_| tickets.mint(())).last().expect("some were minted");
        assert_eq!(tickets.take(&first), None);
        assert_eq!(tickets.take(&last), Some(()));
    }
}
