//! Two services, one database, a few logins that may be used once: whatever is stopped, rotated and killed, no token is
//! presented twice, no seed has two holders, and what the store has in the end is the newest there is.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{END, service};
use futures_util::StreamExt;
use futures_util::future::join_all;
use jiff::Timestamp;
use optio_testkit::mongod::mongodb::bson::{DateTime, Document, doc};
use optio_testkit::{Client, FakeOauth, MockModel, ModelAuth, Mongod, Session, TestServer, auth, wait_until};
use serde_json::{Value, json};

const DATABASE: &str = "fleet";
const SEEDS: usize = 8;
/// Sessions that each service makes at least.
const SESSIONS: usize = 40;
/// How long sessions are made.
const LONG: Duration = Duration::from_secs(120);
/// Who makes sessions at once, for each service: together more than there are seeds.
const MAKERS: usize = 5;
/// A service that stays away for so long finds its agents ended by their guards and its leases run out.
const LONG_AWAY: Duration = Duration::from_secs(65);

/// A sequence of numbers that a failure can be repeated with.
struct Dice(AtomicU64);

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        // Knuth's constants; the upper bits are the good ones.
        let next = |n: u64| n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(next(n)));
        (before.unwrap_or_default() >> 33) % sides
    }
}

struct Fleet {
    dice: Dice,
    made: [AtomicUsize; 2],
    lived: AtomicUsize,
    until: Instant,
    chronicle: Mutex<Vec<(Timestamp, String)>>,
}

impl Fleet {
    fn note(&self, what: String) {
        self.chronicle.lock().expect("nobody panics while writing").push((Timestamp::now(), what));
    }

    /// What happened to the accounts of these tokens, and to the services: enough to see who used one twice.
    fn story_of(&self, tokens: &[String], oauth: &FakeOauth, seeds: &[(String, String)]) -> String {
        let is_about =
            |account: &str| tokens.iter().any(|token| token.starts_with(&format!("rt-{account}-")));
        let mut told: Vec<_> = self.chronicle.lock().expect("nobody panics while writing").clone();
        let others: Vec<_> = seeds.iter().filter(|(_, account)| !is_about(account)).collect();
        told.retain(|(_, what)| !others.iter().any(|(seed, _)| what.contains(seed.as_str())));
        let grants = oauth.grants().into_iter().filter(|grant| is_about(&grant.account));
        told.extend(
            grants.map(|grant| (grant.at, format!("{} spent for {}", grant.spent, grant.refresh_token))),
        );
        told.sort();
        told.into_iter().map(|(at, what)| format!("{at} {what}\n")).collect()
    }
}

/// Asks until there is an answer: a service that was killed is back soon.
async fn insist(client: &Client, method: reqwest::Method, path: &str, body: Value) -> Option<(u16, Value)> {
    let asked = client.try_send(client.request(method, path).json(&body)).await?;
    Some((asked.status.as_u16(), serde_json::from_str(&asked.text()).unwrap_or(Value::Null)))
}

async fn state(client: &Client, id: &str) -> Option<Value> {
    let reply = client.try_send(client.request(reqwest::Method::GET, &format!("/v1/sessions/{id}"))).await?;
    (reply.status == 200).then(|| reply.json())
}

/// Waits until a session is as wanted, or over.
async fn until(client: &Client, id: &str, wanted: &str) -> Value {
    wait_until(format!("session {id} is {wanted}"), END * 3, || async {
        let session = state(client, id).await.unwrap_or(Value::Null);
        let there = session["state"] == wanted || session["state"] == "ended";
        if there { Ok(session) } else { Err(session) }
    })
    .await
}

/// One session's life: launched on any seed of the pool, talked to, perhaps rotated, stopped one way or another.
async fn live(fleet: &Fleet, which: usize, client: &Client) {
    let wanted = json!({
        "mode": "conversation", "instructions": "Answer.", "seed": { "pool": "team" },
    });
    let made = wait_until("a session is taken", END * 3, || async {
        match insist(client, reqwest::Method::POST, "/v1/sessions", wanted.clone()).await {
            Some((201, made)) => Ok(made),
            other => Err(other),
        }
    })
    .await;
    fleet.made[which].fetch_add(1, Ordering::Relaxed);
    let id = made["id"].as_str().expect("a session has an id").to_owned();
    let begun = until(client, &id, "idle").await;
    if begun["state"] == "ended" {
        let reason = begun["reason"].as_str().unwrap_or_default();
        // Or it was killed while it began, which is as good an end as any.
        if reason.contains("is free") {
            wait_until("a seed may be free", END * 3, || async {
                let seeds = client.try_send(client.request(reqwest::Method::GET, "/v1/seeds")).await?.json();
                seeds["data"].as_array()?.iter().any(|seed| seed["lease"].is_null()).then_some(())
            })
            .await;
        }
        return;
    }
    fleet.lived.fetch_add(1, Ordering::Relaxed);
    let seed = begun["run"]["seed"].as_str().unwrap_or_default().to_owned();
    fleet.note(format!("{id} of service {which} has seed {seed}"));
    let path = format!("/v1/sessions/{id}");
    for _ in 0..=fleet.dice.roll(2) {
        // A provider that finds the access token wanting makes codex refresh it.
        let text = if fleet.dice.roll(3) == 0 { "@say hello" } else { "@http 401" };
        let taken =
            insist(client, reqwest::Method::POST, &format!("{path}/turns"), json!({ "text": text })).await;
        fleet.note(format!("{id} with seed {seed} is told {text}: {:?}", taken.map(|(status, _)| status)));
        if fleet.dice.roll(2) == 0 {
            until(client, &id, "idle").await;
        }
    }
    let mode = if fleet.dice.roll(2) == 0 { "graceful" } else { "cancel" };
    let stop = json!({ "mode": mode });
    wait_until(format!("the stop of {id} is taken"), END * 3, || async {
        match insist(client, reqwest::Method::POST, &format!("{path}/stop"), stop.clone()).await {
            Some((202 | 409, _)) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    fleet.note(format!("{id} with seed {seed} is stopped ({mode})"));
    let ended = until(client, &id, "ended").await;
    let steps: Vec<_> = common::steps(&ended).into_iter().filter(|(_, state)| state != "done").collect();
    fleet.note(format!("{id} with seed {seed} has ended: {}; {steps:?}", ended["reason"]));
}

async fn make(fleet: Arc<Fleet>, which: usize, client: Client) {
    while Instant::now() < fleet.until || fleet.made[which].load(Ordering::Relaxed) < SESSIONS {
        live(&fleet, which, &client).await;
    }
}

/// Kills one service again and again, once for longer than its agents may live without it.
async fn kill(fleet: Arc<Fleet>, server: Arc<TestServer>) {
    let mut away = LONG_AWAY;
    while Instant::now() + away < fleet.until {
        tokio::time::sleep(Duration::from_millis(3_000 + fleet.dice.roll(6_000))).await;
        fleet.note(format!("service 1 is killed for {away:?}"));
        server.kill_9();
        tokio::time::sleep(away).await;
        server.restart().await;
        fleet.note("service 1 is back".to_owned());
        away = Duration::from_millis(fleet.dice.roll(3_000));
    }
}

/// Reads the database's own log: each seed's lease from holder to holder.
async fn two_holders_at_once(mongod: &Mongod) -> Vec<String> {
    let log = mongod.database("local").await.collection::<Document>("oplog.rs");
    let ours = doc! { "ns": format!("{DATABASE}.optio_codex_seeds"), "op": "u" };
    let mut entries = log.find(ours).await.expect("a replica set has a log");
    let mut leases: BTreeMap<String, (String, DateTime)> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut changes = 0;
    while let Some(entry) = entries.next().await {
        let entry = entry.expect("the log can be read");
        let seed = entry
            .get_document("o2")
            .and_then(|o2| o2.get_object_id("_id"))
            .expect("updates name their seed")
            .to_hex();
        let at = *entry.get_datetime("wall").expect("entries have a time");
        let Ok(diff) = entry.get_document("o").and_then(|o| o.get_document("diff")) else { continue };
        let set =
            |part: &str, name: &str| diff.get_document(part).ok().and_then(|part| part.get(name)).cloned();
        let whole = set("u", "lease").or_else(|| set("i", "lease"));
        let parts = diff.get_document("slease").ok();
        let changed = |name: &str| {
            let of_whole = whole.as_ref().and_then(|lease| lease.as_document()?.get(name).cloned());
            of_whole.or_else(|| parts.and_then(|lease| lease.get_document("u").ok()?.get(name).cloned()))
        };
        if whole.as_ref().is_some_and(|lease| lease.as_null().is_some()) {
            leases.remove(&seed);
            changes += 1;
            continue;
        }
        let before = leases.get(&seed).cloned();
        let holder = changed("holder").and_then(|holder| holder.as_str().map(str::to_owned));
        let expires = changed("expiresAt").and_then(|expires| expires.as_datetime().copied());
        if let (Some(new), Some((old, old_expires))) = (&holder, &before)
            && new != old
            && *old_expires > at
        {
            wrong.push(format!("{seed}: {new} took it at {at} from {old}, which had it until {old_expires}"));
        }
        let holder = holder.or_else(|| before.as_ref().map(|(holder, _)| holder.clone()));
        let expires = expires.or(before.map(|(_, expires)| expires));
        if let (Some(holder), Some(expires)) = (holder, expires) {
            leases.insert(seed, (holder, expires));
            changes += 1;
        }
    }
    assert!(changes > SESSIONS, "the log has {changes} changes of leases: it is not understood");
    wrong
}

/// The login that the next session of this seed would get.
async fn planted(server: &TestServer, session: &Session) -> Option<String> {
    let file = server.task_root().join(&session.id).join("workdir/home/.codex/auth.json");
    auth::refresh_token_of(&std::fs::read(file).ok()?)
}

#[actix::test]
async fn two_services_share_a_few_logins_for_two_minutes_and_none_is_used_twice() {
    let seed = std::env::var("OPTIO_TEST_DICE").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("OPTIO_TEST_DICE={seed}");
    let (model, oauth, mongod) = (MockModel::start(), FakeOauth::start(), Mongod::start().await);
    let mut servers = Vec::new();
    for _ in 0..2 {
        let setup = service().env("OPTIO_CODEX_STORE", mongod.uri_of(DATABASE));
        servers.push(Arc::new(setup.env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", oauth.url()).start().await));
    }
    let mut seeds = Vec::new();
    for account in (0..SEEDS).map(|n| format!("acct-{n}")) {
        let login = oauth.login(&account).auth_json();
        let config = model.config(ModelAuth::ChatGpt);
        seeds.push((servers[0].client().import_seed("team", &login, &config).await, account));
    }

    let fleet = Arc::new(Fleet {
        dice: Dice(AtomicU64::new(seed)),
        made: Default::default(),
        lived: AtomicUsize::new(0),
        until: Instant::now() + LONG,
        chronicle: Mutex::default(),
    });
    let makers = (0..2 * MAKERS).map(|n| make(fleet.clone(), n % 2, servers[n % 2].client()));
    futures_util::join!(join_all(makers), kill(fleet.clone(), servers[1].clone()));
    let lived = fleet.lived.load(Ordering::Relaxed);
    println!("{:?} sessions made, {lived} had a login, {} rotations", fleet.made, oauth.grants().len());
    assert!(lived >= 2 * SEEDS && oauth.grants().len() >= SEEDS, "too little happened to show anything");
    let reuses = oauth.reuses();
    assert!(reuses.is_empty(), "{reuses:?}\n{}", fleet.story_of(&reuses, &oauth, &seeds));
    assert_eq!(two_holders_at_once(&mongod).await, Vec::<String>::new());

    // Each login is home, the newest of its line, and serves.
    let client = servers[0].client();
    for (seed, account) in &seeds {
        let row = client.seed(seed).await;
        assert!(row["lease"].is_null() && row["status"] == "alive", "{row:#}");
        let session = client
            .create(json!({ "mode": "conversation", "instructions": "", "seed": { "id": seed } }))
            .await;
        session.wait_idle().await;
        assert_eq!(planted(&servers[0], &session).await, oauth.issued(account), "{account}");
        session.end(END).await;
    }
    assert_eq!(oauth.reuses(), Vec::<String>::new());
}
