//! Ttyd: its place, the host's own, the release.

use super::{Work, note};
use crate::provision::install::{self, is_about_the_program};
use crate::provision::release::Arch;
use crate::provision::{Provided, ProvisionError, probe};

impl Work<'_> {
    pub(super) async fn ttyd(&self) -> Result<Provided, ProvisionError> {
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
}
