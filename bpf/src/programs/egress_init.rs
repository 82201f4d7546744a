//! `egress_init`: learns from what the slow path has encapsulated.

use aya_ebpf::bindings::BPF_EXIST;
use oncache_abi::{
    entry::FlowEntry,
    mark::EGRESS_MISS,
    peer::{PeerHeaders, PeerNumber},
    reason::{Program, Reason},
};

use crate::{
    counters::count,
    family::Family,
    inner::{self, Inner},
    learning::{learn_flow, may_learn},
    maps::PEERS,
    packet::Skb,
    tunnel::Tunnel,
};

/// Enters the packet's headers and flow into the caches; the packet always goes on unchanged.
#[inline(always)]
pub fn run<F: Family, T: Tunnel>(skb: &Skb) -> Result<i32, Option<Reason>> {
    let settings = may_learn(skb, EGRESS_MISS)?;
    let epoch = settings.epoch;
    let outer = T::parse::<F>(skb)?;
    outer.check_sent::<F>()?;
    let inner: Inner<F> = inner::parse(skb, T::HEADER_LEN)?;
    if !inner.is_to_network() {
        return Err(Some(Reason::OutsideNetwork));
    }
    let local = inner.sender().ok_or(Reason::NoContainer)?;
    // SAFETY: the element stays its key's until this program is done.
    if unsafe { (*local).withheld } != 0 {
        return Err(Some(Reason::Withheld));
    }
    let way = (outer.receiver(), outer.source_port());
    learn_headers::<T>(skb, way.0, epoch)?;
    let key = inner.key_from_local();
    learn_flow(&key, &settings, |old, now, lease| {
        FlowEntry::learn_egress(old, &key, way, now, lease, epoch)
    })?;
    count(Program::EgressInit, Reason::Learned);
    Err(None)
}

/// Keeps the outer headers as the peer's template, if they are not known yet.
#[inline(always)]
fn learn_headers<T: Tunnel>(skb: &Skb, peer: PeerNumber, epoch: u32) -> Result<(), Reason> {
    // SAFETY: PEERS has BPF_F_NO_PREALLOC: the element stays intact until this program ends.
    let known = unsafe { PEERS.get(&peer) }.ok_or(Reason::NotPeer)?;
    let mut learned = T::template(skb)?;
    learned.ifindex = skb.ifindex();
    learned.epoch = epoch;
    if is_same(known, &learned) {
        return Ok(());
    }
    PEERS
        .insert(&peer, learned, u64::from(BPF_EXIST))
        .map_err(|_| Reason::HelperFailed)
}

/// Word by word: comparing arrays is a call of `memcmp`, a function that comes with the toolchain's
/// `core`. Where that was built without debugging information it has no BTF, and the kernel refuses a
/// program with functions that have none (kernel/bpf/verifier.c, `check_btf_func_early`).
#[inline(always)]
fn is_same(known: &PeerHeaders, learned: &PeerHeaders) -> bool {
    let mut differing = 0;
    for word in 0..known.template.len() {
        differing |= known.template[word] ^ learned.template[word];
    }
    differing == 0
        && known.ifindex == learned.ifindex
        && known.epoch == learned.epoch
        && known.ip_sum == learned.ip_sum
}
