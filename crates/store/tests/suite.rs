//! Each backend against the one contract.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use optio_store::ManualClock;
use optio_store::suite::{Harness, no_journal};

mod support;

mod embedded {
    use super::*;
    use optio_store::embedded::{Embedded, Options};

    async fn make() -> Harness {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new());
        let options = Options { clock: clock.clone(), ..Options::default() };
        let store = Embedded::open(&dir.path().join("store"), options).unwrap().store(no_journal());
        Harness { store, clock, keep: Box::new(dir) }
    }

    optio_store::store_suite!(make);
}

mod memory {
    use super::*;
    use optio_store::memory::MemoryStore;

    async fn make() -> Harness {
        let clock = Arc::new(ManualClock::new());
        let store = MemoryStore::with_clock(clock.clone()).store(no_journal());
        Harness { store, clock, keep: Box::new(()) }
    }

    optio_store::store_suite!(make);
}

mod mongo {
    use super::*;

    async fn make() -> Harness {
        support::harness(Arc::new(ManualClock::new()), Default::default()).await
    }

    optio_store::store_suite!(make);
}

mod sealed_mongo {
    use super::*;
    use optio_store::mongo::Options;

    async fn make() -> Harness {
        let sealed = Options { encrypt: true, ..Options::default() };
        support::harness(Arc::new(ManualClock::new()), sealed).await
    }

    optio_store::store_suite!(make);
}

/// The wrapper does not change what it is not told to change.
mod faulty {
    use super::*;
    use optio_store::faulty::FaultyStore;
    use optio_store::memory::MemoryStore;

    async fn make() -> Harness {
        let clock = Arc::new(ManualClock::new());
        let store = FaultyStore::new(MemoryStore::with_clock(clock.clone()).store(no_journal())).store();
        Harness { store, clock, keep: Box::new(()) }
    }

    optio_store::store_suite!(make);
}
