//! Deliverables in memory.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;

use crate::deliverables::check_room;
use crate::seed_archive::sha256_hex;
use crate::{Deliverables, KeptFile, Result, SessionId};

/// By session and path.
#[derive(Default)]
pub(super) struct MemoryDeliverables(Mutex<BTreeMap<(String, String), (KeptFile, Bytes)>>);

#[async_trait]
impl Deliverables for MemoryDeliverables {
    async fn keep(&self, session: &SessionId, path: &str, content: Bytes) -> Result<KeptFile> {
        check_room(&self.list(session).await?, path, content.len() as u64)?;
        let file = KeptFile {
            path: path.to_owned(),
            bytes: content.len() as u64,
            sha256: sha256_hex(&content),
            kept_at: Timestamp::now(),
        };
        let at = (session.to_string(), path.to_owned());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(at, (file.clone(), content));
        Ok(file)
    }

    async fn list(&self, session: &SessionId) -> Result<Vec<KeptFile>> {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_session = files.iter().filter(|((of, _), _)| of == session.as_str());
        Ok(of_session.map(|(_, (file, _))| file.clone()).collect())
    }

    async fn read(&self, session: &SessionId, path: &str) -> Result<Option<(KeptFile, Bytes)>> {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(files.get(&(session.to_string(), path.to_owned())).cloned())
    }

    async fn delete_all(&self, session: &SessionId) -> Result<()> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|(of, _), _| of != session.as_str());
        Ok(())
    }
}
