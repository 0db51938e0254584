//! What the login server says, and what it means for a stored login. No actors, no store, no files.
//!
//! A refresh token is good for one use. So the one question that matters about a request that went wrong is whether the
//! token may have been used by it: [`RefreshAnswer`] keeps "never sent" and "sent, and no usable answer" apart, and
//! [`judge`] is the one table of what each answer proves (T-216…T-232).

mod http;
mod verdict;

#[cfg(feature = "testsuite")]
pub mod fake;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest, Sha256};

pub use http::{
    CLIENT_ID, ClientError, Encoding, HttpLoginServer, HttpOptions, MAX_BODY, REFRESH_URL, REQUEST_LIMIT,
};
pub use verdict::{NO_ROTATION, Verdict, judge};

/// Whoever turns a refresh token into new tokens.
#[async_trait]
pub trait LoginServer: Send + Sync + 'static {
    /// Asks whether the server is there at all, before anything is risked (T-233). It says nothing about any login.
    async fn discover(&self) -> Discovery;

    /// Spends `refresh_token` for new tokens. Sends at most one request, whatever happens (INV-28).
    async fn refresh(&self, refresh_token: &Secret) -> RefreshAnswer;
}

/// What [`LoginServer::discover`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// It answered as itself.
    Reachable,
    /// It did not, so a refresh would hardly get an answer either.
    Unavailable(String),
}

/// What became of a refresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefreshAnswer {
    /// The request provably never left this machine: the token is as good as before.
    NotSent(String),
    /// The request left, or may have, and nothing usable came back: the token may be spent (T-224).
    NoAnswer(String),
    /// The server, or something before it, answered with anything but success.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The error code in the body, where it has one of the known forms.
        code: Option<String>,
        /// How long it asked us to wait.
        retry_after: Option<Duration>,
    },
    /// Success, with these tokens. They exist nowhere else yet.
    Granted(Tokens),
}

impl RefreshAnswer {
    /// How long the server asked us to wait before the next request.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// The tokens of a successful answer; each may be missing, an empty one counts as missing (T-238).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tokens {
    /// What the API takes.
    pub access_token: Option<Secret>,
    /// What the next refresh takes; without one the old token stays.
    pub refresh_token: Option<Secret>,
    /// Who is logged in.
    pub id_token: Option<Secret>,
}

/// A token. It shows itself only as the beginning of its hash (T-241).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Hex digits of a hash that are shown: they tell tokens apart and say nothing about them.
const SHOWN_DIGITS: usize = 12;

impl Secret {
    /// Wraps a token.
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into())
    }

    /// The token itself, for a request or a file; never for a text that people read.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The first digits of the token's SHA-256.
    pub fn digits(&self) -> String {
        let hash = Sha256::digest(self.0.as_bytes());
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        hex[..SHOWN_DIGITS].to_owned()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.digits())
    }
}

/// Stands where no login server is to be asked: nothing is ever sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Offline;

/// What [`Offline`] answers.
const OFFLINE: &str = "this service asks no login server";

#[async_trait]
impl LoginServer for Offline {
    async fn discover(&self) -> Discovery {
        Discovery::Unavailable(OFFLINE.to_owned())
    }

    async fn refresh(&self, _: &Secret) -> RefreshAnswer {
        RefreshAnswer::NotSent(OFFLINE.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_shows_only_the_beginning_of_its_hash() {
        let secret = Secret::new("rt-original");
        let tokens = Tokens { refresh_token: Some(secret.clone()), ..Tokens::default() };
        let shown = format!("{secret:?} {:?}", RefreshAnswer::Granted(tokens));
        assert!(!shown.contains("rt-original"), "{shown}");
        // printf rt-original | sha256sum
        assert_eq!(secret.digits(), "62b05754d20d");
    }
}
