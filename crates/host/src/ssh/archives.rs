//! Not built yet.

use std::sync::Arc;

use super::shells::Shells;
use crate::{ByteStream, Codec, Excludes, Result, TaskDir};

#[allow(unused_variables)]
pub(super) async fn pack(
    shells: Arc<dyn Shells>,
    dir: &TaskDir,
    excludes: Excludes,
    codec: Codec,
) -> Result<ByteStream> {
    unimplemented!()
}

#[allow(unused_variables)]
pub(super) async fn restore(
    shells: Arc<dyn Shells>,
    dir: &TaskDir,
    stream: ByteStream,
    codec: Codec,
) -> Result<()> {
    unimplemented!()
}
