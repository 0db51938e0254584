//! Another machine over SSH, as a person meets it: how it is found, trusted, looked at and cleaned up.

mod common;

use std::net::TcpListener;

use common::place::Place;
use common::{END, answers, conversation, import, says, seeded, service};
use optio_testkit::{Client, FAR, FakeOauth, Far, LIMIT, MockModel, Reply, procs, wait_until};
use reqwest::Method;
use serde_json::{Map, Value, json};

async fn ask(client: &Client, path: &str, body: Value) -> Reply {
    client.send(client.request(Method::POST, path).json(&body)).await
}

async fn probe(client: &Client, host: &str) -> Reply {
    ask(client, &format!("/v1/hosts/{host}/probe"), json!({})).await
}

fn with(mut entry: Map<String, Value>, field: &str, value: impl Into<Value>) -> Map<String, Value> {
    entry.insert(field.to_owned(), value.into());
    entry
}

/// The same machine for a service that has never seen it; its user's own list of machines is empty.
fn unknown(mut entry: Map<String, Value>) -> Map<String, Value> {
    entry.remove("known_hosts");
    entry
}

/// A port of this machine where nobody listens.
fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback always has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}

/// A host, what its service is told of it, its code, whether trying again may help, and what a person must be told.
type Case = (&'static str, Map<String, Value>, &'static str, bool, String);

#[actix::test]
async fn whatever_bars_the_way_has_its_own_code_on_the_probe_and_on_the_session() {
    let (model, oauth) = (MockModel::start(), FakeOauth::start());
    let far = Far::setup().start().await;
    let passwords = Far::setup().password_only().start().await;
    let restricted = Far::setup().force_command("echo 'This account is closed.'; exit 1").start().await;
    let stranger = Far::setup().start().await;
    let entry = far.entry();
    let key_of_another = stranger.entry()["known_hosts"][0].as_str().expect("a file").to_owned();
    let known = std::fs::read_to_string(key_of_another).expect("it is there");
    let key = known.split_whitespace().skip(1).collect::<Vec<_>>().join(" ");
    let changed = far.open_dir().join("known_hosts");
    std::fs::write(&changed, format!("[127.0.0.1]:{} {key}\n", entry["port"])).expect("a directory of ours");

    let cases: [Case; 8] = [
        ("unknown", unknown(entry.clone()), "host_key_unknown", false, far.fingerprint()),
        (
            "changed",
            with(entry.clone(), "known_hosts", json!([changed])),
            "host_key_changed",
            false,
            far.fingerprint(),
        ),
        (
            "pinned",
            with(entry.clone(), "host_key", stranger.fingerprint()),
            "host_key_changed",
            false,
            far.fingerprint(),
        ),
        (
            "wrong-key",
            with(entry.clone(), "key_file", json!(far.other_key())),
            "host_login_refused",
            false,
            "other".into(),
        ),
        ("passwords", passwords.entry(), "host_login_unsupported", false, "password".into()),
        ("closed", with(entry.clone(), "port", closed_port()), "host_unreachable", true, "refused".into()),
        (
            "nameless",
            with(entry.clone(), "address", "no-such-host.invalid"),
            "host_name_unknown",
            false,
            "no-such-host".into(),
        ),
        ("restricted", restricted.entry(), "host_shell_unusable", false, "This account is closed.".into()),
    ];
    let hosts = cases.iter().fold(service(), |setup, (name, entry, ..)| setup.host(name, entry.clone()));
    let server = hosts.start().await;
    let client = server.client();
    let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;
    for (name, _, code, retryable, words) in &cases {
        let reply = probe(&client, name).await;
        assert_eq!(reply.problem(), *code, "{name}: {}", reply.text());
        let problem = reply.json();
        assert_eq!(problem["retryable"], *retryable, "{name}: {problem:#}");
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(words) && detail.contains(name), "{name}: {detail}");

        let mut wanted = seeded(&seed);
        wanted["host"] = json!(name);
        let session = client.create(wanted).await;
        let ended = session.wait_state("ended", LIMIT).await;
        assert_eq!((&ended["outcome"], &ended["code"]), (&json!("failed"), &json!(code)), "{ended:#}");
        let reason = ended["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(words) && reason.contains(name), "{name}: {reason}");
        assert_eq!((&ended["has_snapshot"], &ended["host_down"]), (&json!(false), &Value::Null), "{ended:#}");
        let row = client.seed(&seed).await;
        assert_eq!(
            (&row["lease"], &row["dirty"], &row["status"]),
            (&Value::Null, &json!(false), &json!("alive")),
            "{name}"
        );
        let host = client.get(&format!("/v1/hosts/{name}")).await;
        // A machine that lets us in and runs nothing was reached.
        let state =
            if *name == "restricted" { (json!("up"), Value::Null) } else { (json!("down"), json!(code)) };
        assert_eq!((host["state"].clone(), host["code"].clone()), state, "{host:#}");
    }
    // The same words on the first sight of a key as later, and never the key's owner's secret.
    let text = server.output();
    assert!(!text.contains("BEGIN OPENSSH"), "{text}");
    assert_eq!(procs::entries(&far.task_root()), Vec::<String>::new());
    assert_eq!(oauth.reuses(), Vec::<String>::new());
}

#[actix::test]
async fn a_key_that_nobody_knows_is_accepted_by_its_fingerprint_and_by_nothing_else() {
    let model = MockModel::start();
    let far = Far::setup().start().await;
    let server = service().on(&far).host(FAR, unknown(far.entry())).start().await;
    let client = server.client();
    let accept = format!("/v1/hosts/{FAR}/host-key");
    let refused = probe(&client, FAR).await;
    let detail = refused.json()["detail"].as_str().unwrap_or_default().to_owned();
    assert_eq!(refused.problem(), "host_key_unknown");
    assert!(detail.contains(&far.fingerprint()) && detail.contains(&accept), "{detail}");

    let another = Far::setup().start().await.fingerprint();
    let wrong = ask(&client, &accept, json!({ "fingerprint": another })).await;
    assert_eq!(wrong.status, 409, "{}", wrong.text());
    assert!(wrong.text().contains(&far.fingerprint()), "{}", wrong.text());
    assert_eq!(probe(&client, FAR).await.problem(), "host_key_unknown");

    let taken = ask(&client, &accept, json!({ "fingerprint": far.fingerprint() })).await;
    assert_eq!(taken.status, 200, "{}", taken.text());
    assert_eq!(probe(&client, FAR).await.status, 200);
    let session = client.create(conversation(&model)).await;
    session.wait_idle().await;

    // It is remembered; and that it was accepted is no licence for another key.
    server.restart().await;
    let client = server.client();
    let session = client.session(&session.id);
    session.wait_idle().await;
    says(&session, "@say still here").await;
    wait_until("the answer", LIMIT, || async { answers(&session).await == ["still here"] }).await;
    session.end(END).await;
    let before = far.fingerprint();
    far.new_host_key();
    far.restart_sshd().await;
    let refused = probe(&client, FAR).await;
    assert_eq!(refused.problem(), "host_key_changed");
    assert!(refused.text().contains(&far.fingerprint()) && before != far.fingerprint(), "{}", refused.text());
    let taken = ask(&client, &accept, json!({ "fingerprint": far.fingerprint() })).await;
    assert_eq!(taken.status, 200, "{}", taken.text());
    assert_eq!(probe(&client, FAR).await.status, 200);
}

#[actix::test]
async fn trust_on_first_use_takes_one_key_and_no_other_after_it() {
    let far = Far::setup().start().await;
    let trusting = with(unknown(far.entry()), "trust_on_first_use", true);
    let server = service().on(&far).host(FAR, trusting).start().await;
    assert_eq!(probe(&server.client(), FAR).await.status, 200);
    far.new_host_key();
    far.restart_sshd().await;
    server.restart().await;
    assert_eq!(probe(&server.client(), FAR).await.problem(), "host_key_changed");
}

#[actix::test]
async fn a_probe_says_what_the_machine_has_and_a_host_can_come_with_the_session() {
    let model = MockModel::start();
    let far = Far::setup().start().await;
    let codex = far.codex().expect("it has one");
    let server = service().env("OPTIO_CODEX_CODEX", codex.to_string_lossy()).start().await;
    let client = server.client();
    let entry = far.entry();
    // Named as another program's users name it.
    let inline = json!({
        "host": entry["address"], "port": entry["port"], "user": entry["user"], "key_path": entry["key_file"],
        "known_hosts": entry["known_hosts"], "task_root": entry["task_root"],
    });
    let mut wanted = conversation(&model);
    wanted["host"] = json!({ "ssh": inline });
    let session = client.create(wanted).await;
    let live = session.wait_idle().await;
    let name = live["host"].as_str().expect("its host has a name").to_owned();
    assert!(name.contains("127.0.0.1"), "{name}");
    assert!(far.task_root().join(&session.id).is_dir(), "it is there");
    assert_eq!(procs::entries(&server.task_root()), Vec::<String>::new(), "and not here");

    let probed = probe(&client, &name).await;
    assert_eq!(probed.status, 200, "{}", probed.text());
    let probed = probed.json();
    for tool in ["codex", "tmux", "tar"] {
        assert!(probed["tools"][tool]["path"].is_string(), "{tool}: {probed:#}");
    }
    assert!(probed["disk"]["free_bytes"].as_u64().is_some_and(|free| free > 0), "{probed:#}");
    assert!(probed["latency_ms"].is_number() && probed["arch"] == std::env::consts::ARCH, "{probed:#}");
    assert_eq!(probed["orphans"], json!([]), "what lives there is ours: {probed:#}");

    // A service that was killed finds the machine of such a session again.
    server.kill_9();
    server.restart().await;
    let client = server.client();
    let session = client.session(&session.id);
    let adopted = session.wait_idle().await;
    assert_eq!(adopted["run"]["agent"], live["run"]["agent"]);
    says(&session, "@say found again").await;
    wait_until("the answer", LIMIT, || async { answers(&session).await == ["found again"] }).await;
    session.end(END).await;
    assert!(far.agents().is_empty(), "{:?}", far.agents());
}

#[actix::test]
async fn what_a_lost_service_left_is_listed_and_reaped_by_identity_and_never_what_is_known() {
    let (model, oauth) = (MockModel::start(), FakeOauth::start());
    let far = Far::setup().start().await;
    let lost = service().on(&far).start().await;
    let client = lost.client();
    let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;
    let with_login = client.create(seeded(&seed)).await;
    let without = client.create(conversation(&model)).await;
    let pid = |session: &Value| session["run"]["agent"]["pid"].as_i64().expect("an agent has a pid") as i32;
    let agent_with_login = pid(&with_login.wait_idle().await);
    let agent_without = pid(&without.wait_idle().await);
    lost.kill_9();

    let server = Place::on(&far).service().start().await;
    let client = server.client();
    let known = client.create(conversation(&model)).await;
    known.wait_idle().await;
    let orphans = async || probe(&client, FAR).await.json()["orphans"].as_array().cloned().expect("a list");
    let found = orphans().await;
    let of = |id: &str| found.iter().find(|orphan| orphan["id"] == id).cloned().expect("it is listed");
    assert_eq!(found.len(), 2, "{found:#?}");
    let (first, second) = (of(&with_login.id), of(&without.id));
    assert_eq!((&first["has_login"], &second["has_login"]), (&json!(true), &json!(false)), "{found:#?}");
    assert_eq!(first["agent"]["pid"], agent_with_login);
    assert!(first["bytes"].as_u64().is_some_and(|bytes| bytes > 0) && first["age_seconds"].is_number());

    let reap = async |task: Value| {
        let reply = ask(&client, &format!("/v1/hosts/{FAR}/reap"), json!({ "tasks": [task] })).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["data"][0].clone()
    };
    // One that runs must be named, with what was seen; and a login is not thrown away by the way.
    let other = json!({ "pid": agent_without, "start_time": 1 });
    for task in [
        json!({ "id": without.id, "agent": null }),
        json!({ "id": without.id, "agent": other }),
        json!({ "id": with_login.id, "agent": first["agent"] }),
        json!({ "id": known.id, "agent": other, "discard_login": true }),
    ] {
        let outcome = reap(task.clone()).await;
        assert_eq!(outcome["outcome"], "refused", "{task}: {outcome}");
    }
    assert!(procs::Proc::find(agent_without).is_some() && procs::Proc::find(agent_with_login).is_some());
    assert_eq!(orphans().await.len(), 2);

    let outcome = reap(json!({ "id": without.id, "agent": second["agent"] })).await;
    assert_eq!(outcome["outcome"], "reaped", "{outcome}");
    let outcome = reap(json!({ "id": with_login.id, "agent": first["agent"], "discard_login": true })).await;
    assert_eq!(outcome["outcome"], "reaped", "{outcome}");
    assert!(procs::Proc::find(agent_without).is_none() && procs::Proc::find(agent_with_login).is_none());
    assert_eq!(procs::entries(&far.task_root()), [known.id.as_str()]);
    assert_eq!(orphans().await, Vec::<Value>::new());
    known.turn("@say unharmed").await;
    wait_until("the answer", LIMIT, || async { answers(&known).await == ["unharmed"] }).await;
    known.end(END).await;
    assert!(far.agents().is_empty(), "{:?}", far.agents());
}
