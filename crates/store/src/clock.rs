//! The clock that decides leases and retention. Tests move it.

use jiff::Timestamp;

/// Tells the time to a store.
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The machine's wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// Stands still until a test moves it.
#[cfg(feature = "testsuite")]
#[derive(Debug)]
pub struct ManualClock(std::sync::Mutex<Timestamp>);

#[cfg(feature = "testsuite")]
impl ManualClock {
    /// A clock that shows the present, to the millisecond.
    pub fn new() -> Self {
        let now = millis(Timestamp::now());
        Self(std::sync::Mutex::new(from_millis(now)))
    }

    /// Moves it forward.
    pub fn advance(&self, by: std::time::Duration) {
        let mut now = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *now += by;
    }
}

#[cfg(feature = "testsuite")]
impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(feature = "testsuite")]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Follows tokio's clock, so that leases expire under `tokio::time::pause`. It must be made inside a runtime.
#[cfg(feature = "testsuite")]
#[derive(Debug)]
pub struct TokioClock {
    origin: tokio::time::Instant,
    shows: Timestamp,
}

#[cfg(feature = "testsuite")]
impl TokioClock {
    /// A clock that shows the present and goes on as tokio's does.
    pub fn new() -> Self {
        Self { origin: tokio::time::Instant::now(), shows: from_millis(millis(Timestamp::now())) }
    }
}

#[cfg(feature = "testsuite")]
impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(feature = "testsuite")]
impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        self.shows + self.origin.elapsed()
    }
}

/// Milliseconds since 1970: what a store keeps of a time (BSON has no finer one).
pub(crate) fn millis(at: Timestamp) -> i64 {
    at.as_millisecond()
}

/// The time that [`millis`] was made from. A number outside of jiff's range, which no store of ours writes, is 1970.
pub(crate) fn from_millis(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}
