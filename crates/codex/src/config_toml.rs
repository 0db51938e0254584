//! Edits of Codex's `config.toml`, which belongs to the user and to Codex: we add, and touch nothing else.
//!
//! Both edits work on the text. The parser judges, the text is changed in one place, and every other byte, comment and
//! line end stays what it was. A second call changes nothing.

use toml_edit::{Document, DocumentMut, Item, Table, TableLike, value};

use crate::toml_literal;

/// Bytes of the largest `config.toml` that is read or taken in an import; real ones have a few KB.
pub const MAX_CONFIG_TOML: usize = 1 << 20;

const STORE_KEY: &str = "cli_auth_credentials_store";

/// Why a `config.toml` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigTomlError {
    /// It is above [`MAX_CONFIG_TOML`].
    #[error("config.toml has {0} bytes, more than {MAX_CONFIG_TOML}")]
    TooLarge(usize),
    /// It is no text.
    #[error("config.toml is not UTF-8 text")]
    NotText,
    /// It is no TOML. Only the place is told: the lines of it may hold secrets.
    #[error("config.toml is not TOML: line {line}: {reason}")]
    NotToml {
        /// Where, counted from 1.
        line: usize,
        /// What was expected there.
        reason: String,
    },
    /// It is TOML, but this key is not what Codex takes there.
    #[error("config.toml: {0} is not a table")]
    NotATable(&'static str),
}

/// Reads the bytes of a `config.toml`, as of an import: text, of bounded size, that parses.
pub fn validate(bytes: &[u8]) -> Result<&str, ConfigTomlError> {
    if bytes.len() > MAX_CONFIG_TOML {
        return Err(ConfigTomlError::TooLarge(bytes.len()));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| ConfigTomlError::NotText)?;
    parse(text)?;
    Ok(text)
}

/// Makes Codex trust a workdir, so that it does not stop at a question nobody sees (S-506, T-045). An entry for the
/// workdir that is there already is left as it is; entries of earlier workdirs stay (T-047). Pass empty text for a
/// missing file.
///
/// The keys are compared as parsed, so any spelling of the entry counts (T-046).
pub fn pre_trust(text: &str, workdir: &str) -> Result<String, ConfigTomlError> {
    let workdir = match workdir.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed,
    };
    if trust_entry(&parse(text)?, workdir)? {
        return Ok(text.to_owned());
    }
    let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let mut appended = text.to_owned();
    if !appended.is_empty() && !appended.ends_with('\n') {
        appended.push_str(newline);
    }
    let header = format!("[projects.{}]", toml_literal::string(workdir));
    appended.push_str(&format!("{header}{newline}trust_level = \"trusted\"{newline}"));
    if parse(&appended).is_ok_and(|document| trust_entry(&document, workdir) == Ok(true)) {
        return Ok(appended);
    }
    // `projects = { … }` is closed to headers: the entry must go inside of it.
    let mut document: DocumentMut = text.parse().map_err(|error| not_toml(text, &error))?;
    let projects = document.entry("projects").or_insert(Item::Table(Table::new()));
    let projects = projects.as_table_like_mut().ok_or(ConfigTomlError::NotATable("projects"))?;
    let mut entry = toml_edit::InlineTable::new();
    entry.insert("trust_level", "trusted".into());
    projects.insert(workdir, value(entry));
    Ok(document.to_string())
}

/// Makes Codex keep the login in `auth.json`, where it is watched and saved. With a keyring Codex deletes the file, and
/// the login with it (T-124).
pub fn force_file_credentials(text: &str) -> Result<String, ConfigTomlError> {
    let document = parse(text)?;
    let Some(item) = document.as_table().get(STORE_KEY) else {
        // The key must stand before the first table, and only the top of the file is sure to.
        let (mark, rest) =
            text.split_at(if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 });
        let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
        return Ok(format!("{mark}{STORE_KEY} = \"file\"{newline}{rest}"));
    };
    if item.as_str() == Some("file") {
        return Ok(text.to_owned());
    }
    match item.as_value().and_then(|value| value.span()) {
        Some(span) => Ok(format!("{}\"file\"{}", &text[..span.start], &text[span.end..])),
        None => Err(ConfigTomlError::NotToml { line: 1, reason: format!("{STORE_KEY} is not a value") }),
    }
}

fn trust_entry<S>(document: &Document<S>, workdir: &str) -> Result<bool, ConfigTomlError> {
    let Some(projects) = document.as_table().get("projects") else {
        return Ok(false);
    };
    let projects: &dyn TableLike = projects.as_table_like().ok_or(ConfigTomlError::NotATable("projects"))?;
    Ok(projects.contains_key(workdir))
}

fn parse(text: &str) -> Result<Document<&str>, ConfigTomlError> {
    Document::parse(text).map_err(|error| not_toml(text, &error))
}

fn not_toml(text: &str, error: &toml_edit::TomlError) -> ConfigTomlError {
    let at = error.span().map_or(0, |span| span.start).min(text.len());
    let line = 1 + text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
    ConfigTomlError::NotToml { line, reason: error.message().to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn trusted(text: &str, workdir: &str) -> bool {
        let document: DocumentMut = text.parse().unwrap();
        document["projects"][workdir]["trust_level"].as_str() == Some("trusted")
    }

    #[test]
    fn an_entry_is_appended_and_no_other_byte_is_touched() {
        let before = "# mine\r\nmodel = \"x\"   # why\r\n[projects.\"/old\"]\r\ntrust_level = \"untrusted\"";
        let after = pre_trust(before, "/w/").unwrap();
        assert_eq!(
            after.strip_prefix(before),
            Some("\r\n[projects.\"/w\"]\r\ntrust_level = \"trusted\"\r\n")
        );
        assert_eq!(pre_trust(&after, "/w").unwrap(), after);
    }

    #[test]
    fn a_missing_file_becomes_the_entry_alone() {
        assert_eq!(pre_trust("", "/w").unwrap(), "[projects.\"/w\"]\ntrust_level = \"trusted\"\n");
    }

    #[test]
    fn an_entry_in_another_spelling_is_an_entry() {
        for text in [
            "[projects.'/w']\ntrust_level = \"trusted\"\n",
            "[ projects . \"\\u002Fw\" ]\ntrust_level='trusted'\n",
            "projects = { \"/w\" = { trust_level = \"trusted\" } }\n",
            "projects.\"/w\".trust_level = \"trusted\"\n",
        ] {
            assert_eq!(pre_trust(text, "/w").unwrap(), text);
        }
    }

    #[test]
    fn an_entry_in_a_comment_or_a_string_is_none() {
        for text in ["# [projects.\"/w\"]\n", "note = '''\n[projects.\"/w\"]\n'''\n"] {
            assert!(trusted(&pre_trust(text, "/w").unwrap(), "/w"));
        }
    }

    #[test]
    fn a_closed_table_of_projects_is_entered() {
        let text = "a = 1\nprojects = { \"/old\" = { trust_level = \"trusted\" } } # keep\n[b]\nc = 2\n";
        let after = pre_trust(text, "/w").unwrap();
        assert!(trusted(&after, "/w") && trusted(&after, "/old"), "{after}");
        assert!(after.contains("# keep") && after.starts_with("a = 1\n") && after.ends_with("[b]\nc = 2\n"));
        assert_eq!(pre_trust(&after, "/w").unwrap(), after);
    }

    #[test]
    fn projects_that_are_no_table_are_an_error() {
        assert_eq!(pre_trust("projects = 1\n", "/w"), Err(ConfigTomlError::NotATable("projects")));
    }

    #[test]
    fn the_credential_store_is_set_above_all_tables() {
        let text = "[features]\nplugins = false\n";
        let after = force_file_credentials(text).unwrap();
        assert_eq!(after, format!("cli_auth_credentials_store = \"file\"\n{text}"));
        assert_eq!(force_file_credentials(&after).unwrap(), after);
    }

    #[test]
    fn another_credential_store_is_replaced_in_place() {
        let text = "a = 1\ncli_auth_credentials_store   =  'keyring'  # mine\n[b]\ncli_auth_credentials_store = 'x'\n";
        assert_eq!(force_file_credentials(text).unwrap(), text.replacen("'keyring'", "\"file\"", 1));
        assert_eq!(
            force_file_credentials("'cli_auth_credentials_store' = 3").unwrap(),
            "'cli_auth_credentials_store' = \"file\""
        );
    }

    #[test]
    fn an_import_must_be_bounded_text_that_parses() {
        assert_eq!(validate(b"a = 1\n"), Ok("a = 1\n"));
        assert_eq!(validate(b"a = \xff"), Err(ConfigTomlError::NotText));
        assert_eq!(
            validate(&vec![b'#'; MAX_CONFIG_TOML + 1]),
            Err(ConfigTomlError::TooLarge(MAX_CONFIG_TOML + 1))
        );
        let error = validate(b"a = 1\nkey = sk-secret\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("sk-secret"), "{error}");
    }

    proptest! {
        #[test]
        fn any_workdir_is_trusted_after_one_edit_and_unchanged_by_a_second(
            workdir in "/[^\u{0}/]{1,24}(/[^\u{0}/]{1,8})?",
            before in prop_oneof![
                Just(""), Just("model = \"x\""), Just("[a]\nb = 1\n\n"), Just("projects = {}\n"),
                Just("projects.\"/o\".trust_level = \"trusted\"\n"), Just("[projects]\n\"/o\" = {}\n"), Just("[[x]]\n"),
            ],
        ) {
            let once = pre_trust(before, &workdir).unwrap();
            prop_assert!(trusted(&once, &workdir), "{}", once);
            prop_assert_eq!(&pre_trust(&once, &workdir).unwrap(), &once);
            let forced = force_file_credentials(&once).unwrap();
            prop_assert!(forced.ends_with(&once));
            prop_assert!(trusted(&forced, &workdir));
        }
    }
}
