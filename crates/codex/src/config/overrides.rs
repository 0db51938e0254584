//! The caller's own settings for Codex: dotted keys that become `-c key=value` on its command line.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::ConfigError;
use crate::toml_literal;

const FIELD: &str = "codex_config";

/// Bytes of all rendered overrides together. They share the 2 MiB or less that a host allows a command line.
const MAX_RENDERED: usize = 64 << 10;

/// Settings that follow from other fields, or that the service relies on, and where to say it instead. The first
/// segment of a key decides.
const OWNED: &[(&str, &str)] = &[
    ("approval_policy", "use ask_for_approval or permission_gate"),
    ("approvals_reviewer", "a person answers approvals; use permission_gate"),
    ("sandbox_mode", "use sandbox and fs_isolation"),
    ("sandbox_workspace_write", "use extra_allowed_dirs and network_access"),
    ("default_permissions", "use sandbox and fs_isolation"),
    ("permissions", "use sandbox and fs_isolation"),
    ("profile", "a profile could change what the sandbox and approval fields promise"),
    ("profiles", "a profile could change what the sandbox and approval fields promise"),
    ("projects", "the session's own workdir is trusted already"),
    ("cli_auth_credentials_store", "logins live in auth.json, where they are watched and saved"),
];

/// Ends of key names whose values are secrets. A command line is readable by every user of the host, so they have no
/// business there.
const SECRET_ENDS: &[&str] = &["api_key", "apikey", "token", "secret", "password", "authorization", "cookie"];

/// Checks the keys and renders the values as TOML. Values may be whole tables, which is also how a key with a dot in
/// it is written: `{"notice.model_migrations": {"gpt-5.5": "gpt-6"}}`.
pub(super) fn render(settings: &Map<String, Value>) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut rendered = BTreeMap::new();
    let mut total = 0;
    for (key, value) in settings {
        let refuse = |rule: &str| ConfigError::shown(format!("{FIELD}.{key}"), "(hidden)", rule);
        let segments: Vec<&str> = key.split('.').collect();
        if segments.iter().any(|s| s.is_empty() || !s.bytes().all(bare)) {
            return Err(ConfigError::shown(
                FIELD,
                format!("{key:?}"),
                "a key must be dotted names of letters, digits, _ and -; write other names inside a table value",
            ));
        }
        if let Some((_, instead)) = OWNED.iter().find(|(owned, _)| *owned == segments[0]) {
            return Err(refuse(&format!("this setting is the service's own: {instead}")));
        }
        if let Some(secret) =
            segments.iter().copied().find(|s| names_a_secret(s)).or_else(|| secret_within(value))
        {
            return Err(refuse(&format!(
                "{secret} would put a secret on a command line: pass it in env and name the variable with env_key"
            )));
        }
        let text = toml_literal::value(value).map_err(refuse)?;
        total += key.len() + text.len() + 1;
        if total > MAX_RENDERED || text.contains('\0') {
            return Err(refuse("all overrides together must stay below 64 KiB, without NUL characters"));
        }
        rendered.insert(key.clone(), text);
    }
    Ok(rendered)
}

fn bare(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

fn names_a_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    SECRET_ENDS.iter().any(|end| name.ends_with(end))
}

fn secret_within(value: &Value) -> Option<&str> {
    match value {
        Value::Object(members) => members.iter().find_map(|(name, member)| {
            if names_a_secret(name) { Some(name.as_str()) } else { secret_within(member) }
        }),
        Value::Array(items) => items.iter().find_map(secret_within),
        _ => None,
    }
}
