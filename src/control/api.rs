//! What goes over the socket.

use std::{net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{
    coherence::CauseCount,
    config::Rule,
    datapath::{
        Attachment,
        caches::Occupancy,
        counters::{Count, FlowTurnover},
    },
    network::NewContainer,
    policy::order::Origin,
    state::InnerRoute,
};

/// A container to be added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddContainer {
    /// Its name.
    pub name: String,
    /// Path of its network namespace; one called like the container is made without.
    #[serde(default)]
    pub netns: Option<PathBuf>,
    /// Its address; the next free one without.
    #[serde(default)]
    pub ip: Option<Ipv4Addr>,
    /// Name of the device inside.
    #[serde(default = "default_ifname")]
    pub ifname: String,
    /// What it reaches by the gateway; a default route without.
    #[serde(default)]
    pub route: InnerRoute,
}

impl From<AddContainer> for NewContainer {
    fn from(asked: AddContainer) -> Self {
        let AddContainer {
            name,
            netns,
            ip,
            ifname,
            route,
        } = asked;
        Self {
            name,
            netns,
            ip,
            ifname,
            route,
        }
    }
}

/// The device name inside a container that gives none.
#[must_use]
pub fn default_ifname() -> String {
    "eth0".to_owned()
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerInfo {
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Name of the device inside.
    pub ifname: String,
    /// Name of the host-side device.
    pub device: String,
    /// What it reaches by the gateway.
    #[serde(default)]
    pub route: InnerRoute,
    /// What keeps its flows from being carried by the fast path: device and what is there.
    #[serde(default)]
    pub not_carried: Vec<String>,
}

/// Something that may drop, shape, mirror or rewrite what the fast path would carry past it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotCarried {
    /// The device, or `ipsec`.
    pub device: String,
    /// What is there.
    pub reason: String,
    /// Whose flows are not carried for it.
    pub flows: String,
}

/// What `oncache status` shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Name of this host.
    pub node: String,
    /// Underlay device.
    pub underlay: String,
    /// Underlay address.
    pub address: Ipv4Addr,
    /// This host's containers' subnet.
    pub subnet: Ipv4Net,
    /// The network of all containers.
    pub network: Ipv4Net,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Largest IP packet of a container, in bytes.
    pub mtu: u32,
    /// The other hosts.
    pub peers: Vec<PeerInfo>,
    /// Containers of this host.
    pub containers: Vec<ContainerInfo>,
    /// The fast path; none where it is switched off.
    pub cache: Option<CacheStatus>,
    /// What is in the way of the fast path.
    #[serde(default)]
    pub not_carried: Vec<NotCarried>,
    /// What the operator should know: one line each.
    pub warnings: Vec<String>,
}

/// Another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Its name.
    pub name: String,
    /// Its underlay address.
    pub address: Ipv4Addr,
    /// Its containers' subnet.
    pub subnet: Ipv4Net,
    /// Addresses outside of it whose containers have moved there.
    #[serde(default)]
    pub moved: Vec<Ipv4Addr>,
}

/// The fast path as it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// The current epoch.
    pub epoch: u32,
    /// The lease in force in milliseconds.
    pub lease_ms: u64,
    /// The connection timeout that it is half of, if it is shorter than configured.
    #[serde(default)]
    pub lease_bound: Option<String>,
    /// `tcx` or `clsact`.
    pub attach: String,
    /// Pinned links; empty with clsact.
    pub programs: Vec<Attachment>,
    /// Entries of each cache.
    pub entries: Occupancy,
    /// Room of the filter cache.
    pub flows: u32,
    /// Hit ratios.
    pub hit_ratio: HitRatio,
}

/// Counters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Counters that are not zero, by program and reason.
    pub counters: Vec<Count>,
    /// Hit ratios.
    pub hit_ratio: HitRatio,
    /// Flows that came into the filter cache and left it; all zero where there is no fast path.
    pub flows: FlowTurnover,
    /// What is in the way of the fast path.
    #[serde(default)]
    pub not_carried: Vec<NotCarried>,
    /// Packets that the slow path refused because they are not what their sender may send: the sum of
    /// `refused`, but for the reason `ipv6`.
    pub spoofed: u64,
    /// Packets that were refused so, by reason; those that are not zero. Since the tables that count them
    /// were made.
    #[serde(default)]
    pub refused: Vec<RefusedCount>,
    /// How often each cause has raised the epoch since the daemon's start; those that are not zero.
    pub invalidations: Vec<CauseCount>,
    /// How many seconds ago that start was.
    pub invalidations_since_s: u64,
}

/// How many packets were refused for a reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedCount {
    /// The reason's name.
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// One line for people.
    pub meaning: String,
}

/// Packets carried by the fast path, of all packets between containers of two hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HitRatio {
    /// Container to NIC, 0 to 1; none before the first packet.
    pub egress: Option<f64>,
    /// NIC to container, 0 to 1; none before the first packet.
    pub ingress: Option<f64>,
}

/// Reasons of packets that are not between containers of two hosts: ARP, the world outside, the
/// NIC's other packets, containers of the same host.
const ELSEWHERE: [&str; 4] = ["not-ipv4", "not-overlay", "outside-network", "not-gateway"];

impl HitRatio {
    /// Computes the ratios from counters.
    #[must_use]
    pub fn of(counters: &[Count]) -> Self {
        let ratio = |program: &str| {
            let (mut hits, mut all) = (0, 0);
            for count in counters.iter().filter(|count| count.program == program) {
                if !ELSEWHERE.contains(&&*count.reason) {
                    all += count.packets;
                }
                if count.reason == "hit" {
                    hits = count.packets;
                }
            }
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
            (all != 0).then(|| hits as f64 / all as f64)
        };
        Self {
            egress: ratio("egress"),
            ingress: ratio("ingress"),
        }
    }
}

/// How many flows a flush removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Entries of the filter cache.
    pub flows: usize,
}

/// Run-time rules to take the place of all present ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyPolicy {
    /// In order; the first that matches decides.
    pub rules: Vec<Rule>,
}

/// How many rules are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Of those applied at run time.
    pub runtime: usize,
    /// Of those of the configuration file.
    pub file: usize,
}

/// The network policy in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// In the order in which they are tried.
    pub rules: Vec<PolicyRule>,
    /// Frames between containers of this host that rules can't judge, dropped because a rule denies
    /// something.
    pub unjudged: u64,
}

/// A rule in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Where it comes from.
    pub origin: Origin,
    /// What it says.
    #[serde(flatten)]
    pub rule: Rule,
    /// Packets of the slow path that it decided about.
    pub packets: u64,
    /// Containers that it names and that are not on this host: it matches nothing until they are.
    pub absent: Vec<String>,
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One line: what, which object, why, what to do.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(program: &str, reason: &str, packets: u64) -> Count {
        Count {
            program: program.into(),
            reason: reason.into(),
            packets,
            meaning: String::new(),
        }
    }

    #[test]
    fn the_ratio_counts_overlay_packets_only() {
        let counters = [
            count("egress", "hit", 90),
            count("egress", "no-flow", 10),
            count("egress", "outside-network", 500),
            count("egress", "not-gateway", 500),
            count("egress_init", "learned", 7),
        ];
        assert_eq!(
            HitRatio::of(&counters),
            HitRatio {
                egress: Some(0.9),
                ingress: None
            }
        );
    }
}
