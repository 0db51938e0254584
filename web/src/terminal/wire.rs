//! ttyd's wire (LAB §6): a byte that says what it is, then the thing itself.

use bytes::{BufMut, Bytes, BytesMut};
use optio_actors::service::words::{Seat, Size};
use serde::Deserialize;
use serde_json::json;

/// The widest and highest window that is believed: tmux takes more, and draws it for everybody.
const LARGEST: Size = Size { columns: 1000, rows: 500 };

/// The smallest in which a program can draw anything.
const SMALLEST: Size = Size { columns: 2, rows: 2 };

/// Bytes of a close reason that a WebSocket carries.
const REASON_LIMIT: usize = 120;

/// A window's size as it is written.
#[derive(Deserialize)]
struct Window {
    columns: u32,
    rows: u32,
}

impl Window {
    fn size(&self) -> Result<Size, String> {
        let within =
            |n: u32, small: u16, large: u16| u16::try_from(n).ok().filter(|n| (small..=large).contains(n));
        let columns = within(self.columns, SMALLEST.columns, LARGEST.columns);
        let rows = within(self.rows, SMALLEST.rows, LARGEST.rows);
        match (columns, rows) {
            (Some(columns), Some(rows)) => Ok(Size { columns, rows }),
            _ => Err(format!(
                "columns and rows must be {} to {} and {} to {}",
                SMALLEST.columns, LARGEST.columns, SMALLEST.rows, LARGEST.rows
            )),
        }
    }
}

/// The first message: who comes, and with what window.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct First {
    pub(super) token: String,
    pub(super) size: Size,
}

impl First {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Hello {
            #[serde(rename = "AuthToken", default)]
            token: String,
            #[serde(flatten)]
            window: Window,
        }
        let rule = || "the first message must be {\"AuthToken\", \"columns\", \"rows\"}".to_owned();
        let hello: Hello = serde_json::from_slice(bytes).map_err(|_| rule())?;
        Ok(Self { size: hello.window.size()?, token: hello.token })
    }
}

/// What somebody says afterwards.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Bytes for the terminal.
    Keys(Bytes),
    /// Their window's size.
    Size(Size),
    /// They cannot draw as fast as they are told to.
    Pause,
    /// They can again.
    Resume,
    /// Something of no interest here.
    Nothing,
}

impl Said {
    pub(super) fn read(message: Bytes) -> Result<Self, String> {
        match message.first() {
            Some(b'0') => Ok(Self::Keys(message.slice(1..))),
            Some(b'1') => {
                let window: Window = serde_json::from_slice(&message[1..])
                    .map_err(|_| "a size must be {\"columns\", \"rows\"}".to_owned())?;
                Ok(Self::Size(window.size()?))
            }
            Some(b'2') => Ok(Self::Pause),
            Some(b'3') => Ok(Self::Resume),
            None => Ok(Self::Nothing),
            Some(other) => {
                Err(format!("a message must begin with 0, 1, 2 or 3, not with {:?}", char::from(*other)))
            }
        }
    }
}

/// What the terminal shows.
pub(super) fn output(bytes: &[u8]) -> Bytes {
    of_kind(b'0', bytes)
}

/// What the window is called.
pub(super) fn title(name: &str) -> Bytes {
    of_kind(b'1', name.as_bytes())
}

/// Where somebody sits, and how large the terminal is: settings that pages of ttyd do not know and leave alone.
pub(super) fn seat(seat: Seat, size: Size) -> Bytes {
    let settings = json!({ "optio": { "seat": seat, "columns": size.columns, "rows": size.rows } });
    of_kind(b'2', settings.to_string().as_bytes())
}

fn of_kind(kind: u8, payload: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(payload.len() + 1);
    message.put_u8(kind);
    message.put_slice(payload);
    message.freeze()
}

/// A reason short enough for a WebSocket to carry.
pub(super) fn reason(text: &str) -> String {
    let mut end = text.len().min(REASON_LIMIT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_first_message_has_a_ticket_and_a_window() {
        let first = First::read(br#"{"AuthToken":"t","columns":80,"rows":24}"#).unwrap();
        assert_eq!(first, First { token: "t".to_owned(), size: Size { columns: 80, rows: 24 } });
        assert_eq!(First::read(br#"{"columns":80,"rows":24}"#).unwrap().token, "");
        for bad in
            ["", "{}", "[]", r#"{"AuthToken":1,"columns":80,"rows":24}"#, r#"{"columns":"80","rows":24}"#]
        {
            assert!(First::read(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_window_that_no_screen_has_is_refused() {
        for (columns, rows) in [(1, 24), (80, 1), (0, 0), (1001, 24), (80, 501), (70000, 24)] {
            let text = format!(r#"{{"columns":{columns},"rows":{rows}}}"#);
            assert!(First::read(text.as_bytes()).unwrap_err().contains("2 to 1000"), "{text}");
        }
    }

    #[test]
    fn what_is_said_is_told_by_its_first_byte() {
        let read = |text: &'static str| Said::read(Bytes::from_static(text.as_bytes()));
        assert_eq!(read("0ls\r"), Ok(Said::Keys(Bytes::from_static(b"ls\r"))));
        assert_eq!(read("0"), Ok(Said::Keys(Bytes::new())));
        assert_eq!(read(r#"1{"columns":100,"rows":30}"#), Ok(Said::Size(Size { columns: 100, rows: 30 })));
        assert_eq!((read("2"), read("3"), read("")), (Ok(Said::Pause), Ok(Said::Resume), Ok(Said::Nothing)));
        assert!(read("1{}").is_err() && read("9").is_err() && read("{}").is_err());
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let long = "ä".repeat(100);
        assert_eq!(reason(&long), "ä".repeat(60));
        assert_eq!(reason("short"), "short");
    }
}
