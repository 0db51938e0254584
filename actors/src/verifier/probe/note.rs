//! What lies beside the home of a probe, for whoever finds it: whose login it is, and what the seed was before.

use optio_codex_protocol::auth;
use optio_store::{Holder, SeedId, SeedRow, SeedStatus, SeedVersion};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::verifier::held::Held;
use crate::verifier::notes::{Intent, VERIFY};

/// The note. No secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::verifier) struct Note {
    pub(in crate::verifier) seed: SeedId,
    /// Who asks.
    pub(in crate::verifier) holder: Holder,
    /// Who had the seed before and never let it go.
    pub(in crate::verifier) last: Option<Holder>,
    /// The content of the seed that the login is from.
    pub(in crate::verifier) version: SeedVersion,
    /// Of the login that is planted.
    pub(in crate::verifier) fingerprint: String,
    /// What the seed was before it was parked.
    pub(in crate::verifier) before: Parked,
}

/// What a seed was before it was parked for a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::verifier) struct Parked {
    pub(in crate::verifier) status: SeedStatus,
    pub(in crate::verifier) reason: Option<String>,
    pub(in crate::verifier) intent: Option<Value>,
    pub(in crate::verifier) dirty: bool,
}

impl Note {
    pub(in crate::verifier) fn new(held: &Held, version: &SeedVersion, login: &[u8], before: Parked) -> Self {
        Self {
            seed: held.seed.clone(),
            holder: held.holder.clone(),
            last: held.last.clone(),
            version: version.clone(),
            fingerprint: auth::fingerprint(login).unwrap_or_default(),
            before,
        }
    }

    /// True while the seed stands as this probe parked it; what others wrote since is theirs to say.
    pub(in crate::verifier) fn parked(&self, row: &SeedRow) -> bool {
        let by = Some(self.holder.as_str());
        let intent = Intent::of(&row.metadata).is_some_and(|intent| intent.by.as_deref() == by);
        let verdict = row.metadata.get(VERIFY).is_some_and(|note| note["by"].as_str() == by);
        row.status == SeedStatus::NeedsRecovery && (intent || verdict)
    }
}
