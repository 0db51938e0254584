//! The threads on which connections live.

use std::future::Future;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

use crate::error::{HostError, Result};

/// Threads for all connections of the process: one may be busy with the ciphers of an upload while the other answers.
const THREADS: usize = 2;

/// Runs work where connections live: apart from the arbiters of sessions, which come and go and must not encrypt. Goes
/// on when the caller stops waiting; what it answers then is dropped there.
pub(super) async fn run<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T> {
    match runtime()?.spawn(work).await {
        Ok(done) => Ok(done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(HostError::io("work on a connection", std::io::Error::other("it was cancelled"))),
        },
    }
}

/// Starts work that nobody waits for, if there are threads for it.
pub(super) fn start(work: impl Future<Output = ()> + Send + 'static) {
    match runtime() {
        Ok(runtime) => drop(runtime.spawn(work)),
        Err(error) => tracing::error!(%error, "work on a connection could not be started"),
    }
}

/// Never ends: it lives as long as the process, since hosts may be made and dropped at any time.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        Builder::new_multi_thread().worker_threads(THREADS).thread_name("ssh").enable_all().build()
    });
    made.as_ref().map_err(|error| {
        HostError::io("start the threads for SSH", std::io::Error::new(error.kind(), error.to_string()))
    })
}
