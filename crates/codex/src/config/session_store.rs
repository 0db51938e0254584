//! Would an exclude pattern throw away the rollouts, and with them the resume? (S-043, T-184)
//!
//! The names of rollouts are not known in advance, but their form is, so a pattern is matched against the form: each
//! position of it is a set of characters, and a pattern hits when some choice of characters is hit. Positions are
//! independent, so the answer is exact. The rules of a pattern are those of the archive (T-185).

/// The form of a rollout's path below the workdir: `#` is any decimal digit, `~` any hexadecimal digit.
const ROLLOUT: &str =
    "home/.codex/sessions/####/##/##/rollout-####-##-##T##-##-##-~~~~~~~~-~~~~-~~~~-~~~~-~~~~~~~~~~~~.jsonl";

/// One part of a pattern.
#[derive(Debug)]
enum Token {
    One(char),
    AnyOne,
    AnyRun,
    Class { negated: bool, ranges: Vec<(char, char)> },
}

/// True when the pattern leaves out a rollout, or a directory on the way to one. A malformed pattern is an error that
/// says why.
pub(super) fn is_hit_by(pattern: &str) -> Result<bool, &'static str> {
    let text = pattern.trim_end_matches('/');
    if text.is_empty() {
        return Err("a pattern must name something");
    }
    let tokens = compile(text)?;
    let form: Vec<char> = ROLLOUT.chars().collect();
    let mut start = 0;
    for end in 0..=form.len() {
        if end < form.len() && form[end] != '/' {
            continue;
        }
        if hits(&tokens, &form[..end]) || hits(&tokens, &form[start..end]) {
            return Ok(true);
        }
        start = end + 1;
    }
    Ok(false)
}

fn compile(text: &str) -> Result<Vec<Token>, &'static str> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        match chars[at] {
            '*' => tokens.push(Token::AnyRun),
            '?' => tokens.push(Token::AnyOne),
            '[' => {
                let negated = chars.get(at + 1) == Some(&'!');
                let first = at + 1 + usize::from(negated);
                // A `]` in first place is itself, as in every shell.
                let Some(length) = chars.iter().skip(first + 1).position(|c| *c == ']') else {
                    return Err("a '[' is never closed");
                };
                let end = first + 1 + length;
                tokens.push(Token::Class { negated, ranges: ranges(&chars[first..end]) });
                at = end;
            }
            c => tokens.push(Token::One(c)),
        }
        at += 1;
    }
    Ok(tokens)
}

fn ranges(class: &[char]) -> Vec<(char, char)> {
    let mut ranges = Vec::new();
    let mut rest = class;
    while let Some(first) = rest.first() {
        let range = matches!(rest, [_, '-', _, ..]);
        ranges.push((*first, if range { rest[2] } else { *first }));
        rest = &rest[if range { 3 } else { 1 }..];
    }
    ranges
}

/// Matches by the set of token positions that can be reached: no backtracking, whatever the pattern.
fn hits(tokens: &[Token], form: &[char]) -> bool {
    let mut reached = vec![false; tokens.len() + 1];
    reached[0] = true;
    skip_runs(tokens, &mut reached);
    for place in form {
        let mut next = vec![false; tokens.len() + 1];
        for (at, token) in tokens.iter().enumerate() {
            if !reached[at] {
                continue;
            }
            match token {
                Token::AnyRun => next[at] = true,
                token if choices(*place).iter().any(|c| takes(token, *c)) => next[at + 1] = true,
                _ => {}
            }
        }
        skip_runs(tokens, &mut next);
        reached = next;
    }
    reached[tokens.len()]
}

/// A `*` may take nothing.
fn skip_runs(tokens: &[Token], reached: &mut [bool]) {
    for (at, token) in tokens.iter().enumerate() {
        if reached[at] && matches!(token, Token::AnyRun) {
            reached[at + 1] = true;
        }
    }
}

fn choices(place: char) -> Vec<char> {
    match place {
        '#' => ('0'..='9').collect(),
        '~' => ('0'..='9').chain('a'..='f').collect(),
        c => vec![c],
    }
}

fn takes(token: &Token, c: char) -> bool {
    match token {
        Token::One(own) => *own == c,
        Token::AnyOne | Token::AnyRun => true,
        Token::Class { negated, ranges } => ranges.iter().any(|(a, b)| (*a..=*b).contains(&c)) != *negated,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pattern_that_reaches_rollouts_is_found() {
        for pattern in [
            "home",
            ".codex",
            "sessions",
            "home/.codex",
            "home/.codex/sessions",
            "home/.codex/sessions/",
            "*",
            "home/*",
            "*.jsonl",
            "rollout-*",
            "2031",
            "home/.codex/sessions/20[2-3]?",
            "*-[0-9a-f]*",
            "[!x]ome",
            "*/sessions/*",
            "home/.codex/s*",
            "*dead*",
        ] {
            assert!(is_hit_by(pattern).unwrap(), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_that_misses_them_is_not() {
        for pattern in [
            ".git",
            "*.pyc",
            "home/.cache",
            "session",
            "*.json",
            "home/.codex/tmp",
            "home/.codex/*.sqlite*",
            "log",
            "x/home/.codex/sessions",
            "20x1",
            "*gh*",
            "rollout-",
            "[!h]ome",
            "{home}",
        ] {
            assert!(!is_hit_by(pattern).unwrap(), "{pattern}");
        }
    }

    #[test]
    fn a_malformed_pattern_is_an_error() {
        for pattern in ["", "/", "[a", "[]", "[!]"] {
            assert!(is_hit_by(pattern).is_err(), "{pattern}");
        }
    }

    proptest! {
        #[test]
        fn a_real_rollouts_own_name_and_any_cut_of_it_hits(
            digits in proptest::collection::vec(0u32..10, 80), cut in 0usize..130, days in any::<bool>(),
        ) {
            let mut digits = digits.into_iter().cycle();
            let mut next = || char::from_digit(digits.next().unwrap(), 10).unwrap();
            let path: String = ROLLOUT.chars().map(|c| if matches!(c, '#' | '~') { next() } else { c }).collect();
            prop_assert!(is_hit_by(&path).unwrap());
            let cut = cut.min(path.len() - 1);
            let pattern = if days { format!("{}*", &path[..cut]) } else { format!("*{}", &path[cut..]) };
            prop_assert!(is_hit_by(&pattern).unwrap());
        }
    }
}
