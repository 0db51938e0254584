//! A program on the machine, by way of its SSH server, which runs nothing but command lines.
//!
//! The line is always the same, so no argument on the machine shows anything but the program's own words. It reads a launch text
//! from its input, runs it, and becomes the program, whose input is what follows.

use std::os::unix::ffi::OsStrExt;

use crate::error::{HostError, Result};
use crate::guard::quote;
use crate::{AgentIdentity, Command, shell_env};

/// The command line, whatever the login shell is: single quotes mean the same in all of them, `csh` and `fish` too.
///
/// The shell leads its process group already where sshd starts it by `exec` alone; a forced command or start files may have
/// left a shell of theirs in front, and then a group is made. `dd` reads exactly as many bytes, so that the rest of the input is
/// left for the program; a shell's own `read` would take a system call per byte.
pub(super) const LINE: &str = concat!(
    r#"exec sh -c 'read -r a b c d g r </proc/$$/stat; "#,
    r#"if [ "$g" = "$$" ]; then eval "$1"; else exec setsid sh -c "$1"; fi' "#,
    r#"sh 'IFS= read -r n && l=$(dd bs="$n" count=1 iflag=fullblock 2>/dev/null) && eval "$l"'"#
);

const FRONT: &str = include_str!("launch.sh");

/// Where a program's streams go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Streams {
    /// Three pipes.
    Pipes,
    /// Output and errors; it reads nothing.
    Silent,
    /// A terminal.
    Terminal,
}

/// A launch text and what answers it.
pub(super) struct Launch {
    /// The text with its length in front, as it is sent.
    pub(super) text: Vec<u8>,
    /// What the answer begins with; random.
    pub(super) mark: String,
}

/// Writes the launch text of a command.
pub(super) fn launch(command: &Command, streams: Streams) -> Result<Launch> {
    let parts = [(); 2].map(|()| uuid::Uuid::new_v4().simple().to_string());
    let mut text = Vec::new();
    let mut line = |pieces: &[&[u8]]| {
        pieces.iter().for_each(|piece| text.extend_from_slice(piece));
        text.push(b'\n');
    };
    if streams == Streams::Terminal {
        // It was made raw, so that the text is neither echoed nor cut nor taken for control characters.
        line(&[b"stty sane 2>/dev/null"]);
    }
    line(&[b"_og_1=", parts[0].as_bytes(), b" _og_2=", parts[1].as_bytes()]);
    line(&[FRONT.as_bytes()]);
    let cwd = match &command.cwd {
        Some(cwd) => quote(cwd.as_os_str().as_bytes())?,
        // Start files may have gone elsewhere.
        None => b"\"$HOME\"".to_vec(),
    };
    line(&[b"cd -- ", &cwd, b" 2>/dev/null || _og_stop nowhere"]);
    if !command.env.remove.is_empty() {
        line(&[shell_env::FORGET.as_bytes()]);
    }
    line(&[&shell_env::commands(&command.env)?]);
    let mut words = Vec::new();
    for word in &command.argv {
        words.push(b' ');
        words.extend(quote(word.as_bytes())?);
    }
    line(&[b"set --", &words]);
    line(&[b"_og_find \"$@\""]);
    line(&[b"_og_ready ", if streams == Streams::Terminal { b"one" } else { b"both" }]);
    // Without its own variables: some shells export all of them.
    line(&[
        b"unset -v _og_1 _og_2 _og_ifs _og_there _og_place _og_stat _og_which _og_line _og_name _og_glob n l",
    ]);
    line(match streams {
        Streams::Silent => &[b"exec \"$@\" </dev/null"],
        Streams::Pipes | Streams::Terminal => &[b"exec \"$@\""],
    });
    let mut sent = format!("{}\n", text.len()).into_bytes();
    sent.extend(text);
    Ok(Launch { text: sent, mark: parts.concat() })
}

/// Who runs, and in which process group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leader {
    pub(super) identity: AgentIdentity,
    pub(super) group: u32,
}

/// Reads the answer to a launch text, or `None` when it is none.
pub(super) fn answer(line: &str, command: &Command) -> Option<Result<Leader>> {
    let program = || command.argv.first().cloned().unwrap_or_default();
    let refuse = |why: &str| Some(Err(HostError::Program { program: program(), why: why.to_owned() }));
    match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
        ["run", pid, start, group] => {
            let (pid, start_time, group) = (pid.parse().ok()?, start.parse().ok()?, group.parse().ok()?);
            Some(Ok(Leader { identity: AgentIdentity { pid, start_time }, group }))
        }
        ["nowhere"] => {
            let path =
                command.cwd.as_ref().map_or("the home directory".into(), |cwd| cwd.display().to_string());
            Some(Err(HostError::NotFound { path }))
        }
        ["missing"] => refuse("there is no such program"),
        ["forbidden"] => refuse("it may not be executed"),
        ["blind"] => refuse("/proc cannot be read on the host; it must be Linux"),
        _ => None,
    }
}
