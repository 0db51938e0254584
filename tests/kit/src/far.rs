//! Another machine: real sshd, real files, real programs, all on this one.
//!
//! Where we are root it is a machine of its own as far as it matters: a mount namespace gives it a home and a `/tmp` of its
//! own, takes programs away or gives it a small disk, and a network namespace gives it cables that can be cut. Processes
//! are in one table with ours, so a test sees them. Elsewhere it is an sshd on loopback that shares everything, and what
//! needs more than that is skipped.

mod keeper;

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::Signal;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::codex::codex_binary;
use crate::netns::Cables;
use crate::procs::{self, Proc};
use crate::sshd::{PORT, Rules, Sshd, SshdFiles};
use keeper::{Keeper, Machine};

/// What another machine is to be like.
#[derive(Clone, Debug, Default)]
pub struct FarSetup {
    machine: Machine,
    rules: Rules,
    without_codex: bool,
}

impl FarSetup {
    /// Gives it a network of its own, whose cable can be [`Far::cut`]. What it wants of servers of this machine must be
    /// served at [`Far::near`].
    #[must_use]
    pub fn network(mut self) -> Self {
        self.machine.network = true;
        self
    }

    /// Gives it a disk of so many bytes for its task directories.
    #[must_use]
    pub fn disk(mut self, bytes: u64) -> Self {
        self.machine.disk = bytes;
        self
    }

    /// Takes a program of `/usr/bin` away.
    #[must_use]
    pub fn without(mut self, program: &str) -> Self {
        self.machine.hidden.push(program.to_owned());
        self
    }

    /// Puts no codex on it.
    #[must_use]
    pub fn without_codex(mut self) -> Self {
        self.without_codex = true;
        self
    }

    /// Lets so many programs run at once through one connection; sshd's own default is 10.
    #[must_use]
    pub fn max_sessions(mut self, count: u16) -> Self {
        self.rules.max_sessions = count;
        self
    }

    /// Takes passwords and no keys.
    #[must_use]
    pub fn password_only(mut self) -> Self {
        self.rules.password_only = true;
        self
    }

    /// Lets nobody through to its sockets.
    #[must_use]
    pub fn no_forwarding(mut self) -> Self {
        self.rules.no_forwarding = true;
        self
    }

    /// Runs this, in the user's shell, instead of what is asked for; that is then in `$SSH_ORIGINAL_COMMAND`.
    #[must_use]
    pub fn force_command(mut self, command: &str) -> Self {
        self.rules.force_command = Some(command.to_owned());
        self
    }

    /// Makes the machine and waits until it can be reached.
    ///
    /// # Panics
    /// When it cannot be made here; ask [`Far::can_be_apart`] before asking for more than the default.
    pub async fn start(self) -> Arc<Far> {
        // Not in /tmp: codex mistrusts a home beneath the directory for temporary files.
        let dir = tempfile::Builder::new().prefix("optio-far-").tempdir_in("/var/tmp");
        let dir = dir.expect("everybody may write there");
        let root = dir.path().canonicalize().expect("a directory that was just made");
        for (name, mode) in [("home", 0o700), ("tmp", 0o1777), ("tasks", 0o700), ("open", 0o700)] {
            std::fs::create_dir(root.join(name)).expect("a new directory is empty");
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(root.join(name), mode).expect("a directory of ours");
        }
        let files = SshdFiles::make(root.join("ssh"));
        let needs_more = self.machine.network || self.machine.disk > 0 || !self.machine.hidden.is_empty();
        let keeper = Far::can_be_apart().then(|| Keeper::start(&root, &users_home(), &self.machine));
        assert!(keeper.is_some() || !needs_more, "not a machine of its own here: {:?}", self.machine);
        if !self.without_codex {
            place_codex(&root.join("codex"));
        }
        std::fs::write(
            root.join("home/.profile"),
            format!("PATH={}:$PATH\n", root.join("codex/bin").display()),
        )
        .expect("a directory of ours");
        let cables = keeper.as_ref().filter(|_| self.machine.network).map(|keeper| Cables::lay(keeper.pid()));
        let place = match &cables {
            Some(cables) => (cables.ssh(), PORT),
            None => (Ipv4Addr::LOCALHOST, free_port()),
        };
        files.make_known(place.0, place.1);
        let far = Far {
            sshd: Mutex::default(),
            rules: Mutex::new(self.rules),
            setup_codex: !self.without_codex,
            cables,
            keeper,
            files,
            place,
            root,
            _dir: dir,
        };
        far.start_sshd().await;
        Arc::new(far)
    }
}

/// Another machine, running. Dropping it ends everything on it.
pub struct Far {
    sshd: Mutex<Option<Sshd>>,
    rules: Mutex<Rules>,
    setup_codex: bool,
    cables: Option<Cables>,
    keeper: Option<Keeper>,
    files: SshdFiles,
    place: (Ipv4Addr, u16),
    root: PathBuf,
    _dir: TempDir,
}

impl Far {
    /// Describes a machine to start.
    pub fn setup() -> FarSetup {
        FarSetup::default()
    }

    /// Whether a far machine here is one apart from this one: asks the kernel once.
    pub fn can_be_apart() -> bool {
        static CAN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *CAN.get_or_init(|| {
            let tried = Command::new("unshare")
                .args(["--mount", "--net", "--propagation", "private", "ip", "link", "set", "lo", "up"])
                .output();
            rustix::process::geteuid().is_root() && tried.is_ok_and(|tried| tried.status.success())
        })
    }

    /// The same, saying on standard error what is skipped when it is not.
    pub fn can_be_apart_or_skip() -> bool {
        let can = Self::can_be_apart();
        if !can {
            eprintln!("skipped: a machine apart needs root and namespaces (mount, network)");
        }
        can
    }

    /// What a service has to be told of it: the fields of one of its hosts.
    pub fn entry(&self) -> Map<String, Value> {
        let entry = json!({
            "address": self.place.0.to_string(),
            "port": self.place.1,
            "user": user(),
            "key_file": self.files.path("id"),
            "known_hosts": [self.files.path("known_hosts")],
            "task_root": self.task_root(),
        });
        let Value::Object(mut entry) = entry else { unreachable!("it is written as one above") };
        // Named, so that it is used where it is: a copy of 286 MB for each test would be the most of its time.
        entry.extend(self.codex().map(|codex| ("codex".to_owned(), json!(codex))));
        entry
    }

    /// The fingerprint of the key it shows.
    pub fn fingerprint(&self) -> String {
        self.files.fingerprint()
    }

    /// Gives it another key, which nobody knows, when it is next [started](Self::restart_sshd).
    pub fn new_host_key(&self) {
        self.files.new_host_key();
    }

    /// A key file that it does not know.
    pub fn other_key(&self) -> PathBuf {
        self.files.other_key()
    }

    /// The directory of the task directories, by its path there.
    pub fn task_root(&self) -> PathBuf {
        self.root.join("tasks")
    }

    /// A directory for everybody outside all task directories, with the same path here and there.
    pub fn open_dir(&self) -> PathBuf {
        self.root.join("open")
    }

    /// Its user's home, by its path here. Not the home that its user has here, only when it is a machine apart.
    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// Its `/tmp`, by its path here; only of a machine apart.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Its codex, by its path there.
    pub fn codex(&self) -> Option<PathBuf> {
        self.setup_codex.then(|| self.root.join("codex/bin/codex"))
    }

    /// Where programs on it find servers of this machine, which must listen at this address.
    pub fn near(&self) -> Ipv4Addr {
        self.cables.as_ref().map_or(Ipv4Addr::LOCALHOST, Cables::world)
    }

    /// A path of that machine, as this one sees it.
    pub fn seen(&self, path: &Path) -> PathBuf {
        self.keeper.as_ref().map_or_else(|| path.to_owned(), |keeper| keeper.seen(path))
    }

    /// Begins a command that runs there, as its users' do but without SSH.
    pub fn command(&self, program: &str) -> Command {
        match &self.keeper {
            Some(keeper) => keeper.command(program),
            None => Command::new(program),
        }
    }

    /// Every process there: agents, sshd, what runs through SSH.
    pub fn processes(&self) -> Vec<Proc> {
        match &self.keeper {
            Some(keeper) => procs::all().filter(|process| keeper.holds(process.pid)).collect(),
            None => {
                let mut family: Vec<_> = self.sshds();
                family.extend(family.clone().iter().flat_map(|sshd| procs::descendants(sshd.pid)));
                family.extend(procs::processes_touching(&self.root));
                family
            }
        }
    }

    /// The processes there that hang on no connection: guards, agents, tmux and what they started.
    pub fn agents(&self) -> Vec<Proc> {
        let sshds = self.sshds();
        let of_connections: Vec<Proc> =
            sshds.iter().flat_map(|sshd| procs::descendants(sshd.pid)).chain(sshds.clone()).collect();
        self.processes().into_iter().filter(|process| !of_connections.contains(process)).collect()
    }

    /// The sockets there, by their paths as this machine sees them.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let mut sockets = procs::sockets_beneath(&self.root.join("tmp"));
        sockets.extend(procs::sockets_beneath(&self.seen(&self.task_root())));
        sockets.extend(procs::sockets_beneath(&self.root.join("home")));
        sockets
    }

    /// From now on nothing comes through, and nobody is told.
    ///
    /// # Panics
    /// When it has no [network](FarSetup::network) of its own.
    pub fn cut(&self) {
        self.cables().cut();
    }

    /// Undoes [`cut`](Self::cut).
    pub fn mend(&self) {
        self.cables().mend();
    }

    fn cables(&self) -> &Cables {
        self.cables.as_ref().expect("only a machine with a network of its own can be cut off")
    }

    /// Ends sshd and every connection at once, and nothing else.
    pub fn kill_sshd(&self) {
        *self.sshd() = None;
        self.sshds().iter().for_each(Proc::kill_9);
    }

    /// Starts sshd again, after killing it if it still runs.
    pub async fn restart_sshd(&self) {
        self.kill_sshd();
        self.start_sshd().await;
    }

    /// Sets a variable in the environment of every program that is started there from now on.
    pub async fn set_env(&self, name: &str, value: &str) {
        self.rules
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .env
            .push((name.to_owned(), value.to_owned()));
        self.restart_sshd().await;
    }

    /// Makes every sshd there stand still, or go on.
    pub fn freeze_sshd(&self, frozen: bool) {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        self.sshds().iter().for_each(|sshd| sshd.signal(signal));
    }

    /// What sshd has written to its log since it was started last.
    pub fn sshd_said(&self) -> String {
        self.sshd().as_ref().map(Sshd::said).unwrap_or_default()
    }

    /// sshd, its connections' halves, and nobody else's.
    fn sshds(&self) -> Vec<Proc> {
        let is_sshd = |process: &Proc| {
            let name = process.argv.first().map(String::as_str).unwrap_or_default();
            name.starts_with("sshd:") || name.ends_with("/sshd")
        };
        match &self.keeper {
            Some(keeper) => {
                procs::all().filter(|process| keeper.holds(process.pid) && is_sshd(process)).collect()
            }
            None => {
                let Some(pid) = self.sshd().as_ref().map(Sshd::pid) else { return Vec::new() };
                let family = procs::descendants(pid).into_iter().chain(Proc::find(pid));
                family.filter(is_sshd).collect()
            }
        }
    }

    async fn start_sshd(&self) {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sshd = Sshd::start(&self.files, self.place, &rules, |program| self.command(program)).await;
        *self.sshd() = Some(sshd);
    }

    fn sshd(&self) -> MutexGuard<'_, Option<Sshd>> {
        self.sshd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- sshd said:\n{}--- end of what sshd said", self.sshd_said());
        }
        let of_sshd: Vec<_> = self.sshds();
        *self.sshd() = None;
        // A process killed here may have started another a moment before.
        for _ in 0..10 {
            let left: Vec<_> =
                self.processes().into_iter().chain(of_sshd.clone()).filter(Proc::is_alive).collect();
            if left.is_empty() {
                break;
            }
            left.iter().for_each(Proc::kill_9);
        }
    }
}

/// Puts codex into a directory, with what its package has beside it: it brings its own sandbox.
fn place_codex(dir: &Path) {
    let codex = codex_binary();
    let package = codex.ancestors().nth(2).filter(|package| package.join("codex-resources").is_dir());
    let (from, to) = match package {
        Some(package) => (package.to_owned(), dir.to_owned()),
        None => {
            std::fs::create_dir_all(dir.join("bin")).expect("a directory of ours");
            (codex, dir.join("bin/codex"))
        }
    };
    let copied = |how: &str| Command::new("cp").args(["--archive", how]).args([&from, &to]).output();
    let linked = copied("--link").is_ok_and(|cp| cp.status.success());
    // Links do not reach another file system.
    assert!(linked || copied("--force").is_ok_and(|cp| cp.status.success()), "codex can be copied");
}

/// Asks the kernel for a port that nobody has.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback always has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}

/// Our name, as sshd knows it.
fn user() -> String {
    let said = Command::new("id").arg("-un").output().expect("id is everywhere").stdout;
    String::from_utf8_lossy(&said).trim().to_owned()
}

/// Our home, as sshd knows it.
fn users_home() -> PathBuf {
    let accounts = std::fs::read_to_string("/etc/passwd").expect("everybody may read it");
    let name = user();
    let line = accounts.lines().find(|line| line.split(':').next() == Some(&name));
    let home = line.and_then(|line| line.split(':').nth(5)).expect("root has a line there, and a home");
    PathBuf::from(home)
}
