//! Skeleton.
use std::time::Duration;
/// Skeleton.
pub const OPERATION_LIMIT: Duration = Duration::from_secs(10);
