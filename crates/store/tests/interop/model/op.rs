//! What may happen to the seeds, in any order.

use optio_store::{Holder, SeedStatus};
use proptest::prelude::*;

/// The first seed of each pool was stored by Python, the others by us.
pub(super) const POOLS: [&str; 2] = ["p", "q"];
pub(super) const SEEDS: usize = 4;

/// Who does something: one of two sessions on each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Python(u8),
    Us(u8),
}

impl By {
    pub(super) fn holder(self) -> Holder {
        match self {
            Self::Python(i) => Holder::stored(format!("codex-{i}")),
            Self::Us(i) => Holder::stored(format!("ses_{i}#0123456789abcdef0123456789abcdef")),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Op {
    Acquire {
        by: By,
        pool: usize,
    },
    AcquireOne {
        by: u8,
        seed: usize,
    },
    Recover {
        by: u8,
        seed: usize,
    },
    Renew {
        by: By,
        seed: usize,
    },
    Release {
        by: By,
        seed: usize,
    },
    /// Python's save asks for no lease (T-054). Ours names the version it last saw.
    Save {
        by: By,
        seed: usize,
        token: u8,
    },
    Look {
        by: u8,
        seed: usize,
    },
    Judge {
        by: By,
        seed: usize,
        status: SeedStatus,
    },
    Assign {
        by: By,
        seed: usize,
        pool: usize,
    },
    Note {
        by: By,
        seed: usize,
        key: u8,
        value: i64,
    },
    /// A minute passes without a renewal.
    Expire {
        seed: usize,
    },
    Reap,
}

pub(super) fn any() -> impl Strategy<Value = Op> {
    let who = || prop_oneof![(0..2_u8).prop_map(By::Python), (0..2_u8).prop_map(By::Us)];
    let pair = || (who(), 0..SEEDS);
    let ours = || (0..2_u8, 0..SEEDS);
    let status =
        prop_oneof![Just(SeedStatus::Alive), Just(SeedStatus::Dead), Just(SeedStatus::NeedsRecovery)];
    prop_oneof![
        8 => (who(), 0..POOLS.len()).prop_map(|(by, pool)| Op::Acquire { by, pool }),
        2 => ours().prop_map(|(by, seed)| Op::AcquireOne { by, seed }),
        3 => ours().prop_map(|(by, seed)| Op::Recover { by, seed }),
        5 => pair().prop_map(|(by, seed)| Op::Renew { by, seed }),
        5 => pair().prop_map(|(by, seed)| Op::Release { by, seed }),
        6 => (pair(), 0..5_u8).prop_map(|((by, seed), token)| Op::Save { by, seed, token }),
        3 => ours().prop_map(|(by, seed)| Op::Look { by, seed }),
        2 => (pair(), status).prop_map(|((by, seed), status)| Op::Judge { by, seed, status }),
        1 => (pair(), 0..POOLS.len()).prop_map(|((by, seed), pool)| Op::Assign { by, seed, pool }),
        2 => (pair(), 0..2_u8, 0..9_i64).prop_map(|((by, seed), key, value)| Op::Note { by, seed, key, value }),
        5 => (0..SEEDS).prop_map(|seed| Op::Expire { seed }),
        1 => Just(Op::Reap),
    ]
}
