//! Whether the fast path carries what it should.

use std::time::{Duration, Instant};

use crate::{
    Container, Host,
    patience::{PATIENCE, eventually},
    traffic::{self, Rounds},
};

/// Packets that the fast path has carried on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hits {
    /// From containers to the underlay.
    pub egress: u64,
    /// From the underlay to containers.
    pub ingress: u64,
}

impl Hits {
    /// Those of a host until now.
    #[must_use]
    pub fn of(host: &Host) -> Self {
        let counters = host.counters();
        Self {
            egress: counters.get("egress", "hit"),
            ingress: counters.get("ingress", "hit"),
        }
    }

    /// Whether both directions count more than `before`.
    #[must_use]
    pub fn beyond(self, before: Self) -> bool {
        self.egress > before.egress && self.ingress > before.ingress
    }
}

impl Host {
    /// The epoch in force.
    ///
    /// # Panics
    /// Without a daemon, or if its cache is off.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.status()["cache"]["epoch"]
            .as_u64()
            .expect("an epoch: is the fast path on?")
    }
}

/// Exchanges datagrams between containers of two hosts until the fast path carries them in both
/// directions on both hosts. Returns how long that took.
///
/// # Panics
/// If it does not within [`PATIENCE`], or a datagram is lost or damaged.
pub fn until_fast(hosts: [&Host; 2], from: &Container, to: &Container) -> Duration {
    let before = hosts.map(Hits::of);
    eventually("the fast path carries datagrams", PATIENCE, || {
        let report = Rounds::new(20).udp(from, to, 0);
        assert_eq!(report.completed, 20, "{report}");
        hosts
            .iter()
            .zip(before)
            .all(|(host, before)| Hits::of(host).beyond(before))
    })
}

/// Waits until containers of two hosts reach each other again, then as [`until_fast`].
///
/// # Panics
/// If they do not within [`PATIENCE`], and as [`until_fast`].
pub fn until_fast_again(hosts: [&Host; 2], from: &Container, to: &Container) -> Duration {
    let begun = Instant::now();
    eventually("the containers reach each other", PATIENCE, || {
        traffic::ping(from, to.ip, 1).lossless()
    });
    until_fast(hosts, from, to);
    begun.elapsed()
}
