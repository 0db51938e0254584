//! The answers, each in the words of its method's schema (the same in 0.142.5 and 0.169.0).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Approval, Dialect, Question, QuestionKind};
use crate::rpc::{RequestId, encode_result};

/// What a person says to an [`Approval`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Yes, this once.
    Accept,
    /// Yes, and do not ask again for the like in this session.
    AcceptForSession,
    /// No; the turn goes on without it.
    Decline,
    /// No, and the turn ends (S-351).
    Cancel,
}

impl Decision {
    /// Reads the API's word.
    pub fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "accept" => Self::Accept,
            "accept_for_session" => Self::AcceptForSession,
            "decline" => Self::Decline,
            "cancel" => Self::Cancel,
            _ => return None,
        })
    }

    /// Answers the API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::AcceptForSession => "accept_for_session",
            Self::Decline => "decline",
            Self::Cancel => "cancel",
        }
    }
}

#[derive(Serialize)]
struct Decided {
    decision: &'static str,
}

impl Approval {
    /// Encodes the decision as this request's method wants it, one JSON text without a newline.
    pub fn answer(&self, decision: Decision) -> String {
        let word = match (self.dialect, decision) {
            (Dialect::Grant, _) => return self.grant(decision),
            (Dialect::Current, Decision::Accept) => "accept",
            (Dialect::Current, Decision::AcceptForSession) => "acceptForSession",
            (Dialect::Current, Decision::Decline) => "decline",
            (Dialect::Current, Decision::Cancel) => "cancel",
            (Dialect::Legacy, Decision::Accept) => "approved",
            (Dialect::Legacy, Decision::AcceptForSession) => "approved_for_session",
            (Dialect::Legacy, Decision::Decline) => "denied",
            (Dialect::Legacy, Decision::Cancel) => "abort",
        };
        encode_result(&self.id, &Decided { decision: word })
    }

    /// Says whether answering with [`Decision::Cancel`] does not end the turn by itself, so that the turn must also be
    /// interrupted: a grant knows no such word.
    pub fn cancel_needs_interrupt(&self) -> bool {
        self.dialect == Dialect::Grant
    }

    /// Grants exactly what was asked for, or nothing.
    fn grant(&self, decision: Decision) -> String {
        #[derive(Serialize)]
        struct Granted<'a> {
            permissions: &'a RawValue,
            scope: &'static str,
        }
        let asked = self.changes.as_deref().and_then(|raw| serde_json::from_slice::<&RawValue>(raw).ok());
        let nothing = serde_json::from_str::<&RawValue>("{}").expect("an empty object is JSON");
        let (permissions, scope) = match decision {
            Decision::Accept => (asked.unwrap_or(nothing), "turn"),
            Decision::AcceptForSession => (asked.unwrap_or(nothing), "session"),
            Decision::Decline | Decision::Cancel => (nothing, "turn"),
        };
        encode_result(&self.id, &Granted { permissions, scope })
    }
}

/// What a person says to a [`Question`].
#[derive(Debug, Clone)]
pub enum Reply {
    /// Words for each prompt, by its id.
    Answers(BTreeMap<String, Vec<String>>),
    /// The filled form of an elicitation, or nothing after an address was opened.
    Content(Option<Box<RawValue>>),
    /// No answer; the agent goes on without.
    Decline,
    /// No answer, and no more of this.
    Cancel,
}

impl Question {
    /// Encodes the reply as this request's method wants it, one JSON text without a newline. A reply of the other
    /// kind says nothing this method can carry, so it declines.
    pub fn answer(&self, reply: &Reply) -> String {
        #[derive(Serialize)]
        struct Words<'a> {
            answers: BTreeMap<&'a str, Answer<'a>>,
        }
        #[derive(Serialize)]
        struct Answer<'a> {
            answers: &'a [String],
        }
        #[derive(Serialize)]
        struct Form<'a> {
            action: &'static str,
            content: Option<&'a RawValue>,
        }
        let form = |action, content| encode_result(&self.id, &Form { action, content });
        match (self.kind, reply) {
            (QuestionKind::UserInput, Reply::Answers(given)) => {
                let answers = given.iter().map(|(id, answers)| (id.as_str(), Answer { answers })).collect();
                encode_result(&self.id, &Words { answers })
            }
            // The method has no word for a refusal; no answers is what it gets.
            (QuestionKind::UserInput, _) => encode_result(&self.id, &Words { answers: BTreeMap::new() }),
            (QuestionKind::Elicitation, Reply::Content(content)) => form("accept", content.as_deref()),
            (QuestionKind::Elicitation, Reply::Cancel) => form("cancel", None),
            (QuestionKind::Elicitation, _) => form("decline", None),
        }
    }
}

/// Encodes a tool call's answer that says the tool failed: the agent reads why and goes on.
pub(super) fn failed_tool_call(id: &RequestId, why: &str) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Failed<'a> {
        success: bool,
        content_items: [Content<'a>; 1],
    }
    #[derive(Serialize)]
    struct Content<'a> {
        r#type: &'static str,
        text: &'a str,
    }
    encode_result(id, &Failed { success: false, content_items: [Content { r#type: "inputText", text: why }] })
}
