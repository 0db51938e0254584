//! Server-sent events, read as a browser reads them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reqwest::{Method, header};
use serde_json::Value;
use tokio::time::Instant;

use super::Client;

/// The largest frame taken: the service's own bound on a line of codex, and its envelope.
const FRAME_LIMIT: usize = 17 << 20;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What `event:` said.
    pub name: String,
    /// What `id:` said; nothing when the frame had none.
    pub id: Option<u64>,
    /// What `data:` said.
    pub data: Value,
}

/// A stream of events. Dropping it hangs up.
pub struct EventStream {
    body: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    buffer: Vec<u8>,
    ready: VecDeque<Event>,
    seen: Vec<u64>,
    pings: usize,
    retry: Option<u64>,
}

impl EventStream {
    /// Opens a stream; what comes after an id is asked for by `Last-Event-ID`, as a browser that reconnects does.
    ///
    /// # Panics
    /// When the answer is not an event stream, with the answer.
    pub async fn open(client: &Client, path: &str, last_event_id: Option<u64>) -> Self {
        let mut request = client.request(Method::GET, path).header(header::ACCEPT, "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response =
            request.send().await.unwrap_or_else(|err| panic!("GET {path} was not answered: {err:?}"));
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        if !response.status().is_success() || !kind.is_some_and(|kind| kind.starts_with("text/event-stream"))
        {
            let (status, kind) = (response.status(), kind.map(str::to_owned));
            panic!("GET {path} is no event stream: {status} {kind:?} {:?}", response.text().await);
        }
        Self {
            body: Box::pin(response.bytes_stream()),
            buffer: Vec::new(),
            ready: VecDeque::new(),
            seen: Vec::new(),
            pings: 0,
            retry: None,
        }
    }

    /// Waits for the next event.
    ///
    /// # Panics
    /// When none came within `limit` or the stream ended, with the ids seen before.
    pub async fn next(&mut self, limit: Duration) -> Event {
        match tokio::time::timeout(limit, self.read()).await {
            Ok(Some(event)) => event,
            Ok(None) => panic!("the event stream ended after {:?}", self.seen),
            Err(_) => panic!("no event within {limit:?} after {:?}", self.seen),
        }
    }

    /// Reads on until an event of which this is true, and returns all read, that one last.
    ///
    /// # Panics
    /// When none came within `limit` or the stream ended, with the names of those that did.
    pub async fn until(&mut self, is_it: impl Fn(&Event) -> bool, limit: Duration) -> Vec<Event> {
        let deadline = Instant::now() + limit;
        let mut events: Vec<Event> = Vec::new();
        loop {
            let names = || events.iter().map(|event| event.name.as_str()).collect::<Vec<_>>();
            match tokio::time::timeout_at(deadline, self.read()).await {
                Ok(Some(event)) => events.push(event),
                Ok(None) => {
                    panic!("the event stream ended before the awaited event; there came {:?}", names())
                }
                Err(_) => panic!("the awaited event did not come within {limit:?}; there came {:?}", names()),
            }
            if events.last().is_some_and(&is_it) {
                return events;
            }
        }
    }

    /// Reads on until an event of this name, and returns all read, that one last.
    pub async fn until_named(&mut self, name: &str, limit: Duration) -> Vec<Event> {
        self.until(|event| event.name == name, limit).await
    }

    /// Waits until the service closes the stream, and returns what still came.
    ///
    /// # Panics
    /// When it is still open after `limit`.
    pub async fn drain(&mut self, limit: Duration) -> Vec<Event> {
        let deadline = Instant::now() + limit;
        let mut events = Vec::new();
        while let Some(event) = tokio::time::timeout_at(deadline, self.read())
            .await
            .unwrap_or_else(|_| panic!("the event stream was still open after {limit:?}"))
        {
            events.push(event);
        }
        events
    }

    /// The ids of the events read so far, in order.
    pub fn seen(&self) -> &[u64] {
        &self.seen
    }

    /// How many comments (`: ping`) came so far.
    pub fn pings(&self) -> usize {
        self.pings
    }

    /// The milliseconds of the `retry:` field, once it came.
    pub fn retry(&self) -> Option<u64> {
        self.retry
    }

    /// Reads one event; nothing when the stream is over, however it ended.
    async fn read(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.seen.extend(event.id);
                return Some(event);
            }
            let chunk = self.body.next().await?.ok()?;
            self.take(&chunk);
        }
    }

    fn take(&mut self, chunk: &[u8]) {
        // A blank line ends a frame; it may be cut in two, so the search begins one byte before what is new.
        let mut from = self.buffer.len().saturating_sub(1);
        self.buffer.extend_from_slice(chunk);
        while let Some(at) = self.buffer[from..].windows(2).position(|pair| pair == b"\n\n") {
            let frame: Vec<u8> = self.buffer.drain(..from + at + 2).collect();
            self.frame(&String::from_utf8_lossy(&frame));
            from = 0;
        }
        assert!(self.buffer.len() <= FRAME_LIMIT, "an event of more than {FRAME_LIMIT} bytes");
    }

    fn frame(&mut self, frame: &str) {
        let (mut name, mut id, mut data) = ("message".to_owned(), None, Vec::new());
        for line in frame.lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if !line.is_empty() => self.pings += 1,
                "event" => name = value.to_owned(),
                "id" => {
                    id = Some(value.parse().unwrap_or_else(|_| panic!("an id is a number, not {value:?}")))
                }
                "data" => data.push(value),
                "retry" => self.retry = value.parse().ok(),
                _ => {}
            }
        }
        if !data.is_empty() {
            let data = data.join("\n");
            let data =
                serde_json::from_str(&data).unwrap_or_else(|err| panic!("data is JSON ({err}): {data}"));
            self.ready.push_back(Event { name, id, data });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stream(chunks: &'static [&'static str]) -> EventStream {
        let chunks = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk.as_bytes())));
        EventStream {
            body: Box::pin(futures_util::stream::iter(chunks)),
            buffer: Vec::new(),
            ready: VecDeque::new(),
            seen: Vec::new(),
            pings: 0,
            retry: None,
        }
    }

    #[tokio::test]
    async fn frames_are_found_however_the_network_cuts_them() {
        let mut events = stream(&[
            "retry: 2000\n\nevent: progress\nid: 7\nda",
            "ta: {\"a\":1}\n",
            "\n: ping\n\nevent: gap\nid: 9\ndata: {}\n\nevent: cut off\ndata: {",
        ]);
        let all = events.drain(Duration::from_secs(1)).await;
        let first = Event { name: "progress".into(), id: Some(7), data: json!({ "a": 1 }) };
        let second = Event { name: "gap".into(), id: Some(9), data: json!({}) };
        assert_eq!(all, [first, second]);
        assert_eq!((events.seen(), events.pings(), events.retry()), ([7, 9].as_slice(), 1, Some(2000)));
    }

    #[tokio::test]
    #[should_panic(expected = "the event stream ended before the awaited event; there came [\"progress\"]")]
    async fn an_awaited_event_that_never_comes_is_a_failure() {
        let mut events = stream(&["event: progress\nid: 1\ndata: {}\n\n"]);
        events.until_named("session.ended", Duration::from_secs(1)).await;
    }
}
