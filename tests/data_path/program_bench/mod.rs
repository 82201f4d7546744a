//! A bench for the eBPF programs: one crafted packet through one real program, no traffic.
//!
//! [`Bench`] loads the programs the way the daemon does, on a bpffs and in a network namespace of
//! its own. [`Maps`] is all they remember, as plain data to set and to compare; [`Frame`] makes
//! packets. The world that the tests share is in [`world`].

mod frame;
mod maps;
pub mod world;

use std::{collections::HashSet, path::Path, time::Duration};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use oncache::datapath::{
    AttachMode, Datapath, PIN_ROOT, PacketContext, RunOutcome, Sizes, clock, epoch::Tuning, pins,
};
use oncache_abi::{
    container::LocalContainer,
    entry::FlowEntry,
    flow::FlowKey,
    peer::{PeerHeaders, PeerNumber},
    reason::{Program, REASONS_PER_PROGRAM, Reason},
    settings::Settings,
    turnover::Turnover,
};
use oncache_testbed::Place;

pub use frame::{Ends, Frame, sum16};
pub use maps::{Maps, key, peer};

/// `TC_ACT_UNSPEC`: the packet goes on to the slow path.
pub const UNSPEC: i32 = -1;
/// `TC_ACT_REDIRECT`: the packet takes the fast path.
pub const REDIRECT: i32 = 7;

/// How much the bench's maps hold.
const SIZES: Sizes = Sizes { flows: 1024 };

/// The epoch of a [`Bench`], see [`Bench::epochs`].
pub struct Epochs {
    map: Array<MapData, Settings>,
    settings: Settings,
}

impl Epochs {
    /// Begins an epoch.
    pub fn set(&mut self, epoch: u32) {
        self.settings.epoch = epoch;
        self.map.set(0, self.settings, 0).expect("an epoch");
    }
}

/// The loaded programs and their maps.
pub struct Bench {
    pub datapath: Datapath,
    settings: Array<MapData, Settings>,
    counters: PerCpuArray<MapData, u64>,
    flows: HashMap<MapData, FlowKey, FlowEntry>,
    peers: HashMap<MapData, PeerNumber, PeerHeaders>,
    containers: HashMap<MapData, u32, LocalContainer>,
}

/// Runs `work` with freshly loaded programs, on a thread in the bench's own namespaces.
pub fn on_a_bench<T: Send>(work: impl FnOnce(&mut Bench) -> T + Send) -> T {
    let place = Place::new();
    for (name, index, mac) in world::DEVICES {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        place.sh(&format!(
            "ip link add {name} index {index} address {mac} type veth peer name {name}-end"
        ));
    }
    place.sh(&format!(
        "ip link add narrow index {} mtu {} type veth peer name narrow-end",
        world::NARROW,
        world::NARROW_MTU
    ));
    place.enter(|| work(&mut Bench::load()))
}

impl Bench {
    fn load() -> Self {
        let root = Path::new(PIN_ROOT);
        let sizes = SIZES;
        let constants = world::constants();
        let (datapath, epoch) = Datapath::load(root, &constants, sizes, AttachMode::Tcx)
            .expect("the programs load (root is needed)");
        let tuning = Tuning {
            is_cut: false,
            lease: world::LEASE,
            ports: world::PORTS,
            fingerprint: 1,
        };
        epoch.raise(Some(&tuning), None).expect("settings");
        let pinned = |name: &str| {
            MapData::from_pin(pins::maps(root, sizes).join(name)).expect("a pinned map")
        };
        let bad = "a map of the kind the daemon opens";
        let mut bench = Self {
            datapath,
            settings: Map::Array(pinned("SETTINGS")).try_into().expect(bad),
            counters: Map::PerCpuArray(pinned("COUNTERS")).try_into().expect(bad),
            flows: Map::LruHashMap(pinned("FLOWS")).try_into().expect(bad),
            peers: Map::HashMap(pinned("PEERS")).try_into().expect(bad),
            containers: Map::HashMap(pinned("CONTAINERS")).try_into().expect(bad),
        };
        let settings = bench.settings.get(&0, 0).expect("settings");
        let epoch = world::EPOCH;
        let there = Settings { epoch, ..settings };
        bench.settings.set(0, there, 0).expect("an epoch");
        bench
    }

    /// Runs a packet through a program.
    pub fn run(&self, program: Program, frame: &[u8], context: PacketContext) -> RunOutcome {
        let outcome = self.datapath.run_once(program, frame, context);
        outcome.unwrap_or_else(|error| panic!("{error}; the frame: {}", hex(frame)))
    }

    /// What a program counted under a reason.
    pub fn count(&self, program: Program, reason: Reason) -> u64 {
        let index = program as u32 * REASONS_PER_PROGRAM + reason as u32;
        let values = self.counters.get(&index, 0).expect("a counter");
        values.iter().sum()
    }

    /// All counters that are not zero.
    pub fn counts(&self) -> std::collections::HashMap<(&'static str, &'static str), u64> {
        let all = Program::ALL
            .into_iter()
            .flat_map(|program| Reason::ALL.iter().map(move |reason| (program, *reason)));
        all.map(|(program, reason)| ((program.name(), reason.name()), self.count(program, reason)))
            .filter(|(_, packets)| *packets != 0)
            .collect()
    }

    /// Makes every CPU's window one that begins at this tick, and full; nobody has drawn a place.
    pub fn crowd(&mut self, since: u64) {
        for (turnover, value) in [
            (Turnover::WindowBegun, since),
            (Turnover::WindowEntered, u64::from(u32::MAX)),
            (Turnover::WindowDrawn, 0),
        ] {
            let cpus = self
                .counters
                .get(&turnover.index(), 0)
                .expect("a counter")
                .len();
            let values = PerCpuValues::try_from(vec![value; cpus]).expect("one for each CPU");
            self.counters
                .set(turnover.index(), values, 0)
                .expect("a counter");
        }
    }

    /// What the programs remember.
    pub fn maps(&self) -> Maps {
        Maps {
            flows: read(&self.flows),
            peers: read(&self.peers),
            containers: read(&self.containers),
        }
    }

    /// A second handle on the epoch, to change it while packets run.
    pub fn epochs(&self) -> Epochs {
        let root = Path::new(PIN_ROOT);
        let pin = pins::maps(root, SIZES).join("SETTINGS");
        let map = Map::Array(MapData::from_pin(pin).expect("a pinned map"));
        let map: Array<MapData, Settings> = map.try_into().expect("settings");
        let settings = map.get(&0, 0).expect("settings");
        Epochs { map, settings }
    }

    /// Makes the programs remember exactly this.
    pub fn set(&mut self, maps: &Maps) {
        write(&mut self.flows, &maps.flows);
        write(&mut self.peers, &maps.peers);
        write(&mut self.containers, &maps.containers);
    }

    /// Enters flows, and leaves everything else as it is.
    pub fn enter_flows(&mut self, maps: &Maps) {
        for (flow, word) in &maps.flows {
            self.flows.insert(flow, word, 0).expect("a flow");
        }
    }
}

fn read<K: aya::Pod + Eq + std::hash::Hash, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
) -> std::collections::HashMap<K, V> {
    map.iter().map(|entry| entry.expect("an entry")).collect()
}

fn write<K: aya::Pod + Eq + std::hash::Hash, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    entries: &std::collections::HashMap<K, V>,
) {
    let present: HashSet<K> = map.keys().map(|key| key.expect("a key")).collect();
    for gone in present.iter().filter(|key| !entries.contains_key(key)) {
        map.remove(gone).expect("an entry removed");
    }
    for (key, value) in entries {
        map.insert(key, value, 0).expect("an entry");
    }
}

/// A frame as one line.
pub fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The lease tick `after` from now.
pub fn tick_in(after: Duration) -> u64 {
    clock::now() + u64::from(clock::to_ticks(after))
}
