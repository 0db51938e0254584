//! Every session's ordered, durable events: what each viewer reads (DESIGN §9).

mod boot;
mod disk;
mod line;
#[cfg(feature = "testsuite")]
mod memory;
mod ring;
mod segment;
mod stream;
mod writer;

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::Result;

#[cfg(feature = "testsuite")]
pub use disk::WriteFault;
pub use disk::{DiskJournal, DiskJournalOptions};
#[cfg(feature = "testsuite")]
pub use memory::MemoryJournal;

/// Most bytes [`JournalStream::read_back`] answers, unless one event alone has more: a page for a person, not an export.
const READ_BACK_BYTES: usize = 4 << 20;

/// An event before it has its number.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Its name, e.g. `item.delta`: ASCII letters, digits, `.`, `_`, `-` and `/` only.
    pub name: Cow<'static, str>,
    /// The members of its JSON object after the envelope's (`v`, `seq`, `ts`, `session`, `type`), without braces:
    /// `"turn":"t1","codex":{…}`, or nothing. Must be valid JSON members; they are stored as they are.
    pub body: Bytes,
    /// The session it is about, written into the envelope.
    pub session: Cow<'static, str>,
}

/// An event as it is stored and sent: `data` is the whole JSON object, one line, no newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number in its stream; the first is 1, the next is one more.
    pub seq: u64,
    /// Its name.
    pub name: String,
    /// `{"v":1,"seq":…,"ts":…,"session":…,"type":…,…}`. Shared, never copied per viewer.
    pub data: Bytes,
}

/// Events that are no longer stored.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Gap {
    /// The first missing number.
    pub from: u64,
    /// The last missing number.
    pub to: u64,
}

/// What a read found.
#[derive(Debug, Clone, Default)]
pub struct Slice {
    /// Set when events between the asked-for place and `records` were trimmed, or lost to a power cut. There may be a
    /// gap without records; a reader then goes on after it.
    pub gap: Option<Gap>,
    /// The events, in order, without a hole.
    pub records: Vec<Record>,
    /// The newest number that was readable at that time.
    pub newest: u64,
}

/// One ordered stream of events; one writer, any number of readers.
#[async_trait]
pub trait JournalStream: Send + Sync + 'static {
    /// Gives the event its number and hands it to the writer. Waits only while too much is unwritten (a full or slow
    /// disk), so a flood is held back at its source. An event becomes readable when it has been written, at once when
    /// the writer is idle, else with its next batch (at most 20 ms or 256 KiB later): what a viewer saw is never
    /// given another meaning after a crash.
    async fn append(&self, draft: Draft) -> Result<u64>;

    /// Waits until everything appended so far is readable.
    async fn flush(&self) -> Result<()>;

    /// Events with a number greater than `after`: at most `max_records` and about `max_bytes`, at least one if there
    /// is one. An `after` beyond the newest is answered as if it were the newest.
    async fn read(&self, after: u64, max_records: usize, max_bytes: usize) -> Result<Slice>;

    /// The newest events, oldest first, at most `max_records` (and about 4 MiB), whose number is smaller than `before`.
    /// A gap is the missing range right before `before`; with no records it is all there ever was before it.
    async fn read_back(&self, before: u64, max_records: usize) -> Result<Slice>;

    /// The newest readable number; a change of it is the wake-up. Copy it out: while it is borrowed nothing is written.
    fn newest(&self) -> watch::Receiver<u64>;
}

/// All streams.
#[async_trait]
pub trait Journal: Send + Sync + 'static {
    /// Opens (or makes) the stream with this name (a session's id, or `service`). The same stream is answered while
    /// anyone has it; numbering continues where it ended, also after `kill -9` or a power cut.
    async fn open(&self, name: &str) -> Result<Arc<dyn JournalStream>>;

    /// Deletes a stream; absent is fine. Streams that are open go on without a file and must not be used.
    async fn delete(&self, name: &str) -> Result<()>;

    /// What is wrong with the place the events are written to; `None` while all is well. Nothing is lost meanwhile:
    /// events wait in memory, and beyond the bound appends wait.
    fn trouble(&self) -> Option<String> {
        None
    }
}
