//! New logins by a code, for people.

use std::time::Duration;

use optio_store::{LoginId, check_metadata};
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::Service;
use super::seeds::check_pool;
use crate::error::SessionError;
use crate::seed_login::{LoginState, LoginView, ORIGIN};
use crate::sessions::{FindLogin, GiveLoginUp, StartLogin};

/// How long a start waits for the code. Codex has it within a second; a caller that waits no longer asks again.
const CODE_WAIT: Duration = Duration::from_secs(25);

/// How long a cancel waits for the end of codex.
const END_WAIT: Duration = Duration::from_secs(20);

impl Service {
    /// Begins a login by a code, and waits a while for the code. What is answered may still be `starting` then.
    pub async fn start_seed_login(
        &self,
        pool: Option<String>,
        metadata: Map<String, Value>,
    ) -> Result<LoginView, SessionError> {
        // Now, because nobody could correct it once the login is there.
        if let Some(pool) = &pool {
            check_pool(pool)?;
        }
        check_metadata(&metadata)?;
        if metadata.contains_key(ORIGIN) {
            let why = format!("{ORIGIN:?} is written by the service, it names where a seed came from");
            return Err(SessionError::Invalid { field: "metadata", why });
        }
        let start = StartLogin { pool, metadata };
        let view = self.ask("the root", self.root.send(start)).await??;
        let view =
            follow(view, CODE_WAIT, |view| view.state != LoginState::Starting && !is_ending(view)).await;
        match view.state {
            LoginState::Failed => Err(SessionError::Login {
                id: view.id,
                why: view.reason.unwrap_or_else(|| "it failed".to_owned()),
            }),
            _ => Ok(view),
        }
    }

    /// A login by a code, as it is now. Those of an earlier process are known only while they were not finished by it.
    pub async fn seed_login(&self, id: &LoginId) -> Result<LoginView, SessionError> {
        let found = self.ask("the root", self.root.send(FindLogin(id.clone()))).await?;
        let found = found.ok_or_else(|| SessionError::not_found("login", id))?;
        Ok(found.borrow().clone())
    }

    /// Gives a login up, and waits a while for its end. One that was finished meanwhile is a seed, and says so.
    pub async fn cancel_seed_login(&self, id: &LoginId) -> Result<LoginView, SessionError> {
        let found = self.ask("the root", self.root.send(GiveLoginUp(id.clone()))).await?;
        let found = found.ok_or_else(|| SessionError::not_found("login", id))?;
        Ok(follow(found, END_WAIT, |view| view.state.is_over()).await)
    }
}

/// A login that never had a code is about to say why.
fn is_ending(view: &LoginView) -> bool {
    view.state == LoginState::Saving && view.reason.is_none()
}

async fn follow(
    mut view: watch::Receiver<LoginView>,
    limit: Duration,
    wanted: impl FnMut(&LoginView) -> bool,
) -> LoginView {
    // Late, or with an actor that is gone: what it last said is the answer.
    let _ = tokio::time::timeout(limit, view.wait_for(wanted)).await;
    view.borrow().clone()
}
