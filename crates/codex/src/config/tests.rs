#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// A minimal configuration of a mode with the changes; in a page's mode with `conversation_ui` where `page` asks.
fn fields(mode: &str, change: Value) -> Value {
    let mut fields = json!({ "mode": mode, "instructions": "do it" });
    fields.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    fields
}

fn conversation(change: Value) -> Result<SessionConfig, ConfigError> {
    SessionConfig::from_json(fields("conversation", change))
}

fn terminal(change: Value) -> Result<SessionConfig, ConfigError> {
    SessionConfig::from_json(fields("terminal", change))
}

/// Asserts a refusal that names the field and holds the fragment.
#[track_caller]
fn refused(result: Result<SessionConfig, ConfigError>, field: &str, fragment: &str) {
    let error = result.unwrap_err();
    let shown = error.to_string();
    assert_eq!(error.field, field, "{shown}");
    assert!(shown.contains(fragment), "{fragment:?} is not in {shown:?}");
}

#[test]
fn mode_and_instructions_are_enough() {
    for mode in ["conversation", "terminal"] {
        let config = SessionConfig::from_json(fields(mode, json!({}))).unwrap();
        assert_eq!(config.host_protocol(), mode == "terminal");
        assert_eq!(config.sandbox_mode(), SandboxMode::WorkspaceWrite);
        assert_eq!(config.approval_policy(), ApprovalPolicy::Never);
        assert_eq!((config.max_upload_bytes(), config.max_download_bytes()), (10_000_000, 10_000_000));
        assert!(config.supports_resume() && config.fs_isolation() && config.install_if_missing());
        assert!(!config.auto_start() && !config.captures_seed() && config.warnings().is_empty());
    }
    refused(SessionConfig::from_json(json!({ "instructions": "" })), "mode", "conversation");
    refused(SessionConfig::from_json(json!({ "mode": "terminal" })), "instructions", "must be a string");
    assert_eq!(conversation(json!({ "instructions": "" })).unwrap().instructions(), "");
}

#[test]
fn older_spellings_are_taken_and_one_spelling_is_written() {
    let config = SessionConfig::from_json(json!({
        "mode": "iframe", "consumer_instructions": "x", "seed_id": "5f", "reasoning_effort": "high", "install_dir": "~/c",
    }))
    .unwrap();
    assert_eq!(config.mode(), Mode::Terminal);
    assert_eq!(config.seed(), Some(&SeedChoice::Id("5f".to_owned())));
    let json = config.to_json();
    assert_eq!(json["mode"], "terminal");
    assert_eq!(json["instructions"], "x");
    assert_eq!(json["seed"], json!({ "id": "5f" }));
    assert_eq!(json["effort"], "high");
    assert_eq!(json["codex_install_dir"], "~/c");
    refused(conversation(json!({ "consumer_instructions": "y" })), "instructions", "twice");
}

#[test]
fn an_unknown_name_is_refused_with_the_one_that_was_meant() {
    refused(
        conversation(json!({ "permision_gate": true })),
        "permision_gate",
        "did you mean permission_gate?",
    );
    refused(conversation(json!({ "zzz": 1 })), "zzz", "is no field");
    refused(conversation(json!({ "ssh": {} })), "ssh", "host");
    refused(conversation(json!({ "before_execute": null })), "before_execute", "is no field");
    let error = conversation(json!({ "envv": { "K": "SECRET" } })).unwrap_err().to_string();
    assert!(error.contains("did you mean env?") && !error.contains("SECRET"), "{error}");
}

#[test]
fn every_field_has_one_type() {
    for (field, wrong) in [
        ("auto_start", json!("yes")),
        ("model", json!(5)),
        ("scrub_env", json!("A_*")),
        ("scrub_env", json!([1])),
        ("env", json!([])),
        ("env", json!({ "A": 1 })),
        ("codex_config", json!([])),
        ("extra_allowed_dirs", json!({})),
        ("workdir_exclude", json!([null])),
        ("host_protocol", json!("on")),
        ("max_upload_bytes", json!("1")),
    ] {
        let error = conversation(json!({ field: wrong })).unwrap_err();
        assert_eq!(error.field, field, "{error}");
    }
    refused(SessionConfig::from_json(json!([])), "configuration", "object");
}

#[test]
fn the_first_violation_in_the_agreed_order_is_the_one_reported() {
    // Each entry breaks one rule; all entries from it onwards are broken together, and it must be the one reported.
    let order = [
        ("mode", json!("window"), "mode"),
        ("host_protocol", json!(false), "host_protocol"),
        ("permission_gate", json!(true), "permission_gate"),
        ("conversation_ui", json!(true), "conversation_ui"),
        ("tool_verbosity", json!("loud"), "tool_verbosity"),
        ("thinking_verbosity", json!("loud"), "thinking_verbosity"),
        ("default_model", json!(""), "default_model"),
        ("show_model_selector", json!(true), "show_model_selector"),
        ("show_file_upload", json!(true), "show_file_upload"),
        ("file_download", json!(true), "file_download"),
        ("ask_for_approval", json!("always"), "ask_for_approval"),
        ("sandbox", json!("half"), "sandbox"),
        ("sandbox", json!("danger-full-access"), "sandbox"),
        ("codex_install_dir", json!(""), "codex_install_dir"),
        ("ttyd_install_dir", json!("~root/x"), "ttyd_install_dir"),
        ("max_upload_bytes", json!(0), "max_upload_bytes"),
    ];
    for first in 0..order.len() {
        let mut map = fields("terminal", json!({}));
        for (field, value, _) in order[first..].iter().rev() {
            map[*field] = value.clone();
        }
        assert_eq!(SessionConfig::from_json(map).unwrap_err().field, order[first].2);
    }
}

#[test]
fn a_terminal_has_no_gate_no_page_and_no_silence() {
    refused(terminal(json!({ "host_protocol": false })), "host_protocol", "conversation");
    refused(terminal(json!({ "permission_gate": true })), "permission_gate", "conversation");
    refused(terminal(json!({ "conversation_ui": true })), "conversation_ui", "conversation");
    refused(conversation(json!({ "default_model": "" })), "default_model", "conversation_ui");
    refused(conversation(json!({ "file_download": true })), "file_download", "conversation_ui");
    let page = json!({ "conversation_ui": true, "file_download": true, "default_model": "m", "show_model_selector": true });
    assert!(conversation(page).is_ok());
}

#[test]
fn isolation_sandbox_grants_and_network_must_agree() {
    let rw = json!([{ "path": "/x", "mode": "rw" }, { "path": "/y", "mode": "ro" }]);
    refused(terminal(json!({ "sandbox": "danger-full-access" })), "sandbox", "danger-full-access");
    for sandbox in ["read-only", "workspace-write"] {
        refused(
            terminal(json!({ "fs_isolation": false, "sandbox": sandbox })),
            "sandbox",
            "fs_isolation=False",
        );
    }
    let grants =
        terminal(json!({ "sandbox": "read-only", "extra_allowed_dirs": rw, "network_access": true }));
    refused(grants.clone(), "extra_allowed_dirs", "read-only");
    assert!(grants.unwrap_err().value.contains("/x"));
    refused(
        terminal(json!({ "sandbox": "read-only", "network_access": true })),
        "network_access",
        "network_access",
    );
    for accepted in [
        json!({ "sandbox": "read-only" }),
        json!({ "sandbox": "read-only", "extra_allowed_dirs": [{ "path": "/y", "mode": "ro" }] }),
        json!({ "fs_isolation": false, "sandbox": "danger-full-access" }),
        json!({ "network_access": true }),
    ] {
        assert!(terminal(accepted.clone()).unwrap().warnings().is_empty(), "{accepted}");
    }
}

#[test]
fn what_has_no_effect_is_accepted_with_a_warning() {
    let open = terminal(json!({
        "fs_isolation": false, "network_access": true, "extra_allowed_dirs": [{ "path": "/x", "mode": "rw" }],
    }))
    .unwrap();
    assert_eq!(open.warnings().len(), 2);
    let seeded = terminal(json!({ "seed": "a", "capture_seed": true })).unwrap();
    assert!(!seeded.captures_seed() && seeded.warnings()[0].contains("capture_seed"));
    assert!(terminal(json!({ "capture_seed": true })).unwrap().captures_seed());
}

#[test]
fn a_grant_is_a_mode_and_an_absolute_path() {
    let grant =
        |path: &str, mode: &str| terminal(json!({ "extra_allowed_dirs": [{ "path": path, "mode": mode }] }));
    let error = grant("/data", "rwx").unwrap_err().to_string();
    assert!(error.contains("rwx") && error.contains("/data"), "{error}");
    for path in ["", "data", "./data", "~root", "~root/x", "/a\0b"] {
        refused(grant(path, "rw"), "extra_allowed_dirs", "absolute");
    }
    for path in ["/", "~", "~/", "~/x", "/data"] {
        assert_eq!(grant(path, "rw").unwrap().extra_allowed_dirs()[0].path(), path);
    }
    let extra = json!({ "extra_allowed_dirs": [{ "path": "/x", "mode": "ro", "why": 1 }] });
    refused(terminal(extra), "extra_allowed_dirs", "nothing else");
}

#[test]
fn install_dirs_are_absolute_or_below_a_home() {
    for field in ["codex_install_dir", "ttyd_install_dir"] {
        for dir in ["", "opt", "~root", "~root/bin"] {
            refused(terminal(json!({ field: dir })), field, "absolute");
        }
        for dir in ["/opt/x", "~", "~/x"] {
            assert!(terminal(json!({ field: dir })).is_ok());
        }
    }
}

#[test]
fn sizes_are_whole_and_positive() {
    for field in ["max_upload_bytes", "max_download_bytes"] {
        for size in [json!(0), json!(-1), json!(1.5)] {
            refused(terminal(json!({ field: size })), field, "above zero");
        }
    }
    assert_eq!(terminal(json!({ "max_upload_bytes": 1 })).unwrap().max_upload_bytes(), 1);
}

#[test]
fn a_seed_is_one_id_or_one_pool() {
    let seed = |value: Value| terminal(json!({ "seed": value }));
    assert_eq!(seed(json!({ "pool": "team" })).unwrap().seed(), Some(&SeedChoice::Pool("team".to_owned())));
    assert_eq!(seed(json!("a1")).unwrap().seed(), Some(&SeedChoice::Id("a1".to_owned())));
    assert_eq!(seed(json!(null)).unwrap().seed(), None);
    for bad in [
        json!(""),
        json!({}),
        json!({ "id": "" }),
        json!({ "id": "a", "pool": "b" }),
        json!({ "key": "a" }),
        json!(7),
    ] {
        refused(seed(bad), "seed", "not empty");
    }
}

#[test]
fn an_empty_model_is_none_and_a_default_model_runs() {
    assert_eq!(terminal(json!({ "model": "" })).unwrap().model(), None);
    let page = |change: Value| {
        let mut all = json!({ "conversation_ui": true });
        all.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        conversation(all).unwrap()
    };
    assert_eq!(page(json!({ "default_model": "d" })).model(), Some("d"));
    assert_eq!(page(json!({ "default_model": "d", "model": "m" })).model(), Some("m"));
    assert_eq!(page(json!({ "default_model": "" })).model(), None);
}

#[test]
fn the_gate_is_never_inert() {
    let policy = |change: Value| conversation(change).unwrap().approval_policy();
    assert_eq!(policy(json!({ "permission_gate": true })), ApprovalPolicy::OnRequest);
    assert_eq!(policy(json!({ "permission_gate": true, "fs_isolation": false })), ApprovalPolicy::Untrusted);
    for asked in ["never", "on-request", "on-failure"] {
        let open = conversation(
            json!({ "permission_gate": true, "fs_isolation": false, "ask_for_approval": asked }),
        )
        .unwrap();
        assert_eq!(open.approval_policy(), ApprovalPolicy::Untrusted, "{asked}");
        assert!(open.warnings()[0].contains(asked));
    }
    assert_eq!(
        policy(json!({ "permission_gate": true, "ask_for_approval": "untrusted" })),
        ApprovalPolicy::Untrusted
    );
    assert_eq!(policy(json!({ "ask_for_approval": "on-request" })), ApprovalPolicy::OnRequest);
}

#[test]
fn a_policy_that_newer_codex_refuses_is_replaced_with_a_warning() {
    let config = terminal(json!({ "ask_for_approval": "on-failure" })).unwrap();
    assert_eq!(config.approval_policy(), ApprovalPolicy::OnRequest);
    assert!(config.warnings()[0].contains("on-failure"));
}

#[test]
fn default_excludes_keep_the_rollouts_and_the_users_databases() {
    let excludes = default_workdir_excludes();
    assert!(excludes.iter().all(|pattern| !pattern.contains("sessions")));
    for pattern in &excludes {
        assert_eq!(session_store::is_hit_by(pattern), Ok(false), "{pattern}");
    }
    assert!(
        excludes.contains(&"home/.codex/*.sqlite*".to_owned()) && !excludes.contains(&"*.sqlite*".to_owned())
    );
}

#[test]
fn excludes_are_the_defaults_or_the_list_as_given() {
    let config = |change| terminal(change).unwrap();
    assert_eq!(config(json!({})).effective_excludes(false), default_workdir_excludes());
    assert!(config(json!({ "workdir_exclude": [] })).effective_excludes(false).is_empty());
    assert_eq!(config(json!({ "workdir_exclude": ["a"] })).effective_excludes(false), ["a"]);
    assert_eq!(
        config(json!({ "workdir_exclude": ["a"] })).effective_excludes(true),
        ["a", "home/.codex/auth.json"]
    );
}

#[test]
fn excludes_that_would_destroy_the_resume_are_refused_while_it_is_wanted() {
    for pattern in ["home", "*", "home/.codex/sessions", "*.jsonl"] {
        refused(
            terminal(json!({ "workdir_exclude": ["ok", pattern] })),
            "workdir_exclude",
            "home/.codex/sessions",
        );
        assert!(terminal(json!({ "workdir_exclude": [pattern], "supports_resume": false })).is_ok());
    }
    refused(
        terminal(json!({ "workdir_exclude": ["[a"], "supports_resume": false })),
        "workdir_exclude",
        "never closed",
    );
}

#[test]
fn variables_have_names_and_their_values_are_never_shown() {
    for name in ["", "1A", "A-B", "A B", "A=B", "É"] {
        let error = terminal(json!({ "env": { name: "SECRET" } })).unwrap_err();
        assert!(error.field == "env" && !error.to_string().contains("SECRET"), "{error}");
    }
    for value in [json!("SECRET\0"), json!(["SECRET"]), json!("SECRET".repeat(30_000))] {
        let error = terminal(json!({ "env": { "A": value } })).unwrap_err().to_string();
        assert!(error.contains("\"A\"") && !error.contains("SECRET"), "{}", &error[..200.min(error.len())]);
    }
    let config = terminal(json!({ "env": { "_A1": "SECRET" }, "instructions": "PRIVATE" })).unwrap();
    let shown = format!("{config:?} {config:#?}");
    assert!(shown.contains("_A1") && !shown.contains("SECRET") && !shown.contains("PRIVATE"), "{shown}");
}

#[test]
fn scrub_globs_are_those_a_host_takes() {
    assert!(terminal(json!({ "scrub_env": ["A_*", "[!B]?", "C-D"] })).is_ok());
    for glob in ["", "A B", "$(x)", "a;b", "A/B"] {
        refused(terminal(json!({ "scrub_env": [glob] })), "scrub_env", "glob");
    }
}

#[test]
fn codex_settings_are_rendered_and_ours_and_secrets_are_refused() {
    let config = terminal(json!({ "codex_config": {
        "model_provider": "mock",
        "model_providers.mock": { "base_url": "http://127.0.0.1:1/v1", "env_key": "K" },
        "tool_output_token_limit": 5,
    } }))
    .unwrap();
    let overrides: Vec<(&str, &str)> = config.overrides().collect();
    assert_eq!(
        overrides,
        [
            ("model_provider", "\"mock\""),
            ("model_providers.mock", r#"{"base_url" = "http://127.0.0.1:1/v1", "env_key" = "K"}"#),
            ("tool_output_token_limit", "5"),
        ]
    );
    let refuse = |key: &str, value: Value, fragment: &str| {
        let error = terminal(json!({ "codex_config": { key: value } })).unwrap_err().to_string();
        assert!(error.contains(fragment) && !error.contains("SECRET"), "{error}");
    };
    refuse("approval_policy", json!("never"), "ask_for_approval");
    refuse("sandbox_workspace_write.writable_roots", json!(["/"]), "extra_allowed_dirs");
    refuse("sandbox_workspace_write", json!({}), "extra_allowed_dirs");
    refuse("cli_auth_credentials_store", json!("keyring"), "auth.json");
    refuse("model_providers.x.experimental_bearer_token", json!("SECRET"), "env_key");
    refuse("mcp_servers.x", json!({ "env": { "GITHUB_TOKEN": "SECRET" } }), "GITHUB_TOKEN");
    refuse("a.http-headers", json!([{ "Authorization": "SECRET" }]), "Authorization");
    refuse("a", json!(null), "null");
    for key in ["", ".", "a.", "a b", "a=b", "a.\"b\"", "é"] {
        refuse(key, json!(1), "dotted");
    }
    refuse("a", json!("x".repeat(70_000)), "64 KiB");
}

#[test]
fn a_copy_with_changes_is_checked_as_a_whole() {
    let config = conversation(json!({ "sandbox": "read-only" })).unwrap();
    let changed = config.with(|fields| drop(fields.insert("model".to_owned(), json!("m")))).unwrap();
    assert_eq!((changed.model(), config.model()), (Some("m"), None));
    refused(
        config.with(|fields| drop(fields.insert("network_access".to_owned(), json!(true)))),
        "network_access",
        "read-only",
    );
}

#[test]
fn a_long_value_is_cut_in_an_error() {
    let error = terminal(json!({ "sandbox": "x".repeat(10_000) })).unwrap_err();
    assert!(error.to_string().len() < 400);
}

fn word() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 é🗂\"\\\\\n]{0,12}"
}

prop_compose! {
    /// Any configuration at all, valid or not, in which each field is present or absent on its own.
    fn any_fields()(
        conversation in any::<bool>(),
        instructions in word(),
        flags in proptest::collection::vec(any::<Option<bool>>(), 9),
        model in proptest::option::of(word()),
        sandbox in proptest::option::of(0usize..3),
        approval in proptest::option::of(0usize..4),
        effort in proptest::option::of(0usize..8),
        seed in proptest::option::of(("[a-z]{1,4}", any::<bool>())),
        env in proptest::option::of(proptest::collection::btree_map("[A-Z_]{1,5}", word(), 0..4)),
        grants in proptest::option::of(proptest::collection::vec(("/[a-zé\"]{0,5}", any::<bool>()), 0..3)),
        exclude in proptest::option::of(proptest::collection::vec("[a-g.*]{1,3}x", 0..3)),
        overrides in proptest::option::of(proptest::collection::btree_map("[a-g]{1,4}(\\.[a-g-]{1,3})?", word(), 0..3)),
        upload in proptest::option::of(0u64..5),
    ) -> Value {
        let mut map = json!({ "mode": if conversation { "conversation" } else { "iframe" }, "consumer_instructions": instructions });
        let names = [
            "host_protocol", "auto_start", "supports_resume", "capture_seed", "fs_isolation", "network_access",
            "permission_gate", "conversation_ui", "file_download",
        ];
        for (name, flag) in names.iter().zip(flags) {
            map[*name] = json!(flag);
        }
        map["model"] = json!(model);
        map["sandbox"] = json!(sandbox.map(|at| SandboxMode::ALL[at].as_str()));
        map["ask_for_approval"] = json!(approval.map(|at| ApprovalPolicy::ALL[at].as_str()));
        map["effort"] = json!(effort.map(|at| Effort::ALL[at].as_str()));
        map["seed"] = json!(seed.map(|(name, pool)| if pool { json!({ "pool": name }) } else { json!(name) }));
        map["env"] = json!(env);
        let grant = |(path, rw)| json!({ "path": path, "mode": if rw { "rw" } else { "ro" } });
        map["extra_allowed_dirs"] = json!(grants.map(|list: Vec<(String, bool)>| list.into_iter().map(grant).collect::<Vec<_>>()));
        map["workdir_exclude"] = json!(exclude);
        map["codex_config"] = json!(overrides);
        map["max_upload_bytes"] = json!(upload);
        map
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 100_000, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn every_valid_configuration_survives_its_own_json(map in any_fields()) {
        let Ok(config) = SessionConfig::from_json(map) else { return Err(TestCaseError::reject("refused")) };
        let json = config.to_json();
        for name in json.as_object().unwrap().keys() {
            prop_assert!(fields::NAMES.contains(&name.as_str()), "{}", name);
        }
        let again = SessionConfig::from_json(json.clone()).unwrap();
        prop_assert_eq!(&again.to_json(), &json);
        prop_assert_eq!(&again, &config);
        prop_assert_eq!(config.with(|_| ()).unwrap(), config);
    }

    #[test]
    fn with_the_gate_on_codex_asks(map in any_fields()) {
        let mut map = map;
        map["permission_gate"] = json!(true);
        let Ok(config) = SessionConfig::from_json(map) else { return Err(TestCaseError::reject("refused")) };
        let asks = match config.sandbox_mode() {
            SandboxMode::DangerFullAccess => config.approval_policy() == ApprovalPolicy::Untrusted,
            _ => matches!(config.approval_policy(), ApprovalPolicy::Untrusted | ApprovalPolicy::OnRequest),
        };
        prop_assert!(asks, "{:?}", config);
    }
}
