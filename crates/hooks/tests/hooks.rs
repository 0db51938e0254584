//! Hooks with real programs and a real address on loopback.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use optio_hooks::webhook::WebhookError;
use optio_hooks::{ANSWER_LIMIT, Action, Configured, Deliverable, End, Hooks, LIMIT, Program, Run, Webhook};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn run() -> Run {
    Run {
        session: "ses_1".to_owned(),
        run: "run_1".to_owned(),
        name: "a name".to_owned(),
        labels: BTreeMap::from([("team".to_owned(), "red".to_owned())]),
        host: "local".to_owned(),
        mode: "terminal",
        workdir: "/tasks/ses_1/workdir".to_owned(),
    }
}

fn file() -> Deliverable {
    Deliverable { path: "report.md".to_owned(), text: "all is well\n".to_owned() }
}

fn program(script: &str) -> Configured {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    let action = Some(Action::Program(Program { argv, limit: Duration::from_secs(10) }));
    Configured {
        before_execute: action.clone(),
        after_execute: action.clone(),
        on_deliverable: action.clone(),
        on_seed_saved: action,
    }
}

#[tokio::test]
async fn a_program_is_told_everything_and_its_output_is_the_answer() {
    let hooks = program(r#"printf '%s ' "$OPTIO_HOOK"; cat"#);
    let answer = hooks.on_deliverable(&run(), &file()).await.unwrap().unwrap();
    let (hook, json) = answer.split_once(' ').unwrap();
    assert_eq!(hook, "on_deliverable");
    let told: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(told["hook"], "on_deliverable");
    assert_eq!((&told["session"], &told["labels"]["team"]), (&"ses_1".into(), &"red".into()));
    assert_eq!((&told["path"], &told["text"]), (&"report.md".into(), &"all is well\n".into()));
}

#[tokio::test]
async fn every_hook_is_told_what_it_is_about() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let hooks = program(&format!("cat >>'{0}'; echo >>'{0}'", log.display()));
    hooks.before_execute(&run()).await.unwrap();
    let end = End { outcome: "failed", reason: Some("it broke".to_owned()) };
    hooks.after_execute(&run(), &end).await.unwrap();
    hooks.on_seed_saved(&run(), "0123").await.unwrap();
    let told: Vec<serde_json::Value> = std::fs::read_to_string(log)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let names: Vec<_> = told.iter().map(|told| told["hook"].as_str().unwrap()).collect();
    assert_eq!(names, ["before_execute", "after_execute", "on_seed_saved"]);
    assert_eq!((&told[1]["outcome"], &told[1]["reason"]), (&"failed".into(), &"it broke".into()));
    assert_eq!(told[2]["seed"], "0123");
}

#[tokio::test]
async fn a_failure_says_what_the_program_said() {
    let failed = program("echo 'no room at the inn' >&2; exit 3").before_execute(&run()).await.unwrap_err();
    assert_eq!(failed.hook, "before_execute");
    assert!(failed.why.contains("exit status: 3") && failed.why.contains("no room at the inn"), "{failed}");
    let missing = Program { argv: vec!["/no/such/program".to_owned()], limit: LIMIT };
    let hooks = Configured { before_execute: Some(Action::Program(missing)), ..Configured::default() };
    assert!(hooks.before_execute(&run()).await.unwrap_err().why.contains("/no/such/program"));
}

#[tokio::test]
async fn a_program_that_takes_too_long_ends_with_all_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!("sleep 1000 & echo $! >'{}'; wait", pids.display());
    let argv = ["sh", "-c", &script].map(str::to_owned).to_vec();
    let slow = Program { argv, limit: Duration::from_millis(500) };
    let hooks = Configured { before_execute: Some(Action::Program(slow)), ..Configured::default() };
    assert!(hooks.before_execute(&run()).await.unwrap_err().why.contains("did not end within"));
    let pid = std::fs::read_to_string(pids).unwrap().trim().to_owned();
    let begun = Instant::now();
    let stat = format!("/proc/{pid}/stat");
    // Dead is enough; who inherited it may take its time to notice.
    while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(begun.elapsed() < Duration::from_secs(10), "it lives on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_answer_has_bounds() {
    let flood = program(&format!("head -c {} /dev/zero", ANSWER_LIMIT * 20));
    assert!(flood.on_deliverable(&run(), &file()).await.unwrap_err().why.contains("more than"));
    let binary = program(r"printf '\377'").on_deliverable(&run(), &file()).await.unwrap_err();
    assert!(binary.why.contains("UTF-8"));
}

#[tokio::test]
async fn a_program_that_does_not_read_is_not_waited_for() {
    let mut large = file();
    large.text = "x".repeat(1 << 20);
    assert_eq!(program("echo fine").on_deliverable(&run(), &large).await.unwrap().unwrap(), "fine\n");
}

/// Answers one request with these bytes; gives the request back.
async fn address(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?key=inurl", listener.local_addr().unwrap());
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
        while !String::from_utf8_lossy(&seen).contains("well\\n\"}") {
            match stream.read(&mut chunk).await.unwrap() {
                0 => break,
                count => seen.extend_from_slice(&chunk[..count]),
            }
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&seen).into_owned()
    });
    (url, served)
}

fn webhook(url: &str) -> Configured {
    let action = Webhook::new(url, Some("s3cret"), Duration::from_secs(10)).unwrap();
    Configured { on_deliverable: Some(Action::Webhook(action)), ..Configured::default() }
}

#[tokio::test]
async fn an_address_is_posted_to_with_its_token_and_its_body_is_the_answer() {
    let (url, served) = address("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nshorter").await;
    let hooks = webhook(&url);
    assert_eq!(hooks.on_deliverable(&run(), &file()).await.unwrap().unwrap(), "shorter");
    let request = served.await.unwrap().to_ascii_lowercase();
    assert!(request.starts_with("post /hook?key=inurl "), "{request}");
    assert!(request.contains("authorization: bearer s3cret"), "{request}");
    assert!(request.contains("optio-hook: on_deliverable"), "{request}");
    assert!(!format!("{hooks:?}").contains("s3cret") && !format!("{hooks:?}").contains("inurl"));
}

#[tokio::test]
async fn what_an_address_refuses_is_a_failure_without_its_secrets() {
    for (answer, why) in [
        ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "503"),
        ("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "302"),
        ("", "did not answer"),
    ] {
        let (url, served) = address(answer).await;
        let failed = webhook(&url).on_deliverable(&run(), &file()).await.unwrap_err();
        assert!(failed.why.contains(why), "{failed}");
        assert!(!failed.why.contains("s3cret") && !failed.why.contains("inurl"), "{failed}");
        served.await.unwrap();
    }
}

#[test]
fn an_address_that_would_show_the_world_what_it_is_told_is_refused() {
    for bad in ["http://hooks.example.org/", "ftp://127.0.0.1/", "hooks", ""] {
        assert_eq!(Webhook::new(bad, None, LIMIT).unwrap_err(), WebhookError::Url, "{bad}");
    }
    assert!(Webhook::new("https://hooks.example.org/", None, LIMIT).is_ok());
    assert_eq!(Webhook::new("https://h.test/", Some("a b"), LIMIT).unwrap_err(), WebhookError::Token);
}
