//! The environment of a probe: empty, but for a short list.
//!
//! `CODEX_API_KEY` and `CODEX_ACCESS_TOKEN` outrank the login, and no list of what to remove is ever whole (T-248). A host
//! only knows globs of what to remove, and the values that may stay are the host's own (S-247), so the list of what stays
//! is turned into globs of everything else.

use std::collections::{BTreeMap, BTreeSet};

use crate::argv::{AgentEnvironment, isolation};

/// What a machine may need to reach anybody at all. Some programs know the small spelling only.
const ALLOWED: [&str; 12] = [
    "PATH",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CODEX_CA_CERTIFICATE",
];

/// Where Codex refreshes, if not at the real server (T-235).
const REFRESH_URL_OVERRIDE: &str = "CODEX_REFRESH_TOKEN_URL_OVERRIDE";

/// Gives the environment in which Codex is asked in this workdir: a home of its own, the way to the network, the login
/// server that the service itself uses when that is not the real one, and nothing else.
pub fn environment(workdir: &str, refresh_url: Option<&str>) -> AgentEnvironment {
    let mut add = isolation(workdir);
    add.extend(refresh_url.map(|url| (REFRESH_URL_OVERRIDE.to_owned(), url.to_owned())));
    AgentEnvironment { remove: all_but(&ALLOWED), add, path_prefix: Vec::new() }
}

/// Globs that together match every name but these.
///
/// A name is another one because it goes on after the end of one of these, ends before it, or leaves their spelling at
/// some letter: one glob for each way.
fn all_but(names: &[&str]) -> Vec<String> {
    let mut next: BTreeMap<&str, BTreeSet<char>> = BTreeMap::new();
    for name in names {
        for (at, letter) in name.char_indices() {
            next.entry(&name[..at]).or_default().insert(letter);
        }
        next.entry(name).or_default();
    }
    let mut globs = Vec::new();
    for (begun, letters) in next {
        if !begun.is_empty() && !names.contains(&begun) {
            globs.push(begun.to_owned());
        }
        match letters.is_empty() {
            true => globs.push(format!("{begun}?*")),
            false => globs.push(format!("{begun}[!{}]*", String::from_iter(letters))),
        }
    }
    globs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A shell's pattern as far as these globs use it.
    fn matches(glob: &[char], name: &[char]) -> bool {
        match (glob, name) {
            ([], []) => true,
            (['*', rest @ ..], _) => (0..=name.len()).any(|at| matches(rest, &name[at..])),
            (['?', rest @ ..], [_, name @ ..]) => matches(rest, name),
            (['[', '!', rest @ ..], [first, name @ ..]) => {
                let end = rest.iter().position(|c| *c == ']').unwrap_or(0);
                !rest[..end].contains(first) && matches(&rest[end + 1..], name)
            }
            ([letter, glob @ ..], [first, name @ ..]) => letter == first && matches(glob, name),
            _ => false,
        }
    }

    fn stays(names: &[&str], name: &str) -> bool {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        !all_but(names).iter().any(|glob| matches(&chars(glob), &chars(name)))
    }

    #[test]
    fn what_is_allowed_stays_and_what_only_looks_like_it_goes() {
        for name in ALLOWED {
            assert!(stays(&ALLOWED, name), "{name}");
            for other in [format!("{name}S"), format!("X{name}"), name[1..].to_owned()] {
                assert!(!stays(&ALLOWED, &other), "{other}");
            }
        }
        let keys = ["OPENAI_API_KEY", "CODEX_API_KEY", "CODEX_ACCESS_TOKEN", "CODEX_HOME", "OPENAI_BASE_URL"];
        for gone in keys.into_iter().chain(["P", "PATHS", "Path", "LD_PRELOAD", "OPTIO_CODEX_TOKEN", "_"]) {
            assert!(!stays(&ALLOWED, gone), "{gone}");
        }
    }

    proptest! {
        #[test]
        fn exactly_the_names_of_the_list_stay(
            names in prop::collection::btree_set("[ab_]{1,4}", 1..5), other in "[abc_]{1,5}"
        ) {
            let list: Vec<&str> = names.iter().map(String::as_str).collect();
            prop_assert_eq!(stays(&list, &other), names.contains(&other));
            for name in &list {
                prop_assert!(stays(&list, name));
            }
        }
    }

    #[test]
    fn a_login_server_of_ones_own_is_named_and_no_other_is() {
        let own = environment("/w", Some("http://127.0.0.1:1/oauth/token"));
        assert_eq!(own.add[REFRESH_URL_OVERRIDE], "http://127.0.0.1:1/oauth/token");
        let real = environment("/w", None);
        assert_eq!(real.add, isolation("/w"));
        assert!(!stays(&ALLOWED, REFRESH_URL_OVERRIDE), "the service's word counts, not the host's");
    }
}
