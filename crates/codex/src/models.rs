//! The models a session can choose from, for the picker (S-393…S-395, L-02).

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The most pages of `model/list` that are followed: nine models came in one page of 0.169; a server that always names
/// a next page must not keep the handshake busy.
pub const MAX_PAGES: usize = 16;

/// A model of the picker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Model {
    /// What `turn/start` takes.
    pub id: String,
    /// What a person reads.
    pub label: String,
    /// Always false: models that cannot be chosen are not listed. The original's picker expects the member.
    pub disabled: bool,
    /// The reasoning efforts it knows, in the server's order.
    pub efforts: Vec<String>,
    /// The effort it uses when none is asked for.
    pub default_effort: Option<String>,
}

/// All models a session can choose from. Never empty (S-394).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelList {
    /// The models, in the server's order.
    pub models: Vec<Model>,
    /// The id of the server's own choice.
    pub default: Option<String>,
}

/// Answers where the next page of `model/list` begins; `None` at the end, or when the answer is not understood.
pub fn next_cursor(page: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Page {
        next_cursor: Option<String>,
    }
    serde_json::from_slice::<Page>(page).ok()?.next_cursor
}

impl ModelList {
    /// Maps the answers to `model/list`, page after page. Entries without an id or hidden ones are left out; an entry
    /// that is not understood costs only itself; nothing usable at all gives [`ModelList::fallback`].
    pub fn from_pages(pages: &[Bytes]) -> Self {
        let mut list = Self { models: Vec::new(), default: None };
        for page in pages {
            list.add_page(page);
        }
        if list.models.is_empty() { Self::fallback() } else { list }
    }

    /// What is offered when the server gives no list (S-394).
    pub fn fallback() -> Self {
        let model = |id: &str, label: &str| Model {
            id: id.to_owned(),
            label: label.to_owned(),
            disabled: false,
            efforts: Vec::new(),
            default_effort: None,
        };
        Self {
            models: vec![model("gpt-5.5", "GPT-5.5"), model("gpt-5.4-mini", "GPT-5.4 Mini")],
            default: Some("gpt-5.5".to_owned()),
        }
    }

    /// Answers what the picker shows as chosen: the session's wish, else the thread's model, else the default (S-395).
    pub fn current<'a>(&'a self, wish: Option<&'a str>, thread: Option<&'a str>) -> Option<&'a str> {
        wish.or(thread).or(self.default.as_deref())
    }

    /// Answers the effort to use with a model: the wish if the model knows it, else the model's default (L-05). A model
    /// of which no efforts are known takes any.
    pub fn effort<'a>(&'a self, model: &str, wish: Option<&'a str>) -> Option<&'a str> {
        let wish = wish?;
        match self.models.iter().find(|known| known.id == model) {
            Some(known)
                if !known.efforts.is_empty() && !known.efforts.iter().any(|effort| effort == wish) =>
            {
                known.default_effort.as_deref()
            }
            _ => Some(wish),
        }
    }

    fn add_page(&mut self, page: &[u8]) {
        #[derive(Deserialize)]
        struct Page<'a> {
            #[serde(borrow)]
            data: Vec<&'a RawValue>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Entry<'a> {
            id: String,
            display_name: Option<String>,
            #[serde(default)]
            hidden: bool,
            #[serde(default)]
            is_default: bool,
            default_reasoning_effort: Option<String>,
            #[serde(borrow, default)]
            supported_reasoning_efforts: Option<&'a RawValue>,
        }
        let Ok(Page { data }) = serde_json::from_slice(page) else {
            return;
        };
        for entry in data {
            let Ok(entry) = serde_json::from_str::<Entry<'_>>(entry.get()) else {
                continue;
            };
            if entry.id.is_empty() || entry.hidden {
                continue;
            }
            if entry.is_default {
                self.default = Some(entry.id.clone());
            }
            self.models.push(Model {
                label: entry
                    .display_name
                    .filter(|label| !label.is_empty())
                    .unwrap_or_else(|| entry.id.clone()),
                id: entry.id,
                disabled: false,
                efforts: entry.supported_reasoning_efforts.map(|raw| efforts(raw.get())).unwrap_or_default(),
                default_effort: entry.default_reasoning_effort,
            });
        }
    }
}

/// Reads the efforts: objects with `reasoningEffort` (L-02).
fn efforts(list: &str) -> Vec<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Effort {
        reasoning_effort: String,
    }
    let efforts: Vec<Effort> = serde_json::from_str(list).unwrap_or_default();
    efforts.into_iter().map(|effort| effort.reasoning_effort).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn list(pages: &[&'static str]) -> ModelList {
        let pages: Vec<Bytes> = pages.iter().map(|page| Bytes::from_static(page.as_bytes())).collect();
        ModelList::from_pages(&pages)
    }

    #[test]
    fn pages_are_one_list() {
        let first = r#"{"data":[{"id":"a","displayName":"A","isDefault":true,"defaultReasoningEffort":"medium",
            "supportedReasoningEfforts":[{"reasoningEffort":"low","description":"d"},{"reasoningEffort":"medium"}]},
            {"id":"h","hidden":true,"isDefault":true},{"id":""},{"id":7},"junk"],"nextCursor":"2"}"#;
        let second = r#"{"data":[{"id":"b"}],"nextCursor":null}"#;
        assert_eq!(next_cursor(first.as_bytes()).as_deref(), Some("2"));
        assert_eq!(next_cursor(second.as_bytes()), None);
        let list = list(&[first, second]);
        let labels: Vec<_> =
            list.models.iter().map(|model| (model.id.as_str(), model.label.as_str())).collect();
        assert_eq!(labels, [("a", "A"), ("b", "b")]);
        assert_eq!(list.default.as_deref(), Some("a"));
        assert_eq!(list.models[0].efforts, ["low", "medium"]);
    }

    #[test]
    fn no_usable_list_is_the_fallback() {
        for pages in [&[][..], &["null"], &[r#"{"data":7}"#], &[r#"{"data":[{"id":"h","hidden":true}]}"#]] {
            assert_eq!(list(pages), ModelList::fallback());
        }
    }

    #[test]
    fn the_choice_is_the_wish_then_the_thread_then_the_default() {
        let list = ModelList::fallback();
        assert_eq!(list.current(Some("w"), Some("t")), Some("w"));
        assert_eq!(list.current(None, Some("t")), Some("t"));
        assert_eq!(list.current(None, None), Some("gpt-5.5"));
    }

    #[test]
    fn an_effort_the_model_does_not_know_falls_back_to_its_own() {
        let list = list(&[r#"{"data":[{"id":"a","defaultReasoningEffort":"low",
            "supportedReasoningEfforts":[{"reasoningEffort":"low"}]}]}"#]);
        assert_eq!(list.effort("a", Some("xhigh")), Some("low"));
        assert_eq!(list.effort("a", Some("low")), Some("low"));
        assert_eq!(list.effort("unlisted", Some("xhigh")), Some("xhigh"));
        assert_eq!(list.effort("a", None), None);
    }
}
