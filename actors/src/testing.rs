//! A whole world in memory, for tests of everything above the store and the host: fakes on tokio's paused clock, an
//! app-server that answers as codex does, and a service that can be killed and started again.

mod agent;
mod check;
mod life;
mod logins;
mod terminal;
mod tools;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::{Arc, Once};
use std::time::Duration;

use optio_codex_protocol::config::SessionConfig;
use optio_codex_protocol::requests::Input;
use optio_hooks::{Hooks, NoHooks};
use optio_host::fake::FakeHost;
use optio_host::faulty::FaultyHost;
use optio_host::provision::{InPlace, Provision};
use optio_host::{CodexBinary, Host, TaskDir, TaskId};
use optio_oauth::fake::FakeLoginServer;
use optio_store::faulty::FaultyStore;
use optio_store::memory::MemoryStore;
use optio_store::{Clock, MemoryJournal, SessionId, TokioClock};
use serde_json::{Value, json};

pub use agent::{Behaviour, CODE, FakeAgents, login};
pub use tools::FakeTools;

use crate::conversation::Delivered;
use crate::error::SessionError;
use crate::events::SERVICE_STREAM;
use crate::faults::Faults;
use crate::hosts::{Hosts, HostsPlan};
use crate::service::Service;
use crate::session::phase::State;
use crate::session::status::SessionView;
use crate::session::{SendTurn, StopMode, TurnMode};
use crate::sessions::{Launch, OnExit};
use crate::settings::Settings;
use crate::trace::{Deed, Trace, Traced};
use life::Life;

/// A condition that does not come within this much virtual time never comes: longer than every limit of ours together.
const PATIENCE: Duration = Duration::from_secs(1800);

/// The name of the one host.
pub const HOST: &str = "fake";

/// Plays one story on a runtime of its own, for tests that play many.
pub fn play<T>(story: impl Future<Output = T>) -> T {
    actix::System::new().block_on(story)
}

/// The parts that outlive a service, and at most one service.
pub struct World {
    /// The machine.
    pub host: FakeHost,
    /// The same, as the service sees it: with faults.
    pub faulty_host: Arc<FaultyHost>,
    /// The store.
    pub memory: MemoryStore,
    /// The same, as the service sees it: with faults.
    pub faulty_store: FaultyStore,
    /// Every event.
    pub journal: Arc<MemoryJournal>,
    /// The agents.
    pub agents: FakeAgents,
    /// The login server.
    pub login_server: FakeLoginServer,
    /// The clock of the store and of everything else; it goes as tokio's does.
    pub clock: Arc<dyn Clock>,
    /// How services that are started from now on have programs provided; by what the host has, unless a test says otherwise.
    pub provision: RefCell<Arc<dyn Provision>>,
    /// Services that are started from now on keep idle seeds fresh.
    pub refresh_idle: Cell<bool>,
    /// Services that are started from now on may ask codex about a login.
    pub probe_seeds: Cell<bool>,
    /// What an operator has a say in, for services that are started from now on.
    pub hooks: RefCell<Arc<dyn Hooks>>,
    /// Which other machines there are, for services that are started from now on.
    pub other_hosts: RefCell<Option<HostsPlan>>,
    /// The fault seam of the actors.
    pub faults: Faults,
    /// What was done, by every service of this world.
    pub trace: Trace,
    life: RefCell<Option<Life>>,
}

impl World {
    /// A world with codex 0.142.5 installed and a service started. Stops tokio's clock; to be made inside an actix
    /// system, before anything of it runs.
    pub async fn new() -> Self {
        let world = Self::without_service();
        world.restart().await;
        world
    }

    /// The same without a service, for a test that breaks something first.
    pub fn without_service() -> Self {
        quiet_injected_panics();
        tokio::time::pause();
        let clock: Arc<dyn Clock> = Arc::new(TokioClock::new());
        let memory = MemoryStore::with_clock(clock.clone());
        let (host, journal) = (FakeHost::new(), MemoryJournal::new());
        let agents = FakeAgents::default();
        host.on_program({
            let agents = agents.clone();
            move |launch| agents.clone().play(launch)
        });
        let world = Self {
            faulty_host: Arc::new(FaultyHost::new(Arc::new(host.clone()))),
            faulty_store: FaultyStore::new(memory.store(journal.clone())),
            host,
            memory,
            journal,
            agents,
            login_server: FakeLoginServer::default(),
            clock,
            provision: RefCell::new(Arc::new(InPlace)),
            refresh_idle: Cell::new(false),
            probe_seeds: Cell::new(false),
            hooks: RefCell::new(Arc::new(NoHooks)),
            other_hosts: RefCell::default(),
            faults: Faults::default(),
            trace: Trace::default(),
            life: RefCell::default(),
        };
        world.codex(true);
        world
    }

    /// Installs a codex that can listen, or one that has pipes only.
    pub fn codex(&self, can_listen: bool) {
        let version = if can_listen { "0.142.5" } else { "0.100.0" };
        self.host.codex(CodexBinary { path: "/opt/codex".into(), version: version.to_owned(), can_listen });
    }

    /// The door of the service that lives.
    pub fn service(&self) -> Service {
        self.life.borrow().as_ref().expect("a service was started").service()
    }

    /// Starts a service on what is there.
    pub async fn restart(&self) {
        assert!(self.life.borrow().is_none(), "one service at a time");
        let store = self.faulty_store.store();
        let stream = store.journal.open(SERVICE_STREAM).await.expect("the service's own stream opens");
        let hosts = BTreeMap::from([(HOST.to_owned(), self.faulty_host.clone() as Arc<dyn Host>)]);
        let hosts = match self.other_hosts.borrow().clone() {
            Some(plan) => Hosts::open(hosts, plan).expect("the plan of a test makes sense"),
            None => hosts.into(),
        };
        let mut settings = Settings::new(hosts, store, stream);
        settings.faults = self.faults.clone();
        settings.trace = self.trace.clone();
        settings.login_server = Arc::new(self.login_server.clone());
        settings.clock = self.clock.clone();
        settings.provision = self.provision.borrow().clone();
        settings.refresh_idle = self.refresh_idle.get();
        settings.probe_seeds = self.probe_seeds.get();
        settings.hooks = self.hooks.borrow().clone();
        let life = Life::start(settings).await;
        self.life.replace(Some(life));
    }

    /// Kills the service as SIGKILL would: nothing of it runs any more, not even a drop, and its connections close.
    pub fn crash(&self) {
        let life = self.life.take().expect("there is a service to kill");
        life.kill();
        self.agents.clients_gone();
    }

    /// Lets the service leave in order.
    pub async fn leave(&self, on_exit: OnExit) {
        self.service().drain(on_exit).await;
        self.crash();
    }

    /// Asks for a session; `config` adds to what every conversation needs.
    pub async fn try_launch(&self, config: Value) -> Result<SessionView, SessionError> {
        let mut fields = json!({ "mode": "conversation", "instructions": "do it", "auto_start": false });
        if let (Some(fields), Value::Object(more)) = (fields.as_object_mut(), config) {
            fields.extend(more);
        }
        let launch = Launch {
            name: None,
            labels: BTreeMap::new(),
            host: HOST.to_owned(),
            config: SessionConfig::from_json(fields)?,
            idempotency: None,
        };
        self.service().launch(launch).await
    }

    /// Asks for a session that is on its way.
    pub async fn begin(&self, config: Value) -> SessionId {
        self.try_launch(config).await.expect("the session is put on record").id
    }

    /// Launches a session and waits until it is idle.
    pub async fn launch(&self, config: Value) -> SessionId {
        let id = self.begin(config).await;
        self.wait_state(&id, State::Idle).await;
        id
    }

    /// What the outside sees of a session.
    pub async fn view(&self, id: &SessionId) -> SessionView {
        self.service().session(id).await.expect("the session is on record")
    }

    /// Waits until a session is as wanted.
    pub async fn wait(
        &self,
        id: &SessionId,
        what: &str,
        wanted: impl Fn(&SessionView) -> bool,
    ) -> SessionView {
        let waiting = async {
            let mut looks = 0;
            loop {
                let view = self.view(id).await;
                if wanted(&view) {
                    return view;
                }
                pause(&mut looks).await;
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(view) => view,
            Err(_) => panic!("{what} never came: {:#?}\n{}", self.view(id).await, self.story()),
        }
    }

    /// Waits until a session has this state.
    pub async fn wait_state(&self, id: &SessionId, state: State) -> SessionView {
        self.wait(id, state.name(), |view| view.state == state).await
    }

    /// Waits until a session's run is over and its actors are gone.
    pub async fn wait_over(&self, id: &SessionId) -> SessionView {
        self.wait(id, "the end", |view| matches!(view.state, State::Ended | State::Lost)).await;
        self.until("the end of the actors", async || {
            self.service().actors(id).await.is_ok_and(|actors| actors.is_empty())
        })
        .await;
        self.view(id).await
    }

    /// Waits until something is true.
    pub async fn until(&self, what: &str, mut wanted: impl AsyncFnMut() -> bool) {
        let waiting = async {
            let mut looks = 0;
            while !wanted().await {
                pause(&mut looks).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("{what} never came\n{}", self.story());
        }
    }

    /// Waits until the trace has a deed.
    pub async fn wait_deed(&self, what: &str, wanted: impl Fn(&Deed) -> bool) {
        self.until(what, async || self.trace.deeds().iter().any(|traced| wanted(&traced.deed))).await;
    }

    /// Waits until the session's journal has an event of this name (or the text anywhere in one).
    pub async fn wait_event(&self, id: &SessionId, name: &str, text: &str) -> Value {
        let mut found = Value::Null;
        self.until(&format!("event {name} with {text:?}"), async || {
            let has = |event: &Value| event["type"] == name && event.to_string().contains(text);
            match self.events(id).into_iter().find(has) {
                Some(event) => {
                    found = event;
                    true
                }
                None => false,
            }
        })
        .await;
        found
    }

    /// Sends a message, as a new turn or into the running one.
    pub async fn say(&self, id: &SessionId, text: &str) -> Delivered {
        self.send(id, text, TurnMode::Auto).await.expect("the message is taken")
    }

    /// Sends a message this way.
    pub async fn send(&self, id: &SessionId, text: &str, mode: TurnMode) -> Result<Delivered, SessionError> {
        let input = vec![Input::Text(text.to_owned())];
        self.service().send(id, SendTurn { input, mode }).await
    }

    /// Sends a message and waits for the end of its turn.
    pub async fn talk(&self, id: &SessionId, text: &str) {
        let before = self.count(id, "turn.completed");
        self.say(id, text).await;
        self.until("the turn's end", async || self.count(id, "turn.completed") > before).await;
    }

    /// Stops a session and waits for its end.
    pub async fn stop(&self, id: &SessionId) -> SessionView {
        self.service().stop(id, StopMode::Graceful).await.expect("the stop is taken");
        self.wait_over(id).await
    }

    /// Every event of a session.
    pub fn events(&self, id: &SessionId) -> Vec<Value> {
        self.journal.values(id.as_str())
    }

    /// How many events of this name a session has.
    pub fn count(&self, id: &SessionId, name: &str) -> usize {
        self.journal.names(id.as_str()).iter().filter(|found| *found == name).count()
    }

    /// The whole answers of the agent, in the order of the journal.
    pub fn answers(&self, id: &SessionId) -> Vec<String> {
        let events = self.events(id).into_iter().filter(|event| event["type"] == "item.completed");
        let items = events.map(|event| event["codex"]["item"].clone());
        items
            .filter(|item| item["type"] == "agentMessage")
            .map(|item| item["text"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// How many deliverables of a session are kept, whether or not it is on record.
    pub async fn kept_deliverables(&self, id: &SessionId) -> usize {
        let store = self.memory.store(self.journal.clone());
        store.deliverables.list(id).await.expect("the fake itself does not fail").len()
    }

    /// Where a session's files are.
    pub fn dir(&self, id: &SessionId) -> TaskDir {
        self.host.task_dir(&TaskId::new(id.as_str()).expect("session ids are task ids"))
    }

    /// Everything that was done, in order.
    pub fn deeds(&self) -> Vec<Traced> {
        self.trace.deeds()
    }

    /// The trace as text, for a failure.
    pub fn story(&self) -> String {
        self.deeds().iter().map(|traced| format!("  {}: {:?}\n", traced.session, traced.deed)).collect()
    }
}

/// Lets some time pass between two looks: little at first, more where limits of minutes have to run out.
async fn pause(looks: &mut u32) {
    *looks += 1;
    let millis = match *looks {
        ..100 => 10,
        100..1000 => 500,
        1000.. => 5000,
    };
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// Injected panics are what the tests are about; their messages would bury the others.
fn quiet_injected_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let injected = panic.payload().downcast_ref::<String>();
            if !injected.is_some_and(|text| text.starts_with("injected panic")) {
                usual(panic);
            }
        }));
    });
}
