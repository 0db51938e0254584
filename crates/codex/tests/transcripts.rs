//! Real conversations with codex 0.142.5 and 0.169.0, driven through the whole crate: every line the server wrote is
//! routed, every request the client wrote is compared with what these rules would have done.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use bytes::Bytes;
use optio_codex_protocol::answers::{Answer, Answers};
use optio_codex_protocol::events;
use optio_codex_protocol::messages::{Conversation, Kind, Status};
use optio_codex_protocol::requests::{ThreadOpened, ThreadStatus, TurnAck, method};
use optio_codex_protocol::rpc::{Incoming, RequestId, RpcError, route};
use optio_codex_protocol::server_requests::{Approval, Decision, Resolved, ServerRequest, classify};
use optio_codex_protocol::turns::{Effect, MessageId, TurnStatus, Turns};
use serde_json::Value;

/// What a request of the client waits for.
enum Waiting {
    ThreadStart,
    Start(MessageId),
    Steer(MessageId),
    Interrupt(String),
    Other,
}

/// The state of a client that lives through a transcript.
struct Story {
    turns: Turns,
    answers: Answers,
    conversation: Conversation,
    waiting: HashMap<u64, Waiting>,
    approvals: HashMap<RequestId, Approval>,
    said: Vec<Answer>,
    effects: Vec<Effect>,
    refused: Vec<RpcError>,
    decided: Vec<String>,
    /// The names of the journal's events, in order.
    events: Vec<String>,
}

impl Story {
    fn of(transcript: &str) -> Self {
        let mut story = Self {
            turns: Turns::new(""),
            answers: Answers::new(""),
            conversation: Conversation::default(),
            waiting: HashMap::new(),
            approvals: HashMap::new(),
            said: Vec::new(),
            effects: Vec::new(),
            refused: Vec::new(),
            decided: Vec::new(),
            events: Vec::new(),
        };
        for line in transcript.lines() {
            let line: HashMap<String, Box<serde_json::value::RawValue>> = serde_json::from_str(line).unwrap();
            match (line.get("<"), line.get(">")) {
                (Some(theirs), _) => story.hear(Bytes::copy_from_slice(theirs.get().as_bytes())),
                (_, Some(ours)) => story.say(&serde_json::from_str(ours.get()).unwrap()),
                _ => panic!("neither side speaks"),
            }
        }
        story
    }

    fn say(&mut self, ours: &Value) {
        let Some(id) = ours["id"].as_u64() else { return };
        let params = &ours["params"];
        let is_own = params["threadId"].as_str() == Some(self.turns.thread());
        let waiting = match ours["method"].as_str() {
            None => return self.decide(ours),
            Some(method::THREAD_START) => Waiting::ThreadStart,
            Some(method::TURN_START) if is_own => {
                let (message, effects) = self.turns.submit();
                let waiting = match &effects[..] {
                    [Effect::Start { .. }] => Waiting::Start(message),
                    [Effect::Steer { .. }] => Waiting::Steer(message),
                    other => panic!("a message led to {other:?}"),
                };
                self.effects.extend(effects);
                waiting
            }
            Some(method::TURN_INTERRUPT) if is_own => {
                let turn = params["turnId"].as_str().unwrap().to_owned();
                match self.turns.interrupt() {
                    Ok(effects) => {
                        assert_eq!(effects, [Effect::Interrupt { turn: turn.clone() }]);
                        Waiting::Interrupt(turn)
                    }
                    // The lab asked an idle thread, to see it refused.
                    Err(_) => Waiting::Other,
                }
            }
            Some(_) => Waiting::Other,
        };
        self.waiting.insert(id, waiting);
    }

    /// The client's answer to an approval must be the one this crate would have written.
    fn decide(&mut self, ours: &Value) {
        let id: RequestId = serde_json::from_value(ours["id"].clone()).unwrap();
        // An answer to what was withdrawn is the lab's; this client would not have written it (S-353).
        let Some(approval) = self.approvals.get(&id) else {
            return;
        };
        let word = ours["result"]["decision"].as_str().unwrap().to_owned();
        let answer = approval.answer(Decision::from_word(&word).unwrap());
        assert_eq!(serde_json::from_str::<Value>(&answer).unwrap(), *ours);
        self.decided.push(word);
    }

    fn hear(&mut self, line: Bytes) {
        match route(line) {
            Incoming::Foreign { why, line } => panic!("{why}: {line:?}"),
            Incoming::Notification { method, params } => self.notified(&method, &params),
            Incoming::ServerRequest { id, method, params } => match classify(&id, &method, &params) {
                ServerRequest::Approval(approval) => {
                    assert_eq!(approval.turn.as_deref(), self.turns.current());
                    self.approvals.insert(id, approval);
                }
                other => panic!("{method} became {other:?}"),
            },
            Incoming::Response { id, outcome } => {
                let waiting = self.waiting.remove(&id).expect("an answer to a request");
                self.answered(waiting, outcome);
            }
        }
    }

    fn notified(&mut self, method: &str, params: &Bytes) {
        let name = events::name(method);
        if let Some(resolved) = (method == Resolved::METHOD).then(|| Resolved::parse(params).unwrap()) {
            assert!(self.approvals.remove(&resolved.id).is_some(), "{} was asked", resolved.id);
        }
        if name.starts_with("turn.") || name.starts_with("item.") {
            assert_eq!(events::peek(params).thread.as_deref(), Some(self.turns.thread()));
        }
        self.effects.extend(self.turns.notification(method, params));
        self.said.extend(self.answers.notification(method, params));
        self.conversation.apply(&name, params);
        self.events.push(name.into_owned());
    }

    fn answered(&mut self, waiting: Waiting, outcome: Result<Bytes, RpcError>) {
        if let Err(error) = &outcome {
            self.refused.push(error.clone());
        }
        let effects = match (waiting, outcome) {
            (Waiting::ThreadStart, Ok(result)) => {
                let opened = ThreadOpened::parse(method::THREAD_START, &result).unwrap();
                assert_eq!(opened.status, ThreadStatus::Idle);
                assert!(opened.path.unwrap().ends_with(&format!("{}.jsonl", opened.id)));
                self.turns = Turns::new(opened.id.clone());
                self.answers = Answers::new(opened.id.clone());
                self.conversation = Conversation::new(Some(opened.id));
                self.turns.attached(&opened.status, None)
            }
            (Waiting::Start(message), outcome) => {
                let answer =
                    outcome.map(|result| TurnAck::parse(method::TURN_START, &result).unwrap().turn_id);
                self.turns.start_answered(message, answer)
            }
            (Waiting::Steer(message), outcome) => self.turns.steer_answered(message, outcome.map(drop)),
            (Waiting::Interrupt(turn), Err(_)) => self.turns.interrupt_refused(&turn),
            _ => Vec::new(),
        };
        self.effects.extend(effects);
    }

    /// The records of one kind.
    fn of_kind(&self, kind: Kind) -> Vec<(&str, Status)> {
        let of_kind = self.conversation.messages().filter(|message| message.kind == kind);
        of_kind.map(|message| (message.text.as_str(), message.status)).collect()
    }

    /// How the turns ended and what they said.
    fn said(&self) -> Vec<(&str, &TurnStatus)> {
        self.said.iter().map(|answer| (answer.text.as_str(), &answer.status)).collect()
    }

    /// How many messages each turn answered.
    fn answered_messages(&self) -> Vec<usize> {
        let count = |effect: &Effect| match effect {
            Effect::TurnEnded { messages, .. } => Some(messages.len()),
            _ => None,
        };
        self.effects.iter().filter_map(count).collect()
    }
}

/// Runs a test body on the transcripts of both versions.
macro_rules! stories {
    ($($test:ident: $name:literal => $check:expr;)*) => {$(
        #[test]
        fn $test() {
            let check: fn(Story) = $check;
            for transcript in [
                include_str!(concat!("fixtures/142-", $name, ".jsonl")),
                include_str!(concat!("fixtures/169-", $name, ".jsonl")),
            ] {
                let story = Story::of(transcript);
                assert!(!story.turns.is_pending(), "{:?}", story.turns);
                check(story);
            }
        }
    )*};
}

stories! {
    two_turns_are_two_answers: "a-basic" => |story| {
        assert_eq!(
            story.said(),
            [("one two three four", &TurnStatus::Completed), ("pong: second turn", &TurnStatus::Completed)]
        );
        assert_eq!(story.answered_messages(), [1, 1]);
        assert_eq!(story.of_kind(Kind::User).len(), 2);
        assert_eq!(story.of_kind(Kind::Assistant)[0], ("one two three four", Status::Completed));
        assert!(story.events.iter().any(|name| name == "usage.updated"));
        assert!(story.events.iter().any(|name| name == "limits.updated"));
        assert!(story.events.iter().any(|name| name == "codex.thread/status/changed"));
    };
    an_interrupted_turn_keeps_its_half_and_the_next_one_works: "c-interrupt" => |story| {
        let said = story.said();
        assert_eq!(said[0].1, &TurnStatus::Interrupted);
        assert!(said[0].0.starts_with("tick tick "), "{said:?}");
        assert_eq!(said[1], ("alive", &TurnStatus::Completed));
        assert_eq!(story.of_kind(Kind::Assistant)[0], (said[0].0, Status::Interrupted));
    };
    an_accepted_command_runs: "d1-accept" => |story| {
        assert_eq!(story.decided, ["accept"]);
        assert_eq!(story.of_kind(Kind::Command)[0].1, Status::Completed);
        assert_eq!(story.said()[0].1, &TurnStatus::Completed);
        assert!(story.approvals.is_empty(), "the server settled it");
    };
    a_declined_command_leaves_the_turn_running: "d2-decline" => |story| {
        assert_eq!(story.decided[0], "decline");
        assert_eq!(story.of_kind(Kind::Command)[0].1, Status::Declined);
        assert_eq!(story.said()[0].1, &TurnStatus::Completed);
    };
    a_cancelled_command_ends_the_turn: "d3-cancel" => |story| {
        assert_eq!(story.decided, ["cancel"]);
        assert_eq!(story.said()[0].1, &TurnStatus::Interrupted);
        assert!(story.approvals.is_empty());
    };
    a_declined_patch_is_shown_with_its_file: "e3-patch-out-decline" => |story| {
        assert_eq!(story.decided, ["decline"]);
        assert_eq!(story.of_kind(Kind::FileChange), [("add /home/user/out-dec.txt", Status::Declined)]);
    };
    a_failed_turn_says_why: "g1-http401" => |story| {
        assert_eq!(story.said[0].status, TurnStatus::Failed);
        assert!(story.said[0].error.as_deref().unwrap().starts_with("unexpected status 401"));
        assert_eq!(story.of_kind(Kind::Notice).len(), 1);
    };
    refusals_phantoms_and_a_withdrawn_approval: "i-errors" => |story| {
        let refused: Vec<&str> = story.refused.iter().map(|error| error.message.as_str()).collect();
        assert_eq!(refused[0], "Not initialized");
        assert!(story.refused.iter().any(RpcError::is_no_rollout), "{refused:?}");
        assert!(refused.contains(&"no active turn to interrupt"));
        // A message while the first turn ran joined it: two messages, one turn, whatever id was acknowledged.
        assert_eq!(story.answered_messages(), [2, 1]);
        assert_eq!(story.said()[1].1, &TurnStatus::Interrupted);
        assert!(story.approvals.is_empty(), "the pending approval was withdrawn");
        assert_eq!(story.of_kind(Kind::Command)[0].1, Status::Interrupted);
    };
}

#[test]
fn a_commands_end_after_its_turns_end_is_not_lost() {
    let story = Story::of(include_str!("fixtures/142-h-late.jsonl"));
    let late = story.events.windows(2).filter(|pair| *pair == ["turn.completed", "item.completed"]).count();
    let commands = story.of_kind(Kind::Command);
    assert!(
        commands.len() >= 5 && commands.iter().all(|(_, status)| *status == Status::Completed),
        "{commands:?}"
    );
    assert!(late > 0, "the transcript has what it is kept for");
    assert!(!story.turns.is_pending());
    assert!(story.answered_messages().iter().all(|answered| *answered == 1));
}
