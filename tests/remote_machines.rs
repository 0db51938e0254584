//! Machines that lack something, say too much, or are full: each says so in words, and loses nothing.

mod common;

use std::path::Path;

use common::terminal::terminal;
use common::{END, answers, assert_ordered, conversation, import, seeded, service, step};
use optio_testkit::{Client, FAR, FakeOauth, Far, LIMIT, MockModel, Session, procs, wait_until};
use reqwest::Method;
use serde_json::{Value, json};

/// Runs a command in the session's agent and waits for the end of the turn.
async fn runs(session: &Session, command: &str) {
    let mut events = session.events(session.get().await["last_event"].as_u64()).await;
    session.turn(&format!("@call exec_command {}\n@say I wait", json!({ "cmd": command }))).await;
    events.until_named("turn.completed", LIMIT).await;
    session.wait_idle().await;
}

/// What a probe says is wrong with the machine.
async fn problems(client: &Client) -> String {
    let probed = client.post(&format!("/v1/hosts/{FAR}/probe"), json!({})).await;
    probed["problems"]
        .as_array()
        .cloned()
        .unwrap_or_default()
        .iter()
        .map(|problem| format!("{problem}\n"))
        .collect()
}

#[actix::test]
async fn a_shell_that_talks_when_it_starts_is_understood_all_the_same() {
    if !Far::can_be_apart_or_skip() {
        return;
    }
    let (model, oauth) = (MockModel::start(), FakeOauth::start());
    let far = Far::setup().start().await;
    // Bash reads this when sshd starts it: for every single command.
    let noise = "echo 'Welcome to box! 3 updates can be applied.'\necho \"mesg: ttyname failed\" >&2\nprintf 'no newline'\n";
    std::fs::write(far.home().join(".bashrc"), noise).expect("its home is ours");
    let server = service().on(&far).start().await;
    let client = server.client();
    let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;
    let said = problems(&client).await;
    assert!(said.lines().all(|problem| problem.contains("ttyd")), "{said}");
    let session = client.create(seeded(&seed)).await;
    session.wait_idle().await;
    runs(&session, "echo kept > kept.txt").await;
    let ended = session.end(END).await;
    assert_ordered(&ended);
    assert_eq!(step(&ended, "wipe")["state"], "done", "{ended:#}");
    session.resume().await;
    session.wait_idle().await;
    let kept = server.task_root().join(&session.id).join("workdir/kept.txt");
    assert_eq!(std::fs::read_to_string(kept).expect("it is back"), "kept\n");
    session.end(END).await;
    assert!(client.seed(&seed).await["lease"].is_null());
    assert_eq!(oauth.reuses(), Vec::<String>::new());
}

#[actix::test]
async fn without_tmux_a_terminal_says_what_to_install_and_a_conversation_works() {
    if !Far::can_be_apart_or_skip() {
        return;
    }
    let model = MockModel::start();
    let far = Far::setup().without("tmux").start().await;
    let server = service().on(&far).start().await;
    let client = server.client();
    let said = problems(&client).await;
    assert!(said.contains("tmux"), "{said}");
    let session = client.create(terminal(&model)).await;
    let ended = session.wait_state("ended", LIMIT).await;
    let reason = ended["reason"].as_str().unwrap_or_default();
    assert_eq!(ended["outcome"], "failed");
    assert!(reason.contains("tmux") && reason.contains("install"), "{reason}");
    assert_eq!(procs::entries(&server.task_root()), Vec::<String>::new());

    let session = client.create(conversation(&model)).await;
    session.wait_idle().await;
    session.turn("@say without a terminal").await;
    wait_until("the answer", LIMIT, || async { answers(&session).await == ["without a terminal"] }).await;
    session.end(END).await;
    assert!(far.agents().is_empty(), "{:?}", far.agents());
}

#[actix::test]
async fn without_tar_a_session_works_and_its_workdir_is_kept_and_its_login_is_home() {
    if !Far::can_be_apart_or_skip() {
        return;
    }
    let (model, oauth) = (MockModel::start(), FakeOauth::start());
    let far = Far::setup().without("tar").start().await;
    let server = service().on(&far).start().await;
    let client = server.client();
    let said = problems(&client).await;
    assert!(said.contains("tar"), "{said}");
    let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;
    let session = client.create(seeded(&seed)).await;
    session.wait_idle().await;
    runs(&session, "echo kept > kept.txt").await;
    let ended = session.end(END).await;
    assert_ordered(&ended);
    let snapshot = step(&ended, "capture_snapshot");
    assert_eq!(snapshot["state"], "failed", "{ended:#}");
    assert!(snapshot["detail"].as_str().is_some_and(|detail| detail.contains("tar")), "{snapshot:#}");
    assert_eq!(step(&ended, "release_lease")["state"], "done", "{ended:#}");
    assert_ne!(step(&ended, "wipe")["state"], "done", "{ended:#}");
    let kept = ended["workdir_kept"].as_str().expect("a person is told where it is");
    assert_eq!(std::fs::read_to_string(Path::new(kept).join("kept.txt")).expect("it is there"), "kept\n");
    assert!(client.seed(&seed).await["lease"].is_null());
    assert!(far.agents().is_empty(), "{:?}", far.agents());
}

/// Twice what a session needs, and less than what the test fills it with.
const DISK: u64 = 96 << 20;

#[actix::test]
async fn a_full_disk_fails_a_resume_in_its_own_words_and_the_next_one_has_everything() {
    if !Far::can_be_apart_or_skip() {
        return;
    }
    let (model, oauth) = (MockModel::start(), FakeOauth::start());
    let far = Far::setup().disk(DISK).start().await;
    let server = service().on(&far).start().await;
    let client = server.client();
    let seed = import(&client, &model, &oauth.login("acct-1").auth_json()).await;
    let session = client.create(seeded(&seed)).await;
    session.wait_idle().await;
    runs(&session, "yes | head -c 20000000 > large.bin; sha256sum large.bin > sum.txt").await;
    session.end(END).await;

    let filler = server.task_root().join("filler");
    let full = std::fs::File::create(&filler).expect("its disk is seen");
    // To the last block but some: a directory and a few small files still fit.
    rustix::fs::fallocate(&full, rustix::fs::FallocateFlags::empty(), 0, DISK - (8 << 20))
        .expect("so much is free");
    session.resume().await;
    let failed = session.wait_state("ended", END).await;
    let reason = failed["reason"].as_str().unwrap_or_default();
    assert_eq!(failed["outcome"], "failed", "{failed:#}");
    assert!(reason.contains("No space left on device"), "{reason}");
    assert_eq!(failed["has_snapshot"], true, "{failed:#}");
    let row = client.seed(&seed).await;
    assert_eq!((&row["lease"], &row["status"]), (&Value::Null, &json!("alive")), "{row:#}");
    assert_eq!(procs::entries(&server.task_root()), ["filler"]);

    std::fs::remove_file(&filler).expect("it is ours");
    drop(full);
    session.resume().await;
    session.wait_idle().await;
    let workdir = server.task_root().join(&session.id).join("workdir");
    let checked =
        std::process::Command::new("sha256sum").args(["--check", "sum.txt"]).current_dir(&workdir).output();
    assert!(checked.expect("sha256sum is everywhere").status.success(), "the file is whole");

    // A disk that is full at the end costs nothing: what goes out needs no room there.
    let full = std::fs::File::create(&filler).expect("its disk is seen");
    let fill = (0..).map_while(|at| {
        rustix::fs::fallocate(&full, rustix::fs::FallocateFlags::empty(), at << 20, 1 << 20).ok()
    });
    assert!(fill.count() > 0);
    let ended = session.end(END).await;
    assert_ordered(&ended);
    for name in ["save_back", "release_lease", "capture_snapshot", "wipe"] {
        assert_eq!(step(&ended, name)["state"], "done", "{name}: {ended:#}");
    }
    assert_eq!(procs::entries(&server.task_root()), ["filler"]);
    assert!(client.seed(&seed).await["lease"].is_null());
    assert_eq!(oauth.reuses(), Vec::<String>::new());
}

#[actix::test]
async fn a_server_that_forwards_nothing_says_which_setting_would() {
    let model = MockModel::start();
    let far = Far::setup().no_forwarding().start().await;
    let server = service().on(&far).start().await;
    let client = server.client();
    let session = client.create(conversation(&model)).await;
    let ended = session.wait_state("ended", LIMIT).await;
    let reason = ended["reason"].as_str().unwrap_or_default();
    assert_eq!(ended["outcome"], "failed", "{ended:#}");
    assert!(reason.contains("AllowStreamLocalForwarding"), "{reason}");
    assert!(far.agents().is_empty(), "{:?}", far.agents());
    assert_eq!(procs::entries(&server.task_root()), Vec::<String>::new());
    let reply = client.send(client.request(Method::GET, &format!("/v1/hosts/{FAR}"))).await;
    assert_eq!(reply.json()["state"], "up", "the machine is reached: {}", reply.text());
}
