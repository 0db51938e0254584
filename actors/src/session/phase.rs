//! Pure: how far a run is, which request is accepted when, and why one is refused.

use serde::{Deserialize, Serialize};

/// How far a session's run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The run is being launched, or adopted.
    Starting,
    /// The agent can be talked to.
    Live,
    /// The teardown walks its steps.
    Stopping,
    /// The run is over.
    Ended,
    /// The run is over, but its agent could not be proven gone.
    Lost,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndState {
    /// The work was declared done.
    Done,
    /// Somebody stopped it.
    Stopped,
    /// It could not go on.
    Failed,
}

impl EndState {
    /// The name as the API writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// What a snapshot's row says (T-172, T-173).
    pub fn on_snapshot(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Stopped => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// What the outside calls it (API "Objects").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Being launched.
    Starting,
    /// Nothing runs.
    Idle,
    /// A turn runs.
    Working,
    /// A person is needed.
    Waiting,
    /// Being torn down.
    Stopping,
    /// Over.
    Ended,
    /// Over, and something of it may still run.
    Lost,
}

impl State {
    /// The name as the API writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Working => "working",
            Self::Waiting => "waiting",
            Self::Stopping => "stopping",
            Self::Ended => "ended",
            Self::Lost => "lost",
        }
    }

    /// Derives it. Waiting is loud: it wins over working.
    pub fn derive(phase: Phase, turn_runs: bool, someone_is_needed: bool) -> Self {
        match phase {
            Phase::Starting => Self::Starting,
            Phase::Stopping => Self::Stopping,
            Phase::Ended => Self::Ended,
            Phase::Lost => Self::Lost,
            Phase::Live if someone_is_needed => Self::Waiting,
            Phase::Live if turn_runs => Self::Working,
            Phase::Live => Self::Idle,
        }
    }
}

/// What may be asked of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A message to the agent.
    Turn,
    /// The end of the running turn.
    Interrupt,
    /// An answer to an approval.
    Answer,
    /// A seat before the terminal.
    Terminal,
    /// Another model or effort.
    ChangeModel,
    /// The end of the run.
    Stop,
    /// A new run.
    Resume,
    /// Forgetting the session.
    Delete,
}

/// Why a request is refused now. The text is for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The run is not there yet; asking again helps.
    #[error("the session is still starting")]
    Starting,
    /// The run is being ended, or is over.
    #[error("the session has ended")]
    Ended,
    /// The run is not over.
    #[error("the session is still {0}: stop it first")]
    Live(&'static str),
}

impl Phase {
    /// Accepts or refuses.
    pub fn accepts(self, request: Request) -> Result<(), Refusal> {
        use Request::{Answer, ChangeModel, Delete, Interrupt, Resume, Stop, Terminal, Turn};
        match (self, request) {
            (Self::Live, Turn | Interrupt | Answer | Terminal | ChangeModel) => Ok(()),
            (Self::Starting | Self::Live, Stop) => Ok(()),
            // Asked for again, a stop is answered as what it is: under way.
            (Self::Stopping, Stop) => Ok(()),
            // A lost session can be stopped again: its teardown tries the unfinished steps once more.
            (Self::Lost, Stop) => Ok(()),
            (Self::Ended, Resume | Delete) => Ok(()),
            (Self::Starting, Turn | Interrupt | Answer | Terminal | ChangeModel) => Err(Refusal::Starting),
            (
                Self::Ended | Self::Lost | Self::Stopping,
                Turn | Interrupt | Answer | Terminal | ChangeModel,
            ) => Err(Refusal::Ended),
            (Self::Ended, Stop) => Err(Refusal::Ended),
            (Self::Starting, Resume | Delete) => Err(Refusal::Live("starting")),
            (Self::Live, Resume | Delete) => Err(Refusal::Live("running")),
            (Self::Stopping, Resume | Delete) => Err(Refusal::Live("stopping")),
            (Self::Lost, Resume | Delete) => Err(Refusal::Live("lost, its agent may still run")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTS: [Request; 8] = [
        Request::Turn,
        Request::Interrupt,
        Request::Answer,
        Request::Terminal,
        Request::ChangeModel,
        Request::Stop,
        Request::Resume,
        Request::Delete,
    ];

    #[test]
    fn nothing_but_a_stop_is_accepted_once_the_end_has_begun() {
        for request in REQUESTS {
            assert_eq!(Phase::Stopping.accepts(request).is_ok(), request == Request::Stop, "{request:?}");
        }
    }

    #[test]
    fn only_an_ended_session_is_resumed_or_deleted() {
        for phase in [Phase::Starting, Phase::Live, Phase::Stopping, Phase::Lost] {
            assert!(phase.accepts(Request::Resume).is_err());
            assert!(phase.accepts(Request::Delete).is_err());
        }
        assert_eq!(Phase::Ended.accepts(Request::Resume), Ok(()));
    }

    #[test]
    fn waiting_is_louder_than_working_but_not_than_the_end() {
        assert_eq!(State::derive(Phase::Live, true, true), State::Waiting);
        assert_eq!(State::derive(Phase::Live, true, false), State::Working);
        assert_eq!(State::derive(Phase::Stopping, true, true), State::Stopping);
    }
}
