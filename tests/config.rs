//! What the service is told: flags beat the environment, the environment beats the file, and mistakes are named.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use optio_testkit::{LIMIT, MockModel, ModelAuth, TestServer};
use tempfile::TempDir;

/// A directory in which a service would find nothing of the developer's.
fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The program with these arguments, in an environment of its own. Its data directory cannot be made: a start that is
/// refused for no other reason is refused for that one, so that no test waits for a service.
fn program(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_optio-codex"));
    command.args(args).env_clear().env("HOME", home).env("XDG_RUNTIME_DIR", home).current_dir(home);
    command.env("OPTIO_CODEX_DATA_DIR", "/dev/null/none");
    command
}

/// Runs a start that is meant to be refused, and answers what it said.
fn refused(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(stdout.is_empty());
    assert_eq!(said.lines().count(), 1, "one sentence: {said}");
    said
}

#[test]
fn flags_beat_the_environment_and_the_environment_beats_the_file() {
    // Whichever is in force is named in the refusal.
    let home = home();
    let file = home.path().join("file.toml");
    std::fs::write(&file, "store = 'of-the-file'").unwrap();
    let file = file.to_str().unwrap();
    let mut command = program(home.path(), &["serve", "--config", file]);
    assert!(refused(&mut command).contains("of-the-file"));
    command.env("OPTIO_CODEX_STORE", "of-the-environment");
    assert!(refused(&mut command).contains("of-the-environment"));
    command.args(["--store", "of-the-flag"]);
    assert!(refused(&mut command).contains("of-the-flag"));
}

#[test]
fn the_users_own_file_is_read_when_no_other_is_named() {
    let home = home();
    let dir = home.path().join(".config/optio-codex");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("config.toml"), "store = 'of-the-user'").unwrap();
    assert!(refused(&mut program(home.path(), &["serve"])).contains("of-the-user"));
    let missing = refused(&mut program(home.path(), &["serve", "--config", "nowhere.toml"]));
    assert!(missing.contains("nowhere.toml"), "{missing}");
}

#[test]
fn an_unknown_key_is_named_with_its_file_and_line_and_no_value_is_shown() {
    let home = home();
    let file = home.path().join("mine.toml");
    std::fs::write(&file, "workers = 1\n[defaults.env]\nKEY = 'hunter2'\n[defaults.emv]\nKEY = 'hunter2'\n")
        .unwrap();
    let said = refused(&mut program(home.path(), &["serve", "--config", file.to_str().unwrap()]));
    assert!(said.contains("mine.toml") && said.contains("emv") && said.contains("line 4"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn a_host_that_makes_no_sense_is_named_with_its_field() {
    let home = home();
    let file = home.path().join("mine.toml");
    for (host, said) in [
        ("[hosts.box]\naddress = 'box'\nport = 'ssh'", "hosts.box.port: it must be a number"),
        ("[hosts.box]\nadress = 'box'", "hosts.box.address: it is missing"),
        ("[hosts.box]\naddress = 'box'\npasword = 'hunter2'", "hosts.box.pasword: there is no such field"),
        ("[hosts.box]\naddress = 'box'\njump = 'gate'", "hosts.box.jump: \"gate\" is no host"),
        ("[hosts.local]\naddress = 'box'", "hosts.local: \"local\" is the name of this machine"),
        ("[hosts]\nbox = 'box'", "line 2"),
    ] {
        std::fs::write(&file, host).unwrap();
        let refusal = refused(&mut program(home.path(), &["serve", "--config", file.to_str().unwrap()]));
        assert!(refusal.contains(said) && !refusal.contains("hunter2"), "{host}: {refusal}");
    }
}

#[test]
fn other_machines_are_not_served_by_accident() {
    let home = home();
    let said = refused(&mut program(home.path(), &["serve", "--listen", "0.0.0.0:0"]));
    assert!(said.contains("--token-file"), "{said}");
}

#[test]
fn a_flag_that_makes_no_sense_is_a_matter_of_usage() {
    let home = home();
    for args in [
        &["serve", "--listne", "x"][..],
        &["serve", "--workers", "0"],
        &["serve", "--on-exit", "explode"],
        &[],
    ] {
        let status = program(home.path(), args).output().unwrap().status;
        assert_eq!(status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_token_file_that_others_may_read_is_refused() {
    let home = home();
    let token = home.path().join("token");
    std::fs::write(&token, "0123456789abcdef0123456789abcdef\n").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    // The socket cannot be made either, but that is found later.
    let args = ["serve", "--data-dir", "data", "--token-file", "token", "--unix", "token"];
    let said = refused(program(home.path(), &args).env("RUST_LOG", "off"));
    assert!(said.contains("mode 644"), "{said}");
}

#[actix_rt::test]
async fn defaults_reach_a_session_that_names_no_provider() {
    let home = home();
    let file = home.path().join("house.toml");
    let model = MockModel::start();
    let house = model.config(ModelAuth::Nothing);
    // The mock's own configuration is written as Codex has it; here it is the service's.
    let table = house.replace("\n[", "\n[defaults.codex_config.");
    std::fs::write(&file, format!("[defaults.codex_config]\n{table}")).unwrap();
    let server = TestServer::of(env!("CARGO_BIN_EXE_optio-codex"))
        .args(["--config", file.to_str().unwrap()])
        .start()
        .await;
    let client = server.client();
    let session = client.create(serde_json::json!({ "mode": "conversation", "instructions": "" })).await;
    session.wait_idle().await;
    session.turn("@say by default").await;
    model.wait_for_request(|request| request.user_text().contains("by default")).await;
    session.end(LIMIT).await;
}
