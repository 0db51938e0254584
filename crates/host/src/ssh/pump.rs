//! Keeps one channel moving.
//!
//! What russh needs of whoever has a channel, all of it found by trying:
//!
//! - A channel whose messages are not taken stalls every other one of its connection, so a task takes them always, into
//!   a queue with a bound; past the bound the channel is closed and its reader is told why.
//! - A write hangs for ever when the channel ends meanwhile, so every write races the end.
//! - A channel that is dropped is not closed, so the task closes it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::{Notify, oneshot, watch};

use super::connection::Connection;
use super::queue::{Queue, QueueReader, queue};
use super::slots::Slot;
use super::{mark::Intake, runtime};
use crate::{ExitStatus, Size};

/// Unread bytes that a channel may pile up: twice the longest line of a conversation (16 MiB), so one such line can wait
/// while the next arrives.
pub(super) const PIPE_BOUND: usize = 32 << 20;
/// The same for a terminal: what a viewer has not seen of it after this much, it will never want to.
pub(super) const TERMINAL_BOUND: usize = 4 << 20;
/// Bytes on their way to a channel before a writer waits: more than the round trips of a hand need, little per channel.
const WRITE_AHEAD: usize = 64 * 1024;
/// Bytes sent at once: the largest packet that OpenSSH takes.
const PACKET: usize = 32 * 1024;
/// How long a server may take to confirm that a channel is closed, before we stop listening to it.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// What is known of the end of what runs on a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// It runs, as far as is known.
    Running,
    /// It ended.
    Exited(ExitStatus),
    /// Nobody will ever say how it ended.
    Lost(Arc<str>),
}

/// A channel that a task keeps moving.
pub(super) struct Pumped {
    /// Written to the channel; dropping it is end-of-file there.
    pub(super) input: DuplexStream,
    /// The channel's data.
    pub(super) output: QueueReader,
    /// Its extended data: standard error.
    pub(super) errors: QueueReader,
    /// How it goes.
    pub(super) progress: watch::Receiver<Progress>,
    /// Ends it.
    pub(super) grip: Grip,
}

/// Reaches into a channel from outside.
#[derive(Clone)]
pub(super) struct Grip {
    close: Arc<Notify>,
    size: watch::Sender<Option<Size>>,
}

impl Grip {
    /// Closes the channel; what was read already stays to be read.
    pub(super) fn close(&self) {
        self.close.notify_one();
    }

    /// Tells the terminal of the channel that its window changed.
    pub(super) fn resize(&self, size: Size) {
        self.size.send_replace(Some(size));
    }
}

/// What holds the connection, and its slot, for as long as the channel is open.
pub(super) struct Holds {
    pub(super) connection: Arc<Connection>,
    pub(super) slot: Option<Slot>,
}

impl Holds {
    /// A server has room for another session only some time after it has closed one: when it has dealt with whatever it got
    /// together with our answer. The answer to one more question proves that.
    fn let_go(self) {
        let Self { connection, slot: Some(slot) } = self else { return };
        runtime::start(async move {
            let _ = tokio::time::timeout(CLOSE_LIMIT, connection.ping()).await;
            drop(slot);
        });
    }
}

/// What is said before the program's own output, see [`super::mark`].
pub(super) struct Awaited {
    /// The line that says that the program starts.
    pub(super) mark: String,
    /// Whether it stands on standard error too.
    pub(super) on_errors: bool,
    /// Gets the line, or what was said instead.
    pub(super) tell: oneshot::Sender<Result<String, Vec<u8>>>,
}

/// Starts the task of a channel, on the threads of connections.
pub(super) fn pump(channel: Channel<Msg>, holds: Holds, bound: usize, awaited: Option<Awaited>) -> Pumped {
    let (read, write) = channel.split();
    let write = Arc::new(write);
    let (out, output) = queue(bound);
    let (err, errors) = queue(bound);
    let (input, feed) = tokio::io::duplex(WRITE_AHEAD);
    let (progress, seen) = watch::channel(Progress::Running);
    let (over, ended) = watch::channel(());
    let grip = Grip { close: Arc::default(), size: watch::Sender::new(None) };

    runtime::start(forward(feed, write.clone(), ended));
    let (out_intake, err_intake, tell) = match awaited {
        None => (Intake::open(), Intake::open(), None),
        Some(Awaited { mark, on_errors, tell }) => {
            let errors = if on_errors { Intake::until(&mark) } else { Intake::open() };
            (Intake::until(&mark), errors, Some(tell))
        }
    };
    let listener = Listener {
        write,
        out: (out, out_intake),
        err: (err, err_intake),
        tell,
        progress,
        _over: over,
        holds,
    };
    runtime::start(listener.listen(read, grip.clone()));
    Pumped { input, output, errors, progress: seen, grip }
}

struct Listener {
    write: Arc<ChannelWriteHalf<Msg>>,
    out: (Queue, Intake),
    err: (Queue, Intake),
    tell: Option<oneshot::Sender<Result<String, Vec<u8>>>>,
    progress: watch::Sender<Progress>,
    /// Its end is the end for whoever writes.
    _over: watch::Sender<()>,
    holds: Holds,
}

impl Listener {
    async fn listen(mut self, mut read: ChannelReadHalf, grip: Grip) {
        let mut sizes = grip.size.subscribe();
        let write = self.write.clone();
        let mut deadline = None;
        let closed = loop {
            let message = tokio::select! {
                message = read.wait() => message,
                () = grip.close.notified(), if deadline.is_none() => {
                    self.said_instead();
                    let _ = write.close().await;
                    deadline = Some(tokio::time::Instant::now() + CLOSE_LIMIT);
                    continue;
                }
                () = at(deadline) => None,
                changed = sizes.changed() => {
                    let size = *sizes.borrow_and_update();
                    if let (Ok(()), Some(size)) = (changed, size) {
                        let _ = write.window_change(size.columns.into(), size.rows.into(), 0, 0).await;
                    }
                    continue;
                }
            };
            let fits = match message {
                None => break false,
                // Russh has answered it by then.
                Some(ChannelMsg::Close) => break true,
                Some(ChannelMsg::Data { data }) => self.take_output(data),
                Some(ChannelMsg::ExtendedData { data, ext: 1 }) => self.take_errors(data),
                Some(ChannelMsg::Eof) => {
                    self.out.0.end(Ok(()));
                    self.err.0.end(Ok(()));
                    true
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    self.progress.send_replace(Progress::Exited(ExitStatus::Code(exit_status.cast_signed())));
                    true
                }
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    self.progress.send_replace(Progress::Exited(by_signal(&signal_name)));
                    true
                }
                Some(ChannelMsg::Failure) => {
                    self.lost("the server refuses to run commands");
                    let _ = write.close().await;
                    true
                }
                Some(_) => true,
            };
            if !fits && deadline.is_none() {
                self.lost("its output was not read, and is too much to be kept");
                let _ = write.close().await;
                deadline = Some(tokio::time::Instant::now() + CLOSE_LIMIT);
            }
        };
        let gone = self.holds.connection.why_ended();
        let closed_properly = gone.is_none();
        let why = gone
            .unwrap_or_else(|| "the server closed the channel without saying how the program ended".into());
        // Output that was cut off must not look like all of it.
        let end = if closed_properly { Ok(()) } else { Err(why.clone()) };
        self.out.0.end(end.clone());
        self.err.0.end(end);
        self.lost(&why);
        if !closed && deadline.is_none() {
            let _ = self.write.close().await;
        }
        self.holds.let_go();
    }

    fn take_output(&mut self, data: Bytes) -> bool {
        let (rest, line) = self.out.1.take(data);
        if let Some(line) = line
            && let Some(tell) = self.tell.take()
        {
            let _ = tell.send(Ok(line));
        }
        let overflow = self.out.1.overflowed();
        if overflow {
            self.said_instead();
        }
        !overflow && self.out.0.push(rest)
    }

    fn take_errors(&mut self, data: Bytes) -> bool {
        let (rest, _) = self.err.1.take(data);
        let overflow = self.err.1.overflowed();
        if overflow {
            self.said_instead();
        }
        !overflow && self.err.0.push(rest)
    }

    fn said_instead(&mut self) {
        if let Some(tell) = self.tell.take() {
            let _ = tell.send(Err([self.out.1.said(), self.err.1.said()].concat()));
        }
    }

    /// Unless it is known how it ended.
    fn lost(&mut self, why: &str) {
        self.said_instead();
        self.progress.send_if_modified(|progress| {
            let running = *progress == Progress::Running;
            if running {
                *progress = Progress::Lost(why.into());
            }
            running
        });
        let end = || Err(Arc::from(why));
        self.out.0.end(end());
        self.err.0.end(end());
    }
}

async fn at(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Sends what is written until its end, or the channel's.
async fn forward(mut from: DuplexStream, write: Arc<ChannelWriteHalf<Msg>>, mut ended: watch::Receiver<()>) {
    loop {
        let mut chunk = BytesMut::with_capacity(PACKET);
        let read = tokio::select! {
            read = from.read_buf(&mut chunk) => read,
            _ = ended.changed() => return,
        };
        let last = !matches!(read, Ok(1..));
        let sent = async { if last { write.eof().await } else { write.data_bytes(chunk.freeze()).await } };
        let sent = tokio::select! {
            sent = sent => sent,
            _ = ended.changed() => return,
        };
        if last || sent.is_err() {
            return;
        }
    }
}

/// The numbers are Linux's, for all processors that we run on.
fn by_signal(name: &Sig) -> ExitStatus {
    ExitStatus::Signal(match name {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        Sig::Custom(_) => return ExitStatus::Unknown,
    })
}
