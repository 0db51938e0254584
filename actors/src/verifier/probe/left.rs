//! What an earlier probe left, because the service died or codex could not be proven gone: the next check of that seed goes
//! on with it before anything else.

use optio_codex_protocol::auth;
use optio_store::SpoolEntry;
use tokio::time::timeout;
use tracing::{info, warn};

use super::places::Taken;
use super::{Note, end, kept, wipe};
use crate::settings::Settings;
use crate::verifier::held::STORE_LIMIT;

/// The home of an earlier probe.
pub(in crate::verifier) struct Left {
    place: Taken,
    pub(in crate::verifier) note: Note,
}

/// How it was finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::verifier) enum Finished {
    /// Codex is gone, and what it left is what the store has, or in the spool.
    Home,
    /// Codex is gone, and left a file that is no login.
    NoLogin,
    /// It could not be: why, and what is kept where.
    Stuck(String),
}

impl Left {
    pub(super) fn new(place: Taken, note: Note) -> Self {
        Self { place, note }
    }

    /// Ends codex, puts what it left into the spool, and wipes the home. From the spool it comes home as everything there
    /// does: under a lease, and only where it is certain that it is the newer one of the same account.
    pub(in crate::verifier) async fn finish(&self, settings: &Settings) -> Finished {
        let home = &self.place.home;
        let found = match end(home).await {
            Ok(left) => left.auth_json,
            Err(why) => return Finished::Stuck(why),
        };
        info!(seed = %self.note.seed, at = home.place(), "home of an earlier probe is looked through");
        let finished = match found {
            // Not planted yet, or removed by a wipe that broke off: it is stored.
            None => Finished::Home,
            Some(found) if auth::fingerprint(&found).as_ref() == Some(&self.note.fingerprint) => {
                Finished::Home
            }
            Some(found) if !auth::read(&found).is_login() => Finished::NoLogin,
            Some(found) => {
                let entry = SpoolEntry {
                    seed: self.note.seed.clone(),
                    session: None,
                    holder: self.note.holder.clone(),
                    base: self.note.version.clone(),
                    fingerprint: auth::fingerprint(&found).unwrap_or_default(),
                    account_id: auth::read(&found).account_id().map(str::to_owned),
                    at: settings.clock.now(),
                    auth_json: found,
                };
                match timeout(STORE_LIMIT, settings.store.spool.put(entry)).await {
                    Ok(Ok(_)) => Finished::Home,
                    Ok(Err(problem)) => return Finished::Stuck(format!("{problem}; {}", kept(home))),
                    Err(_) => {
                        let why = format!("the spool gave no answer within {STORE_LIMIT:?}");
                        return Finished::Stuck(format!("{why}; {}", kept(home)));
                    }
                }
            }
        };
        wipe(home).await;
        self.place.is_empty();
        finished
    }

    /// Ends codex and wipes the home of a seed that was deleted: nobody wants its login any more.
    pub(in crate::verifier) async fn discard(&self) {
        match end(&self.place.home).await {
            Ok(_) => {
                wipe(&self.place.home).await;
                self.place.is_empty();
            }
            Err(why) => warn!(seed = %self.note.seed, why, "home of a probe is kept, its seed is deleted"),
        }
    }
}
