//! The agent of a run: its command line, its environment, and what is on record before it is started.

use std::path::PathBuf;

use optio_codex_protocol::argv::{self, BrowserShims, Listen};
use optio_codex_protocol::config::Transport as WantedTransport;
use optio_codex_protocol::sandbox::SandboxSettings;
use optio_codex_protocol::workdir;
use optio_host::{CodexBinary, EnvPlan};

use super::{LaunchError, Launching, ask};
use crate::process::{AgentLaunch, Pipes, StartAgent, Transport};
use crate::session::record::AgentRecord;
use crate::settings::{LEASED_KILL_AFTER, LEASED_TERM_AFTER};

impl Launching {
    pub(super) async fn agent(&self, codex: CodexBinary) -> Result<Option<Pipes>, LaunchError> {
        let home = self.run.host.home().await?;
        let socket = self.run.host.socket_path(&self.run.dir);
        let (launch, transport) = self.run.ledger.read(|record| {
            let transport = match (record.config.transport(), codex.can_listen) {
                (WantedTransport::Auto | WantedTransport::Unix, true) => Transport::Unix,
                (WantedTransport::Auto, false) | (WantedTransport::Stdio, _) => Transport::Stdio,
                (WantedTransport::Unix, false) => return (None, Transport::Unix),
            };
            let socket = socket.display().to_string();
            let listen = match transport {
                Transport::Unix => Listen::Unix(&socket),
                Transport::Stdio => Listen::Stdio,
            };
            let at = self.run.dir.workdir().display().to_string();
            let sandbox = SandboxSettings::resolve(&record.config, &home.display().to_string());
            let program = workdir::below(&at, &format!("{}/codex", workdir::LOCAL_BIN));
            let env = argv::environment(&record.config, &at, BrowserShims::Installed);
            let path_prefix = env.path_prefix.into_iter().map(PathBuf::from).collect();
            let leased = record.run.as_ref().is_some_and(|run| run.seed.is_some());
            let (term_after, kill_after) = match leased {
                true => (LEASED_TERM_AFTER, LEASED_KILL_AFTER),
                false => (
                    self.settings.orphan_ttl,
                    self.settings.orphan_ttl + (LEASED_KILL_AFTER - LEASED_TERM_AFTER),
                ),
            };
            let launch = AgentLaunch {
                argv: argv::app_server(&program, listen, &record.config, &sandbox),
                env: EnvPlan { remove: env.remove, add: env.add, path_prefix },
                transport,
                term_after,
                kill_after,
            };
            (Some(launch), transport)
        });
        let launch = launch.ok_or_else(|| {
            LaunchError::Unusable(format!(
                "transport: codex {} cannot listen on a socket; \"auto\" or \"stdio\" works",
                codex.version
            ))
        })?;
        self.run.ledger.edit(|record| {
            if let Some(run) = &mut record.run {
                run.transport = Some(transport);
            }
        });
        // On record first: a process that dies now leaves an agent that the next one must look for.
        self.save().await?;
        let started = ask("the process actor", self.crew.process.send(StartAgent(launch))).await??;
        self.run.ledger.edit(|record| {
            if let Some(run) = &mut record.run {
                run.agent = Some(AgentRecord { identity: started.identity, version: codex.version.clone() });
            }
        });
        self.save().await?;
        Ok(started.pipes)
    }
}
