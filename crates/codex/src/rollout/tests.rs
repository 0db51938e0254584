use super::*;
use crate::messages::Kind;

const OLD: &str = include_str!("../../tests/fixtures/rollout-142.jsonl");
const NEW: &str = include_str!("../../tests/fixtures/rollout-169.jsonl");

fn read(text: &str) -> Rollout {
    let mut rollout = Rollout::default();
    for line in text.lines() {
        assert_ne!(rollout.line(line.as_bytes()), Folded::Torn, "{line}");
    }
    rollout
}

fn shown(rollout: &Rollout) -> Vec<(Kind, &str, Status)> {
    rollout.conversation().messages().map(|m| (m.kind, m.text.as_str(), m.status)).collect()
}

#[test]
fn both_generations_tell_the_same_story() {
    for (text, version) in [(OLD, "0.142.5"), (NEW, "0.169.0")] {
        let rollout = read(text);
        let header = rollout.header().unwrap();
        assert_eq!(header.cli_version.as_deref(), Some(version));
        assert_eq!(header.cwd.as_deref(), Some("/work/project"));
        assert!(header.is_top_level());

        let shown = shown(&rollout);
        assert_eq!(shown[0], (Kind::User, "@say one two three", Status::Completed));
        assert_eq!(shown[1], (Kind::Assistant, "one two three", Status::Completed));
        assert_eq!(shown[3], (Kind::Command, "echo hi > /outside/x; cat /outside/x", Status::Completed));
        assert_eq!(shown[6], (Kind::FileChange, "add /work/project/a.txt", Status::Completed));
        assert_eq!(shown[9], (Kind::Plan, "[x] a\n[>] b", Status::Completed));
        let slow = "@slow 0.2 tick tick tick tick tick tick tick tick tick tick";
        assert_eq!(shown[11], (Kind::User, slow, Status::Completed));
        assert!(shown.iter().all(|(_, text, _)| !text.contains("environment_context")), "{shown:?}");

        let turns: Vec<_> = rollout.conversation().messages().map(|m| m.turn.clone().unwrap()).collect();
        assert!(turns.is_sorted(), "grouped by turn: {turns:?}");
        let ids: Vec<_> = rollout.conversation().messages().map(|m| m.id.as_str()).collect();
        assert!(ids[1].starts_with("msg_") && ids[3].starts_with("call_"), "the live wire's ids: {ids:?}");
    }
}

#[test]
fn a_torn_last_line_costs_only_itself() {
    let whole = read(OLD);
    let mut rollout = Rollout::default();
    for line in OLD.lines() {
        rollout.line(line.as_bytes());
    }
    for cut in [&b"{\"timestamp\":\"2026-11-21T04:1"[..], b"{", b"\xff\xfe", b"\0\0\0\0"] {
        assert_eq!(rollout.line(cut), Folded::Torn);
    }
    assert_eq!(rollout.line(b"\n"), Folded::Ignored);
    assert_eq!(shown(&rollout), shown(&whole));
}

#[test]
fn a_command_without_its_end_is_interrupted_with_its_turn() {
    let mut rollout = Rollout::default();
    for line in [
        r#"{"type":"event_msg","payload":{"type":"task_started","turn_id":"u"}}"#,
        r#"{"type":"response_item","payload":{"type":"function_call","name":"shell","arguments":"{\"command\":[\"bash\",\"-lc\",\"make\"]}","call_id":"c"}}"#,
        r#"{"type":"response_item","payload":{"type":"function_call","name":"mcp__s__t","arguments":"{}","call_id":"d"}}"#,
        r#"{"type":"response_item","payload":{"type":"function_call_output","call_id":"d","output":"Exit code: 2\nOutput:\n"}}"#,
    ] {
        assert_eq!(rollout.line(line.as_bytes()), Folded::Yes);
    }
    assert_eq!(shown(&rollout)[0], (Kind::Command, "make", Status::InProgress));
    assert_eq!(shown(&rollout)[1], (Kind::Tool, "mcp__s__t", Status::Failed));
    rollout.line(
        br#"{"type":"event_msg","payload":{"type":"turn_aborted","turn_id":"u","reason":"interrupted"}}"#,
    );
    assert_eq!(shown(&rollout)[0].2, Status::Interrupted);
}

#[test]
fn a_name_gives_the_time_and_the_thread() {
    let path = "2026/11/21/rollout-2026-11-21T00-54-03-01a1fb98-9591-7282-a056-066cffdb70d5.jsonl";
    let name = RolloutName::parse(path).unwrap();
    assert_eq!(name.thread, "01a1fb98-9591-7282-a056-066cffdb70d5");
    assert_eq!(name.began.to_string(), "2026-11-21T00:54:03");
    for bad in [
        "rollout-2026-11-21T00-54-03-not-a-uuid.jsonl",
        "rollout-2026-13-21T00-54-03-01a1fb98-9591-7282-a056-066cffdb70d5.jsonl",
        "rollout-é026-11-21T00-54-0-01a1fb98-9591-7282-a056-066cffdb70d5.jsonl",
        "rollout-2026-11-21T00-54-03-01a1fb98-9591-7282-a056-066cffdb70d5.jsonl.tmp",
        "rollout-.jsonl",
        "",
    ] {
        assert_eq!(RolloutName::parse(bad), None, "{bad}");
    }
}

#[test]
fn the_known_thread_is_preferred_to_a_newer_file() {
    let own = "a/rollout-2026-11-21T00-00-00-00000000-0000-7000-8000-00000000000a.jsonl";
    let nested = "b/rollout-2026-11-22T00-00-00-00000000-0000-7000-8000-00000000000b.jsonl";
    let threads = |known: Option<&str>| -> Vec<String> {
        candidates([own, "notes.txt", nested], known).into_iter().map(|name| name.thread).collect()
    };
    assert_eq!(
        threads(Some("00000000-0000-7000-8000-00000000000a")),
        ["00000000-0000-7000-8000-00000000000a"]
    );
    assert_eq!(threads(None).len(), 2);
    assert!(threads(Some("gone"))[0].ends_with('b'), "newest first when the known one has no file");
}

#[test]
fn sub_agents_and_one_shot_runs_are_not_a_sessions_own() {
    let header = |source: &str, more: &str| {
        let line = format!(r#"{{"type":"session_meta","payload":{{"id":"t","source":{source}{more}}}}}"#);
        Header::parse(line.as_bytes()).unwrap()
    };
    assert!(header(r#""cli""#, "").is_top_level());
    assert!(!header(r#""exec""#, "").is_top_level());
    assert!(!header(r#"{"subagent":"review"}"#, "").is_top_level());
    assert!(!header(r#""vscode""#, r#","parent_thread_id":"p""#).is_top_level());
    assert_eq!(Header::parse(br#"{"type":"event_msg","payload":{"id":"t"}}"#), None);
    assert_eq!(Header::parse(b"junk"), None);
}
