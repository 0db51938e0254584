//! How the driver is set up.

use std::time::Duration;

use mongodb::options::{
    Acknowledgment, ClientOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern,
};

use super::{OPERATION_LIMIT, call};
use crate::{Result, StoreError};

/// How long the driver looks for a server. Shorter than [`OPERATION_LIMIT`], so that an outage has the driver's words
/// for what is wrong.
const SELECTION_LIMIT: Duration = Duration::from_secs(5);
/// Connections to one server: more than there are operations at once with a few hundred sessions.
const CONNECTIONS: u32 = 32;

/// What every operation of ours has in common: writes that survive a failover, reads that cannot be older than they
/// (T-044, T-102), and no wait without an end.
pub(super) async fn client_options(connection: &str) -> Result<ClientOptions> {
    let parsing = async { ClientOptions::parse(connection).await };
    // A mongodb+srv:// asks the network for its hosts.
    let parsed = tokio::time::timeout(OPERATION_LIMIT, parsing).await;
    let what = "resolving the connection string";
    let parsed = parsed.map_err(|_| StoreError::TimedOut { what, limit: OPERATION_LIMIT })?;
    let mut options = parsed.map_err(|error| call::refused(connection, &error))?;
    options.app_name = Some("optio-codex".to_owned());
    options.connect_timeout = Some(SELECTION_LIMIT);
    options.server_selection_timeout = Some(SELECTION_LIMIT);
    options.max_pool_size = Some(CONNECTIONS);
    options.retry_reads = Some(true);
    options.retry_writes = Some(true);
    options.read_concern = Some(ReadConcern::majority());
    options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
    let write = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).w_timeout(OPERATION_LIMIT);
    options.write_concern = Some(write.build());
    Ok(options)
}
