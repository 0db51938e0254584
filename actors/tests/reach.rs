//! A host that goes away and comes back under a session: what is shown, what goes on, what waits, and when it is over.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use optio_actors::SessionError;
use optio_actors::faults::FaultKind;
use optio_actors::session::approvals::Decision;
use optio_actors::session::phase::{EndState, State};
use optio_actors::session::{AnswerApproval, StopMode, TurnMode};
use optio_actors::sessions::{OnExit, Resume};
use optio_actors::supervision::ChildKind;
use optio_actors::teardown::Step;
use optio_actors::testing::{Behaviour, World, play};
use optio_actors::trace::Deed;
use optio_host::AgentState;
use optio_store::faulty::{Fault, StoreOp};
use optio_store::{SeedId, SeedStatus, SessionId};
use serde_json::json;
use tokio::time::{Instant, sleep};

async fn seconds(n: u64) {
    sleep(Duration::from_secs(n)).await;
}

async fn seeded(world: &World) -> (SeedId, SessionId) {
    let seed = world.seed("acme").await;
    let id = world.launch(json!({ "seed": { "id": seed }, "permission_gate": true })).await;
    (seed, id)
}

async fn wait_down(world: &World, id: &SessionId) {
    world.wait(id, "the loss", |view| view.host_down.is_some()).await;
}

async fn wait_up(world: &World, id: &SessionId) {
    world.wait(id, "the way back", |view| view.host_down.is_none()).await;
}

async fn child(world: &World, id: &SessionId, kind: ChildKind) -> (Option<String>, u32) {
    let actors = world.service().actors(id).await.unwrap();
    let found = actors.into_iter().find(|view| view.child == kind).unwrap();
    (found.phase, found.restarts)
}

fn agent_runs(world: &World, id: &SessionId) -> bool {
    matches!(world.host.agent_state(&world.dir(id)), AgentState::Running(_))
}

#[actix::test]
async fn a_host_that_is_away_shows_on_its_sessions_and_everything_goes_on_when_it_is_back() {
    let world = World::new().await;
    let (seed, id) = seeded(&world).await;
    world.say(&id, "@hold one two").await;
    world.wait_state(&id, State::Working).await;
    world.host.cut();
    wait_down(&world, &id).await;
    let view = world.view(&id).await;
    let down = view.host_down.unwrap();
    assert_eq!((view.state, down.code.as_str()), (State::Working, "host_unreachable"));
    assert_eq!(view.reason, Some(format!("host fake: down since {}", down.since)));
    let told = world.wait_event(&id, "host.down", "").await;
    assert_eq!((&told["host"], &told["code"]), (&json!("fake"), &json!("host_unreachable")));
    seconds(20).await;
    let newest = world.rotate(&id);
    world.agents.release();
    seconds(5).await;
    assert_ne!(world.memory.credential(&seed), Some(newest.clone()));
    world.host.mend();
    wait_up(&world, &id).await;
    world.wait_event(&id, "host.up", "").await;
    world.until("the answer", async || world.answers(&id) == ["one two"]).await;
    world.wait_state(&id, State::Idle).await;
    world.until("the save", async || world.memory.credential(&seed).as_ref() == Some(&newest)).await;
    // Past what the guard would have allowed without a heartbeat.
    seconds(60).await;
    world.talk(&id, "still there?").await;
    let newest = world.rotate(&id);
    seconds(1).await;
    assert_eq!(world.memory.credential(&seed), Some(newest), "the login is watched, not only looked at");
    assert_eq!(world.answers(&id), ["one two", "pong: still there?"]);
    assert_eq!((world.count(&id, "host.down"), world.count(&id, "host.up")), (1, 1));
    assert_eq!(world.count(&id, "child.restarted"), 0, "nothing is tried against a host that is away");
    assert_eq!(world.view(&id).await.reason, None);
    assert_eq!(world.stop(&id).await.outcome, Some(EndState::Stopped));
    world.check().await;
}

#[actix::test]
async fn nobody_notices_a_cut_of_five_seconds() {
    let world = World::new().await;
    let (_, id) = seeded(&world).await;
    world.say(&id, "@hold one two").await;
    world.wait_state(&id, State::Working).await;
    seconds(1).await;
    world.host.cut_silently(Duration::from_secs(15));
    world.agents.release();
    seconds(5).await;
    assert_eq!(world.answers(&id), [""; 0], "it would be no cut");
    world.host.mend();
    world.wait_state(&id, State::Idle).await;
    assert_eq!(world.answers(&id), ["one two"]);
    assert_eq!((world.count(&id, "host.down"), world.count(&id, "child.restarted")), (0, 0));
    world.stop(&id).await;
    world.check().await;
}

#[test]
fn a_cut_that_is_found_out_late_is_healed_too() {
    for (silent, found, away) in [(true, 15, 10), (false, 2, 20)] {
        play(async {
            let world = World::new().await;
            let (_, id) = seeded(&world).await;
            world.say(&id, "@hold one two").await;
            world.wait_state(&id, State::Working).await;
            seconds(1).await;
            match silent {
                true => world.host.cut_silently(Duration::from_secs(found)),
                false => world.host.cut_untold(Duration::from_secs(found)),
            }
            world.agents.release();
            wait_down(&world, &id).await;
            seconds(away).await;
            world.host.mend();
            wait_up(&world, &id).await;
            world.until("the answer", async || world.answers(&id) == ["one two"]).await;
            world.wait_state(&id, State::Idle).await;
            world.talk(&id, "hello").await;
            world.stop(&id).await;
            world.check().await;
        });
    }
}

#[actix::test]
async fn children_wait_for_the_host_and_spend_no_budget() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    let before = child(&world, &id, ChildKind::ConversationReader).await.1;
    for round in 0..10 {
        match round % 2 {
            0 => world.host.cut(),
            _ => world.host.cut_untold(Duration::from_millis(500)),
        }
        wait_down(&world, &id).await;
        world
            .until("the wait", async || {
                child(&world, &id, ChildKind::ConversationReader).await.0.as_deref()
                    == Some("waiting for the host")
            })
            .await;
        let log = child(&world, &id, ChildKind::LogTail).await.0;
        assert_eq!(log.as_deref(), Some("waiting for the host"));
        world.host.mend();
        wait_up(&world, &id).await;
        world
            .until("the conversation", async || {
                child(&world, &id, ChildKind::ConversationReader).await.0.as_deref() == Some("attached")
            })
            .await;
        world.talk(&id, "hello").await;
    }
    assert!(child(&world, &id, ChildKind::ConversationReader).await.1 >= before);
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn a_child_that_fails_for_its_own_reason_spends_its_budget_whatever_the_host_does() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.host.cut();
    wait_down(&world, &id).await;
    world.faults.arm(ChildKind::LeaseRenewer, "beat", FaultKind::Panic, 99);
    let view = world.wait(&id, "the end", |view| view.state == State::Stopping).await;
    assert!(view.reason.unwrap().contains("lease_renewer failed again and again"));
    world.faults.disarm();
    world.host.mend();
    world.wait_over(&id).await;
    world.check().await;
}

#[actix::test]
async fn requests_of_people_are_refused_with_the_hosts_own_code() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.host.cut();
    wait_down(&world, &id).await;
    for mode in [TurnMode::Auto, TurnMode::New, TurnMode::Queue] {
        let refused = world.send(&id, "hello", mode).await.unwrap_err();
        assert!(
            matches!(&refused, SessionError::HostDown { code, .. } if code == "host_unreachable"),
            "{refused}"
        );
    }
    let refused = world.service().interrupt(&id).await.unwrap_err();
    assert!(matches!(refused, SessionError::HostDown { .. }), "{refused}");
    world.host.mend();
    wait_up(&world, &id).await;
    seconds(1).await;
    world.talk(&id, "hello").await;
    assert_eq!(world.answers(&id), ["pong: hello"]);
    world.stop(&id).await;
}

#[actix::test]
async fn a_message_that_waits_for_its_turn_is_sent_once_when_the_host_is_back() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.say(&id, "@hold one two").await;
    world.wait_state(&id, State::Working).await;
    world.send(&id, "later", TurnMode::Queue).await.unwrap();
    world.host.cut();
    wait_down(&world, &id).await;
    seconds(10).await;
    world.host.mend();
    wait_up(&world, &id).await;
    seconds(1).await;
    world.agents.release();
    world.until("both answers", async || world.answers(&id).len() == 2).await;
    assert_eq!(world.answers(&id), ["one two", "pong: later"]);
    seconds(60).await;
    assert_eq!(world.answers(&id).len(), 2, "once");
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn a_message_whose_arrival_nobody_knows_is_not_lost_silently() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.host.cut_silently(Duration::from_secs(15));
    // Told that it is on its way.
    world.send(&id, "into the void", TurnMode::Auto).await.unwrap();
    wait_down(&world, &id).await;
    let told = world.wait_event(&id, "attention", "into the void").await;
    assert!(told["reason"].as_str().unwrap().contains("broke before the agent confirmed"), "{told}");
    world.host.mend();
    wait_up(&world, &id).await;
    seconds(60).await;
    assert_eq!(world.agents.requests("turn/start").len(), 0, "sent again by nobody but a person");
    world.stop(&id).await;
}

#[test]
fn an_answer_given_while_the_host_is_away_arrives_when_it_is_back() {
    for silent in [false, true] {
        play(async {
            let world = World::new().await;
            let (_, id) = seeded(&world).await;
            world.say(&id, "@ask make").await;
            let asked = world.wait_state(&id, State::Waiting).await.waiting;
            match silent {
                true => world.host.cut_silently(Duration::from_secs(15)),
                false => world.host.cut(),
            }
            if !silent {
                wait_down(&world, &id).await;
            }
            let answer = AnswerApproval {
                approval: asked[0].id.parse().unwrap(),
                decision: Decision::Accept,
                by: "owner".to_owned(),
                note: None,
            };
            world.service().answer(&id, answer).await.unwrap();
            wait_down(&world, &id).await;
            seconds(10).await;
            world.host.mend();
            world.until("the answer", async || world.answers(&id) == ["accept: make"]).await;
            world.wait_state(&id, State::Idle).await;
            assert_eq!(
                (world.count(&id, "approval.requested"), world.count(&id, "approval.resolved")),
                (1, 1)
            );
            world.stop(&id).await;
            world.check().await;
        });
    }
}

#[actix::test]
async fn the_login_is_looked_at_before_anything_else_goes_on() {
    let world = World::new().await;
    let (_, id) = seeded(&world).await;
    world.host.cut();
    wait_down(&world, &id).await;
    world.rotate(&id);
    let before = world.host.trace().len();
    world.host.mend();
    wait_up(&world, &id).await;
    world
        .until("the conversation", async || {
            world.host.trace()[before..].iter().any(|line| line.starts_with("dial"))
        })
        .await;
    let trace = world.host.trace();
    let first = |prefix: &str| trace[before..].iter().position(|line| line.starts_with(prefix)).unwrap();
    let login =
        trace[before..].iter().rposition(|line| line.contains("read workdir/home/.codex/auth.json")).unwrap();
    assert!(first("read workdir/home/.codex/auth.json") < first("guard_state"), "{:#?}", &trace[before..]);
    assert!(login < first("dial"), "{:#?}", &trace[before..]);
    world.wait_deed("the save", |deed| *deed == Deed::SavedBack).await;
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn a_run_whose_guard_has_certainly_ended_its_agent_ends_and_waits_for_its_host() {
    let world = World::new().await;
    let (seed, id) = seeded(&world).await;
    world.talk(&id, "hello").await;
    world.host.cut();
    wait_down(&world, &id).await;
    let lost = Instant::now();
    let newest = world.rotate(&id);
    seconds(50).await;
    assert_eq!(world.view(&id).await.state, State::Idle);
    let view = world.wait_state(&id, State::Stopping).await;
    assert!((55..60).contains(&lost.elapsed().as_secs()), "{:?}", lost.elapsed());
    assert!(!agent_runs(&world, &id));
    let reason = view.reason.unwrap();
    assert!(
        reason.contains("host fake is out of reach since") && reason.contains("its guard has ended"),
        "{reason}"
    );
    assert!(view.host_down.is_some());
    let renewed = world.faulty_store.calls(StoreOp::Renew);
    seconds(120).await;
    assert_eq!(world.faulty_store.calls(StoreOp::Renew), renewed, "a lease of nobody is not kept");
    assert!(world.seed_row(&seed).await.dirty, "never released");
    let view = world.view(&id).await;
    assert_eq!(view.teardown.iter().filter(|step| step.state == "done").count(), 1, "{:#?}", view.teardown);
    world.host.mend();
    let view = world.wait_over(&id).await;
    assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Failed)));
    assert_eq!(world.memory.credential(&seed), Some(newest), "nobody had taken the seed meanwhile");
    let row = world.seed_row(&seed).await;
    assert_eq!((row.status, row.dirty, world.memory.holder(&seed)), (SeedStatus::Alive, false, None));
    assert_eq!((world.memory.snapshot_count(&id), world.host.files(world.dir(&id).path()).len()), (1, 0));
    world.check().await;
}

#[actix::test]
async fn a_seed_that_somebody_else_has_meanwhile_is_not_written() {
    let world = World::new().await;
    let (seed, id) = seeded(&world).await;
    world.host.cut();
    wait_down(&world, &id).await;
    let old = world.memory.credential(&seed);
    let newest = world.rotate(&id);
    world.wait_state(&id, State::Stopping).await;
    seconds(120).await;
    let thief = world.steal(&seed).await;
    world.host.mend();
    let view = world.wait_over(&id).await;
    assert_eq!(view.outcome, Some(EndState::Failed));
    assert_eq!((world.memory.credential(&seed), world.memory.holder(&seed)), (old, Some(thief)));
    let spooled = world.spooled().await;
    assert!(
        !spooled.is_empty() && spooled.iter().all(|entry| entry.auth_json == newest),
        "{}",
        spooled.len()
    );
    assert!(optio_actors::trace::violations(&world.deeds()).is_empty());
}

#[actix::test]
async fn an_agent_without_a_lease_is_waited_for_much_longer() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.talk(&id, "hello").await;
    world.host.cut();
    wait_down(&world, &id).await;
    seconds(3600).await;
    assert_eq!(world.view(&id).await.state, State::Idle);
    world.host.mend();
    wait_up(&world, &id).await;
    seconds(1).await;
    world.talk(&id, "still there?").await;
    world.host.cut();
    wait_down(&world, &id).await;
    seconds(24 * 3600 + 60).await;
    assert!(!agent_runs(&world, &id));
    assert_eq!(world.view(&id).await.state, State::Stopping);
    world.host.mend();
    world.wait_over(&id).await;
    world.check().await;
}

#[actix::test]
async fn an_agent_that_its_guard_ended_before_the_host_was_found_again_ends_its_run_as_ever() {
    let world = World::new().await;
    let (_, id) = seeded(&world).await;
    world.talk(&id, "hello").await;
    world.host.cut();
    wait_down(&world, &id).await;
    world.until("the guard's end of it", async || !agent_runs(&world, &id)).await;
    world.host.mend();
    let view = world.wait_over(&id).await;
    assert!(
        view.reason.unwrap().contains("ended by its guard because no renewal of its lease was confirmed")
    );
    world.check().await;
}

/// The call on the host by which each step of a teardown that needs the host is known.
const STEPS: [(Step, &str); 7] = [
    (Step::StopAgent, "guard_state"),
    (Step::StopAgent, "guard_signal"),
    (Step::StopAgent, "guard_gone"),
    (Step::SaveBack, "read workdir/home/.codex/auth.json"),
    (Step::CaptureSnapshot, "archive /"),
    (Step::CaptureSnapshot, "archive chunk"),
    (Step::Wipe, "cleanup"),
];

/// Stops a session whose login has rotated with the watcher quiet, with the network cut in the middle of a step.
async fn cut_during(step: Step, call: &str, times: u32, away: u64, restarts: bool) {
    let world = World::new().await;
    let (seed, id) = seeded(&world).await;
    world.talk(&id, "hello").await;
    let delay = FaultKind::Delay { ms: 1000 };
    let note = format!("note_{step}");
    let note: &'static str = note.leak();
    assert!(world.faults.arm(ChildKind::Session, note, delay, 1));
    world.service().stop(&id, StopMode::Graceful).await.unwrap();
    world
        .wait_deed("the step", |deed| matches!(deed, Deed::StepBegan { step: begun } if *begun == step))
        .await;
    let newest = match step {
        Step::StopAgent | Step::SaveBack => Some(world.rotate(&id)),
        _ => None,
    };
    world.host.cut_at(call, times);
    for round in 0..times {
        let ups = world.count(&id, "host.up");
        world.until("the cut", async || world.view(&id).await.host_down.is_some()).await;
        let view = world.view(&id).await;
        assert_eq!(view.state, State::Stopping, "{step} {call} {round}");
        seconds(away).await;
        if restarts && round == 0 {
            world.crash();
            seconds(1).await;
            world.restart().await;
            wait_down(&world, &id).await;
            seconds(400).await;
            assert_eq!(world.view(&id).await.state, State::Stopping, "{step} {call}");
        }
        world.host.mend();
        // It may be gone again before anybody has looked.
        world.until("the way back", async || world.count(&id, "host.up") > ups).await;
    }
    assert!(!world.host.cut_is_armed(), "{step} {call} did not strike");
    let view = world.wait_over(&id).await;
    let story = world.story();
    assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Stopped)), "{step} {call}\n{story}");
    let shown = view.teardown.iter().find(|shown| shown.step == step.name()).unwrap();
    assert!(matches!(shown.state, "done" | "skipped"), "{step} {call}: {shown:?}");
    let on_record = world.record(&id).await;
    let again = on_record.teardown.iter().find(|found| found.step == step).unwrap().again;
    // A final save tries more than once before it says that it failed.
    assert!(restarts || again >= 1, "{step} {call}: asked again {again} times");
    if let Some(newest) = newest {
        assert_eq!(world.memory.credential(&seed), Some(newest), "{step} {call}");
    }
    assert_eq!((world.memory.snapshot_count(&id), world.memory.holder(&seed)), (1, None), "{step} {call}");
    assert_eq!(world.host.files(world.dir(&id).path()).len(), 0, "{step} {call}");
    let wrong = world.wrong().await;
    assert!(wrong.is_empty(), "{step} {call} {times} {away}: {wrong:#?}\n{story}");
}

fn each_step(times: u32, away: u64, restarts: bool) {
    let mut broken = Vec::new();
    for (step, call) in STEPS {
        if std::panic::catch_unwind(|| play(cut_during(step, call, times, away, restarts))).is_err() {
            broken.push(format!("{step} × {call}"));
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn a_step_that_the_host_went_away_under_is_asked_again() {
    each_step(1, 10, false);
}

#[test]
fn a_step_is_asked_again_as_often_as_the_host_goes_away_under_it() {
    each_step(6, 3, false);
}

#[test]
fn a_step_waits_longer_than_any_lease() {
    each_step(1, 300, false);
}

#[test]
fn a_teardown_that_waits_for_its_host_waits_on_after_a_restart_of_the_service() {
    each_step(1, 5, true);
}

#[actix::test]
async fn a_step_that_fails_for_another_reason_is_not_asked_for_ever() {
    let world = World::new().await;
    let (_, id) = seeded(&world).await;
    world.talk(&id, "hello").await;
    world.faults.arm(ChildKind::Snapshotter, "capture_snapshot", FaultKind::Error, 99);
    let begun = Instant::now();
    let view = world.stop(&id).await;
    assert!(view.workdir_kept.is_some() && begun.elapsed() < Duration::from_secs(60));
    world.check().await;
}

#[actix::test]
async fn a_session_that_is_stopped_while_its_host_is_away_says_so_and_ends_when_it_is_back() {
    let world = World::new().await;
    let (seed, id) = seeded(&world).await;
    world.talk(&id, "hello").await;
    world.host.cut();
    wait_down(&world, &id).await;
    world.service().stop(&id, StopMode::Graceful).await.unwrap();
    seconds(30).await;
    let view = world.view(&id).await;
    assert_eq!(view.state, State::Stopping);
    assert!(view.host_down.is_some());
    let states: Vec<_> = view.teardown.iter().map(|step| step.state).collect();
    assert_eq!(states[..2], ["done", "pending"], "the door is closed, the agent waits for its host");
    world.host.mend();
    assert_eq!(world.wait_over(&id).await.outcome, Some(EndState::Stopped));
    assert_eq!((world.memory.holder(&seed), world.memory.snapshot_count(&id)), (None, 1));
    world.check().await;
}

#[actix::test]
async fn a_host_that_will_never_come_back_can_be_given_up() {
    let world = World::new().await;
    let (seed, id) = seeded(&world).await;
    world.talk(&id, "hello").await;
    world.host.cut();
    wait_down(&world, &id).await;
    world.service().stop(&id, StopMode::Cancel).await.unwrap();
    seconds(300).await;
    assert_eq!(world.view(&id).await.state, State::Stopping, "the first one waits");
    world.service().stop(&id, StopMode::Cancel).await.unwrap();
    let view = world.wait_over(&id).await;
    assert_eq!(view.state, State::Lost);
    assert!(view.workdir_kept.is_some());
    assert!(view.reason.unwrap().contains("is not waited for any more"));
    assert_eq!(world.seed_row(&seed).await.status, SeedStatus::NeedsRecovery);
    let steps: Vec<_> = view.teardown.iter().map(|step| (step.step, step.state)).collect();
    assert!(steps.contains(&("release_lease", "withheld")), "{steps:?}");
    assert!(!world.host.files(world.dir(&id).path()).is_empty());
    world.check().await;
    // Found after all, it ends as it should have.
    world.host.mend();
    world.service().stop(&id, StopMode::Graceful).await.unwrap();
    let view = world.wait_over(&id).await;
    assert_eq!((view.state, world.memory.snapshot_count(&id)), (State::Ended, 1), "{:#?}", view.teardown);
    assert!(optio_actors::trace::violations(&world.deeds()).is_empty());
}

#[actix::test]
async fn a_launch_on_a_host_that_cannot_be_reached_fails_at_once_with_its_words_and_code() {
    let world = World::new().await;
    let seed = world.seed("acme").await;
    world.host.cut();
    let begun = Instant::now();
    let id = world.begin(json!({ "seed": { "id": seed } })).await;
    let view = world.wait_over(&id).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Failed)));
    assert_eq!(view.code.as_deref(), Some("host_unreachable"));
    assert!(view.reason.unwrap().contains("host fake cannot be reached: the network is cut"));
    assert_eq!(view.host_down, None);
    assert_eq!(world.memory.holder(&seed), None);
    world.check().await;
    world.service().delete(&id).await.unwrap();
}

#[actix::test]
async fn a_kept_workdir_is_kept_by_a_resume_that_does_not_reach_its_host() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.talk(&id, "hello").await;
    world.faulty_store.fail_always(StoreOp::BeginSnapshot, Fault::Error);
    let kept = world.stop(&id).await.workdir_kept;
    assert!(kept.is_some());
    world.faulty_store.heal();
    world.host.cut();
    world.service().resume(Resume { session: id.clone(), snapshot: None }).await.unwrap();
    let view = world.wait_over(&id).await;
    assert_eq!((view.code.as_deref(), &view.workdir_kept), (Some("host_unreachable"), &kept));
    world.check().await;
    world.host.mend();
    world.service().resume(Resume { session: id.clone(), snapshot: None }).await.unwrap();
    world.until("the notice", async || world.answers(&id).len() == 2).await;
    world.wait_state(&id, State::Idle).await;
    world.stop(&id).await;
    world.check().await;
}

#[test]
fn a_launch_whose_host_goes_away_half_way_fails_with_its_code_and_is_undone_later() {
    for call in ["create", "write workdir/home/.codex/auth.json", "link", "guard_start", "dial"] {
        play(async {
            let world = World::new().await;
            let seed = world.seed("acme").await;
            world.host.cut_at(call, 1);
            let id = world.begin(json!({ "seed": { "id": seed } })).await;
            let view = world.wait_state(&id, State::Stopping).await;
            assert_eq!(view.code.as_deref(), Some("host_unreachable"), "{call}: {:?}", view.reason);
            seconds(100).await;
            assert_eq!(world.view(&id).await.state, State::Stopping, "{call}");
            world.host.mend();
            let view = world.wait_over(&id).await;
            assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Failed)), "{call}");
            assert_eq!((world.memory.holder(&seed), world.host.agents_running()), (None, 0), "{call}");
            world.check().await;
        });
    }
}

#[actix::test]
async fn a_run_is_not_given_up_by_a_service_that_starts_while_its_host_is_away() {
    let world = World::new().await;
    let (seed, id) = seeded(&world).await;
    world.say(&id, "@hold one two").await;
    world.wait_state(&id, State::Working).await;
    world.crash();
    world.host.cut();
    world.restart().await;
    wait_down(&world, &id).await;
    seconds(20).await;
    assert!(world.view(&id).await.teardown.is_empty());
    world.host.mend();
    world.wait_event(&id, "session.adopted", "").await;
    world.agents.release();
    world.until("the answer", async || world.answers(&id) == ["one two"]).await;
    seconds(60).await;
    world.talk(&id, "hello").await;
    world.stop(&id).await;
    assert_eq!(world.memory.holder(&seed), None);
    world.check().await;
}

#[actix::test]
async fn a_run_that_cannot_be_looked_at_ends_when_its_guard_has_ended_the_agent() {
    let world = World::new().await;
    let (seed, id) = seeded(&world).await;
    world.talk(&id, "hello").await;
    let newest = world.rotate(&id);
    world.crash();
    world.host.cut();
    world.restart().await;
    let view = world.wait_state(&id, State::Stopping).await;
    assert!(view.reason.unwrap().contains("its guard has ended the agent"));
    seconds(600).await;
    world.host.mend();
    world.wait_over(&id).await;
    assert_eq!(world.memory.credential(&seed), Some(newest));
    assert_eq!((world.memory.holder(&seed), world.memory.snapshot_count(&id)), (None, 1));
    world.check().await;
}

#[test]
fn a_way_that_breaks_while_a_run_is_taken_over_is_waited_for() {
    for call in ["guard_state", "dial"] {
        play(async {
            let world = World::new().await;
            let (_, id) = seeded(&world).await;
            world.talk(&id, "hello").await;
            world.crash();
            world.host.cut_at(call, 1);
            world.restart().await;
            wait_down(&world, &id).await;
            seconds(10).await;
            world.host.mend();
            world.wait_event(&id, "session.adopted", "").await;
            world.talk(&id, "still there?").await;
            world.stop(&id).await;
            world.check().await;
        });
    }
}

#[actix::test]
async fn a_service_that_leaves_does_not_wait_for_a_host_that_is_away() {
    let world = World::new().await;
    let (seed, id) = seeded(&world).await;
    world.talk(&id, "hello").await;
    world.host.cut();
    wait_down(&world, &id).await;
    let left = tokio::time::timeout(Duration::from_secs(300), world.leave(OnExit::Teardown)).await;
    assert!(left.is_ok(), "it waits for ever");
    world.host.mend();
    world.restart().await;
    assert_eq!(world.wait_over(&id).await.state, State::Ended);
    assert_eq!((world.memory.holder(&seed), world.memory.snapshot_count(&id)), (None, 1));
    world.check().await;
}

#[actix::test]
async fn a_save_that_is_cut_off_is_made_when_the_host_is_back() {
    let world = World::new().await;
    let (seed, id) = seeded(&world).await;
    world.host.cut_at("read workdir/home/.codex/auth.json", 1);
    let newest = world.rotate(&id);
    wait_down(&world, &id).await;
    seconds(10).await;
    assert_ne!(world.memory.credential(&seed), Some(newest.clone()));
    world.host.mend();
    world.until("the save", async || world.memory.credential(&seed).as_ref() == Some(&newest)).await;
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn what_the_agent_wrote_meanwhile_is_read_and_what_it_announced_is_fetched() {
    let world = World::new().await;
    let id = world.launch(json!({ "host_protocol": true })).await;
    world.host.cut();
    wait_down(&world, &id).await;
    let workdir = world.dir(&id).workdir();
    world.host.put_file(&workdir.join("deliverables/a.md"), "content");
    world.host.put_file(&workdir.join("optio.log"), "DELIVERABLE: deliverables/a.md\n");
    seconds(30).await;
    assert_eq!(world.count(&id, "deliverable"), 0);
    world.host.mend();
    let told = world.wait_event(&id, "deliverable", "a.md").await;
    assert_eq!(told["accepted"], json!(true), "{told}");
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn a_deliverable_whose_host_goes_away_under_its_fetch_is_not_turned_down() {
    let world = World::new().await;
    let id = world.launch(json!({ "host_protocol": true })).await;
    let workdir = world.dir(&id).workdir();
    world.host.put_file(&workdir.join("deliverables/a.md"), "content");
    world.host.cut_at("read workdir/deliverables/a.md", 1);
    world.host.put_file(&workdir.join("optio.log"), "DELIVERABLE: deliverables/a.md\n");
    wait_down(&world, &id).await;
    seconds(30).await;
    assert_eq!(world.count(&id, "deliverable"), 0);
    world.host.mend();
    let told = world.wait_event(&id, "deliverable", "a.md").await;
    assert_eq!(told["accepted"], json!(true), "{told}");
    world.stop(&id).await;
    world.check().await;
}

#[actix::test]
async fn attempts_to_reach_a_host_are_few() {
    let world = World::new().await;
    let id = world.launch(json!({})).await;
    world.host.cut();
    wait_down(&world, &id).await;
    let attempts = || world.host.trace().iter().filter(|line| *line == "connect").count();
    let before = attempts();
    seconds(120).await;
    let young = attempts() - before;
    assert!((20..60).contains(&young), "{young} in the first two minutes");
    seconds(1200).await;
    let old = attempts() - before - young;
    assert!((35..120).contains(&old), "{old} in the next twenty");
    world.host.mend();
    world.stop(&id).await;
}

#[test]
fn an_agent_on_pipes_that_outlives_its_connection_is_gone_before_its_login_is_anybody_elses() {
    for ignores_eof in [true, false] {
        play(async {
            let world = World::new().await;
            world.codex(false);
            world.agents.behave(Behaviour { ignores_eof, ..Behaviour::default() });
            let (seed, id) = seeded(&world).await;
            world.talk(&id, "hello").await;
            world.host.cut();
            wait_down(&world, &id).await;
            seconds(10).await;
            assert_eq!(world.host.agents_running(), usize::from(ignores_eof));
            let newest = world.rotate(&id);
            world.host.mend();
            world
                .until("the lease's release", async || {
                    let released = world.memory.holder(&seed).is_none();
                    assert!(!released || world.host.agents_running() == 0, "it may still write its login");
                    released
                })
                .await;
            world.wait_over(&id).await;
            assert_eq!(world.memory.credential(&seed), Some(newest));
            world.check().await;
        });
    }
}
