//! The keyword log: one line that the agent has appended to `optio.log`, and what it means (S-149…S-162).
//!
//! Pure: [`read`] gets the bytes of one line and the features in force, the same value that AGENTS.md was composed with,
//! so that a keyword nobody reads is never documented and a documented one is always read (S-159).

pub mod browser;
pub mod deliverable;

#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::agents_md::{BrowserMode, KeywordFeatures};

/// What one line of the log says.
#[derive(Debug, Clone, PartialEq)]
pub enum Keyword {
    /// What the agent is doing now.
    Status {
        /// How much of its work is done, at most 100; `None` where it does not say.
        percent: Option<u8>,
        /// In its words; may be empty.
        message: String,
    },
    /// A file is handed over.
    Deliverable {
        /// Its path as the agent wrote it; [`deliverable::name_of`] judges it.
        path: String,
    },
    /// The work is done.
    Done {
        /// What was done.
        summary: Option<String>,
    },
    /// The work cannot be done.
    Error {
        /// Why.
        message: Option<String>,
    },
    /// A page wants to be opened; an absolute http or https address (S-167).
    Browser {
        /// The address.
        url: String,
    },
    /// A person is needed.
    Attention {
        /// What for.
        reason: String,
    },
    /// Data for the page of the person who watches.
    ClientMessage(Data),
    /// Data for the program that started the session.
    CallerMessage(Data),
    /// Any other line: a note for people.
    Note(String),
    /// Nothing.
    Blank,
}

/// What [`Keyword::ClientMessage`] and [`Keyword::CallerMessage`] carry.
#[derive(Debug, Clone, PartialEq)]
pub struct Data {
    /// What kind of data, in the agent's word.
    pub keyword: String,
    /// The data.
    pub data: Value,
}

/// Reads one line, with or without its newline. Bytes that are no UTF-8 are replaced (S-127); one byte-order mark in
/// front is taken away (S-162); trailing blanks are, leading ones are not, so an indented keyword is a note (S-150).
pub fn read(line: &[u8], features: KeywordFeatures) -> Keyword {
    let text = String::from_utf8_lossy(line);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text).trim_end();
    if text.is_empty() {
        return Keyword::Blank;
    }
    keyword(text, features).unwrap_or_else(|| Keyword::Note(text.to_owned()))
}

/// In the order of S-160. A line that almost is a keyword is none.
fn keyword(text: &str, features: KeywordFeatures) -> Option<Keyword> {
    if let Some(rest) = text.strip_prefix("STATUS:") {
        return Some(status(rest.trim_start()));
    }
    if let Some(path) = value(text, "DELIVERABLE:") {
        return Some(Keyword::Deliverable { path });
    }
    if let Some(summary) = ending(text, "DONE") {
        return Some(Keyword::Done { summary });
    }
    if let Some(message) = ending(text, "ERROR") {
        return Some(Keyword::Error { message });
    }
    if features.browser == BrowserMode::Redirect
        && let Some(url) = value(text, "BROWSER:")
    {
        return browser::address(&url).map(|url| Keyword::Browser { url: url.to_owned() });
    }
    if let Some(reason) = value(text, "ATTENTION:") {
        return Some(Keyword::Attention { reason });
    }
    if features.client_messages
        && let Some(rest) = text.strip_prefix("CLIENT_MESSAGE:")
    {
        return data(rest).map(Keyword::ClientMessage);
    }
    if features.caller_messages
        && let Some(rest) = text.strip_prefix("CALLER_MESSAGE:")
    {
        return data(rest).map(Keyword::CallerMessage);
    }
    None
}

/// `40% comparing`, `40%`, or words alone. What looks like a percentage and is none stays in the words (S-151, S-152).
fn status(rest: &str) -> Keyword {
    let words = |message: &str| Keyword::Status { percent: None, message: message.to_owned() };
    let Some((digits, after)) = rest.split_once('%') else { return words(rest) };
    let is_number = (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let ends_there = after.is_empty() || after.starts_with(char::is_whitespace);
    match digits.parse::<u16>() {
        Ok(percent) if is_number && ends_there => {
            let percent = u8::try_from(percent.min(100)).ok();
            Keyword::Status { percent, message: after.trim_start().to_owned() }
        }
        _ => words(rest),
    }
}

/// The non-empty value behind a keyword.
fn value(text: &str, keyword: &str) -> Option<String> {
    let value = text.strip_prefix(keyword)?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// A keyword that stands alone or before a colon (S-154, S-155). The outer `Option` says whether it is one.
fn ending(text: &str, keyword: &str) -> Option<Option<String>> {
    match text.strip_prefix(keyword)? {
        "" => Some(None),
        rest => {
            let words = rest.strip_prefix(':')?.trim();
            Some((!words.is_empty()).then(|| words.to_owned()))
        }
    }
}

/// A word, blanks, JSON (S-158).
fn data(rest: &str) -> Option<Data> {
    let (keyword, json) = rest.trim_start().split_once(char::is_whitespace)?;
    let data = serde_json::from_str(json).ok()?;
    Some(Data { keyword: keyword.to_owned(), data })
}
