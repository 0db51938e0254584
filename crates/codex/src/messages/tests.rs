use super::*;

fn shown(conversation: &Conversation) -> Vec<(Kind, &str, Status)> {
    conversation.messages().map(|message| (message.kind, message.text.as_str(), message.status)).collect()
}

fn apply(conversation: &mut Conversation, event: &str, payload: serde_json::Value) {
    conversation.apply(event, payload.to_string().as_bytes());
}

fn delta(conversation: &mut Conversation, item: &str, text: &str) {
    let payload = serde_json::json!({ "threadId": "t", "turnId": "u", "itemId": item, "delta": text });
    apply(conversation, "item.delta", payload);
}

fn item(conversation: &mut Conversation, event: &str, item: serde_json::Value) {
    apply(conversation, event, serde_json::json!({ "threadId": "t", "turnId": "u", "item": item }));
}

fn end(conversation: &mut Conversation, status: &str) {
    let turn = serde_json::json!({ "id": "u", "status": status });
    apply(conversation, "turn.completed", serde_json::json!({ "threadId": "t", "turn": turn }));
}

#[test]
fn an_interrupted_answer_keeps_what_was_heard() {
    let mut conversation = Conversation::new(Some("t".into()));
    item(
        &mut conversation,
        "item.started",
        serde_json::json!({ "type": "agentMessage", "id": "a", "text": "" }),
    );
    delta(&mut conversation, "a", "tick ");
    delta(&mut conversation, "a", "tick ");
    end(&mut conversation, "interrupted");
    assert_eq!(shown(&conversation), [(Kind::Assistant, "tick tick ", Status::Interrupted)]);
    delta(&mut conversation, "a", "late");
    assert_eq!(shown(&conversation)[0].1, "tick tick ", "what was settled grows no more");
}

#[test]
fn a_command_may_end_after_its_turn_or_never() {
    let mut conversation = Conversation::new(None);
    let command = |status: &str| serde_json::json!({ "type": "commandExecution", "id": "c", "command": "make", "status": status });
    item(&mut conversation, "item.started", command("inProgress"));
    end(&mut conversation, "completed");
    assert_eq!(shown(&conversation), [(Kind::Command, "make", Status::InProgress)]);
    item(&mut conversation, "item.completed", command("failed"));
    assert_eq!(shown(&conversation), [(Kind::Command, "make", Status::Failed)]);
    item(&mut conversation, "item.started", command("inProgress"));
    assert_eq!(shown(&conversation), [(Kind::Command, "make", Status::Failed)], "a replay starts nothing");
}

#[test]
fn an_item_announced_again_replaces_itself() {
    let mut conversation = Conversation::new(None);
    delta(&mut conversation, "a", "ha");
    item(
        &mut conversation,
        "item.completed",
        serde_json::json!({ "type": "agentMessage", "id": "a", "text": "half" }),
    );
    item(
        &mut conversation,
        "item.completed",
        serde_json::json!({ "type": "agentMessage", "id": "a", "text": "whole" }),
    );
    item(
        &mut conversation,
        "item.completed",
        serde_json::json!({ "type": "agentMessage", "id": "a", "text": "" }),
    );
    assert_eq!(shown(&conversation), [(Kind::Assistant, "whole", Status::Completed)]);
}

#[test]
fn a_plan_is_one_record_per_turn() {
    let mut conversation = Conversation::new(None);
    for status in ["pending", "inProgress", "completed"] {
        let plan =
            serde_json::json!([{ "step": "a", "status": "completed" }, { "step": "b", "status": status }]);
        apply(
            &mut conversation,
            "plan.updated",
            serde_json::json!({ "threadId": "t", "turnId": "u", "plan": plan }),
        );
    }
    assert_eq!(shown(&conversation), [(Kind::Plan, "[x] a\n[x] b", Status::Completed)]);
}

#[test]
fn an_approval_asked_again_is_the_same_and_its_number_may_come_back() {
    let mut conversation = Conversation::new(None);
    let asked = serde_json::json!({ "id": "0", "kind": "command", "command": "rm x", "turn": "u" });
    apply(&mut conversation, "approval.requested", asked.clone());
    apply(&mut conversation, "approval.requested", asked.clone());
    apply(&mut conversation, "approval.resolved", serde_json::json!({ "id": "0", "state": "declined" }));
    apply(&mut conversation, "approval.requested", asked);
    apply(&mut conversation, "approval.resolved", serde_json::json!({ "id": "0", "state": "cancelled" }));
    assert_eq!(
        shown(&conversation),
        [(Kind::Approval, "rm x", Status::Declined), (Kind::Approval, "rm x", Status::Interrupted)]
    );
}

#[test]
fn a_failed_turn_says_why() {
    let mut conversation = Conversation::new(None);
    let turn =
        serde_json::json!({ "id": "u", "status": "failed", "error": { "message": "unexpected status 401" } });
    apply(&mut conversation, "turn.completed", serde_json::json!({ "threadId": "t", "turn": turn }));
    assert_eq!(shown(&conversation), [(Kind::Notice, "unexpected status 401", Status::Failed)]);
}

#[test]
fn sub_agents_and_junk_leave_no_trace() {
    let mut conversation = Conversation::new(Some("own".into()));
    delta(&mut conversation, "a", "x");
    for event in
        ["item.started", "item.delta", "turn.completed", "plan.updated", "approval.requested", "codex.x"]
    {
        for payload in [&b"{}"[..], b"[]", b"\xff", b""] {
            conversation.apply(event, payload);
        }
    }
    assert_eq!(shown(&conversation), []);
}

#[test]
fn the_view_is_bounded_and_finds_its_records_after_dropping_some() {
    let mut conversation = Conversation::new(None);
    for number in 0..MAX_MESSAGES + 10 {
        delta(&mut conversation, &number.to_string(), "x");
    }
    assert_eq!(conversation.messages().len(), MAX_MESSAGES);
    delta(&mut conversation, &(MAX_MESSAGES + 9).to_string(), "y");
    assert_eq!(conversation.messages().next_back().unwrap().text, "xy");
    assert_eq!(conversation.messages().next().unwrap().id, "10");
    let long = "é".repeat(MAX_TEXT);
    delta(&mut conversation, "long", "a");
    delta(&mut conversation, "long", &long);
    assert_eq!(conversation.messages().next_back().unwrap().text.len(), MAX_TEXT - 1);
}
