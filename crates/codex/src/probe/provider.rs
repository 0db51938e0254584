//! Whether an answer of Codex would say anything about its login: with another provider it may not be used at all.

use toml_edit::{Document, Item};

use crate::config_toml;

/// Codex's own provider, which always uses the login.
const OWN: &str = "openai";

/// Tells whether Codex uses the login with these settings. Settings that cannot be read are not believed.
pub fn uses_login(settings: &[u8]) -> bool {
    let Ok(text) = config_toml::validate(settings) else { return false };
    let Ok(settings) = Document::parse(text) else { return false };
    let settings = settings.as_table();
    let text = |item: Option<&Item>| item.and_then(Item::as_str).map(str::to_owned);
    // What the profile says that is in use wins over what stands outside of it.
    let profile = text(settings.get("profile")).unwrap_or_default();
    let profile = settings.get("profiles").and_then(|all| all.get(&profile));
    let named = profile.and_then(|own| text(own.get("model_provider")));
    let provider = named.or_else(|| text(settings.get("model_provider"))).unwrap_or_else(|| OWN.to_owned());
    let own = settings.get("model_providers").and_then(|all| all.get(&provider));
    let Some(own) = own else { return provider == OWN };
    let wanted = own.get("requires_openai_auth").and_then(Item::as_bool).unwrap_or(false);
    // Either of them is taken in place of the login.
    let other = ["env_key", "experimental_bearer_token", "auth"].iter().any(|key| own.get(key).is_some());
    wanted && !other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_provider_that_wants_the_login_says_something_about_it() {
        let house = |more: &str| {
            format!("model_provider = \"house\"\n[model_providers.house]\nname = \"House\"\n{more}")
        };
        for good in
            ["", "model = \"m\"", "model_provider = \"openai\"", &house("requires_openai_auth = true")]
        {
            assert!(uses_login(good.as_bytes()), "{good}");
        }
        for other in [
            "model_provider = \"house\"",
            "model_provider = \"ollama\"",
            "not toml",
            &house(""),
            &house("requires_openai_auth = false"),
            &house("requires_openai_auth = true\nenv_key = \"K\""),
            &house("requires_openai_auth = true\nexperimental_bearer_token = \"t\""),
        ] {
            assert!(!uses_login(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn the_profile_in_use_decides() {
        let with = |profile: &str| {
            format!("profile = \"{profile}\"\n[profiles.a]\nmodel_provider = \"ollama\"\n[profiles.b]\n")
        };
        assert!(!uses_login(with("a").as_bytes()));
        assert!(uses_login(with("b").as_bytes()) && uses_login(with("c").as_bytes()));
    }
}
