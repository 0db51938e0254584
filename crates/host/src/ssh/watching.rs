//! Not built yet.

use std::sync::Arc;

use super::shells::Shells;
use crate::{RelPath, Result, TaskDir, Watch};

pub(super) struct FarWatch;

#[allow(unused_variables)]
impl FarWatch {
    pub(super) fn new(shells: Arc<dyn Shells>) -> Self {
        Self
    }
    pub(super) async fn watch(&self, dir: &TaskDir, path: &RelPath) -> Result<Watch> {
        unimplemented!()
    }
}
