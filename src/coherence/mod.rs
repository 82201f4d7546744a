//! What happened, and what of the caches dies of it.
//!
//! The rule that makes invalidation race-free: the change is made first, in the slow path, and only
//! then is the epoch raised. A packet that missed before the raise carries the old epoch in its
//! mark and is not learned from; one that missed after it went by the new rules.

//!
//! Whoever changes something says so by a [`Changed`], and [`Coherence::commit`] is the only way from
//! there to a new epoch: the data path gives the right to raise it to one owner, the one here.

mod cause;
mod changed;
mod commit;
pub mod hindrance;
pub mod own_tables;
mod response;
pub mod watcher;

use std::time::Duration;

pub use cause::{Cause, CauseCount, CauseCounts};
pub use changed::Changed;
pub use commit::Coherence;
pub use response::{Device, Memory, Response, Scope};

pub use crate::datapath::epoch::Hold;

use crate::{config::Config, netlink::Mac, stable_hash::fnv1a};

/// Whether packets by learned headers may go to a station that is not the next hop any more: one of
/// the MAC addresses learned as next hop is no neighbour's on the underlay device now.
#[must_use]
pub fn next_hop_has_moved(learned: &[Mac], neighbours: &[Mac]) -> bool {
    learned.iter().any(|mac| !neighbours.contains(mac))
}

/// The lease in force: what is configured, but no more than half of the shortest conntrack timeout
/// (seconds) that a flow on the fast path may have to live by. A conntrack entry is refreshed only
/// by the packet that renews the lease; without it the flow would come back as a new one.
#[must_use]
pub fn effective_lease(configured: Duration, conntrack_timeouts: &[u64]) -> Duration {
    let shortest = conntrack_timeouts
        .iter()
        .copied()
        .filter(|seconds| *seconds > 0)
        .min();
    shortest.map_or(configured, |seconds| {
        configured.min(Duration::from_secs(seconds) / 2)
    })
}

/// A number that differs where cached results learned under one configuration do not hold under
/// another (32 bits; never zero, which is what fresh maps hold).
#[must_use]
pub fn fingerprint(config: &Config) -> u32 {
    // The lease and the sizes bind nothing that was learned; a change of the policy raises the epoch
    // by itself.
    let bound = (
        &config.node,
        &config.overlay,
        &config.peers,
        config.cache.mark_mask.bits(),
    );
    let hash = fnv1a(format!("{bound:?}").as_bytes());
    let [a, b, c, d, e, f, g, h] = hash.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]) ^ u32::from_le_bytes([e, f, g, h])).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_hop_has_moved_if_its_address_is_nobodys() {
        let (one, two) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        assert!(!next_hop_has_moved(&[one], &[two, one]));
        assert!(!next_hop_has_moved(&[], &[two]));
        assert!(next_hop_has_moved(&[two, one], &[two]));
        assert!(next_hop_has_moved(&[one], &[]));
    }

    #[test]
    fn the_lease_is_half_of_the_shortest_timeout_at_most() {
        let lease = Duration::from_secs(30);
        assert_eq!(
            effective_lease(lease, &[432_000, 120, 30]),
            Duration::from_secs(15)
        );
        assert_eq!(effective_lease(lease, &[432_000, 120]), lease);
        assert_eq!(effective_lease(lease, &[]), lease);
        assert_eq!(effective_lease(lease, &[5]), Duration::from_millis(2500));
    }
}
