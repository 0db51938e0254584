//! What an operator's own programs are told of a session, and what they answer (S-022, S-142…S-148).
//!
//! [`Hooks`] is the trait that an embedding program implements; [`Configured`] is what the configuration file can say: a
//! [`program`] to run beside the service, or a [`webhook`] to call. Nothing here knows what an actor is.

pub mod program;
pub mod webhook;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

pub use program::Program;
pub use webhook::Webhook;

/// How long a hook may take unless it is told otherwise: a person waits behind it, and so does an agent.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The longest answer that is taken. It goes to an agent as one message.
pub const ANSWER_LIMIT: usize = 64 * 1024;

/// The run that a hook is called for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Its session's id.
    pub session: String,
    /// Its own id.
    pub run: String,
    /// What people call the session.
    pub name: String,
    /// What tools sort it by.
    pub labels: BTreeMap<String, String>,
    /// The name of the host it is on.
    pub host: String,
    /// `conversation` or `terminal`.
    pub mode: &'static str,
    /// Its working directory on that host.
    pub workdir: String,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct End {
    /// `done`, `stopped` or `failed`.
    pub outcome: &'static str,
    /// One sentence that a person understands.
    pub reason: Option<String>,
}

/// A file that an agent hands over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deliverable {
    /// Its path below `deliverables/`.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// Why a hook is taken for failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{hook}: {why}")]
pub struct HookError {
    /// Which hook.
    pub hook: &'static str,
    /// What went wrong. No secret.
    pub why: String,
}

/// What an operator has a say in. Each method does nothing unless it is written.
///
/// A hook may take its time: the caller gives it a limit, after which its future is dropped and it is taken for failed.
#[async_trait]
pub trait Hooks: Send + Sync + 'static {
    /// Everything of a run is prepared, its agent is started next. An error keeps it from being started, and is the reason
    /// that people see.
    async fn before_execute(&self, _run: &Run) -> Result<(), HookError> {
        Ok(())
    }

    /// The agent is gone, its workdir still there, about to be stored. An error is what the run is then said to have
    /// failed of, unless it had failed already (S-191). Called for every run whose preparation went as far as
    /// [`Hooks::before_execute`], and once more when the service died meanwhile.
    async fn after_execute(&self, _run: &Run, _end: &End) -> Result<(), HookError> {
        Ok(())
    }

    /// An agent hands a file over. What is answered goes back to it as a request for a change; nothing, blanks or `ok` in
    /// any case accept the file. An error tells the agent to hand it over again later (S-174).
    async fn on_deliverable(&self, _run: &Run, _file: &Deliverable) -> Result<Option<String>, HookError> {
        Ok(None)
    }

    /// A login that was made in the run has become a seed. An error is shown and changes nothing (S-468).
    async fn on_seed_saved(&self, _run: &Run, _seed: &str) -> Result<(), HookError> {
        Ok(())
    }
}

/// Nobody has a say.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {}

/// What is done when a hook's time has come.
#[derive(Debug, Clone)]
pub enum Action {
    /// A program beside the service.
    Program(Program),
    /// An address.
    Webhook(Webhook),
}

/// Hooks as the configuration file says them.
#[derive(Debug, Clone, Default)]
pub struct Configured {
    /// See [`Hooks::before_execute`].
    pub before_execute: Option<Action>,
    /// See [`Hooks::after_execute`].
    pub after_execute: Option<Action>,
    /// See [`Hooks::on_deliverable`].
    pub on_deliverable: Option<Action>,
    /// See [`Hooks::on_seed_saved`].
    pub on_seed_saved: Option<Action>,
}

/// What is told: the run's own fields, the hook's name, and what the hook adds.
#[derive(Serialize)]
struct Told<'a, T: Serialize> {
    hook: &'static str,
    #[serde(flatten)]
    run: &'a Run,
    #[serde(flatten)]
    more: T,
}

/// What `on_seed_saved` adds.
#[derive(Serialize)]
struct Seed<'a> {
    seed: &'a str,
}

/// What a hook adds that adds nothing.
#[derive(Serialize)]
struct Nothing {}

async fn tell<T: Serialize>(
    action: Option<&Action>,
    hook: &'static str,
    run: &Run,
    more: T,
) -> Result<Option<String>, HookError> {
    let Some(action) = action else { return Ok(None) };
    let told = serde_json::to_vec(&Told { hook, run, more });
    let told = told.map_err(|problem| HookError { hook, why: problem.to_string() })?;
    let answer = match action {
        Action::Program(program) => program.run(hook, told).await,
        Action::Webhook(webhook) => webhook.call(hook, told).await,
    };
    answer.map(Some).map_err(|why| HookError { hook, why })
}

#[async_trait]
impl Hooks for Configured {
    async fn before_execute(&self, run: &Run) -> Result<(), HookError> {
        tell(self.before_execute.as_ref(), "before_execute", run, Nothing {}).await.map(drop)
    }

    async fn after_execute(&self, run: &Run, end: &End) -> Result<(), HookError> {
        tell(self.after_execute.as_ref(), "after_execute", run, end).await.map(drop)
    }

    async fn on_deliverable(&self, run: &Run, file: &Deliverable) -> Result<Option<String>, HookError> {
        tell(self.on_deliverable.as_ref(), "on_deliverable", run, file).await
    }

    async fn on_seed_saved(&self, run: &Run, seed: &str) -> Result<(), HookError> {
        tell(self.on_seed_saved.as_ref(), "on_seed_saved", run, Seed { seed }).await.map(drop)
    }
}

/// Reads what a hook says of a deliverable: nothing, blanks and `ok` are acceptance (S-174).
pub fn wish(answer: Option<&str>) -> Option<&str> {
    answer.map(str::trim).filter(|answer| !answer.is_empty() && !answer.eq_ignore_ascii_case("ok"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_blanks_and_ok_accept() {
        for accepted in [None, Some(""), Some("  \n"), Some("ok"), Some(" OK\n"), Some("Ok")] {
            assert_eq!(wish(accepted), None, "{accepted:?}");
        }
        assert_eq!(wish(Some(" shorter, please\n")), Some("shorter, please"));
        assert_eq!(wish(Some("ok, but shorter")), Some("ok, but shorter"));
    }
}
