//! Who answers, and who we are: host keys, logins and jump hosts, against a real sshd.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod sshd;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use optio_host::ssh::{HostKeys, Login, SshTarget, UnknownKey};
use optio_host::{Host, HostError, Reach, SshHost};
use sshd::{Sshd, make_key};

/// A target of which no key is known.
fn stranger(server: &Sshd) -> SshTarget {
    let none = server.dir.path().join("none");
    let host_keys = HostKeys { pinned: Vec::new(), known_hosts: vec![none], unknown: UnknownKey::Refuse };
    SshTarget { host_keys, ..server.target() }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

async fn refused(host: &SshHost, code: &str) -> String {
    let error = host.connect().await.expect_err("it was let through");
    assert_eq!(error.reach_code(), Some(code), "{error}");
    match &*host.reach().borrow() {
        Reach::Down { code: told, why, .. } => assert_eq!((*told, why), (code, &error.to_string())),
        other => panic!("{other:?}"),
    }
    error.to_string()
}

// ---- host keys ---------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_unknown_key_is_refused_with_its_fingerprint_and_accepted_when_it_is_named() {
    let Some(server) = Sshd::start() else { return };
    let host = server.host_at(stranger(&server));
    let why = refused(&host, "host_key_unknown").await;
    let fingerprint = server.fingerprint();
    for part in [fingerprint.as_str(), "ssh-ed25519", "POST /v1/hosts/box/host-key", "host_key = "] {
        assert!(why.contains(part), "{part}: {why}");
    }
    let wrong = fingerprint.replace("SHA256:", "SHA256:x");
    let error = host.accept_host_key(&wrong).await.unwrap_err();
    assert_eq!(error.reach_code(), Some("host_key_unknown"), "{error}");
    assert!(!server.accepted().exists(), "what nobody vouched for was written");

    host.accept_host_key(&fingerprint).await.unwrap();
    assert_eq!(mode(&server.accepted()), 0o600);
    // Whoever failed a moment ago is not told of that failure again.
    host.connect().await.unwrap();
    // Accepting once more is fine; another one is not there.
    host.accept_host_key(&fingerprint).await.unwrap();
    assert!(matches!(host.accept_host_key(&wrong).await, Err(HostError::Refused { .. })));
}

#[tokio::test]
async fn a_changed_key_is_refused_even_where_strangers_are_trusted_and_can_be_accepted() {
    let Some(server) = Sshd::start() else { return };
    let mut target = server.target();
    target.host_keys.unknown = UnknownKey::Trust;
    let other = server.dir.path().join("other");
    make_key(&other, "ed25519", "");
    let key = std::fs::read_to_string(other.with_extension("pub")).unwrap();
    let known = target.host_keys.known_hosts[0].clone();
    let line = format!("# a comment\n\n[127.0.0.1]:{} {key}", server.port);
    std::fs::write(&known, &line).unwrap();
    let host = server.host_at(target.clone());
    let why = refused(&host, "host_key_changed").await;
    assert!(why.contains(&format!("{}:3", known.display())), "{why}");
    assert!(why.contains(&server.fingerprint()), "{why}");

    // What was accepted goes before; what stood there for the same machine is replaced.
    std::fs::write(server.accepted(), format!("{line}other.example {key}")).unwrap();
    host.accept_host_key(&server.fingerprint()).await.unwrap();
    host.connect().await.unwrap();
    let accepted = std::fs::read_to_string(server.accepted()).unwrap();
    assert_eq!(accepted.matches("127.0.0.1").count(), 1, "{accepted}");
    assert!(accepted.contains("other.example"), "{accepted}");
    assert_eq!(std::fs::read_to_string(known).unwrap(), line, "the user's own file was touched");
}

#[tokio::test]
async fn a_stranger_is_remembered_where_that_is_wished() {
    let Some(server) = Sshd::start() else { return };
    let mut target = stranger(&server);
    target.host_keys.unknown = UnknownKey::Trust;
    server.host_at(target.clone()).connect().await.unwrap();
    assert_eq!(mode(&server.accepted()), 0o600);
    target.host_keys.unknown = UnknownKey::Refuse;
    server.host_at(target).connect().await.unwrap();
}

#[tokio::test]
async fn a_hashed_entry_is_found() {
    let Some(server) = Sshd::start() else { return };
    let target = server.target();
    let known = &target.host_keys.known_hosts[0];
    let hashed = std::process::Command::new("ssh-keygen").args(["-q", "-H", "-f"]).arg(known).status();
    assert!(hashed.unwrap().success());
    assert!(std::fs::read_to_string(known).unwrap().starts_with("|1|"));
    server.host_at(target).connect().await.unwrap();
}

#[tokio::test]
async fn a_revoked_key_is_refused_whoever_vouches_for_it() {
    let Some(server) = Sshd::start() else { return };
    let target = server.target();
    let known = &target.host_keys.known_hosts[0];
    let text = std::fs::read_to_string(known).unwrap();
    std::fs::write(known, format!("@revoked * {}{text}", text.split_once(' ').unwrap().1)).unwrap();
    refused(&server.host_at(target), "host_key_changed").await;
}

#[tokio::test]
async fn only_a_pinned_key_counts_where_one_is_pinned() {
    let Some(server) = Sshd::start() else { return };
    let key = std::fs::read_to_string(server.dir.path().join("host.pub")).unwrap();
    for pin in [server.fingerprint(), key] {
        let mut target = stranger(&server);
        target.host_keys.pinned = vec![pin];
        server.host_at(target).connect().await.unwrap();
    }
    // The key that is known by a file is not the pinned one.
    let mut target = server.target();
    target.host_keys.pinned = vec![format!("SHA256:{}", "A".repeat(43))];
    let host = server.host_at(target.clone());
    let why = refused(&host, "host_key_changed").await;
    assert!(why.contains("the configuration") && !why.contains("POST"), "{why}");
    assert!(host.accept_host_key(&server.fingerprint()).await.is_err());
    assert!(!server.accepted().exists());

    target.host_keys.pinned = vec!["nonsense".into()];
    assert!(SshHost::new("box", target, server.accepted()).is_err());
}

#[tokio::test]
async fn of_several_keys_the_known_one_is_asked_for() {
    let extra = tempfile::tempdir().unwrap();
    let ecdsa = extra.path().join("ecdsa");
    make_key(&ecdsa, "ecdsa", "");
    let Some(server) = Sshd::with(&format!("HostKey {}", ecdsa.display())) else { return };
    let public = std::fs::read_to_string(ecdsa.with_extension("pub")).unwrap();
    let mut target = stranger(&server);
    let known = server.dir.path().join("ecdsa only");
    std::fs::write(&known, format!("[127.0.0.1]:{} {public}", server.port)).unwrap();
    target.host_keys.known_hosts = vec![known];
    server.host_at(target.clone()).connect().await.unwrap();

    // A fingerprint does not say of which kind it is.
    let output = std::process::Command::new("ssh-keygen").arg("-lf").arg(&ecdsa).output().unwrap();
    let fingerprint = String::from_utf8(output.stdout).unwrap().split(' ').nth(1).unwrap().to_owned();
    target.host_keys.pinned = vec![fingerprint];
    server.host_at(target).connect().await.unwrap();
}

#[tokio::test]
async fn a_server_with_an_rsa_key_only_is_told_why_not() {
    let extra = tempfile::tempdir().unwrap();
    let rsa = extra.path().join("rsa");
    make_key(&rsa, "rsa", "");
    let Some(server) = Sshd::with(&format!("HostKey {0}\nHostKeyAlgorithms rsa-sha2-512", rsa.display()))
    else {
        return;
    };
    let why = refused(&server.host(), "host_unreachable").await;
    assert!(why.contains("RSA keys are not supported"), "{why}");
}

// ---- logins ------------------------------------------------------------------------------------------------------

fn by_key(server: &Sshd, key: PathBuf) -> SshHost {
    server.host_at(SshTarget { login: Login::KeyFile(key), ..server.target() })
}

#[tokio::test]
async fn a_key_that_is_not_let_in_is_named() {
    let Some(server) = Sshd::start() else { return };
    let other = server.dir.path().join("other");
    make_key(&other, "ed25519", "");
    let why = refused(&by_key(&server, other.clone()), "host_login_refused").await;
    assert!(why.contains("SHA256:") && why.contains(other.to_str().unwrap()), "{why}");
}

#[tokio::test]
async fn a_server_that_takes_only_passwords_is_told_so() {
    let Some(server) = Sshd::with("PubkeyAuthentication no\nPasswordAuthentication yes") else { return };
    let why = refused(&server.host(), "host_login_unsupported").await;
    assert!(why.contains("takes only password"), "{why}");
}

#[tokio::test]
async fn a_key_that_cannot_be_used_says_what_would_be_right() {
    let Some(server) = Sshd::start() else { return };
    let locked = server.dir.path().join("locked");
    make_key(&locked, "ed25519", "a passphrase");
    let rsa = server.dir.path().join("rsa");
    make_key(&rsa, "rsa", "");
    let pem = server.dir.path().join("pem");
    make_key(&pem, "rsa", "");
    let old = std::process::Command::new("ssh-keygen")
        .args(["-q", "-p", "-m", "PEM", "-N", "", "-f"])
        .arg(&pem)
        .status();
    assert!(old.unwrap().success());
    let open = server.dir.path().join("open");
    make_key(&open, "ed25519", "");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o640)).unwrap();
    let nonsense = server.dir.path().join("nonsense");
    std::fs::write(&nonsense, "nonsense").unwrap();
    std::fs::set_permissions(&nonsense, std::fs::Permissions::from_mode(0o600)).unwrap();
    let missing = server.dir.path().join("missing");
    for (key, said) in [
        (locked, "ssh-add"),
        (rsa, "ssh-keygen -t ed25519"),
        (pem, "ssh-keygen -t ed25519"),
        (open, "chmod 600"),
        (nonsense, "cannot be used"),
        (missing, "cannot be read"),
    ] {
        let why = refused(&by_key(&server, key.clone()), "host_login_unsupported").await;
        assert!(why.contains(said) && why.contains(key.to_str().unwrap()), "{why}");
    }
}

#[tokio::test]
async fn an_agent_logs_in_with_a_key_that_is_locked_on_disk() {
    let Some(server) = Sshd::start() else { return };
    let socket = server.dir.path().join("agent");
    let by_agent = server.host_at(SshTarget { login: Login::Agent(Some(socket.clone())), ..server.target() });
    let why = refused(&by_agent, "host_login_unsupported").await;
    assert!(why.contains("does not answer"), "{why}");

    let mut agent = std::process::Command::new("ssh-agent")
        .args(["-D", "-a"])
        .arg(&socket)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    while !socket.exists() {
        assert!(begun.elapsed() < sshd::PATIENCE, "the agent does not come");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let add = |key: &str| {
        let added = std::process::Command::new("ssh-add")
            .arg(server.dir.path().join(key))
            .env("SSH_AUTH_SOCK", &socket)
            .output();
        assert!(added.unwrap().status.success());
    };
    let again = || server.host_at(SshTarget { login: Login::Agent(Some(socket.clone())), ..server.target() });
    let empty = refused(&again(), "host_login_unsupported").await;
    make_key(&server.dir.path().join("other"), "ed25519", "");
    make_key(&server.dir.path().join("rsa"), "rsa", "");
    add("other");
    let other = refused(&again(), "host_login_refused").await;
    add("rsa");
    let rsa = std::fs::read(server.dir.path().join("rsa.pub")).unwrap();
    let authorized = server.dir.path().join("authorized_keys");
    let own = std::fs::read(&authorized).unwrap();
    std::fs::write(&authorized, rsa).unwrap();
    let by_rsa = again().connect().await;
    std::fs::write(&authorized, own).unwrap();
    add("id");
    let in_the_end = again().connect().await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(empty.contains("has no keys"), "{empty}");
    assert!(other.contains("SHA256:"), "{other}");
    by_rsa.unwrap();
    in_the_end.unwrap();
}

// ---- the way there -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_closed_port_an_unknown_name_and_something_else_than_ssh_are_told_apart() {
    let Some(server) = Sshd::start() else { return };
    let closed = SshTarget { port: 1, ..server.target() };
    let why = refused(&server.host_at(closed), "host_unreachable").await;
    assert!(why.contains("127.0.0.1:1") && why.contains("refused"), "{why}");

    let nobody = SshTarget { address: "no-such-name.invalid".into(), ..server.target() };
    let error = server.host_at(nobody).connect().await.unwrap_err();
    // Where no resolver answers at all, the name is not to blame.
    assert!(matches!(error.reach_code(), Some("host_name_unknown" | "host_unreachable")), "{error}");
    assert!(error.to_string().contains("no-such-name.invalid"), "{error}");

    let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = other.local_addr().unwrap().port();
    let web = tokio::spawn(async move {
        let (mut stream, _) = other.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    let why = refused(&server.host_at(SshTarget { port, ..server.target() }), "host_unreachable").await;
    web.await.unwrap();
    assert!(why.contains("SSH"), "{why}");
}

#[tokio::test]
async fn a_machine_that_accepts_and_says_nothing_is_given_up() {
    let Some(server) = Sshd::start() else { return };
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let begun = std::time::Instant::now();
    let why = refused(&server.host_at(SshTarget { port, ..server.target() }), "host_unreachable").await;
    assert!(why.contains("within 10s"), "{why}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(12));
}

#[tokio::test]
async fn one_goes_through_a_jump_host_whose_key_is_checked_too() {
    let (Some(jump), Some(server)) = (Sshd::start(), Sshd::start()) else { return };
    let through = SshTarget { jump: Some(Box::new(jump.target())), ..server.target() };
    let host = server.host_at(through.clone());
    let output = host.run(optio_host::Command::new(["printenv", "SSH_CONNECTION"])).await.unwrap();
    assert!(output.success());
    assert_eq!(jump.log().matches("Accepted publickey").count(), 1);

    // Cutting the jump host's connection cuts ours.
    jump.signal_connections(rustix::process::Signal::KILL);
    let mut reach = host.reach();
    let down = reach.wait_for(|reach| matches!(reach, Reach::Down { .. }));
    tokio::time::timeout(sshd::PATIENCE, down).await.unwrap().unwrap();

    let unknown = SshTarget { jump: Some(Box::new(stranger(&jump))), ..server.target() };
    let host = server.host_at(unknown);
    let why = refused(&host, "host_key_unknown").await;
    assert!(why.contains(&format!("jump host 127.0.0.1:{}", jump.port)), "{why}");
    assert!(why.contains(&jump.fingerprint()), "{why}");
    host.accept_host_key(&jump.fingerprint()).await.unwrap();
    host.connect().await.unwrap();

    let nowhere = SshTarget { port: 1, ..through };
    let why = refused(&server.host_at(nowhere), "host_unreachable").await;
    assert!(why.contains("cannot connect to 127.0.0.1:1"), "{why}");
}

#[test]
fn a_target_that_makes_no_sense_is_refused() {
    let good = SshTarget {
        address: "box.example".into(),
        port: 22,
        user: "me".into(),
        login: Login::Agent(None),
        host_keys: HostKeys { pinned: Vec::new(), known_hosts: Vec::new(), unknown: UnknownKey::Refuse },
        jump: None,
        max_sessions: 10,
        task_root: None,
        codex: None,
    };
    let made = |target: SshTarget| SshHost::new("box", target, "accepted".into()).is_ok();
    assert!(made(good.clone()));
    assert!(!made(SshTarget { address: String::new(), ..good.clone() }));
    assert!(!made(SshTarget { address: "a b".into(), ..good.clone() }));
    assert!(!made(SshTarget { port: 0, ..good.clone() }));
    assert!(!made(SshTarget { user: String::new(), ..good.clone() }));
    assert!(!made(SshTarget { max_sessions: 3, ..good.clone() }));
    assert!(!made(SshTarget { task_root: Some("relative".into()), ..good.clone() }));
    let circle =
        (0..6).fold(good.clone(), |jump, _| SshTarget { jump: Some(Box::new(jump)), ..good.clone() });
    assert!(!made(circle));
}
