//! Starting a child so that its end is always news.

use std::any::Any;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use actix::dev::channel;
use actix::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{Instrument, Span};

use super::ChildKind;

/// One child, never reused within a process: an exit that arrives late is told apart from the child that took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildId(u64);

static NEXT_CHILD: AtomicU64 = AtomicU64::new(1);

/// Mailbox places of a child. `send` waits and `try_send` refuses beyond it; facts between parent and child are few.
const MAILBOX: usize = 64;

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// It stopped because it was asked to, or was no longer needed.
    Normal,
    /// It gave up and said why.
    Failed(String),
    /// It panicked.
    Panicked(String),
    /// Its parent killed it.
    Killed,
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Normal => f.write_str("stopped"),
            Self::Failed(why) => f.write_str(why),
            Self::Panicked(what) => write!(f, "panicked: {what}"),
            Self::Killed => f.write_str("killed after it gave no sign of life"),
        }
    }
}

/// Tells a parent that a child has ended; sent exactly once for each child, after everything of it was dropped.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct ChildExit {
    /// Which child.
    pub id: ChildId,
    /// What it was.
    pub kind: ChildKind,
    /// How it ended.
    pub reason: ExitReason,
    /// How long it lived.
    pub lived: Duration,
}

/// Where a child leaves its reason before it stops itself.
#[derive(Clone, Default)]
pub struct ExitSlot(Rc<RefCell<Option<String>>>);

impl ExitSlot {
    /// Notes why the child gives up; the first reason counts.
    pub fn fail(&self, why: impl Into<String>) {
        self.0.borrow_mut().get_or_insert_with(|| why.into());
    }

    fn take(&self) -> Option<String> {
        self.0.try_borrow_mut().ok().and_then(|mut slot| slot.take())
    }
}

/// A parent's hold on a child. Dropping it kills the child.
pub struct ChildHandle {
    /// Which child.
    pub id: ChildId,
    /// What it is.
    pub kind: ChildKind,
    kill: Option<oneshot::Sender<()>>,
}

impl ChildHandle {
    /// Ends the child at its next await, whatever it is waiting for. A [`ChildExit`] follows.
    pub fn kill(&mut self) {
        // A child that is already gone has dropped its end.
        let _ = self.kill.take().map(|kill| kill.send(()));
    }
}

/// Starts `make(slot)` on this arbiter as a child of `parent`. Whatever it logs stands in `span`.
///
/// The child's future is polled under `catch_unwind`, and dropped after unwinding has ended: actix runs `stopped()`
/// from a drop, and a second panic there would end the whole process (measured, `reference/stack.md` §3).
pub fn spawn_child<A>(
    parent: Recipient<ChildExit>,
    kind: ChildKind,
    span: Span,
    make: impl FnOnce(ExitSlot) -> A + 'static,
) -> (Addr<A>, ChildHandle)
where
    A: Actor<Context = Context<A>>,
{
    let (sender, receiver) = channel::channel::<A>(MAILBOX);
    let addr = Addr::new(sender);
    let id = ChildId(NEXT_CHILD.fetch_add(1, Ordering::Relaxed));
    let (kill, killed) = oneshot::channel();
    let born = Instant::now();
    let living = async move {
        let reason = live(receiver, make, killed).await;
        parent.do_send(ChildExit { id, kind, reason, lived: born.elapsed() });
    };
    actix_rt::spawn(living.instrument(span));
    (addr, ChildHandle { id, kind, kill: Some(kill) })
}

async fn live<A>(
    receiver: channel::AddressReceiver<A>,
    make: impl FnOnce(ExitSlot) -> A,
    mut killed: oneshot::Receiver<()>,
) -> ExitReason
where
    A: Actor<Context = Context<A>>,
{
    let slot = ExitSlot::default();
    let own_slot = slot.clone();
    let made = catch_unwind(AssertUnwindSafe(|| {
        Box::pin(Context::with_receiver(receiver).into_future(make(own_slot)))
    }));
    let mut child = match made {
        Ok(child) => child,
        Err(panic) => return ExitReason::Panicked(panic_text(panic.as_ref())),
    };
    let mut was_killed = false;
    let polled = poll_fn(|cx| {
        // A dropped handle kills too: a parent that is gone must not leave children behind.
        if !was_killed && Pin::new(&mut killed).poll(cx).is_ready() {
            was_killed = true;
            return Poll::Ready(Ok(()));
        }
        match catch_unwind(AssertUnwindSafe(|| child.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await;
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(child)));
    match (polled, dropped) {
        (Err(panic), _) => ExitReason::Panicked(panic_text(panic.as_ref())),
        (Ok(()), Err(panic)) => {
            ExitReason::Panicked(format!("while stopping: {}", panic_text(panic.as_ref())))
        }
        (Ok(()), Ok(())) if was_killed => ExitReason::Killed,
        (Ok(()), Ok(())) => slot.take().map_or(ExitReason::Normal, ExitReason::Failed),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        return (*text).to_owned();
    }
    panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic without text".to_owned())
}
