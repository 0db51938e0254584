//! ttyd: holds the viewers' side of a terminal on its host, behind a socket that nobody but we can reach.
//!
//! It is started on a leash: a shell that ends it when our end of a pipe is closed, so it dies with the service however the
//! service dies, and on whatever host. A viewer is one WebSocket to it (LAB §6); the seat travels as arguments of the
//! request's address, which ttyd adds to the command it runs (`-a`).

mod line;
mod ready;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::AsyncRead;
use tokio_util::codec::{FramedRead, LinesCodec};

pub use line::open;
use ready::port;

use crate::{
    Command, Dial, EnvPlan, ExitStatus, Host, HostError, Result, Spawned, SpawnedProcess, TaskDir, terminal,
    tmux,
};

/// How long a ttyd may take to listen (S-270); measured 10 ms.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// How long the last words of a ttyd that has ended are waited for: they are in its pipes already.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(1);

/// Longest line of its that is read; it writes short ones.
const LINE_LIMIT: usize = 8 * 1024;

/// Lines kept of what it said.
const LINES_KEPT: usize = 20;

/// Variables that are the service's own affair.
const OWN: [&str; 7] =
    ["OPTIO_CODEX_*", "*_API_KEY", "*_TOKEN", "*_SECRET", "*_PASSWORD", "TMUX", "TMUX_PANE"];

/// Runs its words, and ends them when standard input does. A shell gives a background command no input unless it is
/// named, hence the third descriptor.
const LEASH: &str = r#"exec 3<&0
"$@" </dev/null 3<&- & child=$!
{ cat <&3 >/dev/null; kill "$child"; } 2>/dev/null &
exec 3<&-
wait "$child""#;

/// A running ttyd. Dropping it ends it.
pub struct Ttyd {
    process: Box<dyn SpawnedProcess>,
    /// The leash.
    _stdin: Box<dyn tokio::io::AsyncWrite + Send + Unpin>,
    at: Dial,
    said: Said,
}

impl Ttyd {
    /// Where it listens, seen from the host.
    pub fn at(&self) -> &Dial {
        &self.at
    }

    /// Waits for its end; cancel safe.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        self.process.wait().await
    }

    /// The last of what it said.
    pub fn last_words(&self) -> String {
        self.said.text()
    }
}

impl std::fmt::Debug for Ttyd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ttyd").field("at", &self.at).field("identity", &self.process.identity()).finish()
    }
}

/// Starts a ttyd before the terminal of this task directory: on a Unix socket, or, where it cannot have one, on a port of
/// the host's own loopback interface that the system chooses (S-267, S-274).
pub async fn start(host: &dyn Host, ttyd: &Path, tmux: &Path, dir: &TaskDir) -> Result<Ttyd> {
    let socket = host.socket_path(dir).with_file_name("ttyd.sock");
    let agents = tmux::socket(host, dir);
    match started(host, ttyd, tmux, &agents, &Listen::Unix(socket)).await {
        Err(problem @ HostError::Program { .. }) => {
            tracing::debug!(%problem, "ttyd has no Unix socket, it gets a port");
            started(host, ttyd, tmux, &agents, &Listen::Loopback).await
        }
        ttyd => ttyd,
    }
}

enum Listen {
    Unix(PathBuf),
    Loopback,
}

async fn started(host: &dyn Host, ttyd: &Path, tmux: &Path, agents: &Path, at: &Listen) -> Result<Ttyd> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let program = text(ttyd);
    let mut argv = ["sh", "-c", LEASH, "sh", &program, "-W", "-a"].map(str::to_owned).to_vec();
    match at {
        Listen::Unix(path) => {
            // One that a killed service left holds the name of its socket, and nothing else.
            host.run(Command::new(["rm", "-f", "--", &text(path)])).await?;
            argv.extend(["-i".to_owned(), text(path)]);
        }
        Listen::Loopback => argv.extend(["-i", "127.0.0.1", "-p", "0"].map(str::to_owned)),
    }
    argv.extend(["-t", "disableLeaveAlert=true", "-T", terminal::VIEWER_TERM, "--"].map(str::to_owned));
    argv.extend(tmux::attaching(tmux, agents, terminal::Seat::Owner));
    let env = EnvPlan { remove: OWN.map(str::to_owned).to_vec(), ..EnvPlan::default() };
    let spawned = host.spawn(Command { env, ..Command::new(argv) }).await?;
    let Spawned { stdin, stdout, stderr, mut process } = spawned;
    let said = Said::default();
    // For its whole life: what nobody reads stalls it (S-273).
    let listening = said.listen([stdout, stderr]);
    let ready = async {
        tokio::pin!(listening);
        tokio::select! {
            port = &mut listening => match port {
                Some(port) => Ok(port),
                None => Err(ended(&program, process.wait().await?, &said)),
            },
            status = process.wait() => {
                let status = status?;
                // What it said last may still be in its pipes; something it left behind may hold them for ever.
                let _ = tokio::time::timeout(LAST_WORDS_LIMIT, listening).await;
                Err(ended(&program, status, &said))
            }
        }
    };
    let port = tokio::time::timeout(READY_LIMIT, ready).await.map_err(|_| HostError::TimedOut {
        what: format!("{program} to say where it listens"),
        limit: READY_LIMIT,
    })??;
    let at = match at {
        Listen::Unix(path) => Dial::Unix(path.clone()),
        Listen::Loopback => Dial::Loopback(port),
    };
    Ok(Ttyd { process, _stdin: stdin, at, said })
}

fn ended(program: &str, status: ExitStatus, said: &Said) -> HostError {
    let why = format!("it ended with {status} before it listened; it said: {}", said.text());
    HostError::Program { program: program.to_owned(), why }
}

/// The last lines of a program, read as they come.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<std::collections::VecDeque<String>>>);

impl Said {
    /// Reads both pipes for as long as they last. Answers the first port that is named, or nothing at their end.
    fn listen(
        &self,
        pipes: [Box<dyn AsyncRead + Send + Unpin>; 2],
    ) -> impl Future<Output = Option<u16>> + use<> {
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        for pipe in pipes {
            let (said, tell) = (self.clone(), tell.clone());
            tokio::spawn(async move {
                let mut lines = FramedRead::new(pipe, LinesCodec::new_with_max_length(LINE_LIMIT));
                // A line that is too long is skipped by the codec; a broken pipe is the end.
                while let Some(line) = lines.next().await {
                    let Ok(line) = line else { continue };
                    if let Some(port) = port(&line) {
                        // Only the first one is asked for.
                        let _ = tell.try_send(port);
                    }
                    said.keep(line);
                }
            });
        }
        async move { told.recv().await }
    }

    fn keep(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= LINES_KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
    }
}
