//! Rotated logins on their way home while a session is live.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use optio_actors::faults::FaultKind;
use optio_actors::supervision::ChildKind;
use optio_actors::testing::World;
use serde_json::json;
use tokio::time::Instant;

// The look without being woken comes every 5 s, which is too late for a login whose predecessor is spent.
#[actix::test]
async fn a_login_that_rotates_during_a_save_is_saved_right_after_it() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed } })).await;
    for _ in 0..4 {
        world.faults.arm(ChildKind::CredWatcher, "store", FaultKind::Delay { ms: 1000 }, 1);
        world.rotate(&id);
        world.until("the save", async || world.faults.armed() == 0).await;
        let newest = world.rotate(&id);
        let rotated = Instant::now();
        world.until("the next save", async || world.memory.credential(&seed).as_ref() == Some(&newest)).await;
        assert!(rotated.elapsed() < Duration::from_millis(1500), "it took {:?}", rotated.elapsed());
        // The looks of every 5 s fall on other moments of each round.
        tokio::time::sleep(Duration::from_millis(2300)).await;
    }
    world.stop(&id).await;
    world.check().await;
}
