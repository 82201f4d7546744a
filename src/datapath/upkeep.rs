//! Changing the caches: what the daemon owns of them, and what it clears away.

use std::{collections::HashSet, net::Ipv4Addr};

use aya::maps::{HashMap, MapData, MapError};
use oncache_abi::{
    container::{LocalContainer, MacWord},
    entry::FlowEntry,
    flow::FlowKey,
    peer::{PeerHeaders, PeerNumber},
};

use super::{
    Datapath, DatapathError,
    caches::{address, entries, found, key, keys, peer_address, peer_number},
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
    /// Makes the peers exactly `peers`, keeping what was learned of those that stay.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be written.
    pub fn set_peers(&mut self, peers: &HashSet<Ipv4Addr>) -> Result<bool, DatapathError> {
        let present: HashSet<Ipv4Addr> = keys(&self.peers).into_iter().map(peer_address).collect();
        let gone = present.difference(peers).copied().map(peer_number);
        let gone: HashSet<PeerNumber> = gone.collect();
        for peer in &gone {
            remove_key(&mut self.peers, peer, "PEERS")?;
        }
        if !gone.is_empty() {
            self.forget_behind(&gone)?;
        }
        for new in peers.difference(&present) {
            self.peers
                .insert(peer_number(*new), PeerHeaders::UNLEARNED, 0)
                .map_err(map_error("write", "PEERS"))?;
        }
        Ok(present != *peers)
    }

    /// Makes the local containers exactly `containers`, keeping what was learned of those that
    /// stay as they are. Returns whether anything changed. Flows of one that is withheld now are carried
    /// until the epoch is raised.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be written.
    pub fn set_containers(&mut self, containers: &[Present]) -> Result<bool, DatapathError> {
        let mut changed = false;
        let wanted: HashSet<u32> = containers.iter().map(|it| key(it.ip)).collect();
        for present in keys(&self.containers) {
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
            let present = self.containers.get(&key(container.ip), 0).ok();
            if present.is_none_or(|entry| entry.forgotten() != wanted) {
                self.containers
                    .insert(key(container.ip), wanted, 0)
                    .map_err(map_error("write", "CONTAINERS"))?;
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
        remove_key(&mut self.containers, &key(ip), "CONTAINERS")?;
        self.remove_flows(|flow, _| flow.local == key(ip))?;
        self.sweep_headers()
    }

    /// Removes the flows to `peers`, and those of which it is not known yet where they lead: what a peer has sent is
    /// learned from before an answer shows where it goes. Peers that go end the epoch, and such flows with it. What
    /// a program enters meanwhile is of an epoch that ends with the call.
    fn forget_behind(&mut self, peers: &HashSet<PeerNumber>) -> Result<(), DatapathError> {
        self.remove_flows(|_, entry| entry.leads_to().is_none_or(|peer| peers.contains(&peer)))?;
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
        for peer in keys(&self.peers) {
            self.peers
                .insert(peer, PeerHeaders::UNLEARNED, 0)
                .map_err(map_error("write", "PEERS"))?;
        }
        for (ip, entry) in entries(&self.containers) {
            self.containers
                .insert(ip, entry.forgotten(), 0)
                .map_err(map_error("write", "CONTAINERS"))?;
        }
        Ok(flows)
    }

    /// Removes flows that have been dead for `grace` ticks, headers that no flow uses, and
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
        self.sweep_headers()?;
        Ok(removed)
    }

    /// Removes what has no lease and was learned in another epoch than `epoch`.
    fn sweep_words(&mut self, epoch: u32) -> Result<(), DatapathError> {
        for (ip, local) in entries(&self.containers) {
            if local.mac != MacWord(0) && !local.mac.is_current(epoch) {
                self.containers
                    .insert(ip, local.forgotten(), 0)
                    .map_err(map_error("write", "CONTAINERS"))?;
            }
        }
        Ok(())
    }

    fn remove_flows(
        &mut self,
        chosen: impl Fn(&FlowKey, &FlowEntry) -> bool,
    ) -> Result<usize, DatapathError> {
        let flows = found(&self.flows, |flow, entry: FlowEntry| {
            chosen(&flow, &entry).then_some((flow, entry.verdict.is_closed()))
        });
        let mut removed = 0;
        for (flow, is_closed) in flows {
            match remove_key(&mut self.flows, &flow, "FLOWS") {
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

    /// Removes what was learned of peers that no flow goes to.
    fn sweep_headers(&mut self) -> Result<(), DatapathError> {
        let used = found(&self.flows, |_, entry| entry.leads_to());
        for (peer, headers) in entries(&self.peers) {
            if headers.ifindex != 0 && !used.contains(&peer) {
                self.peers
                    .insert(peer, PeerHeaders::UNLEARNED, 0)
                    .map_err(map_error("write", "PEERS"))?;
            }
        }
        Ok(())
    }
}
