//! The `[hooks]` of the file: what an operator has a say in, and by which program or address.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::SignedDuration;
use optio_hooks::{Action, Configured, Hooks, LIMIT, NoHooks, Program, Webhook};
use serde::Deserialize;

/// The `[hooks]` of the file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HookOptions {
    /// See [`optio_hooks::Hooks::before_execute`].
    pub before_execute: Option<HookOption>,
    /// See [`optio_hooks::Hooks::after_execute`].
    pub after_execute: Option<HookOption>,
    /// See [`optio_hooks::Hooks::on_deliverable`].
    pub on_deliverable: Option<HookOption>,
    /// See [`optio_hooks::Hooks::on_seed_saved`].
    pub on_seed_saved: Option<HookOption>,
}

/// One hook: a `command`, or a `url`.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HookOption {
    /// Program and arguments, run beside the service.
    pub command: Option<Vec<String>>,
    /// An address that is posted to.
    pub url: Option<String>,
    /// The bearer token that the address asks for.
    pub token: Option<String>,
    /// How long it may take, up to a minute.
    pub limit: Option<SignedDuration>,
}

impl std::fmt::Debug for HookOption {
    /// Shows no token, and no address: it may carry one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HookOption").field("command", &self.command).field("limit", &self.limit).finish()
    }
}

/// The hooks of a service: those of its file, or those of the program that embeds it.
#[derive(Clone)]
pub struct HookSet(pub Arc<dyn Hooks>);

impl HookSet {
    /// These hooks.
    pub fn new(hooks: impl Hooks) -> Self {
        Self(Arc::new(hooks))
    }
}

impl Default for HookSet {
    /// Nobody has a say.
    fn default() -> Self {
        Self::new(NoHooks)
    }
}

impl std::fmt::Debug for HookSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HookSet(…)")
    }
}

/// Checks the hooks, so that what is wrong with one is known at the start and not at its first call.
pub(super) fn hooks(options: HookOptions) -> Result<Configured> {
    let HookOptions { before_execute, after_execute, on_deliverable, on_seed_saved } = options;
    Ok(Configured {
        before_execute: action("hooks.before_execute", before_execute)?,
        after_execute: action("hooks.after_execute", after_execute)?,
        on_deliverable: action("hooks.on_deliverable", on_deliverable)?,
        on_seed_saved: action("hooks.on_seed_saved", on_seed_saved)?,
    })
}

fn action(name: &'static str, option: Option<HookOption>) -> Result<Option<Action>> {
    let Some(HookOption { command, url, token, limit }) = option else { return Ok(None) };
    let limit = match limit.map(Duration::try_from) {
        None => LIMIT,
        Some(Ok(limit)) if !limit.is_zero() && limit <= LIMIT => limit,
        Some(_) => bail!("{name}.limit: it must be more than nothing and at most {LIMIT:?}"),
    };
    let action = match (command, url) {
        (Some(argv), None) if argv.first().is_some_and(|program| !program.is_empty()) => {
            if token.is_some() {
                bail!("{name}.token: a command has none; give it a file to read");
            }
            Action::Program(Program { argv, limit })
        }
        (Some(_), None) => bail!("{name}.command: it must be a program and its arguments, as a list"),
        (None, Some(url)) => Action::Webhook(Webhook::new(&url, token.as_deref(), limit).context(name)?),
        _ => bail!("{name}: it must have either a command or a url"),
    };
    Ok(Some(action))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(toml: &str) -> Result<Configured> {
        hooks(toml::from_str(toml).unwrap())
    }

    #[test]
    fn a_hook_is_a_command_or_an_address() {
        let hooks = read(
            "on_deliverable = { command = ['check', '--strict'], limit = '10s' }\n\
             after_execute = { url = 'https://hooks.example.org/x', token = 'abc' }",
        )
        .unwrap();
        assert!(
            matches!(&hooks.on_deliverable, Some(Action::Program(p)) if p.limit == Duration::from_secs(10))
        );
        assert!(matches!(hooks.after_execute, Some(Action::Webhook(_))));
        assert!(hooks.before_execute.is_none() && !format!("{hooks:?}").contains("abc"));
    }

    #[test]
    fn what_is_wrong_with_a_hook_is_named() {
        for (toml, said) in [
            ("before_execute = {}", "hooks.before_execute: it must have either"),
            ("before_execute = { command = ['a'], url = 'https://b.test' }", "either a command or a url"),
            ("before_execute = { command = [] }", "hooks.before_execute.command"),
            ("before_execute = { command = ['a'], token = 'b' }", "hooks.before_execute.token"),
            ("before_execute = { command = ['a'], limit = '2m' }", "hooks.before_execute.limit"),
            ("on_seed_saved = { url = 'http://example.org' }", "hooks.on_seed_saved"),
        ] {
            let wrong = format!("{:#}", read(toml).unwrap_err());
            assert!(wrong.contains(said), "{toml}: {wrong}");
        }
        assert!(toml::from_str::<HookOptions>("before = { command = ['a'] }").is_err());
    }
}
