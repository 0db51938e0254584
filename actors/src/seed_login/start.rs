//! From nothing to the end of the person's part: codex is started, the code is shown, and codex waits.

use std::time::Duration;

use jiff::Timestamp;
use optio_codex_protocol::argv;
use optio_codex_protocol::device_login::CODE_LIFETIME;
use optio_host::provision::{Tool, Wishes};
use optio_host::{EnvPlan, GuardSpec, HostError, Stage};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::dialogue::{Dialogue, DialogueError};
use super::{Ended, HEARTBEAT, LoginParts, LoginState, NOTE};
use crate::conversation::WireError;
use crate::provisioner::{self, ProvideError};
use crate::session::last_words::last_words;
use crate::settings::{LEASED_KILL_AFTER, LEASED_TERM_AFTER};

/// Codex gives up by itself when the code's time is over, and its own reason is the better one.
const EXPIRY_GRACE: Duration = Duration::from_secs(15);

/// Why an attempt came to nothing before anybody could log in.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Provide(#[from] ProvideError),
    #[error(
        "codex {version} cannot listen on a socket, and only such a codex can be watched while it logs in"
    )]
    TooOld { version: String },
    #[error("{problem}{said}")]
    Dialogue { problem: DialogueError, said: String },
}

/// Runs an attempt until there is nothing left to wait for.
pub(super) async fn log_in(parts: &LoginParts, cancel: &CancellationToken) -> Ended {
    match begin(parts, cancel).await {
        Ok(ended) => ended,
        Err(problem) => {
            warn!(login = %parts.note.id, %problem, "login by a code failed");
            Ended::Failed(problem.to_string())
        }
    }
}

async fn begin(parts: &LoginParts, cancel: &CancellationToken) -> Result<Ended, StartError> {
    let (host, dir) = (&parts.home.host, &parts.home.dir);
    let wishes = Wishes { program: parts.settings.codex.clone(), ..Wishes::default() };
    let providing = provisioner::provide(&parts.provisioner, host, Tool::Codex, wishes, None, cancel);
    let codex = match providing.await {
        Err(ProvideError::Stopped(_)) => return Ok(Ended::Cancelled),
        codex => codex?,
    };
    if !codex.can_listen {
        return Err(StartError::TooOld { version: codex.version });
    }
    parts.home.make(NOTE, &parts.note).await?;
    if cancel.is_cancelled() {
        return Ok(Ended::Cancelled);
    }
    let at = dir.workdir();
    let env = argv::login_environment(&at.display().to_string());
    let spec = GuardSpec {
        argv: argv::login_server(
            &codex.path.display().to_string(),
            &host.socket_path(dir).display().to_string(),
        ),
        env: EnvPlan { remove: env.remove, add: env.add, path_prefix: Vec::new() },
        cwd: at,
        run_mark: parts.note.id.to_string(),
        term_after: LEASED_TERM_AFTER,
        kill_after: LEASED_KILL_AFTER,
        stage: Stage::Headless,
    };
    host.guard_start(dir, spec).await?;
    match talk(parts, cancel).await {
        Ok(ended) => Ok(ended),
        Err(problem) => {
            // A codex that does not come up says why there, and so does one that dies.
            let stderr = host.guard_stderr(dir).await.unwrap_or_default();
            let said = last_words(&stderr).map(|words| format!("; codex last said: {words}"));
            Err(StartError::Dialogue { problem, said: said.unwrap_or_default() })
        }
    }
}

async fn talk(parts: &LoginParts, cancel: &CancellationToken) -> Result<Ended, DialogueError> {
    let asking = async {
        let mut dialogue = Dialogue::open(&*parts.home.host, &parts.home.dir).await?;
        let code = dialogue.start().await?;
        Ok::<_, DialogueError>((dialogue, code))
    };
    let (mut dialogue, code) = tokio::select! {
        asked = asking => asked?,
        // Later its connection tells; before there is one, nothing does.
        () = parts.home.end_of_codex() => return Err(WireError::Closed.into()),
        // Codex is ended next, and with it whatever it was about to ask.
        () = cancel.cancelled() => return Ok(Ended::Cancelled),
    };
    info!(login = %parts.note.id, "code of a login is there");
    let login_id = code.login_id;
    parts.publish(|view| {
        view.state = LoginState::Pending;
        view.verification_url = Some(code.verification_url);
        view.user_code = Some(code.user_code);
        view.expires_at = Some(Timestamp::now() + CODE_LIFETIME);
    });
    let expired = tokio::time::sleep_until(Instant::now() + CODE_LIFETIME + EXPIRY_GRACE);
    tokio::pin!(expired);
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // A login that is there counts, whatever else has happened.
            biased;
            completed = dialogue.completed(&login_id) => {
                let completed = completed?;
                return Ok(match completed.success {
                    true => Ended::Completed,
                    false => Ended::Failed(completed.error.unwrap_or_else(|| "codex did not say why".to_owned())),
                });
            }
            () = cancel.cancelled() => {
                if let Err(problem) = dialogue.cancel(&login_id).await {
                    info!(login = %parts.note.id, %problem, "codex did not give the login up by itself, it is ended");
                }
                return Ok(Ended::Cancelled);
            }
            () = &mut expired => {
                let minutes = CODE_LIFETIME.as_secs() / 60;
                return Ok(Ended::Failed(format!("nobody entered the code within {minutes} minutes")));
            }
            _ = heartbeat.tick() => {
                if let Err(problem) = parts.home.host.guard_heartbeat(&parts.home.dir).await {
                    warn!(login = %parts.note.id, %problem, "heartbeat was not touched");
                }
            }
        }
    }
}
