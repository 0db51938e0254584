//! A machine behind a real sshd keeps the same contract as any other.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod sshd;

use std::sync::Arc;

use optio_host::Host;
use sshd::Sshd;

async fn fresh() -> (Arc<dyn Host>, Sshd) {
    let Some(server) = Sshd::start() else {
        // The reason was printed; a test of the suite cannot end early by itself.
        std::process::exit(0);
    };
    (Arc::new(server.host()), server)
}

optio_host::host_suite!(crate::fresh: files programs watching archives guarding);
