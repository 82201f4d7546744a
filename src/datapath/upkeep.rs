//! Changing the caches: what the daemon owns of them, and what it clears away.

use std::{collections::HashSet, net::Ipv4Addr};

use aya::maps::{HashMap, MapData, MapError};
use oncache_abi::{
    cache::{HostHeaders, LocalContainer, MacWord},
    entry::FlowEntry,
    flow::FlowKey,
};

use super::{
    Datapath, DatapathError,
    caches::{address, entries, found, key, keys},
    clock, map_error,
};

/// A local container as the programs are told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its host-side device.
    pub ifindex: u32,
    /// Nothing is to be learned of its flows.
    pub withheld: bool,
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
    /// Makes the egress cache's hosts exactly `peers`, keeping what was learned of those that stay.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be written.
    pub fn set_peers(&mut self, peers: &HashSet<Ipv4Addr>) -> Result<bool, DatapathError> {
        let present: HashSet<Ipv4Addr> = keys(&self.egress_host).into_iter().map(address).collect();
        let gone: HashSet<u32> = present.difference(peers).map(|gone| key(*gone)).collect();
        for host in &gone {
            remove_key(&mut self.egress_host, host, "EGRESS_HOST")?;
        }
        if !gone.is_empty() {
            self.forget_behind(&gone)?;
        }
        for new in peers.difference(&present) {
            self.egress_host
                .insert(key(*new), HostHeaders::UNLEARNED, 0)
                .map_err(map_error("write", "EGRESS_HOST"))?;
        }
        Ok(present != *peers)
    }

    /// Makes the ingress cache's containers exactly `containers`, keeping what was learned of those that
    /// stay as they are. Returns whether anything changed. Flows of one that is withheld now are carried
    /// until the epoch is raised.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be written.
    pub fn set_containers(&mut self, containers: &[Present]) -> Result<bool, DatapathError> {
        let mut changed = false;
        let wanted: HashSet<u32> = containers.iter().map(|it| key(it.ip)).collect();
        for present in keys(&self.ingress) {
            if !wanted.contains(&present) {
                self.forget_container(address(present))?;
                changed = true;
            }
        }
        for container in containers {
            let wanted = LocalContainer {
                withheld: container.withheld.into(),
                ..LocalContainer::unlearned(container.ifindex)
            };
            let present = self.ingress.get(&key(container.ip), 0).ok();
            if present.is_none_or(|entry| entry.forgotten() != wanted) {
                self.ingress
                    .insert(key(container.ip), wanted, 0)
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
        self.remove_flows(|flow, _| flow.local == key(ip))?;
        self.sweep_egress()
    }

    /// Removes the addresses that were learned to be behind `hosts`, and the flows to them. What a
    /// program enters meanwhile, from a host that it had looked up before, is of an epoch that ends
    /// with the call.
    fn forget_behind(&mut self, hosts: &HashSet<u32>) -> Result<(), DatapathError> {
        let behind = found(&self.egress_ip, |ip, word| {
            hosts.contains(&word.address()).then_some(ip)
        });
        // The host is in the entries of those that something has been sent to.
        self.remove_flows(|flow, entry| {
            hosts.contains(&entry.host.whatever()) || behind.contains(&flow.remote)
        })?;
        for ip in behind {
            remove_key(&mut self.egress_ip, &ip, "EGRESS_IP")?;
        }
        Ok(())
    }

    /// Empties the learned caches; what the daemon owns (peers, containers) stays, unlearned.
    /// Returns how many flows were removed.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if a map can't be written.
    pub fn flush(&mut self) -> Result<usize, DatapathError> {
        let flows = self.remove_flows(|_, _| true)?;
        for ip in keys(&self.egress_ip) {
            remove_key(&mut self.egress_ip, &ip, "EGRESS_IP")?;
        }
        for host in keys(&self.egress_host) {
            self.egress_host
                .insert(host, HostHeaders::UNLEARNED, 0)
                .map_err(map_error("write", "EGRESS_HOST"))?;
        }
        for (ip, entry) in entries(&self.ingress) {
            self.ingress
                .insert(ip, entry.forgotten(), 0)
                .map_err(map_error("write", "INGRESS"))?;
        }
        Ok(flows)
    }

    /// Removes flows that have been dead for `grace` ticks, egress entries that no flow uses, and
    /// whatever was learned in another epoch. The grace keeps a flow that is about to renew its
    /// lease from being removed while it does.
    ///
    /// A dead entry costs nothing but its place; but words have sixteen bits of the epoch, which
    /// come round after 65,536 of them. Swept every minute, no word is there to see that
    /// (`SPACING` in `epoch.rs`).
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if a map can't be written.
    pub fn sweep(&mut self, grace: u64) -> Result<usize, DatapathError> {
        let now = clock::now();
        // Read first: what is learned in a later epoch meanwhile is removed with the dead, and
        // learned again.
        let epoch = self.settings()?.epoch;
        self.sweep_words(epoch)?;
        let removed = self.remove_flows(|_, entry| {
            let word = entry.verdict;
            u32::from(word.epoch()) != epoch & 0xffff || word.expiry() + grace < now
        })?;
        self.sweep_egress()?;
        Ok(removed)
    }

    /// Removes what has no lease and was learned in another epoch than `epoch`.
    fn sweep_words(&mut self, epoch: u32) -> Result<(), DatapathError> {
        for (ip, word) in entries(&self.egress_ip) {
            if word.host(ip, epoch).is_none() {
                remove_key(&mut self.egress_ip, &ip, "EGRESS_IP")?;
            }
        }
        for (ip, local) in entries(&self.ingress) {
            let dead = |word: MacWord| word != MacWord(0) && !word.is_current(epoch);
            if dead(local.destination) || dead(local.source) {
                self.ingress
                    .insert(ip, local.forgotten(), 0)
                    .map_err(map_error("write", "INGRESS"))?;
            }
        }
        Ok(())
    }

    fn remove_flows(
        &mut self,
        chosen: impl Fn(&FlowKey, &FlowEntry) -> bool,
    ) -> Result<usize, DatapathError> {
        let flows = found(&self.filter, |flow, entry: FlowEntry| {
            chosen(&flow, &entry).then_some((flow, entry.verdict.is_closed()))
        });
        let mut removed = 0;
        for (flow, is_closed) in flows {
            match remove_key(&mut self.filter, &flow, "FILTER") {
                // A closed one was counted when it was closed.
                Ok(was_there) => removed += usize::from(was_there && !is_closed),
                Err(error) => {
                    self.note_cleared(removed)?;
                    return Err(error);
                }
            }
        }
        self.note_cleared(removed)?;
        Ok(removed)
    }

    /// Removes egress addresses that no flow goes to, and what was learned of hosts that no address
    /// is behind and no flow goes to.
    fn sweep_egress(&mut self) -> Result<(), DatapathError> {
        let ends = found(&self.filter, |flow, entry| {
            Some((flow.remote, entry.host.whatever()))
        });
        let remotes: HashSet<u32> = ends.iter().map(|(remote, _)| *remote).collect();
        // An address may have had to give way to others while its flows go on.
        let mut hosts: HashSet<u32> = ends.into_iter().map(|(_, host)| host).collect();
        for (ip, word) in entries(&self.egress_ip) {
            if remotes.contains(&ip) {
                hosts.insert(word.address());
            } else {
                remove_key(&mut self.egress_ip, &ip, "EGRESS_IP")?;
            }
        }
        for (host, headers) in entries(&self.egress_host) {
            if headers.ifindex != 0 && !hosts.contains(&host) {
                self.egress_host
                    .insert(host, HostHeaders::UNLEARNED, 0)
                    .map_err(map_error("write", "EGRESS_HOST"))?;
            }
        }
        Ok(())
    }
}
