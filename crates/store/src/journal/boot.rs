//! Whether the machine lost power under the last writer: then lines that viewers saw may be gone.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::segment::{self, Segment};

/// How far numbering jumps after a power cut. At most [`UNSYNCED_LINES`] and one batch can be lost of a stream.
pub(super) const POWER_CUT_JUMP: u64 = 1_000_000;

/// Most lines of one stream that are written but not synced; the writer syncs by itself before there are more.
pub(super) const UNSYNCED_LINES: u64 = POWER_CUT_JUMP / 2;

/// Who wrote last, in `.boot`. One stream name cannot be another's: none begins with a dot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Boot {
    /// The kernel's id of this start of the machine; `None` if it has none to tell.
    pub(super) boot_id: Option<String>,
    /// Everything was synced and the journal closed.
    pub(super) clean: bool,
}

const FILE: &str = ".boot";

/// The kernel's id of this start of the machine.
pub(super) fn kernel_boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

impl Boot {
    /// What the last writer left; `None` when there is no note, or none that can be read.
    pub(super) fn read(dir: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(dir.join(FILE)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the note, durably.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let fresh = dir.join(".boot.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        std::fs::rename(&fresh, dir.join(FILE))?;
        sync_dir(dir)
    }

    /// Whether nothing that this writer showed to a viewer can be missing now.
    pub(super) fn kept_everything(&self, boot_id: Option<&str>) -> bool {
        self.clean || (self.boot_id.is_some() && self.boot_id.as_deref() == boot_id)
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Mends every stream after a power cut and moves its numbering beyond all that a viewer can have seen. The new,
/// empty segment is the durable note of that; doing it twice does no harm.
pub(super) fn jump_all(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() || entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let next = jump(&entry.path())?;
        tracing::warn!(stream = ?entry.file_name(), next, "journal numbering jumped after a power cut");
    }
    Ok(())
}

fn jump(dir: &Path) -> io::Result<u64> {
    let mut segments = segment::list(dir)?;
    let mut next = segments.last().map_or(1, |last: &Segment| last.first);
    // A segment is only ended when its predecessor is synced, so at most the last two can have suffered.
    let suspects = segments.len().saturating_sub(2);
    for segment in &mut segments[suspects..] {
        if let Some(last) = segment::mend_whole(dir, segment)? {
            next = next.max(last + 1);
        }
    }
    next += POWER_CUT_JUMP;
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(segment::path(dir, next))?
        .sync_all()?;
    sync_dir(dir)?;
    Ok(next)
}
