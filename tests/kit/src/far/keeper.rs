//! The machine itself: namespaces of the kernel, in which some programs see other files and another network.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What makes a machine of fresh namespaces.
const SCRIPT: &str = include_str!("keeper.sh");

/// How a machine differs from the one that it is on.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    /// Has a network of its own.
    pub(super) network: bool,
    /// Has a file system of so many bytes for its tasks; 0 for none.
    pub(super) disk: u64,
    /// Programs of `/usr/bin` that it does not have.
    pub(super) hidden: Vec<String>,
}

/// The process that keeps a machine's namespaces. It ends with this value, and when the test's process ends.
pub(super) struct Keeper(Child);

impl Keeper {
    /// Makes a machine whose home and `/tmp` are those beneath `dir`.
    ///
    /// # Panics
    /// When the kernel does not let us, with what it said.
    pub(super) fn start(dir: &Path, home: &Path, machine: &Machine) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        if machine.network {
            command.arg("--net");
        }
        command.args(["sh", "-c", SCRIPT, "keeper"]).arg(dir).arg(home).arg(machine.disk.to_string());
        command.args(&machine.hidden).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("util-linux is everywhere");
        let said = child.stdout.take().expect("stdout is piped");
        let mut ready = String::new();
        let read = BufReader::new(said).read_line(&mut ready);
        assert!(
            read.is_ok() && ready == "ready\n",
            "no machine in namespaces ({machine:?}); it said why above"
        );
        Self(child)
    }

    /// The process in whose namespaces the machine is.
    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// A path of the machine, as everybody else sees it.
    pub(super) fn seen(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid()));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Begins a command that runs on the machine.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid().to_string(), "--mount", "--net", "--", program]);
        command
    }

    /// Tells whether a process is on this machine, and not its keeper.
    pub(super) fn holds(&self, pid: i32) -> bool {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let own = self.pid().to_string();
        pid.to_string() != own && of(&pid.to_string()).is_some_and(|namespace| Some(namespace) == of(&own))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Its namespaces go with their last process.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
