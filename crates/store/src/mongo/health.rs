//! Whether the database answers.

use async_trait::async_trait;
use mongodb::bson::doc;

use super::{CHECK_LIMIT, Mongo};
use crate::{Health, StoreHealth};

#[async_trait]
impl Health for Mongo {
    fn state(&self) -> StoreHealth {
        self.core.health.state()
    }

    async fn check(&self) -> StoreHealth {
        let limit = CHECK_LIMIT.min(self.core.limit);
        let ask = async { Ok(self.core.db.run_command(doc! { "ping": 1 }).await?) };
        if let Err(error) = self.core.limited("asking the store", limit, ask).await {
            tracing::debug!(%error, "the store does not answer");
        }
        self.state()
    }
}
