//! What happened, and what of the caches dies of it.
//!
//! The rule that makes invalidation race-free: the change is made first, in the slow path, and only
//! then is the epoch raised. A packet that missed before the raise carries the old epoch in its
//! mark and is not learned from; one that missed after it went by the new rules.

use std::time::Duration;

use crate::{
    config::Config,
    netlink::{Event, Mac},
    stable_hash::fnv1a,
};

/// What a notification asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// Nothing of ours can depend on it.
    Ignore,
    /// The wanted state may be hurt: compare and mend. Mending raises the epoch.
    Reconcile,
    /// Cached verdicts may be wrong already: raise the epoch at once, then compare and mend.
    InvalidateAndReconcile,
}

/// How the daemon answers a notification. `own` tells whether an ifindex is the underlay's or one
/// of oncache's own devices.
#[must_use]
pub fn respond(event: &Event, own: impl Fn(u32) -> bool) -> Response {
    match event {
        // Rules of any table may have refused what the filter cache allows; lost events may have
        // been of that kind.
        Event::Ruleset | Event::Overrun => Response::InvalidateAndReconcile,
        // A device that went may have been one of ours, whose index is no longer known.
        Event::Link { .. } => Response::Reconcile,
        // Learned headers lead where the routes of then led.
        Event::Route { device: None } => Response::InvalidateAndReconcile,
        Event::Route {
            device: Some(device),
        }
        | Event::Address { device } => {
            if own(*device) {
                Response::InvalidateAndReconcile
            } else {
                Response::Ignore
            }
        }
        // Mostly a change of state without one of address: the reconciliation looks (see
        // [`next_hop_has_moved`]).
        Event::Neighbour { device } => {
            if own(*device) {
                Response::Reconcile
            } else {
                Response::Ignore
            }
        }
    }
}

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
    fn rules_invalidate_at_once() {
        let own = |_| false;
        assert_eq!(
            respond(&Event::Ruleset, own),
            Response::InvalidateAndReconcile
        );
        assert_eq!(
            respond(&Event::Overrun, own),
            Response::InvalidateAndReconcile
        );
    }

    #[test]
    fn other_devices_neighbours_are_no_concern() {
        let own = |device| device == 7;
        assert_eq!(
            respond(&Event::Neighbour { device: 7 }, own),
            Response::Reconcile
        );
        assert_eq!(
            respond(&Event::Neighbour { device: 8 }, own),
            Response::Ignore
        );
        assert_eq!(
            respond(&Event::Route { device: Some(8) }, own),
            Response::Ignore
        );
        for changed in [
            Event::Route { device: None },
            Event::Route { device: Some(7) },
            Event::Address { device: 7 },
        ] {
            assert_eq!(respond(&changed, own), Response::InvalidateAndReconcile);
        }
        assert_eq!(
            respond(&Event::Link { device: 8 }, own),
            Response::Reconcile
        );
    }

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
