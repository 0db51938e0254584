#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use serde_json::json;

use super::deliverable::{BadPath, answer, name_of};
use super::*;

fn all() -> KeywordFeatures {
    KeywordFeatures { browser: BrowserMode::Redirect, client_messages: true, caller_messages: true }
}

fn status(percent: Option<u8>, message: &str) -> Keyword {
    Keyword::Status { percent, message: message.to_owned() }
}

fn note(text: &str) -> Keyword {
    Keyword::Note(text.to_owned())
}

fn done(summary: Option<&str>) -> Keyword {
    Keyword::Done { summary: summary.map(str::to_owned) }
}

fn failed(message: Option<&str>) -> Keyword {
    Keyword::Error { message: message.map(str::to_owned) }
}

fn file(path: &str) -> Keyword {
    Keyword::Deliverable { path: path.to_owned() }
}

fn page(url: &str) -> Keyword {
    Keyword::Browser { url: url.to_owned() }
}

fn person(reason: &str) -> Keyword {
    Keyword::Attention { reason: reason.to_owned() }
}

#[test]
fn every_corner_of_the_grammar() {
    let table: Vec<(&[u8], Keyword)> = vec![
        // S-150: trailing blanks go, leading ones stay, case counts.
        (b"DONE \t\r\n", done(None)),
        (b" DONE", note(" DONE")),
        (b"\tSTATUS: x", note("\tSTATUS: x")),
        (b"done", note("done")),
        (b"Status: x", note("Status: x")),
        (b"", Keyword::Blank),
        (b"  \t\r\n", Keyword::Blank),
        // S-151, S-152.
        (b"STATUS: 40% comparing", status(Some(40), "comparing")),
        (b"STATUS:40%\tcomparing", status(Some(40), "comparing")),
        (b"STATUS:   7%   x", status(Some(7), "x")),
        (b"STATUS: 999% much", status(Some(100), "much")),
        (b"STATUS: 0% none", status(Some(0), "none")),
        (b"STATUS: 50%", status(Some(50), "")),
        (b"STATUS: 50%   ", status(Some(50), "")),
        (b"STATUS: 1000% x", status(None, "1000% x")),
        (b"STATUS: 50%x", status(None, "50%x")),
        (b"STATUS: -5% x", status(None, "-5% x")),
        (b"STATUS: +5% x", status(None, "+5% x")),
        (b"STATUS: % x", status(None, "% x")),
        ("STATUS: ٤٠% x".as_bytes(), status(None, "٤٠% x")),
        (b"STATUS: about 50% x", status(None, "about 50% x")),
        (b"STATUS:", status(None, "")),
        (b"STATUS: plain", status(None, "plain")),
        (b"STATUS plain", note("STATUS plain")),
        // S-153.
        (b"DELIVERABLE: ./deliverables/my report.md", file("./deliverables/my report.md")),
        (b"DELIVERABLE:x", file("x")),
        (b"DELIVERABLE:", note("DELIVERABLE:")),
        (b"DELIVERABLE:   ", note("DELIVERABLE:")),
        // S-154, S-155.
        (b"DONE", done(None)),
        (b"DONE:", done(None)),
        (b"DONE: \t", done(None)),
        (b"DONE: three files", done(Some("three files"))),
        (b"DONE:x", done(Some("x"))),
        (b"DONE.", note("DONE.")),
        (b"DONE something", note("DONE something")),
        (b"DONE : x", note("DONE : x")),
        (b"DONENESS: x", note("DONENESS: x")),
        (b"ERROR", failed(None)),
        (b"ERROR: broken", failed(Some("broken"))),
        (b"ERROR:", failed(None)),
        (b"ERROR!", note("ERROR!")),
        (b"ERRORS: 3", note("ERRORS: 3")),
        // S-156, S-167.
        (b"BROWSER: \"https://a.example/x?y=1#z\"", page("https://a.example/x?y=1#z")),
        (b"BROWSER: HTTP://A.example", page("HTTP://A.example")),
        (b"BROWSER:http://localhost:1455/auth", page("http://localhost:1455/auth")),
        (b"BROWSER: file:///etc/passwd", note("BROWSER: file:///etc/passwd")),
        (b"BROWSER: javascript:alert(1)", note("BROWSER: javascript:alert(1)")),
        (b"BROWSER: javascript://x/%0aalert(1)", note("BROWSER: javascript://x/%0aalert(1)")),
        (b"BROWSER: https://good.example@evil.example/", note("BROWSER: https://good.example@evil.example/")),
        (b"BROWSER: https:///x", note("BROWSER: https:///x")),
        (b"BROWSER: //a.example", note("BROWSER: //a.example")),
        (b"BROWSER: open", note("BROWSER: open")),
        (b"BROWSER: https://a.example/\x1b[2J", note("BROWSER: https://a.example/\x1b[2J")),
        (b"BROWSER: https://a.example/ b", note("BROWSER: https://a.example/ b")),
        (b"BROWSER:", note("BROWSER:")),
        // S-157.
        (b"ATTENTION: the database asks for a password", person("the database asks for a password")),
        (b"ATTENTION:", note("ATTENTION:")),
        (b"ATTENTION", note("ATTENTION")),
        // S-158.
        (
            b"CLIENT_MESSAGE: chart {\"values\": [1, 2]}",
            Keyword::ClientMessage(Data { keyword: "chart".into(), data: json!({ "values": [1, 2] }) }),
        ),
        (
            b"CALLER_MESSAGE:price   null",
            Keyword::CallerMessage(Data { keyword: "price".into(), data: json!(null) }),
        ),
        (b"CLIENT_MESSAGE: chart", note("CLIENT_MESSAGE: chart")),
        (b"CLIENT_MESSAGE: chart {", note("CLIENT_MESSAGE: chart {")),
        (b"CLIENT_MESSAGE: {\"a\":1}", note("CLIENT_MESSAGE: {\"a\":1}")),
        (b"CLIENT_MESSAGE:", note("CLIENT_MESSAGE:")),
        (b"CALLER_MESSAGE: x 1 2", note("CALLER_MESSAGE: x 1 2")),
        // S-160: the first keyword wins, whatever stands behind it.
        (b"STATUS: DONE", status(None, "DONE")),
        (b"DONE: ERROR: x", done(Some("ERROR: x"))),
        // S-162, S-127.
        (b"\xef\xbb\xbfDONE", done(None)),
        (b"\xef\xbb\xbf\xef\xbb\xbfDONE", note("\u{feff}DONE")),
        (b"\xff\xfe", note("\u{fffd}\u{fffd}")),
        (b"STATUS: 5% caf\xe9", status(Some(5), "caf\u{fffd}")),
        (b"DELIVERABLE: a\xff", file("a\u{fffd}")),
    ];
    for (line, wanted) in table {
        assert_eq!(read(line, all()), wanted, "{:?}", String::from_utf8_lossy(line));
    }
}

#[test]
fn a_keyword_whose_feature_is_off_is_a_note() {
    let lines = ["BROWSER: https://a.example", "CLIENT_MESSAGE: a 1", "CALLER_MESSAGE: a 1"];
    for browser in [BrowserMode::Ignore, BrowserMode::Suppress] {
        let off = KeywordFeatures { browser, client_messages: false, caller_messages: false };
        for line in lines {
            assert_eq!(read(line.as_bytes(), off), note(line));
        }
        assert_eq!(read(b"ATTENTION: x", off), person("x"));
    }
    let usual = KeywordFeatures::default();
    assert_eq!(read(lines[0].as_bytes(), usual), page("https://a.example"));
    assert_eq!(read(lines[1].as_bytes(), usual), note(lines[1]));
}

#[test]
fn a_deliverable_lies_strictly_below_its_directory() {
    for (path, wanted) in [
        ("./deliverables/report.md", Ok("report.md")),
        ("deliverables/a/b c.txt", Ok("a/b c.txt")),
        ("/w/deliverables/x", Ok("x")),
        ("/w//deliverables/./x", Ok("x")),
        ("deliverables/../deliverables/x", Ok("x")),
        ("deliverables/a/../x", Ok("x")),
        ("deliverables", Err(BadPath::Elsewhere)),
        ("deliverables/", Err(BadPath::Elsewhere)),
        ("./deliverables/..", Err(BadPath::Elsewhere)),
        ("deliverables_other/x", Err(BadPath::Elsewhere)),
        ("report.md", Err(BadPath::Elsewhere)),
        ("deliverables/../home/.codex/auth.json", Err(BadPath::Elsewhere)),
        ("/etc/passwd", Err(BadPath::Elsewhere)),
        ("/deliverables/x", Err(BadPath::Elsewhere)),
        ("../w/deliverables/x", Ok("x")),
        ("~/deliverables/x", Err(BadPath::Elsewhere)),
        ("deliverables/a\u{1b}[2J", Err(BadPath::Control)),
        ("deliverables/a\0", Err(BadPath::Control)),
    ] {
        assert_eq!(name_of(path, "/w").as_deref(), wanted.as_deref(), "{path:?}");
    }
    assert_eq!(name_of(&format!("deliverables/{}", "x".repeat(5000)), "/w"), Err(BadPath::TooLong));
}

#[test]
fn a_path_that_is_too_long_stays_too_long() {
    for path in ["é".repeat(4000), "x".repeat(70_000)] {
        let kept = deliverable::bounded(path);
        assert!(kept.len() <= 4100);
        assert_eq!(name_of(&kept, "/w"), Err(BadPath::TooLong));
    }
    assert_eq!(deliverable::bounded("a".to_owned()), "a");
}

#[test]
fn an_answer_is_one_line_with_the_base_name() {
    assert_eq!(answer("./deliverables/a/b.md", " ok\nmore "), "deliverable b.md: ok more");
    assert_eq!(answer("deliverables/", "no"), "deliverable deliverables: no");
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_as_something(line in proptest::collection::vec(any::<u8>(), 0..200)) {
        read(&line, all());
    }

    #[test]
    fn a_note_keeps_the_text_and_is_never_empty(text in "[ a-z]{0,40}") {
        match read(text.as_bytes(), all()) {
            Keyword::Blank => prop_assert!(text.trim().is_empty()),
            Keyword::Note(kept) => prop_assert_eq!(kept, text.trim_end()),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn a_percentage_is_never_above_a_hundred(digits in 0u32..5000, text in "[a-z ]{0,10}") {
        if let Keyword::Status { percent: Some(percent), .. } = read(format!("STATUS: {digits}% {text}").as_bytes(), all()) {
            prop_assert!(percent <= 100);
            prop_assert!(digits < 1000);
        }
    }

    #[test]
    fn a_name_never_leads_out(path in "[a-z./~ ]{0,40}") {
        if let Ok(name) = name_of(&path, "/w/s") {
            prop_assert!(!name.is_empty() && !name.starts_with('/'));
            prop_assert!(name.split('/').all(|segment| !segment.is_empty() && segment != "." && segment != ".."));
        }
    }

    #[test]
    fn an_address_is_clean(url in "\\PC{0,60}") {
        if let Some(address) = browser::address(&format!("https://{url}")) {
            prop_assert!(!address.contains(char::is_whitespace) && !address.contains('"'));
        }
    }
}

/// The stub, run by this machine's own shell.
#[test]
fn a_stub_writes_the_last_address_and_nothing_else() {
    let dir = std::env::temp_dir().join(format!("optio shim's {}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let log = dir.join("optio.log");
    let script = browser::shim(log.to_str().unwrap());
    let run = |args: &[&str]| {
        std::fs::write(&log, "").unwrap();
        let ran =
            std::process::Command::new("sh").args(["-c", &script, "xdg-open"]).args(args).status().unwrap();
        assert!(ran.success());
        std::fs::read_to_string(&log).unwrap()
    };
    assert_eq!(run(&["https://a.example/x"]), "BROWSER: \"https://a.example/x\"\n");
    assert_eq!(run(&["open", "https://a.example/x"]), "BROWSER: \"https://a.example/x\"\n");
    assert_eq!(run(&["https://a.example/1", "https://a.example/2"]), "BROWSER: \"https://a.example/2\"\n");
    assert_eq!(run(&["https://a.example/%s$(id)`id`"]), "BROWSER: \"https://a.example/%s$(id)`id`\"\n");
    for nothing in
        [&[][..], &["open"], &["--version"], &["https://a.example/\nDONE"], &["https://a.example/\n"]]
    {
        assert_eq!(run(nothing), "", "{nothing:?}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
