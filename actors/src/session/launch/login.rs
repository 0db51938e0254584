//! The login of a run: leased, planted, and watched from then on.

use bytes::Bytes;
use optio_codex_protocol::auth;
use optio_codex_protocol::config::{Mode, SeedChoice};
use optio_codex_protocol::{config_toml, workdir};
use optio_host::HostError;
use optio_store::{SeedFiles, SeedId, Want};
use serde_json::json;

use super::{LaunchError, Launching, ask, in_workdir};
use crate::cred_watcher::{Baseline, WatchLogin, Watched};
use crate::lease_renewer::AcquireLease;
use crate::login::account_of;

/// Largest config file that is edited.
const CONFIG_LIMIT: u64 = 1 << 20;

impl Launching {
    /// Leases the seed and plants its login, before anything of the agent exists.
    pub(super) async fn login(&self) -> Result<(), LaunchError> {
        let Some(want) = self.wanted_seed()? else {
            // Codex's own screen asks about a directory that it does not trust, before it takes any input.
            return match self.run.ledger.read(|record| record.config.mode()) {
                Mode::Terminal => self.edit_config().await,
                Mode::Conversation => Ok(()),
            };
        };
        // A holder on record finds a lease whose answer was lost.
        self.save().await?;
        let lease = ask("the lease renewer", self.crew.renewer.send(AcquireLease { want })).await??;
        self.run.ledger.edit(|record| {
            if let Some(run) = &mut record.run {
                run.seed = Some(lease.seed.clone());
                run.lease_expires_at = Some(lease.expires_at);
            }
        });
        self.save().await?;
        self.run.events.tell("seed.leased", &json!({ "seed": lease.seed, "expires_at": lease.expires_at }));
        self.plant(lease.seed).await
    }

    fn wanted_seed(&self) -> Result<Option<Want>, LaunchError> {
        let (choice, former) = self.run.ledger.read(|record| {
            (record.config.seed().cloned(), record.run.as_ref().and_then(|run| run.former_seed.clone()))
        });
        // A resumed run leases the seed it had (T-207).
        match (former, choice) {
            (Some(seed), _) => Ok(Some(Want::Seed(seed))),
            (None, Some(SeedChoice::Pool(pool))) => Ok(Some(Want::Pool(pool))),
            (None, Some(SeedChoice::Id(id))) => match id.parse::<SeedId>() {
                Ok(id) => Ok(Some(Want::Seed(id))),
                Err(problem) => Err(LaunchError::Unusable(problem.to_string())),
            },
            (None, None) => Ok(None),
        }
    }

    async fn plant(&self, seed: SeedId) -> Result<(), LaunchError> {
        let (host, dir) = (&self.run.host, &self.run.dir);
        let (files, version) = self.run.store.seeds.load(&seed).await?;
        let resumed = self.run.ledger.read(|r| r.run.as_ref().is_some_and(|run| run.resumed_from.is_some()));
        for (name, bytes) in &files.0 {
            // Over a restored tree only the login is planted: the rest of it is the session's own by now (T-207).
            if resumed && name != SeedFiles::AUTH {
                continue;
            }
            host.write(dir, &in_workdir(&format!("{}/{name}", workdir::HOME))?, bytes.clone(), 0o600).await?;
        }
        self.edit_config().await?;
        let login = files.0.get(SeedFiles::AUTH).cloned().unwrap_or_default();
        let account_id = account_of(&auth::read(&login)).id;
        let baseline = Baseline { version, fingerprint: auth::fingerprint(&login), account_id };
        let holder = self.run.ledger.edit(|record| {
            let run = record.run.as_mut().expect("a session actor exists only for a run on record");
            run.baseline = Some(baseline.clone());
            run.holder.clone()
        });
        self.save().await?;
        let watched = Watched { seed, holder, baseline, may_save: true };
        ask("the watcher", self.crew.watcher.send(WatchLogin(watched))).await
    }

    /// Trusts the workdir and keeps the login in its file, where it is watched (S-506, T-124).
    async fn edit_config(&self) -> Result<(), LaunchError> {
        let (host, dir) = (&self.run.host, &self.run.dir);
        let path = in_workdir(workdir::CONFIG_TOML)?;
        let before = match host.read(dir, &path, CONFIG_LIMIT).await {
            Ok(bytes) => bytes,
            Err(HostError::NotFound { .. }) => Bytes::new(),
            Err(problem) => return Err(problem.into()),
        };
        let edited = config_toml::validate(&before)
            .and_then(|text| config_toml::pre_trust(text, &dir.workdir().display().to_string()))
            .and_then(|text| config_toml::force_file_credentials(&text))
            .map_err(|problem| LaunchError::Unusable(problem.to_string()))?;
        Ok(host.write(dir, &path, Bytes::from(edited), 0o600).await?)
    }
}
