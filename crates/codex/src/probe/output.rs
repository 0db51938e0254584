//! What Codex said when it was asked, from the JSON lines of `codex exec --json`.
//!
//! Tried with 0.142.5 against a login server that refuses: the error of a turn names what is wrong with the refresh token
//! only in a sentence, the same sentence for each of the three codes. A refusal that it takes for transient is
//! `Failed to refresh token: STATUS REASON: BODY`, where the body is the message of an error object, or all of it.

use serde::Deserialize;
use serde_json::Value;

use super::ANSWER;

/// What Codex's words come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The answer: the login was let in.
    Answer,
    /// The login server refused the refresh, and gave this as its reason.
    Refusal {
        /// The HTTP status.
        status: u16,
        /// Its own code.
        code: String,
    },
    /// Something else went wrong, or another answer came; in Codex's words.
    Other(String),
    /// No word of it.
    Nothing,
}

/// Codex's sentences for what is wrong with a refresh token for good, and the codes of the login server that they stand for.
const SENTENCES: [(&str, &str); 3] = [
    ("because your refresh token has expired", "refresh_token_expired"),
    ("because your refresh token was already used", "refresh_token_reused"),
    ("because your refresh token was revoked", "refresh_token_invalidated"),
];

/// What the three begin with.
const NOT_REFRESHED: &str = "Your access token could not be refreshed ";

/// What Codex says of a refresh that it would try again.
const FAILED: &str = "Failed to refresh token: ";

/// The most of Codex's words that are repeated to a person.
const SHOWN: usize = 300;

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    item: Option<Item>,
    message: Option<String>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
}

#[derive(Deserialize)]
struct Failure {
    message: Option<String>,
}

/// Reads what Codex wrote. Lines that are none of its events say nothing.
pub fn heard(output: &[u8]) -> Heard {
    let mut found = Heard::Nothing;
    for line in output.split(|byte| *byte == b'\n') {
        let Ok(line) = serde_json::from_slice::<Line>(line) else { continue };
        let said = match (line.kind.as_str(), line.item) {
            ("item.completed", Some(Item { kind: Some(kind), text: Some(text) }))
                if kind == "agent_message" =>
            {
                match has_answer(&text) {
                    true => return Heard::Answer,
                    false => other("codex answered: ", &text),
                }
            }
            ("error", _) => failure(&line.message.unwrap_or_default()),
            ("turn.failed", _) => failure(&line.error.and_then(|e| e.message).unwrap_or_default()),
            _ => continue,
        };
        // A refusal is what happened; what is said after it follows from it.
        if !matches!(found, Heard::Refusal { .. }) {
            found = said;
        }
    }
    found
}

/// True where the answer stands as a word of its own.
fn has_answer(text: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric()).any(|word| word.eq_ignore_ascii_case(ANSWER))
}

fn failure(message: &str) -> Heard {
    if let Some(why) = message.strip_prefix(NOT_REFRESHED) {
        let named = SENTENCES.iter().find(|(sentence, _)| why.starts_with(sentence));
        return match named {
            Some((_, code)) => Heard::Refusal { status: 401, code: (*code).to_owned() },
            None => other("", message),
        };
    }
    match message.strip_prefix(FAILED).and_then(refusal) {
        Some((status, code)) => Heard::Refusal { status, code },
        None => other("", message),
    }
}

/// Takes `400 Bad Request: {"error": "invalid_grant"}` apart.
fn refusal(said: &str) -> Option<(u16, String)> {
    let (status, body) = said.split_once(": ")?;
    let status = status.split(' ').next()?.parse().ok()?;
    let body: Value = serde_json::from_str(body).ok()?;
    let error = &body["error"];
    let code = error.as_str().or_else(|| error["code"].as_str())?;
    Some((status, code.to_owned()))
}

fn other(before: &str, said: &str) -> Heard {
    let said: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN).collect();
    Heard::Other(format!("{before}{said}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const STARTED: &str = "{\"type\":\"thread.started\",\"thread_id\":\"0\"}\n{\"type\":\"turn.started\"}\n";

    fn failed(message: &str) -> Heard {
        let error = json!({ "type": "error", "message": message });
        let turn = json!({ "type": "turn.failed", "error": { "message": message } });
        heard(format!("{STARTED}{error}\n{turn}\n").as_bytes())
    }

    fn said(text: &str) -> Heard {
        let item = json!({ "type": "item.completed", "item": { "id": "item_0", "type": "agent_message", "text": text } });
        heard(format!("{STARTED}{item}\n{{\"type\":\"turn.completed\",\"usage\":{{}}}}\n").as_bytes())
    }

    fn refused(status: u16, code: &str) -> Heard {
        Heard::Refusal { status, code: code.to_owned() }
    }

    #[test]
    fn only_the_answer_in_a_message_of_the_agent_is_the_answer() {
        for text in ["Paris", "It is paris.", "**PARIS**", "The answer:\nParis"] {
            assert_eq!(said(text), Heard::Answer, "{text}");
        }
        for text in ["", "Lyon", "comparison", "Parisian", super::super::PROMPT] {
            assert_eq!(
                said(text),
                Heard::Other(format!("codex answered: {text}").chars().take(316).collect())
            );
        }
        for kind in ["reasoning", "command_execution", "error"] {
            let item = json!({ "type": "item.completed", "item": { "type": kind, "text": "Paris", "message": "Paris" } });
            assert_eq!(heard(item.to_string().as_bytes()), Heard::Nothing, "{kind}");
        }
        let begun = json!({ "type": "item.started", "item": { "type": "agent_message", "text": "Paris" } });
        assert_eq!(heard(begun.to_string().as_bytes()), Heard::Nothing);
        assert_eq!(heard(b"Paris\n\"Paris\"\n{\"text\":\"Paris\"}\n"), Heard::Nothing);
        assert!(matches!(failed("Paris is burning"), Heard::Other(_)));
    }

    #[test]
    fn what_the_real_codex_says_of_each_refusal_is_known_by_its_code() {
        let again = "Please log out and sign in again.";
        for (sentence, code) in [
            ("because your refresh token was already used.", "refresh_token_reused"),
            ("because your refresh token has expired.", "refresh_token_expired"),
            ("because your refresh token was revoked.", "refresh_token_invalidated"),
        ] {
            let said = format!("Your access token could not be refreshed {sentence} {again}");
            assert_eq!(failed(&said), refused(401, code));
        }
        let grant = r#"Failed to refresh token: 400 Bad Request: {"error": "invalid_grant"}"#;
        assert_eq!(failed(grant), refused(400, "invalid_grant"));
        let grant = r#"Failed to refresh token: 400 Bad Request: {"error": {"code": "invalid_grant"}}"#;
        assert_eq!(failed(grant), refused(400, "invalid_grant"));
        let slow = r#"Failed to refresh token: 429 Too Many Requests: {"error":{"code":"slow_down"}}"#;
        assert_eq!(failed(slow), refused(429, "slow_down"));
    }

    #[test]
    fn what_names_no_code_is_no_refusal() {
        for message in [
            "Your access token could not be refreshed. Please log out and sign in again.",
            "Failed to refresh token: 400 Bad Request: x",
            "Failed to refresh token: 500 Internal Server Error: x",
            "Failed to refresh token: 429 Too Many Requests: x",
            "Failed to refresh token: error sending request for url (https://auth.openai.com/oauth/token)",
            "We're currently experiencing high demand, which may cause temporary errors.",
            "unexpected status 401 Unauthorized: refresh_token_reused",
            "a page says: Your access token could not be refreshed because your refresh token was revoked.",
        ] {
            assert_eq!(failed(message), Heard::Other(message.to_owned()));
        }
        assert_eq!(heard(STARTED.as_bytes()), Heard::Nothing);
        assert_eq!(heard(b""), Heard::Nothing);
    }

    #[test]
    fn an_answer_after_an_error_counts_and_an_error_after_a_refusal_does_not_hide_it() {
        let error = json!({ "type": "error", "message": "Reconnecting... 1/5" });
        let answer =
            json!({ "type": "item.completed", "item": { "type": "agent_message", "text": "Paris" } });
        assert_eq!(heard(format!("{error}\n{answer}").as_bytes()), Heard::Answer);
        let used =
            "Your access token could not be refreshed because your refresh token was already used. Please";
        let refusal = json!({ "type": "error", "message": used });
        let turn = json!({ "type": "turn.failed", "error": { "message": "stream closed" } });
        assert_eq!(heard(format!("{refusal}\n{turn}").as_bytes()), refused(401, "refresh_token_reused"));
    }

    #[test]
    fn words_are_repeated_in_part_and_on_one_line() {
        let Heard::Other(said) = failed(&format!("a\nb{}", "x".repeat(10_000))) else {
            unreachable!("no refusal")
        };
        assert!(said.starts_with("a bx") && said.len() == SHOWN);
    }
}
