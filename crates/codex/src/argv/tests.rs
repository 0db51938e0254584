#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn made(mode: &str, change: Value) -> (SessionConfig, SandboxSettings) {
    let mut fields = json!({ "mode": mode, "instructions": "" });
    fields.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    let config = SessionConfig::from_json(fields).unwrap();
    let sandbox = SandboxSettings::resolve(&config, "/home/u");
    (config, sandbox)
}

#[test]
fn an_app_server_listens_on_a_socket_or_on_its_pipes() {
    let (config, sandbox) = made("conversation", json!({}));
    let store = "cli_auth_credentials_store=\"file\"";
    assert_eq!(
        app_server("/w/codex", Listen::Unix("/run/o/a.sock"), &config, &sandbox),
        ["/w/codex", "app-server", "--listen", "unix:///run/o/a.sock", "-c", store]
    );
    assert_eq!(app_server("codex", Listen::Stdio, &config, &sandbox), ["codex", "app-server", "-c", store]);
}

#[test]
fn an_app_server_gets_overrides_but_neither_mode_nor_policy() {
    let (config, sandbox) = made(
        "conversation",
        json!({
            "codex_config": { "model_providers.mock": { "name": "mock", "env_key": "K" }, "features.plugins": false },
            "network_access": true, "permission_gate": true,
        }),
    );
    let argv = app_server("codex", Listen::Stdio, &config, &sandbox);
    let settings: Vec<&String> = argv.iter().skip(3).step_by(2).collect();
    assert!(argv.iter().skip(2).step_by(2).all(|flag| flag == "-c"));
    assert_eq!(
        settings,
        [
            "features.plugins=false",
            r#"model_providers.mock={"env_key" = "K", "name" = "mock"}"#,
            "sandbox_workspace_write.network_access=true",
            "cli_auth_credentials_store=\"file\"",
        ]
    );
}

#[test]
fn a_probe_may_read_only_and_says_what_it_hears_into_a_file() {
    let argv = probe("/opt/codex", "/t/it's.jsonl");
    assert_eq!(argv[..5], ["sh", "-c", "exec \"$@\" >\"$0\"", "/t/it's.jsonl", "/opt/codex"]);
    assert_eq!(argv[5..10], ["exec", "--json", "-s", "read-only", "--skip-git-repo-check"]);
    for setting in
        ["features.plugins=false", "features.apps=false", "analytics.enabled=false", FILE_CREDENTIALS]
    {
        assert!(argv.windows(2).any(|pair| pair == ["-c", setting]), "{setting}");
    }
    assert_eq!(argv.last().unwrap(), crate::probe::PROMPT);
}

#[test]
fn a_login_server_keeps_its_login_in_a_file_and_has_nobody_elses() {
    let argv = login_server("/opt/codex", "/run/o/a.sock");
    assert_eq!(argv[..4], ["/opt/codex", "app-server", "--listen", "unix:///run/o/a.sock"]);
    assert_eq!(argv[argv.len() - 2..], ["-c", "cli_auth_credentials_store=\"file\""]);
    let env = login_environment("/w");
    assert_eq!(env.add["CODEX_HOME"], "/w/home/.codex");
    for glob in ["OPTIO_CODEX_*", "*_API_KEY", "*_TOKEN"] {
        assert!(env.remove.iter().any(|removed| removed == glob), "{glob}");
    }
}

#[test]
fn a_terminal_resumes_before_all_flags_and_ends_with_at_most_one_prompt() {
    let (config, sandbox) =
        made("terminal", json!({ "model": "gpt-5.5", "ask_for_approval": "on-request", "effort": "high" }));
    let start = TerminalStart { resume: Some("0190-id"), prompt: Some(RESUME_NOTICE) };
    let argv = terminal("/w/codex", start, &config, &sandbox);
    assert_eq!(
        argv[..7],
        ["/w/codex", "resume", "0190-id", "--ask-for-approval", "on-request", "--sandbox", "workspace-write"]
    );
    assert_eq!(argv[argv.len() - 3..], ["--model", "gpt-5.5", "System: you have been resumed"]);
    assert!(argv.contains(&"model_reasoning_effort=\"high\"".to_owned()));
    let fresh = terminal("codex", TerminalStart::default(), &made("terminal", json!({})).0, &sandbox);
    assert_eq!(fresh[..3], ["codex", "--ask-for-approval", "never"]);
    assert!(!fresh.contains(&"--model".to_owned()) && !fresh.contains(&"resume".to_owned()));
}

#[test]
fn the_callers_overrides_beat_our_defaults_for_a_terminal() {
    let (config, sandbox) =
        made("terminal", json!({ "codex_config": { "check_for_update_on_startup": true } }));
    let argv = terminal("codex", TerminalStart::default(), &config, &sandbox);
    let at = |text: &str| argv.iter().position(|a| a == text).unwrap();
    assert!(at("check_for_update_on_startup=false") < at("check_for_update_on_startup=true"));
}

#[test]
fn no_command_line_bypasses_the_sandbox_or_shows_a_variable() {
    for mode in ["conversation", "terminal"] {
        let (config, sandbox) = made(mode, json!({ "fs_isolation": false, "env": { "K": "SECRET" } }));
        let lines = [
            app_server("codex", Listen::Stdio, &config, &sandbox),
            terminal("codex", TerminalStart::default(), &config, &sandbox),
        ];
        for argv in lines {
            assert!(
                !argv.iter().any(|a| a.contains("bypass") || a.contains("SECRET") || a.contains("full-auto")),
                "{argv:?}"
            );
        }
    }
}

#[test]
fn five_variables_isolate_a_session() {
    let names: Vec<(String, String)> = isolation("/w/").into_iter().collect();
    let expected = [
        ("CODEX_HOME", "/w/home/.codex"),
        ("HOME", "/w/home"),
        ("XDG_CACHE_HOME", "/w/home/.cache"),
        ("XDG_CONFIG_HOME", "/w/home/.config"),
        ("XDG_DATA_HOME", "/w/home/.local/share"),
    ];
    assert_eq!(names, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn the_caller_beats_the_isolation_and_the_stubs_beat_the_caller() {
    let (config, _) =
        made("terminal", json!({ "env": { "HOME": "/elsewhere", "BROWSER": "lynx", "PATH": "/mine" } }));
    let with = environment(&config, "/w", BrowserShims::Installed);
    assert_eq!((with.add["HOME"].as_str(), with.add["BROWSER"].as_str()), ("/elsewhere", "/w/bin/xdg-open"));
    assert_eq!(with.add["PATH"], "/mine");
    assert_eq!(with.path_prefix, ["/w/bin", "/w/home/.local/bin"]);
    let without = environment(&config, "/w", BrowserShims::Absent);
    assert_eq!(without.add["BROWSER"], "lynx");
    assert_eq!(without.path_prefix, ["/w/home/.local/bin"]);
}

#[test]
fn credentials_are_scrubbed_by_default_and_our_own_settings_always() {
    let (plain, _) = made("terminal", json!({ "scrub_env": ["AWS_*"] }));
    let remove = environment(&plain, "/w", BrowserShims::Absent).remove;
    for glob in ["OPTIO_CODEX_*", "*_API_KEY", "*_TOKEN", "AWS_*"] {
        assert!(remove.contains(&glob.to_owned()), "{glob}");
    }
    let (open, _) = made("terminal", json!({ "scrub_credentials": false }));
    assert_eq!(environment(&open, "/w", BrowserShims::Absent).remove, ["OPTIO_CODEX_*"]);
}

#[test]
fn a_workdir_among_temporary_files_has_another_place_for_them() {
    let of = |workdir, extra: serde_json::Value| {
        let mut wanted = serde_json::json!({ "mode": "conversation", "instructions": "" });
        wanted.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let config = SessionConfig::from_json(wanted).unwrap();
        environment(&config, workdir, BrowserShims::Absent).add.get("TMPDIR").cloned()
    };
    let none = serde_json::json!({});
    assert_eq!(of("/tmp/optio-codex/a/workdir", none.clone()).as_deref(), Some("/var/tmp"));
    assert_eq!(of("/tmpx/a/workdir", none), None);
    let own = serde_json::json!({ "env": { "TMPDIR": "/mine" } });
    assert_eq!(of("/tmp/a/workdir", own).as_deref(), Some("/mine"));
}

#[test]
fn an_environment_shows_names_only() {
    let (config, _) = made("terminal", json!({ "env": { "K": "hunter2" } }));
    let shown = format!("{:?}", environment(&config, "/w", BrowserShims::Absent));
    assert!(shown.contains("\"K\"") && !shown.contains("hunter2"), "{shown}");
}
