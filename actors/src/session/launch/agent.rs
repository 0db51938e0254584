//! The agent of a run: its command line, its environment, and what is on record before it is started.

use std::path::PathBuf;

use optio_codex_protocol::argv::{self, BrowserShims, Listen, TerminalStart};
use optio_codex_protocol::config::{SessionConfig, Transport as WantedTransport};
use optio_codex_protocol::sandbox::SandboxSettings;
use optio_codex_protocol::workdir;
use optio_host::{CodexBinary, EnvPlan, Stage, Terminal, tmux};

use super::{LaunchError, Launching, ask};
use crate::process::{AgentLaunch, Pipes, StartAgent, Transport};
use crate::session::record::AgentRecord;
use crate::settings::{LEASED_KILL_AFTER, LEASED_TERM_AFTER};

impl Launching {
    /// Starts the app-server.
    pub(super) async fn app_server(&self, codex: CodexBinary) -> Result<Option<Pipes>, LaunchError> {
        let transport = match (self.run.ledger.read(|r| r.config.transport()), codex.can_listen) {
            (WantedTransport::Auto | WantedTransport::Unix, true) => Transport::Unix,
            (WantedTransport::Auto, false) | (WantedTransport::Stdio, _) => Transport::Stdio,
            (WantedTransport::Unix, false) => {
                return Err(LaunchError::Unusable(format!(
                    "transport: codex {} cannot listen on a socket; \"auto\" or \"stdio\" works",
                    codex.version
                )));
            }
        };
        let socket = self.run.host.socket_path(&self.run.dir).display().to_string();
        let listen = match transport {
            Transport::Unix => Listen::Unix(&socket),
            Transport::Stdio | Transport::Terminal => Listen::Stdio,
        };
        let words = |program: &str, config: &SessionConfig, sandbox: &SandboxSettings| {
            argv::app_server(program, listen, config, sandbox)
        };
        self.start(codex, transport, Stage::Headless, words).await
    }

    /// Starts codex on a terminal, with the text it begins with (S-253…S-255).
    pub(super) async fn terminal(&self, codex: CodexBinary) -> Result<(), LaunchError> {
        let (places, resume, prompt) = self.run.ledger.read(|record| {
            let run = record.run.as_ref();
            let resume = run.and_then(|run| run.resume_thread.clone());
            (run.and_then(|run| run.terminal.clone()), resume, super::first_text(record))
        });
        let places = places.ok_or_else(|| LaunchError::Unusable("no tmux was looked for".to_owned()))?;
        let socket = tmux::socket(&*self.run.host, &self.run.dir);
        let stage = Stage::Terminal(Terminal { tmux: places.tmux, socket, size: tmux::FIRST_SIZE });
        let words = |program: &str, config: &SessionConfig, sandbox: &SandboxSettings| {
            let start = TerminalStart { resume: resume.as_deref(), prompt };
            argv::terminal(program, start, config, sandbox)
        };
        self.start(codex, Transport::Terminal, stage, words).await.map(drop)
    }

    async fn start(
        &self,
        codex: CodexBinary,
        transport: Transport,
        stage: Stage,
        words: impl FnOnce(&str, &SessionConfig, &SandboxSettings) -> Vec<String>,
    ) -> Result<Option<Pipes>, LaunchError> {
        let home = self.run.host.home().await?;
        let launch = self.run.ledger.edit(|record| {
            let at = self.run.dir.workdir().display().to_string();
            let sandbox = SandboxSettings::resolve(&record.config, &home.display().to_string());
            let program = workdir::below(&at, &format!("{}/codex", workdir::LOCAL_BIN));
            let env = argv::environment(&record.config, &at, BrowserShims::Installed);
            let path_prefix = env.path_prefix.into_iter().map(PathBuf::from).collect();
            let run = record.run.as_mut().expect("a session actor exists only for a run on record");
            run.transport = Some(transport);
            let (term_after, kill_after) = match run.seed {
                Some(_) => (LEASED_TERM_AFTER, LEASED_KILL_AFTER),
                None => (
                    self.settings.orphan_ttl,
                    self.settings.orphan_ttl + (LEASED_KILL_AFTER - LEASED_TERM_AFTER),
                ),
            };
            AgentLaunch {
                argv: words(&program, &record.config, &sandbox),
                env: EnvPlan { remove: env.remove, add: env.add, path_prefix },
                transport,
                stage,
                term_after,
                kill_after,
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
