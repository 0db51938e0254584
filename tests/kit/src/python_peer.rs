//! The real Python package, on one database with us.
//!
//! Optional: where `make setup-test` could not install it, [`installed`] is empty and a test that needs it says so and
//! does nothing else.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::LIMIT;
use crate::codex::{repository, tools_dir};

/// The releases that `scripts/setup` installs.
pub const RELEASES: [&str; 2] = ["0.1.0", "0.4.8"];

/// What the package raised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerError {
    /// The name of the exception's class.
    pub kind: String,
    /// What it says.
    pub message: String,
}

/// The releases that are there to test with. Says so on standard error when one is not.
pub fn installed() -> Vec<&'static str> {
    let there = |release: &&str| {
        // It is put there last, so a virtualenv that has it is whole.
        let there = home(release).join("requirements.txt").is_file();
        if !there {
            eprintln!(
                "skipped: Python's optio-codex {release} is not installed; `make setup-test` gets it from PyPI"
            );
        }
        there
    };
    RELEASES.into_iter().filter(there).collect()
}

fn home(release: &str) -> PathBuf {
    tools_dir().join(format!("optio-py-{release}"))
}

/// A process in which one release of the package does what it is told, one thing after the other. Killed when dropped.
pub struct PythonPeer {
    release: &'static str,
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl PythonPeer {
    /// Starts an installed release on a database. `env` is added to its environment, which is otherwise empty but for
    /// proxies that lead nowhere: nothing it does may leave this machine.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn start(
        release: &'static str,
        uri: &str,
        database: &str,
        prefix: &str,
        env: &[(&str, &str)],
    ) -> Self {
        let driver = repository().join("tests/kit/python/driver.py");
        let mut process = Command::new(home(release).join("bin/python"))
            .arg(driver)
            .args([uri, database, prefix])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("http_proxy", "http://127.0.0.1:9")
            .env("https_proxy", "http://127.0.0.1:9")
            .env("no_proxy", "127.0.0.1")
            // The driver lies in the repository, which is no place for what Python compiles it to.
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|err| panic!("optio-codex {release} is started from its virtualenv: {err}"));
        let requests = process.stdin.take().expect("stdin is piped");
        let answers = BufReader::new(process.stdout.take().expect("stdout is piped")).lines();
        Self { release, requests, answers, _process: process }
    }

    /// Which release it is.
    pub fn release(&self) -> &'static str {
        self.release
    }

    /// Has it do one thing: a method of `Peer` in `driver.py`, and its arguments as an object.
    ///
    /// # Panics
    /// When no answer comes within [`LIMIT`](crate::LIMIT).
    pub async fn attempt(&mut self, op: &str, arguments: Value) -> Result<Value, PeerError> {
        let Value::Object(mut request) = arguments else { panic!("{op}: arguments are an object") };
        request.insert("op".to_owned(), json!(op));
        let line = format!("{}\n", Value::Object(request));
        let exchange = async {
            self.requests.write_all(line.as_bytes()).await?;
            self.answers.next_line().await
        };
        let answer = tokio::time::timeout(LIMIT, exchange).await;
        let answer = match answer {
            Ok(Ok(Some(answer))) => answer,
            Ok(Ok(None)) => panic!("{op}: optio-codex {} ended; see standard error", self.release),
            Ok(Err(err)) => panic!("{op}: optio-codex {} is not there: {err}", self.release),
            Err(_) => panic!("{op}: optio-codex {} had no answer within {LIMIT:?}", self.release),
        };
        let mut answer: Map<String, Value> = serde_json::from_str(&answer)
            .unwrap_or_else(|err| panic!("{op}: {answer:?} is no answer: {err}"));
        if let Some(error) = answer.get("error") {
            let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
            return Err(PeerError { kind: text("type"), message: text("message") });
        }
        Ok(answer.remove("ok").expect("an answer is a result or an error"))
    }

    /// Has it do one thing that must work.
    ///
    /// # Panics
    /// When the package raises.
    pub async fn ask(&mut self, op: &str, arguments: Value) -> Value {
        let release = self.release;
        self.attempt(op, arguments)
            .await
            .unwrap_or_else(|err| panic!("{op}: optio-codex {release} raised {}: {}", err.kind, err.message))
    }

    /// Makes a session whose workdir is below `taskdir`, empty. Returns the workdir.
    pub async fn open_session(&mut self, process: &str, taskdir: &Path) -> PathBuf {
        let taskdir = taskdir.to_str().expect("temp directories have plain names");
        let opened = self.ask("open_session", json!({ "process_id": process, "taskdir": taskdir })).await;
        PathBuf::from(opened["workdir"].as_str().expect("a session has a workdir"))
    }
}
