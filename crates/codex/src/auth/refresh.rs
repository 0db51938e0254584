//! When a login is due for a refresh, and what its file is after one.

use std::fmt;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{ChatGptLogin, Credential, MAX_AUTH_JSON, NotALogin, Unreadable, object, read, text};

/// Tokens of this age, or older, are due (T-229); Codex has the same rule where an access token does not say when it ends.
pub const REFRESH_AFTER: jiff::SignedDuration = jiff::SignedDuration::from_hours(8 * 24);

/// How far ahead of ours the clock that wrote `last_refresh` may be. A date beyond that says nothing about age (T-230).
const AHEAD: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);

/// Microseconds: what Codex and its peers all read (T-238).
const PRECISION: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

/// Whole seconds have no fraction (T-238).
const WHOLE: DateTimePrinter = DateTimePrinter::new().precision(Some(0));

/// How long before the end of its access token Codex refreshes a login; measured between 4 and 6 minutes (LAB §3). The
/// longer one: a login that is taken for due costs a wait, one that is not may cost the login.
const OWN_MARGIN: jiff::SignedDuration = jiff::SignedDuration::from_mins(6);

/// The tokens of a successful refresh. One that is missing stays as it was.
#[derive(Clone, Copy, Default)]
pub struct NewTokens<'a> {
    /// What the API takes.
    pub access_token: Option<&'a str>,
    /// What the next refresh takes.
    pub refresh_token: Option<&'a str>,
    /// Who is logged in.
    pub id_token: Option<&'a str>,
}

impl fmt::Debug for NewTokens<'_> {
    /// Says which there are, never what they are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let there = |token: Option<&str>| token.is_some();
        f.debug_struct("NewTokens")
            .field("access_token", &there(self.access_token))
            .field("refresh_token", &there(self.refresh_token))
            .field("id_token", &there(self.id_token))
            .finish()
    }
}

impl ChatGptLogin {
    /// Says whether Codex refreshes this login when it next uses it: the access token ends within five minutes, or, where
    /// it does not say when, was renewed eight days ago (LAB §3).
    pub fn refreshes_by_itself(&self, now: Timestamp) -> bool {
        match self.access_expires_at {
            Some(end) => now.duration_until(end) < OWN_MARGIN,
            None => self.is_due(now),
        }
    }

    /// Says whether the login is due for a refresh. Without a date that can be believed it is.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.last_refresh.is_none_or(|at| {
            let age = now.duration_since(at);
            age >= REFRESH_AFTER || age < -AHEAD
        })
    }
}

/// Gives the refresh token of a ChatGPT login: a secret, to be sent and nothing else.
pub fn refresh_token(auth_json: &[u8]) -> Option<String> {
    if !matches!(read(auth_json), Credential::ChatGpt(_)) {
        return None;
    }
    let file = object(auth_json).ok()?;
    let tokens = file.get("tokens").and_then(Value::as_object)?;
    text(tokens, "refresh_token").map(str::to_owned)
}

/// Gives the file after a refresh that was begun at `at`: the new tokens and `last_refresh` in their places, every other
/// member as it was written, in its order, digit by digit (T-238, T-240).
pub fn refreshed(auth_json: &[u8], new: &NewTokens<'_>, at: Timestamp) -> Result<Vec<u8>, NotALogin> {
    if auth_json.len() > MAX_AUTH_JSON {
        return Err(Unreadable::TooLarge.into());
    }
    let mut file: Members = serde_json::from_slice(auth_json).map_err(|_| Unreadable::NotJson)?;
    let tokens = file.0.iter().rfind(|(name, _)| name == "tokens").ok_or(NotALogin::LoggedOut)?;
    let mut tokens: Members = serde_json::from_str(&tokens.1).map_err(|_| NotALogin::LoggedOut)?;
    for (name, token) in
        [("access_token", new.access_token), ("refresh_token", new.refresh_token), ("id_token", new.id_token)]
    {
        if let Some(token) = token {
            tokens.set(name, Value::from(token).to_string());
        }
    }
    file.set("tokens", tokens.written(1));
    file.set("last_refresh", Value::from(date(at)).to_string());
    let mut bytes = file.written(0).into_bytes();
    bytes.push(b'\n');
    Ok(bytes)
}

fn date(at: Timestamp) -> String {
    let printer = if at.subsec_nanosecond() < 1_000 { WHOLE } else { PRECISION };
    printer.timestamp_to_string(&at)
}

/// An object's members as they are written, in their order. A tree of values would lose both.
struct Members(Vec<(String, String)>);

impl Members {
    /// Replaces a member where it stands, or adds it at the end. Of several with one name the last counts, for Codex as
    /// for us, so all are made the same.
    fn set(&mut self, name: &str, value: String) {
        let mut found = false;
        for (_, old) in self.0.iter_mut().filter(|(known, _)| known == name) {
            old.clone_from(&value);
            found = true;
        }
        if !found {
            self.0.push((name.to_owned(), value));
        }
    }

    /// One member a line, as Codex writes them.
    fn written(&self, depth: usize) -> String {
        let (inner, outer) = ("  ".repeat(depth + 1), "  ".repeat(depth));
        let lines: Vec<_> = self
            .0
            .iter()
            .map(|(name, value)| format!("{inner}{}: {value}", Value::from(name.as_str())))
            .collect();
        match lines.is_empty() {
            true => "{}".to_owned(),
            false => format!("{{\n{}\n{outer}}}", lines.join(",\n")),
        }
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    members.push((name, value.get().to_owned()));
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Each)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const FILE: &str = r#"{
  "zeta": 1.10, "OPENAI_API_KEY": null, "auth_mode": "chatgpt",
  "tokens": {"id_token":"i0","unknown":{"big":123456789012345678901234567890},"access_token":"a0",
             "refresh_token":"r0","account_id":"acct"},
  "last_refresh": "2026-11-11T00:56:50.502336123Z",
  "added": {"b": 1, "a": [1.0, 2e5], "text": "\u00e9"}
}"#;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn after(new: &NewTokens<'_>, when: &str) -> String {
        String::from_utf8(refreshed(FILE.as_bytes(), new, at(when)).unwrap()).unwrap()
    }

    #[test]
    fn new_tokens_take_their_places_and_nothing_else_changes() {
        let new =
            NewTokens { access_token: Some("a1"), refresh_token: Some("r1"), id_token: Some("i1 \"q\"") };
        let expected = r#"{
  "zeta": 1.10,
  "OPENAI_API_KEY": null,
  "auth_mode": "chatgpt",
  "tokens": {
    "id_token": "i1 \"q\"",
    "unknown": {"big":123456789012345678901234567890},
    "access_token": "a1",
    "refresh_token": "r1",
    "account_id": "acct"
  },
  "last_refresh": "2026-11-20T01:02:03.000004Z",
  "added": {"b": 1, "a": [1.0, 2e5], "text": "\u00e9"}
}
"#;
        assert_eq!(after(&new, "2026-11-20T01:02:03.000004Z"), expected);
        assert_eq!(refresh_token(expected.as_bytes()).as_deref(), Some("r1"));
    }

    #[test]
    fn a_token_that_did_not_come_stays() {
        let text =
            after(&NewTokens { access_token: Some("a1"), ..NewTokens::default() }, "2026-11-20T01:02:03Z");
        for kept in [r#""refresh_token": "r0""#, r#""id_token": "i0""#, r#""access_token": "a1""#] {
            assert!(text.contains(kept), "{text}");
        }
    }

    #[test]
    fn whole_seconds_have_no_fraction_and_others_have_microseconds() {
        for (given, written) in [
            ("2026-11-20T01:02:03Z", "2026-11-20T01:02:03Z"),
            ("2026-11-20T01:02:03.5Z", "2026-11-20T01:02:03.500000Z"),
            ("2026-11-20T01:02:03.123456789Z", "2026-11-20T01:02:03.123456Z"),
        ] {
            assert!(after(&NewTokens::default(), given).contains(&format!("\"{written}\"")), "{given}");
        }
    }

    #[test]
    fn a_file_without_a_date_or_tokens_is_told_apart() {
        let old = br#"{"tokens":{"refresh_token":"r0"}}"#;
        let new = NewTokens { access_token: Some("a1"), ..NewTokens::default() };
        let written = refreshed(old, &new, at("2026-11-20T01:02:03Z")).unwrap();
        let file: Value = serde_json::from_slice(&written).unwrap();
        let expected = json!({ "tokens": { "refresh_token": "r0", "access_token": "a1" },
                               "last_refresh": "2026-11-20T01:02:03Z" });
        assert_eq!(file, expected);
        for none in [&b"{}"[..], br#"{"tokens":null}"#, br#"{"tokens":[1]}"#] {
            assert_eq!(refreshed(none, &new, at("2026-11-20T01:02:03Z")), Err(NotALogin::LoggedOut));
        }
        assert!(refreshed(b"{", &new, at("2026-11-20T01:02:03Z")).is_err());
    }

    #[test]
    fn a_login_is_due_after_eight_days_and_when_its_date_cannot_be_believed() {
        let now = at("2026-11-20T00:00:00Z");
        let due = |last_refresh: Value| {
            let file = json!({ "tokens": { "refresh_token": "r" }, "last_refresh": last_refresh });
            match read(file.to_string().as_bytes()) {
                Credential::ChatGpt(login) => login.is_due(now),
                other => panic!("{other:?}"),
            }
        };
        assert!(!due(json!("2026-11-12T00:00:01Z")));
        assert!(due(json!("2026-11-12T00:00:00Z")));
        assert!(!due(json!("2026-11-20T00:05:00Z")));
        assert!(due(json!("2026-11-20T00:05:01Z")));
        for nothing in [json!(null), json!(true), json!("soon"), json!({})] {
            assert!(due(nothing.clone()), "{nothing}");
        }
    }

    #[test]
    fn only_a_chatgpt_login_has_a_token_to_send_and_none_is_shown() {
        assert_eq!(refresh_token(FILE.as_bytes()).as_deref(), Some("r0"));
        assert_eq!(
            refresh_token(br#"{"OPENAI_API_KEY":"k","auth_mode":"apikey","tokens":{"refresh_token":"r"}}"#),
            None
        );
        assert_eq!(refresh_token(b"{}"), None);
        let new = NewTokens {
            access_token: Some("SECRET"),
            refresh_token: Some("SECRET"),
            id_token: Some("SECRET"),
        };
        assert!(!format!("{new:?}").contains("SECRET"));
    }

    proptest! {
        #[test]
        fn any_tokens_come_back_as_they_were_given(access in ".{1,40}", refresh in ".{1,40}") {
            let new = NewTokens { access_token: Some(&access), refresh_token: Some(&refresh), id_token: None };
            let written = refreshed(FILE.as_bytes(), &new, at("2026-11-20T01:02:03Z")).unwrap();
            let file: Value = serde_json::from_slice(&written).unwrap();
            prop_assert_eq!(file["tokens"]["access_token"].as_str(), Some(access.as_str()));
            prop_assert_eq!(refresh_token(&written), Some(refresh));
        }
    }
}
