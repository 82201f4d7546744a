//! Reading and changing the caches.

use std::{collections::HashSet, hash::Hash, net::Ipv4Addr};

use aya::maps::{HashMap, MapData};
use oncache_abi::{
    cache::HostHeaders,
    flow::{EGRESS, FlowKey, INGRESS, Verdict},
};
use serde::{Deserialize, Serialize};

use super::{Datapath, DatapathError, clock};

/// An entry of the egress cache's first level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressAddress {
    /// Remote container.
    pub container: Ipv4Addr,
    /// Host it is behind.
    pub host: Ipv4Addr,
    /// Whether it was learned in the current epoch; a dead entry is not used.
    pub live: bool,
}

/// An entry of the egress cache's second level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressHost {
    /// The peer.
    pub host: Ipv4Addr,
    /// Whether headers were learned in the current epoch.
    pub live: bool,
    /// Underlay device, zero before anything was learned.
    pub ifindex: u32,
    /// Next hop's MAC address.
    pub next_hop: String,
    /// The peer's VTEP.
    pub vtep: String,
}

/// An entry of the ingress cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressContainer {
    /// Local container.
    pub container: Ipv4Addr,
    /// Its host-side device.
    pub ifindex: u32,
    /// Whether its MAC headers were learned in the current epoch.
    pub live: bool,
    /// The container's MAC address.
    pub destination: String,
    /// The bridge's MAC address.
    pub source: String,
}

/// An entry of the filter cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterFlow {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Local container and port.
    pub local: String,
    /// Remote container and port.
    pub remote: String,
    /// Passed by the slow path from container to NIC.
    pub egress: bool,
    /// Passed by the slow path from NIC to container.
    pub ingress: bool,
    /// `fast`, `one-way`, `lease-expired` or `stale-epoch`.
    pub state: String,
    /// Rest of the lease in milliseconds.
    pub lease_left_ms: u64,
}

/// The caches as listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caches {
    /// Egress cache, first level.
    pub addresses: Vec<EgressAddress>,
    /// Egress cache, second level.
    pub hosts: Vec<EgressHost>,
    /// Ingress cache.
    pub containers: Vec<IngressContainer>,
    /// Filter cache.
    pub flows: Vec<FilterFlow>,
}

/// How many entries each cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupancy {
    /// Filter cache: flows.
    pub flows: usize,
    /// Egress cache: remote container addresses.
    pub addresses: usize,
    /// Egress cache: hosts with learned headers.
    pub hosts: usize,
    /// Ingress cache: local containers.
    pub containers: usize,
}

pub(super) fn address(key: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be(key))
}

pub(super) fn key(address: Ipv4Addr) -> u32 {
    u32::from(address).to_be()
}

fn mac(bytes: &[u8]) -> String {
    let parts: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

fn protocol(number: u8) -> String {
    match number {
        oncache_abi::headers::TCP => "tcp".to_owned(),
        oncache_abi::headers::UDP => "udp".to_owned(),
        other => other.to_string(),
    }
}

/// The most entries that a walk over a map visits. A walk whose cursor is evicted under it begins
/// again (kernel/bpf/hashtab.c, `htab_map_get_next_key`), on a busy LRU map for ever.
const WALK_LIMIT: usize = 1 << 21;

/// The keys of a map, each once. Entries that come and go during the walk may be missed; the next
/// walk mends that.
pub(super) fn keys<K: aya::Pod + Eq + Hash, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
) -> HashSet<K> {
    map.keys().take(WALK_LIMIT).filter_map(Result::ok).collect()
}

/// What `look` finds in the entries of a map, each once: the whole of a large map is never held.
pub(super) fn found<K: aya::Pod, V: aya::Pod, T: Eq + Hash>(
    map: &HashMap<MapData, K, V>,
    look: impl Fn(K, V) -> Option<T>,
) -> HashSet<T> {
    let all = map.iter().take(WALK_LIMIT).filter_map(Result::ok);
    all.filter_map(|(key, value)| look(key, value)).collect()
}

/// The entries of a map, each once; see [`keys`].
pub(super) fn entries<K: aya::Pod + Eq + Hash, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
) -> std::collections::HashMap<K, V> {
    map.iter().take(WALK_LIMIT).filter_map(Result::ok).collect()
}

impl Datapath {
    /// Everything the caches hold.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if a map can't be read.
    pub fn caches(&self) -> Result<Caches, DatapathError> {
        let epoch = self.settings()?.epoch;
        let now = clock::now();
        let mut caches = Caches::default();
        for (container, word) in entries(&self.egress_ip) {
            caches.addresses.push(EgressAddress {
                container: address(container),
                host: address(word.address()),
                live: word.host(container, epoch).is_some(),
            });
        }
        for (host, headers) in entries(&self.egress_host) {
            let frame: Vec<u8> = headers
                .template
                .iter()
                .flat_map(|w| w.to_ne_bytes())
                .collect();
            caches.hosts.push(EgressHost {
                host: address(host),
                live: headers.is_current(epoch),
                ifindex: headers.ifindex,
                next_hop: mac(&frame[0..6]),
                vtep: mac(&frame[50..56]),
            });
        }
        for (container, local) in entries(&self.ingress) {
            caches.containers.push(IngressContainer {
                container: address(container),
                ifindex: local.ifindex,
                live: local.destination.is_current(epoch) && local.source.is_current(epoch),
                destination: mac(&local.destination.mac()),
                source: mac(&local.source.mac()),
            });
        }
        for (flow, entry) in entries(&self.filter) {
            let word = entry.verdict;
            let state = match word.judge(&flow, now, epoch) {
                Verdict::Fast => "fast",
                Verdict::OneWay => "one-way",
                Verdict::LeaseExpired => "lease-expired",
                Verdict::StaleEpoch => "stale-epoch",
                // The element went to another flow between key and value.
                Verdict::Unknown => continue,
                Verdict::Closed => continue,
            };
            let left = clock::from_ticks(word.expiry().saturating_sub(now));
            caches.flows.push(FilterFlow {
                protocol: protocol(flow.protocol),
                local: format!("{}:{}", address(flow.local), u16::from_be(flow.local_port)),
                remote: format!(
                    "{}:{}",
                    address(flow.remote),
                    u16::from_be(flow.remote_port)
                ),
                egress: word.directions() & EGRESS != 0,
                ingress: word.directions() & INGRESS != 0,
                state: state.to_owned(),
                lease_left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            });
        }
        caches.addresses.sort_by_key(|entry| entry.container);
        caches.hosts.sort_by_key(|entry| entry.host);
        caches.containers.sort_by_key(|entry| entry.container);
        caches
            .flows
            .sort_by(|a, b| (&a.local, &a.remote).cmp(&(&b.local, &b.remote)));
        Ok(caches)
    }

    /// MAC addresses of the next hops that packets are sent to by learned headers now.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the settings can't be read.
    pub fn next_hops(&self) -> Result<Vec<[u8; 6]>, DatapathError> {
        let epoch = self.settings()?.epoch;
        let live = entries(&self.egress_host).into_values();
        let live = live.filter(|headers| headers.is_current(epoch));
        Ok(live
            .map(|headers| {
                let [a, b, c, d, e, f, ..] = headers.template[0].to_ne_bytes();
                [a, b, c, d, e, f]
            })
            .collect())
    }

    /// The flows of connections that have not ended, each once.
    pub(super) fn open_flows(&self) -> HashSet<FlowKey> {
        found(&self.filter, |flow, entry| {
            (!entry.verdict.is_closed()).then_some(flow)
        })
    }

    /// How many entries each cache holds.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let learned = |headers: &&HostHeaders| headers.ifindex != 0;
        Occupancy {
            flows: self.open_flows().len(),
            addresses: keys(&self.egress_ip).len(),
            hosts: entries(&self.egress_host).values().filter(learned).count(),
            containers: keys(&self.ingress).len(),
        }
    }
}
