//! What was left on a host: task directories of which nobody knows any more, and the agents in them.
//!
//! [`orphans`] tells of them, [`reap`] ends and removes one. Several services may share a host and its task
//! root, and what is unknown to one may be alive in another's hands; so nothing is ever reaped by a rule. A
//! person (or a program that answers for it) chooses, and says what it saw: an agent that it did not see is
//! not ended, and a login that it does not give up in so many words is not removed. A login may be the only
//! copy there is (DESIGN §1: no login is ever lost).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::{AgentIdentity, AgentState, Command, Host, HostError, Output, Signal, TaskDir, TaskId};

const SCRIPT: &str = include_str!("orphans.sh");

/// Unknown task directories that are looked at; each costs the host some processes (2 ms) and
/// [`crate::OUTPUT_LIMIT`] a line of at most 350 bytes. Whoever has more sees the rest after having removed
/// some.
const LOOK_MOST: usize = 2000;
/// Limit of looking at them.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// Time for counting bytes; a workdir of a million files takes some 10 s on a cold disk.
const MEASURE_TIME: Duration = Duration::from_secs(20);
/// What the counting may take beyond its time, to end and to be told.
const MEASURE_SLACK: Duration = Duration::from_secs(10);
/// How long an agent may take to end by itself; codex ends in less than a second unless a turn is running
/// (LAB §9).
const TERM_WAIT: Duration = Duration::from_secs(5);
/// How long the kernel may take to remove what was killed.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// How often what is left is killed again; something that forks all the time may slip through once.
const KILL_PASSES: usize = 3;

/// A task directory that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// Its name.
    pub id: TaskId,
    /// Where it is on the host.
    pub path: PathBuf,
    /// How long ago it last changed by the host's clock: the directory, its workdir or its guard's heartbeat,
    /// in seconds. A heartbeat of the last minute means that some service holds it.
    pub age_seconds: u64,
    /// The room that it takes on disk; `None` when counting took too long.
    pub bytes: Option<u64>,
    /// The agent that lives in it.
    pub agent: Option<AgentIdentity>,
    /// The mark of the run that its guard was started for.
    pub mark: Option<String>,
    /// There is a login in it, or what might hold one cannot be looked into.
    pub has_login: bool,
    /// Why it is not known whether an agent lives in it.
    pub problem: Option<String>,
}

/// What is to be reaped, and what was seen of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reap {
    /// The task directory.
    pub id: TaskId,
    /// The agent that was seen in it. One that has ended meanwhile is no matter; one that was not seen is.
    pub agent: Option<AgentIdentity>,
    /// The login in it may be destroyed.
    pub discard_login: bool,
}

/// What was reaped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reaped {
    /// The task directory, which is gone.
    pub id: TaskId,
    /// The agent that was ended.
    pub ended: Option<AgentIdentity>,
    /// Processes that did not end when they were asked to, and were killed.
    pub killed: usize,
}

/// Why something was not reaped. The directory is as it was, or at least still there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReapError {
    /// It belongs to a session of this service. Nothing was touched.
    #[error("task {id} is not reaped: it belongs to a session of this service", id = .id.as_str())]
    Known {
        /// The task directory's name.
        id: TaskId,
    },
    /// There is no such thing, or nothing that looks like ours.
    #[error("task {id} is not reaped: there is no task directory of ours at {path}", id = .id.as_str())]
    Absent {
        /// The task directory's name.
        id: TaskId,
        /// Where it was looked for.
        path: String,
    },
    /// Another agent lives there than the one that was named, if any was.
    #[error(
        "task {id} is not reaped: an agent lives there (pid {pid}, start time {start}) that was not named; \
         look again, and name it if it is to be ended", id = .id.as_str(), pid = .found.pid, start = .found.start_time
    )]
    OtherAgent {
        /// The task directory's name.
        id: TaskId,
        /// Who lives there.
        found: AgentIdentity,
    },
    /// There is a login, and nobody gave it up.
    #[error(
        "task {id} is not reaped: {path} holds a login that may be the only copy of it; save it \
         (home/.codex/auth.json), or say that it is to be discarded", id = .id.as_str()
    )]
    HasLogin {
        /// The task directory's name.
        id: TaskId,
        /// The task directory.
        path: String,
    },
    /// Something of it did not die.
    #[error(
        "task {id} is not removed: processes of its agent are still there after SIGKILL", id = .id.as_str()
    )]
    StillThere {
        /// The task directory's name.
        id: TaskId,
    },
    /// The host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Tells of task directories of `host` whose ids are not in `known`, those that changed longest ago first, at
/// most `limit`.
///
/// `known` is whatever this service has a record of, running or not: a session that ended and kept its
/// workdir is known.
pub async fn orphans(
    host: &dyn Host,
    known: &BTreeSet<TaskId>,
    limit: usize,
) -> Result<Vec<Leftover>, HostError> {
    let Some(root) = task_root(host) else { return Ok(Vec::new()) };
    let most = LOOK_MOST.to_string();
    let listing = script(["list", word(&root)?, &most], LOOK_LIMIT);
    let stdin = Some(lines(known.iter()).into());
    let said = done("looking for what was left", host.run(Command { stdin, ..listing }).await?)?;
    let text = String::from_utf8_lossy(&said.stdout);
    let now = text.lines().find_map(|line| line.strip_prefix("now ")?.parse().ok()).unwrap_or(u64::MAX);
    let mut seen: Vec<_> = text.lines().filter_map(Seen::read).collect();
    seen.retain(|seen| !known.contains(&seen.id));
    seen.sort_by_key(|seen| seen.changed);
    seen.truncate(limit);

    let mut sizes = sizes(host, &root, &seen).await?;
    let mut left = Vec::with_capacity(seen.len());
    for seen in seen {
        let dir = host.task_dir(&seen.id);
        let (agent, problem) = match seen.agent(host, &dir).await {
            Ok(agent) => (agent, None),
            Err(error) if error.reach_code().is_some() => return Err(error),
            Err(error) => (None, Some(error.to_string())),
        };
        left.push(Leftover {
            path: dir.path().to_owned(),
            age_seconds: now.saturating_sub(seen.changed),
            bytes: sizes.remove(&seen.id),
            agent,
            mark: seen.mark,
            has_login: seen.has_login,
            problem,
            id: seen.id,
        });
    }
    Ok(left)
}

/// Ends the agent of a task directory that nobody knows, and removes the directory: the agent that was named
/// or none, with a login only when that is given up, and never what is in `known`. It is looked at again
/// first; what is refused then is not touched.
///
/// The directory is removed only when nothing of its run is left, and when no login has appeared in it
/// meanwhile.
pub async fn reap(host: &dyn Host, known: &BTreeSet<TaskId>, choice: &Reap) -> Result<Reaped, ReapError> {
    if known.contains(&choice.id) {
        return Err(ReapError::Known { id: choice.id.clone() });
    }
    let dir = host.task_dir(&choice.id);
    let found = permitted(host, &dir, choice).await?;
    let mut killed = 0;
    if found.is_some() {
        host.guard_signal(&dir, Signal::Term).await?;
    }
    // Also without an agent: what it started may have outlived it.
    let wait = if found.is_some() { TERM_WAIT } else { Duration::ZERO };
    let mut gone = host.guard_gone(&dir, wait).await?;
    for _ in 0..KILL_PASSES {
        if gone {
            break;
        }
        killed += host.guard_kill_leftovers(&dir).await?;
        gone = host.guard_gone(&dir, KILL_WAIT).await?;
    }
    if !gone {
        return Err(ReapError::StillThere { id: choice.id.clone() });
    }
    // An agent may write a login as its last deed, and somebody may have started another one.
    permitted(host, &dir, choice).await?;
    host.cleanup(&dir).await?;
    tracing::info!(host = host.name(), task = choice.id.as_str(), ended = ?found, killed, "reaped");
    Ok(Reaped { id: choice.id.clone(), ended: found, killed })
}

/// Looks at what is to be reaped, and answers the living agent that may be ended.
async fn permitted(
    host: &dyn Host,
    dir: &TaskDir,
    choice: &Reap,
) -> Result<Option<AgentIdentity>, ReapError> {
    let id = choice.id.clone();
    let path = dir.path().display().to_string();
    let looking = match dir.path().parent() {
        Some(root) => script(["one", word(root)?, id.as_str()], LOOK_LIMIT),
        None => return Err(ReapError::Absent { id, path }),
    };
    let said = done("looking at what was left", host.run(looking).await?)?;
    let text = String::from_utf8_lossy(&said.stdout);
    let Some(seen) = text.lines().find_map(Seen::read) else {
        return Err(ReapError::Absent { id, path });
    };
    // Not by the mark, which is only for showing: the guard itself is asked.
    let agent = match host.guard_state(dir).await? {
        AgentState::Running(found) if choice.agent == Some(found) => Some(found),
        AgentState::Running(found) => return Err(ReapError::OtherAgent { id, found }),
        AgentState::Absent | AgentState::Exited { .. } => None,
    };
    if seen.has_login && !choice.discard_login {
        return Err(ReapError::HasLogin { id, path });
    }
    Ok(agent)
}

/// What the script says of one directory.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    id: TaskId,
    /// Seconds since 1970.
    changed: u64,
    has_login: bool,
    mark: Option<String>,
}

impl Seen {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("task ")?.split(' ');
        let changed = words.next()?.parse().ok()?;
        let has_login = words.next()? != "0";
        let mark = words.next().filter(|mark| *mark != "-").map(str::to_owned);
        let id = TaskId::new(words.next()?).ok()?;
        words.next().is_none().then_some(Self { id, changed, has_login, mark })
    }

    /// The living agent, by its guard. Where no guard was started nobody is asked.
    async fn agent(&self, host: &dyn Host, dir: &TaskDir) -> Result<Option<AgentIdentity>, HostError> {
        if self.mark.is_none() {
            return Ok(None);
        }
        match host.guard_state(dir).await? {
            AgentState::Running(agent) => Ok(Some(agent)),
            AgentState::Absent | AgentState::Exited { .. } => Ok(None),
        }
    }
}

/// The bytes of each, as far as they were counted in time.
async fn sizes(host: &dyn Host, root: &Path, seen: &[Seen]) -> Result<BTreeMap<TaskId, u64>, HostError> {
    if seen.is_empty() {
        return Ok(BTreeMap::new());
    }
    let seconds = MEASURE_TIME.as_secs().to_string();
    let measuring = script(["measure", word(root)?, &seconds], MEASURE_TIME.saturating_add(MEASURE_SLACK));
    let stdin = Some(lines(seen.iter().map(|seen| &seen.id)).into());
    let said = match host.run(Command { stdin, ..measuring }).await {
        Err(HostError::TimedOut { .. }) => return Ok(BTreeMap::new()),
        said => done("counting what was left", said?)?,
    };
    let text = String::from_utf8_lossy(&said.stdout);
    let sizes = text.lines().filter_map(|line| {
        let (kilobytes, id) = line.strip_prefix("size ")?.split_once(' ')?;
        Some((TaskId::new(id).ok()?, kilobytes.parse::<u64>().ok()?.saturating_mul(1024)))
    });
    Ok(sizes.collect())
}

/// The directory of all task directories of a host.
pub(crate) fn task_root(host: &dyn Host) -> Option<PathBuf> {
    // Where any one of them would be; none is made.
    let any = TaskId::new("any").ok()?;
    host.task_dir(&any).path().parent().map(Path::to_owned)
}

fn lines<'a>(ids: impl Iterator<Item = &'a TaskId>) -> String {
    ids.map(|id| format!("{}\n", id.as_str())).collect()
}

fn script<const N: usize>(words: [&str; N], limit: Duration) -> Command {
    let words = ["sh", "-c", SCRIPT, "sh"].into_iter().chain(words);
    Command { limit, cwd: Some(PathBuf::from("/")), ..Command::new(words) }
}

fn word(path: &Path) -> Result<&str, HostError> {
    path.to_str().ok_or_else(|| HostError::Refused {
        what: "path",
        value: path.display().to_string(),
        why: "it is not UTF-8",
    })
}

fn done(what: &str, said: Output) -> Result<Output, HostError> {
    if said.success() {
        return Ok(said);
    }
    let stderr = String::from_utf8_lossy(&said.stderr).trim().chars().take(1024).collect();
    Err(HostError::Failed { what: what.to_owned(), status: said.status.to_string(), stderr })
}
