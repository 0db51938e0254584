//! The launch file: what the agent's shell does before it becomes the agent.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;

use super::{GuardSpec, RUN_MARK, Stage, Terminal};
use crate::{HostError, Result};
use crate::{shell_env, tmux};

/// Writes the file as shell commands: the directory, removals, additions, `PATH`, and `become` (in the script), which
/// ends in `exec`, or `open_terminal`, which hands all of it to a tmux. Values stand in it, so it is 0600 and removed as
/// soon as it was read.
pub(super) fn file(spec: &GuardSpec, guard: &Path) -> Result<Bytes> {
    check(spec)?;
    let mut out = Vec::new();
    let cwd = quote(spec.cwd.as_os_str().as_bytes())?;
    line(&mut out, &[b"cd -- ", &cwd, b" 2>/dev/null || fail cannot enter the directory ", &cwd]);
    out.extend(shell_env::commands(&spec.env)?);
    line(&mut out, &[b"export ", RUN_MARK.as_bytes(), b"=", &quote(spec.run_mark.as_bytes())?]);
    match &spec.stage {
        Stage::Headless => line(&mut out, &[&call("become", spec.argv.iter().map(String::as_bytes))?]),
        Stage::Terminal(terminal) => {
            let opening = tmux::opening(terminal.size, guard);
            let words = opening.iter().map(String::as_bytes);
            line(&mut out, &[&call("open_terminal", of_terminal(terminal).into_iter().chain(words))?]);
        }
    }
    Ok(out.into())
}

/// Writes what the terminal's own shell does: `play` (in the script) with the agent's words. They do not travel as words
/// of tmux, which takes no more than 16 KiB of them (S-265).
pub(super) fn pane_file(spec: &GuardSpec) -> Result<Option<Bytes>> {
    let Stage::Terminal(terminal) = &spec.stage else {
        return Ok(None);
    };
    let words = spec.argv.iter().map(String::as_bytes);
    let mut out = call("play", of_terminal(terminal).into_iter().chain(words))?;
    out.push(b'\n');
    Ok(Some(out.into()))
}

fn of_terminal(terminal: &Terminal) -> [&[u8]; 2] {
    [&terminal.tmux, &terminal.socket].map(|path| path.as_os_str().as_bytes())
}

fn call<'a>(function: &str, words: impl Iterator<Item = &'a [u8]>) -> Result<Vec<u8>> {
    let mut call = function.as_bytes().to_vec();
    for word in words {
        call.push(b' ');
        call.extend(quote(word)?);
    }
    Ok(call)
}

fn line(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

fn check(spec: &GuardSpec) -> Result<()> {
    let refuse = |what, value: &str, why| Err(HostError::Refused { what, value: value.to_owned(), why });
    if spec.argv.first().is_none_or(String::is_empty) {
        return refuse("program", "", "it has no name");
    }
    if !spec.cwd.is_absolute() {
        return refuse("directory", &spec.cwd.to_string_lossy(), "it must be absolute");
    }
    let mark = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if spec.run_mark.is_empty() || spec.run_mark.len() > 128 || !spec.run_mark.bytes().all(mark) {
        return refuse(
            "run mark",
            &spec.run_mark,
            "it must be 1 to 128 ASCII letters, digits, '.', '_' or '-'",
        );
    }
    if spec.term_after > spec.kill_after {
        return refuse("limit", &format!("{:?}", spec.term_after), "SIGTERM must not come after SIGKILL");
    }
    Ok(())
}

/// Makes one shell word of any bytes: single quotes, in which nothing is special but the single quote. The one place
/// where we quote for a shell. NUL cannot be in a word and is refused; the value is not shown, it may be a secret.
pub(crate) fn quote(bytes: &[u8]) -> Result<Vec<u8>> {
    if bytes.contains(&0) {
        return Err(HostError::Refused {
            what: "value",
            value: "(not shown)".into(),
            why: "it has a NUL byte",
        });
    }
    let mut word = Vec::with_capacity(bytes.len() + 2);
    word.push(b'\'');
    for byte in bytes {
        match byte {
            b'\'' => word.extend_from_slice(b"'\\''"),
            other => word.push(*other),
        }
    }
    word.push(b'\'');
    Ok(word)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    /// What a real shell makes of a quoted word, read the way the guard reads its launch file.
    fn through_sh(bytes: &[u8]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("launch");
        let mut text = b"export X=".to_vec();
        text.extend(quote(bytes).unwrap());
        text.extend(b"\nset -- ");
        text.extend(quote(bytes).unwrap());
        text.extend(b"\n");
        std::fs::write(&path, text).unwrap();
        let script =
            r#"l=$(cat "$1" && echo .); eval "${l%.}"; env -0 | LC_ALL=C grep -az '^X='; printf %s "$1""#;
        let output = Command::new("sh").args(["-c", script, "sh"]).arg(&path).output().unwrap();
        let mut expected = b"X=".to_vec();
        expected.extend_from_slice(bytes);
        expected.push(0);
        let rest = output.stdout.strip_prefix(&expected[..]);
        rest.unwrap_or_else(|| panic!("the variable came out as {:?}", output.stdout)).to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn any_bytes_but_nul_come_through_a_real_shell(bytes in prop::collection::vec(1u8..=255, 0..64)) {
            prop_assert_eq!(through_sh(&bytes), bytes);
        }
    }

    #[test]
    fn every_single_byte_comes_through_a_real_shell() {
        let all: Vec<u8> = (1..=255).collect();
        assert_eq!(through_sh(&all), all);
    }

    #[test]
    fn nul_is_refused_without_showing_the_value() {
        let error = quote(b"secret\0").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
