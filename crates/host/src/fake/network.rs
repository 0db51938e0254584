//! The network between a [`super::FakeHost`] and whoever uses it. What runs on the machine goes on whatever becomes of it.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::watch;

use super::FakeHost;
use crate::error::{HostError, Result};
use crate::{ByteStream, Reach};

/// How long an attempt to connect waits for a machine that does not answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The way to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// Nothing comes through, and nobody has noticed.
    Silent,
    Cut,
}

/// The way, and how often every connection over it has broken. A connection belongs to the number it was made under.
#[derive(Debug, Clone, Copy)]
struct Line {
    way: Way,
    breaks: u64,
}

/// Which calls cut the network: those whose line in the trace begins with `prefix`, `times` more times.
struct Trip {
    prefix: String,
    times: u32,
}

pub(super) struct Network {
    line: watch::Sender<Line>,
    reach: watch::Sender<Reach>,
    trip: Mutex<Option<Trip>>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            line: watch::Sender::new(Line { way: Way::Open, breaks: 0 }),
            reach: watch::Sender::new(Reach::Up),
            trip: Mutex::default(),
        }
    }
}

impl Network {
    pub(super) fn reach(&self) -> watch::Receiver<Reach> {
        self.reach.subscribe()
    }

    fn now(&self) -> Line {
        *self.line.borrow()
    }

    async fn until(&self, wanted: impl Fn(&Line) -> bool) {
        // The sender is ours: it does not go before we do.
        drop(self.line.subscribe().wait_for(|line| wanted(line)).await);
    }

    fn is_broken(&self, connection: u64) -> bool {
        self.now().breaks != connection
    }

    /// Waits until the way is known to be open or cut; answers under which number a connection is made now.
    async fn pass(&self) -> Result<u64> {
        self.until(|line| line.way != Way::Silent).await;
        match self.now() {
            Line { way: Way::Cut, .. } => Err(unreachable_host()),
            Line { breaks, .. } => {
                self.tell_up();
                Ok(breaks)
            }
        }
    }

    fn tell_up(&self) {
        self.reach.send_if_modified(|reach| {
            let was_down = !reach.may_answer();
            if was_down {
                *reach = Reach::Up;
            }
            was_down
        });
    }

    fn tell_down(&self) {
        let down = Reach::Down {
            since: SystemTime::now(),
            code: "host_unreachable",
            why: unreachable_host().to_string(),
        };
        self.reach.send_if_modified(|reach| {
            let is_news = reach.may_answer();
            if is_news {
                *reach = down;
            }
            is_news
        });
    }

    fn trips(&self, line: &str) -> bool {
        let mut trip = self.trip.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(armed) = trip.as_mut().filter(|trip| line.starts_with(&trip.prefix)) else {
            return false;
        };
        armed.times -= 1;
        if armed.times == 0 {
            *trip = None;
        }
        true
    }
}

fn unreachable_host() -> HostError {
    HostError::Unreachable { host: "fake".into(), why: "the network is cut".into() }
}

impl FakeHost {
    /// Cuts the network as a reset does: whatever goes through it breaks at once, and [`crate::Host::reach`] tells.
    pub fn cut(&self) {
        self.break_off();
        self.network.tell_down();
    }

    /// Cuts the network so that nobody notices: nothing comes through, in either direction. Found out, as by a keepalive,
    /// when it is not mended within `found_after`; else what was under way goes on as if nothing had been.
    pub fn cut_silently(&self, found_after: Duration) {
        let breaks = self.network.now().breaks;
        self.network.line.send_modify(|line| line.way = Way::Silent);
        let host = self.clone();
        tokio::spawn(async move {
            let network = &host.network;
            let over = network.until(|line| line.way != Way::Silent || line.breaks != breaks);
            if tokio::time::timeout(found_after, over).await.is_err() {
                host.cut();
            }
        });
    }

    /// Cuts the network, and lets [`crate::Host::reach`] tell of it only after this time: whatever goes through it has broken
    /// by then, and whatever was asked has failed.
    pub fn cut_untold(&self, told_after: Duration) {
        self.break_off();
        let host = self.clone();
        tokio::spawn(async move {
            let network = &host.network;
            if tokio::time::timeout(told_after, network.until(|line| line.way != Way::Cut)).await.is_err() {
                network.tell_down();
            }
        });
    }

    /// Cuts the network in the middle of each of the next `times` calls whose line in [`FakeHost::trace`] begins with
    /// `prefix`; before the first chunk of an archive that is being read for `archive chunk`.
    pub fn cut_at(&self, prefix: &str, times: u32) {
        let mut trip = self.network.trip.lock().unwrap_or_else(PoisonError::into_inner);
        *trip = Some(Trip { prefix: prefix.to_owned(), times });
    }

    /// True when a [`FakeHost::cut_at`] has not struck as often as it was to.
    pub fn cut_is_armed(&self) -> bool {
        self.network.trip.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Mends the network. Connections that broke stay broken; the host counts as reachable when somebody has reached it.
    pub fn mend(&self) {
        self.network.line.send_modify(|line| line.way = Way::Open);
    }

    fn break_off(&self) {
        self.network.line.send_modify(|line| {
            line.way = Way::Cut;
            line.breaks += 1;
        });
        self.state().tree.unwatch_all();
    }

    /// Notes a call that comes over the network, and lets other tasks go first: a caller that counts on an answer without
    /// waiting is wrong. Answers the number of the connection that carries it.
    pub(super) async fn enter(&self, line: String) -> Result<u64> {
        let connection = self.network.pass().await?;
        let trips = self.network.trips(&line);
        self.note(line);
        tokio::task::yield_now().await;
        if trips {
            self.cut();
        }
        match self.network.is_broken(connection) {
            true => Err(unreachable_host()),
            false => Ok(connection),
        }
    }

    /// True when the connection of this number has broken.
    pub(super) fn has_lost(&self, connection: u64) -> bool {
        self.network.is_broken(connection)
    }

    /// Does what takes its time: it breaks off with its connection, and a silent one brings no answer.
    pub(super) async fn carry<T>(
        &self,
        connection: u64,
        doing: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let broken = self.network.until(|line| line.breaks != connection);
        let done = tokio::select! {
            biased;
            () = broken => return Err(unreachable_host()),
            done = doing => done,
        };
        self.network.until(|line| line.way != Way::Silent || line.breaks != connection).await;
        match self.network.is_broken(connection) {
            true => Err(unreachable_host()),
            false => done,
        }
    }

    /// A stream from the machine, that ends with an error when its connection breaks.
    pub(super) fn carry_stream(&self, connection: u64, stream: ByteStream) -> ByteStream {
        let begun = (self.clone(), Some(stream));
        stream::unfold(begun, move |(host, stream)| async move {
            let mut stream = stream?;
            if host.network.trips("archive chunk") {
                host.cut();
            }
            let next = host.carry(connection, async { Ok(stream.next().await) }).await;
            match next {
                Ok(None) => None,
                Ok(Some(chunk)) => Some((chunk, (host, Some(stream)))),
                Err(broken) => Some((Err(broken), (host, None))),
            }
        })
        .boxed()
    }

    /// One end of a pipe or a connection, as it is had over the network.
    pub(super) fn wire(&self, connection: u64, inner: DuplexStream) -> Wire {
        let wake = || Wake { line: self.network.line.subscribe(), change: None };
        Wire { inner, connection, reading: wake(), writing: wake() }
    }

    /// Connects, as [`crate::Host::connect`] does.
    pub(super) async fn reconnect(&self) -> Result<()> {
        self.note("connect".to_owned());
        tokio::task::yield_now().await;
        match tokio::time::timeout(CONNECT_LIMIT, self.network.pass()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                self.network.tell_down();
                Err(unreachable_host())
            }
        }
    }
}

/// Wakes one side of a [`Wire`] when something happens to its network.
struct Wake {
    line: watch::Receiver<Line>,
    change: Option<BoxFuture<'static, ()>>,
}

impl Wake {
    /// Ready when something may come through, or never will again.
    fn poll(&mut self, connection: u64, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let Line { way, breaks } = *self.line.borrow_and_update();
            if breaks != connection {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let mut line = self.line.clone();
            let changed = async move {
                // The sender lives as long as the machine; without one nothing changes any more.
                if line.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            // Made anew each time: it must not know of what was looked at just now.
            let change = self.change.insert(changed.boxed());
            if change.poll_unpin(cx).is_ready() {
                continue;
            }
            return if way == Way::Silent { Poll::Pending } else { Poll::Ready(Ok(())) };
        }
    }
}

/// See [`FakeHost::wire`].
pub(super) struct Wire {
    inner: DuplexStream,
    connection: u64,
    reading: Wake,
    writing: Wake,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let connection = self.connection;
        ready!(self.reading.poll(connection, cx))?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let connection = self.connection;
        ready!(self.writing.poll(connection, cx))?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connection = self.connection;
        ready!(self.writing.poll(connection, cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
