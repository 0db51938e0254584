//! The decision table over real HTTP on loopback (T-216…T-232): what the server does, what we take it for, what it proves.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use optio_oauth::{
    Discovery, Encoding, HttpLoginServer, HttpOptions, LoginServer, MAX_BODY, RefreshAnswer, Secret, Verdict,
    judge,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const TOKEN: &str = "rt-original";

/// Far more than loopback needs, and little enough to wait for.
const LIMIT: Duration = Duration::from_millis(600);

/// What a server does with one connection.
#[derive(Clone, Copy)]
enum Act<'a> {
    /// Reads the request and writes this.
    Say(&'a str),
    /// Reads the request and resets the connection.
    ReadAndReset,
    /// Reads the request and closes in order, without a word.
    ReadAndClose,
    /// Resets the connection unread.
    ResetUnread,
    /// Reads the request and never says anything.
    SayNothing,
}

/// A server for one connection, and what it read. A second connection would hang, and with it the test.
async fn serve(act: Act<'_>) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/oauth/token", listener.local_addr().unwrap());
    let (say, act): (String, _) = match act {
        Act::Say(words) => (words.to_owned(), 0),
        Act::ReadAndReset => (String::new(), 1),
        Act::ReadAndClose => (String::new(), 2),
        Act::ResetUnread => (String::new(), 3),
        Act::SayNothing => (String::new(), 4),
    };
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        if act == 3 {
            stream.set_zero_linger().unwrap();
            return String::new();
        }
        let request = read_request(&mut stream).await;
        match act {
            // A client that has read enough may be gone.
            0 => drop(stream.write_all(say.as_bytes()).await),
            1 => stream.set_zero_linger().unwrap(),
            4 => tokio::time::sleep(LIMIT * 4).await,
            _ => {}
        }
        request
    });
    (url, serving)
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await.unwrap();
        request.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if read == 0 || body.len() >= length.unwrap_or(0) {
            return text;
        }
    }
}

fn client(url: &str, encoding: Encoding) -> HttpLoginServer {
    let options = HttpOptions { refresh_url: url.to_owned(), discovery_url: None, encoding, limit: LIMIT };
    HttpLoginServer::new(&options).unwrap()
}

async fn ask(act: Act<'_>) -> RefreshAnswer {
    let (url, serving) = serve(act).await;
    let answer = client(&url, Encoding::Json).refresh(&Secret::new(TOKEN)).await;
    serving.abort();
    answer
}

fn response(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

fn code(code: &str) -> String {
    format!(r#"{{"error":{{"message":"no","type":"invalid_request_error","code":"{code}"}}}}"#)
}

const TOKENS: &str =
    r#"{"id_token":"i","access_token":"a","refresh_token":"r","token_type":"Bearer","expires_in":1}"#;

#[tokio::test]
async fn every_answer_proves_what_the_table_says() {
    let table: Vec<(&str, String, &str)> = vec![
        ("200", response("200 OK", "", TOKENS), "alive"),
        ("200, no rotation", response("200 OK", "", r#"{"access_token":"a"}"#), "alive"),
        (
            "200, empty refresh token",
            response("200 OK", "", r#"{"access_token":"a","refresh_token":""}"#),
            "alive",
        ),
        (
            "200, null refresh token",
            response("200 OK", "", r#"{"access_token":"a","refresh_token":null}"#),
            "alive",
        ),
        ("200, no access token", response("200 OK", "", r#"{"refresh_token":"r"}"#), "suspect"),
        (
            "200, empty access token",
            response("200 OK", "", r#"{"access_token":"","refresh_token":"r"}"#),
            "suspect",
        ),
        ("200, access token of another type", response("200 OK", "", r#"{"access_token":1}"#), "suspect"),
        ("200, an error in the body", response("200 OK", "", &code("refresh_token_reused")), "suspect"),
        ("200, garbage", response("200 OK", "", "<html>hello</html>"), "suspect"),
        ("200, a list", response("200 OK", "", "[1]"), "suspect"),
        ("200, empty", response("200 OK", "", ""), "suspect"),
        ("204", response("204 No Content", "", ""), "suspect"),
        ("400 expired", response("400 Bad Request", "", &code("refresh_token_expired")), "dead"),
        ("400 reused", response("400 Bad Request", "", &code("refresh_token_reused")), "dead"),
        ("400 invalidated", response("400 Bad Request", "", &code("refresh_token_invalidated")), "dead"),
        ("400 invalid_grant", response("400 Bad Request", "", r#"{"error":"invalid_grant"}"#), "dead"),
        (
            "400 code at the top",
            response("400 Bad Request", "", r#"{"code":"refresh_token_expired"}"#),
            "dead",
        ),
        ("400 invalid_request", response("400 Bad Request", "", &code("invalid_request")), "inconclusive"),
        (
            "400 invalid_client",
            response("400 Bad Request", "", r#"{"error":"invalid_client"}"#),
            "inconclusive",
        ),
        ("400 without a code", response("400 Bad Request", "", r#"{"detail":"no"}"#), "inconclusive"),
        ("400 garbage", response("400 Bad Request", "", "no"), "inconclusive"),
        ("401 expired", response("401 Unauthorized", "", &code("refresh_token_expired")), "dead"),
        ("401 reused", response("401 Unauthorized", "", &code("refresh_token_reused")), "dead"),
        ("401 invalidated", response("401 Unauthorized", "", &code("refresh_token_invalidated")), "dead"),
        ("401 another code", response("401 Unauthorized", "", &code("something_new")), "dead"),
        ("401 without a body", response("401 Unauthorized", "", ""), "dead"),
        ("403", response("403 Forbidden", "", "<html>no</html>"), "inconclusive"),
        ("403 invalid_grant", response("403 Forbidden", "", r#"{"error":"invalid_grant"}"#), "inconclusive"),
        ("404", response("404 Not Found", "", ""), "inconclusive"),
        ("407", response("407 Proxy Authentication Required", "", ""), "inconclusive"),
        ("408", response("408 Request Timeout", "", ""), "inconclusive"),
        ("425", response("425 Too Early", "", ""), "inconclusive"),
        ("429", response("429 Too Many Requests", "retry-after: 7\r\n", ""), "inconclusive"),
        ("500", response("500 Internal Server Error", "", &code("server_error")), "inconclusive"),
        ("503", response("503 Service Unavailable", "", "away"), "inconclusive"),
        (
            "503 that lies",
            response("503 Service Unavailable", "", &code("refresh_token_reused")),
            "inconclusive",
        ),
        (
            "401, the body breaks off",
            "HTTP/1.1 401 Unauthorized\r\ncontent-length: 99\r\n\r\n{".to_owned(),
            "dead",
        ),
        (
            "200, the body breaks off",
            format!("HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{TOKENS}"),
            "suspect",
        ),
        ("200, huge", response("200 OK", "", &format!("{TOKENS}{}", " ".repeat(MAX_BODY))), "suspect"),
        ("no HTTP at all", "SSH-2.0-OpenSSH_9.2\r\n".to_owned(), "suspect"),
        ("the head breaks off", "HTTP/1.1 200 OK\r\ncontent-le".to_owned(), "suspect"),
    ];
    let mut wrong = Vec::new();
    for (name, words, verdict) in &table {
        let answer = ask(Act::Say(words)).await;
        let judged = judge(&answer);
        if judged.name() != *verdict {
            wrong.push(format!("{name}: {judged:?} of {answer:?}, {verdict} was expected"));
        }
        assert!(!format!("{answer:?} {judged:?}").contains(TOKEN), "{name} shows the token");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_never_followed() {
    for status in
        ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]
    {
        let (elsewhere, followed) = serve(Act::Say(&response("200 OK", "", TOKENS))).await;
        let answer = ask(Act::Say(&response(status, &format!("location: {elsewhere}\r\n"), ""))).await;
        assert!(matches!(answer, RefreshAnswer::Refused { status: 301..=308, .. }), "{answer:?}");
        assert_eq!(judge(&answer).name(), "inconclusive");
        assert!(!followed.is_finished(), "{status} was followed");
        followed.abort();
    }
}

#[tokio::test]
async fn a_wait_that_is_asked_for_is_told() {
    let wait = async |header: &str| {
        ask(Act::Say(&response("429 Too Many Requests", header, ""))).await.retry_after().map(|d| d.as_secs())
    };
    assert_eq!(wait("retry-after: 7\r\n").await, Some(7));
    assert_eq!(wait("retry-after: 99999999\r\n").await, Some(3600));
    assert_eq!(wait("retry-after: Fri, 31 Dec 1999 23:59:59 GMT\r\n").await, None);
    assert_eq!(wait("").await, None);
}

#[tokio::test]
async fn a_request_that_left_and_got_no_answer_is_not_one_that_never_left() {
    for (name, act) in [
        ("read and reset", Act::ReadAndReset),
        ("read and closed", Act::ReadAndClose),
        ("reset unread", Act::ResetUnread),
        ("no answer in time", Act::SayNothing),
    ] {
        let answer = ask(act).await;
        assert!(matches!(answer, RefreshAnswer::NoAnswer(_)), "{name}: {answer:?}");
        assert_eq!(judge(&answer).name(), "suspect", "{name}");
    }
}

#[tokio::test]
async fn without_a_connection_nothing_was_sent() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (plain, talking) = serve(Act::ReadAndClose).await;
    for url in [format!("http://{nobody}/oauth/token"), plain.replace("http:", "https:")] {
        let answer = client(&url, Encoding::Json).refresh(&Secret::new(TOKEN)).await;
        assert!(matches!(answer, RefreshAnswer::NotSent(_)), "{url}: {answer:?}");
        assert!(matches!(judge(&answer), Verdict::Inconclusive(_)));
    }
    talking.abort();
}

#[tokio::test]
async fn the_request_is_the_one_codex_sends() {
    let (url, serving) = serve(Act::Say(&response("200 OK", "", TOKENS))).await;
    client(&url, Encoding::Json).refresh(&Secret::new("rt \"1\"")).await;
    let request = serving.await.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let expected = r#"{"client_id":"app_EMoamEEZ73f0CkXaXp7hrann","grant_type":"refresh_token","refresh_token":"rt \"1\""}"#;
    assert_eq!(body, expected);
    let mut lines: Vec<_> = head.lines().collect();
    assert_eq!(lines.remove(0), "POST /oauth/token HTTP/1.1");
    for header in [
        "content-type: application/json",
        "accept: application/json",
        "user-agent: optio-codex-seed-verify/1",
    ] {
        assert!(lines.contains(&header), "{header} is missing: {head}");
    }
    assert!(
        !head.to_lowercase().contains("authorization") && !head.to_lowercase().contains("cookie"),
        "{head}"
    );
}

#[tokio::test]
async fn as_a_form_the_fields_come_in_the_standards_order() {
    let (url, serving) = serve(Act::Say(&response("200 OK", "", TOKENS))).await;
    client(&url, Encoding::Form).refresh(&Secret::new("a b+c&d")).await;
    let request = serving.await.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let client = "app_EMoamEEZ73f0CkXaXp7hrann";
    assert_eq!(body, format!("grant_type=refresh_token&refresh_token=a+b%2Bc%26d&client_id={client}"));
    assert!(head.contains("content-type: application/x-www-form-urlencoded"), "{head}");
}

#[tokio::test]
async fn discovery_is_only_the_question_whether_anybody_is_there() {
    let endpoint = r#"{"token_endpoint":"https://elsewhere.example/token"}"#;
    let table = [
        (Act::Say(&response("200 OK", "", endpoint)), true),
        (Act::Say(&response("200 OK", "", "{}")), false),
        (Act::Say(&response("200 OK", "", r#"{"token_endpoint":""}"#)), false),
        (Act::Say(&response("200 OK", "", "<html>")), false),
        (Act::Say(&response("503 Service Unavailable", "", endpoint)), false),
        (Act::Say(&response("302 Found", "location: /\r\n", endpoint)), false),
        (Act::ReadAndReset, false),
        (Act::SayNothing, false),
    ];
    for (i, (act, reachable)) in table.into_iter().enumerate() {
        let (url, serving) = serve(act).await;
        let options =
            HttpOptions { discovery_url: Some(url.clone()), limit: LIMIT, ..HttpOptions::default() };
        let found = HttpLoginServer::new(&options).unwrap().discover().await;
        assert_eq!(found == Discovery::Reachable, reachable, "row {i}: {found:?}");
        if i == 0 {
            let request = serving.await.unwrap();
            assert!(
                request.starts_with("GET /oauth/token HTTP/1.1") && !request.contains(TOKEN),
                "{request}"
            );
            assert!(request.contains("user-agent: optio-codex-seed-verify/1"), "{request}");
        }
    }
}

#[tokio::test]
async fn an_overridden_server_is_not_judged_by_what_the_real_one_says() {
    let options = HttpOptions::with_override(Some("http://127.0.0.1:9/oauth/token".to_owned()));
    assert_eq!(options.discovery_url, None);
    assert_eq!(HttpLoginServer::new(&options).unwrap().discover().await, Discovery::Reachable);
    assert_eq!(HttpOptions::with_override(None), HttpOptions::default());
}

#[test]
fn an_address_that_is_none_is_refused_without_being_shown() {
    for url in ["", "auth.openai.com/oauth/token", "file:///etc/passwd", "http://u:hunter2@[::1"] {
        let options = HttpOptions { refresh_url: url.to_owned(), ..HttpOptions::default() };
        let refused = HttpLoginServer::new(&options).unwrap_err().to_string();
        assert!(refused.contains("refresh address") && !refused.contains("hunter2"), "{url}: {refused}");
    }
}
