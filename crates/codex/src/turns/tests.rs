use proptest::prelude::*;

use super::*;

mod simulation;

const ACTIVE: ThreadStatus = ThreadStatus::Active { flags: Vec::new() };

fn idle() -> Turns {
    let mut turns = Turns::new("own");
    assert_eq!(turns.attached(&ThreadStatus::Idle, None), []);
    turns
}

fn refusal() -> RpcError {
    RpcError { code: -32600, message: "no active turn to steer".to_owned(), data: None }
}

fn ended(turn: &str, status: TurnStatus, messages: &[MessageId]) -> Effect {
    Effect::TurnEnded { turn: turn.to_owned(), status: Some(status), messages: messages.to_vec() }
}

fn joined(message: MessageId, turn: &str, delivery: Delivery) -> Effect {
    Effect::Joined { message, turn: turn.to_owned(), delivery }
}

fn begun(turn: &str) -> Effect {
    Effect::TurnStarted { turn: turn.to_owned() }
}

#[test]
fn a_message_to_an_idle_thread_begins_a_turn_and_its_end_answers_it() {
    let mut turns = idle();
    let (message, effects) = turns.submit();
    assert_eq!(effects, [Effect::Start { message }]);
    assert!(turns.is_pending());
    assert_eq!(turns.start_answered(message, Ok("a".into())), []);
    assert_eq!(turns.current(), None, "an acknowledged id is not a running turn");
    assert_eq!(turns.started("a"), [begun("a"), joined(message, "a", Delivery::Start)]);
    assert_eq!(turns.current(), Some("a"));
    assert_eq!(turns.completed("a", TurnStatus::Completed), [ended("a", TurnStatus::Completed, &[message])]);
    assert!(!turns.is_pending());
}

#[test]
fn a_turn_may_begin_before_its_acknowledgement() {
    let mut turns = idle();
    let (message, _) = turns.submit();
    assert_eq!(turns.started("a"), [begun("a")]);
    assert_eq!(turns.start_answered(message, Ok("a".into())), [joined(message, "a", Delivery::Start)]);
    assert_eq!(turns.completed("a", TurnStatus::Failed), [ended("a", TurnStatus::Failed, &[message])]);
    assert!(!turns.is_pending());
}

#[test]
fn a_turn_may_even_end_before_its_acknowledgement() {
    let mut turns = idle();
    let (message, _) = turns.submit();
    turns.started("a");
    assert_eq!(turns.completed("a", TurnStatus::Completed), [ended("a", TurnStatus::Completed, &[])]);
    assert!(turns.is_pending());
    assert_eq!(turns.start_answered(message, Ok("a".into())), [joined(message, "a", Delivery::Start)]);
    assert!(!turns.is_pending());
}

#[test]
fn a_message_while_a_turn_runs_is_steering() {
    let mut turns = idle();
    turns.started("a");
    let (message, effects) = turns.submit();
    assert_eq!(effects, [Effect::Steer { message, turn: "a".into() }]);
    assert_eq!(turns.steer_answered(message, Ok(())), [joined(message, "a", Delivery::Steer)]);
    assert_eq!(turns.completed("a", TurnStatus::Completed), [ended("a", TurnStatus::Completed, &[message])]);
}

#[test]
fn a_message_behind_a_start_waits_for_the_turn_id() {
    let mut turns = idle();
    let (first, _) = turns.submit();
    let (second, effects) = turns.submit();
    assert_eq!(effects, [], "a second turn/start would be folded into the first and leave a phantom id");
    turns.start_answered(first, Ok("a".into()));
    assert_eq!(
        turns.started("a"),
        [
            begun("a"),
            joined(first, "a", Delivery::Start),
            Effect::Steer { message: second, turn: "a".into() }
        ]
    );
}

#[test]
fn a_phantom_id_leaves_nothing_pending() {
    // The server began a turn of its own; 0.142.5 folds ours into it and acknowledges an id that never starts.
    let mut turns = idle();
    let (message, _) = turns.submit();
    turns.started("theirs");
    assert_eq!(
        turns.start_answered(message, Ok("phantom".into())),
        [joined(message, "theirs", Delivery::Start)]
    );
    assert_eq!(turns.current(), Some("theirs"));
    turns.completed("theirs", TurnStatus::Completed);
    assert!(!turns.is_pending());
}

#[test]
fn an_interrupt_before_the_turn_id_is_known_is_sent_when_it_is() {
    let mut turns = idle();
    let (message, _) = turns.submit();
    assert_eq!(turns.interrupt(), Ok(vec![]));
    turns.start_answered(message, Ok("a".into()));
    assert_eq!(
        turns.started("a"),
        [begun("a"), joined(message, "a", Delivery::Start), Effect::Interrupt { turn: "a".into() }]
    );
    assert_eq!(turns.interrupt(), Ok(vec![]), "asked once is enough");
    turns.completed("a", TurnStatus::Interrupted);
    assert_eq!(turns.interrupt(), Err(NothingRuns));
}

#[test]
fn what_was_held_at_an_interrupt_is_given_back_and_what_comes_after_begins_the_next_turn() {
    let mut turns = idle();
    let (first, _) = turns.submit();
    let (held, _) = turns.submit();
    assert_eq!(turns.interrupt(), Ok(vec![Effect::GivenBack { message: held, why: GivenBack::Interrupted }]));
    let (after, effects) = turns.submit();
    assert_eq!(effects, []);
    turns.start_answered(first, Ok("a".into()));
    turns.started("a");
    assert_eq!(
        turns.completed("a", TurnStatus::Interrupted),
        [ended("a", TurnStatus::Interrupted, &[first]), Effect::Start { message: after }]
    );
}

#[test]
fn a_refused_steer_begins_a_turn_once_the_old_one_is_over() {
    let mut turns = idle();
    turns.started("a");
    let (message, _) = turns.submit();
    assert_eq!(turns.steer_answered(message, Err(refusal())), [], "the turn that refused is not asked again");
    assert_eq!(
        turns.completed("a", TurnStatus::Completed),
        [ended("a", TurnStatus::Completed, &[]), Effect::Start { message }]
    );
    assert_eq!(
        turns.start_answered(message, Err(refusal())),
        [Effect::GivenBack { message, why: GivenBack::Refused(refusal()) }]
    );
    assert!(!turns.is_pending());
}

#[test]
fn a_refused_interrupt_can_be_asked_again() {
    let mut turns = idle();
    turns.started("a");
    assert_eq!(turns.interrupt(), Ok(vec![Effect::Interrupt { turn: "a".into() }]));
    assert_eq!(turns.interrupt_refused("a"), []);
    assert_eq!(turns.interrupt(), Ok(vec![Effect::Interrupt { turn: "a".into() }]));
}

#[test]
fn other_threads_are_not_counted() {
    let mut turns = idle();
    let (message, _) = turns.submit();
    turns.start_answered(message, Ok("a".into()));
    let other = br#"{"threadId":"sub","turn":{"id":"x","status":"completed"}}"#;
    assert_eq!(turns.notification("turn/started", other), []);
    assert_eq!(turns.notification("turn/completed", other), []);
    let own = br#"{"threadId":"own","turn":{"id":"a","status":"inProgress"}}"#;
    assert_eq!(turns.notification("turn/started", own).len(), 2);
    turns.notification("turn/completed", other);
    assert_eq!(turns.current(), Some("a"));
    for junk in [&b"[]"[..], b"{}", b"\xff", br#"{"threadId":"own"}"#] {
        assert_eq!(turns.notification("turn/completed", junk), []);
    }
}

#[test]
fn a_reconnect_in_the_middle_of_a_turn_goes_on_with_it() {
    let mut turns = idle();
    let (message, _) = turns.submit();
    turns.start_answered(message, Ok("a".into()));
    turns.started("a");
    let (lost, _) = turns.submit();
    assert_eq!(turns.detached(), [Effect::Unconfirmed { message: lost }]);
    let (held, effects) = turns.submit();
    assert_eq!(effects, []);
    assert_eq!(turns.attached(&ACTIVE, Some("a")), [Effect::Steer { message: held, turn: "a".into() }]);
    turns.steer_answered(held, Ok(()));
    assert_eq!(
        turns.completed("a", TurnStatus::Completed),
        [ended("a", TurnStatus::Completed, &[message, held])]
    );
}

#[test]
fn a_turn_that_ended_while_nobody_listened_is_ended_at_the_reconnect() {
    let mut turns = idle();
    let (message, _) = turns.submit();
    turns.start_answered(message, Ok("a".into()));
    turns.started("a");
    turns.detached();
    assert_eq!(
        turns.attached(&ThreadStatus::Idle, None),
        [Effect::TurnEnded { turn: "a".into(), status: None, messages: vec![message] }]
    );
    assert!(!turns.is_pending());
}

#[test]
fn a_start_that_was_only_acknowledged_is_found_ended_or_running_after_a_reconnect() {
    for is_running in [false, true] {
        let mut turns = idle();
        let (message, _) = turns.submit();
        turns.start_answered(message, Ok("a".into()));
        assert_eq!(turns.detached(), []);
        let effects = match is_running {
            true => turns.attached(&ACTIVE, Some("a")),
            false => turns.attached(&ThreadStatus::Idle, None),
        };
        assert!(effects.contains(&joined(message, "a", Delivery::Start)), "{effects:?}");
        assert_eq!(turns.is_pending(), is_running);
    }
}

#[test]
fn an_adopted_turn_without_a_name_is_interrupted_when_it_is_mentioned() {
    let mut turns = Turns::new("own");
    turns.attached(&ACTIVE, None);
    assert_eq!(turns.interrupt(), Ok(vec![]));
    let delta = br#"{"threadId":"own","turnId":"late","itemId":"i"}"#;
    assert_eq!(turns.notification("item/completed", delta), [Effect::Interrupt { turn: "late".into() }]);
    assert_eq!(turns.interrupt_refused("late"), [], "it was a late item of the turn before");
    let delta = br#"{"threadId":"own","turnId":"b","itemId":"i","delta":"x"}"#;
    assert_eq!(
        turns.notification("item/agentMessage/delta", delta),
        [Effect::Interrupt { turn: "b".into() }]
    );
}

#[test]
fn notifications_of_the_new_connection_beat_the_answer_that_came_after_them() {
    let mut turns = Turns::new("own");
    turns.started("a");
    assert_eq!(turns.attached(&ThreadStatus::Idle, None), []);
    assert_eq!(turns.current(), Some("a"));
}

#[test]
fn a_reattach_without_a_word_about_the_break_settles_what_was_on_its_way() {
    let mut turns = idle();
    let (message, _) = turns.submit();
    assert_eq!(turns.attached(&ThreadStatus::Idle, None), [Effect::Unconfirmed { message }]);
    assert!(!turns.is_pending());
}

#[test]
fn a_runaway_sender_is_told() {
    let mut turns = idle();
    turns.submit();
    for _ in 0..MAX_HELD {
        assert_eq!(turns.submit().1, []);
    }
    let (message, effects) = turns.submit();
    assert_eq!(effects, [Effect::GivenBack { message, why: GivenBack::TooMany }]);
}

#[test]
fn the_end_of_the_process_settles_everything() {
    let mut turns = idle();
    turns.started("a");
    let (steered, _) = turns.submit();
    turns.interrupt().unwrap();
    let (held, _) = turns.submit();
    assert_eq!(
        turns.close(),
        [
            Effect::Unconfirmed { message: steered },
            Effect::TurnEnded { turn: "a".into(), status: None, messages: vec![] },
            Effect::GivenBack { message: held, why: GivenBack::Closed },
        ]
    );
    assert!(!turns.is_pending());
    let (message, effects) = turns.submit();
    assert_eq!(effects, [Effect::GivenBack { message, why: GivenBack::Closed }]);
}
