//! A login server in memory, as strict as the real one: every refresh token is good once, and a second use is recorded.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{Discovery, LoginServer, RefreshAnswer, Secret, Tokens};

/// How it answers from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Truthfully.
    Grant,
    /// Truthfully, but the same refresh token stays good.
    GrantWithoutRotation,
    /// With this, and no token is spent.
    Answer(RefreshAnswer),
    /// The token is spent, its successor made, and nobody hears of it.
    LoseAnswer,
    /// Not until the mode changes, and no token is spent before.
    HoldBefore,
    /// Not until the mode changes; the token is spent and its successor made at once.
    HoldAfter,
}

/// One refresh that was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The token that was spent.
    pub spent: String,
    /// The token that took its place.
    pub refresh_token: String,
}

/// A fake login server. Clones are the same one. It knows every token that was never presented to it.
#[derive(Clone)]
pub struct FakeLoginServer {
    mode: Arc<watch::Sender<Mode>>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    unreachable: bool,
    discoveries: usize,
    attempts: Vec<String>,
    grants: Vec<Grant>,
    spent: BTreeSet<String>,
    revoked: BTreeSet<String>,
    reuses: Vec<String>,
}

impl Default for FakeLoginServer {
    fn default() -> Self {
        Self { mode: Arc::new(watch::Sender::new(Mode::Grant)), inner: Arc::default() }
    }
}

impl FakeLoginServer {
    /// Changes how it answers; a request that is held goes on the new way.
    pub fn mode(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Says whether discovery finds it.
    pub fn reachable(&self, reachable: bool) {
        self.lock().unreachable = !reachable;
    }

    /// How often discovery was asked.
    pub fn discoveries(&self) -> usize {
        self.lock().discoveries
    }

    /// The refresh tokens presented so far, good or not, in order.
    pub fn attempts(&self) -> Vec<String> {
        self.lock().attempts.clone()
    }

    /// The refreshes granted so far, in order.
    pub fn grants(&self) -> Vec<Grant> {
        self.lock().grants.clone()
    }

    /// The spent tokens that somebody presented again.
    pub fn reuses(&self) -> Vec<String> {
        self.lock().reuses.clone()
    }

    /// True for a token whose successor was made.
    pub fn is_spent(&self, token: &str) -> bool {
        self.lock().spent.contains(token)
    }

    /// The newest token of the lineage that `token` belongs to, as far as it went through here.
    pub fn newest(&self, token: &str) -> String {
        let inner = self.lock();
        let mut newest = token.to_owned();
        for grant in &inner.grants {
            if grant.spent == newest {
                newest.clone_from(&grant.refresh_token);
            }
        }
        newest
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn mode_but(&self, holding: Mode) -> Mode {
        let mut modes = self.mode.subscribe();
        match modes.wait_for(|mode| *mode != holding).await {
            Ok(mode) => mode.clone(),
            Err(_) => Mode::Grant,
        }
    }
}

impl Inner {
    /// What is said to a token that is of no use any more.
    fn refuse(&mut self, token: &str) -> Option<RefreshAnswer> {
        let refused = |code: &str| RefreshAnswer::Refused {
            status: 401,
            code: Some(code.to_owned()),
            retry_after: None,
        };
        if self.spent.contains(token) {
            self.reuses.push(token.to_owned());
            // The whole lineage goes, as at the real service.
            let newest = self.grants.iter().fold(token.to_owned(), |newest, grant| {
                if grant.spent == newest { grant.refresh_token.clone() } else { newest }
            });
            self.revoked.insert(newest);
            return Some(refused("refresh_token_reused"));
        }
        if self.revoked.contains(token) {
            return Some(refused("refresh_token_invalidated"));
        }
        None
    }

    fn spend(&mut self, token: &str) -> RefreshAnswer {
        if let Some(refused) = self.refuse(token) {
            return refused;
        }
        self.spent.insert(token.to_owned());
        let refresh_token = format!("granted-{}", self.grants.len() + 1);
        self.grants.push(Grant { spent: token.to_owned(), refresh_token: refresh_token.clone() });
        RefreshAnswer::Granted(Tokens {
            access_token: Some(Secret::new(format!("access-of-{refresh_token}"))),
            refresh_token: Some(Secret::new(refresh_token)),
            id_token: None,
        })
    }
}

#[async_trait]
impl LoginServer for FakeLoginServer {
    async fn discover(&self) -> Discovery {
        let mut inner = self.lock();
        inner.discoveries += 1;
        if inner.unreachable { Discovery::Unavailable("told to be".to_owned()) } else { Discovery::Reachable }
    }

    async fn refresh(&self, refresh_token: &Secret) -> RefreshAnswer {
        let token = refresh_token.reveal();
        self.lock().attempts.push(token.to_owned());
        match self.mode_but(Mode::HoldBefore).await {
            Mode::Answer(answer) => answer,
            Mode::GrantWithoutRotation => match self.lock().refuse(token) {
                Some(refused) => refused,
                None => RefreshAnswer::Granted(Tokens {
                    access_token: Some(Secret::new(format!("another-access-of-{token}"))),
                    ..Tokens::default()
                }),
            },
            Mode::LoseAnswer => {
                // Spent, and the answer dropped on purpose.
                let _lost = self.lock().spend(token);
                RefreshAnswer::NoAnswer("the answer was lost".to_owned())
            }
            Mode::HoldAfter => {
                let answer = self.lock().spend(token);
                self.mode_but(Mode::HoldAfter).await;
                answer
            }
            Mode::Grant | Mode::HoldBefore => self.lock().spend(token),
        }
    }
}
