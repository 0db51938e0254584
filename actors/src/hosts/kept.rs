//! The file of the hosts that were added while a service ran: `hosts.json` in its data directory.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::HostsError;

/// Its name.
const FILE: &str = "hosts.json";

/// Bytes of the largest file that is read: as many hosts as may be added, each with every list full of long paths, are less.
const FILE_LIMIT: u64 = 64 << 20;

/// Hosts by name, as they were described.
type Added = BTreeMap<String, Map<String, Value>>;

#[derive(Default, Serialize, Deserialize)]
struct Content {
    hosts: Added,
}

/// The file, and what stands there: also what cannot be used at the moment.
pub(super) struct Kept {
    path: PathBuf,
    hosts: Added,
}

impl Kept {
    /// Reads the file; without one nothing was added. A file that cannot be read is not written over.
    pub(super) fn open(data_dir: &Path) -> Result<Self, HostsError> {
        let path = data_dir.join(FILE);
        let wrong = |why: String| HostsError::File { path: path.display().to_string(), why };
        let hosts = match File::open(&path) {
            Ok(file) => {
                let mut text = String::new();
                let read = file.take(FILE_LIMIT).read_to_string(&mut text);
                read.map_err(|problem| wrong(format!("cannot be read: {problem}")))?;
                let content: Content = serde_json::from_str(&text).map_err(|problem| {
                    wrong(format!("is no list of hosts: {problem}; mend it, or move it away"))
                })?;
                content.hosts
            }
            Err(problem) if problem.kind() == ErrorKind::NotFound => Added::default(),
            Err(problem) => return Err(wrong(format!("cannot be read: {problem}"))),
        };
        Ok(Self { path, hosts })
    }

    /// What stands there.
    pub(super) fn hosts(&self) -> &Added {
        &self.hosts
    }

    /// Changes the file, whole or not at all.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Added)) -> Result<(), HostsError> {
        let mut content = Content { hosts: self.hosts.clone() };
        change(&mut content.hosts);
        let written = self.put(&content);
        written.map_err(|problem| HostsError::File {
            path: self.path.display().to_string(),
            why: format!("cannot be written: {problem}"),
        })?;
        self.hosts = content.hosts;
        Ok(())
    }

    fn put(&self, content: &Content) -> std::io::Result<()> {
        let beside = self.path.with_extension("json.new");
        // Left by a service that died while it wrote; its mode is not trusted.
        match std::fs::remove_file(&beside) {
            Err(problem) if problem.kind() != ErrorKind::NotFound => return Err(problem),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(content)?)?;
        file.sync_all()?;
        std::fs::rename(&beside, &self.path)?;
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }
}
