//! One viewer's stream of frames.
//!
//! It reads the journal slice by slice and waits for its wake-up in between, so a slow viewer holds one slice, never
//! grows memory and never slows another.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::Stream;
use optio_actors::service::words::{Gap, JournalStream};
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

/// About what a frame has beside its data: names are short, and a guess too low costs one more allocation.
const FRAME_OVERHEAD: usize = 64;

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
        let size = slice.records.iter().map(|record| record.data.len() + FRAME_OVERHEAD).sum();
        let mut frames = BytesMut::with_capacity(size);
        if let Some(gap) = &slice.gap {
            // With the number of the last event that is gone: a viewer that reconnects is not told again.
            frame(&mut frames, "gap", gap.to, gap_data(gap).as_bytes());
            self.after = gap.to;
        }
        for record in &slice.records {
            frame(&mut frames, &record.name, record.seq, &record.data);
            self.after = record.seq;
        }
        Some(frames.freeze())
    }
}

/// Writes an event as it is stored: not a byte of it is encoded anew.
fn frame(frames: &mut BytesMut, name: &str, seq: u64, data: &[u8]) {
    frames.put_slice(b"event: ");
    frames.put_slice(name.as_bytes());
    // Writing to memory that grows does not fail.
    let _ = write!(frames, "\nid: {seq}\ndata: ");
    frames.put_slice(data);
    frames.put_slice(b"\n\n");
}

/// A gap in the form of an event.
pub(super) fn gap_data(gap: &Gap) -> String {
    json!({ "v": 1, "seq": gap.to, "type": "gap", "from": gap.from, "to": gap.to, "reason": "retention" })
        .to_string()
}
