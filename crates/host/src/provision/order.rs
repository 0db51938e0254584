//! The sources of a program, in their order.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::fetch::Fetcher;
use super::install::{self, Stage, Stamp, is_about_the_program};
use super::release::{Arch, Asset, Releases};
use super::{Progress, Provided, Provision, ProvisionError, Tell, Tool, Wishes, probe, unpack};
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

    async fn codex(&self) -> Result<Provided, ProvisionError> {
        if let Some(program) = &self.wishes.program {
            return probe::codex(self.host.find_codex(Some(program)).await?);
        }
        self.tell("locating codex".to_owned());
        let mut notes = Vec::new();
        let cache = install::cache_dir(self.host, self.wishes.install_dir.as_deref()).await?;
        // Each pin has an entry of its own: a new pin is effective at once (S-238), and two services with different ones
        // do not take turns in replacing each other's.
        let entry = cache.join(format!("codex-{}", self.tools.releases.codex.version));
        let look = install::look(self.host, &entry, self.tool).await?;
        if let Some(stamp) = look.usable() {
            match self.cached(&entry, stamp).await {
                Ok(found) => return Ok(found),
                Err(problem) if is_about_the_program(&problem) => note(&mut notes, "the cache", &problem),
                Err(problem) => return Err(problem),
            }
        }
        let own = self.own_codex(&cache, &mut notes).await?;
        if !self.wishes.install_if_missing {
            // Nothing is installed by using what is there.
            let flag = "install_if_missing";
            return own.ok_or(ProvisionError::NotAllowed { tool: self.tool, flag, notes });
        }
        if let Some(own) = own {
            self.tell(format!("copying codex {} into the cache of the host", own.version));
            match self.copied(&cache, &own.path).await {
                Ok((stage, version)) => {
                    return self.placed(stage, &entry, look.stamp.as_ref(), &version).await;
                }
                Err(problem) if is_about_the_program(&problem) => {
                    note(&mut notes, "a copy of the host's own", &problem);
                }
                Err(problem) => return Err(problem),
            }
        }
        let stage = self.downloaded_codex(&cache, notes).await?;
        let version = self.tools.releases.codex.version.clone();
        self.placed(stage, &entry, look.stamp.as_ref(), &version).await
    }

    /// A hit: it answers, and as its stamp says (S-226).
    async fn cached(&self, entry: &Path, stamp: &Stamp) -> Result<Provided, ProvisionError> {
        let program = entry.join(self.tool.name());
        let found = probe::codex(self.host.find_codex(Some(&program)).await?)?;
        if found.version == stamp.version {
            return Ok(found);
        }
        let why = format!("it answers with version {}, its stamp says {}", found.version, stamp.version);
        Err(probe::unusable(self.tool, &program, why))
    }

    /// What the host has itself: in the cache without a stamp, put there by hand or by another program (S-221), or on its
    /// `PATH`.
    async fn own_codex(
        &self,
        cache: &Path,
        notes: &mut Vec<String>,
    ) -> Result<Option<Provided>, ProvisionError> {
        let unstamped = cache.join(self.tool.name());
        for wanted in [Some(unstamped.as_path()), None] {
            let found = match self.host.find_codex(wanted).await {
                Ok(found) => probe::codex(found),
                Err(problem) => Err(problem.into()),
            };
            match found {
                Ok(found) => return Ok(Some(found)),
                Err(problem) if is_about_the_program(&problem) => {
                    // That there is none in the cache is what is expected.
                    if wanted.is_none() {
                        note(notes, "the host's own", &problem);
                    }
                }
                Err(problem) => return Err(problem),
            }
        }
        Ok(None)
    }

    async fn open_stage(&self, dir: &Path) -> Result<Stage, ProvisionError> {
        let stage = Stage::new(dir, self.tool, &self.tools.ours, &self.tools.now);
        // Before it is made: one that is cancelled meanwhile may have been made.
        self.begun().stages.push(stage.clone());
        stage.open(self.host, &self.tools.ours, &self.tools.now).await?;
        Ok(stage)
    }

    /// Copies a codex and asks the copy (S-223, S-225).
    async fn copied(&self, cache: &Path, from: &Path) -> Result<(Stage, String), ProvisionError> {
        let stage = self.open_stage(cache).await?;
        stage.copy(self.host, from).await?;
        let copy = probe::codex(self.host.find_codex(Some(&stage.program())).await?)?;
        Ok((stage, copy.version))
    }

    async fn downloaded_codex(&self, cache: &Path, notes: Vec<String>) -> Result<Stage, ProvisionError> {
        let arch = Arch::of_uname(self.tool, &install::uname(self.host).await?)?;
        let asset = self.tools.releases.asset(self.tool, arch);
        let program = self.fetched(&asset, arch, notes.clone()).await?;
        let stage = self.open_stage(cache).await?;
        self.tell(format!("installing {} {}", self.tool, asset.version));
        stage.upload(self.host, program).await?;
        match self.tools.releases.helper(arch) {
            Some(helper) => {
                let program = self.fetched(&helper, arch, Vec::new()).await?;
                stage.upload_helper(self.host, program).await?;
            }
            None if probe::has_bwrap(self.host).await? => {}
            None => self.tell(
                "the host has no bubblewrap, without which a codex that was downloaded cannot sandbox commands: install \
                 the package bubblewrap there, or give [provision.codex] bwrap_sha256 in the configuration file"
                    .to_owned(),
            ),
        }
        let found = match self.host.find_codex(Some(&stage.program())).await {
            Ok(found) => probe::codex(found),
            Err(problem) => Err(problem.into()),
        };
        match found {
            Ok(found) if found.version == asset.version => Ok(stage),
            Ok(found) => Err(ProvisionError::Unusable {
                tool: self.tool,
                path: asset.shown(),
                why: format!("it answers with version {}, not {}", found.version, asset.version),
                notes,
            }),
            Err(problem) if is_about_the_program(&problem) => Err(ProvisionError::Unusable {
                tool: self.tool,
                path: asset.shown(),
                why: problem.to_string(),
                notes,
            }),
            Err(problem) => Err(problem),
        }
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

    /// Puts a stage in its place, and takes what is there then: it may be somebody else's, who was faster.
    async fn placed(
        &self,
        stage: Stage,
        entry: &Path,
        bad: Option<&Stamp>,
        version: &str,
    ) -> Result<Provided, ProvisionError> {
        stage.place_dir(self.host, entry, bad, &Stamp::new(version)).await?;
        let look = install::look(self.host, entry, self.tool).await?;
        match look.usable() {
            Some(stamp) => self.cached(entry, stamp).await,
            None => {
                let why = "it was put there, and is no executable file all the same".to_owned();
                Err(probe::unusable(self.tool, &entry.join(self.tool.name()), why))
            }
        }
    }

    async fn ttyd(&self) -> Result<Provided, ProvisionError> {
        if let Some(program) = &self.wishes.program {
            let program = probe::absolute(self.host, program).await?;
            return probe::ttyd(self.host, &program).await;
        }
        self.tell("locating ttyd".to_owned());
        let mut notes = Vec::new();
        let dir = install::ttyd_dir(self.host, self.wishes.install_dir.as_deref()).await?;
        let place = dir.join(self.tool.name());
        match probe::ttyd(self.host, &place).await {
            Ok(found) => return Ok(found),
            Err(problem) if is_about_the_program(&problem) => {
                note(&mut notes, "the one in its place", &problem)
            }
            Err(problem) => return Err(problem),
        }
        let own = match probe::on_path(self.host, self.tool).await {
            // A distribution's ttyd may be a script around its libraries, so it is used where it is.
            Ok(path) => probe::ttyd(self.host, &path).await,
            Err(problem) => Err(problem),
        };
        match own {
            Ok(found) => return Ok(found),
            Err(problem) if is_about_the_program(&problem) => note(&mut notes, "the host's own", &problem),
            Err(problem) => return Err(problem),
        }
        if !self.wishes.install_if_missing {
            let flag = "install_ttyd_if_missing";
            return Err(ProvisionError::NotAllowed { tool: self.tool, flag, notes });
        }
        let arch = Arch::of_uname(self.tool, &install::uname(self.host).await?)?;
        let asset = self.tools.releases.asset(self.tool, arch);
        let program = self.fetched(&asset, arch, notes).await?;
        let stage = self.open_stage(&dir).await?;
        self.tell(format!("installing {} {}", self.tool, asset.version));
        stage.upload(self.host, program).await?;
        // Before it is anybody's: one that does not work here must not take the place of one that may.
        probe::ttyd(self.host, &stage.program()).await?;
        stage.place_file(self.host, &place).await?;
        probe::ttyd(self.host, &place).await
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
