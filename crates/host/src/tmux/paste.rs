//! Text into a terminal: pasted as one piece, seen on the screen, and only then sent.
//!
//! A program that shows a question instead of its input box swallows a paste and takes the Enter for an answer (LAB §5:
//! it switches the model, or approves a command). So Enter is pressed only when the text is on the screen.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{SESSION, on, run, screen};
use crate::{Command, Host, HostError, Result};

/// The longest text that is pasted, in bytes. Codex takes it as one message; a model takes no more anyhow.
pub const PASTE_LIMIT: usize = 1 << 20;

/// How long the screen may take to show a paste; measured 0.1 s for a line, 0.4 s for 60,000 bytes.
const SHOW_LIMIT: Duration = Duration::from_secs(5);

/// Pause between two looks at the screen.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How many characters of the end of a text are looked for. Few enough to be on one screen however narrow, many enough
/// to be the text's own.
const SEEN: usize = 24;

/// What codex shows in the place of a long paste.
const FOLDED: &str = "[PastedContent";

/// Types `text` into the terminal as one bracketed paste and submits it (S-279…S-284). Of control characters only
/// newline and tab reach the program; others are shown as their pictures, so that no text can end its own paste. A text
/// of nothing is typed by doing nothing.
///
/// Calls for one terminal must not overlap. An error says that the text was not submitted; it may stand in the input box.
pub async fn paste(host: &dyn Host, tmux: &Path, socket: &Path, text: &str) -> Result<()> {
    if text.trim().is_empty() {
        return Ok(());
    }
    if text.len() > PASTE_LIMIT {
        return Err(HostError::Refused {
            what: "text for the terminal",
            value: format!("({} bytes)", text.len()),
            why: "it is longer than 1 MiB",
        });
    }
    let text = harmless(text);
    let before = marks(&screen(host, tmux, socket).await?, &text);
    let buffer = format!("optio-{}", uuid::Uuid::new_v4().simple());
    let load = Command {
        stdin: Some(Bytes::from(text.clone())),
        ..Command::new(on(tmux, socket, &["load-buffer", "-b", &buffer, "-"]))
    };
    run(host, "loading text into the terminal", load).await?;
    // `-r` keeps newlines from becoming returns, `-p` has the program told that it is a paste.
    let words = on(tmux, socket, &["paste-buffer", "-d", "-p", "-r", "-b", &buffer, "-t", SESSION]);
    run(host, "pasting into the terminal", Command::new(words)).await?;
    wait("the terminal does not show the text that was pasted", || async {
        Ok(marks(&screen(host, tmux, socket).await?, &text) > before)
    })
    .await?;
    let pasted = state(host, tmux, socket).await?;
    run(host, "sending the text", Command::new(on(tmux, socket, &["send-keys", "-t", SESSION, "Enter"])))
        .await?;
    wait("the terminal did not take the text that was pasted", || async {
        // A program that ends over it has taken it.
        Ok(state(host, tmux, socket).await.map_or(true, |now| now != pasted))
    })
    .await
}

/// The screen, where the cursor is, and how much has scrolled away: whatever a program does about an Enter shows in it.
async fn state(host: &dyn Host, tmux: &Path, socket: &Path) -> Result<Bytes> {
    let cursor = "#{cursor_x} #{cursor_y} #{history_size}";
    let words = ["capture-pane", "-p", "-t", SESSION, ";", "display-message", "-p", "-t", SESSION, cursor];
    Ok(run(host, "reading the terminal", Command::new(on(tmux, socket, &words))).await?.stdout)
}

/// The text without characters that a terminal acts on.
fn harmless(text: &str) -> String {
    let picture = |c: char| match c {
        '\n' | '\t' => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
        '\x7f' => '\u{2421}',
        '\u{80}'..='\u{9f}' => '\u{fffd}',
        other => other,
    };
    text.replace("\r\n", "\n").replace('\r', "\n").chars().map(picture).collect()
}

/// How often the screen shows the end of the text, or a fold that may be it. Blanks do not count: programs break lines
/// where they like.
fn marks(screen: &str, text: &str) -> usize {
    let solid = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    let (screen, text) = (solid(screen), solid(text));
    let start = text.char_indices().rev().nth(SEEN - 1).map_or(0, |(at, _)| at);
    screen.matches(&text[start..]).count() + screen.matches(FOLDED).count()
}

async fn wait<F: Future<Output = Result<bool>>>(why: &'static str, look: impl Fn() -> F) -> Result<()> {
    let until = Instant::now() + SHOW_LIMIT;
    loop {
        if look().await? {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(HostError::Failed {
                what: "typing into the terminal".to_owned(),
                status: format!("no sign of it within {SHOW_LIMIT:?}"),
                stderr: why.to_owned(),
            });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_text_can_end_its_own_paste() {
        assert_eq!(harmless("a\x1b[201~b\r\nc\rd\x07\x7f\u{9b}\te"), "a␛[201~b\nc\nd␇␡\u{fffd}\te");
    }

    proptest! {
        #[test]
        fn only_newlines_and_tabs_are_left_of_control_characters(text in "\\PC*|[\\x00-\\xff]*") {
            let left = harmless(&text);
            prop_assert!(left.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'), "{left:?}");
        }

        #[test]
        fn a_text_is_seen_however_it_is_broken_into_lines(words in "[a-zäß]{1,9}( [a-zäß]{1,9}){0,9}", width in 3usize..40) {
            let letters: Vec<char> = words.chars().collect();
            let broken: String =
                letters.chunks(width).map(|line| format!("  {}\n", line.iter().collect::<String>())).collect();
            prop_assert!(marks(&broken, &words) >= 1);
            prop_assert_eq!(marks("", &words), 0);
        }
    }

    #[test]
    fn a_fold_counts_as_the_text() {
        let before = marks("› ", "long");
        assert!(marks("› [Pasted Content 60000 chars]", "long") > before);
    }
}
