//! What the launch of a terminal has beside that of a conversation: tmux at the beginning, a screen at the end.

use std::time::Duration;

use optio_host::{AgentState, tmux};

use super::{LaunchError, Launching, went_live};
use crate::terminal::TerminalRecord;

/// Pause between two looks at a screen that is still empty.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Launching {
    /// Finds tmux, before anything else is done for a session that could not have its terminal (S-243).
    pub(super) async fn places(&self) -> Result<(), LaunchError> {
        let tmux = tmux::find(&*self.run.host).await?;
        self.run.ledger.edit(|record| {
            if let Some(run) = &mut record.run {
                run.terminal = Some(TerminalRecord { tmux });
            }
        });
        Ok(())
    }

    /// Waits until the agent has drawn something, or has ended without.
    pub(super) async fn curtain(&self) -> Result<(), LaunchError> {
        let (host, dir) = (&*self.run.host, &self.run.dir);
        let places = self.run.ledger.read(|r| r.run.as_ref().and_then(|of_run| of_run.terminal.clone()));
        let places = places.ok_or_else(|| LaunchError::Unusable("no tmux was looked for".to_owned()))?;
        let socket = tmux::socket(host, dir);
        loop {
            // Once the agent is gone so is its tmux: the screen cannot be asked any more.
            match tmux::screen(host, &places.tmux, &socket).await {
                Ok(screen) if !screen.trim().is_empty() => break,
                Ok(_) => {}
                Err(problem) => match host.guard_state(dir).await? {
                    AgentState::Running(_) => return Err(problem.into()),
                    AgentState::Exited { status, .. } => {
                        let said = self.last_words(true).await;
                        return Err(LaunchError::Unusable(format!(
                            "codex ended with {status} at once{said}"
                        )));
                    }
                    AgentState::Absent => return Err(problem.into()),
                },
            }
            if self.stop.is_cancelled() {
                return Err(LaunchError::Stopped);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        went_live(&self.run, |_| {}).await?;
        Ok(())
    }
}
