//! Pure: what the agent's own word and its end mean for the outcome of a run.

use optio_codex_protocol::config::Mode;
use optio_host::ExitStatus;
use serde::{Deserialize, Serialize};

use super::phase::EndState;

/// What the agent said in its log about the whole of its work. Nothing is read after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is done (S-168).
    Done {
        /// What was done, in its words.
        summary: Option<String>,
    },
    /// It cannot be done (S-169).
    Error {
        /// Why, in its words.
        message: Option<String>,
    },
}

/// Characters of the agent's words that go into a reason: it is read in a list.
const CHARS: usize = 1000;

impl Verdict {
    /// The outcome and the reason that follow from it.
    pub fn outcome(&self) -> (EndState, String) {
        match self {
            Self::Done { summary: None } => (EndState::Done, "the agent reported DONE".to_owned()),
            Self::Done { summary: Some(words) } => (EndState::Done, short(words)),
            Self::Error { message: None } => (EndState::Failed, "the agent reported ERROR".to_owned()),
            Self::Error { message: Some(words) } => (EndState::Failed, short(words)),
        }
    }
}

/// As much of what the agent wrote as a record keeps and a list shows.
pub(super) fn short(words: &str) -> String {
    match words.char_indices().nth(CHARS) {
        None => words.to_owned(),
        Some((cut, _)) => format!("{}…", &words[..cut]),
    }
}

/// What the end of an agent means that ended by itself: its own word counts first; a terminal without one is judged by its
/// exit status (S-256). A conversation without one was not supposed to end: then there is no outcome here.
pub fn of_agents_end(
    mode: Mode,
    status: ExitStatus,
    verdict: Option<&Verdict>,
) -> Option<(EndState, String)> {
    match (verdict, mode, status) {
        (Some(verdict), ..) => Some(verdict.outcome()),
        (None, Mode::Conversation, _) => None,
        (None, Mode::Terminal, ExitStatus::Code(0)) => Some((EndState::Done, "codex was left".to_owned())),
        (None, Mode::Terminal, ExitStatus::Code(code)) => {
            Some((EndState::Failed, format!("codex exited {code}")))
        }
        (None, Mode::Terminal, status) => Some((EndState::Failed, format!("codex ended with {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_word_beats_its_exit_status_in_both_modes() {
        let done = Verdict::Done { summary: Some("three files".to_owned()) };
        let error = Verdict::Error { message: None };
        for mode in [Mode::Conversation, Mode::Terminal] {
            for status in
                [ExitStatus::Code(0), ExitStatus::Code(1), ExitStatus::Signal(9), ExitStatus::Unknown]
            {
                let outcome =
                    |verdict| of_agents_end(mode, status, Some(verdict)).map(|(outcome, _)| outcome);
                assert_eq!(outcome(&done), Some(EndState::Done));
                assert_eq!(outcome(&error), Some(EndState::Failed));
            }
        }
    }

    #[test]
    fn a_terminal_without_a_word_is_judged_by_its_status_and_a_conversation_is_not() {
        let of = |mode, status| of_agents_end(mode, status, None);
        assert_eq!(of(Mode::Conversation, ExitStatus::Code(0)), None);
        let done = of(Mode::Terminal, ExitStatus::Code(0));
        assert_eq!(done.map(|(outcome, _)| outcome), Some(EndState::Done));
        let failed = of(Mode::Terminal, ExitStatus::Code(3));
        assert_eq!(failed, Some((EndState::Failed, "codex exited 3".to_owned())));
        for status in [ExitStatus::Signal(9), ExitStatus::Unknown] {
            assert_eq!(of(Mode::Terminal, status).map(|(outcome, _)| outcome), Some(EndState::Failed));
        }
    }

    #[test]
    fn a_reason_is_short() {
        let long = Verdict::Error { message: Some("é".repeat(5000)) };
        assert_eq!(long.outcome().1.chars().count(), CHARS + 1);
    }
}
