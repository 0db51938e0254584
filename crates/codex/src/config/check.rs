//! Which values may stand together. The order of the checks is part of the contract: the first violation is the one
//! reported (S-002).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::Fields;
use super::{
    ApprovalPolicy, ConfigError, Effort, GrantMode, Mode, SandboxMode, SessionConfig, ThinkingVerbosity,
    ToolVerbosity, Transport, overrides, session_store,
};

/// Bytes of an uploaded or downloaded file unless configured otherwise (S-033).
const DEFAULT_FILE_BYTES: u64 = 10_000_000;

/// Bytes of one variable, name and value: Linux takes no longer string in an environment (`MAX_ARG_STRLEN`).
const MAX_VARIABLE: usize = 128 << 10;

/// Reads and checks a whole configuration.
pub(super) fn session_config(map: Map<String, Value>) -> Result<SessionConfig, ConfigError> {
    let mut fields = Fields::new(map)?;

    // Types first: a rule about values needs values.
    let mode = fields.text("mode")?;
    let instructions = fields.text("instructions")?;
    let transport = fields.text("transport")?;
    let host_protocol = fields.take("host_protocol");
    let client_messages = fields.flag("client_messages", false)?;
    let caller_messages = fields.flag("caller_messages", false)?;
    let auto_start = fields.flag("auto_start", false)?;
    let supports_resume = fields.flag("supports_resume", true)?;
    let seed = fields.seed()?;
    let capture_seed = fields.flag("capture_seed", false)?;
    // An empty model is none (S-008).
    let model = fields.text("model")?.filter(|model| !model.is_empty());
    let effort = fields.text("effort")?;
    let env = fields.env()?;
    let scrub_env = fields.texts("scrub_env")?.unwrap_or_default();
    let scrub_credentials = fields.flag("scrub_credentials", true)?;
    let codex_config = fields.object("codex_config")?;
    let sandbox = fields.text("sandbox")?;
    let fs_isolation = fields.flag("fs_isolation", true)?;
    let network_access = fields.flag("network_access", false)?;
    let extra_allowed_dirs = fields.grants()?;
    let ask_for_approval = fields.text("ask_for_approval")?;
    let permission_gate = fields.flag("permission_gate", false)?;
    let workdir_exclude = fields.texts("workdir_exclude")?;
    let conversation_ui = fields.flag("conversation_ui", false)?;
    let tool_verbosity = fields.text("tool_verbosity")?;
    let thinking_verbosity = fields.text("thinking_verbosity")?;
    let default_model = fields.text("default_model")?;
    let show_model_selector = fields.flag("show_model_selector", false)?;
    let show_file_upload = fields.flag("show_file_upload", false)?;
    let max_upload_bytes = fields.bytes("max_upload_bytes", DEFAULT_FILE_BYTES)?;
    let file_download = fields.flag("file_download", false)?;
    let max_download_bytes = fields.bytes("max_download_bytes", DEFAULT_FILE_BYTES)?;
    let install_if_missing = fields.flag("install_if_missing", true)?;
    let codex_install_dir = fields.text("codex_install_dir")?;
    let install_ttyd_if_missing = fields.flag("install_ttyd_if_missing", true)?;
    let ttyd_install_dir = fields.text("ttyd_install_dir")?;

    // From here on the order is that of S-002.
    let mode = match mode.as_deref() {
        None => {
            return Err(ConfigError::missing("mode", "must be \"conversation\" or \"terminal\""));
        }
        Some("iframe") => Mode::Terminal,
        Some(word) => word_of("mode", word, Mode::ALL, Mode::as_str)?,
    };
    let Some(instructions) = instructions else {
        return Err(ConfigError::missing("instructions", "must be a string; an empty one is a plain chat"));
    };
    let conversation = mode == Mode::Conversation;
    let host_protocol = match host_protocol {
        // A terminal has no other signal of its end; a conversation has, and the keyword channel is opt-in there.
        None => !conversation,
        Some(Value::Bool(flag)) => flag,
        Some(other) => return Err(ConfigError::new("host_protocol", &other, "must be true or false")),
    };
    if !conversation && !host_protocol {
        let rule =
            "needs mode conversation: the keyword log is the only sign that a terminal session is complete";
        return Err(ConfigError::new("host_protocol", &false.into(), rule));
    }
    if permission_gate && !conversation {
        return Err(ConfigError::new("permission_gate", &true.into(), "needs mode conversation"));
    }
    if conversation_ui && !conversation {
        return Err(ConfigError::new("conversation_ui", &true.into(), "needs mode conversation"));
    }
    let tool_verbosity = match tool_verbosity {
        None => ToolVerbosity::DescriptionOnly,
        Some(word) => word_of("tool_verbosity", &word, ToolVerbosity::ALL, ToolVerbosity::as_str)?,
    };
    let thinking_verbosity = match thinking_verbosity {
        None => ThinkingVerbosity::Hidden,
        Some(word) => {
            word_of("thinking_verbosity", &word, ThinkingVerbosity::ALL, ThinkingVerbosity::as_str)?
        }
    };
    let with_page = conversation && conversation_ui;
    let needs_page = "needs mode conversation with conversation_ui";
    if let (Some(model), false) = (&default_model, with_page) {
        return Err(ConfigError::new("default_model", &model.as_str().into(), needs_page));
    }
    for (field, on) in [
        ("show_model_selector", show_model_selector),
        ("show_file_upload", show_file_upload),
        ("file_download", file_download),
    ] {
        if on && !with_page {
            return Err(ConfigError::new(field, &true.into(), needs_page));
        }
    }
    let ask_for_approval = match ask_for_approval {
        None => None,
        Some(word) => Some(word_of("ask_for_approval", &word, ApprovalPolicy::ALL, ApprovalPolicy::as_str)?),
    };
    let sandbox = match sandbox {
        None => None,
        Some(word) => Some(word_of("sandbox", &word, SandboxMode::ALL, SandboxMode::as_str)?),
    };
    let effective = sandbox.unwrap_or(if fs_isolation {
        SandboxMode::WorkspaceWrite
    } else {
        SandboxMode::DangerFullAccess
    });
    if let Some(explicit) = sandbox {
        let open = explicit == SandboxMode::DangerFullAccess;
        if fs_isolation && open {
            let rule = "danger-full-access is no isolation: set fs_isolation to false as well, or choose another sandbox";
            return Err(ConfigError::new("sandbox", &explicit.as_str().into(), rule));
        }
        if !fs_isolation && !open {
            let rule =
                "fs_isolation=False asks for no sandbox at all: leave sandbox out, or keep fs_isolation on";
            return Err(ConfigError::new("sandbox", &explicit.as_str().into(), rule));
        }
    }
    if effective == SandboxMode::ReadOnly {
        let written: Vec<&str> = extra_allowed_dirs
            .iter()
            .filter(|g| g.mode == GrantMode::ReadWrite)
            .map(|g| g.path.as_str())
            .collect();
        if !written.is_empty() {
            let rule = "rw grants have no place in a read-only sandbox";
            return Err(ConfigError::shown("extra_allowed_dirs", written.join(", "), rule));
        }
        if network_access {
            let rule = "network_access is part of the workspace-write sandbox; a read-only one has none";
            return Err(ConfigError::new("network_access", &true.into(), rule));
        }
    }
    install_dir("codex_install_dir", codex_install_dir.as_deref())?;
    install_dir("ttyd_install_dir", ttyd_install_dir.as_deref())?;

    // Rules the original did not have.
    let transport = match transport {
        None => Transport::Auto,
        Some(word) => word_of("transport", &word, Transport::ALL, Transport::as_str)?,
    };
    let effort = match effort {
        None => None,
        Some(word) => Some(word_of("effort", &word, Effort::ALL, Effort::as_str)?),
    };
    let max_upload_bytes = positive("max_upload_bytes", &max_upload_bytes)?;
    let max_download_bytes = positive("max_download_bytes", &max_download_bytes)?;
    excludes(workdir_exclude.as_deref(), supports_resume)?;
    environment(&env)?;
    scrub(&scrub_env)?;
    let overrides = overrides::render(&codex_config)?;

    let mut config = SessionConfig {
        mode,
        instructions,
        transport,
        host_protocol,
        client_messages,
        caller_messages,
        auto_start,
        supports_resume,
        seed,
        capture_seed,
        model,
        effort,
        env,
        scrub_env,
        scrub_credentials,
        codex_config,
        overrides,
        sandbox,
        effective_sandbox: effective,
        fs_isolation,
        network_access,
        extra_allowed_dirs,
        ask_for_approval,
        permission_gate,
        workdir_exclude,
        conversation_ui,
        tool_verbosity,
        thinking_verbosity,
        default_model,
        show_model_selector,
        show_file_upload,
        max_upload_bytes,
        file_download,
        max_download_bytes,
        install_if_missing,
        codex_install_dir,
        install_ttyd_if_missing,
        ttyd_install_dir,
        warnings: Vec::new(),
    };
    config.warnings = warnings(&config);
    Ok(config)
}

/// What was accepted but does not do what it says.
fn warnings(config: &SessionConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    if !config.fs_isolation {
        if config.extra_allowed_dirs.iter().any(|g| g.mode == GrantMode::ReadWrite) {
            warnings.push(
                "extra_allowed_dirs has no effect: without fs_isolation everything may be written".to_owned(),
            );
        }
        if config.network_access {
            warnings
                .push("network_access has no effect: without fs_isolation the network is open".to_owned());
        }
    }
    if config.capture_seed && config.seed.is_some() {
        warnings.push(
            "capture_seed has no effect: a login taken from a seed is saved back into that seed".to_owned(),
        );
    }
    if !config.host_protocol {
        let on = [("client_messages", config.client_messages), ("caller_messages", config.caller_messages)];
        let said = on.into_iter().filter(|(_, on)| *on);
        warnings.extend(said.map(|(field, _)| format!("{field} has no effect: it needs host_protocol")));
    }
    if let Some(asked) = config.ask_for_approval {
        let used = config.approval_policy();
        if used != asked {
            warnings.push(format!(
                "ask_for_approval {asked} is replaced by {used}, which is the policy in force"
            ));
        }
    }
    warnings
}

fn word_of<T: Copy>(
    field: &str,
    word: &str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<T, ConfigError> {
    if let Some(value) = all.iter().find(|value| name(**value) == word) {
        return Ok(*value);
    }
    let words: Vec<&str> = all.iter().map(|value| name(*value)).collect();
    Err(ConfigError::new(field, &word.into(), format!("must be one of {}", words.join(", "))))
}

fn install_dir(field: &str, dir: Option<&str>) -> Result<(), ConfigError> {
    match dir {
        None => Ok(()),
        Some(dir) if dir.starts_with('/') || dir == "~" || dir.starts_with("~/") => Ok(()),
        Some(dir) => Err(ConfigError::new(field, &dir.into(), "must be absolute, or ~, or below ~/")),
    }
}

fn positive(field: &str, value: &Value) -> Result<u64, ConfigError> {
    match value.as_u64() {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(ConfigError::new(field, value, "must be a whole number of bytes above zero")),
    }
}

fn excludes(patterns: Option<&[String]>, supports_resume: bool) -> Result<(), ConfigError> {
    for pattern in patterns.unwrap_or_default() {
        let refuse = |rule: &str| ConfigError::new("workdir_exclude", &pattern.as_str().into(), rule);
        if session_store::is_hit_by(pattern).map_err(refuse)? && supports_resume {
            return Err(refuse(
                "leaves out home/.codex/sessions, from which a session resumes: narrow the pattern, or set \
                 supports_resume to false",
            ));
        }
    }
    Ok(())
}

fn environment(env: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    for (name, value) in env {
        let refuse = |rule: &str| ConfigError::shown("env", format!("{name:?}"), rule);
        let mut bytes = name.bytes();
        let starts = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !starts || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(refuse("a variable's name is letters, digits and _, and starts with no digit"));
        }
        if value.contains('\0') {
            return Err(refuse("this variable's value must not contain a NUL character"));
        }
        if name.len() + value.len() + 2 > MAX_VARIABLE {
            return Err(refuse("this variable is longer than the 128 KiB an environment takes"));
        }
    }
    Ok(())
}

fn scrub(globs: &[String]) -> Result<(), ConfigError> {
    for glob in globs {
        if glob.is_empty() || !glob.bytes().all(|b| b.is_ascii_alphanumeric() || b"_*?[]!-".contains(&b)) {
            let rule = "a glob over variable names is letters, digits, _ and the wildcards * ? [ ] ! -";
            return Err(ConfigError::new("scrub_env", &glob.as_str().into(), rule));
        }
    }
    Ok(())
}
