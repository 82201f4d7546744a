//! Reading and changing the caches.

use std::{
    collections::{HashMap as Table, HashSet},
    hash::Hash,
    net::Ipv4Addr,
};

use aya::maps::{HashMap, MapData};
use oncache_abi::{
    flow::{EGRESS, FlowKey, INGRESS, Verdict},
    peer::{PeerHeaders, PeerNumber},
    vxlan::INNER_FRAME,
};
use serde::{Deserialize, Serialize};

use super::{Datapath, DatapathError, clock};

/// A remote container that flows lead to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedRemote {
    /// Its address.
    pub container: Ipv4Addr,
    /// The peer that it was last seen behind.
    pub host: Ipv4Addr,
    /// Whether a flow has learned so in the current epoch.
    pub live: bool,
}

/// An entry of `PEERS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedPeer {
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

/// An entry of `CONTAINERS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedContainer {
    /// Local container.
    pub container: Ipv4Addr,
    /// Its host-side device.
    pub ifindex: u32,
    /// Whether its MAC address was learned in the current epoch.
    pub live: bool,
    /// The container's MAC address.
    pub destination: String,
    /// The bridge's MAC address, which frames must be from to be learned of; zero like the container's while nothing
    /// is learned.
    pub source: String,
}

/// An entry of `FLOWS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedFlow {
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
    /// Remote containers, as the flows tell of them.
    pub addresses: Vec<ListedRemote>,
    /// Peers.
    pub hosts: Vec<ListedPeer>,
    /// Local containers.
    pub containers: Vec<ListedContainer>,
    /// Flows.
    pub flows: Vec<ListedFlow>,
}

/// How many entries each cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupancy {
    /// Flows.
    pub flows: usize,
    /// Remote containers that flows lead to.
    pub addresses: usize,
    /// Peers with learned headers.
    pub hosts: usize,
    /// Local containers.
    pub containers: usize,
}

pub(super) fn address(key: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be(key))
}

pub(super) fn key(address: Ipv4Addr) -> u32 {
    u32::from(address).to_be()
}

pub(super) fn peer_address(peer: PeerNumber) -> Ipv4Addr {
    address(peer.0)
}

pub(super) fn peer_number(address: Ipv4Addr) -> PeerNumber {
    PeerNumber(key(address))
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

/// The entries of a map; some come twice where others are evicted meanwhile.
fn walk<K: aya::Pod, V: aya::Pod>(map: &HashMap<MapData, K, V>) -> impl Iterator<Item = (K, V)> {
    map.iter().take(WALK_LIMIT).filter_map(Result::ok)
}

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
    walk(map)
        .filter_map(|(key, value)| look(key, value))
        .collect()
}

/// The entries of a map, each once; see [`keys`].
pub(super) fn entries<K: aya::Pod + Eq + Hash, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
) -> Table<K, V> {
    walk(map).collect()
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
        for (peer, headers) in entries(&self.peers) {
            let frame: Vec<u8> = headers
                .template
                .iter()
                .flat_map(|w| w.to_ne_bytes())
                .collect();
            caches.hosts.push(ListedPeer {
                host: peer_address(peer),
                live: headers.is_current(epoch),
                ifindex: headers.ifindex,
                next_hop: mac(&frame[..6]),
                vtep: mac(&frame[INNER_FRAME..INNER_FRAME + 6]),
            });
        }
        for (container, local) in entries(&self.containers) {
            let learned = local.mac.mac();
            let source = match learned {
                [0, 0, 0, 0, 0, 0] => learned,
                _ => self.gateway,
            };
            caches.containers.push(ListedContainer {
                container: address(container),
                ifindex: local.ifindex,
                live: local.mac.is_current(epoch),
                destination: mac(&learned),
                source: mac(&source),
            });
        }
        let mut remotes = Table::new();
        for (flow, entry) in entries(&self.flows) {
            if let Some(host) = entry.leads_to() {
                let host = peer_address(host);
                let live = entry.peer.value(&flow, epoch).is_some();
                // Of several, one that counts.
                let known = remotes.entry(flow.remote).or_insert((host, live));
                if live && !known.1 {
                    *known = (host, live);
                }
            }
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
            caches.flows.push(ListedFlow {
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
        caches.addresses = remotes
            .into_iter()
            .map(|(container, (host, live))| ListedRemote {
                container: address(container),
                host,
                live,
            })
            .collect();
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
        let live = entries(&self.peers).into_values();
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
        found(&self.flows, |flow, entry| {
            (!entry.verdict.is_closed()).then_some(flow)
        })
    }

    /// How many entries each cache holds.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let learned = |headers: &&PeerHeaders| headers.ifindex != 0;
        let (mut open, mut remotes) = (HashSet::new(), HashSet::new());
        for (flow, entry) in walk(&self.flows) {
            if !entry.verdict.is_closed() {
                open.insert(flow);
            }
            if entry.leads_to().is_some() {
                remotes.insert(flow.remote);
            }
        }
        Occupancy {
            flows: open.len(),
            addresses: remotes.len(),
            hosts: entries(&self.peers).values().filter(learned).count(),
            containers: keys(&self.containers).len(),
        }
    }
}
