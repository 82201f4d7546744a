//! Reading and changing the caches.

use std::{collections::HashSet, net::Ipv4Addr};

use aya::maps::{HashMap, MapData, MapError};
use oncache_abi::{
    cache::{HostHeaders, LocalContainer},
    flow::{EGRESS, FlowKey, INGRESS, Verdict},
};
use serde::{Deserialize, Serialize};

use super::{Datapath, DatapathError, clock, map_error};

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

fn address(key: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be(key))
}

fn key(address: Ipv4Addr) -> u32 {
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

/// The keys of a map. Entries that come and go during the walk may be missed or seen twice; errors
/// of single steps (an entry vanished under the cursor) end it early, which the next walk mends.
fn keys<K: aya::Pod, V: aya::Pod>(map: &HashMap<MapData, K, V>) -> Vec<K> {
    map.keys().filter_map(Result::ok).collect()
}

fn remove_key<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    name: &'static str,
) -> Result<bool, DatapathError> {
    match map.remove(key) {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(false)
        }
        Err(error) => Err(map_error("remove from", name)(error)),
    }
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
        for (container, word) in self.egress_ip.iter().filter_map(Result::ok) {
            caches.addresses.push(EgressAddress {
                container: address(container),
                host: address(word.address()),
                live: word.host(container, epoch).is_some(),
            });
        }
        for (host, headers) in self.egress_host.iter().filter_map(Result::ok) {
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
        for (container, local) in self.ingress.iter().filter_map(Result::ok) {
            caches.containers.push(IngressContainer {
                container: address(container),
                ifindex: local.ifindex,
                live: local.destination.is_current(epoch) && local.source.is_current(epoch),
                destination: mac(&local.destination.mac()),
                source: mac(&local.source.mac()),
            });
        }
        for (flow, word) in self.filter.iter().filter_map(Result::ok) {
            let state = match word.judge(&flow, now, epoch) {
                Verdict::Fast => "fast",
                Verdict::OneWay => "one-way",
                Verdict::LeaseExpired => "lease-expired",
                Verdict::StaleEpoch => "stale-epoch",
                // The element went to another flow between key and value.
                Verdict::Unknown => continue,
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

    /// How many entries each cache holds.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let learned = |headers: &HostHeaders| headers.ifindex != 0;
        Occupancy {
            flows: keys(&self.filter).len(),
            addresses: keys(&self.egress_ip).len(),
            hosts: self
                .egress_host
                .iter()
                .filter(|entry| entry.as_ref().is_ok_and(|(_, headers)| learned(headers)))
                .count(),
            containers: keys(&self.ingress).len(),
        }
    }

    /// Makes the egress cache's hosts exactly `peers`, keeping what was learned of those that stay.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be written.
    pub fn set_peers(&mut self, peers: &HashSet<Ipv4Addr>) -> Result<bool, DatapathError> {
        let present: HashSet<Ipv4Addr> = keys(&self.egress_host).into_iter().map(address).collect();
        for gone in present.difference(peers) {
            remove_key(&mut self.egress_host, &key(*gone), "EGRESS_HOST")?;
        }
        for new in peers.difference(&present) {
            self.egress_host
                .insert(key(*new), HostHeaders::UNLEARNED, 0)
                .map_err(map_error("write", "EGRESS_HOST"))?;
        }
        Ok(present != *peers)
    }

    /// Makes the ingress cache's containers exactly `containers` (address and host-side ifindex),
    /// keeping what was learned of those that stay. Returns whether anything changed.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be written.
    pub fn set_containers(
        &mut self,
        containers: &[(Ipv4Addr, u32)],
    ) -> Result<bool, DatapathError> {
        let mut changed = false;
        let wanted: HashSet<u32> = containers.iter().map(|(ip, _)| key(*ip)).collect();
        for present in keys(&self.ingress) {
            if !wanted.contains(&present) {
                self.forget_container(address(present))?;
                changed = true;
            }
        }
        for (ip, ifindex) in containers {
            let present = self.ingress.get(&key(*ip), 0).ok();
            if present.is_none_or(|entry| entry.ifindex != *ifindex) {
                self.ingress
                    .insert(key(*ip), LocalContainer::unlearned(*ifindex), 0)
                    .map_err(map_error("write", "INGRESS"))?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Removes a local container and its flows from the caches.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if a map can't be written.
    pub fn forget_container(&mut self, ip: Ipv4Addr) -> Result<(), DatapathError> {
        remove_key(&mut self.ingress, &key(ip), "INGRESS")?;
        self.remove_flows(|flow| flow.local == key(ip))?;
        self.sweep_egress()
    }

    /// Empties the learned caches; what the daemon owns (peers, containers) stays, unlearned.
    /// Returns how many flows were removed.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if a map can't be written.
    pub fn flush(&mut self) -> Result<usize, DatapathError> {
        let flows = self.remove_flows(|_| true)?;
        for ip in keys(&self.egress_ip) {
            remove_key(&mut self.egress_ip, &ip, "EGRESS_IP")?;
        }
        for host in keys(&self.egress_host) {
            self.egress_host
                .insert(host, HostHeaders::UNLEARNED, 0)
                .map_err(map_error("write", "EGRESS_HOST"))?;
        }
        for (ip, entry) in self
            .ingress
            .iter()
            .filter_map(Result::ok)
            .collect::<Vec<_>>()
        {
            self.ingress
                .insert(ip, LocalContainer::unlearned(entry.ifindex), 0)
                .map_err(map_error("write", "INGRESS"))?;
        }
        Ok(flows)
    }

    /// Removes flows that have been dead for `grace` ticks, and egress entries that no flow uses.
    /// A dead entry costs nothing but its place; the grace keeps a flow that is about to renew its
    /// lease from being removed while it does.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if a map can't be written.
    pub fn sweep(&mut self, grace: u64) -> Result<usize, DatapathError> {
        let now = clock::now();
        let dead: HashSet<FlowKey> = self
            .filter
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, word)| word.expiry() + grace < now)
            .map(|(flow, _)| flow)
            .collect();
        let removed = self.remove_flows(|flow| dead.contains(flow))?;
        self.sweep_egress()?;
        Ok(removed)
    }

    fn remove_flows(&mut self, chosen: impl Fn(&FlowKey) -> bool) -> Result<usize, DatapathError> {
        let mut removed = 0;
        for flow in keys(&self.filter).into_iter().filter(|flow| chosen(flow)) {
            removed += usize::from(remove_key(&mut self.filter, &flow, "FILTER")?);
        }
        Ok(removed)
    }

    /// Removes egress addresses that no flow goes to, and what was learned of hosts that no address
    /// is behind.
    fn sweep_egress(&mut self) -> Result<(), DatapathError> {
        let remotes: HashSet<u32> = keys(&self.filter).iter().map(|flow| flow.remote).collect();
        let mut hosts = HashSet::new();
        for (ip, word) in self
            .egress_ip
            .iter()
            .filter_map(Result::ok)
            .collect::<Vec<_>>()
        {
            if remotes.contains(&ip) {
                hosts.insert(word.address());
            } else {
                remove_key(&mut self.egress_ip, &ip, "EGRESS_IP")?;
            }
        }
        for (host, headers) in self
            .egress_host
            .iter()
            .filter_map(Result::ok)
            .collect::<Vec<_>>()
        {
            if headers.ifindex != 0 && !hosts.contains(&host) {
                self.egress_host
                    .insert(host, HostHeaders::UNLEARNED, 0)
                    .map_err(map_error("write", "EGRESS_HOST"))?;
            }
        }
        Ok(())
    }
}
