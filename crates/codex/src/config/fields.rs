//! JSON in: names, spellings and types. What values may stand together is `check`'s business.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{ConfigError, Grant, GrantMode, SeedChoice};

/// Every field in the spelling we write, in the order in which we write it.
pub(super) const NAMES: &[&str] = &[
    "mode",
    "instructions",
    "transport",
    "host_protocol",
    "client_messages",
    "caller_messages",
    "auto_start",
    "supports_resume",
    "seed",
    "capture_seed",
    "model",
    "effort",
    "env",
    "scrub_env",
    "scrub_credentials",
    "codex_config",
    "sandbox",
    "fs_isolation",
    "network_access",
    "extra_allowed_dirs",
    "ask_for_approval",
    "permission_gate",
    "workdir_exclude",
    "conversation_ui",
    "tool_verbosity",
    "thinking_verbosity",
    "default_model",
    "show_model_selector",
    "show_file_upload",
    "max_upload_bytes",
    "file_download",
    "max_download_bytes",
    "install_if_missing",
    "codex_install_dir",
    "install_ttyd_if_missing",
    "ttyd_install_dir",
];

/// Older and other spellings that are taken (API.md; L-01, L-02).
const ALIASES: &[(&str, &str)] = &[
    ("consumer_instructions", "instructions"),
    ("seed_id", "seed"),
    ("reasoning_effort", "effort"),
    ("install_dir", "codex_install_dir"),
];

/// The fields of one JSON object, each taken once. What is left at the end is unknown.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Brings every name to the spelling we write and refuses names nobody knows.
    pub(super) fn new(map: Map<String, Value>) -> Result<Self, ConfigError> {
        let mut fields = Map::with_capacity(map.len());
        for (given, value) in map {
            let name =
                ALIASES.iter().find(|(alias, _)| *alias == given).map_or(given.as_str(), |(_, name)| name);
            if !NAMES.contains(&name) {
                return Err(unknown(&given, &value));
            }
            if fields.insert(name.to_owned(), value).is_some() {
                return Err(ConfigError::shown(
                    name,
                    "(two values)",
                    "is given twice, under two of its names",
                ));
            }
        }
        Ok(Self(fields))
    }

    /// Takes a field; null is the same as absent.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        debug_assert!(NAMES.contains(&name), "{name} is not in NAMES");
        self.0.remove(name).filter(|value| !value.is_null())
    }

    pub(super) fn flag(&mut self, name: &str, default: bool) -> Result<bool, ConfigError> {
        match self.take(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(ConfigError::new(name, &other, "must be true or false")),
        }
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, ConfigError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.contains('\0') => {
                Err(ConfigError::new(name, &Value::String(text), "must not contain a NUL character"))
            }
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(ConfigError::new(name, &other, "must be a string")),
        }
    }

    pub(super) fn bytes(&mut self, name: &str, default: u64) -> Result<Value, ConfigError> {
        match self.take(name) {
            None => Ok(default.into()),
            Some(number @ Value::Number(_)) => Ok(number),
            Some(other) => Err(ConfigError::new(name, &other, "must be a number of bytes")),
        }
    }

    pub(super) fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, ConfigError> {
        let rule = "must be a list of strings";
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let Value::Array(items) = &value else {
            return Err(ConfigError::new(name, &value, rule));
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            texts.push(item.as_str().ok_or_else(|| ConfigError::new(name, item, rule))?.to_owned());
        }
        Ok(Some(texts))
    }

    pub(super) fn object(&mut self, name: &str) -> Result<Map<String, Value>, ConfigError> {
        match self.take(name) {
            None => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(map),
            Some(other) => Err(ConfigError::new(name, &other, "must be an object")),
        }
    }

    /// Takes the environment. Its values may be secrets, so no error shows one.
    pub(super) fn env(&mut self) -> Result<BTreeMap<String, String>, ConfigError> {
        let map = match self.take("env") {
            None => return Ok(BTreeMap::new()),
            Some(Value::Object(map)) => map,
            Some(_) => {
                return Err(ConfigError::shown("env", "(hidden)", "must be an object of strings"));
            }
        };
        let mut env = BTreeMap::new();
        for (name, value) in map {
            let Value::String(value) = value else {
                return Err(ConfigError::shown(
                    "env",
                    format!("{name:?}"),
                    "this variable's value must be a string",
                ));
            };
            env.insert(name, value);
        }
        Ok(env)
    }

    /// Takes the grants; a bad mode or path is refused here already, as each grant is made (S-015, S-044).
    pub(super) fn grants(&mut self) -> Result<Vec<Grant>, ConfigError> {
        const FIELD: &str = "extra_allowed_dirs";
        let Some(value) = self.take(FIELD) else {
            return Ok(Vec::new());
        };
        let Value::Array(items) = &value else {
            return Err(ConfigError::new(FIELD, &value, "must be a list of {path, mode}"));
        };
        items.iter().map(|item| grant(FIELD, item)).collect()
    }

    /// Takes the seed: `{id}`, `{pool}`, or an id alone. An empty one is no choice at all (S-048).
    pub(super) fn seed(&mut self) -> Result<Option<SeedChoice>, ConfigError> {
        let rule = "must be {\"id\": …}, {\"pool\": …} or an id, and not empty";
        let Some(value) = self.take("seed") else {
            return Ok(None);
        };
        let refuse = || ConfigError::new("seed", &value, rule);
        let (kind, text) = match &value {
            Value::String(id) => ("id", id),
            Value::Object(map) => match map.iter().next() {
                Some((kind, Value::String(text))) if map.len() == 1 => (kind.as_str(), text),
                _ => return Err(refuse()),
            },
            _ => return Err(refuse()),
        };
        if text.trim().is_empty() || text.contains('\0') {
            return Err(refuse());
        }
        match kind {
            "id" => Ok(Some(SeedChoice::Id(text.clone()))),
            "pool" => Ok(Some(SeedChoice::Pool(text.clone()))),
            _ => Err(refuse()),
        }
    }
}

fn grant(field: &str, item: &Value) -> Result<Grant, ConfigError> {
    let refuse = |rule: &str| ConfigError::new(field, item, rule);
    let map = item.as_object().ok_or_else(|| refuse("each grant must be {path, mode}"))?;
    if map.keys().any(|key| key != "path" && key != "mode") {
        return Err(refuse("a grant has a path and a mode, and nothing else"));
    }
    let (Some(path), Some(mode)) =
        (map.get("path").and_then(Value::as_str), map.get("mode").and_then(Value::as_str))
    else {
        return Err(refuse("a grant's path and mode must be strings"));
    };
    let mode = GrantMode::from_word(mode).ok_or_else(|| refuse("a grant's mode must be \"ro\" or \"rw\""))?;
    if !(path.starts_with('/') || path == "~" || path.starts_with("~/")) || path.contains('\0') {
        return Err(refuse("a grant's path must be absolute, or ~, or below ~/"));
    }
    Ok(Grant { path: path.to_owned(), mode })
}

fn unknown(given: &str, value: &Value) -> ConfigError {
    let near = NAMES
        .iter()
        .chain(ALIASES.iter().map(|(alias, _)| alias))
        .map(|name| (distance(given, name), *name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len() / 5);
    let rule = match (given, near) {
        ("ssh" | "host", _) => {
            "is no part of a session's configuration: the host is chosen beside it".to_owned()
        }
        (_, Some((_, name))) => format!("is no field of a session's configuration; did you mean {name}?"),
        _ => "is no field of a session's configuration".to_owned(),
    };
    // A misspelt `env` would show its values, so only the kind of value is shown.
    let kind = match value {
        Value::Object(_) => "{…}".to_owned(),
        Value::Array(_) => "[…]".to_owned(),
        Value::String(_) => "\"…\"".to_owned(),
        other => other.to_string(),
    };
    let name: String = given.chars().take(64).collect();
    ConfigError::shown(name, kind, rule)
}

/// Counts the edits (insert, delete, replace) between two names; a name longer than 64 is as far as can be.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
