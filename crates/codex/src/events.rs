//! Names for the journal: which of our events a Codex notification is (API.md, "Events"), and whom it is about.

use std::borrow::Cow;

use serde::Deserialize;

use crate::rpc::Text;

/// The longest name given to a notification this program does not know, in bytes. A method is a few words; a name is
/// stored with every event.
pub const MAX_NAME: usize = 128;

/// Answers the journal's name of a notification. Every streamed piece of an item is `item.delta`; what has no name of
/// its own is `codex.<method>`.
pub fn name(method: &str) -> Cow<'static, str> {
    Cow::Borrowed(match method {
        "turn/started" => "turn.started",
        "turn/completed" => "turn.completed",
        "item/started" => "item.started",
        "item/completed" => "item.completed",
        "item/agentMessage/delta"
        | "item/plan/delta"
        | "item/reasoning/summaryPartAdded"
        | "item/reasoning/summaryTextDelta"
        | "item/reasoning/textDelta"
        | "item/commandExecution/outputDelta"
        | "item/fileChange/outputDelta" => "item.delta",
        "turn/plan/updated" => "plan.updated",
        "turn/diff/updated" => "diff.updated",
        "thread/tokenUsage/updated" => "usage.updated",
        "account/rateLimits/updated" => "limits.updated",
        _ => return Cow::Owned(unknown(method)),
    })
}

/// Writes `codex.<method>`. The journal's names are ASCII letters, digits and `._-/`; all real methods are, anything
/// else becomes `_`.
fn unknown(method: &str) -> String {
    let mut name = String::with_capacity(6 + method.len().min(MAX_NAME));
    name.push_str("codex.");
    for character in method.chars().take(MAX_NAME - name.len()) {
        let is_allowed = character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-' | '/');
        name.push(if is_allowed { character } else { '_' });
    }
    name
}

/// Whom a notification is about, borrowed from its params.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peek<'a> {
    /// The thread.
    pub thread: Option<Cow<'a, str>>,
    /// The turn.
    pub turn: Option<Cow<'a, str>>,
    /// The item.
    pub item: Option<Cow<'a, str>>,
}

/// Finds the ids in one pass, without a tree: `threadId`, `turnId` and `itemId`, or the `id` of a whole `thread`,
/// `turn` or `item`. What is not there, or of another type, is `None`.
pub fn peek(params: &[u8]) -> Peek<'_> {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Params<'a> {
        #[serde(borrow)]
        thread_id: Option<Text<'a>>,
        #[serde(borrow)]
        turn_id: Option<Text<'a>>,
        #[serde(borrow)]
        item_id: Option<Text<'a>>,
        #[serde(borrow)]
        thread: Option<Whole<'a>>,
        #[serde(borrow)]
        turn: Option<Whole<'a>>,
        #[serde(borrow)]
        item: Option<Whole<'a>>,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Whole<'a> {
        #[serde(borrow)]
        id: Option<Text<'a>>,
    }
    let found: Params<'_> = serde_json::from_slice(params).unwrap_or_default();
    Peek {
        thread: pick(found.thread_id, found.thread.and_then(|whole| whole.id)),
        turn: pick(found.turn_id, found.turn.and_then(|whole| whole.id)),
        item: pick(found.item_id, found.item.and_then(|whole| whole.id)),
    }
}

fn pick<'a>(short: Option<Text<'a>>, whole: Option<Text<'a>>) -> Option<Cow<'a, str>> {
    short.or(whole).map(|text| text.0)
}

/// True for a notification that can only come once the provider has answered the turn's present request, or has failed
/// to: until then codex may be refreshing its login.
pub fn shows_an_answer(method: &str, params: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct About<'a> {
        #[serde(borrow)]
        item: Item<'a>,
    }
    #[derive(Deserialize)]
    struct Item<'a> {
        #[serde(borrow)]
        r#type: Cow<'a, str>,
    }
    match method {
        "error" | "turn/completed" => true,
        // What the user said comes back before the provider is asked.
        "item/started" | "item/completed" => {
            serde_json::from_slice::<About<'_>>(params).is_ok_and(|about| about.item.r#type != "userMessage")
        }
        other => other.starts_with("item/"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn named_notifications_have_the_names_of_the_contract() {
        for (method, expected) in [
            ("turn/started", "turn.started"),
            ("item/agentMessage/delta", "item.delta"),
            ("item/reasoning/textDelta", "item.delta"),
            ("turn/plan/updated", "plan.updated"),
            ("turn/diff/updated", "diff.updated"),
            ("thread/tokenUsage/updated", "usage.updated"),
            ("account/rateLimits/updated", "limits.updated"),
            ("thread/status/changed", "codex.thread/status/changed"),
            ("error", "codex.error"),
        ] {
            assert_eq!(name(method), expected);
            assert_eq!(matches!(name(method), Cow::Borrowed(_)), !expected.starts_with("codex."));
        }
    }

    #[test]
    fn a_name_is_always_one_the_journal_takes() {
        assert_eq!(name("a b\n\"é"), "codex.a_b___");
        assert_eq!(name(&"x".repeat(10_000)).len(), MAX_NAME);
        assert_eq!(name(""), "codex.");
    }

    #[test]
    fn ids_are_found_in_both_spellings_without_a_copy() {
        let found = peek(br#"{"threadId":"t","turnId":"u","itemId":"i","delta":"x"}"#);
        assert!(matches!(
            (&found.thread, &found.turn, &found.item),
            (Some(Cow::Borrowed("t")), Some(Cow::Borrowed("u")), Some(Cow::Borrowed("i")))
        ));
        let found = peek(br#"{"item":{"type":"plan","id":"i","x":{"id":"no"}},"threadId":"t","turnId":"u"}"#);
        assert_eq!(found.item.as_deref(), Some("i"));
        let found = peek(br#"{"threadId":"t","turn":{"id":"u","items":[{"id":"no"}]}}"#);
        assert_eq!((found.turn.as_deref(), found.item), (Some("u"), None));
        assert_eq!(peek(br#"{"thread":{"id":"t"}}"#).thread.as_deref(), Some("t"));
    }

    #[test]
    fn what_has_no_ids_has_none() {
        for params in [&b"{}"[..], b"[]", b"\xff", br#"{"threadId":7}"#, b"{\"threadId\":\"t\""] {
            assert_eq!(peek(params), Peek::default());
        }
    }

    #[test]
    fn only_what_follows_an_answer_of_the_provider_shows_one() {
        let item = |kind: &str| format!(r#"{{"item":{{"type":"{kind}","id":"1"}},"turnId":"t"}}"#);
        for (method, params, shows) in [
            ("turn/started", item("agentMessage"), false),
            ("thread/status/changed", "{}".to_owned(), false),
            ("item/started", item("userMessage"), false),
            ("item/completed", item("userMessage"), false),
            ("item/started", item("agentMessage"), true),
            ("item/completed", item("commandExecution"), true),
            ("item/agentMessage/delta", "{}".to_owned(), true),
            ("error", "{}".to_owned(), true),
            ("turn/completed", "{}".to_owned(), true),
            ("item/started", "garbage".to_owned(), false),
        ] {
            assert_eq!(shows_an_answer(method, params.as_bytes()), shows, "{method} {params}");
        }
    }
}
