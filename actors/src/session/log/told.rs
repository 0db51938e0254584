//! What an earlier process told of a log, and could not put on record any more.

use optio_store::{JournalStream, Record};
use serde_json::Value;
use tracing::warn;

/// Events read at once when what was told already is looked for.
const PAGE: usize = 500;

/// Pages looked through at the most. The events of one part of the log are told together, so what was told last stands
/// near the end; a flood of deltas may lie behind it.
const PAGES: usize = 40;

/// The number of the last line that an earlier process told of, among the events after `since`.
pub(super) async fn told_lines(stream: &dyn JournalStream, since: u64) -> u64 {
    let mut before = u64::MAX;
    for _ in 0..PAGES {
        let records = match stream.read_back(before, PAGE).await {
            Ok(slice) => slice.records,
            Err(problem) => {
                warn!(%problem, "events cannot be looked through for what was told");
                return 0;
            }
        };
        let found = records.iter().rev().take_while(|record| record.seq > since).find_map(line_of);
        if let Some(line) = found {
            return line;
        }
        match records.first() {
            Some(first) if first.seq > since => before = first.seq,
            _ => return 0,
        }
    }
    warn!("what was told of the log is further back than is looked");
    0
}

/// The line an event tells of. A deliverable's event comes later than its line, so it says nothing about those after it.
fn line_of(record: &Record) -> Option<u64> {
    let of_lines = ["progress", "attention", "browser.requested", "client.message", "caller.message"];
    if !of_lines.contains(&record.name.as_str()) {
        return None;
    }
    serde_json::from_slice::<Value>(&record.data).ok()?.get("line")?.as_u64()
}
