//! A machine behind a real sshd keeps the same contract as any other.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod sshd;

use std::sync::Arc;

use optio_host::Host;
use sshd::Sshd;

async fn fresh() -> (Arc<dyn Host>, Sshd) {
    let server = Sshd::start().unwrap();
    (Arc::new(server.host()), server)
}

optio_host::host_suite!(crate::fresh: programs);
