//! A home that codex has for one task of ours, apart from every session: made with a note of what it is for, used under the
//! guard, and thrown away once what it held is safe.
//!
//! Its directory has a name that the next start knows, so what a dead service left there is found without a record.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use optio_codex_protocol::auth::MAX_AUTH_JSON;
use optio_codex_protocol::workdir;
use optio_host::{AgentState, Host, HostError, RelPath, TaskDir, TaskId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::hosts::LOCAL;
use crate::process::stop_guarded;
use crate::settings::Settings;
use crate::teardown::{StepResult, StopStyle};

/// The kind of the homes where new logins are made.
pub(crate) const LOGIN: &str = "login";

/// The kind of the homes where codex is asked about a login.
pub(crate) const PROBE: &str = "probe";

/// Directories without which codex does not work (S-236).
const HOME_DIRS: [&str; 4] = [workdir::CODEX_HOME, "home/.local/share", "home/.config", "home/.cache"];

/// The largest note: notes of a seed are as large as a request's body may be (1 MiB), and written as JSON again.
const NOTE_LIMIT: u64 = 2 << 20;

/// Bytes of the largest `auth.json` that is read.
const AUTH_LIMIT: u64 = MAX_AUTH_JSON as u64;

/// A look whether a codex still runs that nobody has a connection with.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One such home.
#[derive(Clone)]
pub(crate) struct ThrowAway {
    pub(crate) host: Arc<dyn Host>,
    /// Its directory; nobody else's.
    pub(crate) dir: TaskDir,
}

impl ThrowAway {
    /// The home of this number for tasks of this kind. Looks at nothing.
    pub(crate) fn at(settings: &Settings, kind: &str, slot: usize) -> Result<Self, HostError> {
        let host = settings.hosts.own().ok_or_else(|| HostError::Unreachable {
            host: LOCAL.to_owned(),
            why: "no host is configured".to_owned(),
        })?;
        let dir = host.task_dir(&task(settings, kind, slot)?);
        Ok(Self { host, dir })
    }

    /// Makes the directory, and the note before anything else: whoever finds a login there must know where it belongs.
    pub(crate) async fn make(&self, name: &'static str, note: &impl Serialize) -> Result<(), HostError> {
        self.host.create(&self.dir).await?;
        let note = serde_json::to_vec(note).expect("a note of strings and JSON values is always JSON");
        self.host.write(&self.dir, &path(name), Bytes::from(note), 0o600).await?;
        for home in HOME_DIRS {
            self.host.make_dir(&self.dir, &in_workdir(home)).await?;
        }
        Ok(())
    }

    /// Reads the note. Without one nothing was ever started there.
    pub(crate) async fn note<N: DeserializeOwned>(
        &self,
        name: &'static str,
    ) -> Result<Option<serde_json::Result<N>>, HostError> {
        match self.host.read(&self.dir, &path(name), NOTE_LIMIT).await {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes))),
            Err(HostError::NotFound { .. }) => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    /// Comes back when codex has ended. What cannot be seen is left to the limits of whoever waits.
    pub(crate) async fn end_of_codex(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let state = self.host.guard_state(&self.dir).await;
            if matches!(state, Ok(AgentState::Exited { .. } | AgentState::Absent)) {
                return;
            }
        }
    }

    /// Ends codex if it runs. An error is the absence of proof that it is gone.
    pub(crate) async fn end_codex(&self) -> StepResult {
        stop_guarded(&*self.host, &self.dir, StopStyle::Graceful).await
    }

    /// The `auth.json` of the home, if there is one.
    pub(crate) async fn auth_json(&self) -> Result<Option<Bytes>, HostError> {
        match self.host.read(&self.dir, &in_workdir(workdir::AUTH_JSON), AUTH_LIMIT).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(HostError::NotFound { .. }) => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    /// Removes everything. The login goes first, in one step: what is left of a tree whose removal broke off must not look
    /// like a login.
    pub(crate) async fn wipe(&self) -> Result<(), HostError> {
        self.host.remove(&self.dir, &in_workdir(workdir::AUTH_JSON)).await?;
        self.host.cleanup(&self.dir).await
    }

    /// Where it is, for a person.
    pub(crate) fn place(&self) -> String {
        format!("{} on {}", self.dir.path().display(), self.host.name())
    }
}

/// The name of the directory of the home of this number.
pub(crate) fn task(settings: &Settings, kind: &str, slot: usize) -> Result<TaskId, HostError> {
    TaskId::new(format!("{kind}-{}-{slot}", settings.name))
}

/// A path beside the workdir.
pub(crate) fn path(path: &'static str) -> RelPath {
    RelPath::new(path).expect("a literal relative path without empty or dot segments")
}

/// A path in the workdir.
pub(crate) fn in_workdir(path: &'static str) -> RelPath {
    RelPath::in_workdir(path).expect("a literal relative path without empty or dot segments")
}
