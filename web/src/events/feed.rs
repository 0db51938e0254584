//! One viewer's stream of frames.
//!
//! It reads the journal slice by slice and waits for its wake-up in between, so a slow viewer holds one slice, never
//! grows memory and never slows another.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use optio_actors::service::words::{Gap, JournalStream, Record};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

/// Events read in one go.
const SLICE_RECORDS: usize = 256;

/// Bytes read in one go, unless one event alone has more: enough to fill a pipe, little enough for a thousand viewers.
const SLICE_BYTES: usize = 256 << 10;

/// How long a stream may be silent: less than the patience of the proxies between.
const PING_AFTER: Duration = Duration::from_secs(15);

/// How long a stream lives before the viewer is made to reconnect, so that no proxy cuts it in the middle of a frame.
const LIFE: Duration = Duration::from_secs(60 * 60);

const RETRY: &[u8] = b"retry: 2000\n\n";

const PING: &[u8] = b": ping\n\n";

/// A viewer's place in a stream.
pub(super) struct Feed {
    stream: Arc<dyn JournalStream>,
    newest: watch::Receiver<u64>,
    after: u64,
    begun: bool,
    ends: Instant,
    shutdown: watch::Receiver<bool>,
}

impl Feed {
    pub(super) fn new(stream: Arc<dyn JournalStream>, after: u64, shutdown: watch::Receiver<bool>) -> Self {
        let newest = stream.newest();
        Self { stream, newest, after, begun: false, ends: Instant::now() + LIFE, shutdown }
    }

    /// The frames, in chunks of many.
    pub(super) fn into_body(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        futures_util::stream::unfold(self, |mut feed| async move {
            let chunk = feed.next().await?;
            Some((Ok(chunk), feed))
        })
    }

    /// The next chunk; nothing when the stream is over.
    async fn next(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.begun, true) {
            return Some(Bytes::from_static(RETRY));
        }
        let ping_at = Instant::now() + PING_AFTER;
        loop {
            if *self.shutdown.borrow() || Instant::now() >= self.ends {
                return None;
            }
            // Seen before it is read: what comes during the read wakes the wait after it.
            self.newest.borrow_and_update();
            let frames = self.read().await?;
            if !frames.is_empty() {
                return Some(frames);
            }
            tokio::select! {
                // A stream that is gone has no more events.
                changed = self.newest.changed() => changed.ok()?,
                // Told, or nobody is left to tell.
                _ = self.shutdown.wait_for(|down| *down) => return None,
                () = tokio::time::sleep_until(ping_at.min(self.ends)) => {
                    return (Instant::now() < self.ends).then(|| Bytes::from_static(PING));
                }
            }
        }
    }

    /// The frames of the next slice; nothing when the journal cannot be read, and the viewer may come again.
    async fn read(&mut self) -> Option<Bytes> {
        let slice = match self.stream.read(self.after, SLICE_RECORDS, SLICE_BYTES).await {
            Ok(slice) => slice,
            Err(problem) => {
                warn!(after = self.after, %problem, "journal cannot be read, the viewer's stream ends");
                return None;
            }
        };
        let gap = slice.gap.map(|gap| gap_frame(&gap)).unwrap_or_default();
        let size =
            slice.records.iter().map(|record| record.data.len() + record.name.len() + 48).sum::<usize>();
        let mut frames = BytesMut::with_capacity(gap.1.len() + size);
        frames.extend_from_slice(gap.1.as_bytes());
        self.after = self.after.max(gap.0);
        for record in &slice.records {
            frame(&mut frames, record);
            self.after = record.seq;
        }
        Some(frames.freeze())
    }
}

/// Writes an event as it is stored: not a byte of it is encoded anew.
fn frame(frames: &mut BytesMut, record: &Record) {
    let head = format!("event: {}\nid: {}\ndata: ", record.name, record.seq);
    frames.extend_from_slice(head.as_bytes());
    frames.extend_from_slice(&record.data);
    frames.extend_from_slice(b"\n\n");
}

/// Says which events are gone, with the number of the last of them: a viewer that reconnects then is not told again.
fn gap_frame(gap: &Gap) -> (u64, String) {
    (gap.to, format!("event: gap\nid: {}\ndata: {}\n\n", gap.to, gap_data(gap)))
}

/// A gap in the form of an event.
pub(super) fn gap_data(gap: &Gap) -> String {
    json!({ "v": 1, "seq": gap.to, "type": "gap", "from": gap.from, "to": gap.to, "reason": "retention" })
        .to_string()
}
