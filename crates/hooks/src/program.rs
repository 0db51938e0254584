//! A hook that is a program: told on standard input, answers on standard output.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::ANSWER_LIMIT;

/// How much of what a program says on standard error is shown when it fails.
const WORDS_SHOWN: usize = 1024;

/// A program beside the service, not on the session's host. It gets one JSON object on standard input. Exit status 0 is
/// success, and what it wrote to standard output is its answer; any other end is a failure.
///
/// It has the service's environment without the service's own settings, among them its token.
#[derive(Debug, Clone)]
pub struct Program {
    /// Program and arguments; no shell reads them.
    pub argv: Vec<String>,
    /// How long it may take; then it and everything it started is killed.
    pub limit: Duration,
}

impl Program {
    pub(crate) async fn run(&self, hook: &'static str, told: Vec<u8>) -> Result<String, String> {
        let Some((name, words)) = self.argv.split_first() else {
            return Err("its command is empty".to_owned());
        };
        let ours = std::env::vars_os().map(|(name, _)| name);
        let ours = ours.filter(|name| name.to_string_lossy().starts_with("OPTIO_CODEX_"));
        let mut command = Command::new(name);
        command.args(words).env("OPTIO_HOOK", hook).process_group(0);
        for name in ours {
            command.env_remove(name);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|problem| format!("{name} cannot be run: {problem}"))?;
        let mut group = Group(child);
        let (stdin, stdout, stderr) = (group.0.stdin.take(), group.0.stdout.take(), group.0.stderr.take());
        let whole = async {
            let feeding = async {
                if let Some(mut stdin) = stdin {
                    // A program may answer without reading all of it.
                    let _ = stdin.write_all(&told).await;
                }
            };
            let (_, said, words) = tokio::join!(feeding, head(stdout), head(stderr));
            (group.0.wait().await, said, words)
        };
        let ended = tokio::time::timeout(self.limit, whole).await;
        let (status, said, words) =
            ended.map_err(|_| format!("{name} did not end within {:?}", self.limit))?;
        let status = status.map_err(|problem| format!("{name} cannot be waited for: {problem}"))?;
        if !status.success() {
            let start = words.len().saturating_sub(WORDS_SHOWN);
            let words = String::from_utf8_lossy(&words[start..]).trim().to_owned();
            return Err(format!("{name} ended with {status}: {words}"));
        }
        if said.len() > ANSWER_LIMIT {
            return Err(format!("{name} answered more than {ANSWER_LIMIT} bytes"));
        }
        String::from_utf8(said).map_err(|_| format!("{name} answered what is no UTF-8"))
    }
}

/// A program and what it started; killed when this is dropped.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Not waited for yet, so its number is nobody else's.
        if let Some(pid) = self.0.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            // Gone already is what is wanted.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// The beginning of a pipe, one byte more than is taken; the rest is read and dropped, so that its writer ends.
async fn head(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let Some(mut pipe) = pipe else { return Vec::new() };
    let (mut kept, mut chunk) = (Vec::new(), vec![0; 16 * 1024]);
    while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
        let room = (ANSWER_LIMIT + 1).saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..count.min(room)]);
    }
    kept
}
