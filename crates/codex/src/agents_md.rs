//! AGENTS.md: what the agent is told about its surroundings, in front of the caller's own text (S-298…S-316).
//!
//! The text describes exactly the features that the session has. A keyword that nobody reads is never mentioned, and
//! the paths said to be lost on a resume are those that the archive leaves out.

use crate::config::SessionConfig;

mod text;

#[cfg(test)]
mod tests;

/// What becomes of an agent's attempt to open a browser (S-196).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BrowserMode {
    /// Nothing is done about it.
    Ignore,
    /// Stubs swallow it.
    Suppress,
    /// Stubs hand the address to the person at the page.
    #[default]
    Redirect,
}

/// The keywords that are in force. The same value configures the reader of the log, so that the text and the reader
/// cannot disagree (S-159, S-307). The default is what a session has (S-161).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeywordFeatures {
    /// What `BROWSER:` does.
    pub browser: BrowserMode,
    /// Whether `CLIENT_MESSAGE:` is read.
    pub client_messages: bool,
    /// Whether `CALLER_MESSAGE:` is read.
    pub caller_messages: bool,
}

/// Composes AGENTS.md. `excludes` are the patterns that the archive of this session uses
/// ([`SessionConfig::effective_excludes`]).
///
/// Order: the keyword protocol, if it is on; resumes, if they are supported; what `System:` means, if the protocol does
/// not say it; the task; the caller's text; downloads, if they are offered. One newline ends it.
pub fn compose(config: &SessionConfig, features: KeywordFeatures, excludes: &[String]) -> String {
    let mut sections = Vec::new();
    if config.host_protocol() {
        sections.push(text::PROTOCOL.to_owned());
        sections.push(text::log_channel(features));
        sections.push(text::DELIVERABLES.to_owned());
        sections.push(text::HARNESS_MESSAGES.to_owned());
    }
    if config.supports_resume() {
        sections.push(text::resumes(excludes));
    }
    if !config.host_protocol() {
        sections.push(text::SYSTEM_MESSAGES.to_owned());
    }
    sections.push(text::task(config.host_protocol()));
    sections.push(config.instructions().trim_end().to_owned());
    if config.file_download() {
        sections.push(text::downloads(config.host_protocol()));
    }
    sections.retain(|section| !section.is_empty());
    let mut whole = sections.join("\n\n");
    whole.push('\n');
    whole
}
