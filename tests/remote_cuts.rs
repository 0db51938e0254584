//! The network between the service and the machine of its sessions is cut, without a word, in the middle of everything:
//! for so short that nobody notices, for so long that everybody does, and for longer than the agents may live without us.
//!
//! The cuts take their real time, so each length is one test with a session in every state side by side.

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{END, answers, assert_ordered, conversation, import, seeded, service, step};
use futures_util::future::join_all;
use optio_testkit::{
    Client, FakeOauth, Far, LIMIT, MockModel, OauthMode, Session, TerminalClient, TestServer, auth, procs,
    wait_until,
};
use reqwest::Method;
use serde_json::{Value, json};

/// A cut that the connection outlives: keepalives are missed, and not enough of them.
const SHORT: Duration = Duration::from_secs(5);
/// A cut that everybody hears of, and that the guards of leased agents (45 s) may or may not sit out.
const MIDDLE: Duration = Duration::from_secs(40);
/// A cut that leased agents do not live through (55 s), and leases (60 s after the last renewal) neither.
const LONG: Duration = Duration::from_secs(100);
/// Until a cut is noticed: two keepalives without an answer, 5 s each, and one to send.
const NOTICED: Duration = Duration::from_secs(30);
/// From the end of an agent at its guard's hands until we may be certain of it: a heartbeat may have got through until the cut
/// was noticed.
const CERTAIN: Duration = Duration::from_secs(45);
/// Until everything goes on when the way is there again: a retry at most every 5 s, TCP's own, and a busy machine.
const BACK: Duration = Duration::from_secs(60);

/// What is large enough that a cut finds it on its way.
const LARGE: u64 = 128 << 20;

/// A machine at the end of a cable, with what its agents need at the end of another.
struct World {
    far: Arc<Far>,
    model: MockModel,
    oauth: FakeOauth,
    server: TestServer,
    client: Client,
}

impl World {
    async fn start() -> Option<Self> {
        if !Far::can_be_apart_or_skip() {
            return None;
        }
        let far = Far::setup().network().start().await;
        let (model, oauth) = (MockModel::start_at(far.near()), FakeOauth::start_at(far.near()));
        let setup = service().on(&far).env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", oauth.url());
        let server = setup.start().await;
        let client = server.client();
        Some(Self { far, model, oauth, server, client })
    }

    async fn seed(&self, account: &str) -> String {
        import(&self.client, &self.model, &self.oauth.login(account).auth_json()).await
    }

    async fn idle(&self, wanted: Value) -> Session {
        let session = self.client.create(wanted).await;
        session.wait_idle().await;
        session
    }

    fn workdir(&self, session: &Session) -> PathBuf {
        self.server.task_root().join(&session.id).join("workdir")
    }

    /// The refresh token that the session's agent has on its machine.
    fn far_token(&self, session: &Session) -> Option<String> {
        auth::refresh_token_of(&std::fs::read(self.workdir(session).join("home/.codex/auth.json")).ok()?)
    }

    /// Puts a file into a workdir that takes a while on its way.
    fn make_large(&self, session: &Session) {
        let made = std::process::Command::new("sh")
            .args(["-c", &format!("yes | head -c {LARGE} >large.bin && sha256sum large.bin >sum.txt")])
            .current_dir(self.workdir(session))
            .status();
        assert!(made.expect("sh is everywhere").success());
    }

    fn is_whole(&self, session: &Session) -> bool {
        let checked = std::process::Command::new("sha256sum")
            .args(["--check", "sum.txt"])
            .current_dir(self.workdir(session))
            .output();
        checked.is_ok_and(|checked| checked.status.success())
    }

    /// The archivers that run there now.
    fn tars(&self, session: &Session) -> Vec<procs::Proc> {
        let there = self.far.processes().into_iter();
        let task = self.far.task_root().join(&session.id);
        there
            .filter(|process| process.argv.first().is_some_and(|word| word.ends_with("tar")))
            .filter(|process| {
                let cwd = std::fs::read_link(format!("/proc/{}/cwd", process.pid));
                cwd.is_ok_and(|cwd| cwd.starts_with(&task))
                    || process.argv.iter().any(|word| word.contains(&session.id))
            })
            .collect()
    }

    /// What the next session of this seed gets is the newest there is, and works; nobody used a token twice.
    async fn login_is_home(&self, seed: &str, account: &str) {
        let row = self.client.seed(seed).await;
        assert_eq!((&row["lease"], &row["status"]), (&Value::Null, &json!("alive")), "{row:#}");
        let next = self.idle(seeded(seed)).await;
        assert_eq!(self.far_token(&next), self.oauth.issued(account), "{account}");
        next.end(END).await;
        assert_eq!(self.oauth.reuses(), Vec::<String>::new());
    }

    /// Nothing runs there and nothing lies there.
    async fn is_clean(&self) {
        wait_until("nothing is left there", LIMIT, || async {
            let (agents, dirs) = (self.far.agents(), procs::entries(&self.server.task_root()));
            if agents.is_empty() && dirs.is_empty() { Ok(()) } else { Err((agents, dirs)) }
        })
        .await;
    }
}

/// The journal's words about the host, in order.
async fn host_events(session: &Session) -> Vec<String> {
    let names = session
        .journal()
        .await
        .into_iter()
        .map(|event| event["type"].as_str().unwrap_or_default().to_owned());
    names.filter(|name| name.starts_with("host.")).collect()
}

async fn ended(session: &Session) -> Value {
    session.wait_state("ended", BACK + END).await
}

fn is_down(view: &Value) -> bool {
    view["host_down"]["code"] == "host_unreachable" && view["host_down"]["since"].is_string()
}

async fn wait_down(session: &Session, down: bool, limit: Duration) -> Value {
    wait_until(
        format!("the host is {} for {}", if down { "down" } else { "back" }, session.id),
        limit,
        || async {
            let view = session.get().await;
            if is_down(&view) == down { Ok(view) } else { Err(view) }
        },
    )
    .await
}

/// A session in each state in which a cut can find one, and the cut.
struct Cast {
    world: World,
    words: String,
    /// Says one word after the other, before the cut, all through it and after it.
    streaming: Session,
    /// Waits for a person.
    asking: Session,
    approval: String,
    outside: PathBuf,
    /// Gets a new login from its provider in the cut.
    rotating: Session,
    rotating_seed: String,
    /// Is on its way into the store.
    leaving: Session,
    leaving_seed: String,
    /// Is on its way out of it.
    coming: Session,
}

/// How often the streaming one says a word.
const BEAT: f64 = 0.5;

impl Cast {
    /// Brings everybody on and cuts the cable in the middle of it all.
    async fn cut(length: Duration) -> Option<Self> {
        let world = World::start().await?;
        let (rotating_seed, leaving_seed) = (world.seed("rotating").await, world.seed("leaving").await);
        let (coming, asking, streaming) = futures_util::join!(
            world.idle(conversation(&world.model)),
            world.idle(conversation(&world.model)),
            world.idle(conversation(&world.model)),
        );
        let (rotating, leaving) =
            futures_util::join!(world.idle(seeded(&rotating_seed)), world.idle(seeded(&leaving_seed)));
        world.make_large(&coming);
        world.make_large(&leaving);
        coming.end(END * 2).await;

        let outside = world.far.open_dir().join("outside.txt");
        let command = json!({
            "cmd": format!("echo ran >> {}", outside.display()),
            "sandbox_permissions": "require_escalated",
            "justification": "to show it",
        });
        asking.turn(&format!("@call exec_command {command}")).await;
        let approval = asking.pending_approval(LIMIT).await["id"].as_str().expect("it has an id").to_owned();
        let beats = ((length + Duration::from_secs(20)).as_secs_f64() / BEAT) as usize;
        let words = (0..beats).map(|n| format!("word{n}")).collect::<Vec<_>>().join(" ");
        streaming.turn(&format!("@slow {BEAT} {words}")).await;
        streaming.events(None).await.until_named("item.delta", LIMIT).await;
        // Its model turns it away, and the login server takes its time.
        world.oauth.mode(OauthMode::Hang);
        rotating.turn("@http 401").await;
        world.oauth.wait_for_attempts(1).await;

        leaving.stop("graceful").await;
        coming.resume().await;
        wait_until("both archives are on their way", LIMIT, || async {
            let seen = (!world.tars(&leaving).is_empty(), !world.tars(&coming).is_empty());
            if seen == (true, true) { Ok(()) } else { Err(seen) }
        })
        .await;
        world.far.cut();
        Some(Self {
            world,
            words,
            streaming,
            asking,
            approval,
            outside,
            rotating,
            rotating_seed,
            leaving,
            leaving_seed,
            coming,
        })
    }

    /// The new login is there, where nobody can fetch it now.
    async fn rotates(&self) -> String {
        self.world.oauth.mode(OauthMode::Ok);
        let grant = self.world.oauth.wait_for_grants(1).await;
        wait_until("the agent has the new login", LIMIT, || async {
            self.world.far_token(&self.rotating).as_deref() == Some(&grant.refresh_token)
        })
        .await;
        grant.refresh_token
    }

    async fn stream_is_whole(&self) {
        let whole = Duration::from_secs(30) + BACK;
        self.streaming.wait_state("idle", whole).await;
        wait_until("the whole answer is told", LIMIT, || async {
            let said = answers(&self.streaming).await;
            if said == [self.words.clone()] { Ok(()) } else { Err(said) }
        })
        .await;
        let seen: Vec<_> =
            self.streaming.journal().await.iter().filter_map(|event| event["seq"].as_u64()).collect();
        assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
    }

    /// What was asked is answered, before or now, and done once.
    async fn answer_counts_once(&self) {
        let approval = &self.asking.approvals().await[0];
        if approval["state"] == "pending" {
            self.asking.answer(&self.approval, "accept").await;
        }
        self.asking.wait_state("idle", BACK).await;
        assert_eq!(std::fs::read_to_string(&self.outside).expect("it ran"), "ran\n");
        let approvals = self.asking.approvals().await;
        assert_eq!((approvals.len(), &approvals[0]["state"]), (1, &json!("accepted")), "{approvals:#?}");
    }

    /// The snapshot that was cut in two is whole, and the workdir went after it.
    async fn has_left(&self) {
        let left = ended(&self.leaving).await;
        assert_ordered(&left);
        assert_eq!((&left["outcome"], &left["has_snapshot"]), (&json!("stopped"), &json!(true)), "{left:#}");
        for name in ["stop_agent", "save_back", "release_lease", "capture_snapshot", "wipe"] {
            assert_eq!(step(&left, name)["state"], "done", "{name}: {left:#}");
        }
        self.leaving.resume().await;
        self.leaving.wait_state("idle", END).await;
        assert!(self.world.is_whole(&self.leaving), "the file is whole");
    }

    /// The last of it: everybody goes, everything is home.
    async fn exeunt(self) {
        let all = [&self.streaming, &self.asking, &self.rotating, &self.leaving, &self.coming];
        join_all(all.map(async |session| {
            session.stop_if_live().await;
            let last = ended(session).await;
            assert_ordered(&last);
            assert_eq!(step(&last, "wipe")["state"], "done", "{last:#}");
        }))
        .await;
        self.world.is_clean().await;
        self.world.login_is_home(&self.rotating_seed, "rotating").await;
        self.world.login_is_home(&self.leaving_seed, "leaving").await;
    }
}

#[actix::test]
async fn a_cut_of_five_seconds_is_seen_by_nobody() {
    let Some(cast) = Cast::cut(SHORT).await else { return };
    let newest = cast.rotates().await;
    tokio::time::sleep(SHORT).await;
    cast.world.far.mend();

    cast.answer_counts_once().await;
    cast.stream_is_whole().await;
    cast.coming.wait_state("idle", BACK).await;
    assert!(cast.world.is_whole(&cast.coming), "the file is whole");
    cast.has_left().await;
    cast.rotating.wait_state("idle", BACK).await;
    let saved =
        cast.rotating.journal().await.into_iter().filter(|event| event["type"] == "seed.saved").count();
    assert_eq!((saved, cast.world.far_token(&cast.rotating)), (1, Some(newest)));
    for session in [&cast.streaming, &cast.asking, &cast.rotating, &cast.leaving, &cast.coming] {
        assert_eq!(host_events(session).await, [""; 0], "{}", session.id);
    }
    cast.exeunt().await;
}

#[actix::test]
async fn a_cut_of_forty_seconds_is_told_and_everything_goes_on_after_it() {
    let Some(cast) = Cast::cut(MIDDLE).await else { return };
    let cut = tokio::time::Instant::now();
    let before = cast.rotating.get().await;
    let newest = cast.rotates().await;
    for (session, state) in
        [(&cast.streaming, "working"), (&cast.asking, "waiting"), (&cast.leaving, "stopping")]
    {
        let view = wait_down(session, true, NOTICED).await;
        assert_eq!(view["state"], state, "{view:#}");
        let reason = view["reason"].as_str().unwrap_or_default();
        // One that is ending says why it ends.
        let told = if state == "stopping" { "stopped on request" } else { "host box: down since" };
        assert!(reason.starts_with(told), "{view:#}");
    }
    let host = cast.world.client.get("/v1/hosts/box").await;
    assert_eq!((&host["state"], &host["code"]), (&json!("down"), &json!("host_unreachable")), "{host:#}");

    // Whoever wants something meanwhile is told at once, and nothing of it happens behind their back.
    let client = &cast.world.client;
    let turn = client.request(Method::POST, &cast.rotating.path("/turns"));
    let refused = client.send(turn.json(&json!({ "text": "@say in the dark", "mode": "new" }))).await;
    assert_eq!(refused.problem(), "host_unreachable", "{}", refused.text());
    let answer = client.request(Method::POST, &cast.asking.path(&format!("/approvals/{}", cast.approval)));
    let answered = client.send(answer.json(&json!({ "decision": "accept" }))).await;
    assert!(answered.status.is_success() || answered.problem() == "host_unreachable", "{}", answered.text());
    assert!(!cast.outside.exists());

    tokio::time::sleep_until(cut + MIDDLE).await;
    // The store is not cut off: the seed is ours all the time.
    let held = client.seed(&cast.rotating_seed).await;
    assert_eq!(held["lease"]["holder"], before["run"]["lease"]["holder"], "{held:#}");
    assert_eq!(held["dirty"], false, "{held:#}");
    cast.world.far.mend();

    for session in [&cast.streaming, &cast.asking, &cast.rotating] {
        wait_down(session, false, BACK).await;
        assert_eq!(host_events(session).await, ["host.down", "host.up"], "{}", session.id);
    }
    cast.answer_counts_once().await;
    cast.stream_is_whole().await;
    cast.has_left().await;
    wait_until("the new login is home", BACK, || async {
        cast.rotating.journal().await.iter().any(|event| event["type"] == "seed.saved")
    })
    .await;
    // Its guard counts from the last heartbeat, up to 10 s before the cut, to the first one after it, when the way was found
    // again: whether 45 s were over by then is a matter of a few seconds. Either is right, and told.
    let settled = wait_until("the leased one goes on or has ended", BACK, || async {
        let view = cast.rotating.get().await;
        if view["state"] == "idle" || view["state"] == "ended" { Ok(view) } else { Err(view) }
    })
    .await;
    println!("the leased agent after {MIDDLE:?}: {}", settled["state"]);
    if settled["state"] == "idle" {
        assert_eq!(settled["run"]["agent"], before["run"]["agent"], "the same agent");
    } else {
        assert_ordered(&settled);
        assert!(settled["reason"].as_str().is_some_and(|reason| reason.contains("guard")), "{settled:#}");
        assert_eq!(step(&settled, "wipe")["state"], "done", "{settled:#}");
        cast.rotating.resume().await;
        cast.rotating.wait_state("idle", END).await;
    }
    assert_eq!(cast.world.far_token(&cast.rotating), Some(newest), "it goes on with the login it had there");
    assert!(cast.world.model.turns().iter().all(|turn| turn.user_text() != "@say in the dark"));
    // What was still being brought there did not get there, says why, and has lost nothing.
    let failed = ended(&cast.coming).await;
    assert_eq!(
        (&failed["outcome"], &failed["code"]),
        (&json!("failed"), &json!("host_unreachable")),
        "{failed:#}"
    );
    assert_eq!(failed["has_snapshot"], true, "{failed:#}");
    cast.coming.resume().await;
    cast.coming.wait_state("idle", END).await;
    assert!(cast.world.is_whole(&cast.coming), "the file is whole");
    cast.exeunt().await;
}

#[actix::test]
async fn a_cut_of_a_hundred_seconds_ends_what_had_a_lease_and_loses_no_login() {
    let Some(cast) = Cast::cut(LONG).await else { return };
    let cut = tokio::time::Instant::now();
    let before = cast.rotating.get().await;
    let pid = before["run"]["agent"]["pid"].as_i64().expect("an agent has a pid");
    let agent = procs::Proc::find(i32::try_from(pid).expect("a pid fits")).expect("it runs");
    let newest = cast.rotates().await;
    wait_down(&cast.rotating, true, NOTICED).await;
    // Nobody can tell it to; its guard does.
    let leased = Duration::from_secs(70);
    wait_until("the leased agent is ended by its guard", leased, || async { !agent.is_alive() }).await;
    let ending = cast.rotating.wait_state("stopping", CERTAIN).await;
    let reason = ending["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("box") && reason.contains("out of reach"), "{ending:#}");
    assert!(is_down(&ending), "{ending:#}");
    tokio::time::sleep_until(cut + LONG).await;

    // Nobody knows what the machine has: the lease is not renewed any more, and nobody gets this seed as if it were clean.
    let row = cast.world.client.seed(&cast.rotating_seed).await;
    let held = row["lease"]["holder"] == before["run"]["lease"]["holder"];
    assert!(held || row["dirty"] == true, "{row:#}");
    let (streaming, asking) = (cast.streaming.get().await, cast.asking.get().await);
    assert_eq!((&streaming["state"], &asking["state"]), (&json!("working"), &json!("waiting")));
    cast.world.far.mend();

    let over = ended(&cast.rotating).await;
    assert_ordered(&over);
    assert_eq!((&over["outcome"], &over["code"]), (&json!("failed"), &json!("host_unreachable")), "{over:#}");
    for name in ["stop_agent", "save_back", "release_lease", "capture_snapshot", "wipe"] {
        assert_eq!(step(&over, name)["state"], "done", "{name}: {over:#}");
    }
    let row = cast.world.client.seed(&cast.rotating_seed).await;
    assert_eq!(
        (&row["lease"], &row["dirty"], &row["status"]),
        (&Value::Null, &json!(false), &json!("alive")),
        "{row:#}"
    );
    // What was at work without a lease is at work, and what its people missed is told.
    cast.answer_counts_once().await;
    cast.stream_is_whole().await;
    cast.has_left().await;
    let failed = ended(&cast.coming).await;
    assert_eq!((&failed["outcome"], &failed["has_snapshot"]), (&json!("failed"), &json!(true)), "{failed:#}");
    cast.coming.resume().await;
    cast.rotating.resume().await;
    cast.coming.wait_state("idle", END).await;
    assert!(cast.world.is_whole(&cast.coming), "the file is whole");
    cast.rotating.wait_state("idle", END).await;
    assert_eq!(cast.world.far_token(&cast.rotating), Some(newest), "it goes on with the login it had there");
    cast.exeunt().await;
}

#[actix::test]
async fn a_service_that_is_killed_in_a_cut_waits_for_the_host_and_adopts() {
    let Some(world) = World::start().await else { return };
    let seed = world.seed("acct-1").await;
    let session = world.idle(seeded(&seed)).await;
    session.turn("@hold one two three").await;
    world.model.wait_until_held(1).await;
    let before = session.get().await;
    world.far.cut();
    world.server.kill_9();
    world.server.restart().await;
    let session = world.server.client().session(&session.id);
    let waiting = wait_down(&session, true, NOTICED).await;
    assert_ne!(waiting["state"], "ended", "{waiting:#}");
    world.model.release();
    world.far.mend();
    session.wait_state("idle", BACK).await;
    let after = session.get().await;
    assert_eq!(after["run"]["agent"], before["run"]["agent"], "{after:#}");
    assert_eq!(after["run"]["lease"]["holder"], before["run"]["lease"]["holder"], "{after:#}");
    wait_until("the answer is whole", LIMIT, || async { answers(&session).await == ["one two three"] }).await;
    assert_ordered(&session.end(END).await);
    world.is_clean().await;
    world.login_is_home(&seed, "acct-1").await;
}

#[actix::test]
async fn an_sshd_that_is_killed_and_started_again_takes_nothing_with_it() {
    let (model, oauth) = (MockModel::start(), FakeOauth::start());
    let far = Far::setup().start().await;
    let server = service().on(&far).start().await;
    let client = server.client();
    let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;
    let session = client.create(seeded(&seed)).await;
    session.wait_idle().await;
    let terminal = client.create(common::terminal::terminal(&model)).await;
    terminal.wait_state("working", LIMIT).await;
    let mut person = TerminalClient::sit(&terminal, "operator", 100, 30).await;
    person.sees("OpenAI Codex").await;
    session.turn("@hold one two three").await;
    model.wait_until_held(1).await;
    let before = session.get().await;

    far.kill_sshd();
    let down = wait_down(&session, true, NOTICED).await;
    assert_eq!(down["state"], "working", "{down:#}");
    // They are told to come back, not that it has ended.
    assert!([4001, 4002].contains(&person.is_closed().await.0), "{:?}", person.closed);
    model.release();
    far.restart_sshd().await;
    session.wait_state("idle", BACK).await;
    assert_eq!(answers(&session).await, ["one two three"]);
    assert_eq!(host_events(&session).await, ["host.down", "host.up"]);
    assert_eq!(session.get().await["run"]["agent"], before["run"]["agent"]);
    let mut person = TerminalClient::sit(&terminal, "operator", 100, 30).await;
    person.sees("OpenAI Codex").await;
    terminal.turn("@say typed after it").await;
    person.sees("typed after it").await;

    terminal.stop("cancel").await;
    assert_ordered(&session.end(END).await);
    terminal.wait_state("ended", END).await;
    assert!(far.agents().is_empty(), "{:?}", far.agents());
    assert_eq!(procs::entries(&server.task_root()), Vec::<String>::new());
    assert!(client.seed(&seed).await["lease"].is_null());
}
