use super::*;

const ALL: [&str; 10] = [
    "item/commandExecution/requestApproval",
    "item/fileChange/requestApproval",
    "item/tool/requestUserInput",
    "mcpServer/elicitation/request",
    "item/permissions/requestApproval",
    "item/tool/call",
    "account/chatgptAuthTokens/refresh",
    "attestation/generate",
    "applyPatchApproval",
    "execCommandApproval",
];

const DECISIONS: [Decision; 4] =
    [Decision::Accept, Decision::AcceptForSession, Decision::Decline, Decision::Cancel];

fn sorted(method: &str, params: &'static str) -> ServerRequest {
    classify(&RequestId::Int(0), method, &Bytes::from_static(params.as_bytes()))
}

fn approval_of(method: &str, params: &'static str) -> Approval {
    let ServerRequest::Approval(approval) = sorted(method, params) else { panic!("{method}") };
    approval
}

fn answers_to(request: &ServerRequest) -> Vec<String> {
    match request {
        ServerRequest::Approval(approval) => DECISIONS.map(|decision| approval.answer(decision)).to_vec(),
        ServerRequest::Question(question) => {
            let answers = Reply::Answers([("q".to_owned(), vec!["a".to_owned()])].into());
            let content = Reply::Content(Some(RawValue::from_string("{\"x\":1}".to_owned()).unwrap()));
            [answers, content, Reply::Decline, Reply::Cancel].map(|reply| question.answer(&reply)).to_vec()
        }
        ServerRequest::Refused { answer, .. } => vec![answer.clone()],
    }
}

#[test]
fn every_method_is_answered_whatever_its_params() {
    for method in ALL.into_iter().chain(["no/such/method", ""]) {
        for params in ["{}", "[]", "null", "\u{fffd}", r#"{"threadId":7,"command":{},"permissions":null}"#] {
            for answer in answers_to(&sorted(method, params)) {
                let value: serde_json::Value = serde_json::from_str(&answer).unwrap();
                assert_eq!(value["id"], 0, "{method}");
                assert!(value.get("result").is_some() != value.get("error").is_some(), "{answer}");
                assert!(!answer.contains('\n'));
            }
        }
    }
}

#[test]
fn a_command_is_shown_as_it_would_run() {
    let approval = approval_of(
        "item/commandExecution/requestApproval",
        r#"{"threadId":"t","turnId":"u","itemId":"i","reason":"why","command":"/bin/bash -lc 'x'","cwd":"/w",
            "availableDecisions":["accept",{"acceptWithExecpolicyAmendment":{}},"cancel"],"kind":"command"}"#,
    );
    assert_eq!(approval.kind.as_str(), "command");
    assert_eq!(approval.command.as_deref(), Some("/bin/bash -lc 'x'"));
    assert_eq!((approval.cwd.as_deref(), approval.reason.as_deref()), (Some("/w"), Some("why")));
    assert_eq!(approval.available, ["accept", "acceptWithExecpolicyAmendment", "cancel"]);
    assert_eq!(
        DECISIONS.map(|decision| approval.answer(decision)),
        ["accept", "acceptForSession", "decline", "cancel"]
            .map(|word| format!(r#"{{"id":0,"result":{{"decision":"{word}"}}}}"#))
    );
}

#[test]
fn the_first_generation_is_answered_in_its_own_words() {
    let command = approval_of(
        "execCommandApproval",
        r#"{"conversationId":"t","callId":"i","command":["bash","-lc","it's"],"cwd":"/w","parsedCmd":[]}"#,
    );
    assert_eq!(command.command.as_deref(), Some(r"bash -lc 'it'\''s'"));
    assert_eq!((command.thread.as_deref(), command.item.as_deref()), (Some("t"), Some("i")));
    let patch = approval_of(
        "applyPatchApproval",
        r#"{"conversationId":"t","callId":"i","fileChanges":{"/a":{"type":"add","content":"x"}},"grantRoot":"/r"}"#,
    );
    assert_eq!(patch.changes.as_deref(), Some(&br#"{"/a":{"type":"add","content":"x"}}"#[..]));
    assert_eq!((patch.kind, patch.grant_root.as_deref()), (ApprovalKind::FileChange, Some("/r")));
    for approval in [command, patch] {
        assert_eq!(
            DECISIONS.map(|decision| approval.answer(decision)),
            ["approved", "approved_for_session", "denied", "abort"]
                .map(|word| format!(r#"{{"id":0,"result":{{"decision":"{word}"}}}}"#))
        );
    }
}

#[test]
fn a_grant_is_exactly_what_was_asked_for_or_nothing() {
    let approval = approval_of(
        "item/permissions/requestApproval",
        r#"{"threadId":"t","turnId":"u","itemId":"i","cwd":"/w","permissions":{"network":{"enabled":true}}}"#,
    );
    assert!(approval.cancel_needs_interrupt());
    assert_eq!(
        DECISIONS.map(|decision| approval.answer(decision)),
        [
            r#"{"id":0,"result":{"permissions":{"network":{"enabled":true}},"scope":"turn"}}"#,
            r#"{"id":0,"result":{"permissions":{"network":{"enabled":true}},"scope":"session"}}"#,
            r#"{"id":0,"result":{"permissions":{},"scope":"turn"}}"#,
            r#"{"id":0,"result":{"permissions":{},"scope":"turn"}}"#,
        ]
    );
}

#[test]
fn the_agents_questions_are_answered_by_prompt() {
    let request = sorted(
        "item/tool/requestUserInput",
        r#"{"threadId":"t","turnId":"u","itemId":"i","isBlocking":true,"questions":[{"id":"q","header":"H",
            "question":"Which?","options":[{"label":"a","description":"d"}]},{"id":"r","header":"","question":"?",
            "options":null,"isSecret":true}]}"#,
    );
    let ServerRequest::Question(question) = &request else { panic!("not a question") };
    assert_eq!(question.prompts.len(), 2);
    assert_eq!(question.prompts[0].options[0].label, "a");
    assert!(question.prompts[1].is_secret && question.prompts[1].options.is_empty());
    assert_eq!(
        answers_to(&request)[..2],
        [r#"{"id":0,"result":{"answers":{"q":{"answers":["a"]}}}}"#, r#"{"id":0,"result":{"answers":{}}}"#]
    );
}

#[test]
fn an_elicitation_is_accepted_with_its_form_or_declined() {
    let request = sorted(
        "mcpServer/elicitation/request",
        r#"{"threadId":"t","serverName":"s","mode":"form","message":"m","requestedSchema":{"type":"object"}}"#,
    );
    let ServerRequest::Question(question) = &request else { panic!("not a question") };
    assert_eq!((question.server.as_deref(), question.message.as_deref()), (Some("s"), Some("m")));
    assert_eq!(question.schema.as_deref(), Some(&br#"{"type":"object"}"#[..]));
    assert_eq!(
        answers_to(&request),
        [
            r#"{"id":0,"result":{"action":"decline","content":null}}"#,
            r#"{"id":0,"result":{"action":"accept","content":{"x":1}}}"#,
            r#"{"id":0,"result":{"action":"decline","content":null}}"#,
            r#"{"id":0,"result":{"action":"cancel","content":null}}"#,
        ]
    );
}

#[test]
fn what_nobody_can_answer_is_refused_at_once() {
    for method in ["account/chatgptAuthTokens/refresh", "attestation/generate", "no/such/method"] {
        let ServerRequest::Refused { answer, .. } = sorted(method, "{}") else { panic!("{method}") };
        assert!(answer.starts_with(r#"{"id":0,"error":{"code":-32601,"message":""#), "{answer}");
    }
    let ServerRequest::Refused { answer, .. } = sorted("item/tool/call", "{}") else { panic!("tool call") };
    assert!(answer.starts_with(r#"{"id":0,"result":{"success":false,"contentItems":[{"type":"inputText""#));
}

#[test]
fn a_settled_request_is_named_by_either_kind_of_id() {
    let resolved = Resolved::parse(br#"{"threadId":"t","requestId":0}"#).unwrap();
    assert_eq!(resolved, Resolved { id: RequestId::Int(0), thread: Some("t".into()) });
    assert_eq!(Resolved::parse(br#"{"requestId":"a"}"#).unwrap().id, RequestId::Text("a".into()));
    assert_eq!(Resolved::parse(b"{}"), None);
}
