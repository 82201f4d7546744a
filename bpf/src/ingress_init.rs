//! `ingress_init`: learns from what the slow path delivers to a container.

use oncache_abi::{
    cache::{LocalContainer, MacWord},
    entry::FlowEntry,
    headers::{ETH_LEN, IPV4_LEN, TCP_LEN},
    mark::INGRESS_MISS,
    reason::{Program, Reason},
};

use crate::{
    counters::count,
    inner,
    learning::{learn_flow, may_learn},
    maps::{INGRESS, constant},
    packet::Skb,
};

/// Enters the frame's MAC addresses and flow into the caches; the packet always goes on unchanged.
#[inline(always)]
pub fn run(skb: &Skb) -> Result<i32, Option<Reason>> {
    let settings = may_learn(skb, INGRESS_MISS)?;
    if !skb.is_plain_ipv4() {
        return Err(Some(Reason::NotIpv4));
    }
    skb.ensure_linear((ETH_LEN + IPV4_LEN + TCP_LEN) as u32);
    let inner = inner::parse(skb, ETH_LEN)?;
    let local = INGRESS
        .get_ptr_mut(&inner.destination())
        .ok_or(Reason::NoContainer)?;
    let epoch = settings.epoch;
    let mac = learn_macs(skb, local, epoch)?;
    let (key, end) = (inner.key_to_local(), (skb.ifindex(), mac));
    learn_flow(&key, &settings, |old, now, lease| {
        FlowEntry::learn_ingress(old, &key, end, now, lease, epoch)
    })?;
    count(Program::IngressInit, Reason::Learned);
    Err(None)
}

/// Keeps the MAC addresses, if they are not known yet. Returns the container's.
#[inline(always)]
fn learn_macs(skb: &Skb, local: *mut LocalContainer, epoch: u32) -> Result<[u8; 6], Reason> {
    let frame: *mut [[u8; 6]; 2] = skb.at(0)?;
    // SAFETY: the twelve bytes lie within the packet.
    let [destination, source] = unsafe { *frame };
    // SAFETY (of `constant!`): see `maps::volatile`.
    if source != unsafe { constant!(gateway) } {
        return Err(Reason::NotGateway);
    }
    // SAFETY: an element of a BPF_F_NO_PREALLOC map stays its key's until this program is done; the
    // words are aligned, and each is stored whole.
    unsafe {
        if (*local).ifindex != skb.ifindex() {
            return Err(Reason::SourceMismatch);
        }
        if (*local).withheld != 0 {
            return Err(Reason::Withheld);
        }
        let learned = MacWord::new(destination, epoch);
        let source = MacWord::new(source, epoch);
        if (*local).destination != learned || (*local).source != source {
            core::ptr::write_volatile(&raw mut (*local).destination, learned);
            core::ptr::write_volatile(&raw mut (*local).source, source);
        }
    }
    Ok(destination)
}
