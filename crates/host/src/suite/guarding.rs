//! The guard: what outlives the service, and for how long. Its limits here are of seconds, because a guard may look
//! at the heartbeat no more often than once a second.

use std::time::Duration;

use super::{PATIENCE, script, sh, task, wait_until};
use crate::guard::RUN_MARK;
use crate::{
    AgentIdentity, AgentState, EnvPlan, ExitStatus, GuardSpec, Host, HostError, Signal, Stage, TaskDir,
};

fn spec(dir: &TaskDir, script: &str) -> GuardSpec {
    GuardSpec {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: EnvPlan::default(),
        cwd: dir.workdir(),
        run_mark: format!("suite-{}", uuid::Uuid::new_v4()),
        term_after: Duration::from_secs(60),
        kill_after: Duration::from_secs(70),
        stage: Stage::Headless,
    }
}

fn short(dir: &TaskDir, script: &str) -> GuardSpec {
    GuardSpec { term_after: Duration::from_secs(2), kill_after: Duration::from_secs(4), ..spec(dir, script) }
}

async fn exited(host: &dyn Host, dir: &TaskDir) -> (AgentIdentity, ExitStatus, bool) {
    wait_until("the agent's end is on record", || async {
        matches!(host.guard_state(dir).await.unwrap(), AgentState::Exited { .. })
    })
    .await;
    match host.guard_state(dir).await.unwrap() {
        AgentState::Exited { identity, status, by_guard } => (identity, status, by_guard),
        other => panic!("{other:?}"),
    }
}

/// Leaves no process behind.
async fn end(host: &dyn Host, dir: &TaskDir) {
    host.guard_kill_leftovers(dir).await.unwrap();
    assert!(host.guard_gone(dir, PATIENCE).await.unwrap());
}

pub async fn nothing_is_known_before_a_start(host: &dyn Host) {
    let dir = task(host).await;
    assert_eq!(host.guard_state(&dir).await.unwrap(), AgentState::Absent);
    assert!(!host.guard_signal(&dir, Signal::Kill).await.unwrap());
    assert!(host.guard_gone(&dir, PATIENCE).await.unwrap());
    assert_eq!(host.guard_kill_leftovers(&dir).await.unwrap(), 0);
    assert_eq!(host.guard_stderr(&dir).await.unwrap(), "");
}

pub async fn an_agent_runs_until_it_ends_and_its_end_is_on_record(host: &dyn Host) {
    let dir = task(host).await;
    let sleeping = host.guard_start(&dir, spec(&dir, script::SLEEP)).await.unwrap();
    assert_eq!(host.guard_state(&dir).await.unwrap(), AgentState::Running(sleeping));
    assert!(!host.guard_gone(&dir, Duration::from_millis(100)).await.unwrap());
    end(host, &dir).await;

    let failing = host.guard_start(&dir, spec(&dir, script::FAIL)).await.unwrap();
    assert_eq!(exited(host, &dir).await, (failing, ExitStatus::Code(7), false));
    assert!(host.guard_gone(&dir, PATIENCE).await.unwrap());
    assert!(!host.guard_signal(&dir, Signal::Term).await.unwrap());
}

pub async fn a_second_agent_is_refused_while_the_first_lives(host: &dyn Host) {
    let dir = task(host).await;
    let first = host.guard_start(&dir, spec(&dir, script::SLEEP)).await.unwrap();
    match host.guard_start(&dir, spec(&dir, script::SLEEP)).await {
        Err(HostError::AlreadyRunning { pid, .. }) => assert_eq!(pid, first.pid),
        other => panic!("{other:?}"),
    }
    assert_eq!(host.guard_state(&dir).await.unwrap(), AgentState::Running(first));
    end(host, &dir).await;
}

pub async fn an_ended_agent_makes_room_for_another(host: &dyn Host) {
    let dir = task(host).await;
    let first = host.guard_start(&dir, spec(&dir, script::FAIL)).await.unwrap();
    exited(host, &dir).await;
    let second = host.guard_start(&dir, spec(&dir, script::SLEEP)).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(host.guard_state(&dir).await.unwrap(), AgentState::Running(second));
    end(host, &dir).await;
}

pub async fn a_signal_reaches_the_agent(host: &dyn Host) {
    let dir = task(host).await;
    let agent = host.guard_start(&dir, spec(&dir, script::SLEEP)).await.unwrap();
    assert!(host.guard_signal(&dir, Signal::Term).await.unwrap());
    assert_eq!(exited(host, &dir).await, (agent, ExitStatus::Signal(15), false));
}

pub async fn an_agent_whose_heartbeat_stops_is_ended_by_the_guard(host: &dyn Host) {
    let dir = task(host).await;
    let agent = host.guard_start(&dir, short(&dir, script::SLEEP)).await.unwrap();
    assert_eq!(exited(host, &dir).await, (agent, ExitStatus::Signal(15), true));
    assert!(host.guard_gone(&dir, PATIENCE).await.unwrap());
}

pub async fn an_agent_that_ignores_sigterm_is_killed_by_the_guard(host: &dyn Host) {
    let dir = task(host).await;
    let agent = host.guard_start(&dir, short(&dir, script::STUBBORN)).await.unwrap();
    assert_eq!(exited(host, &dir).await, (agent, ExitStatus::Signal(9), true));
    assert!(host.guard_gone(&dir, PATIENCE).await.unwrap());
}

pub async fn a_heartbeat_keeps_the_agent_alive(host: &dyn Host) {
    let dir = task(host).await;
    let agent = host.guard_start(&dir, short(&dir, script::SLEEP)).await.unwrap();
    // Here time itself is what is tested: twice as long as the guard would wait without a heartbeat.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        host.guard_heartbeat(&dir).await.unwrap();
    }
    assert_eq!(host.guard_state(&dir).await.unwrap(), AgentState::Running(agent));
    end(host, &dir).await;
}

/// What changed its session and process group is still known by its run mark.
pub async fn leftovers_are_seen_and_killed(host: &dyn Host) {
    let dir = task(host).await;
    host.guard_start(&dir, spec(&dir, script::LEAVE_TWO)).await.unwrap();
    exited(host, &dir).await;
    assert!(!host.guard_gone(&dir, Duration::from_millis(200)).await.unwrap());
    assert_eq!(host.guard_kill_leftovers(&dir).await.unwrap(), 2);
    assert!(host.guard_gone(&dir, PATIENCE).await.unwrap());
    assert_eq!(host.guard_kill_leftovers(&dir).await.unwrap(), 0);
}

pub async fn a_program_that_carries_the_mark_is_seen_and_killed(host: &dyn Host) {
    let dir = task(host).await;
    let mark = format!("suite-{}", uuid::Uuid::new_v4());
    host.guard_mark(&dir, &mark).await.unwrap();
    assert_eq!(host.guard_state(&dir).await.unwrap(), AgentState::Absent);
    assert!(host.guard_gone(&dir, PATIENCE).await.unwrap());
    let mut command = sh(script::SLEEP);
    command.env.add.insert(RUN_MARK.into(), mark);
    let mut spawned = host.spawn(command).await.unwrap();
    assert!(!host.guard_gone(&dir, Duration::from_millis(200)).await.unwrap());
    assert_eq!(host.guard_kill_leftovers(&dir).await.unwrap(), 1);
    assert!(host.guard_gone(&dir, PATIENCE).await.unwrap());
    assert_eq!(spawned.process.wait().await.unwrap(), ExitStatus::Signal(9));
}

pub async fn the_agent_has_its_run_mark_and_its_errors_are_kept(host: &dyn Host) {
    let dir = task(host).await;
    let spec = spec(&dir, script::SHOW_MARK);
    let mark = spec.run_mark.clone();
    host.guard_start(&dir, spec).await.unwrap();
    assert_eq!(exited(host, &dir).await.1, ExitStatus::Code(3));
    wait_until("the mark is in the agent's errors", || async {
        String::from_utf8_lossy(&host.guard_stderr(&dir).await.unwrap()).contains(&mark)
    })
    .await;
}
