//! Which machines a service knows, and that one machine is one object whoever uses it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use optio_actors::Settings;
use optio_actors::hosts::{Description, HostKey, Hosts, HostsError, HostsPlan, Machine, Own, Source};
use optio_actors::session::StopMode;
use optio_actors::session::phase::State;
use optio_actors::sessions::Launch;
use optio_actors::testing::{World, play};
use optio_codex_protocol::config::SessionConfig;
use optio_host::fake::FakeHost;
use optio_host::provision::Tool;
use optio_host::ssh::Login;
use optio_host::{Host, HostError};
use optio_store::MemoryJournal;
use optio_store::memory::MemoryStore;
use serde_json::{Map, Value, json};

/// A machine as [`optio_host::SshHost`] is one: the door of its own key.
struct Far(#[allow(dead_code)] Arc<dyn Host>);

#[async_trait]
impl HostKey for Far {
    async fn accept(&self, _: &str) -> Result<(), HostError> {
        Ok(())
    }
}

/// The names of the machines that were made.
type Made = Arc<Mutex<Vec<String>>>;

fn plan(dir: &Path, configured: Value, made: &Made) -> HostsPlan {
    let own = Own { user: Some("ada".to_owned()), home: Some("/home/ada".into()), login: Login::Agent(None) };
    let described =
        |(name, fields): (&String, &Value)| (name.clone(), Description::read(map(fields), &own).unwrap());
    let made = made.clone();
    HostsPlan {
        configured: configured.as_object().unwrap().iter().map(described).collect(),
        own: own.clone(),
        data_dir: dir.to_owned(),
        connector: Arc::new(move |name, _, _| {
            made.lock().unwrap().push(name.to_owned());
            let host: Arc<dyn Host> = Arc::new(FakeHost::new());
            Ok(Machine { keys: Some(Arc::new(Far(host.clone()))), host })
        }),
    }
}

fn map(fields: &Value) -> Map<String, Value> {
    fields.as_object().unwrap().clone()
}

fn open(dir: &Path, configured: Value) -> Hosts {
    Hosts::open(local(), plan(dir, configured, &Made::default())).unwrap()
}

fn local() -> BTreeMap<String, Arc<dyn Host>> {
    BTreeMap::from([("local".to_owned(), Arc::new(FakeHost::new()) as Arc<dyn Host>)])
}

fn names(hosts: &Hosts) -> Vec<String> {
    hosts.all().into_iter().map(|entry| entry.name).collect()
}

fn is_one(a: Option<Arc<dyn Host>>, b: Option<Arc<dyn Host>>) -> bool {
    Arc::ptr_eq(&a.unwrap(), &b.unwrap())
}

#[tokio::test]
async fn a_program_of_this_machine_is_not_looked_for_on_another() {
    let dir = tempfile::tempdir().unwrap();
    let configured = json!({
        "box": { "address": "box", "codex": "~/bin/codex" },
        "bare": { "address": "bare" },
    });
    let store = MemoryStore::new().store(MemoryJournal::new());
    let stream = store.journal.open("service").await.unwrap();
    let (codex, ttyd) = (Some("/here/codex".into()), Some("/here/ttyd".into()));
    let settings = Settings { codex, ttyd, ..Settings::new(open(dir.path(), configured), store, stream) };
    let config = SessionConfig::from_json(json!({ "mode": "conversation", "instructions": "" })).unwrap();
    let program = |tool, host| settings.wishes(tool, &config, host).program;
    assert_eq!(program(Tool::Codex, "local"), Some("/here/codex".into()));
    assert_eq!(program(Tool::Ttyd, "local"), Some("/here/ttyd".into()));
    // Said of that machine, and for it to read: its home is not ours.
    assert_eq!(program(Tool::Codex, "box"), Some("~/bin/codex".into()));
    assert_eq!((program(Tool::Codex, "bare"), program(Tool::Ttyd, "box")), (None, None));
}

#[test]
fn one_machine_is_one_object_whoever_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let made = Made::default();
    let configured =
        json!({ "box": { "address": "box", "user": "dev" }, "crate": { "address": "box", "user": "dev" } });
    let hosts = Hosts::open(local(), plan(dir.path(), configured, &made)).unwrap();
    assert!(is_one(hosts.get("box"), hosts.get("crate")));
    let describe = |fields: Value| hosts.describe(map(&fields)).unwrap();
    assert_eq!(describe(json!({ "host": "box", "user": "dev" })), "box");

    let first = describe(json!({ "host": "other", "user": "dev", "key_path": "/k" }));
    assert_eq!(first, "ssh:dev@other:22");
    assert_eq!(describe(json!({ "address": "other", "port": 22, "user": "dev", "key_file": "/k" })), first);
    // The same place with another key is another way there, and must not pass for the first one.
    let second = describe(json!({ "host": "other", "user": "dev", "key_path": "/k2" }));
    assert_eq!(second, "ssh:dev@other:22~2");
    assert!(!is_one(hosts.get(&first), hosts.get(&second)));
    assert_eq!(describe(json!({ "host": "::1", "user": "dev", "port": 2222 })), "ssh:dev@[::1]:2222");
    assert_eq!(
        *made.lock().unwrap(),
        ["box", "ssh:dev@other:22", "ssh:dev@other:22~2", "ssh:dev@[::1]:2222"]
    );
}

#[test]
fn many_who_describe_one_machine_at_once_share_it() {
    let dir = tempfile::tempdir().unwrap();
    let made = Made::default();
    let hosts = Hosts::open(local(), plan(dir.path(), json!({}), &made)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| hosts.describe(map(&json!({ "host": "box" }))).unwrap());
        }
    });
    assert_eq!(*made.lock().unwrap(), ["ssh:ada@box:22"]);
}

#[test]
fn machines_that_nobody_uses_are_forgotten_when_there_are_many() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = open(dir.path(), json!({}));
    let describe = |number: usize| hosts.describe(map(&json!({ "host": format!("box{number}") })));
    for number in 0..1000 {
        describe(number).unwrap();
    }
    assert!(hosts.all().len() < 300, "{}", hosts.all().len());
    // In use, none of them is taken away.
    let mut used = Vec::new();
    let refused = (1000..2000).find_map(|number| match describe(number) {
        Ok(name) => {
            used.push((hosts.get(&name).unwrap(), name));
            None
        }
        Err(refused) => Some(refused),
    });
    assert!(matches!(refused, Some(HostsError::TooMany { .. })), "{refused:?}");
    for (host, name) in used {
        assert!(Arc::ptr_eq(&host, &hosts.get(&name).unwrap()), "{name}");
    }
}

#[test]
fn what_was_added_is_there_at_the_next_start_until_it_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = open(dir.path(), json!({ "gate": { "address": "gate" } }));
    let given = json!({ "address": "box", "user": "dev", "jump": "gate", "key_file": "~/k" });
    let before = hosts.add("box", map(&given)).unwrap();
    let file = dir.path().join("hosts.json");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(hosts.add("box", map(&given)), Err(HostsError::Exists { .. })));
    assert!(matches!(hosts.add("local", map(&given)), Err(HostsError::Wrong(_))));

    let hosts = open(dir.path(), json!({ "gate": { "address": "gate" } }));
    let entry = hosts.entry("box").unwrap();
    assert_eq!((entry.target.as_ref(), entry.source), (before.target.as_ref(), Source::Api));
    assert_eq!(entry.jump().as_deref(), Some("gate"));
    hosts.remove("box").unwrap();
    assert!(hosts.get("box").is_none());
    assert_eq!(names(&open(dir.path(), json!({}))), ["local"]);
}

#[test]
fn an_added_host_that_cannot_be_used_stays_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let gate = json!({ "gate": { "address": "gate" } });
    let hosts = open(dir.path(), gate.clone());
    hosts.add("box", map(&json!({ "address": "box", "jump": "gate" }))).unwrap();
    hosts.add("two", map(&json!({ "address": "two" }))).unwrap();

    let hosts = open(dir.path(), json!({}));
    assert_eq!(names(&hosts), ["local", "two"]);
    hosts.remove("two").unwrap();
    hosts.add("three", map(&json!({ "address": "three" }))).unwrap();
    assert_eq!(names(&open(dir.path(), gate.clone())), ["box", "gate", "local", "three"]);
    // It can be taken away where it is of no use.
    hosts.remove("box").unwrap();
    assert_eq!(names(&open(dir.path(), gate)), ["gate", "local", "three"]);
    assert!(matches!(hosts.remove("box"), Err(HostsError::Unknown { .. })));
}

#[test]
fn the_configuration_wins_over_what_was_added() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), json!({})).add("box", map(&json!({ "address": "old" }))).unwrap();
    let entry = open(dir.path(), json!({ "box": { "address": "new" } })).entry("box").unwrap();
    assert_eq!((entry.target.unwrap().address.as_str(), entry.source), ("new", Source::Config));
}

#[test]
fn a_file_that_cannot_be_read_stops_the_start_and_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hosts.json");
    std::fs::write(&file, "{ \"hosts\": ").unwrap();
    let refused = Hosts::open(local(), plan(dir.path(), json!({}), &Made::default())).err().unwrap();
    assert!(refused.to_string().contains("hosts.json"), "{refused}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{ \"hosts\": ");
}

#[test]
fn a_host_that_cannot_be_kept_is_not_added() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = open(dir.path(), json!({}));
    std::fs::create_dir(dir.path().join("hosts.json")).unwrap();
    let refused = hosts.add("box", map(&json!({ "address": "box" })));
    assert!(matches!(refused, Err(HostsError::File { .. })), "{:?}", refused.err());
    assert!(hosts.get("box").is_none());
}

#[test]
fn what_others_go_through_and_what_is_configured_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = open(dir.path(), json!({ "box": { "address": "box" } }));
    hosts.add("gate", map(&json!({ "address": "gate" }))).unwrap();
    hosts.add("far", map(&json!({ "address": "far", "jump": "gate" }))).unwrap();
    let why = |name: &str| hosts.remove(name).unwrap_err().to_string();
    assert!(why("gate").contains("far goes through it"));
    assert!(why("box").contains("configuration"));
    assert!(why("local").contains("own machine"));
    hosts.remove("far").unwrap();
    hosts.remove("gate").unwrap();
}

#[test]
fn a_service_that_was_built_with_its_machines_has_no_others() {
    let hosts = Hosts::from(local());
    assert!(hosts.add("box", map(&json!({ "address": "box" }))).is_err());
    assert!(hosts.describe(map(&json!({ "host": "box" }))).is_err());
    assert!(hosts.own().is_some());
}

fn launch(host: String) -> Launch {
    let config = json!({ "mode": "conversation", "instructions": "do it", "auto_start": false });
    Launch {
        name: None,
        labels: BTreeMap::new(),
        host,
        config: SessionConfig::from_json(map(&config)).unwrap(),
        idempotency: None,
    }
}

#[test]
fn a_session_finds_the_machine_again_that_it_described_or_that_was_taken_away() {
    play(async {
        let dir = tempfile::tempdir().unwrap();
        let world = World::without_service();
        let far = world.faulty_host.clone();
        let plan = HostsPlan {
            connector: Arc::new(move |_, _, _| Ok(Machine { host: far.clone(), keys: None })),
            ..plan(dir.path(), json!({}), &Made::default())
        };
        world.other_hosts.replace(Some(plan));
        world.restart().await;
        let described = world.service().describe_host(map(&json!({ "host": "box", "user": "dev" }))).unwrap();
        world.service().add_host("added", map(&json!({ "address": "added" }))).await.unwrap();
        let mut sessions = Vec::new();
        for host in [described, "added".to_owned()] {
            let id = world.service().launch(launch(host)).await.unwrap().id;
            world.wait_state(&id, State::Idle).await;
            sessions.push(id);
        }
        assert_eq!(world.view(&sessions[0]).await.host, "ssh:dev@box:22");
        assert_eq!(world.service().host("added").await.unwrap().sessions, 1);
        let refused = world.service().remove_host("added").await.unwrap_err();
        assert!(refused.to_string().contains(sessions[1].as_str()), "{refused}");

        world.crash();
        // As an operator would who tidies up by hand.
        std::fs::remove_file(dir.path().join("hosts.json")).unwrap();
        world.restart().await;
        for id in &sessions {
            world.wait_state(id, State::Idle).await;
            world.service().stop(id, StopMode::Graceful).await.unwrap();
            world.wait_state(id, State::Ended).await;
        }
        let left = names(&world.service().settings().hosts);
        assert_eq!(left, ["fake", "ssh:ada@added:22", "ssh:dev@box:22"]);
        world.service().remove_host("ssh:dev@box:22").await.unwrap();
        assert!(world.service().host("ssh:dev@box:22").await.is_err());
    });
}
