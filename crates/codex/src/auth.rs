//! `auth.json`: is it a login, whose, and is it the same one as before?
//!
//! One classifier serves capture, save-back, verify and import, so that no two of them can disagree (T-123). It is
//! tolerant of members it does not know and of both ways in which Codex writes the file; a file caught half written
//! is [`Credential::Unreadable`], which means "look again", never "logged out" (T-126).
//!
//! Nothing here shows a token: not in `Debug`, not in an error, not in a label.

use std::fmt;

use jiff::Timestamp;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

mod refresh;
mod token;

#[cfg(test)]
mod tests;

pub use refresh::{NewTokens, REFRESH_AFTER, refresh_token, refreshed};

/// Bytes of the largest `auth.json` that is read; real ones have 4 to 6 KB.
pub const MAX_AUTH_JSON: usize = 256 << 10;

/// What an `auth.json` is.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A ChatGPT login with a refresh token that is spent by its next use.
    ChatGpt(Box<ChatGptLogin>),
    /// An API key: never rotates.
    ApiKey(ApiKeyLogin),
    /// A login of another kind that Codex knows and does not rotate (T-124).
    Other(OtherLogin),
    /// A JSON object without a login.
    LoggedOut,
    /// Nothing that can be judged: empty, cut off, not JSON, not an object, or too large.
    Unreadable(Unreadable),
}

/// Why a file could not be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Codex 0.142 truncates the file before it writes it.
    #[error("auth.json is empty")]
    Empty,
    /// Half written, or something else.
    #[error("auth.json is not JSON")]
    NotJson,
    /// Valid JSON that no Codex writes.
    #[error("auth.json is not a JSON object")]
    NotAnObject,
    /// Above [`MAX_AUTH_JSON`].
    #[error("auth.json is larger than {MAX_AUTH_JSON} bytes")]
    TooLarge,
}

/// Why a file cannot be taken as a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotALogin {
    /// It says that nobody is logged in.
    #[error("auth.json holds no login")]
    LoggedOut,
    /// It says nothing.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// A ChatGPT login, as far as it can be known without asking anybody. The claims come from tokens whose signatures
/// are not checked: they name an account for people, they prove nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct ChatGptLogin {
    /// The account, which for a team is the whole workspace.
    pub account_id: Option<String>,
    /// The person.
    pub user_id: Option<String>,
    /// The person's address.
    pub email: Option<String>,
    /// The plan, such as `plus`.
    pub plan: Option<String>,
    /// When the tokens were last renewed.
    pub last_refresh: Option<Timestamp>,
    /// When the access token ends; nothing when it does not say. Codex renews it within the last five minutes, or,
    /// when it does not say, eight days after `last_refresh` (LAB §3).
    pub access_expires_at: Option<Timestamp>,
    lineage: String,
}

/// An API key login.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKeyLogin {
    lineage: String,
}

/// A login of a kind that does not rotate.
#[derive(Clone, PartialEq, Eq)]
pub struct OtherLogin {
    /// The kind, in the file's own word or its member's name.
    pub kind: String,
    /// The account, when the file names one.
    pub account_id: Option<String>,
    lineage: String,
}

/// Members that hold a login which does not rotate, and the `auth_mode` that goes with each (T-124), in one spelling:
/// lower case without separators.
const NON_ROTATING: [&str; 4] =
    ["agentidentity", "personalaccesstoken", "bedrockapikey", "chatgptauthtokens"];

/// Judges the bytes of an `auth.json`. Never fails: what is no login says what it is instead.
pub fn read(bytes: &[u8]) -> Credential {
    match object(bytes) {
        Ok(file) => classify(&file),
        Err(why) => Credential::Unreadable(why),
    }
}

/// Judges the bytes of an `auth.json` where only a login will do, such as an import.
pub fn parse(bytes: &[u8]) -> Result<Credential, NotALogin> {
    match read(bytes) {
        Credential::LoggedOut => Err(NotALogin::LoggedOut),
        Credential::Unreadable(why) => Err(why.into()),
        login => Ok(login),
    }
}

/// Gives the lower-case hex SHA-256 of the bytes, or nothing when they are no login (T-120). It tells bytes apart, not
/// meanings: the same tokens written anew have another fingerprint, and that is a change to be saved (T-121).
pub fn fingerprint(bytes: &[u8]) -> Option<String> {
    read(bytes).is_login().then(|| sha256_hex(bytes))
}

/// Says whether two logins are of one account; nothing when one of them does not say (T-132). A workspace account is
/// shared by people, so where both name a person, the persons must agree as well.
pub fn same_account(a: &Credential, b: &Credential) -> Option<bool> {
    use Credential::{ApiKey, ChatGpt, Other};
    match (a, b) {
        (ChatGpt(a), ChatGpt(b)) => {
            let agree = |a: &Option<String>, b: &Option<String>| Some(a.as_ref()? == b.as_ref()?);
            match (agree(&a.account_id, &b.account_id), agree(&a.user_id, &b.user_id)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (account, user) => account.or(user),
            }
        }
        (ApiKey(a), ApiKey(b)) => Some(a.lineage == b.lineage),
        (Other(a), Other(b)) if a.kind == b.kind => Some(a.account_id.as_ref()? == b.account_id.as_ref()?),
        (ChatGpt(_) | ApiKey(_) | Other(_), ChatGpt(_) | ApiKey(_) | Other(_)) => Some(false),
        _ => None,
    }
}

impl Credential {
    /// Says whether somebody is logged in: the gate of capture, save-back and import (T-122, T-127).
    pub fn is_login(&self) -> bool {
        !matches!(self, Self::LoggedOut | Self::Unreadable(_))
    }

    /// Says whether Codex replaces this login as it uses it, so that an older copy of it is worthless.
    pub fn rotates(&self) -> bool {
        matches!(self, Self::ChatGpt(_))
    }

    /// Gives the account, where the file names one.
    pub fn account_id(&self) -> Option<&str> {
        match self {
            Self::ChatGpt(login) => login.account_id.as_deref(),
            Self::Other(login) => login.account_id.as_deref(),
            _ => None,
        }
    }

    /// Gives the hex SHA-256 of the secret that the login stands on: the refresh token, the key. Two files with one
    /// lineage spend each other's token. It is no secret, and only its first digits are worth showing (T-241).
    pub fn lineage_hash(&self) -> Option<&str> {
        match self {
            Self::ChatGpt(login) => Some(&login.lineage),
            Self::ApiKey(login) => Some(&login.lineage),
            Self::Other(login) => Some(&login.lineage),
            Self::LoggedOut | Self::Unreadable(_) => None,
        }
    }

    /// Names the login for a list that people read: `person@example.org (plus)`, `API key 3f2a9c01`. The digits are
    /// of a hash, not of the key.
    pub fn label(&self) -> Option<String> {
        match self {
            Self::ChatGpt(login) => {
                let who = login.email.as_deref().or(login.account_id.as_deref()).unwrap_or("ChatGPT account");
                Some(match &login.plan {
                    Some(plan) => format!("{who} ({plan})"),
                    None => who.to_owned(),
                })
            }
            Self::ApiKey(login) => Some(format!("API key {}", &login.lineage[..8])),
            Self::Other(login) => Some(match &login.account_id {
                Some(account) => format!("{account} ({})", login.kind),
                None => format!("{} {}", login.kind, &login.lineage[..8]),
            }),
            Self::LoggedOut | Self::Unreadable(_) => None,
        }
    }
}

impl fmt::Debug for Credential {
    /// Shows kind and label; a label holds no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::ChatGpt(_) => "ChatGpt",
            Self::ApiKey(_) => "ApiKey",
            Self::Other(_) => "Other",
            Self::LoggedOut => return f.write_str("LoggedOut"),
            Self::Unreadable(why) => return f.debug_tuple("Unreadable").field(why).finish(),
        };
        f.debug_tuple(kind).field(&self.label().unwrap_or_default()).finish()
    }
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, Unreadable> {
    if bytes.len() > MAX_AUTH_JSON {
        return Err(Unreadable::TooLarge);
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Unreadable::Empty);
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(file)) => Ok(file),
        Ok(_) => Err(Unreadable::NotAnObject),
        Err(_) => Err(Unreadable::NotJson),
    }
}

/// A refresh token makes a ChatGPT login even beside an API key, unless the file itself says that the key is in use:
/// the token is the part that can be lost.
fn classify(file: &Map<String, Value>) -> Credential {
    let mode = file.get("auth_mode").and_then(Value::as_str).unwrap_or_default();
    let tokens = file.get("tokens").and_then(Value::as_object);
    let api_key = text(file, "OPENAI_API_KEY");
    if let (Some(key), "apikey") = (api_key, plain(mode).as_str()) {
        return Credential::ApiKey(ApiKeyLogin { lineage: sha256_hex(key.as_bytes()) });
    }
    if let Some((tokens, refresh)) = tokens.and_then(|tokens| Some((tokens, text(tokens, "refresh_token")?)))
    {
        return Credential::ChatGpt(Box::new(chatgpt(file, tokens, refresh)));
    }
    if let Some(other) = other(file, mode, tokens) {
        return Credential::Other(other);
    }
    match api_key {
        Some(key) => Credential::ApiKey(ApiKeyLogin { lineage: sha256_hex(key.as_bytes()) }),
        None => Credential::LoggedOut,
    }
}

fn chatgpt(file: &Map<String, Value>, tokens: &Map<String, Value>, refresh: &str) -> ChatGptLogin {
    let claims = text(tokens, "id_token").and_then(token::claims).unwrap_or_default();
    let none = Map::new();
    let openai = claims.get("https://api.openai.com/auth").and_then(Value::as_object).unwrap_or(&none);
    let owned = |text: Option<&str>| text.map(str::to_owned);
    ChatGptLogin {
        account_id: owned(text(tokens, "account_id").or_else(|| text(openai, "chatgpt_account_id"))),
        user_id: owned(text(openai, "chatgpt_user_id").or_else(|| text(openai, "user_id"))),
        email: owned(text(&claims, "email")),
        plan: owned(text(openai, "chatgpt_plan_type")),
        last_refresh: file.get("last_refresh").and_then(token::instant),
        access_expires_at: text(tokens, "access_token")
            .and_then(token::claims)
            .and_then(|c| token::seconds(c.get("exp")?)),
        lineage: sha256_hex(refresh.as_bytes()),
    }
}

/// A non-rotating login is known by its mode or by a member of that name that holds something; its lineage is the
/// member's content.
fn other(file: &Map<String, Value>, mode: &str, tokens: Option<&Map<String, Value>>) -> Option<OtherLogin> {
    let held =
        |name: &str, value: &Value| NON_ROTATING.contains(&plain(name).as_str()) && holds_something(value);
    if let Some((name, value)) = file.iter().find(|(name, value)| held(name, value)) {
        let account_id = value.as_object().and_then(|v| text(v, "account_id")).map(str::to_owned);
        return Some(OtherLogin {
            kind: name.clone(),
            account_id,
            lineage: sha256_hex(value.to_string().as_bytes()),
        });
    }
    let access = tokens.and_then(|tokens| text(tokens, "access_token"))?;
    if !NON_ROTATING.contains(&plain(mode).as_str()) {
        return None;
    }
    let account_id = tokens.and_then(|tokens| text(tokens, "account_id")).map(str::to_owned);
    Some(OtherLogin { kind: mode.to_owned(), account_id, lineage: sha256_hex(access.as_bytes()) })
}

fn holds_something(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.is_empty(),
        Value::Object(members) => members.values().any(holds_something),
        _ => false,
    }
}

/// A non-empty string member.
fn text<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// One spelling of `agent_identity`, `agentIdentity`, `agent-identity`.
fn plain(word: &str) -> String {
    word.chars().filter(|c| c.is_ascii_alphanumeric()).map(|c| c.to_ascii_lowercase()).collect()
}

fn sha256_hex(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}
