//! One deliverable, from its line to its answer (S-170…S-175). Every line gets exactly one.

use bytes::Bytes;
use optio_codex_protocol::keywords::deliverable::name_of;
use optio_hooks::Deliverable;
use optio_host::{HostError, RelPath};
use optio_store::{KEPT_LIMIT, KeptFile, StoreError};
use tracing::warn;

use super::{DELIVERABLES, DeliverableSettled, REVIEW_LIMIT};
use crate::hooks;
use crate::session::RunContext;
use crate::session::log::Announced;

/// Fetches, reviews and keeps what was announced; `None` when its host is out of reach, so that nothing is decided yet.
pub(super) async fn settle(run: &RunContext, announced: Announced) -> Option<DeliverableSettled> {
    let workdir = run.dir.workdir().display().to_string();
    let limit = run.ledger.read(|record| record.config.max_download_bytes()).min(KEPT_LIMIT);
    let rejected = |why: String| Verdict::Rejected(why);
    let mut settled = DeliverableSettled {
        line: announced.line,
        name: announced.path.clone(),
        path: announced.path,
        bytes: None,
        sha256: None,
        accepted: false,
        reply: String::new(),
    };
    let verdict = match name_of(&settled.path, &workdir) {
        Err(bad) => rejected(bad.to_string()),
        Ok(name) => {
            settled.name.clone_from(&name);
            match fetch(run, &name, limit).await {
                Err(Unfetched::Away) => return None,
                Err(Unfetched::Settled(verdict)) => verdict,
                Ok((content, text)) => {
                    settled.bytes = Some(content.len() as u64);
                    decide(run, Deliverable { path: name, text }, content).await
                }
            }
        }
    };
    if let Verdict::Accepted(file) = &verdict {
        settled.sha256 = Some(file.sha256.clone());
    }
    (settled.accepted, settled.reply) = verdict.words();
    Some(settled)
}

/// Why there is nothing to review.
enum Unfetched {
    /// Its host is out of reach.
    Away,
    /// That is the answer.
    Settled(Verdict),
}

enum Verdict {
    Accepted(KeptFile),
    Change(String),
    Rejected(String),
    Trouble(String),
}

impl Verdict {
    fn words(self) -> (bool, String) {
        match self {
            Self::Accepted(_) => (true, "accepted, the host has a copy of it".to_owned()),
            Self::Change(words) => (false, words),
            Self::Rejected(why) => {
                (false, format!("rejected: {why}; put that right, then announce the file again"))
            }
            Self::Trouble(why) => (
                false,
                format!(
                    "the host had trouble of its own ({why}): keep the file, and announce it again after you have \
                     next been resumed"
                ),
            ),
        }
    }
}

/// Reads the file on its host, which follows no link (S-171).
async fn fetch(run: &RunContext, name: &str, limit: u64) -> Result<(Bytes, String), Unfetched> {
    let rejected = |why: &str| Unfetched::Settled(Verdict::Rejected(why.to_owned()));
    let path = RelPath::in_workdir(&format!("{DELIVERABLES}/{name}"));
    let path = path.map_err(|_| rejected("the path is not acceptable"))?;
    let content = run.host.read(&run.dir, &path, limit).await.map_err(|problem| match problem {
        HostError::NotFound { .. } => rejected("there is no such file"),
        HostError::Refused { why, .. } => rejected(why),
        HostError::TooLarge { len, limit, .. } => {
            rejected(&format!("the file has {len} bytes, and at most {limit} are taken"))
        }
        problem if problem.reach_code().is_some() => Unfetched::Away,
        problem => {
            warn!(%problem, name, "deliverable is not fetched");
            Unfetched::Settled(Verdict::Trouble("it could not read the file".to_owned()))
        }
    })?;
    match std::str::from_utf8(&content) {
        Ok(text) => Ok((content.clone(), text.to_owned())),
        Err(_) => Err(rejected("the file is not text in UTF-8")),
    }
}

/// Kept before anybody says that it was taken: an accepted file can be had for as long as there is the session.
async fn decide(run: &RunContext, file: Deliverable, content: Bytes) -> Verdict {
    let about = hooks::about(run);
    match tokio::time::timeout(REVIEW_LIMIT, run.hooks.on_deliverable(&about, &file)).await {
        Err(_) => return Verdict::Trouble(format!("nobody decided within {REVIEW_LIMIT:?}")),
        Ok(Err(problem)) => {
            warn!(%problem, path = file.path, "deliverable is not judged");
            return Verdict::Trouble("whoever judges it could not".to_owned());
        }
        Ok(Ok(answer)) => {
            if let Some(wish) = optio_hooks::wish(answer.as_deref()) {
                return Verdict::Change(wish.to_owned());
            }
        }
    }
    match run.store.deliverables.keep(&run.session, &file.path, content).await {
        Ok(kept) => Verdict::Accepted(kept),
        Err(StoreError::Invalid { why, .. }) => Verdict::Rejected(why),
        Err(problem) => {
            warn!(%problem, path = file.path, "deliverable is not kept");
            Verdict::Trouble("it could not keep a copy".to_owned())
        }
    }
}
