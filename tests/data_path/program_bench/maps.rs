//! What the programs remember, as plain data.

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
    ops::RangeInclusive,
};

use oncache_abi::{
    container::LocalContainer,
    entry::FlowEntry,
    flow::{FlowKey, VerdictWord},
    peer::{PeerHeaders, PeerNumber},
};

/// The caches. Addresses are keys as in the kernel: network byte order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Maps {
    pub flows: HashMap<FlowKey, FlowEntry>,
    pub peers: HashMap<PeerNumber, PeerHeaders>,
    pub containers: HashMap<u32, LocalContainer>,
}

/// Bits of a flow's word that hold the end of its lease.
const EXPIRY: u32 = 28;

/// A flow's word, field by field as documented at [`VerdictWord`].
pub fn flow_word(key: &FlowKey, directions: u64, epoch: u32, expiry: u64) -> VerdictWord {
    VerdictWord(directions | key.tag() << 2 | u64::from(epoch & 0xffff) << 12 | expiry << EXPIRY)
}

/// An address as a key.
pub fn key(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// The peer at an address.
pub fn peer(address: Ipv4Addr) -> PeerNumber {
    PeerNumber(key(address))
}

impl Maps {
    /// With changes.
    pub fn but(mut self, edit: impl FnOnce(&mut Self)) -> Self {
        edit(&mut self);
        self
    }

    /// What is here and not, or not so, in `other`.
    pub fn beyond(&self, other: &Self) -> String {
        let entries = |maps: &Self| -> BTreeSet<String> {
            let flows = maps.flows.iter().map(|entry| format!("{entry:x?}"));
            let peers = maps.peers.iter().map(|entry| format!("{entry:x?}"));
            let containers = maps.containers.iter().map(|entry| format!("{entry:x?}"));
            flows.chain(peers).chain(containers).collect()
        };
        let (here, there) = (entries(self), entries(other));
        let beyond: Vec<&str> = here.difference(&there).map(String::as_str).collect();
        beyond.join(", ")
    }

    /// Leases that end within `ends`, set to `stands_for`: when a program ran is not known to the
    /// tick.
    pub fn with_leases(mut self, ends: &RangeInclusive<u64>, stands_for: u64) -> Self {
        for entry in self.flows.values_mut() {
            let word = &mut entry.verdict;
            if ends.contains(&word.expiry()) {
                word.0 = word.0 << (64 - EXPIRY) >> (64 - EXPIRY) | stands_for << EXPIRY;
            }
        }
        self
    }
}
