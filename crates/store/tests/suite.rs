//! Each backend against the one contract.

#![allow(clippy::unwrap_used, missing_docs)]

use std::pin::Pin;
use std::sync::Arc;

use optio_store::suite::{Harness, no_journal};
use optio_store::{ManualClock, SessionId};

mod support;

mod embedded {
    use super::*;
    use optio_store::embedded::{Embedded, Options};

    async fn make() -> Harness {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new());
        let options = Options { clock: clock.clone(), ..Options::default() };
        let path = dir.path().join("store");
        let store = Embedded::open(&path, options).unwrap().store(no_journal());
        let damage_record = Box::new(move |id: SessionId| -> Pin<Box<dyn Future<Output = ()>>> {
            let beside = rusqlite::Connection::open(path.join("optio.db")).unwrap();
            let damaged = beside.execute("UPDATE records SET body = x'00' WHERE id = ?1", [id.as_str()]);
            assert_eq!(damaged.unwrap(), 1);
            Box::pin(std::future::ready(()))
        });
        Harness { store, clock, damage_record, keep: Box::new(dir) }
    }

    optio_store::store_suite!(make);
}

mod memory {
    use super::*;
    use optio_store::memory::MemoryStore;

    async fn make() -> Harness {
        let clock = Arc::new(ManualClock::new());
        let memory = MemoryStore::with_clock(clock.clone());
        let store = memory.store(no_journal());
        Harness { store, clock, damage_record: support::damages(memory), keep: Box::new(()) }
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
        let memory = MemoryStore::with_clock(clock.clone());
        let store = FaultyStore::new(memory.store(no_journal())).store();
        Harness { store, clock, damage_record: support::damages(memory), keep: Box::new(()) }
    }

    optio_store::store_suite!(make);
}
