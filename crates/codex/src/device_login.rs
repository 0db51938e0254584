//! Logging in with a code: the app-server asks the login service for a code, a person enters it in any browser, and the
//! app-server writes the login into its own home.
//!
//! What codex 0.142.5 does (tried; tests below): `account/login/start` asks the login service for a code and answers with
//! it, or is refused where the login service has no codes. Then it polls by itself, and tells the end once, as
//! `account/login/completed`. After a success `auth.json` is on disk before that is told. A cancelled login is told as one
//! that failed; one that is over cannot be cancelled (`notFound`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::requests::{AnswerError, parse, request};

/// The names of the requests and of the notification, as they go over the wire.
pub mod method {
    /// Asks for a code.
    pub const START: &str = "account/login/start";
    /// Gives a login up.
    pub const CANCEL: &str = "account/login/cancel";
    /// Tells how a login ended.
    pub const COMPLETED: &str = "account/login/completed";
}

/// How long a code can be entered: codex gives up polling after this, whatever the login service says. Its answer tells no
/// time of its own.
pub const CODE_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// The longest code that is shown to a person, in characters; real ones have nine or ten.
const CODE_LIMIT: usize = 64;

/// The longest address that is shown to a person, in bytes.
const URL_LIMIT: usize = 2048;

/// The longest reason that is passed on, in characters.
const REASON_LIMIT: usize = 300;

/// Encodes `account/login/start` for a login with a code.
pub fn start(id: u64) -> String {
    #[derive(Serialize)]
    struct Params {
        r#type: &'static str,
    }
    request(id, method::START, Params { r#type: KIND })
}

/// The kind of login, in the request and in its answer.
const KIND: &str = "chatgptDeviceCode";

/// Encodes `account/login/cancel`.
pub fn cancel(id: u64, login_id: &str) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        login_id: &'a str,
    }
    request(id, method::CANCEL, Params { login_id })
}

/// What a person needs to log in.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceCode {
    /// The app-server's name for this login.
    pub login_id: String,
    /// Where the person goes; `https://`, or `http://` for a login service of one's own.
    pub verification_url: String,
    /// What the person enters there. Whoever has it can finish the login with an account of his own, so it is shown to those
    /// who may and never logged.
    pub user_code: String,
}

impl std::fmt::Debug for DeviceCode {
    /// Leaves the code out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceCode").field("login_id", &self.login_id).finish_non_exhaustive()
    }
}

impl DeviceCode {
    /// Reads the answer to `account/login/start`. What could not be shown to a person as it is, is refused: an address that
    /// is none, a code with control characters.
    pub fn parse(result: &[u8]) -> Result<Self, AnswerError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire {
            login_id: Option<String>,
            verification_url: Option<String>,
            user_code: Option<String>,
        }
        let missing = |member| AnswerError::Missing { method: method::START, member };
        let wire: Wire = parse(method::START, result)?;
        let code = Self {
            login_id: wire.login_id.ok_or(missing("loginId"))?,
            verification_url: wire.verification_url.ok_or(missing("verificationUrl"))?,
            user_code: wire.user_code.ok_or(missing("userCode"))?,
        };
        let malformed =
            |detail: &str| Err(AnswerError::Malformed { method: method::START, detail: detail.to_owned() });
        let url = &code.verification_url;
        let is_address = url.starts_with("https://") || url.starts_with("http://");
        if !is_address || url.len() > URL_LIMIT || !url.bytes().all(|b| b.is_ascii_graphic()) {
            return malformed("`verificationUrl` is no web address");
        }
        let shown = code.user_code.chars().count();
        if shown == 0 || shown > CODE_LIMIT || code.user_code.chars().any(char::is_control) {
            return malformed("`userCode` cannot be shown to a person");
        }
        Ok(code)
    }
}

/// How a login ended, as `account/login/completed` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginCompleted {
    /// Which login; codex may leave it out.
    pub login_id: Option<String>,
    /// It worked, and `auth.json` is written.
    pub success: bool,
    /// Why not, in codex's words, cut to what a person reads.
    pub error: Option<String>,
}

impl LoginCompleted {
    /// Reads the notification's params.
    pub fn parse(params: &[u8]) -> Result<Self, AnswerError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire {
            login_id: Option<String>,
            success: Option<bool>,
            error: Option<String>,
        }
        let wire: Wire = parse(method::COMPLETED, params)?;
        let missing = AnswerError::Missing { method: method::COMPLETED, member: "success" };
        let readable = |text: String| text.chars().filter(|c| !c.is_control()).take(REASON_LIMIT).collect();
        Ok(Self {
            login_id: wire.login_id,
            success: wire.success.ok_or(missing)?,
            error: wire.error.map(readable),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_asked_for_and_given_up_as_the_real_server_took_it() {
        assert_eq!(
            start(2),
            r#"{"id":2,"method":"account/login/start","params":{"type":"chatgptDeviceCode"}}"#
        );
        assert_eq!(
            cancel(3, "c3db9972"),
            r#"{"id":3,"method":"account/login/cancel","params":{"loginId":"c3db9972"}}"#
        );
    }

    /// As 0.142.5 wrote it.
    const ANSWER: &str = r#"{"type":"chatgptDeviceCode","loginId":"c3db9972-7e32-4aae-97d4-3b64b1511675","verificationUrl":"https://auth.openai.com/codex/device","userCode":"ABCD-12345"}"#;

    #[test]
    fn the_real_answer_is_read_and_its_code_is_not_in_debug() {
        let code = DeviceCode::parse(ANSWER.as_bytes()).unwrap();
        assert_eq!(code.login_id, "c3db9972-7e32-4aae-97d4-3b64b1511675");
        assert_eq!(code.verification_url, "https://auth.openai.com/codex/device");
        assert_eq!(code.user_code, "ABCD-12345");
        assert!(!format!("{code:?}").contains("ABCD"), "{code:?}");
    }

    #[test]
    fn an_answer_that_no_person_could_use_is_refused_without_its_code() {
        for (bad, why) in [
            (ANSWER.replace("loginId", "login"), "loginId"),
            (ANSWER.replace("userCode", "code"), "userCode"),
            (ANSWER.replace("https://auth.openai.com", "javascript:alert(1)//"), "web address"),
            (ANSWER.replace("openai.com/", "openai.com/ "), "web address"),
            (ANSWER.replace("ABCD-12345", ""), "shown"),
            (ANSWER.replace("ABCD-12345", "ABCD\\n12345"), "shown"),
            (ANSWER.replace("\"ABCD-12345\"", "12345"), "not understood"),
        ] {
            let refused = DeviceCode::parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(refused.contains(why) && !refused.contains("12345"), "{refused}");
        }
    }

    #[test]
    fn the_real_ends_are_read() {
        let ended = |params: &str| LoginCompleted::parse(params.as_bytes()).unwrap();
        let done = ended(r#"{"loginId":"c3db9972","success":true,"error":null}"#);
        assert_eq!(
            done,
            LoginCompleted { login_id: Some("c3db9972".to_owned()), success: true, error: None }
        );
        let denied = ended(
            r#"{"loginId":"e4","success":false,"error":"device auth failed with status 400 Bad Request"}"#,
        );
        assert!(!denied.success);
        assert_eq!(denied.error.as_deref(), Some("device auth failed with status 400 Bad Request"));
        let cancelled = ended(r#"{"loginId":"02","success":false,"error":"Login was not completed"}"#);
        assert_eq!(cancelled.error.as_deref(), Some("Login was not completed"));
    }

    #[test]
    fn a_reason_is_cut_and_an_end_that_does_not_say_which_is_an_error() {
        let long = format!(r#"{{"success":false,"error":"a\u0007{}"}}"#, "b".repeat(1000));
        let error = LoginCompleted::parse(long.as_bytes()).unwrap().error.unwrap();
        assert_eq!((error.len(), &error[..2]), (REASON_LIMIT, "ab"));
        assert!(LoginCompleted::parse(b"{}").is_err());
    }
}
