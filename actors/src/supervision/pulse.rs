//! A sign of life that costs one store and no message.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Shared between a child, which touches it at every step of its work, and its supervisor, which compares it with
/// its own clock: a child that hangs never exits, so silence has to be an exit too (P19b).
#[derive(Debug, Clone)]
pub struct Pulse {
    born: Instant,
    /// Milliseconds after `born` until which silence is in order.
    quiet_until: Arc<AtomicU64>,
    limit: Duration,
}

impl Pulse {
    /// A pulse that may be silent for `limit` between two touches.
    pub fn new(limit: Duration) -> Self {
        let pulse = Self { born: Instant::now(), quiet_until: Arc::default(), limit };
        pulse.touch();
        pulse
    }

    /// Says "I am getting on".
    pub fn touch(&self) {
        self.quiet_for(self.limit);
    }

    /// Says "I am doing something known to take at most this long".
    pub fn quiet_for(&self, limit: Duration) {
        let until = self.born.elapsed() + limit;
        self.quiet_until.store(until.as_millis() as u64, Ordering::Relaxed);
    }

    /// True when the child has been silent for longer than it may.
    pub fn is_lost(&self) -> bool {
        self.born.elapsed().as_millis() as u64 > self.quiet_until.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_past_the_limit_is_loss_and_known_long_work_is_not() {
        let pulse = Pulse::new(Duration::from_secs(5));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert!(!pulse.is_lost());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(pulse.is_lost());
        pulse.quiet_for(Duration::from_secs(60));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(!pulse.is_lost());
    }
}
