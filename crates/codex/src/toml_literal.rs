//! Values as TOML text, for `-c key=value` and for edits of `config.toml`.
//!
//! JSON's escapes are no substitute: JSON writes characters outside the basic plane as two surrogates, which TOML
//! rejects (S-292).

use std::fmt::Write;

use serde_json::Value;

/// Writes a TOML basic string: backslash, quote and control characters are escaped, other Unicode stays as it is.
pub fn string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Writes a TOML array of basic strings, with a comma and one blank between them (S-290).
pub fn strings<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| string(item.as_ref())).collect();
    format!("[{}]", items.join(", "))
}

/// Writes a JSON value as one line of TOML: objects become inline tables. Refuses what TOML cannot say, with the
/// reason.
pub fn value(json: &Value) -> Result<String, &'static str> {
    match json {
        Value::Null => Err("TOML has no null: leave the key out"),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Ok(integer.to_string()),
            (None, Some(float)) if number.is_f64() => Ok(format!("{float:?}")),
            _ => Err("TOML's integers end at 2^63 - 1"),
        },
        Value::String(text) => Ok(string(text)),
        Value::Array(items) => {
            let items = items.iter().map(value).collect::<Result<Vec<_>, _>>()?;
            Ok(format!("[{}]", items.join(", ")))
        }
        Value::Object(members) => {
            let mut pairs = Vec::with_capacity(members.len());
            for (key, member) in members {
                pairs.push(format!("{} = {}", string(key), value(member)?));
            }
            Ok(format!("{{{}}}", pairs.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use toml_edit::DocumentMut;

    fn parsed(literal: &str) -> toml_edit::Value {
        let document: DocumentMut = format!("x = {literal}\n").parse().unwrap();
        document["x"].as_value().unwrap().clone()
    }

    #[test]
    fn characters_outside_the_basic_plane_stay_as_they_are() {
        assert_eq!(string("/data/🗂"), "\"/data/🗂\"");
        assert_eq!(string("a\"b\\c\u{1}\u{7f}"), r#""a\"b\\c\u0001\u007F""#);
    }

    #[test]
    fn an_array_has_a_comma_and_one_blank() {
        assert_eq!(strings(["/home/u/cache", "/scratch"]), r#"["/home/u/cache", "/scratch"]"#);
        assert_eq!(strings(Vec::<String>::new()), "[]");
    }

    #[test]
    fn an_object_becomes_an_inline_table_whose_keys_are_quoted() {
        let text = value(&json!({ "gpt-5.5": "gpt-6", "n": [1, true, 0.5] })).unwrap();
        assert_eq!(text, r#"{"gpt-5.5" = "gpt-6", "n" = [1, true, 0.5]}"#);
        assert!(parsed(&text).as_inline_table().unwrap().contains_key("gpt-5.5"));
    }

    #[test]
    fn what_toml_cannot_say_is_refused() {
        assert!(value(&json!([1, null])).is_err());
        assert!(value(&json!({ "big": u64::MAX })).is_err());
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1e9..1e9f64).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    fn back(value: &toml_edit::Value) -> Value {
        use toml_edit::Value as Toml;
        match value {
            Toml::String(text) => json!(text.value()),
            Toml::Integer(n) => json!(n.value()),
            Toml::Float(n) => json!(n.value()),
            Toml::Boolean(b) => json!(b.value()),
            Toml::Array(items) => items.iter().map(back).collect(),
            Toml::InlineTable(table) => table.iter().map(|(k, v)| (k.to_owned(), back(v))).collect(),
            Toml::Datetime(_) => unreachable!("JSON has no dates"),
        }
    }

    proptest! {
        #[test]
        fn a_toml_parser_reads_back_every_string(text in any::<String>()) {
            let literal = string(&text);
            prop_assert!(!literal.contains('\n'));
            let value = parsed(&literal);
            prop_assert_eq!(value.as_str(), Some(text.as_str()));
        }

        #[test]
        fn a_toml_parser_reads_back_every_value(json in json_value()) {
            let literal = value(&json).unwrap();
            prop_assert_eq!(back(&parsed(&literal)), json);
        }
    }
}
