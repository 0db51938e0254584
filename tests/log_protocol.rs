//! The agent reports through its log, and hands over files: with the real Codex, whose shell writes the lines.

mod common;

use common::place::{Place, on_each_host};
use common::{END, answers, assert_ordered, conversation};
use optio_testkit::client::Session;
use optio_testkit::{LIMIT, MockModel, ModelAuth, wait_until};
use reqwest::Method;
use serde_json::{Value, json};

/// A conversation whose agent has the keyword protocol and begins by itself.
fn reporting(model: &MockModel) -> Value {
    let mut config = conversation(model);
    config["host_protocol"] = json!(true);
    config["auto_start"] = json!(true);
    config
}

/// An order to the model to run this in the agent's shell.
fn shell(command: &str) -> String {
    format!("@call exec_command {}", json!({ "cmd": command }))
}

/// Waits until the agent has begun by itself and is through with that.
async fn begun(session: &Session) {
    session.events(None).await.until_named("turn.completed", LIMIT).await;
    session.wait_idle().await;
}

async fn end(session: &Session, outcome: &str, reason: &str) -> Value {
    session.events(None).await.until_named("session.ended", END).await;
    let ended = session.get().await;
    assert_eq!((&ended["outcome"], &ended["reason"]), (&json!(outcome), &json!(reason)), "{ended:#}");
    assert_ordered(&ended);
    ended
}

async fn named(session: &Session, name: &str) -> Vec<Value> {
    session.journal().await.into_iter().filter(|event| event["type"] == name).collect()
}

on_each_host!(a_deliverable_is_acknowledged_and_can_be_had_before_and_after_done);
async fn a_deliverable_is_acknowledged_and_can_be_had_before_and_after_done(place: Place) {
    let model = MockModel::start();
    let server = place.service().start().await;
    let client = server.client();
    let session = client.create(reporting(&model)).await;
    begun(&session).await;
    let script = [
        shell("echo 'STATUS: 40% comparing' >> optio.log; xdg-open 'https://a.example/login?x=1'"),
        shell(
            "printf '0123456789' > deliverables/report.md && echo 'DELIVERABLE: ./deliverables/report.md' >> optio.log",
        ),
        "@say I wait".to_owned(),
    ];
    session.turn(&script.join("\n")).await;
    let mut events = session.events(None).await;
    events.until_named("progress", LIMIT).await;
    let asked = events.until_named("browser.requested", LIMIT).await.pop().expect("until gives it");
    assert_eq!(asked.data["url"], "https://a.example/login?x=1");
    let told = events.until_named("deliverable", LIMIT).await.pop().expect("until gives it");
    assert_eq!((&told.data["path"], &told.data["accepted"]), (&json!("report.md"), &json!(true)), "{told:?}");
    let heard =
        model.wait_for_request(|r| r.is_turn() && r.user_text().contains("System: deliverable")).await;
    assert!(
        heard.user_text().starts_with("System: deliverable report.md: accepted"),
        "{}",
        heard.user_text()
    );
    let view = session.get().await;
    assert_eq!(view["progress"], json!({ "percent": 40, "message": "comparing" }));

    let path = session.path("/files/deliverables/report.md");
    let part = client.request(Method::GET, &path).header("range", "bytes=2-4");
    let part = client.send(part).await;
    assert_eq!((part.status.as_u16(), part.text().as_str()), (206, "234"));
    assert_eq!(part.header("content-range"), "bytes 2-4/10");
    let stolen =
        client.send(client.request(Method::GET, &session.path("/files/home/.codex/config.toml"))).await;
    assert_eq!(stolen.status.as_u16(), 404);
    session.wait_idle().await;
    session.turn(&shell("echo 'DONE: one report' >> optio.log")).await;
    end(&session, "done", "one report").await;

    let whole = client.send(client.request(Method::GET, &path)).await;
    assert_eq!((whole.status.as_u16(), whole.text().as_str()), (200, "0123456789"));
    assert!(whole.header("content-disposition").starts_with("attachment; filename=\"report.md\""));
    assert_eq!(whole.header("x-content-type-options"), "nosniff");
    assert!(whole.header("content-security-policy").contains("sandbox"));
    let listed = client.get(&session.path("/deliverables")).await;
    assert_eq!((&listed["data"][0]["path"], &listed["data"][0]["bytes"]), (&json!("report.md"), &json!(10)));
    let anonymous = client.anonymous();
    assert_eq!(anonymous.send(anonymous.request(Method::GET, &path)).await.status.as_u16(), 401);
    session.delete().await;
    assert_eq!(client.send(client.request(Method::GET, &path)).await.status.as_u16(), 404);
}

on_each_host!(an_error_of_the_agent_fails_the_run_and_a_link_is_no_deliverable);
async fn an_error_of_the_agent_fails_the_run_and_a_link_is_no_deliverable(place: Place) {
    let model = MockModel::start();
    let server = place.service().start().await;
    let session = server.client().create(reporting(&model)).await;
    begun(&session).await;
    let secret = server.open_dir().join("secret.txt");
    std::fs::write(&secret, "secret").expect("the test's directory is there");
    let link = format!(
        "ln -s {} deliverables/link && echo 'DELIVERABLE: deliverables/link' >> optio.log",
        secret.display()
    );
    session.turn(&[shell(&link), "@say I wait".to_owned()].join("\n")).await;
    let heard =
        model.wait_for_request(|r| r.is_turn() && r.user_text().contains("System: deliverable")).await;
    assert!(heard.user_text().contains("deliverable link: rejected"), "{}", heard.user_text());
    let told = named(&session, "deliverable").await;
    assert_eq!((&told[0]["accepted"], &told[0]["sha256"]), (&json!(false), &Value::Null));
    session.wait_idle().await;
    session.turn(&shell("echo 'ERROR: the archive is damaged' >> optio.log")).await;
    end(&session, "failed", "the archive is damaged").await;
    assert!(!answers(&session).await.is_empty());
}

on_each_host!(a_line_of_ten_megabytes_hides_nothing_that_comes_after_it);
async fn a_line_of_ten_megabytes_hides_nothing_that_comes_after_it(place: Place) {
    let model = MockModel::start();
    let server = place.service().start().await;
    let session = server.client().create(reporting(&model)).await;
    begun(&session).await;
    let flood = "head -c 10485760 /dev/zero | tr '\\0' x >> optio.log; printf '\\nSTATUS: 7%% after\\nDONE\\n' >> optio.log";
    session.turn(&shell(flood)).await;
    end(&session, "done", "the agent reported DONE").await;
    let notes = named(&session, "progress").await;
    let long = notes[0]["message"].as_str().expect("a note has a message");
    assert!(long.len() < 400 && long.contains("10485760 bytes"), "{long}");
    assert_eq!((&notes[1]["message"], &notes[1]["percent"]), (&json!("after"), &json!(7)));
    assert_eq!(notes.len(), 2);
}

on_each_host!(a_killed_service_tells_every_line_once_and_finds_the_end);
async fn a_killed_service_tells_every_line_once_and_finds_the_end(place: Place) {
    let model = MockModel::start();
    let server = place.service().start().await;
    let session = server.client().create(reporting(&model)).await;
    begun(&session).await;
    let counting = "for n in $(seq 1 40); do echo \"note $n\" >> optio.log; sleep 0.1; done; \
                    printf kept > deliverables/x; echo 'DELIVERABLE: deliverables/x' >> optio.log; \
                    echo 'DONE: counted' >> optio.log";
    session.turn(&shell(counting)).await;
    for seen in [5, 20] {
        wait_until("some notes", LIMIT, || async { named(&session, "progress").await.len() >= seen }).await;
        server.kill_9();
        server.restart().await;
    }
    end(&session, "done", "counted").await;
    let notes = named(&session, "progress").await;
    let said: Vec<_> =
        notes.iter().map(|note| note["message"].as_str().unwrap_or_default().to_owned()).collect();
    let left_out: u64 = notes.iter().filter_map(|note| note["left_out"].as_u64()).sum();
    // The note at the end is what DONE said.
    assert_eq!(said.len() as u64 + left_out, 41, "{said:?}");
    let mut once = said.clone();
    once.dedup();
    assert_eq!(once, said, "nothing twice");
    assert_eq!(named(&session, "deliverable").await[0]["accepted"], true);
}

on_each_host!(a_terminal_is_typed_its_answer_and_ends_with_done);
async fn a_terminal_is_typed_its_answer_and_ends_with_done(place: Place) {
    let model = MockModel::start();
    let server = place.service().start().await;
    let config = model.overrides(ModelAuth::Nothing);
    let terminal = json!({ "mode": "terminal", "instructions": "", "codex_config": config });
    let session = server.client().create(terminal).await;
    session.wait_state("working", LIMIT).await;
    let hand_over = "printf kept > deliverables/x; echo 'DELIVERABLE: deliverables/x' >> optio.log";
    session.turn(&format!("{}\n@say I wait", shell(hand_over))).await;
    let heard =
        model.wait_for_request(|r| r.is_turn() && r.user_text().contains("System: deliverable")).await;
    assert!(heard.user_text().contains("System: deliverable x: accepted"), "{}", heard.user_text());
    session.turn(&shell("echo 'DONE: from the terminal' >> optio.log")).await;
    end(&session, "done", "from the terminal").await;
}
