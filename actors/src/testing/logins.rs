//! The seeds of a world: stored, rotated, and taken away.

use std::collections::BTreeMap;

use bytes::Bytes;
use optio_codex_protocol::auth;
use optio_store::memory::SeedEvent;
use optio_store::{
    Holder, Leases, NewSeed, SeedFiles, SeedId, SeedRow, Seeds, SessionId, Spool, SpoolEntry, Want,
};

use super::{World, login};
use crate::login::account_of;

impl World {
    /// Stores the login of a new account as a seed.
    pub async fn seed(&self, account: &str) -> SeedId {
        self.seed_in(account, None).await
    }

    /// The same, in a pool.
    pub async fn seed_in(&self, account: &str, pool: Option<&str>) -> SeedId {
        let auth_json = login(account, 1);
        let account = account_of(&auth::read(&auth_json));
        let files = SeedFiles(BTreeMap::from([(SeedFiles::AUTH.to_owned(), auth_json)]));
        let seed = NewSeed { files, account, pool: pool.map(str::to_owned), metadata: Default::default() };
        self.memory.import(seed).await.expect("a seed of a new account is taken").id
    }

    /// Replaces a session's login on disk, as its agent would.
    pub fn rotate(&self, id: &SessionId) -> Bytes {
        self.agents.rotate(&self.host, &self.dir(id).workdir().join("home/.codex"))
    }

    /// Takes a seed's lease away from whoever has it, as an operator or a bug might, and answers the new holder.
    pub async fn steal(&self, seed: &SeedId) -> Holder {
        let thief = Holder::mint_for("thief");
        if let Some(holder) = self.memory.holder(seed) {
            self.memory.release(seed, &holder).await.expect("the fake itself does not fail");
        }
        let lease = self.memory.acquire(&Want::Seed(seed.clone()), &thief).await;
        lease.expect("the fake itself does not fail").expect("a seed that was let go is free");
        thief
    }

    /// The seed as it is stored.
    pub async fn seed_row(&self, seed: &SeedId) -> SeedRow {
        let row = Seeds::get(&self.memory, seed).await.expect("the fake itself does not fail");
        row.expect("the seed is stored")
    }

    /// What this holder did to seeds, in order.
    pub fn deeds_of(&self, holder: &Holder) -> Vec<SeedEvent> {
        let log = self.memory.log().into_iter();
        log.filter(|logged| logged.holder.as_ref() == Some(holder)).map(|logged| logged.event).collect()
    }

    /// The holder of a session's present or last run.
    pub async fn holder(&self, id: &SessionId) -> Holder {
        self.record(id).await.run.expect("the session has a run").holder
    }

    /// Waits until a run's lease was renewed once more.
    pub async fn renewal(&self, holder: &Holder) {
        let renewals =
            || self.deeds_of(holder).into_iter().filter(|event| *event == SeedEvent::Renewed).count();
        let before = renewals();
        self.until("a renewal", async || renewals() > before).await;
    }

    /// The logins in the spool, oldest first.
    pub async fn spooled(&self) -> Vec<SpoolEntry> {
        let entries = self.memory.entries().await.expect("the fake itself does not fail");
        entries.into_iter().map(|(_, entry)| entry.expect("entries of this world are sound")).collect()
    }
}
