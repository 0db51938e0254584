//! Not built yet.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::shells::Shells;
use crate::{ByteStream, FileInfo, FilePart, RelPath, Result, TaskDir};

pub(super) struct FarFiles;

#[allow(unused_variables)]
impl FarFiles {
    pub(super) fn new(shells: Arc<dyn Shells>) -> Self {
        Self
    }
    pub(super) async fn create(&self, dir: &TaskDir, socket: &Path) -> Result<()> {
        unimplemented!()
    }
    pub(super) async fn exists(&self, dir: &TaskDir) -> Result<bool> {
        unimplemented!()
    }
    pub(super) async fn cleanup(&self, dir: &TaskDir, socket: &Path) -> Result<()> {
        unimplemented!()
    }
    pub(super) async fn read(&self, dir: &TaskDir, path: &RelPath, limit: u64) -> Result<Bytes> {
        unimplemented!()
    }
    pub(super) async fn read_from(
        &self,
        dir: &TaskDir,
        path: &RelPath,
        offset: u64,
        limit: usize,
    ) -> Result<FilePart> {
        unimplemented!()
    }
    pub(super) async fn write(&self, dir: &TaskDir, path: &RelPath, bytes: Bytes, mode: u32) -> Result<()> {
        unimplemented!()
    }
    pub(super) async fn append(&self, dir: &TaskDir, path: &RelPath, bytes: Bytes) -> Result<()> {
        unimplemented!()
    }
    pub(super) async fn rename(&self, dir: &TaskDir, from: &RelPath, to: &RelPath) -> Result<()> {
        unimplemented!()
    }
    pub(super) async fn remove(&self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        unimplemented!()
    }
    pub(super) async fn make_dir(&self, dir: &TaskDir, path: &RelPath) -> Result<()> {
        unimplemented!()
    }
    pub(super) async fn link(&self, dir: &TaskDir, path: &RelPath, target: &Path) -> Result<()> {
        unimplemented!()
    }
    pub(super) async fn info(&self, dir: &TaskDir, path: &RelPath) -> Result<Option<FileInfo>> {
        unimplemented!()
    }
    pub(super) async fn list(&self, dir: &TaskDir, path: &RelPath, limit: usize) -> Result<Vec<RelPath>> {
        unimplemented!()
    }
    pub(super) async fn write_stream(&self, path: &Path, stream: ByteStream, mode: u32) -> Result<u64> {
        unimplemented!()
    }
}
