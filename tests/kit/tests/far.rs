//! The other machine is what it says: apart, cut off without a word, without what was taken away.

use std::process::Stdio;
use std::time::{Duration, Instant};

use optio_testkit::{Far, LIMIT, wait_until};
use tokio::process::Command;

/// OpenSSH's own client, which knows the machine's key and nothing else.
fn ssh(far: &Far, command: &str) -> Command {
    let entry = far.entry();
    let text = |field: &str| entry[field].as_str().expect("an entry has its words").to_owned();
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=5"])
        .args(["-o", &format!("UserKnownHostsFile={}", entry["known_hosts"][0].as_str().expect("a file"))])
        .args(["-p", &entry["port"].to_string(), "-i", &text("key_file")])
        .arg(format!("{}@{}", text("user"), text("address")))
        .arg(command)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    ssh
}

async fn says(far: &Far, command: &str) -> String {
    let output = ssh(far, command).output().await.expect("ssh is there");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command}: {err}");
    out.trim().to_owned()
}

#[tokio::test]
async fn a_far_machine_runs_what_it_is_told_and_knows_codex() {
    let far = Far::setup().start().await;
    far.set_env("GREETING", "good day").await;
    assert_eq!(says(&far, "echo \"$GREETING\"").await, "good day");
    let codex = far.codex().expect("it has one").display().to_string();
    assert!(says(&far, &format!("{codex} --version")).await.starts_with("codex-cli"));
    assert!(far.agents().is_empty(), "{:?}", far.agents());
    // What hangs on a connection is no agent; what was left there is one, until the machine goes.
    let mut held = ssh(&far, "sleep 501").spawn().expect("ssh is there");
    says(&far, &format!("cd {}; setsid sleep 502 >/dev/null 2>&1 </dev/null &", far.task_root().display()))
        .await;
    wait_until("both run", LIMIT, || async {
        far.processes().iter().filter(|process| process.argv[0] == "sleep").count() == 2
    })
    .await;
    let [agent] = &far.agents()[..] else { panic!("{:?}", far.agents()) };
    assert_eq!(agent.argv, ["sleep", "502"]);
    far.kill_sshd();
    assert!(!held.wait().await.expect("it ends").success());
    assert!(agent.is_alive());
    let agent = agent.clone();
    drop(far);
    assert!(!agent.is_alive());
}

#[tokio::test]
async fn a_machine_apart_has_its_own_home_and_not_what_was_taken_away() {
    if !Far::can_be_apart_or_skip() {
        return;
    }
    let far = Far::setup().without("tmux").disk(1 << 20).start().await;
    assert_eq!(
        says(&far, "echo noise > ~/.mark; ls -A ~; command -v tmux || echo none").await,
        ".mark\n.profile\nnone"
    );
    assert_eq!(std::fs::read_to_string(far.home().join(".mark")).expect("its home is seen"), "noise\n");
    let fill = format!("head -c 2000000 /dev/zero > {}/x; wc -c < {0}/x", far.task_root().display());
    assert_eq!(says(&far, &fill).await, "1048576");
    let seen = far.seen(&far.task_root().join("x"));
    assert_eq!(std::fs::metadata(seen).expect("its disk is seen").len(), 1 << 20);
}

#[tokio::test]
async fn a_cut_is_silent_and_leaves_the_other_cable_alone() {
    if !Far::can_be_apart_or_skip() {
        return;
    }
    let far = Far::setup().network().start().await;
    let near = std::net::TcpListener::bind((far.near(), 0)).expect("the near end is an address of ours");
    let port = near.local_addr().expect("a bound listener has an address").port();
    far.cut();
    let mut asked = ssh(&far, "echo through").stdout(Stdio::piped()).spawn().expect("ssh is there");
    let mut out = far.command("bash");
    let reached = out.args(["-c", &format!("exec 3<>/dev/tcp/{}/{port}", far.near())]).status();
    assert!(reached.expect("bash is there").success(), "the world is reached in the cut");
    assert!(tokio::time::timeout(Duration::from_secs(2), asked.wait()).await.is_err(), "nobody said no");
    far.mend();
    let mended = Instant::now();
    let said = asked.wait_with_output().await.expect("it ends").stdout;
    assert_eq!(String::from_utf8_lossy(&said), "through\n", "after {:?}", mended.elapsed());
}
