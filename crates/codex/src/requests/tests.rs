use bytes::Bytes;

use super::*;

#[test]
fn the_handshake_is_written_as_the_real_server_took_it() {
    let mut ids = Ids::default();
    assert_eq!(
        initialize(ids.mint(), "0.1.0"),
        r#"{"id":1,"method":"initialize","params":{"clientInfo":{"name":"optio_codex","title":"Optio","version":"0.1.0"},"capabilities":{"optOutNotificationMethods":["item/commandExecution/outputDelta"]}}}"#
    );
    assert_eq!(initialized(), r#"{"method":"initialized"}"#);
    assert_eq!(
        account_read(ids.mint()),
        r#"{"id":2,"method":"account/read","params":{"refreshToken":false}}"#
    );
    assert_eq!(model_list(ids.mint(), None), r#"{"id":3,"method":"model/list","params":{}}"#);
    assert_eq!(
        model_list(ids.mint(), Some("c")),
        r#"{"id":4,"method":"model/list","params":{"cursor":"c"}}"#
    );
    assert_eq!(thread_loaded_list(ids.mint(), None), r#"{"id":5,"method":"thread/loaded/list","params":{}}"#);
}

#[test]
fn a_resume_always_names_the_workdir() {
    let options = ThreadOptions {
        cwd: "/w",
        sandbox: "workspace-write",
        approval_policy: "on-request",
        model: Some("m"),
    };
    assert_eq!(
        thread_resume(7, "t", &options),
        r#"{"id":7,"method":"thread/resume","params":{"threadId":"t","cwd":"/w","sandbox":"workspace-write","approvalPolicy":"on-request","model":"m"}}"#
    );
    assert_eq!(
        thread_start(7, &ThreadOptions { model: None, ..options }),
        r#"{"id":7,"method":"thread/start","params":{"cwd":"/w","sandbox":"workspace-write","approvalPolicy":"on-request"}}"#
    );
}

#[test]
fn a_message_is_one_line_whatever_it_holds() {
    let image =
        RawValue::from_string("{\"type\":\"localImage\",\r\n\"path\":\"/p.png\"}".to_owned()).unwrap();
    let input = [Input::Text("two\nlines \"and\" quotes".to_owned()), Input::Raw(image)];
    let options = TurnOptions { model: Some("m"), effort: Some("high") };
    assert_eq!(
        turn_start(3, "t", &input, options),
        r#"{"id":3,"method":"turn/start","params":{"threadId":"t","input":[{"type":"text","text":"two\nlines \"and\" quotes"},{"type":"localImage",  "path":"/p.png"}],"model":"m","effort":"high"}}"#
    );
    assert_eq!(
        turn_steer(4, "t", "u", &input[..1]),
        r#"{"id":4,"method":"turn/steer","params":{"threadId":"t","expectedTurnId":"u","input":[{"type":"text","text":"two\nlines \"and\" quotes"}]}}"#
    );
    assert_eq!(
        turn_interrupt(5, "t", "u"),
        r#"{"id":5,"method":"turn/interrupt","params":{"threadId":"t","turnId":"u"}}"#
    );
}

#[test]
fn a_missing_member_is_named_with_its_method() {
    let error =
        ThreadOpened::parse(method::THREAD_RESUME, &Bytes::from_static(br#"{"thread":{}}"#)).unwrap_err();
    assert_eq!(error.to_string(), "the answer to thread/resume has no `thread.id`");
    let error = TurnAck::parse(method::TURN_START, b"{}").unwrap_err();
    assert_eq!(error.to_string(), "the answer to turn/start has no `turn.id`");
    let error = LoadedThreads::parse(br#"{"data":["secret",7]}"#).unwrap_err();
    assert!(error.to_string().starts_with("the answer to thread/loaded/list is not understood: "));
    assert!(!error.to_string().contains("secret"));
}

#[test]
fn a_joined_thread_says_which_turn_runs() {
    let answer = Bytes::from_static(
        br#"{"thread":{"id":"t","status":{"type":"active","activeFlags":["waitingOnApproval"]},"turns":[
            {"id":"a","status":"completed","items":[{"id":1}]},{"id":"b","status":"inProgress"}]},"model":"m","new":1}"#,
    );
    let opened = ThreadOpened::parse(method::THREAD_RESUME, &answer).unwrap();
    assert_eq!(opened.running_turn.as_deref(), Some("b"));
    assert_eq!(opened.status, ThreadStatus::Active { flags: vec!["waitingOnApproval".to_owned()] });
    assert!(opened.turns.unwrap().starts_with(b"[\n"));
}

#[test]
fn steer_and_start_are_acknowledged_in_two_shapes() {
    let start = TurnAck::parse(method::TURN_START, br#"{"turn":{"id":"u","items":[]}}"#).unwrap();
    let steer = TurnAck::parse(method::TURN_STEER, br#"{"turnId":"u"}"#).unwrap();
    assert_eq!(start, steer);
}

#[test]
fn the_version_is_read_from_the_user_agent() {
    let answer = br#"{"userAgent":"optio_codex/0.142.5 (Debian 12.0.0; x86_64) xterm (optio_codex; 0.1.0)"}"#;
    assert_eq!(InitializeResult::parse(answer).unwrap().version(), Some("0.142.5"));
    assert_eq!(InitializeResult::default().version(), None);
}
