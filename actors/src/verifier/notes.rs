//! What a check leaves in a seed's notes, in the names that a Python peer knows (T-217, T-224, T-231).

use jiff::Timestamp;
use optio_codex_protocol::auth::Credential;
use optio_oauth::Verdict;
use optio_store::{Holder, SeedStatus};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The note of a request that is about to be sent.
pub(crate) const INTENT: &str = "refreshIntent";

/// The note of the last verdict.
pub(crate) const VERIFY: &str = "verify";

/// Digits of the token's hash that are noted: they tell one token from the next.
const HASH_DIGITS: usize = 16;

/// Says that a token was about to be sent, and that nobody has noted since what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Intent {
    /// Who was about to send it.
    pub(crate) by: Option<String>,
    /// When.
    pub(crate) at: Option<Timestamp>,
    /// The beginning of the token's hash.
    pub(crate) token_hash: Option<String>,
}

impl Intent {
    /// The intent to send the token of `login`.
    pub(crate) fn new(by: &Holder, at: Timestamp, login: &Credential) -> Self {
        Self { by: Some(by.to_string()), at: Some(at), token_hash: hash_of(login) }
    }

    /// The intent in a seed's notes. One that cannot be read is one nevertheless, of which nothing is known.
    pub(crate) fn of(notes: &Map<String, Value>) -> Option<Self> {
        let note = notes.get(INTENT).filter(|note| !note.is_null())?;
        let unknown = Self { by: None, at: None, token_hash: None };
        Some(Self::deserialize(note).unwrap_or(unknown))
    }

    /// True unless a newer token than the one that was sent is stored by now.
    pub(crate) fn is_about(&self, stored: &Credential) -> bool {
        self.token_hash.is_none() || self.token_hash == hash_of(stored)
    }

    pub(crate) fn note(&self) -> Value {
        json!(self)
    }
}

fn hash_of(login: &Credential) -> Option<String> {
    login.lineage_hash().map(|hash| hash.chars().take(HASH_DIGITS).collect())
}

/// The note of a verdict. `alive` and `checkedAt` are the two that a Python peer looks for.
pub(crate) fn verdict_note(verdict: &Verdict, at: Timestamp, by: &Holder) -> Value {
    json!({
        "alive": verdict.alive(), "checkedAt": at, "verdict": verdict.name(), "reason": verdict.reason(), "by": by,
    })
}

/// What the last check said, as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastVerdict {
    /// One of [`Verdict::name`]'s words.
    pub verdict: String,
    /// When it was made.
    pub checked_at: Option<String>,
}

impl LastVerdict {
    /// Reads the note of a verdict. A Python peer writes no verdict, only whether it found the login alive, and `false`
    /// also where it found nothing out: then the status decides (T-218).
    pub(crate) fn of(notes: &Map<String, Value>, status: SeedStatus) -> Option<Self> {
        let note = notes.get(VERIFY)?.as_object()?;
        let verdict = match (note.get("verdict").and_then(Value::as_str), note.get("alive")) {
            (Some(verdict), _) => verdict,
            (None, Some(Value::Bool(true))) => "alive",
            (None, Some(_)) if status == SeedStatus::Dead => "dead",
            (None, _) => "inconclusive",
        };
        let at = note.get("checkedAt");
        // A date of a database comes as an object around its text.
        let at = at.and_then(|at| at.as_str().or_else(|| at.get("$date")?.as_str()));
        Some(Self { verdict: verdict.to_owned(), checked_at: at.map(str::to_owned) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use optio_codex_protocol::auth;

    use super::*;

    fn notes(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn login(token: &str) -> Credential {
        auth::read(json!({ "tokens": { "refresh_token": token } }).to_string().as_bytes())
    }

    #[test]
    fn an_intent_is_about_the_token_it_was_written_for() {
        let by = Holder::stored("verify:1");
        let intent = Intent::new(&by, Timestamp::UNIX_EPOCH, &login("a"));
        let read = Intent::of(&notes(json!({ INTENT: intent.note() }))).unwrap();
        assert_eq!(read, intent);
        assert!(read.is_about(&login("a")) && !read.is_about(&login("b")));
        assert_eq!(intent.token_hash.as_ref().unwrap().len(), HASH_DIGITS);
    }

    #[test]
    fn an_intent_that_cannot_be_read_is_about_any_token() {
        for note in [json!("yes"), json!({ "at": 7 }), json!({})] {
            let intent = Intent::of(&notes(json!({ INTENT: note }))).unwrap();
            assert!(intent.is_about(&login("a")));
        }
        assert_eq!(Intent::of(&notes(json!({ INTENT: null }))), None);
        assert_eq!(Intent::of(&Map::new()), None);
    }

    #[test]
    fn a_peers_note_is_read_by_the_status() {
        let read = |note: Value, status| LastVerdict::of(&notes(json!({ VERIFY: note })), status).unwrap();
        let at = json!({ "$date": "2026-11-20T00:00:00Z" });
        let seen = read(json!({ "alive": true, "checkedAt": at }), SeedStatus::Alive);
        assert_eq!(
            (seen.verdict.as_str(), seen.checked_at.as_deref()),
            ("alive", Some("2026-11-20T00:00:00Z"))
        );
        assert_eq!(read(json!({ "alive": false }), SeedStatus::Dead).verdict, "dead");
        assert_eq!(read(json!({ "alive": false }), SeedStatus::Alive).verdict, "inconclusive");
        assert_eq!(LastVerdict::of(&Map::new(), SeedStatus::Alive), None);
    }
}
