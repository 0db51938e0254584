//! How an operation is run: under a limit of ours, with its error in our words and its outcome on the health note.

use std::future::Future;
use std::time::Duration;

use mongodb::error::{Error, ErrorKind, RETRYABLE_WRITE_ERROR, WriteFailure};

use super::Core;
use crate::local::invalid;
use crate::{Result, StoreError};

/// How often what may be done twice is done when the network fails. The driver's own second try is within each.
const TRIES: u32 = 3;
/// Pause before the next try; long enough for a connection to be made, short beside the limit.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
/// Most characters of the driver's words in an error of ours.
const WORDS: usize = 400;
/// Codes of a server that has an index of these keys with other options, or of this name with other keys.
const INDEX_CONFLICTS: [i32; 2] = [85, 86];
/// Code of a unique key that is there already.
const DUPLICATE: i32 = 11_000;

/// Why an operation failed: the driver, or the rules.
#[derive(Debug)]
pub(super) enum Failure {
    /// The driver said so.
    Driver(Box<Error>),
    /// We said so.
    Store(StoreError),
}

/// What a step of an operation answers.
pub(super) type Tried<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Driver(Box::new(error))
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
            Self::Driver(error) => match *error.kind {
                ErrorKind::Bson(ref error) => {
                    StoreError::Damaged { what: "document".to_owned(), why: words(error) }
                }
                ref kind => StoreError::Unavailable { what, why: words(kind) },
            },
        }
    }
}

impl Core {
    /// Runs an operation for at most `limit`. What does not answer by then may still happen.
    pub(super) async fn limited<T>(
        &self,
        what: &'static str,
        limit: Duration,
        work: impl Future<Output = Tried<T>>,
    ) -> Result<T> {
        // On the heap: the futures of composed operations are large, and there are hundreds of them.
        let result = match tokio::time::timeout(limit, Box::pin(work)).await {
            Ok(done) => done.map_err(|failure| failure.named(what)),
            Err(_) => Err(StoreError::TimedOut { what, limit }),
        };
        self.health.note(&result);
        result
    }
}

/// Does what may be done twice, and does it again when the network failed.
pub(super) async fn again<T, F>(mut work: impl FnMut() -> F) -> Tried<T>
where
    F: Future<Output = mongodb::error::Result<T>>,
{
    for _ in 1..TRIES {
        match work().await {
            Err(error) if is_passing(&error) => {
                tracing::debug!(error = %error.kind, "trying again");
                tokio::time::sleep(PAUSE).await;
            }
            done => return Ok(done?),
        }
    }
    Ok(work().await?)
}

/// Whether another try may go better at once. Not when no server could be found: the driver has waited for one.
pub(super) fn is_passing(error: &Error) -> bool {
    match *error.kind {
        ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. } => true,
        // Done, but not by the majority yet. Doing it again changes nothing and waits for the majority again.
        ErrorKind::Write(WriteFailure::WriteConcernError(_)) => true,
        _ => error.contains_label(RETRYABLE_WRITE_ERROR),
    }
}

/// Whether a unique key is there already.
pub(super) fn is_duplicate(error: &Error) -> bool {
    code(error) == Some(DUPLICATE)
}

/// Whether an index is there with other options or under another name.
pub(super) fn is_index_conflict(error: &Error) -> bool {
    code(error).is_some_and(|code| INDEX_CONFLICTS.contains(&code))
}

fn code(error: &Error) -> Option<i32> {
    match &*error.kind {
        ErrorKind::Command(error) => Some(error.code),
        ErrorKind::Write(WriteFailure::WriteError(error)) => Some(error.code),
        _ => None,
    }
}

/// The error for a connection string that the driver does not take. Its words are only used where the string holds no
/// password: some of them quote parts of it.
pub(super) fn refused(connection: &str, error: &Error) -> StoreError {
    let why = if connection.contains('@') {
        "the driver does not take it; it must be mongodb://USER:PASSWORD@HOST/DATABASE, with %40 and the like for \
         signs in a name or password, and only options that the driver knows"
            .to_owned()
    } else {
        words(&error.kind)
    };
    invalid("connection string", why)
}

fn words(error: &impl std::fmt::Display) -> String {
    error.to_string().chars().take(WORDS).collect()
}
