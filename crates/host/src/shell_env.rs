//! An [`EnvPlan`] as commands of a POSIX shell, for programs that a shell starts for us: under the guard, and behind SSH.

use std::os::unix::ffi::OsStrExt;

use crate::guard::quote;
use crate::{EnvPlan, HostError, Result};

/// The function that the commands call for removals.
pub(crate) const FORGET: &str = include_str!("shell_env/forget.sh");

/// The commands: removals, additions, `PATH`. They hold values, so they may stand in no argument and in no file that
/// others can read. Whoever runs them has [`FORGET`].
pub(crate) fn commands(plan: &EnvPlan) -> Result<Vec<u8>> {
    plan.check()?;
    // Not in `EnvPlan::check`: only a shell that starts a program has variables of its own.
    if let Some(name) = plan.add.keys().find(|name| name.starts_with("_og_")) {
        let why = "names in _og_ are our shells' own";
        return Err(HostError::Refused { what: "variable name", value: name.clone(), why });
    }
    let mut out = Vec::new();
    if !plan.remove.is_empty() {
        out.extend_from_slice(b"forget");
        for glob in &plan.remove {
            out.push(b' ');
            out.extend(quote(glob.as_bytes())?);
        }
        out.push(b'\n');
    }
    for (name, value) in &plan.add {
        out.extend_from_slice(b"export ");
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        out.extend(quote(value.as_bytes())?);
        out.push(b'\n');
    }
    if !plan.path_prefix.is_empty() {
        let dirs: Vec<&[u8]> = plan.path_prefix.iter().map(|dir| dir.as_os_str().as_bytes()).collect();
        out.extend_from_slice(b"export PATH=");
        out.extend(quote(&dirs.join(&b':'))?);
        out.extend_from_slice(b"\"${PATH:+:$PATH}\"\n");
    }
    Ok(out)
}
