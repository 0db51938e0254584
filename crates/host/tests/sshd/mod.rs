//! A throw-away sshd on this machine's loopback, for the user who runs the tests.

// Each test program uses its own part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use optio_host::SshHost;
use optio_host::ssh::{HostKeys, Login, SshTarget, UnknownKey};

/// How long anything may take that must happen.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A server that is killed when this is dropped, with everything that it started.
pub struct Sshd {
    pub dir: tempfile::TempDir,
    pub port: u16,
    child: Child,
}

impl Sshd {
    /// A server with OpenSSH's own limits; `None`, with a word on why, where there is no sshd.
    pub fn start() -> Option<Self> {
        Self::with("")
    }

    /// A server with more lines in its configuration. The first of several lines for one setting counts, so these win.
    pub fn with(lines: &str) -> Option<Self> {
        let program = ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].map(PathBuf::from);
        let Some(program) = program.into_iter().find(|path| path.exists()) else {
            eprintln!("skipped: there is no sshd; `scripts/setup test` installs it");
            return None;
        };
        let dir = tempfile::Builder::new().prefix("sshd").tempdir().unwrap();
        make_key(&dir.path().join("host"), "ed25519", "");
        make_key(&dir.path().join("id"), "ed25519", "");
        std::fs::copy(dir.path().join("id.pub"), dir.path().join("authorized_keys")).unwrap();
        Some(Self::serve(dir, &program, lines))
    }

    fn serve(dir: tempfile::TempDir, program: &Path, lines: &str) -> Self {
        if rustix::process::geteuid().is_root() {
            // Where it keeps its privileges apart.
            std::fs::create_dir_all("/run/sshd").unwrap();
        }
        // Somebody else may take the port between the look and sshd's own bind: then it ends, and another is tried.
        for _ in 0..20 {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let at = dir.path().display();
            // SHLVL: bash behind sshd reads its user's start files, which take their time, unless it is not the first.
            let config = format!(
                "{lines}\nListenAddress 127.0.0.1\nPort {port}\nHostKey \"{at}/host\"\n\
                 AuthorizedKeysFile \"{at}/authorized_keys\"\nPidFile none\nStrictModes no\nUsePAM no\n\
                 PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
                 MaxStartups 200\nLogLevel VERBOSE\nSetEnv SHLVL=2\n"
            );
            std::fs::write(dir.path().join("sshd_config"), config).unwrap();
            let log = std::fs::File::create(dir.path().join("log")).unwrap();
            let mut child = Command::new(program)
                .args(["-D", "-e", "-f"])
                .arg(dir.path().join("sshd_config"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap();
            let begun = Instant::now();
            loop {
                let said = std::fs::read_to_string(dir.path().join("log")).unwrap();
                if said.contains("Server listening on 127.0.0.1") {
                    return Self { dir, port, child };
                }
                if child.try_wait().unwrap().is_some() {
                    assert!(said.contains("Cannot bind any address"), "sshd does not start: {said}");
                    break;
                }
                assert!(begun.elapsed() < PATIENCE, "sshd does not listen: {said}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        panic!("no port is free");
    }

    /// The way to it, with its key known.
    pub fn target(&self) -> SshTarget {
        let known = self.dir.path().join("known_hosts");
        let key = std::fs::read_to_string(self.dir.path().join("host.pub")).unwrap();
        let key: Vec<_> = key.split(' ').take(2).collect();
        std::fs::write(&known, format!("[127.0.0.1]:{} {}\n", self.port, key.join(" "))).unwrap();
        SshTarget {
            address: "127.0.0.1".into(),
            port: self.port,
            user: user(),
            login: Login::KeyFile(self.dir.path().join("id")),
            host_keys: HostKeys { pinned: Vec::new(), known_hosts: vec![known], unknown: UnknownKey::Refuse },
            jump: None,
            max_sessions: 10,
            task_root: Some(self.dir.path().join("tasks")),
            codex: None,
        }
    }

    /// A host that is this machine, by way of it.
    pub fn host(&self) -> SshHost {
        self.host_at(self.target())
    }

    /// The same, by another target.
    pub fn host_at(&self, target: SshTarget) -> SshHost {
        SshHost::new("box", target, self.accepted()).unwrap()
    }

    /// Where accepted keys are kept.
    pub fn accepted(&self) -> PathBuf {
        self.dir.path().join("accepted")
    }

    /// The fingerprint of the server's key.
    pub fn fingerprint(&self) -> String {
        let output =
            Command::new("ssh-keygen").arg("-lf").arg(self.dir.path().join("host.pub")).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split(' ').nth(1).unwrap().to_owned()
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The processes of its connections, without those of programs.
    pub fn connections(&self) -> Vec<i32> {
        let mut found = Vec::new();
        let mut parents = vec![self.child.id().cast_signed()];
        while let Some(parent) = parents.pop() {
            for (pid, name) in children(parent) {
                if name.starts_with("sshd") {
                    found.push(pid);
                    parents.push(pid);
                }
            }
        }
        found
    }

    /// Sends a signal to every connection.
    pub fn signal_connections(&self, signal: rustix::process::Signal) {
        for pid in self.connections() {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.signal_connections(rustix::process::Signal::CONT);
        self.signal_connections(rustix::process::Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn children(parent: i32) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else { continue };
        let of: Option<i32> =
            stat[close + 1..].split_ascii_whitespace().nth(1).and_then(|of| of.parse().ok());
        if of == Some(parent) {
            found.push((pid, stat[open + 1..close].to_owned()));
        }
    }
    found
}

/// Makes a key pair.
pub fn make_key(path: &Path, kind: &str, passphrase: &str) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", kind, "-N", passphrase, "-f"]).arg(path).status();
    assert!(made.unwrap().success());
}

fn user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
