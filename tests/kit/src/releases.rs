//! A server of releases on loopback that misbehaves when it is told to. Needs nothing but the standard library, because the
//! tests of another crate take this file too.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long anything is waited for. Only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the next answer for a file is instead of the file.
#[derive(Debug, Clone)]
pub enum Act {
    /// This status and nothing else.
    Status(u16),
    /// A redirect to here.
    Redirect(String),
    /// This many bytes of what was asked for, and the connection is closed.
    Cut(usize),
    /// This many bytes of what was asked for, and no more before [`ReleaseServer::go_on`].
    Hold(usize),
    /// The file without its length.
    NoLength,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The path.
    pub path: String,
    /// The byte from which on it was asked for.
    pub from: Option<usize>,
}

struct Served {
    body: Vec<u8>,
    etag: Option<String>,
    acts: VecDeque<Act>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Served>,
    asked: Vec<Asked>,
    held: usize,
    gone_on: bool,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

/// Serves files by their paths, on 127.0.0.1.
pub struct ReleaseServer {
    address: SocketAddr,
    shared: Shared,
}

impl ReleaseServer {
    /// Starts a server without files.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback always has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let shared = Shared::default();
        let of_thread = shared.clone();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shared = of_thread.clone();
                // A client that goes away is what some tests are about.
                std::thread::spawn(move || drop(answer(connection, &shared)));
            }
        });
        Self { address, shared }
    }

    /// Its address as the start of a URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Serves `body` at `path`, with a validator that changes with it. Replaces what was there, and what was to be done.
    pub fn put(&self, path: &str, body: impl Into<Vec<u8>>) {
        let body = body.into();
        let sum = body.iter().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        let etag = Some(format!("\"{sum:x}\""));
        lock(&self.shared).files.insert(path.to_owned(), Served { body, etag, acts: VecDeque::new() });
    }

    /// Takes the validator of a file away: nobody can resume it then.
    pub fn without_etag(&self, path: &str) {
        if let Some(file) = lock(&self.shared).files.get_mut(path) {
            file.etag = None;
        }
    }

    /// Says what the next answers for a file are; after them it is served as it is.
    pub fn next(&self, path: &str, acts: impl IntoIterator<Item = Act>) {
        if let Some(file) = lock(&self.shared).files.get_mut(path) {
            file.acts.extend(acts);
        }
    }

    /// What was asked for so far.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared).asked.clone()
    }

    /// Waits until an answer is held.
    pub fn wait_held(&self) {
        self.wait(|state| state.held > 0);
    }

    /// Lets every held answer go on, and those to come.
    pub fn go_on(&self) {
        lock(&self.shared).gone_on = true;
        self.shared.1.notify_all();
    }

    fn wait(&self, until: impl Fn(&State) -> bool) {
        let state = lock(&self.shared);
        let waited = self.shared.1.wait_timeout_while(state, PATIENCE, |state| !until(state));
        let (state, timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        assert!(!timed_out.timed_out(), "the server was not asked within {PATIENCE:?}");
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(connection: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut lines = BufReader::new(connection.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let range =
        headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let mut out = connection;
    let (body, etag, act) = {
        let mut state = lock(shared);
        state.asked.push(Asked { path: path.clone(), from: range });
        let Some(file) = state.files.get_mut(&path) else {
            return write!(out, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        };
        (file.body.clone(), file.etag.clone(), file.acts.pop_front())
    };
    match &act {
        Some(Act::Status(status)) => {
            return write!(out, "HTTP/1.1 {status} So\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
        Some(Act::Redirect(to)) => {
            return write!(
                out,
                "HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
        }
        _ => {}
    }
    // A range counts only for the file that its asker has the beginning of.
    let from = range.filter(|_| etag.is_some() && headers.get("if-range") == etag.as_ref()).unwrap_or(0);
    let rest = body.get(from..).unwrap_or_default();
    let mut head = match from {
        0 => "HTTP/1.1 200 OK\r\n".to_owned(),
        _ => format!(
            "HTTP/1.1 206 Partial\r\ncontent-range: bytes {from}-{}/{}\r\n",
            body.len() - 1,
            body.len()
        ),
    };
    if let Some(etag) = etag {
        head.push_str(&format!("etag: {etag}\r\n"));
    }
    if !matches!(act, Some(Act::NoLength)) {
        head.push_str(&format!("content-length: {}\r\n", rest.len()));
    }
    out.write_all(format!("{head}connection: close\r\n\r\n").as_bytes())?;
    match act {
        Some(Act::Cut(len)) => out.write_all(&rest[..len.min(rest.len())]),
        Some(Act::Hold(len)) => {
            let len = len.min(rest.len());
            out.write_all(&rest[..len])?;
            out.flush()?;
            let mut state = lock(shared);
            state.held += 1;
            shared.1.notify_all();
            let waited = shared.1.wait_timeout_while(state, PATIENCE, |state| !state.gone_on);
            drop(waited);
            out.write_all(&rest[len..])
        }
        _ => out.write_all(rest),
    }
}
