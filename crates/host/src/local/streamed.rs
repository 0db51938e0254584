//! A new file from a stream.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use futures_util::StreamExt;

use super::{FILE_LIMIT, LocalHost};
use crate::error::{HostError, Result};
use crate::{ByteStream, archive};

/// Bytes written in one call: several chunks of a stream that has small ones.
const BATCH: usize = archive::CHUNK;

/// See [`crate::Host::write_stream`].
pub(super) async fn write(host: &LocalHost, path: &Path, stream: ByteStream, mode: u32) -> Result<u64> {
    super::roots::check_absolute("file", path)?;
    let what = format!("write {}", path.display());
    let (target, shown) = (path.to_owned(), what.clone());
    let making = move || {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target);
        match made {
            Ok(file) => Ok((file, Unfinished(Some(target)))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(HostError::NotFound { path: target.display().to_string() })
            }
            Err(error) => Err(HostError::io(shown, error)),
        }
    };
    let (file, unfinished) = host.on_disk(&what, FILE_LIMIT, making).await?;
    match pour(host, &what, file, stream, mode).await {
        Ok(len) => {
            unfinished.finished();
            Ok(len)
        }
        Err(problem) => {
            // Before the answer, so that whoever hears of the failure finds nothing.
            host.on_disk(&what, FILE_LIMIT, move || {
                unfinished.remove();
                Ok(())
            })
            .await?;
            Err(problem)
        }
    }
}

async fn pour(
    host: &LocalHost,
    what: &str,
    mut file: File,
    mut stream: ByteStream,
    mode: u32,
) -> Result<u64> {
    let (mut len, mut batch) = (0, Vec::with_capacity(BATCH));
    loop {
        let chunk = stream.next().await.transpose()?;
        let over = chunk.is_none();
        if let Some(chunk) = chunk {
            len += chunk.len() as u64;
            batch.extend_from_slice(&chunk);
        }
        if batch.len() < BATCH && !over {
            continue;
        }
        let shown = what.to_owned();
        let writing = move || {
            let written =
                file.write_all(&batch).and_then(|()| if over { finish(&file, mode) } else { Ok(()) });
            written.map(|()| (file, batch)).map_err(|error| HostError::io(shown, error))
        };
        (file, batch) = host.on_disk(what, FILE_LIMIT, writing).await?;
        if over {
            return Ok(len);
        }
        batch.clear();
    }
}

fn finish(file: &File, mode: u32) -> std::io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// A file that goes when it is dropped before its end.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn finished(mut self) {
        self.0 = None;
    }

    fn remove(mut self) {
        if let Some(path) = self.0.take() {
            remove(&path);
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(path) = self.0.take() else { return };
        // An executor's thread must not wait for a disk; a thread of the blocking pool may.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || remove(&path))),
            Err(_) => remove(&path),
        }
    }
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "unfinished file is left");
        }
        _ => {}
    }
}
