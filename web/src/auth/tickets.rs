//! One-time tickets: what a login link carries.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

/// How long a ticket waits for its use: a service started in the evening is opened the next morning.
pub(crate) const LIFE: Duration = Duration::from_secs(24 * 3600);

/// Unused tickets kept; with one more the oldest goes.
const KEPT: usize = 32;

/// The tickets that were not used yet, as hashes.
#[derive(Default)]
pub(crate) struct Tickets(Mutex<VecDeque<([u8; 32], Instant)>>);

impl Tickets {
    /// Mints one of two random ids, 244 random bits.
    pub(crate) fn mint(&self) -> String {
        let halves = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(|half| half.simple().to_string());
        let ticket = halves.concat();
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tickets.len() >= KEPT {
            tickets.pop_front();
        }
        tickets.push_back((Sha256::digest(&ticket).into(), Instant::now() + LIFE));
        ticket
    }

    /// Takes a ticket: true once, and only before its time is over.
    pub(crate) fn take(&self, ticket: &str) -> bool {
        let given: [u8; 32] = Sha256::digest(ticket).into();
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.retain(|(_, ends)| Instant::now() < *ends);
        let found = tickets.iter().position(|(ticket, _)| ticket.ct_eq(&given).into());
        found.is_some_and(|at| tickets.remove(at).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_once() {
        let tickets = Tickets::default();
        let ticket = tickets.mint();
        assert!(!tickets.take(""));
        assert!(!tickets.take(&ticket[1..]));
        assert!(tickets.take(&ticket));
        assert!(!tickets.take(&ticket));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_runs_out() {
        let tickets = Tickets::default();
        let ticket = tickets.mint();
        tokio::time::advance(LIFE).await;
        assert!(!tickets.take(&ticket));
    }

    #[test]
    fn unused_tickets_do_not_pile_up() {
        let tickets = Tickets::default();
        let first = tickets.mint();
        let last = (0..KEPT).map(|_| tickets.mint()).last().expect("some were minted");
        assert!(!tickets.take(&first));
        assert!(tickets.take(&last));
    }
}
