//! The matcher for paths that stay out of an archive.

use std::ops::RangeInclusive;

use crate::{HostError, Result};

/// Which paths of a workdir stay out of an archive (S-115…S-117, T-185).
///
/// Shell patterns: `*`, `?`, `[…]`, `[!…]`; no escape, no braces; case-sensitive; `*` crosses `/` and a leading dot
/// is nothing special. A pattern is tried on the whole path relative to the workdir and on each of its segments. A
/// slash at its end means nothing (S-117).
///
/// Characters are those of UTF-8; a byte that is none counts as one character, so any file name can be matched.
/// (`globset` matches `?` against single bytes, reads braces and gives `**` a meaning of its own: not these rules.)
#[derive(Debug, Clone, Default)]
pub struct Excludes {
    patterns: Vec<Pattern>,
    source: Vec<String>,
}

#[derive(Debug, Clone)]
struct Pattern(Vec<Token>);

#[derive(Debug, Clone)]
enum Token {
    One(u32),
    AnyOne,
    AnyRun,
    Class { negated: bool, ranges: Vec<RangeInclusive<u32>> },
}

impl Excludes {
    /// Compiles shell-style patterns; a malformed one is an error that shows it.
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut excludes = Self::default();
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let refuse = |why| HostError::Refused { what: "exclude pattern", value: pattern.to_owned(), why };
            let text = pattern.trim_end_matches('/');
            if text.is_empty() {
                return Err(refuse("it names nothing"));
            }
            excludes.patterns.push(Pattern(compile(text).map_err(refuse)?));
            excludes.source.push(pattern.to_owned());
        }
        Ok(excludes)
    }

    /// True when the path, relative to the workdir, or any of its segments matches a pattern. For a directory that
    /// means: it stays out with everything below it (S-116).
    pub fn matches(&self, path: impl AsRef<[u8]>) -> bool {
        let path = path.as_ref();
        let path = path.strip_suffix(b"/").unwrap_or(path);
        if self.patterns.is_empty() || path.is_empty() {
            return false;
        }
        let whole = characters(path);
        let matched = |text: &[u32]| self.patterns.iter().any(|p| matches(&p.0, text));
        matched(&whole) || whole.split(|c| *c == u32::from(b'/')).any(matched)
    }

    /// The patterns as they were given.
    pub fn patterns(&self) -> &[String] {
        &self.source
    }
}

/// Characters of UTF-8 text; a byte outside of it becomes a number above all characters.
fn characters(bytes: &[u8]) -> Vec<u32> {
    const NOT_A_CHARACTER: u32 = 0x11_0000;
    let mut units = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        units.extend(chunk.valid().chars().map(u32::from));
        units.extend(chunk.invalid().iter().map(|b| NOT_A_CHARACTER + u32::from(*b)));
    }
    units
}

fn compile(text: &str) -> Result<Vec<Token>, &'static str> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        match chars[at] {
            '*' if matches!(tokens.last(), Some(Token::AnyRun)) => {}
            '*' => tokens.push(Token::AnyRun),
            '?' => tokens.push(Token::AnyOne),
            '[' => {
                let (class, next) = class(&chars, at + 1)?;
                tokens.push(class);
                at = next;
                continue;
            }
            c => tokens.push(Token::One(c.into())),
        }
        at += 1;
    }
    Ok(tokens)
}

/// Reads a class from the character behind its `[`; answers it and where the text goes on. A `]` in first place is
/// itself, as in every shell.
fn class(chars: &[char], start: usize) -> Result<(Token, usize), &'static str> {
    let negated = chars.get(start) == Some(&'!');
    let first = start + usize::from(negated);
    let end = match chars.iter().skip(first + 1).position(|c| *c == ']') {
        Some(offset) => first + 1 + offset,
        None => return Err("its '[' is never closed"),
    };
    let mut ranges = Vec::new();
    let mut at = first;
    while at < end {
        if at + 2 < end && chars[at + 1] == '-' {
            ranges.push(chars[at].into()..=chars[at + 2].into());
            at += 3;
        } else {
            ranges.push(chars[at].into()..=chars[at].into());
            at += 1;
        }
    }
    Ok((Token::Class { negated, ranges }, end + 1))
}

/// Matches by going back to the last `*` only, which is enough: a later `*` can take whatever an earlier one could.
fn matches(pattern: &[Token], text: &[u32]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some(Token::AnyRun) => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(Token::AnyOne) => true,
            Some(Token::One(c)) => *c == text[t],
            Some(Token::Class { negated, ranges }) => ranges.iter().any(|r| r.contains(&text[t])) != *negated,
            None => false,
        };
        if step {
            p += 1;
            t += 1;
            continue;
        }
        let Some((after_star, taken)) = retry else {
            return false;
        };
        retry = Some((after_star, taken + 1));
        p = after_star;
        t = taken + 1;
    }
    pattern[p..].iter().all(|token| matches!(token, Token::AnyRun))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn hit(pattern: &str, path: impl AsRef<[u8]>) -> bool {
        Excludes::new([pattern]).unwrap().matches(path)
    }

    #[test]
    fn a_pattern_without_slash_hits_at_any_depth() {
        assert!(hit("cache", "cache"));
        assert!(hit("cache", "a/cache"));
        assert!(hit("cache", "a/cache/b"));
        assert!(!hit("cache", "a/caches"));
        assert!(!hit(".git", ".gitignore"));
        assert!(hit("*.pyc", "a/b/.x.pyc"));
    }

    #[test]
    fn a_pattern_with_slash_hits_that_path_only() {
        assert!(hit("home/.cache", "home/.cache"));
        assert!(!hit("home/.cache", "x/home/.cache"));
        assert!(!hit("home/.cache", "home/.cache2"));
    }

    #[test]
    fn a_star_crosses_slashes_and_takes_leading_dots() {
        assert!(hit("home/*.log", "home/a/b/.c.log"));
        assert!(hit("a**b", "a/x/b"));
        assert!(hit("*.sqlite*", "x/data.sqlite.d/file"));
    }

    #[test]
    fn a_slash_at_the_end_means_nothing() {
        assert!(hit("build/", "build"));
        assert!(hit("build//", "a/build"));
        assert!(hit("build", "build/"));
    }

    #[test]
    fn classes_are_those_of_a_shell() {
        assert!(hit("[a-c]x", "bx"));
        assert!(!hit("[!a-c]x", "bx"));
        assert!(hit("[!a-c]x", "dx"));
        assert!(hit("[]x]", "]"));
        assert!(hit("[!]]", "a"));
        assert!(!hit("[!]]", "]"));
        assert!(hit("[a-]", "-"));
        assert!(hit("[^a]", "^"), "only '!' negates");
    }

    #[test]
    fn braces_and_backslashes_are_themselves() {
        assert!(hit("{a,b}", "{a,b}"));
        assert!(!hit("{a,b}", "a"));
        assert!(hit(r"a\b", r"a\b"));
        assert!(hit(r"\*", r"\anything"));
    }

    #[test]
    fn case_matters_and_a_question_mark_is_one_character_of_any_width() {
        assert!(!hit("README", "readme"));
        assert!(hit("caf?", "café"));
        assert!(!hit("caf??", "café"));
        assert!(hit("caf?", b"caf\xff"));
        assert!(hit("*.tmp", b"\xff\xfe.tmp"));
        assert!(!hit("é", b"\xe9"));
    }

    #[test]
    fn a_malformed_pattern_is_shown_in_the_error() {
        for pattern in ["[a", "[]", "[!]", "", "/"] {
            let error = Excludes::new([pattern]).unwrap_err().to_string();
            assert!(error.contains(&format!("{pattern:?}")), "{error}");
        }
    }

    #[test]
    fn no_pattern_excludes_nothing_and_patterns_are_kept_as_given() {
        assert!(!Excludes::default().matches("a"));
        assert_eq!(Excludes::new(["a/", "b"]).unwrap().patterns(), ["a/", "b"]);
    }

    /// The rule, said by recursion: obviously right, and exponential.
    fn naive(pattern: &[Token], text: &[u32]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some(Token::AnyRun), _) => {
                naive(&pattern[1..], text) || (!text.is_empty() && naive(pattern, &text[1..]))
            }
            (Some(Token::AnyOne), Some(_)) => naive(&pattern[1..], &text[1..]),
            (Some(Token::One(c)), Some(t)) => c == t && naive(&pattern[1..], &text[1..]),
            (Some(Token::Class { negated, ranges }), Some(t)) => {
                ranges.iter().any(|r| r.contains(t)) != *negated && naive(&pattern[1..], &text[1..])
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn the_loop_agrees_with_the_recursion(pattern in "[ab*?/]{0,8}(\\[!?[ab]\\])?[ab*]{0,3}", text in "[ab/]{0,10}") {
            let tokens = compile(&pattern).unwrap();
            let text = characters(text.as_bytes());
            prop_assert_eq!(matches(&tokens, &text), naive(&tokens, &text));
        }
    }
}
