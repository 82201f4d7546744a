//! `ingress_init`: learns from what the slow path delivers to a container.

use oncache_abi::{
    container::{LocalContainer, MacWord},
    entry::FlowEntry,
    headers::{ETH_LEN, TCP_LEN},
    mark::INGRESS_MISS,
    reason::{Program, Reason},
};

use crate::{
    counters::count,
    family::Family,
    inner::{self, Inner},
    learning::{learn_flow, may_learn},
    maps::constant,
    packet::Skb,
};

/// Enters the frame's MAC address and flow into the caches; the packet always goes on unchanged.
#[inline(always)]
pub fn run<F: Family>(skb: &Skb) -> Result<i32, Option<Reason>> {
    let settings = may_learn(skb, INGRESS_MISS)?;
    if !skb.is_plain(F::ETHERTYPE) {
        return Err(Some(Reason::NotIpv4));
    }
    skb.ensure_linear((ETH_LEN + F::LEN + TCP_LEN) as u32);
    let inner: Inner<F> = inner::parse(skb, ETH_LEN)?;
    let local = inner.receiver().ok_or(Reason::NoContainer)?;
    let epoch = settings.epoch;
    let mac = learn_mac(skb, local, epoch)?;
    let (key, end) = (inner.key_to_local(), (skb.ifindex(), mac));
    learn_flow(&key, &settings, |old, now, lease| {
        FlowEntry::learn_ingress(old, &key, end, now, lease, epoch)
    })?;
    count(Program::IngressInit, Reason::Learned);
    Err(None)
}

/// Keeps the container's MAC address, if it is not known yet, and returns it.
#[inline(always)]
fn learn_mac(skb: &Skb, local: *mut LocalContainer, epoch: u32) -> Result<[u8; 6], Reason> {
    let frame: *mut [[u8; 6]; 2] = skb.at(0)?;
    // SAFETY: the twelve bytes lie within the packet.
    let [destination, source] = unsafe { *frame };
    // SAFETY (of `constant!`): see `maps::volatile`.
    if source != unsafe { constant!(gateway) } {
        return Err(Reason::NotGateway);
    }
    // SAFETY: an element of a BPF_F_NO_PREALLOC map stays its key's until this program is done; the
    // word is aligned, and stored whole.
    unsafe {
        if (*local).ifindex != skb.ifindex() {
            return Err(Reason::SourceMismatch);
        }
        if (*local).withheld != 0 {
            return Err(Reason::Withheld);
        }
        let learned = MacWord::new(destination, epoch);
        if (*local).mac != learned {
            core::ptr::write_volatile(&raw mut (*local).mac, learned);
        }
    }
    Ok(destination)
}
