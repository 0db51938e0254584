//! Whether a store works now.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;

/// What the last operations of a store showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreHealth {
    /// Since when it is so, by this machine's clock.
    pub since: Timestamp,
    /// What went wrong last; `None` while the store works. No secret.
    pub problem: Option<String>,
}

impl StoreHealth {
    /// Whether the last operation that reached a verdict succeeded.
    pub fn works(&self) -> bool {
        self.problem.is_none()
    }
}

/// Tells whether a store works.
#[async_trait]
pub trait Health: Send + Sync + 'static {
    /// What the last operation showed. Does not wait and asks nobody.
    fn state(&self) -> StoreHealth;

    /// Asks the store now, under a limit of its own, and answers what came of it. For a service that has nothing else
    /// to ask while it waits for the store to come back.
    async fn check(&self) -> StoreHealth;
}

/// Where a backend notes how its operations went.
#[derive(Debug)]
pub(crate) struct HealthNote(Mutex<StoreHealth>);

impl HealthNote {
    /// A store that was just opened, and works.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(StoreHealth { since: Timestamp::now(), problem: None }))
    }

    /// Notes the verdict of an operation: what may work later is a problem of the store, every other error is the
    /// answer of a store that works.
    pub(crate) fn note<T>(&self, result: &crate::Result<T>) {
        let problem = match result {
            Err(error @ (crate::StoreError::Unavailable { .. } | crate::StoreError::TimedOut { .. })) => {
                Some(error.to_string())
            }
            _ => None,
        };
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.problem.is_some() != problem.is_some() {
            state.since = Timestamp::now();
            match &problem {
                Some(problem) => tracing::warn!(problem, "store does not work"),
                None => tracing::info!("store works again"),
            }
        }
        state.problem = problem;
    }

    /// What was noted last.
    pub(crate) fn state(&self) -> StoreHealth {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Result, StoreError};

    fn down(why: &str) -> Result<()> {
        Err(StoreError::Unavailable { what: "test", why: why.to_owned() })
    }

    #[test]
    fn an_outage_has_one_beginning_and_its_newest_reason() {
        let note = HealthNote::new();
        note.note(&down("first"));
        let begun = note.state();
        note.note(&down("second"));
        let state = note.state();
        assert_eq!(state.since, begun.since);
        assert!(state.problem.unwrap().contains("second"));
        note.note(&Ok(()));
        assert!(note.state().works());
    }

    #[test]
    fn a_refusal_is_the_answer_of_a_store_that_works() {
        let note = HealthNote::new();
        note.note(&down("gone"));
        note.note::<()>(&Err(StoreError::NotFound { what: "seed", id: "x".to_owned() }));
        assert!(note.state().works());
    }
}
