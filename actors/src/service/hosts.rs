//! The machines as people see them, add them and take them away.

use jiff::Timestamp;
use optio_host::Reach;
use optio_host::ssh::UnknownKey;
use optio_store::{PageRequest, RecordFilter};
use serde::Serialize;
use serde_json::{Map, Value};

use super::Service;
use crate::error::SessionError;
use crate::hosts::{HostEntry, HostsError, Source, WrongField, check_fingerprint};
use crate::session::record::SessionRecord;

/// A host as the API shows it. No secret: keys are named by nothing here.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HostView {
    /// Its name.
    pub name: String,
    /// `local` or `ssh`.
    pub kind: &'static str,
    /// Where it is.
    #[serde(flatten)]
    pub target: Option<TargetView>,
    /// Where it is from.
    pub source: Source,
    /// Whether it can be reached, as far as that is known.
    #[serde(flatten)]
    pub reach: ReachView,
    /// Sessions that live there now.
    pub sessions: usize,
}

/// How a host is reached.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TargetView {
    /// A name or an IP address.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// Who the service is there.
    pub user: String,
    /// The host it goes through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jump: Option<String>,
    /// How it proves who it is: `pinned`, `known_hosts` or `trust_on_first_use`.
    pub host_key: &'static str,
    /// Programs at a time on one connection.
    pub max_sessions: u16,
}

/// Whether a host can be reached.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ReachView {
    /// Nobody has wanted anything of it yet.
    Untried,
    /// It answers.
    Up,
    /// It does not.
    Down {
        /// When that was found out.
        since: Timestamp,
        /// The stable word for it.
        code: &'static str,
        /// What was tried last, in words.
        reason: String,
    },
}

impl From<Reach> for ReachView {
    fn from(reach: Reach) -> Self {
        match reach {
            Reach::Untried => Self::Untried,
            Reach::Up => Self::Up,
            Reach::Down { since, code, why } => Self::Down {
                // A clock outside of what a timestamp can say is wrong anyway.
                since: Timestamp::try_from(since).unwrap_or(Timestamp::UNIX_EPOCH),
                code,
                reason: why,
            },
        }
    }
}

impl HostView {
    fn of(entry: &HostEntry, sessions: usize) -> Self {
        let target = entry.target.as_ref().map(|target| TargetView {
            address: target.address.clone(),
            port: target.port,
            user: target.user.clone(),
            jump: entry.jump(),
            host_key: match (target.host_keys.pinned.is_empty(), target.host_keys.unknown) {
                (false, _) => "pinned",
                (true, UnknownKey::Refuse) => "known_hosts",
                (true, UnknownKey::Trust) => "trust_on_first_use",
            },
            max_sessions: target.max_sessions,
        });
        Self {
            name: entry.name.clone(),
            kind: if target.is_some() { "ssh" } else { "local" },
            target,
            source: entry.source,
            reach: entry.machine.host.reach().borrow().clone().into(),
            sessions,
        }
    }
}

impl Service {
    /// Every host, by name.
    pub async fn hosts(&self) -> Result<Vec<HostView>, SessionError> {
        let live = self.live_hosts().await?;
        let count = |name: &str| live.iter().filter(|host| *host == name).count();
        Ok(self.settings.hosts.all().iter().map(|entry| HostView::of(entry, count(&entry.name))).collect())
    }

    /// One host.
    pub async fn host(&self, name: &str) -> Result<HostView, SessionError> {
        let entry = self.settings.hosts.entry(name)?;
        let live = self.live_hosts().await?;
        Ok(HostView::of(&entry, live.iter().filter(|host| *host == name).count()))
    }

    /// The host of each live session.
    async fn live_hosts(&self) -> Result<Vec<String>, SessionError> {
        let live = self.ask("the root", self.root.send(super::ShowLive)).await?;
        Ok(live.into_values().map(|view| view.host).collect())
    }

    /// Adds a host behind SSH. `fields` are those of the configuration file.
    pub async fn add_host(&self, name: &str, fields: Map<String, Value>) -> Result<HostView, SessionError> {
        let (hosts, added) = (self.settings.hosts.clone(), name.to_owned());
        on_disk(move || hosts.add(&added, fields).map(drop)).await?;
        self.host(name).await
    }

    /// Forgets a host that was added, or that a session described. Refused while a session is there whose run is not
    /// over, or whose directory was kept.
    pub async fn remove_host(&self, name: &str) -> Result<(), SessionError> {
        self.settings.hosts.check_removable(name)?;
        if let Some(session) = self.session_on(name).await? {
            let why = format!("session {session} is there; stop it, or delete it if its directory was kept");
            return Err(HostsError::InUse { name: name.to_owned(), why }.into());
        }
        let (hosts, name) = (self.settings.hosts.clone(), name.to_owned());
        on_disk(move || hosts.remove(&name)).await
    }

    /// A session on this host that something lies or lives for.
    async fn session_on(&self, host: &str) -> Result<Option<String>, SessionError> {
        let filter = RecordFilter { host: Some(host.to_owned()), ..RecordFilter::default() };
        let mut page = PageRequest { cursor: None, limit: PageRequest::MAX };
        loop {
            let rows = self.settings.store.records.list(&filter, &page).await?;
            for row in &rows.data {
                let record = SessionRecord::read(row);
                if record.is_ok_and(|record| record.is_finished() && record.workdir_kept.is_none()) {
                    continue;
                }
                return Ok(Some(row.id.to_string()));
            }
            match rows.next_cursor {
                Some(cursor) => page.cursor = Some(cursor),
                None => return Ok(None),
            }
        }
    }

    /// The name of the machine that a request for a session describes, see [`crate::hosts::Hosts::describe`].
    pub fn describe_host(&self, fields: Map<String, Value>) -> Result<String, HostsError> {
        self.settings.hosts.describe(fields)
    }

    /// Accepts the key that a host shows, when it has this fingerprint.
    pub async fn accept_host_key(&self, name: &str, fingerprint: &str) -> Result<HostView, SessionError> {
        let entry = self.settings.hosts.entry(name)?;
        if !check_fingerprint(fingerprint) {
            let why = "it must be a fingerprint as `ssh-keygen -l` shows it: SHA256:…".to_owned();
            return Err(HostsError::from(WrongField { field: "fingerprint".to_owned(), why }).into());
        }
        let Some(keys) = entry.machine.keys else {
            let why = "is reached without a host key";
            return Err(HostsError::Fixed { name: name.to_owned(), why }.into());
        };
        keys.accept(fingerprint).await?;
        self.host(name).await
    }
}

/// Does on a thread of its own what waits for the disk. It is done also when nobody waits for it any more.
async fn on_disk(
    doing: impl FnOnce() -> Result<(), HostsError> + Send + 'static,
) -> Result<(), SessionError> {
    match tokio::task::spawn_blocking(doing).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(SessionError::NoAnswer { what: "the disk" }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use serde_json::json;

    use super::*;

    #[test]
    fn a_host_that_is_down_says_since_when_and_why() {
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
        let down = Reach::Down { since, code: "host_unreachable", why: "no route".to_owned() };
        assert_eq!(
            json!(ReachView::from(down)),
            json!({ "state": "down", "since": "1970-01-01T00:01:00Z", "code": "host_unreachable", "reason": "no route" })
        );
        assert_eq!(json!(ReachView::from(Reach::Untried)), json!({ "state": "untried" }));
    }
}
