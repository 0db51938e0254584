//! Signals to programs that our connection cannot signal: servers ignore the protocol's own, and a closed channel kills nothing.

use std::sync::{Mutex, PoisonError};

use super::exec::Leader;
use crate::{Command, Signal};

/// Kills that wait for a connection. Each is a program whose owner is gone; more are forgotten, the oldest first, and end
/// with their pipes, as almost everything does.
const REMEMBERED: usize = 256;

/// One signal to one process group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kill {
    pub(super) leader: Leader,
    pub(super) signal: Signal,
    /// Whether the leader is known to have ended just now: then its group is what it left behind, and nobody else can have come
    /// by the number.
    pub(super) left_behind: bool,
}

/// `SIGNAL PID START GROUP` four by four. A number that was given to another process meanwhile is left alone.
const SCRIPT: &str = r#"
while [ $# -ge 4 ]; do
    s=$1 p=$2 b=$3 g=$4
    shift 4
    f=$(cat "/proc/$p/stat" 2>/dev/null)
    now=gone
    if [ -n "$f" ]; then
        now=$(set -f; set -- ${f##*)}; echo "${20}")
    fi
    [ "$now" = "$b" ] || continue
    kill -s "$s" -- "-$g" 2>/dev/null && continue
    [ "$b" = gone ] || kill -s "$s" "$p" 2>/dev/null
done
exit 0
"#;

/// The command that sends these signals. Groups that are gone are fine; a group that may not be signalled is tried by its
/// leader alone (S-092).
pub(super) fn command(kills: &[Kill]) -> Command {
    let mut argv: Vec<String> = ["sh", "-c", SCRIPT, "sh"].map(str::to_owned).into();
    for kill in kills {
        let Leader { identity, group } = kill.leader;
        let signal = match kill.signal {
            Signal::Int => "INT",
            Signal::Term => "TERM",
            Signal::Kill => "KILL",
        };
        let born = if kill.left_behind { "gone".into() } else { identity.start_time.to_string() };
        argv.extend([signal.to_owned(), identity.pid.to_string(), born, group.to_string()]);
    }
    Command::new(argv)
}

/// Kills that nobody waits for.
#[derive(Default)]
pub(super) struct Kills(Mutex<Vec<Kill>>);

impl Kills {
    pub(super) fn remember(&self, kills: impl IntoIterator<Item = Kill>) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(kills);
        let surplus = waiting.len().saturating_sub(REMEMBERED);
        if surplus > 0 {
            tracing::warn!(surplus, "programs on a host out of reach will not be killed: there are too many");
            waiting.drain(..surplus);
        }
    }

    pub(super) fn take(&self) -> Vec<Kill> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
