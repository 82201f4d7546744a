//! The maps that the daemon shares. All are pinned by name: they outlive it. Their sizes here are defaults that
//! the loader overrides from the configuration.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use oncache_abi::{
    container::LocalContainer,
    entry::FlowEntry,
    flow::FlowKey,
    peer::{PeerHeaders, PeerNumber},
    settings::{Constants, Settings},
    turnover,
};

/// What the daemon changes while the programs run.
#[map]
pub static SETTINGS: Array<Settings> = Array::pinned(1, 0);

/// Counters, see `counters.rs` and [`turnover`].
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(turnover::COUNTERS, 0);

/// Flow -> what the slow path allowed, and the way it took.
#[map]
pub static FLOWS: LruHashMap<FlowKey, FlowEntry> = LruHashMap::pinned(65536, 0);

/// Peer -> the outer headers that lead there.
#[map]
pub static PEERS: HashMap<PeerNumber, PeerHeaders> = HashMap::pinned(8192, BPF_F_NO_PREALLOC);

/// Local container's address (network byte order) -> its device and MAC address.
#[map]
pub static CONTAINERS: HashMap<u32, LocalContainer> = HashMap::pinned(8192, BPF_F_NO_PREALLOC);

/// Constants of this load; the loader writes them into the read-only data before the verifier
/// runs, which then knows them as constants.
#[unsafe(no_mangle)]
static CONSTANTS: Constants = Constants {
    host: 0,
    network: 0,
    netmask: 0,
    vni: 0,
    mark_mask: 0,
    mtu: 0,
    gateway_address: 0,
    flows: 0,
    port: 0,
    vtep: [0; 6],
    gateway: [0; 6],
    reserved: [0; 2],
};

/// One field of the constants.
macro_rules! constant {
    ($field:ident) => {
        $crate::maps::volatile(&raw const (*$crate::maps::constants()).$field)
    };
}
pub(crate) use constant;

/// The constants; read them by [`constant!`] only.
#[inline(always)]
pub fn constants() -> *const Constants {
    &raw const CONSTANTS
}

/// Reads what the compiler must not take for the value in the object file.
#[inline(always)]
pub fn volatile<T: Copy>(field: *const T) -> T {
    // SAFETY: called with a field of `CONSTANTS`, or a part of one, which is initialised and never
    // written after load. BPF loads need no alignment.
    unsafe { core::ptr::read_volatile(field) }
}

/// One MAC address of the constants: in the low 48 bits, first byte lowest, as `packet::mac_at`.
macro_rules! mac_constant {
    ($field:ident) => {{
        let mac = (&raw const (*$crate::maps::constants()).$field).cast::<u8>();
        let low = $crate::maps::volatile(mac.cast::<u32>());
        let high = $crate::maps::volatile(mac.add(4).cast::<u16>());
        u64::from(low) | u64::from(high) << 32
    }};
}
pub(crate) use mac_constant;

/// The settings in force, as they are now: a copy, since the daemon writes them at any moment. A
/// program judges and learns by the one epoch that it has read. Read twice, a packet that missed in
/// the old epoch could pass the comparison and be entered under the new one.
#[inline(always)]
pub fn settings() -> Option<Settings> {
    let words = SETTINGS.get_ptr(0)?.cast::<u64>();
    // SAFETY: an element of the map is as long as four words, and an array's elements are aligned
    // to eight bytes (kernel/bpf/arraymap.c, `array_map_alloc`). Volatile: each word is loaded once.
    unsafe {
        let words = [
            core::ptr::read_volatile(words),
            core::ptr::read_volatile(words.add(1)),
            core::ptr::read_volatile(words.add(2)),
            core::ptr::read_volatile(words.add(3)),
        ];
        Some(core::mem::transmute::<[u64; 4], Settings>(words))
    }
}
