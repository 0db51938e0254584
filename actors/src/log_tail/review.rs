//! Who decides what the agent hears about a deliverable: the one place for it.

use async_trait::async_trait;
use bytes::Bytes;
use optio_store::SessionId;

/// A deliverable that was fetched and is text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Whose.
    pub session: SessionId,
    /// Its path relative to `deliverables/`.
    pub path: String,
    /// Its content, valid UTF-8.
    pub content: Bytes,
}

/// What is decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Review {
    /// It is taken. The words, if there are any, reach the agent.
    Accepted(Option<String>),
    /// The agent is to change it and announce it again; these words say how.
    Change(String),
    /// Whoever decides had trouble of their own: the agent is to announce it again after the next resume (S-174).
    Trouble(String),
}

/// Decides about deliverables, one at a time for each session, in the order in which they were announced.
#[async_trait]
pub trait Reviewer: Send + Sync + 'static {
    /// Decides. Given up after [`super::REVIEW_LIMIT`]; then it was trouble.
    async fn review(&self, fetched: Fetched) -> Review;
}

/// Takes everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct AcceptAll;

#[async_trait]
impl Reviewer for AcceptAll {
    async fn review(&self, _: Fetched) -> Review {
        Review::Accepted(None)
    }
}
