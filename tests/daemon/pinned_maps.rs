//! The programs' maps, read where they are pinned: exact, and without asking the daemon.

use std::{net::Ipv4Addr, path::Path};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use oncache::datapath::{PIN_ROOT, Sizes, clock, pins};
use oncache_abi::{
    container::LocalContainer,
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
    flows: HashMap<MapData, FlowKey, FlowEntry>,
    containers: HashMap<MapData, u32, LocalContainer>,
}

/// An address as the maps have it.
fn key(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

impl PinnedMaps {
    /// Those of a host that has room for `flows`.
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
                flows: HashMap::try_from(lru("FLOWS")).expect("a map"),
                containers: HashMap::try_from(hash("CONTAINERS")).expect("a map"),
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
        let all = self.flows.iter().filter_map(Result::ok);
        all.filter(|(flow, _)| flow.local == key(container))
            .map(|(flow, entry)| (flow, entry.verdict.judge(&flow, now, epoch)))
            .collect()
    }

    /// How many flows there are to a remote container, and whether any tells which peer it is behind.
    pub fn traces_of(&self, remote: Ipv4Addr) -> (usize, bool) {
        let flows = self.flows.iter().filter_map(Result::ok);
        let to_it: Vec<_> = flows
            .filter(|(flow, _)| flow.remote == key(remote))
            .collect();
        let is_told = to_it.iter().any(|(_, entry)| entry.leads_to().is_some());
        (to_it.len(), is_told)
    }

    /// The host-side ifindex that a local container's packets are delivered to; none where the fast
    /// path does not know it.
    pub fn device_of(&self, container: Ipv4Addr) -> Option<u32> {
        let entry = self.containers.get(&key(container), 0).ok()?;
        Some(entry.ifindex)
    }
}
