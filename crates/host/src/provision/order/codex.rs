//! Codex: the cache, the host's own, the release.

use std::path::{Path, PathBuf};

use super::{Work, note};
use crate::provision::install::{self, Stage, Stamp, is_about_the_program};
use crate::provision::release::Arch;
use crate::provision::{Provided, ProvisionError, probe};

impl Work<'_> {
    pub(super) async fn codex(&self) -> Result<Provided, ProvisionError> {
        if let Some(program) = &self.wishes.program {
            return probe::codex(probe::find_codex(self.host, Some(program)).await?);
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
        let stage = match self.downloaded_codex(&cache, notes).await {
            Err(problem @ ProvisionError::Download { transient: true, .. }) => {
                return self.of_another_pin(&cache, &entry).await.ok_or(problem);
            }
            stage => stage?,
        };
        let version = self.tools.releases.codex.version.clone();
        self.placed(stage, &entry, look.stamp.as_ref(), &version).await
    }

    /// A hit: it answers, and as its stamp says (S-226).
    async fn cached(&self, entry: &Path, stamp: &Stamp) -> Result<Provided, ProvisionError> {
        let program = entry.join(self.tool.name());
        let found = probe::codex(probe::find_codex(self.host, Some(&program)).await?)?;
        if found.version == stamp.version {
            return Ok(found);
        }
        let why = format!("it answers with version {}, its stamp says {}", found.version, stamp.version);
        Err(probe::unusable(self.tool, &program, why))
    }

    /// The newest that another pin left in the cache: where releases cannot be reached it is better than none.
    async fn of_another_pin(&self, cache: &Path, entry: &Path) -> Option<Provided> {
        let mut entries = install::entries(self.host, cache).await.ok()?;
        let version = |path: &PathBuf| probe::numbers(path.file_name()?.to_str()?.strip_prefix("codex-")?);
        entries.sort_by_key(|entry| std::cmp::Reverse(version(entry)));
        for other in entries.iter().filter(|other| *other != entry) {
            let Ok(look) = install::look(self.host, other, self.tool).await else { continue };
            let Some(stamp) = look.usable() else { continue };
            if let Ok(found) = self.cached(other, stamp).await {
                self.tell(format!(
                    "codex {} cannot be downloaded now, codex {} of the cache is used instead",
                    self.tools.releases.codex.version, found.version
                ));
                return Some(found);
            }
        }
        None
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
            let found = match probe::find_codex(self.host, wanted).await {
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

    /// Copies a codex and asks the copy (S-223, S-225).
    async fn copied(&self, cache: &Path, from: &Path) -> Result<(Stage, String), ProvisionError> {
        let stage = self.open_stage(cache).await?;
        stage.copy(self.host, from).await?;
        let copy = probe::codex(probe::find_codex(self.host, Some(&stage.program())).await?)?;
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
        let found = match probe::find_codex(self.host, Some(&stage.program())).await {
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
}
