//! What the keyword log needs in the workdir before the agent starts (S-180, S-181, S-196…S-203, S-212, S-213).

use bytes::Bytes;
use optio_codex_protocol::keywords::browser;
use optio_codex_protocol::workdir;
use optio_host::{Host, HostError, TaskDir};

use super::{LaunchError, Launching, in_workdir};
use crate::log_tail::FollowLog;

/// Where the logs of earlier runs are kept.
const OLD_LOG: &str = "optio.log.old";

/// Bytes of one run's log that are kept, its last ones.
const KEPT_OF_A_RUN: u64 = 4 << 20;

/// An old log of this length is begun anew.
const OLD_LOG_LIMIT: u64 = 16 << 20;

/// Bytes of a log that are copied at once.
const COPIED: usize = 1 << 20;

/// Permission bits of a stub: it is a program.
const PROGRAM: u32 = 0o700;

impl Launching {
    /// Puts an empty log, the directory for deliverables and the browser's stubs in their places, and has the log followed.
    /// Before the agent starts, and after whatever a snapshot brought: an old DONE must not end a new run.
    pub(super) async fn protocol(&self) -> Result<(), LaunchError> {
        let (host, dir) = (&*self.run.host, &self.run.dir);
        if self.run.ledger.read(|record| record.config.host_protocol()) {
            host.make_dir(dir, &in_workdir(workdir::DELIVERABLES)?).await?;
        }
        rotate(host, dir).await?;
        host.write(dir, &in_workdir(workdir::OPTIO_LOG)?, Bytes::new(), 0o600).await?;
        let script = browser::shim(&dir.join(&in_workdir(workdir::OPTIO_LOG)?).display().to_string());
        for name in browser::SHIM_NAMES {
            let path = in_workdir(&format!("{}/{name}", workdir::SHIMS))?;
            host.write(dir, &path, Bytes::from(script.clone()), PROGRAM).await?;
        }
        let newest = *self.run.events.stream().newest().borrow();
        self.run.ledger.edit(|record| {
            if let Some(run) = &mut record.run {
                run.log.followed = true;
                run.log.told_before = newest;
            }
        });
        // A tail that died meanwhile has a successor that knows from the record.
        self.crew.log_tail.do_send(FollowLog);
        Ok(())
    }
}

/// Appends what a snapshot, or a kept workdir, has of an earlier log to the older ones, as bytes.
async fn rotate(host: &dyn Host, dir: &TaskDir) -> Result<(), HostError> {
    let (log, old) = (in_workdir(workdir::OPTIO_LOG)?, in_workdir(OLD_LOG)?);
    let first = match host.read_from(dir, &log, 0, COPIED).await {
        // No log, or what an agent has put in its place: there is nothing to keep.
        Err(HostError::NotFound { .. } | HostError::Refused { .. }) => return Ok(()),
        first => first?,
    };
    match host.info(dir, &old).await {
        Ok(Some(info)) if info.len > OLD_LOG_LIMIT => host.remove(dir, &old).await?,
        Ok(_) => {}
        Err(HostError::Refused { .. }) => return Ok(()),
        Err(problem) => return Err(problem),
    }
    let mut at = first.len.saturating_sub(KEPT_OF_A_RUN);
    loop {
        let part = host.read_from(dir, &log, at, COPIED).await?;
        if part.bytes.is_empty() {
            return Ok(());
        }
        at += part.bytes.len() as u64;
        host.append(dir, &old, part.bytes).await?;
    }
}
