//! From a home with or without a login to a seed or nothing: the same for an attempt that ended a moment ago and for one
//! that a dead service left behind.
//!
//! ```text
//! codex is proven gone ─ auth.json is read ─ stored as a seed ─ its copy is removed ─ the directory is wiped
//! ```
//!
//! Each step may be done again. Nothing is removed that is not in the store.

use std::time::Duration;

use bytes::Bytes;
use optio_codex_protocol::auth::{self, Credential};
use optio_host::HostError;
use optio_store::{NewSeed, PageRequest, SeedFiles, SeedId, StoreError};
use serde_json::json;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Begin, Ended, LoginParts, LoginState, ORIGIN};
use crate::events::tell_of_service;
use crate::faults::Injected;
use crate::login::account_of;
use crate::supervision::ChildKind;

/// The wait before the next try to bring a login home; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// See [`FIRST_PAUSE`]. A store that is back is noticed within a minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long it is tried. A store that is away for longer has an operator's attention, and the next start tries again.
const TRY_FOR: Duration = Duration::from_secs(6 * 3600);

/// Why a login is not home yet.
#[derive(Debug, thiserror::Error)]
enum HomeError {
    #[error("codex is not proven gone: {0}")]
    Running(String),
    #[error("its login cannot be read: {0}")]
    Host(#[from] HostError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// Stores the login if there is one, wipes the directory, and says how the attempt ended. An error says why the directory
/// is still there.
pub(super) async fn bring_home(parts: &LoginParts, ended: Ended) -> Result<(), String> {
    let (id, at) = (&parts.note.id, parts.home.dir.path().display());
    let (until, mut pause) = (Instant::now() + TRY_FOR, FIRST_PAUSE);
    let mut again = parts.begin == Begin::Leftover;
    let found = loop {
        let problem = match find(parts, again).await {
            Ok(found) => break found,
            Err(problem) => problem,
        };
        let reason = format!("{problem}; what there is of the login is kept at {at}");
        warn!(login = %id, %reason, "login is not home yet");
        if Instant::now() + pause > until {
            parts.moved_on(LoginState::Failed, Some(format!("{reason}, and the next start tries again")));
            return Err(reason);
        }
        parts.moved_on(LoginState::Saving, Some(reason));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        again = true;
    };
    if let Some(seed) = &found {
        info!(login = %id, %seed, "login is stored");
        let saved = json!({ "seed": seed, "from": "login", "login": id, "pool": parts.note.pool });
        tell_of_service(&parts.settings.service_stream, "seed.saved", &saved);
    }
    let wiped = parts.home.wipe().await;
    if let Err(problem) = &wiped {
        warn!(login = %id, %problem, "directory of a login is not wiped, the next start does it");
    }
    match (found, ended) {
        (Some(seed), _) => {
            parts.publish(|view| view.seed = Some(seed));
            parts.moved_on(LoginState::Done, None);
        }
        (None, Ended::Cancelled) => parts.moved_on(LoginState::Cancelled, None),
        (None, Ended::Failed(why)) => parts.moved_on(LoginState::Failed, Some(why)),
        (None, Ended::Completed) => {
            let why = "codex said that it is logged in, and left no login".to_owned();
            parts.moved_on(LoginState::Failed, Some(why));
        }
    }
    wiped.map_err(|problem| problem.to_string())
}

/// Ends codex first, for it could rotate the login at any time; then stores what it left. `None` when it left no login.
/// `again` when it may have been stored before.
async fn find(parts: &LoginParts, again: bool) -> Result<Option<SeedId>, HomeError> {
    parts.settings.faults.at_root(ChildKind::SeedLogin, "bring_home").await?;
    parts.home.end_codex().await.map_err(|problem| HomeError::Running(problem.to_string()))?;
    let Some(auth_json) = parts.home.auth_json().await? else { return Ok(None) };
    let credential = auth::read(&auth_json);
    if !credential.is_login() {
        warn!(login = %parts.note.id, found = ?credential, "codex left a file that is no login");
        return Ok(None);
    }
    store(parts, again, auth_json, &credential).await.map(Some)
}

/// Stores a login once, however often it is asked for.
async fn store(
    parts: &LoginParts,
    again: bool,
    auth_json: Bytes,
    credential: &Credential,
) -> Result<SeedId, HomeError> {
    // An import whose answer was lost, or whose process died, may have rotated since: the token alone would not tell.
    if again && let Some(seed) = stored_before(parts).await? {
        return Ok(seed);
    }
    let mut metadata = parts.note.metadata.clone();
    metadata.insert(ORIGIN.to_owned(), json!(parts.note.id));
    let mut files = SeedFiles::default();
    files.0.insert(SeedFiles::AUTH.to_owned(), auth_json);
    let seed = NewSeed { files, account: account_of(credential), pool: parts.note.pool.clone(), metadata };
    match parts.settings.store.seeds.import(seed).await {
        Ok(row) => Ok(row.id),
        // The very same token is stored: by a try of ours whose answer was lost.
        Err(StoreError::Conflict { what, id, why }) => match id.parse() {
            Ok(seed) => {
                info!(login = %parts.note.id, %seed, "login is stored already");
                Ok(seed)
            }
            Err(_) => Err(StoreError::Conflict { what, id, why }.into()),
        },
        Err(problem) => Err(problem.into()),
    }
}

async fn stored_before(parts: &LoginParts) -> Result<Option<SeedId>, StoreError> {
    let origin = json!(parts.note.id);
    let mut page = PageRequest { cursor: None, limit: PageRequest::MAX };
    loop {
        let rows = parts.settings.store.seeds.list(None, &page).await?;
        if let Some(row) = rows.data.iter().find(|row| row.metadata.get(ORIGIN) == Some(&origin)) {
            return Ok(Some(row.id.clone()));
        }
        match rows.next_cursor {
            Some(cursor) => page.cursor = Some(cursor),
            None => return Ok(None),
        }
    }
}
