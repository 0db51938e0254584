//! Not built yet.

use std::path::PathBuf;

use async_trait::async_trait;
use tokio::sync::watch;

use super::shells::{Lane, Shells};
use crate::{Command, Dial, Duplex, Output, Pty, Reach, Result, Size, Spawned};

pub(super) struct Link;

#[async_trait]
impl Shells for Link {
    fn name(&self) -> &str {
        unimplemented!()
    }
    async fn spawn(&self, _: Lane, _: Command) -> Result<Spawned> {
        unimplemented!()
    }
}

impl Link {
    pub(super) fn reach(&self) -> watch::Receiver<Reach> {
        unimplemented!()
    }
    pub(super) async fn connect(&self) -> Result<()> {
        unimplemented!()
    }
    pub(super) async fn accept_host_key(&self, _: &str) -> Result<()> {
        unimplemented!()
    }
    pub(super) async fn home(&self) -> Result<PathBuf> {
        unimplemented!()
    }
    pub(super) async fn run(&self, _: Command) -> Result<Output> {
        unimplemented!()
    }
    pub(super) async fn open_pty(&self, _: Command, _: Size) -> Result<Pty> {
        unimplemented!()
    }
    pub(super) async fn dial(&self, _: &Dial) -> Result<Box<dyn Duplex>> {
        unimplemented!()
    }
}
