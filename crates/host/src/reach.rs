//! Whether a host can be reached.

use std::time::SystemTime;

/// What is known of the way to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Nobody has wanted anything of it yet.
    Untried,
    /// It answers.
    Up,
    /// It does not. What lives on it may live on.
    Down {
        /// When this was found out.
        since: SystemTime,
        /// The stable word for it, see [`crate::HostError::reach_code`].
        code: &'static str,
        /// The last thing that was tried, in words.
        why: String,
    },
}

impl Reach {
    /// True unless it is known to be down.
    pub fn may_answer(&self) -> bool {
        !matches!(self, Self::Down { .. })
    }
}
