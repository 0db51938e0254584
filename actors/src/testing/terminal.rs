//! tmux, ttyd and codex's own screen in memory: enough of each for what the actors do with them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use optio_host::fake::{FakeLaunch, FakeSignals, FakeStart};
use optio_host::{ExitStatus, Signal, tmux};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast;

use super::agent::FakeAgents;

/// Where this world has tmux.
const TMUX: &str = "/usr/bin/tmux";

/// Lines of a screen that viewers may be behind.
const BEHIND: usize = 64;

/// The terminals of a world, by the socket of their tmux.
#[derive(Default)]
pub(super) struct Terminals {
    open: BTreeMap<PathBuf, Screen>,
    /// Texts on their way, by the name of their buffer.
    buffers: BTreeMap<String, String>,
    /// This world has no tmux.
    missing: bool,
    /// Codex draws nothing.
    blank: bool,
    /// Codex shows a question, and takes no text.
    asks: bool,
}

struct Screen {
    /// What was said, line by line.
    lines: Vec<String>,
    /// What stands in the input box.
    composer: String,
    typed: broadcast::Sender<String>,
    keys: Vec<u8>,
}

impl FakeAgents {
    /// Takes tmux away.
    pub fn without_tmux(&self) {
        self.lock().terminals.missing = true;
    }

    /// Codex draws nothing from now on.
    pub fn draws_nothing(&self) {
        self.lock().terminals.blank = true;
    }

    /// Codex shows a question instead of its input box from now on.
    pub fn asks_a_question(&self) {
        self.lock().terminals.asks = true;
    }

    /// What people typed themselves, past the tmux of the world, over all terminals.
    pub fn keys(&self) -> String {
        let inner = self.lock();
        let keys = inner.terminals.open.values().flat_map(|screen| screen.keys.iter().copied());
        String::from_utf8_lossy(&keys.collect::<Vec<_>>()).into_owned()
    }

    /// What the one terminal of the world shows.
    pub fn screen(&self) -> String {
        self.lock().terminals.open.values().map(|screen| screen.lines.join("\n")).collect()
    }

    /// Plays a program that has to do with terminals; nothing when it is another one.
    pub(super) async fn play_terminal(&self, launch: &mut FakeLaunch) -> Option<ExitStatus> {
        let argv = launch.argv.clone();
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        match words[..] {
            ["sh", "-lc", "command -v tmux"] => {
                if self.lock().terminals.missing {
                    return Some(ExitStatus::Code(127));
                }
                say(launch, TMUX).await
            }
            [TMUX, "-V"] => say(launch, "tmux 3.3a").await,
            [TMUX, "-u", "-S", socket, "attach-session", ..] => {
                Some(self.view(launch, &PathBuf::from(socket)).await)
            }
            [TMUX, "-u", "-S", socket, ref words @ ..] => {
                self.tmux(launch, &PathBuf::from(socket), words).await
            }
            // Nothing else is on the PATH of this world.
            ["sh", ..] => Some(ExitStatus::Code(127)),
            _ => None,
        }
    }

    async fn tmux(&self, launch: &mut FakeLaunch, socket: &PathBuf, words: &[&str]) -> Option<ExitStatus> {
        let answer = match words {
            ["load-buffer", "-b", name, "-"] => {
                let mut text = String::new();
                launch.stdin.read_to_string(&mut text).await.ok()?;
                self.lock().terminals.buffers.insert((*name).to_owned(), text);
                Some(String::new())
            }
            _ => self.answer(socket, words),
        };
        match answer {
            Some(text) => say(launch, &text).await,
            None => Some(ExitStatus::Code(1)),
        }
    }

    /// What a tmux command prints; nothing when there is no such server.
    fn answer(&self, socket: &PathBuf, words: &[&str]) -> Option<String> {
        let mut inner = self.lock();
        let terminals = &mut inner.terminals;
        let screen = terminals.open.get_mut(socket)?;
        match words {
            ["paste-buffer", "-d", "-p", "-r", "-b", name, ..] => {
                let text = terminals.buffers.remove(*name)?;
                if !terminals.asks {
                    screen.composer = text;
                }
            }
            ["send-keys", "-t", _, "Enter"] => {
                let text = std::mem::take(&mut screen.composer);
                screen.lines.push(format!("> {text}"));
                // Codex may be ending already.
                let _ = screen.typed.send(text);
            }
            ["send-keys", "-t", _, key] => screen.lines.push(format!("<{key}>")),
            ["capture-pane", ..] if terminals.blank => {}
            ["capture-pane", ..] => {
                return Some(format!("codex\n{}\n{}", screen.lines.join("\n"), screen.composer));
            }
            ["display-message", ..] => return Some("200 50".to_owned()),
            _ => return None,
        }
        Some(String::new())
    }

    /// Somebody before a terminal: sees what was said, and what is said meanwhile.
    async fn view(&self, launch: &mut FakeLaunch, socket: &PathBuf) -> ExitStatus {
        let (mut typed, shown) = {
            let inner = self.lock();
            let Some(screen) = inner.terminals.open.get(socket) else {
                return ExitStatus::Code(1);
            };
            (screen.typed.subscribe(), screen.lines.join("\n"))
        };
        // A viewer that does not read is the viewer's affair.
        let _ = launch.stdout.write_all(format!("codex\n{shown}\n").as_bytes()).await;
        let mut chunk = [0; 1024];
        loop {
            tokio::select! {
                read = launch.stdin.read(&mut chunk) => match read {
                    Ok(0) | Err(_) => return ExitStatus::Code(0),
                    Ok(count) => {
                        if let Some(screen) = self.lock().terminals.open.get_mut(socket) {
                            screen.keys.extend_from_slice(&chunk[..count]);
                        }
                    }
                },
                text = typed.recv() => match text {
                    Ok(text) => {
                        let _ = launch.stdout.write_all(format!("> {text}\n").as_bytes()).await;
                    }
                    Err(_) => return ExitStatus::Code(0),
                },
            }
        }
    }

    /// Plays codex's own screen. `@exit N` ends it with that status.
    pub(super) async fn play_screen(
        &self,
        launch: &FakeLaunch,
        signals: &mut FakeSignals,
        ignores_term: bool,
    ) -> ExitStatus {
        let FakeStart::Guard(dir) = &launch.start else { return ExitStatus::Code(1) };
        let socket = tmux::socket(&launch.host, dir);
        let (typed, mut texts) = broadcast::channel(BEHIND);
        let screen = Screen { lines: Vec::new(), composer: String::new(), typed, keys: Vec::new() };
        self.lock().terminals.open.insert(socket.clone(), screen);
        let _closed = Closed(self.clone(), socket);
        loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    _ if ignores_term => {}
                    Signal::Term => return ExitStatus::Signal(15),
                    _ => return ExitStatus::Signal(2),
                },
                Ok(text) = texts.recv() => {
                    if let Some(status) = text.strip_prefix("@exit ") {
                        return ExitStatus::Code(status.trim().parse().unwrap_or(1));
                    }
                    // An answer takes its time.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// The terminal goes with the agent.
struct Closed(FakeAgents, PathBuf);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.lock().terminals.open.remove(&self.1);
    }
}

async fn say(launch: &mut FakeLaunch, text: &str) -> Option<ExitStatus> {
    // Nobody has to read it.
    let _ = launch.stdout.write_all(text.as_bytes()).await;
    Some(ExitStatus::Code(0))
}
