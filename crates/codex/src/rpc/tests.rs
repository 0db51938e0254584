use proptest::prelude::*;

use super::*;

fn routed(line: &str) -> Incoming {
    route(Bytes::copy_from_slice(line.as_bytes()))
}

fn why(line: &str) -> &'static str {
    match routed(line) {
        Incoming::Foreign { why, .. } => why,
        other => panic!("{line} was routed as {other:?}"),
    }
}

#[test]
fn the_first_server_request_has_id_zero_and_is_a_request() {
    let line = r#"{"method":"item/fileChange/requestApproval","id":0,"params":{"threadId":"t"}}"#;
    let Incoming::ServerRequest { id, method, params } = routed(line) else { panic!("not a request") };
    assert_eq!(id, RequestId::Int(0));
    assert_eq!(id.to_string(), "0");
    assert_eq!(method, "item/fileChange/requestApproval");
    assert_eq!(&params[..], br#"{"threadId":"t"}"#);
}

#[test]
fn ids_are_written_back_as_they_came() {
    for id in ["0", "-7", "9223372036854775807", r#""a b\"c""#] {
        let Incoming::ServerRequest { id: read, .. } = routed(&format!(r#"{{"id":{id},"method":"m"}}"#))
        else {
            panic!("{id}")
        };
        assert_eq!(encode_result(&read, &()), format!(r#"{{"id":{id},"result":null}}"#));
    }
    assert_eq!(RequestId::Text("abc".into()).to_string(), "abc");
}

#[test]
fn members_nobody_asked_for_are_skipped() {
    let line = r#" {"emittedAtMs":1,"jsonrpc":"2.0","method":"turn/started","params":{"a":[1, 2]}} "#;
    let Incoming::Notification { method, params } = routed(line) else { panic!("not a notification") };
    assert_eq!(method, "turn/started");
    assert_eq!(&params[..], br#"{"a":[1, 2]}"#, "the payload keeps its own spelling");
}

#[test]
fn absent_and_null_params_are_an_empty_object() {
    for line in [r#"{"method":"m"}"#, r#"{"method":"m","params":null}"#] {
        assert_eq!(
            routed(line),
            Incoming::Notification { method: "m".into(), params: Bytes::from_static(b"{}") }
        );
    }
}

#[test]
fn an_answer_of_null_is_an_answer() {
    assert_eq!(
        routed(r#"{"id":3,"result":null}"#),
        Incoming::Response { id: 3, outcome: Ok(Bytes::from_static(b"null")) }
    );
    assert_eq!(
        routed(r#"{"id":3,"result":{},"error":null}"#),
        Incoming::Response { id: 3, outcome: Ok(Bytes::from_static(b"{}")) }
    );
}

#[test]
fn a_refusal_of_any_shape_reaches_the_waiter() {
    let Incoming::Response { id: 9, outcome: Err(error) } =
        routed(r#"{"error":{"code":-32001,"message":"busy","data":{"x":1}},"id":9}"#)
    else {
        panic!("not a refusal")
    };
    assert!(error.is_overloaded());
    assert_eq!(error.to_string(), "busy (code -32001)");
    assert_eq!(error.data.as_deref(), Some(&br#"{"x":1}"#[..]));

    let Incoming::Response { id: 9, outcome: Err(error) } = routed(r#"{"error":"no","id":9}"#) else {
        panic!("not a refusal")
    };
    assert_eq!((error.code, error.data.as_deref()), (INTERNAL_ERROR, Some(&br#""no""#[..])));
}

#[test]
fn what_is_not_the_protocol_is_foreign_and_kept() {
    assert_eq!(why("  \r\n"), BLANK);
    assert_eq!(why("warming up"), "not a JSON object");
    assert_eq!(why("[1,\"m\"]"), "not a JSON object");
    assert_eq!(why("{\"method\":"), "not JSON");
    assert_eq!(why("{\"a\":\"\u{0}\"}"), "not JSON");
    assert_eq!(why(r#"{"method":"a","method":"b"}"#), "an envelope member appears twice");
    assert_eq!(why(r#"{"method":7}"#), "method is not a string");
    assert_eq!(why(r#"{"method":"m","params":[1]}"#), "params is not an object");
    assert_eq!(why(r#"{"method":"m","id":1.5}"#), "id is neither an integer nor a string");
    assert_eq!(why(r#"{"method":"m","id":null}"#), "id is neither an integer nor a string");
    assert_eq!(why(r#"{"id":"7","result":{}}"#), "an answer to no request of ours");
    assert_eq!(why(r#"{"id":-1,"result":{}}"#), "an answer to no request of ours");
    assert_eq!(why(r#"{"id":7}"#), "an answer without result or error");
    assert_eq!(why(r#"{"x":1}"#), "neither method nor id");
    let Incoming::Foreign { line, .. } = routed(" junk \n") else { panic!("junk") };
    assert_eq!(&line[..], b"junk");
}

#[test]
fn nesting_of_any_depth_is_one_pass() {
    let deep = format!(r#"{{"method":"m","params":{{"a":{}{}}}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(routed(&deep), Incoming::Notification { .. }));
}

/// Says whether a slice points into the line's own memory. An empty one points nowhere.
fn is_within(line: &Bytes, part: &Bytes) -> bool {
    if part.is_empty() {
        return true;
    }
    let (outer, inner) = (line.as_ptr() as usize, part.as_ptr() as usize);
    outer <= inner && inner + part.len() <= outer + line.len()
}

fn check_sharing(line: &Bytes) {
    match route(line.clone()) {
        Incoming::Response { outcome: Ok(part), .. } | Incoming::Foreign { line: part, .. } => {
            assert!(is_within(line, &part));
        }
        Incoming::Response { outcome: Err(error), .. } => {
            assert!(error.data.is_none_or(|part| is_within(line, &part)));
        }
        Incoming::ServerRequest { params, .. } | Incoming::Notification { params, .. } => {
            assert!(&params[..] == b"{}" || is_within(line, &params));
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_routed_and_every_slice_is_inside_the_line(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        check_sharing(&Bytes::from(bytes));
    }

    #[test]
    fn near_misses_are_routed_and_every_slice_is_inside_the_line(
        parts in proptest::collection::vec(
            prop::sample::select(vec![
                "{", "}", "\"id\"", ":", ",", "0", "-1", "1e3", "\"x\"", "\"method\"", "\"params\"", "\"result\"",
                "\"error\"", "null", "[", "]", " ", "{\"code\":-32001,\"message\":\"m\",\"data\":[]}", "\\u0000", "é",
            ]),
            0..24,
        ),
    ) {
        check_sharing(&Bytes::from(parts.concat()));
    }

    #[test]
    fn a_payload_comes_out_byte_for_byte(text in ".{0,80}", id in any::<i64>()) {
        let params = serde_json::json!({ "text": text }).to_string();
        let line = Bytes::from(format!(r#"{{"id":{id},"method":"m","params":{params}}}"#));
        let Incoming::ServerRequest { id: read, params: found, .. } = route(line) else { panic!("not a request") };
        prop_assert_eq!(read, RequestId::Int(id));
        prop_assert_eq!(&found[..], params.as_bytes());
    }
}
