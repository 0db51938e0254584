//! Why a configuration is refused.

use serde_json::Value;

/// Characters of a refused value that an error shows: enough to recognise it, too few to flood a log.
const SHOWN: usize = 120;

/// A configuration that breaks a rule. It is found before any directory, connection or process exists (S-001).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} = {value}: {rule}")]
pub struct ConfigError {
    /// The field in the spelling of our JSON.
    pub field: String,
    /// The refused value, cut to a bounded length; never the value of a variable or a secret.
    pub value: String,
    /// What is asked of it.
    pub rule: String,
}

impl ConfigError {
    pub(super) fn new(field: impl Into<String>, value: &Value, rule: impl Into<String>) -> Self {
        Self::shown(field, value.to_string(), rule)
    }

    /// For a value that must not be shown, or is not one JSON value: the caller says what stands in its place.
    pub(super) fn shown(field: impl Into<String>, value: impl Into<String>, rule: impl Into<String>) -> Self {
        let mut value = value.into();
        if value.chars().count() > SHOWN {
            value = value.chars().take(SHOWN).chain("…".chars()).collect();
        }
        Self { field: field.into(), value, rule: rule.into() }
    }

    /// For a field that is required and absent.
    pub(super) fn missing(field: &str, rule: impl Into<String>) -> Self {
        Self::shown(field, "(missing)", rule)
    }
}
