//! The sources of a program, in their order.

mod codex;
mod ttyd;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::fetch::Fetcher;
use super::install::Stage;
use super::release::{Arch, Asset, Releases};
use super::{Progress, Provided, Provision, ProvisionError, Tell, Tool, Wishes, unpack};
use crate::{ByteStream, Host};

/// Limit of providing one program, a download over a slow link included: 110 MB at 100 KB a second take 18 minutes.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// Limit of removing what was begun; beyond it that is left to the next one.
const CLEANUP_LIMIT: Duration = Duration::from_secs(20);

/// Provides programs from the host itself and from releases.
pub struct HostTools {
    releases: Releases,
    fetcher: Fetcher,
    ours: String,
    now: String,
}

impl HostTools {
    /// Downloads go to `dir`, which is this service's alone. `name` tells what this service begins on a host from what others
    /// do there: letters and digits, the same at each start.
    pub fn new(releases: Releases, dir: PathBuf, name: &str) -> Self {
        let ours = name.chars().filter(char::is_ascii_alphanumeric).collect();
        Self { releases, fetcher: Fetcher::new(dir), ours, now: Uuid::new_v4().simple().to_string() }
    }
}

#[async_trait]
impl Provision for HostTools {
    async fn provide(
        &self,
        host: &dyn Host,
        tool: Tool,
        wishes: &Wishes,
        tell: Tell<'_>,
        cancel: &CancellationToken,
    ) -> Result<Provided, ProvisionError> {
        let work = Work { tools: self, host, tool, wishes, tell, begun: Mutex::default() };
        let provided = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(ProvisionError::Cancelled(tool)),
            ended = tokio::time::timeout(LIMIT, work.provide()) => {
                ended.unwrap_or(Err(ProvisionError::Endless { tool, limit: LIMIT }))
            }
        };
        let given_up = matches!(&provided, Err(ProvisionError::Cancelled(_)));
        if tokio::time::timeout(CLEANUP_LIMIT, work.clean_up(given_up)).await.is_err() {
            warn!(%tool, "what was begun on the host could not be removed in time, it is left to the next one");
        }
        match &provided {
            Ok(found) => {
                info!(%tool, version = found.version, path = %found.path.display(), "program is provided")
            }
            Err(problem) => warn!(%tool, %problem, "program is not provided"),
        }
        provided
    }
}

/// One request.
struct Work<'a> {
    tools: &'a HostTools,
    host: &'a dyn Host,
    tool: Tool,
    wishes: &'a Wishes,
    tell: Tell<'a>,
    begun: Mutex<Begun>,
}

/// What has to be removed when it does not come to an end.
#[derive(Default)]
struct Begun {
    stages: Vec<Stage>,
    downloads: Vec<Asset>,
}

impl Work<'_> {
    async fn provide(&self) -> Result<Provided, ProvisionError> {
        match self.tool {
            Tool::Codex => self.codex().await,
            Tool::Ttyd => self.ttyd().await,
        }
    }

    fn tell(&self, message: String) {
        (self.tell)(Progress { percent: None, message });
    }

    async fn open_stage(&self, dir: &Path) -> Result<Stage, ProvisionError> {
        let stage = Stage::new(dir, self.tool, &self.tools.ours, &self.tools.now);
        // Before it is made: one that is cancelled meanwhile may have been made.
        self.begun().stages.push(stage.clone());
        stage.open(self.host, &self.tools.ours, &self.tools.now).await?;
        Ok(stage)
    }

    /// Brings a file to the service and answers the program in it.
    async fn fetched(
        &self,
        asset: &Asset,
        arch: Arch,
        notes: Vec<String>,
    ) -> Result<ByteStream, ProvisionError> {
        let sum = asset.sum.ok_or_else(|| ProvisionError::NotPinned {
            tool: self.tool,
            asset: asset.name.clone(),
            version: asset.version.clone(),
            arch: arch.name(),
            notes,
        })?;
        self.begun().downloads.push(asset.clone());
        let file = self.tools.fetcher.fetch(asset, sum, self.tell).await?;
        Ok(match asset.packed {
            true => unpack::only_file(file, asset.name.clone()),
            false => unpack::whole_file(file),
        })
    }

    fn begun(&self) -> std::sync::MutexGuard<'_, Begun> {
        // Nothing under this lock can panic half way.
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what is not in its place (S-232). A download that was cut goes on next time; one that nobody wants any more
    /// is removed.
    async fn clean_up(&self, given_up: bool) {
        let Begun { stages, downloads } = std::mem::take(&mut *self.begun());
        for stage in stages {
            stage.discard(self.host).await;
        }
        if given_up {
            for asset in downloads {
                self.tools.fetcher.discard(&asset).await;
            }
        }
    }
}

fn note(notes: &mut Vec<String>, what: &str, problem: &ProvisionError) {
    warn!(what, %problem, "source of a program does not do");
    notes.push(format!("{what} did not do: {problem}"));
}
