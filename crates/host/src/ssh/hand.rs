//! One long-lived shell on the far side that answers questions about files (`hand.sh`).
//!
//! A question is a few words of shell and perhaps a payload; its answer is a body and a line with a nonce. Questions are
//! sent without waiting for the answers before them, so forty sessions share one round trip, and are answered in order. A
//! hand that breaks, or misses the limit of a caller, is thrown away with all that waits for it: what became of those
//! questions is unknown. The next question starts a new one.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, oneshot};

use super::runtime;
use super::shells::{Lane, Shells};
use crate::guard::quote;
use crate::{Command, HostError, Result, Spawned};

/// What the shell runs: functions, and what calls them.
const SCRIPT: &str = concat!(include_str!("hand.sh"), include_str!("questions.sh"));
/// The same with what archives need.
const ARCHIVE_SCRIPT: &str =
    concat!(include_str!("hand.sh"), include_str!("archive.sh"), include_str!("questions.sh"));

/// Questions sent and not yet answered; more wait for their turn. Each costs the far side a millisecond or a few.
const IN_FLIGHT: usize = 64;
/// Bytes taken from a stream at once.
const READ_CHUNK: usize = 64 * 1024;
/// Length of an answer's last line, and of what a program had to say.
const WORDS_LIMIT: usize = 16 * 1024;
/// Bytes kept of what the shell says on its standard error, which is nothing.
const COMPLAINT_LIMIT: usize = 1024;

/// A question, and what its caller expects.
pub(super) struct Question {
    /// What is tried, with the path, for errors.
    pub(super) what: String,
    /// The words.
    pub(super) words: Words,
    /// What the words say follows them.
    pub(super) payload: Bytes,
    /// Bytes of an answer's body; a longer one breaks the hand.
    pub(super) body: usize,
    /// How long the caller waits.
    pub(super) limit: Duration,
}

/// What came back.
pub(super) struct Answer {
    /// The first word of the last line.
    pub(super) word: String,
    /// The other words.
    pub(super) facts: Vec<String>,
    /// What came before the last line.
    pub(super) body: Vec<u8>,
}

/// Words of a shell, quoted.
#[derive(Clone)]
pub(super) struct Words(Vec<u8>);

impl Words {
    pub(super) fn new(function: &'static str) -> Self {
        Self(function.as_bytes().to_vec())
    }

    pub(super) fn word(mut self, word: impl AsRef<[u8]>) -> Result<Self> {
        self.0.push(b' ');
        self.0.extend(quote(word.as_ref())?);
        Ok(self)
    }

    pub(super) fn number(self, number: impl std::fmt::Display) -> Self {
        let mut words = self.0;
        words.extend_from_slice(format!(" {number}").as_bytes());
        Self(words)
    }

    /// The directory of an absolute path, and its name.
    pub(super) fn split(self, path: &Path) -> Result<Self> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            let why = "it must be an absolute path below '/'";
            return Err(HostError::Refused { what: "path", value: path.display().to_string(), why });
        };
        self.word(above.as_os_str().as_bytes())?.word(name.as_bytes())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As lines of standard input: each is marked, because a word may hold a newline.
    pub(super) fn lines(&self, key: &str, nonce: &str) -> Vec<u8> {
        let mut lines = Vec::with_capacity(self.0.len() + 2 * key.len() + nonce.len() + 8);
        lines.extend_from_slice(format!("!{key}\n+").as_bytes());
        for byte in &self.0 {
            lines.push(*byte);
            if *byte == b'\n' {
                lines.push(b'+');
            }
        }
        lines.extend_from_slice(format!("\n={key} {nonce}\n").as_bytes());
        lines
    }

    /// The whole of what a shell is told that answers one question only.
    pub(super) fn only(&self, nonce: &str) -> Vec<u8> {
        let key = self::nonce();
        [format!("{key}\n").into_bytes(), self.lines(&key, nonce)].concat()
    }
}

/// A word that nobody else can know.
pub(super) fn nonce() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// The way to the shell; starts it when it is first needed.
pub(super) struct Hand {
    shells: Arc<dyn Shells>,
    lane: Lane,
    /// Held while a shell is started, so that one is.
    running: tokio::sync::Mutex<Option<Arc<Running>>>,
}

struct Running {
    questions: mpsc::Sender<Sent>,
    /// What shows the shell that a question is ours.
    key: String,
    /// Told when the shell is not to be trusted any more.
    give_up: Notify,
    /// Why it ended.
    ended: Mutex<Option<String>>,
}

struct Sent {
    nonce: String,
    question: Vec<u8>,
    payload: Bytes,
    body: usize,
    answer: oneshot::Sender<Answer>,
}

impl Hand {
    pub(super) fn new(shells: Arc<dyn Shells>, lane: Lane) -> Self {
        Self { shells, lane, running: tokio::sync::Mutex::new(None) }
    }

    pub(super) async fn ask(&self, question: Question) -> Result<Answer> {
        let Question { what, words, payload, body, limit } = question;
        let asked = Mutex::new(None);
        let asking = async {
            let running = self.running().await?;
            *lock(&asked) = Some(running.clone());
            let nonce = nonce();
            let (answer, answered) = oneshot::channel();
            let sent = Sent { question: words.lines(&running.key, &nonce), nonce, payload, body, answer };
            // An answer that cannot come shows in the same way as one that does not.
            let _ = running.questions.send(sent).await;
            answered.await.map_err(|_| HostError::Unreachable {
                host: self.shells.name().to_owned(),
                why: lock(&running.ended).clone().unwrap_or_else(|| "its shell ended".into()),
            })
        };
        match tokio::time::timeout(limit, asking).await {
            Ok(answer) => answer,
            Err(_) => {
                if let Some(running) = lock(&asked).take() {
                    running.end(format!("a question was not answered within {limit:?}: {what}"));
                }
                Err(HostError::TimedOut { what, limit })
            }
        }
    }

    async fn running(&self) -> Result<Arc<Running>> {
        let mut running = self.running.lock().await;
        if let Some(running) = running.as_ref().filter(|running| running.is_fit()) {
            return Ok(running.clone());
        }
        let (shells, lane) = (self.shells.clone(), self.lane);
        let spawned = runtime::run(async move { shells.spawn(lane, command()).await }).await??;
        let (questions, asked) = mpsc::channel(IN_FLIGHT);
        let started =
            Arc::new(Running { questions, key: nonce(), give_up: Notify::new(), ended: Mutex::new(None) });
        runtime::start(serve(spawned, asked, started.clone()));
        *running = Some(started.clone());
        Ok(started)
    }
}

/// How the shell is started. The script stands in its words: it has no secrets.
pub(super) fn command() -> Command {
    Command::new(["sh", "-c", SCRIPT])
}

/// How a shell is started that packs or extracts.
pub(super) fn archive_command() -> Command {
    Command::new(["sh", "-c", ARCHIVE_SCRIPT])
}

impl Running {
    fn is_fit(&self) -> bool {
        lock(&self.ended).is_none() && !self.questions.is_closed()
    }

    /// The first reason stays: the others follow from it.
    fn end(&self, why: String) {
        lock(&self.ended).get_or_insert(why);
        self.give_up.notify_one();
    }
}

/// Ends a shell when nobody can ask it any more.
impl Drop for Hand {
    fn drop(&mut self) {
        if let Some(running) = self.running.get_mut() {
            running.end("the host is no longer used".into());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Each change of what is in it is one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries questions there and answers back until one of both breaks.
async fn serve(spawned: Spawned, asked: mpsc::Receiver<Sent>, running: Arc<Running>) {
    let Spawned { stdin, stdout, stderr, process } = spawned;
    let (due, expected) = mpsc::channel(IN_FLIGHT);
    let mut complaint = Vec::new();
    let why = tokio::select! {
        why = send(stdin, asked, due, &running) => why,
        why = receive(stdout, expected, &running) => why,
        _ = listen(stderr, &mut complaint) => unreachable_end(),
        () = running.give_up.notified() => "it was given up".into(),
    };
    running.end(why.clone());
    let said = String::from_utf8_lossy(&complaint);
    if !said.is_empty() {
        tracing::warn!(why, said = said.trim(), "a shell that answers questions about files has ended");
    }
    // Its group goes with it.
    drop(process);
}

fn unreachable_end() -> String {
    "its shell ended".into()
}

async fn send(
    mut stdin: Box<dyn tokio::io::AsyncWrite + Send + Unpin>,
    mut asked: mpsc::Receiver<Sent>,
    due: mpsc::Sender<(String, usize, oneshot::Sender<Answer>)>,
    running: &Running,
) -> String {
    if let Err(error) = stdin.write_all(format!("{}\n", running.key).as_bytes()).await {
        return format!("its shell takes no questions: {error}");
    }
    while let Some(Sent { nonce, question, payload, body, answer }) = asked.recv().await {
        // Before it is sent: its answer may come at once.
        if due.send((nonce, body, answer)).await.is_err() {
            break;
        }
        let written = async {
            stdin.write_all(&question).await?;
            stdin.write_all(&payload).await?;
            stdin.flush().await
        };
        if let Err(error) = written.await {
            return format!("its shell takes no more questions: {error}");
        }
    }
    "nobody asks it any more".into()
}

async fn receive(
    stdout: Box<dyn AsyncRead + Send + Unpin>,
    mut expected: mpsc::Receiver<(String, usize, oneshot::Sender<Answer>)>,
    running: &Running,
) -> String {
    let mut answers = Answers::new(stdout);
    while let Some((nonce, body, answer)) = expected.recv().await {
        match answers.next(&nonce, body).await {
            // The caller may have gone; the answer had to be read all the same.
            Ok(came) => drop(answer.send(came)),
            Err(why) => {
                // Before the caller hears of it, who may ask again at once.
                running.end(why.clone());
                return why;
            }
        }
    }
    "nobody asks it any more".into()
}

/// Keeps the end of what the shell complains about; never ends before the process does.
pub(super) async fn listen(mut stderr: Box<dyn AsyncRead + Send + Unpin>, complaint: &mut Vec<u8>) {
    let mut chunk = vec![0; COMPLAINT_LIMIT];
    while let Ok(len @ 1..) = stderr.read(&mut chunk).await {
        complaint.extend_from_slice(&chunk[..len]);
        let surplus = complaint.len().saturating_sub(COMPLAINT_LIMIT);
        complaint.drain(..surplus);
    }
    // Its output says how it ended.
    std::future::pending::<()>().await;
}

/// Takes a stream apart into answers.
pub(super) struct Answers<R> {
    from: R,
    buffer: Vec<u8>,
    chunk: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Answers<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, buffer: Vec::new(), chunk: vec![0; READ_CHUNK] }
    }

    /// Reads the answer with this nonce, whose body is at most `limit` bytes long.
    pub(super) async fn next(&mut self, nonce: &str, limit: usize) -> Result<Answer, String> {
        let mark = format!("\n{nonce} ").into_bytes();
        let mut looked = 0;
        loop {
            if let Some(at) = find(&self.buffer, &mark, looked) {
                let line = at + mark.len();
                if let Some(len) = self.buffer[line..].iter().position(|byte| *byte == b'\n') {
                    let facts = String::from_utf8_lossy(&self.buffer[line..line + len]).into_owned();
                    let rest = self.buffer.split_off(line + len + 1);
                    let mut body = std::mem::replace(&mut self.buffer, rest);
                    body.truncate(at);
                    let mut words = facts.split(' ').map(str::to_owned);
                    let word = words.next().unwrap_or_default();
                    return Ok(Answer { word, facts: words.collect(), body });
                }
                looked = at;
            } else {
                looked = (self.buffer.len() + 1).saturating_sub(mark.len());
            }
            if self.buffer.len() > limit.saturating_add(WORDS_LIMIT) {
                return Err(format!("its shell said more than the {limit} bytes that it was asked for"));
            }
            match self.from.read(&mut self.chunk).await {
                Ok(0) => return Err("its shell ended".into()),
                Ok(len) => self.buffer.extend_from_slice(&self.chunk[..len]),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

fn find(text: &[u8], mark: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(next) = text.get(at..)?.iter().position(|byte| *byte == mark[0]) {
        at += next;
        if text[at..].starts_with(mark) {
            return Some(at);
        }
        at += 1;
    }
    None
}
