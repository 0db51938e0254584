//! Asking Codex itself whether a login is good, once (T-242…T-250): what it is asked, with which environment, and what its
//! answer proves.

mod environment;
mod output;
mod provider;

pub use environment::environment;
pub use output::{Heard, heard};
pub use provider::uses_login;

/// What Codex is asked. The answer's word is not in it, so that an echo of the question proves nothing (T-244).
pub const PROMPT: &str = "Answer in one word and use no tools: which city is the capital of France?";

/// The word that only somebody who was let in can say.
const ANSWER: &str = "paris";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_does_not_have_its_answer_in_it() {
        assert!(!PROMPT.to_lowercase().contains(ANSWER));
    }
}
