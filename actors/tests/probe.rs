//! Codex is asked about a login because the login server cannot be, on virtual time: what it says does to the seed what it
//! proves and no more, a login that it rotates is in the store before anything is wiped or released, and being killed
//! anywhere loses nothing (T-242…T-250).
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use optio_actors::Service;
use optio_actors::service::VerifyView;
use optio_actors::sessions::OnExit;
use optio_actors::testing::{World, login, play};
use optio_actors::verifier::PROBES;
use optio_codex_protocol::auth;
use optio_codex_protocol::probe::PROMPT;
use optio_host::fake::FakeLaunch;
use optio_host::faulty::{FaultKind, HostOp};
use optio_host::{ExitStatus, Host, TaskDir, TaskId};
use optio_store::faulty::{Fault, StoreOp};
use optio_store::{
    Holder, Leases, NewSeed, SeedFiles, SeedId, SeedPatch, SeedRow, SeedStatus, Seeds, Spool, Want,
};
use serde_json::{Value, json};

/// Longer than a lease lasts without renewal.
const LAPSE: Duration = Duration::from_secs(61);

const USED: &str = "Your access token could not be refreshed because your refresh token was already used. Please log out \
                    and sign in again.";

/// What the codex of a world does when it is asked.
#[derive(Debug, Clone, Default)]
struct Script {
    /// Its login becomes this one first.
    rotates: Option<Bytes>,
    says: Vec<Value>,
    hangs: bool,
    ignores_term: bool,
    leaves_behind: usize,
}

impl Script {
    fn answers(text: &str) -> Self {
        let item = json!({ "id": "item_0", "type": "agent_message", "text": text });
        Self { says: vec![json!({ "type": "item.completed", "item": item })], ..Self::default() }
    }

    fn fails(message: &str) -> Self {
        let error = json!({ "type": "error", "message": message });
        let turn = json!({ "type": "turn.failed", "error": { "message": message } });
        Self { says: vec![error, turn], ..Self::default() }
    }

    fn rotating(self) -> Self {
        Self { rotates: Some(login("acme", 2)), ..self }
    }

    fn hanging(self) -> Self {
        Self { hangs: true, ..self }
    }
}

/// How codex was started.
#[derive(Debug, Clone)]
struct Start {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    cwd: PathBuf,
    auth_json: Option<Bytes>,
}

type Starts = Arc<Mutex<Vec<Start>>>;

/// A world whose login server is away, and whose codex does as told.
fn world_with(script: Script) -> (World, Starts) {
    let world = World::without_service();
    world.probe_seeds.set(true);
    world.login_server.reachable(false);
    let starts = Starts::default();
    let seen = starts.clone();
    world.host.on_program(move |mut launch: FakeLaunch| {
        let home = PathBuf::from(launch.env.get("CODEX_HOME").cloned().unwrap_or_default());
        let auth_json = launch.host.file(&home.join("auth.json"));
        let env = launch.env.clone().into_iter().collect();
        let start = Start { argv: launch.argv.clone(), env, cwd: launch.cwd.clone(), auth_json };
        seen.lock().unwrap().push(start);
        let script = script.clone();
        async move {
            launch.leave_behind(script.leaves_behind);
            let mut signals = script.ignores_term.then(|| launch.catch_signals());
            if let Some(next) = script.rotates {
                launch.host.put_file(&home.join("auth.json"), next);
            }
            let said: Vec<String> = script.says.iter().map(|line| format!("{line}\n")).collect();
            launch.host.put_file(&PathBuf::from(&launch.argv[3]), said.concat());
            if !script.hangs {
                return ExitStatus::Code(0);
            }
            loop {
                match &mut signals {
                    Some(signals) => drop(signals.next().await),
                    None => std::future::pending().await,
                }
            }
        }
    });
    (world, starts)
}

async fn row(world: &World, seed: &SeedId) -> SeedRow {
    Seeds::get(&world.memory, seed).await.unwrap().unwrap()
}

async fn verify(world: &World, seed: &SeedId) -> VerifyView {
    world.service().verify_seed(seed).await.unwrap()
}

/// Begins a check that nobody waits for.
fn begin(service: Service, seed: &SeedId) {
    let seed = seed.clone();
    drop(actix::spawn(async move { service.verify_seed(&seed).await }));
}

fn token(world: &World, seed: &SeedId) -> String {
    auth::refresh_token(&world.memory.credential(seed).unwrap()).unwrap()
}

fn dir(world: &World, slot: usize) -> TaskDir {
    world.host.task_dir(&TaskId::new(format!("probe-0-{slot}")).unwrap())
}

fn left(world: &World) -> Vec<PathBuf> {
    (0..PROBES).flat_map(|slot| world.host.files(dir(world, slot).path())).collect()
}

async fn is_free(world: &World, seed: &SeedId) -> bool {
    let holder = Holder::mint_for("somebody");
    let lease = Leases::acquire(&world.memory, &Want::Seed(seed.clone()), &holder).await.unwrap();
    if lease.is_some() {
        world.memory.release(seed, &holder).await.unwrap();
    }
    lease.is_some()
}

async fn spooled(world: &World) -> usize {
    world.memory.entries().await.unwrap().len()
}

/// Waits for the verdict of a check that nobody waits for.
async fn verdict(world: &World, seed: &SeedId) -> Value {
    world.until("a verdict", async || row(world, seed).await.metadata.contains_key("verify")).await;
    row(world, seed).await.metadata["verify"].clone()
}

#[actix::test]
async fn codex_that_answers_with_a_login_proves_it_and_leaves_nothing() {
    let (world, starts) = world_with(Script::answers("Paris"));
    let seed = world.seed("acme").await;
    world.restart().await;
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.seed.status), ("alive", SeedStatus::Alive));
    assert!(seen.reason.contains("codex"), "{}", seen.reason);
    assert!(world.login_server.attempts().is_empty());
    assert_eq!(token(&world, &seed), "refresh-acme-1");
    assert!(left(&world).is_empty() && world.host.agents_running() == 0);
    let row = row(&world, &seed).await;
    assert!(row.lease.is_none() && !row.metadata.contains_key("refreshIntent"), "{row:?}");
    assert!(row.last_verified_at.is_some() && is_free(&world, &seed).await);

    let starts = starts.lock().unwrap().clone();
    assert_eq!(starts.len(), 1, "codex is asked once");
    assert_eq!(starts[0].cwd, dir(&world, 0).workdir());
    assert_eq!(starts[0].argv[5..10], ["exec", "--json", "-s", "read-only", "--skip-git-repo-check"]);
    assert_eq!(starts[0].argv.last().unwrap(), PROMPT);
    assert_eq!(starts[0].auth_json, Some(login("acme", 1)), "the login is planted");
    let shown = format!("{:?}", starts[0].argv);
    assert!(!shown.contains("refresh-acme") && !shown.contains("access-acme"), "{shown}");
    let own = ["CODEX_HOME", "HOME", "OPTIO_CODEX_RUN", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"];
    let names: Vec<_> =
        starts[0].env.iter().map(|(name, _)| name.as_str()).filter(|n| *n != "PATH").collect();
    assert_eq!(names, own, "an empty environment and the way to a home of its own");
}

#[actix::test]
async fn a_planted_login_and_its_settings_are_for_its_owner_only() {
    let (world, _) = world_with(Script::default().hanging());
    let auth_json = login("acme", 1);
    let files = [(SeedFiles::AUTH, auth_json), (SeedFiles::CONFIG, Bytes::from_static(b"model = \"m\"\n"))];
    let files = SeedFiles(files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect());
    let new = NewSeed { files, account: Default::default(), pool: None, metadata: Default::default() };
    let seed = world.memory.import(new).await.unwrap().id;
    world.restart().await;
    begin(world.service(), &seed);
    world.until("codex", async || world.host.agents_running() == 1).await;
    for file in ["workdir/home/.codex/auth.json", "workdir/home/.codex/config.toml", "probe.json"] {
        let file = optio_host::RelPath::new(file).unwrap();
        assert_eq!(world.host.info(&dir(&world, 0), &file).await.unwrap().unwrap().mode, 0o600, "{file:?}");
    }
    let note = world.host.file(&dir(&world, 0).path().join("probe.json")).unwrap();
    assert!(!String::from_utf8_lossy(&note).contains("refresh-acme"), "the note holds no secret");
    assert_eq!(
        row(&world, &seed).await.status,
        SeedStatus::NeedsRecovery,
        "nobody else is handed it meanwhile"
    );
    assert!(!is_free(&world, &seed).await);
}

#[test]
fn dead_is_only_what_the_login_server_refused_by_name() {
    let verdict = |said: &'static str| {
        play(async move {
            let (world, _) = world_with(Script::fails(said));
            let seed = world.seed("acme").await;
            world.restart().await;
            let seen = verify(&world, &seed).await;
            assert!(left(&world).is_empty() && row(&world, &seed).await.lease.is_none());
            (seen.verdict, seen.seed.status, seen.reason)
        })
    };
    let (seen, status, reason) = verdict(USED);
    assert_eq!((seen, status), ("dead", SeedStatus::Dead));
    assert!(reason.contains("refresh_token_reused"), "{reason}");
    let (seen, status, _) =
        verdict(r#"Failed to refresh token: 400 Bad Request: {"error": "invalid_grant"}"#);
    assert_eq!((seen, status), ("dead", SeedStatus::Dead));
    for said in [
        "Your access token could not be refreshed. Please log out and sign in again.",
        r#"Failed to refresh token: 429 Too Many Requests: {"error":{"code":"refresh_token_reused"}}"#,
        r#"Failed to refresh token: 503 Service Unavailable: {"error":"invalid_grant"}"#,
        r#"Failed to refresh token: 400 Bad Request: {"error":"invalid_request"}"#,
        "stream disconnected before completion: error sending request",
        "Paris",
    ] {
        let (seen, status, reason) = verdict(said);
        assert_eq!((seen, status), ("inconclusive", SeedStatus::Alive), "{said}");
        assert!(reason.contains("out of reach"), "{reason}");
    }
}

#[test]
fn a_login_that_rotates_is_in_the_store_whatever_was_heard() {
    for (script, verdict) in [
        (Script::answers("Paris"), "alive"),
        (Script::answers("Lyon"), "inconclusive"),
        (Script::fails("the network is down"), "inconclusive"),
        // It is not about the login that is stored now.
        (Script::fails(USED), "inconclusive"),
        (Script::default(), "inconclusive"),
    ] {
        play(async move {
            let (world, _) = world_with(script.rotating());
            let seed = world.seed("acme").await;
            world.restart().await;
            let seen = verify(&world, &seed).await;
            assert_eq!((seen.verdict, seen.seed.status), (verdict, SeedStatus::Alive));
            assert_eq!(token(&world, &seed), "refresh-acme-2");
            assert!(left(&world).is_empty() && spooled(&world).await == 0 && is_free(&world, &seed).await);
        });
    }
}

#[actix::test]
async fn a_rotated_login_is_spooled_and_stored_before_its_home_goes_and_the_lease_after_it() {
    let (world, _) = world_with(Script::answers("Paris").rotating());
    let seed = world.seed("acme").await;
    world.faulty_store.fail(StoreOp::SaveCredential, 1, Fault::Error);
    world.faulty_host.fail_nth(HostOp::Cleanup, 1, FaultKind::Hang);
    world.restart().await;
    begin(world.service(), &seed);
    world.until("the spool", async || spooled(&world).await == 1).await;
    assert!(!left(&world).is_empty() && token(&world, &seed) == "refresh-acme-1");
    world.until("the store", async || token(&world, &seed) == "refresh-acme-2").await;
    tokio::time::sleep(LAPSE * 3).await;
    assert!(row(&world, &seed).await.lease.is_some_and(|lease| lease.live), "renewed until the home is gone");
    assert!(!row(&world, &seed).await.metadata.contains_key("verify"));
}

#[actix::test]
async fn codex_that_hangs_is_ended_after_three_minutes_under_a_lease_that_lasts() {
    let (world, _) = world_with(Script::default().rotating().hanging());
    let seed = world.seed("acme").await;
    world.restart().await;
    begin(world.service(), &seed);
    world.until("codex", async || world.host.agents_running() == 1).await;
    tokio::time::sleep(Duration::from_secs(170)).await;
    assert_eq!(world.host.agents_running(), 1, "its guard was kept from ending it");
    assert!(row(&world, &seed).await.lease.is_some_and(|lease| lease.live));
    let note = verdict(&world, &seed).await;
    assert_eq!(note["verdict"], "inconclusive");
    assert!(note["reason"].as_str().unwrap().contains("no answer within 180 seconds"), "{note}");
    assert_eq!((token(&world, &seed).as_str(), world.host.agents_running()), ("refresh-acme-2", 0));
    world.until("the end", async || is_free(&world, &seed).await).await;
    assert!(left(&world).is_empty() && row(&world, &seed).await.status == SeedStatus::Alive);
}

#[actix::test]
async fn codex_that_ignores_its_end_and_leaves_others_behind_is_proven_gone() {
    let script =
        Script { ignores_term: true, leaves_behind: 2, ..Script::answers("Paris").hanging().rotating() };
    let (world, _) = world_with(script);
    let seed = world.seed("acme").await;
    world.restart().await;
    begin(world.service(), &seed);
    // What it said before it hung is said.
    assert_eq!(verdict(&world, &seed).await["verdict"], "alive");
    assert_eq!((token(&world, &seed).as_str(), world.host.agents_running()), ("refresh-acme-2", 0));
}

#[actix::test]
async fn without_proof_that_codex_is_gone_nothing_is_read_wiped_or_released() {
    let (world, _) = world_with(Script::answers("Paris").rotating());
    let seed = world.seed("acme").await;
    world.restart().await;
    for nth in 1..=3 {
        world.faulty_host.fail_nth(HostOp::GuardGone, nth, FaultKind::Error);
    }
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.seed.status), ("needs-recovery", SeedStatus::NeedsRecovery));
    let reason = seen.seed.status_reason.unwrap();
    assert!(reason.contains("not proven gone") && reason.contains("probe-0-0"), "{reason}");
    assert_eq!((token(&world, &seed).as_str(), spooled(&world).await), ("refresh-acme-1", 0));
    assert!(row(&world, &seed).await.lease.is_some(), "not released");
    assert!(left(&world).iter().any(|file| file.ends_with("auth.json")), "not wiped");
    tokio::time::sleep(LAPSE).await;
    assert!(!is_free(&world, &seed).await, "and nobody is handed it when the lease has run out");

    // Asked again, it goes on with what is left before anything is sent.
    world.login_server.reachable(true);
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.seed.status), ("alive", SeedStatus::Alive));
    assert_eq!(world.login_server.attempts(), ["refresh-acme-2"], "never the token that was spent");
    assert!(left(&world).is_empty() && spooled(&world).await == 0 && is_free(&world, &seed).await);
}

#[actix::test]
async fn a_home_that_was_kept_is_not_used_for_another_login() {
    let (world, starts) = world_with(Script::answers("Paris").rotating());
    let (seed, other) = (world.seed("acme").await, world.seed("beta").await);
    world.restart().await;
    for nth in 1..=3 {
        world.faulty_host.fail_nth(HostOp::GuardGone, nth, FaultKind::Error);
    }
    verify(&world, &seed).await;
    verify(&world, &other).await;
    let homes: Vec<_> = starts.lock().unwrap().iter().map(|start| start.cwd.clone()).collect();
    assert_eq!(homes, [dir(&world, 0).workdir(), dir(&world, 1).workdir()]);
    let kept = world.host.file(&dir(&world, 0).workdir().join("home/.codex/auth.json"));
    assert_eq!(kept, Some(login("acme", 2)));
}

#[actix::test]
async fn a_file_that_is_no_login_leaves_it_to_the_next_check_what_was_spent() {
    let script = Script { rotates: Some(Bytes::new()), ..Script::default() };
    let (world, _) = world_with(script);
    let seed = world.seed("acme").await;
    world.restart().await;
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.seed.status), ("suspect", SeedStatus::NeedsRecovery));
    assert!(!is_free(&world, &seed).await && token(&world, &seed) == "refresh-acme-1");
    world.login_server.reachable(true);
    assert_eq!(verify(&world, &seed).await.verdict, "alive");
}

#[actix::test]
async fn the_login_of_another_account_is_never_saved_over_the_seed() {
    let (world, _) = world_with(Script { rotates: Some(login("beta", 7)), ..Script::answers("Paris") });
    let seed = world.seed("acme").await;
    world.restart().await;
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, seen.seed.status), ("needs-recovery", SeedStatus::NeedsRecovery));
    assert_eq!((token(&world, &seed).as_str(), spooled(&world).await), ("refresh-acme-1", 1));
}

#[actix::test]
async fn a_lease_that_is_lost_ends_codex_and_what_it_got_lies_in_the_spool() {
    let (world, _) = world_with(Script::default().rotating().hanging());
    let seed = world.seed("acme").await;
    world.restart().await;
    begin(world.service(), &seed);
    world.until("codex", async || world.host.agents_running() == 1).await;
    let ours = world.memory.holder(&seed).unwrap();
    world.memory.release(&seed, &ours).await.unwrap();
    let thief = Holder::mint_for("thief");
    Leases::acquire_for_recovery(&world.memory, &seed, &thief).await.unwrap().unwrap();
    world.until("the end of codex", async || world.host.agents_running() == 0).await;
    world.until("the spool", async || spooled(&world).await == 1).await;
    assert_eq!((token(&world, &seed).as_str(), world.memory.holder(&seed)), ("refresh-acme-1", Some(thief)));
}

#[actix::test]
async fn codex_is_not_asked_where_nobody_waits_where_it_is_not_allowed_and_where_it_would_prove_nothing() {
    let (world, starts) = world_with(Script::answers("Paris"));
    world.refresh_idle.set(true);
    let seed = world.seed_in("acme", Some("team")).await;
    world.restart().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(verdict(&world, &seed).await["verdict"], "inconclusive", "it was checked in passing");
    assert!(starts.lock().unwrap().is_empty(), "the refresher asks no codex");

    let files =
        [(SeedFiles::AUTH, login("house", 1)), (SeedFiles::CONFIG, "model_provider = \"mine\"".into())];
    let files = SeedFiles(files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect());
    let new = NewSeed { files, account: Default::default(), pool: None, metadata: Default::default() };
    let house = world.memory.import(new).await.unwrap().id;
    let seen = verify(&world, &house).await;
    assert_eq!(seen.verdict, "inconclusive");
    assert!(seen.reason.contains("provider that does not use the login"), "{}", seen.reason);
    assert!(starts.lock().unwrap().is_empty() && left(&world).is_empty());

    world.crash();
    world.probe_seeds.set(false);
    world.restart().await;
    tokio::time::sleep(LAPSE).await;
    assert_eq!(verify(&world, &seed).await.verdict, "inconclusive");
    assert!(starts.lock().unwrap().is_empty());
}

#[test]
fn codex_that_cannot_be_started_changes_nothing() {
    for (op, nth) in
        [(HostOp::FindCodex, 1), (HostOp::Create, 1), (HostOp::Write, 2), (HostOp::GuardStart, 1)]
    {
        play(async move {
            let (world, _) = world_with(Script::answers("Paris"));
            let seed = world.seed("acme").await;
            world.restart().await;
            world.faulty_host.fail_nth(op, nth, FaultKind::Error);
            let seen = verify(&world, &seed).await;
            assert_eq!((seen.verdict, seen.seed.status), ("inconclusive", SeedStatus::Alive), "{op:?}");
            assert!(seen.reason.contains(&format!("{op:?}")), "{}", seen.reason);
            assert!(left(&world).is_empty() && is_free(&world, &seed).await, "{op:?}");
        });
    }
}

#[actix::test]
async fn codex_whose_start_was_not_heard_of_is_ended_and_its_login_kept() {
    let (world, starts) = world_with(Script::default().rotating().hanging());
    let seed = world.seed("acme").await;
    world.restart().await;
    world.faulty_host.fail_nth(HostOp::GuardStart, 1, FaultKind::ErrorAfterDoing);
    let seen = verify(&world, &seed).await;
    assert_eq!((seen.verdict, starts.lock().unwrap().len()), ("inconclusive", 1));
    assert_eq!((token(&world, &seed).as_str(), world.host.agents_running()), ("refresh-acme-2", 0));
    assert!(left(&world).is_empty() && is_free(&world, &seed).await);
}

#[actix::test]
async fn a_store_that_cannot_renew_has_codex_ended_before_the_lease_is_over() {
    let (world, _) = world_with(Script::default().rotating().hanging());
    let seed = world.seed("acme").await;
    world.restart().await;
    begin(world.service(), &seed);
    world.until("codex", async || world.host.agents_running() == 1).await;
    world.faulty_store.fail_always(StoreOp::Renew, Fault::Hang);
    tokio::time::sleep(Duration::from_secs(58)).await;
    assert_eq!(world.host.agents_running(), 0, "its guard has ended it");
    world.faulty_store.heal();
    verdict(&world, &seed).await;
    assert_eq!(token(&world, &seed), "refresh-acme-2");
}

#[actix::test]
async fn an_intent_that_is_not_on_record_starts_no_codex() {
    let (world, starts) = world_with(Script::answers("Paris"));
    let seed = world.seed("acme").await;
    world.restart().await;
    world.faulty_store.fail(StoreOp::PatchSeed, 1, Fault::Error);
    assert_eq!(verify(&world, &seed).await.verdict, "inconclusive");
    assert!(starts.lock().unwrap().is_empty() && left(&world).is_empty());
}

#[actix::test]
async fn a_seed_in_doubt_that_is_needed_is_mended_by_asking_codex() {
    let (world, _) = world_with(Script::answers("Paris"));
    let seed = world.seed_in("acme", Some("team")).await;
    let holder = Holder::mint_for("somebody");
    Leases::acquire(&world.memory, &Want::Seed(seed.clone()), &holder).await.unwrap().unwrap();
    tokio::time::sleep(LAPSE + Duration::from_secs(600)).await;
    world.restart().await;
    assert!(row(&world, &seed).await.dirty);
    // The agent of the session is the same program, and says nothing; its launch is not what this is about.
    world.begin(json!({ "seed": { "pool": "team" } })).await;
    assert_eq!(verdict(&world, &seed).await["verdict"], "alive");
}

#[actix::test]
async fn a_service_that_leaves_ends_codex_and_takes_its_login_home() {
    let (world, _) = world_with(Script::default().rotating().hanging());
    let seed = world.seed("acme").await;
    world.restart().await;
    begin(world.service(), &seed);
    world.until("codex", async || world.host.agents_running() == 1).await;
    let began = tokio::time::Instant::now();
    world.service().drain(OnExit::Detach).await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!((token(&world, &seed).as_str(), world.host.agents_running()), ("refresh-acme-2", 0));
    assert!(left(&world).is_empty() && is_free(&world, &seed).await);
}

/// Where the service dies, and what is in the store then.
#[derive(Debug, Clone, Copy)]
enum Point {
    Store(StoreOp, u64),
    Host(HostOp, usize),
    Running,
}

#[test]
fn killed_anywhere_the_next_start_brings_the_login_home() {
    use Point::{Host, Running, Store};
    let all = [
        (Host(HostOp::Create, 1), false),
        (Host(HostOp::MakeDir, 2), false),
        (Store(StoreOp::PatchSeed, 1), false),
        // Note, config of none, login.
        (Host(HostOp::Write, 2), false),
        (Host(HostOp::GuardStart, 1), false),
        (Running, true),
        (Host(HostOp::GuardGone, 1), true),
        (Store(StoreOp::PutSpool, 1), true),
        (Store(StoreOp::SaveCredential, 1), true),
        (Store(StoreOp::ConfirmSpool, 1), true),
        (Host(HostOp::Remove, 1), true),
        (Host(HostOp::Cleanup, 1), true),
        (Store(StoreOp::PatchSeed, 2), true),
        (Store(StoreOp::Release, 1), true),
    ];
    for away in [Duration::ZERO, Duration::from_secs(50), LAPSE] {
        for (point, rotated) in all {
            play(async move {
                let script = Script::default().rotating();
                let script = if matches!(point, Running) { script.hanging() } else { script };
                let (world, starts) = world_with(script);
                let seed = world.seed("acme").await;
                world.restart().await;
                match point {
                    Store(op, nth) => world.faulty_store.fail(op, nth, Fault::Hang),
                    Host(op, nth) => world.faulty_host.fail_nth(op, nth, FaultKind::Hang),
                    Running => {}
                }
                begin(world.service(), &seed);
                // Long enough to come to the point, and shorter than any limit that leads on.
                tokio::time::sleep(Duration::from_secs(8)).await;
                world.crash();
                world.faulty_store.heal();
                world.faulty_host.heal();
                tokio::time::sleep(away).await;
                let wanted = if rotated { "refresh-acme-2" } else { "refresh-acme-1" };
                let case = format!("{point:?} away {away:?}");
                assert_eq!(!starts.lock().unwrap().is_empty(), rotated, "{case}: the point was reached");

                world.restart().await;
                tokio::time::sleep(Duration::from_secs(30)).await;
                assert_eq!(world.host.agents_running(), 0, "{case}");
                assert_eq!(token(&world, &seed), wanted, "{case}");
                let of_a_login = |file: &PathBuf| file.ends_with("auth.json");
                assert!(!left(&world).iter().any(of_a_login), "{case}: {:?}", left(&world));
                assert_eq!(
                    starts.lock().unwrap().len(),
                    usize::from(rotated),
                    "{case}: nobody is asked unasked"
                );

                // Once the dead one's lease is over, a check finds the seed good with the newest token only.
                tokio::time::sleep(LAPSE).await;
                world.login_server.reachable(true);
                let seen = verify(&world, &seed).await;
                assert_eq!((seen.verdict, seen.seed.status), ("alive", SeedStatus::Alive), "{case}");
                assert_eq!(world.login_server.attempts(), [wanted], "{case}");
                assert!(world.login_server.reuses().is_empty() && is_free(&world, &seed).await, "{case}");
                assert_eq!(spooled(&world).await, 0, "{case}");
            });
        }
    }
}

#[actix::test]
async fn what_was_before_the_probe_is_so_again_after_a_crash() {
    let (world, _) = world_with(Script::default().hanging());
    let seed = world.seed("acme").await;
    let dead = Some((SeedStatus::Dead, Some("somebody said so".to_owned())));
    world.memory.patch(&seed, None, SeedPatch { status: dead, ..SeedPatch::default() }).await.unwrap();
    world.restart().await;
    begin(world.service(), &seed);
    world.until("codex", async || world.host.agents_running() == 1).await;
    assert_eq!(row(&world, &seed).await.status, SeedStatus::NeedsRecovery);
    world.crash();
    world.login_server.reachable(true);
    world.restart().await;
    let note = verdict(&world, &seed).await;
    assert_eq!(note["verdict"], "inconclusive");
    assert!(world.login_server.attempts().is_empty(), "nobody has asked to send anything");
    let after = row(&world, &seed).await;
    assert_eq!((after.status, after.status_reason.as_deref()), (SeedStatus::Dead, Some("somebody said so")));
    assert!(!after.metadata.contains_key("refreshIntent") && world.host.agents_running() == 0);
}

#[actix::test]
async fn a_person_who_spoke_while_the_service_was_dead_has_the_last_word() {
    let (world, _) = world_with(Script::default().hanging());
    let seed = world.seed("acme").await;
    world.restart().await;
    begin(world.service(), &seed);
    world.until("codex", async || world.host.agents_running() == 1).await;
    world.crash();
    let dead = Some((SeedStatus::Dead, Some("somebody said so".to_owned())));
    world.memory.patch(&seed, None, SeedPatch { status: dead, ..SeedPatch::default() }).await.unwrap();
    world.restart().await;
    verdict(&world, &seed).await;
    assert_eq!(row(&world, &seed).await.status, SeedStatus::Dead);
    assert!(left(&world).is_empty());
}

#[actix::test]
async fn a_store_that_is_away_at_the_start_is_waited_for() {
    let (world, _) = world_with(Script::default().rotating().hanging());
    let seed = world.seed("acme").await;
    world.restart().await;
    begin(world.service(), &seed);
    world.until("codex", async || world.host.agents_running() == 1).await;
    world.crash();
    world.faulty_store.fail_always(StoreOp::GetSeed, Fault::Error);
    world.restart().await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(left(&world).iter().any(|file| file.ends_with("auth.json")), "kept until it can be stored");
    world.faulty_store.heal();
    world.until("the login", async || token(&world, &seed) == "refresh-acme-2").await;
    world.until("the home", async || left(&world).is_empty()).await;
}

#[actix::test]
async fn a_home_whose_seed_was_deleted_is_removed() {
    let (world, _) = world_with(Script::default().hanging());
    let seed = world.seed("acme").await;
    world.restart().await;
    begin(world.service(), &seed);
    world.until("codex", async || world.host.agents_running() == 1).await;
    world.crash();
    tokio::time::sleep(LAPSE).await;
    world.memory.delete(&seed, true).await.unwrap();
    world.restart().await;
    world.until("the home", async || left(&world).is_empty()).await;
    assert_eq!(world.host.agents_running(), 0);
}
