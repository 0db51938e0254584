//! What an operator has a say in: when hooks are called, and what their answers do.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use optio_actors::session::phase::{EndState, State};
use optio_actors::testing::World;
use optio_hooks::{Deliverable, End, HookError, Hooks, Run};
use optio_host::{Host, Signal};
use serde_json::json;

/// Notes every call, and answers as it is told.
#[derive(Default)]
struct Told {
    calls: Mutex<Vec<String>>,
    refuses: &'static str,
    hangs: &'static str,
}

impl Told {
    async fn note(&self, hook: &'static str, what: String) -> Result<(), HookError> {
        self.calls.lock().unwrap().push(format!("{hook} {what}"));
        if self.hangs == hook {
            std::future::pending::<()>().await;
        }
        match self.refuses == hook {
            true => Err(HookError { hook, why: "not today".to_owned() }),
            false => Ok(()),
        }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

#[async_trait]
impl Hooks for Told {
    async fn before_execute(&self, run: &Run) -> Result<(), HookError> {
        self.note("before_execute", run.mode.to_owned()).await
    }

    async fn after_execute(&self, _: &Run, end: &End) -> Result<(), HookError> {
        self.note("after_execute", end.outcome.to_owned()).await
    }

    async fn on_deliverable(&self, _: &Run, file: &Deliverable) -> Result<Option<String>, HookError> {
        self.note("on_deliverable", file.path.clone()).await?;
        Ok(Some("shorter".to_owned()))
    }

    async fn on_seed_saved(&self, _: &Run, _: &str) -> Result<(), HookError> {
        self.note("on_seed_saved", String::new()).await
    }
}

async fn world(told: Told) -> (World, Arc<Told>) {
    let world = World::without_service();
    let told = Arc::new(told);
    world.hooks.replace(told.clone());
    world.restart().await;
    (world, told)
}

#[actix::test]
async fn a_run_is_told_of_before_its_agent_is_and_after_it_is_gone() {
    let (world, told) = world(Told::default()).await;
    let id = world.launch(json!({})).await;
    assert_eq!(told.calls(), ["before_execute conversation"]);
    world.stop(&id).await;
    assert_eq!(told.calls(), ["before_execute conversation", "after_execute stopped"]);
    world.check().await;
}

#[actix::test]
async fn a_hook_that_refuses_keeps_the_agent_from_being_started() {
    let (world, told) = world(Told { refuses: "before_execute", ..Told::default() }).await;
    let seed = world.seed("acme").await;
    let id = world.begin(json!({ "seed": { "id": seed } })).await;
    let view = world.wait_over(&id).await;
    assert_eq!(view.outcome, Some(EndState::Failed));
    assert!(view.reason.unwrap().contains("before_execute: not today"));
    assert!(view.run.unwrap().agent.is_none());
    assert_eq!(told.calls(), ["before_execute conversation", "after_execute failed"]);
    world.check().await;
}

#[actix::test]
async fn a_hook_that_hangs_is_given_up_and_can_be_stopped() {
    let (world, _) = world(Told { hangs: "before_execute", ..Told::default() }).await;
    let id = world.begin(json!({})).await;
    let view = world.wait_over(&id).await;
    assert!(view.reason.unwrap().contains("before_execute did not end within"));
    let id = world.begin(json!({})).await;
    world.wait_state(&id, State::Starting).await;
    assert_eq!(world.stop(&id).await.state, State::Ended);
    world.check().await;
}

async fn ends_badly(told: Told) {
    let (world, _) = world(told).await;
    let id = world.launch(json!({})).await;
    let view = world.stop(&id).await;
    assert_eq!((view.state, view.outcome), (State::Ended, Some(EndState::Failed)));
    assert!(view.reason.unwrap().contains("after_execute"));
    assert_eq!(world.memory.snapshot_count(&id), 1);
    world.check().await;
}

#[actix::test]
async fn a_healthy_run_fails_of_its_last_hook_and_its_work_is_stored_all_the_same() {
    ends_badly(Told { refuses: "after_execute", ..Told::default() }).await;
}

#[actix::test]
async fn a_last_hook_that_hangs_holds_nothing_up_for_long() {
    ends_badly(Told { hangs: "after_execute", ..Told::default() }).await;
}

#[actix::test]
async fn the_end_is_told_by_the_next_service_when_this_one_dies_before() {
    let (world, told) = world(Told::default()).await;
    let id = world.launch(json!({})).await;
    world.crash();
    let dir = world.dir(&id);
    world.host.guard_signal(&dir, Signal::Kill).await.unwrap();
    world.restart().await;
    world.wait_over(&id).await;
    assert_eq!(told.calls(), ["before_execute conversation", "after_execute failed"]);
    world.check().await;
}

#[actix::test]
async fn what_a_hook_says_of_a_deliverable_reaches_the_agent() {
    let (world, told) = world(Told::default()).await;
    let id = world.launch(json!({ "host_protocol": true })).await;
    let workdir = world.dir(&id).workdir();
    world.host.put_file(&workdir.join("deliverables/report.md"), "far too long");
    world.host.put_file(&workdir.join("optio.log"), "DELIVERABLE: deliverables/report.md\n");
    let event = world.wait_event(&id, "deliverable", "report.md").await;
    assert_eq!((&event["accepted"], &event["reply"]), (&json!(false), &json!("shorter")), "{event:#}");
    assert!(told.calls().contains(&"on_deliverable report.md".to_owned()));
    world.stop(&id).await;
    world.check().await;
}
