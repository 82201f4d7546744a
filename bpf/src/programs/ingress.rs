//! `ingress`: NIC to container.

use aya_ebpf::{bindings::BPF_F_ADJ_ROOM_FIXED_GSO, helpers::bpf_redirect_peer};
use oncache_abi::{
    entry::LocalEnd,
    flow::FlowKey,
    headers::{ETH_LEN, TCP, UDP, decapsulated_tos},
    mark::INGRESS_MISS,
    peer::PeerNumber,
    reason::{Program, Reason},
};

use crate::{
    counters::count,
    family::Family,
    inner::{self, Inner},
    jiffy,
    learning::{NO_PLACE, Place, close_flow, is_turned_away, judge},
    maps::{PEERS, constant, mac_constant, settings},
    packet::Skb,
    tunnel::Tunnel,
};

/// Delivers the packet by the caches, or says why not.
#[inline(always)]
pub fn run<F: Family, T: Tunnel>(skb: &Skb) -> Result<i32, Option<Reason>> {
    skb.clear_mark();
    let outer = T::parse::<F>(skb)?;
    outer.check_received::<F>(skb)?;
    // Kept: decapsulation ends what can be read of the outer headers.
    let sender = outer.sender();
    match carried::<F, T>(skb, outer) {
        Ok(action) => {
            count(Program::Ingress, Reason::Hit);
            Ok(action)
        }
        Err(reason) => Err(Some(refused::<F, T>(skb, sender, reason)?)),
    }
}

/// What the caches are not asked for on the way to a hit. That the sender is a peer follows there
/// from the flow's entry: its peer was one in this epoch, and a peer that goes ends the epoch.
#[inline(always)]
fn refused<F: Family, T: Tunnel>(
    skb: &Skb,
    sender: PeerNumber,
    reason: Reason,
) -> Result<Reason, Reason> {
    if PEERS.get_ptr(&sender).is_none() {
        return Err(Reason::NotPeer);
    }
    let settings = settings().ok_or(Reason::HelperFailed)?;
    let mut reason = reason;
    if reason == NO_PLACE {
        if is_turned_away(settings.lease) {
            return Err(Reason::Crowded);
        }
        reason = Reason::NoFlow;
    }
    let changes_state = matches!(reason, Reason::TcpState | Reason::SynAck);
    if !changes_state && !reason.is_miss() && reason != Reason::Closing {
        return Err(reason);
    }
    // Once more, rather than to keep all of it at hand on the way to a hit.
    let inner: Inner<F> = inner::parse(skb, T::HEADER_LEN)?;
    let has_place = !changes_state || close_flow(&inner.key_to_local());
    if reason == Reason::TcpState {
        return Err(reason);
    }
    let local = inner.receiver().ok_or(Reason::NoContainer)?;
    if !reason.is_miss() {
        return Err(reason);
    }
    // SAFETY: the element stays its key's until this program is done.
    if unsafe { (*local).withheld } != 0 {
        return Err(Reason::Withheld);
    }
    // The epoch in force before the packet enters the slow path, which is what counts.
    if !has_place && is_turned_away(settings.lease) {
        return Err(Reason::Crowded);
    }
    skb.mark_missed(INGRESS_MISS, settings.epoch);
    Ok(reason)
}

#[inline(always)]
fn carried<F: Family, T: Tunnel>(skb: &Skb, outer: T) -> Result<i32, Reason> {
    let inner: Inner<F> = inner::parse(skb, T::HEADER_LEN)?;
    let tos = decapsulated_tos(outer.tos(), inner.tos).ok_or(Reason::OuterCongestion)?;
    if inner.ttl <= 1 {
        return Err(Reason::TtlExpires);
    }
    if inner.changes_state {
        return Err(if inner.accepts {
            Reason::SynAck
        } else {
            Reason::TcpState
        });
    }
    // SAFETY (of `constant!`): see `maps::volatile`.
    if !inner.fits(skb, unsafe { constant!(mtu) }) {
        return Err(Reason::OverMtu);
    }
    // The tunnel's mark on the aggregate can't be taken off here, and UDP reception would then
    // split it at the wrong headers and lose it (net/ipv4/udp.c, `udp_unexpected_gso`).
    if inner.protocol == UDP && skb.gso_size() != 0 {
        return Err(Reason::UdpAggregate);
    }
    let epoch = settings().ok_or(Reason::HelperFailed)?.epoch;
    let local = cached(outer, &inner.key_to_local(), inner.has_payload(), epoch)?;
    // After the caches: what misses there is marked, so that the slow path, which verifies, teaches that
    // the flow goes this way too, and what is sent the other way is fast.
    if outer.has_checksum() && !is_taken_as_right(skb, &inner) {
        return Err(Reason::OuterChecksum);
    }
    deliver::<F, T>(skb, &inner, tos, local)
}

/// Whether the kernel would take the outer UDP checksum as right without looking at it
/// (include/linux/skbuff.h, `skb_csum_unnecessary`): the device or GRO has verified it, or it is of an
/// aggregate that some sender here leaves to be summed (`CHECKSUM_PARTIAL`).
#[inline(always)]
fn is_taken_as_right<F: Family>(skb: &Skb, inner: &Inner<F>) -> bool {
    skb.is_checksum_verified()
        || skb.gso_size() != 0 && inner.protocol == TCP && skb.is_checksum_pending()
}

/// The flow allowed both ways, the container known, and the sender the peer that answers would go to.
#[inline(always)]
fn cached<T: Tunnel>(
    outer: T,
    key: &FlowKey,
    has_payload: bool,
    epoch: u32,
) -> Result<LocalEnd, Reason> {
    let place = Place::of(key).ok_or(NO_PLACE)?;
    judge(place.verdict(), key, has_payload, jiffy::now(), epoch)?;
    let local = place.local(key, epoch).ok_or(Reason::ContainerUnlearned)?;
    match place.peer().value(key, epoch) {
        Some(peer) if PeerNumber(peer) == outer.sender() => Ok(local),
        Some(_) => Err(Reason::WrongHost),
        None => Err(Reason::NoHost),
    }
}

/// Takes the outer headers off and hands the packet to the container's end of its device pair.
#[inline(always)]
fn deliver<F: Family, T: Tunnel>(
    skb: &Skb,
    inner: &Inner<F>,
    tos: u8,
    local: LocalEnd,
) -> Result<i32, Reason> {
    skb.adjust_room(-(T::OVERHEAD as i32), u64::from(BPF_F_ADJ_ROOM_FIXED_GSO))?;
    let bytes = skb.bytes(0, ETH_LEN + F::LEN)?;
    // SAFETY: all that is written lies within the packet; (of `mac_constant!`) see `maps::volatile`.
    unsafe {
        // Only frames from the gateway are learned from, see `ingress_init`.
        let gateway = mac_constant!(gateway);
        *bytes.cast::<u64>() = local.mac | gateway << 48;
        *bytes.add(8).cast::<u32>() = (gateway >> 16) as u32;
        *bytes.add(12).cast::<u16>() = F::ETHERTYPE.to_be();
        F::forward(bytes.add(ETH_LEN), inner, tos);
    }
    // Kernels before 6.15 leave the mark on at this crossing (net/core/filter.c,
    // `skb_do_redirect`); a host's own marks are none of the container's business.
    skb.set_mark(0);
    // SAFETY: no precondition.
    Ok(unsafe { bpf_redirect_peer(local.ifindex, 0) } as i32)
}
