#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn config(change: Value) -> SessionConfig {
    let mut fields = json!({ "mode": "conversation", "instructions": "Sort the mail.  \n\n" });
    fields.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    SessionConfig::from_json(fields).unwrap()
}

fn composed(change: Value) -> String {
    let config = config(change);
    compose(&config, KeywordFeatures::default(), &config.effective_excludes(false))
}

/// Where each of the texts begins; fails when one is absent or not behind the one before it.
fn in_order(whole: &str, parts: &[&str]) {
    let mut at = 0;
    for part in parts {
        at += whole[at..]
            .find(part)
            .unwrap_or_else(|| panic!("{part:?} is not there, or out of order:\n{whole}"));
    }
}

#[test]
fn sections_stand_in_order_with_the_protocol_on() {
    let text = composed(json!({ "host_protocol": true, "conversation_ui": true, "file_download": true }));
    in_order(
        &text,
        &[
            "# ",
            "## Log channel",
            "`./optio.log`",
            "STATUS:",
            "DELIVERABLE:",
            "ATTENTION:",
            "DONE",
            "ERROR",
            "tail -c 1",
            "## Deliverables",
            "./deliverables/",
            "System: deliverable <name>",
            "## Resumes",
            "resume.log",
            "REFRESHED:",
            "## Task",
            "Sort the mail.\n",
            "## Downloadable files",
            "optio-file:",
            "deliverable",
        ],
    );
    assert!(text.starts_with("# ") && text.ends_with('\n') && !text.ends_with("\n\n"));
}

#[test]
fn without_the_protocol_system_messages_are_explained_and_no_keyword_is_named() {
    let text = composed(json!({}));
    in_order(&text, &["## Resumes", "System:", "## Task", "Sort the mail."]);
    for absent in [
        "## Log channel",
        "optio.log",
        "STATUS:",
        "DELIVERABLE",
        "DONE",
        "ERROR",
        "BROWSER",
        "# Working with",
    ] {
        assert!(!text.contains(absent), "{absent} in:\n{text}");
    }
}

#[test]
fn without_resumes_nothing_speaks_of_them() {
    for host_protocol in [true, false] {
        let text = composed(json!({ "supports_resume": false, "host_protocol": host_protocol }));
        assert!(!text.contains("## Resumes") && !text.contains("resume.log"), "{text}");
        assert!(text.contains("System:") && text.contains("## Task"));
    }
}

#[test]
fn the_excludes_that_the_archive_uses_are_the_ones_listed() {
    let config = config(json!({ "workdir_exclude": ["*.iso", "build/"] }));
    let excludes = config.effective_excludes(true);
    let text = compose(&config, KeywordFeatures::default(), &excludes);
    for pattern in &excludes {
        assert!(text.contains(&format!("`{pattern}`")), "{pattern}");
    }
    assert!(excludes.contains(&"home/.codex/auth.json".to_owned()) && !text.contains("`.git`"));
    assert!(text.contains("home/.codex/sessions"));
}

#[test]
fn an_empty_list_of_excludes_says_so() {
    let text = composed(json!({ "workdir_exclude": [] }));
    assert!(text.contains("no paths are excluded") && !text.contains("patterns"), "{text}");
}

#[test]
fn a_keyword_is_documented_exactly_when_it_is_in_force() {
    let config = config(json!({ "host_protocol": true }));
    for browser in [BrowserMode::Ignore, BrowserMode::Suppress, BrowserMode::Redirect] {
        for (client_messages, caller_messages) in [(false, false), (true, false), (false, true), (true, true)]
        {
            let text = compose(&config, KeywordFeatures { browser, client_messages, caller_messages }, &[]);
            assert_eq!(text.contains("BROWSER:"), browser == BrowserMode::Redirect);
            assert_eq!(text.contains("no browser"), browser == BrowserMode::Suppress);
            assert_eq!(text.contains("CLIENT_MESSAGE:"), client_messages);
            assert_eq!(text.contains("CALLER_MESSAGE:"), caller_messages);
        }
    }
}

#[test]
fn empty_instructions_leave_the_task_heading_last() {
    let text = composed(json!({ "instructions": " \n" }));
    assert!(text.trim_end().ends_with("asked."), "{text}");
    assert!(!text.contains("\n\n\n"));
}

#[test]
fn downloads_are_told_from_deliverables_only_where_there_are_deliverables() {
    let chat = composed(json!({ "conversation_ui": true, "file_download": true }));
    assert!(chat.contains("optio-file:") && !chat.to_lowercase().contains("deliverable"), "{chat}");
}
