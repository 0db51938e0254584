//! Logins as codex keeps them on disk, and the configuration that goes with them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// The one model that the catalogues of both codex 0.142.5 and 0.169 offer with plain function tools (LAB §1).
pub const MODEL: &str = "gpt-5.5";

/// The variable that carries the key in [`ModelAuth::EnvKey`] mode.
pub const KEY_VARIABLE: &str = "MOCK_API_KEY";

/// How codex proves itself to the mock model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelAuth {
    /// With the login in `auth.json`, refreshed when it is due: what seeds are for.
    ChatGpt,
    /// With the key in [`KEY_VARIABLE`]; no `auth.json` is needed.
    EnvKey,
    /// Not at all: no `auth.json`, no key, no authorization header.
    Nothing,
}

/// Writes the `config.toml` that keeps codex on loopback: one provider, no retries, nothing fetched at start.
pub fn config_toml(model_url: &str, auth: ModelAuth) -> String {
    let (login, provider) = match auth {
        ModelAuth::ChatGpt => (
            format!(
                "chatgpt_base_url = \"{model_url}/backend-api/\"\ncli_auth_credentials_store = \"file\"\n"
            ),
            "requires_openai_auth = true\n".to_owned(),
        ),
        ModelAuth::EnvKey => (String::new(), format!("env_key = \"{KEY_VARIABLE}\"\n")),
        ModelAuth::Nothing => (String::new(), String::new()),
    };
    format!(
        r#"model = "{MODEL}"
model_provider = "mock"
personality = "pragmatic"
check_for_update_on_startup = false
{login}
[model_providers.mock]
name = "mock"
base_url = "{model_url}/v1"
wire_api = "responses"
{provider}request_max_retries = 0
stream_max_retries = 0

[analytics]
enabled = false

[features]
plugins = false
apps = false
shell_snapshot = false
daemon_auto_start = false

[notice.model_migrations]
"{MODEL}" = "gpt-6-sol"
"#
    )
}

/// Says the same in dotted keys, as a session's `codex_config` takes them.
pub(crate) fn overrides(model_url: &str, auth: ModelAuth) -> Value {
    let mut keys = json!({
        "model": MODEL,
        "model_provider": "mock",
        "check_for_update_on_startup": false,
        "model_providers.mock.name": "mock",
        "model_providers.mock.base_url": format!("{model_url}/v1"),
        "model_providers.mock.wire_api": "responses",
        "model_providers.mock.request_max_retries": 0,
        "model_providers.mock.stream_max_retries": 0,
        "analytics.enabled": false,
        "features.plugins": false,
        "features.apps": false,
        "features.shell_snapshot": false,
        "features.daemon_auto_start": false,
    });
    match auth {
        ModelAuth::ChatGpt => {
            keys["chatgpt_base_url"] = json!(format!("{model_url}/backend-api/"));
            keys["cli_auth_credentials_store"] = json!("file");
            keys["model_providers.mock.requires_openai_auth"] = json!(true);
        }
        ModelAuth::EnvKey => keys["model_providers.mock.env_key"] = json!(KEY_VARIABLE),
        ModelAuth::Nothing => {}
    }
    keys
}

/// A ChatGPT login to make an `auth.json` of. Unless told otherwise it is fresh: nothing about it makes codex refresh it.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatGptLogin {
    account: String,
    refresh_token: String,
    access_token: String,
    id_token: String,
    last_refresh: Timestamp,
}

impl ChatGptLogin {
    /// Makes a login of this account whose refresh token is `rt-ACCOUNT-original`.
    pub fn new(account: &str) -> Self {
        Self {
            account: account.to_owned(),
            refresh_token: format!("rt-{account}-original"),
            access_token: access_token(SignedDuration::from_hours(240), 0),
            id_token: id_token(account),
            last_refresh: Timestamp::now(),
        }
    }

    /// Replaces the refresh token.
    #[must_use]
    pub fn refresh_token(mut self, token: impl Into<String>) -> Self {
        self.refresh_token = token.into();
        self
    }

    /// Replaces the access token by one that expires so far from now. Codex refreshes when less than five minutes are
    /// left, or none (a negative time).
    #[must_use]
    pub fn access_expires_in(mut self, left: SignedDuration) -> Self {
        self.access_token = access_token(left, 0);
        self
    }

    /// Replaces the access token by one that tells no expiry. Codex then goes by the time of the last refresh, and
    /// refreshes after eight days.
    #[must_use]
    pub fn opaque_access(mut self) -> Self {
        self.access_token = format!("opaque-access-{}", self.account);
        self
    }

    /// Moves the time of the last refresh into the past.
    #[must_use]
    pub fn refreshed_ago(mut self, ago: SignedDuration) -> Self {
        self.last_refresh = Timestamp::now() - ago;
        self
    }

    /// The account the login belongs to.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The single-use token that the next refresh spends.
    pub fn current_refresh_token(&self) -> &str {
        &self.refresh_token
    }

    /// The bearer token codex sends to the model.
    pub fn current_access_token(&self) -> &str {
        &self.access_token
    }

    /// The `auth.json` codex would have written: pretty-printed, nanoseconds, `Z`.
    pub fn auth_json(&self) -> Vec<u8> {
        let auth = json!({
            "auth_mode": "chatgpt",
            "OPENAI_API_KEY": null,
            "tokens": {
                "id_token": self.id_token,
                "access_token": self.access_token,
                "refresh_token": self.refresh_token,
                "account_id": self.account,
            },
            "last_refresh": format!("{:.9}", self.last_refresh),
        });
        serde_json::to_vec_pretty(&auth).expect("a value without maps of odd keys is always JSON")
    }
}

/// Reads the refresh token of an `auth.json`; nothing when it is torn or of another mode.
pub fn refresh_token_of(auth_json: &[u8]) -> Option<String> {
    let auth: Value = serde_json::from_slice(auth_json).ok()?;
    auth["tokens"]["refresh_token"].as_str().map(str::to_owned)
}

/// Makes an access token that expires so far from now; `serial` keeps two made in the same second apart.
pub(crate) fn access_token(left: SignedDuration, serial: u64) -> String {
    jwt(&json!({ "exp": Timestamp::now().as_second() + left.as_secs(), "n": serial }))
}

/// Makes the id token from which codex reads whose login it is.
pub(crate) fn id_token(account: &str) -> String {
    let now = Timestamp::now().as_second();
    let user = format!("user-of-{account}");
    jwt(&json!({
        "email": format!("{account}@example.test"),
        "sub": user,
        "iat": now,
        "exp": now + 3600,
        "https://api.openai.com/auth": {
            "chatgpt_plan_type": "plus",
            "chatgpt_user_id": user,
            "chatgpt_account_id": account,
            "user_id": user,
        },
    }))
}

/// Codex does not check signatures, so any third part will do.
fn jwt(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!(
        "{}.{}.{}",
        part(&json!({ "alg": "none", "typ": "JWT" })),
        part(claims),
        URL_SAFE_NO_PAD.encode("sig")
    )
}
