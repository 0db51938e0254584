//! One check of one seed, in the order in which it can be killed anywhere (T-213…T-232, F18–F20).
//!
//! ```text
//! lease ─ spool ─ load ─ judge ─ is it there? ─ INTENT + parked ─ send ─ spool ─ save ─ VERDICT, intent gone ─ release
//!                                        └─ no: codex is asked ([`super::probe`]), in the place of "send"
//! ```
//!
//! The intent and the mark `needs_recovery` are one write, made before the token is sent, by its holder alone. So from
//! before the request until its outcome is on record nobody is handed the seed, whoever dies meanwhile (INV-29), and a
//! second request with the same token can only come from a check, under the lease, after an outcome that nobody knows
//! (INV-28). Killed between two steps:
//!
//! | after | what is left | what the next one does |
//! |---|---|---|
//! | the lease | a lease that runs out: dirty | asks, as of any dirty seed |
//! | the intent | parked, the intent open, the token perhaps unsent | asks with the same token: granted, or `reused` |
//! | the answer | the same; the answer died with the process | the same: `reused` is dead |
//! | the spool | the same, and the new login on disk | brings it home, and the intent is about an older token |
//! | the save | parked, the stored token newer than the intent's | asks again: the mark says that nobody knows |
//! | the verdict | a lease that runs out: dirty | asks, as of any dirty seed |

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use optio_codex_protocol::auth::{self, Credential};
use optio_oauth::{Discovery, RefreshAnswer, Secret, Verdict, judge};
use optio_store::{SeedFiles, SeedId, SeedPatch, SeedRow, SeedStatus, SeedVersion, StoreError};
use serde_json::{Map, Value};
use tracing::{info, warn};

use super::held::Held;
use super::mend;
use super::notes::{INTENT, Intent, VERIFY, verdict_note};
use super::probe::{self, Finished, Left, Note, Parked, Probe};
use super::save::Rotated;
use super::{Checked, Occasion};
use crate::recovery::{self, Home};
use crate::settings::Settings;

/// What a parked seed says while its token is under way, and for ever if nobody comes back.
const UNDER_WAY: &str =
    "a refresh of its login was begun and its outcome is not on record; verify it to find out";

/// What a suspect seed says after the reason.
const ASK_AGAIN: &str = "verify it again to find out whether its token was spent";

/// Checks one seed. An error means that nothing was found out and nothing but the lease, and perhaps the mark, changed.
pub(super) async fn verify(
    settings: Arc<Settings>,
    seed: SeedId,
    occasion: Occasion,
) -> Result<Checked, StoreError> {
    let store = &settings.store;
    let not_found = || StoreError::NotFound { what: "seed", id: seed.to_string() };
    let busy = |why: String| Ok(Checked::unwritten(Verdict::Busy(why), settings.clock.now()));
    let left = match settings.probes.left_of(&settings, &seed).await {
        Ok(left) => left,
        Err(why) => return busy(why),
    };
    if occasion == Occasion::Leftover && left.is_none() {
        return busy("what was left of an earlier check is brought home already".to_owned());
    }
    let Some(row) = store.seeds.get(&seed).await? else {
        if let Some(left) = &left {
            left.discard().await;
        }
        return Err(not_found());
    };
    let earlier = left.as_ref().map(|left| &left.note.holder);
    if let Some(why) = mend::in_use(&settings, &row, earlier).await? {
        return busy(why);
    }
    let held = match &left {
        Some(left) => Held::take_over(store, &left.note).await?,
        None => None,
    };
    let held = match held {
        Some(held) => Some(held),
        None => Held::acquire(store, &row, occasion).await?,
    };
    let Some(held) = held else { return busy("somebody has just taken it".to_owned()) };
    // Read again under the lease: what came before may be over.
    let checking = async {
        let row = store.seeds.get(&seed).await?.ok_or_else(not_found)?;
        let before = Before::of(&row, held.last.is_some());
        let check = Check { settings: &settings, held: &held, occasion, before, asked: false, wait: None };
        check.run(&row, left).await
    };
    let checked = tokio::select! {
        checked = checking => checked,
        never = held.keep() => match never {},
    };
    if checked.is_err() {
        held.let_go_unlearnt().await;
    }
    checked
}

/// The seed as it was found.
struct Before {
    status: SeedStatus,
    reason: Option<String>,
    /// The note of an intent, as it was.
    intent: Option<Value>,
    notes: Map<String, Value>,
    dirty: bool,
}

impl Before {
    fn of(row: &SeedRow, dirty: bool) -> Self {
        let (status, reason) = (row.status, row.status_reason.clone());
        let intent = row.metadata.get(INTENT).cloned();
        Self { status, reason, intent, notes: row.metadata.clone(), dirty }
    }

    fn parked(&self) -> Parked {
        let (status, reason) = (self.status, self.reason.clone());
        Parked { status, reason, intent: self.intent.clone(), dirty: self.dirty }
    }
}

struct Check<'a> {
    settings: &'a Settings,
    held: &'a Held,
    occasion: Occasion,
    before: Before,
    /// The intent is on record, or may be.
    asked: bool,
    /// How long the server asked us to wait.
    wait: Option<Duration>,
}

impl Check<'_> {
    async fn run(mut self, row: &SeedRow, left: Option<Left>) -> Result<Checked, StoreError> {
        let mut doubt = None;
        if let Some(left) = left {
            match left.finish(self.settings).await {
                Finished::Home => self.take_back(row, &left.note),
                Finished::NoLogin => doubt = Some("codex left a file that is no login"),
                Finished::Stuck(why) => {
                    self.held.withhold();
                    return self.conclude(Verdict::NeedsRecovery(why)).await;
                }
            }
        }
        let Held { seed, holder, last, .. } = self.held;
        let brought = recovery::bring_home(self.settings, seed, holder, last.as_ref()).await?;
        recovery::confirm(self.settings, &brought.spent).await;
        match brought.home {
            Home::Nothing => {}
            Home::Stuck(why) => return self.conclude(Verdict::NeedsRecovery(why)).await,
            // What was missing is there; whether it is good is the next question.
            Home::Saved { settled } => {
                self.before.dirty &= !settled;
                if self.before.status == SeedStatus::NeedsRecovery {
                    (self.before.status, self.before.reason) = (SeedStatus::Alive, None);
                    // Made to stick by whatever is concluded.
                    self.asked = true;
                }
            }
        }
        // Nobody has asked to send anything.
        match (self.occasion, doubt) {
            (Occasion::Leftover, Some(why)) => return self.conclude(Verdict::Suspect(why.to_owned())).await,
            (Occasion::Leftover, None) => {
                return self.conclude(Verdict::Inconclusive(probe::STOPPED.to_owned())).await;
            }
            _ => {}
        }
        let verdict = match self.settings.store.seeds.load(&self.held.seed).await {
            Ok((files, version)) => self.judge(files, version).await,
            Err(StoreError::Damaged { what, why }) => {
                Verdict::Undecodable(format!("{what} is damaged: {why}"))
            }
            Err(problem) => return Err(problem),
        };
        match verdict {
            // Whoever has the seed now has the word; a note of ours would be refused anyway.
            Verdict::Busy(_) => Ok(Checked::unwritten(verdict, self.settings.clock.now())),
            verdict => self.conclude(verdict).await,
        }
    }

    /// What an earlier check asked codex about is home: the seed is what it was before, unless others have spoken since.
    fn take_back(&mut self, row: &SeedRow, note: &Note) {
        if note.parked(row) {
            let Parked { status, reason, intent, .. } = note.before.clone();
            (self.before.status, self.before.reason) = (status, reason);
            self.before.notes.remove(INTENT);
            self.before.notes.extend(intent.clone().map(|intent| (INTENT.to_owned(), intent)));
            self.before.intent = intent;
            // Made to stick by whatever is concluded.
            self.asked = true;
        }
        if self.held.holder == note.holder || self.held.last.as_ref() == Some(&note.holder) {
            self.before.dirty = note.before.dirty;
        }
    }

    async fn judge(&mut self, files: SeedFiles, version: SeedVersion) -> Verdict {
        let Some(auth_json) = files.0.get(SeedFiles::AUTH).cloned() else {
            return Verdict::Undecodable("it has no auth.json".to_owned());
        };
        let login = auth::read(&auth_json);
        let dead = self.before.status == SeedStatus::Dead;
        match &login {
            Credential::Unreadable(why) => Verdict::Undecodable(why.to_string()),
            Credential::LoggedOut => Verdict::Dead("its auth.json holds no login".to_owned()),
            Credential::ApiKey(_) | Credential::Other(_) if dead => Verdict::Inconclusive(
                "a login of this kind is not asked about, so only you can say that it is good".to_owned(),
            ),
            Credential::ApiKey(_) | Credential::Other(_) => {
                Verdict::Alive("it has nothing that is refreshed, and was not asked about".to_owned())
            }
            Credential::ChatGpt(tokens) => {
                let intent = Intent::of(&self.before.notes).is_some_and(|intent| intent.is_about(&login));
                // Freshness confirms a login that nobody doubts. It proves nothing about one that somebody does (T-220).
                let trusted = self.before.status == SeedStatus::Alive && !self.before.dirty && !intent;
                if trusted && !tokens.is_due(self.settings.clock.now()) {
                    return Verdict::Alive("its tokens are fresh".to_owned());
                }
                self.ask(&files, &auth_json, &version, &login).await
            }
        }
    }

    async fn ask(
        &mut self,
        files: &SeedFiles,
        auth_json: &Bytes,
        version: &SeedVersion,
        login: &Credential,
    ) -> Verdict {
        let server = &self.settings.login_server;
        if let Discovery::Unavailable(why) = server.discover().await {
            let away = format!("the login server is out of reach: {why}");
            // A model is asked, which costs money: only where somebody waits for the answer (T-242).
            if !self.settings.probe_seeds || self.occasion != Occasion::Asked {
                return Verdict::Inconclusive(away);
            }
            return self.ask_codex(files, auth_json, version, login, away).await;
        }
        let Some(token) = auth::refresh_token(auth_json).map(Secret::new) else {
            return Verdict::Undecodable("its refresh token cannot be read".to_owned());
        };
        let at = self.settings.clock.now();
        if let Err(verdict) = self.intend(at, login).await {
            return verdict;
        }
        info!(seed = %self.held.seed, token = token.digits(), "login is being refreshed");
        let answer = server.refresh(&token).await;
        self.wait = wait_after(&answer);
        let verdict = judge(&answer);
        info!(seed = %self.held.seed, verdict = verdict.name(), reason = verdict.reason(), "login server has answered");
        match &answer {
            RefreshAnswer::Granted(tokens)
                if tokens.access_token.is_some() || tokens.refresh_token.is_some() =>
            {
                let rotated = Rotated { old: auth_json, version, tokens, at };
                match rotated.save(&self.settings.store, self.held).await {
                    Ok(()) => verdict,
                    Err(unsaved) => Verdict::NeedsRecovery(unsaved.to_string()),
                }
            }
            _ => verdict,
        }
    }

    /// Asks codex in the place of a login server that is `away`.
    async fn ask_codex(
        &mut self,
        files: &SeedFiles,
        auth_json: &Bytes,
        version: &SeedVersion,
        login: &Credential,
        away: String,
    ) -> Verdict {
        let note = Note::new(self.held, version, auth_json, self.before.parked());
        let probe = Probe::prepare(self.settings, self.held, files, auth_json, &note, version).await;
        let probe = match probe {
            Ok(probe) => probe,
            Err(why) => return Verdict::Inconclusive(format!("{away}; codex was not asked either: {why}")),
        };
        let at = self.settings.clock.now();
        if let Err(verdict) = self.intend(at, login).await {
            probe.give_up().await;
            return verdict;
        }
        match probe.ask(at).await {
            Verdict::Inconclusive(why) => Verdict::Inconclusive(format!("{away}; {why}")),
            verdict => verdict,
        }
    }

    /// Puts on record that the token is about to be sent, and takes the seed out of everybody's reach with the same
    /// write. Without that nothing may be sent, and the verdict says so.
    async fn intend(&mut self, at: Timestamp, login: &Credential) -> Result<(), Verdict> {
        let intent = Intent::new(&self.held.holder, at, login);
        // An answer that is lost may hide a write that was done: from here on there is something to take back.
        self.asked = true;
        let status = Some((SeedStatus::NeedsRecovery, Some(UNDER_WAY.to_owned())));
        let metadata = Map::from_iter([(INTENT.to_owned(), intent.note())]);
        let patched = self.held.patch(SeedPatch { status, metadata, ..SeedPatch::default() }).await;
        patched.map_err(|problem| {
            warn!(seed = %self.held.seed, %problem, "intent is not on record, nothing is sent");
            match problem {
                StoreError::Conflict { .. } => {
                    Verdict::Busy("somebody else has taken it meanwhile".to_owned())
                }
                problem => Verdict::Inconclusive(format!("nothing was sent: {problem}")),
            }
        })
    }

    /// Puts the verdict on record, and lets the seed go as it allows.
    async fn conclude(self, verdict: Verdict) -> Result<Checked, StoreError> {
        let at = self.settings.clock.now();
        let reason = verdict.reason();
        let as_before = || self.asked.then(|| (self.before.status, self.before.reason.clone()));
        let no_intent = Some(Value::Null);
        let (status, intent) = match &verdict {
            Verdict::Alive(_) => (Some((SeedStatus::Alive, None)), no_intent),
            Verdict::Dead(_) => (Some((SeedStatus::Dead, Some(reason.to_owned()))), no_intent),
            // What came of the request is not known, so its intent stays.
            Verdict::Suspect(_) => {
                (Some((SeedStatus::NeedsRecovery, Some(format!("{reason}; {ASK_AGAIN}")))), None)
            }
            // What came of it is known: there is a newer login.
            Verdict::NeedsRecovery(_) => {
                (Some((SeedStatus::NeedsRecovery, Some(reason.to_owned()))), no_intent)
            }
            Verdict::Inconclusive(_) | Verdict::Undecodable(_) | Verdict::Busy(_) => {
                let before = self.before.intent.clone().unwrap_or(Value::Null);
                (as_before(), self.asked.then_some(before))
            }
        };
        let mut metadata =
            Map::from_iter([(VERIFY.to_owned(), verdict_note(&verdict, at, &self.held.holder))]);
        metadata.extend(intent.map(|intent| (INTENT.to_owned(), intent)));
        let settled =
            self.held.settle(SeedPatch { status, metadata, verified: true, ..SeedPatch::default() }).await;
        match (&settled, &verdict) {
            // Without a verdict on record only the mark keeps the seed away, if there is one.
            (Err(_), _) | (_, Verdict::Inconclusive(_) | Verdict::Undecodable(_)) if self.before.dirty => {}
            _ => self.held.let_go().await,
        }
        settled?;
        Ok(Checked { verdict, at, wait: self.wait })
    }
}

/// How long to leave the server alone: as long as it asked for, and a while where it, or something before it, only said
/// that it cannot answer now (T-222).
fn wait_after(answer: &RefreshAnswer) -> Option<Duration> {
    /// Long enough for a restart, short against any login's life.
    const AFTER_TROUBLE: Duration = Duration::from_secs(30);
    let trouble = matches!(answer, RefreshAnswer::Refused { status: 408 | 425 | 429 | 500.., .. });
    answer.retry_after().or(trouble.then_some(AFTER_TROUBLE))
}
