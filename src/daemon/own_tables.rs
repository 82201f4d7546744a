//! Copies of oncache's nftables tables, by which the watcher puts back what somebody deletes or
//! changes, at once and without nft: while they are away, rules of the network policy stop nothing.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tracing::{debug, info, warn};

use crate::{
    coherence::{Cause, Changed, watcher::Restore},
    netlink::{TableCopy, restore_tables, ruleset_generation},
    nft::TableName,
    policy::{
        self,
        opener::{SILENCE, YOUNG},
    },
    slow_path::own::names::{SOURCE_TABLE, TABLE},
    stable_hash::fnv1a,
};

/// One of oncache's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Own {
    /// `inet oncache`: the slow path.
    SlowPath,
    /// `bridge oncache`: source validation.
    Sources,
    /// `inet oncache-policy`.
    Policy,
    /// `bridge oncache-policy`.
    BridgePolicy,
}

impl Own {
    const ALL: [Self; 4] = [
        Self::SlowPath,
        Self::Sources,
        Self::Policy,
        Self::BridgePolicy,
    ];

    const fn name(self) -> TableName {
        match self {
            Self::SlowPath => TABLE,
            Self::Sources => SOURCE_TABLE,
            Self::Policy => policy::INET_TABLE,
            Self::BridgePolicy => policy::BRIDGE_TABLE,
        }
    }
}

/// A handle; its clones are one.
///
/// Whoever changes one of the tables has its copy forgotten before, or the watcher would take the change
/// for damage.
#[derive(Clone, Default)]
pub struct OwnTables(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    copies: Vec<(Own, TableCopy)>,
    /// The ruleset's when the copies were made.
    generation: Option<u32>,
    /// What the tables are made from, by a hash.
    wanted: BTreeMap<Own, u64>,
}

impl OwnTables {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the copies of tables that are about to be changed.
    pub(super) fn forget(&self, tables: &[Own]) {
        let mut kept = self.lock();
        kept.copies.retain(|(own, _)| !tables.contains(own));
        kept.wanted.retain(|own, _| !tables.contains(own));
        kept.generation = None;
    }

    pub(super) fn forget_all(&self) {
        self.forget(&Own::ALL);
    }

    /// Forgets the copies of tables that are about to be made from `source`, unless they were before.
    pub(super) fn make_from(&self, tables: &[Own], source: &impl fmt::Debug) {
        let hash = fnv1a(format!("{source:?}").as_bytes());
        let known = |own: &Own| self.lock().wanted.get(own) == Some(&hash);
        if !tables.iter().all(known) {
            self.forget(tables);
            let now = tables.iter().map(|own| (*own, hash));
            self.lock().wanted.extend(now);
        }
    }

    /// Copies the tables, which a comparison that began at `generation` has found to be as wanted.
    /// `young`: flows may have begun before a table of the bridge's that has to be made anew.
    pub(super) fn keep(&self, generation: Option<u32>, young: bool) {
        let mut kept = self.lock();
        if generation.is_none() || kept.generation == generation {
            return;
        }
        let mut copies = Vec::new();
        for own in Own::ALL {
            let TableName { family, name } = own.name();
            match TableCopy::of(family.name(), name) {
                Ok(Some(mut copy)) => {
                    if young && own == Own::BridgePolicy {
                        // ETH_P_IP, in network byte order.
                        copy.begin_with(YOUNG, &[8, 0], u64::from(SILENCE) * 1000);
                    }
                    copies.push((own, copy));
                }
                Ok(None) => {}
                Err(reason) => debug!("{reason}"),
            }
        }
        // Somebody may have changed a table since it was compared.
        if ruleset_generation() == generation {
            kept.copies = copies;
            kept.generation = generation;
        }
    }
}

impl Restore for OwnTables {
    fn is_ready(&self) -> bool {
        !self.lock().copies.is_empty()
    }

    fn restore(&self) -> Option<Changed> {
        let kept = self.lock();
        let copies: Vec<TableCopy> = kept.copies.iter().map(|(_, copy)| copy.clone()).collect();
        match restore_tables(&copies) {
            Ok(names) if names.is_empty() => Some(Changed::nothing()),
            Ok(names) => {
                info!("tables {} were hurt and are restored", names.join(", "));
                Some(Changed::new(Cause::Mended, "nftables"))
            }
            Err(reason) => {
                warn!("{reason}; the comparison mends them");
                None
            }
        }
    }
}
