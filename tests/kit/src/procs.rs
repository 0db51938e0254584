//! What is really on the machine: processes, sockets and files that were left, or must not have been.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// One running process, as `/proc` shows it to its owner.
///
/// Two are equal when they are the same process: its parent and its arguments may change while it lives.
#[derive(Clone, Debug)]
pub struct Proc {
    /// Its id.
    pub pid: i32,
    /// When it started, in clock ticks since boot: with the id, its identity.
    pub started: u64,
    /// Its parent's id.
    pub parent: i32,
    /// What it was called with.
    pub argv: Vec<String>,
}

impl PartialEq for Proc {
    fn eq(&self, other: &Self) -> bool {
        (self.pid, self.started) == (other.pid, other.started)
    }
}

impl Eq for Proc {}

impl Proc {
    /// Looks a process up. Nothing when it has ended, even if its parent has not taken notice yet.
    pub fn find(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may contain any character; what follows it may not.
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
        let (state, parent, started) = (fields.first()?, fields.get(1)?, fields.get(19)?);
        if matches!(*state, "Z" | "X") {
            return None;
        }
        let argv = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let argv = argv.split(|&byte| byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned());
        Some(Self {
            pid,
            started: started.parse().ok()?,
            parent: parent.parse().ok()?,
            argv: argv.filter(|arg| !arg.is_empty()).collect(),
        })
    }

    /// Tells whether this very process, not one that got its id later, still runs.
    pub fn is_alive(&self) -> bool {
        Self::find(self.pid).as_ref() == Some(self)
    }

    /// Kills it, unless it is gone already.
    pub fn kill_9(&self) {
        self.signal(Signal::KILL);
    }

    /// Sends a signal, unless it is gone already.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.is_alive()) {
            // It may end between the look and the signal; then there is nothing left to do.
            let _ = kill_process(pid, signal);
        }
    }
}

/// Finds the processes whose environment has this variable with this value. An agent carries the mark of its run in
/// `OPTIO_CODEX_RUN`, and so does everything it started.
pub fn processes_with_env(variable: &str, value: &str) -> Vec<Proc> {
    let wanted = format!("{variable}={value}");
    all().filter(|process| has_entry(process.pid, |entry| entry == wanted.as_bytes())).collect()
}

/// Finds the processes that have to do with a directory: they work in it, or name a path in it in their arguments or
/// their environment. This process is not among them.
pub fn processes_touching(dir: &Path) -> Vec<Proc> {
    let name = dir.as_os_str().as_bytes();
    let names_it = |text: &[u8]| text.windows(name.len()).any(|part| part == name);
    all()
        .filter(|process| {
            let cwd = std::fs::read_link(format!("/proc/{}/cwd", process.pid))
                .is_ok_and(|cwd| cwd.starts_with(dir));
            cwd || process.argv.iter().any(|arg| names_it(arg.as_bytes())) || has_entry(process.pid, names_it)
        })
        .collect()
}

/// Finds the children of a process, and theirs.
pub fn descendants(pid: i32) -> Vec<Proc> {
    let all: Vec<Proc> = all().collect();
    let mut family: Vec<Proc> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for child in all.iter().filter(|process| process.parent == parent) {
            parents.push(child.pid);
            family.push(child.clone());
        }
    }
    family
}

/// Lists the Unix sockets beneath a directory; links are not followed.
pub fn sockets_beneath(dir: &Path) -> Vec<PathBuf> {
    let mut sockets = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_socket() => sockets.push(entry.path()),
                _ => {}
            }
        }
    }
    sockets.sort();
    sockets
}

/// Lists what lies directly in a directory, by name; empty when it is not there.
pub fn entries(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Every process of this machine but this one.
pub fn all() -> impl Iterator<Item = Proc> {
    let own = std::process::id().cast_signed();
    let numbered = |name: &OsStr| name.to_str()?.parse().ok();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(move |entry| numbered(&entry.file_name()))
        .filter(move |&pid| pid != own)
        .filter_map(Proc::find)
}

fn has_entry(pid: i32, is_it: impl Fn(&[u8]) -> bool) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|&byte| byte == 0).any(is_it)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    struct Sleeper(Child);

    impl Sleeper {
        fn start(prepare: impl FnOnce(&mut Command) -> &mut Command) -> Self {
            let mut command = Command::new("sleep");
            Self(prepare(command.arg("600")).spawn().expect("every machine has sleep"))
        }

        fn pid(&self) -> i32 {
            self.0.id().cast_signed()
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_process_is_found_by_its_mark_until_it_ends() {
        let mark = uuid::Uuid::new_v4().to_string();
        let sleeper = Sleeper::start(|command| command.env("OPTIO_KIT_MARK", &mark));
        // Between fork and exec a child still shows its parent's environment.
        let found = (0..500).find_map(|_| {
            std::thread::yield_now();
            processes_with_env("OPTIO_KIT_MARK", &mark).pop()
        });
        let found = found.expect("the sleeper carries its mark");
        assert_eq!(found.pid, sleeper.pid());
        assert!(processes_with_env("OPTIO_KIT_MARK", "another").is_empty());
        assert!(descendants(std::process::id().cast_signed()).contains(&found));

        found.kill_9();
        drop(sleeper);
        assert!(!found.is_alive());
        assert!(processes_with_env("OPTIO_KIT_MARK", &mark).is_empty());
    }

    #[test]
    fn a_process_is_found_by_the_directory_it_works_in() {
        let dir = tempfile::tempdir().expect("the temp directory is writable");
        let sleeper = Sleeper::start(|command| command.current_dir(dir.path()));
        let pids: Vec<i32> = processes_touching(dir.path()).iter().map(|process| process.pid).collect();
        assert_eq!(pids, [sleeper.pid()]);
    }

    #[test]
    fn sockets_are_found_at_any_depth() {
        let dir = tempfile::tempdir().expect("the temp directory is writable");
        let deep = dir.path().join("a/b");
        std::fs::create_dir_all(&deep).expect("the temp directory is writable");
        std::fs::write(deep.join("file"), "").expect("the temp directory is writable");
        let socket = deep.join("s.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a short path can be bound");
        assert_eq!(sockets_beneath(dir.path()), [socket]);
    }
}
