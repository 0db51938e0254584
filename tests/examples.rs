//! What people try first works: each example runs by itself, to its end, with the real codex.

use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

/// Longer than an example's own limits.
const LIMIT: Duration = Duration::from_secs(120);

async fn run(name: &str, args: &[&str]) -> String {
    let test = std::env::current_exe().expect("a running program has a path");
    let target = test.ancestors().nth(2).expect("tests lie two directories below cargo's");
    let program: PathBuf = target.join("examples").join(name);
    assert!(program.is_file(), "the example is not built: run `cargo build --examples`");
    let running = tokio::process::Command::new(program).args(args).kill_on_drop(true).output();
    let ended = tokio::time::timeout(LIMIT, running).await;
    let Output { status, stdout, stderr } =
        ended.unwrap_or_else(|_| panic!("{name} did not end within {LIMIT:?}")).expect("it starts");
    let (said, complained) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{name}: {status}\n{said}\n{complained}");
    said.into_owned()
}

#[tokio::test]
async fn the_demo_lives_a_whole_session() {
    let said = run("demo", &["--check"]).await;
    assert!(said.contains("stopped, resumed and continued"), "{said}");
}

#[tokio::test]
async fn the_service_in_somebody_elses_main_answers_and_leaves_nothing() {
    let said = run("embed", &[]).await;
    assert!(said.contains("no working directory is left"), "{said}");
}

#[tokio::test]
async fn a_session_without_the_web_is_let_go_in_order() {
    let said = run("drive_session", &[]).await;
    assert!(said.contains("disconnect"), "{said}");
}
