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
    /// The service ends: there is one more look.
    last: bool,
}

impl Feed {
    pub(super) fn new(stream: Arc<dyn JournalStream>, after: u64, shutdown: watch::Receiver<bool>) -> Self {
        let newest = stream.newest();
        Self { stream, newest, after, begun: false, ends: Instant::now() + LIFE, shutdown, last: false }
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
            if Instant::now() >= self.ends {
                return None;
            }
            // Before the read: what was told before the service ends still arrives, its last words above all.
            self.last |= *self.shutdown.borrow();
            // Seen before it is read: what comes during the read wakes the wait after it.
            self.newest.borrow_and_update();
            let frames = self.read().await?;
            if !frames.is_empty() {
                return Some(frames);
            }
            if self.last {
                return None;
            }
            tokio::select! {
                // A stream that is gone has no more events.
                changed = self.newest.changed() => changed.ok()?,
                // Told, or nobody is left to tell.
                _ = self.shutdown.wait_for(|down| *down) => self.last = true,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::StreamExt;
    use optio_store::{Draft, Journal, MemoryJournal, Slice};

    use super::*;

    async fn stream(events: usize) -> Arc<dyn JournalStream> {
        let stream = MemoryJournal::new().open("s").await.unwrap();
        for _ in 0..events {
            tell(&stream, b"").await;
        }
        stream
    }

    async fn tell(stream: &Arc<dyn JournalStream>, body: &'static [u8]) {
        let body = Bytes::from_static(body);
        let draft = Draft { name: "progress".into(), body, session: "ses_x".into() };
        stream.append(draft).await.unwrap();
    }

    fn feed(stream: Arc<dyn JournalStream>) -> (Feed, watch::Sender<bool>) {
        let (tell, told) = watch::channel(false);
        (Feed::new(stream, 0, told), tell)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_pings_and_ends_after_an_hour() {
        let (feed, _shutdown) = feed(stream(0).await);
        let began = Instant::now();
        let chunks: Vec<_> = feed.into_body().map(Result::unwrap).collect().await;
        assert_eq!(began.elapsed(), LIFE);
        assert_eq!(chunks[0], RETRY);
        assert!(chunks[1..].iter().all(|chunk| chunk == PING));
        assert_eq!(chunks.len(), 240, "one at the start and one every 15 s, none at the end");
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_puts_the_next_ping_off() {
        let stream = stream(0).await;
        let (mut feed, _shutdown) = feed(stream.clone());
        feed.next().await;
        let began = Instant::now();
        let (chunk, ()) = tokio::join!(feed.next(), async {
            tokio::time::sleep(PING_AFTER - Duration::from_secs(1)).await;
            tell(&stream, b"").await;
        });
        assert!(chunk.unwrap().starts_with(b"event: progress\nid: 1\n"));
        assert_eq!(feed.next().await.unwrap(), PING);
        assert_eq!(began.elapsed(), 2 * PING_AFTER - Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_stream_ends_when_nobody_is_left_to_end_it() {
        let (mut feed, shutdown) = feed(stream(0).await);
        feed.next().await;
        drop(shutdown);
        assert_eq!(feed.next().await, None);
    }

    #[tokio::test]
    async fn what_was_told_before_the_service_ends_still_arrives() {
        let stream = stream(1).await;
        let (mut feed, shutdown) = feed(stream.clone());
        feed.next().await;
        shutdown.send_replace(true);
        assert!(feed.next().await.unwrap().starts_with(b"event: progress\nid: 1\n"));
        assert_eq!(feed.next().await, None);
    }

    #[tokio::test]
    async fn many_events_travel_in_one_chunk_and_no_chunk_is_large() {
        let stream = stream(SLICE_RECORDS + 1).await;
        let (mut feed, _shutdown) = feed(stream.clone());
        feed.next().await;
        let count = |chunk: &Bytes| String::from_utf8_lossy(chunk).matches("\nid: ").count();
        assert_eq!(count(&feed.next().await.unwrap()), SLICE_RECORDS);
        assert_eq!(count(&feed.next().await.unwrap()), 1);

        let long: &'static [u8] = [br#""text":""#, vec![b'x'; 100 << 10].as_slice(), b"\""].concat().leak();
        for _ in 0..10 {
            tell(&stream, long).await;
        }
        let mut seen = 0;
        while seen < 10 {
            let chunk = feed.next().await.unwrap();
            assert!(chunk.len() < SLICE_BYTES + (110 << 10), "{}", chunk.len());
            seen += count(&chunk);
        }
    }

    /// Counts the reads of a stream.
    struct Counted(Arc<dyn JournalStream>, AtomicUsize);

    #[async_trait::async_trait]
    impl JournalStream for Counted {
        async fn append(&self, draft: Draft) -> optio_store::Result<u64> {
            self.0.append(draft).await
        }

        async fn flush(&self) -> optio_store::Result<()> {
            self.0.flush().await
        }

        async fn read(&self, after: u64, records: usize, bytes: usize) -> optio_store::Result<Slice> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.read(after, records, bytes).await
        }

        async fn read_back(&self, before: u64, records: usize) -> optio_store::Result<Slice> {
            self.0.read_back(before, records).await
        }

        fn newest(&self) -> watch::Receiver<u64> {
            self.0.newest()
        }
    }

    #[tokio::test]
    async fn nothing_is_read_ahead_of_a_slow_viewer() {
        let counted = Arc::new(Counted(stream(10 * SLICE_RECORDS).await, AtomicUsize::new(0)));
        let (feed, _shutdown) = feed(counted.clone());
        let mut body = Box::pin(feed.into_body());
        for reads in 0..4 {
            assert_eq!(counted.1.load(Ordering::Relaxed), reads);
            // The first chunk is the retry line; a viewer that asks for no more causes no more reads.
            if reads == 0 {
                body.next().await;
            }
            body.next().await;
            tokio::task::yield_now().await;
        }
    }
}
