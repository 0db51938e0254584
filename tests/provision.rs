//! A service on a machine without codex brings one there, once, however many sessions want it; and says why it cannot.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{conversation, files_beneath, service};
use optio_testkit::{
    Act, Far, MockModel, ModelAuth, ReleaseServer, ServerSetup, TerminalClient, TestServer, client,
    codex_binary, wait_until,
};
use serde_json::json;

/// Unpacking 286 MB and starting twenty agents, on a busy machine of two cores.
const START: Duration = Duration::from_secs(180);

/// A `PATH` with the system's programs alone.
const BARE_PATH: &str = "/usr/bin:/bin";

const ASSET: &str = "unknown-linux-musl.tar.gz";

/// Releases of the real codex, and what a service needs to be told of them.
struct Releases {
    server: ReleaseServer,
    path: String,
    version: String,
    sum: String,
}

impl Releases {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let said = Command::new(codex_binary()).arg("--version").output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let version = said.trim().strip_prefix("codex-cli ").unwrap().to_owned();
        let tarball = dir.path().join("codex.tar.gz");
        let codex = codex_binary();
        // The system's tar: packing it with ours, unoptimised, would take longer than the test. Named as in a release, and
        // without an execute bit, which releases need not have.
        let packed = Command::new("tar")
            .arg("--create")
            .arg("--use-compress-program=gzip -1")
            .arg("--mode=0644")
            .arg("--directory")
            .arg(codex.parent().unwrap())
            .arg("--file")
            .arg(&tarball)
            .arg(codex.file_name().unwrap())
            .status()
            .unwrap();
        assert!(packed.success());
        let sum = Command::new("sha256sum").arg(&tarball).output().unwrap();
        let sum = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
        let path = format!("/rust-v{version}/codex-{}-{ASSET}", std::env::consts::ARCH);
        let server = ReleaseServer::start();
        server.put(&path, std::fs::read(&tarball).unwrap());
        Self { server, path, version, sum }
    }

    /// A service that knows these releases, and no other codex.
    fn setup(&self, setup: ServerSetup, sum: &str) -> ServerSetup {
        let arch = std::env::consts::ARCH;
        let (url, version) = (self.server.url(), &self.version);
        setup.without_codex().config(format!(
            "codex_release_url = '{url}'\n[provision.codex]\nversion = '{version}'\nsha256.{arch} = '{sum}'\n"
        ))
    }

    async fn service(&self, sum: &str) -> TestServer {
        self.setup(service(), sum).start().await
    }
}

fn cache(server: &TestServer) -> std::path::PathBuf {
    server.root().join("home/.cache/optio-codex/bin")
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        files_beneath(dir).iter().map(|path| path.strip_prefix(dir).unwrap().display().to_string()).collect();
    names.sort();
    names
}

async fn failed(session: &client::Session) -> String {
    let ended = session.wait_state("ended", START).await;
    assert_eq!(ended["outcome"], "failed", "{ended:#}");
    ended["reason"].as_str().unwrap_or_default().to_owned()
}

#[actix_rt::test]
async fn twenty_sessions_on_a_machine_without_codex_start_after_one_download() {
    let (model, releases) = (MockModel::start(), Releases::start());
    let server = releases.service(&releases.sum).await;
    let client = server.client();
    let creating = (0..20).map(|_| client.create(conversation(&model)));
    let sessions = futures_util::future::join_all(creating).await;
    for session in &sessions {
        session.wait_state("idle", START).await;
    }
    assert_eq!(releases.server.asked().len(), 1, "{:?}", releases.server.asked());
    let entry = format!("codex-{}", releases.version);
    assert_eq!(names(&cache(&server)), [format!("{entry}/codex"), format!("{entry}/stamp")]);
    for session in &sessions {
        let events = session.journal().await;
        let told: Vec<_> = events.iter().filter(|event| event["type"] == "progress").collect();
        let says = |word: &str| {
            told.iter().any(|event| event["message"].as_str().unwrap_or_default().contains(word))
        };
        assert!(says(ASSET) && says(&releases.version), "{told:#?}");
        assert!(told.iter().any(|event| event["percent"] == 100), "{told:#?}");
    }
    // It works, and not only starts.
    sessions[0].turn("@say provided").await;
    wait_until("the answer", START, || async {
        common::answers(&sessions[0]).await.iter().any(|a| a == "provided")
    })
    .await;
}

#[actix_rt::test]
async fn a_far_machine_without_codex_is_given_one_over_ssh_and_this_one_is_not() {
    if !Far::can_be_apart_or_skip() {
        return;
    }
    let (model, releases) = (MockModel::start(), Releases::start());
    let far = Far::setup().without_codex().start().await;
    let server = releases.setup(service().on(&far), &releases.sum).start().await;
    let client = server.client();
    let creating = (0..5).map(|_| client.create(conversation(&model)));
    let sessions = futures_util::future::join_all(creating).await;
    for session in &sessions {
        session.wait_state("idle", START).await;
    }
    assert_eq!(releases.server.asked().len(), 1, "{:?}", releases.server.asked());
    let entry = format!("codex-{}", releases.version);
    let there = far.home().join(".cache/optio-codex/bin");
    assert_eq!(names(&there), [format!("{entry}/codex"), format!("{entry}/stamp")]);
    assert_eq!(names(&cache(&server)), [""; 0]);
    sessions[0].turn("@say provided").await;
    wait_until("the answer", START, || async {
        common::answers(&sessions[0]).await.iter().any(|a| a == "provided")
    })
    .await;
}

#[actix_rt::test]
async fn terminals_on_a_machine_without_ttyd_get_one_from_one_download() {
    let ttyd = optio_testkit::codex::tools_dir().join("bin/ttyd");
    let Ok(program) = std::fs::read(&ttyd) else {
        eprintln!("skipped: there is no ttyd here (`make setup-test` fetches one)");
        return;
    };
    let releases = ReleaseServer::start();
    let arch = std::env::consts::ARCH;
    let path = format!("/1.7.7/ttyd.{arch}");
    releases.put(&path, program);
    let sum = Command::new("sha256sum").arg(&ttyd).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, format!("[provision.ttyd]\nversion = '1.7.7'\nsha256.{arch} = '{sum}'\n"))
        .unwrap();
    let (config, url) = (config.to_str().unwrap().to_owned(), releases.url());
    let bare = service().codex(codex_binary()).args(["--config", &config, "--ttyd-release-url", &url]);
    let server = bare.env("PATH", BARE_PATH).start().await;

    let model = MockModel::start();
    let wanted = json!({
        "mode": "terminal",
        "instructions": "",
        "codex_config": model.overrides(ModelAuth::Nothing),
    });
    let client = server.client();
    let creating = (0..5).map(|_| client.create(wanted.clone()));
    let sessions = futures_util::future::join_all(creating).await;
    for session in &sessions {
        session.wait_state("working", START).await;
        wait_until("a ttyd serves", START, || async {
            let client = TerminalClient::sit(session, "operator", 80, 24).await;
            let actors = session.actors().await.to_string();
            drop(client);
            actors.contains("\"ttyd\":true")
        })
        .await;
    }
    assert_eq!(releases.asked().len(), 1, "{:?}", releases.asked());
    for session in &sessions {
        session.stop("cancel").await;
    }
}

#[actix_rt::test]
async fn a_session_whose_codex_cannot_be_had_fails_and_says_what_to_do() {
    let (model, releases) = (MockModel::start(), Releases::start());
    let other = "0".repeat(64);
    let server = releases.service(&other).await;
    let session = server.client().create(conversation(&model)).await;
    let reason = failed(&session).await;
    assert!(reason.contains(ASSET) && reason.contains(&releases.sum) && reason.contains("pin"), "{reason}");
    assert_eq!(names(&cache(&server)), [""; 0]);

    let server = releases.service(&releases.sum).await;
    for (act, word) in
        [(Act::Status(404), "404"), (Act::Redirect("http://releases.example/".into()), "https")]
    {
        releases.server.next(&releases.path, [act]);
        let reason = failed(&server.client().create(conversation(&model)).await).await;
        assert!(reason.contains(word) && reason.contains(&releases.path), "{reason}");
        assert!(reason.contains("codex_release_url"), "{reason}");
    }
    assert_eq!(names(&cache(&server)), [""; 0]);

    // What failed is nobody's fate: the next session tries anew.
    let session = server.client().create(conversation(&model)).await;
    session.wait_state("idle", START).await;
}
