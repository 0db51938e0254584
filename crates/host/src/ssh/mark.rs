//! What a machine says before a program's own output.
//!
//! Start files of shells print greetings, on both streams, and restricted accounts print excuses. Our commands print a line
//! that begins with a random mark just before the program starts; whatever comes before it is not the program's.

use bytes::{Bytes, BytesMut};

/// Bytes that may come before the mark; greetings are a screenful.
const NOISE_LIMIT: usize = 64 * 1024;
/// Characters of it that an error quotes.
const SHOWN: usize = 400;

/// Takes a stream and holds it back until its mark has come.
pub(super) enum Intake {
    Waiting {
        mark: Vec<u8>,
        seen: BytesMut,
        /// Behind the mark, once it has come; the line's end may come later.
        behind: Option<usize>,
    },
    Open,
}

impl Intake {
    /// Lets everything through.
    pub(super) fn open() -> Self {
        Self::Open
    }

    /// Holds back what comes before the line that begins with `mark`, and that line.
    pub(super) fn until(mark: &str) -> Self {
        Self::Waiting { mark: mark.as_bytes().to_vec(), seen: BytesMut::new(), behind: None }
    }

    /// Takes a chunk. Answers what of it is the program's own, and the rest of the mark's line when it has come.
    pub(super) fn take(&mut self, chunk: Bytes) -> (Bytes, Option<String>) {
        let Self::Waiting { mark, seen, behind } = self else {
            return (chunk, None);
        };
        let unsearched = seen.len().saturating_sub(mark.len());
        seen.extend_from_slice(&chunk);
        if behind.is_none() {
            *behind = find(seen, mark, unsearched);
        }
        let Some(begin) = *behind else { return (Bytes::new(), None) };
        let Some(len) = seen[begin..].iter().position(|byte| *byte == b'\n') else {
            return (Bytes::new(), None);
        };
        let line = String::from_utf8_lossy(&seen[begin..begin + len]).trim().to_owned();
        let rest = seen.split_off(begin + len + 1).freeze();
        *self = Self::Open;
        (rest, Some(line))
    }

    /// True when there was too much before the mark.
    pub(super) fn overflowed(&self) -> bool {
        matches!(self, Self::Waiting { seen, .. } if seen.len() > NOISE_LIMIT)
    }

    /// What came instead of the mark so far.
    pub(super) fn said(&self) -> &[u8] {
        match self {
            Self::Waiting { seen, .. } => seen,
            Self::Open => &[],
        }
    }
}

/// Where the first mark ends.
fn find(text: &[u8], mark: &[u8], from: usize) -> Option<usize> {
    text[from..].windows(mark.len()).position(|window| window == mark).map(|at| from + at + mark.len())
}

/// Bytes of a stranger as a short line for people.
pub(super) fn shown(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if let Some((end, _)) = line.char_indices().nth(SHOWN) {
            line.truncate(end);
            line.push('…');
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_programs_output_is_whole_however_the_stream_is_cut(
            noise in prop::collection::vec(any::<u8>(), 0..200),
            own in prop::collection::vec(any::<u8>(), 0..200),
            cuts in prop::collection::vec(1usize..40, 1..60),
        ) {
            let stream = [&noise[..], b"mark-4711 run 1 2\r\n", &own[..]].concat();
            let mut intake = Intake::until("mark-4711");
            let (mut rest, mut line) = (Vec::new(), None);
            let mut left = &stream[..];
            for cut in cuts.iter().cycle() {
                if left.is_empty() { break; }
                let (chunk, later) = left.split_at((*cut).min(left.len()));
                left = later;
                let (mine, told) = intake.take(Bytes::copy_from_slice(chunk));
                rest.extend_from_slice(&mine);
                line = line.or(told);
            }
            prop_assert_eq!(line.unwrap(), "run 1 2");
            prop_assert_eq!(rest, own);
        }
    }

    #[test]
    fn a_flood_of_noise_is_noticed_and_quoted_briefly() {
        let mut intake = Intake::until("mark");
        let said = b"This account is\r\n currently \x1b[1mnot available. ".repeat(2000);
        let (mine, line) = intake.take(said.into());
        assert!(mine.is_empty() && line.is_none() && intake.overflowed());
        let shown = shown(intake.said());
        assert!(shown.starts_with("This account is currently"), "{shown}");
        assert!(shown.chars().count() <= SHOWN + 1 && !shown.contains('\x1b'));
    }
}
