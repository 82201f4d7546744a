//! Copies of oncache's nftables tables, by which the watcher puts back what somebody deletes or
//! changes, at once and without nft: while they are away, rules of the network policy stop nothing.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tracing::{debug, info, warn};

use super::{Cause, Changed};
use crate::{
    netlink::{TableCopy, restore_tables, ruleset_generation},
    nft::TableName,
    stable_hash::fnv1a,
};

/// A handle; its clones are one.
///
/// Whoever changes one of the tables has its copy forgotten before, or the watcher would take the change
/// for damage.
#[derive(Clone, Default)]
pub struct OwnTables {
    names: Arc<[TableName]>,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    copies: Vec<(TableName, TableCopy)>,
    /// The ruleset's when the copies were made.
    generation: Option<u32>,
    /// What the tables are made from, by a hash.
    wanted: HashMap<TableName, u64>,
}

impl OwnTables {
    /// Tables of these names, none of which is copied yet.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = TableName>) -> Self {
        Self {
            names: names.into_iter().collect(),
            kept: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the copies of tables that are about to be changed.
    pub fn forget(&self, tables: &[TableName]) {
        let mut kept = self.lock();
        kept.copies.retain(|(name, _)| !tables.contains(name));
        kept.wanted.retain(|name, _| !tables.contains(name));
        kept.generation = None;
    }

    /// Forgets all copies.
    pub fn forget_all(&self) {
        self.forget(&self.names);
    }

    /// Forgets the copies of tables that are about to be made from `source`, unless they were before.
    pub fn make_from(&self, tables: &[TableName], source: &impl fmt::Debug) {
        let hash = fnv1a(format!("{source:?}").as_bytes());
        let known = |name: &TableName| self.lock().wanted.get(name) == Some(&hash);
        if !tables.iter().all(known) {
            self.forget(tables);
            let now = tables.iter().map(|name| (*name, hash));
            self.lock().wanted.extend(now);
        }
    }

    /// Copies the tables, which a comparison that began at `generation` has found to be as wanted.
    /// `prepare` changes a copy where a table made from it has to begin otherwise.
    pub fn keep(&self, generation: Option<u32>, prepare: impl Fn(TableName, &mut TableCopy)) {
        let mut kept = self.lock();
        if generation.is_none() || kept.generation == generation {
            return;
        }
        let mut copies = Vec::new();
        for table in self.names.iter().copied() {
            match TableCopy::of(table.family.name(), table.name) {
                Ok(Some(mut copy)) => {
                    prepare(table, &mut copy);
                    copies.push((table, copy));
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

    /// Whether there is anything to put back from.
    pub(super) fn is_ready(&self) -> bool {
        !self.lock().copies.is_empty()
    }

    /// Puts back what is hurt. None if it can't be.
    pub(super) fn restore(&self) -> Option<Changed> {
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
