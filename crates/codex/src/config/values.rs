//! The small vocabularies of a session's configuration.

use std::fmt;

/// Declares an enum whose variants are words of a configuration: one list, read by the parser, the renderer and the
/// error that says what would have been right.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every value, in the order in which they are offered.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Gives the word on the wire and in our JSON.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// Reads the word; nothing for any other text. Case matters.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str() == word)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// How a person meets the session (S-025).
    Mode {
        /// `codex app-server`, driven by messages.
        Conversation = "conversation",
        /// The terminal program in tmux, shown through ttyd; `iframe` is the older spelling.
        Terminal = "terminal",
    }
}

words! {
    /// What Codex lets the agent's commands touch (S-010).
    SandboxMode {
        /// Nothing may be written.
        ReadOnly = "read-only",
        /// The workdir, the temp directories and the `rw` grants may be written.
        WorkspaceWrite = "workspace-write",
        /// No sandbox.
        DangerFullAccess = "danger-full-access",
    }
}

words! {
    /// When Codex asks a person before it runs a command (S-009).
    ApprovalPolicy {
        /// Every command that is not known to be safe.
        Untrusted = "untrusted",
        /// Only what the sandbox stopped; gone from Codex 0.169, see [`super::SessionConfig::approval_policy`].
        OnFailure = "on-failure",
        /// Only what the agent wants to run outside the sandbox.
        OnRequest = "on-request",
        /// Nothing.
        Never = "never",
    }
}

words! {
    /// How much of a tool call a conversation page shows (S-029).
    ToolVerbosity {
        /// Nothing.
        Silent = "silent",
        /// One line.
        DescriptionOnly = "description-only",
        /// Command and output.
        Verbose = "verbose",
    }
}

words! {
    /// Whether a conversation page shows the model's reasoning (S-030).
    ThinkingVerbosity {
        /// It does not.
        Hidden = "hidden",
        /// It does.
        Visible = "visible",
    }
}

words! {
    /// How hard the model thinks (L-02). Which of them a model takes is in `model/list`; the last two came with
    /// Codex 0.169 (LAB §2).
    Effort {
        /// Not at all.
        None = "none",
        /// As little as possible.
        Minimal = "minimal",
        /// Little.
        Low = "low",
        /// The usual default.
        Medium = "medium",
        /// Much.
        High = "high",
        /// More.
        XHigh = "xhigh",
        /// As much as the model has.
        Max = "max",
        /// Beyond that, where it is offered.
        Ultra = "ultra",
    }
}

words! {
    /// How the service reaches `codex app-server` (DESIGN §7).
    Transport {
        /// `unix` where the binary has `--listen`, otherwise `stdio`.
        Auto = "auto",
        /// A Unix socket: the agent outlives the service.
        Unix = "unix",
        /// The child's pipes: for older versions of Codex.
        Stdio = "stdio",
    }
}

words! {
    /// What a grant allows (S-015).
    GrantMode {
        /// Reading, which no sandbox of Codex restricts: changes nothing (S-016).
        ReadOnly = "ro",
        /// Writing.
        ReadWrite = "rw",
    }
}

/// A directory outside of the workdir that the agent may use (S-014). Grants only widen access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub(super) path: String,
    pub(super) mode: GrantMode,
}

impl Grant {
    /// Gives the path as configured: absolute, or `~`, or below `~/`, which is the host user's real home.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Gives what is allowed there.
    pub fn mode(&self) -> GrantMode {
        self.mode
    }
}

/// The login a session starts from (S-023).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeedChoice {
    /// This seed and no other.
    Id(String),
    /// Any free seed of this pool.
    Pool(String),
}
