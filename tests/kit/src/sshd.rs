//! A throw-away SSH server for the calling user: its own keys, its own configuration, no service of the system.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::LIMIT;
use crate::wait::wait_until;

/// Where SSH servers listen.
pub(crate) const PORT: u16 = 22;

/// How a server differs from one that lets everybody's programs run.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// Channels with programs on one connection.
    pub(crate) max_sessions: u16,
    /// Takes passwords and no keys.
    pub(crate) password_only: bool,
    /// Runs this instead of what is asked for.
    pub(crate) force_command: Option<String>,
    /// Lets nobody through to sockets.
    pub(crate) no_forwarding: bool,
    /// The environment of every program.
    pub(crate) env: Vec<(String, String)>,
}

impl Default for Rules {
    /// As many channels as a server has that nobody configured.
    fn default() -> Self {
        Self {
            max_sessions: 10,
            password_only: false,
            force_command: None,
            no_forwarding: false,
            env: Vec::new(),
        }
    }
}

/// The files of a server: `id` and `id.pub` are the user's key, `host` and `host.pub` its own.
pub(crate) struct SshdFiles {
    dir: PathBuf,
}

impl SshdFiles {
    /// Makes the keys in an empty directory.
    pub(crate) fn make(dir: PathBuf) -> Self {
        std::fs::create_dir(&dir).expect("a new directory is empty");
        let files = Self { dir };
        keygen(&files.path("host"));
        keygen(&files.path("id"));
        std::fs::copy(files.path("id.pub"), files.path("authorized_keys")).expect("a key was just made");
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Gives the server another key, as one that is set up anew has.
    pub(crate) fn new_host_key(&self) {
        for name in ["host", "host.pub"] {
            std::fs::remove_file(self.path(name)).expect("the key is there");
        }
        keygen(&self.path("host"));
    }

    /// A key that the server does not know.
    pub(crate) fn other_key(&self) -> PathBuf {
        let file = self.path("other");
        if !file.exists() {
            keygen(&file);
        }
        file
    }

    /// The fingerprint of the server's key, `SHA256:…`.
    pub(crate) fn fingerprint(&self) -> String {
        let output = Command::new("ssh-keygen").arg("-lf").arg(self.path("host.pub")).output();
        let output = output.expect("ssh-keygen comes with ssh");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.split_whitespace().nth(1).unwrap_or_else(|| panic!("no fingerprint in {said:?}")).to_owned()
    }

    /// Writes the server's key into `known_hosts`.
    pub(crate) fn make_known(&self, address: Ipv4Addr, port: u16) {
        let key = std::fs::read_to_string(self.path("host.pub")).expect("the key is there");
        let key: Vec<_> = key.split_whitespace().take(2).collect();
        // The port that goes without saying goes without brackets too.
        let place = if port == PORT { address.to_string() } else { format!("[{address}]:{port}") };
        let line = format!("{place} {}\n", key.join(" "));
        std::fs::write(self.path("known_hosts"), line).expect("the directory is ours");
    }

    fn write_config(&self, address: Ipv4Addr, port: u16, rules: &Rules) {
        let yes = |is: bool| if is { "yes" } else { "no" };
        let mut lines = vec![
            format!("ListenAddress {address}"),
            format!("Port {port}"),
            format!("HostKey {}", self.path("host").display()),
            format!("AuthorizedKeysFile {}", self.path("authorized_keys").display()),
            format!("PubkeyAuthentication {}", yes(!rules.password_only)),
            format!("PasswordAuthentication {}", yes(rules.password_only)),
            format!("PermitRootLogin {}", if rules.password_only { "yes" } else { "prohibit-password" }),
            format!("AllowTcpForwarding {}", yes(!rules.no_forwarding)),
            format!("AllowStreamLocalForwarding {}", yes(!rules.no_forwarding)),
            format!("MaxSessions {}", rules.max_sessions),
            // A test may connect often, and everybody at once.
            "MaxStartups 100".to_owned(),
            "KbdInteractiveAuthentication no".to_owned(),
            // The keys lie in a directory for temporary files.
            "StrictModes no".to_owned(),
            "UsePAM no".to_owned(),
            "PidFile none".to_owned(),
        ];
        lines.extend(rules.force_command.as_ref().map(|command| format!("ForceCommand {command}")));
        if !rules.env.is_empty() {
            // One line: of two with the same word the first counts.
            let pairs = rules.env.iter().map(|(name, value)| format!("\"{name}={value}\""));
            lines.push(format!("SetEnv {}", pairs.collect::<Vec<_>>().join(" ")));
        }
        std::fs::write(self.path("sshd_config"), lines.join("\n") + "\n").expect("the directory is ours");
    }
}

/// A running server. Dropping it ends the server and no connection; see [`crate::Far::kill_sshd`].
pub(crate) struct Sshd {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Sshd {
    /// Starts a server and waits until it listens; `prepare` begins a command, which may run it on another machine.
    ///
    /// # Panics
    /// When it does not listen within [`LIMIT`], with what it said.
    pub(crate) async fn start(
        files: &SshdFiles,
        (address, port): (Ipv4Addr, u16),
        rules: &Rules,
        prepare: impl FnOnce(&str) -> Command,
    ) -> Self {
        files.write_config(address, port, rules);
        if rustix::process::geteuid().is_root() {
            // Where its unprivileged half lives; made by its service, which does not run here.
            std::fs::create_dir_all("/run/sshd").expect("root may do that");
        }
        let mut child = prepare(&program().to_string_lossy())
            .args(["-D", "-e", "-f"])
            .arg(files.path("sshd_config"))
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a program that is there can be started");
        let stderr = child.stderr.take().expect("stderr is piped");
        let said = Arc::new(Mutex::new(String::new()));
        let of_thread = said.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut said = of_thread.lock().unwrap_or_else(PoisonError::into_inner);
                said.push_str(&line);
                said.push('\n');
            }
        });
        // Owned from here on, so that a start that fails leaves nothing running.
        let sshd = Self { child, said };
        wait_until("sshd listens", LIMIT, || async {
            let said = sshd.said();
            if said.contains("Server listening on") { Ok(()) } else { Err(said) }
        })
        .await;
        sshd
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// What it has written to its log.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // It may have been killed; either way it is gone after this.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Finds sshd; it lies where users do not look.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("sshd"));
    let found = on_path.chain([PathBuf::from("/usr/sbin/sshd")]).find(|program| program.is_file());
    found.expect("there is no sshd to test with: run `make setup-test`")
}

fn keygen(file: &Path) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file).status();
    assert!(made.expect("ssh-keygen comes with ssh").success());
}
