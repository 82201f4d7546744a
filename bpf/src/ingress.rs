//! `ingress`: NIC to container.

use aya_ebpf::{bindings::BPF_F_ADJ_ROOM_FIXED_GSO, helpers::bpf_redirect_peer};
use oncache_abi::{
    cache::{HEADER_LEN, LocalContainer, MacWord},
    flow::FlowKey,
    headers::{ETH_LEN, ETHERTYPE_IPV4, OVERHEAD, UDP, decapsulated_tos},
    mark::INGRESS_MISS,
    reason::{Program, Reason},
};

use crate::{
    counters::count,
    egress::judge,
    inner::{self, Inner},
    learning::forget_flow,
    maps::{EGRESS_HOST, EGRESS_IP, FILTER, INGRESS, constant, settings},
    outer::{self, Outer},
    packet::Skb,
};

/// Delivers the packet by the caches, or says why not.
#[inline(always)]
pub fn run(skb: &Skb) -> Result<i32, Option<Reason>> {
    skb.clear_mark();
    if !skb.is_plain_ipv4() {
        return Err(Some(Reason::NotIpv4));
    }
    let outer = outer::parse(skb)?;
    check_outer(skb, &outer)?;
    let inner = inner::parse(skb, HEADER_LEN)?;
    let tos = decapsulated_tos(outer.tos, inner.tos).ok_or(Reason::OuterCongestion)?;
    if inner.ttl <= 1 {
        return Err(Some(Reason::TtlExpires));
    }
    let key = inner.key_to_local();
    if inner.changes_state {
        forget_flow(&key);
        return Err(Some(Reason::TcpState));
    }
    // SAFETY (of `constant!`): see `maps::volatile`.
    if !inner.fits(skb, unsafe { constant!(mtu) }) {
        return Err(Some(Reason::OverMtu));
    }
    // The tunnel's mark on the aggregate can't be taken off here, and UDP reception would then
    // split it at the wrong headers and lose it (net/ipv4/udp.c, `udp_unexpected_gso`).
    if inner.protocol == UDP && skb.gso_size() != 0 {
        return Err(Some(Reason::UdpAggregate));
    }
    // SAFETY: INGRESS has BPF_F_NO_PREALLOC: an element stays its key's until this program is done.
    let Some(local) = (unsafe { INGRESS.get(&inner.destination) }) else {
        return Err(Some(Reason::NoContainer));
    };
    let epoch = settings().ok_or(Reason::HelperFailed)?.epoch;
    match cached(&inner, &outer, &key, local, epoch) {
        Ok((destination, source)) => {
            let action = deliver(skb, &inner, tos, local.ifindex, [destination, source])?;
            count(Program::Ingress, Reason::Hit);
            Ok(action)
        }
        Err(reason) => {
            skb.mark_missed(INGRESS_MISS, epoch);
            Err(Some(reason))
        }
    }
}

/// What the slow path's VXLAN device would check, and what it leaves to others.
#[inline(always)]
fn check_outer(skb: &Skb, outer: &Outer) -> Result<(), Reason> {
    // SAFETY (of `constant!`): see `maps::volatile`.
    let (host, vni, vtep) = unsafe { (constant!(host), constant!(vni), constant!(vtep)) };
    // A packet for another host that came by our MAC address is routed on, not decapsulated.
    if !skb.is_to_host() || outer.destination != host {
        return Err(Reason::NotOverlay);
    }
    if outer.checksum != 0 {
        return Err(Reason::OuterChecksum);
    }
    if outer.vni != vni {
        return Err(Reason::OtherVni);
    }
    if EGRESS_HOST.get_ptr(&outer.source).is_none() {
        return Err(Reason::NotPeer);
    }
    // The VXLAN device drops what seems to come from itself (drivers/net/vxlan/vxlan_core.c,
    // `vxlan_set_mac`).
    if outer.inner_destination != vtep || outer.inner_source == vtep {
        return Err(Reason::NotVtep);
    }
    if outer.inner_ethertype != ETHERTYPE_IPV4.to_be() {
        return Err(Reason::NotIpv4);
    }
    Ok(())
}

/// All three caches must agree: the flow allowed both ways, the container ready, and the sender
/// behind the host that answers would go to.
#[inline(always)]
fn cached(
    inner: &Inner,
    outer: &Outer,
    key: &FlowKey,
    local: &LocalContainer,
    epoch: u32,
) -> Result<(MacWord, MacWord), Reason> {
    // SAFETY: one aligned word, whole whenever it is read; its tag tells whose it is.
    let word = unsafe { FILTER.get(key) }.ok_or(Reason::NoFlow)?;
    judge(*word, key, epoch)?;
    // Copied before they are judged: `ingress_init` may write them at any moment.
    // SAFETY: aligned words of a live element.
    let (destination, source) = unsafe {
        (
            core::ptr::read_volatile(&raw const local.destination),
            core::ptr::read_volatile(&raw const local.source),
        )
    };
    if !destination.is_current(epoch) || !source.is_current(epoch) {
        return Err(Reason::ContainerUnlearned);
    }
    // SAFETY: one aligned word, as above.
    let word = unsafe { EGRESS_IP.get(&inner.source) }.ok_or(Reason::NoHost)?;
    match word.host(inner.source, epoch) {
        Some(host) if host == outer.source => Ok((destination, source)),
        Some(_) => Err(Reason::WrongHost),
        None => Err(Reason::NoHost),
    }
}

/// Takes the outer headers off and hands the packet to the container's end of its device pair.
#[inline(always)]
fn deliver(
    skb: &Skb,
    inner: &Inner,
    tos: u8,
    ifindex: u32,
    [destination, source]: [MacWord; 2],
) -> Result<i32, Reason> {
    inner::rewrite(skb, HEADER_LEN, tos, inner.ttl - 1)?;
    if let Err(reason) = skb.adjust_room(-(OVERHEAD as i32), u64::from(BPF_F_ADJ_ROOM_FIXED_GSO)) {
        // The slow path gets the packet as it was.
        inner::rewrite(skb, HEADER_LEN, inner.tos, inner.ttl)?;
        return Err(reason);
    }
    let frame: *mut [u8; ETH_LEN] = skb.at(0)?;
    // SAFETY: the fourteen bytes lie within the packet.
    unsafe {
        let bytes = frame.cast::<u8>();
        *bytes.cast::<u32>() = destination.0 as u32;
        *bytes.add(4).cast::<u16>() = (destination.0 >> 32) as u16;
        *bytes.add(6).cast::<u32>() = source.0 as u32;
        *bytes.add(10).cast::<u16>() = (source.0 >> 32) as u16;
        *bytes.add(12).cast::<u16>() = ETHERTYPE_IPV4.to_be();
    }
    // Kernels before 6.15 leave the mark on at this crossing (net/core/filter.c,
    // `skb_do_redirect`); a host's own marks are none of the container's business.
    skb.set_mark(0);
    // SAFETY: no precondition.
    Ok(unsafe { bpf_redirect_peer(ifindex, 0) } as i32)
}
