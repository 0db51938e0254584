//! The agent's log: each line once, whoever reads it; each deliverable one answer; its own word ends the run.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use optio_actors::faults::FaultKind;
use optio_actors::session::StopMode;
use optio_actors::session::TurnMode;
use optio_actors::session::phase::{EndState, State};
use optio_actors::session::status::SessionView;
use optio_actors::supervision::ChildKind;
use optio_actors::testing::{World, play};
use optio_host::faulty::{FaultKind as HostFault, HostOp};
use optio_store::SessionId;
use optio_store::faulty::{Fault, StoreOp};
use serde_json::{Value, json};

/// Longer than any test waits.
const LONG: FaultKind = FaultKind::Delay { ms: 3_600_000 };

async fn reporting(world: &World) -> SessionId {
    world.launch(json!({ "host_protocol": true })).await
}

/// Appends to the log as an agent would.
fn write(world: &World, id: &SessionId, text: impl AsRef<[u8]>) {
    let at = world.dir(id).workdir().join("optio.log");
    let before = world.host.file(&at).unwrap_or_default();
    world.host.put_file(&at, [&before[..], text.as_ref()].concat());
}

fn deliver(world: &World, id: &SessionId, name: &str, content: impl Into<Bytes>) {
    world.host.put_file(&world.dir(id).workdir().join("deliverables").join(name), content);
    write(world, id, format!("DELIVERABLE: ./deliverables/{name}\n"));
}

fn events(world: &World, id: &SessionId, name: &str) -> Vec<Value> {
    world.events(id).into_iter().filter(|event| event["type"] == name).collect()
}

fn notes(world: &World, id: &SessionId) -> Vec<String> {
    let notes = events(world, id, "progress").into_iter();
    notes.map(|event| event["message"].as_str().unwrap().to_owned()).collect()
}

/// What the agent was told by the service, line by line.
fn told(world: &World) -> Vec<String> {
    let turns = world.agents.requests("turn/start").into_iter();
    let texts = turns.filter_map(|params| params["input"][0]["text"].as_str().map(str::to_owned));
    let lines: Vec<_> = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    lines.into_iter().filter(|line| line.starts_with("System: deliverable")).collect()
}

async fn wait_notes(world: &World, id: &SessionId, wanted: &[&str]) {
    world.until(&format!("{wanted:?}"), async || notes(world, id) == wanted).await;
}

/// Lets pass what would happen if something happened.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(20)).await;
}

fn ended(view: &SessionView) -> (Option<EndState>, &str) {
    (view.outcome, view.reason.as_deref().unwrap_or_default())
}

#[actix::test]
async fn progress_notes_and_calls_for_a_person_are_told_and_shown() {
    let world = World::new().await;
    let id = reporting(&world).await;
    write(&world, &id, "STATUS: 40% comparing\nplain words\n\nunfinished");
    wait_notes(&world, &id, &["comparing", "plain words"]).await;
    assert_eq!(events(&world, &id, "progress")[0]["percent"], 40);
    let progress = world.view(&id).await.progress.unwrap();
    assert_eq!(
        (progress.percent, progress.message.as_str()),
        (None, "plain words"),
        "a note resets the percentage"
    );

    write(&world, &id, "\nATTENTION: a password is needed\nBROWSER: \"https://a.example/x\"\n");
    let view = world.wait_state(&id, State::Waiting).await;
    assert_eq!(view.waiting[0].kind, "attention");
    world.wait_event(&id, "browser.requested", "https://a.example/x").await;
    world.wait_event(&id, "attention", "a password is needed").await;
    world.talk(&id, "it is hunter2").await;
    assert_eq!(world.wait_state(&id, State::Idle).await.waiting, []);

    write(&world, &id, "ATTENTION: and again\n");
    world.wait_state(&id, State::Waiting).await;
    write(&world, &id, "STATUS: 50% it came\n");
    world.wait_state(&id, State::Idle).await;
    assert_eq!(world.view(&id).await.progress.unwrap().percent, Some(50));
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn without_the_protocol_only_pages_and_calls_for_a_person_count() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    write(&world, &id, "DONE\nSTATUS: 3% x\nnote\nBROWSER: https://a.example\nERROR: y\nATTENTION: look\n");
    world.wait_event(&id, "browser.requested", "").await;
    assert_eq!(world.wait_state(&id, State::Waiting).await.waiting[0].kind, "attention");
    assert_eq!(notes(&world, &id), Vec::<String>::new());
    assert_eq!(ended(&world.stop(&id).await), (Some(EndState::Stopped), "stopped on request"));
}

#[actix::test]
async fn messages_are_read_where_they_were_asked_for() {
    let world = World::new().await;
    let config = json!({ "host_protocol": true, "client_messages": true });
    let id = world.launch(config).await;
    write(&world, &id, "CLIENT_MESSAGE: chart {\"a\":[1]}\nCALLER_MESSAGE: price 12\n");
    let message = world.wait_event(&id, "client.message", "chart").await;
    assert_eq!(message["data"], json!({ "a": [1] }));
    wait_notes(&world, &id, &["CALLER_MESSAGE: price 12"]).await;
    assert_eq!(world.count(&id, "caller.message"), 0);
}

#[actix::test]
async fn done_ends_the_run_and_nothing_is_read_after_it() {
    let world = World::new().await;
    let id = reporting(&world).await;
    write(&world, &id, "DONE: three files\nERROR: not this\nSTATUS: nor this\n");
    let view = world.wait_over(&id).await;
    assert_eq!(ended(&view), (Some(EndState::Done), "three files"));
    assert_eq!(notes(&world, &id), ["three files"]);
    assert_eq!(events(&world, &id, "session.ended")[0]["outcome"], "done");
    world.check().await;
}

#[actix::test]
async fn an_error_ends_the_run_as_failed() {
    let world = World::new().await;
    let id = reporting(&world).await;
    write(&world, &id, "ERROR: the archive is damaged\nDONE\n");
    let view = world.wait_over(&id).await;
    assert_eq!(ended(&view), (Some(EndState::Failed), "the archive is damaged"));
    assert_eq!(world.memory.snapshot_count(&id), 1, "its work is kept all the same");
    world.check().await;
}

#[test]
fn an_error_beats_a_stop_and_done_does_not() {
    for (line, wanted) in [
        ("ERROR: broken\n", (Some(EndState::Failed), "broken")),
        ("DONE\n", (Some(EndState::Stopped), "stopped on request")),
    ] {
        play(async {
            let world = World::new().await;
            let id = reporting(&world).await;
            // The read is slower than the whole stop, which waits for it.
            world.faults.arm(ChildKind::LogTail, "read", FaultKind::Delay { ms: 1500 }, 1);
            world.service().stop(&id, StopMode::Graceful).await.unwrap();
            write(&world, &id, line);
            assert_eq!(ended(&world.wait_over(&id).await), wanted, "{line}");
            world.check().await;
        });
    }
}

#[test]
fn what_an_agent_wrote_before_it_ended_counts_first() {
    for (line, outcome, reason) in [
        ("DONE: in time\n", EndState::Done, "in time"),
        ("ERROR: no disk\n", EndState::Failed, "no disk"),
        ("STATUS: 99% nearly\n", EndState::Failed, "the agent exited unexpectedly with exit status 101"),
    ] {
        play(async {
            let world = World::new().await;
            let id = reporting(&world).await;
            // The read is slow, so that the end is noticed before the line is.
            world.faults.arm(ChildKind::LogTail, "read", FaultKind::Delay { ms: 1000 }, 1);
            write(&world, &id, line);
            // It ends before it has taken the message.
            let _ = world.send(&id, "@die", TurnMode::Auto).await;
            let view = world.wait_over(&id).await;
            assert_eq!(view.outcome, Some(outcome), "{line}: {view:#?}");
            assert!(view.reason.unwrap().starts_with(reason), "{line}");
        });
    }
}

#[actix::test]
async fn a_deliverable_is_kept_and_answered_and_can_be_had_after_the_end() {
    let world = World::new().await;
    let id = reporting(&world).await;
    deliver(&world, &id, "a/report.md", "# fine\n");
    let event = world.wait_event(&id, "deliverable", "a/report.md").await;
    assert_eq!((&event["accepted"], &event["bytes"]), (&json!(true), &json!(7)));
    world.until("the answer", async || told(&world).len() == 1).await;
    assert!(told(&world)[0].starts_with("System: deliverable report.md: accepted"), "{:?}", told(&world));
    let files = world.service().deliverables(&id).await.unwrap();
    assert_eq!(files[0].path, "a/report.md");
    assert_eq!(files[0].sha256, event["sha256"]);
    write(&world, &id, "DONE\n");
    world.wait_over(&id).await;
    let copy = world.service().file(&id, "deliverables/a/report.md").await.unwrap();
    assert_eq!(copy.content, "# fine\n");
    world.service().delete(&id).await.unwrap();
    assert_eq!(world.kept_deliverables(&id).await, 0, "it goes with its session");
}

#[actix::test]
async fn every_deliverable_line_has_exactly_one_answer() {
    let world = World::new().await;
    let id = reporting(&world).await;
    let workdir = world.dir(&id).workdir();
    world.host.put_file(&workdir.join("home/.codex/auth.json"), "secret");
    world.host.put_link(&workdir.join("deliverables/link"), &workdir.join("home/.codex/auth.json"));
    world.host.put_link(&workdir.join("deliverables/dir"), &workdir.join("home/.codex"));
    world.host.put_file(&workdir.join("deliverables/binary"), Bytes::from_static(b"\xff\xfe"));
    world.host.put_file(&workdir.join("deliverables/huge"), vec![b'x'; 10_000_001]);
    world.host.put_file(&workdir.join("deliverables/fine"), "fine");
    let lines = [
        ("deliverables/link", "symbolic link"),
        ("deliverables/dir/auth.json", "symbolic link"),
        ("deliverables/binary", "UTF-8"),
        ("deliverables/huge", "10000001 bytes"),
        ("deliverables/missing", "no such file"),
        ("deliverables/../home/.codex/auth.json", "must lie below"),
        ("/etc/passwd", "must lie below"),
        ("deliverables", "must lie below"),
        ("deliverables/fine", "accepted"),
        ("deliverables/fine", "accepted"),
    ];
    for (path, _) in lines {
        write(&world, &id, format!("DELIVERABLE: {path}\n"));
    }
    world.until("every answer", async || told(&world).len() >= lines.len()).await;
    settle().await;
    let told = told(&world);
    assert_eq!(told.len(), lines.len(), "{told:#?}");
    for ((path, why), said) in lines.iter().zip(&told) {
        assert!(said.contains(why), "{path}: {said}");
    }
    let accepted: Vec<_> = events(&world, &id, "deliverable").iter().map(|e| e["accepted"].clone()).collect();
    assert_eq!(accepted.iter().filter(|a| **a == json!(true)).count(), 2, "{accepted:?}");
    assert_eq!(world.service().deliverables(&id).await.unwrap().len(), 1);
}

#[actix::test]
async fn an_answer_waits_for_the_end_of_the_turn() {
    let world = World::new().await;
    let id = reporting(&world).await;
    world.say(&id, "@hold one two").await;
    world.wait_state(&id, State::Working).await;
    deliver(&world, &id, "a", "a");
    deliver(&world, &id, "b", "b");
    world.until("both are settled", async || world.count(&id, "deliverable") == 2).await;
    settle().await;
    assert_eq!(told(&world), Vec::<String>::new());
    world.agents.release();
    world.until("the answers", async || told(&world).len() == 2).await;
    assert_eq!(world.agents.requests("turn/start").len(), 2, "both come in one message");
    assert_eq!(world.answers(&id)[0], "one two");
}

#[actix::test]
async fn more_deliverables_than_the_queue_takes_hold_the_log_back_and_none_is_dropped() {
    let world = World::new().await;
    let id = reporting(&world).await;
    // The first one stands still.
    world.faults.arm(ChildKind::LogTail, "deliver", FaultKind::Delay { ms: 60_000 }, 1);
    for n in 0..65 {
        deliver(&world, &id, &format!("{n:02}"), n.to_string());
    }
    write(&world, &id, "STATUS: 100% all announced\n");
    let pending = async || world.record(&id).await.run.unwrap().log.pending.len();
    world.until("a full queue", async || pending().await == 64).await;
    settle().await;
    assert_eq!((pending().await, notes(&world, &id).len()), (64, 0), "what follows is not read yet");
    world.until("every one", async || world.count(&id, "deliverable") == 65).await;
    wait_notes(&world, &id, &["all announced"]).await;
    let paths: Vec<_> = events(&world, &id, "deliverable").iter().map(|e| e["path"].clone()).collect();
    let wanted: Vec<_> = (0..65).map(|n| json!(format!("{n:02}"))).collect();
    assert_eq!(paths, wanted, "in the order of the log");
    world.until("every answer", async || told(&world).len() == 65).await;
}

#[test]
fn done_waits_for_what_was_handed_over_before_it_but_not_for_ever() {
    for (delay, accepted) in [(3_000, json!(true)), (60_000, json!(false))] {
        play(async {
            let world = World::new().await;
            let id = reporting(&world).await;
            world.faults.arm(ChildKind::LogTail, "deliver", FaultKind::Delay { ms: delay }, 1);
            deliver(&world, &id, "report", "text");
            write(&world, &id, "DONE\n");
            let view = world.wait_over(&id).await;
            assert_eq!(view.outcome, Some(EndState::Done), "{delay} ms");
            let told: Vec<_> =
                events(&world, &id, "deliverable").iter().map(|e| e["accepted"].clone()).collect();
            assert_eq!(told, [accepted], "{delay} ms");
        });
    }
}

#[actix::test]
async fn a_stop_does_not_wait_for_deliverables() {
    let world = World::new().await;
    let id = reporting(&world).await;
    world.faults.arm(ChildKind::LogTail, "deliver", LONG, 1);
    deliver(&world, &id, "report", "text");
    world.until("it is begun", async || world.faults.armed() == 0).await;
    let began = tokio::time::Instant::now();
    let view = world.stop(&id).await;
    assert_eq!(view.outcome, Some(EndState::Stopped));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(world.count(&id, "deliverable"), 1, "it is told what became of it");
}

#[actix::test]
async fn a_tail_that_hangs_holds_no_stop_up() {
    let world = World::new().await;
    let id = reporting(&world).await;
    world.faults.arm(ChildKind::LogTail, "read", FaultKind::Hang, 99);
    write(&world, &id, "STATUS: x\n");
    world.until("it hangs", async || world.view(&id).await.state == State::Idle).await;
    let began = tokio::time::Instant::now();
    assert_eq!(world.stop(&id).await.outcome, Some(EndState::Stopped));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    world.check().await;
}

#[actix::test]
async fn words_of_any_length_fit_on_record() {
    let world = World::new().await;
    let id = reporting(&world).await;
    let long = "x".repeat(60_000);
    for _ in 0..70 {
        write(&world, &id, format!("DELIVERABLE: {long}\n"));
    }
    write(&world, &id, format!("ATTENTION: {long}\nSTATUS: {long}\nERROR: {long}\n"));
    assert_eq!(world.wait_over(&id).await.outcome, Some(EndState::Failed));
    let record = serde_json::to_vec(&world.record(&id).await).unwrap();
    assert!(record.len() < 100_000, "{}", record.len());
}

#[actix::test]
async fn a_restarted_tail_goes_on_at_its_byte() {
    let world = World::new().await;
    let id = reporting(&world).await;
    write(&world, &id, "one\ntwo\n");
    wait_notes(&world, &id, &["one", "two"]).await;
    for (fault, line) in [(FaultKind::Panic, "three"), (FaultKind::Error, "four")] {
        world.faults.arm(ChildKind::LogTail, "read", fault, 1);
        write(&world, &id, format!("{line}\n"));
        world.until("the fault", async || world.faults.armed() == 0).await;
    }
    wait_notes(&world, &id, &["one", "two", "three", "four"]).await;
    settle().await;
    assert_eq!(notes(&world, &id).len(), 4, "nothing twice");
    assert_eq!(world.count(&id, "child.restarted"), 2);
}

#[actix::test]
async fn a_tail_that_dies_again_and_again_ends_the_run_with_that_cause() {
    let world = World::new().await;
    let id = reporting(&world).await;
    world.faults.arm(ChildKind::LogTail, "read", FaultKind::Panic, 99);
    write(&world, &id, "STATUS: x\n");
    let view = world.wait_over(&id).await;
    let (outcome, reason) = ended(&view);
    assert_eq!(outcome, Some(EndState::Failed), "it is no DONE");
    assert!(reason.starts_with("log_tail failed again and again: panicked"), "{reason}");
    assert_eq!(world.count(&id, "child.restarted"), 5);
    world.faults.disarm();
    world.check().await;
}

#[actix::test]
async fn a_log_that_cannot_be_read_for_a_while_is_read_on() {
    let world = World::new().await;
    let id = reporting(&world).await;
    for nth in 1..=3 {
        world.faulty_host.fail_nth(HostOp::ReadFrom, nth, HostFault::Error);
    }
    write(&world, &id, "one\n");
    wait_notes(&world, &id, &["one"]).await;
    assert_eq!(world.count(&id, "child.restarted"), 3);
}

#[actix::test]
async fn a_log_that_was_cut_or_replaced_is_read_from_its_beginning() {
    let world = World::new().await;
    let id = reporting(&world).await;
    let at = world.dir(&id).workdir().join("optio.log");
    write(&world, &id, "one\ntwo\n");
    wait_notes(&world, &id, &["one", "two"]).await;
    world.host.put_file(&at, "three\n");
    wait_notes(&world, &id, &["one", "two", "three"]).await;
    world.host.remove_path(&at);
    settle().await;
    world.host.put_file(&at, "four\nfive\nsix\n");
    wait_notes(&world, &id, &["one", "two", "three", "four", "five", "six"]).await;
    world.host.put_file(&at, "DONE: written over a log that was longer before\n");
    assert_eq!(world.wait_over(&id).await.outcome, Some(EndState::Done));
}

#[actix::test]
async fn a_huge_line_is_shortened_and_bytes_that_are_no_text_are_replaced() {
    let world = World::new().await;
    let id = reporting(&world).await;
    write(&world, &id, vec![b'x'; 10 << 20]);
    write(&world, &id, b"\nSTATUS: 5% caf\xe9\nDONE\n");
    assert_eq!(world.wait_over(&id).await.outcome, Some(EndState::Done));
    let notes = notes(&world, &id);
    assert_eq!(notes.len(), 2);
    assert!(notes[0].len() < 300 && notes[0].contains("a line of 10485760 bytes"), "{}", notes[0]);
    assert_eq!(notes[1], "caf\u{fffd}");
}

#[actix::test]
async fn a_flood_of_notes_is_thinned_and_the_rest_is_counted() {
    let world = World::new().await;
    let id = reporting(&world).await;
    let flood: String = (0..200_000).map(|n| format!("note {n}\n")).collect();
    write(&world, &id, &flood);
    write(&world, &id, "DONE\n");
    assert_eq!(world.wait_over(&id).await.outcome, Some(EndState::Done));
    let told = events(&world, &id, "progress");
    let left_out: u64 = told.iter().filter_map(|event| event["left_out"].as_u64()).sum();
    assert_eq!(told.len() as u64 + left_out, 200_000);
    assert!(told.len() < 200, "{}", told.len());
    assert_eq!(told.last().unwrap()["message"], "note 199999", "the newest is told");
}

#[actix::test]
async fn a_service_that_is_killed_in_the_middle_repeats_and_misses_nothing() {
    let world = World::new().await;
    let id = reporting(&world).await;
    write(&world, &id, "one\ntwo\n");
    wait_notes(&world, &id, &["one", "two"]).await;
    world.crash();
    write(&world, &id, "three\nfour\nfi");
    world.restart().await;
    wait_notes(&world, &id, &["one", "two", "three", "four"]).await;
    write(&world, &id, "ve\n");
    wait_notes(&world, &id, &["one", "two", "three", "four", "five"]).await;
    world.crash();
    deliver(&world, &id, "x", "x");
    write(&world, &id, "DONE: meanwhile\n");
    world.restart().await;
    let view = world.wait_over(&id).await;
    assert_eq!(ended(&view), (Some(EndState::Done), "meanwhile"));
    assert_eq!(events(&world, &id, "deliverable").len(), 1);
    assert_eq!(events(&world, &id, "deliverable")[0]["accepted"], true);
    world.check().await;
}

#[actix::test]
async fn lines_that_were_told_but_not_noted_are_not_told_again() {
    let world = World::new().await;
    let id = reporting(&world).await;
    write(&world, &id, "one\n");
    wait_notes(&world, &id, &["one"]).await;
    settle().await;
    // Told, and then the record cannot be written any more.
    world.faulty_store.fail_always(StoreOp::UpdateRecord, Fault::Hang);
    write(&world, &id, "STATUS: 20% two\nATTENTION: three\n");
    deliver(&world, &id, "x", "x");
    wait_notes(&world, &id, &["one", "two"]).await;
    world.crash();
    world.faulty_store.heal();
    write(&world, &id, "four\n");
    world.restart().await;
    wait_notes(&world, &id, &["one", "two", "four"]).await;
    world.until("the answer", async || told(&world).len() == 1).await;
    settle().await;
    assert_eq!(notes(&world, &id), ["one", "two", "four"]);
    assert_eq!(world.count(&id, "attention"), 1);
    assert_eq!(world.view(&id).await.progress.unwrap().message, "four");
    assert_eq!(world.count(&id, "deliverable"), 1);
}

#[actix::test]
async fn an_old_done_does_not_end_a_new_run_and_old_logs_are_kept() {
    let world = World::new().await;
    let id = reporting(&world).await;
    world.talk(&id, "hello").await;
    write(&world, &id, b"bad \xff byte\nDONE: first\n");
    assert_eq!(world.wait_over(&id).await.outcome, Some(EndState::Done));
    let resume = optio_actors::sessions::Resume { session: id.clone(), snapshot: None };
    world.service().resume(resume).await.unwrap();
    world.wait_state(&id, State::Idle).await;
    settle().await;
    assert_eq!(world.view(&id).await.state, State::Idle);
    let workdir = world.dir(&id).workdir();
    assert_eq!(world.host.file(&workdir.join("optio.log")).unwrap(), "");
    let old = world.host.file(&workdir.join("optio.log.old")).unwrap();
    assert_eq!(&old[..], b"bad \xff byte\nDONE: first\n");
    write(&world, &id, "DONE: second\n");
    assert_eq!(ended(&world.wait_over(&id).await), (Some(EndState::Done), "second"));
}

#[actix::test]
async fn the_agent_finds_its_stubs_and_its_directory() {
    let world = World::new().await;
    let id = reporting(&world).await;
    let workdir = world.dir(&id).workdir();
    for name in ["xdg-open", "gio", "open", "sensible-browser", "www-browser"] {
        let script = world.host.file(&workdir.join("bin").join(name)).unwrap();
        let log = workdir.join("optio.log").display().to_string();
        assert!(std::str::from_utf8(&script).unwrap().contains(&log), "{name}");
    }
    assert_eq!(world.host.file(&workdir.join("optio.log")).unwrap(), "");
}

#[actix::test]
async fn files_of_a_live_session_are_had_and_its_login_is_not() {
    let world = World::new().await;
    let id = reporting(&world).await;
    let workdir = world.dir(&id).workdir();
    world.host.put_file(&workdir.join("out/chart.txt"), "chart");
    world.host.put_file(&workdir.join("home/.codex/auth.json"), "secret");
    world.host.put_link(&workdir.join("out/link"), &workdir.join("home/.codex/auth.json"));
    let file = async |path: &str| world.service().file(&id, path).await.map(|copy| copy.content);
    assert_eq!(file("out/chart.txt").await.unwrap(), "chart");
    for path in [
        "home/.codex/auth.json",
        "home/.codex/config.toml",
        "home/.CODEX/AUTH.JSON",
        "out/link",
        "out",
        "",
        "../guard/exit",
        "out/../out/chart.txt",
        "/etc/passwd",
        "missing",
        "deliverables/missing",
    ] {
        assert!(file(path).await.is_err(), "{path:?}");
    }
    world.stop(&id).await;
    assert!(file("out/chart.txt").await.is_err(), "the workdir is gone");
}
