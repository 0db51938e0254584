//! Ids: minted here, typed, and safe as a file name and in a URL.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Crockford's base 32, as ULIDs are written: time-ordered, 26 characters, no look-alikes.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

fn ulid() -> String {
    base32(Uuid::now_v7().as_u128())
}

fn base32(bits: u128) -> String {
    (0..26).rev().map(|i| char::from(ALPHABET[(bits >> (5 * i)) as usize & 31])).collect()
}

/// Why a text is no id of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no {what} id: {rule}")]
pub struct BadId {
    what: &'static str,
    value: String,
    rule: &'static str,
}

macro_rules! prefixed_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Mints a new one, greater than every one minted before by this process in an earlier millisecond.
            pub fn mint() -> Self {
                Self(format!(concat!($prefix, "{}"), ulid()))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadId;
            fn from_str(value: &str) -> Result<Self, BadId> {
                let rule = concat!("it must be ", $prefix, " and 26 digits or capital letters");
                match value.strip_prefix($prefix) {
                    Some(rest) if rest.len() == 26 && rest.bytes().all(|b| ALPHABET.contains(&b)) => {
                        Ok(Self(value.to_owned()))
                    }
                    _ => Err(BadId { what: $what, value: value.chars().take(64).collect(), rule }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(value: String) -> Result<Self, BadId> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

prefixed_id!(
    /// One session, across its runs.
    SessionId, "session", "ses_"
);
prefixed_id!(
    /// One launch of Codex for a session.
    RunId, "run", "run_"
);
prefixed_id!(
    /// One stored workdir.
    SnapshotId, "snapshot", "snap_"
);
impl SnapshotId {
    /// The id of a snapshot that a MongoDB knows by this ObjectId: the same number, so that nothing has to be kept
    /// beside the rows that Python writes too (T-159).
    pub(crate) fn of_object(id: [u8; 12]) -> Self {
        let number = id.iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
        Self(format!("snap_{}", base32(number)))
    }

    /// The ObjectId that [`SnapshotId::of_object`] was given; `None` for an id of another store.
    pub(crate) fn object(&self) -> Option<[u8; 12]> {
        let digits = self.0.strip_prefix("snap_")?.bytes();
        let mut number = 0_u128;
        for digit in digits {
            let value = ALPHABET.iter().position(|known| *known == digit)?;
            number = number.checked_mul(32)? | value as u128;
        }
        let bytes = number.to_be_bytes();
        let (zeros, id) = bytes.split_at(4);
        if zeros.iter().any(|byte| *byte != 0) { None } else { id.try_into().ok() }
    }
}

prefixed_id!(
    /// One question of an agent to a person.
    ApprovalId, "approval", "apr_"
);

impl ApprovalId {
    /// The id of the question that these words tell from all others: the same words have the same id, also after a crash that
    /// lost the record of it, so that whoever has seen it can still answer it.
    pub fn of(words: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for word in words {
            hash.update((word.len() as u64).to_be_bytes());
            hash.update(word);
        }
        let bits = hash.finalize().iter().take(16).fold(0, |bits, byte| bits << 8 | u128::from(*byte));
        Self(format!("apr_{}", base32(bits)))
    }
}

prefixed_id!(
    /// One attempt to get a new login by a code.
    LoginId, "login", "log_"
);

/// One stored login: 24 lower-case hex digits, as a MongoDB ObjectId is written (T-005).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SeedId(String);

impl SeedId {
    /// Mints a new one: seconds since 1970 in the first 8 digits, as ObjectIds have it, then random ones.
    pub fn mint() -> Self {
        let seconds = jiff::Timestamp::now().as_second() as u32;
        let random = Uuid::new_v4().simple().to_string();
        Self(format!("{seconds:08x}{}", &random[..16]))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for SeedId {
    type Err = BadId;
    fn from_str(value: &str) -> Result<Self, BadId> {
        if value.len() == 24 && value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Self(value.to_owned()));
        }
        let value = value.chars().take(64).collect();
        Err(BadId { what: "seed", value, rule: "it must be 24 digits or letters a to f" })
    }
}

impl TryFrom<String> for SeedId {
    type Error = BadId;
    fn try_from(value: String) -> Result<Self, BadId> {
        value.parse()
    }
}

impl From<SeedId> for String {
    fn from(id: SeedId) -> String {
        id.0
    }
}

impl std::fmt::Display for SeedId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who holds a lease: one run of one session, never two (T-105, INV-10). Python peers write other strings, which we
/// only compare.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Holder(String);

impl Holder {
    /// A holder for one run of `session`: `<session id>#<128 random bits in hex>`.
    pub fn mint(session: &SessionId) -> Self {
        Self(format!("{session}#{}", Uuid::new_v4().simple()))
    }

    /// A holder that is no session, e.g. `recovery`.
    pub fn mint_for(purpose: &str) -> Self {
        Self(format!("{purpose}#{}", Uuid::new_v4().simple()))
    }

    /// A holder string as it was read from a store.
    pub fn stored(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The session that holds, if a session of ours does.
    pub fn session(&self) -> Option<SessionId> {
        self.0.split_once('#')?.0.parse().ok()
    }

    /// The holder as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn minted_ids_parse_and_sort_by_time() {
        let a = SessionId::mint();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let b = SessionId::mint();
        assert!(a < b, "{a} {b}");
        assert_eq!(a.as_str().parse::<SessionId>().as_ref(), Ok(&a));
        assert!(SeedId::mint().as_str().parse::<SeedId>().is_ok());
    }

    #[test]
    fn ids_that_could_be_paths_are_refused() {
        for bad in ["", ".", "..", "ses_", "ses_../../etc/passwd", "run_01ARZ3NDEKTSV4RRFFQ69G5FAV", "-rf"] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad}");
        }
        assert!("ses_01ARZ3NDEKTSV4RRFFQ69G5FA\n".parse::<SessionId>().is_err());
        assert!("0123456789abcdef0123456G".parse::<SeedId>().is_err());
    }

    #[test]
    fn the_same_question_has_the_same_id_and_another_has_another() {
        let id = ApprovalId::of(&["run", "7", "a"]);
        assert_eq!(id, ApprovalId::of(&["run", "7", "a"]));
        assert_eq!(id.as_str().parse::<ApprovalId>().as_ref(), Ok(&id));
        for other in [&["run", "7", "b"][..], &["run", "7a", ""], &["run7", "", "a"], &["run", "7", "a", ""]]
        {
            assert_ne!(id, ApprovalId::of(other), "{other:?}");
        }
    }

    #[test]
    fn an_object_id_is_a_snapshot_id_and_back() {
        for id in [[0; 12], [255; 12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]] {
            let snapshot = SnapshotId::of_object(id);
            assert!(snapshot.as_str().parse::<SnapshotId>().is_ok(), "{snapshot}");
            assert_eq!(snapshot.object(), Some(id));
        }
        assert_eq!(SnapshotId::mint().object(), None, "minted ids are larger");
        let largest = format!("snap_{}", "Z".repeat(26)).parse::<SnapshotId>().unwrap();
        assert_eq!(largest.object(), None);
    }

    #[test]
    fn a_holder_names_its_session() {
        let id = SessionId::mint();
        assert_eq!(Holder::mint(&id).session(), Some(id));
        assert_eq!(Holder::stored("task-7").session(), None);
    }
}
