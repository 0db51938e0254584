//! An app-server in memory: answers as codex 0.142.5 does (LAB §1, §9; the transcripts), and plays turns by their text.

mod logins;
mod server;
mod turn;
mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use optio_host::fake::{FakeHost, FakeLaunch};
use optio_host::{Dial, ExitStatus, Signal};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

pub use logins::CODE;
use server::Server;

use super::terminal::Terminals;

/// How agents that are started from now on behave.
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    /// Reads and never answers.
    pub mute: bool,
    /// Says this on standard error and ends at once, with exit status 1.
    pub dies_saying: Option<String>,
    /// Takes no notice of SIGTERM.
    pub ignores_term: bool,
    /// On pipes, takes no notice of their end.
    pub ignores_eof: bool,
    /// Leaves this many processes behind.
    pub leaves_behind: usize,
    /// Its login service has no codes.
    pub has_no_codes: bool,
}

/// Every app-server of a world. Clones share it.
#[derive(Clone, Default)]
pub struct FakeAgents(Arc<Mutex<Inner>>);

pub(super) struct Inner {
    behaviour: Behaviour,
    /// Cancelled when the service that talks to the agents dies.
    clients: CancellationToken,
    held: Arc<Notify>,
    newest: BTreeMap<String, Bytes>,
    logins: Vec<logins::Waiting>,
    requests: Vec<(String, Value)>,
    pub(super) terminals: Terminals,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            behaviour: Behaviour::default(),
            clients: CancellationToken::new(),
            held: Arc::default(),
            newest: BTreeMap::new(),
            logins: Vec::new(),
            requests: Vec::new(),
            terminals: Terminals::default(),
        }
    }
}

impl FakeAgents {
    /// Says how agents behave that are started from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.lock().behaviour = behaviour;
    }

    /// Lets every turn go on that waits in a `@hold`.
    pub fn release(&self) {
        self.lock().held.notify_waiters();
    }

    /// Everything that was asked of any agent, in order: method and params.
    pub fn requests(&self, method: &str) -> Vec<Value> {
        let asked = self.lock();
        asked.requests.iter().filter(|(asked, _)| asked == method).map(|(_, params)| params.clone()).collect()
    }

    /// The newest login of an account that an agent has written to its disk.
    pub fn newest_login(&self, account: &str) -> Option<Bytes> {
        self.lock().newest.get(account).cloned()
    }

    /// Closes every connection, as the kernel does when the client's process is killed.
    pub fn clients_gone(&self) {
        std::mem::take(&mut self.lock().clients).cancel();
    }

    /// Replaces the login below a `CODEX_HOME` by its successor, as codex does after a refresh.
    pub fn rotate(&self, host: &FakeHost, codex_home: &Path) -> Bytes {
        let path = codex_home.join("auth.json");
        let next = host.file(&path).map(|old| successor(&old)).expect("there is a login to rotate");
        host.put_file(&path, next.clone());
        self.lock().newest.insert(account_of(&next), next.clone());
        next
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plays one program of a host.
    pub async fn play(self, mut launch: FakeLaunch) -> ExitStatus {
        if let Some(status) = self.play_terminal(&mut launch).await {
            return status;
        }
        let (behaviour, clients) = {
            let inner = self.lock();
            (inner.behaviour.clone(), inner.clients.clone())
        };
        let mut signals = launch.catch_signals();
        launch.leave_behind(behaviour.leaves_behind);
        if let Some(words) = &behaviour.dies_saying {
            return die(&mut launch, words, ExitStatus::Code(1)).await;
        }
        if launch.argv.iter().any(|word| word == "--ask-for-approval") {
            return self.play_screen(&launch, &mut signals, behaviour.ignores_term).await;
        }
        let socket = launch.argv.iter().find_map(|word| word.strip_prefix("unix://").map(PathBuf::from));
        let piped = socket.is_none();
        let (jobs, mut new_jobs) = mpsc::unbounded_channel::<BoxFuture<'static, ()>>();
        let (exit, mut exits) = mpsc::unbounded_channel::<(ExitStatus, String)>();
        let home = PathBuf::from(launch.env.get("CODEX_HOME").cloned().unwrap_or_default());
        let as_told = behaviour.clone();
        let server = Server::new(self.clone(), launch.host.clone(), home, as_told, jobs, exit);
        let mut running = FuturesUnordered::new();
        match socket {
            Some(path) => {
                let listener = launch.listen(Dial::Unix(path));
                running.push(wire::listen(server.clone(), listener, self.clone()));
            }
            None => {
                let (stdin, _) = tokio::io::duplex(1);
                let (stdout, _) = tokio::io::duplex(1);
                let stdin = std::mem::replace(&mut launch.stdin, stdin);
                let stdout = std::mem::replace(&mut launch.stdout, stdout);
                let stays = behaviour.ignores_eof;
                running.push(wire::over_pipes(server.clone(), stdin, stdout, clients, stays));
            }
        }
        loop {
            tokio::select! {
                biased;
                Some((status, words)) = exits.recv() => return die(&mut launch, &words, status).await,
                signal = signals.next() => match signal {
                    _ if behaviour.ignores_term => {}
                    // On pipes SIGTERM ends it at once (LAB §9).
                    signal if piped => return ExitStatus::Signal(if signal == Signal::Term { 15 } else { 2 }),
                    _ if server.drain() => return ExitStatus::Code(0),
                    _ => {}
                },
                Some(job) = new_jobs.recv() => running.push(job),
                Some(()) = running.next() => {}
            }
        }
    }
}

async fn die(launch: &mut FakeLaunch, words: &str, status: ExitStatus) -> ExitStatus {
    if !words.is_empty() {
        // Nobody has to read what it says.
        let _ = launch.stderr.write_all(format!("{words}\n").as_bytes()).await;
    }
    status
}

/// A ChatGPT login of this account; `generation` tells its tokens from those before and after.
pub fn login(account: &str, generation: u32) -> Bytes {
    let login = json!({
        "OPENAI_API_KEY": null,
        "auth_mode": "chatgpt",
        "tokens": {
            "id_token": "header.claims.signature",
            "access_token": format!("access-{account}-{generation}"),
            "refresh_token": format!("refresh-{account}-{generation}"),
            "account_id": account,
        },
        "last_refresh": format!("2026-01-01T00:{:02}:{:02}Z", generation / 60, generation % 60),
        "generation": generation,
    });
    Bytes::from(login.to_string())
}

fn successor(auth_json: &[u8]) -> Bytes {
    let old: Value = serde_json::from_slice(auth_json).expect("logins of this world are JSON");
    let generation = old["generation"].as_u64().expect("logins of this world are numbered");
    login(&account_of(auth_json), generation as u32 + 1)
}

fn account_of(auth_json: &[u8]) -> String {
    let login: Value = serde_json::from_slice(auth_json).expect("logins of this world are JSON");
    login["tokens"]["account_id"].as_str().unwrap_or_default().to_owned()
}
