//! The way to a machine: two connections, made when they are needed and made anew when they broke.
//!
//! Control has everything that must not wait for anything large; bulk has archives, uploads and terminals. Whether the machine
//! can be reached is what control says. When to try again after a break is not decided here: every call tries, and so does
//! [`Link::connect`], but an attempt that failed is remembered for a moment, so that many calls at once are one attempt.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::sync::{OnceCell, watch};

use super::connection::{self, Connection, NoDial, Way};
use super::kills::{self, Kill, Kills};
use super::process::{START_LIMIT, Started, start};
use super::road::{Road, again};
use super::shells::{Lane, Shells};
use super::slots::Class;
use super::{dial, ptys, runtime};
use crate::error::{HostError, Result};
use crate::tail::Tail;
use crate::{Command, Dial, Duplex, ExitStatus, Output, Pty, Reach, Size, Spawned};

/// How long the failure of an attempt answers for the next ones.
const FAILURE_COUNTS: Duration = Duration::from_secs(1);
/// How long output is still read after a program has ended while something it left behind holds its pipes.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);
/// Limit of a dial; the machine connects to itself.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// Limit of the question whether control still answers when bulk broke.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// Succeeds when somebody listens at the socket `$1`, as the kernel tells.
const LISTENS: &str = r#"
while IFS= read -r line; do
    case $line in *" 00010000 "*" $1") exit 0 ;; esac
done </proc/net/unix
exit 1
"#;

/// The way to one machine.
pub(super) struct Link {
    way: Way,
    control: Road,
    bulk: Road,
    reach: watch::Sender<Reach>,
    home: OnceCell<PathBuf>,
    kills: Kills,
    /// Whether a socket was reached ever.
    dialled: AtomicBool,
    me: Weak<Link>,
}

#[async_trait]
impl Shells for Link {
    fn name(&self) -> &str {
        &self.way.name
    }

    async fn spawn(&self, lane: Lane, command: Command) -> Result<Spawned> {
        self.spawn_as(lane, Class::Work, command).await
    }
}

impl Link {
    pub(super) fn new(way: Way) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            way,
            control: Road::default(),
            bulk: Road::default(),
            reach: watch::Sender::new(Reach::Untried),
            home: OnceCell::new(),
            kills: Kills::default(),
            dialled: AtomicBool::new(false),
            me: me.clone(),
        })
    }

    pub(super) fn reach(&self) -> watch::Receiver<Reach> {
        self.reach.subscribe()
    }

    /// See [`crate::Host::connect`].
    pub(super) async fn connect(&self) -> Result<()> {
        self.connection(Lane::Control).await.map(drop)
    }

    /// See [`crate::SshHost::accept_host_key`].
    pub(super) async fn accept_host_key(&self, fingerprint: &str) -> Result<()> {
        runtime::run(connection::accept(self.way.clone(), fingerprint.to_owned())).await??;
        // What failed a moment ago failed for want of this.
        for road in [&self.control, &self.bulk] {
            *road.making.lock().await = None;
        }
        Ok(())
    }

    /// See [`crate::Host::home`]; asked once.
    pub(super) async fn home(&self) -> Result<PathBuf> {
        let asked = self.home.get_or_try_init(|| async {
            let output = self.run(Command::new(["sh", "-c", "printf %s \"$HOME\""])).await?;
            let home = PathBuf::from(String::from_utf8_lossy(&output.stdout).into_owned());
            if !output.success() || !home.is_absolute() {
                return Err(HostError::Refused {
                    what: "home directory",
                    value: home.display().to_string(),
                    why: "HOME of the host's user must be an absolute path",
                });
            }
            Ok(home)
        });
        asked.await.cloned()
    }

    /// See [`crate::Host::run`].
    pub(super) async fn run(&self, command: Command) -> Result<Output> {
        self.run_as(Class::Run, command).await
    }

    async fn run_as(&self, class: Class, mut command: Command) -> Result<Output> {
        let (limit, stdin) = (command.limit, command.stdin.take());
        // Stays there as a sign that input is to be sent; its bytes go another way.
        command.stdin = stdin.as_ref().map(|_| bytes::Bytes::new());
        let name = name_of(&command)?;
        let Started { mut input, output, errors, mut process } =
            self.start(Lane::Control, class, command, None).await?;
        let (mut out, mut err) = (Tail::default(), Tail::default());
        let feeding = async move {
            if let Some(bytes) = stdin {
                // A program may end without reading all of it: its exit status tells.
                let _ = input.write_all(&bytes).await;
            }
            drop(input);
        };
        let whole = async {
            let drained = async { tokio::join!(feeding, out.fill(Some(output)), err.fill(Some(errors))) };
            tokio::pin!(drained);
            let status = tokio::select! {
                status = process.ended() => status?,
                _ = &mut drained => return process.ended().await,
            };
            // Not an error when it runs out: a daemon that the program started may keep the pipes for its whole life.
            let _ = tokio::time::timeout(OUTPUT_GRACE, drained).await;
            Ok(status)
        };
        match tokio::time::timeout(limit, whole).await {
            Ok(status) => {
                let status: ExitStatus = status?;
                Ok(Output { status, stdout: out.into_bytes(), stderr: err.into_bytes() })
            }
            Err(_) => Err(HostError::TimedOut { what: name, limit }),
        }
    }

    /// See [`crate::Host::spawn`]: for agents on pipes, which live as long as they like.
    pub(super) async fn spawn_agent(&self, command: Command) -> Result<Spawned> {
        self.spawn_as(Lane::Control, Class::Seat, command).await
    }

    async fn spawn_as(&self, lane: Lane, class: Class, command: Command) -> Result<Spawned> {
        if command.stdin.is_some() {
            let why = "a spawned program reads its pipe; write to that";
            return Err(HostError::Refused { what: "standard input of", value: name_of(&command)?, why });
        }
        let started = self.start(lane, class, command, None).await?;
        Ok(Spawned {
            stdin: Box::new(started.input),
            stdout: Box::new(started.output),
            stderr: Box::new(started.errors),
            process: Box::new(started.process),
        })
    }

    /// See [`crate::Host::open_pty`].
    pub(super) async fn open_pty(&self, command: Command, size: Size) -> Result<Pty> {
        Ok(ptys::pty(self.start(Lane::Bulk, Class::Seat, command, Some(size)).await?))
    }

    /// See [`crate::Host::dial`].
    pub(super) async fn dial(&self, target: &Dial) -> Result<Box<dyn Duplex>> {
        let (place, setting) = match target {
            Dial::Unix(path) => (path.display().to_string(), "AllowStreamLocalForwarding"),
            Dial::Loopback(port) => (format!("127.0.0.1:{port}"), "AllowTcpForwarding"),
        };
        let unix = matches!(target, Dial::Unix(_));
        let failure = match self.dial_once(target, &place).await? {
            Ok(stream) => return Ok(stream),
            // A server that forbids sockets says the same as where nobody listens, so the kernel is asked, unless
            // sockets have been seen to work. Who listens now may have begun after we were refused: once more tells.
            Err(NoDial::NotListening)
                if unix && !self.dialled.load(Ordering::Relaxed) && self.listens(&place).await? =>
            {
                match self.dial_once(target, &place).await? {
                    Ok(stream) => return Ok(stream),
                    Err(NoDial::NotListening) => NoDial::Forbidden,
                    Err(failure) => failure,
                }
            }
            Err(failure) => failure,
        };
        Err(match failure {
            NoDial::NotListening => HostError::NotListening { target: place },
            NoDial::Gone(why) => self.unreachable(&why),
            failure => forbidden(failure, place, setting),
        })
    }

    async fn dial_once(&self, target: &Dial, place: &str) -> Result<Result<Box<dyn Duplex>, NoDial>> {
        let connection = self.connection(Lane::Control).await?;
        let (target, unix) = (target.clone(), matches!(target, Dial::Unix(_)));
        let dialling = runtime::run(async move {
            match &target {
                Dial::Unix(path) => dial::unix(&connection, path).await,
                Dial::Loopback(port) => dial::tcp(&connection, "127.0.0.1", *port).await,
            }
        });
        let Ok(dialled) = tokio::time::timeout(DIAL_LIMIT, dialling).await else {
            return Err(HostError::TimedOut { what: format!("connect to {place}"), limit: DIAL_LIMIT });
        };
        let dialled = dialled?;
        if dialled.is_ok() {
            self.dialled.fetch_or(unix, Ordering::Relaxed);
        }
        Ok(dialled)
    }

    async fn listens(&self, socket: &str) -> Result<bool> {
        Ok(self.run(Command::new(["sh", "-c", LISTENS, "sh", socket])).await?.success())
    }

    /// Sends signals now.
    pub(super) async fn kill(&self, kills: Vec<Kill>) -> Result<()> {
        self.run_as(Class::Kill, kills::command(&kills)).await.map(drop)
    }

    /// Sends a signal as soon as there is a connection, without making one. Whoever calls this waits for nothing.
    pub(super) fn kill_soon(&self, kill: Kill) {
        let Some(link) = self.me.upgrade() else { return };
        self.kills.remember([kill]);
        runtime::start(async move { link.send_kills().await });
    }

    async fn send_kills(&self) {
        if self.control.standing().is_none() {
            self.keep(Vec::new());
            return;
        }
        let kills = self.kills.take();
        if kills.is_empty() {
            return;
        }
        if let Err(error) = self.kill(kills.clone()).await {
            tracing::debug!(host = %self.way.name, %error, "kills wait for a connection");
            self.keep(kills);
        }
    }

    /// What was left behind is forgotten: later, nobody could tell whether its number is still its own.
    fn keep(&self, unsent: Vec<Kill>) {
        let waiting = self.kills.take();
        self.kills.remember(waiting.into_iter().chain(unsent).filter(|kill| !kill.left_behind));
    }

    pub(super) fn unreachable(&self, why: &str) -> HostError {
        HostError::Unreachable { host: self.way.name.clone(), why: why.to_owned() }
    }

    /// Starts a program; goes on when the caller stops waiting, and what was started then ends at once.
    async fn start(
        &self,
        lane: Lane,
        class: Class,
        command: Command,
        terminal: Option<Size>,
    ) -> Result<Started> {
        let name = name_of(&command)?;
        command.env.check()?;
        let link = self.me.upgrade().ok_or_else(|| self.unreachable("the host is being dropped"))?;
        runtime::run(async move {
            let connection = link.made(lane).await?;
            let starting = start(&link, &connection, class, &command, terminal);
            match tokio::time::timeout(START_LIMIT, starting).await {
                Ok(started) => started,
                Err(_) => Err(HostError::TimedOut {
                    what: format!("starting {name} on {}", link.way.name),
                    limit: START_LIMIT,
                }),
            }
        })
        .await?
    }

    async fn connection(&self, lane: Lane) -> Result<Arc<Connection>> {
        if let Some(connection) = self.road(lane).standing() {
            return Ok(connection);
        }
        let link = self.me.upgrade().ok_or_else(|| self.unreachable("the host is being dropped"))?;
        runtime::run(async move { link.made(lane).await }).await?
    }

    fn road(&self, lane: Lane) -> &Road {
        match lane {
            Lane::Control => &self.control,
            Lane::Bulk => &self.bulk,
        }
    }

    /// The connection, made when it does not stand. Must run in the runtime of connections.
    async fn made(self: &Arc<Self>, lane: Lane) -> Result<Arc<Connection>> {
        let road = self.road(lane);
        if let Some(connection) = road.standing() {
            return Ok(connection);
        }
        let mut failure = road.making.lock().await;
        if let Some(connection) = road.standing() {
            return Ok(connection);
        }
        if let Some((when, error)) = &*failure
            && when.elapsed() < FAILURE_COUNTS
        {
            return Err(again(&self.way.name, error));
        }
        match connection::connect(self.way.clone()).await {
            Ok(connection) => {
                *failure = None;
                let connection = Arc::new(connection);
                road.set(Some(connection.clone()));
                self.came_up(lane, &connection);
                Ok(connection)
            }
            Err(error) => {
                let answer = again(&self.way.name, &error);
                // Only control says whether the machine can be reached; while it stands, bulk may have been refused for itself.
                if lane == Lane::Control || self.control.standing().is_none() {
                    self.is_down(&error);
                }
                *failure = Some((Instant::now(), error));
                Err(answer)
            }
        }
    }

    fn came_up(self: &Arc<Self>, lane: Lane, connection: &Arc<Connection>) {
        if lane == Lane::Control {
            self.reach.send_if_modified(|reach| std::mem::replace(reach, Reach::Up) != Reach::Up);
            let link = self.clone();
            runtime::start(async move { link.send_kills().await });
        }
        let (link, connection) = (self.me.clone(), Arc::downgrade(connection));
        runtime::start(async move {
            // Not held meanwhile: a host that is dropped closes its connections.
            let Some(why) = ended(&connection).await else { return };
            if let Some(link) = link.upgrade() {
                link.broke(lane, &why).await;
            }
        });
    }

    async fn broke(&self, lane: Lane, why: &str) {
        if self.road(lane).standing().is_none() {
            self.road(lane).set(None);
        }
        match (lane, self.control.standing()) {
            (Lane::Control, None) => self.is_down(&self.unreachable(why)),
            (Lane::Control, Some(_)) => {}
            (Lane::Bulk, Some(control)) => {
                let answered = tokio::time::timeout(PING_LIMIT, control.ping()).await;
                if !matches!(answered, Ok(Ok(()))) && control.why_ended().is_none() {
                    // Its programs hold it until it ends by itself; nobody new gets it.
                    self.control.set(None);
                    self.is_down(&self.unreachable(why));
                }
            }
            // Its own end tells, or has told.
            (Lane::Bulk, None) => {}
        }
    }

    fn is_down(&self, error: &HostError) {
        let code = error.reach_code().unwrap_or("host_unreachable");
        let why = error.to_string();
        tracing::warn!(host = %self.way.name, code, %why, "host is out of reach");
        self.reach.send_modify(|reach| {
            let since = match reach {
                Reach::Down { since, .. } => *since,
                _ => SystemTime::now(),
            };
            *reach = Reach::Down { since, code, why };
        });
    }
}

/// Waits for the end of a connection without keeping it.
async fn ended(connection: &Weak<Connection>) -> Option<Arc<str>> {
    let mut ended = connection.upgrade()?.ending();
    Some(connection::ended(&mut ended).await)
}

fn forbidden(failure: NoDial, place: String, setting: &str) -> HostError {
    HostError::Program { program: "sshd".into(), why: failure.words(&place, setting) }
}

fn name_of(command: &Command) -> Result<String> {
    match command.argv.first() {
        Some(name) if !name.is_empty() => Ok(name.clone()),
        _ => Err(HostError::Refused { what: "command", value: String::new(), why: "it names no program" }),
    }
}
