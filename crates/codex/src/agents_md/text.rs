//! The sentences. Each constant is one section, without a newline at its end.

use super::{BrowserMode, KeywordFeatures};

pub(super) const PROTOCOL: &str = "\
# Working with the host

You run inside a host program that acts on one thing only: a log file that you write. This part says how to use it; \
keep to it from your first step to your last.";

const LOG_CHANNEL: &str = "\
## Log channel

Report to the host by appending lines to `./optio.log`. A line that begins with one of these words, in capitals and \
without blanks before it, has a meaning; any other line is shown to people as a note.

- `STATUS:` says what you are doing now, with an estimate in percent if you have one. Write one whenever you begin \
something new.
  Example: `STATUS: 40% comparing the two reports`
- `DELIVERABLE:` hands over a finished file by its path.
  Example: `DELIVERABLE: ./deliverables/report.md`
- `ATTENTION:` calls a person, when you cannot go on without one.
  Example: `ATTENTION: the test database asks for a password`";

const LOG_ENDS: &str = "\
- `DONE` ends the session with success; a summary may follow after a colon.
  Example: `DONE: three files converted, none skipped`
- `ERROR` ends the session as failed; say why after a colon.
  Example: `ERROR: the archive is damaged`

The host reads whole lines only, so an entry exists for it only once its newline is there. Append with a command that \
writes one, such as `echo`, and when in doubt look at the file's last byte with `tail -c 1 ./optio.log`.

After `DONE` or `ERROR` the session is over: write nothing behind it, and write it only when nothing is left to do.";

const BROWSER: &str = "\
- `BROWSER:` opens an address in the browser of the person who watches. Programs that open a browser do it for you.
  Example: `BROWSER: \"https://example.org/login\"`";

const NO_BROWSER: &str = "There is no browser here, and commands that open one do nothing.";

const CLIENT_MESSAGE: &str = "\
- `CLIENT_MESSAGE:` sends data to the page of the person who watches: a word, then JSON on the same line.
  Example: `CLIENT_MESSAGE: chart {\"values\": [1, 2, 3]}`";

const CALLER_MESSAGE: &str = "\
- `CALLER_MESSAGE:` sends data to the program that started you: a word, then JSON on the same line.
  Example: `CALLER_MESSAGE: price {\"amount\": 12}`";

pub(super) fn log_channel(features: KeywordFeatures) -> String {
    let mut text = LOG_CHANNEL.to_owned();
    let optional = [
        (features.browser == BrowserMode::Redirect, BROWSER),
        (features.client_messages, CLIENT_MESSAGE),
        (features.caller_messages, CALLER_MESSAGE),
        (true, LOG_ENDS),
    ];
    for (_, section) in optional.into_iter().filter(|(on, _)| *on) {
        text.push('\n');
        text.push_str(section);
    }
    if features.browser == BrowserMode::Suppress {
        text.push_str("\n\n");
        text.push_str(NO_BROWSER);
    }
    text
}

pub(super) const DELIVERABLES: &str = "\
## Deliverables

A file that you hand over belongs below `./deliverables/` and must be text in UTF-8. Finish and close it first, then \
write its `DELIVERABLE:` line: the host fetches the file as soon as it sees the line, and would get half of it.";

pub(super) const HARNESS_MESSAGES: &str = "\
## Messages from the host

The host speaks to you where the user does. What begins with `System:` comes from the host, everything else from a \
person.

After a `DELIVERABLE:` line end your turn and wait for `System: deliverable <name>: …`. The answer is one of three:

1. it was accepted;
2. it asks for a change: make the change, then announce the file again;
3. the host had trouble of its own: keep the file, and announce it again after you have next been resumed.

Write `DONE` only when every deliverable has been accepted.";

pub(super) const SYSTEM_MESSAGES: &str = "\
## Messages from the host

A message that begins with `System:` was written by the program you run in, not by the person you talk to. Take note \
of it and act on it; it is not part of the conversation and needs no thanks.";

const RESUMES: &str = "\
## Resumes

This session may be stopped at any moment and brought back later, perhaps on another machine. You will remember the \
conversation as if nothing had happened, but processes that you started are gone, and so may be tools that you \
installed and every file outside of your working directory. Only the working directory is kept.";

const RESUME_LOG: &str = "\
Each start of the session adds a line with its time in UTC to `./resume.log`; the first line is the launch. You need \
not look there by yourself: after a resume you get `System: you have been resumed`. Then, and whenever you meet a new \
line in `./resume.log` or a tool that worked before and now fails, check that the tools and processes you count on \
are there, read again every file that the newest line names after `REFRESHED:`, and go on with your work.";

pub(super) fn resumes(excludes: &[String]) -> String {
    let kept = match excludes {
        [] => "Within the working directory no paths are excluded: all of it is kept.".to_owned(),
        patterns => {
            let list: Vec<String> = patterns.iter().map(|pattern| format!("`{pattern}`")).collect();
            format!(
                "Within the working directory everything is kept except what matches: {}.",
                list.join(", ")
            )
        }
    };
    let home = match excludes {
        [] => {
            "Your own data below `home/.codex`, with the history in `home/.codex/sessions`, is kept as well."
        }
        _ => {
            "Your own data below `home/.codex`, with the history in `home/.codex/sessions`, is kept as well, less the \
             same patterns."
        }
    };
    let large = match excludes {
        [] => "Put large data that need not survive outside of the working directory.",
        _ => {
            "Put large data that need not survive outside of the working directory, or into a directory that one of \
             the patterns names."
        }
    };
    format!("{RESUMES}\n\n{kept} {home} {large}\n\n{RESUME_LOG}")
}

const TASK: &str = "\
## Task

What follows is your task, in the words of the one who gave it. A person may be watching: say in plain words what you \
do and why, ask when something is unclear, and answer when you are asked.";

const TASK_AND_LOG: &str = "Talking does not replace the log: write `STATUS:` lines as you go.";

pub(super) fn task(host_protocol: bool) -> String {
    if host_protocol { format!("{TASK} {TASK_AND_LOG}") } else { TASK.to_owned() }
}

const DOWNLOADS: &str = "\
## Downloadable files

To offer a file to the person you talk to, write a markdown link with the scheme `optio-file:` and the path relative \
to your working directory, such as `[the chart](optio-file:out/chart.png)`. Offer a file when it is asked for.";

const DOWNLOADS_OR_DELIVERABLES: &str = "\
Such a link is for the person, and only on request. A deliverable is for the host, and always through its log line; \
one does not stand for the other.";

pub(super) fn downloads(host_protocol: bool) -> String {
    if host_protocol { format!("{DOWNLOADS}\n\n{DOWNLOADS_OR_DELIVERABLES}") } else { DOWNLOADS.to_owned() }
}
