//! The way out when the login server cannot be asked: Codex itself is asked, once, with the login (T-242…T-250).
//!
//! ```text
//! home + note ─ INTENT + parked ─ login planted ─ codex, under its guard ─ ended, PROVEN GONE ─ its login read ─ spool, save
//!   ─ home wiped ─ VERDICT ─ release
//! ```
//!
//! Codex may rotate the login at any moment while it runs, and the only copy of what it got is in its home. So the lease is
//! renewed all the while, and the guard's switch with it: a codex whose lease cannot be renewed ends before somebody else
//! can have the seed. Without proof that it is gone nothing is read, nothing is wiped and nothing is released. Killed
//! between two steps:
//!
//! | after | what is left | what the next start does ([`left`]) |
//! |---|---|---|
//! | the note | an empty home | wipes it |
//! | the intent | the same, and the seed parked | takes the intent back: there never was a codex |
//! | codex was started | codex, until its guard ends it; the login in its home | ends it; brings home what it left |
//! | the spool | the new login twice | the spool brings it home, under the lease |
//! | the wipe | the seed parked, its newest login stored | nothing, a check asks: the mark says that nobody knows |
//!
//! Codex ended in the very second in which it refreshes loses what it got, as any agent does. Three minutes are long enough
//! for that to be no accident of ours: whoever hangs for so long never answers.

mod left;
mod note;
mod places;

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use optio_codex_protocol::auth;
use optio_codex_protocol::probe::{self, Heard};
use optio_codex_protocol::{argv, workdir};
use optio_host::provision::{Provided, Tool, Wishes};
use optio_host::{CodexBinary, EnvPlan, GuardSpec, Host, HostError, Stage};
use optio_oauth::{RefreshAnswer, Verdict, judge};
use optio_store::{SeedFiles, SeedVersion};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

pub(super) use left::{Finished, Left};
pub(super) use note::{Note, Parked};
use places::Taken;
pub use places::{PROBES, Probes};

use super::held::Held;
use super::save::Successor;
use crate::settings::{LEASED_KILL_AFTER, LEASED_TERM_AFTER, Settings};
use crate::teardown::Finish;
use crate::throw_away::{ThrowAway, in_workdir, path};

/// How long codex is waited for (S-245); a real answer takes seconds.
const PROBE_LIMIT: Duration = Duration::from_secs(180);

/// How often it is tried to end codex and to read what it left, and the wait between two tries. What then still fails has
/// an operator's attention.
const TRIES: (u32, Duration) = (3, Duration::from_secs(2));

/// How long one of these tries may take: longer than every patience in it together.
const TRY_LIMIT: Duration = Duration::from_secs(60);

/// Why a probe ended that was not over.
pub(super) const STOPPED: &str = "the service was stopped while codex was asked";

/// The note beside the home.
const NOTE: &str = "probe.json";

/// What codex said, beside the home.
const OUTPUT: &str = "probe.jsonl";

/// Bytes of it that are read; an answer has some hundred. More is no answer to this question.
const OUTPUT_LIMIT: u64 = 1 << 20;

/// How long a codex may take to be found or fetched: somebody waits for the verdict, and another check can ask again.
const CODEX_LIMIT: Duration = Duration::from_secs(30);

/// The codex that a session would have. Where one has to be fetched that takes longer than a check may, sessions get it.
async fn codex(settings: &Settings, host: &dyn Host) -> Result<CodexBinary, String> {
    let wishes = Wishes { program: settings.codex.clone(), install_if_missing: true, ..Wishes::default() };
    let cancel = CancellationToken::new();
    // Dropped at the limit, a download ends with it.
    let _fetching = cancel.clone().drop_guard();
    let providing = settings.provision.provide(host, Tool::Codex, &wishes, &|_| {}, &cancel);
    match timeout(CODEX_LIMIT, providing).await {
        Ok(Ok(Provided { path, version, can_listen })) => Ok(CodexBinary { path, version, can_listen }),
        Ok(Err(problem)) => Err(problem.to_string()),
        Err(_) => Err(format!("no codex could be had within {CODEX_LIMIT:?}")),
    }
}

/// A probe that has a home, and no login in it yet.
pub(super) struct Probe<'a> {
    settings: &'a Settings,
    held: &'a Held,
    place: Taken,
    codex: CodexBinary,
    files: &'a SeedFiles,
    planted: &'a Bytes,
    version: &'a SeedVersion,
}

impl<'a> Probe<'a> {
    /// Makes the home. An error says why codex cannot be asked; nothing is left then, or something empty.
    pub(super) async fn prepare(
        settings: &'a Settings,
        held: &'a Held,
        files: &'a SeedFiles,
        planted: &'a Bytes,
        note: &Note,
        version: &'a SeedVersion,
    ) -> Result<Self, String> {
        let own = files.0.get(SeedFiles::CONFIG).cloned().unwrap_or_default();
        if !probe::uses_login(&own) {
            return Err("its config.toml names a provider that does not use the login".to_owned());
        }
        let place = settings.probes.take(settings).map_err(|problem| problem.to_string())?;
        let place = place.ok_or("codex is asked about too many others")?;
        let home = &place.home;
        let codex = codex(settings, &*home.host).await?;
        let probe = Self { settings, held, codex, files, planted, version, place };
        match probe.place.home.make(NOTE, note).await {
            Ok(()) => Ok(probe),
            Err(problem) => {
                probe.give_up().await;
                Err(problem.to_string())
            }
        }
    }

    /// Removes a home in which nothing was ever started.
    pub(super) async fn give_up(self) {
        wipe(&self.place.home).await;
    }

    /// Asks, ends codex, brings home what it left, and wipes the home. The intent is on record.
    pub(super) async fn ask(self, at: Timestamp) -> Verdict {
        info!(seed = %self.held.seed, "login server is out of reach, codex is asked about a login");
        // Never broken off half way: whatever it started must be there for the proof of its end to see.
        let ended = match self.start().await {
            Ok(()) => self.wait().await,
            Err(problem) => format!("codex could not be asked: {problem}"),
        };
        match self.bring_home(at, ended).await {
            Ok(verdict) => {
                wipe(&self.place.home).await;
                verdict
            }
            Err(why) => {
                warn!(seed = %self.held.seed, why, "home of a probe is kept");
                self.held.withhold();
                self.place.keep(&self.held.seed);
                Verdict::NeedsRecovery(why)
            }
        }
    }

    /// Plants the login, and starts codex. Each step has the host's own limit.
    async fn start(&self) -> Result<(), String> {
        let ThrowAway { host, dir } = &self.place.home;
        let told = |problem: HostError| problem.to_string();
        let plant =
            async |path, bytes: Bytes| host.write(dir, &in_workdir(path), bytes, 0o600).await.map_err(told);
        if let Some(settings) = self.files.0.get(SeedFiles::CONFIG) {
            plant(workdir::CONFIG_TOML, settings.clone()).await?;
        }
        plant(workdir::AUTH_JSON, self.planted.clone()).await?;
        if self.settings.probes.stopped().is_cancelled() {
            return Err(STOPPED.to_owned());
        }
        // The switch that ends codex is set now; the lease must last as long.
        self.held.renew().await?;
        host.guard_start(dir, self.spec()).await.map(drop).map_err(told)
    }

    /// Waits for the end of codex, or for a reason to end it. Says what it was.
    async fn wait(&self) -> String {
        tokio::select! {
            () = self.place.home.end_of_codex() => "codex ended without an answer".to_owned(),
            () = sleep(PROBE_LIMIT) => format!("codex gave no answer within {} seconds", PROBE_LIMIT.as_secs()),
            () = self.held.lost() => "the lease was lost while codex was asked".to_owned(),
            () = self.settings.probes.stopped().cancelled() => STOPPED.to_owned(),
            never = self.keep_running() => match never {},
        }
    }

    fn spec(&self) -> GuardSpec {
        let ThrowAway { dir, .. } = &self.place.home;
        let cwd = dir.workdir();
        let output = dir.join(&path(OUTPUT)).display().to_string();
        let env = probe::environment(&cwd.display().to_string(), self.settings.refresh_url.as_deref());
        GuardSpec {
            argv: argv::probe(&self.codex.path.display().to_string(), &output),
            env: EnvPlan { remove: env.remove, add: env.add, path_prefix: Vec::new() },
            cwd,
            run_mark: format!("probe-{}", Uuid::new_v4().simple()),
            term_after: LEASED_TERM_AFTER,
            kill_after: LEASED_KILL_AFTER,
            stage: Stage::Headless,
        }
    }

    /// Puts the switch back each time the lease was renewed, and only then.
    async fn keep_running(&self) -> std::convert::Infallible {
        let mut renewals = self.held.renewals();
        loop {
            // The sender is in `held`, which outlives this.
            let _ = renewals.changed().await;
            if let Err(problem) = self.place.home.host.guard_heartbeat(&self.place.home.dir).await {
                warn!(seed = %self.held.seed, %problem, "heartbeat of a probe was not touched");
            }
        }
    }

    /// Ends codex, saves its login if it is another one, and says what was heard. An error says what is kept where.
    async fn bring_home(&self, at: Timestamp, ended: String) -> Result<Verdict, String> {
        let home = &self.place.home;
        let Remains { started, auth_json: found } = end(home).await?;
        if !started {
            return Ok(Verdict::Inconclusive(ended));
        }
        let heard = self.heard().await;
        let is_new = found.as_ref() != Some(self.planted);
        let Some(found) = found.filter(|found| auth::read(found).is_login()) else {
            // It writes the file over, and only when it got a new login: the stored one may be spent.
            return Ok(Verdict::Suspect("codex left a file that is no login".to_owned()));
        };
        if is_new {
            let successor = Successor { old: self.planted, version: self.version, new: found, at };
            match successor.save(&self.settings.store, self.held).await {
                Ok(()) => {}
                Err(unsaved) if unsaved.is_spooled() => {
                    return Ok(Verdict::NeedsRecovery(unsaved.to_string()));
                }
                Err(unsaved) => return Err(format!("{unsaved}; {}", kept(home))),
            }
        }
        Ok(match heard {
            Heard::Answer => Verdict::Alive("codex was let in with it".to_owned()),
            // What was refused is not what is stored now.
            Heard::Refusal { code, .. } if is_new => {
                Verdict::Inconclusive(format!("codex got a new login, and then a refusal: {code}"))
            }
            Heard::Refusal { status, code } => {
                judge(&RefreshAnswer::Refused { status, code: Some(code), retry_after: None })
            }
            Heard::Other(said) => Verdict::Inconclusive(format!("codex was asked and said: {said}")),
            Heard::Nothing => Verdict::Inconclusive(ended),
        })
    }

    async fn heard(&self) -> Heard {
        let ThrowAway { host, dir } = &self.place.home;
        match host.read(dir, &path(OUTPUT), OUTPUT_LIMIT).await {
            Ok(output) => probe::heard(&output),
            Err(HostError::NotFound { .. }) => Heard::Nothing,
            Err(problem) => Heard::Other(problem.to_string()),
        }
    }
}

/// What codex left.
struct Remains {
    /// There was a codex.
    started: bool,
    auth_json: Option<Bytes>,
}

/// Ends codex for certain, and reads what it left. An error says why that is not possible, and what is kept where.
async fn end(home: &ThrowAway) -> Result<Remains, String> {
    let mut why = String::new();
    for attempt in 0..TRIES.0 {
        if attempt > 0 {
            sleep(TRIES.1).await;
        }
        let ending = async {
            let gone = home.end_codex().await;
            let gone = gone.map_err(|problem| {
                format!("codex, which was asked about it, is not proven gone: {problem}")
            })?;
            let auth_json = home.auth_json().await;
            let auth_json =
                auth_json.map_err(|problem| format!("what codex left cannot be read: {problem}"))?;
            Ok(Remains { started: !matches!(gone, Finish::Skipped(_)), auth_json })
        };
        why = match timeout(TRY_LIMIT, ending).await {
            Ok(Ok(left)) => return Ok(left),
            Ok(Err(why)) => why,
            Err(_) => format!("codex, which was asked about it, did not end within {TRY_LIMIT:?}"),
        };
        warn!(why, "probe is not over yet");
    }
    Err(format!("{why}; {}", kept(home)))
}

fn kept(home: &ThrowAway) -> String {
    format!("its newest login may lie in {}; verify it to bring it home", home.place())
}

/// What could not be wiped holds nothing that is not stored; the next start looks through it.
async fn wipe(home: &ThrowAway) {
    if let Err(problem) = home.wipe().await {
        warn!(at = home.place(), %problem, "home of a probe is not wiped");
    }
}
