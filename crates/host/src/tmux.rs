//! The terminal of an agent: a tmux server of its own, with one session, one window and one pane.
//!
//! The server is detached by nature, so the screen and what scrolled off it outlive every viewer and the service itself.
//! Nobody's own configuration is read (S-266), no key is bound to a command of tmux: whoever sits at the terminal types
//! into the agent and nowhere else. The guard starts it (see [`crate::guard`]).

mod paste;

use std::path::{Path, PathBuf};

use crate::guard::Size;
use crate::terminal::Seat;
use crate::{Command, Host, HostError, Output, Result, TaskDir};

pub use paste::{PASTE_LIMIT, paste};

/// What the one session of every server is called (S-260).
const SESSION: &str = "optio";

/// The size of a terminal that nobody has looked at yet (S-260).
pub const FIRST_SIZE: Size = Size { columns: 200, rows: 50 };

/// The oldest tmux that lets a viewer come without changing the size (`attach-session -f`).
const OLDEST: (u32, u32) = (3, 2);

/// The server's settings.
///
/// `prefix None` and the empty key tables keep tmux out of the way of the agent's own keys; the wheel scrolls, because a
/// browser has no other way to what scrolled off. Nothing that an agent prints reaches a viewer's clipboard, and nothing
/// gets around tmux to the viewer's terminal.
pub(crate) const SETTINGS: &str = "\
set -g default-terminal screen-256color
set -as terminal-features ',xterm*:RGB'
set -g history-limit 20000
set -g status off
set -g prefix None
set -g prefix2 None
set -g mouse on
set -s escape-time 10
set -s set-clipboard off
set -g update-environment ''
set -g set-titles off
set -g allow-rename off
set -g visual-activity off
set -g monitor-activity off
set -g remain-on-exit off
set -s exit-empty on
set -s exit-unattached off
set -g destroy-unattached off
set -g window-size latest
unbind -a -T prefix
unbind -a -T root
bind -T root WheelUpPane if -F '#{||:#{pane_in_mode},#{mouse_any_flag}}' 'send -M' 'copy-mode -e'
bind -T root WheelDownPane send -M
";

/// Where the server of this task directory listens: beside the agent's socket, in a directory that only this user can
/// enter (S-260, S-264).
pub fn socket(host: &dyn Host, dir: &TaskDir) -> PathBuf {
    host.socket_path(dir).with_file_name("tmux.sock")
}

/// Words of the tmux that opens the terminal, behind the socket; its one pane runs the guard's script.
pub(crate) fn opening(size: Size, guard: &Path) -> Vec<String> {
    let file = |name: &str| guard.join(name).to_string_lossy().into_owned();
    let mut words = vec!["-f".to_owned(), file("tmux.conf")];
    words.extend(["new-session", "-d", "-s", SESSION, "-x"].map(str::to_owned));
    words.extend([size.columns.to_string(), "-y".to_owned(), size.rows.to_string(), "--".to_owned()]);
    words.extend(["sh".to_owned(), file("guard.sh"), "pane".to_owned()]);
    words.push(guard.to_string_lossy().into_owned());
    words
}

/// The program and arguments that put a viewer before the terminal.
pub fn attaching(tmux: &Path, socket: &Path, seat: Seat) -> Vec<String> {
    let mut words = on(tmux, socket, &["attach-session", "-t", SESSION]);
    words.extend(seat_flags(seat).map(str::to_owned));
    words
}

/// The arguments that make the difference between the seats.
pub(crate) fn seat_flags(seat: Seat) -> impl Iterator<Item = &'static str> {
    let flags: &[&str] = match seat {
        Seat::Owner => &[],
        Seat::Guest => &["-f", "ignore-size"],
        Seat::Viewer => &["-f", "ignore-size,read-only"],
    };
    flags.iter().copied()
}

/// Finds tmux by a login shell of the host, as a person there would (S-243, S-244), and asks it its version.
pub async fn find(host: &dyn Host) -> Result<PathBuf> {
    let unusable = |why: String| HostError::Program { program: "tmux".to_owned(), why };
    let looked = host.run(Command::new(["sh", "-lc", "command -v tmux"])).await?;
    let said = String::from_utf8_lossy(&looked.stdout).into_owned();
    // A profile may greet whoever logs in; the answer comes last.
    let path = said.lines().last().map(str::trim).filter(|path| path.starts_with('/'));
    let Some(path) = path else {
        let why = "a terminal session needs it, and it is not on the PATH of a login shell; install tmux";
        return Err(unusable(format!("{why} on {}", host.name())));
    };
    let asked = host.run(Command::new([path, "-V"])).await?;
    let said = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
    match version(&said) {
        Some(version) if version >= OLDEST => Ok(PathBuf::from(path)),
        Some(_) => Err(unusable(format!("{path} is {said}; 3.2 or later is needed"))),
        None => Err(unusable(format!("{path} answered `-V` with {said:?}"))),
    }
}

/// Reads `tmux 3.3a`, `tmux next-3.5` and the like.
fn version(said: &str) -> Option<(u32, u32)> {
    let said = said.strip_prefix("tmux ")?;
    let said = said.trim_start_matches(|c: char| !c.is_ascii_digit());
    let (major, rest) = said.split_once('.')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..digits].parse().ok()?))
}

/// What the terminal shows now, as text.
pub async fn screen(host: &dyn Host, tmux: &Path, socket: &Path) -> Result<String> {
    let words = on(tmux, socket, &["capture-pane", "-p", "-J", "-t", SESSION]);
    let shown = run(host, "reading the terminal", Command::new(words)).await?;
    Ok(String::from_utf8_lossy(&shown.stdout).into_owned())
}

/// The size of the terminal now: that of its owner, or of the last one it had.
pub async fn size(host: &dyn Host, tmux: &Path, socket: &Path) -> Result<Size> {
    let format = "#{window_width} #{window_height}";
    let words = on(tmux, socket, &["display-message", "-p", "-t", SESSION, format]);
    let said = run(host, "asking the terminal's size", Command::new(words)).await?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let mut numbers = said.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(columns)), Some(Ok(rows))) => Ok(Size { columns, rows }),
        _ => Err(HostError::Failed {
            what: "asking the terminal's size".to_owned(),
            status: "an answer that is none".to_owned(),
            stderr: said.trim().to_owned(),
        }),
    }
}

/// Presses one key, by tmux's name for it.
pub async fn press(host: &dyn Host, tmux: &Path, socket: &Path, key: &str) -> Result<()> {
    let words = on(tmux, socket, &["send-keys", "-t", SESSION, key]);
    run(host, "pressing a key", Command::new(words)).await.map(drop)
}

fn on(tmux: &Path, socket: &Path, words: &[&str]) -> Vec<String> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut argv = vec![path(tmux), "-u".to_owned(), "-S".to_owned(), path(socket)];
    argv.extend(words.iter().map(|word| (*word).to_owned()));
    argv
}

async fn run(host: &dyn Host, what: &str, command: Command) -> Result<Output> {
    let output = host.run(command).await?;
    if output.success() {
        return Ok(output);
    }
    Err(HostError::Failed {
        what: what.to_owned(),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_tmux_writes_them() {
        assert_eq!(version("tmux 3.3a"), Some((3, 3)));
        assert_eq!(version("tmux next-3.5"), Some((3, 5)));
        assert_eq!(version("tmux 2.9"), Some((2, 9)));
        assert_eq!(version("tmux master"), None);
        assert_eq!(version("screen 4.09"), None);
    }
}
