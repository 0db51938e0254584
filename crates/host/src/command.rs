//! A program to run on a host: words, environment, directory.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use crate::ExitStatus;
use crate::error::{HostError, Result};

/// A program to run. Words are passed as they are; no shell reads them. Values in `env` never appear in any
/// process's arguments on the host.
#[derive(Debug, Clone)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// What its environment is.
    pub env: EnvPlan,
    /// Its directory, absolute; without one, the host user's home.
    pub cwd: Option<PathBuf>,
    /// What it reads as standard input; without one, nothing.
    pub stdin: Option<Bytes>,
    /// How long [`crate::Host::run`] waits before it kills the program.
    pub limit: Duration,
}

/// The limit of a command that names none.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(30);

impl Command {
    /// A command with an unchanged environment and [`DEFAULT_LIMIT`].
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        let argv = argv.into_iter().map(Into::into).collect();
        Self { argv, env: EnvPlan::default(), cwd: None, stdin: None, limit: DEFAULT_LIMIT }
    }
}

/// How a program's environment differs from the host user's own: names that match a removal glob go first, then the
/// additions come, so an addition whose name matches survives (S-007, S-072, S-078). Then `path_prefix` is put in
/// front of whatever `PATH` is by then (S-251).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EnvPlan {
    /// Globs over variable names, of `[A-Za-z0-9_*?\[\]!-]` only (S-081).
    pub remove: Vec<String>,
    /// Variables to set; names must be identifiers.
    pub add: BTreeMap<String, String>,
    /// Directories to put in front of `PATH`, first one first.
    pub path_prefix: Vec<PathBuf>,
}

impl EnvPlan {
    /// Refuses names, globs and directories that some shell on some host could misread (S-081). What it refuses it
    /// shows, but never a variable's value.
    pub fn check(&self) -> Result<()> {
        let refuse = |what, value: &str, why| Err(HostError::Refused { what, value: value.to_owned(), why });
        for glob in &self.remove {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_*?[]!-".contains(&b);
            if glob.is_empty() || !glob.bytes().all(allowed) || globset::Glob::new(glob).is_err() {
                return refuse(
                    "environment glob",
                    glob,
                    "only letters, digits, '_', '*', '?' and '[…]' are allowed",
                );
            }
        }
        for (name, value) in &self.add {
            if !is_identifier(name) {
                return refuse("environment variable", name, "its name is not an identifier");
            }
            if value.contains('\0') {
                return refuse("environment variable", name, "its value has a NUL byte");
            }
        }
        for dir in &self.path_prefix {
            if !dir.is_absolute() || dir.as_os_str().as_encoded_bytes().iter().any(|b| matches!(b, b':' | 0))
            {
                let why = "it must be absolute and without ':'";
                return refuse("PATH directory", &dir.to_string_lossy(), why);
            }
        }
        Ok(())
    }

    /// The environment a program gets from one that inherits `inherited`.
    pub fn apply(
        &self,
        inherited: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<BTreeMap<OsString, OsString>> {
        self.check()?;
        let globs: Vec<_> = self.remove.iter().flat_map(|glob| globset::Glob::new(glob)).collect();
        let globs: Vec<_> = globs.iter().map(globset::Glob::compile_matcher).collect();
        let removed = |name: &OsString| globs.iter().any(|glob| glob.is_match(name));
        let mut env: BTreeMap<OsString, OsString> =
            inherited.into_iter().filter(|(name, _)| !removed(name)).collect();
        for (name, value) in &self.add {
            env.insert(name.into(), value.into());
        }
        if !self.path_prefix.is_empty() {
            let mut path = OsString::new();
            let own = env.get(std::ffi::OsStr::new("PATH")).filter(|path| !path.is_empty());
            for dir in
                self.path_prefix.iter().map(|dir| dir.as_os_str()).chain(own.map(|own| own.as_os_str()))
            {
                if !path.is_empty() {
                    path.push(":");
                }
                path.push(dir);
            }
            env.insert("PATH".into(), path);
        }
        Ok(env)
    }
}

/// A name every shell can export.
fn is_identifier(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

impl std::fmt::Debug for EnvPlan {
    /// Shows names only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnvPlan")
            .field("remove", &self.remove)
            .field("add", &self.add.keys().collect::<Vec<_>>())
            .field("path_prefix", &self.path_prefix)
            .finish()
    }
}

/// What a finished program left: at most [`OUTPUT_LIMIT`] bytes of each stream, the last ones.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Bytes,
    /// Its standard error.
    pub stderr: Bytes,
}

/// Bytes kept of each stream of [`crate::Host::run`]; helper programs of ours say far less.
pub const OUTPUT_LIMIT: usize = 1 << 20;

impl Output {
    /// True for exit status 0.
    pub fn success(&self) -> bool {
        self.status == ExitStatus::Code(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn applied(plan: &EnvPlan, inherited: &[(&str, &str)]) -> Vec<(String, String)> {
        let inherited = inherited.iter().map(|(name, value)| (name.into(), value.into()));
        let text = |text: OsString| text.into_string().unwrap();
        plan.apply(inherited).unwrap().into_iter().map(|(n, v)| (text(n), text(v))).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn an_addition_survives_a_removal_that_matches_it() {
        let plan = EnvPlan {
            remove: vec!["OPENAI_*".into(), "[AB]?".into()],
            add: [("OPENAI_BASE".to_owned(), "new".to_owned())].into(),
            path_prefix: Vec::new(),
        };
        let inherited = [("OPENAI_API_KEY", "k"), ("A1", "x"), ("A12", "stays"), ("openai_x", "stays")];
        assert_eq!(
            applied(&plan, &inherited),
            pairs(&[("A12", "stays"), ("OPENAI_BASE", "new"), ("openai_x", "stays")])
        );
    }

    #[test]
    fn directories_go_in_front_of_the_path_that_the_program_gets() {
        let mut plan = EnvPlan { path_prefix: vec!["/one".into(), "/two".into()], ..EnvPlan::default() };
        assert_eq!(applied(&plan, &[("PATH", "/bin")]), pairs(&[("PATH", "/one:/two:/bin")]));
        assert_eq!(applied(&plan, &[]), pairs(&[("PATH", "/one:/two")]));
        plan.add.insert("PATH".into(), "/mine".into());
        assert_eq!(applied(&plan, &[("PATH", "/bin")]), pairs(&[("PATH", "/one:/two:/mine")]));
    }

    #[test]
    fn what_a_shell_could_misread_is_refused_without_showing_a_value() {
        let add = |name: &str, value: &str| EnvPlan {
            add: [(name.to_owned(), value.to_owned())].into(),
            ..EnvPlan::default()
        };
        for name in ["", "1A", "A-B", "A B", "A=B", "A;reboot"] {
            let error = add(name, "secret").apply([]).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(add("A", "nul\0").apply([]).is_err());
        for glob in ["", "A$(x)", "{A,B}", "A/B", "[", "A\\*"] {
            let plan = EnvPlan { remove: vec![glob.into()], ..EnvPlan::default() };
            assert!(plan.check().is_err(), "{glob:?}");
        }
        for dir in ["relative", "/a:/b"] {
            let plan = EnvPlan { path_prefix: vec![dir.into()], ..EnvPlan::default() };
            assert!(plan.check().is_err(), "{dir:?}");
        }
    }
}
