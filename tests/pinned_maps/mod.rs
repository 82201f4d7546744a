//! The programs' maps, read where they are pinned: exact, and without asking the daemon.

#![allow(dead_code, reason = "no test takes everything")]

use std::{net::Ipv4Addr, path::Path};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use oncache::datapath::{PIN_ROOT, Sizes, clock, pins};
use oncache_abi::{
    cache::{HostWord, LocalContainer},
    entry::FlowEntry,
    flow::{FlowKey, Verdict},
    reason::{Program, REASONS_PER_PROGRAM, Reason},
    settings::Settings,
};
use oncache_testbed::Host;

/// The maps of one host.
pub struct PinnedMaps {
    counters: PerCpuArray<MapData, u64>,
    settings: Array<MapData, Settings>,
    filter: HashMap<MapData, FlowKey, FlowEntry>,
    addresses: HashMap<MapData, u32, HostWord>,
    containers: HashMap<MapData, u32, LocalContainer>,
}

/// An address as the maps have it.
fn key(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

impl PinnedMaps {
    /// Those of a host whose filter cache has room for `flows`.
    ///
    /// # Panics
    /// If they are not there.
    pub fn of(host: &Host, flows: u32) -> Self {
        host.enter(|| {
            let directory = pins::maps(Path::new(PIN_ROOT), Sizes { flows });
            let open = |name: &str| {
                let path = directory.join(name);
                MapData::from_pin(&path)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            };
            let hash = |name| Map::HashMap(open(name));
            let lru = |name| Map::LruHashMap(open(name));
            Self {
                counters: PerCpuArray::try_from(Map::PerCpuArray(open("COUNTERS")))
                    .expect("an array"),
                settings: Array::try_from(Map::Array(open("SETTINGS"))).expect("an array"),
                filter: HashMap::try_from(lru("FILTER")).expect("a map"),
                addresses: HashMap::try_from(lru("EGRESS_IP")).expect("a map"),
                containers: HashMap::try_from(hash("INGRESS")).expect("a map"),
            }
        })
    }

    /// Packets that a program has counted under a reason.
    pub fn count(&self, program: Program, reason: Reason) -> u64 {
        let index = program as u32 * REASONS_PER_PROGRAM + reason as u32;
        let values = self.counters.get(&index, 0).expect("a counter");
        values.iter().sum()
    }

    /// Packets that the fast path has carried, both ways.
    pub fn hits(&self) -> u64 {
        [Program::Egress, Program::Ingress]
            .map(|program| self.count(program, Reason::Hit))
            .iter()
            .sum()
    }

    /// The epoch in force.
    pub fn epoch(&self) -> u32 {
        self.settings.get(&0, 0).expect("the settings").epoch
    }

    /// The flows of a local container, and what the programs would say of each now.
    pub fn flows_of(&self, container: Ipv4Addr) -> Vec<(FlowKey, Verdict)> {
        let epoch = self.epoch();
        let now = clock::now();
        let all = self.filter.iter().filter_map(Result::ok);
        all.filter(|(flow, _)| flow.local == key(container))
            .map(|(flow, entry)| (flow, entry.verdict.judge(&flow, now, epoch)))
            .collect()
    }

    /// How many flows there are to a remote container, and whether its host is remembered.
    pub fn traces_of(&self, remote: Ipv4Addr) -> (usize, bool) {
        let flows = self.filter.keys().filter_map(Result::ok);
        (
            flows.filter(|flow| flow.remote == key(remote)).count(),
            self.addresses.get(&key(remote), 0).is_ok(),
        )
    }

    /// The host-side ifindex that a local container's packets are delivered to; none where the fast
    /// path does not know it.
    pub fn device_of(&self, container: Ipv4Addr) -> Option<u32> {
        let entry = self.containers.get(&key(container), 0).ok()?;
        Some(entry.ifindex)
    }
}
