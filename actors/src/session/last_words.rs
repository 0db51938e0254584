//! What an agent that ended said last: the part of it that belongs into a reason.

/// Lines of the agent's standard error that go into a reason.
const LINES: usize = 5;

/// Characters of them: a reason is read in a list. Seen with an agent that wrote 100 MB without one newline.
const CHARS: usize = 1000;

/// The last lines of a standard error that say anything, or nothing when there are none.
pub(crate) fn last_words(stderr: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let words = lines[lines.len().saturating_sub(LINES)..].join("\n");
    let cut = words.char_indices().rev().nth(CHARS - 1).map_or(0, |(at, _)| at);
    match (words.is_empty(), cut) {
        (true, _) => None,
        (false, 0) => Some(words),
        (false, cut) => Some(format!("…{}", &words[cut..])),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_lines_that_say_something_are_kept() {
        assert_eq!(last_words(b"1\n2\n\n3\n4\n  \n5\n6\n").unwrap(), "2\n3\n4\n5\n6");
        assert_eq!(last_words(b"one, without an end").unwrap(), "one, without an end");
        assert_eq!(last_words(b"\n \n"), None);
        assert_eq!(last_words(b""), None);
    }

    #[test]
    fn a_line_without_an_end_is_cut_to_its_last_characters() {
        let long = "é".repeat(CHARS * 3) + "end";
        let words = last_words(long.as_bytes()).unwrap();
        assert_eq!(words.chars().count(), CHARS + 1);
        assert!(words.starts_with('…') && words.ends_with("éend"));
        assert_eq!(last_words("x".repeat(CHARS).as_bytes()).unwrap().len(), CHARS);
    }
}
