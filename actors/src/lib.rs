//! Life and order: who does what, when.
//!
//! ```text
//! Sessions                          root: launch, find, list, adopt, drain
//! ├─ Verifier                       finds out whether stored logins are good, keeps idle ones fresh
//! ├─ SeedLogin                      a new login by a code, from nothing to a seed
//! └─ Session                        supervisor: children, phase, the end
//!    ├─ HostLink                    the way to the host
//!    ├─ LeaseRenewer                keeps the seed's lease, lets it go when told, says when it is lost
//!    ├─ Snapshotter                 captures seed and workdir, restores
//!    ├─ CredWatcher                 sees auth.json change, saves it back
//!    ├─ Process                     the agent's process, and the proof that it is gone
//!    ├─ ConversationReader          the app-server's words ↔ journal, approvals, turns   (conversation mode)
//!    ├─ Terminal                    the people before the agent's terminal               (terminal mode)
//!    └─ LogTail                     the agent's own log, and what it hands over
//! ```
//!
//! Read [`teardown`] first (the order), then [`session`] (the supervisor), then any child: one file each, with the
//! messages it hears at the top of its handlers. [`service`] is the door for those who talk to people.

pub mod conversation;
pub mod cred_watcher;
mod error;
pub mod events;
pub mod faults;
mod hooks;
pub mod host_link;
pub mod hosts;
pub mod lease_renewer;
pub mod log_tail;
mod login;
pub mod process;
pub mod provisioner;
pub mod recovery;
pub mod seed_login;
pub mod service;
pub mod session;
pub mod sessions;
pub mod settings;
pub mod snapshotter;
pub mod supervision;
pub mod teardown;
pub mod terminal;
#[cfg(feature = "testsuite")]
pub mod testing;
mod throw_away;
pub mod trace;
pub mod verifier;

pub use error::SessionError;
pub use login::account_in;
pub use service::Service;
pub use settings::{Defaults, Settings};
