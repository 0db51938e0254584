//! Where Codex's things lie below a session's workdir, and which of them make a seed.
//!
//! Every session has a home of its own inside its workdir, so that sessions of one host user never share a login,
//! a cache or a history (S-248). All paths here are relative to the workdir and use `/`.

/// The agent's home (`HOME`).
pub const HOME: &str = "home";

/// Codex's own directory (`CODEX_HOME`).
pub const CODEX_HOME: &str = "home/.codex";

/// The login (S-500, T-119).
pub const AUTH_JSON: &str = "home/.codex/auth.json";

/// Codex's settings; Codex itself edits them.
pub const CONFIG_TOML: &str = "home/.codex/config.toml";

/// The rollouts, from which a thread resumes; never left out of a snapshot (S-494, T-183).
pub const SESSIONS: &str = "home/.codex/sessions";

/// The per-session programs, first on the agent's `PATH` (S-251, S-318).
pub const LOCAL_BIN: &str = "home/.local/bin";

/// The stubs that stand in for a browser (S-197).
pub const SHIMS: &str = "bin";

/// The stub that `BROWSER` names (S-200).
pub const BROWSER_SHIM: &str = "bin/xdg-open";

/// The text Codex reads as its instructions.
pub const AGENTS_MD: &str = "AGENTS.md";

/// The keyword channel (S-149).
pub const OPTIO_LOG: &str = "optio.log";

/// One line for each start of the session (S-215).
pub const RESUME_LOG: &str = "resume.log";

/// What the agent hands over (S-305).
pub const DELIVERABLES: &str = "deliverables";

/// The members of a whole seed, relative to [`HOME`], in the order in which they are archived (T-022). What is not
/// listed is never part of a seed (T-023).
pub const SEED_MEMBERS: [&str; 2] = [".codex/auth.json", ".codex/config.toml"];

/// The one member that a save-back replaces (T-022, T-133).
pub const CREDENTIAL_MEMBER: &str = ".codex/auth.json";

/// The number stamped on a captured seed. It is written once and never compared: any integer is read (T-025).
pub const SEED_MANIFEST_VERSION: i64 = 1;

/// A path below the workdir as the host spells it.
pub fn below(workdir: &str, relative: &str) -> String {
    format!("{}/{relative}", workdir.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_the_login_and_the_settings_and_nothing_else() {
        let members: Vec<String> = SEED_MEMBERS.iter().map(|m| below(HOME, m)).collect();
        assert_eq!(members, [AUTH_JSON, CONFIG_TOML]);
        assert_eq!(below(HOME, CREDENTIAL_MEMBER), AUTH_JSON);
    }

    #[test]
    fn a_path_below_a_workdir_has_one_slash_between() {
        assert_eq!(below("/w/", AGENTS_MD), "/w/AGENTS.md");
        assert_eq!(below("/", AGENTS_MD), "/AGENTS.md");
    }
}
