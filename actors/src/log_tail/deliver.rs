//! One deliverable, from its line to its answer (S-170…S-175). Every line gets exactly one.

use bytes::Bytes;
use optio_codex_protocol::keywords::deliverable::name_of;
use optio_host::{HostError, RelPath};
use optio_store::{KEPT_LIMIT, KeptFile, StoreError};
use tracing::warn;

use super::review::{Fetched, Review, Reviewer};
use super::{DELIVERABLES, DeliverableSettled, REVIEW_LIMIT};
use crate::session::RunContext;
use crate::session::log::Announced;

/// Fetches, reviews and keeps what was announced.
pub(super) async fn settle(
    run: &RunContext,
    reviewer: &dyn Reviewer,
    announced: Announced,
) -> DeliverableSettled {
    let workdir = run.dir.workdir().display().to_string();
    let limit = run.ledger.read(|record| record.config.max_download_bytes()).min(KEPT_LIMIT);
    let rejected = |why: String| Ruling::Rejected(why);
    let mut settled = DeliverableSettled {
        line: announced.line,
        name: announced.path.clone(),
        path: announced.path,
        bytes: None,
        sha256: None,
        accepted: false,
        reply: String::new(),
    };
    let ruling = match name_of(&settled.path, &workdir) {
        Err(bad) => rejected(bad.to_string()),
        Ok(name) => {
            settled.name.clone_from(&name);
            match fetch(run, &name, limit).await {
                Err(ruling) => ruling,
                Ok(content) => {
                    settled.bytes = Some(content.len() as u64);
                    decide(run, reviewer, Fetched { session: run.session.clone(), path: name, content }).await
                }
            }
        }
    };
    if let Ruling::Accepted(file, _) = &ruling {
        settled.sha256 = Some(file.sha256.clone());
    }
    (settled.accepted, settled.reply) = ruling.words();
    settled
}

enum Ruling {
    Accepted(KeptFile, Option<String>),
    Change(String),
    Rejected(String),
    Trouble(String),
}

impl Ruling {
    fn words(self) -> (bool, String) {
        match self {
            Self::Accepted(_, None) => (true, "accepted, the host has a copy of it".to_owned()),
            Self::Accepted(_, Some(words)) => (true, words),
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
async fn fetch(run: &RunContext, name: &str, limit: u64) -> Result<Bytes, Ruling> {
    let rejected = |why: &str| Ruling::Rejected(why.to_owned());
    let path = RelPath::in_workdir(&format!("{DELIVERABLES}/{name}"));
    let path = path.map_err(|_| rejected("the path is not acceptable"))?;
    let content = run.host.read(&run.dir, &path, limit).await.map_err(|problem| match problem {
        HostError::NotFound { .. } => rejected("there is no such file"),
        HostError::Refused { why, .. } => rejected(why),
        HostError::TooLarge { len, limit, .. } => {
            Ruling::Rejected(format!("the file has {len} bytes, and at most {limit} are taken"))
        }
        problem => {
            warn!(%problem, name, "deliverable is not fetched");
            Ruling::Trouble("it could not read the file".to_owned())
        }
    })?;
    match std::str::from_utf8(&content) {
        Ok(_) => Ok(content),
        Err(_) => Err(rejected("the file is not text in UTF-8")),
    }
}

/// Kept before anybody says that it was taken: an accepted file can be had for as long as there is the session.
async fn decide(run: &RunContext, reviewer: &dyn Reviewer, fetched: Fetched) -> Ruling {
    let (path, content) = (fetched.path.clone(), fetched.content.clone());
    let words = match tokio::time::timeout(REVIEW_LIMIT, reviewer.review(fetched)).await {
        Err(_) => return Ruling::Trouble(format!("nobody decided within {REVIEW_LIMIT:?}")),
        Ok(Review::Trouble(why)) => return Ruling::Trouble(why),
        Ok(Review::Change(words)) => return Ruling::Change(words),
        Ok(Review::Accepted(words)) => words,
    };
    match run.store.deliverables.keep(&run.session, &path, content).await {
        Ok(file) => Ruling::Accepted(file, words),
        Err(StoreError::Invalid { why, .. }) => Ruling::Rejected(why),
        Err(problem) => {
            warn!(%problem, path, "deliverable is not kept");
            Ruling::Trouble("it could not keep a copy".to_owned())
        }
    }
}
