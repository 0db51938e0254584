//! One connection to one machine: made, known to be there, and known to be gone.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use russh::client::{self, Handle, Msg};
use russh::keys::{Algorithm, PublicKey};
use russh::{Channel, ChannelOpenFailure, Error, Preferred, cipher};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::gate::{Accepting, Case, Ended, Findings, Gate};
use super::host_key::{self, Known};
use super::patient::Patient;
use super::slots::{Class, Slot, Slots};
use super::target::SshTarget;
use super::{dial, login, runtime};
use crate::Duplex;
use crate::error::{HostError, Result};

/// Limit of one TCP connect. A machine that is there answers within a round trip.
const TCP_LIMIT: Duration = Duration::from_secs(5);
/// Limit of the whole way: name, TCP, keys, login, and all of it again for a jump host.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A cut is found after this, three times over: the third unanswered one ends the connection.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Unanswered ones that are borne.
const KEEPALIVE_MAX: usize = 2;
/// What a server may send on a channel before it must wait; russh gives it back as soon as a packet is taken.
const WINDOW: u32 = 2 << 20;
/// In this order: AES in hardware is twice as fast here as what russh prefers.
const CIPHERS: &[cipher::Name] =
    &[cipher::AES_256_GCM, cipher::CHACHA20_POLY1305, cipher::AES_256_CTR, cipher::AES_128_CTR];

/// One connection, logged in.
pub(super) struct Connection {
    handle: Handle<Gate>,
    ended: watch::Receiver<Ended>,
    slots: Slots,
    /// What it goes through must live as long as it.
    _through: Option<Arc<Connection>>,
}

/// The way to a machine, as far as it is the same each time.
#[derive(Clone)]
pub(super) struct Way {
    /// The host's name in the configuration.
    pub(super) name: String,
    /// Which machine.
    pub(super) target: SshTarget,
    /// The file of accepted keys.
    pub(super) accepted: PathBuf,
}

impl Way {
    /// What errors call the machine: the jump hosts of a host are told from it.
    fn shown(&self, jump: &SshTarget) -> String {
        format!("{} (its jump host {}:{})", self.name, jump.address, jump.port)
    }
}

/// Makes a connection, within [`CONNECT_LIMIT`]. Must run in the runtime of connections.
pub(super) async fn connect(way: Way) -> Result<Connection> {
    let name = way.name.clone();
    limited(&name, async move { go(&way, &way.target, &way.name, None).await }).await
}

/// Goes as far as the machine's key, and writes it down if this is its fingerprint; a jump host's too.
pub(super) async fn accept(way: Way, fingerprint: String) -> Result<()> {
    let accepting = Accepting { fingerprint, done: Arc::default() };
    let (name, done) = (way.name.clone(), accepting.done.clone());
    let wanted = accepting.fingerprint.clone();
    let met = limited(&name, async move {
        let met = meet(&way, &way.target, &way.name, Some(&accepting)).await?;
        Ok(host_key::fingerprint(&met.key))
    });
    match met.await {
        _ if done.load(Ordering::Relaxed) => Ok(()),
        Ok(shown) if shown == wanted => Ok(()),
        Ok(_) => {
            let why = "the host shows another key, which is accepted already";
            Err(HostError::Refused { what: "host key", value: wanted, why })
        }
        Err(error) => Err(error),
    }
}

async fn limited<T>(name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(CONNECT_LIMIT, work).await {
        Ok(done) => done,
        Err(_) => Err(unreachable(name, format!("there was no connection within {CONNECT_LIMIT:?}"))),
    }
}

/// A machine that is the one that is meant, and has not let us in yet.
struct Met {
    handle: Handle<Gate>,
    key: PublicKey,
    ended: watch::Receiver<Ended>,
    through: Option<Arc<Connection>>,
}

async fn go(way: &Way, target: &SshTarget, shown: &str, accepting: Option<&Accepting>) -> Result<Connection> {
    let Met { mut handle, ended, through, .. } = meet(way, target, shown, accepting).await?;
    login::log_in(shown, target, &mut handle).await.map_err(|error| match ended.borrow().as_ref() {
        // Russh reports a connection that broke as a login that failed.
        Some(why) if !turned_away(&error) => unreachable(shown, why.to_string()),
        _ => error,
    })?;
    Ok(Connection { handle, ended, slots: Slots::new(target.max_sessions), _through: through })
}

async fn meet(way: &Way, target: &SshTarget, shown: &str, accepting: Option<&Accepting>) -> Result<Met> {
    let known = {
        let (target, accepted) = (target.clone(), way.accepted.clone());
        Arc::new(crate::local::blocking(move || Known::load(&target, &accepted)).await?)
    };
    let mut without: Vec<Algorithm> = Vec::new();
    let mut first_refusal = None;
    loop {
        let (stream, through) = reach(way, target, shown, accepting).await?;
        let case = Case::default();
        let gate = Gate {
            known: known.clone(),
            case: case.clone(),
            shown: shown.to_owned(),
            name: way.name.clone(),
            target: target.clone(),
            accepted: way.accepted.clone(),
            accepting: accepting.cloned(),
            ended: watch::Sender::new(None),
        };
        let ended = gate.ended.subscribe();
        let config = Arc::new(config(&known, &without));
        let made = client::connect_stream(config, Patient::new(stream), gate).await;
        let Findings { refusal, key } = case.take();
        match (made, refusal, key) {
            (Ok(handle), None, Some(key)) => return Ok(Met { handle, key, ended, through }),
            (_, Some(refusal), key) => {
                // A fingerprint does not say of which kind its key is; the machine may have another.
                without.extend(key.filter(|_| known.may_have_another()).map(|key| key.algorithm()));
                let refusal = first_refusal.take().unwrap_or(refusal);
                if without.is_empty() || known.kinds(&without).is_empty() {
                    return Err(refusal);
                }
                first_refusal = Some(refusal);
            }
            // It has no other.
            (Err(Error::NoCommonAlgo { .. }), None, _) if first_refusal.is_some() => {
                return Err(first_refusal.unwrap_or_else(|| unreachable(shown, "it has no key".into())));
            }
            (Err(error), None, _) => return Err(unreachable(shown, no_session(&error))),
            (Ok(_), None, None) => return Err(unreachable(shown, "it showed no key".into())),
        }
    }
}

/// A stream to the machine's SSH server.
async fn reach(
    way: &Way,
    target: &SshTarget,
    shown: &str,
    accepting: Option<&Accepting>,
) -> Result<(Box<dyn Duplex>, Option<Arc<Connection>>)> {
    let Some(jump) = &target.jump else {
        return Ok((Box::new(tcp(target, shown).await?), None));
    };
    let through = Box::pin(go(way, jump, &way.shown(jump), accepting)).await?;
    let through = Arc::new(through);
    let stream = dial::tcp(&through, &target.address, target.port).await.map_err(|failure| {
        let place = format!("{}:{}", target.address, target.port);
        unreachable(&way.shown(jump), failure.words(&place, "AllowTcpForwarding"))
    })?;
    Ok((stream, Some(through)))
}

async fn tcp(target: &SshTarget, shown: &str) -> Result<TcpStream> {
    let address = target.address.as_str();
    let addresses: Vec<_> = match tokio::net::lookup_host((address, target.port)).await {
        Ok(addresses) => addresses.collect(),
        // The resolver itself could not be asked: that says nothing about the name.
        Err(error) if error.to_string().contains("Temporary failure") => {
            return Err(unreachable(shown, format!("the name {address:?} cannot be looked up now: {error}")));
        }
        Err(error) => {
            let (host, address) = (shown.to_owned(), address.to_owned());
            return Err(HostError::NameUnknown { host, address, why: error.to_string() });
        }
    };
    let mut why = format!("{address} has no address");
    for address in addresses {
        why = match tokio::time::timeout(TCP_LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let set = stream.set_nodelay(true);
                set.map_err(|error| HostError::io(format!("set up the connection to {address}"), error))?;
                return Ok(stream);
            }
            Ok(Err(error)) => format!("{address}: {error}"),
            Err(_) => format!("{address} did not answer within {TCP_LIMIT:?}"),
        };
    }
    Err(unreachable(shown, why))
}

fn config(known: &Known, without: &[Algorithm]) -> client::Config {
    client::Config {
        preferred: Preferred {
            key: known.kinds(without).into(),
            cipher: CIPHERS.into(),
            ..Preferred::DEFAULT
        },
        window_size: WINDOW,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_MAX,
        nodelay: true,
        ..client::Config::default()
    }
}

/// Why there is no session on a stream that is there.
fn no_session(error: &Error) -> String {
    match error {
        Error::NoCommonAlgo { kind, theirs, .. } => {
            let theirs = theirs.join(", ");
            let hint = if theirs.contains("rsa") { "; RSA keys are not supported" } else { "" };
            format!("we have no {kind:?} algorithm in common, it has {theirs}{hint}")
        }
        Error::Disconnect | Error::HUP | Error::Version => {
            format!("what answers there speaks no SSH, or hung up: {error}")
        }
        error => format!("what answers there is no usable SSH server: {error}"),
    }
}

fn turned_away(error: &HostError) -> bool {
    matches!(error, HostError::LoginUnsupported { .. })
        || matches!(error, HostError::LoginRefused { why, .. } if why.ends_with("it takes none of them"))
}

/// Waits for the end of a connection, see [`Connection::ending`].
pub(super) async fn ended(ending: &mut watch::Receiver<Ended>) -> Arc<str> {
    let why = ending.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
    why.unwrap_or_else(|| "the connection was closed".into())
}

impl Connection {
    /// Why it ended; `None` while it is there, as far as is known.
    pub(super) fn why_ended(&self) -> Ended {
        let ended = self.ended.borrow().clone();
        ended.or_else(|| self.handle.is_closed().then(|| "the connection is closed".into()))
    }

    /// Tells its end, to whoever does not keep it.
    pub(super) fn ending(&self) -> watch::Receiver<Ended> {
        self.ended.clone()
    }

    /// Asks the machine for any answer.
    pub(super) async fn ping(&self) -> std::result::Result<(), Error> {
        self.handle.send_ping().await
    }

    /// Opens a session as soon as there is room for it; waits as long as it takes, so the caller has a limit.
    pub(super) async fn session(
        self: &Arc<Self>,
        class: Class,
    ) -> std::result::Result<(Opened, Slot), Arc<str>> {
        loop {
            let mut slot = self.slots.take(class).await;
            let connection = self.clone();
            // Goes on when nobody waits any more: what the server opens must be closed.
            let opening = runtime::run(async move {
                connection.handle.channel_open_session().await.map(|channel| Opened(Some(channel)))
            });
            match opening.await.map_err(|error| error.to_string())? {
                Ok(channel) => {
                    self.slots.opened(&mut slot);
                    return Ok((channel, slot));
                }
                // All the same whether there are too many, or none are given at all: sshd says the same word.
                Err(Error::ChannelOpenFailure(_)) => self.slots.refused(slot, class),
                Err(error) => return Err(self.why_ended().unwrap_or_else(|| error.to_string().into())),
            }
        }
    }

    pub(super) async fn to_tcp(&self, address: &str, port: u16) -> std::result::Result<Channel<Msg>, NoDial> {
        let opened = self.handle.channel_open_direct_tcpip(address, port.into(), "127.0.0.1", 0).await;
        opened.map_err(|error| self.no_dial(error))
    }

    pub(super) async fn to_socket(&self, path: &str) -> std::result::Result<Channel<Msg>, NoDial> {
        self.handle.channel_open_direct_streamlocal(path).await.map_err(|error| self.no_dial(error))
    }

    fn no_dial(&self, error: Error) -> NoDial {
        match error {
            Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed) => NoDial::NotListening,
            Error::ChannelOpenFailure(
                ChannelOpenFailure::AdministrativelyProhibited | ChannelOpenFailure::UnknownChannelType,
            ) => NoDial::Forbidden,
            Error::ChannelOpenFailure(other) => NoDial::Refused(format!("{other:?}")),
            error => NoDial::Gone(self.why_ended().unwrap_or_else(|| error.to_string().into())),
        }
    }
}

/// A channel that is closed when it is dropped; russh only forgets it.
pub(super) struct Opened(Option<Channel<Msg>>);

impl Opened {
    pub(super) fn channel(&self) -> &Channel<Msg> {
        // Only `take` leaves nothing, and it takes the whole.
        self.0.as_ref().expect("a channel that was not taken is there")
    }

    /// For whoever sees to it that it is closed.
    pub(super) fn take(mut self) -> Channel<Msg> {
        self.0.take().expect("a channel is taken once")
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(channel) = self.0.take() {
            runtime::start(async move {
                let _ = channel.close().await;
            });
        }
    }
}

/// Why nothing was reached through a connection.
#[derive(Debug)]
pub(super) enum NoDial {
    NotListening,
    /// The server's configuration forbids it.
    Forbidden,
    Refused(String),
    /// The connection itself is gone.
    Gone(Arc<str>),
}

impl NoDial {
    /// In words; `setting` is the server's that allows it.
    pub(super) fn words(&self, place: &str, setting: &str) -> String {
        match self {
            Self::NotListening => format!("it cannot connect to {place}"),
            Self::Forbidden => {
                format!(
                    "its SSH server forbids connections to {place}; `{setting} yes` in its sshd_config allows them"
                )
            }
            Self::Refused(why) => format!("it does not connect to {place}: {why}"),
            Self::Gone(why) => why.to_string(),
        }
    }
}

fn unreachable(host: &str, why: String) -> HostError {
    HostError::Unreachable { host: host.to_owned(), why }
}
