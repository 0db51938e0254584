//! Whether the disk takes rows.

use async_trait::async_trait;
use rusqlite::Connection;

use super::Embedded;
use crate::{Health, StoreHealth};

#[async_trait]
impl Health for Embedded {
    fn state(&self) -> StoreHealth {
        self.core.db.health.state()
    }

    /// Commits a row: a full or broken disk still reads, but takes nothing.
    async fn check(&self) -> StoreHealth {
        let now = self.now_ms();
        let write = move |c: &mut Connection| {
            c.execute(
                "INSERT OR REPLACE INTO meta (name, value) VALUES ('checked', ?1)",
                [now.to_be_bytes()],
            )?;
            Ok(())
        };
        if let Err(error) = self.core.db.run("checking the disk", write).await {
            tracing::debug!(%error, "the disk took no row");
        }
        self.state()
    }
}
