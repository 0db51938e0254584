//! Skeleton.
/// Skeleton.
#[derive(Debug)] pub struct LocalHost;
/// Skeleton.
#[derive(Debug)] pub struct LocalHostConfig;
