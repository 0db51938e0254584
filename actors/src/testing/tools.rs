//! Programs that are provided when the test says so.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use optio_host::provision::{Progress, Provided, Provision, ProvisionError, Tell, Tool, Wishes};
use optio_host::{Host, HostError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What a request for a program does next.
enum Next {
    Tell(Progress),
    Find(Provided),
    Fail(String),
    Panic,
}

struct Begun {
    tool: Tool,
    wishes: Wishes,
    next: mpsc::UnboundedSender<Next>,
    cancel: CancellationToken,
}

/// A way to programs that waits for the test at each step. Clones are the same one.
#[derive(Clone, Default)]
pub struct FakeTools(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    begun: Vec<Begun>,
    slow_to_give_up: Option<CancellationToken>,
}

impl FakeTools {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can panic half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests were begun.
    pub fn begun(&self) -> usize {
        self.lock().begun.len()
    }

    /// What the request of this number is for.
    pub fn asked(&self, number: usize) -> (Tool, Wishes) {
        let state = self.lock();
        let begun = state.begun.get(number).expect("the request was begun");
        (begun.tool, begun.wishes.clone())
    }

    /// True when nobody wants the request of this number any more.
    pub fn is_given_up(&self, number: usize) -> bool {
        self.lock().begun.get(number).is_some_and(|begun| begun.cancel.is_cancelled())
    }

    /// Requests that are given up from now on take until the answer is cancelled to clean up.
    pub fn slow_to_give_up(&self) -> CancellationToken {
        self.lock().slow_to_give_up.get_or_insert_default().clone()
    }

    /// The request of this number tells progress.
    pub fn tell(&self, number: usize, percent: Option<u8>, message: &str) {
        self.next(number, Next::Tell(Progress { percent, message: message.to_owned() }));
    }

    /// It finds a codex that can listen.
    pub fn find(&self, number: usize) {
        let found = Provided { path: "/opt/codex".into(), version: "0.142.5".into(), can_listen: true };
        self.next(number, Next::Find(found));
    }

    /// It fails.
    pub fn fail(&self, number: usize, why: &str) {
        self.next(number, Next::Fail(why.to_owned()));
    }

    /// It panics.
    pub fn panic(&self, number: usize) {
        self.next(number, Next::Panic);
    }

    fn next(&self, number: usize, next: Next) {
        let state = self.lock();
        let begun = state.begun.get(number).expect("the request was begun");
        begun.next.send(next).expect("the request is under way");
    }
}

#[async_trait]
impl Provision for FakeTools {
    async fn provide(
        &self,
        _: &dyn Host,
        tool: Tool,
        wishes: &Wishes,
        tell: Tell<'_>,
        cancel: &CancellationToken,
    ) -> Result<Provided, ProvisionError> {
        let (next, mut steps) = mpsc::unbounded_channel();
        self.lock().begun.push(Begun { tool, wishes: wishes.clone(), next, cancel: cancel.clone() });
        loop {
            let step = tokio::select! {
                biased;
                () = cancel.cancelled() => None,
                step = steps.recv() => step,
            };
            match step {
                Some(Next::Tell(progress)) => tell(progress),
                Some(Next::Find(found)) => return Ok(found),
                Some(Next::Fail(why)) => {
                    return Err(HostError::Program { program: tool.to_string(), why }.into());
                }
                Some(Next::Panic) => panic!("injected panic of a provision"),
                None => {
                    let slow = self.lock().slow_to_give_up.clone();
                    if let Some(slow) = slow {
                        slow.cancelled().await;
                    }
                    return Err(ProvisionError::Cancelled(tool));
                }
            }
        }
    }
}
