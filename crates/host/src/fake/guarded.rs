//! The guard as a [`super::FakeHost`] has it: a task on tokio's clock instead of a script.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::FakeHost;
use super::programs::{FakeStart, Process, Start, start};
use crate::error::{HostError, Result};
use crate::guard::{RUN_MARK, STDERR_TAIL};
use crate::{AgentIdentity, AgentState, ExitStatus, GuardSpec, Signal, TaskDir};

/// A guard and its agent.
pub(super) struct Guarded {
    process: Arc<Process>,
    term_after: Duration,
    kill_after: Duration,
    heartbeat: Instant,
    /// The guard has sent its SIGTERM.
    stale: bool,
    guard: Option<AbortHandle>,
    /// What the guard wrote down of the agent's end.
    recorded: Option<ExitStatus>,
    leftovers: usize,
    fewer: Arc<Notify>,
    stderr: Arc<Mutex<Vec<u8>>>,
}

impl FakeHost {
    pub(super) fn start_guarded(&self, dir: &TaskDir, spec: GuardSpec) -> Result<AgentIdentity> {
        let mut env = self.environment(&spec.env)?;
        env.insert(RUN_MARK.into(), spec.run_mark);
        let (program, pid) = self.next_program(&spec.argv)?;
        let with = Start { start: FakeStart::Guard(dir.clone()), argv: spec.argv, env, cwd: spec.cwd };
        let stderr = Arc::default();
        let identity = {
            // Held over the start, so that the agent's first deed finds its guard registered.
            let mut state = self.state();
            if !state.tree.is_dir(dir.path()) {
                return Err(HostError::NotFound { path: dir.path().display().to_string() });
            }
            if let Some(old) = state.guarded.get(dir.path()).filter(|old| old.process.ended().is_none()) {
                let pid = old.process.identity.pid;
                return Err(HostError::AlreadyRunning { dir: dir.path().display().to_string(), pid });
            }
            let (process, pipes) = start(self, &program, with, pid);
            tokio::spawn(discard(pipes.stdout));
            tokio::spawn(keep_tail(pipes.stderr, Arc::clone(&stderr)));
            let identity = process.identity;
            let guarded = Guarded {
                process: Arc::clone(&process),
                term_after: spec.term_after,
                kill_after: spec.kill_after,
                heartbeat: Instant::now(),
                stale: false,
                guard: None,
                recorded: None,
                leftovers: 0,
                fewer: Arc::default(),
                stderr,
            };
            state.marks.remove(dir.path());
            state.guarded.insert(dir.path().to_path_buf(), guarded);
            state.agents.push(process);
            identity
        };
        self.start_guard(dir.path());
        Ok(identity)
    }

    fn start_guard(&self, dir: &Path) {
        let guard = tokio::spawn(self.clone().guard(dir.to_path_buf())).abort_handle();
        if let Some(guarded) = self.state().guarded.get_mut(dir) {
            guarded.guard = Some(guard);
        }
    }

    /// The guard itself: looks at the heartbeat whenever it could be too old, and writes down the agent's end.
    async fn guard(self, dir: std::path::PathBuf) {
        loop {
            let (process, next) = {
                let mut state = self.state();
                let Some(guarded) = state.guarded.get_mut(&dir) else {
                    return;
                };
                let age = guarded.heartbeat.elapsed();
                if age >= guarded.kill_after {
                    guarded.stale = true;
                    guarded.process.signal(Signal::Kill);
                } else if age >= guarded.term_after && !guarded.stale {
                    guarded.stale = true;
                    guarded.process.signal(Signal::Term);
                }
                let after = if guarded.stale { guarded.kill_after } else { guarded.term_after };
                // A killed agent needs no more looks, only its end.
                let next = (age < guarded.kill_after).then(|| guarded.heartbeat + after);
                (Arc::clone(&guarded.process), next)
            };
            let look = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                status = process.wait() => {
                    if let Some(guarded) = self.state().guarded.get_mut(&dir) {
                        guarded.recorded = Some(status);
                    }
                    return;
                }
                () = look => {}
            }
        }
    }

    /// Kills the guard of a task directory but not its agent, as an operator or the kernel might.
    pub fn kill_guard(&self, dir: &TaskDir) {
        if let Some(guarded) = self.state().guarded.get_mut(dir.path())
            && let Some(guard) = guarded.guard.take()
        {
            guard.abort();
        }
    }

    pub(super) fn leave_behind(&self, dir: &TaskDir, processes: usize) {
        if let Some(guarded) = self.state().guarded.get_mut(dir.path()) {
            guarded.leftovers += processes;
        }
    }

    pub(super) fn guarded_state(&self, dir: &TaskDir) -> AgentState {
        let state = self.state();
        let Some(guarded) = state.guarded.get(dir.path()) else {
            return AgentState::Absent;
        };
        let identity = guarded.process.identity;
        match guarded.process.ended() {
            None => AgentState::Running(identity),
            Some(status) => {
                let seen = guarded.recorded.or(guarded.guard.is_some().then_some(status));
                let status = seen.unwrap_or(ExitStatus::Unknown);
                AgentState::Exited { identity, status, by_guard: seen.is_some() && guarded.stale }
            }
        }
    }

    pub(super) fn touch_heartbeat(&self, dir: &TaskDir) -> Result<()> {
        let dead = {
            let mut state = self.state();
            let Some(guarded) = state.guarded.get_mut(dir.path()) else {
                return Err(HostError::NotFound { path: dir.path().join("guard").display().to_string() });
            };
            guarded.heartbeat = Instant::now();
            guarded.guard.is_none() && guarded.process.ended().is_none()
        };
        if dead {
            self.start_guard(dir.path());
        }
        Ok(())
    }

    pub(super) fn signal_guarded(&self, dir: &TaskDir, signal: Signal) -> bool {
        let state = self.state();
        let alive = state.guarded.get(dir.path()).filter(|guarded| guarded.process.ended().is_none());
        if let Some(guarded) = alive {
            guarded.process.signal(signal);
        }
        alive.is_some()
    }

    /// What lives and carries the mark of this task directory's run, where no guard has started its agent.
    fn marked(&self, dir: &TaskDir) -> Vec<Arc<Process>> {
        let state = self.state();
        let Some(mark) = state.marks.get(dir.path()) else { return Vec::new() };
        let marked =
            |process: &&Arc<Process>| process.ended().is_none() && process.mark.as_ref() == Some(mark);
        state.agents.iter().filter(marked).cloned().collect()
    }

    pub(super) async fn all_gone(&self, dir: &TaskDir, limit: Duration) -> bool {
        let gone = async {
            for process in self.marked(dir) {
                process.wait().await;
            }
            loop {
                let (process, fewer, leftovers) = match self.state().guarded.get(dir.path()) {
                    Some(guarded) => {
                        (Arc::clone(&guarded.process), Arc::clone(&guarded.fewer), guarded.leftovers)
                    }
                    None => return,
                };
                process.wait().await;
                if leftovers == 0 {
                    return;
                }
                fewer.notified().await;
            }
        };
        tokio::time::timeout(limit, gone).await.is_ok()
    }

    pub(super) fn kill_all_leftovers(&self, dir: &TaskDir) -> usize {
        let marked = self.marked(dir);
        marked.iter().for_each(|process| process.signal(Signal::Kill));
        let mut state = self.state();
        let Some(guarded) = state.guarded.get_mut(dir.path()) else {
            return marked.len();
        };
        let mut killed = std::mem::take(&mut guarded.leftovers);
        if guarded.process.ended().is_none() {
            guarded.process.signal(Signal::Kill);
            killed += 1;
        }
        // Kept for one that looks later.
        guarded.fewer.notify_one();
        killed
    }

    pub(super) fn stderr_of(&self, dir: &TaskDir) -> Bytes {
        let state = self.state();
        let Some(guarded) = state.guarded.get(dir.path()) else {
            return Bytes::new();
        };
        let stderr = guarded.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        Bytes::copy_from_slice(&stderr)
    }
}

async fn discard(mut pipe: tokio::io::DuplexStream) {
    // The pipe ends with the program, in whatever way.
    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
}

async fn keep_tail(mut pipe: tokio::io::DuplexStream, tail: Arc<Mutex<Vec<u8>>>) {
    let mut chunk = vec![0; 8 * 1024];
    while let Ok(len @ 1..) = pipe.read(&mut chunk).await {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(&chunk[..len]);
        let surplus = tail.len().saturating_sub(STDERR_TAIL);
        tail.drain(..surplus);
    }
}
