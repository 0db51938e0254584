//! Files of sessions, for people: what lies in the workdir of a live one, and what any has handed over.

use bytes::Bytes;
use optio_codex_protocol::workdir;
use optio_host::{HostError, RelPath, TaskId};
use optio_store::{KEPT_LIMIT, KeptFile, SessionId};

use super::Service;
use crate::error::SessionError;

/// Names that are in no answer, wherever they lie: the login, and the directory that has it.
const PRIVATE: [&str; 2] = [".codex", "auth.json"];

/// A file as it was when it was read.
#[derive(Debug, Clone)]
pub struct FileCopy {
    /// Its name, without directories.
    pub name: String,
    /// Its content.
    pub content: Bytes,
    /// SHA-256 of it in hex, where it is a kept deliverable.
    pub sha256: Option<String>,
}

impl Service {
    /// What a session has handed over, sorted by path.
    pub async fn deliverables(&self, id: &SessionId) -> Result<Vec<KeptFile>, SessionError> {
        self.record(id).await?;
        Ok(self.settings.store.deliverables.list(id).await?)
    }

    /// A file by its path relative to the workdir. Below `deliverables/` it is the copy that was kept when the file was
    /// accepted, also after the session's end; anything else lies in the workdir, and there is one while the session lives.
    /// Links are not followed. The login is never answered, nor what lies beside it.
    pub async fn file(&self, id: &SessionId, path: &str) -> Result<FileCopy, SessionError> {
        let (record, _) = self.record(id).await?;
        let missing = || SessionError::not_found("file", &shown(path));
        let is_private = |part: &str| PRIVATE.iter().any(|name| part.eq_ignore_ascii_case(name));
        if path.split('/').any(is_private) {
            return Err(missing());
        }
        let name = path.rsplit('/').next().unwrap_or(path).to_owned();
        let kept_as = path.strip_prefix(workdir::DELIVERABLES).and_then(|rest| rest.strip_prefix('/'));
        if let Some(kept_as) = kept_as
            && let Some((file, content)) = self.settings.store.deliverables.read(id, kept_as).await?
        {
            return Ok(FileCopy { name, content, sha256: Some(file.sha256) });
        }
        let live = self.find(id).await?.is_some();
        let host = self.settings.hosts.of_record(&record.host, record.ssh.as_ref()).ok();
        let host = host.filter(|_| live).ok_or_else(missing)?;
        let task = TaskId::new(id.as_str()).map_err(|_| missing())?;
        let at = RelPath::in_workdir(path).map_err(|_| missing())?;
        let limit = record.config.max_download_bytes().min(KEPT_LIMIT);
        match host.read(&host.task_dir(&task), &at, limit).await {
            Ok(content) => Ok(FileCopy { name, content, sha256: None }),
            Err(HostError::NotFound { .. } | HostError::Refused { .. }) => Err(missing()),
            Err(HostError::TooLarge { len, limit, .. }) => Err(SessionError::Invalid {
                field: "path",
                why: format!("the file has {len} bytes, and at most {limit} are sent (max_download_bytes)"),
            }),
            Err(problem) => Err(SessionError::Host { id: id.clone(), why: problem.to_string() }),
        }
    }
}

/// As much of a path as belongs into an answer.
fn shown(path: &str) -> String {
    path.chars().take(200).collect()
}
