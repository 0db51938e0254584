//! The thread that owns the database.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot};

use super::OPERATION_LIMIT;
use crate::health::HealthNote;
use crate::local::unavailable;
use crate::{Result, StoreError};

/// Requests that may wait. At a fraction of a millisecond each, a longer queue could not be served within
/// [`OPERATION_LIMIT`] on a slow disk; whoever does not fit waits to enter, under the same limit.
const QUEUE: usize = 1024;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle on the thread. The thread ends, and lets the directory go, when the last handle is gone.
pub(super) struct Db {
    jobs: mpsc::Sender<Job>,
    /// How the requests went.
    pub(super) health: HealthNote,
}

/// Why a request failed: SQLite, or the rules.
#[derive(Debug)]
pub(super) enum Failure {
    /// SQLite said so.
    Sql(rusqlite::Error),
    /// We said so.
    Store(StoreError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Failure {
    /// The error for the caller, who tried `what`.
    pub(super) fn named(self, what: &'static str) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Sql(error) => match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(&error),
                Some(_) => unavailable(what, error),
                None => damaged(&error),
            },
        }
    }
}

fn damaged(error: &rusqlite::Error) -> StoreError {
    StoreError::Damaged { what: "database".to_owned(), why: error.to_string() }
}

impl Db {
    /// Starts the thread. It keeps `lock` until it has closed the database.
    pub(super) fn start(mut connection: Connection, lock: File) -> Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        let serve = move || {
            while let Some(job) = queue.blocking_recv() {
                // An open transaction rolls back as it is unwound, and the caller sees its reply dropped.
                if catch_unwind(AssertUnwindSafe(|| job(&mut connection))).is_err() {
                    tracing::error!("a database request panicked");
                }
            }
            drop(connection);
            drop(lock);
        };
        std::thread::Builder::new()
            .name("store-db".to_owned())
            .spawn(serve)
            .map_err(|e| unavailable("starting the database thread", e))?;
        Ok(Self { jobs, health: HealthNote::new() })
    }

    /// Runs a request on the thread. One whose caller has gone away before its turn is dropped without being run.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        request: impl FnOnce(&mut Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            if reply.is_closed() {
                return;
            }
            let result = request(connection).map_err(|failure| failure.named(what));
            if reply.send(result).is_err() {
                tracing::debug!(what, "nobody waits for the answer any more");
            }
        });
        let answered = async {
            self.jobs.send(job).await.map_err(|e| unavailable(what, e))?;
            answer.await.map_err(|_| unavailable(what, "the request broke off"))?
        };
        let limit = OPERATION_LIMIT;
        let answered = tokio::time::timeout(limit, answered).await;
        let result = answered.unwrap_or(Err(StoreError::TimedOut { what, limit }));
        self.health.note(&result);
        result
    }
}
