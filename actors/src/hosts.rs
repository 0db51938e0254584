//! The machines that a service knows: its own, the configured ones, those added while it runs, and those that a session
//! described itself. One machine is one [`Host`] object, whoever uses it: its connections are shared.

mod description;
mod kept;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use optio_host::{Host, HostError, SshHost, SshTarget};
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::{info, warn};

pub use description::{Description, Own, WrongField, check_fingerprint, check_name};
use kept::Kept;

/// The name of the service's own machine.
pub const LOCAL: &str = "local";

/// Hosts that may be added while the service runs: many more than a person can tell apart.
const ADDED_LIMIT: usize = 500;

/// Machines of sessions that described theirs themselves. Each may have two connections; beyond that many, those that nobody
/// uses are forgotten.
const INLINE_LIMIT: usize = 200;

/// The service's own file of accepted host keys, in its data directory.
const ACCEPTED_KEYS: &str = "known_hosts";

/// Why a machine is not there, or not as it was wanted.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// Its description is not acceptable.
    #[error(transparent)]
    Wrong(#[from] WrongField),
    /// There is no host of this name.
    #[error("host {name:?} does not exist; there is {known}")]
    Unknown {
        /// The name.
        name: String,
        /// Those there are.
        known: String,
    },
    /// There is one of this name already.
    #[error("host {name} exists already")]
    Exists {
        /// The name.
        name: String,
    },
    /// It is not the API's to change.
    #[error("host {name} {why}")]
    Fixed {
        /// Which.
        name: String,
        /// Where it is from instead.
        why: &'static str,
    },
    /// Somebody needs it.
    #[error("host {name} is in use: {why}")]
    InUse {
        /// Which.
        name: String,
        /// By whom.
        why: String,
    },
    /// There are as many as there may be.
    #[error("there are {limit} {what} already")]
    TooMany {
        /// What kind of hosts.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// The file of the hosts that were added cannot be read, or written.
    #[error("{path} {why}")]
    File {
        /// Which file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The machine makes no sense to the one who shall reach it.
    #[error("host {name}: {problem}")]
    Unusable {
        /// Which.
        name: String,
        /// What it said.
        problem: Box<HostError>,
    },
}

/// Where a host is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Whoever made the service gave it.
    BuiltIn,
    /// The configuration file.
    Config,
    /// It was added while a service ran.
    Api,
    /// A session described it.
    Inline,
}

/// A machine that can be reached.
#[derive(Clone)]
pub struct Machine {
    /// What is done there.
    pub host: Arc<dyn Host>,
    /// Its key; a machine that is reached without one has none.
    pub keys: Option<Arc<dyn HostKey>>,
}

/// The key by which a machine proves who it is.
#[async_trait]
pub trait HostKey: Send + Sync + 'static {
    /// Accepts the key that the machine shows now, when it has this fingerprint. Another one is
    /// [`HostError::HostKeyUnknown`] or [`HostError::HostKeyChanged`], with the one that is shown.
    async fn accept(&self, fingerprint: &str) -> Result<(), HostError>;
}

#[async_trait]
impl HostKey for SshHost {
    async fn accept(&self, fingerprint: &str) -> Result<(), HostError> {
        self.accept_host_key(fingerprint).await
    }
}

/// Makes the object of a machine: its name, where it is, and the service's own file of accepted host keys. Contacts nobody.
pub type Connector = Arc<dyn Fn(&str, SshTarget, PathBuf) -> Result<Machine, HostError> + Send + Sync>;

/// Reaches machines by SSH.
pub fn over_ssh() -> Connector {
    Arc::new(|name, target, accepted_keys| {
        let host = Arc::new(SshHost::new(name, target, accepted_keys)?);
        Ok(Machine { host: host.clone(), keys: Some(host) })
    })
}

/// Which machines there are beside the service's own, and how they are reached.
#[derive(Clone)]
pub struct HostsPlan {
    /// Those of the configuration, by name. Their names and ways were checked.
    pub configured: BTreeMap<String, Description>,
    /// Who the service itself is.
    pub own: Own,
    /// Where the added ones and accepted host keys are kept.
    pub data_dir: PathBuf,
    /// How a machine is reached.
    pub connector: Connector,
}

/// One host of the registry.
#[derive(Clone)]
pub struct HostEntry {
    /// The name sessions know it by.
    pub name: String,
    /// The machine.
    pub machine: Machine,
    /// Where it is from.
    pub source: Source,
    /// How it is reached; a built-in one needs no way.
    pub target: Option<SshTarget>,
    /// What was said of it, where that is known.
    description: Option<Description>,
}

impl HostEntry {
    /// The host it goes through, for a person: its name, or its address where it has none.
    pub fn jump(&self) -> Option<String> {
        let named = self.description.as_ref().and_then(|described| described.jump().map(str::to_owned));
        named.or_else(|| self.target.as_ref().and_then(|target| target.jump.as_ref()).map(|jump| place(jump)))
    }

    /// Nobody but the registry has the machine.
    fn is_idle(&self) -> bool {
        // A machine behind SSH is also the door of its own key.
        Arc::strong_count(&self.machine.host) <= 1 + usize::from(self.machine.keys.is_some())
    }

    /// What a session's record says of the machine, so that the session finds it again when nothing else names it any more.
    pub fn for_record(&self) -> Option<SshTarget> {
        match self.source {
            Source::Api | Source::Inline => self.target.clone(),
            // Who changes the configuration means the sessions there, too.
            Source::BuiltIn | Source::Config => None,
        }
    }
}

type Entries = BTreeMap<String, HostEntry>;

/// The registry. Clones are the same.
#[derive(Clone)]
pub struct Hosts(Arc<Inner>);

struct Inner {
    entries: Mutex<Entries>,
    /// Held while the file is written, so that it never says less than what was answered.
    kept: Mutex<Option<Kept>>,
    /// Without it there are no other machines than the built-in ones.
    plan: Option<HostsPlan>,
}

impl From<BTreeMap<String, Arc<dyn Host>>> for Hosts {
    /// These machines and no others.
    fn from(built_in: BTreeMap<String, Arc<dyn Host>>) -> Self {
        Self(Arc::new(Inner { entries: Mutex::new(entries(built_in)), kept: Mutex::new(None), plan: None }))
    }
}

fn entries(built_in: BTreeMap<String, Arc<dyn Host>>) -> Entries {
    let entry = |(name, host): (String, Arc<dyn Host>)| {
        let machine = Machine { host, keys: None };
        (name.clone(), HostEntry { name, machine, source: Source::BuiltIn, target: None, description: None })
    };
    built_in.into_iter().map(entry).collect()
}

impl Hosts {
    /// The built-in machines, the configured ones, and those that an earlier service was given. Contacts nobody.
    pub fn open(built_in: BTreeMap<String, Arc<dyn Host>>, plan: HostsPlan) -> Result<Self, HostsError> {
        let kept = Kept::open(&plan.data_dir)?;
        let added = kept.hosts().clone();
        let configured = plan.configured.clone();
        let hosts = Self(Arc::new(Inner {
            entries: Mutex::new(entries(built_in)),
            kept: Mutex::new(Some(kept)),
            plan: Some(plan),
        }));
        for (name, description) in &configured {
            let target = description.target(Some(name), &configured)?;
            hosts.enter(&mut hosts.lock(), name, Source::Config, target, Some(description.clone()))?;
        }
        hosts.take_up(added);
        Ok(hosts)
    }

    /// Those of an earlier service. One that cannot be had any more stays in the file: what it lacks may come back.
    fn take_up(&self, added: BTreeMap<String, Map<String, Value>>) {
        let Some(plan) = &self.0.plan else { return };
        let mut all = plan.configured.clone();
        for (name, given) in added {
            if all.contains_key(&name) {
                warn!(host = %name, "a host that was added is now configured, the configuration counts");
                continue;
            }
            match Description::read(given, &plan.own) {
                Ok(description) => drop(all.insert(name, description)),
                Err(problem) => warn!(host = %name, %problem, "a host that was added cannot be used"),
            }
        }
        for (name, description) in all.iter().filter(|(name, _)| !plan.configured.contains_key(*name)) {
            let entered = match description.target(Some(name), &all) {
                Ok(target) => {
                    let description = Some(description.clone());
                    self.enter(&mut self.lock(), name, Source::Api, target, description).map(drop)
                }
                Err(problem) => Err(problem.into()),
            };
            if let Err(problem) = entered {
                warn!(host = %name, %problem, "a host that was added cannot be used");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Nothing under this lock can panic half way.
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an entry, of the object that there is for the same machine, or of a new one.
    fn enter(
        &self,
        entries: &mut Entries,
        name: &str,
        source: Source,
        target: SshTarget,
        description: Option<Description>,
    ) -> Result<HostEntry, HostsError> {
        let plan = self.plan()?;
        let same = entries.values().find(|entry| entry.target.as_ref() == Some(&target));
        let machine = match same {
            Some(same) => same.machine.clone(),
            None => {
                let accepted_keys = plan.data_dir.join(ACCEPTED_KEYS);
                let made = (plan.connector)(name, target.clone(), accepted_keys);
                made.map_err(|problem| HostsError::Unusable {
                    name: name.to_owned(),
                    problem: Box::new(problem),
                })?
            }
        };
        let entry = HostEntry { name: name.to_owned(), machine, source, target: Some(target), description };
        entries.insert(name.to_owned(), entry.clone());
        Ok(entry)
    }

    fn plan(&self) -> Result<&HostsPlan, HostsError> {
        self.0.plan.as_ref().ok_or(HostsError::Fixed {
            name: LOCAL.to_owned(),
            why: "and others that it was built with are all that this service has",
        })
    }

    /// The machine of this name.
    pub fn get(&self, name: &str) -> Option<Arc<dyn Host>> {
        self.lock().get(name).map(|entry| entry.machine.host.clone())
    }

    /// All that is known of it.
    pub fn entry(&self, name: &str) -> Result<HostEntry, HostsError> {
        let entry = self.lock().get(name).cloned();
        entry.ok_or_else(|| self.unknown(name))
    }

    /// Every host, by name.
    pub fn all(&self) -> Vec<HostEntry> {
        self.lock().values().cloned().collect()
    }

    /// True when there is no machine at all, not even the service's own.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// The machine for the service's own work: its own, or the first one that it was built with.
    pub fn own(&self) -> Option<Arc<dyn Host>> {
        let entries = self.lock();
        let first = || entries.values().find(|entry| entry.source == Source::BuiltIn);
        entries.get(LOCAL).or_else(first).map(|entry| entry.machine.host.clone())
    }

    fn unknown(&self, name: &str) -> HostsError {
        HostsError::Unknown { name: name.to_owned(), known: self.names() }
    }

    /// The names that people have given, for a refusal.
    pub fn names(&self) -> String {
        let entries = self.lock();
        let named = entries.values().filter(|entry| entry.source != Source::Inline);
        named.map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The machine of a session that is on record: the one of this name, and the one that the record describes where no
    /// name of the configuration or the API does.
    pub fn of_record(&self, name: &str, target: Option<&SshTarget>) -> Result<Arc<dyn Host>, HostsError> {
        let entry = self.entry(name);
        match (entry, target) {
            (Ok(entry), None) => Ok(entry.machine.host),
            (Ok(entry), Some(_)) if entry.source != Source::Inline => Ok(entry.machine.host),
            (_, Some(target)) => Ok(self.enter_inline(Some(name), target.clone(), None)?.machine.host),
            (Err(unknown), None) => Err(unknown),
        }
    }

    /// The name of the machine that a session describes itself: of one that is known, if it is the same, or
    /// `ssh:user@address:port`.
    pub fn describe(&self, given: Map<String, Value>) -> Result<String, HostsError> {
        let plan = self.plan()?;
        let description = Description::inline(given, &plan.own)?;
        let target = description.target(None, &self.described())?;
        Ok(self.enter_inline(None, target, Some(description))?.name)
    }

    /// `before` is the name that a machine on record had.
    fn enter_inline(
        &self,
        before: Option<&str>,
        target: SshTarget,
        description: Option<Description>,
    ) -> Result<HostEntry, HostsError> {
        let mut entries = self.lock();
        if let Some(same) = entries.values().find(|entry| entry.target.as_ref() == Some(&target)) {
            return Ok(same.clone());
        }
        let inline = |entries: &Entries| entries.values().filter(|e| e.source == Source::Inline).count();
        if inline(&entries) >= INLINE_LIMIT {
            entries.retain(|_, entry| entry.source != Source::Inline || !entry.is_idle());
        }
        if inline(&entries) >= INLINE_LIMIT {
            let what = "machines of sessions that describe theirs";
            return Err(HostsError::TooMany { what, limit: INLINE_LIMIT });
        }
        // A name that people chose was taken away; it may mean another machine some day.
        let before = before.filter(|name| check_name(name).is_err() && *name != LOCAL);
        let plain = before.map_or_else(|| place(&target), str::to_owned);
        // The same place may be reached in several ways: with another key, say.
        let numbered = (2..).map(|number| format!("{}~{number}", place(&target)));
        let mut names = std::iter::once(plain.clone()).chain(numbered);
        let name = names.find(|name| !entries.contains_key(name)).unwrap_or(plain);
        self.enter(&mut entries, &name, Source::Inline, target, description)
    }

    /// What others may go through.
    fn described(&self) -> BTreeMap<String, Description> {
        let entries = self.lock();
        let named = entries.values().filter(|entry| entry.source != Source::Inline);
        named.filter_map(|entry| Some((entry.name.clone(), entry.description.clone()?))).collect()
    }

    /// Adds a host, for this service and the next. Waits for the disk: to be called where that holds nobody up.
    pub fn add(&self, name: &str, given: Map<String, Value>) -> Result<HostEntry, HostsError> {
        check_name(name)?;
        let plan = self.plan()?;
        let description = Description::read(given, &plan.own)?;
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let exists = self.lock().contains_key(name);
        if exists {
            return Err(HostsError::Exists { name: name.to_owned() });
        }
        let target = description.target(Some(name), &self.described())?;
        if kept.as_ref().is_some_and(|kept| kept.hosts().len() >= ADDED_LIMIT) {
            return Err(HostsError::TooMany { what: "hosts that were added", limit: ADDED_LIMIT });
        }
        let given = description.given().clone();
        let entry = self.enter(&mut self.lock(), name, Source::Api, target, Some(description))?;
        if let Some(kept) = kept.as_mut()
            && let Err(problem) = kept.change(|hosts| drop(hosts.insert(name.to_owned(), given)))
        {
            self.lock().remove(name);
            return Err(problem);
        }
        info!(host = name, "host is added");
        Ok(entry)
    }

    /// Forgets a host that was added, or one that a session described. Whoever uses it keeps it until they are done; whether
    /// anybody does is the caller's question. Waits for the disk, as [`Hosts::add`] does.
    pub fn remove(&self, name: &str) -> Result<(), HostsError> {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let in_file = kept.as_mut().filter(|kept| kept.hosts().contains_key(name));
        self.removable(name, in_file.is_some())?;
        if let Some(kept) = in_file {
            kept.change(|hosts| drop(hosts.remove(name)))?;
        }
        self.lock().remove(name);
        info!(host = name, "host is removed");
        Ok(())
    }

    /// Refuses to remove what is not the API's, and what others go through.
    pub fn check_removable(&self, name: &str) -> Result<(), HostsError> {
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        self.removable(name, kept.as_ref().is_some_and(|kept| kept.hosts().contains_key(name)))
    }

    fn removable(&self, name: &str, in_file: bool) -> Result<(), HostsError> {
        let entry = match self.entry(name) {
            // One that cannot be used stands in the file alone.
            Err(HostsError::Unknown { .. }) if in_file => return Ok(()),
            entry => entry?,
        };
        let why = match entry.source {
            Source::BuiltIn => "is the service's own machine",
            Source::Config => "is in the configuration file; remove it there and start the service again",
            Source::Api | Source::Inline => {
                return match self.described().iter().find(|(_, other)| other.jump() == Some(name)) {
                    Some((other, _)) => Err(HostsError::InUse {
                        name: name.to_owned(),
                        why: format!("host {other} goes through it"),
                    }),
                    None => Ok(()),
                };
            }
        };
        Err(HostsError::Fixed { name: name.to_owned(), why })
    }
}

/// A machine as people write it.
fn place(target: &SshTarget) -> String {
    let SshTarget { user, address, port, .. } = target;
    match address.contains(':') {
        true => format!("ssh:{user}@[{address}]:{port}"),
        false => format!("ssh:{user}@{address}:{port}"),
    }
}
