//! Every host keeps the same contract.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use optio_host::fake::FakeHost;
use optio_host::{Host, LocalHost, LocalHostConfig, suite};

async fn fresh_local() -> (Arc<dyn Host>, tempfile::TempDir) {
    let temp = tempfile::tempdir().unwrap();
    let config = LocalHostConfig {
        task_root: Some(temp.path().join("tasks")),
        socket_root: Some(temp.path().join("sockets")),
    };
    (Arc::new(LocalHost::new(config).unwrap()), temp)
}

async fn fresh_fake() -> (Arc<dyn Host>, ()) {
    let fake = FakeHost::new();
    fake.on_program(suite::play);
    (Arc::new(fake), ())
}

mod local {
    optio_host::host_suite!(crate::fresh_local: files programs watching archives guarding);
}

mod fake {
    optio_host::host_suite!(crate::fresh_fake: files programs watching archives guarding);
}
