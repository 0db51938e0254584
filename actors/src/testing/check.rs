//! What must hold in a world, whatever was done to it.

use optio_codex_protocol::auth;
use optio_host::AgentState;
use optio_store::{PageRequest, Records, SeedRow, SeedStatus, Seeds, SessionId, Spool};

use super::World;
use crate::session::phase::Phase;
use crate::session::record::SessionRecord;
use crate::teardown::{Outcome, Step};
use crate::trace::violations;

impl World {
    /// Asserts that nothing that must hold is broken; to be asked when every session is at rest.
    pub async fn check(&self) {
        let wrong = self.wrong().await;
        assert!(wrong.is_empty(), "{wrong:#?}\n{}", self.story());
    }

    /// What does not hold, in words.
    pub async fn wrong(&self) -> Vec<String> {
        let mut wrong = violations(&self.deeds());
        let page = PageRequest { cursor: None, limit: PageRequest::MAX };
        let seeds = Seeds::list(&self.memory, None, &page).await.expect("the fake itself does not fail").data;
        let sessions: Vec<SessionId> = self.sessions();
        let mut alive = 0;
        for id in &sessions {
            let record = self.record(id).await;
            let state = self.host.agent_state(&self.dir(id));
            alive += usize::from(matches!(state, AgentState::Running(_)));
            wrong.extend(self.wrong_with(&record, &state, &seeds));
        }
        for seed in &seeds {
            wrong.extend(self.wrong_with_login(seed, &sessions).await);
        }
        let running = self.host.agents_running();
        let piped = sessions.len();
        if running > alive + piped || (running > 0 && self.all_ended(&sessions).await) {
            wrong.push(format!("{running} agents run, {alive} of them under a guard"));
        }
        wrong
    }

    /// Every session that was ever launched and is on record.
    pub fn sessions(&self) -> Vec<SessionId> {
        let mut sessions: Vec<_> = self.deeds().into_iter().map(|traced| traced.session).collect();
        sessions.sort();
        sessions.dedup();
        sessions
    }

    /// A session's record as it is stored.
    pub async fn record(&self, id: &SessionId) -> SessionRecord {
        let row = Records::get(&self.memory, id).await.expect("the fake itself does not fail");
        SessionRecord::read(&row.expect("the session is on record")).expect("records are sound")
    }

    async fn all_ended(&self, sessions: &[SessionId]) -> bool {
        for id in sessions {
            if self.record(id).await.phase != Phase::Ended {
                return false;
            }
        }
        true
    }

    fn wrong_with(&self, record: &SessionRecord, agent: &AgentState, seeds: &[SeedRow]) -> Vec<String> {
        let mut wrong = Vec::new();
        let id = &record.id;
        let over = matches!(record.phase, Phase::Ended | Phase::Lost);
        let on_disk = !self.host.files(self.dir(id).path()).is_empty();
        if record.phase == Phase::Ended {
            if matches!(agent, AgentState::Running(_)) {
                wrong.push(format!("{id} has ended and its agent runs"));
            }
            if on_disk != record.workdir_kept.is_some() {
                let said = &record.workdir_kept;
                wrong.push(format!("{id}: files on disk: {on_disk}, workdir kept: {said:?}"));
            }
        }
        if over && record.reason.as_deref().unwrap_or_default().is_empty() {
            wrong.push(format!("{id} is over and does not say why"));
        }
        let progress = record.progress();
        let well = |step| progress.get(&step).is_some_and(Outcome::is_settled_well);
        let Some(run) = &record.run else { return wrong };
        let Some(row) = seeds.iter().find(|row| Some(&row.id) == run.seed.as_ref()) else {
            return wrong;
        };
        let holds = row.lease.as_ref().is_some_and(|lease| lease.holder == run.holder);
        if over && well(Step::ReleaseLease) && holds {
            wrong.push(format!("{id} says it released its seed, and still has it"));
        }
        if over && !(well(Step::SaveBack) && well(Step::StopAgent)) && !run.lease_lost {
            if !holds && !progress.is_empty() {
                wrong.push(format!("{id} let its seed go without proof or save-back: {progress:?}"));
            }
            if row.status != SeedStatus::NeedsRecovery {
                wrong.push(format!("{id} did not park its seed: {progress:?}"));
            }
        }
        wrong
    }

    /// The newest login an agent wrote, or the one that the login server gave for it since, is in the store, or in the
    /// spool; else it still lies in a workdir, and then nobody may be handed the old one.
    async fn wrong_with_login(&self, seed: &SeedRow, sessions: &[SessionId]) -> Option<String> {
        let newest = self.agents.newest_login(seed.account.id.as_deref().unwrap_or_default())?;
        let token = self.login_server.newest(&auth::refresh_token(&newest)?);
        let holds = |auth_json: &[u8]| auth::refresh_token(auth_json).is_some_and(|found| found == token);
        if self.memory.credential(&seed.id).is_some_and(|stored| holds(&stored)) {
            return None;
        }
        let entries = self.memory.entries().await.expect("the fake itself does not fail");
        let spooled = entries.iter().any(|(_, entry)| entry.as_ref().is_ok_and(|e| holds(&e.auth_json)));
        let acquirable = seed.status == SeedStatus::Alive && seed.lease.is_none();
        if acquirable {
            return Some(format!(
                "seed {} may be handed out with an old login (spooled: {spooled})",
                seed.id
            ));
        }
        let file = |id: &SessionId| self.host.file(&self.dir(id).workdir().join("home/.codex/auth.json"));
        let on_disk = sessions.iter().any(|id| file(id).is_some_and(|found| holds(&found)));
        (!spooled && !on_disk).then(|| format!("the newest login of seed {} is lost", seed.id))
    }
}
