//! One event as a line of JSON: rendered once, then stored and sent as it is.

use std::io::Write as _;

use bytes::Bytes;
use jiff::Timestamp;

use super::{Draft, Record};
use crate::{Result, StoreError};

/// Longest line: the longest one an app-server may send (16 MiB, DESIGN §14) and its envelope.
pub(super) const LINE_LIMIT: usize = (16 << 20) + (64 << 10);

/// Bytes of a line that surely hold its envelope: names and ids are refused when they are longer than [`WORD_LIMIT`].
pub(super) const HEAD_BYTES: usize = 640;

/// Longest event name, session id or stream name: a file name has 255 bytes at most.
const WORD_LIMIT: usize = 200;

/// Refuses what could not stand unescaped in the envelope, or would make a line nobody can hold.
pub(super) fn check(draft: &Draft) -> Result<()> {
    if draft.name.is_empty() || !is_word(&draft.name) {
        let why = format!("{:?} is not 1 to {WORD_LIMIT} letters, digits or any of ._-/", short(&draft.name));
        return Err(StoreError::Invalid { field: "event name", why });
    }
    if !is_word(&draft.session) {
        let why =
            format!("{:?} is not up to {WORD_LIMIT} letters, digits or any of ._-/", short(&draft.session));
        return Err(StoreError::Invalid { field: "event session", why });
    }
    if draft.body.len() > LINE_LIMIT - HEAD_BYTES {
        let why = format!("{} has {} bytes, the limit is {LINE_LIMIT}", draft.name, draft.body.len());
        return Err(StoreError::Invalid { field: "event body", why });
    }
    Ok(())
}

/// Refuses a stream name that is no safe file name. None begins with a dot: those are the journal's own files.
pub(super) fn check_stream_name(name: &str) -> Result<()> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') || !is_word(name) {
        let why = format!(
            "{:?} is not 1 to {WORD_LIMIT} letters, digits or any of ._- without a first dot",
            short(name)
        );
        return Err(StoreError::Invalid { field: "stream name", why });
    }
    Ok(())
}

fn is_word(text: &str) -> bool {
    text.len() <= WORD_LIMIT
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/'))
}

fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Renders a checked draft, without the newline.
pub(super) fn render(seq: u64, now: Timestamp, draft: &Draft) -> Bytes {
    let mut line = Vec::with_capacity(96 + draft.session.len() + draft.name.len() + draft.body.len());
    write!(line, r#"{{"v":1,"seq":{seq},"ts":"{now:.3}","session":""#).expect("a Vec takes every write");
    line.extend_from_slice(draft.session.as_bytes());
    line.extend_from_slice(br#"","type":""#);
    line.extend_from_slice(draft.name.as_bytes());
    line.push(b'"');
    if !draft.body.is_empty() {
        line.push(b',');
        let body = line.len();
        line.extend_from_slice(&draft.body);
        // In valid JSON these stand only between tokens, but they would end a line of the log or of an SSE frame.
        if draft.body.contains(&b'\n') || draft.body.contains(&b'\r') {
            for byte in &mut line[body..] {
                if matches!(*byte, b'\n' | b'\r') {
                    *byte = b' ';
                }
            }
        }
    }
    line.push(b'}');
    Bytes::from(line)
}

/// Number and name of a rendered line, from its first bytes; `None` when it is none of ours.
pub(super) fn head(line: &[u8]) -> Option<(u64, &str)> {
    let rest = line.strip_prefix(br#"{"v":1,"seq":"#)?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let seq = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
    let (_, rest) = quoted(rest[digits..].strip_prefix(br#","ts":""#)?)?;
    let (_, rest) = quoted(rest.strip_prefix(br#","session":""#)?)?;
    let (name, _) = quoted(rest.strip_prefix(br#","type":""#)?)?;
    Some((seq, name))
}

/// The text up to the closing quote, and what follows it. The envelope's texts hold no escapes, see [`check`].
fn quoted(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().take(WORD_LIMIT + 1).position(|b| *b == b'"')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

/// A stored line as a record; `None` when it is not the line `seq`.
pub(super) fn record(seq: u64, data: Bytes) -> Option<Record> {
    let (found, name) = head(&data)?;
    let name = name.to_owned();
    (found == seq).then_some(Record { seq, name, data })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn draft(name: &'static str, body: &'static str) -> Draft {
        Draft { name: name.into(), body: Bytes::from_static(body.as_bytes()), session: "ses_1".into() }
    }

    #[test]
    fn a_line_is_the_envelope_and_then_the_body() {
        let now: Timestamp = "2026-11-21T04:05:06.7899Z".parse().unwrap();
        let line = render(7, now, &draft("item.delta", r#""codex":{"type":"x"}"#));
        let expected = r#"{"v":1,"seq":7,"ts":"2026-11-21T04:05:06.789Z","session":"ses_1","type":"item.delta","codex":{"type":"x"}}"#;
        assert_eq!(line, expected);
        assert_eq!(head(&line), Some((7, "item.delta")));
        let bare = render(u64::MAX, now, &draft("gap", ""));
        assert!(bare.ends_with(br#""type":"gap"}"#), "{bare:?}");
        assert_eq!(head(&bare), Some((u64::MAX, "gap")));
    }

    #[test]
    fn line_ends_between_tokens_do_not_end_the_line() {
        let line = render(1, Timestamp::UNIX_EPOCH, &draft("x", "\"a\":[\r\n1,\n2]"));
        assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["a"], serde_json::json!([1, 2]));
    }

    #[test]
    fn names_that_need_escapes_are_refused() {
        for bad in ["", "a\"b", "a b", "ä", "a\\", "a\n"] {
            assert!(check(&draft(bad, "")).is_err(), "{bad:?}");
        }
        assert!(check(&draft("codex.item/started-x_1", "")).is_ok());
        for bad in ["", ".", "..", ".boot", "a/b", "../x", "a b", "a\0"] {
            assert!(check_stream_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_stream_name(&"x".repeat(WORD_LIMIT + 1)).is_err());
        assert!(check_stream_name("ses_01ARZ3NDEKTSV4RRFFQ69G5FAV").is_ok());
    }

    #[test]
    fn the_longest_envelope_fits_the_head() {
        let word: String = "x".repeat(WORD_LIMIT);
        let draft = Draft { name: word.clone().into(), body: Bytes::new(), session: word.into() };
        assert!(render(u64::MAX, Timestamp::MAX, &draft).len() <= HEAD_BYTES);
    }

    #[test]
    fn a_line_with_another_number_is_no_record() {
        let line = render(5, Timestamp::UNIX_EPOCH, &draft("x", ""));
        assert!(record(5, line.clone()).is_some());
        assert!(record(6, line.clone()).is_none());
        assert!(record(5, line.slice(3..)).is_none());
    }
}
