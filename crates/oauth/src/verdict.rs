//! What an answer proves: the table of T-216…T-232 in its better form, and nothing else.

use crate::RefreshAnswer;

/// What is known of a stored login after it was looked at (T-231). Each carries its reason, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is good. The reason says how that is known.
    Alive(String),
    /// The login server said for certain that it is not, or it holds no login (INV-30).
    Dead(String),
    /// Its token was sent and may be spent: only asking again with the same token can tell (T-224).
    Suspect(String),
    /// Nothing was learnt, and nothing changes.
    Inconclusive(String),
    /// Somebody uses it now.
    Busy(String),
    /// What is stored cannot be read here; that says nothing about the login (T-221).
    Undecodable(String),
    /// A newer login exists, and it is not in the store (T-225).
    NeedsRecovery(String),
}

impl Verdict {
    /// Its name in the API and in a seed's notes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Alive(_) => "alive",
            Self::Dead(_) => "dead",
            Self::Suspect(_) => "suspect",
            Self::Inconclusive(_) => "inconclusive",
            Self::Busy(_) => "busy",
            Self::Undecodable(_) => "undecodable",
            Self::NeedsRecovery(_) => "needs-recovery",
        }
    }

    /// Why.
    pub fn reason(&self) -> &str {
        match self {
            Self::Alive(reason)
            | Self::Dead(reason)
            | Self::Suspect(reason)
            | Self::Inconclusive(reason)
            | Self::Busy(reason)
            | Self::Undecodable(reason)
            | Self::NeedsRecovery(reason) => reason,
        }
    }

    /// The answer to "is it alive?", where there is one.
    pub fn alive(&self) -> Option<bool> {
        match self {
            Self::Alive(_) => Some(true),
            Self::Dead(_) => Some(false),
            _ => None,
        }
    }
}

/// The reason of a success that did not rotate the refresh token (T-239).
pub const NO_ROTATION: &str = "no-rotation";

/// The error codes by which the login server says that a refresh token is of no use any more (T-222).
const PERMANENT: [&str; 3] = ["refresh_token_expired", "refresh_token_reused", "refresh_token_invalidated"];

/// The longest code that is repeated in a reason; a real one has some twenty characters.
const CODE_SHOWN: usize = 60;

/// Says what an answer proves.
pub fn judge(answer: &RefreshAnswer) -> Verdict {
    match answer {
        RefreshAnswer::NotSent(why) => {
            Verdict::Inconclusive(format!("the login server was not asked: {why}"))
        }
        RefreshAnswer::NoAnswer(why) => {
            Verdict::Suspect(format!("the login server was asked and gave no usable answer: {why}"))
        }
        RefreshAnswer::Refused { status, code, .. } => refused(*status, code.as_deref()),
        RefreshAnswer::Granted(tokens) if tokens.access_token.is_none() => {
            Verdict::Suspect("the login server's answer has no access token".to_owned())
        }
        RefreshAnswer::Granted(tokens) if tokens.refresh_token.is_none() => {
            Verdict::Alive(NO_ROTATION.to_owned())
        }
        RefreshAnswer::Granted(_) => Verdict::Alive("its login was refreshed".to_owned()),
    }
}

/// Only what comes from the login server itself and is meant for good is a proof. A timeout, a limit, a server error or
/// a redirect may come from anything in between, whatever its body says.
fn refused(status: u16, code: Option<&str>) -> Verdict {
    let said = match code {
        Some(code) => format!("{status} {}", code.chars().take(CODE_SHOWN).collect::<String>()),
        None => status.to_string(),
    };
    let transient = matches!(status, 408 | 425 | 429) || !(400..500).contains(&status);
    let permanent = status == 401
        || code.is_some_and(|code| PERMANENT.contains(&code))
        || (status == 400 && code == Some("invalid_grant"));
    match (transient, permanent) {
        (false, true) => Verdict::Dead(format!("the login server refused it: {said}")),
        _ => Verdict::Inconclusive(format!("the login server answered {said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Secret, Tokens};

    fn refusal(status: u16, code: Option<&str>) -> &'static str {
        let answer = RefreshAnswer::Refused { status, code: code.map(str::to_owned), retry_after: None };
        judge(&answer).name()
    }

    #[test]
    fn only_a_definite_word_of_the_login_server_is_death() {
        for code in PERMANENT {
            for status in [400, 401, 403] {
                assert_eq!(refusal(status, Some(code)), "dead", "{status} {code}");
            }
        }
        assert_eq!(refusal(400, Some("invalid_grant")), "dead");
        for code in [None, Some("invalid_client"), Some("anything")] {
            assert_eq!(refusal(401, code), "dead", "{code:?}");
        }
    }

    #[test]
    fn everything_else_proves_nothing() {
        for code in [None, Some("invalid_request"), Some("invalid_client"), Some("unsupported_grant_type")] {
            assert_eq!(refusal(400, code), "inconclusive", "{code:?}");
        }
        for status in
            [301, 302, 303, 307, 308, 402, 403, 404, 405, 407, 408, 409, 425, 429, 500, 502, 503, 504]
        {
            assert_eq!(refusal(status, None), "inconclusive", "{status}");
            assert_eq!(refusal(status, Some("invalid_grant")), "inconclusive", "{status}");
        }
    }

    #[test]
    fn what_may_come_from_in_between_is_no_proof_whatever_it_says() {
        for status in [302, 307, 408, 425, 429, 500, 503] {
            assert_eq!(refusal(status, Some("refresh_token_reused")), "inconclusive", "{status}");
        }
    }

    #[test]
    fn a_request_that_never_left_and_one_without_an_answer_differ() {
        assert_eq!(judge(&RefreshAnswer::NotSent("x".to_owned())).name(), "inconclusive");
        assert_eq!(judge(&RefreshAnswer::NoAnswer("x".to_owned())).name(), "suspect");
    }

    #[test]
    fn success_needs_an_access_token_and_tells_when_nothing_rotated() {
        let token = || Some(Secret::new("t"));
        let granted = |access_token, refresh_token| {
            judge(&RefreshAnswer::Granted(Tokens { access_token, refresh_token, id_token: None }))
        };
        assert_eq!(granted(token(), token()).name(), "alive");
        assert_eq!(granted(token(), None), Verdict::Alive(NO_ROTATION.to_owned()));
        assert_eq!(granted(None, token()).name(), "suspect");
        assert_eq!(granted(None, None).name(), "suspect");
    }

    #[test]
    fn a_long_code_is_not_repeated_whole() {
        let code = Some("x".repeat(10_000));
        let judged = judge(&RefreshAnswer::Refused { status: 400, code, retry_after: None });
        assert!(judged.reason().len() < 200);
    }
}
